"""Compiles the client in the quickstart, and the script that uses it, for a running service."""

import shutil
import subprocess
from pathlib import Path

from backend.tests import npm, quickstarts

HERE = Path(__file__).parent


def build(base_url: str, folder: Path) -> str:
    """Create `walk.js` in `folder`, with types from the OpenAPI document of the service at `base_url`.

    Returns the path of Node.js.
    """
    node = npm.install(HERE)
    (folder / "tasks.ts").write_text(quickstarts.files()["lib/tasks.ts"])
    for file in "walk.ts", "tsconfig.json", "package.json":
        shutil.copy(HERE / file, folder)
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    binaries = HERE / "node_modules/.bin"
    _run(folder, str(binaries / "openapi-typescript"), f"{base_url}/openapi.json", "--output", "schema.d.ts")
    _run(folder, str(binaries / "tsc"))
    return node


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
