"""`Service`: typed handlers declared with decorators, behind one router.

Declaring compiles: path, signature, dependencies and return type of a handler are checked when its decorator runs.
Serving looks up: route, bind, call, turn the value into a response; whatever goes wrong becomes an error response,
on the spot, so that middleware sees it like any other. The service knows no NATS and no HTTP server: `handle` is all
that the worker, a test or an ASGI door needs.
"""

import contextlib
import importlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, Generic, Self, cast, overload

from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import TypeVar

from natsweb.annotations import line_of, name_of
from natsweb.asgi import AsgiApp
from natsweb.counters import Counter
from natsweb.dependencies import identity_of
from natsweb.dispatch import Dispatcher
from natsweb.errors import DeclarationError, HTTPError, SettingsError
from natsweb.events import Publisher, check_subject, parse_subject
from natsweb.feeds import caller_of
from natsweb.given import Supplies, is_given
from natsweb.lifespans import Lifespan
from natsweb.messages import Call, Request, Response, Result
from natsweb.micro import ROOT, ROUTES, WIRE, Endpoint, routes_hash
from natsweb.middleware import Handler, Middleware
from natsweb.mounts import Below, Mount, Mounted, is_handler, mounts
from natsweb.openapi import document
from natsweb.params import Depends
from natsweb.routers import Declared, Router, caller_line, check_depends, check_prefix, parse_template
from natsweb.routes import Route
from natsweb.routing import Matcher
from natsweb.security import Scheme, stand_in
from natsweb.subjects import check_root, minimal_cover
from natsweb.threads import Threads

__all__ = ["Service"]

S = TypeVar("S", default=Any)
L = TypeVar("L", bound=Callable[..., AsyncIterator[Any] | contextlib.AbstractAsyncContextManager[Any]])

logger = logging.getLogger("natsweb.service")


