"""The settings, read from the environment or `.env`; `.env.example` explains each."""

import logging
import re
import sys
from ipaddress import ip_address
from typing import Annotated, Literal, NoReturn, Self

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn
from pydantic import BeforeValidator, Field, HttpUrl, SecretStr, StringConstraints, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from uvicorn.config import STARTUP_FAILURE


def _origins(value: str) -> list[str]:
    origins = [item.strip() for item in value.split(",") if item.strip()]
    if not all(re.fullmatch(r"\*|https?://[^/?#\s]+", origin) for origin in origins):
        raise ValueError("must be comma-separated origins without a path, such as https://app.example.com")
    if "*" in origins and len(origins) > 1:
        raise ValueError("must be either * or a list of origins: only listed origins may send credentials")
    return origins


def _libpq_url(value: str) -> str:
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("must start with postgresql:// or postgres://")
    try:
        options = parse_dsn(value)
        hosts = options.get("host", "").split(",")
        for host in hosts:
            if not host.startswith("/"):
                host.encode("idna")  # as getaddrinfo does, whose UnicodeError is not an OSError
        for address in filter(None, options.get("hostaddr", "").split(",")):
            ip_address(address)
        for name, number in options.items():
            is_number = name.startswith("keepalives") or name.endswith("timeout")
            if is_number and not re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", number):
                raise ValueError(name)
        # libpq validates the other options only when connecting, so attempt a connection that cannot succeed.
        psycopg2.connect(make_dsn(value, host=",".join("/" for _ in hosts), hostaddr=""), async_=True).close()
    except (psycopg2.Error, ValueError) as error:
        if not str(error).startswith("connection to server"):
            # libpq's own message may quote a part of the password.
            raise ValueError("is not a valid PostgreSQL connection string") from None
    return value


NotBlank = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Settings(BaseSettings):
    """The settings of one process. Raises `ValidationError` if one is invalid."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, validate_default=False
    )

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    database_url: Annotated[SecretStr, BeforeValidator(_libpq_url)] | None = None
    environment: Annotated[Literal["development", "production"], BeforeValidator(str.lower)] = "development"
    log_level: Annotated[Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(str.lower)] = "info"
    cors_origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_origins)] = ("http://localhost:3000",)
    db_pool_size: Annotated[int, Field(ge=1, le=1000)] = 10
    db_pool_timeout: Annotated[float, Field(gt=0, le=3600)] = 5
    auth_jwks_url: HttpUrl | None = None
    auth_issuer: NotBlank | None = None
    auth_audience: NotBlank | None = None
    auth_disabled: bool = False

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        auth = ["AUTH_JWKS_URL", "AUTH_ISSUER", "AUTH_AUDIENCE"]
        missing = [name for name in auth if getattr(self, name.lower()) is None]
        if missing and missing != auth:
            raise ValueError(f"{' and '.join(missing)} must be set too: authentication needs {', '.join(auth)}")
        if self.environment == "production":
            if self.database_url is None:
                raise ValueError("DATABASE_URL must be set when ENVIRONMENT=production")
            if missing and not self.auth_disabled:
                raise ValueError("AUTH_JWKS_URL or AUTH_DISABLED=true must be set when ENVIRONMENT=production")
        if not missing and self.auth_disabled:
            raise ValueError("AUTH_DISABLED=true contradicts AUTH_JWKS_URL: unset one of them")
        return self


def load_settings() -> Settings:
    """Read the settings; ends the process with one line that names each invalid setting and quotes no value."""
    try:
        return Settings()
    except UnicodeDecodeError:
        fail_startup(".env is not UTF-8 text")
    except OSError as error:
        fail_startup(f".env cannot be read: {error.strerror}")
    except ValidationError as error:
        fail_startup(
            "; ".join(
                # `loc` is empty if a combination of settings is invalid.
                " ".join([*(str(name).upper() for name in e["loc"][:1]), e["msg"].removeprefix("Value error, ")])
                for e in error.errors()
            )
        )


def fail_startup(reason: str) -> NoReturn:
    """End the process with one line on standard error and the exit status that keeps uvicorn from trying again."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    print(f"Cannot start: {reason}", file=sys.stderr)
    raise SystemExit(STARTUP_FAILURE)
