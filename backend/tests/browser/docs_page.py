"""The documentation pages in a browser; `.ci/browser` runs this, `make test` does not."""

from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, expect  # type: ignore[import-not-found]  # as in chromium.py

from backend.tests.browser.chromium import by_name, opened, screenshot
from backend.tests.frontend import frontend
from backend.tests.serving import in_thread, settings

SIX = ["create_task", "list_tasks", "get_task", "update_task", "toggle_task", "delete_task"]


def try_out(page: Page, operation: str, **typed: str) -> Any:
    """Open an operation, fill in only the parameters `typed`, and execute it. Returns the response."""
    block = page.locator(f"#operations-tasks-{operation}")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    for name, value in typed.items():
        block.locator(f"tr[data-param-name={name}] input").fill(value)
    with page.expect_response(lambda response: "/api/" in response.url) as answered:
        block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response .response-col_status")).to_contain_text(
        str(answered.value.status)
    )
    screenshot(block, operation)
    block.locator(".opblock-summary-control").click()
    return answered.value


def test_the_root_redirects_to_the_docs_page_which_renders(base_url: str) -> None:
    with opened(by_name(base_url) + "/") as page:
        expect(page.locator(".swagger-ui .info .title")).to_contain_text("Tasks")
        expect(page.locator(".opblock-tag-section#operations-tag-tasks, .opblock")).not_to_have_count(0)
        for operation in SIX:
            expect(page.locator(f"#operations-tasks-{operation}")).to_be_visible()
        expect(page.get_by_role("button", name="Authorize")).to_have_count(0)
        assert page.url == by_name(base_url) + "/docs"
        screenshot(page, "docs")


def test_every_operation_works_by_clicking_and_typing_only_the_id_of_the_task(
    base_url: str, client: httpx.Client
) -> None:
    with opened(by_name(base_url) + "/docs") as page:
        created = try_out(page, "create_task")
        assert created.status == 201
        task = created.json()
        location = created.headers["location"]
        assert client.get(location).json() == task
        listed = try_out(page, "list_tasks")
        assert listed.status == 200
        assert task in listed.json()
        assert try_out(page, "get_task", task_id=task["id"]).json() == task
        for operation in ("update_task", "toggle_task"):
            changed = try_out(page, operation, task_id=task["id"])
            assert changed.status == 200
            assert client.get(location).json() == changed.json() != task
        assert try_out(page, "delete_task", task_id=task["id"]).status == 204
        assert client.get(location).status_code == 404


def test_redoc_renders(base_url: str) -> None:
    with opened(by_name(base_url) + "/redoc") as page:
        expect(page.locator("h1").first).to_contain_text("Tasks")
        for operation in SIX:
            expect(page.locator(f"[id='tag/tasks/operation/{operation}']")).to_be_attached()
        screenshot(page, "redoc")
        page.wait_for_load_state("networkidle")


def test_with_authentication_the_page_takes_a_token(database_url: str, tmp_path: Path) -> None:
    with frontend(tmp_path) as served:
        auth = {name.lower(): value for name, value in served.settings.items()}
        token = httpx.get(f"{served.origin}/api/auth/token").json()["token"]
        with in_thread(settings(database_url, **auth)) as base_url, opened(by_name(base_url) + "/docs") as page:
            page.get_by_role("button", name="Authorize").click()
            dialog = page.locator(".modal-ux")
            dialog.locator("input").fill(token)
            screenshot(page, "authorize")
            dialog.get_by_role("button", name="Apply credentials").click()
            dialog.get_by_role("button", name="Close").click()
            assert try_out(page, "create_task", user_id=served.user).status == 201
