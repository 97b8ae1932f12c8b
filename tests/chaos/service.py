"""The services under test: they write down what they do, and answer with the id that they got.

Run with `natsweb run service.py:NAME`; the environment variable `CHAOS_BOOK` names the file. `monolith` takes every
path, `orders` some of them, `reader` and `writer` one method each of the same path.
"""

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from natsweb import Service

from .ledger import Book

svc = Service("chaos")
monolith = Service("monolith")
orders = Service("orders")
reader = Service("reader")
writer = Service("writer")
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
