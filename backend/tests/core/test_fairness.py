"""One user's requests use only part of the connections; requests of disconnected clients use none."""

import asyncio
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from uuid import uuid4

import httpx
import psycopg2
import pytest

from backend.core import db, schema
from backend.tests.concurrency import concurrent_client, until
from backend.tests.database import WAITING, execute
from backend.tests.serving import in_thread, settings

CANCEL = """
SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
# Each word occurs only at the end of a title, after many near matches, so that a search is slow.
TITLE = "a" * 240 + "b" + "c" * 14
SEARCH = " ".join("a" * length + "b" for length in range(14, 24))
ROWS = 30_000
SIZE = 2
"""DB_POOL_SIZE: one connection for the searches. tests/core/test_locked_rows.py has more."""


def test_a_users_slow_searches_do_not_delay_other_users(empty_database_url: str, user: str, tasks: str) -> None:
    database_url = empty_database_url
    schema.upgrade(database_url)
    execute(database_url, "INSERT INTO users (id) VALUES (%s)", (user,))
    insert = "INSERT INTO tasks (id, user_id, title) SELECT gen_random_uuid(), %s, %s FROM generate_series(1, %s)"
    execute(database_url, insert, (user, TITLE, ROWS))
    timeouts = 0

    async def search(url: str, stop: asyncio.Event) -> None:
        """Search repeatedly, and disconnect after a second."""
        nonlocal timeouts
        async with concurrent_client(url) as client:
            while not stop.is_set():
                parameters = {"search": SEARCH, "total": "true"}
                try:
                    answer = await client.get(tasks, params=parameters, timeout=1)
                    assert answer.status_code in (200, 503)
                except httpx.TimeoutException:
                    timeouts += 1

    async def get_meanwhile(url: str) -> list[tuple[int, float]]:
        """The status and duration in seconds of each request of another user."""
        stop, answers = asyncio.Event(), []
        async with concurrent_client(url) as client, asyncio.TaskGroup() as group:
            for _ in range(3 * SIZE):
                group.create_task(search(url, stop))
            await asyncio.to_thread(until, lambda: timeouts)
            path = f"/api/{uuid4()}/tasks"
            for _ in range(12):
                started = time.monotonic()
                answer = await client.get(path)
                answers.append((answer.status_code, time.monotonic() - started))
                await asyncio.sleep(0.1)  # so that they are spread over several seconds of searching
            stop.set()
        return answers

    with in_thread(settings(database_url, db_pool_size=SIZE, db_pool_timeout=2, log_level="error")) as url:
        answers = asyncio.run(get_meanwhile(url))
        # Otherwise the last searches take two seconds more.
        execute(database_url, CANCEL)
    assert {status for status, _ in answers} == {200}
    assert statistics.median(seconds for _, seconds in answers) < 1
    assert timeouts >= 3 * SIZE


def test_a_request_whose_client_disconnected_is_not_executed(
    database_url: str, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "SHORT_WAIT", 0)
    with (
        in_thread(settings(database_url, db_pool_size=1, db_pool_timeout=20)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor() as pool,
        closing(psycopg2.connect(database_url)) as other,
        other.cursor() as cursor,
    ):
        task = client.post(tasks, json={"title": "locked"})
        task_id = task.json()["id"]
        cursor.execute("SELECT FROM tasks WHERE id = %s FOR UPDATE", (task_id,))
        toggle = pool.submit(client.patch, f"{task.headers['Location']}/complete")
        until(lambda: execute(database_url, WAITING, (f"%{task_id}%",)))
        body = b'{"title": "abandoned"}'
        head = (
            f"POST {tasks} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        address = url.removeprefix("http://").split(":")
        abandoned = [socket.create_connection((address[0], int(address[1]))) for _ in range(100)]
        for connection in abandoned:
            connection.sendall(head.encode() + body)
        # Its response arrives after all bytes sent before were read.
        with httpx.Client(base_url=url, timeout=30) as another:
            assert another.get("/health/live").status_code == 200
            assert another.get("/health/live").status_code == 200
        for connection in abandoned:
            connection.close()
        with httpx.Client(base_url=url, timeout=30) as another:
            assert another.get("/health/live").status_code == 200
            assert another.get("/health/live").status_code == 200
        other.rollback()
        assert toggle.result().status_code == 200
        # A user's requests are served in order, so all earlier ones are finished.
        assert [it["title"] for it in client.get(tasks, params={"limit": 100}).json()] == ["locked"]
