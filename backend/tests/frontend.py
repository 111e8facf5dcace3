"""A server for frontends in tests: it serves a folder, and like Better Auth a JWKS and tokens, for one user."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm


@dataclass(frozen=True)
class Frontend:
    """The frontend's origin and the id of its user."""

    origin: str
    user: str

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a service that accepts its tokens and requests."""
        return {
            "AUTH_JWKS_URL": f"{self.origin}/api/auth/jwks",
            "AUTH_ISSUER": self.origin,
            "AUTH_AUDIENCE": self.origin,
            "CORS_ORIGINS": self.origin,
        }


class _Server(ThreadingHTTPServer):
    key = Ed25519PrivateKey.generate()
    user = ""
    origin = ""

    def jwks(self) -> object:
        return {"keys": [{**OKPAlgorithm.to_jwk(self.key.public_key(), as_dict=True), "kid": "1", "alg": "EdDSA"}]}

    def token(self) -> object:
        claims = {"sub": self.user, "iss": self.origin, "aud": self.origin, "exp": time.time() + 900}
        return {"token": jwt.encode(claims, self.key, "EdDSA", {"kid": "1"})}


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        answers = {"/api/auth/jwks": self.server.jwks, "/api/auth/token": self.server.token}
        if self.path not in answers:
            super().do_GET()
            return
        body = json.dumps(answers[self.path]()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name in the base class
        """Log nothing."""


@contextmanager
def frontend(folder: Path) -> Iterator[Frontend]:
    """Serve `folder`, with tokens for a new user."""
    with _Server(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        server.user = str(uuid4())
        server.origin = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Frontend(server.origin, server.user)
        server.shutdown()
