"""The dependency that is whoever calls, out of a security scheme.

Asked before all other dependencies, and before anything of the request is validated. Knows schemes and types.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from natsweb.annotations import strip
from natsweb.errors import DeclarationError
from natsweb.messages import Call
from natsweb.params import Depends
from natsweb.security.schemes import Scheme

__all__ = ["Auth"]


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

    def __repr__(self) -> str:
        return f"Auth({self.scheme!r})"

    def resolve(self, annotation: Any) -> Callable[..., Any]:
        """Return the check for a parameter of this type."""
        bare = strip(annotation)
        model = bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None
        union = get_origin(annotation) in (Union, UnionType)
        return _Check(self.scheme, self.scopes, model, union and type(None) in get_args(annotation))


@dataclass(frozen=True)
class _Check:
    """One scheme asked for one type; equal ones are asked once per request."""

    scheme: Scheme
    scopes: tuple[str, ...]
    model: type[BaseModel] | None
    optional: bool

    @property
    def __name__(self) -> str:
        return f"Auth({self.scheme.name})"

    async def __call__(self, call: Call) -> Any:
        try:
            credentials = self.scheme.find(call)
            if credentials is None:
                if self.optional:
                    return None
                raise self.scheme.refusal("this route wants to know who calls")
            who = await self.scheme.verify(credentials)
        except ValueError as error:
            raise self.scheme.refusal(f"the credentials are refused: {error}", error="invalid_token") from None
        if lacking := set(self.scopes) - _scopes_of(who):
            raise self.scheme.refusal(
                f"the scope {sorted(lacking)[0]!r} is lacking", error="insufficient_scope", scope=" ".join(self.scopes)
            )
        if self.model is not None and isinstance(who, Mapping):
            try:
                return TypeAdapter(self.model).validate_python(who)
            except ValidationError:
                raise self.scheme.refusal(
                    "the token lacks claims that this route needs", error="invalid_token"
                ) from None
        return who


def _scopes_of(who: Any) -> set[str]:
    for name in ("scopes", "scope", "scp"):
        found = who.get(name) if isinstance(who, Mapping) else getattr(who, name, None)
        if isinstance(found, str):
            return set(found.split())
        if isinstance(found, Iterable):
            return {str(one) for one in found}
    return set()
