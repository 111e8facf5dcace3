"""The compiled client in the Next.js quickstart, in a page of another origin; `.ci/browser` runs it."""

from pathlib import Path

from backend.tests.browser.chromium import opened
from backend.tests.frontend import frontend
from backend.tests.serving import as_process
from backend.tests.typescript.building import build
from backend.tests.typescript.typed_client import SIX

PAGE = """<!doctype html>
<title>Frontend</title>
<link rel="icon" href="data:,">
<script type="importmap">{"imports": {"openapi-fetch": "/node_modules/openapi-fetch/dist/index.mjs"}}</script>
"""
WALK = """async ([baseUrl, user]) => {
  const { walk } = await import("/walk.js");
  const fetchToken = async () => (await (await fetch("/api/auth/token")).json()).token;
  return walk(baseUrl, user, fetchToken);
}"""


def test_the_client_in_the_quickstart_works_in_a_page_of_another_origin(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(PAGE)
    with (
        frontend(tmp_path) as served,
        as_process(tmp_path, env={"DATABASE_URL": database_url, **served.settings}) as service,
    ):
        build(service.base_url, tmp_path)
        with opened(f"{served.origin}/", also=service.base_url, refused=[401, 422, 412, 422, 422, 404, 404]) as page:
            assert page.evaluate(WALK, [service.base_url, served.user]) == SIX
    assert " OPTIONS " in service.log
