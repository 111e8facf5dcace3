"""Hostile strings, encodings, sizes and speeds: no 500, nothing echoed, nothing altered."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx
import pytest

from backend.tests.concurrency import until
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings

NAUGHTY: list[str] = json.loads((Path(__file__).parents[1] / "data" / "naughty-strings.json").read_text("utf-8"))
# Unicode's White_Space; Python's str.strip() also removes U+001C to U+001F.
WHITE_SPACE = (
    "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
MARK = "mArKeR"
LARGEST = 64 * 1024
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def task(client: httpx.Client, tasks: str) -> str:
    """The path of a pending task without a description."""
    created = client.post(tasks, json={"title": "Buy milk"})
    assert created.status_code == 201
    location: str = created.headers["Location"]
    return location


def _assert_refused(response: httpx.Response, status: int) -> None:
    """Assert an error of this status that does not echo the marker."""
    assert_error(response, status)
    assert MARK not in response.text
    assert MARK not in str(response.headers)


# Strings


def test_every_string_is_stored_unchanged_as_description(client: httpx.Client, tasks: str) -> None:
    for text in NAUGHTY:
        created = client.post(tasks, json={"title": "a", "description": text})
        assert created.status_code == 201, repr(text)
        assert created.json()["description"] == text
    listed: list[str] = []
    page = client.get(tasks, params={"limit": 100})
    listed += [task["description"] for task in page.json()]
    while "next" in page.links:
        page = client.get(page.links["next"]["url"])
        listed += [task["description"] for task in page.json()]
    assert listed == NAUGHTY[::-1]


def test_every_string_is_stored_as_title_without_surrounding_white_space_and_found(
    client: httpx.Client, tasks: str
) -> None:
    for text in NAUGHTY:
        escaped = json.dumps({"title": text})
        created = client.post(tasks, content=escaped, headers=JSON)
        title = text.strip(WHITE_SPACE)
        if not 1 <= len(title) <= 255:
            _assert_refused(created, 422)
            continue
        assert created.status_code == 201, repr(text)
        assert created.json()["title"] == title
        found = client.get(tasks, params={"search": " ".join(title.split()[:10]), "limit": 1})
        assert found.status_code == 200, repr(text)
        assert [task["id"] for task in found.json()] == [created.json()["id"]], repr(text)


def test_every_string_is_a_search_that_finds_only_titles_with_it(client: httpx.Client, tasks: str) -> None:
    assert client.post(tasks, json={"title": "\u2620"}).status_code == 201
    for text in NAUGHTY:
        found = client.get(tasks, params={"search": text})
        if 1 <= len(text) <= 255 and len(text.split()) <= 10:
            assert found.status_code == 200, repr(text)
            assert len(found.json()) == (0 if text.split() else 1), repr(text)
        else:
            _assert_refused(found, 422)


def test_every_string_is_harmless_in_a_path(client: httpx.Client) -> None:
    answers = set()
    for text in NAUGHTY:
        marked = quote(MARK + text, safe="")
        response = client.patch(f"/api/{marked}/tasks/{marked}/complete")
        # A slash makes it another path, even if it is escaped.
        _assert_refused(response, 404 if "/" in text else 422)
        answers.add(response.content)
    assert len(answers) == 2


def test_every_string_is_harmless_in_headers(client: httpx.Client, tasks: str, task: str) -> None:
    before = client.get(task)
    for text in NAUGHTY:
        # White space around a value is not part of it (RFC 9110, section 5.5); control characters cannot be sent.
        value = text.encode().strip(b" \t")
        if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value):
            continue
        created = client.post(tasks, json={"title": "a"}, headers={b"Idempotency-Key": value, b"Authorization": value})
        if 1 <= len(value) <= 255 and re.fullmatch(rb"[ -~]+", value):
            assert created.status_code == 201, repr(text)
        else:
            _assert_refused(created, 422)
        _assert_refused(client.put(task, json={"title": "b"}, headers={b"If-Match": value, b"Origin": value}), 412)
        got = client.get(task, headers={b"If-None-Match": value, b"X-Request-ID": value, b"Accept": value})
        assert got.status_code == 200, repr(text)
        accepted = re.fullmatch(rb"[A-Za-z0-9._-]{1,128}", value)
        assert (got.headers["X-Request-ID"].encode("latin-1") == value) is bool(accepted), repr(text)
    assert client.get(task).content == before.content


@pytest.mark.parametrize("space", WHITE_SPACE, ids=lambda space: f"U+{ord(space):04X}")
def test_white_space_around_a_title_does_not_count_towards_its_length(
    client: httpx.Client, tasks: str, space: str
) -> None:
    created = client.post(tasks, json={"title": space * 2 + "x" * 255 + space * 3})
    assert created.status_code == 201
    assert created.json()["title"] == "x" * 255
    _assert_refused(client.post(tasks, json={"title": space * 3}), 422)


@pytest.mark.parametrize("character", ["x", "é", "ﷺ", "😀"])
def test_lengths_of_text_are_counted_in_code_points(client: httpx.Client, tasks: str, character: str) -> None:
    longest = {"title": character * 255, "description": character * 2000}
    created = client.post(tasks, json=longest)
    assert created.status_code == 201
    assert created.json() == created.json() | longest
    found = client.get(tasks, params={"search": character * 255})
    assert [task["id"] for task in found.json()] == [created.json()["id"]]
    for field, text in longest.items():
        _assert_refused(client.post(tasks, json=longest | {field: text + character}), 422)
    _assert_refused(client.get(tasks, params={"search": character * 256}), 422)


WRONG_PARAMETERS = {
    "search": ["", "\0", f"{MARK}\0", MARK * 43, f"{MARK} " * 11],
    "status": [MARK, "", "Pending", "pending ", "open", "\0"],
    "completed": [MARK, "", "1", "True", "null"],
    "total": [MARK, "", "0", "no"],
    "limit": [MARK, "", "0", "-1", "101", "1.5", "1e1", "\u0661", "9" * 5000],
    "offset": [MARK, "", "-1", "2147483648", "0x1", "9" * 5000],
    "cursor": [
        MARK,
        "",
        "\0",
        "2026",
        f"{'9' * 16}-{'f' * 33}",
        f"{'9' * 16}-{'f' * 32}\n",
        "\u0661" * 16 + "-" + "f" * 32,
    ],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_PARAMETERS.items() for value in values]
)
def test_an_invalid_parameter_is_refused(client: httpx.Client, tasks: str, name: str, value: str) -> None:
    _assert_refused(client.get(tasks, params={name: value}), 422)


@pytest.mark.parametrize("cursor", [f"{'0' * 16}-{'0' * 32}", f"{'9' * 16}-{'f' * 32}"])
def test_a_cursor_of_any_time_is_a_position_in_the_list(
    client: httpx.Client, tasks: str, task: str, cursor: str
) -> None:
    page = client.get(tasks, params={"cursor": cursor})
    assert page.status_code == 200
    assert len(page.json()) == int(cursor.startswith("9"))


# Bodies that are valid JSON with invalid values

TEXTS: list[object] = [0, 1.5, True, [], {}, [MARK], {MARK: MARK}, "\0", f"{MARK}\0", "\ud800", f"{MARK}\udfff"]
FLAGS: list[object] = [0, 1, 0.0, None, "true", "false", "yes", "", [], {}, [True], MARK]
WRONG_FIELDS: list[tuple[str, object]] = [
    *(("title", value) for value in [*TEXTS, None, "", " \u3000", MARK * 43]),
    *(("description", value) for value in [*TEXTS, MARK * 334]),
    *(("completed", value) for value in FLAGS),
]
NOT_OBJECTS: list[object] = [[], [{"title": MARK}], MARK, "", 0, 1e308, True]


@pytest.mark.parametrize(("field", "value"), WRONG_FIELDS)
def test_an_invalid_field_is_refused_and_changes_nothing(
    client: httpx.Client, tasks: str, task: str, field: str, value: object
) -> None:
    before = client.get(tasks)
    body = json.dumps({"title": "a", "description": None} | {field: value})
    _assert_refused(client.post(tasks, content=body, headers=JSON), 422)
    _assert_refused(client.put(task, content=body, headers=JSON), 422)
    if field == "completed":
        _assert_refused(client.patch(f"{task}/complete", content=body, headers=JSON), 422)
    assert client.get(tasks).content == before.content


@pytest.mark.parametrize("value", NOT_OBJECTS)
def test_a_body_that_is_not_an_object_is_refused(client: httpx.Client, tasks: str, task: str, value: object) -> None:
    before = client.get(tasks)
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        _assert_refused(client.request(method, path, json=value), 422)
    assert client.get(tasks).content == before.content


def test_a_body_without_completed_toggles_nothing(client: httpx.Client, task: str) -> None:
    for body in (b'{"complete": true}', b'{"completed": null}', b'{"": {}}', rb'{"\ud800": 1}'):
        _assert_refused(client.patch(f"{task}/complete", content=body, headers=JSON), 422)
    assert client.get(task).json()["completed"] is False


def test_unknown_fields_are_ignored_whatever_their_values(client: httpx.Client, tasks: str) -> None:
    body = r'{"title": "a", "\ud800": "\udfff", "\u0000": "\u0000", "": 1e999, "b": -0.0, "id": 1, "version": []}'
    created = client.post(tasks, content=body, headers=JSON)
    assert created.status_code == 201
    assert MARK not in created.text
    assert set(created.json()) == {"id", "user_id", "title", "description", "completed", "created_at", "updated_at"}


def test_the_last_of_duplicate_keys_is_used(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, content=b'{"title": "first", "title": 1, "title": "last"}', headers=JSON)
    assert created.status_code == 201
    assert created.json()["title"] == "last"
    _assert_refused(client.post(tasks, content=b'{"title": "first", "title": null}', headers=JSON), 422)


def test_an_escaped_surrogate_pair_is_one_character(client: httpx.Client, tasks: str) -> None:
    created = client.post(tasks, content=rb'{"title": "\ud83d\ude00", "description": "\uD834\uDD1E"}', headers=JSON)
    assert created.status_code == 201
    assert (created.json()["title"], created.json()["description"]) == ("😀", "𝄞")


@pytest.mark.parametrize("depth", [10, 500, 900, 950, 1000, 2000, 30_000])
def test_a_deeply_nested_body_is_accepted_or_refused(client: httpx.Client, tasks: str, depth: int) -> None:
    for opening, closing_ in (("[", "]"), ('{"a":', "}")):
        nest = opening * depth + "1" + closing_ * depth
        if len(nest) > LARGEST - 100:
            nest = nest[: LARGEST - 100]
        ignored = client.post(tasks, content='{"title":"a","b":' + nest + "}", headers=JSON)
        if ignored.status_code != 201:
            _assert_refused(ignored, 400)
        as_title = client.post(tasks, content='{"title":' + nest + "}", headers=JSON)
        _assert_refused(as_title, 422 if ignored.status_code == 201 else 400)


# Bodies that are not JSON

VALID = '{"title": "Bür\U0001f95bo", "description": null, "completed": true}'
NOT_JSON = {
    "white space": b" \n",
    "UTF-8 with a BOM": VALID.encode("utf-8-sig"),
    "UTF-16": VALID.encode("utf-16"),
    "UTF-16 without a BOM": VALID.encode("utf-16-le"),
    "UTF-32": VALID.encode("utf-32"),
    "UTF-32 without a BOM": VALID.encode("utf-32-be"),
    "UTF-7": b'{"title": "+AGE-' + b'", "b": +IiI-}',
    "Latin-1": '{"title": "Bürste"}'.encode("latin-1"),
    "overlong UTF-8": b'{"title": "a\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"title": "a\xed\xa0\x80"}',
    "beyond U+10FFFF": b'{"title": "a\xf4\x90\x80\x80"}',
    "NaN": b'{"title": "a", "completed": NaN}',
    "Infinity": b'{"title": "a", "b": Infinity}',
    "-Infinity": b'{"title": "a", "b": [-Infinity]}',
    "a comma too many": b'{"title": "a",}',
    "a comment": b'{"title": "a" /* b */}',
    "single quotes": b"{'title': 'a'}",
    "no quotes": b'{title: "a"}',
    "a number with a leading zero": b'{"title": "a", "b": 01}',
    "a hexadecimal number": b'{"title": "a", "b": 0x1}',
    "two documents": b'{"title": "a"}{"title": "b"}',
    "a line break in a string": b'{"title": "a\nb"}',
    "U+0000 in a string": b'{"title": "a\0b"}',
    "U+0000 after it": b'{"title": "a"}\0',
    "a wrong escape": rb'{"title": "\x41"}',
    "half an escape": rb'{"title": "\u004"}',
    "a form": b"title=mArKeR&completed=true",
    "XML": b"<title>mArKeR</title>",
    "opened and never closed": b"[" * 60_000,
    "a number of 60,000 digits": b'{"title": "a", "b": ' + b"9" * 60_000 + b"}",
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_is_not_json_is_refused_and_changes_nothing(
    client: httpx.Client, tasks: str, task: str, body: bytes
) -> None:
    before = client.get(tasks)
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        _assert_refused(client.request(method, path, content=body, headers=JSON), 400)
    assert client.get(tasks).content == before.content


def test_a_truncated_body_is_refused(client: httpx.Client, tasks: str) -> None:
    body = VALID.encode()
    for length in range(1, len(body)):
        _assert_refused(client.post(tasks, content=body[:length], headers=JSON), 400)
    _assert_refused(client.post(tasks, content=b"", headers=JSON), 422)
    assert client.get(tasks).json() == []
    assert client.post(tasks, content=body, headers=JSON).status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        "", "text/plain", "text/json", "application/xml", "application/x-www-form-urlencoded", "application/jsonp",
        "multipart/form-data; boundary=mArKeR", "application", "/", ";", "*/*", "application/json-seq",
    ],
)  # fmt: skip
def test_a_body_of_another_media_type_is_refused_and_changes_nothing(
    client: httpx.Client, tasks: str, task: str, content_type: str
) -> None:
    before = client.get(tasks)
    headers = {"Content-Type": content_type} if content_type else {}
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        _assert_refused(
            client.request(method, path, content=f'{{"title": "{MARK}", "completed": true}}', headers=headers), 422
        )
    assert client.get(tasks).content == before.content


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=latin-1", "APPLICATION/JSON", "application/merge-patch+json", "application/json;"],
)
def test_json_is_read_as_utf_8_with_any_charset_parameter(client: httpx.Client, tasks: str, content_type: str) -> None:
    created = client.post(tasks, content='{"title": "Bürste"}'.encode(), headers={"Content-Type": content_type})
    assert created.status_code == 201
    assert created.json()["title"] == "Bürste"


# Sizes and speeds


def test_a_body_of_64_kib_is_accepted_and_one_byte_more_is_not(client: httpx.Client, tasks: str, task: str) -> None:
    largest = b'{"completed": true, "title": "a"}'.ljust(LARGEST)
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        assert client.request(method, path, content=largest, headers=JSON).status_code in (200, 201)
        _assert_refused(client.request(method, path, content=largest + b" ", headers=JSON), 413)
        chunks: Iterator[bytes] = (largest[i : i + 1000] for i in range(0, LARGEST, 1000))
        assert client.request(method, path, content=chunks, headers=JSON).status_code in (200, 201)
        chunks = ((largest + b" ")[i : i + 1000] for i in range(0, LARGEST + 1, 1000))
        _assert_refused(client.request(method, path, content=chunks, headers=JSON), 413)


@pytest.mark.parametrize("length", [LARGEST + 1, 10**9, 10**18])
def test_a_content_length_that_is_too_large_is_refused_before_the_body_is_sent(
    base_url: str, tasks: str, task: str, length: int
) -> None:
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        with closing(_Raw(base_url, method, path, f"Content-Length: {length}")) as raw:
            _assert_refused(raw.response(), 413)


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(base_url: str, tasks: str, task: str) -> None:
    for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
        with closing(_Raw(base_url, method, path, "Transfer-Encoding: chunked")) as raw:
            for _ in range(LARGEST // 4096):
                raw.send(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            raw.send(b"1\r\n \r\n")
            _assert_refused(raw.response(), 413)


def test_slow_bodies_do_not_delay_other_requests(base_url: str, client: httpx.Client, user: str) -> None:
    body = b'{"title": "a"}'
    with ExitStack() as stack:
        slow = [
            stack.enter_context(closing(_Raw(base_url, "POST", f"/api/{user}/tasks", f"Content-Length: {len(body)}")))
            for _ in range(100)
        ]
        for i in range(len(body)):
            for raw in slow:
                raw.send(body[i : i + 1])
            # There are far more slow bodies than connections to the database.
            assert client.post(f"/api/{uuid4()}/tasks", json={"title": "b"}).status_code == 201
        assert {raw.response().status_code for raw in slow} == {201}
    assert len(client.get(f"/api/{user}/tasks", params={"limit": 100}).json()) == 100


def test_a_client_that_disconnects_while_sending_a_body_changes_nothing(
    database_url: str, tasks: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        in_thread(settings(database_url)) as base_url,
        httpx.Client(base_url=base_url, timeout=30) as client,
    ):
        task = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
        before = client.get(tasks)
        for method, path in (("POST", tasks), ("PUT", task), ("PATCH", f"{task}/complete")):
            for framing, part in (
                ("Content-Length: 100", b'{"title": "b", "completed": true}'),
                ("Transfer-Encoding: chunked", b'21\r\n{"title": "b", "completed": true}\r\n'),
            ):
                with closing(_Raw(base_url, method, path, framing)) as raw:
                    raw.send(part)
        until(lambda: len(re.findall(r" (POST|PUT|PATCH) \S+ 400 ", caplog.text)) == 6)
        assert {record.levelname for record in caplog.records} <= {"INFO", "WARNING"}
        assert client.get(tasks).content == before.content


class _Raw:
    """A request on a raw socket: the head is sent at once, the body by `send`."""

    def __init__(self, base_url: str, method: str, path: str, *headers: str) -> None:
        address = urlsplit(base_url)
        assert address.hostname
        assert address.port
        self._socket = socket.create_connection((address.hostname, address.port), timeout=20)
        head = [f"{method} {path} HTTP/1.1", f"Host: {address.netloc}", "Content-Type: application/json", *headers]
        self.send("\r\n".join([*head, "", ""]).encode())

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def response(self) -> httpx.Response:
        """The response, even if the body is not complete."""
        answer = HTTPResponse(self._socket)
        answer.begin()
        with closing(answer):
            return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())

    def close(self) -> None:
        self._socket.close()
