"""A request needs a valid token of the path's user; every other token is refused."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
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
from backend.tests.serving import free_port, in_thread, settings

SECRET = b"a secret that was published by mistake"
# Keys that the issuer publishes but that must not be accepted.
UNUSABLE = {
    "ES384": Key("ES384", "p-384", ec.SECP384R1()),
    "ES256 with the wrong curve": Key("ES256", "p-384 as es256", ec.SECP384R1()),
    "ES256K": Key("ES256K", "secp256k1", ec.SECP256K1()),
    "RS512": Key("RS512", "rs512"),
    "no id": Key("EdDSA", ""),
    "for encryption": Key("EdDSA", "enc"),
}
# Valid keys, published with fewer or more members than the others.
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
    """An issuer with a key of every kind: in this order EdDSA, ES256, RS256, and some that must not be accepted."""
    with publishing() as running:
        running.keys = [Key(algorithm) for algorithm in ("EdDSA", "ES256", "RS256")]
        running.others = list(OTHERS)
        yield running


@pytest.fixture(scope="module")
def api(database_url: str, issuer: Issuer) -> Iterator[httpx.Client]:
    """A client, without a token of its own, of a service that trusts the issuer."""
    with (
        in_thread(settings(database_url, **issuer.settings)) as base_url,
        httpx.Client(base_url=base_url, timeout=30) as client,
    ):
        yield client


def assert_refused(response: httpx.Response, challenge: str = 'Bearer error="invalid_token"') -> None:
    """Assert a 401 whose detail is one sentence."""
    assert_error(response, 401)
    assert response.headers.get_list("WWW-Authenticate") == [challenge]
    assert re.fullmatch(r"[A-Z][^.!?]+\.", response.json()["detail"])


Forge = Callable[[Issuer, str], str]
"""Returns the credentials to send after `Bearer` for a user."""


def with_claims(**changes: object) -> Forge:
    """A token with changed claims, signed by the issuer."""
    return lambda issuer, user: issuer.token(user, **changes)


def with_time(claim: str, seconds: float) -> Forge:
    """A token with a time, in seconds from now, as a claim, signed by the issuer."""
    return lambda issuer, user: issuer.token(user, **{claim: time.time() + seconds})


def with_header(number: int = 0, /, **changes: object) -> Forge:
    """A token with a changed header, signed by the issuer with its key of this number."""
    return lambda issuer, user: issuer.keys[number].token(issuer.claims(user), **changes)


def with_payload(payload: bytes) -> Forge:
    """A token with this payload, signed by the issuer."""
    return lambda issuer, _: issuer.keys[0].token(payload)


def with_exact_header(header: object) -> Forge:
    """A token with exactly this header and a valid signature."""
    return lambda issuer, user: token(header, issuer.claims(user), issuer.keys[0].sign)


def with_parts(change: Callable[[str, str, str], str]) -> Forge:
    """A valid token whose parts are changed by `change`."""

    def forge(issuer: Issuer, user: str) -> str:
        header, payload, signature = issuer.token(user).split(".")
        return change(header, payload, signature)

    return forge


def with_public_data_as_secret(number: int, secret: Callable[[Key], bytes], algorithm: str = "HS256") -> Forge:
    """A token signed with HMAC and public data as the secret."""

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


def with_other_key(number: int, **header: object) -> Forge:
    """A token signed with a key that is not the issuer's, with the `kid` of one that is."""

    def forge(issuer: Issuer, user: str) -> str:
        copied = issuer.keys[number]
        return Key(copied.algorithm, copied.kid).token(issuer.claims(user), **header)

    return forge


def with_embedded_key(issuer: Issuer, user: str) -> str:
    own = Key()
    return own.token(issuer.claims(user), jwk=own.jwk)


def with_embedded_key_and_known_kid(issuer: Issuer, user: str) -> str:
    own = Key(kid=issuer.keys[0].kid)
    return own.token(issuer.claims(user), jwk=own.jwk)


def with_pss_signature(issuer: Issuer, user: str) -> str:
    key = issuer.keys[2]
    return key.token(
        issuer.claims(user), partial(jwt.get_algorithm_by_name("PS256").sign, key=key.private), alg="PS256"
    )


