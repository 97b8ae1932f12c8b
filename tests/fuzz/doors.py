"""Both doors of the gateway, without sockets: the same bytes, cut in the same places, get the same answers.

The ASGI door is the oracle of the fast one. Bytes go straight into protocol objects of the real server; services and
NATS are in memory.
"""

import asyncio
import atexit
import json
import re
from typing import Any

from natsweb import Request, Response, Service
from natsweb.bus import MemoryBus
from natsweb.flights import Budget
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.worker import Worker

__all__ = ["doors"]

_METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
_QUIET = 12  # turns of the event loop without a word
_TURNS = 2000
_PIPELINED = 14
_VARIES = re.compile(rb"(HTTP/1\.1 [0-9]{3}) [^\r]*|\r\ndate: [^\r]*")


class _Transport(asyncio.Transport):
    """What a protocol writes to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 80)})
        self._loop = loop
        self.written = bytearray()
        self.closed = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.protocol.connection_lost, None)

    abort = close
    set_protocol = pause_reading = resume_reading = set_write_buffer_limits = lambda self, *_, **__: None

    def write_eof(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0


def _service() -> Service:
    svc = Service("fuzzed")

    @svc.route("/echo/<path:rest>", methods=_METHODS)
    async def echo(rest: str, request: Request) -> Response:
        said = [request.method, request.raw_path, request.query, list(request.headers), request.body.decode("latin-1")]
        return Response(headers={"content-type": "application/json"}, body=json.dumps(said).encode())

    @svc.get("/reply/<status>")
    async def reply(status: int) -> Response:
        return Response(status=min(max(status, 200), 599), headers={"etag": '"1"'}, body=b"body")

    return svc


class _House:
    """A gateway with a front for each door, in an event loop of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.fronts = self.loop.run_until_complete(self._build())

    async def _build(self) -> list[Front]:
        bus = MemoryBus()
        await Worker(bus, _service()).start()
        gateway = Gateway("api", bus=bus, discovery=False)
        await gateway.start()
        gateway.exchange.budget = Budget(0.0, 0.0)  # a second try takes its time
        fronts = [Front(gateway, port=0, fast=fast) for fast in (True, False)]
        for front in fronts:
            await front.start()
        await asyncio.sleep(0.05)
        self._gateway = gateway
        atexit.register(self.close)
        return fronts

    def close(self) -> None:
        """Stop."""
        for front in self.fronts:
            self.loop.run_until_complete(front.stop(now=True))

    def ask(self, front: Front, segments: list[bytes]) -> bytes:
        """Return what a connection says to these bytes."""
        return self.loop.run_until_complete(self._ask(front, segments))

    async def _ask(self, front: Front, segments: list[bytes]) -> bytes:
        transport = _Transport(self.loop)
        transport.protocol = connection = front._new_connection()
        connection.connection_made(transport)
        for segment in segments:
            if not transport.closed:
                connection.data_received(segment)
            await self._settle(transport)
        transport.close()
        for _ in range(_QUIET):
            await asyncio.sleep(0)
        return bytes(transport.written)

    async def _settle(self, transport: _Transport) -> None:
        """Let the event loop turn until nothing more is said."""
        quiet, before = 0, -1
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            busy = bool(self._gateway.exchange._flights)
            quiet = quiet + 1 if len(transport.written) == before and not busy else 0
            before = len(transport.written)
            if quiet > _QUIET:
                return


_house: _House | None = None


def doors(data: bytes) -> None:
    """The fast door answers as the ASGI door does, and every byte that either says is HTTP/1.1.

    The first byte tells in how many pieces the rest comes; a request behind it shows what the connection has become of.
    """
    global _house
    if _house is None:
        _house = _House()
    if b"upgrade" in data.lower() and b"websocket" in data.lower():
        return  # handed over to another library
    if data.count(b"HTTP/") > _PIPELINED:
        return  # how many of too many are answered depends on how fast that is
    pieces = 1 + (data[0] % 4 if data else 0)
    raw = data[1:] + b"GET /echo/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    size = -(-len(raw) // pieces)
    segments = [raw[start : start + size] for start in range(0, len(raw), size)]
    one, other = [_VARIES.sub(rb"\1", _house.ask(front, segments)) for front in _house.fronts]
    assert one == other, f"\n{segments}\nfast: {one!r}\nasgi: {other!r}"
    assert not one or one.startswith(b"HTTP/1.1 ")
    assert not _house._gateway.exchange._flights, segments
