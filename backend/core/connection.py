"""One connection to PostgreSQL that the event loop waits for.

psycopg2 works in its asynchronous mode (psycopg2 docs, "Asynchronous support"): no request needs a thread, and such a
connection is always in autocommit, so that one statement is one round trip.
"""

import asyncio
import math
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, connection, make_dsn, parse_dsn

Parameter = str | int | bool | list[str] | None

# A serverless database closes what lay idle for five minutes, and it is better not to be the one who finds out.
RECYCLE_SECONDS = 240
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
    """No connection could be made, or it broke; the text is libpq's reason in one line."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(" ".join(str(cause).split()))


def connection_string(url: str) -> str:
    """`url` in libpq's own form, with `DEFAULTS` for what it leaves open."""
    given = parse_dsn(url)
    return make_dsn(url, **{name: value for name, value in DEFAULTS.items() if name not in given})


class Connection:
    """An open connection; `open` makes one."""

    def __init__(self, raw: connection) -> None:
        self.closed = False
        self._raw = raw
        self._cursor = raw.cursor()
        self._opened = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None
        # For as long as the connection lives: to come and go with each statement would be six system calls more.
        self._file = raw.fileno()
        self._loop.add_reader(self._file, self._wake)

    @classmethod
    async def open(cls, dsn: str, deadline: float) -> Self:
        """Connect to `dsn` until the event loop's clock shows `deadline`; raises ConnectionLost, TimeoutError."""
        try:
            async with asyncio.timeout_at(deadline):
                raw = psycopg2.connect(await _with_addresses(dsn), async_=True)
                try:
                    await _connected(raw)
                except BaseException:
                    raw.close()
                    raise
        except (psycopg2.Error, socket.gaierror) as error:
            raise ConnectionLost(error) from error
        return cls(raw)

    def is_usable(self) -> bool:
        """Whether it is young and was not closed from the other side while it lay idle; costs no round trip."""
        return not self.closed and time.monotonic() - self._opened < RECYCLE_SECONDS

    async def execute(self, sql: str, parameters: Mapping[str, Parameter], deadline: float) -> list[tuple[Any, ...]]:
        """Run one statement that returns rows.

        Raises ConnectionLost where the answer never came, TimeoutError where it had not come by the `deadline` (then
        `settle` waits on), else what psycopg2 makes of PostgreSQL's error.
        """
        try:
            self._cursor.execute(sql, parameters)
            await self._answered(deadline)
            return self._cursor.fetchall()
        except psycopg2.Error as error:
            if self._raw.closed:
                self.close()
                raise ConnectionLost(error) from error
            raise
        except asyncio.CancelledError:
            self.close()
            raise

    async def settle(self) -> None:
        """Wait for an answer that is late, so that the connection can be used again; close it where none will come.

        Nothing tells the server to stop: psycopg2's `cancel` keeps the whole process waiting for the network.
        """
        try:
            await self._answered(math.inf)
        except (psycopg2.Error, asyncio.CancelledError):
            self.close()

    def close(self) -> None:
        """Close the connection; does not fail."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._file)
            self._raw.close()

    async def _answered(self, deadline: float) -> None:
        """Wait until the statement is done; raises TimeoutError at the `deadline`."""
        while (state := self._raw.poll()) != POLL_OK:
            self._waiting = waiting = self._loop.create_future()
            timer = self._loop.call_at(deadline, _expire, waiting)
            if state == POLL_WRITE:
                self._loop.add_writer(self._file, self._wake)
            try:
                await waiting
            finally:
                timer.cancel()
                if state == POLL_WRITE:
                    self._loop.remove_writer(self._file)
                self._waiting = None

    def _wake(self) -> None:
        if self._waiting is None:
            # PostgreSQL says nothing unasked but its farewell.
            self.close()
        elif not self._waiting.done():
            self._waiting.set_result(None)


async def _with_addresses(dsn: str) -> str:
    # libpq would look the name up while the event loop stands still.
    given = parse_dsn(dsn)
    host = given.get("host", "")
    if not host or host.startswith("/") or "," in host or "hostaddr" in given:
        return dsn
    found = await asyncio.get_running_loop().getaddrinfo(
        host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    return make_dsn(dsn, host=",".join([host] * len(addresses)), hostaddr=",".join(addresses))


async def _connected(raw: connection) -> None:
    loop = asyncio.get_running_loop()
    while (state := raw.poll()) != POLL_OK:
        # From one address to the next libpq changes the socket, but not always its number.
        file, ready = raw.fileno(), asyncio.Event()
        reads = state == POLL_READ
        (loop.add_reader if reads else loop.add_writer)(file, ready.set)
        try:
            await ready.wait()
        finally:
            (loop.remove_reader if reads else loop.remove_writer)(file)


def _expire(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())
