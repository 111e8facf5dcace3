"""When the service fetches the issuer's keys, and how long it uses them and the tokens that it has verified."""

import gzip
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from uuid import uuid4

import httpx
import pytest

from backend.core import auth
from backend.tests.errors import assert_error
from backend.tests.issuer import Answer, Issuer, Key, base64url, bearer, disconnect, drip, publishing, reply
from backend.tests.serving import in_thread, settings

# In seconds, for anything that should happen immediately.
TIMEOUT = 20


class Clock:
    """The clock of the tested code; only tests advance it."""

    def __init__(self) -> None:
        self._monotonic = self._time = 0.0

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._time

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        self._time += seconds

    def begin(self) -> None:
        """Start a test: long after the previous one, at the time at which tokens are issued."""
        self._monotonic += 100_000
        self._time = time.time()


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(auth, "time", clock)
        yield clock


@contextmanager
def trusting(database_url: str, issuer: Issuer) -> Iterator[httpx.Client]:
    """Run a service that trusts the issuer; a client of it."""
    limits = httpx.Limits(max_connections=100)
    with (
        in_thread(settings(database_url, **issuer.settings)) as base_url,
        httpx.Client(base_url=base_url, timeout=TIMEOUT, limits=limits) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def shared_issuer() -> Iterator[Issuer]:
    with publishing() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def api(database_url: str, shared_issuer: Issuer, clock: Clock) -> Iterator[httpx.Client]:
    with trusting(database_url, shared_issuer) as client:
        yield client


@pytest.fixture
def issuer(api: httpx.Client, shared_issuer: Issuer, clock: Clock) -> Issuer:
    """An issuer with a new key, which the service has just fetched."""
    clock.begin()
    shared_issuer.reset_keys()
    assert list_status(api, shared_issuer) == 200
    shared_issuer.reset_counters()
    return shared_issuer


@pytest.fixture
def keyless_issuer(shared_keyless_issuer: Issuer, clock: Clock) -> Issuer:
    """An issuer that never publishes a key."""
    clock.begin()
    shared_keyless_issuer.reset_counters()
    return shared_keyless_issuer


@pytest.fixture(scope="module")
def shared_keyless_issuer() -> Iterator[Issuer]:
    with publishing() as issuer:
        issuer.answer = disconnect
        yield issuer


@pytest.fixture(scope="module")
def keyless_api(database_url: str, shared_keyless_issuer: Issuer, clock: Clock) -> Iterator[httpx.Client]:
    """A client of a service that has never fetched a key."""
    with trusting(database_url, shared_keyless_issuer) as client:
        yield client


def list_tasks(api: httpx.Client, issuer: Issuer, key: Key | None = None) -> httpx.Response:
    """List the tasks of a new user with a new token, signed with `key` or the issuer's first key."""
    user = str(uuid4())
    token = (key or issuer.keys[0]).token(issuer.claims(user))
    return api.get(f"/api/{user}/tasks", headers=bearer(token))


def list_status(api: httpx.Client, issuer: Issuer, key: Key | None = None) -> int:
    """The status of `list_tasks`."""
    return list_tasks(api, issuer, key).status_code


def wait_for_fetch(api: httpx.Client, issuer: Issuer, status: int = 401) -> None:
    """Wait for the end of a fetch in the background, with a request that waits for it because its key is unknown."""
    assert issuer.fetch_started.acquire(timeout=TIMEOUT)
    assert list_status(api, issuer, Key()) == status


def test_known_keys_are_not_fetched_again(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    for _ in range(20):
        clock.advance(10)
        assert list_status(api, issuer) == 200
    assert issuer.fetches == 0


def test_all_requests_before_the_first_key_wait_for_one_fetch(database_url: str, clock: Clock) -> None:
    with publishing() as issuer, trusting(database_url, issuer) as api, ThreadPoolExecutor(50) as threads:
        with issuer.delaying():
            requests = [threads.submit(list_status, api, issuer) for _ in range(50)]
            assert issuer.fetch_started.acquire(timeout=TIMEOUT)
            assert api.get("/health/live").status_code == 200
        assert [request.result() for request in requests] == [200] * 50
        assert issuer.fetches == 1


def test_there_is_one_fetch_at_a_time(
    api: httpx.Client, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", -1)
    with ThreadPoolExecutor(21) as threads:
        with issuer.delaying():
            requests = [threads.submit(list_status, api, issuer, Key())]
            assert issuer.fetch_started.acquire(timeout=TIMEOUT)
            requests += [threads.submit(list_status, api, issuer, Key()) for _ in range(20)]
            clock.advance(10_000)
            assert [list_status(api, issuer) for _ in range(5)] == [200] * 5
        assert {request.result() for request in requests} == {401}
    assert issuer.max_concurrent_fetches == 1


def test_a_request_with_a_known_key_does_not_wait_for_a_fetch(
    api: httpx.Client, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT_SECONDS", 3600)
    clock.advance(10_000)
    with issuer.delaying():
        assert list_status(api, issuer) == 200
        assert issuer.fetch_started.acquire(timeout=TIMEOUT)
        assert list_status(api, issuer) == 200
    assert list_status(api, issuer, Key()) == 401


FAILURES: dict[str, Answer] = {
    "disconnects": disconnect,
    "500": reply(500, b"{}"),
    "500 with a key": reply(500, json.dumps({"keys": [Key().jwk]}).encode()),
    "404": reply(404, b'{"keys": []}'),
    "204": reply(204, b""),
    "a redirect without a location": reply(302, b""),
    "an empty body": reply(200, b""),
    "a page": reply(200, b"<!doctype html><title>Down for maintenance</title>", Content_Type="text/html"),
    "not UTF-8": reply(200, b'{"keys": ["\xff\xfe"]}'),
    "null": reply(200, b"null"),
    "a list": reply(200, b"[]"),
    "a text": reply(200, b'"keys"'),
    "an object": reply(200, b"{}"),
    "null for keys": reply(200, b'{"keys": null}'),
    "a number for keys": reply(200, b'{"keys": 1}'),
    "an object for keys": reply(200, b'{"keys": {"kid": "x"}}'),
    "no keys": reply(200, b'{"keys": []}'),
    "empty keys": reply(200, b'{"keys": [{}, {}]}'),
    "keys that are not objects": reply(200, b'{"keys": ["x", 1, null, []]}'),
    "deep": reply(200, b"[" * 100_000),
    "deep keys": reply(200, b'{"keys": ' + b"[" * 100_000),
    "an incomplete body": reply(200, b'{"keys": [', Content_Length="1000"),
    "a body that is not compressed": reply(200, b'{"keys": []}', Content_Encoding="gzip"),
    "a body that is truncated after compression": reply(200, gzip.compress(b"x" * 1000)[:40], Content_Encoding="gzip"),
    "a large body": reply(200, b"x" * 3_000_000),
    "many invalid keys": reply(200, json.dumps({"keys": [0] * 30_000}).encode()),
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_known_keys_are_kept_if_a_fetch_fails(api: httpx.Client, issuer: Issuer, clock: Clock, answer: Answer) -> None:
    issuer.answer = answer
    clock.advance(10_000)
    assert list_status(api, issuer) == 200
    wait_for_fetch(api, issuer, 503)
    assert list_status(api, issuer) == 200
    issuer.answer = None
    issuer.keys.append(Key())
    clock.advance(60)
    assert [list_status(api, issuer, key) for key in issuer.keys] == [200, 200]


def test_a_token_with_a_new_key_is_503_while_the_issuer_is_unreachable(
    api: httpx.Client, issuer: Issuer, clock: Clock
) -> None:
    issuer.keys.append(Key())
    issuer.answer = disconnect
    clock.advance(60)
    refused = list_tasks(api, issuer, issuer.keys[-1])
    assert_error(refused, 503)
    issuer.answer = None
    clock.advance(int(refused.headers["Retry-After"]) + 0.1)
    assert list_status(api, issuer, issuer.keys[-1]) == 200
    assert list_status(api, issuer, Key()) == 401


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_every_token_is_503_before_the_first_key(
    keyless_api: httpx.Client, keyless_issuer: Issuer, answer: Answer
) -> None:
    keyless_issuer.answer = answer
    refused = list_tasks(keyless_api, keyless_issuer)
    assert_error(refused, 503)
    assert int(refused.headers["Retry-After"]) > 0
    assert keyless_issuer.fetches == 1


def test_a_fetch_whose_response_does_not_end_times_out(
    keyless_api: httpx.Client, keyless_issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT_SECONDS", 0.1)
    keyless_issuer.answer = drip
    assert list_status(keyless_api, keyless_issuer) == 503


def test_without_a_key_there_is_one_fetch_per_second(
    keyless_api: httpx.Client, keyless_issuer: Issuer, clock: Clock
) -> None:
    keyless_issuer.answer = disconnect
    for fetches in (1, 2):
        for _ in range(20):
            assert list_status(keyless_api, keyless_issuer) == 503
            clock.advance(0.04)
        assert keyless_issuer.fetches == fetches
        clock.advance(1)


def test_after_the_retry_after_delay_a_recovered_issuer_is_reached(database_url: str, clock: Clock) -> None:
    with publishing() as issuer, trusting(database_url, issuer) as api:
        issuer.answer = disconnect
        refused = list_tasks(api, issuer)
        assert refused.status_code == 503
        issuer.answer = None
        clock.advance(int(refused.headers["Retry-After"]) + 0.1)
        assert list_status(api, issuer) == 200


def test_redirects_are_not_followed(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    with publishing() as elsewhere:
        issuer.answer = reply(302, b"", Location=f"{elsewhere.url}/jwks")
        clock.advance(10_000)
        assert list_status(api, issuer, elsewhere.keys[0]) == 503
        assert issuer.fetches == 1
        assert elsewhere.fetches == 0


UNUSABLE: dict[str, object] = {
    "a text": "x",
    "null": None,
    "a list": [],
    "empty": {},
    "secret without content": {"kty": "oct", "kid": "x"},
    "unknown kind": {"kty": "PQC", "kid": "x"},
    "kind is a list": {"kty": ["OKP"], "kid": "x"},
    "alg none": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "alg": "none"},
    "alg unknown": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "alg": "X"},
    "alg is a list": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "alg": ["EdDSA"]},
    "alg of another kind": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "alg": "RS256"},
    "curve unknown": {"kty": "EC", "crv": "P-1", "kid": "x"},
    "curve of another use": {"kty": "OKP", "crv": "X25519", "kid": "x", "x": base64url(bytes(32))},
    "no point": {"kty": "EC", "crv": "P-256", "kid": "x"},
    "point off the curve": {
        "kty": "EC",
        "crv": "P-256",
        "kid": "x",
        "x": base64url(b"1" * 32),
        "y": base64url(b"1" * 32),
    },
    "x is a number": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": 1},
    "x is no base64": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": "\u20ac"},
    "x is short": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": "AA"},
    "e is nothing": {"kty": "RSA", "kid": "x", "n": "AQAB", "e": ""},
    "id is a list": {**Key().jwk, "kid": ["x"]},
    "id is null": {**Key().jwk, "kid": None},
}


@pytest.mark.parametrize("unusable", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_key_does_not_affect_the_others(
    api: httpx.Client, issuer: Issuer, clock: Clock, unusable: object
) -> None:
    issuer.others = [unusable]
    issuer.keys = [Key()]
    clock.advance(60)
    assert list_status(api, issuer) == 200


def test_unknown_keys_cause_at_most_two_fetches_per_minute(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    for _ in range(60):
        clock.advance(1)
        assert list_status(api, issuer, Key()) == 401
    assert 1 <= issuer.fetches <= 2


def test_a_new_key_works_within_half_a_minute(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    issuer.keys.insert(0, Key())
    clock.advance(31)
    assert [list_status(api, issuer, key) for key in issuer.keys] == [200, 200]
    assert issuer.fetches == 1


def test_a_new_key_works_with_its_first_token_after_a_refresh(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    clock.advance(10_000)
    assert list_status(api, issuer) == 200
    assert issuer.client_disconnected.acquire(timeout=TIMEOUT)
    # Let the service process the response first. Otherwise the request below would wait for the same fetch.
    assert [api.get("/health/live").status_code for _ in range(3)] == [200] * 3
    issuer.keys.append(Key())
    assert [list_status(api, issuer, key) for key in issuer.keys] == [200, 200]


def test_a_key_that_is_published_during_a_fetch_works_with_its_first_token(
    api: httpx.Client, issuer: Issuer, clock: Clock
) -> None:
    published_before = reply(200, json.dumps({"keys": [issuer.keys[0].jwk]}).encode())

    def respond_once(request: BaseHTTPRequestHandler) -> None:
        issuer.answer = None
        published_before(request)

    issuer.answer = respond_once
    clock.advance(10_000)
    user, new_key = str(uuid4()), Key()
    token = new_key.token(issuer.claims(user))
    with socket.create_connection((api.base_url.host, api.base_url.port or 80), TIMEOUT) as connection:
        with issuer.delaying():
            assert list_status(api, issuer) == 200
            assert issuer.fetch_started.acquire(timeout=TIMEOUT)
            issuer.keys.append(new_key)
            connection.sendall(
                f"GET /api/{user}/tasks HTTP/1.1\r\nHost: tasks\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
            )
            # When these are answered, the service has read the request above.
            assert [api.get("/health/live").status_code for _ in range(3)] == [200] * 3
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_removed_key_is_refused(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    removed, kept = Key(), Key()
    issuer.keys = [removed, kept]
    clock.advance(60)
    user = str(uuid4())
    cached = bearer(removed.token(issuer.claims(user)))
    assert api.get(f"/api/{user}/tasks", headers=cached).status_code == 200
    issuer.reset_counters()
    issuer.keys = [kept]
    clock.advance(360)
    assert list_status(api, issuer, kept) == 200
    wait_for_fetch(api, issuer)
    assert list_status(api, issuer, removed) == 401
    assert api.get(f"/api/{user}/tasks", headers=cached).status_code == 401
    assert list_status(api, issuer, kept) == 200


@pytest.mark.parametrize(("lifetime", "cached"), [(20, 20), (900, 60)])
def test_a_verified_token_is_cached_for_a_minute_and_not_after_it_expires(
    api: httpx.Client, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch, lifetime: float, cached: float
) -> None:
    # When its key has been removed, a token is accepted for as long as it is cached.
    user = str(uuid4())
    token = issuer.bearer(user, exp=clock.time() + lifetime)
    assert api.get(f"/api/{user}/tasks", headers=token).status_code == 200
    replace_key(api, issuer, monkeypatch)
    clock.advance(cached - 1)
    assert api.get(f"/api/{user}/tasks", headers=token).status_code == 200
    clock.advance(2)
    assert api.get(f"/api/{user}/tasks", headers=token).status_code == 401


def test_the_token_cache_has_a_maximum_size(api: httpx.Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TOKEN_CACHE_SIZE", 3)
    users = [str(uuid4()) for _ in range(10)]
    tokens = {user: issuer.bearer(user) for user in users}

    def all_statuses() -> list[int]:
        return [api.get(f"/api/{user}/tasks", headers=tokens[user]).status_code for user in users]

    assert all_statuses() == [200] * 10
    replace_key(api, issuer, monkeypatch)
    assert 1 <= all_statuses().count(200) <= 3


def replace_key(api: httpx.Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the issuer's key, and let the service fetch the new one."""
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", -1)
    removed, issuer.keys = issuer.keys[0], [Key()]
    assert list_status(api, issuer) == 200
    assert list_status(api, issuer, removed) == 401
