"""A database like Neon's: TLS only, SCRAM with channel binding, and a password that is not logged."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from backend.core import schema
from backend.tests.errors import assert_error
from backend.tests.serving import as_process, free_port, in_thread, settings

# The embedded PostgreSQL is built without TLS.
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="needs a PostgreSQL with TLS, in /usr/lib/postgresql")

# With characters that are special in a URL.
PASSWORD = "s3cret/p@ss:w%rd?#"
NEON = {"sslmode": "require", "channel_binding": "require"}


class Server:
    """A PostgreSQL that accepts only `owner`, with the password and over TLS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._port = free_port()
        # PostgreSQL refuses to run as root.
        self._user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._write("password", PASSWORD.encode())
        self._run("initdb", "--username=owner", f"--pwfile={folder}/password", "--auth=scram-sha-256")
        certificate, key = _self_signed("localhost")
        self._write("data/server.crt", certificate)
        self._write("data/server.key", key)
        self._write("data/pg_hba.conf", b"hostssl all all all scram-sha-256\n")
        options = f"-c ssl=on -c listen_addresses=localhost -c port={self._port} -c unix_socket_directories=''"
        self._run("pg_ctl", f"--log={folder}/log", f"--options={options}", "--wait", "start")

    def url(self, *, host: str = "localhost", password: str = PASSWORD, **parameters: str) -> str:
        """The database's URL with these libpq parameters."""
        return f"postgresql://owner:{quote(password, safe='')}@{host}:{self._port}/postgres?{urlencode(parameters)}"

    def stop(self) -> None:
        """Stop the server immediately."""
        self._run("pg_ctl", "--mode=immediate", "stop")

    def _write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        (self.folder / name).chmod(0o600)
        if self._user:
            os.chown(self.folder / name, self._user.pw_uid, self._user.pw_gid)

    def _run(self, program: str, *arguments: str) -> None:
        user = self._user
        if user:
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        subprocess.run(
            [PROGRAMS[-1] / program, f"--pgdata={self._data}", *arguments],
            stdout=subprocess.DEVNULL,
            cwd="/",
            user=user and user.pw_uid,
            group=user and user.pw_gid,
            extra_groups=user and [],
            check=True,
        )


def _self_signed(host: str) -> tuple[bytes, bytes]:
    """A certificate for `host` that is its own root, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not in pytest's folder, which PostgreSQL's user cannot access.
    folder = Path(tempfile.mkdtemp())
    try:
        started = Server(folder)
        yield started
        started.stop()
    finally:
        shutil.rmtree(folder)


def test_a_neon_url_works_and_the_log_contains_no_password(server: Server, tmp_path: Path) -> None:
    env = {"DATABASE_URL": server.url(**NEON), "LOG_LEVEL": "debug"}
    with as_process(tmp_path, env=env) as service, httpx.Client(base_url=service.base_url, timeout=30) as client:
        tasks = f"/api/{uuid4()}/tasks"
        task = client.post(tasks, json={"title": "Buy milk"}).headers["Location"]
        assert client.get(task).json()["title"] == "Buy milk"
        assert client.put(task, json={"title": "Buy bread"}).json()["title"] == "Buy bread"
        assert client.patch(f"{task}/complete").json()["completed"] is True
        assert client.get(tasks).json() == [client.get(task).json()]
        assert client.delete(task).status_code == 204
        assert client.get("/health").status_code == 200
    _assert_no_password(service.log)


def test_a_wrong_password_is_a_503_that_does_not_contain_it(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with in_thread(settings(server.url(password=PASSWORD + "!", **NEON), log_level="debug")) as url:
        response = httpx.get(f"{url}/api/{uuid4()}/tasks", timeout=30)
        assert_error(response, 503)
    _assert_no_password(response.text)
    assert "password authentication failed" in caplog.text
    _assert_no_password(caplog.text)
    _assert_no_password(str([vars(record) for record in caplog.records]))


def _assert_no_password(text: str) -> None:
    assert PASSWORD not in text
    assert quote(PASSWORD, safe="") not in text
    assert "s3cret" not in text


def test_a_certificate_is_verified_if_the_url_requires_it(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(_self_signed("localhost")[0])
    certificate = tmp_path / "server.crt"
    shutil.copy(server.folder / "data" / "server.crt", certificate)
    right = server.url(sslmode="verify-full", sslrootcert=str(certificate))
    schema.upgrade(right)
    for url, status in (
        (right, 200),
        (server.url(sslmode="verify-full", sslrootcert=str(other)), 503),
        (server.url(host="127.0.0.1", sslmode="verify-full", sslrootcert=str(certificate)), 503),
        (server.url(host="127.0.0.1", sslmode="verify-ca", sslrootcert=str(certificate)), 200),
        (server.url(sslmode="disable"), 503),
        (server.url(sslmode="disable", channel_binding="require"), 503),
    ):
        with in_thread(settings(url)) as base_url:
            assert httpx.get(f"{base_url}/health", timeout=30).status_code == status, url
