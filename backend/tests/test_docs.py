"""The documents: commands print the output that is shown, and everything that is named exists.

In a `console` block each line after `$ ` is run, and its output must be the lines below it, except for times, ETags,
cursors and request ids. In a `sh` block programs, options, targets, settings and files must exist; nothing is run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from urllib.parse import unquote

import pytest

from backend.core import schema
from backend.core.config import Settings
from backend.tests.serving import ROOT, in_thread, settings

BASE_URL = "http://127.0.0.1:8000"
README = ROOT / "README.md"
FIRST_SPEC = ROOT / "specs" / "001-backend-task-api"
MAIN_DOCUMENTS = [README, ROOT / "CLAUDE.md", ROOT / "backend" / "CLAUDE.md", *sorted(FIRST_SPEC.glob("*.md"))]
DOCUMENTS = [*MAIN_DOCUMENTS, *sorted({*ROOT.glob("specs/**/*.md")} - {*MAIN_DOCUMENTS})]
WITH_CONSOLE = [README, FIRST_SPEC / "quickstart.md"]

OTHER_VARIABLES = {"TEST_DATABASE_URL", "ARGS"}
NOT_INSTALLED_HERE = {"docker", "pip-compile"}
NOT_IN_A_CLONE = (".data/", ".venv/")
SHELL = {".", "export", "cd"}
VARIABLE_PARTS = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", "<time>"),
    (r"(?m)^date: .*$", "date: <now>"),
    (r'"\d{16}"', '"<version>"'),
    (r"\d{16}-[0-9a-f]{32}", "<cursor>"),
    (r"(?m)^x-request-id: [0-9a-f]{32}$", "x-request-id: <id>"),
]


@dataclass
class Step:
    """A command and the output in the document."""

    command: str
    answer: str


def blocks(document: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    fenced = re.findall(rf"^( *)```{kind}\n(.*?)^\1```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [dedent(text) for _, text in fenced]


def steps(document: Path) -> list[Step]:
    found = [part.partition("\n") for block in blocks(document, "console") for part in re.split(r"(?m)^\$ ", block)[1:]]
    return [Step(command, answer.strip()) for command, _, answer in found]


def normalized(text: str) -> str:
    for pattern, name in VARIABLE_PARTS:
        text = re.sub(pattern, name, text)
    return text


@pytest.fixture
def service(empty_database_url: str) -> Iterator[str]:
    """The service on a database without tasks."""
    schema.upgrade(empty_database_url)
    with in_thread(settings(empty_database_url)) as url:
        yield url


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("document", WITH_CONSOLE, ids=lambda document: document.name)
def test_the_console_blocks_show_the_real_output(document: Path, service: str, empty_database_url: str) -> None:
    shown = steps(document)
    answers = run([step.command for step in shown], service, empty_database_url)
    for step, answer in zip(shown, answers, strict=True):
        assert (step.command, normalized(answer)) == (step.command, normalized(step.answer))


def run(commands: list[str], service: str, database_url: str) -> list[str]:
    """The output of each command; all are run in one shell, in order."""
    script = "".join(f"{command}\nprintf '\\036'\n" for command in commands).replace(BASE_URL, service)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # Independent of a `make test` that may have started this.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environment = {**outside, "PATH": path, "DATABASE_URL": database_url}
    done = subprocess.run(
        ["bash"], input=script, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    printed = done.stdout.replace("\r", "").replace(service, BASE_URL).split("\036")
    return [text.strip() for text in printed[:-1]]


def test_the_readme_shows_all_six_operations() -> None:
    shown = [step.command for step in steps(README) if step.command.startswith("curl ")]
    methods = [found.group(1) if (found := re.search(r"-X (\w+)", line)) else "" for line in shown]
    assert methods == ["", "", "", "PUT", "PATCH", "DELETE"]
    assert " -d " in shown[0]


def test_the_readme_lists_every_setting_with_its_default() -> None:
    _, _, section = README.read_text("utf-8").partition("## Settings\n")
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([^|]*) \|", section.partition("\n## ")[0], re.MULTILINE)
    expected = [(name.upper(), written(field.default)) for name, field in Settings.model_fields.items()]
    assert rows == expected


def written(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, tuple):
        return f"`{','.join(default)}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_research_gives_a_reason_for_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    named = {re.split("[<>=]", requirement)[0] for requirement in requirements}
    _, _, section = (FIRST_SPEC / "research.md").read_text("utf-8").partition("## Dependencies\n")
    rows = re.findall(r"^\| (`.*?`) \|", section.partition("\n## ")[0], re.MULTILINE)
    assert sorted(name for row in rows for name in re.findall(r"`([^`]+)`", row)) == sorted(named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_link_targets_exist(document: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", without_code(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


def without_code(document: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_code(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", MAIN_DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    names = re.findall(r"`([\w.-]+/[\w./-]*)`", without_code(document))
    for name in (name for name in names if not name.startswith(NOT_IN_A_CLONE)):
        assert (ROOT / name).exists() or (document.parent / name).exists() or (ROOT / "backend" / name).exists(), name


@pytest.mark.parametrize("document", MAIN_DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_commands_name_existing_programs_options_and_files(document: Path) -> None:
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            assert_exists(shlex.split(line, comments=True))


def test_commands_with_unknown_names_are_detected() -> None:
    for line in (
        "make ruin",
        "uvicorn backend.main:apple",
        "uvicorn backend.main:app --wrokers 4",
        "python -m backent",
        "export DATABASE_URI=x",
        "alembic -c backend/alembic.ini",
        "gunicorn backend.main:app",
    ):
        with pytest.raises(AssertionError):
            assert_exists(line.split())


def assert_exists(words: list[str]) -> None:
    """Assert that all programs, options, modules, targets, settings and files in the command line exist."""
    while words and (given := re.match(r"([A-Z_]+)=", words[0])):
        assert_variable(given.group(1))
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    if program == "make":
        for argument in arguments:
            if given := re.match(r"([A-Z_]+)=", argument):
                assert_variable(given.group(1))
            else:
                assert argument in targets(), argument
    elif program == "export":
        assert_exists(arguments)
    elif program not in NOT_INSTALLED_HERE | SHELL:
        executable = Path(sys.executable).parent / Path(program).name
        assert executable.exists(), program
        if program != "python":
            for option in (argument for argument in arguments if argument.startswith("--")):
                assert option.partition("=")[0] in help_of(executable), option
    for argument in arguments:
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", argument) and not argument.startswith(".venv/"):
            assert (ROOT / argument).exists(), argument
        if found := re.fullmatch(r"(backend[\w.]*):(\w+)", argument):
            assert hasattr(sys.modules[found[1]], found[2]), argument
    if arguments[:1] == ["-m"]:
        assert find_spec(arguments[1]), arguments[1]


def assert_variable(name: str) -> None:
    assert name in OTHER_VARIABLES or name.lower() in Settings.model_fields, name


def targets() -> list[str]:
    return re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@cache
def help_of(executable: Path) -> str:
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run([executable, "--help"], env=environment, capture_output=True, text=True, check=True).stdout
