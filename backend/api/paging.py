"""URLs in headers: `Location`, and the `Link` of a page (RFC 8288)."""

from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request

from backend.models.task import TaskQuery


def tasks_path(request: Request, user_id: UUID) -> str:
    """The canonical path of the user's tasks: without scheme and host, which a service behind a proxy does not know."""
    return f"{request.scope.get('root_path', '')}/api/{user_id}/tasks"


def links(request: Request, user_id: UUID, query: TaskQuery, next_cursor: str | None) -> str:
    """The value of `Link`: URLs of other pages of the query, by offset if the request has one, otherwise by cursor.

    Empty for the last page by cursor.
    """
    path = tasks_path(request, user_id)
    kept = [(name, value) for name, value in request.query_params.multi_items() if name not in ("offset", "cursor")]
    targets: list[tuple[str, str, str | int]] = []
    if "offset" in query.model_fields_set:
        targets.append(("first", "offset", 0))
        if query.offset > 0:
            targets.append(("prev", "offset", max(0, query.offset - query.limit)))
        if next_cursor is not None:
            targets.append(("next", "offset", query.offset + query.limit))
    elif next_cursor is not None:
        targets.append(("next", "cursor", next_cursor))
    return ", ".join(
        f'<{path}?{urlencode([*kept, (name, value)])}>; rel="{relation}"' for relation, name, value in targets
    )
