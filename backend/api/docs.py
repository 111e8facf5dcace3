"""The documentation pages: their texts, the redirect from `/`, and scripts that load nothing from other hosts."""

from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

DESCRIPTION = """\
Personal to-do lists: create, list, search, change, complete and delete the tasks of a user.

    TASKS=http://127.0.0.1:8000/api/3f0c9b1e-5d0c-4c1f-9a53-2f1a6f0e7b11/tasks

**Authentication.** If it is enabled, send a JWT issued by Better Auth. Its `sub` must be the `user_id` of the path.

    curl $TASKS -H "Authorization: Bearer $TOKEN"

**Paging.** The `Link` header contains the URL of the `next` page, if there is one.

    curl -i "$TASKS?status=pending&search=milk&limit=10"

**Errors.** `detail` is one human-readable sentence. In a 503, it tells whether something may have been written.
In a 422, `errors` also contains the location and reason of each error.

    curl $TASKS -H "Content-Type: application/json" -d '{"title": ""}'

**Safe retries.** Send a unique `Idempotency-Key` for each new task: repeating the request returns the original task.

    curl $TASKS -H "Idempotency-Key: 1" -H "Content-Type: application/json" -d '{"title": "Buy milk"}'

**Safe edits.** Send the task's last `ETag` as `If-Match`: if the task has changed since, the request fails with 412.

    curl -X PUT $TASKS/$ID -H 'If-Match: "1"' -H "Content-Type: application/json" -d '{"title": "Buy oat milk"}'
"""
TAGS = [
    {"name": "tasks", "description": "The tasks of one user. Other users' tasks look like tasks that do not exist."},
    {"name": "health", "description": "For probes: `/health` queries the database, `/health/live` does not."},
]

STATIC = Path(fastapi_offline.__file__).parent / "static"

router = APIRouter(include_in_schema=False)


def add_pages(app: FastAPI) -> None:
    """Add `/openapi.json` and the pages to `app`, after all other routes, because routes are matched in order."""
    app.openapi_url = "/openapi.json"
    app.setup()
    app.mount("/static", StaticFiles(directory=STATIC))
    app.include_router(router)


@router.get("/")
async def index() -> Response:
    """Redirect to Swagger UI."""
    return RedirectResponse("docs")


@router.get("/docs")
async def swagger_ui(request: Request) -> Response:
    """The Swagger UI page."""
    root = request.scope.get("root_path", "").rstrip("/")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        swagger_js_url=f"{root}/static/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/static/swagger-ui.css",
        swagger_favicon_url=f"{root}/static/favicon.png",
        # Sorted by path, because routes are declared in the order in which they are matched fastest.
        swagger_ui_parameters={"operationsSorter": "alpha"},
    )


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    """The ReDoc page."""
    root = request.scope.get("root_path", "").rstrip("/")
    return get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=request.app.title,
        redoc_js_url=f"{root}/redoc.js",
        redoc_favicon_url=f"{root}/static/favicon.png",
        with_google_fonts=False,
    )


@router.get("/redoc.js")
async def redoc_script() -> Response:
    """ReDoc's script, without the logo it would load from its own site."""
    return Response(_script(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


@cache
def _script() -> str:
    script = (STATIC / "redoc.standalone.js").read_text()
    return script.replace("https://cdn.redoc.ly/redoc/logo-mini.svg", "data:,")
