"""The OpenAPI document and the documentation pages."""

import json
import re
import shutil
import subprocess
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from backend.core import route
from backend.tests import contract
from backend.tests.issuer import publishing
from backend.tests.serving import in_thread, settings

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


def test_the_contract_equals_the_served_document(document: dict[str, Any]) -> None:
    agreed = yaml.safe_load(contract.PATH.read_text("utf-8"))
    assert agreed == document, "outdated: run `python -m backend.tests.contract`"


def test_operation_ids_are_good_method_names(document: dict[str, Any]) -> None:
    named = {
        (method, path): operation["operationId"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/api/")
    }
    assert named == {where: name for where, (name, _) in OPERATIONS.items()}


@pytest.mark.parametrize("where", OPERATIONS, ids=[name for name, _ in OPERATIONS.values()])
def test_every_status_is_documented_with_its_content(document: dict[str, Any], where: tuple[str, str]) -> None:
    method, path = where
    responses = document["paths"][path][method]["responses"]
    assert set(responses) == OPERATIONS[where][1]
    for status, response in responses.items():
        assert response["description"]
        assert ("application/json" in response.get("content", {})) == (status not in ("204", "304"))


def responses(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Each response of the document, by operation and status."""
    return {
        (operation["operationId"], status): response
        for operations in document["paths"].values()
        for operation in operations.values()
        for status, response in operation["responses"].items()
    }


def example(response: dict[str, Any]) -> object:
    shown: object = response["content"]["application/json"]["example"]
    return shown


def test_every_error_is_documented_with_its_schema(document: dict[str, Any]) -> None:
    for (_, status), response in responses(document).items():
        if status < "400":
            continue
        schema = response["content"]["application/json"]["schema"]
        name = "ValidationErrorResponse" if status == "422" else "ErrorResponse"
        assert schema == {"$ref": f"#/components/schemas/{name}"}
        assert set(document["components"]["schemas"][name]["properties"]) == set(example(response))  # type: ignore[call-overload]  # a dict
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_the_examples_of_errors_match_real_responses(
    document: dict[str, Any], client: httpx.Client, tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    created = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
    missing, invalid = f"{tasks}/{uuid4()}", "/api/x/tasks"
    requests: dict[tuple[str, str], tuple[str, str, dict[str, Any]]] = {
        ("list_tasks", "422"): ("GET", invalid, {}),
        ("get_task", "404"): ("GET", missing, {}),
        ("get_task", "422"): ("GET", f"{invalid}/{uuid4()}", {}),
        ("delete_task", "404"): ("DELETE", missing, {}),
        ("delete_task", "412"): ("DELETE", created, {"headers": {"If-Match": '"1"'}}),
        ("delete_task", "422"): ("DELETE", f"{invalid}/{uuid4()}", {}),
        ("update_task", "404"): ("PUT", missing, {"json": {}}),
        ("update_task", "412"): ("PUT", created, {"json": {}, "headers": {"If-Match": '"1"'}}),
        ("toggle_task", "404"): ("PATCH", f"{missing}/complete", {}),
        ("toggle_task", "412"): ("PATCH", f"{created}/complete", {"headers": {"If-Match": '"1"'}}),
    }
    media_type = {"Content-Type": "application/json"}
    with_body = [
        ("create_task", "POST", tasks),
        ("update_task", "PUT", created),
        ("toggle_task", "PATCH", f"{created}/complete"),
    ]
    for name, method, path in with_body:
        requests[name, "400"] = (method, path, {"content": b"{", "headers": media_type})
        requests[name, "413"] = (method, path, {"content": b" " * 65537, "headers": media_type})
        requests[name, "422"] = (method, path, {"json": {"title": "Buy milk", "completed": "yes"}})
    sent = {where: client.request(method, path, **rest) for where, (method, path, rest) in requests.items()}
    assert {where: str(response.status_code) for where, response in sent.items()} == {where: where[1] for where in sent}
    documented = {
        where: example(response) for where, response in responses(document).items() if "400" <= where[1] < "500"
    }
    monkeypatch.setattr(route, "BODY_TIMEOUT", 0.1)
    late = {(name, "408"): _with_incomplete_body(client, method, path) for name, method, path in with_body}
    assert documented == {where: response.json() for where, response in sent.items()} | late


def _with_incomplete_body(client: httpx.Client, method: str, path: str) -> object:
    with closing(HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)) as connection:
        connection.putrequest(method, path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        response = connection.getresponse()
        assert response.status == 408
        return json.loads(response.read())


def test_the_example_of_a_503_matches_a_real_response(document: dict[str, Any]) -> None:
    with in_thread(settings("postgresql://127.0.0.1:1/")) as url, httpx.Client(base_url=url) as client:
        unreachable = [client.get("/health").json(), client.post(f"/api/{uuid4()}/tasks", json={"title": "a"}).json()]
    documented = [example(response) for (_, status), response in responses(document).items() if status == "503"]
    assert documented == unreachable[:1] * len(documented)
    assert unreachable[0] == unreachable[1]


def test_the_examples_of_401_and_403_match_real_responses(database_url: str, user: str) -> None:
    with (
        publishing() as issuer,
        in_thread(settings(database_url, **issuer.settings)) as url,
        httpx.Client(base_url=url) as client,
    ):
        documented = responses(client.get("/openapi.json").json())
        sent = {
            "401": client.get(f"/api/{user}/tasks").json(),
            "403": client.get(f"/api/{user}/tasks", headers=issuer.bearer(str(uuid4()))).json(),
        }
    for status, detail in sent.items():
        examples = [example(response) for (_, other), response in documented.items() if other == status]
        assert examples == [detail] * len(OPERATIONS)


def test_the_description_is_short_and_its_commands_work(
    document: dict[str, Any], client: httpx.Client, user: str
) -> None:
    description = document["info"]["description"]
    assert len(description.splitlines()) <= 25
    commands = re.findall(r"^    (.+)$", description, re.MULTILINE)
    assert commands[0].startswith("TASKS=http://127.0.0.1:8000/api/")
    curls = [command for command in commands if command.startswith("curl ")]
    assert len(curls) == len(commands) - 1
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    tasks = f"{client.base_url}/api/{user}/tasks"
    task_id = client.post(tasks, json={"title": "Buy milk"}).json()["id"]
    statuses = [
        subprocess.run(
            ["bash", "-c", f"{curl} -s -o /dev/null -w '%{{http_code}}'"],
            env={"TASKS": tasks, "ID": task_id, "TOKEN": "x"}, capture_output=True, text=True, check=True,
        ).stdout
        for curl in curls
    ]  # fmt: skip
    assert statuses == ["200", "200", "422", "201", "412"]


def test_tags_and_operations_are_described(document: dict[str, Any]) -> None:
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert {tag for operation in operations for tag in operation["tags"]} == described
    for operation in operations:
        assert 2 <= len(operation["summary"].split()) <= 5
        assert operation["summary"] != operation["operationId"].replace("_", " ").title()
        assert operation["description"].endswith(".")


def test_header_names_are_written_as_in_their_rfcs(document: dict[str, Any]) -> None:
    parameters = [
        parameter
        for path in document["paths"].values()
        for operation in path.values()
        for parameter in operation.get("parameters", [])
    ]
    assert {p["name"] for p in parameters if p["in"] == "header"} == {"Idempotency-Key", "If-Match", "If-None-Match"}
    # Parameters must not be nullable: generated clients would allow null.
    assert all("null" not in json.dumps(parameter["schema"]) for parameter in parameters)
    assert all(parameter["description"] for parameter in parameters)


def test_no_default_in_the_document_makes_another_parameter_invalid(
    document: dict[str, Any], client: httpx.Client, tasks: str
) -> None:
    # Swagger UI sends each documented default.
    parameters = document["paths"][TASKS]["get"]["parameters"]
    defaults = {p["name"]: json.dumps(p["schema"]["default"]) for p in parameters if "default" in p["schema"]}
    for others in ({"completed": "true"}, {"status": "pending"}, {"cursor": f"{'0' * 16}-{'0' * 32}"}):
        assert client.get(tasks, params=defaults | others).status_code == 200


@pytest.mark.parametrize("name", ["TaskCreate", "TaskUpdate", "TaskRead"])
def test_examples_have_the_field_order_of_a_task(
    document: dict[str, Any], client: httpx.Client, tasks: str, name: str
) -> None:
    task = client.post(tasks, json={"title": "Buy milk"}).json()
    schema = document["components"]["schemas"][name]
    assert list(schema["properties"]) == [field for field in task if field in schema["properties"]]
    shown = schema.get("examples", [])
    assert all(list(one) == [field for field in task if field in one] for one in shown)


def test_the_schema_of_a_task_matches_a_task(document: dict[str, Any], client: httpx.Client, tasks: str) -> None:
    shown = document["components"]["schemas"]["TaskRead"]
    task = client.post(tasks, json={"title": "Buy milk"}).json()
    assert list(shown["properties"]) == list(task)
    assert sorted(shown["required"]) == sorted(task)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_other_hosts(client: httpx.Client, page: str) -> None:
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