class Service(Router, Generic[S]):
    """A set of typed HTTP handlers that is served over NATS.

    `name` is the service's name in NATS (letters, digits, `-`, `_`), `version` its SemVer, `root` the subject
    that stands for `/`, `queue` the queue group that its instances share (default: the name), `threads` how
    many plain `def` handlers run at once (default: 5 per core, 32 at most). `max_body` is how many bytes of a body are
    read into memory (default: 16 MiB), for routes that do not take it as it comes. `tags`, `depends` and `middleware`
    are those of a `Router`. Without `not_found` it says nothing to a request that none of its routes takes, so that
    another service may. `start_timeout` is how many seconds the lifespan may take to start. `Service[State]` is
    one whose lifespan yields a `State`.

    Raises `DeclarationError` for a name or version that NATS micro services do not allow (ADR-32).
    """

    _word = "svc"

    def __init__(
        self,
        name: str,
        *,
        version: str = "0.0.0",
        root: str = "api",
        queue: str | None = None,
        description: str = "",
        threads: int | None = None,
        max_body: int = 16 * 1024 * 1024,
        not_found: bool = True,
        tags: Sequence[str] = (),
        depends: Sequence[Depends] = (),
        middleware: Sequence[Middleware] = (),
        start_timeout: float = 60.0,
    ) -> None:
        if not name or not all(char.isascii() and (char.isalnum() or char in "-_") for char in name):
            raise DeclarationError(
                f"{name!r} cannot be the name of a service",
                where=caller_line(2),
                fix="use letters, digits, '-' and '_', such as Service(\"orders\")",
            )
        if not _is_semver(version):
            raise DeclarationError(
                f"{version!r} is not a semantic version", where=caller_line(2), fix='write it as "1.2.3"'
            )
        if queue is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", queue):
            raise DeclarationError(
                f"{queue!r} cannot be a queue group",
                where=caller_line(2),
                fix="use letters, digits, '.', '-' and '_', or leave it out: it is the service's name then",
            )
        if threads is not None and threads < 1:
            raise DeclarationError("a service needs one thread at least", where=caller_line(2), fix="threads=1")
        if max_body < 0:
            raise DeclarationError(
                f"a body cannot have up to {max_body} bytes", where=caller_line(2), fix="max_body=16 * 1024 * 1024"
            )
        try:
            self.root = check_root(root)
        except SettingsError as error:
            raise DeclarationError(error.what, where=caller_line(2), fix=error.fix) from None
        check_depends(depends, caller_line(2))
        super().__init__(tags=tags, depends=depends)
        self.name = name
        self.version = version
        self.queue = queue or name
        self.description = description
        self.start_timeout = start_timeout
        self._matcher: Matcher[Route | Mount] = Matcher()
        self._overrides: dict[Any, Callable[..., Any]] = {}
        self._threads = Threads(threads or min(32, 5 * (os.cpu_count() or 1)), name)
        self._lifespan = Lifespan(name, self._threads)
        #: What lifespans and background jobs publish events with; a handler takes a `Publisher`.
        self.publisher = Publisher(name)
        self._events: list[Route] = []
        self._services = Supplies({Service: self, Publisher: self.publisher}, name, self.root)
        self._door: ASGIApp | None = None
        self._dispatcher = Dispatcher(
            self._matcher,
            self.around,
            self.error_handlers,
            threads=self._threads,
            app=self._lifespan.scope,
            services=self._services,
            prepare=self.compile,
            max_body=max_body,
            not_found=not_found,
        )
        for one in middleware:
            self.middleware(one)

    def __repr__(self) -> str:
        return f"<Service {self.name} {self.version}: {len(self.routes)} routes below {self.root}>"

    # ── declaring ──

    @property
    def routes(self) -> list[Route]:
        """All routes, those of included routers as well, in the order of their declaration."""
        return [one for one in self._matcher.endpoints if isinstance(one, Route)]

    @property
    def events(self) -> list[Route]:
        """The handlers of NATS events, in the order of their declaration."""
        return list(self._events)

    @property
    def mounts(self) -> list[Mount]:
        """The endpoints of mounted applications."""
        return [one for one in self._matcher.endpoints if isinstance(one, Mount)]

    @property
    def threads(self) -> int:
        """How many plain `def` handlers run at once."""
        return self._threads.workers

    @threads.setter
    def threads(self, workers: int) -> None:
        self._threads.workers = workers

    @property
    def max_body(self) -> int:
        """How many bytes of a body are read into memory."""
        return self._dispatcher.max_body

    @property
    def on_failure(self) -> Callable[[BaseException], None]:
        """What gets all that handlers and mounted applications raise and is no answer: it is logged in any case.

        What handles an event answers nobody: so that is all that it raises.
        """
        return self._dispatcher.on_failure

    @on_failure.setter
    def on_failure(self, take: Callable[[BaseException], None]) -> None:
        self._dispatcher.on_failure = take

    def _declare(self, declared: Declared) -> None:
        super()._declare(declared)
        declared = self._declared[-1]
        is_event, where = declared.listening is not None, str(declared.where)
        template = parse_subject(declared.path, where) if is_event else parse_template(declared.path, where)
        if is_event:
            check_subject(template, self.root, where)
        route = Route(template, declared, *caller_of(declared.function, self._threads))
        try:
            route.compile(self._overrides, tuple(self._services))
        except NameError:
            pass  # a name that is defined further down: `compile` tries again when the module is whole
        if is_event:
            self._events.append(route)
        else:
            self._matcher.add(route)
        self._dispatcher.is_compiled = False

    def _touch(self) -> None:
        self._dispatcher.is_compiled = False

    def mount(self, prefix: str, app: "ASGIApp | Handler | Service[Any]", *, where: str | None = None) -> None:
        """Give all below `prefix` that no route takes to an ASGI application: FastAPI, Starlette, Django, Quart...

        It runs unchanged: WebSockets, lifespan, streams, with `root_path` set to the prefix. `"/"` is the top. A WSGI
        application goes through `a2wsgi.WSGIMiddleware`. A natsweb `Handler`, or another service, sees the path below
        the prefix instead. `where` is what messages name as its place (default: the line of this call). Raises
        `DeclarationError` for a prefix that cannot be one, or that is taken.
        """
        where = where or caller_line(2)
        prefix = "" if prefix == "/" else prefix
        check_prefix(prefix, where)
        if "<" in prefix or not callable(app):
            raise DeclarationError(
                f"{app!r} cannot be mounted at {prefix or '/'!r}",
                where=where,
                fix='mount an ASGI application at a path without captures: svc.mount("/shop", app)',
            )
        wrapped: Mounted
        if is_handler(app):
            wrapped = Below(prefix, app)
        else:
            wrapped = asgi = AsgiApp(cast(ASGIApp, app), prefix=prefix)
            asgi.on_failure = lambda error: self.on_failure(error)
        for one in mounts(prefix, wrapped, where):
            self._matcher.add(one)
        self._lifespan.add_manager(wrapped)
        self._dispatcher.is_compiled = False

    def compile(self) -> None:
        """Finish what the decorators could not, since a type was not defined yet.

        Raises `DeclarationError` that names the type which is still missing.
        """
        for route in [*self.routes, *self._events]:
            try:
                route.compile(self._overrides, tuple(self._services))
            except NameError as error:
                raise DeclarationError(
                    f"the annotation {error.name!r} names nothing",
                    where=str(route.where),
                    fix=f"import or define {error.name} in that module, not under TYPE_CHECKING",
                ) from None
            route.settle()
        self._dispatcher.is_compiled = True

    def patterns(self, root: str | None = None) -> list[str]:
        """Return the minimal cover of the routes' subject patterns below `root` (default: the service's own)."""
        base = self.root if root is None else check_root(root)
        return minimal_cover(route.template.pattern(base) for route in self._matcher.endpoints)

    def endpoints(self, root: str | None = None) -> list[tuple[Endpoint, Counter]]:
        """Return what NATS micro services call endpoints, one for each route, with what they have done."""
        base = self.root if root is None else check_root(root)
        return [(route.endpoint(base, self.queue), route.counter) for route in self._matcher.endpoints]

    def metadata(self, root: str | None = None) -> dict[str, str]:
        """Return what the service says of itself to NATS: wire version, root, a hash of its routes."""
        endpoints = [endpoint for endpoint, _ in self.endpoints(root)]
        return {WIRE: "1", ROOT: root or self.root, ROUTES: routes_hash(endpoints)}

    def url_for(self, name: str, /, **values: object) -> str:
        """Return the path of the route called `name` with its captures filled in; query parameters may be given, too.

        `svc.url_for("show", id=7)` is `"/orders/7"`. Raises `DeclarationError` for an unknown or ambiguous name, and
        for values that do not fit the route.
        """
        found = [route for route in self.routes if route.name == name]
        if len(found) != 1:
            raise DeclarationError(
                f"{len(found) or 'no'} routes are called {name!r}",
                where=[route.place for route in found] or caller_line(2),
                fix="give one of them name=" if found else f"known: {', '.join(r.name for r in self.routes) or 'none'}",
            )
        [route] = found
        route.compile(self._overrides, tuple(self._services))
        assert route.recipe is not None
        query = {one.name: one.key for one in route.recipe.plan.parameters if one.source == "query"}
        captures = route.template.names
        if wrong := [one for one in captures if one not in values] + [
            one for one in values if one not in captures and one not in query
        ]:
            raise DeclarationError(
                f"url_for({name!r}) and {wrong[0]!r} do not fit {route.template}",
                where=[caller_line(2), route.place],
                fix=f"it takes {', '.join([*captures, *query]) or 'no values'}",
            )
        taken = {one: values[one] for one in captures}
        asked = {query[one]: values[one] for one in values if one not in captures}
        try:
            return route.template.url(taken, asked)
        except ValueError as error:
            raise DeclarationError(
                f"url_for({name!r}) makes no path: {error}",
                where=[caller_line(2), route.place],
                fix="give other values",
            ) from None

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI 3.1 document of the service, as plain JSON values."""
        self.compile()
        return document(self.name, self.version, self.description, self.routes)

    # ── starting and stopping ──

    def lifespan(self, function: L) -> L:
        """Declare what runs around the service: `async def life(svc): ...; yield State(...); ...`.

        Several run in the order of their declaration, and end in the reverse order. One of them may yield
        a value, which is `svc.state` from then on.
        """
        self._lifespan.add(function)
        return function

    def attach(self, bus: Any, root: str | None = None) -> None:
        """Connect what handlers take besides requests, a `Client` and a `Publisher`: for whoever runs the service.

        `bus` is the connection, `root` where the service is served (default: its own). To be called before `start`, or
        in a lifespan; what is connected already stays so, until `stop`.
        """
        self._services.attach(bus, root or self.root)
        if not self.publisher.is_connected:
            self.publisher.connect(bus)
        for mount in self.mounts:
            if isinstance(mount.app.app, Service):
                mount.app.app.attach(bus, root or self.root)

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and has neither been stopped nor lost its lifespan."""
        return self._lifespan.is_running

    async def failed(self) -> None:
        """Wait until a lifespan fails while the service runs, which should then be stopped."""
        await self._lifespan.failed()

    @property
    def state(self) -> S:
        """What the lifespan has yielded; raises `StartError` while the service is not running."""
        return cast(S, self._lifespan.state)

    async def start(self) -> None:
        """Run the lifespans up to their `yield`, and make the dependencies that live as long as the service.

        Raises `StartError` for whatever goes wrong in there, and if it takes longer than `start_timeout` seconds.
        """
        self.compile()
        recipes = [route.recipe for route in [*self.routes, *self._events] if route.recipe is not None]
        given = [kind for recipe in recipes for kind in recipe.given if is_given(kind)]
        await self._services.start(given)
        await self._lifespan.start(self, self._services, recipes, timeout=self.start_timeout)
        self._services.report()

    async def stop(self) -> None:
        """Clean up what `start` has made, the newest first, and let go of the threads; errors are logged."""
        await self._lifespan.stop()
        if not self._lifespan.is_running:
            await self._services.stop()
        self._threads.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @contextlib.contextmanager
    def override(self, dependency: Callable[..., Any] | Scheme, replacement: Callable[..., Any]) -> Iterator[None]:
        """Let `replacement` stand in for `dependency` inside a `with` block: for tests.

        For a security scheme, `replacement()` says who calls.

        Raises `DeclarationError` if no route depends on it, and for one of scope `"app"` while the service runs.
        """
        if isinstance(dependency, Scheme):
            dependency, replacement = stand_in(dependency, replacement)
        key = identity_of(dependency)
        self.compile()
        recipes = [route.recipe for route in [*self.routes, *self._events] if route.recipe is not None]
        steps = [step for recipe in recipes for step in recipe.steps if step.key[0] == key]
        if not steps:
            raise DeclarationError(
                f"no route depends on {name_of(dependency)}",
                where=line_of(dependency),
                fix="override the very function that stands in Depends(...)",
            )
        if self._lifespan.is_running and any(step.scope == "app" for step in steps):
            raise DeclarationError(
                f"{name_of(dependency)} lives as long as the service, which is running",
                where=line_of(dependency),
                fix="override it before the service starts",
            )
        before = dict(self._overrides)
        self._overrides[key] = replacement
        self._forget()
        try:
            self.compile()
            yield
        finally:
            self._overrides.clear()
            self._overrides.update(before)
            self._forget()

    def _forget(self) -> None:
        for route in [*self.routes, *self._events]:
            route.recipe = None
        self._dispatcher.is_compiled = False

    # ── serving ──

    @overload
    def handle(self, call: Request) -> Coroutine[Any, Any, Response]: ...
    @overload
    def handle(self, call: Call) -> Coroutine[Any, Any, Response | Result]: ...
    def handle(self, call: Call | Request) -> Coroutine[Any, Any, Response | Result]:
        """Answer one request; errors are responses (problem+json), the traceback of a failing handler is logged.

        Whoever passes a `Call` gets a plain record of most answers, and closes the call's `after` when the reply has
        gone; with a `Request` that is done before this returns, or when the stream of the answer has ended or was
        closed. The one thing that gets out is `asyncio.CancelledError`, of whoever cancels this call.
        """
        return self._dispatcher.handle(call)

    def hand(self, route: Route, call: Call, params: dict[str, str]) -> Coroutine[Any, Any, Response | Result]:
        """Give an event to one of the handlers in `events`; errors are responses, as with `handle`, and are logged."""
        return self._dispatcher.hand(route, call, params)

    def takes_stream(self, call: Call | Request) -> bool:
        """Tell whether what answers a request takes its body as it comes."""
        try:
            found = self._matcher.find(call.method, call.tokens)
        except HTTPError:
            return False
        return isinstance(found, tuple) and (isinstance(found[0], Mount) or found[0].takes_stream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope over plain HTTP, without NATS: `uvicorn app:svc`."""
        door = self._door
        if door is None:
            # The door stands above the service; it is loaded by name so that the arrow stays one-way.
            door = self._door = cast(ASGIApp, importlib.import_module("natsweb.plain").PlainDoor(self))
        await door(scope, receive, send)

    def close(self) -> None:
        """Let go of the threads; what has not started in them is dropped."""
        self._threads.close()

    def run(self, *, nats: str | None = None, root: str | None = None) -> None:
        """Serve until SIGTERM or Ctrl-C: what `natsweb run` does with this service.

        `nats` is a server URL (default: as the command line finds it), `root` overrides the service's own.
        """
        # The command line stands above the service; it is loaded by name so that the arrow stays one-way.
        importlib.import_module("natsweb.cli.run").serve_here([self], nats=nats, root=root)


def _is_semver(version: str) -> bool:
    number, part = r"(0|[1-9][0-9]*)", r"[0-9A-Za-z-]+"
    before = rf"(0|[1-9][0-9]*|[0-9]*[A-Za-z-]{part[:-1]}*)"
    core = rf"{number}\.{number}\.{number}"
    return re.fullmatch(rf"{core}(-{before}(\.{before})*)?(\+{part}(\.{part})*)?", version) is not None
