"""Listing tasks: order, filters, pages."""

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import httpx
import pytest

from backend.core import schema
from backend.tests.database import execute
from backend.tests.errors import assert_error
from backend.tests.serving import in_thread, settings


def add(client: httpx.Client, tasks: str, *titles: str, completed: bool = False) -> list[str]:
    """Create tasks in the order of the titles; returns their ids, newest first as in the list."""
    created = [client.post(tasks, json={"title": title, "completed": completed}) for title in titles]
    return [response.json()["id"] for response in reversed(created)]


def ids(page: httpx.Response) -> list[str]:
    assert page.status_code == 200, page.text
    return [task["id"] for task in page.json()]


def titles(page: httpx.Response) -> set[str]:
    assert page.status_code == 200, page.text
    return {task["title"] for task in page.json()}


def walk(client: httpx.Client, url: str) -> Iterator[httpx.Response]:
    """The page at `url` and all following pages."""
    page = client.get(url)
    yield page
    while "next" in page.links:
        page = client.get(page.links["next"]["url"])
        yield page


def parameters(link: dict[str, str]) -> list[tuple[str, str]]:
    return parse_qsl(urlsplit(link["url"]).query, keep_blank_values=True)


def test_the_list_of_a_user_without_tasks_is_empty(client: httpx.Client, tasks: str) -> None:
    add(client, f"/api/{uuid4()}/tasks", "Theirs")
    empty = client.get(tasks)
    assert empty.status_code == 200
    assert empty.json() == []
    assert "Link" not in empty.headers
    assert "X-Total-Count" not in empty.headers


def test_a_listed_task_equals_the_task_fetched_alone(client: httpx.Client, tasks: str) -> None:
    [first] = add(client, tasks, "Buy milk")
    client.put(f"{tasks}/{first}", json={"description": "Zwei – 😀 \"'\\\n"})
    add(client, tasks, "Buy bread", completed=True)
    listed = client.get(tasks).json()
    assert listed == [client.get(f"{tasks}/{task['id']}").json() for task in listed]
    assert len(listed) == 2


@pytest.fixture
def without_indexes(empty_database_url: str) -> Iterator[httpx.Client]:
    """A client of a service whose database uses no index, because an index scan returns tasks in the expected order."""
    schema.upgrade(empty_database_url)
    [(name,)] = execute(empty_database_url, "SELECT current_database()")
    for use in ("indexscan", "indexonlyscan", "bitmapscan"):
        execute(empty_database_url, f"ALTER DATABASE {name} SET enable_{use} = off")
    with in_thread(settings(empty_database_url)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize("way", ["limit=2", "limit=2&offset=0"])
def test_tasks_are_sorted_by_created_at_and_id_descending(
    without_indexes: httpx.Client, tasks: str, user: str, empty_database_url: str, way: str
) -> None:
    client = without_indexes
    older = add(client, tasks, *"abcde")
    # Tasks created on several machines may have the same time.
    execute(empty_database_url, "UPDATE tasks SET created_at = now() - interval '1 s' WHERE user_id = %s", (user,))
    newer = add(client, tasks, "f", "g")
    client.patch(f"{tasks}/{older[2]}/complete")
    assert [task for page in walk(client, f"{tasks}?{way}") for task in ids(page)] == newer + sorted(older)[::-1]


def test_a_page_has_fifty_tasks_unless_limit_is_given(
    client: httpx.Client, tasks: str, user: str, database_url: str
) -> None:
    add(client, tasks, "Buy milk")
    many = "INSERT INTO tasks (id, user_id, title) SELECT gen_random_uuid(), %s, n::text FROM generate_series(1, 100) n"
    execute(database_url, many, (user,))
    for query, length in {"": 50, "?limit=1": 1, "?limit=100": 100, "?offset=0": 50, "?offset=100": 1}.items():
        assert len(ids(client.get(tasks + query))) == length, query
    walked = [ids(page) for page in walk(client, tasks)]
    assert [len(page) for page in walked] == [50, 50, 1]
    assert len({task for page in walked for task in page}) == 101


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "101", "-1", "x", "", "1.5", "9" * 30)),
        *(("offset", value) for value in ("-1", "2147483648", "x", "", "9" * 30)),
        *(("completed", value) for value in ("", "1", "yes", "True", "null")),
        *(("total", value) for value in ("", "1", "on", "TRUE")),
        *(("status", value) for value in ("", "open", "Pending", "true", "all,pending")),
        *(("search", value) for value in ("", "x" * 256, "😀" * 256, "nul\0", "a " * 11)),
        *(("cursor", value) for value in ("", "x", "0", "-", "9" * 50, "\0", "ü" * 49)),
    ],
)
def test_an_invalid_parameter_is_refused(client: httpx.Client, tasks: str, name: str, value: str) -> None:
    assert_error(client.get(tasks, params={name: value}), 422, "query", name)


