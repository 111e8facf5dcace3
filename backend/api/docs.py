"""The pages for people: `/` leads to Swagger UI, and ReDoc comes without what its script would fetch from elsewhere."""

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """The way to the docs."""
    return RedirectResponse("docs")


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    """ReDoc's page."""
    root = request.scope.get("root_path", "")
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        redoc_js_url=f"{root}/redoc.js",
        redoc_favicon_url=f"{root}/static-offline-docs/favicon.png",
        with_google_fonts=False,
    )


@router.get("/redoc.js")
async def redoc_script() -> Response:
    """ReDoc's script, without the logo of its makers, which is on their server."""
    return Response(_script(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


@cache
def _script() -> str:
    script = (Path(fastapi_offline.__file__).parent / "static/redoc.standalone.js").read_text()
    return script.replace("https://cdn.redoc.ly/redoc/logo-mini.svg", "data:,")
