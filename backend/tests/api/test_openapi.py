"""The OpenAPI document and the pages made of it."""

import re
from typing import Any

import httpx
import pytest
import yaml

from backend.tests import contract

TASKS = "/api/{user_id}/tasks"
TASK = "/api/{user_id}/tasks/{task_id}"
OPERATIONS = {
    ("get", TASKS): ("list_tasks", {"200", "422", "503"}),
    ("post", TASKS): ("create_task", {"201", "400", "408", "413", "422", "503"}),
    ("get", TASK): ("get_task", {"200", "304", "404", "422", "503"}),
    ("put", TASK): ("update_task", {"200", "400", "404", "408", "412", "413", "422", "503"}),
    ("delete", TASK): ("delete_task", {"204", "404", "412", "422", "503"}),
    ("patch", f"{TASK}/complete"): ("toggle_task", {"200", "400", "404", "408", "412", "413", "422", "503"}),
}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    served: dict[str, Any] = client.get("/openapi.json").json()
    return served


def test_the_contract_is_what_is_served(document: dict[str, Any]) -> None:
    agreed = yaml.safe_load(contract.PATH.read_text("utf-8"))
    assert agreed == document, "write it anew: python -m backend.tests.contract"


def test_operations_are_named_for_what_they_do(document: dict[str, Any]) -> None:
    named = {
        (method, path): operation["operationId"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/api/")
    }
    assert named == {where: name for where, (name, _) in OPERATIONS.items()}


@pytest.mark.parametrize("where", OPERATIONS, ids=[name for name, _ in OPERATIONS.values()])
def test_every_status_is_documented_with_its_shape(document: dict[str, Any], where: tuple[str, str]) -> None:
    method, path = where
    responses = document["paths"][path][method]["responses"]
    assert set(responses) == OPERATIONS[where][1]
    for status, response in responses.items():
        assert response["description"]
        assert ("application/json" in response.get("content", {})) == (status not in ("204", "304"))


def test_tasks_are_told_as_they_are(document: dict[str, Any], client: httpx.Client, tasks: str) -> None:
    shown = document["components"]["schemas"]["TaskRead"]
    task = client.post(tasks, json={"title": "Buy milk"}).json()
    assert list(shown["properties"]) == list(task)
    assert sorted(shown["required"]) == sorted(task)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_need_no_other_host(client: httpx.Client, page: str) -> None:
    html = client.get(page)
    assert html.status_code == 200
    assert html.headers["Content-Type"].startswith("text/html")
    needed = re.findall(r"""(?:src|href)=["']([^"']+)["']""", html.text)
    assert any(file.endswith(".js") for file in needed)
    for file in needed:
        assert file.startswith("/")
        assert not file.startswith("//")
        assert client.get(file).status_code == 200, file
    assert "/openapi.json" in html.text
