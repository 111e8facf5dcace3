"""One measurement: wrk against a server, and the CPU time used meanwhile by the server and by PostgreSQL."""

import json
import shutil
import subprocess
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from backend.benchmarks.database import Dataset
from backend.benchmarks.servers import Server

SCRIPT = Path(__file__).with_name("requests.lua")
COMPARABLE = ("get", "list-20", "list-50", "create", "update", "toggle", "deep-offset", "deep-cursor", "mix")
LARGE = ("get", "list-50", "first-page", "deep-cursor", "create", "toggle", "search", "search-none", "total")
SERVICE_ONLY = ("deep-cursor", "search", "search-none", "total")


class Sample(NamedTuple):
    """Requests per second; latency in milliseconds (median and 99th percentile); CPU milliseconds per request, of the
    server and of PostgreSQL's backends; the share of time that the server's main thread waited for a CPU; the number of
    requests that returned 4xx or 5xx, and that failed."""

    rps: float
    p50: float
    p99: float
    cpu: float
    database_cpu: float
    queued: float
    rejected: int
    failed: int


def find_wrk() -> str:
    """The path of the load generator; raises SystemExit if it is not installed."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk, the load generator, is not installed: `apt-get install wrk`")
    return wrk


def measure(server: Server, data: Dataset, cursor: str, scenario: str, connections: int, seconds: int) -> Sample:
    """Send requests of `scenario` for `seconds` from one thread of wrk; `cursor` is the path of a deep page."""
    server.client.get(f"{data.owner}?limit=1")  # is served after all requests of an earlier load
    backends = data.cpu_seconds()
    before = server.cpu_seconds(), server.queued_seconds()
    with NamedTemporaryFile("w") as paths:
        paths.write("\n".join(data.paths(5_000)))
        paths.flush()
        output = subprocess.run(
            [find_wrk(), "--threads=1", f"--connections={connections}", f"--duration={seconds}s", "--timeout=30s",
             f"--script={SCRIPT}", str(server.client.base_url), "--",
             scenario, paths.name, data.owner, str(data.depth), cursor],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    used, queued = server.cpu_seconds() - before[0], server.queued_seconds() - before[1]
    database_used = sum(now - backends.get(pid, 0) for pid, now in data.cpu_seconds().items())
    result = json.loads(output.partition("RESULT ")[2])
    requests, took = result.pop("requests"), result.pop("seconds")
    if not requests:
        result["failed"] += connections  # wrk does not count requests that are still waiting
    per_request = 1000 / requests if requests else 0.0
    return Sample(
        rps=requests / took,
        cpu=used * per_request,
        database_cpu=database_used * per_request,
        queued=queued / took,
        **result,
    )
