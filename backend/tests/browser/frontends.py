"""Small frontends in pages of another origin, written like public ones; `.ci/browser` runs it."""

from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect  # type: ignore[import-not-found]  # as in chromium.py

from backend.tests import npm
from backend.tests.browser.chromium import opened, screenshot
from backend.tests.frontend import frontend
from backend.tests.serving import in_thread, settings

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["react", "credentials", "slashes"])
def test_a_frontend_of_another_origin_works(name: str, database_url: str) -> None:
    if name == "react":
        npm.install(HERE)
    with (
        frontend(HERE) as served,
        in_thread(settings(database_url, cors_origins=served.origin)) as base_url,
        opened(
            f"{served.origin}/pages/{name}.html?api={base_url}&user={served.user}", also=base_url, refused=[422]
        ) as page,
    ):

        def add(title: str) -> None:
            page.get_by_placeholder("Title").fill(title)
            page.get_by_role("button", name="Add").click()

        def item(title: str) -> Locator:
            return page.get_by_role("listitem").filter(has_text=title)

        titles = page.get_by_role("listitem").locator("span")
        add(" ")
        expect(page.get_by_role("alert")).to_have_text("title: String should have at least 1 character")
        screenshot(page, f"{name}-form-refused")
        add("Buy milk")
        expect(titles).to_have_text(["Buy milk"])
        add("Buy bread")
        expect(titles).to_have_text(["Buy bread", "Buy milk"])

        item("Buy milk").get_by_role("checkbox").click()
        expect(item("Buy milk").get_by_role("checkbox")).to_be_checked()
        page.get_by_role("combobox").select_option("pending")
        expect(titles).to_have_text(["Buy bread"])
        page.get_by_role("combobox").select_option("completed")
        expect(titles).to_have_text(["Buy milk"])
        page.get_by_role("combobox").select_option("all")
        page.get_by_placeholder("Search").fill("BREAD")
        expect(titles).to_have_text(["Buy bread"])
        item("Buy bread").get_by_role("button", name="Delete").click()
        expect(titles).to_have_count(0)
        page.get_by_placeholder("Search").fill("")
        expect(titles).to_have_text(["Buy milk"])
