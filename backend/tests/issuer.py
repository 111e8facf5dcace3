"""A configurable issuer of tokens: Better Auth as the service sees it, its failures, and forged tokens."""

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
"""What the issuer does instead of publishing its keys."""


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
        """The public key as it is published."""
        public = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.public, as_dict=True)
        return {**public, "alg": self.algorithm, "kid": self.kid}

    def sign(self, text: bytes) -> bytes:
        """The signature that a verifier expects."""
        return jwt.get_algorithm_by_name(self.algorithm).sign(text, self.private)

    def token(self, claims: object, sign: Sign | None = None, /, **header: object) -> str:
        """A token with this key's header, changed as `header` says, where `...` takes a member out."""
        members = {"alg": self.algorithm, "kid": self.kid, **header}
        return token({name: value for name, value in members.items() if value is not ...}, claims, sign or self.sign)


def token(header: object, claims: object, sign: Sign) -> str:
    """A JWT of any parts: bytes unchanged, everything else as JSON."""
    signed = f"{base64url(_serialized(header))}.{base64url(_serialized(claims))}"
    return f"{signed}.{base64url(sign(signed.encode()))}"


def base64url(content: bytes) -> str:
    """Base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _serialized(content: object) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


class Issuer:
    """Publishes `keys`, or behaves like `answer`; counts the requests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: list[Key] = [Key()]
        self.others: list[object] = []
        """Published besides the keys, before and after them."""
        self.answer: Answer | None = None
        self.fetches = 0
        self.most_at_once = 0
        self.asked = threading.Semaphore(0)
        """Released by every fetch that begins."""
        self.left = threading.Semaphore(0)
        """Released when who asked has hung up."""
        self._lock = threading.Lock()
        self._under_way = 0
        self._may_answer = threading.Event()
        self._may_answer.set()

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a service that trusts this issuer."""
        return {"auth_jwks_url": f"{self.url}/jwks", "auth_issuer": self.url, "auth_audience": self.url}

    def start_anew(self) -> None:
        """Publish one new key and nothing else."""
        self.keys, self.others, self.answer = [Key()], [], None

    def forget_fetches(self) -> None:
        """Count from now on."""
        self.fetches = self.most_at_once = 0
        self.asked, self.left = threading.Semaphore(0), threading.Semaphore(0)

    def claims(self, subject: object, **changes: object) -> dict[str, object]:
        """Those of a good token for `subject`, changed; `...` leaves a claim out."""
        now = int(time.time())
        claims = {"sub": subject, "iss": self.url, "aud": self.url, "iat": now, "exp": now + 900, **changes}
        return {name: value for name, value in claims.items() if not isinstance(value, EllipsisType)}

    def token(self, subject: object, **changes: object) -> str:
        """A token for `subject`, signed with the first key."""
        return self.keys[0].token(self.claims(subject, **changes))

    def bearer(self, subject: object, **changes: object) -> dict[str, str]:
        """The header of a request with that token."""
        return bearer(self.token(subject, **changes))

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let whoever asks wait until the end of the body."""
        self._may_answer.clear()
        try:
            yield
        finally:
            self._may_answer.set()

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one fetch."""
        with self._lock:
            self.fetches += 1
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        self.asked.release()
        try:
            self._may_answer.wait(60)
            keys = [*self.others, *(key.jwk for key in self.keys), *self.others]
            (self.answer or reply(200, json.dumps({"keys": keys}).encode()))(request)
        finally:
            with self._lock:
                self._under_way -= 1
        request.connection.shutdown(socket.SHUT_WR)
        request.rfile.read()
        self.left.release()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # Whoever hung up had waited long enough.


@contextmanager
def publishing() -> Iterator[Issuer]:
    """Run an issuer."""

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
    """The Authorization header of a token."""
    return {"Authorization": f"Bearer {credentials}"}


def reply(status: int, body: bytes, **headers: str) -> Answer:
    """Answer every fetch with this response."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def hang_up(_: BaseHTTPRequestHandler) -> None:
    """Close the connection without a response."""


def drip(request: BaseHTTPRequestHandler) -> None:
    """Send one byte at a time until the client disconnects."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b" ")
        time.sleep(0.02)
