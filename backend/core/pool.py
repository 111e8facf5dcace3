"""The pool: a process's connections, and the slots that requests wait for."""

import asyncio
from collections import OrderedDict, deque

from backend.core.connect import ConnectionLost, connect, split_hosts
from backend.core.connection import Connection


class Pool:
    """At most `size` connections to the database at `url`, each used by one request at a time.

    Waiting users are served in rotation, each on at most half of the connections, rounded up, so that slow or blocked
    statements leave some for others. `timeout` in seconds bounds the wait for a slot and, separately, its use. If
    `traced`, sessions create a span per statement.
    """

    def __init__(self, url: str, size: int, timeout: float, *, traced: bool = False) -> None:
        self.timeout = timeout
        self.traced = traced
        self._hosts = split_hosts(url)
        self.loop = asyncio.get_running_loop()
        self._size = size
        # The user of each slot in use.
        self._slots: list[object] = []
        self._waiters: OrderedDict[object, deque[asyncio.Future[None]]] = OrderedDict()
        # Last in, first out: under light load a few connections are reused. The others stay open until they are taken
        # and found expired.
        self._idle: list[Connection] = []
        self._released = asyncio.Event()
        self._open_count = 0
        self._valid_since = 0.0
        self._closed = False

    async def acquire_slot(self, user: object) -> None:
        """Take a connection slot for `user`; raises TimeoutError if there is none for `timeout` seconds."""
        if self._take_slot(user):
            return
        waiter = self.loop.create_future()
        self._waiters.setdefault(user, deque()).append(waiter)
        # `asyncio.timeout` takes 4 µs more, and could end a wait that already has its slot.
        timer = self.loop.call_later(self.timeout, _time_out, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and not waiter.exception():
                self.release_slot(user)
            raise
        finally:
            timer.cancel()

    def release_slot(self, user: object) -> None:
        """Release a slot of `user`, and give it to the first waiting user who has fewer than the maximum."""
        self._slots.remove(user)
        for _ in range(len(self._waiters)):
            next_user, waiters = self._waiters.popitem(last=False)
            while waiters and waiters[0].done():
                waiters.popleft()
            if waiters:
                # Last in the rotation, even if the user has the maximum.
                self._waiters[next_user] = waiters
                if self._take_slot(next_user):
                    waiters.popleft().set_result(None)
                    return

    def _take_slot(self, user: object) -> bool:
        if len(self._slots) == self._size or self._slots.count(user) >= (self._size + 1) // 2:
            return False
        self._slots.append(user)
        return True

    async def acquire(self, deadline: float) -> Connection:
        """Return an idle connection, otherwise a new one, otherwise the next one released.

        Raises ConnectionLost if none is open and none can be opened, TimeoutError at the deadline.
        """
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_expired(self._valid_since):
                    return connection
                connection.close()
                self._open_count -= 1
            if self._closed:
                raise ConnectionLost("the pool is closed")
            try:
                connection = Connection(await connect(self._hosts, deadline))
                self._open_count += 1
                return connection
            except ConnectionLost:
                # The server may have no free connection for us: wait for one that another request uses.
                if not self._open_count:
                    raise
            async with asyncio.timeout_at(deadline):
                # `_released` wakes all waiting requests: those without a connection wait again instead of connecting.
                while self._open_count and not self._idle and not self._closed:
                    self._released.clear()
                    await self._released.wait()

    def release(self, connection: Connection) -> None:
        """Take back a connection that `acquire` returned."""
        self._idle.append(connection)
        self._released.set()
        if self._closed:
            self.close()

    def expire_connections(self) -> None:
        """Expire all connections that are open now: each is replaced before its next use."""
        self._valid_since = self.loop.time()

    def close(self) -> None:
        """Close the idle connections now and the others when they are released; open no new ones."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()


def _time_out(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
