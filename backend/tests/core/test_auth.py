"""Who gets in: the bearer of a good token to his own tasks, and nobody else."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from backend.tests.errors import assert_error
from backend.tests.issuer import Issuer, Key, base64url, bearer, publishing, token
from backend.tests.serving import as_process, free_port, in_thread, settings

SECRET = b"a secret that was published by mistake"
# Keys of kinds that must not be used, though the issuer publishes them.
UNUSABLE = {
    "ES384": Key("ES384", "p-384", ec.SECP384R1()),
    "ES256 with the wrong curve": Key("ES256", "p-384 as es256", ec.SECP384R1()),
    "ES256K": Key("ES256K", "secp256k1", ec.SECP256K1()),
    "RS512": Key("RS512", "rs512"),
    "no id": Key("EdDSA", ""),
    "for encryption": Key("EdDSA", "enc"),
}
# Keys that may be used, published with less or more than the others.
WITHOUT_ALG, WITH_USE = Key(), Key("ES256")
SHARED = {"kty": "oct", "k": base64url(SECRET)}
OTHERS = [
    *(UNUSABLE[name].jwk for name in ("ES384", "ES256 with the wrong curve", "ES256K", "RS512")),
    {name: value for name, value in UNUSABLE["no id"].jwk.items() if name != "kid"},
    {**UNUSABLE["for encryption"].jwk, "use": "enc"},
    {**SHARED, "kid": "secret"},
    {**SHARED, "kid": "secret with alg", "alg": "HS256"},
    {**UNUSABLE["no id"].jwk, "kid": 7},
    {name: value for name, value in WITHOUT_ALG.jwk.items() if name != "alg"},
    {**WITH_USE.jwk, "use": "sig", "key_ops": ["verify"]},
]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    """An issuer with a key of every kind: in this order EdDSA, ES256, RS256, and some that are of no use."""
    with publishing() as running:
        running.keys = [Key(algorithm) for algorithm in ("EdDSA", "ES256", "RS256")]
        running.others = list(OTHERS)
        yield running


@pytest.fixture(scope="module")
def api(database_url: str, issuer: Issuer) -> Iterator[httpx.Client]:
    """A client of a service that trusts the issuer; it sends no token by itself."""
    with (
        in_thread(settings(database_url, **issuer.settings)) as base_url,
        httpx.Client(base_url=base_url, timeout=30) as client,
    ):
        yield client


def assert_refused(response: httpx.Response, challenge: str = 'Bearer error="invalid_token"') -> None:
    """Assert a 401 in one sentence."""
    assert_error(response, 401)
    assert response.headers.get_list("WWW-Authenticate") == [challenge]
    assert re.fullmatch(r"[A-Z][^.!?]+\.", response.json()["detail"])


Forge = Callable[[Issuer, str], str]
"""Makes what stands behind `Bearer` for a user."""


def claiming(**changes: object) -> Forge:
    """A token with a claim that is not as it should be, signed by the issuer itself."""
    return lambda issuer, user: issuer.token(user, **changes)


def at(claim: str, seconds: float) -> Forge:
    """A token with a point in time, in seconds from now, signed by the issuer itself."""
    return lambda issuer, user: issuer.token(user, **{claim: time.time() + seconds})


def heading(number: int = 0, /, **changes: object) -> Forge:
    """A token whose header says something else, signed by the issuer itself with its key of this number."""
    return lambda issuer, user: issuer.keys[number].token(issuer.claims(user), **changes)


def carrying(payload: bytes) -> Forge:
    """A token about something else than claims, signed by the issuer itself."""
    return lambda issuer, _: issuer.keys[0].token(payload)


def headed(header: object) -> Forge:
    """A token with this header, whatever it is, and a good signature."""
    return lambda issuer, user: token(header, issuer.claims(user), issuer.keys[0].sign)


def changed(change: Callable[[str, str, str], str]) -> Forge:
    """A good token, put together in another way."""

    def forge(issuer: Issuer, user: str) -> str:
        header, payload, signature = issuer.token(user).split(".")
        return change(header, payload, signature)

    return forge


def shared_secret(number: int, secret: Callable[[Key], bytes], algorithm: str = "HS256") -> Forge:
    """A token that takes something everybody knows for a secret."""

    def forge(issuer: Issuer, user: str) -> str:
        key = issuer.keys[number]
        sign = partial(_hmac, algorithm, secret(key))
        return key.token(issuer.claims(user), sign, alg=algorithm)

    return forge


def _hmac(algorithm: str, secret: bytes, text: bytes) -> bytes:
    return jwt.get_algorithm_by_name(algorithm).sign(text, secret)


def _pem(key: Key) -> bytes:
    return key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _der(key: Key) -> bytes:
    return key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _raw(key: Key) -> bytes:
    return key.public.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _jwk(key: Key) -> bytes:
    return json.dumps(key.jwk).encode()


def _x(key: Key) -> bytes:
    return str(key.jwk["x"]).encode()


def _nothing(_: bytes | Key) -> bytes:
    return b""


def other_key(number: int, **header: object) -> Forge:
    """A token signed with a key that is not the issuer's, under the name of one that is."""

    def forge(issuer: Issuer, user: str) -> str:
        copied = issuer.keys[number]
        return Key(copied.algorithm, copied.kid).token(issuer.claims(user), **header)

    return forge


