"""A handler's arguments with all its dependencies: a row of steps, called per request in their order.

`Recipe` is what runs for a request, `AppScope` keeps what lives as long as the service. `dependencies` compiles
recipes. Knows plans, scopes and requests; it knows no routes and no bus.
"""

import contextlib
import enum
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from natsweb.binding import Plan
from natsweb.errors import FieldError, InvalidInput, StartError
from natsweb.events import Publisher
from natsweb.forms import read_form
from natsweb.messages import Call, Request
from natsweb.params import Depends, UploadFile
from natsweb.scopes import Background, Bounded, RequestScope
from natsweb.sockets import SocketType
from natsweb.threads import InThread, Threads

__all__ = ["AppScope", "Kind", "Recipe", "Step", "way_to_call"]


class Kind(enum.Enum):
    """How a dependency is called."""

    AWAIT = enum.auto()
    INLINE = enum.auto()
    THREAD = enum.auto()
    ASYNC_CONTEXT = enum.auto()
    CONTEXT = enum.auto()


@dataclass(frozen=True, slots=True)
class Step:
    """One dependency of a recipe; `needs` are (parameter, index of the step that fills it)."""

    key: Any
    name: str
    call: Callable[..., Any]
    kind: Kind
    scope: str
    inline: bool
    plan: Plan
    needs: tuple[tuple[str, int], ...]
    depends: Depends
    gives: Any
    optional: bool

    async def make(self, arguments: dict[str, Any], stack: contextlib.AsyncExitStack, threads: Threads) -> Any:
        """Return what the dependency gives; its cleanup goes on `stack`."""
        if self.kind is Kind.AWAIT:
            return await self.call(**arguments)
        if self.kind is Kind.INLINE:
            return self.call(**arguments)
        if self.kind is Kind.THREAD:
            return await threads.run(functools.partial(self.call, **arguments))
        manager = self.call(**arguments)
        if self.kind is Kind.CONTEXT and self.inline:
            return stack.enter_context(manager)
        if self.kind is Kind.CONTEXT:
            manager = InThread(threads, manager)
        return await stack.enter_async_context(Bounded(manager, self.name))


def way_to_call(function: Callable[..., Any], inline: bool) -> tuple[Callable[..., Any], Kind]:
    """Return how a dependency is called, generators as context managers."""
    bare = function.func if isinstance(function, functools.partial) else function
    if not inspect.isroutine(bare) and not isinstance(bare, type):
        bare = type(bare).__call__
    if inspect.isasyncgenfunction(bare):
        return contextlib.asynccontextmanager(function), Kind.ASYNC_CONTEXT
    if inspect.isgeneratorfunction(bare):
        return contextlib.contextmanager(function), Kind.CONTEXT
    if inspect.isasyncgenfunction(inspect.unwrap(bare)):  # has @asynccontextmanager already
        return function, Kind.ASYNC_CONTEXT
    if inspect.isgeneratorfunction(inspect.unwrap(bare)):
        return function, Kind.CONTEXT
    if inspect.iscoroutinefunction(bare):
        return function, Kind.AWAIT
    return function, Kind.INLINE if inline or isinstance(bare, type) else Kind.THREAD


