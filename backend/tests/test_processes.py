"""The service started and stopped with each of the documented commands."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from uuid import uuid4

import httpx
import psycopg2
import pytest
from uvicorn.config import STARTUP_FAILURE

from backend.__main__ import main
from backend.core import schema
from backend.tests import fork_server
from backend.tests.concurrency import until
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.process_checks import assert_processes_end, assert_server_stopped, members, processes
from backend.tests.raw_http import HEAD_LIMIT, UPGRADE, Raw, request, segments
from backend.tests.serving import ROOT, Service, as_process, free_port

PROGRAMS = Path(sys.executable).parent
PYTHON_M = (sys.executable, "-m", "backend")
UVICORN = (str(PROGRAMS / "uvicorn"), "backend.main:app", "--port", "{port}")
FASTAPI = (str(PROGRAMS / "fastapi"),)
ALEMBIC = (str(PROGRAMS / "alembic"),)
STOPPING = """
import multiprocessing, os, signal
if parent := multiprocessing.parent_process():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(parent.pid, signal.SIGTERM)
from backend.main import app
"""
"""A module whose `app` stops uvicorn while a worker loads it."""


@pytest.fixture(scope="module")
def checkout() -> Iterator[Path]:
    """The project in a folder whose name has characters special to shells and libpq, with its own data and settings."""
    # Not in pytest's folder: another run as root would make it inaccessible to the user that PostgreSQL runs as.
    with TemporaryDirectory() as parent:
        folder = Path(parent) / 'a `touch x` $(touch y) $HOME "checkout", it\'s'
        folder.mkdir()
        for name in ("backend", "alembic.ini", "pyproject.toml"):
            (folder / name).symlink_to(ROOT / name)
        yield folder
        for process in processes(folder / ".data"):
            os.kill(process, signal.SIGKILL)


def send_ctrl_c(service: Service) -> int:
    """Send SIGINT to all processes of the service, as a terminal does; returns the exit status."""
    os.killpg(service.process.pid, signal.SIGINT)
    return service.process.wait(30)


def assert_clean_exit(service: Service) -> None:
    assert "Traceback" not in service.log
    assert "ERROR" not in service.log
    assert_processes_end(members(service.process.pid))


def use(service: Service) -> str:
    """Create a task and read it over other connections; returns its path."""
    with httpx.Client(base_url=service.base_url, headers={"Connection": "close"}) as client:
        created = client.post(f"/api/{uuid4()}/tasks", json={"title": "Buy milk"})
        assert created.status_code == 201, created.text
        for _ in range(8):
            assert client.get(created.headers["Location"]).json() == created.json()
        path: str = created.headers["Location"]
    assert_limits_apply(service, path)
    return path


def assert_limits_apply(service: Service, task: str) -> None:
    """Assert that the HTTP server is the service's own, with its limits."""
    with closing(Raw(service.base_url)) as raw:
        data = request("PATCH", f"{task}/complete", UPGRADE, b'{"completed": false}')
        assert raw.send(*segments(data, "head and body")).response().json()["completed"] is False
    with closing(Raw(service.base_url)) as raw:
        raw.send(request("GET", task, "X: " + "x" * HEAD_LIMIT + "\r\n"))
        assert raw.response().status_code == 431


def embedded_url(checkout: Path) -> str:
    """The URL of the embedded server of the checkout."""
    data = checkout / ".data" / "postgres"
    socket = data / (data / "postmaster.pid").read_text().splitlines()[4]
    return f"postgresql:///postgres?user=postgres&host={quote(str(socket), safe='')}"


