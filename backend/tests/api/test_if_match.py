"""`If-Match` on every write: a task is changed only if it has the given ETag."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest

from backend.tests.database import blocking_writes
from backend.tests.errors import assert_error

Headers = dict[str, str] | list[tuple[str, str]]
Write = Callable[[httpx.Client, str, Headers], httpx.Response]

WRITES: dict[str, Write] = {
    "put": lambda client, task, headers: client.put(task, json={"title": "Mine"}, headers=headers),
    "toggle": lambda client, task, headers: client.patch(f"{task}/complete", headers=headers),
    "set": lambda client, task, headers: client.patch(f"{task}/complete", json={"completed": True}, headers=headers),
    "delete": lambda client, task, headers: client.delete(task, headers=headers),
}
every_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@every_write
@pytest.mark.parametrize("match", ["{etag}", "*", '"a" ,{etag}, "b,c"'])
def test_a_matching_if_match_writes(client: httpx.Client, tasks: str, write: Write, match: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    etag = created.headers["ETag"]
    written = write(client, created.headers["Location"], {"If-Match": match.format(etag=etag)})
    assert written.status_code in (200, 204)
    assert written.headers.get("ETag") != etag


@every_write
@pytest.mark.parametrize("match", ['"other"', "W/{etag}", "{bare}", "", '"*"', '"a", "b"'])
def test_an_if_match_that_does_not_match_changes_nothing(
    client: httpx.Client, tasks: str, write: Write, match: str
) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    etag = created.headers["ETag"]
    match = match.format(etag=etag, bare=etag.strip('"'))
    assert_error(write(client, created.headers["Location"], {"If-Match": match}), 412)
    found = client.get(created.headers["Location"])
    assert found.json() == created.json()
    assert found.headers["ETag"] == etag


@every_write
def test_a_task_that_has_changed_since_is_not_written(client: httpx.Client, tasks: str, write: Write) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    changed = client.put(created.headers["Location"], json={"title": "Buy oat milk"})
    assert_error(write(client, created.headers["Location"], {"If-Match": created.headers["ETag"]}), 412)
    assert client.get(created.headers["Location"]).json() == changed.json()


@every_write
def test_if_match_may_be_sent_as_several_headers(client: httpx.Client, tasks: str, write: Write) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    lines = [("If-Match", '"other"'), ("If-Match", created.headers["ETag"])]
    assert write(client, created.headers["Location"], lines).status_code in (200, 204)


@every_write
@pytest.mark.parametrize("match", ["*", '"other"'])
def test_if_match_on_a_missing_task_is_404_and_not_412(
    client: httpx.Client, tasks: str, write: Write, match: str
) -> None:
    others = client.post(f"/api/{uuid4()}/tasks", json={"title": "Buy milk"})
    for task_id in (others.json()["id"], uuid4()):
        assert_error(write(client, f"{tasks}/{task_id}", {"If-Match": match}), 404)


def test_a_put_of_nothing_requires_the_if_match_too(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    path, etag = created.headers["Location"], created.headers["ETag"]
    for match in (etag, "*", f'"other", {etag}'):
        unchanged = client.put(path, json={}, headers={"If-Match": match})
        assert (unchanged.status_code, unchanged.headers["ETag"]) == (200, etag)
        assert unchanged.json() == created.json()
    for match in ('"other"', f"W/{etag}", etag.strip('"'), "", '"*"'):
        assert_error(client.put(path, json={}, headers={"If-Match": match}), 412)
    changed = client.put(path, json={"title": "Buy oat milk"})
    assert_error(client.put(path, json={}, headers={"If-Match": etag}), 412)
    assert client.get(path).json() == changed.json()
    for match in ("*", '"other"'):
        assert_error(client.put(f"{tasks}/{uuid4()}", json={}, headers={"If-Match": match}), 404)


def test_without_if_match_the_last_write_wins(client: httpx.Client, tasks: str) -> None:
    path = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
    for title in ("one", "two"):
        assert client.put(path, json={"title": title}).status_code == 200
    assert client.get(path).json()["title"] == "two"


@every_write
def test_of_concurrent_writes_with_the_same_etag_exactly_one_succeeds(
    client: httpx.Client, tasks: str, database_url: str, write: Write
) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    seen: Headers = {"If-Match": created.headers["ETag"]}
    with ThreadPoolExecutor(20) as pool:
        with blocking_writes(database_url, created.json()["id"]):
            sent = [pool.submit(write, client, created.headers["Location"], seen) for _ in range(20)]
        answers = [one.result() for one in sent]
    winners = [answer for answer in answers if answer.is_success]
    assert len(winners) == 1
    # After a deletion, the others find no task.
    assert {answer.status_code for answer in answers if answer.is_error} <= {404, 412}
    if winners[0].status_code == 200:
        assert client.get(created.headers["Location"]).json() == winners[0].json()
        assert sorted({answer.status_code for answer in answers}) == [200, 412]