class AppScope:
    """The dependencies that live as long as the service, by their key."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._stack = contextlib.AsyncExitStack()
        self.values: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<AppScope: {len(self.values)} dependencies>"

    async def open(self, recipe: "Recipe", services: Mapping[type, Any]) -> None:
        """Make what `recipe` needs of this scope, unless it is there."""
        for step in recipe.steps:
            if step.scope != "app" or step.key in self.values:
                continue
            arguments = {name: self.values[recipe.steps[index].key] for name, index in step.needs}
            arguments |= {name: services[kind] for name, kind in step.plan.given}
            self.values[step.key] = await step.make(arguments, self._stack, self._threads)

    async def close(self) -> None:
        """Clean up, the newest first; raises what a cleanup raises."""
        self.values.clear()
        await self._stack.aclose()


@dataclass(frozen=True, slots=True)
class Recipe:
    """A handler's plan with the steps of all its dependencies, in the order in which they are called."""

    plan: Plan
    steps: tuple[Step, ...] = ()
    needs: tuple[tuple[str, int], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the plan alone gives all arguments, without awaiting anything."""
        return not self.steps and self.plan.is_plain

    @property
    def takes_form(self) -> bool:
        """Whether it reads a form, piece by piece."""
        return any(plan.form is not None for plan in self._plans)

    @property
    def takes_socket(self) -> bool:
        """Whether a parameter is a WebSocket."""
        return any(isinstance(kind, SocketType) for kind in self.given)

    @property
    def publishes(self) -> bool:
        """Whether a parameter is a `Publisher`."""
        return any(kind is Publisher for plan in self._plans for _, kind in plan.given)

    @property
    def takes_stream(self) -> bool:
        """Whether a parameter is the body as it comes."""
        return any(plan.takes_stream for plan in self._plans)

    @property
    def given(self) -> list[Any]:
        """The types of the parameters that are handed over."""
        return [kind for plan in self._plans for _, kind in plan.given]

    @property
    def _plans(self) -> list[Plan]:
        return [self.plan, *[step.plan for step in self.steps]]

    async def arguments(
        self,
        call: Call | Request,
        params: Mapping[str, str],
        scope: RequestScope,
        handler_stack: contextlib.AsyncExitStack,
        app: AppScope,
        services: Mapping[type, Any],
    ) -> dict[str, Any]:
        """Return the handler's arguments, with its dependencies made.

        Once an input is refused no further dependency is called; all refused fields are reported together.
        Raises `InvalidInput`, `UnsupportedMedia`, and whatever a dependency raises.
        """
        errors: list[FieldError] = []
        form: list[tuple[str, str | UploadFile]] | None = None
        values: list[Any] = []
        for step in self.steps:
            if step.scope == "app":
                values.append(_made(app, step))
                continue
            if step.plan.form is not None and form is None:
                form = await _open_form(call, scope)
            arguments = step.plan.collect(call, params, form or (), errors)
            if errors:
                values.append(None)
                continue
            for name, index in step.needs:
                arguments[name] = values[index]
            _hand_over(step.plan, arguments, call, services, scope)
            stack = handler_stack if step.scope == "handler" else scope.stack
            values.append(await step.make(arguments, stack, scope.threads))
        if self.plan.form is not None and form is None:
            form = await _open_form(call, scope)
        arguments = self.plan.collect(call, params, form or (), errors)
        if errors:
            raise InvalidInput("the request does not fit what this route takes", errors=errors)
        for name, index in self.needs:
            arguments[name] = values[index]
        _hand_over(self.plan, arguments, call, services, scope)
        return arguments


def _made(app: AppScope, step: Step) -> Any:
    try:
        return app.values[step.key]
    except KeyError:
        raise StartError(
            f"{step.name} lives as long as the service, which has not been started",
            fix="natsweb run does so; elsewhere write: async with svc: ...",
        ) from None


async def _open_form(call: Call | Request, scope: RequestScope) -> list[tuple[str, str | UploadFile]]:
    form = await read_form(call)
    for _, value in form:
        if isinstance(value, UploadFile):
            scope.stack.push_async_callback(value.close)
    return form


def _hand_over(
    plan: Plan,
    arguments: dict[str, Any],
    call: Call | Request,
    services: Mapping[type, Any],
    scope: RequestScope,
) -> None:
    for name, kind in plan.given:
        if kind is Request:
            arguments[name] = call.request()
        elif kind is AsyncIterator:
            arguments[name] = call.chunks() if isinstance(call, Call) else call.stream()
        elif kind is Call:
            arguments[name] = call
        elif isinstance(kind, SocketType):
            arguments[name] = kind.wrap(None if call.channel is None else call.channel.socket)
        elif kind is Background:
            arguments[name] = scope.background
        elif kind is Publisher:
            arguments[name] = services[kind].within(call)
        else:
            arguments[name] = services[kind]
