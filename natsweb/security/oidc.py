"""OpenID Connect: bearer tokens verified with their issuer's keys.

PyJWT verifies; here is where the keys come from, how long they stay, and what happens without them. Knows tokens
and issuers; it knows no handlers.
"""

import asyncio
import importlib
import json
import logging
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from natsweb.errors import BadCredentials, DeclarationError, HTTPError
from natsweb.messages import Call
from natsweb.security.schemes import Scheme, authorization

__all__ = ["OIDC"]

logger = logging.getLogger("natsweb.security")

_LEEWAY = 30.0
_KEYS_LIFE = 300.0
_KEYS_PAUSE = 10.0
_FETCH_TIME = 5.0
_LARGEST_DOCUMENT = 512 * 1024


class OIDC(Scheme):
    """Bearer tokens of an OpenID Connect issuer, verified as JWT (RFC 7519, RFC 9068) with the issuer's own keys.

    `issuer` is its URL, `audience` who the token must be for. Signature, `iss`, `aud`, `exp` and `nbf` are checked;
    keys are fetched on first use, kept for five minutes, and fetched again at most every ten seconds for a token
    with an unknown key. The handler gets the claims, or a pydantic model made of them. An issuer
    that cannot be reached is 503. Wants `natsweb[auth]`.
    """

    challenge = "Bearer"
    explains = True

    def __init__(
        self,
        issuer: str,
        audience: str | Sequence[str],
        *,
        algorithms: Sequence[str] = ("RS256", "ES256", "PS256", "EdDSA"),
        name: str = "oidc",
        realm: str = "",
    ) -> None:
        super().__init__(name, realm)
        self._jwt = _jwt()
        if not issuer.startswith(("https://", "http://")):
            raise DeclarationError(
                f"{issuer!r} is no URL of an issuer", fix='write OIDC("https://id.example", "my-api")'
            )
        if wrong := [one for one in algorithms if one == "none" or one.startswith("HS")]:
            raise DeclarationError(
                f"{wrong[0]} needs no key of the issuer's, so anybody could sign",
                fix="use RS256, ES256, PS256 or EdDSA",
            )
        self.issuer = issuer
        self.audience = [audience] if isinstance(audience, str) else list(audience)
        self.algorithms = list(algorithms)
        self._keys = _Keys(issuer, self._jwt)

    def find(self, call: Call) -> str | None:
        """Return the token."""
        return authorization(call, "bearer")

    async def verify(self, credentials: str) -> dict[str, Any]:
        """Return the claims of a token; raises `BadCredentials` if it is not valid, `HTTPError` 503 without keys."""
        try:
            kid = self._jwt.get_unverified_header(credentials).get("kid")
            key = await self._keys.find(kid)
            claims: dict[str, Any] = self._jwt.decode(
                credentials,
                key,
                algorithms=self.algorithms,
                audience=self.audience,
                issuer=self.issuer,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
        except self._jwt.PyJWTError as error:
            raise BadCredentials(str(error)) from None
        return claims

    def document(self) -> dict[str, Any]:
        """Return the Security Scheme Object."""
        return {"type": "openIdConnect", "openIdConnectUrl": _discovery(self.issuer)}


def _jwt() -> Any:
    """Return PyJWT; raises `DeclarationError` if it, or what verifies signatures, is not installed."""
    try:
        importlib.import_module("cryptography")
        return importlib.import_module("jwt")
    except ImportError:
        raise DeclarationError(
            "OIDC verifies tokens with PyJWT, which is not installed", fix='pip install "natsweb[auth]"'
        ) from None


def _discovery(issuer: str) -> str:
    return f"{issuer.rstrip('/')}/.well-known/openid-configuration"


class _Keys:
    """The signing keys of an issuer, fetched by one task at a time, whoever waits for it."""

    def __init__(self, issuer: str, jwt: Any) -> None:
        self._issuer = issuer
        self._jwt = jwt
        self._keys: dict[str | None, Any] = {}
        self._fetched = float("-inf")
        self._tried = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> Any:
        """Return the key called `kid`; while one request renews known keys, all others go on with them.

        Raises `BadCredentials` for an unknown one, `HTTPError` 503 without any keys.
        """
        if kid not in self._keys or time.monotonic() - self._fetched > _KEYS_LIFE:
            before = self._fetching
            fetching = self._fetch_soon()
            if fetching is not None and (kid not in self._keys or fetching is not before):
                await asyncio.shield(fetching)
        if not self._keys:
            raise HTTPError(
                503,
                "the issuer's keys cannot be fetched, so that no token can be verified",
                reason="issuer_unreachable",
                headers={"retry-after": str(int(_KEYS_PAUSE))},
            )
        if kid not in self._keys:
            raise BadCredentials("the token is signed with a key that its issuer does not publish")
        return self._keys[kid]

    def _fetch_soon(self) -> "asyncio.Task[None] | None":
        """Return the task that fetches, a new one if the last try is long enough ago."""
        loop = asyncio.get_running_loop()
        if self._fetching is not None and self._fetching.get_loop() is loop and not self._fetching.done():
            return self._fetching
        now = time.monotonic()
        if now - self._tried <= _KEYS_PAUSE:
            return None
        self._tried = now
        self._fetching = loop.create_task(self._fetch(), name=f"natsweb keys of {self._issuer}")
        return self._fetching

    async def _fetch(self) -> None:
        """Fetch all keys; if that fails, those that are there stay in use."""
        try:
            document = await asyncio.to_thread(_get_json, _discovery(self._issuer))
            if document.get("issuer") != self._issuer:
                raise ValueError(f"it says that it is {document.get('issuer')!r}")
            found = self._jwt.PyJWKSet.from_dict(await asyncio.to_thread(_get_json, str(document["jwks_uri"])))
        except Exception as error:  # whatever an issuer sends, or does not
            logger.warning("the keys of %s cannot be fetched: %s: %s", self._issuer, type(error).__name__, error)
            return
        keys = [key for key in found.keys if key.public_key_use in (None, "sig")]
        self._keys = {key.key_id: key for key in keys} | ({None: keys[0]} if len(keys) == 1 else {})
        self._fetched = time.monotonic()


def _get_json(url: str) -> dict[str, Any]:
    """Return a JSON object from a URL, within `_FETCH_TIME` seconds altogether."""
    if not url.startswith(("https://", "http://")):
        raise ValueError(f"{url!r} is no URL")
    due = time.monotonic() + _FETCH_TIME
    body = bytearray()
    with urllib.request.urlopen(url, timeout=_FETCH_TIME) as response:
        while chunk := response.read1(64 * 1024):
            body += chunk
            if len(body) > _LARGEST_DOCUMENT:
                raise ValueError(f"{url} gives more than {_LARGEST_DOCUMENT} bytes")
            if time.monotonic() > due:
                raise TimeoutError(f"{url} takes longer than {_FETCH_TIME:g} s")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"{url} gives no JSON object")
    return found
