"""The JSON of tasks equals the output of the response model, byte for byte."""

from collections.abc import Iterator
from datetime import datetime
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest

from backend.core import schema
from backend.models.task import TaskRead
from backend.tests.conftest import empty_database
from backend.tests.database import execute
from backend.tests.serving import in_thread, settings

TEXTS = [
    "Buy milk",
    '"\\/\b\f\n\r\t',
    "".join(map(chr, range(1, 0xA0))),
    "\u2028\u2029\ufeff\ufffe\uffff\u200b\u202e",
    "😀 \U0010ffff e\u0301 é ﷽",
    "<script>&amp;</script> ${x} %s {} '$$' \\u0041 \\x41 NULL [null]",
    " spaces \t",
]


def assert_equals_model_output(written: bytes) -> None:
    assert TaskRead.model_validate_json(written).model_dump_json().encode() == written


def test_text_is_serialized_like_the_model(client: httpx.Client, tasks: str) -> None:
    alone: list[bytes] = []
    for text in TEXTS:
        created = client.post(tasks, json={"title": f"x{text}x", "description": text, "completed": len(alone) % 2 == 0})
        assert created.json()["title"] == f"x{text}x"
        assert created.json()["description"] == text
        assert_equals_model_output(created.content)
        assert client.get(created.headers["Location"]).content == created.content
        alone.append(created.content)
    last = created.headers["Location"]
    assert_equals_model_output(client.put(last, json={"description": None}).content)
    alone[-1] = client.patch(f"{last}/complete").content
    assert_equals_model_output(alone[-1])
    assert client.get(tasks).content == b"[" + b",".join(reversed(alone)) + b"]"


@pytest.mark.parametrize(
    "moment", ["2026-01-08T20:45:00.000000Z", "2026-03-29T01:30:00.000001Z", "1999-12-31T23:59:59.999990Z"]
)
def test_times_are_serialized_with_six_digits_in_utc(
    client: httpx.Client, tasks: str, user: str, database_url: str, moment: str
) -> None:
    created = client.post(tasks, json={"title": "Buy milk"})
    execute(
        database_url, "UPDATE tasks SET created_at = %s, updated_at = %s WHERE user_id = %s", (moment, moment, user)
    )
    found = client.get(created.headers["Location"])
    assert (found.json()["created_at"], found.json()["updated_at"]) == (moment, moment)
    assert_equals_model_output(found.content)
    assert client.get(tasks).content == b"[" + found.content + b"]"


@pytest.fixture
def unusual_database_url(postgres_url: str) -> Iterator[str]:
    """A database whose settings change how values are read and written."""
    odd = {
        "TimeZone": "Asia/Kathmandu",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "bytea_output": "escape",
    }
    with empty_database(postgres_url) as url:
        # Before any session exists, for example that of a pooler.
        name = urlsplit(url).path.strip("/")
        for setting, value in odd.items():
            execute(postgres_url, f"ALTER DATABASE {name} SET {setting} = '{value}'")
        schema.upgrade(url)
        assert execute(url, "SHOW TimeZone") == [("Asia/Kathmandu",)]
        yield url


@pytest.fixture
def unusual_settings_client(unusual_database_url: str) -> Iterator[httpx.Client]:
    """A client of a service on that database."""
    with in_thread(settings(unusual_database_url)) as url, httpx.Client(base_url=url) as client:
        yield client


def test_database_settings_do_not_change_the_json(
    unusual_settings_client: httpx.Client, unusual_database_url: str
) -> None:
    path = f"/api/{uuid4()}/tasks"
    created = [unusual_settings_client.post(path, json={"title": text.strip(), "description": text}) for text in TEXTS]
    for response, text in zip(created, TEXTS, strict=True):
        assert response.json()["description"] == text
        assert_equals_model_output(response.content)
        moment = datetime.fromisoformat(response.json()["created_at"])
        sql = "SELECT created_at = %s FROM tasks WHERE id = %s"
        assert execute(unusual_database_url, sql, (moment, response.json()["id"])) == [(True,)]
    page, walked = unusual_settings_client.get(path, params={"limit": 2}), b""
    while "next" in page.links:
        walked += page.content[1:-1] + b","
        page = unusual_settings_client.get(page.links["next"]["url"])
    assert walked + page.content[1:-1] == b",".join(response.content for response in reversed(created))
