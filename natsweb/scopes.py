"""Dependencies: compiled to a row of steps, called per request, cleaned up at the end of their scope.

The contract (docs/dependencies.md). `handler`: cleaned up when the handler has returned and before the reply goes;
sees the handler's error and may raise another one instead. `request`: cleaned up after the reply has gone and the
background work is done; sees the error, and can no longer change the answer. `app`: made when the service starts,
cleaned up when it stops. Within a scope, cleanup runs in the reverse order. This module knows plans and requests; it
knows no routes and no bus.
"""

import asyncio
import contextlib
import enum
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType, UnionType
from typing import Any, NamedTuple, ParamSpec, Protocol, Union, get_origin

from typing_extensions import is_typeddict

from natsweb.annotations import Place, allows_none, line_of, name_of, produced_by, resolve_hints, signature_of, strip
from natsweb.binding import Need, Plan
from natsweb.errors import DeclarationError, FieldError, InvalidInput, StartError
from natsweb.forms import has_parser, read_form
from natsweb.messages import After, Call, Request
from natsweb.params import Depends, UploadFile
from natsweb.paths import Template
from natsweb.plans import compile_plan
from natsweb.threads import InThread, Threads

__all__ = ["AppScope", "Background", "Needs", "Recipe", "RequestScope", "compile_recipe", "identity_of"]

P = ParamSpec("P")

logger = logging.getLogger("natsweb.service")

_CLEANUP_TIME = 30.0
_PROMOTED = {(int, float), (int, complex), (float, complex)}  # by the type checkers' rules
_RANK = {"handler": 0, "request": 1, "app": 2}


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
                _unless_cancelled(error)
                logger.exception("background work failed: %s", getattr(work.func, "__qualname__", work.func))


def _unless_cancelled(error: BaseException) -> None:
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
                _unless_cancelled(raised)
                logger.exception("a dependency's cleanup failed")


class _Bounded:
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


# ── one step ─────────────────────────────────────────────────────────────────────────────────────


class _Kind(enum.Enum):
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
    kind: _Kind
    scope: str
    inline: bool
    plan: Plan
    needs: tuple[tuple[str, int], ...]
    depends: Depends
    gives: Any
    optional: bool

    async def make(self, arguments: dict[str, Any], stack: contextlib.AsyncExitStack, threads: Threads) -> Any:
        """Return what the dependency gives; its cleanup goes on `stack`."""
        if self.kind is _Kind.AWAIT:
            return await self.call(**arguments)
        if self.kind is _Kind.INLINE:
            return self.call(**arguments)
        if self.kind is _Kind.THREAD:
            return await threads.run(functools.partial(self.call, **arguments))
        manager = self.call(**arguments)
        if self.kind is _Kind.CONTEXT and self.inline:
            return stack.enter_context(manager)
        if self.kind is _Kind.CONTEXT:
            manager = InThread(threads, manager)
        return await stack.enter_async_context(_Bounded(manager, self.name))


def _way_to_call(function: Callable[..., Any], inline: bool) -> tuple[Callable[..., Any], _Kind]:
    """Return how a dependency is called, generators as context managers."""
    bare = function.func if isinstance(function, functools.partial) else function
    if not inspect.isroutine(bare) and not isinstance(bare, type):
        bare = type(bare).__call__
    if inspect.isasyncgenfunction(bare):
        return contextlib.asynccontextmanager(function), _Kind.ASYNC_CONTEXT
    if inspect.isgeneratorfunction(bare):
        return contextlib.contextmanager(function), _Kind.CONTEXT
    if inspect.isasyncgenfunction(inspect.unwrap(bare)):  # has @asynccontextmanager already
        return function, _Kind.ASYNC_CONTEXT
    if inspect.isgeneratorfunction(inspect.unwrap(bare)):
        return function, _Kind.CONTEXT
    if inspect.iscoroutinefunction(bare):
        return function, _Kind.AWAIT
    return function, _Kind.INLINE if inline or isinstance(bare, type) else _Kind.THREAD


# ── all steps of a function ──────────────────────────────────────────────────────────────────────


