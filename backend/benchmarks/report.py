"""What was measured, as a Markdown table and as JSON."""

import os
import platform
from collections import defaultdict
from pathlib import Path
from statistics import median

from backend.benchmarks.load import Sample


class Report:
    """The samples of a run. The first of the servers called `names` is compared with the others."""

    def __init__(self, names: list[str], notes: list[str]) -> None:
        self.names = names
        self.notes = notes
        self.samples: dict[tuple[str, int], dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        self.start_seconds: dict[str, list[float]] = defaultdict(list)
        self.memory_mib: dict[str, list[float]] = defaultdict(list)
        self._began = _ticks()

    def table(self) -> str:
        """Medians, and how many times as fast as each of the others the first server is."""
        first, *others = self.names
        speeds, ratios = (f"{name}, 1/s" for name in self.names), (f"× {name}" for name in others)
        all_names = " / ".join(self.names)
        lines = [["scenario", "connections", *speeds, *ratios, f"p50 ms: {all_names}", "p99 ms", "CPU s / 1,000"]]
        for (scenario, connections), samples in self.samples.items():
            seen = {name: Sample._make(map(median, zip(*taken, strict=True))) for name, taken in samples.items()}
            cells = {
                name: [_text(value) for value in seen[name]] if name in seen else ["–"] * len(Sample._fields)
                for name in self.names
            }
            for name, sample in seen.items():
                cells[name][0] += " !" if sample.refused or sample.broken else ""
            ratios = (f"{seen[first].rps / seen[n].rps:.2f}" if n in seen and seen[n].rps else "–" for n in others)
            columns = list(zip(*cells.values(), strict=True))
            lines.append([scenario, str(connections), *columns[0], *ratios, *map(" / ".join, columns[1:4])])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        rows = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
        starts = ", ".join(f"{name} {median(self.start_seconds[name]):.2f}" for name in self.names)
        memory = ", ".join(f"{name} {median(self.memory_mib[name]):.0f}" for name in self.names)
        facts = [f"Seconds from start to the first 200: {starts}.", f"MiB of memory after the load: {memory}."]
        return "\n".join([*rows, "", *facts, *self._remarks()])

    def as_json(self) -> dict[str, object]:
        """Everything, sample by sample."""
        return {
            "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
            "remarks": self._remarks(),
            "start_seconds": self.start_seconds,
            "memory_mib": self.memory_mib,
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

    def _remarks(self) -> list[str]:
        spoilt = [
            f"Not comparable: {scenario}, {connections} connections, {name}: {refused} refused, {broken} broken off."
            for (scenario, connections), samples in self.samples.items()
            for name, taken in samples.items()
            if (refused := sum(s.refused for s in taken)) + (broken := sum(s.broken for s in taken))
        ]
        queued = [
            f"{name} {median(s.queued for samples in self.samples.values() for s in samples.get(name, [])):.0%}"
            for name in self.names
        ]
        stolen, total = (now - then for now, then in zip(_ticks(), self._began, strict=True))
        return [
            *self.notes,
            *spoilt,
            f"Share of the time in line for a CPU, which costs one event loop more than threads: {', '.join(queued)}.",
            f"CPU time that other guests took from this machine: {stolen / max(1, total):.0%}.",
        ]


def _text(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ticks() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)
