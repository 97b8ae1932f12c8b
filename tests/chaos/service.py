"""The service under test: it writes down what it does, and answers with the id that it got.

Run with `natsweb run`; the environment variable `CHAOS_BOOK` names the file.
"""

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from natsweb import Service

from .ledger import Book

svc = Service("chaos")
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
