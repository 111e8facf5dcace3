"""Bodies as RFC 8259 has them: UTF-8, without NaN and Infinity, which Python's parser would let through."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute


class _StrictRequest(Request):
    async def json(self) -> object:
        return json.loads((await self.body()).decode("utf-8"), parse_constant=_refuse)


class StrictJsonRoute(APIRoute):
    """A route whose body is JSON in the strict sense, or answered with 400."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind the stricter parser."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return strict


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
