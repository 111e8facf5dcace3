"""uvicorn's HTTP protocol on httptools, with limits, and with requests that offer `Upgrade` served over HTTP/1.1.

uvicorn 0.54 loses a body that follows an `Upgrade` header or parses it as a request (its issue 2722), adds trailers to
the headers, refuses a request before it has answered the earlier ones of the connection, and limits neither a request's
head nor silent connections nor clients that do not read. After a clean shutdown, it raises SIGTERM again. Remove this
file when uvicorn has none of these problems, with httptools or with its newer parser zttp, once zttp is declared ready
for production.
"""

import logging
import signal
import socket
import threading
from contextlib import suppress
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED = 100
HEAD_SECONDS = 10
SEND_SECONDS = 30
DRAIN_SECONDS = 0.2


class HttpProtocol(HttpToolsProtocol):
    """Ignores `Upgrade`. Answers in plain text and closes the connection: 400, 408 or 431 if a request's head is
    malformed, late or too large; 503 if file descriptors run out.
    """

    _head_bytes = 0  # received since the last head or part of a body: the next head, or trailers
    _has_progress = False
    _is_split = False  # the last segment also contains the beginning of the next head
    _draining = False
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)
        client, descriptors = transport.get_extra_info("socket"), getrlimit(RLIMIT_NOFILE)[0]
        with suppress(AttributeError, OSError):  # macOS and UNIX sockets lack the option
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_SECONDS * 1000)
        if client.fileno() >= descriptors - min(64, descriptors // 4):
            logger.error("%d file descriptors are in use, so a connection is refused", client.fileno())
            self._refuse(503)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._running is not None:
            self._running.disconnected = True  # uvicorn marks the newest request of a pipeline only
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        self._has_progress = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Parse the request again as if there were no Upgrade (RFC 9110, section 7.8).
            headers = [b"%s: %s\r\n" % header for header in self.scope["headers"] if header[0] != b"upgrade"]
            line = f"{self.scope['method']} {self.url.decode('latin-1')} HTTP/{self.scope['http_version']}\r\n"
            self.parser = httptools.HttpRequestParser(self)
            self.data_received(b"".join([line.encode("latin-1"), *headers, b"\r\n", data[upgrade.args[0] :]]))
        except httptools.HttpParserError:
            self._refuse(431 if self._head_bytes > MAX_HEAD_BYTES else 400)
        if self._has_progress:
            self._head_bytes, self._is_split = 0, "method" not in self.scope
        elif self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431)

    def _should_upgrade(self) -> bool:
        return True  # so that uvicorn does not start the request before it is parsed again

    def on_headers_complete(self) -> None:
        # The count may include bytes after the head, or miss its first bytes.
        if self._head_bytes > MAX_HEAD_BYTES or self._is_split:
            self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        too_large = self._head_bytes > MAX_HEAD_BYTES
        if too_large or len(self.pipeline) >= MAX_PIPELINED or self.parser.get_method() == b"CONNECT":
            raise httptools.HttpParserError
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):  # RFC 9112, section 3.2
            raise httptools.HttpParserError
        self._unset_keepalive_if_required()
        self._has_progress, self._is_split = True, False
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        if "method" not in self.scope:  # ignore trailers (RFC 9110, section 6.5.1)
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._has_progress = True
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self.flow.write_paused:
            self.pipeline.append((cycle, app))  # at most a full write buffer and one response in memory
        else:
            self._running = cycle
            if self._draining and not self.pipeline:
                cycle.keep_alive = False
            super()._start_asgi_task(cycle, app)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.pipeline and self._running is not None and self._running.response_complete:
            self._start_asgi_task(*self.pipeline.pop())

    def timeout_keep_alive_handler(self) -> None:
        if self.scope is not None and "method" not in self.scope:
            self._refuse(408)
        self.transport.close()

    def shutdown(self) -> None:
        self._draining = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(DRAIN_SECONDS, super().shutdown)  # a request may be in transit
        else:
            super().shutdown()

    def _refuse(self, status: int) -> None:
        cycle = self.cycle
        if self.transport.is_closing():
            return
        if cycle is None or cycle.response_complete or (cycle is self._running and cycle.more_body):
            reason, headers = STATUS_LINE[status][13:], [b"%s: %s\r\n" % h for h in self.server_state.default_headers]
            close = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(reason)
            self.transport.write(b"".join([STATUS_LINE[status], *headers, close, reason]))
            self.transport.close()
        else:  # the client would take the refusal for the response to an earlier request
            cycle.keep_alive = False
            self.flow.pause_reading()


def install() -> None:
    """Make uvicorn use `HttpProtocol` whenever it would use httptools, so not with `--http h11` or `--http zttp`."""
    # uvicorn's workers choose the class before they import the application.
    HttpToolsProtocol.__new__ = lambda cls, **_: object.__new__(HttpProtocol if cls is HttpToolsProtocol else cls)  # type: ignore[method-assign]  # replaces object's


def stop_on_sigterm() -> None:
    """Make SIGTERM stop uvicorn with exit status 0: its own handler raises the signal again after the shutdown."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if isinstance(server, Server) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
