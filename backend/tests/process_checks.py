"""What a service or an embedded server leaves behind: nothing, once it has ended."""

import contextlib
import os
import select
from pathlib import Path


def processes(folder: Path) -> list[int]:
    """The processes of the server that keeps its data under `folder`: they work there, however they are called."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder.resolve() / "postgres":
                found.append(int(process.name))
    return found


def members(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the program's name in parentheses: state, parent, group.
            if int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(process.name))
    return found


def assert_none_is_left(folder: Path) -> None:
    """Assert that the server under `folder` has stopped, and all that it had started ends."""
    assert not (folder / "postgres" / "postmaster.pid").exists()
    assert_ending(processes(folder))


def assert_ending(pids: list[int]) -> None:
    """Assert that these processes end by themselves."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            ended, *_ = select.select([os.pidfd_open(pid)], [], [], 20)
            assert ended, Path(f"/proc/{pid}/cmdline").read_text()
