"""Starts Python processes quickly: each is forked from one that has imported the libraries, but nothing of the project.

Importing the libraries takes most of the CPU time of a start. The process runs its command as a new interpreter does,
in its own session and with its own arguments, environment, working directory and standard files.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO

LIBRARIES = (
    "alembic.config", "fastapi.staticfiles", "fastapi_offline", "httptools", "httpx", "psycopg2", "pydantic.v1",
    "pydantic_settings", "sqlmodel", "starlette.middleware.cors", "uvicorn.lifespan.on", "uvicorn.main",
    "uvicorn.protocols.http.httptools_impl", "uvloop",
)  # fmt: skip


class ForkedProcess:
    """Like `subprocess.Popen`, for Python or a script of the same environment."""

    _lock = Lock()
    _server: "subprocess.Popen[bytes] | None" = None
    _requests: socket.socket

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int = 0,
        stdout: IO[str] | int,
        stderr: IO[str] | int,
    ) -> None:
        self.returncode: int | None = None
        self._reports, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps([command, str(cwd), dict(env)]).encode()
        files = [file if isinstance(file, int) else file.fileno() for file in (stdin, stdout, stderr)]
        with theirs, self._lock:
            if self._server is None:
                self._start_server()
            socket.send_fds(self._requests, [request], [*files, theirs.fileno()])
        self.pid = int(self._reports.recv(99))

    @classmethod
    def _start_server(cls) -> None:
        cls._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # In its own session: Ctrl-C reaches only the test run, which ends its processes itself.
        with theirs:
            cls._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"},
                cwd="/", stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        atexit.register(cls._stop_server, cls._server)

    @classmethod
    def _stop_server(cls, server: "subprocess.Popen[bytes]") -> None:
        cls._requests.close()
        server.wait(60)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(self._reports.recv(99))
            self._reports.close()
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Like `subprocess.run` with captured output."""
    with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        process = ForkedProcess(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        try:
            status = process.wait(120)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, status, stdout.read(), stderr.read())


def serve(requests: socket.socket) -> list[str]:
    """Fork a process for each request, and report its end; returns the command in the forked process.

    At the end of the process that sends requests, terminates the forked processes and exits.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        waited: list[socket.socket | int] = [requests, *running]
        ready, _, _ = select.select(waited, [], [])
        for ended in running.keys() & ready:
            pid, reports = running.pop(ended)
            os.close(ended)
            _, status = os.waitpid(pid, 0)
            with reports, suppress(BrokenPipeError):
                reports.send(b"%d" % os.waitstatus_to_exitcode(status))
        if requests not in ready:
            continue
        request, descriptors, _, _ = socket.recv_fds(requests, 1 << 18, 4)
        if not request:
            for pid, _ in running.values():
                os.kill(pid, signal.SIGTERM)
                os.waitpid(pid, 0)
            sys.exit()
        *files, last = descriptors
        reports = socket.socket(fileno=last)
        if not (pid := os.fork()):
            break
        for file in files:
            os.close(file)
        running[os.pidfd_open(pid)] = pid, reports

    for inherited in (requests, *(each for _, each in running.values())):
        inherited.close()
    for pidfd in running:
        os.close(pidfd)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    command, cwd, env = json.loads(request)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    with reports:
        reports.send(b"%d" % os.getpid())
    return list(command)


def execute(command: list[str]) -> None:
    """Run a command in this process as the interpreter does."""
    program, *arguments = command
    kind = "script"
    if program == sys.executable:
        kind, program, *arguments = arguments
    folder = {"-c": "", "-m": os.getcwd()}.get(kind, os.path.dirname(program))
    sys.argv = ["-c" if kind == "-c" else program, *arguments]
    sys.path[:0] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-c":
        exec(compile(program, "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    # Not the folder of this file.
    del sys.path[0]
    for library in LIBRARIES:
        import_module(library)
    # Otherwise a collection in a forked process would write to this memory, and so copy it.
    gc.freeze()
    execute(serve(socket.socket(fileno=int(sys.argv[1]))))
