"""Statements: SQLAlchemy expressions, compiled once."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import make_url
from sqlalchemy.sql import ClauseElement

from backend.core.connection import Parameter

DIALECT = make_url("postgresql+psycopg2://").get_dialect()()

Row = TypeVar("Row")
Retry = Literal["read_only", "idempotent", "never"]
"""Whether a statement may be retried when a lost connection leaves its outcome unknown: `read_only` writes nothing,
`idempotent` has the same effect twice as once (RFC 9110, section 9.2.2), `never` must not run twice."""


class Statement(Generic[Row]):
    """A SQLAlchemy expression, compiled once; every value in it is a named `bindparam`.

    `name` is for logs and traces. `retry` may also be an idempotent statement that a retry sends instead of this one.
    `row` turns a row's columns and the parameters into an item of the result of `Session.exec`.
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