def test_pages_by_cursor_contain_tasks_of_other_years(
    client: httpx.Client, database_url: str, user: str, tasks: str
) -> None:
    times = [f"{year}-01-01T00:00:00.000001Z" for year in (2286, 2001, 1970)]
    created = add(client, tasks, *(f"created {time}" for time in reversed(times)))
    for task, time in zip(created, times, strict=True):
        execute(database_url, "UPDATE tasks SET created_at = %s WHERE user_id = %s AND id = %s", (time, user, task))
    pages = list(walk(client, f"{tasks}?limit=1"))
    assert [ids(page) for page in pages] == [[task] for task in created]


def test_a_changed_cursor_or_one_with_an_offset_is_refused(client: httpx.Client, tasks: str) -> None:
    add(client, tasks, "a", "b")
    cursor = dict(parameters(client.get(tasks, params={"limit": 1}).links["next"]))["cursor"]
    assert len(ids(client.get(tasks, params={"cursor": cursor}))) == 1
    for changed in (cursor[:-1], cursor + "0", f" {cursor}", f"{cursor}\n", cursor.replace("-", "_")):
        assert_error(client.get(tasks, params={"cursor": changed}), 422, "query", "cursor")
    for offset in (0, 1):
        assert_error(client.get(tasks, params={"cursor": cursor, "offset": offset}), 422, "query", "cursor")
    # The cursor of another user is a position in the list of the request's user.
    assert ids(client.get(f"/api/{uuid4()}/tasks", params={"cursor": cursor})) == []


def test_completed_selects_tasks_by_their_state(client: httpx.Client, tasks: str) -> None:
    opened, done = add(client, tasks, "a", "b"), add(client, tasks, "c", completed=True)
    assert ids(client.get(tasks, params={"completed": "true"})) == done
    assert ids(client.get(tasks, params={"completed": "false"})) == opened
    assert ids(client.get(tasks)) == done + opened


def test_status_selects_tasks_by_their_state(client: httpx.Client, tasks: str) -> None:
    opened, done = add(client, tasks, "a", "b"), add(client, tasks, "c", completed=True)
    for status, expected in {"all": done + opened, "pending": opened, "completed": done}.items():
        page = client.get(tasks, params={"status": status, "total": "true"})
        assert ids(page) == expected
        assert page.headers["X-Total-Count"] == str(len(expected))


@pytest.mark.parametrize("status", ["all", "pending", "completed"])
@pytest.mark.parametrize("completed", ["true", "false"])
def test_status_together_with_completed_is_refused(
    client: httpx.Client, tasks: str, status: str, completed: str
) -> None:
    refused = client.get(tasks, params={"status": status, "completed": completed})
    assert_error(refused, 422, "query", "status")


@pytest.mark.parametrize("way", ["", "&offset=0"])
def test_links_keep_the_status(client: httpx.Client, tasks: str, way: str) -> None:
    opened = add(client, tasks, "a", "b", "c")
    add(client, tasks, "d", completed=True)
    pages = list(walk(client, f"{tasks}?status=pending&limit=2{way}"))
    assert [ids(page) for page in pages] == [opened[:2], opened[2:]]


def test_a_search_has_at_most_ten_words(client: httpx.Client, tasks: str) -> None:
    [task] = add(client, tasks, "a b c d e f g h i j k")
    assert ids(client.get(tasks, params={"search": "a b c d e f g h i j"})) == [task]
    assert_error(client.get(tasks, params={"search": "a b c d e f g h i j k"}), 422, "query", "search")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("milk", {"Buy MILK today", "milky way"}),
        ("MiLk BUY", {"Buy MILK today"}),
        ("  buy\t\u3000milk\n", {"Buy MILK today"}),
        ("ilk to", {"Buy MILK today"}),
        ("milk bread", set()),
        ("ÄRGER", {"Großer Ärger"}),
        ("ärger ro", {"Großer Ärger"}),
        ("ЗАДАЧА", {"задача"}),
        ("%", {"100% sure"}),
        ("0%s", set()),
        ("_", {"snake_case"}),
        ("k_c", set()),
        ("\\", {"C:\\temp"}),
        (":\\T", {"C:\\temp"}),
        ("\\%", set()),
        ("'", {"don't"}),
        ("%(words)s", set()),
        ("secret", set()),
        ("😀" * 255, set()),
        (" \u3000", {"Buy MILK today", "milky way", "Großer Ärger", "задача", "100% sure", "snake_case", "snakeXcase"}
         | {"C:\\temp", "don't"}),
    ],
)  # fmt: skip
def test_every_word_of_search_occurs_in_the_title(
    client: httpx.Client, search: str, found: set[str], searched: str
) -> None:
    assert titles(client.get(searched, params={"search": search})) == found


@pytest.fixture(scope="module")
def searched(client: httpx.Client) -> str:
    """The path of the tasks to search."""
    path = f"/api/{uuid4()}/tasks"
    add(client, path, "Buy MILK today", "milky way", "Großer Ärger", "задача", "100% sure", "snake_case", "snakeXcase")
    add(client, path, "C:\\temp")
    client.post(path, json={"title": "don't", "description": "secret"})
    return path


