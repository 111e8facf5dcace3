"""OpenAPI's description of responses besides the task itself: errors and headers."""

from typing import Any

from sqlmodel import SQLModel


class ErrorResponse(SQLModel):
    """Why a request was refused or failed, in one human-readable sentence."""

    detail: str


class InvalidValue(SQLModel):
    """An invalid value: the kind of error, its location and the reason."""

    type: str
    loc: list[str | int]
    msg: str


class ValidationErrorResponse(SQLModel):
    """Which values are invalid: as a human-readable sentence, and as a list for programs."""

    detail: str
    errors: list[InvalidValue]


Responses = dict[int | str, dict[str, Any]]
"""The type of FastAPI's `responses`, by status code."""


def _header(description: str, schema: str = "string") -> dict[str, object]:
    return {"description": description, "schema": {"type": schema}}


def _error(detail: str, **headers: dict[str, object]) -> dict[str, Any]:
    content = {"application/json": {"example": {"detail": detail}}}
    return {"model": ErrorResponse, "description": detail, "headers": headers, "content": content}


def _invalid(kind: str, place: str, name: str, message: str) -> dict[str, Any]:
    example = {"detail": f"{name}: {message}", "errors": [{"type": kind, "loc": [place, name], "msg": message}]}
    content = {"application/json": {"example": example}}
    return {"model": ValidationErrorResponse, "description": "A value is invalid.", "content": content}


ETAG = {"ETag": _header("The task's version, for `If-Match` and `If-None-Match`.")}
CREATION = {
    "Location": _header("URL of the task."),
    "Idempotency-Replayed": _header("`true` if the task already existed."),
}
PAGE = {
    "Link": _header("RFC 8288: the `next` page if there is one; with `offset` also `first` and `prev`."),
    "X-Total-Count": _header("Number of all matching tasks, if `total` is `true`.", "integer"),
}
RETRY_AFTER = {"Retry-After": _header("Seconds to wait before a retry.", "integer")}

ALWAYS: Responses = {
    422: _invalid("uuid_parsing", "path", "user_id", "Input should be a valid UUID"),
    503: _error("The database cannot be reached; nothing was written.", **RETRY_AFTER)
    | {"description": "The service is unavailable; `detail` tells whether something may have been written."},
}
WITH_BODY: Responses = {
    400: _error("The body is not valid JSON."),
    408: _error("The body did not arrive in time."),
    413: _error("The body is larger than 64 KiB."),
    422: _invalid("bool_type", "body", "completed", "Input should be a valid boolean"),
}
ONE_TASK: Responses = {404: _error("There is no such task.")}
CONDITIONAL: Responses = {412: _error("The task has changed: its ETag is not the one in If-Match.")}
AUTH_RESPONSES: Responses = {
    401: _error("A bearer token is needed.", **{"WWW-Authenticate": _header("The challenge of RFC 6750.")}),
    403: _error("The token belongs to another user."),
}
