"""Creating tasks."""

import httpx


def test_a_created_task_is_found_at_its_location(client: httpx.Client, tasks: str, user: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    assert created.status_code == 201
    assert created.json()["title"] == "Buy milk"
    assert created.json()["user_id"] == user
    found = client.get(created.headers["Location"])
    assert found.json() == created.json()
    assert found.headers["ETag"] == created.headers["ETag"]
