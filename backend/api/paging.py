"""How a client walks through the list: opaque cursors, and the `Link` header (RFC 8288)."""

import base64
import binascii
from datetime import datetime
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request

from backend.core.errors import invalid
from backend.core.types import MAX_OFFSET
from backend.models.task import Position


def encode_cursor(position: Position) -> str:
    """The cursor of the page that begins behind `position`."""
    return base64.urlsafe_b64encode("/".join(position).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Position:
    """The position in `cursor`; raises a 422 where it is none that `encode_cursor` could have made."""
    try:
        created_at, task_id = base64.b64decode(cursor + "==", "-_", validate=True).decode("ascii").split("/")
        moment = datetime.strptime(created_at, "%Y-%m-%dT%H:%M:%S.%fZ")
        return Position(f"{moment.isoformat()}Z", str(UUID(task_id)))
    except (ValueError, binascii.Error):
        raise invalid("cursor", "Cursor should be one taken from a Link header") from None


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
