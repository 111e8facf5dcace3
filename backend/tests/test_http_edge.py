"""The HTTP server: upgrades, heads, pipelines, silent clients, clients that do not read, the end."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from backend.core import http_protocol
from backend.tests.concurrency import until
from backend.tests.raw_http import HEAD_LIMIT, UPGRADE, Raw, request, segments
from backend.tests.serving import Service, as_process, in_thread, settings

BIN = Path(sys.executable).parent
UVICORN = (str(BIN / "uvicorn"), "patient:app", "--port", "{port}")
SHORT_LIMITS = """
import runpy
from backend.core import http_protocol
http_protocol.HEAD_SECONDS, http_protocol.SEND_SECONDS = 2, 3
runpy.run_module("backend", run_name="__main__", alter_sys=True)
"""
"""`python -m backend` with shorter limits of time, which tests wait for."""


def new_task(client: httpx.Client, tasks: str) -> str:
    created = client.post(tasks, json={"title": "Buy milk"})
    assert created.status_code == 201
    location: str = created.headers["Location"]
    return location


def memory(service: Service) -> int:
    """The resident memory of the service in bytes."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


@pytest.fixture(scope="module")
def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in its own process, with short limits; whatever the tests do, it logs no error."""
    command = (sys.executable, "-c", SHORT_LIMITS)
    with as_process(tmp_path_factory.mktemp("service"), *command, env={"DATABASE_URL": database_url}) as service:
        yield service
        assert service.stop(signal.SIGTERM) == 0
    assert "Traceback" not in service.log
    assert " 500 " not in service.log


# Upgrade


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.0, h2c"])
@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
@pytest.mark.parametrize("how", ["one segment", "head and body", "many segments"])
def test_a_body_with_an_upgrade_header_is_read_as_a_body(
    base_url: str, client: httpx.Client, tasks: str, upgrade: str, chunked: bool, how: str
) -> None:
    task = new_task(client, tasks)
    headers = UPGRADE.replace("h2c", upgrade)
    hidden = request("DELETE", task)
    with closing(Raw(base_url)) as raw:
        for method, path, body, status in (
            ("PATCH", f"{task}/complete", b'{"completed": false}', 200),
            ("PUT", task, b'{"title": "Buy oat milk"}', 200),
            ("POST", tasks, b'{"title": "Buy tea"}', 201),
            ("PUT", task, hidden, 400),
            ("GET", task, hidden, 200),
            ("GET", "/health/live", hidden, 200),
            ("GET", "/nowhere", hidden, 404),
        ):
            data = request(method, path, headers, body, chunked=chunked)
            answer = raw.send(*segments(data, how)).response()
            assert (method, path, answer.status_code) == (method, path, status)
        # The connection still works.
        assert raw.send(request("GET", task)).response().json()["title"] == "Buy oat milk"
    assert client.get(task).json()["completed"] is False
    assert [each["title"] for each in client.get(tasks).json()] == ["Buy tea", "Buy oat milk"]


def test_pipelined_requests_with_upgrade_headers_are_answered_in_order(
    base_url: str, client: httpx.Client, tasks: str
) -> None:
    bodies = [b'{"title": "%d"}' % i for i in range(20)]
    sent = b"".join(
        request("POST", tasks, UPGRADE if i % 2 else "", body, chunked=i % 3 == 0) for i, body in enumerate(bodies)
    )
    with closing(Raw(base_url)) as raw:
        raw.send(sent)
        with raw.socket.makefile("rb") as stream:
            titles = []
            for _ in bodies:
                length = 0
                assert stream.readline().startswith(b"HTTP/1.1 201 ")
                while (line := stream.readline().strip()) != b"":
                    if line.startswith(b"content-length: "):
                        length = int(line.partition(b": ")[2])
                titles += re.findall(rb'"title":"(\d+)"', stream.read(length))
    assert titles == [b"%d" % i for i in range(20)]


class Unlimited(HttpToolsProtocol):
    """uvicorn's own class, which loses a body under an `Upgrade` header."""


