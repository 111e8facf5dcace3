"""The code in the quickstarts, built by Next.js and used in Chromium; `.ci/nextjs` runs it, `make test` does not."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory

import pytest
from playwright.sync_api import Locator, Page, Route, expect  # type: ignore[import-not-found]  # installed by .ci/browser

from backend.tests import npm, quickstarts
from backend.tests.browser.chromium import opened, screenshot
from backend.tests.conftest import empty_database
from backend.tests.serving import Service, as_process, free_port

HERE = Path(__file__).parent
# The files of `create-next-app` that the quickstarts leave unchanged, and the locked packages.
TEMPLATE = ["package.json", "package-lock.json", ".npmrc", "next.config.ts", "tsconfig.json"]
NEXT = ["node", "node_modules/next/dist/bin/next"]
ABORTED = "Failed to load resource: net::ERR_FAILED"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The app's source, with the packages installed."""
    # pytest's folders would keep the packages of three runs.
    with TemporaryDirectory() as created:
        folder = Path(created)
        for name in TEMPLATE:
            shutil.copy(HERE / name, folder)
        npm.install(folder)
        for name, code in quickstarts.files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(code)
        shutil.copy(HERE / "layout.tsx", folder / "app")
        yield folder


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    """A database for the service and Better Auth."""
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def origin() -> str:
    return f"http://localhost:{free_port()}"


@pytest.fixture(scope="module")
def service(folder: Path, database: str, origin: str) -> Iterator[Service]:
    """The task service, with the settings in the quickstart."""
    env = variables(folder / ".env", {"http://localhost:3000": origin})
    with as_process(folder, env={**env, "DATABASE_URL": database}) as running:
        yield running


@pytest.fixture(scope="module")
def app(folder: Path, database: str, origin: str, service: Service) -> Iterator[str]:
    """The app, built and started; its origin."""
    values = {
        "http://localhost:3000": origin,
        "http://127.0.0.1:8000": service.base_url,
        "<the output of: openssl rand -base64 32>": token_urlsafe(32),
        "<a PostgreSQL connection string>": database,
    }
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "NEXT_TELEMETRY_DISABLED": "1"}
    env |= variables(folder / ".env.local", values)
    (folder / ".env.local").unlink()
    types = f"{service.base_url}/openapi.json", "--output", "lib/schema.d.ts"
    for command in ["node_modules/.bin/openapi-typescript", *types], [*NEXT, "build"]:
        with popen(command, folder, env) as process:
            output, _ = process.communicate()
        assert process.returncode == 0, output
    start = [*NEXT, "start", "--hostname", "127.0.0.1", "--port", origin.rpartition(":")[2]]
    with popen(start, folder, env) as process:
        try:
            assert process.stdout is not None
            printed = []
            for line in process.stdout:
                printed.append(line)
                if "Ready in" in line:
                    break
            else:
                raise AssertionError("".join(printed))
            yield origin
        finally:
            process.terminate()


