"""The servers to measure: one process each, all started the same way."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from tempfile import gettempdir
from typing import Any
from uuid import uuid4

import httpx

PROJECT = Path(__file__).parents[2]
UVICORN = (sys.executable, "-m", "uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log")
# The service runs unchanged, with its own start command and request log.
COMMANDS = {
    "service": (sys.executable, "-m", "backend"),
    "tutorial": (*UVICORN, "backend.benchmarks.tutorial:app"),
    "bare": (*UVICORN, "--lifespan=off", "backend.benchmarks.bare:app"),
}


class Server:
    """A running server: one of `COMMANDS` on the database at `database_url`, called `name` in the report.

    The constructor starts the process and waits until GET `path` returns 200, which takes `start_seconds`.
    """

    def __init__(self, name: str, command: str, database_url: str, path: str) -> None:
        self.name, self.command = name, command
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        settings = {"DATABASE_URL": database_url, "ENVIRONMENT": "production", "AUTH_DISABLED": "true"}
        settings |= {"PORT": str(port), "UVICORN_PORT": str(port)}
        started = time.monotonic()
        self._process = subprocess.Popen(
            COMMANDS[command],
            cwd=gettempdir(),  # contains no .env
            env={**os.environ, "PYTHONPATH": str(PROJECT), **settings},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not self._answers(path):
            if time.monotonic() > started + 60 or self._process.poll() is not None:
                self.stop()
                raise SystemExit(f"{name} did not start; to see why, run `{' '.join(COMMANDS[command])}`")
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - started

    def _answers(self, path: str) -> bool:
        try:
            return self.client.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """Stop the process; kill it if it does not stop within five seconds."""
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """CPU time used by the process so far, user and system."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def queued_seconds(self) -> float:
        """How long its main thread has waited for a CPU so far."""
        return int(self._proc("schedstat").split()[1]) / 1e9

    def memory_mib(self) -> float:
        """The resident set size now."""
        return int(self._proc("status").partition("VmRSS:")[2].split()[0]) / 1024

    def _proc(self, name: str) -> str:
        return Path(f"/proc/{self._process.pid}/{name}").read_text()

    def check(self) -> None:
        """Raise SystemExit unless the responses are correct, so that only servers that do the work are measured."""
        tasks = f"/api/{uuid4()}/tasks"
        created = self._task("POST", tasks, 201, {"title": "Buy milk", "description": "Two"})
        expected = {
            **created,
            "user_id": tasks.split("/")[2],
            "title": "Buy milk",
            "description": "Two",
            "completed": False,
        }
        self._same("create", created, expected)
        path = f"{tasks}/{created['id']}"
        self._same("get", self._task("GET", path), expected)
        updated = self._task("PUT", path, 200, {"title": "Buy bread"})
        self._same("update", updated, {**expected, "title": "Buy bread", "updated_at": updated["updated_at"]})
        toggled = self._task("PATCH", f"{path}/complete")
        self._same("toggle", toggled, {**updated, "completed": True, "updated_at": toggled["updated_at"]})
        self._same("time of writing", created["updated_at"] < updated["updated_at"] < toggled["updated_at"], True)
        newer = self._task("POST", tasks, 201, {"title": "Newer"})
        for query, page in (("", [newer, toggled]), ("?limit=1", [newer]), ("?offset=1", [toggled])):
            self._same("list", [_with_times(task) for task in self.client.get(tasks + query).json()], page)
        self._same("status", self.client.get(f"{tasks}/{uuid4()}").status_code, 404)

    def trips(self, count: Callable[[], int]) -> dict[str, float]:
        """Round trips to the database per request, as medians of five; `count` returns the number so far."""
        tasks = f"/api/{uuid4()}/tasks"
        task = f"{tasks}/{self._task('POST', tasks, 201, {'title': 'First'})['id']}"
        requests = {
            "get": ("GET", task),
            "list-50": ("GET", f"{tasks}?limit=50"),
            "create": ("POST", tasks),
            "update": ("PUT", task),
            "toggle": ("PATCH", f"{task}/complete"),
        }
        counted: dict[str, list[int]] = {scenario: [] for scenario in requests}
        for number in range(5):
            for scenario, (method, path) in requests.items():
                before = count()
                body = {"title": f"Title {number}"} if method in ("POST", "PUT") else None
                self.client.request(method, path, json=body).raise_for_status()
                time.sleep(0.02)  # some servers end their transaction after the response
                counted[scenario].append(count() - before)
        return {scenario: median(trips) for scenario, trips in counted.items()}

    def page(self, path: str, number: int) -> str:
        """The path of page `number` of a list, found by following the service's `next` links."""
        for _ in range(number):
            path = self.client.get(path).links["next"]["url"]
        return path

    def _task(self, method: str, path: str, status: int = 200, body: object = None) -> dict[str, Any]:
        response = self.client.request(method, path, json=body)
        self._same("status", response.status_code, status)
        return _with_times(response.json())

    def _same(self, what: str, seen: object, expected: object) -> None:
        if seen != expected:
            raise SystemExit(f"{self.name} returned a wrong response: {what} is {seen}, not {expected}")


def _with_times(task: dict[str, Any]) -> dict[str, Any]:
    return {**task, **{name: datetime.fromisoformat(task[name]) for name in ("created_at", "updated_at")}}