def run(
    folder: Path, command: tuple[str, ...], *, forked: bool = True, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command that ends by itself."""
    environment = {"PATH": os.environ["PATH"], "PORT": str(free_port()), **env}
    arguments = [part.format(port=environment["PORT"]) for part in command]
    if forked:
        return fork_server.run(arguments, cwd=folder, env=environment)
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_printed_command_works_and_data_survives_a_restart(checkout: Path, tmp_path: Path) -> None:
    with as_process(tmp_path, cwd=checkout, forked=False) as service:
        port = service.base_url.rpartition(":")[2]
        [docs] = re.findall(r"http://\S+/docs", service.log)
        assert "swagger" in httpx.get(docs).text.lower()
        [line] = re.findall(r"curl .*", service.log)
        pasted = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
        assert pasted.startswith("HTTP/1.1 201 ")
        task = json.loads(pasted.splitlines()[-1])
        path = f"/api/{task['user_id']}/tasks/{task['id']}"

        second = run(checkout, PYTHON_M, PORT=port)
        assert (second.returncode, second.stdout) == (STARTUP_FAILURE, "")
        assert re.fullmatch(rf"Cannot start: [^\n]*PORT[^\n]*{port}[^\n]*\n", second.stderr)

        assert send_ctrl_c(service) == 0
    assert_clean_exit(service)
    assert_server_stopped(checkout / ".data")

    # Variables of libpq do not affect the embedded server.
    env = {"PGHOSTADDR": "127.0.0.1", "PGPORT": "1", "PGCHANNELBINDING": "require"}
    with as_process(tmp_path, cwd=checkout, env=env) as service:
        assert httpx.get(service.base_url + path).json() == task
        use(service)
        service.stop(signal.SIGTERM)
    assert_clean_exit(service)
    assert_server_stopped(checkout / ".data")


@pytest.mark.parametrize("mode", ["run", "dev"])
def test_the_fastapi_command_serves_the_application(checkout: Path, tmp_path: Path, mode: str) -> None:
    with as_process(tmp_path, *FASTAPI, mode, "--port", "{port}", cwd=checkout, forked=False) as service:
        use(service)
        send_ctrl_c(service)
    assert_clean_exit(service)
    assert_server_stopped(checkout / ".data")


def test_alembic_migrates_the_embedded_database_and_one_from_the_settings(
    checkout: Path, empty_database_url: str
) -> None:
    with ThreadPoolExecutor() as pool:
        alembic = (*ALEMBIC, "upgrade", "head")
        embedded = pool.submit(run, checkout, alembic, forked=False)
        from_settings = pool.submit(run, checkout, alembic, DATABASE_URL=empty_database_url)
        for ended in (embedded.result(), from_settings.result()):
            assert ended.returncode == 0, ended.stderr
            assert "Traceback" not in ended.stderr
    assert execute(empty_database_url, "SELECT count(*) FROM tasks") == [(0,)]
    assert_server_stopped(checkout / ".data")


def test_in_production_python_m_backend_migrates_and_logs_json(
    checkout: Path, tmp_path: Path, empty_database_url: str
) -> None:
    env = {"ENVIRONMENT": "production", "AUTH_DISABLED": "true", "DATABASE_URL": empty_database_url}
    with as_process(tmp_path, cwd=checkout, env=env) as service:
        path = use(service)
        httpx.get(service.base_url + path, headers={"X-Request-ID": "mine"})
        service.stop(signal.SIGTERM)
    assert_clean_exit(service)
    lines = [line for line in service.log.splitlines() if line and not re.match(r"  (Docs|Database|Try it) ", line)]
    entries = [json.loads(line) for line in lines]
    assert [entry["status"] for entry in entries if entry["request_id"] == "mine"] == [200]


def test_in_production_all_lines_of_uvicorn_are_json(checkout: Path, tmp_path: Path, database_url: str) -> None:
    env = {"ENVIRONMENT": "production", "AUTH_DISABLED": "true", "DATABASE_URL": database_url}
    with as_process(tmp_path, *UVICORN, cwd=checkout, env=env, forked=False) as service:
        use(service)
        service.stop(signal.SIGTERM)
    assert_clean_exit(service)
    messages = [json.loads(line)["message"] for line in service.log.splitlines()]
    for expected in ("Started server process", "Shutting down", "Finished server process"):
        assert sum(expected in message for message in messages) == 1
    assert any("Uvicorn running on" in message for message in messages)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("command", [PYTHON_M, UVICORN], ids=["python -m backend", "uvicorn"])
def test_sighup_stops_the_database_too(
    checkout: Path, tmp_path: Path, command: tuple[str, ...], number: signal.Signals
) -> None:
    with as_process(tmp_path, *command, cwd=checkout) as service:
        use(service)
        assert service.stop(number) == 0
    assert_clean_exit(service)
    assert_server_stopped(checkout / ".data")


@pytest.mark.parametrize("command", [PYTHON_M, UVICORN], ids=["python -m backend", "uvicorn"])
def test_after_a_second_ctrl_c_requests_are_answered_without_a_traceback(
    checkout: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with as_process(tmp_path, *command, cwd=checkout, env={"DB_POOL_TIMEOUT": "60"}) as service:
        path, url = use(service), embedded_url(checkout)
        with ThreadPoolExecutor() as pool, closing(psycopg2.connect(url)) as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT id FROM tasks FOR UPDATE")
            put = pool.submit(httpx.put, service.base_url + path, json={"title": "b"}, timeout=60)
            until(lambda: execute(url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
            os.killpg(service.process.pid, signal.SIGINT)
            until(lambda: "Waiting for connections to close" in service.log)
            send_ctrl_c(service)
            assert_error(put.result(), 503)
            assert "may have been written" in put.result().json()["detail"]
    assert "Traceback" not in service.log
    assert_processes_end(members(service.process.pid))


def test_workers_share_an_embedded_server_and_one_is_replaced_without_free_connections(
    checkout: Path, tmp_path: Path
) -> None:
    with as_process(tmp_path, *UVICORN, "--workers", "2", cwd=checkout) as service, ExitStack() as connections:
        until(lambda: service.log.count("Application startup complete") == 2)
        use(service)
        with suppress(psycopg2.OperationalError):
            while True:
                connections.enter_context(closing(psycopg2.connect(embedded_url(checkout))))
        workers = [pid for pid in members(service.process.pid) if pid != service.process.pid]
        os.kill(max(workers), signal.SIGKILL)
        until(lambda: service.log.count("Application startup complete") == 3)
        connections.close()
        use(service)
        send_ctrl_c(service)
    assert_clean_exit(service)
    assert_server_stopped(checkout / ".data")


def test_a_failed_start_does_not_end_the_process_of_a_test_client(tmp_path: Path) -> None:
    (tmp_path / ".data").touch()
    code = """
import warnings
warnings.simplefilter("ignore")
from fastapi.testclient import TestClient
from backend.main import app
try:
    with TestClient(app):
        pass
finally:
    print("cleaned up")
"""
    ended = run(tmp_path, (sys.executable, "-c", code), PYTHONPATH=str(ROOT))
    assert ended.stdout == "cleaned up\n"
    assert re.search(r"^Cannot start: [^\n]*\.data[^\n]*$", ended.stderr, re.MULTILINE)


def test_a_failed_migration_fails_startup_with_one_line(checkout: Path, empty_database_url: str) -> None:
    execute(empty_database_url, "CREATE TABLE users (s3cret int)")
    ended = run(checkout, PYTHON_M, DATABASE_URL=empty_database_url)
    assert (ended.returncode, ended.stdout) == (STARTUP_FAILURE, "")
    assert re.search(r"\nCannot start: [^\n]*migrat[^\n]*\n\Z", ended.stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_start_stops_the_embedded_server(checkout: Path, number: signal.Signals) -> None:
    environment = {"PATH": os.environ["PATH"], "PORT": str(free_port())}
    process = subprocess.Popen(
        PYTHON_M, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: (checkout / ".data" / "postgres" / "postmaster.pid").exists())
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert_server_stopped(checkout / ".data")


def test_a_database_ahead_of_the_code_fails_startup_with_one_line(
    empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schema.upgrade(empty_database_url)
    execute(empty_database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SystemExit) as stopped:
        schema.upgrade_at_start(empty_database_url)
    assert_one_line(stopped, capsys, "the migration failed: [^\n]*9999[^\n]*")


def assert_one_line(stopped: pytest.ExceptionInfo[SystemExit], capsys: pytest.CaptureFixture[str], reason: str) -> None:
    """Assert that the start ended with the documented status and this line only."""
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (STARTUP_FAILURE, "")
    assert re.fullmatch(rf"Cannot start: {reason}\n", printed.err)


@pytest.mark.parametrize(
    ("options", "host", "reason"),
    [
        pytest.param(["--port=1"], "127.0.0.1", "[^\n]*PORT[^\n]*", id="an option"),
        pytest.param([], "256.0.0.1", "HOST [^\n]*", id="not an address"),
    ],
)
def test_an_option_or_a_wrong_address_fails_startup_with_one_line(
    database_url: str,
    options: list[str],
    host: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["backend", *options])
    for name, value in {"DATABASE_URL": database_url, "HOST": host, "PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert_one_line(stopped, capsys, reason)


def test_a_host_that_cannot_be_encoded_fails_startup_with_one_line(checkout: Path, database_url: str) -> None:
    ended = run(checkout, PYTHON_M, DATABASE_URL=database_url, HOST="é..test")
    assert (ended.returncode, ended.stdout) == (STARTUP_FAILURE, "")
    assert re.fullmatch(r"Cannot start: HOST [^\n]*\n", ended.stderr)


def test_a_worker_that_is_stopped_while_it_loads_the_application_loses_no_log_line(
    tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING)
    options = ("--workers", "2", "--log-config", str(ROOT / "backend" / "log_config.json"))
    command = (UVICORN[0], "stopping:app", "--port", "{port}", *options)
    ended = run(tmp_path, command, PYTHONPATH=f"{ROOT}:{tmp_path}", DATABASE_URL=database_url)
    assert ended.returncode == 0
    assert ended.stderr.count("Started server process") == ended.stderr.count("Finished server process") >= 1


def test_an_unusable_data_folder_ends_uvicorn_with_one_line(tmp_path: Path) -> None:
    (tmp_path / ".data").touch()
    ended = run(tmp_path, UVICORN, PYTHONPATH=str(ROOT))
    assert ended.returncode == STARTUP_FAILURE
    assert re.search(r"\nCannot start: [^\n]*\.data[^\n]*\n[^\n]*Application startup failed[^\n]*\n\Z", ended.stderr)
    assert "Traceback" not in ended.stderr


def test_a_wrong_setting_ends_every_command_with_one_line(checkout: Path) -> None:
    commands = [PYTHON_M, UVICORN, (*FASTAPI, "run", "--port", "{port}"), (*ALEMBIC, "upgrade", "head")]
    with ThreadPoolExecutor() as pool:
        for ended in pool.map(lambda command: run(checkout, command, DB_POOL_SIZE="s3cret"), commands):
            assert ended.returncode == STARTUP_FAILURE
            assert re.fullmatch(r"Cannot start: DB_POOL_SIZE [^\n]*\n", ended.stderr)
            assert "s3cret" not in ended.stdout + ended.stderr
