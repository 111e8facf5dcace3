"""Text and numbers that carry their bounds, for bodies, queries and headers alike."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_OFFSET = 2**31 - 1


def _without_nul(text: str) -> str:
    # PostgreSQL's text cannot hold it. Lone surrogates, which it cannot hold either, are refused by pydantic's str.
    if "\0" in text:
        raise PydanticCustomError("string_nul", "String should not contain U+0000")
    return text


def _true_or_false(value: object) -> object:
    if isinstance(value, str) and value not in ("true", "false"):
        raise PydanticCustomError("bool_parsing", "Input should be true or false")
    return value


# Constraints stand before the check for U+0000: behind a function pydantic applies them to its outcome only.
NoNul = AfterValidator(_without_nul)
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=255),
    NoNul,
    Field(json_schema_extra={"pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}),
]
Description = Annotated[
    str, StringConstraints(max_length=2000), NoNul, Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})
]
SearchWords = Annotated[
    str, StringConstraints(min_length=1, max_length=255), NoNul, Field(json_schema_extra={"pattern": r"^[^\u0000]+$"})
]
Key = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern="^[ -~]+$")]
Cursor = Annotated[str, StringConstraints(pattern="^[0-9]{16}-[0-9a-f]{32}$")]
Limit = Annotated[int, Field(ge=1, le=100)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
Completed = Annotated[bool, Field(strict=True)]
QueryFlag = Annotated[bool, BeforeValidator(_true_or_false)]
Timestamp = Annotated[
    str,
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-08T20:45:00.123456Z"]}),
]
"""RFC 3339 in UTC, always with six digits of a second: the form in which PostgreSQL's `to_char` writes it."""
