"""Creating tasks."""

import re
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import httpx
import pytest

from backend.tests.database import execute
from backend.tests.errors import assert_error

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_the_location_of_a_created_task_is_its_url(client: httpx.Client, tasks: str, user: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    assert created.status_code == 201
    assert created.json()["title"] == "Buy milk"
    assert created.json()["user_id"] == user
    assert created.headers["Location"] == f"{tasks}/{created.json()['id']}"
    found = client.get(created.headers["Location"])
    assert found.json() == created.json()
    assert found.headers["ETag"] == created.headers["ETag"]


def test_only_the_title_is_required(client: httpx.Client, tasks: str) -> None:
    task = client.post(tasks, json={"title": "Buy milk"}).json()
    assert list(task) == ["id", "user_id", "title", "description", "completed", "created_at", "updated_at"]
    assert str(UUID(task["id"])) == task["id"]
    assert task["description"] is None
    assert task["completed"] is False
    assert TIMESTAMP.fullmatch(task["created_at"])
    assert task["updated_at"] == task["created_at"]


def test_every_field_is_stored(client: httpx.Client, tasks: str) -> None:
    given = {"title": "Buy milk", "description": "Two bottles", "completed": True}
    assert given.items() <= client.post(tasks, json=given).json().items()


def test_a_whole_task_as_body_creates_a_new_task(client: httpx.Client, tasks: str) -> None:
    first = client.post(tasks, json={"title": "Buy milk"}).json()
    sent = first | {"user_id": str(uuid4()), "version": 7, "created_at": "2001-01-01T00:00:00.000000Z", "colour": "red"}
    second = client.post(tasks, json=sent).json()
    assert list(second) == list(first)
    assert second["user_id"] == first["user_id"]
    assert second["id"] != first["id"]
    assert second["created_at"] > first["created_at"]


def test_the_user_is_created_with_the_first_task(
    client: httpx.Client, tasks: str, user: str, database_url: str
) -> None:
    def users() -> int:
        return len(execute(database_url, "SELECT id FROM users WHERE id = %s", (user,)))

    assert client.get(tasks).status_code == 200
    assert_error(client.post(tasks, json={"title": ""}), 422, "body", "title")
    assert_error(client.put(f"{tasks}/{uuid4()}", json={"title": "Buy milk"}), 404)
    assert users() == 0
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda n: client.post(tasks, json={"title": str(n)}), range(8)))
    assert [response.status_code for response in created] == [201] * 8
    assert users() == 1


@pytest.mark.parametrize("key", ["k", "~" * 255, """%s %(id)s '"\\ {}"""])
def test_a_repeated_key_returns_the_original_task(client: httpx.Client, tasks: str, key: str) -> None:
    first = client.post(tasks, json={"title": "Buy milk"}, headers={"Idempotency-Key": key})
    assert first.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    again = client.post(tasks, json={"title": "Buy milk"}, headers={"Idempotency-Key": key})
    assert again.status_code == 201
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    assert [again.headers[name] for name in ("ETag", "Location")] == [first.headers[n] for n in ("ETag", "Location")]
    assert client.get(tasks).json() == [first.json()]


@pytest.mark.parametrize(
    "other",
    [
        {"title": "Buy bread"},
        {"title": "Buy milk", "description": "One bottle"},
        {"title": "Buy milk", "description": "Two bottles", "completed": True},
        {"title": "Buy milk", "description": None},
    ],
)
def test_a_key_repeated_with_another_body_is_refused(
    client: httpx.Client, tasks: str, other: dict[str, object]
) -> None:
    key = {"Idempotency-Key": "k"}
    first = client.post(tasks, json={"title": "Buy milk", "description": "Two bottles"}, headers=key)
    refused = client.post(tasks, json=other, headers=key)
    assert_error(refused, 422, "header", "Idempotency-Key")
    assert client.get(tasks).json() == [first.json()]
    for same in ({"title": " Buy milk ", "completed": False}, {"title": "Buy milk", "colour": "red"}):
        again = client.post(tasks, json={"description": "Two bottles"} | same, headers=key)
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["Idempotency-Replayed"] == "true"


def test_a_key_repeated_with_another_body_after_a_change_is_a_replay(client: httpx.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "k"}
    location = client.post(tasks, json={"title": "Buy milk"}, headers=key).headers["Location"]
    changed = client.put(location, json={"title": "Buy oat milk"})
    for title in ("Buy milk", "Buy bread"):
        again = client.post(tasks, json={"title": title}, headers=key)
        assert (again.status_code, again.json()) == (201, changed.json())
        assert again.headers["Idempotency-Replayed"] == "true"


def test_of_concurrent_requests_with_one_key_and_different_bodies_one_succeeds(
    client: httpx.Client, tasks: str
) -> None:
    with ThreadPoolExecutor(20) as pool:
        created = list(
            pool.map(lambda n: client.post(tasks, json={"title": str(n)}, headers={"Idempotency-Key": "k"}), range(20))
        )
    assert sorted(response.status_code for response in created) == [201] + [422] * 19
    [task] = client.get(tasks).json()
    assert [response.json() for response in created if response.is_success] == [task]


def test_keys_differ_by_user_and_by_character(client: httpx.Client, tasks: str) -> None:
    created = {
        client.post(path, json={"title": "Buy milk"}, headers={"Idempotency-Key": key}).json()["id"]
        for path in (tasks, f"/api/{uuid4()}/tasks")
        for key in ("key", "Key", "key key")
    }
    assert len(created) == 6


def test_without_a_key_every_request_creates_a_task(client: httpx.Client, tasks: str) -> None:
    created = [client.post(tasks, json={"title": "Buy milk"}) for _ in range(2)]
    assert created[0].json()["id"] != created[1].json()["id"]
    assert not any("Idempotency-Replayed" in response.headers for response in created)


def test_a_replay_returns_the_task_in_its_current_state(client: httpx.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "k"}
    location = client.post(tasks, json={"title": "Buy milk"}, headers=key).headers["Location"]
    changed = client.put(location, json={"title": "Buy oat milk"})
    replayed = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    assert replayed.json() == changed.json()
    assert replayed.headers["ETag"] == changed.headers["ETag"]


def test_a_task_created_again_after_its_deletion_never_reuses_an_etag(client: httpx.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "k"}
    created = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    earlier = {created.headers["ETag"]}
    earlier |= {client.patch(f"{created.headers['Location']}/complete").headers["ETag"] for _ in range(3)}
    client.delete(created.headers["Location"])
    again = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    assert "Idempotency-Replayed" not in again.headers
    assert again.headers["ETag"] not in earlier


@pytest.mark.parametrize("key", [b"", b"k" * 256, "ключ".encode(), b"caf\xe9", b"a\tb"])
def test_an_invalid_key_is_refused(client: httpx.Client, tasks: str, key: bytes) -> None:
    refused = client.post(tasks, json={"title": "Buy milk"}, headers={b"Idempotency-Key": key})
    assert_error(refused, 422, "header", "Idempotency-Key")
    assert client.get(tasks).json() == []


def test_concurrent_requests_with_one_key_create_one_task(client: httpx.Client, tasks: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        created = list(
            pool.map(lambda _: client.post(tasks, json={"title": "a"}, headers={"Idempotency-Key": "k"}), range(20))
        )
    assert [response.status_code for response in created] == [201] * 20
    assert ["Idempotency-Replayed" in response.headers for response in created].count(False) == 1
    assert [response.json() for response in created] == client.get(tasks).json() * 20
