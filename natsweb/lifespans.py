"""What lives as long as a service: its lifespans, their state, and dependencies of scope `"app"`.

All of it starts and ends in one task of its own, so that task groups and cancel scopes inside of a lifespan work
wherever the service is started from. Starting and stopping have deadlines. Knows functions; it knows no requests.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from natsweb.annotations import line_of, name_of, signature_of
from natsweb.errors import DeclarationError, StartError
from natsweb.recipes import AppScope, Recipe
from natsweb.threads import Threads

__all__ = ["Lifespan"]

logger = logging.getLogger("natsweb.service")

_STOP_TIME = 40.0  # a little more than one cleanup may take


class Lifespan:
    """The lifespans of one service, called `name` in messages."""

    def __init__(self, name: str, threads: Threads) -> None:
        self._name = name
        self._functions: list[Callable[..., Any]] = []
        self._managers: list[contextlib.AbstractAsyncContextManager[Any]] = []
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._ending = asyncio.Event()
        self._users = 0
        self._step = ""
        self._state: Any = None
        self.scope = AppScope(threads)

    def __repr__(self) -> str:
        return f"<Lifespan of {self._name}: {'running' if self.is_running else 'not running'}>"

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and has neither been stopped nor failed."""
        return self._task is not None and not self._task.done()

    @property
    def state(self) -> Any:
        """What a lifespan has yielded; raises `StartError` while none runs."""
        if not self.is_running:
            raise StartError(
                f"service {self._name} has no state, since it has not been started",
                fix="natsweb run starts it; elsewhere write: async with svc: ...",
            )
        return self._state

    def add(self, function: Callable[..., Any]) -> None:
        """Add a lifespan; raises `DeclarationError` for anything else than an async generator of the service."""
        if not inspect.isasyncgenfunction(inspect.unwrap(function)):
            raise DeclarationError(
                f"a lifespan is an async function that yields once, and {name_of(function)} is none",
                where=line_of(function),
                fix=f"write: async def {name_of(function)}(svc: Service): ...; yield; ...",
            )
        if len(inspect.signature(function).parameters) > 1:
            raise DeclarationError(
                f"lifespan {name_of(function)} takes more than the service",
                where=f"{line_of(function)}  {signature_of(function)}",
                fix=f"write: async def {name_of(function)}(svc: Service)",
            )
        self._functions.append(function)

    def add_manager(self, manager: contextlib.AbstractAsyncContextManager[Any]) -> None:
        """Add what is entered after the lifespans, and left before they end: an application of its own."""
        self._managers.append(manager)

    async def start(
        self, service: Any, services: Mapping[type, Any], recipes: Iterable[Recipe], *, timeout: float
    ) -> None:
        """Run all lifespans up to their `yield`, and make what `recipes` need of scope `"app"`.

        Raises `StartError` for whatever goes wrong in there, and if it takes longer than `timeout` seconds.
        """
        if self._task is not None and self._task.done():
            self._task = self._ready = None  # it has failed while it was running
        if self._task is not None and self._ready is not None:
            await asyncio.wait([self._ready, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not self.is_running:
                raise StartError(f"service {self._name} could not start", fix="the first who started it hears why")
            self._users += 1
            return
        ready = self._ready = asyncio.get_running_loop().create_future()
        self._ending = asyncio.Event()  # of this event loop: a service may be started in one after the other
        self._users = 1
        self._task = asyncio.create_task(self._live(ready, service, services, recipes), name=f"lifespan {self._name}")
        try:
            done, _ = await asyncio.wait([ready, self._task], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._give_up()
            raise
        if not done:
            await self._give_up()
            raise StartError(
                f"service {self._name} did not start within {timeout:g} s: {self._step} takes too long",
                fix="see what it waits for, or give Service(start_timeout=...) more seconds",
            )
        try:
            if not ready.done():
                raise RuntimeError("it was cancelled")
            ready.result()
        except StartError:
            await self._give_up()
            raise
        except Exception as error:
            await self._give_up()
            raise StartError(
                f"service {self._name} could not start: {self._step} failed with {type(error).__name__}: {error}",
                fix="the traceback in the log says where",
            ) from error

    async def failed(self) -> None:
        """Wait until a lifespan fails while the service runs: what it held is gone, and the service with it."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._task is None or self._ending.is_set():  # it never ran, or was stopped: nothing has failed
            await asyncio.get_running_loop().create_future()

    async def stop(self) -> None:
        """Clean up all that `start` has made, the newest first; errors are logged.

        Started several times, it ends with the last stop.
        """
        task = self._task
        if task is None:
            return
        self._users -= 1
        if self._users > 0 and not task.done():
            return
        self._ending.set()
        done, _ = await asyncio.wait([task], timeout=_STOP_TIME)
        if not done:
            logger.error("%s takes longer than %g s to end; leaving it there", self._step, _STOP_TIME)
            task.cancel()
        self._task = self._ready = self._state = None

    async def _give_up(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=_STOP_TIME)
        self._ready = self._state = None

    async def _live(
        self,
        ready: "asyncio.Future[None]",
        service: Any,
        services: Mapping[type, Any],
        recipes: Iterable[Recipe],
    ) -> None:
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._enter(stack, service)
                stack.push_async_callback(self._close_scope)
                self._step = "a dependency of scope app"
                for recipe in recipes:
                    await self.scope.open(recipe, services)
                if not ready.done():
                    ready.set_result(None)
                await self._ending.wait()
        except Exception as error:
            if ready.done():
                when = "stopping" if self._ending.is_set() else "running"
                logger.exception("%s failed while %s was %s", self._step, self._name, when)
            else:
                ready.set_exception(error)

    async def _enter(self, stack: contextlib.AsyncExitStack, service: Any) -> None:
        owner = None
        for function in self._functions:
            self._step = f"lifespan {name_of(function)} ({line_of(function)})"
            value = await stack.enter_async_context(_entering(function, service))
            if value is None:
                continue
            if owner is not None:
                raise StartError(
                    f"two lifespans of {self._name} yield a state",
                    where=[owner, self._step],
                    fix="let one of them do so",
                )
            self._state, owner = value, self._step
        if owner is None:
            self._state = None
        for manager in self._managers:
            self._step = f"the start of {manager!r}"
            await stack.enter_async_context(manager)

    async def _close_scope(self) -> None:
        self._step = "the cleanup of a dependency"
        try:
            await self.scope.close()
        except Exception:
            logger.exception("the cleanup of a dependency failed while %s was stopping", self._name)
        finally:
            self._step = "a lifespan"


def _entering(function: Callable[..., Any], service: Any) -> contextlib.AbstractAsyncContextManager[Any]:
    """Return a lifespan as context manager, whether it is decorated as one or not."""
    call = contextlib.asynccontextmanager(function) if inspect.isasyncgenfunction(function) else function
    arguments = [service][: len(inspect.signature(function).parameters)]
    manager: contextlib.AbstractAsyncContextManager[Any] = call(*arguments)
    return manager
