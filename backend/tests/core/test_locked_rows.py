"""A row locked by another session delays only requests that write this row."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import httpx
import psycopg2
import pytest

from backend.core import connection
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN
from backend.tests.concurrency import until
from backend.tests.database import WAITING, execute
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings

TIMEOUT = 0.5
"""DB_POOL_TIMEOUT in seconds."""


def test_postgresql_cancels_a_timed_out_statement_and_nothing_is_written(
    database_url: str, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the server may report the end of a statement late.
    monkeypatch.setattr(connection, "ANSWER_GRACE", 10)
    with (
        in_thread(settings(database_url, db_pool_size=2, db_pool_timeout=TIMEOUT)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        closing(psycopg2.connect(database_url)) as other,
        other.cursor() as cursor,
    ):
        task = client.post(tasks, json={"title": "old"})
        location, task_id = task.headers["Location"], task.json()["id"]
        cursor.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task_id,))
        for method, path, body in (
            ("PATCH", f"{location}/complete", None),
            ("PATCH", f"{location}/complete", {"completed": True}),
            ("PUT", location, {"title": "new"}),
            ("DELETE", location, None),
        ):
            answer = client.request(method, path, json=body)
            assert_error(answer, 503)
            assert answer.headers["Retry-After"] == "1"
            assert answer.json()["detail"].endswith(f"; {NOT_WRITTEN}.")
            until(lambda: execute(database_url, WAITING, (f"%{task_id}%",)) == [], TIMEOUT + 1)
        other.rollback()
        assert client.get(location).headers["ETag"] == task.headers["ETag"]
        assert client.get(location).json() == task.json()


@pytest.mark.parametrize("size", [2, 10])
def test_writers_of_a_locked_row_do_not_delay_other_users(database_url: str, tasks: str, size: int) -> None:
    seconds = 5 * TIMEOUT
    stop = threading.Event()

    def write(url: str, location: str) -> list[httpx.Response]:
        """Retry a write after `Retry-After` seconds; returns the responses."""
        answers: list[httpx.Response] = []
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                answers.append(client.patch(f"{location}/complete"))
                stop.wait(float(answers[-1].headers.get("Retry-After", 0)))
        return answers

    with (
        in_thread(settings(database_url, db_pool_size=size, db_pool_timeout=TIMEOUT)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(3 * size) as pool,
        closing(psycopg2.connect(database_url)) as other,
        other.cursor() as cursor,
    ):
        task = client.post(tasks, json={"title": "old"})
        location, task_id = task.headers["Location"], task.json()["id"]
        cursor.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task_id,))
        writers = [pool.submit(write, url, location) for _ in range(3 * size)]
        try:
            until(lambda: execute(database_url, WAITING, (f"%{task_id}%",)))
            statuses: Counter[tuple[str, int]] = Counter()
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                statuses["health", client.get("/health").status_code] += 1
                statuses["list", client.get(f"/api/{uuid4()}/tasks").status_code] += 1
                created = client.post(f"/api/{uuid4()}/tasks", json={"title": "a"})
                statuses["create", created.status_code] += 1
                time.sleep(0.06)  # so that the requests are spread over several retries of the writers
        finally:
            stop.set()
        refused = [answer for writer in writers for answer in writer.result()]
        until(lambda: execute(database_url, WAITING, (f"%{task_id}%",)) == [], TIMEOUT + 1)
        other.rollback()
        assert statuses.keys() == {("health", 200), ("list", 200), ("create", 201)}
        assert len(refused) >= len(writers)
        for answer in refused:
            assert_error(answer, 503)
        outcomes = Counter(answer.json()["detail"].split("; ")[1] for answer in refused)
        # On a busy machine the server may report the end of a statement too late.
        assert outcomes.keys() <= {f"{NOT_WRITTEN}.", f"{MAYBE_WRITTEN}."}
        assert outcomes[f"{NOT_WRITTEN}."] > outcomes[f"{MAYBE_WRITTEN}."]
        assert client.get(location).headers["ETag"] == task.headers["ETag"]
