"""One route of a service: a declared handler below its full path, and what is compiled from it.

The recipe for its arguments and the function from its return value to a response, with the middleware and error
handlers of all routers around it. Knows declarations and compiles them; it calls no handler.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import PydanticUserError

from natsweb.annotations import Place, name_of, resolve_hints
from natsweb.counters import Counter
from natsweb.dependencies import compile_recipe
from natsweb.errors import DeclarationError
from natsweb.events import Publisher
from natsweb.feeds import HEARTBEAT, FeedType, compile_feed, feed_of
from natsweb.given import is_given
from natsweb.micro import METHOD, PATH, STREAMS, Endpoint
from natsweb.middleware import Middleware
from natsweb.params import Depends
from natsweb.paths import Template
from natsweb.plans import check_names
from natsweb.recipes import Recipe
from natsweb.replies import ToResponse, compile_reply
from natsweb.routers import Declared, OnError, RouteOptions
from natsweb.routing import WEBSOCKET

__all__ = ["Route"]


@dataclass(slots=True, eq=False)
class Route:
    """One handler of a service: its template, methods, function, and what was compiled from them.

    `call` is how the function is called, `feed` what it gives item by item. `is_whole` tells that the body is read
    before the function is called, `finishes` that it runs to its end whoever waits for it.
    """

    template: Template
    declared: Declared
    call: Callable[..., Any]
    is_async: bool
    recipe: Recipe | None = None
    to_response: ToResponse | None = None
    middleware: tuple[Middleware, ...] = ()
    on_error: Mapping[type[Exception], OnError] | None = None
    feed: FeedType | None = None
    is_plain: bool = False
    is_whole: bool = True
    finishes: bool = False
    counter: Counter = field(default_factory=Counter)

    def compile(self, overrides: Mapping[Any, Callable[..., Any]], services: Sequence[type]) -> None:
        """Compile recipe and reply, once.

        `overrides` are dependencies with what stands in for them, `services` the types of parameters that the service
        hands over. Raises `NameError` for an annotation that names something unknown, `DeclarationError` for one that
        cannot work.
        """
        if self.recipe is not None:
            return
        declared = self.declared
        names = {name: value for frame in declared.frames for name, value in frame.f_locals.items()}
        hints = resolve_hints(self.function, names)
        needs = _Needs(self.guards, overrides, services, self.options.get("stream", False))
        recipe = compile_recipe(self.function, hints, names, self.template, self.where, needs)
        plans = [recipe.plan, *[step.plan for step in recipe.steps]]
        takers = [one.name for plan in plans for one in plan.parameters if one.source == "path"]
        candidates = [*inspect.signature(self.function).parameters]
        check_names(self.template, declared.own, takers, candidates, self.where)
        self.feed = feed_of(self.function, recipe.plan.returns, self.where)
        if declared.listening is not None:
            self._check_event(recipe)
        self._check_socket(recipe)
        self._check_awaited(recipe)
        try:
            self.to_response = self._compile_answer(recipe.plan.returns)
        except PydanticUserError as error:
            raise DeclarationError(
                f"the return type is none that pydantic can take: {error.message.splitlines()[0]}",
                where=str(self.where),
                fix="return a model, a dataclass, a TypedDict, a standard type, or a Response",
            ) from None
        self.recipe = recipe
        self.is_whole = not (recipe.takes_form or self.takes_stream)

    def _check_event(self, recipe: Recipe) -> None:
        """Raise `DeclarationError` for what an event never has."""
        plans = [recipe.plan, *[step.plan for step in recipe.steps]]
        for one in [one for plan in plans for one in plan.parameters if one.source in ("query", "cookie", "form")]:
            raise DeclarationError(
                f"parameter {one.name!r} comes from a {one.source}, which an event has not",
                where=str(self.where),
                fix=f"take it from the subject (<{one.name}>), from the body with a model or Body(), or from a header",
            )
        if recipe.takes_socket or recipe.takes_stream or self.feed is not None:
            raise DeclarationError(
                "an event is one message, and its reply is one as well",
                where=str(self.where),
                fix="take the body as a model or bytes, and return one value",
            )

    def _check_socket(self, recipe: Recipe) -> None:
        if recipe.takes_socket == (WEBSOCKET in self.methods):
            return
        if recipe.takes_socket:
            raise DeclarationError(
                "the handler takes a WebSocket, and its route answers HTTP",
                where=str(self.where),
                fix="declare it with websocket(...) instead, or take Request",
            )
        raise DeclarationError(
            "the handler of a WebSocket does not take one",
            where=str(self.where),
            fix="add a parameter ws: WebSocket (from natsweb import WebSocket)",
        )

    def _check_awaited(self, recipe: Recipe) -> None:
        """Raise `DeclarationError` for a plain function that takes what has to be awaited."""
        for name, kind in () if self.is_async else recipe.plan.given:
            if kind is Publisher or is_given(kind):
                raise DeclarationError(
                    f"parameter {name!r} is a {kind.__name__}, which has to be awaited, and the handler is a plain def",
                    where=str(self.where),
                    fix=f"write it as async def {self.function.__name__}(...)",
                )

    def _compile_answer(self, returns: Any) -> ToResponse:
        status, heartbeat = self.options.get("status"), self.options.get("heartbeat")
        if self.feed is not None:
            return compile_feed(self.feed, status, HEARTBEAT if heartbeat is None else heartbeat)
        if heartbeat is not None:
            raise DeclarationError(
                "heartbeat= is for feeds, and this handler gives none",
                where=str(self.where),
                fix="annotate it with AsyncIterator[...] of what it yields, or leave heartbeat= out",
            )
        return compile_reply(returns, status)

    def settle(self) -> None:
        """Take over what stands around it now: middleware and error handlers of its routers."""
        routers = self.declared.routers
        self.middleware = tuple([one for router in routers[1:] for one in router.around])
        self.on_error = {kind: one for router in routers for kind, one in router.error_handlers.items()}
        self.finishes = self.options.get("on_disconnect") == "finish"
        is_plain = self.recipe is not None and self.recipe.is_plain and not (self.middleware or self.finishes)
        self.is_plain = is_plain and self.feed is None and self.is_whole

    def endpoint(self, root: str, queue: str) -> Endpoint:
        """Return what NATS micro services are told of it."""
        streams = "body" if self.takes_stream else "yes"
        metadata = {METHOD: ",".join(self.methods), PATH: str(self.template), STREAMS: streams}
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)
        return Endpoint(name=name, subject=self.template.pattern(root), queue_group=queue, metadata=metadata)

    @property
    def takes_stream(self) -> bool:
        """Whether it takes the body as it comes."""
        return self.options.get("stream", False) or (self.recipe is not None and self.recipe.takes_stream)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it answers."""
        return self.declared.methods

    @property
    def function(self) -> Callable[..., Any]:
        """The handler."""
        return self.declared.function

    @property
    def where(self) -> Place:
        """Where it was declared."""
        return self.declared.where

    @property
    def place(self) -> str:
        """Where it was declared, for messages."""
        return f"{self.where.line} {self.name}"

    @property
    def options(self) -> RouteOptions:
        """What its decorator says besides the path."""
        return self.declared.options

    @property
    def name(self) -> str:
        """What `url_for` knows it by."""
        return self.options.get("name") or name_of(self.function)

    @property
    def tags(self) -> list[str]:
        """The tags of all its routers, and its own."""
        found = [tag for router in self.declared.routers for tag in router.tags]
        return list(dict.fromkeys([*found, *self.options.get("tags", ())]))

    @property
    def summary(self) -> str:
        """One line about it: its own, or the first paragraph of the docstring."""
        return self.options.get("summary") or _paragraphs(self.function)[0]

    @property
    def description(self) -> str:
        """More about it: its own, or the docstring after the first paragraph."""
        return self.options.get("description") or _paragraphs(self.function)[1]

    @property
    def guards(self) -> list[Depends]:
        """The dependencies that are called for their effect, the outermost router's first.

        Those of routers guard requests: who may publish an event is for NATS to say.
        """
        routers = self.declared.routers if self.declared.listening is None else ()
        found = [one for router in routers for one in router.depends]
        return [*found, *self.options.get("depends", ())]


@dataclass(frozen=True, slots=True)
class _Needs:
    """What the recipe of a route is compiled with."""

    guards: Sequence[Depends]
    overrides: Mapping[Any, Callable[..., Any]]
    services: Sequence[type]
    stream: bool


def _paragraphs(function: Callable[..., Any]) -> tuple[str, str]:
    """Return the first paragraph of a docstring as one line, and the rest."""
    first, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
    return " ".join(first.split()), rest.strip()
