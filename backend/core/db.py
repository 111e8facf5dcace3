"""The session: what runs statements for the routers, on a pool of connections."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import psycopg2
from fastapi import Depends, Request
from opentelemetry import trace

from backend.core.connection import Connection, ConnectionLost, Parameter, connection_string
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN, from_sqlstate, unavailable

logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

Row = TypeVar("Row", bound=NamedTuple)


class Statement(NamedTuple, Generic[Row]):
    """One SQL statement with `%(name)s` parameters: what logs call it, and what its rows are."""

    name: str
    row: type[Row]
    sql: str


Effect = Literal["read", "idempotent", "once"]
"""Whether a statement may be sent again where a broken connection leaves open if it was carried out: `read` writes
nothing, `idempotent` done twice is as done once (RFC 9110, section 9.2.2), `once` must not be repeated."""


class Session:
    """Runs statements, each a transaction of its own, on at most `size` connections; requests take turns in order.

    Nobody waits longer than `timeout` seconds for a turn, nor then for the database. `traced` makes a span of each.
    """

    def __init__(self, url: str, size: int, timeout: float, *, traced: bool = False) -> None:
        self._dsn = connection_string(url)
        self._size = size
        self._timeout = timeout
        self._traced = traced
        self._turns = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._settling: set[asyncio.Task[None]] = set()

    async def fetch(
        self, statement: Statement[Row], parameters: Mapping[str, Parameter], *, effect: Effect
    ) -> list[Row]:
        """Run `statement` in one round trip; its rows.

        A connection that breaks is replaced and the statement repeated once where that does no harm. Raises
        HTTPException 503 where the database cannot be reached, is too slow or lets go: its detail says whether
        something may have been written.
        """
        if not self._traced:
            return await self._in_turn(statement, parameters, effect)
        attributes = {
            "db.system.name": "postgresql",
            "db.query.summary": statement.name,
            "db.query.text": statement.sql,
        }
        with tracer.start_as_current_span(statement.name, kind=trace.SpanKind.CLIENT, attributes=attributes):
            return await self._in_turn(statement, parameters, effect)

    def close(self) -> None:
        """Close the connections that no request uses."""
        for settling in self._settling:
            settling.cancel()
        while self._idle:
            self._idle.pop().close()

    async def _in_turn(
        self, statement: Statement[Row], parameters: Mapping[str, Parameter], effect: Effect
    ) -> list[Row]:
        await self._turn()
        outcome, late = NOT_WRITTEN, False
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            for may_repeat in (effect != "once", False):
                connection = await self._take(deadline)
                before, outcome = outcome, NOT_WRITTEN if effect == "read" else MAYBE_WRITTEN
                try:
                    rows = await connection.execute(statement.sql, parameters, deadline)
                    return [statement.row(*row) for row in rows]
                except psycopg2.Error as error:
                    raise from_sqlstate(error, before) from error
                except ConnectionLost as lost:
                    if not may_repeat:
                        raise
                    logger.warning("%s is repeated: %s", statement.name, lost)
                except TimeoutError:
                    late = True
                    raise
                finally:
                    if not late:
                        self._give_back(connection)
        except ConnectionLost as lost:
            logger.warning("%s failed: %s", statement.name, lost)
            raise unavailable("The database cannot be reached", outcome) from None
        except TimeoutError:
            logger.warning("%s failed: no answer within %g s", statement.name, self._timeout)
            raise unavailable("The database did not answer in time", outcome) from None
        finally:
            if late:
                # The turn ends with the statement, not with the request: closing the connection would not end it, and a
                # slow database would be asked for ever more.
                settling = asyncio.create_task(self._settle(connection))
                self._settling.add(settling)
                settling.add_done_callback(self._settling.discard)
            else:
                self._turns.release()
        raise AssertionError("the last attempt returns or raises")

    async def _turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._turns.acquire()
        except TimeoutError:
            logger.warning("no turn within %g s: all %d connections are busy", self._timeout, self._size)
            raise unavailable("All connections to the database are busy") from None

    async def _settle(self, connection: Connection) -> None:
        await connection.settle()
        self._give_back(connection)
        self._turns.release()

    def _give_back(self, connection: Connection) -> None:
        if not connection.closed:
            self._idle.append(connection)

    async def _take(self, deadline: float) -> Connection:
        # Last in, first out: under little load few connections stay warm and the others may be closed.
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()
        return await Connection.open(self._dsn, deadline)


async def get_session(request: Request) -> Session:
    """The process's session, made at start."""
    session: Session = request.state.session
    return session


SessionDep = Annotated[Session, Depends(get_session)]
