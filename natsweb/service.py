"""`Service`: typed handlers declared with decorators, behind one router.

Declaring compiles: path, signature, dependencies and return type of a handler are checked when its decorator runs.
Serving looks up: route, bind, call, turn the value into a response; whatever goes wrong becomes an error response,
on the spot, so that middleware sees it like any other. The service knows no NATS and no HTTP server: `handle` is all
that the worker, a test or an ASGI door needs.
"""

import contextlib
import functools
import importlib
import inspect
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, cast

from starlette.types import ASGIApp
from typing_extensions import TypeVar

from natsweb.annotations import line_of, name_of
from natsweb.asgi import AsgiApp
from natsweb.counters import Counter
from natsweb.dependencies import identity_of
from natsweb.errors import DeclarationError, HandlerFailed, HTTPError, SettingsError, TooLarge, WebSocketClosed
from natsweb.feeds import caller_of
from natsweb.headers import Headers
from natsweb.lifespans import Lifespan
from natsweb.lifetimes import close_after, watch
from natsweb.messages import Call, NotExecuted, Pieces, Request, Response
from natsweb.micro import ROOT, ROUTES, WIRE, Endpoint, routes_hash
from natsweb.middleware import Middleware, pass_through
from natsweb.mounts import Mount, mounts
from natsweb.openapi import document
from natsweb.params import Depends
from natsweb.replies import Deferred, problem
from natsweb.routers import Declared, OnError, Router, caller_line, check_depends, check_prefix, parse_template
from natsweb.routes import Route
from natsweb.routing import WEBSOCKET, Match, Matcher, Options
from natsweb.scopes import RequestScope, unless_cancelled
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
    are those of a `Router`. `start_timeout` is how many seconds the lifespan may take to start. `Service[State]` is
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
        self._compiled = False  # before middleware is added, which asks for it
        check_depends(depends, caller_line(2))
        super().__init__(tags=tags, depends=depends, middleware=middleware)
        self.name = name
        self.version = version
        self.queue = queue or name
        self.description = description
        self.max_body = max_body
        self.start_timeout = start_timeout
        self._matcher: Matcher[Route | Mount] = Matcher()
        #: Gets what handlers and mounted applications raise and is no answer: it is logged in any case.
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        self._overrides: dict[Any, Callable[..., Any]] = {}
        self._threads = Threads(threads or min(32, 5 * (os.cpu_count() or 1)), name)
        self._lifespan = Lifespan(name, self._threads)
        self._services: dict[type, Any] = {Service: self}

    def __repr__(self) -> str:
        return f"<Service {self.name} {self.version}: {len(self.routes)} routes below {self.root}>"

    # ── declaring ──

    @property
    def routes(self) -> list[Route]:
        """All routes, those of included routers as well, in the order of their declaration."""
        return [one for one in self._matcher.endpoints if isinstance(one, Route)]

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

    def _declare(self, declared: Declared) -> None:
        super()._declare(declared)
        declared = self._declared[-1]
        template = parse_template(declared.path, str(declared.where))
        route = Route(template, declared, *caller_of(declared.function, self._threads))
        try:
            route.compile(self._overrides, (Service,))
        except NameError:
            pass  # a name that is defined further down: `compile` tries again when the module is whole
        self._matcher.add(route)
        self._compiled = False

    def _touch(self) -> None:
        self._compiled = False

    def mount(self, prefix: str, app: ASGIApp) -> None:
        """Give all below `prefix` that no route takes to an ASGI application: FastAPI, Starlette, Django, Quart...

        It runs unchanged: WebSockets, lifespan, streams, with `root_path` set to the prefix. `"/"` is the top. A WSGI
        application goes through `a2wsgi.WSGIMiddleware`. Raises `DeclarationError` for a prefix that cannot be one, or
        that is taken.
        """
        where = caller_line(2)
        prefix = "" if prefix == "/" else prefix
        check_prefix(prefix, where)
        if "<" in prefix or not callable(app):
            raise DeclarationError(
                f"{app!r} cannot be mounted at {prefix or '/'!r}",
                where=where,
                fix='mount an ASGI application at a path without captures: svc.mount("/shop", app)',
            )
        wrapped = AsgiApp(app, prefix=prefix)
        wrapped.on_failure = lambda error: self.on_failure(error)
        self._lifespan.add_manager(wrapped)
        for one in mounts(prefix, wrapped, where):
            self._matcher.add(one)
        self._compiled = False

    def compile(self) -> None:
        """Finish what the decorators could not, since a type was not defined yet.

        Raises `DeclarationError` that names the type which is still missing.
        """
        for route in self.routes:
            try:
                route.compile(self._overrides, (Service,))
            except NameError as error:
                raise DeclarationError(
                    f"the annotation {error.name!r} names nothing",
                    where=str(route.where),
                    fix=f"import or define {error.name} in that module, not under TYPE_CHECKING",
                ) from None
            route.settle()
        self._compiled = True

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
        route.compile(self._overrides, (Service,))
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
        recipes = [route.recipe for route in self.routes if route.recipe is not None]
        await self._lifespan.start(self, self._services, recipes, timeout=self.start_timeout)

    async def stop(self) -> None:
        """Clean up what `start` has made, the newest first, and let go of the threads; errors are logged."""
        await self._lifespan.stop()
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
        recipes = [route.recipe for route in self.routes if route.recipe is not None]
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
        for route in self.routes:
            route.recipe = None
        self._compiled = False

    # ── serving ──

    def handle(self, call: Call | Request) -> Coroutine[Any, Any, Response]:
        """Answer one request; errors are responses (problem+json), the traceback of a failing handler is logged.

        Whoever passes a `Call` closes its `after` when the reply has gone; with a `Request` that is done before
        this returns, or when the stream of the answer has ended or was closed. The one thing that gets out is
        `asyncio.CancelledError`, of whoever cancels this call.
        """
        if type(call) is Call:
            return self._behind_middleware(call.request(), call) if self.around else self._dispatch(call, call)
        return self._complete(call.request())

    async def _complete(self, request: Request) -> Response:
        owner = Call(request.method, [])
        pieces = None
        try:
            response = await self._behind_middleware(request, owner)
            pieces = response.pieces
            return response
        finally:
            if owner.counter is not None:
                owner.counter.abandon()
            if owner.after is not None:
                if pieces is None:
                    await owner.after.close()
                else:
                    close_after(pieces, owner.after)

    async def _behind_middleware(self, request: Request, owner: Call) -> Response:
        def endpoint(request: Request) -> Coroutine[Any, Any, Response]:
            return self._dispatch(request, owner)

        def caught(error: BaseException, request: Request) -> Coroutine[Any, Any, Response]:
            return self._caught(error, request, None)

        response = await pass_through(request, self.around, endpoint, caught)
        if response.retry and owner.counter is not None:  # a handler has run, whatever middleware makes of it
            return Response.trusted(response.status, response.headers, response.body)
        return self._adopt(response, request, None, owner)

    async def _dispatch(self, call: Call | Request, owner: Call) -> Response:
        """Find the route of a request and answer it; what is left to do after the reply goes to `owner.after`."""
        route = None
        try:
            if not self._compiled:
                self.compile()
            found = self._matcher.find(WEBSOCKET if call.upgrade else call.method, call.tokens)
            if not isinstance(found, Match):
                return _redirect_or_options(found, call)
            endpoint, params = found
            if owner.counter is not endpoint.counter:
                if owner.counter is not None:
                    owner.counter.abandon()
                owner.counter = endpoint.counter
                endpoint.counter.started += 1
            if isinstance(endpoint, Mount):
                return self._adopt(await endpoint.app.handle(call), call, None, owner)
            route = endpoint
            recipe, to_response = route.recipe, route.to_response
            assert recipe is not None
            assert to_response is not None
            plan = recipe.plan
            if not route.is_plain:
                return await self._around(route, call, params, owner)
            if call.more or len(call.body) > self.max_body:
                await self._read(call)
            if plan.given:
                call = _with_params(call, params)
            arguments = plan.bind(call, params)
            if route.is_async:
                response = to_response(await route.call(**arguments))
            else:
                response = to_response(await self._threads.run(functools.partial(route.call, **arguments)))
            if type(response) is Response:
                return response
            if not isinstance(response, Response):
                response = await response.render(call)
            return self._adopt(response, call, route, owner)
        except BaseException as error:  # SystemExit and KeyboardInterrupt of one handler must not stop all others
            return await self._caught(error, call, route)

    async def _around(self, route: Route, call: Call | Request, params: dict[str, str], owner: Call) -> Response:
        """Answer on a route that has more than a plan: middleware of routers, dependencies, forms."""
        call = _with_params(call, params)
        if route.finishes and owner.channel is not None:
            owner.channel.finishes = True
        if not route.middleware:
            return await self._execute(route, call, owner)

        async def endpoint(request: Request) -> Response:
            try:
                return await self._execute(route, request, owner)
            except BaseException as error:
                return await self._caught(error, request, route)

        def caught(error: BaseException, request: Request) -> Coroutine[Any, Any, Response]:
            return self._caught(error, request, route)

        response = await pass_through(call.request(), route.middleware, endpoint, caught)
        return self._adopt(response, call, route, owner)

    async def _execute(self, route: Route, call: Call | Request, owner: Call) -> Response:
        """Make the dependencies, call the handler, and clean up what ends with it."""
        recipe, to_response = route.recipe, route.to_response
        assert recipe is not None
        assert to_response is not None
        scope = self._new_scope(owner)
        response: Response | Deferred | None = None
        failure: BaseException | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    if route.is_whole and (call.more or len(call.body) > self.max_body):
                        await self._read(call)
                    arguments = await recipe.arguments(
                        call, call.params, scope, stack, self._lifespan.scope, self._services
                    )
                    if route.is_async:
                        response = to_response(await route.call(**arguments))
                    else:
                        response = to_response(await self._threads.run(functools.partial(route.call, **arguments)))
                    if not isinstance(response, Response):
                        response = await response.render(call)
                    if response.pieces is not None:  # the handler runs on, with all that was made for it
                        self._watch(response.pieces, call, route, scope, stack.pop_all())
                except BaseException as error:
                    failure, response = error, None
                    raise
            if response is None:
                raise failure or RuntimeError("the handler gave no response")  # a dependency has swallowed the error
        except BaseException as error:
            scope.error = error
            raise
        return response

    def _new_scope(self, owner: Call) -> RequestScope:
        """Return the scope of a request; each try of a middleware has its own."""
        scope = owner.after = RequestScope(self._threads, owner.after)
        return scope

    async def _read(self, call: Call | Request) -> None:
        """Read the whole body, which stays; raises `TooLarge`, before it is read where its length is known."""
        said = call.headers.get("content-length") or ""
        too_large = call.more and said.isdigit() and int(said) > self.max_body
        if too_large or len(await call.read(self.max_body)) > self.max_body:
            raise TooLarge(f"the request body is too large: this route takes at most {self.max_body} bytes of it")

    def _adopt(self, response: Response, call: Call | Request, route: Route | None, owner: Call) -> Response:
        """Return a response; a stream that was not made for a handler's dependencies gets a scope of its own."""
        if response.pieces is not None and response.pieces.failed is None:
            self._watch(response.pieces, call, route, self._new_scope(owner), contextlib.AsyncExitStack())
        return response

    def _watch(
        self,
        pieces: Pieces,
        call: Call | Request,
        route: Route | None,
        scope: RequestScope,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        """Bind the stream of an answer to its request, and what is raised in it to the error handling here."""

        def answer(error: BaseException) -> Coroutine[Any, Any, Response]:
            return self._caught(error, call, route)

        def log(error: BaseException) -> None:
            self._log(error, call, route)

        watch(pieces, scope, stack, answer, log)

    async def _caught(self, error: BaseException, call: Call | Request, route: Route | None) -> Response:
        """Return the response of what was raised; raises it if it is the caller's own cancellation.

        `route` is None for an error of routing or of the service's own middleware.
        """
        unless_cancelled(error)
        if isinstance(error, WebSocketClosed) and call.upgrade:
            return Response.trusted(204, Headers(), b"")  # the client has said goodbye: an end like any other
        executed = route is not None or not isinstance(error, HTTPError) or not error.retry
        handlers = self.error_handlers if route is None or route.on_error is None else route.on_error
        try:
            handler = _handler_of(error, handlers)
            if handler is not None:
                response = await self._respond(handler, error, call)
                if executed or response.pieces is not None:
                    return response
                return NotExecuted.trusted(response.status, response.headers, response.body)
        except Exception as raised:
            error = raised
        return self._problem(error, executed, call, route)

    async def _respond(self, handler: OnError, error: BaseException, call: Call | Request) -> Response:
        """Return what an error handler answers; raises what it raises, or returns, as an error."""
        if inspect.iscoroutinefunction(handler):
            answer = await handler(call.request(), error)
        else:
            answer = await self._threads.run(functools.partial(handler, call.request(), error))
        if isinstance(answer, HTTPError):
            raise answer from error
        if not isinstance(answer, Response):
            raise TypeError(f"error handler {name_of(handler)} returned {type(answer).__name__}, not a Response")
        return answer

    def _problem(self, error: BaseException, executed: bool, call: Call | Request, route: Route | None) -> Response:
        """Return the problem+json of an error; what is no answer is logged, and is a 500."""
        if isinstance(error, HTTPError):
            with contextlib.suppress(Exception):
                return problem(error, executed=executed)
        self._log(error, call, route)
        return problem(HandlerFailed("the handler failed; the service's log says why"))

    def _log(self, error: BaseException, call: Call | Request, route: Route | None) -> None:
        words = f"{call.method} {call.raw_path}" if route is None else f"{call.method} {route.template}"
        logger.error("%s failed (%s)", words, "middleware" if route is None else route.place, exc_info=error)
        self.on_failure(error)

    def close(self) -> None:
        """Let go of the threads; what has not started in them is dropped."""
        self._threads.close()

    def run(self, *, nats: str | None = None, root: str | None = None) -> None:
        """Serve until SIGTERM or Ctrl-C: what `natsweb run` does with this service.

        `nats` is a server URL (default: as the command line finds it), `root` overrides the service's own.
        """
        # The command line stands above the service; it is loaded by name so that the arrow stays one-way.
        importlib.import_module("natsweb.cli.run").serve_here([self], nats=nats, root=root)


def _handler_of(error: BaseException, handlers: Mapping[type[Exception], OnError]) -> OnError | None:
    """Return the handler of the most specific class; an `HTTPError` is an answer, so `Exception` is not its class."""
    for kind in type(error).__mro__:
        if kind in handlers:
            return handlers[kind]
        if kind is HTTPError:
            return None
    return None


def _with_params(call: Call | Request, params: dict[str, str]) -> Call | Request:
    if isinstance(call, Call):
        call.params = params
        return call
    return call.model_copy(update={"params": params})


def _redirect_or_options(found: Any, call: Call | Request) -> Response:
    if isinstance(found, Options):
        return Response(status=204, headers={"allow": ", ".join(found.allow)})
    # Relative, so that it holds behind any prefix, and can never be taken for `//another.host`.
    location = f"../{found.tokens[-1]}" + (f"?{call.query}" if call.query else "")
    return Response(status=308, headers={"location": location, "cache-control": "no-store"})


def _is_semver(version: str) -> bool:
    number, part = r"(0|[1-9][0-9]*)", r"[0-9A-Za-z-]+"
    before = rf"(0|[1-9][0-9]*|[0-9]*[A-Za-z-]{part[:-1]}*)"
    core = rf"{number}\.{number}\.{number}"
    return re.fullmatch(rf"{core}(-{before}(\.{before})*)?(\+{part}(\.{part})*)?", version) is not None
