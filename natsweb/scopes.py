"""What a request leaves to do: background work, and the cleanup of its dependencies, scope by scope.

The contract (docs/dependencies.md). `handler`: cleaned up when the handler has returned and before the reply goes;
sees the handler's error and may raise another one instead. `request`: cleaned up after the reply has gone and the
background work is done; sees the error, and can no longer change the answer. `app`: made when the service starts,
cleaned up when it stops. Within a scope, cleanup runs in the reverse order. Knows exit stacks; it knows no plans.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec

from natsweb.messages import After
from natsweb.threads import Threads

__all__ = ["Background", "Bounded", "RequestScope", "unless_cancelled"]

P = ParamSpec("P")

logger = logging.getLogger("natsweb.service")

_CLEANUP_TIME = 30.0


class Background:
    """Work for after the reply: `tasks.add(send_mail, to, order=7)`.

    Plain functions run in a thread, one after the other in the order in which they were added, and only if the
    handler has returned. The service waits for them when it stops, up to `--grace`; what they raise is logged.
    """

    __slots__ = ("_work",)

    def __init__(self) -> None:
        self._work: list[functools.partial[Any]] = []

    def __repr__(self) -> str:
        return f"<Background: {len(self._work)} functions>"

    def add(self, function: Callable[P, Any], *arguments: P.args, **named: P.kwargs) -> None:
        """Call `function` with these arguments after the reply."""
        if not callable(function):
            raise TypeError(f"Background.add takes a function and its arguments, not {function!r}")
        self._work.append(functools.partial(function, *arguments, **named))

    async def run(self, threads: Threads) -> None:
        """Call all that was added."""
        while self._work:
            work = self._work.pop(0)
            try:
                if inspect.iscoroutinefunction(work.func):
                    await work()
                else:
                    await threads.run(work)
            except BaseException as error:
                unless_cancelled(error)
                logger.exception("background work failed: %s", getattr(work.func, "__qualname__", work.func))


def unless_cancelled(error: BaseException) -> None:
    """Raise `error` if it is the cancellation of this very task: nothing else may end a process, or go unlogged."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
        raise error


class RequestScope:
    """What one request leaves to do after its reply: background work, and cleanup of its dependencies.

    `before` is that of an earlier try of the same request, which is closed after this one.
    """

    __slots__ = ("_before", "background", "error", "stack", "threads")

    def __init__(self, threads: Threads, before: After | None = None) -> None:
        self.threads = threads
        self.background = Background()
        self.stack = contextlib.AsyncExitStack()
        self.error: BaseException | None = None
        self._before = before

    def __repr__(self) -> str:
        return f"<RequestScope: {self.background!r}>"

    async def close(self) -> None:
        """Do the background work and clean up; to be called once, after the last byte of the reply has gone."""
        error, self.error = self.error, None
        try:
            if error is None:
                await self.background.run(self.threads)
        finally:
            try:
                await self._clean_up(error)
            finally:
                if self._before is not None:
                    await self._before.close()

    async def _clean_up(self, error: BaseException | None) -> None:
        try:
            if error is None:
                await self.stack.aclose()
            else:
                await self.stack.__aexit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            if raised is not error:
                unless_cancelled(raised)
                logger.exception("a dependency's cleanup failed")


class Bounded:
    """A context manager that is left within a time, however many hang: the next one gets its turn."""

    def __init__(self, manager: contextlib.AbstractAsyncContextManager[Any], name: str) -> None:
        self._manager = manager
        self._name = name

    async def __aenter__(self) -> Any:
        return await self._manager.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        limit = asyncio.timeout(_CLEANUP_TIME)
        try:
            async with limit:
                return bool(await self._manager.__aexit__(kind, error, trace))
        except TimeoutError:
            if not limit.expired():
                raise
            logger.error("the cleanup of %s took longer than %g s and was cancelled", self._name, _CLEANUP_TIME)
            return False