class Needs(Protocol):
    """What a recipe is compiled with: what routers add, what tests replace, what the service hands over."""

    @property
    def guards(self) -> Sequence[Depends]:
        """Dependencies of the route and its routers, called first and for their effect only."""
        ...

    @property
    def overrides(self) -> Mapping[Any, Callable[..., Any]]:
        """Dependency -> what stands in for it."""
        ...

    @property
    def services(self) -> Sequence[type]:
        """Types of parameters that the service hands over."""
        ...


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
        elif kind is Call:
            arguments[name] = call
        elif kind is Background:
            arguments[name] = scope.background
        else:
            arguments[name] = services[kind]


def compile_recipe(
    function: Callable[..., Any],
    hints: Mapping[str, Any],
    names: Mapping[str, Any],
    template: Template,
    place: Place,
    needs: Needs,
) -> Recipe:
    """Return the recipe of a handler.

    `names` are those visible where it was declared. Raises `DeclarationError` with the chain of dependencies for a
    cycle, a type that does not fit, a scope that ends too early, or a missing extra; `NameError` for an annotation
    that names something unknown.
    """
    kinds = (Call, Background, *needs.services)
    plan = compile_plan(function, hints, template, place, services=kinds)
    compiler = _Graph(names, template, place, kinds, needs.overrides)
    for guard in needs.guards:
        compiler.add(Need("", guard, Any))
    indexes = {need.name: compiler.add(need) for need in plan.needs}
    steps, moved = _callers_first(compiler.steps)
    plans = [plan, *[step.plan for step in steps]]
    _check_bodies(plans, place)
    taken = [found for step in steps if (found := getattr(step.call, "takes", None)) is not None]
    plan = plan.beside(plans, taken)
    steps = [replace(step, plan=step.plan.beside(plans, taken)) for step in steps]
    takes_form = plan.form is not None or any(step.plan.form is not None for step in compiler.steps)
    if takes_form and not has_parser():
        raise DeclarationError(
            "this route takes a form, and the library that reads forms is not installed",
            where=str(place),
            fix='pip install "natsweb[forms]"',
        )
    return Recipe(plan, tuple(steps), tuple([(name, moved[index]) for name, index in indexes.items()]))


def _callers_first(steps: Sequence[Step]) -> tuple[list[Step], dict[int, int]]:
    """Return the steps with those first that settle who calls, and where each has gone.

    Nothing is made for a caller, and nothing is said of its input, before it is known. Such steps need only each other.
    """
    order = sorted(range(len(steps)), key=lambda index: not steps[index].depends.first)
    moved = {before: after for after, before in enumerate(order)}
    return [
        replace(steps[index], needs=tuple([(name, moved[inner]) for name, inner in steps[index].needs]))
        for index in order
    ], moved


def _check_bodies(plans: Sequence[Plan], place: Place) -> None:
    """Raise `DeclarationError` if a form and another kind of body are wanted of one request."""
    of_form = [one for plan in plans for one in plan.parameters if one.source == "form"]
    of_body = [one for plan in plans for one in plan.parameters if one.source == "body"]
    if of_form and of_body:
        raise DeclarationError(
            f"{of_body[0].name!r} wants a JSON body and {of_form[0].name!r} a form",
            where=str(place),
            fix="a request has one body, also for dependencies: take all of it from the form, or from JSON",
        )


class _Link(NamedTuple):
    """One dependency on the way to another, for messages."""

    key: Any
    name: str
    line: str


