"""Who is there, and whose a request is: the services below one root, by method and path.

Filled with what services say of themselves (`micro`), asked for every request: a walk through dicts, as in a
service's own router. The owner of a path and method is the service with the most specific pattern that has the
method; a tie goes to the name that sorts first. Pure: it keeps no time and sends nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from natsweb.micro import Endpoint, Info, State
from natsweb.subjects import ANY, REST, tokens_below

__all__ = ["Catalogue", "Conflict", "Instance", "Owner"]

_ANY_METHOD = "*"
_UNTYPED = (_ANY_METHOD, "WEBSOCKET")


class Owner(NamedTuple):
    """The service that is meant: its name, the template of the route, and what it can do.

    `streams` tells whether it takes and gives streams, `takes_body` whether the route takes its body as it comes,
    `is_natsweb` whether it knows of `Nw-Service`; `is_starting` that it will serve in a moment, and that
    nobody else does; `is_away` that it has served this, and no instance of it is there.
    """

    name: str
    template: str
    is_natsweb: bool = True
    streams: bool = False
    takes_body: bool = False
    is_starting: bool = False
    is_away: bool = False


class Conflict(NamedTuple):
    """Two services that both have a method on the very same pattern."""

    method: str
    subject: str
    names: tuple[str, ...]


class Instance(NamedTuple):
    """One process of a service."""

    info: Info
    state: State
    seen: float


class _Claim:
    """One service's claim to a method on a pattern, which of its instances serve it, and whether any ever has."""

    __slots__ = ("owner", "served", "starting", "up")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.served = False
        self.up: set[str] = set()
        self.starting: set[str] = set()


class _Spot:
    """All claims to one pattern: by method, then by service. `owners` is what requests look at."""

    __slots__ = ("claims", "owners", "pattern", "starting")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.claims: dict[str, dict[str, _Claim]] = {}
        self.owners: dict[str, Owner] = {}
        self.starting: dict[str, Owner] = {}

    def settle(self) -> None:
        """Work out the owners again after a claim has changed."""
        self.owners = self._first(lambda claim: bool(claim.up))
        starting = self._first(lambda claim: bool(claim.starting))
        self.starting = {method: owner._replace(is_starting=True) for method, owner in starting.items()}

    def _first(self, holds: Callable[[_Claim], bool]) -> dict[str, Owner]:
        found: dict[str, Owner] = {}
        for method, claims in self.claims.items():
            names = [name for name, claim in claims.items() if holds(claim)]
            if names:
                found[method] = claims[min(names)].owner
        if "GET" in found and "HEAD" not in found:
            found["HEAD"] = found["GET"]
        return found


class _Node:
    __slots__ = ("capture", "end", "literals", "tail")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.capture: _Node | None = None
        self.end: _Spot | None = None
        self.tail: _Spot | None = None


#: Name of a service and hash of its routes.
_Routes = tuple[str, str]


