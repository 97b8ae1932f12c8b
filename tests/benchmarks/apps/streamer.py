"""Bodies, feeds and WebSockets of the stream benchmarks, by natsweb; `streamer_direct` has the same in FastAPI."""

import asyncio
import time
from collections.abc import AsyncIterator

from pydantic import BaseModel

from natsweb import Service, WebSocket

PIECE = b"y" * 65536
EVERY = 0.1

svc = Service("streamer")


class Tick(BaseModel):
    """An event: its number, and when it was made, in nanoseconds of the clock that all processes share."""

    n: int
    at: int


class Count(BaseModel):
    """How many bytes have come."""

    bytes: int


async def ticking() -> AsyncIterator[Tick]:
    """Give ten events a second, for ever; what is late does not put off the next."""
    due = time.monotonic()
    n = 0
    while True:
        yield Tick(n=n, at=time.monotonic_ns())
        n += 1
        due += EVERY
        await asyncio.sleep(due - time.monotonic())


async def pieces(mib: int) -> AsyncIterator[bytes]:
    """Give that many MiB."""
    for _ in range(mib * 16):
        yield PIECE


@svc.get("/small")
async def small() -> Count:
    """Answer at once."""
    return Count(bytes=0)


@svc.put("/up")
async def up(body: AsyncIterator[bytes]) -> Count:
    """Count what comes, and throw it away."""
    total = 0
    async for piece in body:
        total += len(piece)
    return Count(bytes=total)


@svc.get("/down/<mib>")
async def down(mib: int) -> AsyncIterator[bytes]:
    """Send that many MiB."""
    async for piece in pieces(mib):
        yield piece


@svc.get("/ticks")
async def ticks() -> AsyncIterator[Tick]:
    """Send events until the client goes."""
    async for tick in ticking():
        yield tick


@svc.websocket("/echo")
async def echo(ws: WebSocket) -> None:
    """Send everything back."""
    async for message in ws:
        await ws.send(message)
