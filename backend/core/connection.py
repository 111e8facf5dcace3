"""A non-blocking PostgreSQL connection driven by the event loop.

psycopg2 runs in asynchronous mode (psycopg2 docs, "Asynchronous support"): no request needs a thread, and a connection
is always in autocommit mode, so that a statement is one round trip.
"""

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Self, TypeVar

import psycopg2
from psycopg2.extensions import (
    POLL_OK,
    POLL_READ,
    POLL_WRITE,
    TRANSACTION_STATUS_IDLE,
    connection,
    make_dsn,
    parse_dsn,
    register_type,
)

from backend.core.types import TIMESTAMPTZ

Parameter = str | int | bool | datetime | list[str] | None
Item = TypeVar("Item")
Result = TypeVar("Result")

# Seconds. Neon closes connections idle for five minutes; replace ours first.
MAX_IDLE = 240
# Seconds between the end of a statement on the server, by statement_timeout, and giving up on its answer.
ANSWER_GRACE = 0.5
SHORT = 4096
DEFAULTS = {
    "application_name": "task-service",
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class ConnectionLost(Exception):
    """A connection could not be opened, or it broke; the text is the reason in one line."""

    def __init__(self, cause: Exception | str) -> None:
        super().__init__(" ".join(str(cause).split()))


def connection_string(url: str) -> str:
    """`url` as a libpq connection string, with `DEFAULTS` for the options it leaves out."""
    given = parse_dsn(url)
    return make_dsn(url, **{name: value for name, value in DEFAULTS.items() if name not in given})


def split_hosts(url: str) -> list[dict[str, str]]:
    """The connection parameters of each host in `url`, in order (PostgreSQL docs, "Specifying Multiple Hosts")."""
    given = parse_dsn(connection_string(url))
    lists = {name: given[name].split(",") for name in ("host", "hostaddr", "port") if name in given}
    hosts = range(max(map(len, lists.values()), default=1))
    return [{**given, **{name: values[i % len(values)] for name, values in lists.items()}} for i in hosts]


class Connection:
    """An open connection; `Connection.open` creates one."""

    def __init__(self, raw: connection) -> None:
        self.closed = False
        self._raw = raw
        self._cursor = raw.cursor()
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._file = raw.fileno()
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLIN)
        self.opened_at = self._last_used = self._loop.time()
        # Once: adding and removing a reader for each statement would take six more system calls.
        self._watch()

    @classmethod
    async def open(cls, hosts: list[dict[str, str]], deadline: float) -> Self:
        """Connect to the first of `hosts` that accepts a connection before `deadline`, in the event loop's time.

        Raises ConnectionLost or TimeoutError.
        """
        try:
            return cls(await _first_success(_connect_to_host, hosts, deadline))
        except TimeoutError:
            raise
        except (psycopg2.Error, OSError) as error:
            raise ConnectionLost(error) from error

    def is_expired(self, valid_since: float) -> bool:
        """Whether it is closed, older than `valid_since` or was idle for too long."""
        if self.closed or self.opened_at < valid_since or self._loop.time() - self._last_used > MAX_IDLE:
            return True
        # uvloop stops watching a socket at its first error, so `_on_readable` does not see every reset.
        return bool(self._poll.poll(0))

    async def execute(self, sql: str, parameters: Mapping[str, Parameter], deadline: float) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; `%(statement_timeout)s` in it is the milliseconds until `deadline`.

        Raises the psycopg2.Error of an error that the server reports. Raises ConnectionLost if the connection breaks
        before the answer and TimeoutError if the answer is later than the deadline and ANSWER_GRACE: both close it.
        """
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_at(deadline + ANSWER_GRACE, self._on_timeout)
        try:
            milliseconds = max(1, int((deadline - self._loop.time()) * 1000))
            self._cursor.execute(sql, {**parameters, "statement_timeout": milliseconds})
            # A short statement always fits into the buffer of an idle socket.
            if len(self._cursor.query or b"") > SHORT and self._raw.poll() == POLL_WRITE:
                self._loop.add_writer(self._file, self._on_writable)
            await waiter
            if self._raw.get_transaction_status() == TRANSACTION_STATUS_IDLE:
                return self._cursor.fetchall()
            raise psycopg2.OperationalError("the session is inside a transaction, so nothing was committed")
        except psycopg2.Error as error:
            # Class 08: a pooler or coordinator in front of the server lost its connection.
            is_idle = self._raw.get_transaction_status() == TRANSACTION_STATUS_IDLE
            if is_idle and not (error.pgcode or "").startswith("08"):
                raise
            self.close()
            raise ConnectionLost(error) from error
        except (TimeoutError, asyncio.CancelledError):
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None
            self._last_used = self._loop.time()

    def close(self) -> None:
        """Close the connection; does not fail."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._file)
            self._loop.remove_writer(self._file)
            self._raw.close()

    def _watch(self) -> None:
        if not self.closed:
            self._loop.remove_reader(self._file)
            self._loop.add_reader(self._file, self._on_readable)

    def _on_readable(self) -> None:
        if self._waiter is None:
            # An idle server connection becomes readable only when the server closes it.
            self.close()
        elif not self._waiter.done():
            try:
                # Reads here and not in the waiting task: the asyncio loop would report the same bytes twice.
                if self._raw.poll() == POLL_OK:
                    self._waiter.set_result(None)
                else:
                    # uvloop stops watching a socket at its first error, after this call.
                    self._loop.call_soon(self._watch)
            except psycopg2.Error as error:
                self._waiter.set_exception(error)

    def _on_writable(self) -> None:
        if self._raw.poll() != POLL_WRITE:
            self._loop.remove_writer(self._file)

    def _on_timeout(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())


