"""The session, which runs statements for a request."""

import logging
from collections.abc import Mapping
from typing import Annotated

import psycopg2
from fastapi import Depends, HTTPException, Request
from opentelemetry import trace
from psycopg2.errors import ReadOnlySqlTransaction

from backend.core.connect import ConnectionLost
from backend.core.connection import Parameter
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN, from_sqlstate, unavailable
from backend.core.pool import Pool
from backend.core.statement import Row, Statement

logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

# Seconds. After a longer wait for a slot, check whether the client has disconnected; the check takes 20 µs.
SHORT_WAIT = 0.1


class Session:
    """Runs statements for one request, each in a transaction of its own; it is not an ORM session."""

    def __init__(self, pool: Pool, request: Request) -> None:
        self._pool = pool
        self._request = request

    async def exec(self, statement: Statement[Row], parameters: Mapping[str, Parameter]) -> list[Row]:
        """Run `statement` in one round trip and return its rows.

        A statement whose connection breaks is retried once if that is safe. Raises HTTPException 503 if the database is
        unreachable or too slow; its detail tells whether something may have been written. Raises HTTPException 499 if
        the client has disconnected during the wait for a slot.
        """
        pool, user = self._pool, parameters.get("user_id")
        started = pool.loop.time()
        try:
            await pool.acquire_slot(user)
        except TimeoutError:
            logger.warning("no free connection slot within %g s", pool.timeout)
            raise unavailable("Too many requests are waiting for the database") from None
        now = pool.loop.time()
        deadline = now + pool.timeout
        may_retry, outcome = True, NOT_WRITTEN
        try:
            if now - started > SHORT_WAIT and await self._request.is_disconnected():
                # nginx's status for a client that has disconnected; only the log contains it.
                raise HTTPException(499, "The client closed the connection.")
            while True:
                connection = await pool.acquire(deadline)
                try:
                    rows = await connection.execute(statement.sql, parameters, deadline)
                    return [statement.row(columns, parameters) for columns in rows]
                except ReadOnlySqlTransaction:
                    if not may_retry:
                        raise
                    # After a failover only new connections reach the new primary.
                    pool.expire_connections()
                except (ConnectionLost, TimeoutError) as error:
                    if statement.retry != "read_only":
                        outcome = MAYBE_WRITTEN
                    if isinstance(error, TimeoutError):
                        # The server should have cancelled the statement: it may not answer on other connections either.
                        pool.expire_connections()
                        raise
                    if not may_retry or statement.retry == "never":
                        raise
                    if isinstance(statement.retry, Statement):
                        statement = statement.retry
                    logger.warning("%s is retried: %s", statement.name, error)
                finally:
                    pool.release(connection)
                may_retry = False
        except psycopg2.Error as error:
            raise from_sqlstate(error, outcome) from error
        except ConnectionLost as lost:
            logger.warning("%s failed: %s", statement.name, lost)
            raise unavailable("The database cannot be reached", outcome) from None
        except TimeoutError:
            logger.warning("%s failed: no connection or no answer within %g s", statement.name, pool.timeout)
            raise unavailable("The database did not answer in time", outcome) from None
        finally:
            pool.release_slot(user)


class TracedSession(Session):
    """A session that creates a span for each statement."""

    async def exec(self, statement: Statement[Row], parameters: Mapping[str, Parameter]) -> list[Row]:
        """Run `statement` as `Session` does."""
        attributes = {
            "db.system.name": "postgresql",
            "db.query.summary": statement.name,
            "db.query.text": statement.sql.decode(),
        }
        with tracer.start_as_current_span(statement.name, kind=trace.SpanKind.CLIENT, attributes=attributes):
            return await super().exec(statement, parameters)


async def get_session(request: Request) -> Session:
    """A session on the process's pool."""
    # Not `request.state`, which takes a tenth of a statement's time.
    pool: Pool = request.scope["state"]["pool"]
    return TracedSession(pool, request) if pool.traced else Session(pool, request)


SessionDep = Annotated[Session, Depends(get_session)]
