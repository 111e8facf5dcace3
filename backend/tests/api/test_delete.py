"""Deleting tasks."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx

from backend.tests.errors import assert_error


def test_a_deleted_task_is_404(client: httpx.Client, tasks: str) -> None:
    kept, gone = (client.post(tasks, json={"title": title}) for title in ("Buy milk", "Buy bread"))
    path = gone.headers["Location"]
    deleted = client.delete(path)
    assert deleted.status_code == 204
    assert deleted.content == b""
    assert "Content-Type" not in deleted.headers
    for answer in (
        client.get(path),
        client.put(path, json={"title": "x"}),
        client.patch(f"{path}/complete"),
        client.delete(path),
    ):
        assert_error(answer, 404)
    assert client.get(tasks).json() == [kept.json()]


def test_of_concurrent_deletes_one_succeeds(client: httpx.Client, tasks: str) -> None:
    path = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
    with ThreadPoolExecutor(10) as pool:
        answers = sorted(pool.map(lambda _: client.delete(path).status_code, range(10)))
    assert answers == [204] + [404] * 9


def test_deleting_a_missing_task_or_one_of_another_user_is_404(client: httpx.Client, tasks: str) -> None:
    path = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
    others = f"/api/{uuid4()}/tasks"
    answers = [client.delete(f"{others}/{i}") for i in (path.rpartition("/")[2], uuid4())]
    assert_error(answers[0], 404)
    assert answers[0].content == answers[1].content
    assert client.get(path).status_code == 200
