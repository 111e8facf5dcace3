"""How a client walks through the list: opaque cursors, and the `Link` header (RFC 8288)."""

from urllib.parse import urlencode

from fastapi import Request

from backend.core.types import MAX_OFFSET
from backend.models.task import Position


def encode_cursor(position: Position) -> str:
    """The cursor (`Cursor` in `backend.core.types`) of the page that begins behind `position`."""
    return f"{position.microseconds:016}-{position.id.replace('-', '')}"


def decode_cursor(cursor: str) -> Position:
    """The position in a cursor."""
    microseconds, task_id = cursor.split("-")
    return Position(int(microseconds), task_id)


def link(request: Request, limit: int, offset: int | None, following: Position | None) -> str:
    """The value of `Link`: the request's own query, moved on. `offset` is None where the request is by cursor.

    `following` is the position behind which there is more, if there is. The targets are relative to the host, which a
    service behind a proxy does not know.
    """
    path = request.scope.get("root_path", "") + request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("offset", "cursor")]

    def to(relation: str, name: str, value: str | int) -> str:
        return f'<{path}?{urlencode([*kept, (name, value)])}>; rel="{relation}"'

    links = []
    if offset is None:
        if following is not None:
            links.append(to("next", "cursor", encode_cursor(following)))
    else:
        links.append(to("first", "offset", 0))
        if offset > 0:
            links.append(to("prev", "offset", max(0, offset - limit)))
        if following is not None and offset + limit <= MAX_OFFSET:
            links.append(to("next", "offset", offset + limit))
    return ", ".join(links)
