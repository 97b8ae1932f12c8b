"""Several roots behind one gateway: which one a request belongs to, by the host it asks for and where its path begins.

The most specific wins: a host before none, and of the paths the longest. What is left of the path is asked for below
the root. Compares canonical paths, so that no spelling leads past a site. Knows hosts, paths and roots.
"""

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple

from natsweb.errors import BadPath, SettingsError
from natsweb.subjects import check_root, path_tokens, to_path

__all__ = ["Site", "Sites"]


class Site(NamedTuple):
    """One root: for `host` (empty for any) and paths that begin with `tokens`."""

    root: str
    host: bytes = b""
    tokens: tuple[str, ...] = ()


class Sites:
    """The roots of a gateway: `root` for all that `others` do not have.

    `others` are roots by `host`, `/path` or `host/path`: `{"admin.example.com": "api.admin", "/v2": "api.v2"}`. Raises
    `SettingsError` for what can be none of these, and roots that cannot be.
    """

    def __init__(self, root: str, others: Mapping[str, str] | None = None) -> None:
        self.others = dict(others or {})
        found = [_parse(where, said) for where, said in (others or {}).items()]
        for index, (one, where) in enumerate(zip(found, self.others, strict=True)):
            if (one.host, one.tokens) in [(other.host, other.tokens) for other in found[:index]]:
                raise SettingsError(f"{where!r} is there twice, in two spellings", fix="leave one of them out")
        self.default = Site(check_root(root))
        self._others = sorted(found, key=lambda one: (not one.host, -len(one.tokens)))

    def __repr__(self) -> str:
        return f"<Sites of {', '.join(self.roots)}>"

    @property
    def roots(self) -> list[str]:
        """All roots, each once."""
        return list(dict.fromkeys([self.default.root, *[one.root for one in self._others]]))

    @property
    def all(self) -> list[Site]:
        """All of them, the most specific first."""
        return [*self._others, self.default]

    @property
    def are_several(self) -> bool:
        """Whether there is more than one."""
        return bool(self._others)

    def pick(self, host: bytes, raw_path: bytes) -> tuple[str, bytes]:
        """Return the root that a request belongs to, and its path below that."""
        if not self._others:
            return self.default.root, raw_path
        try:
            tokens = path_tokens(raw_path.decode("latin-1"))
        except BadPath:
            return self.default.root, raw_path  # which is refused there
        for site in self._others:
            size = len(site.tokens)
            if (not site.host or site.host == host) and tuple(tokens[:size]) == site.tokens:
                return site.root, to_path(tokens[size:]).encode("latin-1") if size else raw_path
        return self.default.root, raw_path


def _parse(where: str, root: str) -> Site:
    host, slash, path = where.strip().partition("/")
    try:
        tokens = tuple(path_tokens(f"/{path.rstrip('/')}")) if slash and path.strip("/") else ()
    except BadPath as error:
        raise SettingsError(f"{where!r} is no path of a root: {error.detail}", fix="write it as /staging") from None
    if not host and not tokens:
        raise SettingsError(
            f"{where!r} says neither a host nor a path", fix='write it as "admin.example.com" or "/staging"'
        )
    return Site(check_root(root), _host(host), tokens)


def _host(said: str) -> bytes:
    """Return a host as requests name it; raises `SettingsError` for what is none, or has a port."""
    address = said[1:-1] if said.startswith("[") and said.endswith("]") else ""
    name = said.removesuffix(".").lower()
    try:
        if address:
            return f"[{ipaddress.IPv6Address(address)}]".encode()
        if all(char.isalnum() or char in "-._" for char in name):
            return name.encode("ascii" if name.isascii() else "idna")
    except ValueError:
        pass
    raise SettingsError(f"{said!r} is no host", fix="write it as admin.example.com, without scheme and port")
