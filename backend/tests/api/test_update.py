"""Updating tasks, in part or whole."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from backend.tests.database import execute
from backend.tests.errors import assert_error

WHOLE = {"title": "Buy milk", "description": "Two bottles", "completed": True}


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Buy oat milk"},
        {"description": "One bottle"},
        {"description": None},
        {"description": ""},
        {"completed": False},
        {"title": "Buy oat milk", "description": None, "completed": False},
    ],
)
def test_fields_left_out_stay_unchanged(client: httpx.Client, tasks: str, change: dict[str, object]) -> None:
    created = client.post(tasks, json=WHOLE)
    updated = client.put(created.headers["Location"], json=change)
    assert updated.status_code == 200
    task = updated.json()
    assert task == created.json() | change | {"updated_at": task["updated_at"]}
    assert client.get(created.headers["Location"]).json() == task
    assert client.get(created.headers["Location"]).headers["ETag"] == updated.headers["ETag"]


@pytest.mark.parametrize("body", [{}, {"colour": "red"}, {"id": str(uuid4()), "version": 7, "created_at": None}])
def test_a_body_without_known_fields_changes_nothing(client: httpx.Client, tasks: str, body: dict[str, object]) -> None:
    created = client.post(tasks, json=WHOLE)
    updated = client.put(created.headers["Location"], json=body)
    assert updated.status_code == 200
    assert updated.json() == created.json()
    assert updated.headers["ETag"] == created.headers["ETag"]
    assert_error(client.put(created.headers["Location"], json=body, headers={"If-Match": '"other"'}), 412)
    assert_error(client.put(f"{tasks}/{uuid4()}", json=body), 404)


def test_a_whole_task_can_be_sent_back(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, json=WHOLE)
    task = created.json()
    foreign = {"id": str(uuid4()), "user_id": str(uuid4()), "version": 1, "created_at": "2001-01-01T00:00:00Z"}
    updated = client.put(created.headers["Location"], json=task | foreign | {"updated_at": None, "title": "Buy bread"})
    assert updated.json() == task | {"title": "Buy bread", "updated_at": updated.json()["updated_at"]}
    assert client.get(tasks).json() == [updated.json()]


def test_every_write_increases_updated_at_and_keeps_created_at(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, json=WHOLE)
    path = created.headers["Location"]

    def write(n: int) -> httpx.Response:
        if n % 3 == 0:
            return client.put(path, json=WHOLE)  # a write, although every field keeps its value
        return client.patch(f"{path}/complete", json={"completed": True} if n % 3 == 1 else None)

    one_by_one = [created, *map(write, range(9))]
    with ThreadPoolExecutor(6) as pool:
        responses = list(pool.map(write, range(30)))
    moments = [response.json()["updated_at"] for response in one_by_one]
    assert moments == sorted(set(moments))
    # Later writes have greater versions, and the version is the ETag.
    later = [r.json()["updated_at"] for r in sorted(responses, key=lambda r: int(r.headers["ETag"].strip('"')))]
    assert later == sorted(set(later))
    assert later[0] > moments[-1]
    assert {response.json()["created_at"] for response in responses} == {created.json()["created_at"]}


def test_updated_at_increases_even_if_the_clock_is_set_back(
    client: httpx.Client, database_url: str, user: str, tasks: str
) -> None:
    path = client.post(tasks, json=WHOLE).headers["Location"]
    execute(database_url, "UPDATE tasks SET updated_at = now() + interval '1 day' WHERE user_id = %s", (user,))
    responses = [client.get(path), client.put(path, json=WHOLE), client.patch(f"{path}/complete"), client.get(path)]
    first, second, third, found = (response.json()["updated_at"] for response in responses)
    assert first < second < third == found


def test_updating_a_missing_task_or_one_of_another_user_is_404(client: httpx.Client, tasks: str) -> None:
    theirs = client.post(f"/api/{uuid4()}/tasks", json={"title": "Theirs"})
    answers = [client.put(f"{tasks}/{i}", json={"title": "Mine"}) for i in (theirs.json()["id"], uuid4())]
    assert_error(answers[0], 404)
    assert answers[0].content == answers[1].content
    assert client.get(theirs.headers["Location"]).json() == theirs.json()
    assert client.get(tasks).json() == []
