"""The load: clients on raw sockets, each with one connection and one request at a time.

A client knows exactly how a request ended: whether the connection was refused, closed before the first byte of
the answer, or closed within it. Library clients hide that, and send again on their own. It knows HTTP/1.1 with
Content-Length, and nothing of who answers.
"""

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from .ledger import End, Outcome

__all__ = ["Compose", "Load", "Offer", "Wanted", "get", "once", "post"]

_REST = 0.02
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3})[ \r]")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CLOSING = re.compile(rb"\r\nconnection: *close\r\n", re.IGNORECASE)


class Wanted(NamedTuple):
    """One request: the method, the path with its query, and a body of JSON, if there is one."""

    method: str
    target: str
    body: bytes = b""

    @property
    def what(self) -> str:
        """Method and path."""
        return f"{self.method} {self.target.partition('?')[0]}"

    @property
    def encoded(self) -> bytes:
        """The bytes that a client sends."""
        head = f"{self.method} {self.target} HTTP/1.1\r\nHost: chaos\r\n"
        if self.body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        return f"{head}\r\n".encode() + self.body


#: Makes a request of its id and of the seconds that it is to take.
Compose = Callable[[str, float], Wanted]


def get(path: str, id: str, pause: float) -> Wanted:
    """Return a GET that takes `pause` seconds."""
    return Wanted("GET", f"{path}?id={id}&pause={pause:.4f}")


def post(path: str, id: str, pause: float) -> Wanted:
    """Return a POST that takes `pause` seconds."""
    return Wanted("POST", path, json.dumps({"id": id, "pause": round(pause, 4)}).encode())


def _work(id: str, pause: float) -> Wanted:
    return post("/work", id, pause)


class _Answer(NamedTuple):
    end: End
    status: int = 0
    body: bytes = b""
    closing: bool = False


class _Connection(asyncio.Protocol):
    """One connection: what has arrived on it, and whether it is still there."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answers = 0
        self._received = bytearray()
        self._lost = False
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._news.set()

    @property
    def is_open(self) -> bool:
        """Whether a request can be sent, as far as the client knows."""
        return self.transport is not None and not self._lost and not self.transport.is_closing()

    async def ask(self, request: bytes, patience: float) -> _Answer:
        """Send a request and return its answer, or how there was none."""
        assert self.transport is not None
        self.transport.write(request)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while True:
                    if (answer := self._take()) is not None:
                        self.answers += 1
                        return answer
                    if self._lost:
                        return _Answer("cut" if self._received else "closed")
                    self._news.clear()
                    await self._news.wait()
        return _Answer("cut" if self._received else "silent")

    def _take(self) -> _Answer | None:
        """Take a whole answer out of what has arrived; what is no HTTP, or more than one answer, has status 0."""
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return None
        line, length = _HEAD.match(head), _LENGTH.search(head + b"\r\n")
        size = int(length[1]) if length else 0
        if line and length and len(rest) < size:
            return None
        self._received.clear()
        if not line or not length or len(rest) > size:
            return _Answer("answered", 0, bytes(rest), True)
        return _Answer("answered", int(line[1]), bytes(rest), bool(_CLOSING.search(head + b"\r\n")))

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.close()


class Load:
    """`clients` clients that send one request after the other to `url` while the context lasts.

    With several URLs, a client that is refused at one goes to the next, as behind a load balancer. With `again`, what
    is not answered 2xx is sent once more, up to that often, to the next URL; `given_up` are those that never were.
    `compose` makes the requests. A request takes the service up to `pause` seconds, and a client waits up to
    `think` seconds before the next.
    `patience` is how long it waits for an answer. Without `keep` every request has a connection of its own. With
    `leave` a client ends when its connection is refused.
    On the way out every client finishes the request that it has under way.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        clients: int = 64,
        *,
        again: int = 0,
        compose: Compose = _work,
        pause: float = 0.04,
        think: float = 0.02,
        patience: float = 15.0,
        keep: bool = True,
        leave: bool = False,
    ) -> None:
        addresses = [urlsplit(one) for one in ([url] if isinstance(url, str) else url)]
        self._addresses = [(one.hostname or "", one.port or 80) for one in addresses]
        self._again = again
        self.given_up: list[str] = []
        self._clients = clients
        self._compose = compose
        self._pause, self._think, self._patience = pause, think, patience
        self._keep = keep
        self._leave = leave
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._ids = (f"{os.urandom(4).hex()}-{number}" for number in itertools.count(1))
        self.outcomes: list[Outcome] = []
        self.in_flight = 0

    def __repr__(self) -> str:
        return f"<Load {self._clients} clients, {self.in_flight} in flight, {len(self.outcomes)} over>"

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=kind is not None)

    def no_more(self) -> None:
        """Let every client end with the request that it has under way."""
        self._stopping = True

    async def all_left(self, timeout: float) -> bool:
        """Wait until every client has left, because its connection was refused; False if they have not in time."""
        _, staying = await asyncio.wait(self._tasks, timeout=timeout)
        return not staying

    async def _run(self, turn: int) -> None:
        """Be one client, which begins at the URL number `turn`."""
        connection: _Connection | None = None
        tries = 0
        try:
            while tries or not self._stopping:
                id, sent = next(self._ids), time.monotonic()
                if connection is None or not connection.is_open:
                    connection = await self._connect(turn)
                if connection is None:
                    outcome = Outcome(id, sent, time.monotonic(), "refused")
                else:
                    outcome = await self._ask(connection, id)
                self.outcomes.append(outcome)
                if outcome.end == "refused" and self._leave:
                    return
                tries = self._tries(tries, outcome)
                turn += tries > 0
                if connection and (outcome.closing or outcome.end != "answered" or not self._keep or tries):
                    connection.close()
                    connection = None
                await asyncio.sleep(random.uniform(0, self._think) if outcome.acked else _REST)
        finally:
            if connection is not None:
                connection.close()

    def _tries(self, tries: int, outcome: Outcome) -> int:
        """Return how often a request has been sent in vain, 0 if its client goes on to the next."""
        if outcome.acked or not self._again:
            return 0
        if tries < self._again:
            return tries + 1
        self.given_up.append(outcome.id)
        return 0

    async def _connect(self, turn: int) -> _Connection | None:
        loop = asyncio.get_running_loop()
        for step in range(len(self._addresses)):
            host, port = self._addresses[(turn + step) % len(self._addresses)]
            with contextlib.suppress(OSError):
                _, connection = await loop.create_connection(_Connection, host, port)
                return connection
        return None

    async def _ask(self, connection: _Connection, id: str) -> Outcome:
        """Send one request and judge its answer."""
        self.in_flight += 1
        try:
            return await ask(connection, self._compose(id, random.uniform(0, self._pause)), id, self._patience)
        finally:
            self.in_flight -= 1


