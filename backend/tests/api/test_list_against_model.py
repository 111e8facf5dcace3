"""The list compared with a simple model in Python, over hundreds of random steps."""

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Task = dict[str, Any]
Query = dict[str, str]
Step = tuple[str, dict[str, Any]]

# Wildcards, quotes and braces are ordinary characters in a search, and case is ignored.
WORDS = ["milk", "Milk", "MILKY", "Äpfel", "ÄPFEL", "日本", "50%", "5_0", "a\\b", "\\", "'", '"', "{a,b}", "NULL", "😀"]
PIECES = ["milk", "ILK", "äpfel", "本", "%", "_", "0", "\\", "'", '"', ",", "null", "😀", "nowhere"]
TITLES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
DESCRIPTIONS = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
SEARCHES = st.builds(
    str.join, st.sampled_from([" ", "\t", " \u3000\n"]), st.lists(st.sampled_from(PIECES), min_size=1, max_size=2)
)
FLAGS = st.sampled_from(["true", "false"])
QUERIES = st.fixed_dictionaries({}, optional={"completed": FLAGS, "search": SEARCHES, "total": FLAGS})
LIMITS = st.integers(1, 6)
PICKS = st.integers(0, 99)
TASKS = st.fixed_dictionaries({"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans()})
CHANGES = st.fixed_dictionaries({}, optional={"title": TITLES, "description": DESCRIPTIONS, "completed": st.booleans()})


def _step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """A call of a method of `ModelledUser`."""
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


STEPS = st.one_of(
    _step("create", tasks=st.lists(TASKS, min_size=1, max_size=5)),
    _step("update", pick=PICKS, change=CHANGES),
    _step("toggle", pick=PICKS, completed=st.none() | st.booleans()),
    _step("delete", pick=PICKS),
    _step("page_by_offset", query=QUERIES, limit=LIMITS, offset=st.integers(0, 12)),
    _step("start_walk", query=QUERIES, limit=LIMITS),
    _step("continue_walk", pick=PICKS),
    _step("continue_walk", pick=PICKS),
)


@settings(
    max_examples=25,
    # The same steps in every run.
    derandomize=True,
    database=None,
    deadline=None,
    # Shrinking a failure takes minutes; add Phase.shrink for it.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(first=st.lists(TASKS, max_size=8), steps=st.lists(STEPS, min_size=10, max_size=40))
def test_the_list_behaves_like_the_model(client: httpx.Client, first: list[Task], steps: list[Step]) -> None:
    user = ModelledUser(client)
    user.create(first)
    for name, arguments in steps:
        getattr(user, name)(**arguments)
    user.finish()


@dataclass
class Walk:
    """A walk through pages by cursor that is not finished."""

    query: Query
    limit: int
    next_url: str
    last: Task | None = None


class ModelledUser:
    """A user whose tasks are also kept in a Python list, which is compared with the service."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.path = f"/api/{uuid4()}/tasks"
        self.tasks: list[Task] = []
        self.walks: list[Walk] = []

    def create(self, tasks: list[Task]) -> None:
        for given_ in tasks:
            response = self.client.post(self.path, json=given_)
            assert response.status_code == 201
            task: Task = response.json()
            assert task == task | given_
            assert all(task["id"] != other["id"] for other in self.tasks)
            self.tasks.append(task)

    def update(self, pick: int, change: Task) -> None:
        if task := self._picked(pick):
            response = self.client.put(self._url(task), json=change)
            if change:
                self._assert_changed(response, task, change)
            else:
                assert (response.status_code, response.json()) == (200, task)

    def toggle(self, pick: int, completed: bool | None) -> None:
        if task := self._picked(pick):
            change = {"completed": not task["completed"] if completed is None else completed}
            response = self.client.patch(f"{self._url(task)}/complete", json=None if completed is None else change)
            self._assert_changed(response, task, change)

    def delete(self, pick: int) -> None:
        if task := self._picked(pick):
            assert self.client.delete(self._url(task)).status_code == 204
            self.tasks.remove(task)
            assert self.client.get(self._url(task)).status_code == 404

    def page_by_offset(self, query: Query, limit: int, offset: int) -> None:
        expected = self._matching(query)
        page = self.client.get(self.path, params={**query, "limit": limit, "offset": offset})
        self._assert_page(page, query, limit, expected[offset:])
        assert set(page.links) - {"next"} == ({"first", "prev"} if offset else {"first"})
        positions: dict[str | None, int] = {"first": 0, "prev": max(0, offset - limit), "next": offset + limit}
        for relation, target in page.links.items():
            self._assert_page(self.client.get(target["url"]), query, limit, expected[positions[relation] :])

    def start_walk(self, query: Query, limit: int) -> None:
        self.walks.append(Walk(query, limit, str(httpx.URL(self.path, params={**query, "limit": limit}))))
        self.continue_walk(0)

    def continue_walk(self, pick: int) -> None:
        """Fetch the next page of a walk: the tasks after the last one seen, after any changes meanwhile."""
        if not self.walks:
            return
        walk = self.walks[-1 - pick % len(self.walks)]
        page = self.client.get(walk.next_url)
        rest = [
            task for task in self._matching(walk.query) if walk.last is None or _position(task) < _position(walk.last)
        ]
        self._assert_page(page, walk.query, walk.limit, rest)
        assert set(page.links) <= {"next"}
        if page.links:
            walk.next_url, walk.last = page.links["next"]["url"], page.json()[-1]
        else:
            self.walks.remove(walk)

    def finish(self) -> None:
        self.start_walk({"total": "true"}, 100)
        while self.walks:
            self.continue_walk(0)

    def _matching(self, query: Query) -> list[Task]:
        """The tasks that match, newest first."""
        words = query.get("search", "").lower().split()
        found = [
            task
            for task in self.tasks
            if query.get("completed") in (None, str(task["completed"]).lower())
            and all(word in task["title"].lower() for word in words)
        ]
        return sorted(found, key=_position, reverse=True)

    def _assert_page(self, page: httpx.Response, query: Query, limit: int, rest: list[Task]) -> None:
        """Assert that the page contains the first tasks of `rest`, the total if requested, and a link to the next page
        if there are more tasks.
        """
        assert page.status_code == 200
        assert page.json() == rest[:limit]
        assert ("next" in page.links) == (len(rest) > limit)
        total = str(len(self._matching(query))) if query.get("total") == "true" else None
        assert page.headers.get("X-Total-Count") == total

    def _assert_changed(self, response: httpx.Response, task: Task, change: Task) -> None:
        """Assert that the response is the task with this change and a later `updated_at`; apply it to the model."""
        assert response.status_code == 200
        changed = response.json()
        assert changed == task | change | {"updated_at": changed["updated_at"]}
        assert changed["updated_at"] > task["updated_at"]
        self.tasks[self.tasks.index(task)] = changed

    def _picked(self, pick: int) -> Task | None:
        return self.tasks[pick % len(self.tasks)] if self.tasks else None

    def _url(self, task: Task) -> str:
        return f"{self.path}/{task['id']}"


def _position(task: Task) -> tuple[str, str]:
    return task["created_at"], task["id"]
