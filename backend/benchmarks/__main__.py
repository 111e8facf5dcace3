"""`python -m backend.benchmarks`: measure round by round and print the report."""

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from backend.benchmarks import database, load, proxy
from backend.benchmarks.database import Dataset, show
from backend.benchmarks.report import Report
from backend.benchmarks.servers import COMMANDS, Server

TASKS = 100_000  # gives the owner 10,000
FEW = 10_000
DESCRIPTION = """Compare the service with two others on the same PostgreSQL: the tutorial (FastAPI + SQLModel as their
documentation teaches) and the bare driver (psycopg2 without a framework). Each runs as one process. They are measured
alternately, and the report shows medians. Requires Linux and wrk."""
EPILOG = f"""mix: half get, a fifth list-20, a tenth each create, update and toggle. deep-offset and deep-cursor: the
last 50 of a user's 10,000 tasks; if --fill is given, 50 tasks at depth 100,000. Other work on the machine distorts the
figures: compare ratios within one run. Scenarios: {", ".join(dict.fromkeys(load.COMPARABLE + load.LARGE))}."""


class Contender(NamedTuple):
    """A server to measure: its name in the report, its key in `COMMANDS`, and its data."""

    name: str
    command: str
    data: Dataset


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m backend.benchmarks", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--quick", action="store_true", help="one round, one second per measurement, 16 connections by default")
    add("--rounds", type=int, help="number of rounds (default: 3)")
    add("--seconds", type=int, help="duration of each measurement (default: 3)")
    add(
        "--connections",
        type=int,
        nargs="+",
        metavar="N",
        help="concurrent connections (default: 1 16 64; 1 if --delay-ms or --fill is given)",
    )
    add(
        "--scenarios",
        nargs="+",
        metavar="NAME",
        choices=load.COMPARABLE + load.LARGE,
        help="what to measure (default: all)",
    )
    add(
        "--database-url",
        metavar="URL",
        help="server to create (and drop) the databases on (default: an embedded server)",
    )
    add("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--delay-ms", type=float, metavar="MS", help="add MS milliseconds to each round trip to the database")
    add("--fill", type=int, metavar="TASKS", help=f"compare the service on TASKS tasks (10000000) and on {FEW:,}")
    arguments = parser.parse_args()
    if arguments.fill is not None and (arguments.fill <= FEW or arguments.fill % FEW):
        parser.error(f"--fill requires a multiple of {FEW} greater than {FEW}")
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.seconds = arguments.seconds or (1 if arguments.quick else 3)
    default = [1] if arguments.delay_ms or arguments.fill else [16] if arguments.quick else [1, 16, 64]
    arguments.connections = arguments.connections or default
    arguments.scenarios = arguments.scenarios or (load.LARGE if arguments.fill else load.COMPARABLE)
    return arguments


def main() -> None:
    """Measure and report."""
    arguments = parse()
    load.find_wrk()
    with ExitStack() as stack:
        server_url = stack.enter_context(database.server(arguments.database_url))
        sizes = [arguments.fill, FEW] if arguments.fill else [TASKS]
        data = [stack.enter_context(database.filled(server_url, size)) for size in sizes]
        contenders = [Contender(f"{each.tasks:,} tasks", "service", each) for each in data]
        notes = []
        if not arguments.fill:
            near = data[0]
            if arguments.delay_ms:
                near = replace(near, url=stack.enter_context(proxy.proxied(near.url, arguments.delay_ms)).url)
                notes.append(f"A round trip to the database takes {proxy.round_trip_ms(near.url):.1f} ms.")
            contenders = [Contender(name, name, near) for name in COMMANDS]
        report = Report([contender.name for contender in contenders], notes)
        if not arguments.fill:
            count_trips(data[0], report)
        for number in range(1, arguments.rounds + 1):
            measure_round(f"round {number} of {arguments.rounds}", arguments, contenders, report)
    show("")
    if arguments.json:
        arguments.json.write_text(json.dumps({"arguments": sys.argv[1:], **report.as_json()}, indent=1))
    print(report.table())


def count_trips(data: Dataset, report: Report) -> None:
    """Start every server behind a proxy that counts its round trips to the database."""
    with proxy.proxied(data.url) as proxied:
        for name in COMMANDS:
            show(f"round trips of {name}")
            server = Server(name, name, proxied.url, path=data.paths(1)[0])
            report.trips[name] = server.trips(proxied.trips)
            server.stop()


def measure_round(title: str, arguments: argparse.Namespace, contenders: list[Contender], report: Report) -> None:
    """Start all servers, then measure them alternately, scenario by scenario."""
    with ExitStack() as stack:
        running: list[tuple[Server, Dataset, str]] = []
        for name, command, data in contenders:
            show(f"{title}: start of {name}")
            server = Server(name, command, data.url, path=data.paths(1)[0])
            stack.callback(server.stop)
            report.start_seconds[name].append(server.start_seconds)
            server.check()
            cursor = server.page(f"{data.owner}?limit=50", data.depth // 50) if command == "service" else ""
            load.measure(server, data, cursor, "get", max(arguments.connections), 1)  # warms up
            running.append((server, data, cursor))
        for scenario, connections in product(arguments.scenarios, arguments.connections):
            for server, data, cursor in running:
                if cursor or scenario not in load.SERVICE_ONLY:
                    show(f"{title}: {scenario}, {connections} connections, {server.name}")
                    sample = load.measure(server, data, cursor, scenario, connections, arguments.seconds)
                    report.samples[scenario, connections][server.name].append(sample)
        for server, *_ in running:
            report.memory_mib[server.name].append(server.memory_mib())


if __name__ == "__main__":
    main()
