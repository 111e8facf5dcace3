"""The data of an embedded server, to begin with: creating it takes 1 s of CPU time."""

import fcntl
import os
import subprocess
from pathlib import Path

from backend.core import embedded

RUN_FOLDER = "TEST_RUN_FOLDER"
"""The environment variable with the name of a folder that the processes of a test run share."""


def copy_data(folder: Path) -> None:
    """Create a folder with the data of an empty server, if it has none. It does not survive a crash of the machine."""
    created = Path(os.environ[RUN_FOLDER], "created")
    with created.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not created.exists():
            with embedded.postgres(created):
                pass
            with (created / "postgres" / "postgresql.conf").open("a") as configuration:
                configuration.write("fsync = off\n")
        folder.mkdir(exist_ok=True)
        if not (folder / "postgres").exists():
            subprocess.run(["cp", "-pR", created / "postgres", folder], check=True)