class _Graph:
    """Walks the dependencies of one handler, the innermost first."""

    def __init__(
        self,
        names: Mapping[str, Any],
        template: Template,
        place: Place,
        kinds: Sequence[type],
        overrides: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self.steps: list[Step] = []
        self._names = names
        self._template = template
        self._place = place
        self._kinds = kinds
        self._overrides = overrides
        self._known: dict[Any, int] = {}

    def add(self, need: Need, chain: tuple[_Link, ...] = ()) -> int:
        """Add the step of a dependency and of those that it needs; return its index."""
        depends = need.depends
        original = depends.resolve(need.annotation)
        if original is None:
            raise self._mistake(
                f"parameter {need.name!r} depends on nothing that can be called", "write Depends(get_db)", chain
            )
        key: tuple[Any, ...] = (identity_of(original), depends.scope, depends.inline)
        chain = (*chain, _Link(key, name_of(original), line_of(original)))
        if any(link.key == key for link in chain[:-1]):
            circle = " -> ".join(link.name for link in chain)
            raise self._mistake(f"dependencies go round in a circle: {circle}", "take one of them out of it", chain)
        if not depends.shared:
            index = self._add_step(need, original, (*key, object()), chain)
        elif key in self._known:
            index = self._known[key]
        else:
            index = self._known[key] = self._add_step(need, original, key, chain)
        if key[0] not in self._overrides:
            self._check_type(need, self.steps[index], chain)
        return index

    def _add_step(self, need: Need, original: Any, key: Any, chain: tuple[_Link, ...]) -> int:
        depends = need.depends
        function = self._overrides.get(key[0], original)
        plan = self._plan(function, chain)
        filled = tuple([(inner.name, self.add(inner, chain)) for inner in plan.needs])
        self._check_scope(depends.scope, plan, filled, chain)
        call, kind = _way_to_call(function, depends.inline)
        yields = kind in (_Kind.ASYNC_CONTEXT, _Kind.CONTEXT)
        gives = produced_by(function, plan.returns, yields=yields)
        self.steps.append(
            Step(
                key,
                chain[-1].name,
                call,
                kind,
                depends.scope,
                depends.inline,
                plan,
                filled,
                depends,
                gives,
                allows_none(need.annotation),
            )
        )
        return len(self.steps) - 1

    def _plan(self, function: Callable[..., Any], chain: tuple[_Link, ...]) -> Plan:
        place = Place(line_of(function), f"Depends({name_of(function)})", "")
        try:
            place = place._replace(signature=signature_of(function))
            hints = resolve_hints(function, self._names)
            return compile_plan(function, hints, self._template, place, services=self._kinds)
        except DeclarationError as error:
            raise self._mistake(error.what, error.fix, chain, first=str(place)) from None
        except (TypeError, ValueError) as error:
            raise self._mistake(
                f"the parameters of {name_of(function)} cannot be told: {error}", "wrap it in a function", chain
            ) from None

    def _check_scope(
        self, scope: str, plan: Plan, filled: tuple[tuple[str, int], ...], chain: tuple[_Link, ...]
    ) -> None:
        """Raise `DeclarationError` if a dependency outlives what it is made of."""
        name = chain[-1].name
        for _, index in filled:
            inner = self.steps[index]
            if _RANK[inner.scope] < _RANK[scope]:
                raise self._mistake(
                    f"{name} lives for the {scope} and needs {inner.name}, which ends with the {inner.scope}",
                    f'give {name} scope="{inner.scope}", or {inner.name} scope="{scope}"',
                    chain,
                )
        of_request = [one.name for one in plan.parameters] + [
            one for one, kind in plan.given if kind in (Request, Call, Background)
        ]
        if scope == "app" and of_request:
            raise self._mistake(
                f"{name} lives as long as the service, and its parameter {of_request[0]!r} comes from a request",
                'take the parameter out, or use scope="request"',
                chain,
            )

    def _check_type(self, need: Need, step: Step, chain: tuple[_Link, ...]) -> None:
        """Raise `DeclarationError` if what a dependency gives is surely not what the parameter wants."""
        wanted, given = (get_origin(strip(kind)) or strip(kind) for kind in (need.annotation, step.gives))
        if not all(isinstance(kind, type) and not is_typeddict(kind) for kind in (wanted, given)):
            return
        if {Union, UnionType} & {wanted, given}:
            return
        if {Any, object} & {wanted, given} or getattr(wanted, "_is_protocol", False) or issubclass(given, wanted):
            return
        if (given, wanted) in _PROMOTED:
            return
        verb = "yields" if step.kind in (_Kind.ASYNC_CONTEXT, _Kind.CONTEXT) else "gives"
        raise self._mistake(
            f"{step.name} {verb} {given.__name__}, and parameter {need.name!r} wants {wanted.__name__}",
            "annotate both alike",
            chain,
        )

    def _mistake(self, what: str, fix: str, chain: tuple[_Link, ...], *, first: str | None = None) -> DeclarationError:
        links = [f"needs {link.name} ({link.line})" for link in chain]
        return DeclarationError(what, where=[*([first] if first else []), str(self._place), *links], fix=fix)


def identity_of(function: Any) -> Any:
    """Return what tells one dependency from another: itself, or its address if it cannot be hashed."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function
