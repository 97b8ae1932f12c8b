"""From a request to its response: route, dependencies, handler, answer; and what becomes of an error.

Whatever goes wrong becomes an error response, on the spot, so that middleware sees it like any other. Walks over what
was compiled at declaration. Knows routes and mounts; it declares nothing, and knows no NATS and no HTTP server.
"""

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from natsweb import current
from natsweb.annotations import name_of
from natsweb.errors import HandlerFailed, HTTPError, NoRoute, TooLarge, WebSocketClosed
from natsweb.headers import Headers
from natsweb.lifetimes import close_after, watch
from natsweb.messages import Call, NoAnswer, NotExecuted, Pieces, Request, Response, Result
from natsweb.middleware import Middleware, pass_through
from natsweb.mounts import Mount
from natsweb.recipes import AppScope
from natsweb.replies import Deferred, problem
from natsweb.routers import OnError
from natsweb.routes import Route
from natsweb.routing import WEBSOCKET, Matcher, Options
from natsweb.scopes import RequestScope, unless_cancelled
from natsweb.subjects import decode_token
from natsweb.threads import Threads
from natsweb.wire import EVENT

__all__ = ["Dispatcher"]

logger = logging.getLogger("natsweb.service")


class Dispatcher:
    """Answers requests on the endpoints of `matcher`, behind `around` and with `error_handlers`, which may still grow.

    `app` has the dependencies that live as long as the service, `services` what it hands over, `prepare` compiles what
    was declared since `is_compiled` was last true. Bodies that arrive whole have at most `max_body` bytes. Without
    `not_found`, a request that no endpoint takes gets a `NoAnswer`.
    """

    def __init__(
        self,
        matcher: Matcher[Route | Mount],
        around: Sequence[Middleware],
        error_handlers: Mapping[type[Exception], OnError],
        *,
        threads: Threads,
        app: AppScope,
        services: Mapping[type, Any],
        prepare: Callable[[], None],
        max_body: int,
        not_found: bool,
    ) -> None:
        self._matcher = matcher
        self._around_all = around
        self._error_handlers = error_handlers
        self._threads = threads
        self._app = app
        self._services = services
        self._prepare = prepare
        self.is_compiled = False
        self.max_body = max_body
        self._not_found = not_found
        #: Gets what handlers and mounted applications raise and is no answer: it is logged in any case.
        self.on_failure: Callable[[BaseException], None] = lambda error: None

    def __repr__(self) -> str:
        return f"<Dispatcher of {len(self._matcher.endpoints)} endpoints>"

    def handle(self, call: Call | Request) -> Coroutine[Any, Any, Response | Result]:
        """Answer one request; errors are responses (problem+json), the traceback of a failing handler is logged.

        Whoever passes a `Call` gets a plain record of most answers, and closes the call's `after` when the reply has
        gone; with a `Request` that is done before this returns, or when the stream of the answer has ended or was
        closed. The one thing that gets out is `asyncio.CancelledError`, of whoever cancels this call.
        """
        if type(call) is Call:
            if current.is_wanted:
                return self._noted(call)
            return self._behind_middleware(call.request(), call) if self._around_all else self._dispatch(call, call)
        return self._complete(call.request())

    async def _noted(self, call: Call) -> Response | Result:
        """Answer a request that what acts on its behalf may look for, as long as anything is left to do for it."""
        before = current.take_up(call)
        response: Response | Result
        if self._around_all:
            response = await self._behind_middleware(call.request(), call)
        else:
            response = await self._dispatch(call, call)
        if response.pieces is None and call.after is None:
            current.leave(before)  # as it was, so that the task may go on with another request (`tasks`)
        return response

    def hand(self, route: Route, call: Call, params: dict[str, str]) -> Coroutine[Any, Any, Response | Result]:
        """Give a call to a route that was found elsewhere, which is how events come; otherwise as `handle`."""
        if current.is_wanted:
            current.take_up(call)
        if not self._around_all:
            return self._give(route, call, params, call)

        def endpoint(request: Request) -> Coroutine[Any, Any, Response | Result]:
            return self._give(route, request, params, call)

        def caught(error: BaseException, request: Request) -> Coroutine[Any, Any, Response]:
            return self._caught(error, request, None)

        return pass_through(call.request(), self._around_all, endpoint, caught)

    async def _give(self, route: Route, call: Call | Request, params: dict[str, str], owner: Call) -> Response | Result:
        try:
            if not self.is_compiled:
                self._prepare()
            return await self._around(route, call, params, owner)
        except BaseException as error:
            return await self._caught(error, call, route)

    async def _complete(self, request: Request) -> Response:
        owner = Call(request.method, [])
        pieces = None
        before = current.take_up(request) if current.is_wanted else None
        try:
            response = await self._behind_middleware(request, owner)
            pieces = response.pieces
            return response
        finally:
            if before is not None:
                current.leave(before)
            if owner.counter is not None:
                owner.counter.abandon()
            if owner.after is not None:
                if pieces is None:
                    await owner.after.close()
                else:
                    close_after(pieces, owner.after)

    async def _behind_middleware(self, request: Request, owner: Call) -> Response:
        def endpoint(request: Request) -> Coroutine[Any, Any, Response | Result]:
            if current.is_wanted:
                current.take_up(request)
            return self._dispatch(request, owner)

        def caught(error: BaseException, request: Request) -> Coroutine[Any, Any, Response]:
            return self._caught(error, request, None)

        response = await pass_through(request, self._around_all, endpoint, caught)
        if response.retry and owner.counter is not None:  # a handler has run, whatever middleware makes of it
            return Response.trusted(response.status, response.headers, response.body)
        return self._adopt(response, request, None, owner)

    async def _dispatch(self, call: Call | Request, owner: Call) -> Response | Result:
        """Find the route of a request and answer it; what is left to do after the reply goes to `owner.after`."""
        route = None
        try:
            if not self.is_compiled:
                self._prepare()
            found = self._matcher.find(WEBSOCKET if call.upgrade else call.method, call.tokens)
            if type(found) is not tuple:
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
            if type(response) is Result or type(response) is Response:
                return response
            if isinstance(response, Deferred):
                response = await response.render(call)
            return self._adopt(response, call, route, owner)
        except BaseException as error:  # SystemExit and KeyboardInterrupt of one handler must not stop all others
            return await self._caught(error, call, route)

    async def _around(
        self, route: Route, call: Call | Request, params: dict[str, str], owner: Call
    ) -> Response | Result:
        """Answer on a route that has more than a plan: middleware of routers, dependencies, forms."""
        call = _with_params(call, params)
        if route.finishes and owner.channel is not None:
            owner.channel.finishes = True
        if not route.middleware:
            return await self._execute(route, call, owner)

        async def endpoint(request: Request) -> Response | Result:
            try:
                return await self._execute(route, request, owner)
            except BaseException as error:
                return await self._caught(error, request, route)

        def caught(error: BaseException, request: Request) -> Coroutine[Any, Any, Response]:
            return self._caught(error, request, route)

        response = await pass_through(call.request(), route.middleware, endpoint, caught)
        return self._adopt(response, call, route, owner)

    async def _execute(self, route: Route, call: Call | Request, owner: Call) -> Response | Result:
        """Make the dependencies, call the handler, and clean up what ends with it."""
        recipe, to_response = route.recipe, route.to_response
        assert recipe is not None
        assert to_response is not None
        scope = self._new_scope(owner)
        response: Response | Result | Deferred | None = None
        failure: BaseException | None = None
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    if route.is_whole and (call.more or len(call.body) > self.max_body):
                        await self._read(call)
                    arguments = await recipe.arguments(call, call.params, scope, stack, self._app, self._services)
                    if route.is_async:
                        response = to_response(await route.call(**arguments))
                    else:
                        response = to_response(await self._threads.run(functools.partial(route.call, **arguments)))
                    if isinstance(response, Deferred):
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
        if route is None and not self._not_found and isinstance(error, NoRoute):
            return NoAnswer(status=404)
        if isinstance(error, WebSocketClosed) and call.upgrade:
            return Response.trusted(204, Headers(), b"")  # the client has said goodbye: an end like any other
        executed = route is not None or not isinstance(error, HTTPError) or not error.retry
        handlers = self._error_handlers if route is None or route.on_error is None else route.on_error
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
            if call.method == EVENT:  # nobody may be there to hear of it
                place = "middleware" if route is None else route.place
                logger.warning("%s failed (%s): %s", _words(call, route), place, _reasons(error))
                self.on_failure(error)
            with contextlib.suppress(Exception):
                return problem(error, executed=executed)
        self._log(error, call, route)
        return problem(HandlerFailed("the handler failed; the service's log says why"))

    def _log(self, error: BaseException, call: Call | Request, route: Route | None) -> None:
        place = "middleware" if route is None else route.place
        logger.error("%s failed (%s)", _words(call, route), place, exc_info=error)
        self.on_failure(error)


def _words(call: Call | Request, route: Route | None) -> str:
    """Return what a request is called in the log: by its route, an event by its very subject."""
    if call.method == EVENT:
        return f"{EVENT} {'.'.join(map(decode_token, call.tokens))}"
    return f"{call.method} {call.raw_path if route is None else route.template}"


def _reasons(error: HTTPError) -> str:
    """Return an error in words, with the fields that it refuses."""
    refused = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors or ()]
    return "; ".join([str(error), *refused])


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
