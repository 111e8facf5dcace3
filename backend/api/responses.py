"""What the OpenAPI document says of responses beyond the task itself: errors and headers."""

from typing import Any

from sqlmodel import SQLModel


class ErrorResponse(SQLModel):
    """Why a request was not carried out."""

    detail: str


class InvalidValue(SQLModel):
    """One value that was refused, where it stood, and why."""

    type: str
    loc: list[str | int]
    msg: str


class Invalid(SQLModel):
    """The values that were refused."""

    detail: list[InvalidValue]


Responses = dict[int | str, dict[str, Any]]
"""As FastAPI's `responses` takes them."""


def _header(description: str, schema: str = "string") -> dict[str, object]:
    return {"description": description, "schema": {"type": schema}}


def _error(description: str, **headers: dict[str, object]) -> dict[str, Any]:
    return {"model": ErrorResponse, "description": description, "headers": headers}


ETAG = {"ETag": _header("The task's version, for `If-Match` and `If-None-Match`.")}
LOCATION = {
    "Location": _header("Where the task is."),
    "Idempotency-Replayed": _header("`true` where it was made before."),
}
PAGE = {
    "Link": _header("RFC 8288: the `next` page if there is one; with `offset` also `first` and `prev`."),
    "X-Total-Count": _header("How many tasks match in all, if asked for.", "integer"),
}

ALWAYS: Responses = {
    422: {"model": Invalid, "description": "A value was refused."},
    503: _error(
        "The database cannot answer now; the detail says whether something may have been written.",
        **{"Retry-After": _header("Seconds to wait.", "integer")},
    ),
}
WITH_BODY: Responses = {
    400: _error("The body is not JSON."),
    408: _error("The body did not arrive within ten seconds."),
    413: _error("The body is larger than 64 KiB."),
}
ONE_TASK: Responses = {404: _error("This user has no such task.")}
CONDITIONAL: Responses = {412: _error("The task has another `ETag` than `If-Match` says; nothing was changed.")}
AUTH_RESPONSES: Responses = {
    401: _error("No valid token.", **{"WWW-Authenticate": _header("The challenge of RFC 6750.")}),
    403: _error("The token is another user's."),
}
