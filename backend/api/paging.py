"""The `Link` header of a page (RFC 8288)."""

from urllib.parse import urlencode

from fastapi import Request

from backend.models.task import TaskQuery


def links(request: Request, query: TaskQuery, next_cursor: str | None) -> str:
    """The request's own query, moved on: by offset where it named one, by cursor otherwise; may be empty.

    The targets are relative to the host, whose name a service behind a proxy does not know.
    """
    path = request.scope["raw_path"].decode()
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
