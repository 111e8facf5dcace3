"""A Better Auth server for tests, and people with accounts on it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx

FOLDER = Path(__file__).parent
READY = "Better Auth: "


@dataclass(frozen=True)
class Person:
    """A person with an account; `token` is the JWT for the session that the sign-up started."""

    id: str
    name: str
    email: str
    token: str = field(repr=False)

    @property
    def tasks(self) -> str:
        """The path of this person's tasks."""
        return f"/api/{self.id}/tasks"

    @property
    def authorization(self) -> dict[str, str]:
        """The header with the person's token."""
        return {"Authorization": f"Bearer {self.token}"}


@contextmanager
def serving(node: str, database_url: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run Better Auth, creating its tables if they are missing. Yields its origin and the process."""
    process = subprocess.Popen(
        [node, "server.mjs"],
        cwd=FOLDER,
        env={
            "PATH": os.environ["PATH"],
            "DATABASE_URL": database_url,
            "BETTER_AUTH_SECRET": "the same for all servers on one database: it encrypts their keys",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(READY):
                process.kill()
                raise AssertionError(f"Better Auth did not start: {line}{process.stdout.read()}")
            yield line.removeprefix(READY).strip(), process
        finally:
            process.kill()


def sign_up(origin: str) -> Person:
    """Create an account with the Better Auth at `origin`, and fetch a token as a browser does."""
    unique = uuid4().hex
    name, email = f"Name {unique}", f"{unique}@example.com"
    with httpx.Client(base_url=origin, headers={"Origin": origin}, timeout=30) as browser:
        account = {"name": name, "email": email, "password": "correct horse battery"}
        signed_up = browser.post("/api/auth/sign-up/email", json=account)
        assert signed_up.status_code == 200, signed_up.text
        token = browser.get("/api/auth/token").json()["token"]
    return Person(signed_up.json()["user"]["id"], name, email, token)
