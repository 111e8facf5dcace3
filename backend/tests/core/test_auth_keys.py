"""How the service comes by the issuer's keys, and how long it trusts them and the tokens it has checked."""

import gzip
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import httpx
import pytest

from backend.core import auth
from backend.tests.errors import assert_error
from backend.tests.issuer import Answer, Issuer, Key, base64url, bearer, drip, hang_up, publishing, reply
from backend.tests.serving import in_thread, settings

# Seconds until something that should have happened at once is taken for not happening.
PATIENCE = 20


class Clock:
    """The clock of what is tested: it stands still unless a test moves it."""

    def __init__(self) -> None:
        self._monotonic = self._time = 0.0

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._time

    def forward(self, seconds: float) -> None:
        """Let time pass."""
        self._monotonic += seconds
        self._time += seconds

    def begin(self) -> None:
        """Begin a test: long after the one before, and at the time at which tokens are made."""
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
        httpx.Client(base_url=base_url, timeout=PATIENCE, limits=limits) as client,
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
    """The issuer whose keys, new ones, the service has just fetched."""
    clock.begin()
    shared_issuer.start_anew()
    assert visit(api, shared_issuer) == 200
    shared_issuer.forget_fetches()
    return shared_issuer


@pytest.fixture
def hopeless(shared_hopeless: Issuer, clock: Clock) -> Issuer:
    """An issuer that never gave anybody a key."""
    clock.begin()
    shared_hopeless.forget_fetches()
    return shared_hopeless


@pytest.fixture(scope="module")
def shared_hopeless() -> Iterator[Issuer]:
    with publishing() as issuer:
        issuer.answer = hang_up
        yield issuer


@pytest.fixture(scope="module")
def keyless(database_url: str, shared_hopeless: Issuer, clock: Clock) -> Iterator[httpx.Client]:
    """A client of a service that has no key."""
    with trusting(database_url, shared_hopeless) as client:
        yield client


def ask(api: httpx.Client, issuer: Issuer, key: Key | None = None) -> httpx.Response:
    """Ask for one's tasks with a token that nobody has seen before, signed with `key` or the issuer's first."""
    user = str(uuid4())
    token = (key or issuer.keys[0]).token(issuer.claims(user))
    return api.get(f"/api/{user}/tasks", headers=bearer(token))


def visit(api: httpx.Client, issuer: Issuer, key: Key | None = None) -> int:
    """Like `ask`; the status."""
    return ask(api, issuer, key).status_code


def wait_for_the_fetch(api: httpx.Client, issuer: Issuer, status: int = 401) -> None:
    """Wait until a fetch in the background is over: who comes with an unknown key waits for it."""
    assert issuer.asked.acquire(timeout=PATIENCE)
    assert visit(api, issuer, Key()) == status


