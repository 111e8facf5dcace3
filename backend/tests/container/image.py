"""What the Dockerfile does, done without Docker: its packages, its files, its commands; `.ci/container` runs it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest

from backend.tests.serving import ROOT, as_process, free_port

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
PATHS = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Image:
    """Files and packages of the image, and its environment."""

    folder: Path
    binaries: Path

    def environment(self, **given: str) -> dict[str, str]:
        (line,) = re.findall(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)
        set_in_image = dict(pair.split("=", 1) for pair in line.split())
        assert set_in_image["PATH"] == "/venv/bin:$PATH"
        # PYTHONPATH: not this project's folder, which `as_process` would name.
        return {**set_in_image, "PATH": f"{self.binaries}:{PATHS}", "PYTHONPATH": "", **given}

    def run(self, command: list[str], **given: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(**given), capture_output=True, text=True, timeout=60
        )


def command_of(instruction: str) -> list[str]:
    """The command of an instruction in exec form, without which signals would reach a shell."""
    (command,) = re.findall(rf"^{instruction}(\[.*\])$", DOCKERFILE, re.MULTILINE)
    arguments: list[str] = json.loads(command)
    return arguments


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder, packages = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", packages], check=True)
    pip = [str(packages / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([*pip, "--requirement", str(ROOT / "requirements/base.txt")], check=True)
    copied = re.findall(r"^COPY (\S+) \S+$", DOCKERFILE.rpartition("FROM ")[2], re.MULTILINE)
    assert copied == ["alembic.ini", "backend"]
    shutil.copy(ROOT / "alembic.ini", folder)
    left_out = shutil.ignore_patterns("tests", "benchmarks", "__pycache__", "*.md")
    shutil.copytree(ROOT / "backend", folder / "backend", ignore=left_out)
    yield Image(folder, packages / "bin")
    shutil.rmtree(packages)


def test_it_migrates_serves_is_healthy_and_ends_in_order(image: Image, empty_database_url: str, tmp_path: Path) -> None:
    port = free_port()
    given = {"DATABASE_URL": empty_database_url, "AUTH_DISABLED": "true", "UVICORN_PORT": str(port)}
    healthy = command_of("HEALTHCHECK .* CMD ")
    with as_process(
        tmp_path, *command_of("CMD "), env=image.environment(**given), cwd=image.folder, port=port
    ) as service:
        before = httpx.get(f"{service.base_url}/health")
        assert before.status_code == 503
        assert "alembic upgrade head" in before.json()["detail"]
        migrated = image.run(["alembic", "upgrade", "head"], **given)
        assert migrated.returncode == 0, migrated.stderr
        assert httpx.get(f"{service.base_url}/health").json() == {"status": "ok"}
        assert image.run(healthy, **given).returncode == 0
        service.stop(SIGTERM)
        assert "Application shutdown complete" in service.log
        assert "Traceback" not in service.log
    assert image.run(healthy, **given).returncode == 1


@pytest.mark.parametrize("environment", ["development", "production"])
def test_without_a_database_it_says_so_in_one_line(image: Image, environment: str) -> None:
    for command in (command_of("CMD "), ["alembic", "upgrade", "head"]):
        refused = image.run(command, ENVIRONMENT=environment, AUTH_DISABLED="true")
        assert refused.returncode != 0
        assert "DATABASE_URL" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1, refused.stderr
