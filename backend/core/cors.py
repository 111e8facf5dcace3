"""Cross-origin requests of browsers (Fetch standard, "CORS protocol")."""

from starlette.datastructures import Headers
from starlette.middleware import cors
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send


class CORSMiddleware(cors.CORSMiddleware):
    """Starlette's, out of the way of requests that name no origin: there it took a sixth of a request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and any(name == b"origin" for name, _ in scope["headers"]):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's answer; a refusal as JSON, as all errors are."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return JSONResponse({"detail": bytes(response.body).decode()}, response.status_code, headers)
