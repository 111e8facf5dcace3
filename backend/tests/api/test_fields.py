"""Valid and invalid values of a task's fields, in creates and updates alike."""

from collections.abc import Callable

import httpx
import pytest

from backend.tests.errors import assert_error

Write = Callable[[bytes | dict[str, object]], httpx.Response]


@pytest.fixture(params=["create", "update"])
def write(request: pytest.FixtureRequest, client: httpx.Client, tasks: str) -> Write:
    """Send fields, or raw JSON, to create or update a task; adds a title if there is none."""
    path = client.post(tasks, json={"title": "Before"}).headers["Location"]
    method, url = ("POST", tasks) if request.param == "create" else ("PUT", path)

    def send(fields: bytes | dict[str, object]) -> httpx.Response:
        if isinstance(fields, bytes):
            return client.request(method, url, content=fields, headers={"Content-Type": "application/json"})
        return client.request(method, url, json={"title": "Buy milk"} | fields)

    return send


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("x", "x"),
        ("a" * 255, "a" * 255),
        ("😀" * 255, "😀" * 255),
        (f"\t {'é' * 255}\r\n" + " " * 300, "é" * 255),
        ("\u00a0\u3000Buy  milk\u2003\u0085", "Buy  milk"),
        ("\u200bx\ufeff", "\u200bx\ufeff"),
        ("""%s %(x)s '"\\ \x01\x7f <b>&amp; {}""", """%s %(x)s '"\\ \x01\x7f <b>&amp; {}"""),
    ],
)
def test_a_title_is_stripped_and_otherwise_unchanged(write: Write, given: str, kept: str) -> None:
    written = write({"title": given})
    assert written.is_success, written.text
    assert written.json()["title"] == kept


@pytest.mark.parametrize("given", ["x" * 256, "😀" * 256, "", " \t\n\u3000", "nul\0", None, 5, True, ["x"], {"x": 1}])
def test_an_invalid_title_is_refused(write: Write, given: object) -> None:
    assert_error(write({"title": given}), 422, "body", "title")


@pytest.mark.parametrize("given", ["", "  two\nlines  ", "x" * 2000, "😀" * 2000, None])
def test_a_description_is_stored_unchanged(write: Write, given: str | None) -> None:
    written = write({"description": given})
    assert written.is_success, written.text
    assert written.json()["description"] == given


@pytest.mark.parametrize("given", ["x" * 2001, "😀" * 2001, "nul\0", 5, False, [], {}])
def test_an_invalid_description_is_refused(write: Write, given: object) -> None:
    assert_error(write({"description": given}), 422, "body", "description")


@pytest.mark.parametrize("given", [True, False])
def test_completed_accepts_booleans(write: Write, given: bool) -> None:
    assert write({"completed": given}).json()["completed"] is given


@pytest.mark.parametrize("given", [0, 1, 1.0, "true", "yes", "", None, [], {}])
def test_completed_accepts_only_booleans(write: Write, given: object) -> None:
    assert_error(write({"completed": given}), 422, "body", "completed")


@pytest.mark.parametrize(
    ("field", "body"),
    [("title", rb'{"title": "\ud83d"}'), ("description", rb'{"title": "Buy milk", "description": "\ude00\ud83d"}')],
)
def test_a_lone_surrogate_is_refused(write: Write, field: str, body: bytes) -> None:
    assert_error(write(body), 422, "body", field)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"title"', b"1", b"true"])
def test_a_body_that_is_not_an_object_is_refused(write: Write, body: bytes) -> None:
    assert_error(write(body), 422, "body")


def test_all_invalid_fields_are_reported_together(write: Write) -> None:
    refused = write({"title": "", "description": 5, "completed": "no"})
    assert_error(refused, 422)
    assert [error["loc"][-1] for error in refused.json()["errors"]] == ["title", "description", "completed"]