def embedded_key(issuer: Issuer, user: str) -> str:
    own = Key()
    return own.token(issuer.claims(user), jwk=own.jwk)


def embedded_key_under_a_known_id(issuer: Issuer, user: str) -> str:
    own = Key(kid=issuer.keys[0].kid)
    return own.token(issuer.claims(user), jwk=own.jwk)


def pss(issuer: Issuer, user: str) -> str:
    key = issuer.keys[2]
    return key.token(
        issuer.claims(user), partial(jwt.get_algorithm_by_name("PS256").sign, key=key.private), alg="PS256"
    )


def der_signature(issuer: Issuer, user: str) -> str:
    private = issuer.keys[1].private
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return issuer.keys[1].token(issuer.claims(user), lambda text: private.sign(text, ec.ECDSA(SHA256())))


def with_the_key_of_another_kind(issuer: Issuer, user: str) -> str:
    return issuer.keys[0].token(issuer.claims(user), kid=issuer.keys[1].kid)


def for_somebody_else(issuer: Issuer, user: str) -> str:
    header, _, signature = issuer.token(str(uuid4())).split(".")
    payload = base64url(json.dumps(issuer.claims(user)).encode())
    return f"{header}.{payload}.{signature}"


def with_one_more_header(issuer: Issuer, user: str) -> str:
    header, payload, signature = issuer.token(user).split(".")
    members = json.loads(base64.urlsafe_b64decode(header + "=="))
    return f"{base64url(json.dumps({**members, 'typ': 'JWT'}).encode())}.{payload}.{signature}"


def with_another_spelling_of_the_signature(_: str, __: str, signature: str) -> str:
    # The last character of 64 bytes carries four bits that decode to nothing.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return f"{_}.{__}.{signature[:-1]}{alphabet[alphabet.index(signature[-1]) + 1]}"


def published(name: str, **header: object) -> Forge:
    """A token signed with a key that the issuer publishes and that is of no use."""
    return lambda issuer, user: UNUSABLE[name].token(issuer.claims(user), **header)


def published_secret(kid: str) -> Forge:
    """A token signed with a secret that the issuer publishes."""

    def forge(issuer: Issuer, user: str) -> str:
        return token({"alg": "HS256", "kid": kid}, issuer.claims(user), partial(_hmac, "HS256", SECRET))

    return forge


