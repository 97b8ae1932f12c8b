"""What a handler returns, as a response or its plain record; what it raises, as problem+json (RFC 9457).

`None` is 204, `Response`, `str` and `bytes` go as they are, everything else is JSON through the validator of
the return annotation, once. The only place that knows the shape of a problem. Knows no requests and no wire.
"""

import abc
from collections.abc import Callable, Mapping
from copy import copy
from types import UnionType
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, Union, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json
from typing_extensions import Unpack

from natsweb.errors import FieldError, HTTPError
from natsweb.headers import Headers, HeaderSource
from natsweb.messages import Call, CookieAttributes, NotExecuted, Request, Response, Result, cookie_line, forgetting

__all__ = [
    "Created",
    "Deferred",
    "Problem",
    "Reply",
    "ToResponse",
    "body_of",
    "compile_json",
    "compile_reply",
    "problem",
    "redirect",
    "union_parts",
]

T = TypeVar("T")

_JSON = Headers({"content-type": "application/json"})
_TEXT = Headers({"content-type": "text/plain; charset=utf-8"})
_OCTETS = {"content-type": "application/octet-stream"}
_BYTES = Headers(_OCTETS)
_PROBLEM = Headers({"content-type": "application/problem+json"})
_NONE = Headers()

#: From a handler's return value to its response.
ToResponse = Callable[[Any], "Response | Result | Deferred"]


class Problem(BaseModel):
    """The body of every error answer (RFC 9457).

    `reason` is a short stable word for programs, `errors` lists the refused fields of a 422.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    reason: str | None = None
    errors: list[FieldError] | None = Field(default=None)


def problem(error: HTTPError, *, executed: bool = True) -> Response:
    """Return the problem+json response of an error; not `executed` makes it safe to send the request again."""
    body = Problem(
        title=error.title,
        status=error.status,
        detail=error.detail or None,
        reason=error.reason,
        errors=error.errors or None,
    )
    kind = Response if executed else NotExecuted
    return kind(
        status=error.status,
        headers=_PROBLEM + Headers(error.headers).without("content-type") if error.headers else _PROBLEM,
        body=body.model_dump_json(exclude_none=True).encode(),
    )


class Deferred(abc.ABC):
    """A return value that becomes a response when the request is known, and with I/O: a file, for example."""

    @abc.abstractmethod
    async def render(self, call: Call | Request) -> Response:
        """Return the response; raises `HTTPError` for an answer that is an error."""


class Reply(Generic[T]):
    """A typed answer with its own status and headers: `-> Reply[Order]`, `return Reply(order, status=202)`.

    The body goes through the same validation and JSON as a bare one. `status` None is the route's.
    """

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: T, *, status: int | None = None, headers: HeaderSource = ()) -> None:
        if status is not None and not 200 <= status <= 599:
            raise ValueError(f"a reply cannot have status {status}; use 200 to 599")
        self.body = body
        self.status = status
        self.headers = Headers(headers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.body!r}, status={self.status})"

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """Return this answer with `headers` added; those of the same name are replaced."""
        found = copy(self)
        found.headers = self.headers.without(*headers) + headers
        return found

    def with_cookie(self, name: str, value: str, **attributes: Unpack[CookieAttributes]) -> Self:
        """Return this answer with a cookie: see `Response.with_cookie`."""
        found = copy(self)
        found.headers = self.headers + {"set-cookie": cookie_line(name, value, **attributes)}
        return found

    def without_cookie(self, name: str, **attributes: Unpack[CookieAttributes]) -> Self:
        """Return this answer with the order to forget a cookie."""
        return self.with_cookie(name, "", **forgetting(name, attributes))


class Created(Reply[T]):
    """201 with the new thing: `return Created(order, location=svc.url_for("show", id=order.id))`."""

    __slots__ = ()

    def __init__(self, body: T, *, location: str | None = None, headers: HeaderSource = ()) -> None:
        super().__init__(body, status=201, headers=headers)
        if location is not None:
            self.headers = self.headers.without("location") + {"location": quote_location(location)}


def redirect(location: str, *, status: int = 307) -> Response:
    """Return a redirect: 307 (same method), 303 (see other, with GET), 308 or 301 (for good), 302.

    `location` is a URL or path, quoted where it has to be. Raises `ValueError` for another status.
    """
    if status not in (301, 302, 303, 307, 308):
        raise ValueError(f"{status} is no redirect; use 307, 303, 308, 301 or 302")
    return Response(status=status, headers={"location": quote_location(location)})


def quote_location(location: str) -> str:
    """Return a URL in printable ASCII; what is escaped already stays as it is."""
    return quote(location, safe=":/%#?=@[]!$&'()*+,;")


def compile_reply(annotation: Any, status: int | None) -> ToResponse:
    """Return the function that turns a handler's return value into its response.

    `annotation` is the resolved return annotation (`Any` if there is none), `status` the route's own, or None
    for 200 and, where nothing is returned, 204. Raises `PydanticUserError` for a type that pydantic
    cannot take, `NameError` for one with a part that is not defined yet.
    """
    annotation = body_of(annotation)
    validate, to_bytes = compile_json(annotation)
    as_they_are = _as_they_are(annotation)
    some, none = status or 200, status or 204

    model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

    def to_response(value: Any) -> Response | Result | Deferred:
        if type(value) is model:  # an instance of the very model is not validated again
            return Result(some, _JSON, to_bytes(value, by_alias=True))
        if isinstance(value, Response):
            has_type = "content-type" in value.headers or not (value.body or value.pieces)
            return value if has_type else value.with_headers(_OCTETS)
        if isinstance(value, Reply):
            return _replied(value, to_response(value.body))
        if isinstance(value, Deferred):
            return value
        if validate is not None:
            value = validate(value)
        kind = type(value)
        if kind not in as_they_are:
            return Result(some, _JSON, to_bytes(value, by_alias=True))
        if value is None:
            return Result(none, _NONE, b"")
        if kind is str:
            return Result(some, _TEXT, value.encode())
        return Result(some, _BYTES, value)

    return to_response


def _replied(reply: "Reply[Any]", response: Response | Result | Deferred) -> Response | Result:
    """Return the response of a reply's body with the reply's own status and headers."""
    if isinstance(response, Deferred):
        raise TypeError(f"{response!r} has its own status and headers; return it without Reply")
    own = response.headers.without(*[name for name, _ in reply.headers]) + reply.headers
    if isinstance(response, Result):
        return Result(reply.status or response.status, own, response.body)
    return response.model_copy(update={"headers": own, "status": reply.status or response.status})


def union_parts(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself.

    Aliases and NewTypes are looked through, and notes where they stand around responses: those are not pydantic's.
    """
    seen, noted = annotation, False
    while True:
        if get_origin(seen) is Annotated:
            seen, noted = get_args(seen)[0], True
        elif type(seen).__name__ == "TypeAliasType":
            seen = seen.__value__
        elif hasattr(seen, "__supertype__"):
            seen = seen.__supertype__
        else:
            break
    members = get_args(seen) if get_origin(seen) in (Union, UnionType) else (seen,)
    if any(_is_response(one) for one in members) or (not noted and (len(members) > 1 or seen in (str, bytes))):
        return members
    return (annotation,)


