"""How a caller shows who it is: bearer tokens, API keys, Basic authentication.

A scheme takes credentials out of a request, verifies them, and knows the refusal: 401 with `WWW-Authenticate`, 403
where a scope is lacking (RFC 9110 section 11, RFC 6750). Knows requests; it knows no handlers.
"""

import abc
import base64
import binascii
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from natsweb.errors import BadCredentials, DeclarationError, HTTPError
from natsweb.messages import Call
from natsweb.threads import aside

__all__ = ["ApiKey", "Basic", "Bearer", "Credentials", "Scheme", "authorization"]

#: From credentials to whoever has them, or None if they are wrong; it may be async.
Verify = Callable[..., Any]


class Credentials(NamedTuple):
    """What HTTP Basic authentication carries."""

    username: str
    password: str


class Scheme(abc.ABC):
    """A way to show who calls. `name` stands for it in API documents; `challenge` begins `WWW-Authenticate`."""

    challenge: ClassVar[str] = ""
    #: Whether the challenge says what is wrong (RFC 6750 section 3); other schemes name their realm only.
    explains: ClassVar[bool] = False

    def __init__(self, name: str, realm: str) -> None:
        if any(char in realm for char in '"\\\r\n'):
            raise DeclarationError(f"{realm!r} cannot be a realm", fix="leave quotes and backslashes out")
        self.name = name
        self.realm = realm

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @abc.abstractmethod
    def find(self, call: Call) -> Any:
        """Return the credentials of a request, None without any; raises `BadCredentials` for malformed ones."""

    @abc.abstractmethod
    async def verify(self, credentials: Any) -> Any:
        """Return who has these credentials; raises `BadCredentials` if they are not valid."""

    @abc.abstractmethod
    def document(self) -> dict[str, Any]:
        """Return the Security Scheme Object of OpenAPI 3.1."""

    def refusal(self, detail: str, **params: str) -> HTTPError:
        """Return the 401, or the 403 if `params` say `insufficient_scope`."""
        words = [f'realm="{self.realm}"'] if self.realm else []
        if self.explains:
            words += [f'{name}="{value}"' for name, value in params.items()]
        status = 403 if params.get("error") == "insufficient_scope" else 401
        return HTTPError(
            status,
            detail,
            reason=params.get("error", "unauthenticated"),
            headers={"www-authenticate": f"{self.challenge} {', '.join(words)}".strip()},
        )


def _checked(verify: Verify | None, name: str) -> Verify | None:
    if verify is not None and not callable(verify):
        raise DeclarationError(f"verify of {name} is no function", fix="pass the function itself: Bearer(check_token)")
    return verify


async def _ask(verify: Verify | None, *credentials: str) -> Any:
    """Return what `verify` says; raises `BadCredentials` if it says None or False."""
    assert verify is not None
    if inspect.iscoroutinefunction(verify):
        who = await verify(*credentials)
    else:
        who = await aside(functools.partial(verify, *credentials))
    if who is None or who is False:
        raise BadCredentials("the credentials are not valid")
    return who


class Bearer(Scheme):
    """`Authorization: Bearer <token>` (RFC 6750); `verify(token)` gives the user, or None for a wrong token.

    Without `verify` the token itself is what the handler gets, and nothing has checked it.
    """

    challenge = "Bearer"
    explains = True

    def __init__(
        self, verify: Verify | None = None, *, name: str = "bearer", realm: str = "", format: str | None = None
    ) -> None:
        super().__init__(name, realm)
        self._verify = _checked(verify, name)
        self.format = format

    def find(self, call: Call) -> str | None:
        """Return the token."""
        return authorization(call, "bearer")

    async def verify(self, credentials: str) -> Any:
        """Return the user, or the token if nothing verifies it."""
        return credentials if self._verify is None else await _ask(self._verify, credentials)

    def document(self) -> dict[str, Any]:
        """Return the Security Scheme Object."""
        return {"type": "http", "scheme": "bearer"} | ({"bearerFormat": self.format} if self.format else {})


class Basic(Scheme):
    """`Authorization: Basic ...` (RFC 7617); `verify(username, password)` gives the user, or None.

    Without `verify` the handler gets `Credentials`, and nothing has checked them. Compare secrets with
    `secrets.compare_digest`.
    """

    challenge = "Basic"

    def __init__(self, verify: Verify | None = None, *, name: str = "basic", realm: str = "natsweb") -> None:
        super().__init__(name, realm or "natsweb")
        self._verify = _checked(verify, name)

    def find(self, call: Call) -> Credentials | None:
        """Return username and password."""
        encoded = authorization(call, "basic")
        if encoded is None:
            return None
        try:
            username, separator, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise BadCredentials("the credentials are no base64 of UTF-8") from None
        if not separator:
            raise BadCredentials("the credentials have no colon")
        return Credentials(username, password)

    async def verify(self, credentials: Credentials) -> Any:
        """Return the user, or the credentials if nothing verifies them."""
        return credentials if self._verify is None else await _ask(self._verify, *credentials)

    def document(self) -> dict[str, Any]:
        """Return the Security Scheme Object."""
        return {"type": "http", "scheme": "basic"}


class ApiKey(Scheme):
    """A key in a header, a query parameter or a cookie: `ApiKey(check, header="x-api-key")`."""

    challenge = "ApiKey"

    def __init__(
        self,
        verify: Verify | None = None,
        *,
        header: str | None = None,
        query: str | None = None,
        cookie: str | None = None,
        name: str = "apiKey",
        realm: str = "",
    ) -> None:
        places = [(place, key) for place, key in (("header", header), ("query", query), ("cookie", cookie)) if key]
        if len(places) != 1:
            raise DeclarationError(
                "an ApiKey is in exactly one place", fix='write ApiKey(check, header="x-api-key"), or query= or cookie='
            )
        super().__init__(name, realm)
        [(self.place, self.key)] = places
        self._verify = _checked(verify, name)

    def find(self, call: Call) -> str | None:
        """Return the key."""
        if self.place == "header":
            return call.headers.get(self.key)
        if self.place == "cookie":
            return call.cookies.get(self.key)
        values = call.request().query_params.get(self.key)
        return values[-1] if values else None

    async def verify(self, credentials: str) -> Any:
        """Return the user, or the key if nothing verifies it."""
        return credentials if self._verify is None else await _ask(self._verify, credentials)

    def document(self) -> dict[str, Any]:
        """Return the Security Scheme Object."""
        return {"type": "apiKey", "in": self.place, "name": self.key}


def authorization(call: Call, scheme: str) -> str | None:
    """Return the credentials of an `Authorization` of this scheme; raises `BadCredentials` if it has none."""
    kind, _, credentials = (call.headers.get("authorization") or "").partition(" ")
    if kind.lower() != scheme:
        return None
    if not credentials.strip():
        raise BadCredentials("the Authorization header has no credentials")
    return credentials.strip()