DEEP = b"[" * 4000
FORGED: dict[str, Forge] = {
    # Not signed, or with what everybody has.
    "alg none": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), _nothing, alg="none"),
    "alg None": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), _nothing, alg="None"),
    "alg none with the signature": heading(alg="none"),
    "alg none without kid": lambda issuer, user: issuer.keys[0].token(
        issuer.claims(user), _nothing, alg="none", kid=...
    ),
    "HS256 with the PEM": shared_secret(0, _pem),
    "HS256 with the PEM of RSA": shared_secret(2, _pem),
    "HS512 with the PEM of RSA": shared_secret(2, _pem, "HS512"),
    "HS256 with the DER": shared_secret(1, _der),
    "HS256 with the raw key": shared_secret(0, _raw),
    "HS256 with the JWK": shared_secret(0, _jwk),
    "HS256 with x": shared_secret(0, _x),
    "HS384 with the raw key": shared_secret(0, _raw, "HS384"),
    "HS256 with nothing": shared_secret(0, _nothing),
    # Signed with a key of the forger's.
    "other EdDSA key": other_key(0),
    "other ES256 key": other_key(1),
    "other RS256 key": other_key(2),
    "unknown kid": lambda issuer, user: Key().token(issuer.claims(user)),
    "embedded jwk": embedded_key,
    "embedded jwk under a known kid": embedded_key_under_a_known_id,
    "x5c": other_key(2, x5c=["MIIB"]),
    # Signed with the issuer's key, in another way than it says.
    "alg ES256 with the EdDSA key": heading(alg="ES256"),
    "alg RS256 with the EdDSA key": heading(alg="RS256"),
    "alg EdDSA with the ES256 key": heading(1, alg="EdDSA"),
    "alg PS256 with the RS256 key": pss,
    "alg RS512 with the RS256 key": heading(2, alg="RS512"),
    "alg in lower case": heading(alg="eddsa"),
    "alg missing": heading(alg=...),
    "alg null": heading(alg=None),
    "alg empty": heading(alg=""),
    "alg number": heading(alg=1),
    "alg list": heading(alg=["EdDSA"]),
    "alg object": heading(alg={"EdDSA": 1}),
    "kid of another kind of key": with_the_key_of_another_kind,
    "kid missing": heading(kid=...),
    "kid empty": heading(kid=""),
    "kid null": heading(kid=None),
    "kid number": heading(kid=1),
    "kid true": heading(kid=True),
    "kid list": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), kid=[issuer.keys[0].kid]),
    "kid object": heading(kid={}),
    "kid with NUL": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), kid=issuer.keys[0].kid + "\0"),
    "kid in upper case": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), kid=issuer.keys[0].kid.upper()),
    "kid is a lone surrogate": heading(kid="\ud800"),
    "kid is a path": heading(kid="../../../dev/null"),
    "crit unknown": heading(crit=["exp"]),
    "crit empty": heading(crit=[]),
    "crit text": heading(crit="b64"),
    "crit of numbers": heading(crit=[1]),
    "crit null": heading(crit=None),
    "b64 false": heading(b64=False),
    "b64 false and critical": heading(b64=False, crit=["b64"]),
    "b64 false and critical with nothing": lambda issuer, user: issuer.keys[0].token(b"", b64=False, crit=["b64"]),
    "DER for r and s": der_signature,
    "r and s of zero": lambda issuer, user: issuer.keys[1].token(issuer.claims(user), lambda _: bytes(64)),
    "signature of zero bytes": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), lambda _: bytes(64)),
    "signature of RSA one": lambda issuer, user: issuer.keys[2].token(issuer.claims(user), lambda _: bytes(255) + b"1"),
    # Signed with keys that the issuer publishes and that must not be used.
    "published P-384": published("ES384"),
    "published P-384 that says ES256": published("ES256 with the wrong curve"),
    "published secp256k1": published("ES256K"),
    "published RS512": published("RS512"),
    "published RS512 used as RS256": lambda issuer, user: UNUSABLE["RS512"].token(
        issuer.claims(user),
        partial(jwt.get_algorithm_by_name("RS256").sign, key=UNUSABLE["RS512"].private),
        alg="RS256",
    ),
    "published without kid": published("no id", kid=...),
    "published without kid, kid empty": published("no id"),
    "published without kid, kid null": published("no id", kid=None),
    "published with a number for kid": published("no id", kid=7),
    "published with a number for kid, as text": published("no id", kid="7"),
    "published for encryption": published("for encryption"),
    "published secret": published_secret("secret"),
    "published secret with alg": published_secret("secret with alg"),
    # Signed by the issuer, and not for us, not now or not like this.
    "iss wrong": claiming(iss="https://elsewhere.example"),
    "iss with a slash": lambda issuer, user: issuer.token(user, iss=f"{issuer.url}/"),
    "iss in upper case": lambda issuer, user: issuer.token(user, iss=issuer.url.upper()),
    "iss begins alike": lambda issuer, user: issuer.token(user, iss=f"{issuer.url}.example"),
    "iss missing": claiming(iss=...),
    "iss null": claiming(iss=None),
    "iss empty": claiming(iss=""),
    "iss list": lambda issuer, user: issuer.token(user, iss=[issuer.url]),
    "iss number": claiming(iss=1),
    "iss true": claiming(iss=True),
    "iss object": lambda issuer, user: issuer.token(user, iss={issuer.url: issuer.url}),
    "aud wrong": claiming(aud="https://elsewhere.example"),
    "aud begins alike": lambda issuer, user: issuer.token(user, aud=f"{issuer.url}.example"),
    "aud missing": claiming(aud=...),
    "aud null": claiming(aud=None),
    "aud empty": claiming(aud=""),
    "aud empty list": claiming(aud=[]),
    "aud list of others": claiming(aud=["https://elsewhere.example"]),
    "aud list with a number": lambda issuer, user: issuer.token(user, aud=[issuer.url, 1]),
    "aud list in a list": lambda issuer, user: issuer.token(user, aud=[[issuer.url]]),
    "aud number": claiming(aud=1),
    "aud true": claiming(aud=True),
    "aud object": lambda issuer, user: issuer.token(user, aud={issuer.url: issuer.url}),
    "exp over beyond the leeway": at("exp", -60),
    "exp missing": claiming(exp=...),
    "exp null": claiming(exp=None),
    "exp true": claiming(exp=True),
    "exp zero": claiming(exp=0),
    "exp negative": claiming(exp=-1),
    "exp text": claiming(exp="tomorrow"),
    "exp digits as text": claiming(exp="99999999999"),
    "exp list": claiming(exp=[99999999999]),
    "exp object": claiming(exp={}),
    "exp NaN": claiming(exp=float("nan")),
    "exp Infinity": claiming(exp=float("inf")),
    "sub missing": claiming(sub=...),
    "sub null": claiming(sub=None),
    "sub number": claiming(sub=1),
    "sub true": claiming(sub=True),
    "sub list": lambda issuer, user: issuer.token([user]),
    "sub object": lambda issuer, user: issuer.token({user: user}),
    "nbf in the future": at("nbf", 60),
    "nbf text": claiming(nbf="now"),
    "nbf list": claiming(nbf=[]),
    "iat in the future": at("iat", 60),
    "iat text": claiming(iat="now"),
    "iat list": claiming(iat=[]),
    # Changed after it was signed.
    "payload changed": for_somebody_else,
    "header changed": with_one_more_header,
    "signature missing": changed(lambda header, payload, _: f"{header}.{payload}."),
    "signature and its dot missing": changed(lambda header, payload, _: f"{header}.{payload}"),
    "signature cut by one": changed(lambda header, payload, signature: f"{header}.{payload}.{signature[:-1]}"),
    "signature cut by four": changed(lambda header, payload, signature: f"{header}.{payload}.{signature[:-4]}"),
    "signature cut by half": changed(lambda header, payload, signature: f"{header}.{payload}.{signature[:43]}"),
    "signature twice": changed(lambda header, payload, signature: f"{header}.{payload}.{signature}{signature}"),
    "signature spelt otherwise": changed(with_another_spelling_of_the_signature),
    "payload missing": changed(lambda header, _, signature: f"{header}..{signature}"),
    "header missing": changed(lambda _, payload, signature: f".{payload}.{signature}"),
    "one part more": changed(lambda *parts: ".".join(parts) + ".e30"),
    "five parts": changed(lambda *parts: ".".join(parts) + ".e30.e30"),
    "a dot more": changed(lambda *parts: ".".join(parts) + "."),
    "a dot before": changed(lambda *parts: "." + ".".join(parts)),
    "percent-encoded": changed(lambda *parts: "%2E".join(parts)),
    "spaces for dots": changed(lambda *parts: " ".join(parts)),
    "a space before a dot": changed(lambda *parts: " .".join(parts)),
    "a tab behind a dot": changed(lambda *parts: ".\t".join(parts)),
    "in quotes": changed(lambda *parts: f'"{".".join(parts)}"'),
    "named": changed(lambda *parts: f"token={'.'.join(parts)}"),
    "twice": changed(lambda *parts: f"{'.'.join(parts)}, Bearer {'.'.join(parts)}"),
    "scheme twice": changed(lambda *parts: f"Bearer {'.'.join(parts)}"),
    # No token at all.
    "a word": lambda *_: "x",
    "dots": lambda *_: "..",
    "header is a list": headed([]),
    "header is a text": headed("kid"),
    "header is null": headed(None),
    "header is no JSON": headed(b"{"),
    "header is not UTF-8": headed(b"\xff\xfe"),
    "header is deep": headed(DEEP),
    "header has a deep member": headed(b'{"kid":' + DEEP),
    "payload is a list": carrying(b"[]"),
    "payload is a text": carrying(b'"sub"'),
    "payload is null": carrying(b"null"),
    "payload is nothing": carrying(b""),
    "payload is no JSON": carrying(b"{"),
    "payload is not UTF-8": carrying(b"\xff\xfe"),
    "payload is deep": carrying(DEEP),
    "payload has a number without end": carrying(b'{"exp":' + b"9" * 5000 + b"}"),
    "huge": lambda *_: "x" * 60_000,
    "good but too long": lambda issuer, user: issuer.token(user, name="x" * 40_000),
}
ACCEPTED: dict[str, Forge] = {
    "EdDSA": heading(0),
    "ES256": heading(1),
    "RS256": heading(2),
    "key without alg": lambda issuer, user: WITHOUT_ALG.token(issuer.claims(user)),
    "key with use": lambda issuer, user: WITH_USE.token(issuer.claims(user)),
    "typ": heading(typ="JWT"),
    "aud list with ours": lambda issuer, user: issuer.token(user, aud=["https://elsewhere.example", issuer.url]),
    "exp over within the leeway": at("exp", -1),
    "nbf ahead within the leeway": at("nbf", 5),
    "iat ahead within the leeway": at("iat", 5),
    "iat missing": claiming(iat=...),
    "exp with a fraction": at("exp", 60.5),
    "exp far away": claiming(exp=10**400),
    "other claims": claiming(name="Ada", email="ada@example.org", roles=[{}]),
    "long": claiming(name="x" * 4_000),
    "sub in upper case": lambda issuer, user: issuer.token(user.upper()),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_no_forgery_gets_in(api: httpx.Client, issuer: Issuer, user: str, tasks: str, forge: Forge) -> None:
    assert_refused(api.post(tasks, json={"title": "Buy milk"}, headers=bearer(forge(issuer, user))))
    assert api.get(tasks, headers=issuer.bearer(user)).json() == []


@pytest.mark.parametrize("forge", ACCEPTED.values(), ids=ACCEPTED)
def test_a_good_token_gets_in(api: httpx.Client, issuer: Issuer, user: str, tasks: str, forge: Forge) -> None:
    created = api.post(tasks, json={"title": "Buy milk"}, headers=bearer(forge(issuer, user)))
    assert created.status_code == 201, created.text
    assert created.json()["user_id"] == user


@pytest.mark.parametrize(
    "header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer    {}"], ids=lambda text: f"[{text}]"
)
def test_the_scheme_may_be_written_as_the_rfc_allows(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, header: str
) -> None:
    assert api.get(tasks, headers={"Authorization": header.format(issuer.token(user))}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["Bearer"],
        ["{}"],
        ["Basic {}"],
        ["Basic dXNlcjpwYXNz"],
        ["Token {}"],
        ["Bearer{}"],
        ["Bearer:{}"],
        ["Bearer\t{}"],
        ["Bearers {}"],
        ["Bearer {}", "Bearer {}"],
        ["Basic dXNlcjpwYXNz", "Bearer {}"],
        ["Bearer {}", "Bearer x"],
    ],
    ids=str,
)
def test_without_exactly_one_bearer_token_nobody_gets_in(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, headers: list[str]
) -> None:
    given = [("Authorization", text.format(issuer.token(user))) for text in headers]
    assert_refused(api.post(tasks, json={"title": "Buy milk"}, headers=given), "Bearer")
    assert api.get(tasks, headers=issuer.bearer(user)).json() == []


