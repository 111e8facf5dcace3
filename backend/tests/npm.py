"""Node.js packages for tests."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

SECONDS = 300
NPM_CI = ("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--loglevel=error")


def node() -> str:
    """Path of Node.js. Skips the test if node or npm is not installed."""
    found = shutil.which("node")
    if not found or not shutil.which("npm"):
        pytest.skip("node or npm is not installed")
    return found


def install(folder: Path) -> str:
    """Install the packages in `folder/package-lock.json` unless they are installed. Returns the path of Node.js.

    Skips the test if the packages cannot be installed.
    """
    path = node()
    with (folder / "package-lock.json").open() as lock:
        # Another process of the test run may install the same packages.
        fcntl.flock(lock, fcntl.LOCK_EX)
        # npm writes this file last.
        done = folder / "node_modules/.package-lock.json"
        if not done.exists() or done.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
            _npm_ci(folder)
    return path


def _npm_ci(folder: Path) -> None:
    try:
        npm_ci = subprocess.run(
            ["npm", *NPM_CI], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm took more than {SECONDS} s to install packages")
    if npm_ci.returncode:
        pytest.skip(f"npm could not install packages: {' '.join(npm_ci.stderr.split())[:300]}")
