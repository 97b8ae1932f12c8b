"""The services under test: they write down what they do, and answer with the id that they got.

Run with `natsweb run service.py:NAME`; the environment variable `CHAOS_BOOK` names the file. `monolith` takes every
path, `orders` some of them, `reader` and `writer` one method each of the same path. `stuck` is one more, and `rude`
does all that a handler must not do.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from natsweb import Response, Service, WebSocket

from .ledger import Book, Wrote

svc = Service("chaos")
monolith = Service("monolith")
orders = Service("orders")
reader = Service("reader")
writer = Service("writer")
stuck = Service("stuck")
rude = Service("rude")
book = Book(Path(os.environ["CHAOS_BOOK"]))


class Work(BaseModel):
    """What a client wants done: `pause` is how long it takes, in seconds."""

    id: str
    pause: float = 0.0


class Done(BaseModel):
    """The answer: which request was done, and by which process."""

    id: str
    pid: int


@svc.post("/work")
async def work(work: Work) -> Done:
    """Do the work, and write down its start and its end."""
    book.write("started", work.id)
    try:
        await asyncio.sleep(work.pause)
    except asyncio.CancelledError:
        book.write("cancelled", work.id)
        raise
    book.write("done", work.id)
    return Done(id=work.id, pid=os.getpid())


@monolith.get("/<path:rest>")
async def show_any(rest: str, id: str, pause: float = 0.0) -> Done:
    """Do what a query string asks for, on any path."""
    return await work(Work(id=id, pause=pause))


@monolith.post("/<path:rest>")
async def change_any(rest: str, wanted: Work) -> Done:
    """Do what a body asks for, on any path."""
    return await work(wanted)


@orders.get("/orders/<number>")
@reader.get("/things/<number>")
async def show(number: int, id: str, pause: float = 0.0) -> Done:
    """Do what a query string asks for."""
    return await work(Work(id=id, pause=pause))


@orders.post("/orders/<number>")
@writer.post("/things/<number>")
async def change(number: int, wanted: Work) -> Done:
    """Do what a body asks for."""
    return await work(wanted)


@svc.get("/work")
@stuck.get("/stuck")
async def look(id: str, pause: float = 0.0) -> Done:
    """Do the work that a query string asks for."""
    return await work(Work(id=id, pause=pause))


def _note(wrote: Wrote, id: str) -> None:
    if id:
        book.write(wrote, id)


@svc.get("/stream")
async def stream(count: int, id: str = "", pause: float = 0.0, size: int = 0) -> AsyncIterator[str]:
    """Give texts, and write down the start and the end, if there is an id."""
    _note("started", id)
    try:
        for number in range(count):
            yield f"{number:8}" + "x" * size
            await asyncio.sleep(pause)
    except BaseException:
        _note("cancelled", id)
        raise
    _note("done", id)


@svc.post("/upload")
async def upload(body: AsyncIterator[bytes]) -> int:
    """Count the bytes of a body of any size."""
    return sum([len(chunk) async for chunk in body])


@svc.websocket("/socket")
async def socket(ws: WebSocket[str]) -> None:
    """Say everything again."""
    async for text in ws:
        await ws.send(text)


@svc.get("/tasks")
async def tasks() -> int:
    """Tell how many tasks there are."""
    return len(asyncio.all_tasks())


class Rude(BaseException):
    """What nobody expects."""


@rude.get("/rude/<kind>")
async def misbehave(kind: str, id: str) -> Any:
    """Do what a handler must not do."""
    book.write("started", id)
    match kind:
        case "raises":
            raise RuntimeError("secret")
        case "base":
            raise Rude("secret")
        case "exits":
            raise SystemExit(3)
        case "interrupts":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
        case "cancels":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(60)
        case "never":
            await asyncio.Event().wait()
        case "garbage":
            return object()
        case "split":
            return Response(headers={"x-a": "a\r\nset-cookie: evil=1"})
        case "name":
            return Response(headers={"x a\n": "a"})
        case "status":
            return Response().model_copy(update={"status": 99})
    book.write("done", id)
    return Done(id=id, pid=os.getpid())


@rude.get("/rude/blocking/<kind>")
def misbehave_in_a_thread(kind: str, id: str) -> Any:
    """Do the same in a thread."""
    book.write("started", id)
    raise SystemExit(3) if kind == "exits" else RuntimeError("secret")
