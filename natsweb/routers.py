"""`Router`: handlers, middleware and error handlers that belong together, declared with decorators.

A router holds what was declared and hands each route to whoever includes it, with prefixes and settings added on
the way; a service is the router at the top. Classes work as well: `@get` and its like mark methods, and an instance
is included. This module knows declarations; it calls no handler.
"""

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Literal, ParamSpec, TypeVar, cast

from typing_extensions import TypedDict, Unpack

from natsweb.annotations import Place, line_of, name_of, short_path, signature_of
from natsweb.errors import DeclarationError
from natsweb.events import EventOptions, Listening, parse_subject
from natsweb.messages import Request
from natsweb.middleware import Middleware, check_middleware
from natsweb.params import Depends
from natsweb.paths import Template
from natsweb.routing import WEBSOCKET
from natsweb.wire import EVENT

__all__ = [
    "METHODS",
    "Declared",
    "OnError",
    "RouteOptions",
    "Router",
    "caller_line",
    "check_depends",
    "check_prefix",
    "delete",
    "get",
    "head",
    "on",
    "options",
    "parse_template",
    "patch",
    "post",
    "put",
    "route",
    "websocket",
]

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=Middleware)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MARK = "__natsweb_routes__"

#: `(request, error) -> response`, or an `HTTPError` to answer with.
OnError = Callable[[Request, Any], Any]


class RouteOptions(TypedDict, total=False):
    """What every route decorator takes besides the path.

    `status` is that of a plain return value (200, and 204 for None), `name` what `url_for` knows the route by (the
    function's name), `depends` are called first, for their effect only. With `stream` the body is not read ahead:
    `request.stream()` gives it as it comes. `heartbeat` is after how many seconds without an event a feed shows that
    it is alive (15, 0 for never). When the client has left or the time is up the handler is cancelled, unless
    `on_disconnect` is "finish": then it runs to its end, within the grace when the service stops. The others are for
    documents: `summary` and `description` default to the first paragraph and the rest of the docstring, `responses`
    describes further answers by status.
    """

    status: int
    name: str
    depends: Sequence[Depends]
    stream: bool
    heartbeat: float
    on_disconnect: Literal["cancel", "finish"]
    tags: Sequence[str]
    summary: str
    description: str
    deprecated: bool
    include_in_schema: bool
    operation_id: str
    responses: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Declared:
    """A handler as it was declared: path, methods, function, options, and the routers around it, the outermost first.

    `frames` are where names in its annotations are looked up besides its module. `own` are the captures of its own
    path, without those of prefixes. A handler of events has `listening`, and its subject as path.
    """

    path: str
    methods: tuple[str, ...]
    function: Callable[..., Any]
    where: Place
    frames: tuple[FrameType, ...] = field(repr=False)
    options: RouteOptions
    own: tuple[str, ...] = ()
    routers: tuple["Router", ...] = ()
    listening: Listening | None = None