@pytest.mark.parametrize("way", ["", "&offset=0"])
def test_there_is_a_next_link_only_if_there_are_more_tasks(client: httpx.Client, tasks: str, way: str) -> None:
    add(client, tasks, "a", "b", "c")
    assert "next" not in client.get(f"{tasks}?limit=3{way}").links
    assert "next" not in client.get(f"{tasks}?limit=4{way}").links
    page = client.get(f"{tasks}?limit=2{way}")
    assert "next" in page.links
    assert "next" not in client.get(page.links["next"]["url"]).links
    add(client, tasks, "d", completed=True)
    assert "next" not in client.get(f"{tasks}?limit=3&completed=false{way}").links
    assert "next" not in client.get(f"{tasks}?limit=2&search=d{way}").links


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [
        (0, 2, {"first": 0, "next": 2}),
        (1, 2, {"first": 0, "prev": 0, "next": 3}),
        (2, 2, {"first": 0, "prev": 0, "next": 4}),
        (4, 2, {"first": 0, "prev": 2}),
        (3, 1, {"first": 0, "prev": 2, "next": 4}),
        (5, 2, {"first": 0, "prev": 3}),
        (2147483647, 100, {"first": 0, "prev": 2147483547}),
        (0, 5, {"first": 0}),
    ],
)
def test_pages_by_offset_have_first_prev_and_next_links(
    client: httpx.Client, tasks: str, offset: int, limit: int, expected: dict[str, int]
) -> None:
    created = add(client, tasks, *"abcde")
    page = client.get(tasks, params={"offset": offset, "limit": limit})
    assert ids(page) == created[offset : offset + limit]
    assert {str(name): int(dict(parameters(link))["offset"]) for name, link in page.links.items()} == expected
    assert all(link["url"].startswith(f"{tasks}?") for link in page.links.values())


@pytest.mark.parametrize("way", [[], [("offset", "1")]])
def test_links_keep_the_whole_query(client: httpx.Client, tasks: str, way: list[tuple[str, str]]) -> None:
    add(client, tasks, *(f"50% <a>&b+c; é {n}" for n in range(4)), completed=True)
    filters = [("completed", "true"), ("search", "50% <a>&b+c; É"), ("limit", "2"), ("total", "true")]
    page = client.get(tasks, params=[*way, *filters])
    assert set(page.links) == ({"first", "prev", "next"} if way else {"next"})
    for link in page.links.values():
        assert sorted(parameters(link)[:-1]) == sorted(filters)
        assert parameters(link)[-1][0] == ("offset" if way else "cursor")
        assert client.get(link["url"]).headers["X-Total-Count"] == "4"


@pytest.mark.parametrize("way", ["", "&offset=0"])
def test_pages_contain_every_match_once_and_in_order(client: httpx.Client, tasks: str, way: str) -> None:
    matching: list[str] = []
    for n in range(7):
        matching = add(client, tasks, f"Buy {n}", completed=True) + matching
        add(client, tasks, f"Buy {n}")
        add(client, tasks, f"Sell {n}", completed=True)
    pages = list(walk(client, f"{tasks}?completed=true&search=buy&limit=3&total=true{way}"))
    assert [task for page in pages for task in ids(page)] == matching
    assert [page.headers["X-Total-Count"] for page in pages] == ["7"] * 3


def test_pages_by_cursor_contain_each_task_once_while_others_are_created_and_deleted(
    client: httpx.Client, tasks: str
) -> None:
    created = add(client, tasks, *map(str, range(16)))
    removable, staying = created[::2], created[1::2]
    seen: list[str] = []
    for page in walk(client, f"{tasks}?limit=3"):
        seen += ids(page)
        add(client, tasks, "new")
        # The last task of the page is the one in the cursor.
        for task in {seen[-1], *removable[-1:], *removable[:1]} & set(removable):
            assert client.delete(f"{tasks}/{task}").status_code == 204
            removable.remove(task)
        assert client.patch(f"{tasks}/{staying[-2]}/complete").status_code == 200
    assert len(seen) == len(set(seen))
    assert [task for task in seen if task in staying] == staying


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("", "3"),
        ("&limit=1", "3"),
        ("&offset=2", "3"),
        ("&offset=3", "3"),
        ("&offset=2147483647", "3"),
        ("&completed=true", "1"),
        ("&search=a", "2"),
        ("&status=pending", "2"),
        ("&search=a&completed=true&offset=9", "0"),
        ("&cursor=0000000000000000-00000000000000000000000000000000", "3"),
    ],
)
def test_the_total_counts_all_matches_on_every_page(client: httpx.Client, tasks: str, query: str, total: str) -> None:
    add(client, tasks, "a", "aa")
    add(client, tasks, "b", completed=True)
    assert client.get(f"{tasks}?total=true{query}").headers["X-Total-Count"] == total
    for without in ("", "&total=false"):
        assert "X-Total-Count" not in client.get(f"{tasks}?limit=9{without}{query}").headers