def test_a_token_counts_in_the_authorization_header_only(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str
) -> None:
    good = issuer.token(user)
    for name in "Proxy-Authorization", "X-Authorization", "Cookie":
        assert_refused(api.get(tasks, headers={name: f"Bearer {good}"}), "Bearer")
    assert_refused(api.get(tasks, params={"access_token": good}), "Bearer")
    assert_refused(api.post(tasks, json={"title": "Buy milk", "access_token": good}), "Bearer")


@pytest.mark.parametrize("extra", [b"\xe9", b"\xff\xfe", b"\xc3\xa9", b"\xf0\x9f\x94\x91", b"\x80"])
def test_a_token_in_other_than_ascii_is_refused(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, extra: bytes
) -> None:
    for value in issuer.token(user).encode() + extra, extra + issuer.token(user).encode(), extra:
        assert_refused(api.get(tasks, headers=[(b"Authorization", b"Bearer " + value)]))


def test_where_a_token_says_its_key_lies_is_never_asked(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str
) -> None:
    with publishing() as forger:
        forger.keys[0].kid = issuer.keys[0].kid
        for place in (
            {"jku": f"{forger.url}/jwks"},
            {"x5u": f"{forger.url}/jwks"},
            {"jku": f"{forger.url}/jwks", "kid": "x"},
        ):
            forged = forger.keys[0].token(issuer.claims(user), **place)
            assert_refused(api.get(tasks, headers=bearer(forged)))
        good = issuer.keys[0].token(issuer.claims(user), jku=f"{forger.url}/jwks")
        assert api.get(tasks, headers=bearer(good)).status_code == 200
        assert forger.fetches == 0


