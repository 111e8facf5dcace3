"""The session, which runs statements for a request, and the statements' type."""

import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

import psycopg2
from fastapi import Depends, HTTPException, Request
from opentelemetry import trace
from psycopg2.errors import ReadOnlySqlTransaction
from sqlalchemy import make_url
from sqlalchemy.sql import ClauseElement

from backend.core.connect import ConnectionLost
from backend.core.connection import Parameter
from backend.core.errors import MAYBE_WRITTEN, NOT_WRITTEN, from_sqlstate, unavailable
from backend.core.pool import Pool

logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

DIALECT = make_url("postgresql+psycopg2://").get_dialect()()

# Seconds. After a longer wait for a slot, check whether the client has disconnected; the check takes 20 µs.
SHORT_WAIT = 0.1

Row = TypeVar("Row")
Retry = Literal["read_only", "idempotent", "never"]
"""Whether a statement may be retried when a lost connection leaves its outcome unknown: `read_only` writes nothing,
`idempotent` has the same effect twice as once (RFC 9110, section 9.2.2), `never` must not run twice."""


class Statement(Generic[Row]):
    """A SQLAlchemy expression, compiled once; every value in it is a named `bindparam`.

    `name` is for logs and traces. `retry` may also be an idempotent statement that a retry sends instead of this one.
    `row` turns a row's columns and the parameters into an item of `exec`'s result.
    """

    def __init__(
        self,
        name: str,
        expression: ClauseElement,
        retry: "Retry | Statement[Row]",
        row: Callable[[tuple[Any, ...], Mapping[str, Parameter]], Row],
    ) -> None:
        compiled = expression.compile(dialect=DIALECT)
        if any(value is not None for value in compiled.params.values()):
            raise TypeError(f"{name}: a value is not a bindparam: {compiled.params}")
        self.name, self.retry, self.row = name, retry, row
        # Both commands are one message and one implicit transaction: one round trip, and a pooled session stays
        # unchanged. psycopg2 would encode a str for each request, but sends bytes unchanged.
        self.sql = f"SET LOCAL statement_timeout = %(statement_timeout)s; {compiled}".encode()


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
