"""Text and numbers with their bounds, for bodies, queries and headers alike, and the format of timestamps."""

from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from psycopg2.extensions import cursor, new_type
from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, StringConstraints, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError

T = TypeVar("T")

MAX_OFFSET = 2**31 - 1
MAX_SEARCH_WORDS = 10


def _without_nul(text: str) -> str:
    # PostgreSQL's text type cannot store U+0000, nor lone surrogates, which pydantic's str refuses.
    if "\0" in text:
        raise PydanticCustomError("string_nul", "String should not contain U+0000")
    return text


def _few_words(text: str) -> str:
    # Each word is compared with every title of the user.
    if len(text.split()) > MAX_SEARCH_WORDS:
        raise PydanticCustomError("too_many_words", f"String should have at most {MAX_SEARCH_WORDS} words")
    return text


def _true_or_false(value: object) -> object:
    if isinstance(value, str) and value not in ("true", "false"):
        raise PydanticCustomError("bool_parsing", "Input should be true or false")
    return value


class _NotNull:
    @staticmethod
    def __get_pydantic_json_schema__(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # pydantic's SkipJsonSchema[None] would add the names of types to the locations of errors.
        without_null: dict[str, Any] = handler(schema)["anyOf"][0]
        return without_null


Omittable = Annotated[T | None, _NotNull]
"""A parameter that may be absent: its value is then None, but OpenAPI does not offer null."""

# Keep the constraints before NoNul: after a validator function, pydantic checks lengths before it strips white space,
# so a blank title would pass.
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
Search = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255),
    NoNul,
    AfterValidator(_few_words),
    Field(json_schema_extra={"pattern": r"^[^\u0000]+$"}),
]
Key = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern="^[ -~]+$")]
Cursor = Annotated[str, StringConstraints(pattern="^[0-9]{16}-[0-9a-f]{32}$")]
Limit = Annotated[int, Field(ge=1, le=100)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
Completed = Annotated[bool, Field(strict=True)]
Flag = Annotated[bool, BeforeValidator(_true_or_false)]
Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""RFC 3339 in UTC, always with six fractional digits; `TIMESTAMPTZ` converts PostgreSQL's values to this format."""


def _rfc3339(value: str | bytes | None, _: cursor) -> str | None:
    if not isinstance(value, str):
        return None
    if value[26:] == "+00":
        return value.replace(" ", "T").replace("+00", "Z")
    if not value.endswith("+00"):
        # The session's time zone is not UTC.
        value = f"{datetime.fromisoformat(value).astimezone(UTC)}"[:-3]
    return f"{value[:10]}T{value[11:19]}.{value[20:-3]:0<6}Z"


TIMESTAMPTZ = new_type((1184,), "TIMESTAMPTZ", _rfc3339)