class Router:
    """Routes below a prefix that share tags, dependencies, middleware and error handlers.

    `prefix` starts with `/` and may have captures, `tags` are added to those of each route, `depends` are called
    before each handler, `middleware` stands around each, the first outermost.
    Raises `DeclarationError` for a prefix that cannot be one.
    """

    _word = "router"

    def __init__(
        self,
        prefix: str = "",
        *,
        tags: Sequence[str] = (),
        depends: Sequence[Depends] = (),
        middleware: Sequence[Middleware] = (),
    ) -> None:
        check_prefix(prefix, caller_line(2))
        check_depends(depends, caller_line(2))
        self._parents: list[Router] = []
        self.prefix = prefix
        self.tags = list(tags)
        self.depends = list(depends)
        self.around: list[Middleware] = []
        for one in middleware:
            self.middleware(one)
        self.error_handlers: dict[type[Exception], OnError] = {}
        self._declared: list[Declared] = []
        self._included: list[Router] = []
        self._takers: list[Callable[[Declared], None]] = []

    def __repr__(self) -> str:
        return f"<Router {self.prefix or '/'}: {len(self._declared)} routes>"

    # ── routes ──

    def get(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for GET (and HEAD, unless that has its own)."""
        return self._decorator("get", path, ("GET",), options)

    def post(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for POST."""
        return self._decorator("post", path, ("POST",), options)

    def put(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for PUT."""
        return self._decorator("put", path, ("PUT",), options)

    def patch(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for PATCH."""
        return self._decorator("patch", path, ("PATCH",), options)

    def delete(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for DELETE."""
        return self._decorator("delete", path, ("DELETE",), options)

    def head(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for HEAD; without one, GET's answers."""
        return self._decorator("head", path, ("HEAD",), options)

    def options(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for OPTIONS; without one, the service answers with `Allow`."""
        return self._decorator("options", path, ("OPTIONS",), options)

    def route(
        self, path: str = "", *, methods: Iterable[str], **options: Unpack[RouteOptions]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for several methods."""
        return self._decorator("route", path, _upper(methods), options)

    def websocket(self, path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for WebSockets: `async def chat(ws: WebSocket, room: str)`."""
        return self._decorator("websocket", path, (WEBSOCKET,), options)

    def on(self, subject: str, **options: Unpack[EventOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare a handler for NATS events: `@svc.on("orders.<id>.created")`, whoever publishes them.

        The subject is a NATS subject as it stands, without the service's root and prefixes of routers. What the handler
        returns is the reply to a message that wants one. An event is delivered at most once.
        """
        return self._decorator("on", subject, (EVENT,), *_split(options, caller_line(2)))

    def _decorator(
        self,
        word: str,
        path: str,
        methods: tuple[str, ...],
        options: RouteOptions,
        listening: Listening | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        mark = replace(_Mark.of(f"@{self._word}.{word}", path, methods, options), listening=listening)
        if listening is None:
            _check_path(mark, self.prefix)

        def declare(function: Callable[P, R]) -> Callable[P, R]:
            self._declare(mark.declared(function))
            return function

        return declare

    def _declare(self, declared: Declared) -> None:
        """Take a route, and hand it on to all that have included this router."""
        prefix = self.prefix if declared.listening is None else ""
        declared = replace(declared, path=prefix + declared.path, routers=(self, *declared.routers))
        for take in self._takers:
            take(declared)
        self._declared.append(declared)

    def include(self, what: "Router | object", *, prefix: str = "", tags: Sequence[str] = ()) -> None:
        """Take in all routes of a router, or of an object whose methods carry `@get` and its like.

        Routes that the router declares later are taken in as well. Raises `DeclarationError` for an object without
        routes, and for a router that would include itself.
        """
        where = caller_line(2)
        check_prefix(prefix, where)
        inner = Router(prefix, tags=tags)
        if isinstance(what, Router):
            if what is self or what.includes(self):
                raise DeclarationError(f"{what!r} would include itself", where=where, fix="include it in another one")
            if what._word != "router":
                raise DeclarationError(
                    f"{what!r} is a service of its own", where=where, fix="include a Router, or serve both services"
                )
            self._included.append(what)
            if prefix or tags:
                inner._take_from(what)
                self._take_from(inner)
            else:
                self._take_from(what)
            return
        marked = list(_marked(what))
        if not marked:
            raise DeclarationError(
                f"{what!r} has no routes",
                where=where,
                fix="include a Router, or an object (not its class) whose methods carry @get, @post, ...",
            )
        for mark, method in marked:
            inner._declare(mark.declared(method))
        self._take_from(inner)

    def includes(self, other: "Router") -> bool:
        """Tell whether `other` is among the routers in this one."""
        return any(one is other or one.includes(other) for one in self._included)

    def _take_from(self, inner: "Router") -> None:
        for declared in inner._declared:
            self._declare(declared)
        inner._takers.append(self._declare)
        inner._parents.append(self)

    def _touch(self) -> None:
        """Tell all around that something has changed."""
        for parent in self._parents:
            parent._touch()

    # ── around handlers ──

    def middleware(self, function: M) -> M:
        """Put `async def m(request, call_next) -> Response` around the handlers; the first one is the outermost."""
        check_middleware(function)
        self.around.append(function)
        self._touch()
        return function

    def on_error(self, *kinds: type[Exception]) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Declare what answers when a handler raises one of `kinds`: `def f(request, error) -> Response | HTTPError`.

        The most specific class decides; for the same class a router comes before what it is included in.
        """
        where = caller_line(2)
        for kind in kinds or (None,):
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise DeclarationError(
                    f"on_error takes classes of exceptions, not {kind!r}",
                    where=where,
                    fix="write on_error(OrderNotFound); the errors of natsweb itself are in natsweb.errors",
                )

        def declare(function: Callable[P, R]) -> Callable[P, R]:
            try:
                inspect.signature(function).bind(None, None)
            except TypeError:
                raise DeclarationError(
                    f"error handler {name_of(function)} does not take two arguments",
                    where=f"{line_of(function)}  {signature_of(function)}",
                    fix=f"write: def {name_of(function)}(request: Request, error: {kinds[0].__name__})",
                ) from None
            for kind in kinds:
                self.error_handlers[kind] = cast(OnError, function)
            self._touch()
            return function

        return declare


# ── classes whose methods are handlers ───────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Mark:
    """What one decorator says."""

    decorator: str
    path: str
    methods: tuple[str, ...]
    options: RouteOptions
    line: str
    frames: tuple[FrameType, ...] = field(repr=False)
    listening: Listening | None = None

    @classmethod
    def of(cls, decorator: str, path: str, methods: tuple[str, ...], options: RouteOptions) -> "_Mark":
        """Return the mark of the decorator that stands two calls up; frames of modules are not kept."""
        frame = sys._getframe(3)
        line = f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}"
        frames = [one for one in (frame.f_back, frame) if one is not None and one.f_code.co_name != "<module>"]
        local = tuple(frames) if frame.f_code.co_name != "<module>" else ()
        return cls(decorator, path, methods, options, line, local)

    def declared(self, function: Callable[..., Any]) -> Declared:
        """Return the route of `function`; raises `DeclarationError` for anything that cannot be one."""
        signature = signature_of(function) if inspect.isroutine(function) else repr(function)
        where = Place(self.line, f'{self.decorator}("{self.path}")', signature)
        _check_function(function, where)
        if self.listening is None:
            _check_options(self.methods, self.options, where)
            template = parse_template(self.path or "/", str(where))
        else:
            check_depends(self.options.get("depends", ()), str(where))
            template = parse_subject(self.path, str(where))
        own = tuple(template.names)
        return Declared(
            self.path, self.methods, function, where, self.frames, self.options, own, listening=self.listening
        )


def _marker(
    word: str, path: str, methods: tuple[str, ...], options: RouteOptions, listening: Listening | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    mark = replace(_Mark.of(f"@{word}", path, methods, options), listening=listening)
    if listening is None:
        _check_path(mark, "")

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        setattr(function, _MARK, (*getattr(function, _MARK, ()), mark))
        return function

    return declare


def get(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for GET; `svc.include(Orders(repo))` serves it."""
    return _marker("get", path, ("GET",), options)


def post(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for POST."""
    return _marker("post", path, ("POST",), options)


def put(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for PUT."""
    return _marker("put", path, ("PUT",), options)


def patch(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for PATCH."""
    return _marker("patch", path, ("PATCH",), options)


def delete(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for DELETE."""
    return _marker("delete", path, ("DELETE",), options)


def head(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for HEAD."""
    return _marker("head", path, ("HEAD",), options)


def options(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for OPTIONS."""
    return _marker("options", path, ("OPTIONS",), options)


def route(
    path: str = "", *, methods: Iterable[str], **options: Unpack[RouteOptions]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for several methods."""
    return _marker("route", path, _upper(methods), options)


def websocket(path: str = "", **options: Unpack[RouteOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for WebSockets."""
    return _marker("websocket", path, (WEBSOCKET,), options)


def on(subject: str, **options: Unpack[EventOptions]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a method as handler for NATS events: see `Router.on`."""
    return _marker("on", subject, (EVENT,), *_split(options, caller_line(2)))


def _split(options: EventOptions, where: str) -> tuple[RouteOptions, Listening]:
    """Return what the options of an event handler say of its route, and how it listens."""
    own = {name: value for name, value in options.items() if name in ("name", "depends")}
    return cast(RouteOptions, own), Listening.of(options, where)


def _marked(instance: object) -> Iterator[tuple[_Mark, Callable[..., Any]]]:
    """Yield the marks of an object's methods, those of base classes first, in the order of their declaration."""
    if isinstance(instance, type):
        return
    names = dict.fromkeys(name for kind in reversed(type(instance).__mro__) for name in vars(kind))
    for name in names:
        value = vars(next(kind for kind in type(instance).__mro__ if name in vars(kind)))[name]
        marks = _marks_of(value)
        if not marks and value is not None:  # None takes a handler away on purpose
            _check_overridden(instance, name, value)
        for mark in marks:
            yield mark, getattr(instance, name)


def _marks_of(value: Any) -> tuple[_Mark, ...]:
    marks: tuple[_Mark, ...] = getattr(value, _MARK, ()) or getattr(getattr(value, "__func__", None), _MARK, ())
    return marks


def _check_overridden(instance: object, name: str, value: Any) -> None:
    """Raise `DeclarationError` for a method that hides one with a route, and has none itself."""
    for kind in type(instance).__mro__[1:]:
        if marks := _marks_of(vars(kind).get(name)):
            raise DeclarationError(
                f"{type(instance).__name__}.{name} hides a handler of {kind.__name__} and is none itself",
                where=[f"{marks[0].line}  {marks[0].decorator}", line_of(value)],
                fix=f"put {marks[0].decorator}(...) above it as well, or give it another name",
            )


# ── checks ───────────────────────────────────────────────────────────────────────────────────────


def caller_line(depth: int) -> str:
    """Return where the function `depth` calls up stands: `app.py:14`."""
    frame = sys._getframe(depth)
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno}"


def _upper(methods: Iterable[str]) -> tuple[str, ...]:
    return tuple(method.upper() for method in ([methods] if isinstance(methods, str) else methods))


def parse_template(path: str, where: str) -> Template:
    """Return a path template; raises `DeclarationError` that says where it stands."""
    try:
        return Template.parse(path)
    except DeclarationError as error:
        raise DeclarationError(error.what, where=where, fix=error.fix) from None


def check_prefix(prefix: str, where: str) -> None:
    """Raise `DeclarationError` unless `prefix` is empty, or begins with `/` and does not end with one."""
    if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
        raise DeclarationError(
            f"{prefix!r} cannot be a prefix",
            where=where,
            fix=f"write {'/' + prefix.strip('/')!r}" if prefix.strip("/") else "leave it out for '/'",
        )
    if prefix:
        parse_template(prefix, where)


def _check_path(mark: _Mark, prefix: str) -> None:
    if not isinstance(mark.path, str) or (not mark.path and not prefix and mark.decorator.startswith("@svc")):
        raise DeclarationError(
            f"{mark.decorator} has no path", where=mark.line, fix=f'write {mark.decorator}("/...") above the handler'
        )


def _check_function(function: Callable[..., Any], where: Place) -> None:
    if not inspect.isroutine(function):
        raise DeclarationError(
            f"a handler is a function, and this is a {type(function).__name__}",
            where=where.line,
            fix="wrap it: async def show(...): return await it(...)",
        )


def _check_options(methods: tuple[str, ...], options: RouteOptions, where: Place) -> None:
    if not methods:
        raise DeclarationError("a route needs a method", where=str(where), fix='methods=["GET"]')
    if unknown := [method for method in methods if method not in (*METHODS, WEBSOCKET)]:
        raise DeclarationError(
            f"{unknown[0]!r} is not a method that a route can take",
            where=str(where),
            fix=f"use one or more of {', '.join(METHODS)}",
        )
    known = RouteOptions.__annotations__
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise DeclarationError(
                f"a route has no option {name!r}",
                where=str(where),
                fix=f"did you mean {close[0]}=?" if close else f"it takes {', '.join(known)}",
            )
    if options.get("on_disconnect", "cancel") not in ("cancel", "finish"):
        raise DeclarationError(
            f"on_disconnect={options.get('on_disconnect')!r} is neither of what a handler can do",
            where=str(where),
            fix='write on_disconnect="finish", or leave it out: the handler is cancelled then',
        )
    status = options.get("status")
    if status is not None and not 200 <= status <= 599:
        raise DeclarationError(f"a reply cannot have status {status}", where=str(where), fix="use 200 to 599")
    heartbeat = options.get("heartbeat", 0.0)
    if not 0 <= heartbeat < math.inf:
        raise DeclarationError(
            f"a feed cannot have a heartbeat of {heartbeat!r}", where=str(where), fix="say seconds, or 0 for none"
        )
    check_depends(options.get("depends", ()), str(where))


def check_depends(depends: Sequence[Any], where: str) -> None:
    """Raise `DeclarationError` unless all of `depends` can be called for their effect."""
    for one in depends:
        if not isinstance(one, Depends) or one.resolve(Any) is None:
            raise DeclarationError(
                f"{one!r} is no dependency",
                where=where,
                fix="write depends=[Depends(require_login)], or [Auth(scheme)]",
            )
