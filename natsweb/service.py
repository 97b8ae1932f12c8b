"""`Service`: typed handlers declared with decorators, behind one router.

Declaring compiles: path, signature and return type of a handler are checked when its decorator runs. Serving
looks up: route, bind, call, turn the value into a response; whatever goes wrong becomes an error response. The
service knows no NATS and no HTTP server: `handle` is all that the worker, a test or an ASGI door needs.
"""

import asyncio
import contextvars
import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from pydantic import PydanticUserError

from natsweb.binding import Place, Plan, check_names, compile_plan, resolve_hints
from natsweb.errors import DeclarationError, HandlerFailed, HTTPError
from natsweb.messages import Call, Request, Response
from natsweb.paths import Template
from natsweb.replies import ToResponse, compile_reply, problem
from natsweb.routing import Match, Options, Router
from natsweb.subjects import check_root, minimal_cover

__all__ = ["Route", "Service"]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("natsweb.service")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(slots=True)
class Route:
    """One declared handler: its template, methods and the function itself."""

    template: Template
    methods: tuple[str, ...]
    function: Callable[..., Any]
    status: int | None
    where: Place
    names: Mapping[str, Any]
    plan: Plan | None = None
    to_response: ToResponse | None = None

    @property
    def place(self) -> str:
        """Where the handler was declared, for messages."""
        return f"{self.where.line} {self.function.__name__}"

    def compile(self) -> None:
        """Compile plan and reply, once.

        Raises `NameError` for an annotation that names something unknown, `DeclarationError` for one that cannot work.
        """
        if self.plan is not None:
            return
        hints = resolve_hints(self.function, self.names)
        plan = compile_plan(self.function, hints, self.template, self.where)
        try:
            self.to_response = compile_reply(plan.returns, self.status)
        except PydanticUserError as error:
            raise DeclarationError(
                f"the return type is none that pydantic can take: {error.message.splitlines()[0]}",
                where=str(self.where),
                fix="return a model, a dataclass, a TypedDict, a standard type, or a Response",
            ) from None
        self.plan = plan
        self.names = {}


