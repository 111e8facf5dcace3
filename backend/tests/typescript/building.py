"""Compiling the client of the Next.js quickstart, and the walk that uses it, against a running service."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from backend.tests.serving import ROOT

HERE = Path(__file__).parent
QUICKSTART = ROOT / "specs/003-nextjs-client/quickstart.md"


def node() -> str:
    """Node.js; the test is skipped where it is not installed."""
    found = shutil.which("node")
    if not found or not shutil.which("npm"):
        pytest.skip("a typed client needs Node.js: node or npm is not installed")
    return found


def build(base_url: str, folder: Path) -> None:
    """Make `walk.js` in `folder`, out of types generated from the OpenAPI document of the service at `base_url`."""
    node()
    lock, installed = HERE / "package-lock.json", HERE / "node_modules/.package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        _run(HERE, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    blocks = re.findall(r"^```ts\n(.*?)^```$", QUICKSTART.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "tasks.ts").write_text("\n".join(blocks))
    for file in "walk.ts", "tsconfig.json", "package.json":
        shutil.copy(HERE / file, folder)
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    binaries = HERE / "node_modules/.bin"
    _run(folder, str(binaries / "openapi-typescript"), f"{base_url}/openapi.json", "--output", "schema.d.ts")
    _run(folder, str(binaries / "tsc"))


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