async def _first_success(
    connect: Callable[[Item, float], Awaitable[Result]], targets: list[Item], deadline: float
) -> Result:
    """Try `targets` in order, each for an equal share of the time left, and move the first success to the front."""
    loop = asyncio.get_running_loop()
    # A copy, because concurrent calls reorder the list.
    for position, target in enumerate(list(targets)):
        until = loop.time() + (deadline - loop.time()) / (len(targets) - position)
        try:
            async with asyncio.timeout_at(until):
                result = await connect(target, until)
        except (psycopg2.Error, OSError):
            if position == len(targets) - 1:
                raise
        else:
            targets.remove(target)
            targets.insert(0, target)
            return result
    raise AssertionError("the last attempt returns or raises")


async def _connect_to_host(parameters: dict[str, str], deadline: float) -> connection:
    host = parameters.get("host", "")
    if not host or host[0] in "/@" or "hostaddr" in parameters:
        return await _connect(parameters, deadline)
    # libpq's DNS lookup would block the event loop, and libpq never leaves an address that does not answer.
    found = await asyncio.get_running_loop().getaddrinfo(
        host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    addresses = dict.fromkeys(str(address[0]) for *_, address in found)
    return await _first_success(_connect, [{**parameters, "hostaddr": address} for address in addresses], deadline)


async def _connect(parameters: dict[str, str], _: float) -> connection:
    loop = asyncio.get_running_loop()
    raw = psycopg2.connect(make_dsn(**parameters), async_=True)
    try:
        while (state := raw.poll()) != POLL_OK:
            # The file number can change while connecting.
            file, ready = raw.fileno(), asyncio.Event()
            add, remove = (
                (loop.add_reader, loop.remove_reader) if state == POLL_READ else (loop.add_writer, loop.remove_writer)
            )
            add(file, ready.set)
            try:
                await ready.wait()
            finally:
                remove(file)
        register_type(TIMESTAMPTZ, raw)
        if (encoding := raw.get_parameter_status("server_encoding")) != "UTF8":
            raise psycopg2.NotSupportedError(f"the database's encoding is {encoding}, it must be UTF8")
    except BaseException:
        raw.close()
        raise
    return raw
