"""Creating tasks."""

import re
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import httpx
import pytest

from backend.tests.database import execute
from backend.tests.errors import assert_error

NOW = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def test_a_created_task_is_found_at_its_location(client: httpx.Client, tasks: str, user: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    assert created.status_code == 201
    assert created.json()["title"] == "Buy milk"
    assert created.json()["user_id"] == user
    assert created.headers["Location"] == f"{tasks}/{created.json()['id']}"
    found = client.get(created.headers["Location"])
    assert found.json() == created.json()
    assert found.headers["ETag"] == created.headers["ETag"]


@pytest.mark.parametrize("spelling", ["%7B{}%7D", "urn:uuid:{}"])
def test_location_is_canonical_for_any_spelling_of_the_user_id(client: httpx.Client, user: str, spelling: str) -> None:
    created = client.post(f"/api/{spelling.format(user)}/tasks", json={"title": "Buy milk"})
    assert created.headers["Location"] == f"/api/{user}/tasks/{created.json()['id']}"
    assert client.get(created.headers["Location"]).json() == created.json()


def test_a_title_is_enough(client: httpx.Client, tasks: str) -> None:
    task = client.post(tasks, json={"title": "Buy milk"}).json()
    assert list(task) == ["id", "user_id", "title", "description", "completed", "created_at", "updated_at"]
    assert str(UUID(task["id"])) == task["id"]
    assert task["description"] is None
    assert task["completed"] is False
    assert NOW.fullmatch(task["created_at"])
    assert task["updated_at"] == task["created_at"]


def test_every_field_is_kept(client: httpx.Client, tasks: str) -> None:
    given = {"title": "Buy milk", "description": "Two bottles", "completed": True}
    assert given.items() <= client.post(tasks, json=given).json().items()


def test_whole_tasks_can_be_sent_back_and_make_new_ones(client: httpx.Client, tasks: str) -> None:
    first = client.post(tasks, json={"title": "Buy milk"}).json()
    sent = first | {"user_id": str(uuid4()), "version": 7, "created_at": "2001-01-01T00:00:00.000000Z", "colour": "red"}
    second = client.post(tasks, json=sent).json()
    assert list(second) == list(first)
    assert second["user_id"] == first["user_id"]
    assert second["id"] != first["id"]
    assert second["created_at"] > first["created_at"]


def test_the_user_is_made_with_the_first_task_and_only_then(
    client: httpx.Client, tasks: str, user: str, database_url: str
) -> None:
    def made() -> int:
        return len(execute(database_url, "SELECT id FROM users WHERE id = %s", (user,)))

    assert client.get(tasks).status_code == 200
    assert_error(client.post(tasks, json={"title": ""}), 422, "body", "title")
    assert_error(client.put(f"{tasks}/{uuid4()}", json={"title": "Buy milk"}), 404)
    assert made() == 0
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda n: client.post(tasks, json={"title": str(n)}), range(8)))
    assert [response.status_code for response in created] == [201] * 8
    assert made() == 1


@pytest.mark.parametrize("key", ["k", "~" * 255, """%s %(id)s '"\\ {}"""])
def test_a_key_sent_again_gives_the_task_made_before(client: httpx.Client, tasks: str, key: str) -> None:
    first = client.post(tasks, json={"title": "Buy milk"}, headers={"Idempotency-Key": key})
    assert first.status_code == 201
    assert "Idempotency-Replayed" not in first.headers
    again = client.post(tasks, json={"title": "Buy milk"}, headers={"Idempotency-Key": key})
    assert again.status_code == 201
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first.json()
    assert [again.headers[name] for name in ("ETag", "Location")] == [first.headers[n] for n in ("ETag", "Location")]
    assert client.get(tasks).json() == [first.json()]


@pytest.mark.parametrize("other", [{"title": "Buy bread"}, {"title": "Buy milk", "description": "Two"}])
def test_a_key_with_another_body_is_refused_until_the_task_changes(
    client: httpx.Client, tasks: str, other: dict[str, str]
) -> None:
    key = {"Idempotency-Key": "k"}
    first = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    assert_error(client.post(tasks, json=other, headers=key), 422, "header", "idempotency-key")
    assert client.get(tasks).json() == [first.json()]
    changed = client.put(first.headers["Location"], json={"title": "Buy tea"})
    again = client.post(tasks, json=other, headers=key)
    assert (again.status_code, again.json()) == (201, changed.json())
    assert again.headers["Idempotency-Replayed"] == "true"


def test_keys_differ_by_user_and_letter(client: httpx.Client, tasks: str) -> None:
    made = {
        client.post(path, json={"title": "Buy milk"}, headers={"Idempotency-Key": key}).json()["id"]
        for path in (tasks, f"/api/{uuid4()}/tasks")
        for key in ("key", "Key", "key key")
    }
    assert len(made) == 6


def test_without_a_key_every_create_makes_a_task(client: httpx.Client, tasks: str) -> None:
    made = [client.post(tasks, json={"title": "Buy milk"}) for _ in range(2)]
    assert made[0].json()["id"] != made[1].json()["id"]
    assert not any("Idempotency-Replayed" in response.headers for response in made)


def test_a_replay_shows_the_task_as_it_is_now(client: httpx.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "k"}
    location = client.post(tasks, json={"title": "Buy milk"}, headers=key).headers["Location"]
    changed = client.put(location, json={"title": "Buy oat milk"})
    replayed = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    assert replayed.json() == changed.json()
    assert replayed.headers["ETag"] == changed.headers["ETag"]


def test_a_task_made_again_after_its_deletion_never_has_an_etag_it_had(client: httpx.Client, tasks: str) -> None:
    key = {"Idempotency-Key": "k"}
    created = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    had = {created.headers["ETag"]}
    had |= {client.patch(f"{created.headers['Location']}/complete").headers["ETag"] for _ in range(3)}
    client.delete(created.headers["Location"])
    again = client.post(tasks, json={"title": "Buy milk"}, headers=key)
    assert "Idempotency-Replayed" not in again.headers
    assert again.headers["ETag"] not in had


@pytest.mark.parametrize("key", [b"", b"k" * 256, "ключ".encode(), b"caf\xe9", b"a\tb"])
def test_what_is_no_key_is_refused(client: httpx.Client, tasks: str, key: bytes) -> None:
    refused = client.post(tasks, json={"title": "Buy milk"}, headers={b"Idempotency-Key": key})
    assert_error(refused, 422, "header", "idempotency-key")
    assert client.get(tasks).json() == []


def test_twenty_creates_at_once_under_one_key_make_one_task(client: httpx.Client, tasks: str) -> None:
    with ThreadPoolExecutor(20) as pool:
        created = list(
            pool.map(lambda _: client.post(tasks, json={"title": "a"}, headers={"Idempotency-Key": "k"}), range(20))
        )
    assert [response.status_code for response in created] == [201] * 20
    assert ["Idempotency-Replayed" in response.headers for response in created].count(False) == 1
    assert [response.json() for response in created] == client.get(tasks).json() * 20
