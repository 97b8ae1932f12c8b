"""What of a request may cross a gateway, and how: allow-lists of headers and cookies, headers that it sets, paths.

Compiled once from what a person says, applied to every request: pure, on bytes and subjects. By default all headers
cross but those of one connection and natsweb's own, which `wire` sees to.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from natsweb.errors import BadPath, SettingsError
from natsweb.headers import encode_line
from natsweb.subjects import join, path_tokens

__all__ = ["Rules"]

# What an allow-list always lets through: what the body is, and who was asked.
_ALWAYS = frozenset(
    [
        b"connection",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-length",
        b"content-range",
        b"content-type",
        b"host",
        b"transfer-encoding",
    ]
)

_COOKIE = re.compile(r"[!-:<>-~\x80-\xff]+").fullmatch

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one gateway.

    `headers` and `cookies` are names that may cross, None for all; with `headers` alone cookies cross if `Cookie` is
    among them. `set` are headers that the gateway writes itself, in place of the client's. `exclude` are paths that it
    does not reach, with all below them; `timeouts` are seconds by path, where the longest counts.

    Raises `SettingsError` for names, paths and times that cannot be.
    """

    headers: Sequence[str] | None = None
    cookies: Sequence[str] | None = None
    set: Mapping[str, str] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    timeouts: Mapping[str, float] = field(default_factory=dict)
    _allowed: frozenset[bytes] | None = field(init=False, repr=False, default=None)
    _crumbs: frozenset[bytes] | None = field(init=False, repr=False, default=None)
    _written: tuple[tuple[bytes, bytes], ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        written = tuple([_line(name, value) for name, value in self.set.items()])
        object.__setattr__(self, "_written", written)
        if self.headers is not None:
            names = {_name(name) for name in self.headers if name.strip()}
            cookie = {b"cookie"} if self.cookies else set()
            object.__setattr__(self, "_allowed", _ALWAYS | names | cookie | {name for name, _ in written})
        if self.cookies is not None:
            object.__setattr__(self, "_crumbs", frozenset([_cookie(name) for name in self.cookies]))
        for path in (*self.exclude, *self.timeouts):
            _check_path(path)
        for path, seconds in self.timeouts.items():
            if not 0 < seconds < math.inf:
                raise SettingsError(f"{seconds!r} s cannot be the time for {path}", fix="say seconds, such as 60")

    @property
    def are_plain(self) -> bool:
        """Whether headers cross as they come."""
        return self._allowed is None and self._crumbs is None and not self._written

    def apply(self, fields: Fields) -> Fields:
        """Return the header fields of a request that may cross, and those that the gateway sets."""
        if self.are_plain:
            return fields
        written = {name for name, _ in self._written}
        kept = []
        for name, value in fields:
            name = name.lower()
            if name in written or (self._allowed is not None and name not in self._allowed):
                continue
            if name == b"cookie" and self._crumbs is not None:
                value = _picked(value, self._crumbs)
                if not value:
                    continue
            kept.append((name, value))
        return [*kept, *self._written]

    def excluded(self, root: str, spell: "Spelling | None" = None) -> tuple[str, ...]:
        """Return what the subjects that are not reached begin with, each ending with a dot.

        `spell` gives the subject of a path below a root where that is not natsweb's own.
        """
        return tuple([start for path in self.exclude if (start := _beginning(root, path, spell))])

    def times(self, root: str, spell: "Spelling | None" = None) -> tuple[tuple[str, float], ...]:
        """Return (beginning of a subject with a dot behind it, seconds), the longest first."""
        found = [(_beginning(root, path, spell), seconds) for path, seconds in self.timeouts.items()]
        return tuple(sorted([one for one in found if one[0]], key=lambda one: -len(one[0])))


Spelling: TypeAlias = Callable[[str, str], str]


def _beginning(root: str, path: str, spell: Spelling | None) -> str:
    """Return what the subjects of a path and of all below it begin with; nothing if there can be none."""
    path = path.rstrip("/") or "/"
    try:
        return (join(root, path_tokens(path)) if spell is None else spell(root, path)) + "."
    except BadPath:
        return ""


def _check_path(path: str) -> None:
    try:
        if not path.startswith("/"):
            raise BadPath("it does not begin with /")
        path_tokens(path.rstrip("/") or "/")
    except BadPath as error:
        better = "/admin" if path[:1] in ("", "/") else f"/{path}"
        raise SettingsError(f"{path!r} is no path: {error.detail}", fix=f"write it as {better}") from None


def _cookie(name: str) -> bytes:
    if not _COOKIE(name.strip()):
        raise SettingsError(f"{name!r} is no name of a cookie", fix="write it as sid")
    return name.strip().encode("latin-1")


def _name(name: str) -> bytes:
    try:
        return encode_line(name.strip().encode("latin-1"), b"").partition(b":")[0]
    except ValueError:
        raise SettingsError(f"{name!r} is no name of a header", fix="write it as X-Tenant") from None


def _line(name: str, value: str) -> tuple[bytes, bytes]:
    try:
        line = encode_line(name.strip().encode("latin-1"), value.encode("latin-1"))
    except ValueError as error:
        raise SettingsError(f"{name!r} cannot be sent as a header: {error}", fix="write it as Name=value") from None
    found, _, rest = line.partition(b":")
    return found, rest.strip(b" \t\r\n")


def _picked(cookies: bytes, names: Iterable[bytes]) -> bytes:
    """Return the cookies of a `Cookie` field that have one of `names`, as they came."""
    crumbs = [crumb.strip(b" \t") for crumb in cookies.split(b";")]
    return b"; ".join([crumb for crumb in crumbs if crumb.partition(b"=")[0].strip(b" \t") in names])
