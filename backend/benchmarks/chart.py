"""`python -m backend.benchmarks.chart results.json speed.svg`: a chart of requests per second and round trips."""

import json
import sys
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

CONNECTIONS = 16
SCENARIOS = ("get", "list-50", "create", "update", "toggle", "mix")
NAMES = {
    "service": "This service",
    "bare": "psycopg2, no framework",
    "fastify": "Fastify + Drizzle",
    "nestjs": "NestJS + TypeORM",
    "tutorial": "FastAPI + SQLModel tutorial",
}
# Medium lightness is readable on white and on black.
STYLE = """text { font: 13px system-ui, sans-serif; fill: #7a828c } .bold { font-weight: 600 }
.other { fill: #8b949e; fill-opacity: .5 } .own { fill: #2f81d0 } circle { fill: #7a828c }"""
ROW, LEFT, BAR, TRIPS, WIDTH = 19, 212, 340, 634, 820


def draw(results: dict[str, Any]) -> str:
    """The chart as SVG, from the JSON of a benchmark run; scenarios and servers that were not measured are left out."""
    rates = {
        (result["scenario"], result["server"]): median(sample["rps"] for sample in result["samples"])
        for result in results["results"]
        if result["connections"] == CONNECTIONS
    }
    scale = BAR / max(rates.values())
    shapes = [_text(LEFT, 20, "Requests per second", "bold"), _text(TRIPS, 20, "Database round trips", "bold")]
    y = 20
    for scenario in SCENARIOS:
        servers = [server for server in NAMES if (scenario, server) in rates]
        y += ROW + 10 if servers else 0
        shapes += [_text(0, y, scenario, "bold")] if servers else []
        for server in servers:
            y += ROW
            rate, own = rates[scenario, server], "own" if server == "service" else "other"
            shapes += [
                _text(12, y, NAMES[server], "bold" if own == "own" else ""),
                f'<rect class="{own}" x="{LEFT}" y="{y - 12}" width="{rate * scale:.0f}" height="15" rx="2"/>',
                _text(LEFT + 6 + round(rate * scale), y, f"{rate:,.0f}"),
            ]
            trips = results["trips"].get(server, {}).get(scenario, 0)
            shapes += [f'<circle cx="{TRIPS + 6 + 14 * n}" cy="{y - 4}" r="4.5"/>' for n in range(round(trips))]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 12}" role="img" aria-labelledby="t d">
<title id="t">Requests per second and round trips to the database</title>
<desc id="d">{escape(_description(rates))}</desc>
<style>{STYLE}</style>
{chr(10).join(shapes)}
</svg>
"""


def _description(rates: dict[tuple[str, str], float]) -> str:
    values = ", ".join(f"{scenario} {NAMES[server]} {rate:,.0f}" for (scenario, server), rate in rates.items())
    return f"One process each, {CONNECTIONS} connections, requests per second: {values}."


def _text(x: int, y: int, text: str, style: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{style}">{escape(text)}</text>'


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text())))
