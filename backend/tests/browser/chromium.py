"""A real browser on pages of the service, which keeps an eye on what they do."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

# Installed by .ci/browser, apart from what the project itself needs; mypy does not see it.
from playwright.sync_api import Locator, Page, sync_playwright  # type: ignore[import-not-found]

CHROMIUM = "/usr/bin/chromium"
# A name as a deployed service has one: Swagger UI and browsers treat localhost as a special case.
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
    """The page at `url`. At the end it must have asked no origin but its own and `also` for anything, and its console
    must show no errors but those of requests `refused` with these statuses, or exactly these texts.
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
    assert [asked for asked in requests if not asked.startswith((*allowed, "data:"))] == []
    statuses = [re.search(r"responded with a status of (\d+)", error) for error in errors]
    seen = [int(status[1]) if status else error for status, error in zip(statuses, errors, strict=True)]
    assert seen == list(refused), seen


def by_name(base_url: str) -> str:
    """`base_url` as seen from outside, by `HOST`."""
    return base_url.replace("127.0.0.1", HOST)


def screenshot(shown: Page | Locator, name: str) -> None:
    """Keep what a page or a part of it looks like in the folder SCREENSHOTS, if that is set."""
    if folder := os.environ.get("SCREENSHOTS"):
        shown.screenshot(path=str(Path(folder) / f"{name}.png"))
