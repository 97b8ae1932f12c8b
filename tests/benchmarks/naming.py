"""What it costs the gateway to name the service that is meant, in one process and without sockets.

The exchange prepares a request with and without a directory of 200 services of 20 routes each: every time another of
the 4,000 paths, as it is when a request comes for the first time; and again one that is prepared, as it is when a
client repeats its request. Both ways take turns, and each counts with the best of its runs.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from natsweb.bus import Asked, MemoryBus
from natsweb.discovery import Directory
from natsweb.exchange import Exchange
from natsweb.flights import Incoming
from natsweb.micro import METHOD, PATH, WIRE, Endpoint, Info

__all__ = ["NAMING_BAR", "Naming", "measure_naming"]

#: Microseconds that naming may add to a request that comes for the first time.
NAMING_BAR = 1.5

_SERVICES = 200
_ROUTES = 20
_RUNS = 40
_CLIENTS = tuple(f"127.0.0.1:{port}" for port in range(40000, 40064))
_FIELDS = b"host: 127.0.0.1:8000\r\nuser-agent: benchmark\r\naccept: */*\r\n"


class Pair(NamedTuple):
    """Microseconds for one request without and with a directory."""

    without: float
    named: float

    @property
    def difference(self) -> float:
        """What naming adds."""
        return self.named - self.without


class Naming(NamedTuple):
    """The figures: requests of one client that are new, of 64 clients that are new, and one that is repeated."""

    fresh: Pair
    crowd: Pair
    repeated: Pair


class _NoBus(MemoryBus):
    """A bus that sends nothing, so that only the way to it is timed."""

    def carry(self, asked: Asked, subject: bytes, payload: bytes, header: bytes | None, timeout: float) -> None:
        asked.due = 0.0

    def drop(self, asked: Asked) -> None:
        pass


def measure_naming() -> Naming:
    """Time both ways; wants a running event loop, since the exchange does."""
    bus = _NoBus()
    directory = Directory(bus, "api")
    for number in range(_SERVICES):
        directory.catalogue.put(_info(number), "up", 0.0)
    without, named = Exchange(bus, "api"), Exchange(bus, "api")
    named.directory = directory
    pairs = itertools.product(range(_SERVICES), range(_ROUTES))
    paths = [f"/s{service}/shelf{route}/{service * route}".encode() for service, route in pairs]
    _check(named, paths)
    return Naming(
        _pair(without, named, lambda exchange: _fresh(exchange, paths, _CLIENTS[:1])),
        _pair(without, named, lambda exchange: _fresh(exchange, paths, _CLIENTS)),
        _pair(without, named, lambda exchange: _repeated(exchange, paths[0], len(paths))),
    )


def _info(number: int) -> Info:
    """Return what a service of twenty routes says of itself."""
    endpoints = [
        Endpoint(
            name=f"shelf{route}",
            subject=f"api.s{number}.shelf{route}.*",
            queue_group=f"s{number}",
            metadata={METHOD: "GET", PATH: f"/s{number}/shelf{route}/<id>"},
        )
        for route in range(_ROUTES)
    ]
    return Info(name=f"s{number}", id=f"id{number}", version="1.0.0", metadata={WIRE: "1"}, endpoints=endpoints)


def _check(exchange: Exchange, paths: Sequence[bytes]) -> None:
    for number, path in enumerate(paths):
        incoming = Incoming("GET", path, b"", _FIELDS)
        exchange.prepare(incoming)
        if incoming.owner is None or incoming.owner.name != f"s{number // _ROUTES}":
            raise AssertionError(f"{path!r} is {incoming.owner}")


def _pair(one: Exchange, other: Exchange, run: Callable[[Exchange], float]) -> Pair:
    """Return the best of the runs of both, which take turns."""
    gc.collect()
    times = [(run(one), run(other)) for _ in range(_RUNS)]
    return Pair(*[min(column) * 1e6 for column in zip(*times, strict=True)])


def _fresh(exchange: Exchange, paths: Sequence[bytes], clients: Sequence[str]) -> float:
    """Prepare a new request for each path; return the seconds that one takes."""
    prepare, asking = exchange.prepare, itertools.cycle(clients)
    began = time.perf_counter()
    for path in paths:
        prepare(Incoming("GET", path, b"", _FIELDS, next(asking)))
    return (time.perf_counter() - began) / len(paths)


def _repeated(exchange: Exchange, path: bytes, times: int) -> float:
    """Launch one request again and again, and drop it; return the seconds that each takes."""
    incoming = Incoming("GET", path, b"", _FIELDS, _CLIENTS[0])
    launch, done = exchange.launch, _ignore
    began = time.perf_counter()
    for _ in range(times):
        launch(incoming, b"", done).drop()
    return (time.perf_counter() - began) / times


def _ignore(_: Any) -> None:
    pass


if __name__ == "__main__":

    async def _main() -> None:
        for name, pair in measure_naming()._asdict().items():
            print(f"{name:9} {pair.without:.2f} us without, {pair.named:.2f} named, {pair.difference:+.2f}")

    asyncio.run(_main())
