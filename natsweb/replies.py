"""What a handler returns, as a `Response`; what it raises, as problem+json (RFC 9457).

`None` is 204, `Response`, `str` and `bytes` go as they are, everything else is JSON through the validator of
the return annotation, once. The only place that knows the shape of a problem. Knows no requests and no wire.
"""

from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json

from natsweb.errors import FieldError, HTTPError
from natsweb.headers import Headers
from natsweb.messages import NotExecuted, Response

__all__ = ["Problem", "ToResponse", "compile_reply", "problem"]

_JSON = Headers({"content-type": "application/json"})
_TEXT = Headers({"content-type": "text/plain; charset=utf-8"})
_OCTETS = {"content-type": "application/octet-stream"}
_BYTES = Headers(_OCTETS)
_PROBLEM = Headers({"content-type": "application/problem+json"})
_NONE = Headers()

#: From a handler's return value to its response.
ToResponse = Callable[[Any], Response]


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


def compile_reply(annotation: Any, status: int | None) -> ToResponse:
    """Return the function that turns a handler's return value into its response.

    `annotation` is the resolved return annotation (`Any` if there is none), `status` the route's own, or None
    for 200 and, where nothing is returned, 204. Raises `PydanticUserError` for a type that pydantic
    cannot take, `NameError` for one with a part that is not defined yet.
    """
    validate, to_bytes = _compile_json(annotation)
    as_they_are = _as_they_are(annotation)
    some, none = status or 200, status or 204

    model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

    def to_response(value: Any) -> Response:
        if type(value) is model and model is not Response:  # an instance of the very model is not validated again
            return Response.trusted(some, _JSON, to_bytes(value, by_alias=True))
        if isinstance(value, Response):
            return value if not value.body or "content-type" in value.headers else value.with_headers(_OCTETS)
        if validate is not None:
            value = validate(value)
        kind = type(value)
        if kind not in as_they_are:
            return Response.trusted(some, _JSON, to_bytes(value, by_alias=True))
        if value is None:
            return Response.trusted(none, _NONE, b"")
        if kind is str:
            return Response.trusted(some, _TEXT, value.encode())
        return Response.trusted(some, _BYTES, value)

    return to_response


def _compile_json(annotation: Any) -> tuple[Callable[[Any], Any] | None, Callable[..., bytes]]:
    """Return a validator and a serialiser to JSON bytes."""
    if annotation is Any:
        return None, to_json
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    if not adapter.pydantic_complete:
        adapter.rebuild(raise_errors=True)
    validate, to_bytes = adapter.validator.validate_python, adapter.serializer.to_json
    if annotation in (str, bytes):
        return lambda value: validate(value, strict=True), to_bytes
    return validate, to_bytes


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