def six_operations(
    api: httpx.Client, tasks: str, task_id: str, headers: dict[str, str]
) -> Iterator[tuple[str, httpx.Response]]:
    """Each operation once, all on the same task but the creation; the deletion comes last."""
    task = f"{tasks}/{task_id}"
    yield "create_task", api.post(tasks, json={"title": "Call the bank"}, headers=headers)
    yield "list_tasks", api.get(tasks, headers=headers)
    yield "get_task", api.get(task, headers=headers)
    yield "update_task", api.put(task, json={"title": "Call the baker"}, headers=headers)
    yield "toggle_task", api.patch(f"{task}/complete", headers=headers)
    yield "delete_task", api.delete(task, headers=headers)


def test_every_operation_is_for_the_user_of_the_path_only(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str
) -> None:
    own = issuer.bearer(user)
    task_id = api.post(tasks, json={"title": "Buy milk"}, headers=own).json()["id"]
    before = api.get(tasks, headers=own).json()
    for name, response in six_operations(api, tasks, task_id, issuer.bearer(str(uuid4()))):
        assert response.status_code == 403, name
        assert_error(response, 403)
        assert "WWW-Authenticate" not in response.headers
    for _, response in six_operations(api, tasks, task_id, {}):
        assert_refused(response, "Bearer")
    assert api.get(tasks, headers=own).json() == before
    assert_error(api.get(f"/api/{uuid4()}/tasks/{task_id}", headers=own), 403)
    statuses = {name: response.status_code for name, response in six_operations(api, tasks, task_id, own)}
    assert statuses == {
        "create_task": 201,
        "list_tasks": 200,
        "get_task": 200,
        "update_task": 200,
        "toggle_task": 200,
        "delete_task": 204,
    }


