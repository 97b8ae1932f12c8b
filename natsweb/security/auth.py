"""The dependency that is whoever calls, out of a security scheme.

Asked before all other dependencies, and before anything of the request is validated. Knows schemes and types.
"""

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from natsweb.annotations import allows_none, strip
from natsweb.errors import BadCredentials, DeclarationError
from natsweb.messages import Call
from natsweb.params import Depends
from natsweb.security.schemes import Scheme

__all__ = ["Asked", "Auth", "stand_in"]

logger = logging.getLogger("natsweb.security")

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+").fullmatch


class Auth(Depends):
    """The dependency that is whoever calls: `Annotated[User, Auth(bearer, scopes=["orders:write"])]`.

    The value is what the scheme's `verify` gives; a mapping (claims of a token) becomes the annotated pydantic model.
    Scopes are looked for in its `scopes`, `scope` or `scp`, as an attribute or key, a list or words. With
    `User | None`, a request without credentials is None; wrong ones are 401 all the same.
    """

    first = True
    __slots__ = ("scheme", "scopes")

    def __init__(self, scheme: Scheme, *, scopes: Iterable[str] = ()) -> None:
        super().__init__()
        if not isinstance(scheme, Scheme):
            raise DeclarationError(
                f"Auth takes a scheme, not {scheme!r}", fix="write Auth(bearer) with bearer = Bearer(check_token)"
            )
        self.scheme = scheme
        self.scopes = (scopes,) if isinstance(scopes, str) else tuple(scopes)
        if wrong := [one for one in self.scopes if not isinstance(one, str) or not _SCOPE(one)]:
            raise DeclarationError(
                f"{wrong[0]!r} cannot be a scope (RFC 6749 section 3.3)", fix='write each on its own: scopes=["a", "b"]'
            )

    def __repr__(self) -> str:
        return f"Auth({self.scheme!r})"

    def resolve(self, annotation: Any) -> Callable[..., Any]:
        """Return the check for a parameter of this type."""
        bare = strip(annotation)
        model = bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None
        return _check(self.scheme, self.scopes, model, allows_none(annotation))


class _Outcome(NamedTuple):
    """What a scheme says of one request: who calls, or why nobody does (None without any credentials)."""

    who: Any
    refusal: str | None


@dataclass(frozen=True)
class Asked:
    """One scheme, asked once per request however many parameters want to know."""

    scheme: Scheme

    @property
    def takes(self) -> tuple[str, str] | None:
        """The source and key that the credentials are taken from, if other inputs are there as well."""
        place, key = getattr(self.scheme, "place", None), getattr(self.scheme, "key", None)
        return (str(place), str(key)) if place in ("query", "cookie") else None

    async def __call__(self, call: Call) -> _Outcome | None:
        """Return the outcome, None without credentials."""
        return await self._outcome(call, self.scheme.verify)

    async def _outcome(self, call: Call, verify: Callable[[Any], Awaitable[Any]]) -> _Outcome | None:
        try:
            credentials = self.scheme.find(call)
            return None if credentials is None else _Outcome(await verify(credentials), None)
        except BadCredentials as error:
            return _Outcome(None, str(error))
        except ValueError:
            logger.info("verifying credentials for %s failed", self.scheme.name, exc_info=True)
            return _Outcome(None, "they cannot be verified")


class _First(Depends):
    """A dependency that is called before all others."""

    first = True
    __slots__ = ()


def stand_in(scheme: Scheme, replacement: Callable[..., Any]) -> tuple[Asked, Callable[..., Any]]:
    """Return what `Service.override` replaces for a scheme, and with what: `replacement` says who calls."""

    async def outcome() -> _Outcome | None:
        who = replacement()
        who = await who if inspect.isawaitable(who) else who
        return None if who is None else _Outcome(who, None)

    return Asked(scheme), outcome


@lru_cache(4096)
def _check(
    scheme: Scheme, scopes: tuple[str, ...], model: type[BaseModel] | None, optional: bool
) -> Callable[..., Any]:
    """Return the dependency that judges an outcome; the same one for the same question."""
    adapter = None if model is None else TypeAdapter(model)

    async def check(outcome: Annotated[Any, _First(Asked(scheme))]) -> Any:
        if outcome is None and optional:
            return None
        if outcome is None:
            raise scheme.refusal("this route wants to know who calls")
        who, refusal = outcome
        if refusal is not None:
            raise scheme.refusal(f"the credentials are refused: {refusal}", error="invalid_token")
        if lacking := set(scopes) - _scopes_of(who):
            raise scheme.refusal(
                f"the scope {sorted(lacking)[0]!r} is lacking", error="insufficient_scope", scope=" ".join(scopes)
            )
        if adapter is not None and isinstance(who, Mapping):
            try:
                return adapter.validate_python(who)
            except ValidationError:
                words = "the token lacks claims that this route needs"
                raise scheme.refusal(words, error="invalid_token") from None
        return who

    check.__name__ = f"Auth({scheme.name})"
    return check


def _scopes_of(who: Any) -> set[str]:
    for name in ("scopes", "scope", "scp"):
        found = who.get(name) if isinstance(who, Mapping) else getattr(who, name, None)
        if isinstance(found, str):
            return set(found.split())
        if isinstance(found, Iterable) and not isinstance(found, Mapping):
            return {str(one) for one in found}
    return set()
