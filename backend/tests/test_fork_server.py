"""A process from the fork server is like a new interpreter's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.tests.fork_server import ForkedProcess
from backend.tests.serving import ROOT

SHOW = """
import os, resource, signal, sys
print(sys.argv, sys.path, os.getcwd(), dict(os.environ))
print(os.getpgid(0) == os.getsid(0) == os.getpid(), sorted(map(int, os.listdir("/proc/self/fd")))[:-1])
print({number: signal.getsignal(number) for number in signal.Signals}, signal.pthread_sigmask(signal.SIG_BLOCK, []))
print(resource.getrlimit(resource.RLIMIT_NOFILE), os.getuid(), os.getgroups(), os.umask(0))
print(__name__, sys.modules["__main__"].__dict__["__name__"], [name for name in sys.modules if "backend" in name])
print("to stderr", file=sys.stderr)
import atexit, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
"""
ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:/nowhere", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "shown.py"
    path.write_text(SHOW)
    return path


def ended(command: list[str], folder: Path, *, forked: bool) -> tuple[int, str]:
    """The exit status and the output of a command."""
    with open(folder / "output", "w+") as output:
        process: ForkedProcess | subprocess.Popen[bytes]
        if forked:
            process = ForkedProcess(command, cwd=folder, env=ENV, stdout=output, stderr=output)
        else:
            process = subprocess.Popen(
                command, cwd=folder, env=ENV, stdout=output, stderr=output, start_new_session=True
            )
        status = process.wait(30)
        output.seek(0)
        return status, output.read()


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
def test_it_has_the_arguments_environment_files_and_signals_of_a_new_one(script: Path, kind: str) -> None:
    command = {"-c": [sys.executable, "-c", SHOW], "-m": [sys.executable, "-m", "shown"], "script": [str(script)]}[kind]
    script.write_text(f"#!{sys.executable}\n{SHOW}")
    script.chmod(0o755)
    status, output = ended([*command, "a", "--b"], script.parent, forked=True)
    assert (status, output) == ended([*command, "a", "--b"], script.parent, forked=False)
    assert output.endswith("thread\nat exit\n")


@pytest.mark.parametrize(
    "code", ["1 / 0", "raise SystemExit(7)", "raise SystemExit('text')", "signal.raise_signal(15)"]
)
def test_it_ends_like_a_new_one(tmp_path: Path, code: str) -> None:
    command = [sys.executable, "-c", f"import signal\n{code}"]
    status, output = ended(command, tmp_path, forked=True)
    expected_status, expected_output = ended(command, tmp_path, forked=False)
    assert (status, output.splitlines()[-1:]) == (expected_status, expected_output.splitlines()[-1:])
