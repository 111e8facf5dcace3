"""Traces, enabled by the standard variables and received by a collector."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from signal import SIGTERM

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from backend.tests.fork_server import run
from backend.tests.serving import ROOT, as_process

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@dataclass
class Collector:
    """An OTLP/HTTP collector that records what it receives."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    spans: "Queue[list[Span]]" = field(default_factory=Queue)

    def wait_for(self, name: str) -> dict[bytes, Span]:
        """All spans received up to the one called `name`, by id."""
        arrived: dict[bytes, Span] = {}
        while all(span.name != name for span in arrived.values()):
            arrived |= {span.span_id: span for span in self.spans.get(timeout=30)}
        return arrived


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.paths.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                resources = ExportTraceServiceRequest.FromString(body).resource_spans
                scopes = [scope for resource in resources for scope in resource.scope_spans]
                collector.spans.put([span for scope in scopes for span in scope.spans])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # so it is called in the base class
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


def attributes(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_the_trace_of_a_request_contains_its_statement(database_url: str, tasks: str, tmp_path: Path) -> None:
    with collecting() as collector:
        on = {
            "DATABASE_URL": database_url,
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with as_process(tmp_path, env=on, forked=False) as service:
            headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
            created = httpx.post(f"{service.base_url}{tasks}", json={"title": "Buy milk"}, headers=headers)
            assert created.status_code == 201
            spans = collector.wait_for("POST /api/{user_id}/tasks")
    spans = {span.span_id: span for span in spans.values() if span.trace_id.hex() == TRACE_ID}
    (request,) = (span for span in spans.values() if span.kind == Span.SPAN_KIND_SERVER)
    (statement,) = (span for span in spans.values() if span.kind == Span.SPAN_KIND_CLIENT)
    assert request.parent_span_id.hex() == CALLER
    assert attributes(request)["http.response.status_code"] == 201
    above = statement
    while above is not request:
        above = spans[above.parent_span_id]
    assert statement.name == "create task"
    assert request.start_time_unix_nano < statement.start_time_unix_nano
    assert statement.end_time_unix_nano < request.end_time_unix_nano
    assert attributes(statement)["db.system.name"] == "postgresql"
    assert "Buy milk" not in str(spans)


COUNT_SPANS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
import json, os, sys
from backend.core.config import Settings
from backend.main import create_app
from backend.tests.fork_server import run
from backend.tests.serving import in_thread
for environment in json.loads(sys.argv[1]):
    os.environ.update(environment)
    with in_thread(create_app(Settings())) as url:
        print(len(spans.get_finished_spans()))
    for name in environment:
        del os.environ[name]
"""


def test_requests_are_traced_and_exported_only_with_the_switch_an_endpoint_and_the_sdk(
    database_url: str, tmp_path: Path
) -> None:
    with collecting() as collector:
        environments = [
            {"OTEL_SERVICE_NAME": "tasks"},
            {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url},
            {"FASTAPI_OTEL_AUTO_CONFIGURE": "true"},
            {
                "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
                "OTEL_SDK_DISABLED": "true",
            },
        ]
        ended = run(
            [sys.executable, "-c", COUNT_SPANS, json.dumps(environments)],
            cwd=tmp_path,
            env={"DATABASE_URL": database_url, "PYTHONPATH": str(ROOT)},
        )
        assert (ended.returncode, ended.stdout) == (0, "0\n" * len(environments)), ended.stderr
        # Exporters send pending data before the exit.
        assert collector.paths == []


def test_a_disabled_sdk_exports_nothing(database_url: str, tasks: str, tmp_path: Path) -> None:
    with collecting() as collector:
        off = {
            "DATABASE_URL": database_url,
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_SDK_DISABLED": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        }
        with as_process(tmp_path, env=off) as service:
            assert httpx.get(f"{service.base_url}{tasks}").status_code == 200
            service.stop(SIGTERM)
        assert collector.paths == []
