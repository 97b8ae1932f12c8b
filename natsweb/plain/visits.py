"""One request at the plain door, of either kind: its task, its deadline, and who waits for it.

The counterpart of a worker's job (`natsweb.jobs`), with ASGI in place of the wire. One task runs the handler and what
is left to do after the answer; one listens, and nobody else reads. Knows calls and ASGI; it knows no service.
"""

import abc
import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Generic, TypeVar

from natsweb.current import Limited
from natsweb.errors import HandlerFailed, Stopping, TimeUp
from natsweb.gateway.scopes import Event, Receive, Send
from natsweb.messages import Call, Response, Result, Socket
from natsweb.replies import problem
from natsweb.streams import WINDOW

__all__ = ["Handle", "Inflow", "Visit"]

T = TypeVar("T")

#: What answers a request: a service's `handle`.
Handle = Callable[[Call], Coroutine[Any, Any, Response | Result]]


class Inflow(Generic[T]):
    """What a client sends and nobody has taken yet: about as many bytes as the window of a stream."""

    def __init__(self) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0
        self._end: BaseException | None = None
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def ending(self) -> BaseException | None:
        """Why no more will come, if that is known."""
        return self._end

    async def put(self, item: T, size: int) -> None:
        """Take what has come, and wait until there is room for more."""
        self._items.append((item, size))
        self._size += size
        self._news.set()
        while self._size >= WINDOW:
            self._room.clear()
            await self._room.wait()

    def end(self, why: BaseException) -> None:
        """Let nothing more come: `why` is what `take` raises after the last item."""
        self._end = self._end or why
        self._news.set()

    async def take(self) -> T:
        """Return the next item; raises why there is none."""
        while not self._items:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        item, size = self._items.popleft()
        self._size -= size
        self._room.set()
        return item


class Visit(Limited, abc.ABC):
    """One request under way: what its handler knows as its `Channel`.

    `handle` answers it; `timeout` is the seconds until its answer is due.
    """

    #: Whether the handler runs to its end whoever waits for it.
    finishes = False
    socket: Socket | None = None

    def __init__(self, handle: Handle, call: Call, receive: Receive, send: Send, *, timeout: float) -> None:
        self.call = call
        self.answered = False
        self.gone = False
        self.complete = False
        self._handle = handle
        self._receive = receive
        self._send = send
        self._timeout = timeout
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.perf_counter_ns()
        self._task: asyncio.Task[None] | None = None
        self._last_word: asyncio.Task[None] | None = None
        call.channel = self

    def __repr__(self) -> str:
        state = "answered" if self.answered else "under way"
        return f"<{type(self).__name__} {self.call.method} {self.call.raw_path}: {state}>"

    async def run(self) -> None:
        """Serve it, to the end of what is left to do after its answer; raises `CutOff`."""
        self._task = asyncio.create_task(self._work(), name="natsweb request")
        listening: asyncio.Task[None] | None = None
        try:
            await asyncio.sleep(0)
            if not self._task.done():  # one that never waits is over by now, and needs nobody to look after it
                listening = asyncio.create_task(self.listen(), name="natsweb client")
                self._set_due()
                await asyncio.wait([self._task])
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            await self.answer(problem(Stopping("the service stopped before the handler had finished")))
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        finally:
            self._due = math.inf
            if self._timer is not None:
                self._timer.cancel()
            if listening is not None:
                listening.cancel()
                await asyncio.gather(listening, *filter(None, [self._last_word]), return_exceptions=True)
            self.call.channel = None
        if not self._task.cancelled():
            self._task.result()

    async def _work(self) -> None:
        try:
            await self.conclude((await self._handle(self.call)).response())
            self.complete = True
        except asyncio.CancelledError:
            # Cancelled from here, it has its answer; a handler that cancels itself still owes one.
            await self.answer(problem(HandlerFailed("the handler cancelled itself")))
        finally:
            self._due = math.inf  # what follows the answer has its own deadlines
            if self.call.after is not None:
                await self.call.after.close()
            if self.call.counter is not None:
                self.call.counter.abandon()

    @abc.abstractmethod
    async def listen(self) -> None:
        """Take what the client sends, and hear that it leaves."""

    @abc.abstractmethod
    async def conclude(self, response: Response) -> None:
        """Do with a response what is to be done with it."""

    @abc.abstractmethod
    async def send_whole(self, response: Response) -> None:
        """Send an answer that is not streamed."""

    async def answer(self, response: Response) -> None:
        """Send the one answer; later ones go nowhere."""
        if self.take_answer(None if response.silent else response.status):
            await self.send_whole(response)

    async def say(self, event: Event) -> None:
        """Send an event; to a client who has left it goes nowhere."""
        if not self.gone:
            try:
                await self._send(event)
            except OSError:  # ASGI, HTTP 2.4
                self.leave()

    def leave(self) -> None:
        """Stop working for a client who is gone; a handler that has to finish goes on, and so does what comes after."""
        if not self.gone and not self.complete:  # servers say the same when the answer is complete
            self.gone = self.answered = True
            if not self.finishes:
                self.cancel()

    def cancel(self) -> None:
        """Cancel the handler at its next await."""
        if self._task is not None:
            self._task.cancel()

    # ── time ──

    def time_left(self) -> float:
        """Return how many seconds are left for the answer: see `Limited`."""
        if self.answered:
            return math.inf
        if self._due == math.inf:  # it has not waited for anything yet
            return self._timeout
        return self._due - asyncio.get_running_loop().time()

    def extend(self, seconds: float) -> None:
        """Have the answer due `seconds` from now."""
        self._timeout = seconds
        self._set_due()

    def go_on(self) -> None:
        """Begin the time of the answer again, while the question still comes."""
        if not self.answered:
            self._due = max(self._due, asyncio.get_running_loop().time() + self._timeout)

    def _set_due(self) -> None:
        if self.answered:
            return
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._timeout
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        """See whether the time is up; it may have been moved."""
        loop = asyncio.get_running_loop()
        if self.answered or self._due == math.inf:
            return
        if loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._look)
            return
        response = problem(TimeUp(f"the handler did not answer within {self._timeout:g} s"))
        self.take_answer(response.status)
        self._last_word = asyncio.create_task(self.send_whole(response))
        if not self.finishes:
            self.cancel()

    # ── what is counted ──

    def take_answer(self, status: int | None) -> bool:
        """Take note that the answer goes out now, counted with `status`; False if one has gone before."""
        if self.answered:
            return False
        self.answered, self._due = True, math.inf
        counter, self.call.counter = self.call.counter, None
        if counter is not None:
            if status is None:
                counter.abandon()
            else:
                counter.finish(time.perf_counter_ns() - self._started, status)
        return True

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the rest of the body as it comes: there is none."""
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk
