"""The results as a Markdown table and as JSON."""

import os
import platform
from collections import defaultdict
from pathlib import Path
from statistics import median

from backend.benchmarks.load import Sample


class Report:
    """The samples of a run. The table compares the first server of `names` with each of the others."""

    def __init__(self, names: list[str], notes: list[str]) -> None:
        self.names = names
        self.notes = notes
        self.samples: dict[tuple[str, int], dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        self.start_seconds: dict[str, list[float]] = defaultdict(list)
        self.memory_mib: dict[str, list[float]] = defaultdict(list)
        self.trips: dict[str, dict[str, float]] = {}
        self._start_ticks = _ticks()

    def table(self) -> str:
        """Medians, and the first server's requests per second divided by each of the others'."""
        first, *others = self.names
        rates, ratios = (f"{name}, 1/s" for name in self.names), (f"× {name}" for name in others)
        columns = [f"p50 ms: {' / '.join(self.names)}", "p99 ms", "CPU ms", "PostgreSQL CPU ms"]
        lines = [["scenario", "connections", *rates, *ratios, *columns]]
        for (scenario, connections), samples in self.samples.items():
            medians = {name: Sample._make(map(median, zip(*taken, strict=True))) for name, taken in samples.items()}
            cells = {
                name: [_text(value) for value in medians[name]] if name in medians else ["–"] * len(Sample._fields)
                for name in self.names
            }
            for name, sample in medians.items():
                cells[name][0] += " !" if sample.rejected or sample.failed else ""
            ratios = (
                f"{medians[first].rps / medians[n].rps:.2f}" if n in medians and medians[n].rps else "–" for n in others
            )
            values = list(zip(*cells.values(), strict=True))
            lines.append([scenario, str(connections), *values[0], *ratios, *map(" / ".join, values[1:5])])
        return "\n".join([_markdown(lines), "", *self._trips_table(), *self._facts(), *self._remarks()])

    def as_json(self) -> dict[str, object]:
        """All samples."""
        return {
            "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "remarks": self._remarks(),
            "start_seconds": self.start_seconds,
            "memory_mib": self.memory_mib,
            "trips": self.trips,
            "results": [
                {
                    "scenario": scenario,
                    "connections": connections,
                    "server": name,
                    "samples": [s._asdict() for s in taken],
                }
                for (scenario, connections), samples in self.samples.items()
                for name, taken in samples.items()
            ],
        }

    def _trips_table(self) -> list[str]:
        if not self.trips:
            return []
        scenarios = list(next(iter(self.trips.values())))
        rows = [[name, *(_text(trips[scenario]) for scenario in scenarios)] for name, trips in self.trips.items()]
        return [_markdown([["round trips to the database", *scenarios], *rows]), ""]

    def _facts(self) -> list[str]:
        starts = ", ".join(f"{name} {median(self.start_seconds[name]):.2f}" for name in self.names)
        memory = ", ".join(f"{name} {median(self.memory_mib[name]):.0f}" for name in self.names)
        return [f"Seconds from start to the first 200: {starts}.", f"MiB of memory after the load: {memory}."]

    def _remarks(self) -> list[str]:
        invalid = [
            f"Not comparable: {scenario}, {connections} connections, {name}: {rejected} rejected, {failed} failed."
            for (scenario, connections), samples in self.samples.items()
            for name, taken in samples.items()
            if (rejected := sum(s.rejected for s in taken)) + (failed := sum(s.failed for s in taken))
        ]
        queued = [
            f"{name} {median(s.queued for samples in self.samples.values() for s in samples.get(name, [])):.0%}"
            for name in self.names
        ]
        stolen, total = (now - then for now, then in zip(_ticks(), self._start_ticks, strict=True))
        return [
            *self.notes,
            *invalid,
            f"Share of time spent waiting for a CPU (slows one event loop more than threads): {', '.join(queued)}.",
            f"CPU steal time (used by other virtual machines of the host): {stolen / max(1, total):.0%}.",
        ]


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def _text(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ticks() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)