def test_keys_that_are_known_are_not_fetched_again(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    for _ in range(20):
        clock.forward(10)
        assert visit(api, issuer) == 200
    assert issuer.fetches == 0


def test_all_who_come_before_the_first_key_wait_for_one_fetch(database_url: str, clock: Clock) -> None:
    with publishing() as issuer, trusting(database_url, issuer) as api, ThreadPoolExecutor(50) as crowd:
        with issuer.hanging():
            visits = [crowd.submit(visit, api, issuer) for _ in range(50)]
            assert issuer.asked.acquire(timeout=PATIENCE)
            assert api.get("/health/live").status_code == 200
        assert [visit.result() for visit in visits] == [200] * 50
        assert issuer.fetches == 1


def test_there_are_never_two_fetches_at_once(
    api: httpx.Client, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", -1)
    with ThreadPoolExecutor(21) as crowd:
        with issuer.hanging():
            strangers = [crowd.submit(visit, api, issuer, Key())]
            assert issuer.asked.acquire(timeout=PATIENCE)
            strangers += [crowd.submit(visit, api, issuer, Key()) for _ in range(20)]
            clock.forward(10_000)
            assert [visit(api, issuer) for _ in range(5)] == [200] * 5
        assert {stranger.result() for stranger in strangers} == {401}
    assert issuer.most_at_once == 1


def test_nobody_who_has_a_key_waits_for_the_issuer(
    api: httpx.Client, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT_SECONDS", 3600)
    clock.forward(10_000)
    with issuer.hanging():
        assert visit(api, issuer) == 200
        assert issuer.asked.acquire(timeout=PATIENCE)
        assert visit(api, issuer) == 200
    assert visit(api, issuer, Key()) == 401


GONE_WRONG: dict[str, Answer] = {
    "hangs up": hang_up,
    "500": reply(500, b"{}"),
    "500 with a key": reply(500, json.dumps({"keys": [Key().jwk]}).encode()),
    "404": reply(404, b'{"keys": []}'),
    "204": reply(204, b""),
    "a redirect to nowhere": reply(302, b""),
    "nothing": reply(200, b""),
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
    "keys that are none": reply(200, b'{"keys": ["x", 1, null, []]}'),
    "deep": reply(200, b"[" * 100_000),
    "deep keys": reply(200, b'{"keys": ' + b"[" * 100_000),
    "a body that is cut": reply(200, b'{"keys": [', Content_Length="1000"),
    "a body that is not packed": reply(200, b'{"keys": []}', Content_Encoding="gzip"),
    "a body that is packed badly": reply(200, gzip.compress(b"x" * 1000)[:40], Content_Encoding="gzip"),
    "a lot": reply(200, b"x" * 3_000_000),
    "a lot of nothing": reply(200, json.dumps({"keys": [0] * 30_000}).encode()),
}


@pytest.mark.parametrize("answer", GONE_WRONG.values(), ids=GONE_WRONG)
def test_keys_are_kept_whatever_becomes_of_the_issuer(
    api: httpx.Client, issuer: Issuer, clock: Clock, answer: Answer
) -> None:
    issuer.answer = answer
    clock.forward(10_000)
    assert visit(api, issuer) == 200
    wait_for_the_fetch(api, issuer, 503)
    assert visit(api, issuer) == 200
    issuer.answer = None
    issuer.keys.append(Key())
    clock.forward(60)
    assert [visit(api, issuer, key) for key in issuer.keys] == [200, 200]


def test_a_new_key_is_not_judged_while_the_issuer_is_away(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    issuer.keys.append(Key())
    issuer.answer = hang_up
    clock.forward(60)
    refused = ask(api, issuer, issuer.keys[-1])
    assert_error(refused, 503)
    issuer.answer = None
    clock.forward(int(refused.headers["Retry-After"]) + 0.1)
    assert visit(api, issuer, issuer.keys[-1]) == 200
    assert visit(api, issuer, Key()) == 401


@pytest.mark.parametrize("answer", GONE_WRONG.values(), ids=GONE_WRONG)
def test_without_any_key_yet_nobody_is_judged(keyless: httpx.Client, hopeless: Issuer, answer: Answer) -> None:
    hopeless.answer = answer
    refused = ask(keyless, hopeless)
    assert_error(refused, 503)
    assert int(refused.headers["Retry-After"]) > 0
    assert hopeless.fetches == 1


def test_an_issuer_that_never_stops_to_answer_is_left(
    keyless: httpx.Client, hopeless: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FETCH_TIMEOUT_SECONDS", 0.1)
    hopeless.answer = drip
    assert visit(keyless, hopeless) == 503


def test_an_issuer_without_a_key_is_asked_once_a_second(keyless: httpx.Client, hopeless: Issuer, clock: Clock) -> None:
    hopeless.answer = hang_up
    assert [visit(keyless, hopeless) for _ in range(20)] == [503] * 20
    assert hopeless.fetches == 1
    clock.forward(2)
    assert [visit(keyless, hopeless) for _ in range(20)] == [503] * 20
    assert hopeless.fetches == 2


def test_who_comes_back_when_told_finds_the_issuer_that_is_back(database_url: str, clock: Clock) -> None:
    with publishing() as issuer, trusting(database_url, issuer) as api:
        issuer.answer = hang_up
        refused = ask(api, issuer)
        assert refused.status_code == 503
        issuer.answer = None
        clock.forward(int(refused.headers["Retry-After"]) + 0.1)
        assert visit(api, issuer) == 200


def test_a_redirect_is_not_followed(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    with publishing() as elsewhere:
        issuer.answer = reply(302, b"", Location=f"{elsewhere.url}/jwks")
        clock.forward(10_000)
        assert visit(api, issuer, elsewhere.keys[0]) == 503
        assert issuer.fetches == 1
        assert elsewhere.fetches == 0


STRANGE: dict[str, object] = {
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


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_strange_key_does_not_spoil_the_others(
    api: httpx.Client, issuer: Issuer, clock: Clock, strange: object
) -> None:
    issuer.others = [strange]
    issuer.keys = [Key()]
    clock.forward(60)
    assert visit(api, issuer) == 200


def test_unknown_keys_make_it_ask_twice_a_minute_at_most(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    for _ in range(60):
        clock.forward(1)
        assert visit(api, issuer, Key()) == 401
    assert 1 <= issuer.fetches <= 2


def test_a_key_that_was_rotated_in_works_within_half_a_minute(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    issuer.keys.insert(0, Key())
    clock.forward(31)
    assert [visit(api, issuer, key) for key in issuer.keys] == [200, 200]
    assert issuer.fetches == 1


def test_a_key_that_was_rotated_in_after_a_refresh_works_with_its_first_token(
    api: httpx.Client, issuer: Issuer, clock: Clock
) -> None:
    clock.forward(10_000)
    assert visit(api, issuer) == 200
    assert issuer.left.acquire(timeout=PATIENCE)
    # An unknown key would wait for the fetch if it was not quite over, and get nothing from it.
    assert [api.get("/health/live").status_code for _ in range(3)] == [200] * 3
    issuer.keys.append(Key())
    assert [visit(api, issuer, key) for key in issuer.keys] == [200, 200]


def test_a_key_that_was_removed_stops_to_work(api: httpx.Client, issuer: Issuer, clock: Clock) -> None:
    removed, kept = Key(), Key()
    issuer.keys = [removed, kept]
    clock.forward(60)
    user = str(uuid4())
    remembered = bearer(removed.token(issuer.claims(user)))
    assert api.get(f"/api/{user}/tasks", headers=remembered).status_code == 200
    issuer.forget_fetches()
    issuer.keys = [kept]
    clock.forward(360)
    assert visit(api, issuer, kept) == 200
    wait_for_the_fetch(api, issuer)
    assert visit(api, issuer, removed) == 401
    assert api.get(f"/api/{user}/tasks", headers=remembered).status_code == 401
    assert visit(api, issuer, kept) == 200


@pytest.mark.parametrize(("life", "remembered"), [(20, 20), (900, 60)])
def test_a_checked_token_is_remembered_for_a_minute_and_no_longer_than_it_lives(
    api: httpx.Client, issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch, life: float, remembered: float
) -> None:
    # Once its key is gone, a token works for as long as it is remembered.
    user = str(uuid4())
    token = issuer.bearer(user, exp=clock.time() + life)
    assert api.get(f"/api/{user}/tasks", headers=token).status_code == 200
    remove_the_key(api, issuer, monkeypatch)
    clock.forward(remembered - 1)
    assert api.get(f"/api/{user}/tasks", headers=token).status_code == 200
    clock.forward(2)
    assert api.get(f"/api/{user}/tasks", headers=token).status_code == 401


def test_it_remembers_only_so_many_tokens(api: httpx.Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TOKEN_CACHE_SIZE", 3)
    users = [str(uuid4()) for _ in range(10)]
    tokens = {user: issuer.bearer(user) for user in users}

    def visit_all() -> list[int]:
        return [api.get(f"/api/{user}/tasks", headers=tokens[user]).status_code for user in users]

    assert visit_all() == [200] * 10
    remove_the_key(api, issuer, monkeypatch)
    assert 1 <= visit_all().count(200) <= 3


def remove_the_key(api: httpx.Client, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the issuer's key by another, and let the service know."""
    monkeypatch.setattr(auth, "MIN_REFRESH_INTERVAL", -1)
    removed, issuer.keys = issuer.keys[0], [Key()]
    assert visit(api, issuer) == 200
    assert visit(api, issuer, removed) == 401