def popen(command: list[str], folder: Path, env: dict[str, str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def variables(file: Path, values: dict[str, str]) -> dict[str, str]:
    """The variables in a file of the quickstart, with values in place of the placeholders."""
    text = file.read_text()
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return dict(line.split("=", 1) for line in text.splitlines())


def sign_up(page: Page, email: str) -> None:
    page.get_by_placeholder("Name").fill("Ada")
    page.get_by_placeholder("E-mail").fill(email)
    page.get_by_placeholder("Password").fill("correct horse battery")
    page.get_by_role("button", name="Sign up").click()
    expect(page.get_by_text("0 tasks")).to_be_visible()


def add(page: Page, title: str) -> None:
    page.get_by_placeholder("New task").fill(title)
    page.get_by_role("button", name="Add").click()


def item(page: Page, title: str) -> Locator:
    return page.get_by_role("listitem").filter(has_text=title)


def rename(page: Page, title: str) -> None:
    page.get_by_label("Title").fill(title)
    page.get_by_role("button", name="Save").click()


def test_the_quickstarts_name_the_versions_that_are_tested() -> None:
    package = json.loads((HERE / "package.json").read_text())
    tested = package["dependencies"] | package["devDependencies"]
    named = dict(re.findall(r"([\w-]+)@(\d[\d.]+\d)", "".join(page.read_text() for page in quickstarts.PAGES)))
    assert named.pop("create-next-app") == tested["next"]
    assert named == {name: tested[name] for name in ("better-auth", "pg", "openapi-fetch", "openapi-typescript")}


def test_the_app_works_from_sign_up_to_sign_out(app: str, service: Service) -> None:
    with opened(app, also=service.base_url, refused=[400, 422, 412]) as page:
        page.get_by_role("link", name="Sign in").click()
        page.get_by_placeholder("E-mail").fill("ada@example.com")
        page.get_by_placeholder("Password").fill("short")
        page.get_by_role("button", name="Sign up").click()
        expect(page.get_by_role("alert").first).to_have_text("Password too short")
        screenshot(page, "sign-up-refused")
        sign_up(page, "ada@example.com")

        add(page, " ")
        expect(page.get_by_role("alert").first).to_have_text("title: String should have at least 1 character")
        screenshot(page, "form-refused")
        for number in range(1, 12):
            add(page, f"Task {number}.")
            expect(page.get_by_text(f"{number} tasks")).to_be_visible()
        expect(page.get_by_role("listitem")).to_have_count(10)
        page.get_by_role("button", name="More").click()
        expect(page.get_by_role("listitem")).to_have_count(11)
        expect(page.get_by_role("button", name="More")).to_have_count(0)

        item(page, "Task 2.").get_by_role("checkbox").click()
        expect(item(page, "Task 2.").get_by_role("checkbox")).to_be_checked()

        item(page, "Task 11.").get_by_role("button", name="Edit").click()
        other_tab = page.context.new_page()
        other_tab.goto(app)
        item(other_tab, "Task 11.").get_by_role("button", name="Edit").click()
        rename(other_tab, "Changed in the other tab")
        expect(item(other_tab, "Changed in the other tab")).to_be_visible()
        other_tab.goto(f"{app}/summary")
        expect(other_tab.get_by_text("10 pending")).to_be_visible()
        rename(page, "Too late")
        expect(page.get_by_role("alert").first).to_have_text("The task has changed meanwhile. Open it again.")
        screenshot(page, "conflict")
        item(page, "Changed in the other tab").get_by_role("button", name="Delete").click()
        expect(page.get_by_text("10 tasks")).to_be_visible()

        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("link", name="Sign in").click()
        page.get_by_placeholder("E-mail").fill("ada@example.com")
        page.get_by_placeholder("Password").fill("correct horse battery")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("10 tasks")).to_be_visible()


def test_failures_of_the_network_are_retried_or_shown(app: str, service: Service) -> None:
    tokens: list[str] = []
    created: list[int] = []

    def lose_the_first_answer(route: Route) -> None:
        if route.request.method == "POST":
            created.append(route.fetch().status)
        if len(created) == 1:
            route.abort()
        else:
            route.continue_()

    with opened(f"{app}/sign-in", also=service.base_url, refused=[ABORTED, 502]) as page:
        page.on("request", lambda request: tokens.append(request.url) if request.url.endswith("/token") else None)
        sign_up(page, "bob@example.com")
        page.route(f"{service.base_url}/**", lose_the_first_answer)
        add(page, "Buy milk")
        expect(page.get_by_text("1 tasks")).to_be_visible()
        assert created == [201, 201]
        assert len(tokens) == 1

        headers = {"Access-Control-Allow-Origin": app}
        page.route("**/complete", lambda route: route.fulfill(status=502, headers=headers, body="<h1>Bad Gateway</h1>"))
        item(page, "Buy milk").get_by_role("checkbox").click()
        expect(page.get_by_role("alert").first).to_have_text("The task service answered with status 502.")
