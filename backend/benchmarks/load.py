"""One measurement: wrk against a server, and what the server's process used meanwhile."""

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
    """Requests per second; milliseconds (median, 99th percentile); CPU seconds per 1,000 requests; the share of time
    that the server's main thread stood in line for a CPU; how many requests were answered 4xx or 5xx, or not at all."""

    rps: float
    p50: float
    p99: float
    cpu: float
    queued: float
    refused: int
    broken: int


def find_wrk() -> str:
    """Where the load generator is, or the end of the run."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk, which makes the load, is not installed: `apt-get install wrk` or `brew install wrk`")
    return wrk


def measure(server: Server, data: Dataset, cursor: str, scenario: str, connections: int, seconds: int) -> Sample:
    """Ask for `scenario` over so many `connections` at once, from one thread; `cursor` is the path of a deep page."""
    server.client.get(f"{data.owner}?limit=1")  # when this is answered, an earlier load is over
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
    seen = json.loads(output.partition("RESULT ")[2])
    requests, took = seen.pop("requests"), seen.pop("seconds")
    if not requests:
        seen["broken"] += connections  # wrk does not count what it still waits for
    cpu = used / requests * 1000 if requests else 0.0
    return Sample(rps=requests / took, cpu=cpu, queued=queued / took, **seen)