def with_der_signature(issuer: Issuer, user: str) -> str:
    private = issuer.keys[1].private
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return issuer.keys[1].token(issuer.claims(user), lambda text: private.sign(text, ec.ECDSA(SHA256())))


def with_kid_of_another_kind(issuer: Issuer, user: str) -> str:
    return issuer.keys[0].token(issuer.claims(user), kid=issuer.keys[1].kid)


def with_claims_of_another_token(issuer: Issuer, user: str) -> str:
    header, _, signature = issuer.token(str(uuid4())).split(".")
    payload = base64url(json.dumps(issuer.claims(user)).encode())
    return f"{header}.{payload}.{signature}"


def with_additional_header(issuer: Issuer, user: str) -> str:
    header, payload, signature = issuer.token(user).split(".")
    members = json.loads(base64.urlsafe_b64decode(header + "=="))
    return f"{base64url(json.dumps({**members, 'typ': 'JWT'}).encode())}.{payload}.{signature}"


def with_signature_encoded_differently(header: str, payload: str, signature: str) -> str:
    # The last character of 64 encoded bytes has four unused bits.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return f"{header}.{payload}.{signature[:-1]}{alphabet[alphabet.index(signature[-1]) + 1]}"


def with_unusable_key(name: str, **header: object) -> Forge:
    """A token signed with a key that the issuer publishes but that must not be accepted."""
    return lambda issuer, user: UNUSABLE[name].token(issuer.claims(user), **header)


def with_published_secret(kid: str) -> Forge:
    """A token signed with a secret that the issuer publishes."""

    def forge(issuer: Issuer, user: str) -> str:
        return token({"alg": "HS256", "kid": kid}, issuer.claims(user), partial(_hmac, "HS256", SECRET))

    return forge


