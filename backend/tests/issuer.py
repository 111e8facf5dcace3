"""A configurable issuer of tokens, which replaces Better Auth, fails as tests require, and signs any token."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import EllipsisType

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

Sign = Callable[[bytes], bytes]
Answer = Callable[[BaseHTTPRequestHandler], None]
"""Handles a fetch instead of publishing the keys."""


class Key:
    """A key pair that signs tokens with `algorithm`, with a unique id unless one is given."""

    def __init__(self, algorithm: str = "EdDSA", kid: str | None = None, curve: ec.EllipticCurve | None = None) -> None:
        self.algorithm = algorithm
        self.private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if algorithm.startswith("RS"):
            self.private = rsa.generate_private_key(65537, 2048)
        elif algorithm.startswith("ES"):
            self.private = ec.generate_private_key(curve or ec.SECP256R1())
        else:
            self.private = ed25519.Ed25519PrivateKey.generate()
        self.public = self.private.public_key()
        self.kid = f"key-{id(self)}-{time.monotonic_ns()}" if kid is None else kid

    @property
    def jwk(self) -> dict[str, object]:
        """The public key as published."""
        public = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.public, as_dict=True)
        return {**public, "alg": self.algorithm, "kid": self.kid}

    def sign(self, text: bytes) -> bytes:
        """The signature that a verifier expects."""
        return jwt.get_algorithm_by_name(self.algorithm).sign(text, self.private)

    def token(self, claims: object, sign: Sign | None = None, /, **header: object) -> str:
        """A token with this key's header and the changes in `header`; `...` removes a member."""
        members = {"alg": self.algorithm, "kid": self.kid, **header}
        return token({name: value for name, value in members.items() if value is not ...}, claims, sign or self.sign)


def token(header: object, claims: object, sign: Sign) -> str:
    """A JWT with any parts: bytes are used unchanged, other objects as JSON."""
    signed = f"{base64url(_serialized(header))}.{base64url(_serialized(claims))}"
    return f"{signed}.{base64url(sign(signed.encode()))}"


def base64url(content: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _serialized(content: object) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


class Issuer:
    """Publishes `keys`, or calls `answer` if it is set; counts the fetches."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: list[Key] = [Key()]
        self.others: list[object] = []
        """Published in addition to the keys, before and after them."""
        self.answer: Answer | None = None
        self.fetches = 0
        self.max_concurrent_fetches = 0
        self.fetch_started = threading.Semaphore(0)
        """Released when a fetch begins."""
        self.client_disconnected = threading.Semaphore(0)
        """Released when the client of a fetch has disconnected."""
        self._lock = threading.Lock()
        self._concurrent_fetches = 0
        self._may_respond = threading.Event()
        self._may_respond.set()

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a service that trusts this issuer."""
        return {"auth_jwks_url": f"{self.url}/jwks", "auth_issuer": self.url, "auth_audience": self.url}

    def reset_keys(self) -> None:
        """Publish one new key and nothing else."""
        self.keys, self.others, self.answer = [Key()], [], None

    def reset_counters(self) -> None:
        """Count fetches from now on."""
        self.fetches = self.max_concurrent_fetches = 0
        self.fetch_started, self.client_disconnected = threading.Semaphore(0), threading.Semaphore(0)

    def claims(self, subject: object, **changes: object) -> dict[str, object]:
        """The claims of a valid token for `subject`, with changes; `...` removes a claim."""
        now = int(time.time())
        claims = {"sub": subject, "iss": self.url, "aud": self.url, "iat": now, "exp": now + 900, **changes}
        return {name: value for name, value in claims.items() if not isinstance(value, EllipsisType)}

    def token(self, subject: object, **changes: object) -> str:
        """A token for `subject`, signed with the first key."""
        return self.keys[0].token(self.claims(subject, **changes))

    def bearer(self, subject: object, **changes: object) -> dict[str, str]:
        """The Authorization header with that token."""
        return bearer(self.token(subject, **changes))

    @contextmanager
    def delaying(self) -> Iterator[None]:
        """Delay all responses until the end of the block."""
        self._may_respond.clear()
        try:
            yield
        finally:
            self._may_respond.set()

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        """Respond to one fetch."""
        with self._lock:
            self.fetches += 1
            self._concurrent_fetches += 1
            self.max_concurrent_fetches = max(self.max_concurrent_fetches, self._concurrent_fetches)
        self.fetch_started.release()
        try:
            self._may_respond.wait(60)
            keys = [*self.others, *(key.jwk for key in self.keys), *self.others]
            (self.answer or reply(200, json.dumps({"keys": keys}).encode()))(request)
        finally:
            with self._lock:
                self._concurrent_fetches -= 1
        request.connection.shutdown(socket.SHUT_WR)
        request.rfile.read()
        self.client_disconnected.release()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # Clients may disconnect before the response.


@contextmanager
def publishing() -> Iterator[Issuer]:
    """Run an issuer in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.respond(self)

        def log_message(self, *_: object) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()


def bearer(credentials: str) -> dict[str, str]:
    """The Authorization header with these credentials."""
    return {"Authorization": f"Bearer {credentials}"}


def reply(status: int, body: bytes, **headers: str) -> Answer:
    """Respond to every fetch with this."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def disconnect(_: BaseHTTPRequestHandler) -> None:
    """Close the connection without a response."""


def drip(request: BaseHTTPRequestHandler) -> None:
    """Send one byte at a time until the client disconnects."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b" ")
        time.sleep(0.02)
