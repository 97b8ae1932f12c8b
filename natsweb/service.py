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
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from pydantic import PydanticUserError

from natsweb.binding import Place, Plan, check_names, compile_plan, resolve_hints
from natsweb.errors import DeclarationError, HandlerFailed, HTTPError, SettingsError
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
    """One declared handler: its template, methods and the function itself.

    `frame` is where it was declared, kept until all names in its annotations are found.
    """

    template: Template
    methods: tuple[str, ...]
    function: Callable[..., Any]
    status: int | None
    where: Place
    frame: FrameType | None
    is_async: bool = False
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
        hints = resolve_hints(self.function, {} if self.frame is None else self.frame.f_locals)
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
        self.frame = None


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
        if queue is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", queue):
            raise DeclarationError(
                f"{queue!r} cannot be a queue group",
                where=_caller_line(2),
                fix="use letters, digits, '.', '-' and '_', or leave it out: it is the service's name then",
            )
        if threads is not None and threads < 1:
            raise DeclarationError("a service needs one thread at least", where=_caller_line(2), fix="threads=1")
        try:
            self.root = check_root(root)
        except SettingsError as error:
            raise DeclarationError(error.what, where=_caller_line(2), fix=error.fix) from None
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
        if not isinstance(path, str):
            raise DeclarationError(
                f"@svc.{word} has no path", where=_caller_line(3), fix=f'write @svc.{word}("/...") above the handler'
            )
        line = f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"

        def declare(function: Callable[P, R]) -> Callable[P, R]:
            signature = _signature(function) if inspect.isroutine(function) else repr(function)
            where = Place(line, f'@svc.{word}("{path}")', signature)
            self._declare(path, methods, function, status, where, frame)
            return function

        return declare

    def _declare(
        self,
        path: str,
        methods: tuple[str, ...],
        function: Callable[..., Any],
        status: int | None,
        where: Place,
        frame: FrameType,
    ) -> None:
        if not inspect.isroutine(function):
            raise DeclarationError(
                f"a handler is a function, and this is a {type(function).__name__}",
                where=where.line,
                fix="wrap it: async def show(...): return await it(...)",
            )
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise DeclarationError(
                "a handler cannot yield its answer", where=str(where), fix="return the whole answer, such as a list"
            )
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
        route = Route(template, methods, function, status, where, frame, inspect.iscoroutinefunction(function))
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
            return problem(error, executed=not error.retry)
        if not isinstance(found, Match):
            return _redirect_or_options(found, call)
        route, params = found
        try:
            plan, to_response = route.plan, route.to_response
            if plan is None or to_response is None:
                self.compile()
                return await self.handle(call)
            if plan.request is not None:
                if isinstance(call, Call):
                    call.params = params
                else:
                    call = call.model_copy(update={"params": params})
            arguments = plan.bind(call, params)
            if route.is_async:
                return to_response(await route.function(**arguments))
            return to_response(await self._in_thread(functools.partial(route.function, **arguments)))
        except BaseException as error:  # SystemExit and KeyboardInterrupt of one handler must not stop all others
            return self._failed(error, f"{call.method} {route.template} failed ({route.place})")

    @staticmethod
    def _failed(error: BaseException, words: str) -> Response:
        """Return the response of what a handler raised; raises it if it is the caller's own cancellation."""
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling()):
            raise error
        if isinstance(error, HTTPError):
            try:
                return problem(error)
            except Exception:
                logger.exception("%s: its error cannot be sent", words)
        else:
            logger.error(words, exc_info=error)
        return problem(HandlerFailed("the handler failed; the service's log says why"))

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Run a plain function in the service's bounded pool, with the caller's context variables."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix=f"natsweb-{self.name}")
        context = contextvars.copy_context()
        value, error = await asyncio.get_running_loop().run_in_executor(
            self._pool, lambda: context.run(lambda: _outcome(call))
        )
        if error is not None:
            raise error
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


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what a call gives and what it raises: a future carries neither StopIteration nor SystemExit."""
    try:
        return call(), None
    except BaseException as error:
        return None, error


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
    number, part = r"(0|[1-9][0-9]*)", r"[0-9A-Za-z-]+"
    before = rf"(0|[1-9][0-9]*|[0-9]*[A-Za-z-]{part[:-1]}*)"
    core = rf"{number}\.{number}\.{number}"
    return re.fullmatch(rf"{core}(-{before}(\.{before})*)?(\+{part}(\.{part})*)?", version) is not None
