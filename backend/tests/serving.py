"""Runs the service for a test: in a thread of this process, or as its own process as in production."""

import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import uvicorn
from fastapi import FastAPI

from backend.core.config import Settings
from backend.main import create_app
from backend.tests.fork_server import ForkedProcess

ROOT = Path(__file__).parents[2]
Loop = Literal["auto", "asyncio", "uvloop"]


def settings(database_url: str, **others: object) -> Settings:
    """Settings with these values, independent of the environment and `.env`."""
    environment = {name: os.environ.pop(name) for name in list(os.environ) if name.lower() in Settings.model_fields}
    try:
        return Settings(_env_file=None, database_url=database_url, **others)  # type: ignore[call-arg, arg-type]  # pydantic checks them
    finally:
        os.environ.update(environment)


@contextmanager
def in_thread(app: Settings | FastAPI, loop: Loop = "auto", http: Any = "auto", root_path: str = "") -> Iterator[str]:
    """Serve in a thread of this process; yields the base URL. At the end, waits for requests in flight."""
    if isinstance(app, Settings):
        app = create_app(app)
    # The protocol is given because asyncio sets TCP_NODELAY only on such sockets.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        config = uvicorn.Config(
            app,
            http=http,
            loop=loop,
            lifespan="on",
            log_config=None,
            timeout_graceful_shutdown=10,
            root_path=root_path,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            wait_until_live(base_url)
            # The service freezes all objects of a process that only serves. Here, Hypothesis looks for referrers of its
            # random number generator, and does not find frozen ones.
            gc.unfreeze()
            yield base_url
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@dataclass
class Service:
    """A service in its own process."""

    base_url: str
    process: "subprocess.Popen[str] | ForkedProcess"
    log_file: Path

    @property
    def log(self) -> str:
        """Its output so far."""
        return self.log_file.read_text()

    def stop(self, signal: int, seconds: float = 30) -> int:
        """Send `signal` and wait for the exit; returns the exit status."""
        self.process.send_signal(signal)
        return self.process.wait(seconds)


@contextmanager
def as_process(
    tmp_path: Path,
    *command: str,
    env: dict[str, str] | None = None,
    cwd: Path = ROOT,
    port: int | None = None,
    stderr: int | None = None,
    forked: bool = True,
) -> Iterator[Service]:
    """Run `command` (default `python -m backend`) with only `env` set; it is live in the block and stopped afterwards.

    `{port}` in the command is replaced by the port, which is also set as PORT. `stderr` is a file descriptor; if it is
    None, standard error goes to the log. If `forked`, the process comes from the fork server, and the command must be
    Python or a script of the same environment.
    """
    port = port or free_port()
    arguments = [part.format(port=port) for part in command or (sys.executable, "-m", "backend")]
    passed_on = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    environment = {**passed_on, "PYTHONPATH": str(ROOT), "PORT": str(port), "PYTHONUNBUFFERED": "1", **(env or {})}
    log_file = tmp_path / f"service-{port}.log"
    process: subprocess.Popen[str] | ForkedProcess
    with open(log_file, "w") as log:
        if forked:
            process = ForkedProcess(arguments, env=environment, cwd=cwd, stdout=log, stderr=stderr or log)
        else:
            process = subprocess.Popen(
                arguments, env=environment, cwd=cwd, stdout=log, stderr=stderr or log, text=True, start_new_session=True
            )
    service = Service(f"http://127.0.0.1:{port}", process, log_file)
    try:
        wait_until_live(service.base_url, process)
        yield service
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_live(
    base_url: str, process: "subprocess.Popen[str] | ForkedProcess | None" = None, seconds: float = 60
) -> None:
    """Wait for `/health/live`; raises if the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    # One client without a TLS context: creating one for each attempt takes longer than the service needs to start.
    with httpx.Client(base_url=base_url, timeout=5, verify=False, trust_env=False) as client:
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError, ConnectionRefusedError):
                # Sending a request takes a hundred times as long as being refused a connection.
                socket.create_connection((client.base_url.host, client.base_url.port or 80)).close()
                if client.get("/health/live").status_code == 200:
                    return
            if process is not None and process.poll() is not None:
                raise AssertionError(f"the service ended with status {process.returncode}")
            time.sleep(0.02)
    raise AssertionError("the service did not start")


def free_port() -> int:
    """A port that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
