"""The requirements of a distributed PostgreSQL (Citus): each key and each statement contains the user, and only
IMMUTABLE functions compute values from columns.

The statements are recorded on the wire. PostgreSQL parses them, and the checks read its parse trees.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any
from uuid import uuid4

import httpx
import pytest

from backend.models.task import TaskUpdate
from backend.tests.api.test_one_statement import ONE, VARIANTS, Variant, prepare, send
from backend.tests.database import execute
from backend.tests.proxy import proxied
from backend.tests.serving import in_thread, settings

CHANGES = {"title": "b", "description": "c", "completed": True}
NAMED = [dict(chosen) for size in range(1, 4) for chosen in combinations(CHANGES.items(), size)]
FILTERS = [("", "completed=true"), ("", "search=a+b"), ("", "total=true"), ("", "cursor={cursor}", "offset=1")]
MORE = [
    *(Variant("list", "GET", "?" + "&".join(filter(None, chosen))) for chosen in product(*FILTERS)),
    *(Variant("put", "PUT", ONE, 200, {}, named) for named in NAMED),
    *(Variant("put, If-Match", "PUT", ONE, 200, {"If-Match": "{etag}"}, named) for named in NAMED),
    *(Variant("not found", method, f"/{uuid4()}", 404, {"If-Match": "*"}) for method in ("GET", "DELETE")),
    Variant("put, If-Match of another", "PUT", ONE, 412, {"If-Match": '"0"'}, {"title": "c"}),
    Variant("toggle, If-Match of another", "PATCH", ONE + "/complete", 412, {"If-Match": '"0"'}),
    Variant("delete, If-Match of another", "DELETE", ONE, 412, {"If-Match": '"0"'}),
]
TOKEN = re.compile(r'[{}()]|"(?:[^"\\]|\\.)*"|[^\s{}()]+')
# The allowed parts of expressions. Others, such as conversions by input and output functions, call functions too.
KNOWN = {"TARGETENTRY", "VAR", "CONST", "FUNCEXPR", "OPEXPR", "BOOLEXPR", "MINMAXEXPR", "COALESCEEXPR", "RELABELTYPE"}


@dataclass
class Node:
    """A node of a parse tree, as `pg_node_tree` is written: `{KIND :field value ...}`."""

    kind: str
    fields: dict[str, list[Any]]

    def value(self, field: str) -> Any:
        """The first value of a field."""
        return self.fields[field][0]


def parse(text: str) -> list[Any]:
    """Nested lists and nodes of a `pg_node_tree`."""
    stack: list[list[Any]] = [[]]
    for token in TOKEN.findall(text):
        if token in ("{", "("):
            stack.append([])
        elif token == ")":
            closed = stack.pop()
            stack[-1].append(closed)
        elif token == "}":
            kind, *rest = stack.pop()
            node = Node(kind, {})
            for item in rest:
                if isinstance(item, str) and item.startswith(":"):
                    node.fields[item[1:]] = values = []
                else:
                    values.append(item)
            stack[-1].append(node)
        else:
            stack[-1].append(token)
    return stack[0]


def walk(part: object) -> Iterator[Node]:
    """All nodes of a part of a tree."""
    if isinstance(part, Node):
        yield part
        part = list(part.fields.values())
    if isinstance(part, list):
        for item in part:
            yield from walk(item)


@dataclass
class Catalog:
    """The functions and operators that trees refer to by number."""

    tasks: str
    user_id: str
    equal: str
    not_immutable: dict[str, str]

    def are_equal(self, condition: object) -> list[Node] | None:
        """Both sides of a comparison of UUIDs."""
        if isinstance(condition, Node) and condition.kind == "OPEXPR" and condition.value("opfuncid") == self.equal:
            sides: list[Node] = condition.value("args")
            return sides
        return None

    def is_owner(self, node: Node) -> bool:
        """Whether the node is the column `user_id` of tasks, in a query in which that is the only table."""
        return node.kind == "VAR" and node.value("varattno") == self.user_id

    def calls(self, expressions: object) -> Iterator[tuple[str, bool]]:
        """The functions and operators that are not IMMUTABLE, and whether a column is among their arguments."""
        for node in walk(expressions):
            assert node.kind in KNOWN
            number = str((node.fields.get("funcid") or node.fields.get("opfuncid") or [""])[0])
            if number in self.not_immutable:
                yield self.not_immutable[number], any(part.kind == "VAR" for part in walk(node.fields["args"]))


@pytest.fixture(scope="module")
def catalog(database_url: str) -> Catalog:
    [(tasks, user_id, equal)] = execute(
        database_url,
        """
        SELECT 'tasks'::regclass::oid::text, attnum::text, 'uuid_eq'::regproc::oid::text
        FROM pg_attribute WHERE attrelid = 'tasks'::regclass AND attname = 'user_id'
        """,
    )
    functions = execute(database_url, "SELECT oid::text, proname FROM pg_proc WHERE provolatile <> 'i'")
    return Catalog(tasks, user_id, equal, dict(functions))


@pytest.fixture(scope="module")
def statements(database_url: str) -> dict[str, str]:
    """One statement of every form that the task routes send, by its text without values."""
    with proxied(database_url) as proxy, in_thread(settings(proxy.url)) as url, httpx.Client(base_url=url) as client:
        with proxy.recording() as sent:
            for variant in VARIANTS + MORE:
                tasks = f"/api/{uuid4()}/tasks"
                response = send(client, tasks, variant, prepare(client, tasks))
                assert response.status_code == variant.status, variant
        sent = [re.sub(r"\ASET LOCAL [^;]*; ", "", sql) for sql in sent if " tasks" in sql]
        return {re.sub(r"'[^']*'|\d+|ARRAY\[[^]]*\]|true|false|NULL", "?", sql): sql for sql in sent}


@pytest.fixture(scope="module")
def queries(database_url: str, statements: dict[str, str]) -> list[tuple[str, Node]]:
    """The parse tree of every query and subquery, beside the statement's SQL."""
    found = []
    for sql in statements.values():
        body = sql.replace("%", "%%")
        [[tree]] = execute(
            database_url,
            f"""
            CREATE FUNCTION pg_temp.parsed() RETURNS SETOF record LANGUAGE sql BEGIN ATOMIC {body}; END;
            SELECT prosqlbody::text FROM pg_proc WHERE oid = 'pg_temp.parsed()'::regprocedure
            """,
        )
        found += [(sql, node) for node in walk(parse(tree)) if node.kind == "QUERY"]
    return found


