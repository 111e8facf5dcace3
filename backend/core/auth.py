"""Authentication with Better Auth's tokens.

A token is a JWT (RFC 7519) signed with one of the keys that the issuer publishes as a JWKS (RFC 7517).
"""

import asyncio
import logging
import time
from typing import Any
from uuid import UUID

import httpx
import jwt
from fastapi import HTTPException, Request
from fastapi.security import HTTPBearer

from backend.core.errors import unauthorized, unavailable

logger = logging.getLogger(__name__)

ALGORITHMS = ("EdDSA", "ES256", "RS256")
CLAIMS = ("iss", "aud", "exp", "sub")
MAX_TOKEN_LENGTH = 8192
LEEWAY_SECONDS = 10
FETCH_TIMEOUT_SECONDS = 5
REFRESH_SECONDS = 300
# Minimum seconds between two fetches for unknown keys: forged key ids cannot cause more fetches, and a new key works
# after at most this time.
MIN_REFRESH_INTERVAL = 30
MIN_RETRY_INTERVAL = 1
TOKEN_CACHE_SECONDS = 60
TOKEN_CACHE_SIZE = 10_000


class JWKSCache:
    """The issuer's public keys by id, fetched when needed and kept while the issuer is unreachable."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._last_fetch_at = self._last_miss_at = -float("inf")
        self._last_fetch_ok = False
        self._fetch: asyncio.Task[None] | None = None
        # Created once: it blocks the event loop for 20 ms.
        self._tls = httpx.create_ssl_context()

    async def get(self, key_id: str) -> jwt.PyJWK | None:
        """The key, or None if the last fetch did not contain it.

        Raises 503 for an unknown key if the last fetch failed. Known keys never wait for a refresh.
        """
        if key_id in self._keys:
            if time.monotonic() - self._last_fetch_at > REFRESH_SECONDS:
                self._start_fetch()
            return self._keys[key_id]
        # A running fetch may have been answered before the key was published: wait for it, then fetch again.
        await self._running_fetch()
        interval = MIN_REFRESH_INTERVAL if self._last_fetch_ok else MIN_RETRY_INTERVAL
        # Fetches for known keys do not count, so that a key published after one of them works at once.
        if key_id not in self._keys and time.monotonic() - self._last_miss_at > interval:
            self._last_miss_at = time.monotonic()
            self._start_fetch()
        await self._running_fetch()
        if key_id not in self._keys and not self._last_fetch_ok:
            raise unavailable("The token issuer cannot be reached")
        return self._keys.get(key_id)

    def _start_fetch(self) -> None:
        if self._fetch is None:
            self._last_fetch_at = time.monotonic()
            self._fetch = asyncio.create_task(self._refresh())

    async def _running_fetch(self) -> None:
        if self._fetch is not None:
            await asyncio.shield(self._fetch)

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS), httpx.AsyncClient(verify=self._tls) as client:
                published = (await client.get(self._url)).raise_for_status().json()["keys"]
            keys = dict(filter(None, map(_parse_key, published)))
            if not keys:
                raise ValueError("it contains no usable key")
            self._keys, self._last_fetch_ok = keys, True
        except Exception as error:  # noqa: BLE001  # whatever the issuer sends, the cached keys are kept
            self._last_fetch_ok = False
            logger.warning("the JWKS could not be refreshed, so %d cached keys are kept: %r", len(self._keys), error)
        finally:
            self._fetch = None


def _parse_key(jwk: dict[str, object]) -> tuple[str, jwt.PyJWK] | None:
    try:
        key = jwt.PyJWK(jwk)
    except Exception:  # noqa: BLE001  # a malformed key must not prevent the use of the others
        return None
    usable = key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig") and isinstance(key.key_id, str)
    return (str(key.key_id), key) if usable else None


class BearerAuth(HTTPBearer):
    """Requires a bearer token whose `sub` matches the path's user.

    Raises 401 if the token is missing or invalid, 403 if it belongs to another user.
    """

    def __init__(self, jwks_url: str, issuer: str, audience: str) -> None:
        super().__init__(
            scheme_name="BetterAuth",
            bearerFormat="JWT",
            description="The JWT that Better Auth returns at `/api/auth/token`.",
        )
        self._keys = JWKSCache(jwks_url)
        self._issuer = issuer
        self._audience = audience
        self._verified: dict[str, tuple[float, str]] = {}

    async def __call__(self, request: Request) -> None:  # type: ignore[override]  # no caller uses what HTTPBearer returns
        headers = request.headers.getlist("authorization")
        scheme, _, token = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token:
            raise unauthorized("A bearer token is needed.")
        user = _uuid(await self._subject(token.strip()))
        if user is None or user != _uuid(request.path_params["user_id"]):
            raise HTTPException(403, "The token belongs to another user.")

    async def _subject(self, token: str) -> str:
        """The user id of a token with a valid signature and claims; a result is cached for a minute at most."""
        until, subject = self._verified.get(token, (0.0, ""))
        if time.time() < until:
            return subject
        claims = await self._verify(token)
        if len(self._verified) >= TOKEN_CACHE_SIZE:
            self._verified.clear()
        self._verified[token] = min(time.time() + TOKEN_CACHE_SECONDS, claims["exp"]), claims["sub"]
        return str(claims["sub"])

    async def _verify(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN_LENGTH:
            raise unauthorized("The token is too long.", "invalid_token")
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            key = await self._keys.get(key_id) if isinstance(key_id, str) else None
            if key is None:
                raise unauthorized("The token is not signed with a key of the issuer.", "invalid_token")
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": list(CLAIMS)},
            )
            if not isinstance(claims["exp"], int | float):
                raise ValueError("RFC 7519, section 2: a NumericDate is a number")
            return claims
        except jwt.ExpiredSignatureError:
            raise unauthorized("The token has expired.", "invalid_token") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            # PyJWT does not convert all errors of the parsers that it uses.
            raise unauthorized("The token is not valid.", "invalid_token") from None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
