"""What a statement refuses."""

import pytest
import sqlalchemy as sa

from backend.core.statement import Statement
from backend.models.task import Task


def test_a_value_that_is_not_a_bindparam_is_refused_when_the_statement_is_compiled() -> None:
    tasks = sa.select(Task).where(sa.column("title") == "Buy milk")
    with pytest.raises(TypeError, match="list tasks: a value is not a bindparam"):
        Statement("list tasks", tasks, "read_only", lambda columns, _: columns)
