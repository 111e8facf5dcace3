"""The client in the Next.js quickstart, compiled and run in Node; `.ci/typescript` runs it, `make test` does not."""

import subprocess
from pathlib import Path

from backend.tests.frontend import frontend
from backend.tests.serving import as_process
from backend.tests.typescript.building import build

SIX = ["create_task", "list_tasks", "get_task", "update_task", "toggle_task", "delete_task"]
MAIN = """
import { walk } from "./walk.js";
const [baseUrl, user, origin] = process.argv.slice(1);
const fetchToken = async () => (await (await fetch(`${origin}/api/auth/token`)).json()).token;
console.log((await walk(baseUrl, user, fetchToken)).join("\\n"));
"""


def test_the_client_in_the_quickstart_compiles_and_uses_all_six_operations(database_url: str, tmp_path: Path) -> None:
    with (
        frontend(tmp_path) as served,
        as_process(tmp_path, env={"DATABASE_URL": database_url, **served.settings}) as service,
    ):
        node = build(service.base_url, tmp_path)
        walked = subprocess.run(
            [node, "--input-type=module", "--eval", MAIN, service.base_url, served.user, served.origin],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert walked.returncode == 0, walked.stderr
    assert walked.stdout.split() == SIX
