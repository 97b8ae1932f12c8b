"""Two ways of handing something from one task to another without a queue: neither side is ahead by more than one.

`Handoff` takes the pieces of an answer from the app to whoever sends them. `Intake` takes what the client sends to the
app, and loses nothing when the app stops waiting. Knows futures; it knows no messages and no ASGI.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["ClientGone", "Handoff", "Intake"]

T = TypeVar("T")


class ClientGone(OSError):
    """Nobody is there any more who takes what the app sends (ASGI, HTTP 2.4: an OSError)."""

    def __init__(self) -> None:
        super().__init__("the client is gone, or its time is up")


class Handoff:
    """Pieces of bytes, one at a time: `give` waits until its piece has been taken."""

    __slots__ = ("_closed", "_news", "_room", "_slot", "_turn", "is_ended")

    def __init__(self) -> None:
        self.is_ended = False
        self._closed = False
        self._slot: tuple[bytes, bool] | None = None
        self._turn = asyncio.Lock()  # an app may send from two tasks
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_full(self) -> bool:
        """Whether a piece is there that has not been taken."""
        return self._slot is not None

    async def give(self, piece: bytes, last: bool) -> None:
        """Hand over a piece; raises `ClientGone` once closed."""
        async with self._turn:
            await self._room.wait()  # a giver that was cancelled has left its piece there
            self._check()
            self._slot = (piece, last)
            self._room.clear()
            self._news.set()
            await self._room.wait()
            self._check()

    async def take(self) -> bytes | None:
        """Return the next piece, or None when no more will come; `is_ended` is true after the last one."""
        await self._news.wait()
        if self._slot is None:
            return None
        (piece, self.is_ended), self._slot = self._slot, None
        if not self._closed:
            self._news.clear()
        self._room.set()
        return piece

    def _check(self) -> None:
        if self._closed and not self.is_ended:
            raise ClientGone

    def end(self) -> None:
        """Let no more pieces in; one that is there can still be taken."""
        self._closed = True
        self._news.set()

    def close(self) -> None:
        """Drop what is there, and let no more in."""
        self._slot = None
        self._room.set()
        self.end()


class Intake(Generic[T]):
    """What `read` gives, one by one, until `over` is done: then `next` raises `ClientGone`.

    A reading goes on when the one who waits for it is cancelled, and serves the next one.
    """

    __slots__ = ("_over", "_read", "_task", "_turn")

    def __init__(self, read: Callable[[], Coroutine[Any, Any, T]], over: "asyncio.Future[None]") -> None:
        self._read = read
        self._over = over
        self._task: asyncio.Task[T] | None = None
        self._turn = asyncio.Lock()

    async def next(self) -> T:
        """Return the next thing; raises what reading it raises."""
        async with self._turn:
            if not self._over.done():
                if self._task is None:
                    self._task = asyncio.create_task(self._read())
                await asyncio.wait((self._task, self._over), return_when=asyncio.FIRST_COMPLETED)
            if self._over.done() or self._task is None:
                raise ClientGone
            task, self._task = self._task, None
            return task.result()

    async def close(self, let_go: Callable[[], Awaitable[None]] | None = None) -> None:
        """Stop reading, and then `let_go` of the source."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # whatever it was, nobody has asked for it
        if let_go is not None:
            await let_go()
