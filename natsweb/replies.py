"""What a handler returns, as a `Response`; what it raises, as problem+json (RFC 9457).

`None` is 204, `Response`, `str` and `bytes` go as they are, everything else is JSON through the validator of
the return annotation, once. The only place that knows the shape of a problem. Knows no requests and no wire.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json

from natsweb.errors import FieldError, HTTPError
from natsweb.headers import Headers
from natsweb.messages import NotExecuted, Response

__all__ = ["Problem", "ToResponse", "compile_reply", "problem"]

_JSON = Headers({"content-type": "application/json"})
_TEXT = Headers({"content-type": "text/plain; charset=utf-8"})
_BYTES = Headers({"content-type": "application/octet-stream"})
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
        headers=_PROBLEM + error.headers if error.headers else _PROBLEM,
        body=body.model_dump_json(exclude_none=True).encode(),
    )


def compile_reply(annotation: Any, status: int | None) -> ToResponse:
    """Return the function that turns a handler's return value into its response.

    `annotation` is the resolved return annotation (`Any` if there is none), `status` the route's own, or None
    for 200 and, where nothing is returned, 204. Raises `PydanticUserError` for a type that pydantic
    cannot take.
    """
    dump = _compile_dump(annotation)
    some, none = status or 200, status or 204

    def to_response(value: Any) -> Response:
        kind = type(value)
        if isinstance(value, Response):
            return value
        if value is None:
            return Response(status=none, headers=_NONE)
        if kind is str:
            return Response(status=some, headers=_TEXT, body=value.encode())
        if kind is bytes:
            return Response(status=some, headers=_BYTES, body=value)
        return Response(status=some, headers=_JSON, body=dump(value))

    return to_response


def _compile_dump(annotation: Any) -> Callable[[Any], bytes]:
    """Return a serialiser to JSON bytes: values are validated unless they are instances of the very model."""
    if annotation in (Any, None, type(None), Response, str, bytes):
        return to_json
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    validate, to_bytes = adapter.validator.validate_python, adapter.serializer.to_json
    model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

    def dump(value: Any) -> bytes:
        return to_bytes(value if type(value) is model else validate(value), by_alias=True)

    return dump