class Catalogue:
    """The services below `root`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._top = _Node()
        self._instances: dict[str, Instance] = {}
        self._spots: dict[_Routes, list[tuple[_Spot, tuple[str, ...]]]] = {}
        self._gone: dict[_Routes, float] = {}
        self.knows_natsweb = False

    def __repr__(self) -> str:
        return f"<Catalogue below {self.root}: {len(self._instances)} instances>"

    # ── what is known ──

    def __len__(self) -> int:
        return len(self._instances)

    @property
    def instances(self) -> list[Instance]:
        """All instances that are there, by name, version and id."""
        return sorted(self._instances.values(), key=lambda one: (one.info.name, one.info.version, one.info.id))

    def instance(self, id: str) -> Instance | None:
        """Return an instance by its id."""
        return self._instances.get(id)

    def named(self, name: str) -> list[Instance]:
        """Return the instances of a service."""
        return [one for one in self._instances.values() if one.info.name == name]

    def conflicts(self) -> list[Conflict]:
        """Return the methods and patterns that several services claim."""
        found = []
        for spot in dict.fromkeys(spot for spots in self._spots.values() for spot, _ in spots):
            for method, claims in spot.claims.items():
                names = tuple(sorted(name for name, claim in claims.items() if claim.up))
                if len(names) > 1:
                    found.append(Conflict(method, spot.pattern, names))
        return sorted(found)

    # ── whose a request is ──

    def owner(self, method: str, tokens: Sequence[str]) -> Owner | None:
        """Return the service that is meant by a request, or None if nobody has claimed its path.

        Where nobody has the method, it is the most specific service on the path: that one answers 405 or OPTIONS.
        """
        node = self._top
        for token in tokens:
            child = node.literals.get(token)
            if child is None:
                child = node.capture
                if child is None or token[0] == "%":
                    break
            node = child
        else:
            if node.end is not None:
                owner = node.end.owners.get(method)
                if owner is not None:
                    return owner
        return self._search(method, tokens)

    def _search(self, method: str, tokens: Sequence[str]) -> Owner | None:
        typed = other = starting = away = None
        for spot in _spots(self._top, tokens, 0):
            if method == "OPTIONS" and typed is None:
                typed = min([one for key, one in spot.owners.items() if key not in _UNTYPED], default=None)
            owner = spot.owners.get(method) or (None if typed is not None else spot.owners.get(_ANY_METHOD))
            if owner is not None:
                return owner
            starting = starting or spot.starting.get(method) or spot.starting.get(_ANY_METHOD)
            away = away or self._away(spot, method)
            if other is None and spot.owners:
                other = min(spot.owners.values())
        return starting or away or typed or other or self._by_empty_captures(tokens)

    def _by_empty_captures(self, tokens: Sequence[str]) -> Owner | None:
        """Return who gets a path with an empty segment that only a capture fits: it answers 404, or redirects."""
        if "%" in tokens:
            for spot in _spots(self._top, tokens, 0, empty=True):
                if spot.owners:
                    return min(spot.owners.values())
        return None

    def _away(self, spot: _Spot, method: str) -> Owner | None:
        """Return the natsweb service that has had a method here, and has no instance at all."""
        for claims in (spot.claims.get(method), spot.claims.get("GET") if method == "HEAD" else None):
            for name, claim in (claims or {}).items():
                if claim.served and claim.owner.is_natsweb and not self.named(name):
                    return claim.owner._replace(is_away=True)
        return None

    def claimant(self, method: str, tokens: Sequence[str]) -> str | None:
        """Return the service that has a method on exactly this pattern, or None if nobody has."""
        node: _Node | None = self._top
        spot = None
        for token in tokens:
            assert node is not None
            if token == REST:
                spot = node.tail
                break
            node = node.capture if token == ANY else node.literals.get(token)
            if node is None:
                return None
        else:
            spot = node.end if node is not None else None
        owner = spot and (spot.owners.get(method) or spot.owners.get(_ANY_METHOD))
        return owner.name if owner else None

    def was_there(self, tokens: Sequence[str]) -> bool:
        """Tell whether somebody has served a path, now or before."""
        claims = [claims for spot in _spots(self._top, tokens, 0) for claims in spot.claims.values()]
        return any(claim.served or claim.starting for each in claims for claim in each.values())

    # ── what changes ──

    def put(self, info: Info, state: State, now: float) -> bool:
        """Take in what an instance says of itself; tell whether that changes whose requests are.

        An instance that says "down" stays known by its routes only.
        """
        before = self._instances.get(info.id)
        self.knows_natsweb = self.knows_natsweb or info.is_natsweb
        if before is None and state == "down":
            return False
        if before is not None and before.state == state and _same(before.info, info):
            self._instances[info.id] = before._replace(seen=now)
            return False
        if before is not None and (before.info.name, before.info.routes) != (info.name, info.routes):
            del self._instances[info.id]
            self._mark(before.info, "down", now)
        if state == "down":
            self._instances.pop(info.id, None)
        else:
            self._instances[info.id] = Instance(info, state, now)
        self._mark(info, state, now)
        return True

    def drop(self, id: str, now: float) -> bool:
        """Forget an instance that is gone; tell whether it was there."""
        gone = self._instances.pop(id, None)
        if gone is None:
            return False
        self._mark(gone.info, "down", now)
        return True

    def drop_service(self, name: str, now: float) -> bool:
        """Forget all instances of a service; tell whether there were any."""
        gone = [self.drop(one.info.id, now) for one in self.named(name)]
        return any(gone)

    def forget(self, before: float) -> None:
        """Let go of routes that nobody has served since `before`: their paths count as never claimed."""
        for key in [key for key, gone in self._gone.items() if gone < before]:
            del self._gone[key]
            kept = {
                (id(spot), method)
                for other, spots in self._spots.items()
                for spot, methods in (spots if other[0] == key[0] and other != key else ())
                for method in methods
            }
            for spot, methods in self._spots.pop(key):
                for method in methods:
                    if (id(spot), method) in kept:
                        continue
                    claims = spot.claims.get(method, {})
                    claim = claims.get(key[0])
                    if claim is not None and not claim.up and not claim.starting:
                        del claims[key[0]]
                        if not claims:
                            del spot.claims[method]
                spot.settle()

    def _mark(self, info: Info, state: State, now: float) -> None:
        """Note in all claims of an instance what it does now."""
        key = (info.name, info.routes)
        spots = self._spots.get(key)
        if spots is None:
            spots = self._spots[key] = list(self._claims(info))
        if state == "down" and not any((one.info.name, one.info.routes) == key for one in self._instances.values()):
            self._gone[key] = now
        else:
            self._gone.pop(key, None)
        for spot, methods in spots:
            for method in methods:
                claim = spot.claims[method][info.name]
                claim.served = claim.served or state == "up"
                (claim.up.add if state == "up" else claim.up.discard)(info.id)
                (claim.starting.add if state == "starting" else claim.starting.discard)(info.id)
            spot.settle()

    def _claims(self, info: Info) -> Iterator[tuple[_Spot, tuple[str, ...]]]:
        """Make the claims of an instance's endpoints."""
        for endpoint in info.endpoints:
            tokens = tokens_below(self.root, endpoint.subject)
            if tokens is None:
                continue
            spot = self._spot(tokens, endpoint.subject)
            methods = endpoint.methods or (_ANY_METHOD,)
            for method in methods:
                owner = Owner(
                    info.name, _template(endpoint, tokens), info.is_natsweb, endpoint.streams, endpoint.takes_body
                )
                claim = spot.claims.setdefault(method, {}).setdefault(info.name, _Claim(owner))
                claim.owner = owner
            yield spot, methods

    def _spot(self, tokens: Sequence[str], pattern: str) -> _Spot:
        node = self._top
        for token in tokens:
            if token == REST:
                node.tail = node.tail or _Spot(pattern)
                return node.tail
            if token == ANY:
                node.capture = node.capture or _Node()
                node = node.capture
            else:
                node = node.literals.setdefault(token, _Node())
        node.end = node.end or _Spot(pattern)
        return node.end


def _same(one: Info, other: Info) -> bool:
    return one.name == other.name and one.routes == other.routes


def _template(endpoint: Endpoint, tokens: Iterable[str]) -> str:
    """Return the path template of an endpoint, one of its subject if it says none."""
    if endpoint.path is not None:
        return endpoint.path
    words = {ANY: "<value>", REST: "<path:rest>"}
    return "/" + "/".join(words.get(token, token) for token in tokens)


def _spots(node: _Node, tokens: Sequence[str], index: int, *, empty: bool = False) -> Iterator[_Spot]:
    """Yield every spot that a path fits, the most specific first; captures take `empty` segments only if asked to."""
    if index == len(tokens):
        if node.end is not None:
            yield node.end
        return
    token = tokens[index]
    child = node.literals.get(token)
    if child is not None:
        yield from _spots(child, tokens, index + 1, empty=empty)
    if node.capture is not None and (empty or token != "%"):
        yield from _spots(node.capture, tokens, index + 1, empty=empty)
    if node.tail is not None:
        yield node.tail
