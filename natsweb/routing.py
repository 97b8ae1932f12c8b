"""The one matcher of a service: tokens and method in, endpoint and captures out.

A tree of tokens. At every position a literal is tried before a capture and a capture before a tail, so the
most specific template that has the method wins, whatever the order of declaration. 404 and 405 fall out of
the same search. It walks dicts; templates were parsed at declaration. It knows endpoints only by their
template, method and name, and never calls one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar, final

from natsweb.errors import BadPath, DeclarationError, MethodNotAllowed, NoRoute, UpgradeRequired
from natsweb.paths import Capture, Literal, Tail, Template
from natsweb.subjects import decode_token

__all__ = ["ANY_METHOD", "WEBSOCKET", "Endpoint", "Found", "Matcher", "Options", "Redirect"]

#: What an endpoint has in place of methods if it takes all of them, and what stands for opening a WebSocket.
ANY_METHOD, WEBSOCKET = "*", "WEBSOCKET"


class Endpoint(Protocol):
    """What the router has to know of a declared handler."""

    @property
    def template(self) -> Template: ...
    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def place(self) -> str:
        """Where it was declared, such as `app.py:14 show`."""
        ...


E = TypeVar("E", bound=Endpoint)


@final
@dataclass(frozen=True, slots=True)
class Options:
    """OPTIONS for a path that has routes: the methods it allows."""

    allow: list[str]


@final
@dataclass(frozen=True, slots=True)
class Redirect:
    """A trailing slash too many: the path without it has a route."""

    tokens: list[str]


#: What answers a request: an endpoint with the text of its captures by name, or what is known without one.
Found: TypeAlias = tuple[E, dict[str, str]] | Options | Redirect


class _Node(Generic[E]):
    __slots__ = ("capture", "ends", "literals", "tails")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[E]] = {}
        self.capture: _Node[E] | None = None
        self.ends: dict[str, E] = {}
        self.tails: dict[str, E] = {}


class Matcher(Generic[E]):
    """Routes of one service."""

    def __init__(self) -> None:
        self._root: _Node[E] = _Node()
        self.endpoints: list[E] = []

    def add(self, endpoint: E) -> None:
        """Add an endpoint; raises `DeclarationError` if its path and method are taken."""
        ends = self._ends_of(endpoint.template)
        for method in endpoint.methods:
            if method in ends:
                other = ends[method]
                raise DeclarationError(
                    f"{method} {endpoint.template} is declared twice",
                    where=[f"{other.place}  {other.template}", f"{endpoint.place}  {endpoint.template}"],
                    fix="change the path or the method of one of them; names of captures make no difference",
                )
        ends.update(dict.fromkeys(endpoint.methods, endpoint))
        self.endpoints.append(endpoint)

    def _ends_of(self, template: Template) -> dict[str, E]:
        node = self._root
        for part in template.parts:
            match part:
                case Literal(token):
                    node = node.literals.setdefault(token, _Node())
                case Capture():
                    node.capture = node.capture or _Node()
                    node = node.capture
                case Tail():
                    return node.tails
        return node.ends

    def find(self, method: str, tokens: list[str]) -> Found[E]:
        """Return what answers `method` on the path of `tokens` (canonical, see `subjects`).

        Raises `NoRoute`, `MethodNotAllowed` with the methods of all templates that fit, or `BadPath` for a tail
        that would climb up (`a%2F..%2Fb`).
        """
        node = self._root
        for token in tokens:  # the first candidate of the search, which nearly always is the one (tests/benchmarks)
            child = node.literals.get(token)
            if child is None:
                child = node.capture
                if child is None or token[0] == "%":
                    return self._try_all(method, tokens)
            node = child
        endpoint = node.ends.get(method)
        if endpoint is None:
            return self._try_all(method, tokens)
        template = endpoint.template
        if template.tail is not None:
            return endpoint, _captures(template, tokens)
        params = {}
        for index, name in template.captures:  # `_captures` without its calls
            token = tokens[index]
            params[name] = decode_token(token) if "%" in token else token
        return endpoint, params

    def _try_all(self, method: str, tokens: list[str]) -> Found[E]:
        """Return the first candidate that has the method: see `find`."""
        fallback = None
        is_typed = False  # OPTIONS is answered here where a route has methods, whatever is mounted around it
        for ends in _search(self._root, tokens, 0):
            endpoint = ends.get(method)
            if endpoint is None and method == "HEAD":
                endpoint = ends.get("GET")
            is_typed = is_typed or (method == "OPTIONS" and bool(ends.keys() - {ANY_METHOD, WEBSOCKET}))
            if endpoint is None and not is_typed:
                endpoint = ends.get(ANY_METHOD)
            if endpoint is not None:
                return endpoint, _captures(endpoint.template, tokens)
            fallback = fallback or ends
        if fallback is None:
            return self._without_slash(method, tokens)
        allow = self._allowed(tokens)
        if method == "OPTIONS":
            return Options(allow)
        if allow == ["OPTIONS"] and any(WEBSOCKET in ends for ends in _search(self._root, tokens, 0)):
            raise UpgradeRequired("this path takes a WebSocket, and nothing else")
        raise MethodNotAllowed(f"this path takes {', '.join(allow)}", allow=allow)

    def _allowed(self, tokens: list[str]) -> list[str]:
        methods = {method for ends in _search(self._root, tokens, 0) for method in ends} - {WEBSOCKET, ANY_METHOD}
        return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))

    def _without_slash(self, method: str, tokens: list[str]) -> Redirect:
        if method in ("GET", "HEAD") and len(tokens) > 1 and not decode_token(tokens[-1]):
            shorter = tokens[:-1]
            if decode_token(shorter[-1]) and any(
                "GET" in ends or "HEAD" in ends for ends in _search(self._root, shorter, 0)
            ):
                return Redirect(shorter)
        raise NoRoute("no route of this service has this path")


def _search(node: _Node[E], tokens: list[str], index: int) -> Iterator[dict[str, E]]:
    """Yield the endpoints (by method) of every template that fits, the most specific first."""
    if index == len(tokens):
        if node.ends:
            yield node.ends
        return
    token = tokens[index]
    child = node.literals.get(token)
    if child is not None:
        yield from _search(child, tokens, index + 1)
    if node.capture is not None and decode_token(token):
        yield from _search(node.capture, tokens, index + 1)
    if node.tails:
        yield node.tails


def _captures(template: Template, tokens: list[str]) -> dict[str, str]:
    params = {name: decode_token(tokens[index]) for index, name in template.captures}
    if template.tail is not None:
        index, name = template.tail
        params[name] = _tail([decode_token(token) for token in tokens[index:]])
    return params


def _tail(segments: Iterable[str]) -> str:
    rest = "/".join(segments)
    if ".." in rest and ".." in rest.replace("\\", "/").split("/"):
        raise BadPath("the path climbs up with an encoded '/..'")
    return rest
