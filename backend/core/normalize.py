"""Brings equivalent requests into one form, so that each route is declared once."""

from starlette.types import ASGIApp, Receive, Scope, Send


class NormalizeMiddleware:
    """ASGI middleware: drops a trailing slash, and answers HEAD as GET; the server omits the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        # A redirect would name a scheme and a host that a service behind a proxy does not know.
        if path.endswith("/") and path != f"{scope.get('root_path', '')}/":
            scope["path"] = path[:-1]
        if scope.get("method") != "HEAD":
            await self._app(scope, receive, send)
            return
        # A copy: the server omits the body because the method in its own scope is still HEAD.
        get = {**scope, "method": "GET"}
        await self._app(get, receive, send)
        scope["route"] = get.get("route")
