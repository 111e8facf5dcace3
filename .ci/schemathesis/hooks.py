"""Rules that an OpenAPI document cannot express."""

from typing import Any

import schemathesis

_used_keys: set[str] = set()


@schemathesis.hook
def filter_case(_: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """Skip requests whose validity depends on rules that are not in the document."""
    return not (_is_invalid_query(case.query) or _is_short_without_white_space(case.body))


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Make repeated keys unique: a key used twice with different bodies is refused, although each request is valid."""
    key = case.headers.get("Idempotency-Key")
    if isinstance(key, str) and 0 < len(key) < 250 and key in _used_keys:
        case.headers["Idempotency-Key"] = key = f"{key}{len(_used_keys)}"
    _used_keys.add(str(key))


def _is_invalid_query(query: object) -> bool:
    # Each parameter is valid, but not the combination.
    together = ({"cursor", "offset"}, {"status", "completed"})
    return isinstance(query, dict) and (
        any(pair <= query.keys() for pair in together) or len(str(query.get("search", "")).split()) > 10
    )


def _is_short_without_white_space(body: object) -> bool:
    # Surrounding white space does not count towards a title's length.
    title = body.get("title") if isinstance(body, dict) else None
    return isinstance(title, str) and len(title) > 255 >= len(title.strip())
