"""A TCP proxy for PostgreSQL that records messages and injects faults (protocol version 3, without TLS).

It runs in a thread with its own event loop. Its methods are called from other threads and return when they have
taken effect.
"""

import asyncio
import ctypes
import socket
import struct
import threading
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar
from urllib.parse import quote, urlencode

from psycopg2.extensions import parse_dsn

P = ParamSpec("P")
Result = TypeVar("Result")
Ending = Literal["FIN", "shutdown", "RST"]
"""How a connection ends: without a message, with the message of a server that shuts down, or by a reset."""
Cut = Literal["before the statement", "before the answer", "in the answer"]
"""When a connection breaks. In the last two cases the server has executed the statement completely."""
Fault = Cut | Literal["after the answer", "silence before the end of the answer", "shutdown", "error 08006"]
"""`error 08006` replaces the answer of a statement that was executed; the connection remains open."""
Silence = Literal["swallow", "drop"]
"""How a connection becomes silent: its bytes are acknowledged and lost, or its packets are dropped."""

# PostgreSQL docs, "Message Formats": a client may send these before, or instead of, its StartupMessage.
CANCEL, SSL, GSS = (struct.pack("!i", code) for code in (80877102, 80877103, 80877104))
SO_ATTACH_FILTER = 26  # Linux, asm-generic/socket.h


def error_response(severity: str, sqlstate: str, message: str) -> bytes:
    """An ErrorResponse message."""
    fields = f"S{severity}\0V{severity}\0C{sqlstate}\0M{message}\0\0".encode()
    return b"E" + struct.pack("!i", 4 + len(fields)) + fields


def query(sql: str) -> bytes:
    """A Query message."""
    text = sql.encode() + b"\0"
    return b"Q" + struct.pack("!i", 4 + len(text)) + text


SHUTDOWN = error_response("FATAL", "57P01", "terminating connection due to administrator command")


def drop_packets(endpoint: socket.socket) -> None:
    """Let the kernel drop every packet that arrives at a socket, unacknowledged (Linux only)."""
    # One instruction of classic BPF, "return 0": keep nothing of the packet.
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    endpoint.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))


