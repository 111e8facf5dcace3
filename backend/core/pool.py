"""The connections of a process, and the limits on their use."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from fastapi import HTTPException, Request

from backend.core.connection import Connection, ConnectionLost, split_hosts
from backend.core.errors import unavailable

logger = logging.getLogger(__name__)


class Pool:
    """At most `size` connections to the database at `url`; waiting requests are served first come, first served.

    One user gets at most half of the connection slots, so that slow or blocked statements leave room for other users.
    `timeout` in seconds bounds the wait for a slot and, separately, its use.
    """

    def __init__(self, url: str, size: int, timeout: float) -> None:
        self._hosts = split_hosts(url)
        self._timeout = timeout
        self._slots = asyncio.Semaphore(size)
        self._slots_per_user = (size + 1) // 2
        self._user_slots: WeakValueDictionary[object, asyncio.Semaphore] = WeakValueDictionary()
        # Last in, first out: under light load few connections stay warm and the others expire.
        self._idle: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
        self._open = 0
        self._valid_since = 0.0
        self._closed = False

    @asynccontextmanager
    async def slot(self, user: object, request: Request) -> AsyncIterator[float]:
        """Wait until `user` may use a connection; the value is the deadline for that, in the event loop's time.

        Raises HTTPException 503 after `timeout`, and 499 if the client has disconnected meanwhile.
        """
        user_slots = self._user_slots.get(user)
        if user_slots is None:
            user_slots = self._user_slots[user] = asyncio.Semaphore(self._slots_per_user)
        must_wait = user_slots.locked() or self._slots.locked()
        try:
            async with asyncio.timeout(self._timeout if must_wait else None) as limit, user_slots, self._slots:
                limit.reschedule(None)
                if must_wait and await request.is_disconnected():
                    raise HTTPException(499, "The client closed the connection.")
                yield asyncio.get_running_loop().time() + self._timeout
        except TimeoutError:
            if not limit.expired():
                raise
            logger.warning("no free connection within %g s", self._timeout)
            raise unavailable("All connections to the database are busy") from None

    async def acquire(self, deadline: float) -> Connection:
        """An idle connection, otherwise a new one, otherwise the next one released.

        Raises ConnectionLost if there is none, TimeoutError at the deadline.
        """
        while True:
            try:
                connection = self._idle.get_nowait()
            except asyncio.QueueEmpty:
                if self._closed:
                    raise ConnectionLost("the pool is closed") from None
                try:
                    connection = await Connection.open(self._hosts, deadline)
                    self._open += 1
                    return connection
                except ConnectionLost:
                    # The server may be out of connections while some of ours work.
                    if not self._open:
                        raise
                    async with asyncio.timeout_at(deadline):
                        connection = await self._idle.get()
            if not connection.is_expired(self._valid_since):
                return connection
            connection.close()
            self._open -= 1

    def release(self, connection: Connection) -> None:
        """Take back a connection that `acquire` returned."""
        connection.reset()
        self._idle.put_nowait(connection)
        if self._closed:
            self.close()

    def expire_connections(self) -> None:
        """Replace all connections that are open now before their next use."""
        self._valid_since = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Close the idle connections now and the others when they are released; none is opened any more."""
        self._closed = True
        while not self._idle.empty():
            self._idle.get_nowait().close()
