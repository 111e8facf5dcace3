"""A real Better Auth server and the service on one database: sign up, get a token, use the API."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import httpx
import jwt
import psycopg2
import pytest
from alembic import command

from backend.core import auth, schema
from backend.tests import npm
from backend.tests.better_auth import running
from backend.tests.better_auth.running import Person, sign_up
from backend.tests.concurrency import until
from backend.tests.conftest import empty_database
from backend.tests.core.test_schema import configuration
from backend.tests.serving import Service, as_process, in_thread, settings

BETTER_AUTHS_TABLES = {"user", "session", "account", "verification", "jwks"}
OUR_TABLES = {"users", "tasks", "alembic_version"}


def trusting(better_auth: str) -> dict[str, str]:
    """Settings for the users of `better_auth`."""
    return {
        "auth_jwks_url": f"{better_auth}/api/auth/jwks",
        "auth_issuer": better_auth,
        "auth_audience": better_auth,
    }


@contextmanager
def production(better_auth: str, database_url: str, folder: Path) -> Iterator[Service]:
    """Run the service as in production, for the users of `better_auth`, with its most verbose log."""
    others = {"ENVIRONMENT": "production", "DATABASE_URL": database_url, "LOG_LEVEL": "debug"}
    env = {name.upper(): value for name, value in trusting(better_auth).items()} | others
    with as_process(folder, env=env, cwd=folder) as service:
        yield service


@pytest.fixture(scope="module")
def node() -> str:
    return npm.install(running.FOLDER)


@pytest.fixture(scope="module")
def shared_database(node: str, postgres_url: str) -> Iterator[str]:
    """A database for the service and Better Auth, empty at first."""
    with empty_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def better_auth(node: str, shared_database: str) -> Iterator[str]:
    with running.serving(node, shared_database) as (origin, _):
        yield origin


@pytest.fixture(scope="module")
def service(better_auth: str, shared_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that trusts Better Auth."""
    with production(better_auth, shared_database, tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[httpx.Client]:
    """A client of the service without a token of its own."""
    with httpx.Client(base_url=service.base_url, timeout=30) as client:
        yield client


@pytest.fixture
def ada(better_auth: str) -> Person:
    return sign_up(better_auth)


@pytest.fixture
def bob(better_auth: str) -> Person:
    return sign_up(better_auth)


def six_operations(api: httpx.Client, tasks: str, task_id: str, headers: dict[str, str]) -> dict[str, httpx.Response]:
    """The responses of each operation, all on the same task except the creation; the deletion is last."""
    task = f"{tasks}/{task_id}"
    return {
        "create_task": api.post(tasks, json={"title": "Call the bank"}, headers=headers),
        "list_tasks": api.get(tasks, headers=headers),
        "get_task": api.get(task, headers=headers),
        "update_task": api.put(task, json={"title": "Call the baker"}, headers=headers),
        "toggle_task": api.patch(f"{task}/complete", headers=headers),
        "delete_task": api.delete(task, headers=headers),
    }


def create(api: httpx.Client, person: Person) -> str:
    """Create a task as the person; returns its id."""
    created = api.post(person.tasks, json={"title": "Water the plants"}, headers=person.authorization)
    assert created.status_code == 201, created.text
    task_id: str = created.json()["id"]
    return task_id


def all_tasks(api: httpx.Client, person: Person) -> object:
    """The person's tasks, read with their token."""
    listed = api.get(person.tasks, headers=person.authorization)
    assert listed.status_code == 200, listed.text
    return listed.json()


def test_two_users_can_use_the_six_operations_on_their_own_tasks(api: httpx.Client, ada: Person, bob: Person) -> None:
    for person in ada, bob:
        task_id = create(api, person)
        answers = six_operations(api, person.tasks, task_id, person.authorization)
        assert {name: answer.status_code for name, answer in answers.items()} == {
            "create_task": 201,
            "list_tasks": 200,
            "get_task": 200,
            "update_task": 200,
            "toggle_task": 200,
            "delete_task": 204,
        }
        created = answers["create_task"].json()
        assert created["user_id"] == person.id
        assert [task["id"] for task in answers["list_tasks"].json()] == [created["id"], task_id]
        assert answers["toggle_task"].json()["title"] == "Call the baker"
        assert answers["toggle_task"].json()["completed"] is True
        assert all_tasks(api, person) == [created]


def test_the_tasks_of_another_user_are_403(api: httpx.Client, ada: Person, bob: Person) -> None:
    task_id = create(api, ada)
    before = all_tasks(api, ada)
    answers = six_operations(api, ada.tasks, task_id, bob.authorization)
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(answers, 403)
    assert all_tasks(api, ada) == before
    under_his_own_path = api.get(f"{bob.tasks}/{task_id}", headers=bob.authorization)
    assert under_his_own_path.status_code == 404


def test_without_a_token_every_operation_is_401(api: httpx.Client, ada: Person) -> None:
    task_id = create(api, ada)
    before = all_tasks(api, ada)
    for answer in six_operations(api, ada.tasks, task_id, {}).values():
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert isinstance(answer.json()["detail"], str)
    assert all_tasks(api, ada) == before


def test_no_log_line_contains_a_token_or_personal_data(better_auth: str, service: Service, api: httpx.Client) -> None:
    person = sign_up(better_auth)
    claims = jwt.decode(person.token, options={"verify_signature": False})
    assert (claims["sub"], claims["name"], claims["email"]) == (person.id, person.name, person.email)
    create(api, person)
    assert api.get(f"/api/{uuid4()}/tasks", headers=person.authorization).status_code == 403
    forged = {"Authorization": person.authorization["Authorization"][:-4] + "AAAA"}
    last = {"X-Request-ID": uuid4().hex}
    assert api.get(person.tasks, headers=forged | last).status_code == 401
    until(lambda: last["X-Request-ID"] in service.log)
    assert service.log.count("/api/{user_id}/tasks") >= 3
    for secret in (*person.token.split("."), person.id, person.name, person.email):
        assert secret not in service.log


def test_alembic_ignores_the_tables_of_better_auth(api: httpx.Client, ada: Person, shared_database: str) -> None:
    create(api, ada)
    command.check(configuration(shared_database))
    connection = psycopg2.connect(shared_database)
    with connection.cursor() as cursor:
        cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        assert {name for (name,) in cursor.fetchall()} == BETTER_AUTHS_TABLES | OUR_TABLES
    connection.close()


def test_better_auth_can_migrate_a_database_with_the_tables_of_the_service_and_its_keys_work_after_it_stops(
    node: str, postgres_url: str
) -> None:
    with empty_database(postgres_url) as url:
        schema.upgrade(url)
        with running.serving(node, url) as (better_auth, process):
            early, late = sign_up(better_auth), sign_up(better_auth)
            with (
                in_thread(settings(url, **trusting(better_auth))) as base_url,
                httpx.Client(base_url=base_url, timeout=30) as api,
            ):
                create(api, early)
                process.kill()
                process.wait()
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{better_auth}/api/auth/jwks")
                create(api, early)
                create(api, late)


def test_a_new_key_is_fetched_with_its_first_token(
    better_auth: str, shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Allow a second fetch right after the first.
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", 0)
    early, late = sign_up(better_auth), sign_up(better_auth)
    with (
        in_thread(settings(shared_database, **trusting(better_auth))) as base_url,
        httpx.Client(base_url=base_url, timeout=30) as api,
    ):
        create(api, early)
        connection = psycopg2.connect(shared_database)
        with connection, connection.cursor() as cursor:
            cursor.execute("""UPDATE jwks SET "expiresAt" = now() - interval '1 second'""")
        connection.close()
        after = sign_up(better_auth)
        keys = [jwt.get_unverified_header(person.token)["kid"] for person in (early, late, after)]
        assert keys[0] == keys[1] != keys[2]
        create(api, after)
        create(api, late)