def test_every_unique_key_contains_the_user(database_url: str) -> None:
    keys = execute(
        database_url,
        """
        SELECT indrelid::regclass::text, indexrelid::regclass::text, array_agg(attname::text)
        FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
        WHERE indisunique AND indrelid IN ('users'::regclass, 'tasks'::regclass) GROUP BY 1, 2 ORDER BY 1, 2
        """,
    )
    assert [name for _, name, _ in keys] == ["pk_tasks", "pk_users"]
    for table, _, columns in keys:
        assert {"tasks": "user_id", "users": "id"}[table] in columns


def test_every_form_of_statement_is_checked(statements: dict[str, str]) -> None:
    forms = set(statements)
    updates = {sql for sql in forms if sql.startswith("UPDATE")}
    # With and without Idempotency-Key.
    assert len({sql for sql in forms if sql.startswith("WITH")}) == 2
    assert len({sql for sql in forms if sql.startswith("DELETE")}) == 2
    assert set(CHANGES) == set(TaskUpdate.model_fields)
    # Every choice of fields and the toggle, each with and without If-Match.
    assert len(updates) == 2 * (len(NAMED) + 1)
    # Every choice of filters, and the single task.
    assert len(forms - updates) == 2 + 2 + 2**4 + 1


def test_only_immutable_functions_compute_what_is_returned_or_set(
    queries: list[tuple[str, Node]], catalog: Catalog
) -> None:
    for sql, query in queries:
        assert list(catalog.calls(query.fields["returningList"])) == [], sql
        written = [query.fields["targetList"]] if query.value("commandType") == "2" else []
        if isinstance(conflict := query.value("onConflict"), Node):
            written.append(conflict.fields["onConflictSet"])
        assert [name for name, of_column in catalog.calls(written) if of_column] == [], sql
        targets = {node.value("resname") for node in walk(written) if node.kind == "TARGETENTRY"}
        assert "user_id" not in targets, sql


def test_every_statement_names_the_user(queries: list[tuple[str, Node]], catalog: Catalog) -> None:
    of_tasks = 0
    for sql, query in queries:
        tables = [
            entry for entry in query.value("rtable") if entry != "<>" and entry.fields.get("relid") == [catalog.tasks]
        ]
        if not tables:
            continue
        of_tasks += 1
        if query.value("commandType") == "3":
            assert "user_id" in {target.value("resname") for target in query.value("targetList")}, sql
            if isinstance(conflict := query.value("onConflict"), Node):
                sides = catalog.are_equal(conflict.value("onConflictWhere"))
                assert sides is not None, sql
                assert [catalog.is_owner(side) for side in sides] == [True, True], sql
                assert {side.value("varno") for side in sides} == {"1", "2"}, sql
            continue
        assert len(tables) == 1, sql
        condition = query.value("jointree").value("quals")
        conjunction = condition.kind == "BOOLEXPR" and condition.value("boolop") == "and"
        compared = [catalog.are_equal(each) for each in (condition.value("args") if conjunction else [condition])]
        assert any(sides and catalog.is_owner(sides[0]) and sides[1].kind == "CONST" for sides in compared), sql
    assert of_tasks >= len({sql for sql, _ in queries})
