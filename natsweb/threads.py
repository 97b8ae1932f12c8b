"""Plain functions in threads: a bounded pool for handlers and dependencies, and another for their cleanup.

Cleanup has threads of its own, since handlers that wait for what a cleanup would free could otherwise hold all of
them for good. Context variables of the caller are seen in the thread. Knows functions; it knows no requests.
"""

import asyncio
import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

__all__ = ["InThread", "Threads", "aside"]

_CLEANERS = 4
_LEAVE_TIME = 30.0


class Threads:
    """Up to `workers` threads that are named after `name`, started when they are needed."""

    def __init__(self, workers: int, name: str) -> None:
        self.workers = workers
        self._name = name
        self._pool: ThreadPoolExecutor | None = None
        self._cleaners: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<Threads of {self._name}: {self.workers}, {'idle' if self._pool is None else 'started'}>"

    async def run(self, call: Callable[[], Any], context: contextvars.Context | None = None) -> Any:
        """Return what `call` returns, or what that awaits to; raises what it raises.

        `context` is what the thread sees of context variables, by default a copy of the caller's.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix=f"natsweb-{self._name}")
        return await _run_in(self._pool, call, context or contextvars.copy_context())

    async def clean_up(self, call: Callable[[], Any], context: contextvars.Context) -> Any:
        """Run a cleanup, which never waits for the threads of handlers, nor for a cleanup that was given up."""
        if self._cleaners is None:
            self._cleaners = ThreadPoolExecutor(_CLEANERS, thread_name_prefix=f"natsweb-{self._name}-cleanup")
        pool = self._cleaners
        try:
            return await _run_in(pool, call, context, wait=False)
        except asyncio.CancelledError:
            if self._cleaners is pool:  # its thread may hang for good, and the next cleanups want one
                self._cleaners = None
                pool.shutdown(wait=False)
            raise

    def close(self) -> None:
        """Let go of the threads; what has not started in them is dropped."""
        for pool in (self._pool, self._cleaners):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._cleaners = None


async def aside(call: Callable[[], Any]) -> Any:
    """Return what `call` returns in one of the event loop's own threads, or what that awaits to."""
    return await _unpacked(*await asyncio.to_thread(_outcome, call))


class InThread:
    """A plain context manager as an async one: entered by a handler's thread, left by a thread for cleanup."""

    def __init__(self, threads: Threads, manager: contextlib.AbstractContextManager[Any]) -> None:
        self._threads = threads
        self._manager = manager
        self._context = contextvars.copy_context()

    async def __aenter__(self) -> Any:
        entered = False

        def enter() -> Any:
            nonlocal entered
            value = self._manager.__enter__()
            entered = True
            return value

        try:
            return await self._threads.run(enter, self._context)
        except asyncio.CancelledError as error:
            if entered:  # too late: nobody else will leave it
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVE_TIME):
                        await self.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        leave = functools.partial(self._manager.__exit__, kind, error, trace)
        return bool(await self._threads.clean_up(leave, self._context))


async def _run_in(
    pool: ThreadPoolExecutor, call: Callable[[], Any], context: contextvars.Context, *, wait: bool = True
) -> Any:
    """Return what `call` gives in a thread.

    A thread cannot be stopped: a cancelled caller `wait`s for it, so that nothing is cleaned up under it. A second
    cancellation gives up.
    """
    running = pool.submit(lambda: context.run(lambda: _outcome(call)))
    work = asyncio.wrap_future(running)
    try:
        value, error = await asyncio.shield(work)
    except asyncio.CancelledError:
        if not running.cancel() and wait:
            await asyncio.wait([work])
        raise
    return await _unpacked(value, error)


async def _unpacked(value: Any, error: BaseException | None) -> Any:
    """Raise what a call has raised, or return what it has returned, awaited where it can be."""
    if error is not None:
        raise error
    return await value if inspect.isawaitable(value) else value


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what a call gives and what it raises: a future carries neither StopIteration nor SystemExit."""
    try:
        return call(), None
    except BaseException as error:
        return None, error
