"""How many machine instructions a request takes in the service and in the gateway, counted by Valgrind.

Times on a shared machine differ by half from one second to the next. Instructions do not: two counts of the same code
differ by less than one in a thousand, so that small changes show. Each side runs alone in a process, on a connection
to NATS without a socket; `python -m tests.benchmarks.instructions SIDE BATCHES` is what is counted.
"""

import asyncio
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import uvloop
from nats.aio.client import Client

from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus.client import RawClient
from natsweb.natsbus.fast import FastBus
from natsweb.natsbus.link import LinkSubscription
from natsweb.service import Service
from natsweb.settings import Nats
from natsweb.subjects import matches
from natsweb.wire import encode_request
from natsweb.worker import Worker
from tests.benchmarks.stacks import ANSWER, ORDERS, PATH, Failed

__all__ = ["count_instructions"]

_BATCH = 25  # about as many requests as come at once with 64 clients
_FEW, _MANY = 26, 156  # batches; what the first ones take is taken off
_CLIENTS = 64
_REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n".encode()
_REPLY = b"NATS/1.0\r\ncontent-type: application/json\r\n\r\n"
_TIME = 300.0


class _Written:
    """A transport that goes nowhere, and keeps what was written last."""

    def __init__(self, port: int = 0) -> None:
        self.last = b""
        self.times = 0
        self._port = port

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.last = data
        self.times += 1

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", self._port), "sockname": ("127.0.0.1", 8000)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    async def until_written(self, before: int) -> None:
        """Wait until something has been written since `times` was `before`."""
        while self.times == before:
            await asyncio.sleep(0)


class _Unplugged(FastBus):
    """A bus whose connection is a `_Written` one way, and `take` the other."""

    def __init__(self) -> None:
        super().__init__(Nats(urls=("nats://127.0.0.1:4222",)), "benchmark")
        self.written = _Written()
        self._writer = SimpleNamespace(transport=self.written)
        self.sids: dict[str, int] = {}
        self._client._status = Client.CONNECTED
        self._client._max_payload = 1024 * 1024
        self._up = True
        reader = asyncio.StreamReader()
        self._client.frames.shortcut(reader)
        self.take: Callable[[bytes], None] = reader.feed_data

    def _socket(self) -> Any:
        return self._writer

    async def _subscribe(self, client: RawClient, subscription: LinkSubscription) -> None:
        self.sids[subscription.subject] = number = len(self.sids) + 1
        parts, receive = subscription.receive_parts, subscription.receive
        assert parts is not None or receive == self._inbox.receive, "only what the hot paths subscribe to"
        client.frames.raw[b"%d" % number] = parts or self._inbox.take

    async def flush(self, timeout: float = 5.0) -> None:
        pass


def _message(subject: bytes, sid: int, reply: bytes, header: bytes, payload: bytes) -> bytes:
    parts = (subject, sid, reply, len(header), len(header) + len(payload), header, payload)
    return b"HMSG %b %d %b%d %d\r\n%b%b\r\n" % parts


async def _service(batches: int) -> None:
    """Have the orders example answer, batch after batch."""
    sys.path.insert(0, str(ORDERS))
    import app  # type: ignore[import-not-found]  # the example's

    service: Service = app.svc
    bus = _Unplugged()
    worker = Worker(bus, service)
    worker.events = None
    await worker.start()
    subject = f"{service.root}{PATH.replace('/', '.')}"
    [sid] = [number for pattern, number in bus.sids.items() if matches(pattern, subject)]
    prepared = [b"".join(_asked(service, subject, sid, first)) for first in range(0, _CLIENTS, 5)]
    for number in range(batches):
        before = bus.written.times
        bus.take(prepared[number % len(prepared)])
        await bus.written.until_written(before)
        _check(bus.written.last.count(ANSWER) == _BATCH)


def _asked(service: Service, subject: str, sid: int, first: int) -> Iterator[bytes]:
    """Yield the requests of as many clients as make a batch."""
    for client in range(first, first + _BATCH):
        header = encode_request(
            "GET",
            b"host: 127.0.0.1:8000\r\n",
            timeout_ms=60_000,
            sent_ms=int(time.time() * 1000),
            client=f"127.0.0.1:{40000 + client % _CLIENTS}",
            service=service.name,
            window=64 * 1024,
        )
        yield _message(subject.encode(), sid, b"_INBOX.%032x.%024x " % (7, client), header, b"")


async def _gateway(batches: int) -> None:
    """Have a gateway forward requests of many clients, batch after batch."""
    bus = _Unplugged()
    await bus.subscribe(bus._inbox.pattern, bus._inbox.receive)
    gateway = Gateway("api", bus=bus, discovery=False)
    await gateway.start()
    front = Front(gateway)
    front._server.config.load()
    front.dates = b"date: Fri, 27 Nov 2026 06:00:00 GMT\r\n"
    sockets = [_Written(40000 + number) for number in range(_CLIENTS)]
    connections = [front._new_connection() for _ in sockets]
    for connection, socket in zip(connections, sockets, strict=True):
        connection.connection_made(socket)  # type: ignore[arg-type]
    for number in range(batches):
        turn = [client % _CLIENTS for client in range(number * _BATCH, number * _BATCH + _BATCH)]
        before = bus.written.times
        for client in turn:
            connections[client].data_received(_REQUEST)
        await bus.written.until_written(before)
        replies = [frame.split(b" ", 2)[1] for frame in bus.written.last.split(b"HPUB ")[1:]]
        last = sockets[turn[-1]]
        before = last.times
        bus.take(b"".join([_message(reply, 1, b"", _REPLY, ANSWER) for reply in replies]))
        await last.until_written(before)
        _check(len(replies) == _BATCH and last.last.endswith(ANSWER))


def _check(right: bool) -> None:
    if not right:
        raise AssertionError("the answers are not what they should be")


_SIDES = {"service": _service, "gateway": _gateway}


async def count_instructions() -> dict[str, int]:
    """Return the instructions of one request on each side, the gateway's with some thousand of the bench's own.

    Raises `Failed` without Valgrind, or if a run ends with an error.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Failed("valgrind is not on PATH (apt-get install valgrind)")
    found = {}
    for side in _SIDES:
        few, many = [await _count(valgrind, side, batches) for batches in (_FEW, _MANY)]
        found[side] = round((many - few) / ((_MANY - _FEW) * _BATCH))
    return found


async def _count(valgrind: str, side: str, batches: int) -> int:
    """Return the instructions of a whole run."""
    command = (valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", sys.executable)
    run = await asyncio.create_subprocess_exec(
        *(*command, "-m", __name__, side, f"{batches}"),
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(run.communicate(), _TIME)
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    total = re.search(r"I +refs: +([\d,]+)", said.decode(errors="replace"))
    if run.returncode or total is None:
        raise Failed(f"counting the {side}'s instructions failed:\n{said.decode(errors='replace')[-2000:]}")
    return int(total[1].replace(",", ""))


if __name__ == "__main__":
    uvloop.run(_SIDES[sys.argv[1]](int(sys.argv[2])))