def _in_loop(
    method: "Callable[Concatenate[Proxy, P], Coroutine[Any, Any, Result]]",
) -> "Callable[Concatenate[Proxy, P], Result]":
    @wraps(method)
    def call(self: "Proxy", /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return asyncio.run_coroutine_threadsafe(method(self, *args, **kwargs), self.loop).result(30)

    return call


class Proxy:
    """A running proxy; created by `proxied`."""

    def __init__(self, url: str) -> None:
        given = parse_dsn(url)
        self.upstream = given.pop("host", "localhost"), given.pop("port", "5432")
        self.loop = asyncio.new_event_loop()
        self.port = 0
        self._bound = self._bind()
        self._server: asyncio.Server | None = None
        self.url = f"postgresql://127.0.0.1:{self.port}/?{urlencode(given, quote_via=quote)}"
        self.delay = 0.0
        """Seconds added to each direction."""
        self.connections: set[_Connection] = set()
        self.most_connections = 0
        self.opened = 0
        """The number of connections opened so far."""
        self.max_connections: int | None = None
        """Refuse connections above this number as a server with this `max_connections` does."""
        self.recorded: list[str] = []
        self.faults: list[Fault] = []
        """One fault for each of the next statements."""
        self.ending: Ending = "FIN"
        """How a fault ends the connection."""
        self.client_stopped: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while a fault ends a connection, so that a client sees the last bytes and the end at once."""
        self.flowing = asyncio.Event()
        self.held = threading.Semaphore(0)
        """Counts the client messages held back since `freeze`; `acquire` waits for one."""

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """The messages sent by clients within the block: the SQL of a Query or Parse, the type of any other."""
        recorded = self.recorded = []
        try:
            yield recorded
        finally:
            self.recorded = []

    @_in_loop
    async def cut_idle(self, ending: Ending) -> int:
        """Close all idle connections, as a database that is suspended does; returns their number."""
        idle = [connection for connection in self.connections if connection.idle]
        await asyncio.gather(*(connection.end(ending) for connection in idle))
        return len(idle)

    @_in_loop
    async def silence(self, silence: Silence) -> "set[_Connection]":
        """Silence all open connections, but no new ones; returns them."""
        for connection in self.connections:
            connection.silence(silence)
        return set(self.connections)

    @_in_loop
    async def make_read_only(self) -> int:
        """Let all open connections, but no new ones, refuse to write; returns their number."""
        for connection in self.connections:
            connection.read_only = True
        return len(self.connections)

    @_in_loop
    async def run_in_sessions(self, sql: str) -> list[bytes]:
        """Run `sql` in the server session of each idle connection, unnoticed by its client; returns the raw answers."""
        idle = [connection for connection in self.connections if connection.idle]
        return await asyncio.gather(*(connection.run(sql) for connection in idle))

    @_in_loop
    async def freeze(self) -> None:
        """Hold back all messages from now on: TCP connections are accepted and get no answer."""
        self.held = threading.Semaphore(0)
        self.flowing.clear()

    @_in_loop
    async def thaw(self) -> None:
        """Forward the messages held back and all later ones."""
        self.flowing.set()

    @_in_loop
    async def accept(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(
            lambda *streams: _Connection(self, *streams).forward(), sock=self._bound
        )

    @_in_loop
    async def refuse(self) -> None:
        """Refuse new connections and reset the open ones, as when the database is down."""
        if self._server is not None:
            self._server.close()
            self._server = None
            # Bound but not listening, so that no other process gets the port.
            self._bound = self._bind()
        await asyncio.gather(*(connection.end("RST") for connection in self.connections))

    def _bind(self) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self.port))
        self.port = bound.getsockname()[1]
        return bound

    @_in_loop
    async def close(self) -> None:
        """Cancel all tasks and stop the event loop; must be the last call."""
        self._bound.close()
        going_on = asyncio.all_tasks() - {asyncio.current_task()}
        for task in going_on:
            task.cancel()
        await asyncio.gather(*going_on, return_exceptions=True)
        self.loop.call_soon(self.loop.stop)


class _Connection:
    """A client's connection and the connection to the server opened for it."""

    def __init__(self, proxy: Proxy, reader: StreamReader, writer: StreamWriter) -> None:
        self.idle = False
        self.messages = 0
        """The number of messages the client has sent."""
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self.read_only = False
        self._fault: Fault | None = None
        self._last_bytes = b""
        self._swallows = False
        self._to_server: StreamWriter | None = None
        self._hidden: asyncio.Future[bytes] | None = None

    async def forward(self) -> None:
        """Forward messages in both directions until a side closes or a fault occurs."""
        with suppress(OSError, IncompleteReadError, asyncio.CancelledError):
            host, port = self._proxy.upstream
            path = f"{host}/.s.PGSQL.{port}"
            to_server = asyncio.open_unix_connection(path) if host[0] == "/" else asyncio.open_connection(host, port)
            reader, writer = await to_server
            self._to_server = writer
            try:
                await self._start(reader, writer)
                pumps = [
                    asyncio.create_task(self._forward_requests(writer)),
                    asyncio.create_task(self._forward_answers(reader)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                writer.close()
        with self._proxy.client_stopped() if self._fault else nullcontext():
            self._writer.write(self._last_bytes)
            await self.end(self._proxy.ending if self._fault else "FIN")
        self._proxy.connections.discard(self)

    def silence(self, silence: Silence) -> None:
        """Silence the connection as its client sees it."""
        if silence == "drop":
            drop_packets(self._writer.get_extra_info("socket"))
        self._swallows = True

    async def run(self, sql: str) -> bytes:
        """Run `sql` in the server's session, which the client must not be using; returns the raw answer."""
        assert self._to_server is not None
        self._hidden = asyncio.get_running_loop().create_future()
        self._to_server.write(query(sql))
        return await self._hidden

    async def end(self, ending: Ending) -> None:
        """Close the client's connection; the server's is closed next."""
        if ending == "shutdown":
            self._writer.write(SHUTDOWN)
        if ending == "RST":
            client: socket.socket = self._writer.get_extra_info("socket")
            with suppress(OSError):  # the client has closed the connection
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _start(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            size = await self._reader.readexactly(4)
            packet = await self._reader.readexactly(int.from_bytes(size, "big") - 4)
            if packet[:4] not in (SSL, GSS, CANCEL):
                self._register()
            await self._forward(writer, size + packet)
            if packet[:4] not in (SSL, GSS):
                break
            self._writer.write(await reader.readexactly(1))

    def _register(self) -> None:
        proxy = self._proxy
        if len(proxy.connections) == proxy.max_connections:
            self._writer.write(error_response("FATAL", "53300", "sorry, too many clients already"))
            raise ConnectionRefusedError
        proxy.connections.add(self)
        proxy.opened += 1
        proxy.most_connections = max(proxy.most_connections, len(proxy.connections))

    async def _forward_requests(self, writer: StreamWriter) -> None:
        while True:
            kind, message = await _message(self._reader)
            self.idle = False
            self.messages += 1
            if kind != "p":
                sql = {"Q": message[5:-1], "P": message[5:].partition(b"\0")[2]}.get(kind)
                self._proxy.recorded.append(kind if sql is None else sql.decode())
            if kind in "QP" and self._proxy.faults:
                self._fault = self._proxy.faults.pop(0)
                if self._fault == "before the statement":
                    return
                if self._fault == "shutdown":
                    self._last_bytes = SHUTDOWN
                    return
            if kind == "Q" and self.read_only:
                # Part of the message's transaction, so that a pooler's session stays unchanged.
                message = query("SET LOCAL transaction_read_only = on;" + message[5:-1].decode())
            if not self._swallows:
                await self._forward(writer, message)

    async def _forward(self, writer: StreamWriter, message: bytes) -> None:
        if not self._proxy.flowing.is_set():
            self._proxy.held.release()
        await self._delay()
        writer.write(message)

    async def _forward_answers(self, reader: StreamReader) -> None:
        answer = b""
        with suppress(IncompleteReadError):
            while True:
                kind, message = await _message(reader)
                answer += message
                # Forward each answer as a whole, so that it is delayed once.
                # During authentication, forward each message that needs a reply.
                if kind not in "RZ":
                    continue
                if self._fault == "error 08006":
                    answer, self._fault = error_response("ERROR", "08006", "server connection lost") + message, None
                if self._fault is not None:
                    break
                await self._delay()
                if self._hidden is not None:
                    self._hidden.set_result(answer)
                    self._hidden = None
                elif not self._swallows:
                    self.idle = kind == "Z"
                    self._writer.write(answer)
                answer = b""
        await self._delay()
        if self._fault == "silence before the end of the answer":
            self._writer.write(answer[: -len(message)])
            await asyncio.Event().wait()
        end = {"before the answer": 0, "in the answer": len(answer) // 2}.get(str(self._fault), len(answer))
        self._last_bytes = answer[:end]

    async def _delay(self) -> None:
        await asyncio.sleep(self._proxy.delay)
        await self._proxy.flowing.wait()


async def _message(reader: StreamReader) -> tuple[str, bytes]:
    head = await reader.readexactly(5)
    return chr(head[0]), head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """Run a proxy in front of the database at `url`; clients connect to the proxy's own `url`."""
    proxy = Proxy(url)
    thread = threading.Thread(target=proxy.loop.run_forever, daemon=True)
    thread.start()
    proxy.accept()
    proxy.thaw()
    try:
        yield proxy
    finally:
        proxy.refuse()
        proxy.close()
        thread.join()
        proxy.loop.close()


@contextmanager
def silent_host(address: str, silence: Silence, port: int = 0) -> Iterator[int]:
    """A host that accepts connections and never answers, or that drops all packets; its port."""
    with socket.create_server((address, port)) as listening:
        if silence == "drop":
            drop_packets(listening)
        yield listening.getsockname()[1]