@pytest.mark.parametrize(
    "subject", ["", "ada", "*", "null", "\ud800", "{user}\0", "{user} ", "{user},{user}", "%", "0", "../{user}"]
)
def test_a_subject_that_is_no_user_id_is_nobody_here(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, subject: str
) -> None:
    assert_error(api.get(tasks, headers=issuer.bearer(subject.format(user=user))), 403)


@pytest.mark.parametrize(
    "spelling",
    [
        "{0}",
        "{1}",
        "{{{0}}}",
        "urn:uuid:{0}",
        "URN:UUID:{0}",
        "{2}",
        " {0}",
        "{0} ",
        "{0}\n",
        "{0}\0",
        "0x{3}",
        "+{3}",
        "_{2}",
        "{0}-",
        "-{0}",
        "{2}-",
        "\u0661{3}",
        "{{{0}",
        "\N{FULLWIDTH DIGIT ONE}{3}",
    ],
)
def test_however_a_user_id_is_spelt_it_opens_to_its_user_only(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, spelling: str
) -> None:
    own, strangers = issuer.bearer(user), issuer.bearer(str(uuid4()))
    spelt = spelling.format(user, user.upper(), user.replace("-", ""), user.replace("-", "")[1:])
    path = f"/api/{quote(spelt)}/tasks"
    refused = api.post(path, json={"title": "Forged"}, headers=strangers)
    assert refused.status_code in (403, 422), refused.text
    created = api.post(path, json={"title": "Buy milk"}, headers=own)
    assert created.status_code in (201, 403, 422), created.text
    if created.status_code == 201:
        assert created.json()["user_id"] == user
    assert created.status_code == 201 or spelling not in ("{0}", "{1}")
    assert [task["title"] for task in api.get(tasks, headers=own).json()] == ["Buy milk"] * (created.status_code == 201)