async def ask(connection: _Connection, wanted: Wanted, id: str, patience: float) -> Outcome:
    """Send one request on a connection and judge its answer."""
    reused = connection.answers > 0
    sent = time.monotonic()
    answer = await connection.ask(wanted.encoded, patience)
    reason, right = _read(answer, id)
    ended, told = time.monotonic(), (answer.end, answer.status, reason)
    return Outcome(id, sent, ended, *told, right, reused, answer.closing, wanted.what)


async def once(url: str, path: str) -> Outcome:
    """Send one GET on a connection of its own."""
    address, id = urlsplit(url), os.urandom(8).hex()
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(_Connection, address.hostname, address.port)
    try:
        return await ask(connection, Wanted("GET", f"{path}?id={id}"), id, 15.0)
    finally:
        connection.close()


class Offer:
    """Requests at a fixed `rate` a second for as long as the context lasts, however slowly they are answered.

    Each goes on a connection that is free, or on a new one.
    """

    def __init__(self, url: str, rate: float, *, compose: Compose = _work, pause: float = 0.05) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._rate, self._compose, self._pause = rate, compose, pause
        self._ids = (f"{os.urandom(4).hex()}-{number}" for number in itertools.count(1))
        self._free: list[_Connection] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None
        self.outcomes: list[Outcome] = []

    def __repr__(self) -> str:
        return f"<Offer of {self._rate:g}/s, {len(self._under_way)} under way, {len(self.outcomes)} over>"

    async def __aenter__(self) -> "Offer":
        self._sender = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._sender is not None
        self._sender.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)
        await asyncio.gather(*self._under_way)
        for connection in self._free:
            connection.close()

    async def _send(self) -> None:
        began, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - began) * self._rate)
            for _ in range(due - sent):
                task = asyncio.create_task(self._one())
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            sent = due
            await asyncio.sleep(0.005)

    async def _one(self) -> None:
        id, sent = next(self._ids), time.monotonic()
        connection = self._free.pop() if self._free else None
        if connection is None or not connection.is_open:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
            except OSError:
                self.outcomes.append(Outcome(id, sent, time.monotonic(), "refused"))
                return
        outcome = await ask(connection, self._compose(id, self._pause), id, 15.0)
        self.outcomes.append(outcome)
        if outcome.end == "answered" and not outcome.closing:
            self._free.append(connection)
        else:
            connection.close()


def _read(answer: _Answer, id: str) -> tuple[str, bool]:
    """Return the reason that a failure gives, and whether the body belongs to the request and the status."""
    if answer.end != "answered":
        return "", True
    if not answer.status:
        return "", False
    try:
        said = json.loads(answer.body)
    except ValueError:
        return "", False
    if not isinstance(said, dict):
        return "", False
    if 200 <= answer.status < 300:
        return "", said.get("id") == id
    return str(said.get("reason", "")), said.get("status") == answer.status