DEEP = b"[" * 4000
FORGED: dict[str, Forge] = {
    # Not signed, or signed with public data.
    "alg none": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), _nothing, alg="none"),
    "alg None": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), _nothing, alg="None"),
    "alg none with the signature": with_header(alg="none"),
    "alg none without kid": lambda issuer, user: issuer.keys[0].token(
        issuer.claims(user), _nothing, alg="none", kid=...
    ),
    "HS256 with the PEM": with_public_data_as_secret(0, _pem),
    "HS256 with the PEM of RSA": with_public_data_as_secret(2, _pem),
    "HS512 with the PEM of RSA": with_public_data_as_secret(2, _pem, "HS512"),
    "HS256 with the DER": with_public_data_as_secret(1, _der),
    "HS256 with the raw key": with_public_data_as_secret(0, _raw),
    "HS256 with the JWK": with_public_data_as_secret(0, _jwk),
    "HS256 with x": with_public_data_as_secret(0, _x),
    "HS384 with the raw key": with_public_data_as_secret(0, _raw, "HS384"),
    "HS256 with nothing": with_public_data_as_secret(0, _nothing),
    # Signed with a key that is not the issuer's.
    "other EdDSA key": with_other_key(0),
    "other ES256 key": with_other_key(1),
    "other RS256 key": with_other_key(2),
    "unknown kid": lambda issuer, user: Key().token(issuer.claims(user)),
    "embedded jwk": with_embedded_key,
    "embedded jwk under a known kid": with_embedded_key_and_known_kid,
    "x5c": with_other_key(2, x5c=["MIIB"]),
    # Signed with the issuer's key, with a wrong header or another algorithm.
    "alg ES256 with the EdDSA key": with_header(alg="ES256"),
    "alg RS256 with the EdDSA key": with_header(alg="RS256"),
    "alg EdDSA with the ES256 key": with_header(1, alg="EdDSA"),
    "alg PS256 with the RS256 key": with_pss_signature,
    "alg RS512 with the RS256 key": with_header(2, alg="RS512"),
    "alg in lower case": with_header(alg="eddsa"),
    "alg missing": with_header(alg=...),
    "alg null": with_header(alg=None),
    "alg empty": with_header(alg=""),
    "alg number": with_header(alg=1),
    "alg list": with_header(alg=["EdDSA"]),
    "alg object": with_header(alg={"EdDSA": 1}),
    "kid of another kind of key": with_kid_of_another_kind,
    "kid missing": with_header(kid=...),
    "kid empty": with_header(kid=""),
    "kid null": with_header(kid=None),
    "kid number": with_header(kid=1),
    "kid true": with_header(kid=True),
    "kid list": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), kid=[issuer.keys[0].kid]),
    "kid object": with_header(kid={}),
    "kid with NUL": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), kid=issuer.keys[0].kid + "\0"),
    "kid in upper case": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), kid=issuer.keys[0].kid.upper()),
    "kid is a lone surrogate": with_header(kid="\ud800"),
    "kid is a path": with_header(kid="../../../dev/null"),
    "crit unknown": with_header(crit=["exp"]),
    "crit empty": with_header(crit=[]),
    "crit text": with_header(crit="b64"),
    "crit of numbers": with_header(crit=[1]),
    "crit null": with_header(crit=None),
    "b64 false": with_header(b64=False),
    "b64 false and critical": with_header(b64=False, crit=["b64"]),
    "b64 false and critical with nothing": lambda issuer, user: issuer.keys[0].token(b"", b64=False, crit=["b64"]),
    "DER for r and s": with_der_signature,
    "r and s of zero": lambda issuer, user: issuer.keys[1].token(issuer.claims(user), lambda _: bytes(64)),
    "signature of zero bytes": lambda issuer, user: issuer.keys[0].token(issuer.claims(user), lambda _: bytes(64)),
    "signature of RSA one": lambda issuer, user: issuer.keys[2].token(issuer.claims(user), lambda _: bytes(255) + b"1"),
    # Signed with keys that the issuer publishes but that must not be accepted.
    "published P-384": with_unusable_key("ES384"),
    "published P-384 with alg ES256": with_unusable_key("ES256 with the wrong curve"),
    "published secp256k1": with_unusable_key("ES256K"),
    "published RS512": with_unusable_key("RS512"),
    "published RS512 used as RS256": lambda issuer, user: UNUSABLE["RS512"].token(
        issuer.claims(user),
        partial(jwt.get_algorithm_by_name("RS256").sign, key=UNUSABLE["RS512"].private),
        alg="RS256",
    ),
    "published without kid": with_unusable_key("no id", kid=...),
    "published without kid, kid empty": with_unusable_key("no id"),
    "published without kid, kid null": with_unusable_key("no id", kid=None),
    "published with a number for kid": with_unusable_key("no id", kid=7),
    "published with a number for kid, as text": with_unusable_key("no id", kid="7"),
    "published for encryption": with_unusable_key("for encryption"),
    "published secret": with_published_secret("secret"),
    "published secret with alg": with_published_secret("secret with alg"),
    # Signed by the issuer, but with a wrong, missing or malformed claim.
    "iss wrong": with_claims(iss="https://elsewhere.example"),
    "iss with a slash": lambda issuer, user: issuer.token(user, iss=f"{issuer.url}/"),
    "iss in upper case": lambda issuer, user: issuer.token(user, iss=issuer.url.upper()),
    "iss begins alike": lambda issuer, user: issuer.token(user, iss=f"{issuer.url}.example"),
    "iss missing": with_claims(iss=...),
    "iss null": with_claims(iss=None),
    "iss empty": with_claims(iss=""),
    "iss list": lambda issuer, user: issuer.token(user, iss=[issuer.url]),
    "iss number": with_claims(iss=1),
    "iss true": with_claims(iss=True),
    "iss object": lambda issuer, user: issuer.token(user, iss={issuer.url: issuer.url}),
    "aud wrong": with_claims(aud="https://elsewhere.example"),
    "aud begins alike": lambda issuer, user: issuer.token(user, aud=f"{issuer.url}.example"),
    "aud missing": with_claims(aud=...),
    "aud null": with_claims(aud=None),
    "aud empty": with_claims(aud=""),
    "aud empty list": with_claims(aud=[]),
    "aud list of others": with_claims(aud=["https://elsewhere.example"]),
    "aud list with a number": lambda issuer, user: issuer.token(user, aud=[issuer.url, 1]),
    "aud list in a list": lambda issuer, user: issuer.token(user, aud=[[issuer.url]]),
    "aud number": with_claims(aud=1),
    "aud true": with_claims(aud=True),
    "aud object": lambda issuer, user: issuer.token(user, aud={issuer.url: issuer.url}),
    "exp past by more than the leeway": with_time("exp", -60),
    "exp missing": with_claims(exp=...),
    "exp null": with_claims(exp=None),
    "exp true": with_claims(exp=True),
    "exp zero": with_claims(exp=0),
    "exp negative": with_claims(exp=-1),
    "exp text": with_claims(exp="tomorrow"),
    "exp digits as text": with_claims(exp="99999999999"),
    "exp list": with_claims(exp=[99999999999]),
    "exp object": with_claims(exp={}),
    "exp NaN": with_claims(exp=float("nan")),
    "exp Infinity": with_claims(exp=float("inf")),
    "sub missing": with_claims(sub=...),
    "sub null": with_claims(sub=None),
    "sub number": with_claims(sub=1),
    "sub true": with_claims(sub=True),
    "sub list": lambda issuer, user: issuer.token([user]),
    "sub object": lambda issuer, user: issuer.token({user: user}),
    "nbf in the future": with_time("nbf", 60),
    "nbf text": with_claims(nbf="now"),
    "nbf list": with_claims(nbf=[]),
    "iat in the future": with_time("iat", 60),
    "iat text": with_claims(iat="now"),
    "iat list": with_claims(iat=[]),
    # Changed after signing.
    "payload changed": with_claims_of_another_token,
    "header changed": with_additional_header,
    "signature missing": with_parts(lambda header, payload, _: f"{header}.{payload}."),
    "signature and its dot missing": with_parts(lambda header, payload, _: f"{header}.{payload}"),
    "signature shortened by one": with_parts(lambda header, payload, signature: f"{header}.{payload}.{signature[:-1]}"),
    "signature shortened by four": with_parts(
        lambda header, payload, signature: f"{header}.{payload}.{signature[:-4]}"
    ),
    "signature shortened to half": with_parts(
        lambda header, payload, signature: f"{header}.{payload}.{signature[:43]}"
    ),
    "signature twice": with_parts(lambda header, payload, signature: f"{header}.{payload}.{signature}{signature}"),
    "signature encoded differently": with_parts(with_signature_encoded_differently),
    "payload missing": with_parts(lambda header, _, signature: f"{header}..{signature}"),
    "header missing": with_parts(lambda _, payload, signature: f".{payload}.{signature}"),
    "four parts": with_parts(lambda *parts: ".".join(parts) + ".e30"),
    "five parts": with_parts(lambda *parts: ".".join(parts) + ".e30.e30"),
    "a trailing dot": with_parts(lambda *parts: ".".join(parts) + "."),
    "a leading dot": with_parts(lambda *parts: "." + ".".join(parts)),
    "percent-encoded": with_parts(lambda *parts: "%2E".join(parts)),
    "spaces for dots": with_parts(lambda *parts: " ".join(parts)),
    "a space before a dot": with_parts(lambda *parts: " .".join(parts)),
    "a tab after a dot": with_parts(lambda *parts: ".\t".join(parts)),
    "in quotes": with_parts(lambda *parts: f'"{".".join(parts)}"'),
    "named": with_parts(lambda *parts: f"token={'.'.join(parts)}"),
    "twice": with_parts(lambda *parts: f"{'.'.join(parts)}, Bearer {'.'.join(parts)}"),
    "scheme twice": with_parts(lambda *parts: f"Bearer {'.'.join(parts)}"),
    # Not a token.
    "a word": lambda *_: "x",
    "dots": lambda *_: "..",
    "header is a list": with_exact_header([]),
    "header is a text": with_exact_header("kid"),
    "header is null": with_exact_header(None),
    "header is not JSON": with_exact_header(b"{"),
    "header is not UTF-8": with_exact_header(b"\xff\xfe"),
    "header is deep": with_exact_header(DEEP),
    "header has a deep member": with_exact_header(b'{"kid":' + DEEP),
    "payload is a list": with_payload(b"[]"),
    "payload is a text": with_payload(b'"sub"'),
    "payload is null": with_payload(b"null"),
    "payload is empty": with_payload(b""),
    "payload is not JSON": with_payload(b"{"),
    "payload is not UTF-8": with_payload(b"\xff\xfe"),
    "payload is deep": with_payload(DEEP),
    "payload has a very long number": with_payload(b'{"exp":' + b"9" * 5000 + b"}"),
    "huge": lambda *_: "x" * 60_000,
    "valid but too long": lambda issuer, user: issuer.token(user, name="x" * 40_000),
}
ACCEPTED: dict[str, Forge] = {
    "EdDSA": with_header(0),
    "ES256": with_header(1),
    "RS256": with_header(2),
    "key without alg": lambda issuer, user: WITHOUT_ALG.token(issuer.claims(user)),
    "key with use": lambda issuer, user: WITH_USE.token(issuer.claims(user)),
    "typ": with_header(typ="JWT"),
    "aud list with the service": lambda issuer, user: issuer.token(user, aud=["https://elsewhere.example", issuer.url]),
    "exp past by less than the leeway": with_time("exp", -1),
    "nbf ahead by less than the leeway": with_time("nbf", 5),
    "iat ahead by less than the leeway": with_time("iat", 5),
    "iat missing": with_claims(iat=...),
    "exp with a fraction": with_time("exp", 60.5),
    "exp far in the future": with_claims(exp=10**400),
    "other claims": with_claims(name="Ada", email="ada@example.org", roles=[{}]),
    "long": with_claims(name="x" * 4_000),
    "sub in upper case": lambda issuer, user: issuer.token(user.upper()),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_an_invalid_token_is_refused(api: httpx.Client, issuer: Issuer, user: str, tasks: str, forge: Forge) -> None:
    assert_refused(api.post(tasks, json={"title": "Buy milk"}, headers=bearer(forge(issuer, user))))
    assert api.get(tasks, headers=issuer.bearer(user)).json() == []


@pytest.mark.parametrize("forge", ACCEPTED.values(), ids=ACCEPTED)
def test_a_valid_token_is_accepted(api: httpx.Client, issuer: Issuer, user: str, tasks: str, forge: Forge) -> None:
    created = api.post(tasks, json={"title": "Buy milk"}, headers=bearer(forge(issuer, user)))
    assert created.status_code == 201, created.text
    assert created.json()["user_id"] == user


@pytest.mark.parametrize(
    "header", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer    {}"], ids=lambda text: f"[{text}]"
)
def test_the_scheme_ignores_case_and_takes_several_spaces(
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
def test_exactly_one_bearer_token_is_required(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, headers: list[str]
) -> None:
    given = [("Authorization", text.format(issuer.token(user))) for text in headers]
    assert_refused(api.post(tasks, json={"title": "Buy milk"}, headers=given), "Bearer")
    assert api.get(tasks, headers=issuer.bearer(user)).json() == []


def test_a_token_is_read_only_from_the_authorization_header(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str
) -> None:
    valid = issuer.token(user)
    for name in "Proxy-Authorization", "X-Authorization", "Cookie":
        assert_refused(api.get(tasks, headers={name: f"Bearer {valid}"}), "Bearer")
    assert_refused(api.get(tasks, params={"access_token": valid}), "Bearer")
    assert_refused(api.post(tasks, json={"title": "Buy milk", "access_token": valid}), "Bearer")


@pytest.mark.parametrize("extra", [b"\xe9", b"\xff\xfe", b"\xc3\xa9", b"\xf0\x9f\x94\x91", b"\x80"])
def test_a_token_with_bytes_beyond_ascii_is_refused(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, extra: bytes
) -> None:
    for value in issuer.token(user).encode() + extra, extra + issuer.token(user).encode(), extra:
        assert_refused(api.get(tasks, headers=[(b"Authorization", b"Bearer " + value)]))


def test_a_key_url_in_a_token_is_never_fetched(api: httpx.Client, issuer: Issuer, user: str, tasks: str) -> None:
    with publishing() as forger:
        forger.keys[0].kid = issuer.keys[0].kid
        for location in (
            {"jku": f"{forger.url}/jwks"},
            {"x5u": f"{forger.url}/jwks"},
            {"jku": f"{forger.url}/jwks", "kid": "x"},
        ):
            forged = forger.keys[0].token(issuer.claims(user), **location)
            assert_refused(api.get(tasks, headers=bearer(forged)))
        valid = issuer.keys[0].token(issuer.claims(user), jku=f"{forger.url}/jwks")
        assert api.get(tasks, headers=bearer(valid)).status_code == 200
        assert forger.fetches == 0


def six_operations(
    api: httpx.Client, tasks: str, task_id: str, headers: dict[str, str]
) -> Iterator[tuple[str, httpx.Response]]:
    """The response of each operation, all on the same task except the creation; the deletion is last."""
    task = f"{tasks}/{task_id}"
    yield "create_task", api.post(tasks, json={"title": "Call the bank"}, headers=headers)
    yield "list_tasks", api.get(tasks, headers=headers)
    yield "get_task", api.get(task, headers=headers)
    yield "update_task", api.put(task, json={"title": "Call the baker"}, headers=headers)
    yield "toggle_task", api.patch(f"{task}/complete", headers=headers)
    yield "delete_task", api.delete(task, headers=headers)


def test_every_operation_requires_a_token_of_the_user_in_the_path(
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
def test_a_subject_that_is_not_a_user_id_is_403(
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
def test_every_spelling_of_a_user_id_is_accepted_only_from_its_user(
    api: httpx.Client, issuer: Issuer, user: str, tasks: str, spelling: str
) -> None:
    own, other = issuer.bearer(user), issuer.bearer(str(uuid4()))
    spelt = spelling.format(user, user.upper(), user.replace("-", ""), user.replace("-", "")[1:])
    path = f"/api/{quote(spelt)}/tasks"
    refused = api.post(path, json={"title": "Forged"}, headers=other)
    assert refused.status_code in (403, 422), refused.text
    created = api.post(path, json={"title": "Buy milk"}, headers=own)
    assert created.status_code in (201, 403, 422), created.text
    if created.status_code == 201:
        assert created.json()["user_id"] == user
    assert created.status_code == 201 or spelling not in ("{0}", "{1}")
    assert [task["title"] for task in api.get(tasks, headers=own).json()] == ["Buy milk"] * (created.status_code == 201)


def test_without_a_token_an_invalid_request_is_401_too(api: httpx.Client, tasks: str) -> None:
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
def test_a_path_without_a_valid_user_id_is_403(api: httpx.Client, issuer: Issuer, user: str, subject: str) -> None:
    assert_error(api.get("/api/nobody/tasks", headers=issuer.bearer(subject.format(user=user))), 403)


def test_a_request_without_a_valid_token_does_not_query_the_database(issuer: Issuer, user: str, tasks: str) -> None:
    unreachable = f"postgresql://tasks@127.0.0.1:{free_port()}/tasks"
    with in_thread(settings(unreachable, **issuer.settings)) as base_url, httpx.Client(base_url=base_url) as api:
        assert api.get(tasks, headers=issuer.bearer(user)).status_code == 503
        assert_refused(api.get(tasks), "Bearer")
        assert_error(api.get(tasks, headers=issuer.bearer(str(uuid4()))), 403)


def test_the_log_contains_no_token_and_no_personal_data(
    database_url: str, issuer: Issuer, user: str, tasks: str, caplog: pytest.LogCaptureFixture
) -> None:
    given = [issuer.token(user, name="Ada Lovelace"), *(forge(issuer, user) for forge in FORGED.values())]
    with (
        in_thread(settings(database_url, log_level="debug", **issuer.settings)) as url,
        httpx.Client(base_url=url, timeout=30) as api,
    ):
        statuses = [api.get(tasks, headers=bearer(text)).status_code for text in given]
        other_user = api.get(f"/api/{uuid4()}/tasks", headers=bearer(given[0])).status_code
    # Everything that the service logs is in one of these; the client's own records contain its URLs.
    log = caplog.text + str([vars(record) for record in caplog.records])
    assert (statuses, other_user) == ([200] + [401] * len(FORGED), 403)
    assert any(record.levelname == "DEBUG" for record in caplog.records)
    assert len(re.findall("GET /api/{user_id}/tasks 401", caplog.text)) == len(FORGED)
    assert user not in log
    assert "Ada Lovelace" not in log
    for text in given:
        assert not [part for part in text.split(".") if len(part) > 8 and part in log]
