"""One connection to PostgreSQL that the event loop waits for.

psycopg2 works in its asynchronous mode (psycopg2 docs, "Asynchronous support"): no request needs a thread, and such a
connection is always in autocommit, so that one statement is one round trip.
"""

import asyncio
import select
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ, connection, make_dsn, parse_dsn

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
        self._incoming = select.poll()
        self._incoming.register(raw.fileno(), select.POLLIN)

    @classmethod
    async def open(cls, dsn: str, deadline: float) -> Self:
        """Connect to `dsn` until the event loop's clock shows `deadline`; raises ConnectionLost, TimeoutError."""
        try:
            async with asyncio.timeout_at(deadline):
                raw = psycopg2.connect(await _with_addresses(dsn), async_=True)
                try:
                    await _ready(raw, deadline)
                except BaseException:
                    raw.close()
                    raise
        except (psycopg2.Error, socket.gaierror) as error:
            raise ConnectionLost(error) from error
        return cls(raw)

    def is_usable(self) -> bool:
        """Whether it is young and was not closed from the other side while it lay idle; costs no round trip.

        PostgreSQL says nothing unasked but its farewell, so an idle connection with something to read is lost.
        """
        return time.monotonic() - self._opened < RECYCLE_SECONDS and not self._incoming.poll(0)

    async def execute(self, sql: str, parameters: Mapping[str, Parameter], deadline: float) -> list[tuple[Any, ...]]:
        """Run one statement that returns rows.

        Raises ConnectionLost where the answer never came, TimeoutError where it had not come by the `deadline` (then
        `settle` waits on), else what psycopg2 makes of PostgreSQL's error.
        """
        try:
            self._cursor.execute(sql, parameters)
            await _ready(self._raw, deadline)
            return self._cursor.fetchall()
        except psycopg2.Error as error:
            # A fatal error may be here before the end of the connection that follows it.
            if self._raw.closed or error.diag.severity_nonlocalized in ("FATAL", "PANIC"):
                self.close()
                raise ConnectionLost(error) from error
            raise
        except asyncio.CancelledError:
            self.close()
            raise

    async def settle(self, deadline: float) -> None:
        """Wait until `deadline` for an answer that is late, so that the connection can be used again; else close it.

        Nothing tells the server to stop: psycopg2's `cancel` keeps the whole process waiting for the network.
        """
        try:
            await _ready(self._raw, deadline)
        except (psycopg2.Error, TimeoutError, asyncio.CancelledError):
            self.close()

    def close(self) -> None:
        """Close the connection; does not fail."""
        self.closed = True
        self._raw.close()


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


async def _ready(raw: connection, deadline: float) -> None:
    """Wait until `raw` has done what it was asked to; raises TimeoutError at the `deadline`."""
    loop = asyncio.get_running_loop()
    while (state := raw.poll()) != POLL_OK:
        ready = loop.create_future()
        file = raw.fileno()
        timer = loop.call_at(deadline, _expire, ready)
        if state == POLL_READ:
            loop.add_reader(file, _wake, ready)
        else:
            loop.add_writer(file, _wake, ready)
        try:
            await ready
        finally:
            timer.cancel()
            if state == POLL_READ:
                loop.remove_reader(file)
            else:
                loop.remove_writer(file)


def _expire(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_exception(TimeoutError())


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