def test_who_has_no_token_is_not_told_what_else_is_wrong(api: httpx.Client, tasks: str) -> None:
    for response in (
        api.get("/api/nobody/tasks"),
        api.get(f"{tasks}/nothing"),
        api.get(tasks, params={"limit": "many"}),
        api.post(tasks, json={"title": ""}),
        api.post(tasks, json=[]),
        api.post(tasks, content=b"{", headers={"Content-Type": "application/json"}),
        api.post(tasks, content=b" " * 70_000, headers={"Content-Type": "application/json"}),
        api.post(tasks, json={"title": "Buy milk"}, headers={"Idempotency-Key": "x" * 256}),
        api.get(f"{tasks}/{uuid4()}"),
    ):
        assert_refused(response, "Bearer")


@pytest.mark.parametrize("subject", ["{user}", "nobody"])
def test_a_path_that_is_no_user_id_is_nobodys(api: httpx.Client, issuer: Issuer, user: str, subject: str) -> None:
    assert_error(api.get("/api/nobody/tasks", headers=issuer.bearer(subject.format(user=user))), 403)


def test_nobody_without_a_token_reaches_the_database(issuer: Issuer, user: str, tasks: str) -> None:
    nowhere = f"postgresql://tasks@127.0.0.1:{free_port()}/tasks"
    with in_thread(settings(nowhere, **issuer.settings)) as base_url, httpx.Client(base_url=base_url) as api:
        assert api.get(tasks, headers=issuer.bearer(user)).status_code == 503
        assert_refused(api.get(tasks), "Bearer")
        assert_error(api.get(tasks, headers=issuer.bearer(str(uuid4()))), 403)


def test_no_log_tells_a_token_or_who_somebody_is(
    database_url: str, issuer: Issuer, user: str, tasks: str, tmp_path: Path
) -> None:
    env = {name.upper(): value for name, value in issuer.settings.items()}
    given = [issuer.token(user, name="Ada Lovelace"), *(forge(issuer, user) for forge in FORGED.values())]
    with (
        as_process(tmp_path, env={**env, "DATABASE_URL": database_url, "LOG_LEVEL": "debug"}) as service,
        httpx.Client(base_url=service.base_url, timeout=30) as api,
    ):
        statuses = [api.get(tasks, headers=bearer(text)).status_code for text in given]
        stranger = api.get(f"/api/{uuid4()}/tasks", headers=bearer(given[0])).status_code
    log = service.log
    assert (statuses, stranger) == ([200] + [401] * len(FORGED), 403)
    assert " debug " in log
    assert len(re.findall("GET /api/{user_id}/tasks 401", log)) == len(FORGED)
    assert user not in log
    assert "Ada Lovelace" not in log
    for text in given:
        assert not [part for part in text.split(".") if len(part) > 8 and part in log]
