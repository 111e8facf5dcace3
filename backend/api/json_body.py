"""Bodies as RFC 8259 has them, UTF-8 without NaN and Infinity, and none that is larger than a task can be."""

import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

MAX_BODY_BYTES = 64 * 1024


class _StrictRequest(Request):
    async def stream(self) -> AsyncGenerator[bytes, None]:
        size = int(self.headers.get("content-length", 0))
        if size <= MAX_BODY_BYTES:
            size = 0
            async for chunk in super().stream():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    break
                yield chunk
        if size > MAX_BODY_BYTES:
            raise HTTPException(413, "The body is larger than 64 KiB.")

    async def json(self) -> object:
        return json.loads((await self.body()).decode("utf-8"), parse_constant=_refuse)


class JsonBodyRoute(APIRoute):
    """A route that takes such a body and answers others with 400 and 413.

    FastAPI's own `max_body_size` answers in plain text, and outside all middleware.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, on a request of the stricter kind."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
