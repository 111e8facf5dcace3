"""Pages in a real browser, with checks of their requests and console messages."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

# Installed by .ci/browser, not with the project's requirements, so mypy does not find it.
from playwright.sync_api import Locator, Page, sync_playwright  # type: ignore[import-not-found]

CHROMIUM = "/usr/bin/chromium"
# A host name like that of a deployed service: Swagger UI and browsers treat localhost as a special case.
HOST = "tasks.example"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
]


@contextmanager
def opened(url: str, also: str | None = None, refused: Sequence[int | str] = ()) -> Iterator[Page]:
    """Open `url`. At the end, the page must have sent requests only to its own origin and `also`, and the errors in its
    console must be those in `refused`: statuses of responses, or texts.
    """
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser: {CHROMIUM} is not installed")
    errors: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        own = page.evaluate("location.origin")
        browser.close()
    allowed = tuple(f"{origin}/" for origin in (own, f"blob:{own}", also) if origin)
    assert requests
    assert [url for url in requests if not url.startswith((*allowed, "data:"))] == []
    statuses = [re.search(r"responded with a status of (\d+)", error) for error in errors]
    seen = [int(status[1]) if status else error for status, error in zip(statuses, errors, strict=True)]
    assert seen == list(refused), seen


def by_name(base_url: str) -> str:
    """`base_url` with the name `HOST`."""
    return base_url.replace("127.0.0.1", HOST)


def screenshot(shown: Page | Locator, name: str) -> None:
    """Save a screenshot of a page or a part of it to the folder SCREENSHOTS, if it is set."""
    if folder := os.environ.get("SCREENSHOTS"):
        shown.screenshot(path=str(Path(folder) / f"{name}.png"))
