"""The servers that are measured: one process each, started alike."""

import os
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

import httpx

PROJECT = Path(__file__).parents[2]
UVICORN = ("uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log")
# The service as it is shipped: with its own start, and its own log.
COMMANDS = {
    "service": ("backend",),
    "tutorial": (*UVICORN, "backend.benchmarks.tutorial:app"),
    "bare": (*UVICORN, "--lifespan=off", "backend.benchmarks.bare:app"),
}


class Server:
    """One of `COMMANDS` on the database at `database_url`; `name` is what the report calls it.

    Making it starts the process and waits until GET of `path` is answered with 200, which took `start_seconds`.
    """

    def __init__(self, name: str, command: str, database_url: str, path: str) -> None:
        self.name, self.command = name, command
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        settings = {"DATABASE_URL": database_url, "ENVIRONMENT": "production", "AUTH_DISABLED": "true"}
        settings |= {"PORT": str(port), "UVICORN_PORT": str(port)}
        module, *arguments = COMMANDS[command]
        started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=gettempdir(),  # so that no .env is read
            env={**os.environ, "PYTHONPATH": str(PROJECT), **settings},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not self._answers(path):
            if time.monotonic() > started + 60 or self._process.poll() is not None:
                self.stop()
                raise SystemExit(f"{name} did not start; `python -m {' '.join(COMMANDS[command])}` may say why")
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - started

    def _answers(self, path: str) -> bool:
        try:
            return self.client.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End the process, also one that does not want to."""
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """What the process has used so far, in user and kernel mode."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def queued_seconds(self) -> float:
        """How long its main thread has stood in line for a CPU so far."""
        return int(self._proc("schedstat").split()[1]) / 1e9

    def memory_mib(self) -> float:
        """The memory that the process has in use now (resident set)."""
        return int(self._proc("status").partition("VmRSS:")[2].split()[0]) / 1024

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text()

    def check(self) -> None:
        """Raises SystemExit unless the answers are right, so that nothing is measured that does not do the work."""
        tasks = f"/api/{uuid4()}/tasks"
        made = self._task("POST", tasks, 201, {"title": "Buy milk", "description": "Two"})
        expected = {
            **made,
            "user_id": tasks.split("/")[2],
            "title": "Buy milk",
            "description": "Two",
            "completed": False,
        }
        self._same("create", made, expected)
        path = f"{tasks}/{made['id']}"
        self._same("get", self._task("GET", path), expected)
        updated = self._task("PUT", path, 200, {"title": "Buy bread"})
        self._same("update", updated, {**expected, "title": "Buy bread", "updated_at": updated["updated_at"]})
        toggled = self._task("PATCH", f"{path}/complete")
        self._same("toggle", toggled, {**updated, "completed": True, "updated_at": toggled["updated_at"]})
        self._same("time of writing", made["updated_at"] < updated["updated_at"] < toggled["updated_at"], True)
        newer = self._task("POST", tasks, 201, {"title": "Newer"})
        for query, page in (("", [newer, toggled]), ("?limit=1", [newer]), ("?offset=1", [toggled])):
            self._same("list", [_with_times(task) for task in self.client.get(tasks + query).json()], page)
        self._same("status", self.client.get(f"{tasks}/{uuid4()}").status_code, 404)

    def page(self, path: str, number: int) -> str:
        """The path of page `number` of a list, as the service's links lead there."""
        for _ in range(number):
            path = self.client.get(path).links["next"]["url"]
        return path

    def _task(self, method: str, path: str, status: int = 200, body: object = None) -> dict[str, Any]:
        response = self.client.request(method, path, json=body)
        self._same("status", response.status_code, status)
        return _with_times(response.json())

    def _same(self, what: str, seen: object, expected: object) -> None:
        if seen != expected:
            raise SystemExit(f"{self.name} answers wrong, nothing was measured: {what} is {seen}, not {expected}")


def _with_times(task: dict[str, Any]) -> dict[str, Any]:
    return {**task, **{name: datetime.fromisoformat(task[name]) for name in ("created_at", "updated_at")}}