def _is_response(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Reply | Response | Deferred)


class _Nothing:
    """Stands for a return annotation that leaves nothing for JSON: only responses."""


def body_of(annotation: Any) -> Any:
    """Return what a return annotation says of the body: `Order` for `Reply[Order] | Response`.

    An annotation that allows responses only gives a class that no value fits.
    """
    bodies = []
    for part in union_parts(annotation):
        kind = get_origin(part) or part
        if isinstance(kind, type) and issubclass(kind, Response | Deferred):
            continue
        is_reply = isinstance(kind, type) and issubclass(kind, Reply)
        bodies.append(body_of((get_args(part) or (Any,))[0]) if is_reply else part)
    return Union[tuple(bodies)] if bodies else _Nothing  # noqa: UP007


def compile_json(annotation: Any) -> tuple[Callable[[Any], Any] | None, Callable[..., bytes]]:
    """Return the validator of a type, None for `Any`, and its encoder to JSON."""
    if annotation is Any:
        return None, to_json
    if annotation is _Nothing:
        return _refuse, to_json
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    validate, to_bytes = adapter.validator.validate_python, adapter.serializer.to_json
    if annotation in (str, bytes):
        return lambda value: validate(value, strict=True), to_bytes
    return validate, to_bytes


def _refuse(value: Any) -> Any:
    raise TypeError(f"the handler is annotated to return a Response, and returned {type(value).__name__}")


def _as_they_are(annotation: Any) -> frozenset[type]:
    """Return which of None, str and bytes a return annotation lets through as they are."""
    if annotation is Any:
        return frozenset([type(None), str, bytes])
    if annotation is None:
        return frozenset([type(None)])
    if get_origin(annotation) is Annotated:
        return _as_they_are(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return frozenset(map(type, get_args(annotation))) & {type(None), str, bytes}
    if get_origin(annotation) in (Union, UnionType):
        return frozenset().union(*map(_as_they_are, get_args(annotation)))
    return frozenset([annotation]) & {type(None), str, bytes} if isinstance(annotation, type) else frozenset()
