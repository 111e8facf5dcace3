"""The bare driver: psycopg2 in threads behind an ASGI function, without a framework or validation."""

import asyncio
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

import psycopg2
from starlette.types import Receive, Scope, Send

FIELDS = ("id", "user_id", "title", "description", "completed", "created_at", "updated_at")
COLUMNS = ", ".join(FIELDS)
GET = f"SELECT {COLUMNS} FROM tasks WHERE user_id = %s AND id = %s"
LIST = f"SELECT {COLUMNS} FROM tasks WHERE user_id = %s ORDER BY created_at DESC, id DESC OFFSET %s LIMIT %s"
CREATE = f"""WITH owner AS (INSERT INTO users (id) VALUES (%s) ON CONFLICT DO NOTHING)
    INSERT INTO tasks (user_id, id, title, description) VALUES (%s, %s, %s, %s) RETURNING {COLUMNS}"""
UPDATE = f"""UPDATE tasks SET title = coalesce(%s, title), description = coalesce(%s, description),
    completed = coalesce(%s, completed), version = version + 1, updated_at = now()
    WHERE user_id = %s AND id = %s RETURNING {COLUMNS}"""
TOGGLE = f"""UPDATE tasks SET completed = NOT completed, version = version + 1, updated_at = now()
    WHERE user_id = %s AND id = %s RETURNING {COLUMNS}"""

local = threading.local()


def connect() -> None:
    local.connection = psycopg2.connect(os.environ["DATABASE_URL"])
    local.connection.autocommit = True


threads = ThreadPoolExecutor(10, initializer=connect)


def fetch(sql: str, values: tuple[str | bool | None, ...]) -> list[dict[str, str | bool | None]]:
    with local.connection.cursor() as cursor:
        cursor.execute(sql, values)
        rows = cursor.fetchall()
    return [dict(zip(FIELDS, (*row[:5], row[5].isoformat(), row[6].isoformat()), strict=True)) for row in rows]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    status, sql, values = await parse(scope, receive)
    rows = await asyncio.get_running_loop().run_in_executor(threads, fetch, sql, values)
    content = json.dumps(rows if sql == LIST else rows[0] if rows else None).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status if rows or sql == LIST else 404, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def parse(scope: Scope, receive: Receive) -> tuple[int, str, tuple[str | bool | None, ...]]:
    match scope["method"], scope["path"].split("/")[2:]:
        case "GET", [user, _, task]:
            return 200, GET, (user, task)
        case "GET", [user, _]:
            query = dict(parse_qsl(scope["query_string"].decode()))
            return 200, LIST, (user, query.get("offset", "0"), query.get("limit", "50"))
        case "POST", [user, _]:
            body = await read(receive)
            return 201, CREATE, (user, user, str(uuid4()), body["title"], body.get("description"))
        case "PUT", [user, _, task]:
            body = await read(receive)
            return 200, UPDATE, (body.get("title"), body.get("description"), body.get("completed"), user, task)
        case _, [user, _, task, _]:
            return 200, TOGGLE, (user, task)
    raise ValueError(scope["path"])


async def read(receive: Receive) -> dict[str, Any]:
    content, more = b"", True
    while more:
        message = await receive()
        content, more = content + message["body"], message["more_body"]
    body: dict[str, Any] = json.loads(content)
    return body