@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
@pytest.mark.parametrize("how", ["one segment", "head and body"])
def test_a_body_lost_by_the_server_is_refused(
    database_url: str, client: httpx.Client, tasks: str, chunked: bool, how: str
) -> None:
    task = new_task(client, tasks)
    data = request("PATCH", f"{task}/complete", UPGRADE, b'{"completed": false}', chunked=chunked)
    with in_thread(settings(database_url), http=Unlimited) as url, closing(Raw(url)) as raw:
        assert raw.send(*segments(data, how)).response().status_code == 400
    assert client.get(task).json()["completed"] is False


@pytest.mark.parametrize("length", ["9" * 5000, "0" * 5000, "0" * 5000 + "2"])
def test_a_content_length_of_thousands_of_digits_is_refused(
    base_url: str, client: httpx.Client, tasks: str, length: str
) -> None:
    task = new_task(client, tasks)
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        with closing(Raw(base_url)) as raw:
            raw.send(f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{{}}".encode())
            assert raw.response().status_code in (400, 413)
    assert client.get(task).json()["completed"] is False


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_that_offers_http2_is_served(base_url: str, client: httpx.Client, tasks: str) -> None:
    task = new_task(client, tasks)
    for body, completed in (('{"completed": false}', False), ('{"completed": true}', True)):
        command = ["curl", "--silent", "--http2", "-X", "PATCH", f"{base_url}{task}/complete", "--data", body]
        run = subprocess.run(
            [*command, "-H", "Content-Type: application/json"], capture_output=True, check=True, timeout=30
        )
        assert httpx.Response(200, content=run.stdout).json()["completed"] is completed


JAVA = """
import java.net.URI;
import java.net.http.*;

class Client {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 1; i + 2 < args.length; i += 3) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + args[i + 1]))
                .header("Content-Type", "application/json")
                .method(args[i], HttpRequest.BodyPublishers.ofString(args[i + 2])).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("javac") is None, reason="Java is not installed")
def test_javas_http_client_is_served(base_url: str, client: httpx.Client, tasks: str, tmp_path: Path) -> None:
    task = new_task(client, tasks)
    (tmp_path / "Client.java").write_text(JAVA)
    requests = [
        ("PATCH", f"{task}/complete", '{"completed": false}'),
        ("PUT", task, '{"title": "Buy oat milk"}'),
        ("POST", tasks, '{"title": "Buy tea"}'),
        ("GET", task, ""),
        ("DELETE", task, ""),
    ]
    arguments = [argument for sent in requests for argument in sent]
    run = subprocess.run(
        ["java", tmp_path / "Client.java", base_url, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = run.stdout.splitlines()
    assert [line[:3] for line in lines] == ["200", "200", "201", "200", "204"]
    assert '"completed":false' in lines[0]
    assert '"title":"Buy oat milk"' in lines[1]
    assert '"title":"Buy tea"' in lines[2]
    assert lines[3] == lines[1]
    assert [each["title"] for each in client.get(tasks).json()] == ["Buy tea"]


@pytest.mark.parametrize("target", ["example.com:443", "/health/live"])
def test_connect_is_refused(base_url: str, target: str) -> None:
    # To the parser, CONNECT is an upgrade. If the service parsed it again too, a head of this size would be a 431.
    cookie = f"Cookie: {'x' * (HEAD_LIMIT * 3 // 4)}\r\n"
    with closing(Raw(base_url)) as raw:
        raw.send(f"CONNECT {target} HTTP/1.1\r\nHost: test\r\n{UPGRADE}{cookie}\r\n".encode(), b"hello")
        assert raw.response().status_code == 400
        assert raw.rest() == b""


# Heads


@pytest.mark.parametrize("how", ["one segment", "many segments"])
def test_a_head_larger_than_64_kib_is_refused(base_url: str, how: str) -> None:
    whole = request("GET", "/health/live", "Cookie: " + "x" * HEAD_LIMIT + "\r\n")
    for data in (whole, whole[:-4], b"GET /" + b"x" * HEAD_LIMIT, request("GET", "/", "a:\r\n" * (HEAD_LIMIT // 4))):
        with closing(Raw(base_url)) as raw:
            with suppress(ConnectionError):
                raw.send(*([data] if how == "one segment" else [data[i : i + 8192] for i in range(0, len(data), 8192)]))
            answer = raw.response()
            assert answer.status_code == 431
            assert answer.headers["Content-Type"] == "text/plain"
            assert answer.headers["Connection"] == "close"
            assert answer.text.strip() == "Request Header Fields Too Large"
            assert raw.rest() == b""


def test_a_head_with_large_cookies_is_served(base_url: str, tasks: str) -> None:
    for size in (8 * 1024, 60 * 1024):
        for upgrade in ("", UPGRADE if size < HEAD_LIMIT // 2 else ""):
            data = request("POST", tasks, f"{upgrade}Cookie: {'x' * size}\r\n", b'{"title": "a"}')
            with closing(Raw(base_url)) as raw:
                assert raw.send(data).response().status_code == 201
                for i in range(0, len(data), 8192):
                    raw.send(data[i : i + 8192])
                assert raw.response().status_code == 201


def test_requests_sent_together_are_served_even_if_they_are_larger_than_a_head(
    base_url: str, client: httpx.Client, tasks: str
) -> None:
    body = b'{"title": "a", "description": "%s"}' % (b"x" * 2000)
    with closing(Raw(base_url)) as raw:
        raw.send(request("POST", tasks, "", body) * 80)
        until(lambda: len(client.get(tasks, params={"limit": 100}).json()) == 80)


def test_incomplete_heads_and_silent_connections_time_out(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http_protocol.HEAD_SECONDS < 20
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 2)
    started = time.monotonic()
    beginnings = [b"", b"\r\n", b"GET", b"GET / HTTP/1.1\r\nHost: test\r\nX: "]
    answered = request("GET", "/health/live")
    early = b"POST /nowhere HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\n"
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(Raw(base_url))) for _ in range(7)]
        for raw, beginning in zip(raws, [*beginnings, answered, answered, early], strict=True):
            raw.send(beginning)
        assert [raws[4].response().status_code, raws[5].response().status_code] == [200, 200]
        assert raws[6].response().status_code == 404
        raws[5].send(b"GET")
        ended = threading.Event()

        def trickle() -> None:
            while not ended.wait(0.5):
                for raw, part in ((raws[1], b"\r\n"), (raws[3], b"x"), (raws[6], b"x")):
                    with suppress(ConnectionError):
                        raw.send(part)

        with ThreadPoolExecutor() as pool:
            dripping = pool.submit(trickle)
            try:
                rests = list(pool.map(Raw.rest, raws))
            finally:
                ended.set()
            dripping.result()
    assert time.monotonic() - started < 12
    timed_out = b"HTTP/1.1 408 Request Timeout\r\n"
    assert [rest[: len(timed_out)] for rest in rests] == [b"", b"", timed_out, timed_out, b"", timed_out, b""]


def test_only_the_head_of_a_request_has_the_time_limit_of_heads(
    base_url: str, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 1)
    data = request("POST", tasks, "", b'{"title": "a"}')
    with closing(Raw(base_url)) as raw:
        raw.send(data[:-1])
        with closing(Raw(base_url)) as silent:
            # It is closed later than the first connection would be.
            assert silent.rest() == b""
        assert raw.send(data[-1:]).response().status_code == 201


def test_300_silent_connections_are_closed(service: Service) -> None:
    with ExitStack() as stack:
        raws = [stack.enter_context(closing(Raw(service.base_url))) for _ in range(300)]
        assert [raw.rest() for raw in raws] == [b""] * 300
    assert httpx.get(f"{service.base_url}/health").status_code == 200


def test_endless_heads_neither_delay_other_requests_nor_use_much_memory(service: Service) -> None:
    before = memory(service)
    ended = threading.Event()

    def send_endlessly() -> None:
        while not ended.is_set():
            with closing(Raw(service.base_url)) as raw, suppress(ConnectionError):
                raw.send(b"GET / HTTP/1.1\r\nX: ")
                for _ in range(1000):
                    raw.socket.sendall(b"x" * 65536)

    with ThreadPoolExecutor() as pool, httpx.Client(base_url=service.base_url) as client:
        endless = [pool.submit(send_endlessly) for _ in range(4)]
        slowest, largest = 0.0, 0
        try:
            for _ in range(50):
                slowest = max(slowest, client.get("/health/live").elapsed.total_seconds())
                largest = max(largest, memory(service) - before)
        finally:
            ended.set()
        for sending in endless:
            sending.result()
    print(f"\nslowest {slowest:.3f} s, {largest / 1e6:.1f} MB more")
    assert slowest < 0.5
    assert largest < 40e6


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", 0, 400), ("1.1", 1, 200), ("1.1", 2, 400), ("1.0", 0, 200), ("1.0", 2, 400)],
)
def test_a_request_has_one_host(base_url: str, version: str, hosts: int, status: int) -> None:
    with closing(Raw(base_url)) as raw:
        raw.send(f"GET /health/live HTTP/{version}\r\n".encode() + b"Host: test\r\n" * hosts + b"\r\n")
        assert raw.response().status_code == status


def test_trailers_are_not_headers(base_url: str, client: httpx.Client, tasks: str) -> None:
    task = new_task(client, tasks)
    body = b'10\r\n{"title": "new"}\r\n0\r\n'
    head = f"PUT {task} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for trailer in (b'If-Match: "1"\r\n', b"X-Request-ID: trailer\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"):
        with closing(Raw(base_url)) as raw:
            raw.send(head.encode() + body + trailer + b"\r\n" + request("GET", task))
            answer = raw.response()
            assert (answer.status_code, answer.json()["title"]) == (200, "new")
            assert answer.headers["X-Request-ID"] != "trailer"


def test_the_head_of_a_second_request_is_limited_too(base_url: str) -> None:
    head = b"GET /health/live HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"
    with closing(Raw(base_url)) as raw:
        # The beginning of the second head arrives with the first request.
        raw.send(request("GET", "/health/live") + head[:30_000])
        assert raw.response().status_code == 200
        raw.send(head[30_000:])
        assert raw.response().status_code == 431


@pytest.mark.parametrize("trailers", [b"a: b\r\n" * 11_000, b"a: " + b"b" * 66_000], ids=["many", "a long one"])
def test_trailers_are_limited_like_a_head(base_url: str, client: httpx.Client, tasks: str, trailers: bytes) -> None:
    head = f"POST {tasks} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with closing(Raw(base_url)) as raw:
        raw.send(head.encode() + b"1\r\na\r\n0\r\n")
        # When these are answered, the server has read the body.
        assert [client.get("/health/live").status_code for _ in range(3)] == [200] * 3
        raw.send(trailers)
        assert raw.rest().startswith(b"HTTP/1.1 431 ")
    assert client.get(tasks).json() == []


# Pipelines


def test_an_invalid_request_in_a_pipeline_closes_the_connection_after_the_valid_ones(
    base_url: str, client: httpx.Client, tasks: str
) -> None:
    for garbage in (
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_LIMIT * 4,
        b"\0",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    ):
        with closing(Raw(base_url)) as raw, suppress(ConnectionError):
            raw.send(request("POST", tasks, "", b'{"title": "a"}') + garbage)
            answer = raw.rest()
        # The large head may arrive after the response.
        assert re.findall(rb"HTTP/1.1 (\d+) ", answer) in ([b"201"], [b"201", b"431"])
    assert len(client.get(tasks).json()) == 4


def test_a_pipeline_has_a_maximum_length(base_url: str, client: httpx.Client, tasks: str) -> None:
    task = new_task(client, tasks)
    with closing(Raw(base_url)) as raw:
        with suppress(ConnectionError):
            raw.send(request("GET", task) * 1000)
        answers = raw.rest().count(b"HTTP/1.1 200 ")
    assert 90 < answers < 1000


def test_clients_that_disconnect_during_a_pipeline_cause_no_traceback(service: Service, tasks: str) -> None:
    with httpx.Client(base_url=service.base_url) as client:
        task = new_task(client, tasks)
        for method in ("GET", "POST"):
            for _ in range(10):
                data = request(method, task if method == "GET" else tasks, "", b'{"title": "a"}')
                with closing(Raw(service.base_url)) as raw:
                    raw.send(data * 10)
                    # Close with a reset.
                    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert client.get(task).status_code == 200


def test_clients_that_do_not_read_are_disconnected_and_use_little_memory(service: Service, tasks: str) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))

    assert http_protocol.SEND_SECONDS < 60
    with httpx.Client(base_url=service.base_url) as client, ExitStack() as stack:
        large = {"title": "x" * 255, "description": "\N{PILE OF POO}" * 2000}
        for _ in range(100):
            assert client.post(tasks, json=large).status_code == 201
        assert len(client.get(tasks, params={"limit": 100}).content) > 800_000
        memory_before, descriptors_before = memory(service), descriptors()
        largest = 0

        def is_over() -> bool:
            nonlocal largest
            assert client.get(tasks, params={"limit": 1}).status_code == 200
            largest = max(largest, memory(service) - memory_before)
            return descriptors() < descriptors_before + 25  # the pool may have grown

        started = time.monotonic()
        raws = [stack.enter_context(closing(Raw(service.base_url, 4096))) for _ in range(50)]
        for raw in raws:
            raw.send(request("GET", f"{tasks}?limit=100") * 30)
        until(lambda: descriptors() >= descriptors_before + 50)
        until(is_over)
        print(f"\n{largest / 1e6:.0f} MB more, all cut off after {time.monotonic() - started:.0f} s")
        assert largest < 75e6


def test_the_service_recovers_after_running_out_of_file_descriptors(database_url: str, tmp_path: Path) -> None:
    limited = ("sh", "-c", 'ulimit -n 100; exec "$@"', "sh", sys.executable, "-c", SHORT_LIMITS)
    env = {"DATABASE_URL": database_url}
    with as_process(tmp_path, *limited, env=env, forked=False) as service, ExitStack() as stack:
        raws = [stack.enter_context(closing(Raw(service.base_url))) for _ in range(200)]
        until(lambda: "file descriptors" in service.log)
        refused = [raw for raw in raws if raw.rest().startswith(b"HTTP/1.1 503 ")]
        assert len(refused) > 100
        assert httpx.get(f"{service.base_url}/health").status_code == 200
        assert "Traceback" not in service.log


def test_a_pipelined_request_waits_until_the_client_has_read_the_responses_before_it(
    base_url: str, client: httpx.Client, tasks: str, caplog: pytest.LogCaptureFixture
) -> None:
    large = {"title": "x" * 255, "description": "\N{PILE OF POO}" * 2000}
    for _ in range(50):
        assert client.post(tasks, json=large).status_code == 201
    with closing(Raw(base_url, 4096, 1000)) as raw:
        close = "Connection: close\r\n"
        raw.send(request("GET", f"{tasks}?limit=100") + request("POST", tasks, close, b'{"title": "a"}'))
        until(lambda: " GET /api/{user_id}/tasks 200 " in caplog.text)
        # The response to the first request is complete but not sent.
        for _ in range(5):
            listed = client.get(tasks, params={"total": "true", "limit": 1})
            assert listed.headers["X-Total-Count"] == "50"
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        assert re.findall(rb"HTTP/1.1 (\d+) ", raw.rest()) == [b"200", b"201"]


# Stop


def test_a_request_in_transit_during_the_shutdown_is_answered(patient: dict[str, str], tmp_path: Path) -> None:
    assert 0.1 < http_protocol.DRAIN_SECONDS < 1
    with as_process(tmp_path, *UVICORN, env=patient) as service:
        with ExitStack() as stack:
            # One that has been used, and one that has not.
            raws = [stack.enter_context(closing(Raw(service.base_url))) for _ in range(2)]
            assert raws[0].send(request("GET", "/health/live")).response().status_code == 200
            service.process.send_signal(signal.SIGTERM)
            until(lambda: "Shutting down" in service.log)
            for raw in raws:
                answer = raw.send(request("GET", "/health/live")).response()
                assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
        assert service.process.wait(30) == 0


def test_the_longest_allowed_request_is_answered_during_shutdown(database_url: str, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database_url, "DB_POOL_TIMEOUT": "0.1"}
    with as_process(tmp_path, env=env) as service:
        tasks = f"/api/{uuid4()}/tasks"
        data = request("POST", tasks, "", b'{"title": "a"}')
        with closing(Raw(service.base_url)) as raw:
            raw.send(data[:-1])
            httpx.get(f"{service.base_url}/health/live")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: "Shutting down" in service.log)
            answer = raw.send(data[-1:]).response()
            assert answer.status_code == 201
            assert answer.headers["Connection"] == "close"
        assert service.process.wait(30) == 0