class Service:
    """A set of typed HTTP handlers that is served over NATS.

    `name` is the service's name in NATS (letters, digits, `-`, `_`), `version` its SemVer, `root` the subject
    that stands for `/`, `queue` the queue group that its instances share (default: the name), `threads` how
    many plain `def` handlers run at once (default: 5 per core, 32 at most).

    Raises `DeclarationError` for a name or version that NATS micro services do not allow (ADR-32).
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "0.0.0",
        root: str = "api",
        queue: str | None = None,
        description: str = "",
        threads: int | None = None,
    ) -> None:
        if not name or not all(char.isascii() and (char.isalnum() or char in "-_") for char in name):
            raise DeclarationError(
                f"{name!r} cannot be the name of a service",
                where=_caller_line(2),
                fix="use letters, digits, '-' and '_', such as Service(\"orders\")",
            )
        if not _is_semver(version):
            raise DeclarationError(
                f"{version!r} is not a semantic version", where=_caller_line(2), fix='write it as "1.2.3"'
            )
        self.name = name
        self.version = version
        self.root = check_root(root)
        self.queue = queue or name
        self.description = description
        self.threads = threads or min(32, 5 * (os.cpu_count() or 1))
        self._router: Router[Route] = Router()
        self._pool: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"<Service {self.name} {self.version}: {len(self.routes)} routes below {self.root}>"

    # ── declaring ──

    @property
    def routes(self) -> list[Route]:
        """All declared routes, in the order of their declaration."""
        return list(self._router.endpoints)

    def get(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for GET (and HEAD, unless that has its own)."""
        return self._decorator("get", path, ("GET",), status)

    def post(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for POST."""
        return self._decorator("post", path, ("POST",), status)

    def put(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for PUT."""
        return self._decorator("put", path, ("PUT",), status)

    def patch(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for PATCH."""
        return self._decorator("patch", path, ("PATCH",), status)

    def delete(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for DELETE."""
        return self._decorator("delete", path, ("DELETE",), status)

    def head(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for HEAD; without one, GET's answers."""
        return self._decorator("head", path, ("HEAD",), status)

    def options(self, path: str, *, status: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for OPTIONS; without one, the service answers with `Allow`."""
        return self._decorator("options", path, ("OPTIONS",), status)

    def route(
        self, path: str, *, methods: Iterable[str], status: int | None = None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for several methods."""
        if isinstance(methods, str):
            methods = [methods]
        return self._decorator("route", path, tuple(method.upper() for method in methods), status)

    def _decorator(
        self, word: str, path: str, methods: tuple[str, ...], status: int | None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        frame = sys._getframe(2)
        names, line = frame.f_locals, f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"

        def declare(function: Callable[P, R]) -> Callable[P, R]:
            where = Place(line, f'@svc.{word}("{path}")', _signature(function))
            self._declare(path, methods, function, status, where, names)
            return function

        return declare

    def _declare(
        self,
        path: str,
        methods: tuple[str, ...],
        function: Callable[..., Any],
        status: int | None,
        where: Place,
        names: Mapping[str, Any],
    ) -> None:
        if unknown := [method for method in methods if method not in _METHODS]:
            raise DeclarationError(
                f"{unknown[0]!r} is not a method that a route can take",
                where=str(where),
                fix=f"use one or more of {', '.join(_METHODS)}",
            )
        if status is not None and not 200 <= status <= 599:
            raise DeclarationError(f"a reply cannot have status {status}", where=str(where), fix="use 200 to 599")
        try:
            template = Template.parse(path)
        except DeclarationError as error:
            raise DeclarationError(error.what, where=str(where), fix=error.fix) from None
        check_names(template, inspect.signature(function).parameters, where)
        route = Route(template, methods, function, status, where, names)
        try:
            route.compile()
        except NameError:
            pass  # a name that is defined further down: `compile` tries again when the module is whole
        self._router.add(route)

    def compile(self) -> None:
        """Finish what the decorators could not, since a type was not defined yet.

        Raises `DeclarationError` that names the type which is still missing.
        """
        for route in self._router.endpoints:
            try:
                route.compile()
            except NameError as error:
                raise DeclarationError(
                    f"the annotation {error.name!r} names nothing",
                    where=str(route.where),
                    fix=f"import or define {error.name} in that module, not under TYPE_CHECKING",
                ) from None

    def patterns(self, root: str | None = None) -> list[str]:
        """Return the minimal cover of the routes' subject patterns below `root` (default: the service's own)."""
        base = self.root if root is None else check_root(root)
        return minimal_cover(route.template.pattern(base) for route in self._router.endpoints)

    # ── serving ──

    async def handle(self, call: Call | Request) -> Response:
        """Answer one request; errors are responses (problem+json), the traceback of a failing handler is logged.

        The one thing that gets out is `asyncio.CancelledError`, of whoever cancels this call.
        """
        try:
            found = self._router.find(call.method, call.tokens)
        except HTTPError as error:
            return problem(error, executed=False)
        if not isinstance(found, Match):
            return _redirect_or_options(found, call)
        route, params = found
        try:
            value = await self._call(route, call, params)
            to_response = route.to_response
            assert to_response is not None
            return to_response(value)
        except HTTPError as error:
            return problem(error)
        except asyncio.CancelledError:
            raise
        except BaseException:  # SystemExit and KeyboardInterrupt of one handler must not stop all others
            logger.exception("%s %s failed (%s)", call.method, route.template, route.place)
            return problem(HandlerFailed("the handler failed; the service's log says why"))

    async def _call(self, route: Route, call: Call | Request, params: dict[str, str]) -> Any:
        if route.plan is None:
            self.compile()
        plan = route.plan
        assert plan is not None
        if plan.request is not None and isinstance(call, Call):
            call.params = params
        arguments = plan.bind(call, params)
        if inspect.iscoroutinefunction(route.function):
            return await route.function(**arguments)
        return await self._in_thread(functools.partial(route.function, **arguments))

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Run a plain function in the service's bounded pool, with the caller's context variables."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=f"natsweb-{self.name}")
        context = contextvars.copy_context()
        value = await asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)
        return await value if inspect.isawaitable(value) else value

    def close(self) -> None:
        """Let go of the thread pool; what has not started in it is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def run(self, *, nats: str | None = None, root: str | None = None) -> None:
        """Serve until SIGTERM or Ctrl-C: what `natsweb run` does with this service.

        `nats` is a server URL (default: as the command line finds it), `root` overrides the service's own.
        """
        # The command line stands above the service; it is loaded by name so that the arrow stays one-way.
        importlib.import_module("natsweb.cli.run").serve_here([self], nats=nats, root=root)


def _redirect_or_options(found: Any, call: Call | Request) -> Response:
    if isinstance(found, Options):
        return Response(status=204, headers={"allow": ", ".join(found.allow)})
    # Relative, so that it holds behind any prefix, and can never be taken for `//another.host`.
    location = f"../{found.tokens[-1]}" + (f"?{call.query}" if call.query else "")
    return Response(status=308, headers={"location": location, "cache-control": "no-store"})


# ── places ───────────────────────────────────────────────────────────────────────────────────────


def _short(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _caller_line(depth: int) -> str:
    frame = sys._getframe(depth)
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


def _signature(function: Callable[..., Any]) -> str:
    word = "async def" if inspect.iscoroutinefunction(function) else "def"
    arguments = ", ".join(str(parameter) for parameter in inspect.signature(function).parameters.values())
    return f"{word} {function.__name__}({arguments})"


def _is_semver(version: str) -> bool:
    core = version.partition("+")[0].partition("-")[0].split(".")
    return len(core) == 3 and all(part.isdigit() and (part == "0" or part[0] != "0") for part in core)
