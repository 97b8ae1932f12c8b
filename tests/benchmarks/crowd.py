"""Many clients in one process: of events, of WebSockets, and one that reads slowly.

`python -m tests.benchmarks.crowd events|sockets|slow PORT PATH ...` prints a line of JSON after each step, and goes on
to the next when it gets a line. The clients read what they need of HTTP and of RFC 6455, and no more: they share the
cores with what is measured.
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import uvloop

__all__ = ["percentile"]

C = TypeVar("C", bound="Client")

_AT_ONCE = 50
_OPEN_TIMEOUT = 30.0
_AT = re.compile(rb'data: \{"n":(\d+),"at":(\d+)\}\n\n')
_LONGEST = 128  # bytes of an event, and more
_MASK = b"\x00\x00\x00\x00"
_HELLO = b"hello, is anybody there?"
_ECHO = bytes([0x81, len(_HELLO)]) + _HELLO
_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the sorted values are; 0 if there are none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


class Client(asyncio.Protocol):
    """One connection that asks for one thing."""

    def __init__(self, request: bytes, status: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.lost: str | None = None
        self._request = request
        self._status = status
        self._buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            self.take(data)
            return
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(self._status):
            self._buffer = b""
            self.opened.set_result(None)
            if rest:
                self.take(rest)
        else:
            self.opened.set_exception(ConnectionError(repr(self._buffer[:300])))

    def take(self, data: bytes) -> None:
        """Take what follows the head."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = repr(exc) if exc else "closed"
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(self.lost))


class Listener(Client):
    """Counts events, and notes how old they are when they come."""

    lags: list[int] | None = None  # of all of them
    events = 0
    missed = 0

    def __init__(self, path: str) -> None:
        lines = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n"
        super().__init__(lines.encode(), b"HTTP/1.1 200 ")
        self._next = 0

    def take(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._buffer += data
        last = None
        for last in _AT.finditer(self._buffer):
            number = int(last[1])
            if number != self._next:
                Listener.missed += 1
            self._next = number + 1
            if Listener.lags is not None:
                Listener.lags.append(now - int(last[2]))
        if last is not None:
            self._buffer = self._buffer[last.end() :]
        elif len(self._buffer) > _LONGEST:
            raise ConnectionError(f"this is no event: {self._buffer!r}")


class Talker(Client):
    """A WebSocket that is quiet until it is told to say hello; answers pings."""

    pings = 0

    def __init__(self, path: str) -> None:
        lines = (
            f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            f"sec-websocket-version: 13\r\nsec-websocket-key: {_KEY.decode()}\r\n\r\n"
        )
        super().__init__(lines.encode(), b"HTTP/1.1 101 ")
        self._answer: asyncio.Future[None] | None = None

    async def echo(self) -> None:
        """Say hello, and wait for the answer."""
        if self.lost is not None:
            raise ConnectionError(self.lost)
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(bytes([0x81, 0x80 | len(_HELLO)]) + _MASK + _HELLO)
        await self._answer

    def take(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 2 and len(self._buffer) >= 2 + self._buffer[1]:
            end = 2 + self._buffer[1]
            frame, self._buffer = self._buffer[:end], self._buffer[end:]
            if frame[0] == 0x89:
                Talker.pings += 1
                self.transport.write(bytes([0x8A, 0x80 | frame[1]]) + _MASK + frame[2:])
            elif frame == _ECHO and self._answer is not None and not self._answer.done():
                self._answer.set_result(None)
            else:
                self.lost = f"{frame!r} came"
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(self.lost))


async def _each(works: Sequence[Callable[[], Awaitable[Any]]]) -> list[str]:
    """Do it all, some at once; return what went wrong."""
    waiting = list(reversed(works))
    failures = list[str]()

    async def work() -> None:
        while waiting:
            one = waiting.pop()
            try:
                async with asyncio.timeout(_OPEN_TIMEOUT):
                    await one()
            except (OSError, TimeoutError) as error:
                failures.append(repr(error))

    await asyncio.gather(*[work() for _ in range(_AT_ONCE)])
    return failures


async def _open(kind: Callable[[str], C], port: int, path: str, count: int) -> tuple[list[C], dict[str, Any]]:
    """Open connections; return them, and how that went."""
    loop = asyncio.get_running_loop()
    clients = list[C]()

    async def one() -> None:
        _, client = await loop.create_connection(lambda: kind(path), "127.0.0.1", port)
        await client.opened
        clients.append(client)

    began = time.monotonic()
    failures = await _each([one] * count)
    return clients, {"opened": len(clients), "seconds": time.monotonic() - began, "failures": failures[:5]}


def _say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


async def _told() -> str:
    return await asyncio.to_thread(sys.stdin.readline)


async def events(port: int, path: str, count: int, seconds: float) -> None:
    """Listen to events of that many clients."""
    clients, facts = await _open(Listener, port, path, count)
    _say(facts)
    await _told()
    Listener.lags = []
    began = time.monotonic()
    await asyncio.sleep(seconds)
    taken, lags = time.monotonic() - began, sorted(Listener.lags)
    Listener.lags = None
    _say(
        {
            "rate": len(lags) / taken,
            "p50": percentile(lags, 0.5) / 1e6,
            "p99": percentile(lags, 0.99) / 1e6,
            "missed": Listener.missed,
            "lost": [client.lost for client in clients if client.lost is not None][:5],
        }
    )
    await _told()


async def sockets(port: int, path: str, count: int) -> None:
    """Open WebSockets, leave them alone, and then let each say hello once."""
    clients, facts = await _open(Talker, port, path, count)
    _say(facts)
    await _told()
    lost = [client.lost for client in clients if client.lost is not None]
    began = time.monotonic()
    failures = await _each([client.echo for client in clients])
    _say(
        {
            "echoes": len(clients) - len(failures),
            "seconds": time.monotonic() - began,
            "failures": [*lost, *failures][:5],
            "pings": Talker.pings,
        }
    )
    await _told()


async def slow(port: int, path: str, rate: int) -> None:
    """Read so many bytes a second until told to stop."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64 * 1024)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    _say({"status": head.split()[1].decode()})
    stop = asyncio.ensure_future(_told())
    began, total = time.monotonic(), 0
    while not stop.done():
        data = await reader.read(64 * 1024)
        if not data:
            break
        total += len(data)
        await asyncio.sleep(began + total / rate - time.monotonic())
    _say({"bytes": total, "seconds": time.monotonic() - began, "ended": not stop.done()})
    writer.transport.abort()
    await stop


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    what, port, path, *numbers = arguments
    works: dict[str, Callable[..., Any]] = {"events": events, "sockets": sockets, "slow": slow}
    uvloop.run(works[what](int(port), path, *[int(number) for number in numbers]))


if __name__ == "__main__":
    main(sys.argv[1:])
