"""Getting one task, always or only if it has changed."""

from uuid import uuid4

import httpx
import pytest

from backend.tests.errors import assert_error

NOT_UUIDS = ["x", "%20", "12345678-1234-1234-1234-12345678901", "%00", "1" * 33]


def test_the_etag_changes_only_with_a_write(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    found = [client.get(created.headers["Location"]) for _ in range(2)]
    assert [response.json() for response in found] == [created.json()] * 2
    assert {response.headers["ETag"] for response in found} == {created.headers["ETag"]}
    assert found[0].headers["ETag"].startswith('"')
    changed = client.patch(f"{created.headers['Location']}/complete")
    assert changed.headers["ETag"] != created.headers["ETag"]
    assert client.get(created.headers["Location"]).headers["ETag"] == changed.headers["ETag"]


def test_tasks_are_cached_by_browsers_only_and_revalidated(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    etag = {"If-None-Match": created.headers["ETag"]}
    found = [client.get(tasks), client.get(created.headers["Location"])]
    for response in (created, *found, client.get(created.headers["Location"], headers=etag)):
        assert response.headers["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize("known", ["{etag}", "W/{etag}", "*", '"other", {etag}', '"a,b",W/{etag} , "c"'])
def test_a_matching_if_none_match_is_304(client: httpx.Client, tasks: str, known: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    etag = created.headers["ETag"]
    same = client.get(created.headers["Location"], headers={"If-None-Match": known.format(etag=etag)})
    assert same.status_code == 304
    assert same.content == b""
    assert same.headers["ETag"] == etag
    client.put(created.headers["Location"], json={"title": "Buy oat milk"})
    if known != "*":
        changed = client.get(created.headers["Location"], headers={"If-None-Match": known.format(etag=etag)})
        assert changed.json()["title"] == "Buy oat milk"


@pytest.mark.parametrize("known", ["", '"other"', "W/", "{bare}", "-"])
def test_an_if_none_match_that_does_not_match_is_200(client: httpx.Client, tasks: str, known: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    known = known.format(bare=created.headers["ETag"].strip('"'))
    found = client.get(created.headers["Location"], headers={"If-None-Match": known})
    assert found.status_code == 200
    assert found.json() == created.json()


def test_if_none_match_may_be_sent_as_several_headers(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    lines = [("If-None-Match", '"other"'), ("If-None-Match", created.headers["ETag"])]
    assert client.get(created.headers["Location"], headers=lines).status_code == 304


def test_a_missing_task_is_404(client: httpx.Client, tasks: str) -> None:
    assert_error(client.get(f"{tasks}/{uuid4()}"), 404)
    assert_error(client.get(f"{tasks}/{uuid4()}", headers={"If-None-Match": "*"}), 404)


def test_a_task_of_another_user_cannot_be_distinguished_from_a_missing_one(client: httpx.Client, tasks: str) -> None:
    theirs = client.post(f"/api/{uuid4()}/tasks", json={"title": "Buy milk"}).json()["id"]
    answers = [client.get(f"{tasks}/{task_id}") for task_id in (theirs, uuid4())]
    assert_error(answers[0], 404)
    assert answers[0].content == answers[1].content
    assert list(answers[0].headers) == list(answers[1].headers)


@pytest.mark.parametrize("text", NOT_UUIDS)
def test_an_id_that_is_not_a_uuid_is_refused(client: httpx.Client, tasks: str, text: str) -> None:
    assert_error(client.get(f"{tasks}/{text}"), 422, "path", "task_id")
    assert_error(client.get(f"/api/{text}/tasks/{uuid4()}"), 422, "path", "user_id")
    assert_error(client.get(f"/api/{text}/tasks"), 422, "path", "user_id")
