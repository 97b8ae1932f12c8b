"""Work in asyncio tasks, cheaply: each piece has a task of its own, but those that never wait share one.

To make and to schedule a task costs more than much of the work that is done in one. Here a task takes the next piece
of work as long as none has waited for anything, cancelled itself, or changed a context variable; with the first that
does, the task is its own, and what is behind it goes on in another. So no piece sees anything of the one before.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Tasks", "Work"]


class Work(Protocol):
    """A piece of work; `task` is the one that it runs in, from its start."""

    task: asyncio.Task[None] | None


W = TypeVar("W", bound=Work)


class Tasks(Generic[W]):
    """Has all work that is started run, in its order.

    `run` raises nothing. It gets pieces of work and does them one after the other; there are more as long as it has
    waited for nothing.
    """

    def __init__(self, run: Callable[[Iterator[W]], Coroutine[Any, Any, None]], name: str) -> None:
        self._run = run
        self._name = name
        self._queue: deque[W] = deque()
        self._task: asyncio.Task[None] | None = None  # the one that takes the next
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        return f"<Tasks {self._name}: {len(self._queue)} wait>"

    def start(self, work: W) -> None:
        """Run a piece of work, in the next turn of the event loop."""
        self._queue.append(work)
        if self._task is None:
            self._begin()

    def _begin(self) -> None:
        run = self._run(self._pieces())
        self._task = asyncio.Task(run, loop=self._loop, name=self._name, context=self._context.copy())

    def _pieces(self) -> Iterator[W]:
        """Give a task what waits to be done, until the task has to end."""
        task = asyncio.current_task()
        assert task is not None
        before = contextvars.copy_context()
        self._loop.call_soon(self._go_on, task)
        queue = self._queue
        while queue:
            work = queue.popleft()
            work.task = task
            yield work
            if self._task is not task:  # it has waited, and others have gone on
                return
            if task.cancelling() or contextvars.copy_context() != before:
                break
        self._task = None
        if queue:
            self._begin()

    def _go_on(self, task: asyncio.Task[None]) -> None:
        """Leave a task that waits to its work, and begin another for the rest."""
        if self._task is task:
            self._task = None
            if self._queue:
                self._begin()
