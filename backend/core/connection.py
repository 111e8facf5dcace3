"""A non-blocking PostgreSQL connection driven by the event loop.

psycopg2 runs in asynchronous mode (psycopg2 docs, "Asynchronous support"): no request needs a thread, and a connection
is always in autocommit mode, so that a statement is one round trip.
"""

import asyncio
import select
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2.extensions import POLL_OK, TRANSACTION_STATUS_IDLE, connection

from backend.core.connect import ConnectionLost

Parameter = str | int | bool | datetime | list[str] | None

# Seconds. Neon closes connections idle for five minutes; replace ours first.
MAX_IDLE = 240
# Seconds to wait for the answer after statement_timeout has cancelled a statement on the server.
ANSWER_GRACE = 0.5
# Seconds between checks of a connection in use.
CHECK_INTERVAL = 0.1


class Connection:
    """An open connection; `raw` is a result of `backend.core.connect.connect`."""

    def __init__(self, raw: connection) -> None:
        self.closed = False
        self._raw = raw
        self._cursor = raw.cursor()
        self._loop = asyncio.get_running_loop()
        self._waiter = self._loop.create_future()
        self._has_timer = False
        self._fd = raw.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._last_used = self._loop.time()
        # Once: adding and removing a reader for each statement would take six more system calls.
        self._loop.add_reader(self._fd, self._on_ready)

    def is_expired(self, valid_since: float) -> bool:
        """Whether it is closed or readable, was last used at `valid_since` or before, or was idle for too long."""
        if self.closed or self._last_used <= max(valid_since, self._loop.time() - MAX_IDLE):
            return True
        # uvloop stops watching a socket at its first error, so `_on_ready` does not see every reset.
        return bool(self._poll.poll(0))

    async def execute(self, sql: bytes, parameters: Mapping[str, Parameter], deadline: float) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; `%(statement_timeout)s` in it is the milliseconds until `deadline`.

        Raises psycopg2.Error if the server reports an error, ConnectionLost if the connection breaks before the answer,
        and TimeoutError if there is no answer ANSWER_GRACE after `deadline`, checked every CHECK_INTERVAL. The last two
        close the connection.
        """
        now = self._last_used = self._loop.time()
        seconds = max(deadline - now, 0.001)
        give_up_at = now + seconds + ANSWER_GRACE
        try:
            self._cursor.execute(sql, {**parameters, "statement_timeout": int(seconds * 1000)})
            if not self._has_timer:
                self._check()
            state = self._raw.poll()
            while state != POLL_OK:
                if self._loop.time() > give_up_at:
                    raise TimeoutError
                self._waiter = self._loop.create_future()
                await self._waiter
                state = self._raw.poll()
                if state != POLL_OK:
                    # uvloop stops watching a socket at its first error.
                    self._loop.remove_reader(self._fd)
                    self._loop.add_reader(self._fd, self._on_ready)
            if not self._is_idle():
                raise psycopg2.OperationalError("the session is still inside a transaction")
            return self._cursor.fetchall()
        except psycopg2.Error as error:
            # 08… or 40003: a pooler or coordinator lost its connection to the server, or does not know the outcome.
            if self._is_idle() and not (error.pgcode or "").startswith(("08", "40003")):
                raise
            self.close()
            raise ConnectionLost(error) from error
        except (TimeoutError, asyncio.CancelledError):
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; does not fail."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            self._raw.close()

    def _is_idle(self) -> bool:
        return self._raw.get_transaction_status() == TRANSACTION_STATUS_IDLE

    def _on_ready(self) -> None:
        if self._raw.isexecuting():
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif self._poll.poll(0):
            # An idle connection becomes readable only when the server closes it.
            self.close()

    def _check(self) -> None:
        # Wakes `execute` to check the time, and to send the rest of a statement that did not fit into the socket's
        # buffer. One timer for many statements: creating and cancelling one for each takes 5 µs.
        self._has_timer = not self.closed and self._raw.isexecuting()
        if self._has_timer:
            self._on_ready()
            self._loop.call_later(CHECK_INTERVAL, self._check)
