"""Completing tasks: toggling, and setting the state."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from backend.tests.database import blocking_writes
from backend.tests.errors import assert_error


@pytest.fixture
def task(client: httpx.Client, tasks: str) -> str:
    """The path of a pending task."""
    location: str = client.post(tasks, json={"title": "Buy milk", "description": "Two"}).headers["Location"]
    return location


@pytest.mark.parametrize("body", [None, {}])
def test_no_body_or_an_empty_object_toggles(client: httpx.Client, task: str, body: object) -> None:
    before = client.get(task).json()
    for completed in (True, False, True):
        toggled = client.patch(f"{task}/complete", json=body)
        assert toggled.status_code == 200
        assert toggled.json() == before | {"completed": completed, "updated_at": toggled.json()["updated_at"]}
        assert client.get(task).json() == toggled.json()
        assert client.get(task).headers["ETag"] == toggled.headers["ETag"]


def test_an_empty_body_toggles(client: httpx.Client, task: str) -> None:
    assert client.patch(f"{task}/complete", headers={"Content-Type": "application/json"}).json()["completed"] is True
    assert client.patch(f"{task}/complete", headers={"Content-Length": "0"}).json()["completed"] is False


def test_an_empty_chunked_body_is_refused_and_toggles_nothing(client: httpx.Client, task: str) -> None:
    assert_error(client.patch(f"{task}/complete", content=iter([b""])), 400)
    assert client.get(task).json()["completed"] is False


@pytest.mark.parametrize("completed", [True, False])
def test_a_body_sets_the_state(client: httpx.Client, task: str, completed: bool) -> None:
    for _ in range(2):
        assert client.patch(f"{task}/complete", json={"completed": completed}).json()["completed"] is completed


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        (b'{"title": "Buy oat milk"}', ("body", "completed")),
        (b'{"": true}', ("body", "completed")),
        (b'{"completed": null}', ("body", "completed")),
        (b'{"completed": 1}', ("body", "completed")),
        (b'{"completed": "true"}', ("body", "completed")),
        (b'{"Completed": true}', ("body", "completed")),
        (b"[]", ("body",)),
        (b"true", ("body",)),
    ],
)
def test_a_body_without_a_boolean_for_completed_toggles_nothing(
    client: httpx.Client, task: str, body: bytes, loc: tuple[str, ...]
) -> None:
    before = client.get(task)
    refused = client.patch(f"{task}/complete", content=body, headers={"Content-Type": "application/json"})
    assert_error(refused, 422, *loc)
    assert client.get(task).headers["ETag"] == before.headers["ETag"]


def test_a_body_of_another_media_type_toggles_nothing(client: httpx.Client, task: str) -> None:
    before = client.get(task)
    refused = client.patch(f"{task}/complete", content=b'{"completed": false}', headers={"Content-Type": "text/plain"})
    assert_error(refused, 422, "body")
    assert client.get(task).headers["ETag"] == before.headers["ETag"]


def test_101_concurrent_toggles_toggle_101_times(client: httpx.Client, task: str, database_url: str) -> None:
    with ThreadPoolExecutor(101) as pool:
        with blocking_writes(database_url, task.rpartition("/")[2]):
            sent = [pool.submit(client.patch, f"{task}/complete") for _ in range(101)]
        toggled = [one.result() for one in sent]
    assert [response.status_code for response in toggled] == [200] * 101
    assert [response.json()["completed"] for response in toggled].count(True) == 51
    assert len({response.headers["ETag"] for response in toggled}) == 101
    assert client.get(task).json()["completed"] is True


def test_toggling_a_missing_task_or_one_of_another_user_is_404(client: httpx.Client, tasks: str, task: str) -> None:
    others = f"/api/{uuid4()}/tasks"
    answers = [client.patch(f"{others}/{i}/complete") for i in (task.rpartition("/")[2], uuid4())]
    assert_error(answers[0], 404)
    assert answers[0].content == answers[1].content
    assert client.get(task).json()["completed"] is False
