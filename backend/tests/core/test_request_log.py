"""The log line of a request, the handlers that receive it, and responses of other ASGI applications."""

import fcntl
import logging
import os
import re
import select
import sys
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Response
from starlette.types import Receive, Scope, Send

from backend.core import request_log
from backend.core.request_log import LogFormatter, LogHandler
from backend.main import create_app
from backend.tests.concurrency import until
from backend.tests.serving import in_thread, settings


@pytest.fixture
def app(database_url: str) -> FastAPI:
    return create_app(settings(database_url))


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """The records that a custom handler on the root logger receives."""
    received: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            received.append(record)

    handler = Handler()
    logging.getLogger().addHandler(handler)
    yield received
    logging.getLogger().removeHandler(handler)


def test_request_lines_reach_every_handler(
    app: FastAPI, tasks: str, caplog: pytest.LogCaptureFixture, records: list[logging.LogRecord]
) -> None:
    with in_thread(app) as url:
        httpx.get(f"{url}{tasks}")
    for received in (caplog.records, records):
        ours = [record.getMessage() for record in received if record.name == "backend.core.request_log"]
        [message] = [message for message in ours if "/tasks" in message]
        assert message.startswith("GET /api/{user_id}/tasks 200 ")
        assert message.endswith(" ms 127.0.0.1")


def test_a_line_that_cannot_be_formatted_does_not_fail_its_caller(capfd: pytest.CaptureFixture[str]) -> None:
    handler = LogHandler()
    handler.setFormatter(LogFormatter(as_json=True))
    logger = logging.Logger("other code")
    logger.addHandler(handler)
    logger.warning("%d", "not a number")
    logger.warning("the next line")
    handler.flush()
    printed = capfd.readouterr().err
    assert '"message":"the next line"' in printed
    assert "not a number" in printed


def test_lines_beyond_a_maximum_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(request_log, "MAX_LINES", 5)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as log, os.fdopen(writing, "wb", buffering=0) as stderr:
        full = fcntl.fcntl(stderr, fcntl.F_SETPIPE_SZ, 4096)
        stderr.write(b"x" * full)
        monkeypatch.setattr(sys, "__stderr__", stderr)
        logger = logging.Logger("other code")
        logger.addHandler(LogHandler())
        for number in range(100):
            logger.warning("line %d", number)
        assert log.read(full) == b"x" * full
        until(lambda: "log lines were dropped" in caplog.text)
        dropped = int(re.findall(r"(\d+) log lines were dropped", caplog.text)[0])
        kept = 0
        while kept + dropped < 100:
            assert select.select([log], [], [], 30)[0]
            kept += log.read(full).count(b"\n")
    # The thread that writes may have taken as many again from the queue.
    assert 5 <= kept <= 10
    assert kept + dropped == 100


def test_responses_of_any_asgi_app_get_the_request_id(app: FastAPI) -> None:
    reused = Response("reused")

    async def tuple_of_headers(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": ((b"content-length", b"0"),)})
        await send({"type": "http.response.body", "body": b""})

    async def no_headers(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"none"})

    app.mount("/reused", reused)
    app.mount("/tuple", tuple_of_headers)
    app.mount("/none", no_headers)
    with in_thread(app) as url:
        for path in ("/reused", "/reused", "/tuple", "/none"):
            response = httpx.get(f"{url}{path}/x", headers={"X-Request-ID": "mine"})
            assert response.status_code == 200
            assert response.headers.get_list("X-Request-ID") == ["mine"]


def test_an_error_after_the_start_of_a_response_closes_the_connection(
    app: FastAPI, records: list[logging.LogRecord]
) -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        raise ValueError("broken")

    app.mount("/breaks", breaks)
    with in_thread(app) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{url}/breaks/x")
    raised = [record.exc_info[1] for record in records if record.exc_info]
    assert [str(error) for error in raised] == ["broken"]
