"""Checks that a service or an embedded server leaves no processes or files behind."""

import contextlib
import os
import select
import subprocess
from pathlib import Path


def processes(folder: Path) -> list[int]:
    """The processes of the server whose data is under `folder`: their working directory is the data directory."""
    data = folder.resolve() / "postgres"
    if not data.exists():
        return []
    owner = data.stat()
    links = [process / "cwd" for process in Path("/proc").glob("[0-9]*") if _is_postgres_of(process, owner.st_uid)]
    # As the owner: without CAP_SYS_PTRACE, root in a container cannot read these links.
    root = os.geteuid() == 0
    looked = subprocess.run(
        ["find", *links, "-maxdepth", "0", "-printf", "%h %l\n"],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, cwd="/", capture_output=True, text=True, check=False,
        user=owner.st_uid if root else None, group=owner.st_gid if root else None, extra_groups=[] if root else None,
    )  # fmt: skip
    # A process may have ended meanwhile. After any other error, a running process could be missing from the result.
    errors = [line for line in looked.stderr.splitlines() if not line.endswith(": No such file or directory")]
    assert not errors, errors
    found = [line.split(" ", 1) for line in looked.stdout.splitlines()]
    return [int(Path(process).name) for process, directory in found if directory == str(data)]


def _is_postgres_of(process: Path, user: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        # Every process of a server keeps the name of its program here, even if its command line is changed.
        return (process / "comm").read_text() == "postgres\n" and process.stat().st_uid == user
    return False


def members(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # After the program's name in parentheses: state, parent, group.
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(process.name))
    return found


def assert_server_stopped(folder: Path) -> None:
    """Assert that the server under `folder` has stopped, and that everything it started ends."""
    assert not (folder / "postgres" / "postmaster.pid").exists()
    assert_processes_end(processes(folder))


def assert_processes_end(pids: list[int]) -> None:
    """Assert that these processes end by themselves."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            ended, *_ = select.select([os.pidfd_open(pid)], [], [], 20)
            assert ended, Path(f"/proc/{pid}/cmdline").read_text()
