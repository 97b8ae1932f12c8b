"""A response: `Response`, whole, and `StreamingResponse`, whose body comes in pieces.

Knows values; it knows no requests and no wire.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from typing_extensions import Unpack

from natsweb.headers import Headers, HeaderSource
from natsweb.messages.bodies import MODEL, Body
from natsweb.messages.fields import CookieAttributes, cookie_line, forgetting

__all__ = ["NoAnswer", "NotExecuted", "Pieces", "Response", "Result", "StreamingResponse"]


_RESPONSE_FIELDS = {"status", "headers", "body"}  # shared by all trusted ones; copies of them get their own
_set_fields_set = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private = BaseModel.__dict__["__pydantic_private__"].__set__


class Response(BaseModel):
    """An HTTP response: `Response(status=201, body=b"...", headers={"location": "/orders/7"})`.

    `body` takes bytes or text (as UTF-8, and `text/plain` unless `content-type` says otherwise), `headers` a mapping
    or pairs. `content-length` is computed; one
    given here counts only in an answer to HEAD or with status 304.
    """

    model_config = MODEL

    #: Whether the request was surely not executed, so that it may be sent elsewhere: see `NotExecuted`.
    retry: ClassVar[bool] = False

    #: Whether nothing is sent at all: see `NoAnswer`.
    silent: ClassVar[bool] = False

    @property
    def pieces(self) -> "Pieces | None":
        """What comes instead of `body`: see `StreamingResponse`."""
        return None

    status: int = Field(default=200, ge=200, le=599)
    headers: Headers = Headers()
    body: Body = b""

    @model_validator(mode="before")
    @classmethod
    def _text_has_a_type(cls, data: Any, info: ValidationInfo) -> Any:
        """Give a body of text its content type, unless it has one; in JSON, text is base64 and says nothing."""
        if info.mode != "python" or not isinstance(data, dict) or not isinstance(data.get("body"), str):
            return data
        headers = Headers(data.get("headers", ()))
        if "content-type" not in headers:
            data = {**data, "headers": headers + {"content-type": "text/plain; charset=utf-8"}}
        return data

    if TYPE_CHECKING:

        def __init__(self, *, status: int = 200, headers: HeaderSource = ..., body: bytes | str = b"") -> None: ...

    @classmethod
    def trusted(cls, status: int, headers: Headers, body: bytes) -> "Response":
        """Return a response of parts that are known to be right, without validating them again (tests/benchmarks)."""
        self = object.__new__(cls)  # half of what `cls.__new__` takes, which looks through pydantic's classes
        fields: Any = self.__dict__
        fields["status"] = status
        fields["headers"] = headers
        fields["body"] = body
        _set_fields_set(self, _RESPONSE_FIELDS)
        _set_extra(self, None)
        _set_private(self, None)
        return self

    def response(self) -> "Response":
        """Return this response: see `Result.response`."""
        return self

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """Return this response with `headers` added; those of the same name are replaced."""
        return self.model_copy(update={"headers": self.headers.without(*headers) + headers})

    def with_cookie(self, name: str, value: str, **attributes: Unpack[CookieAttributes]) -> Self:
        """Return this response with a cookie (RFC 6265): `with_cookie("sid", token, max_age=3600, secure=True)`.

        Without `max_age` (seconds) it lasts for the browser's session. `path` is `/`, `samesite` "lax"; scripts of the
        page do not see it unless `httponly` is false; `secure` keeps it off plain HTTP. Raises `ValueError` for
        a name that no cookie can have, and a value outside latin-1.
        """
        line = cookie_line(name, value, **attributes)
        return self.model_copy(update={"headers": self.headers + {"set-cookie": line}})

    def without_cookie(self, name: str, **attributes: Unpack[CookieAttributes]) -> Self:
        """Return this response with the order to forget a cookie; `path` and `domain` are those it was set with."""
        return self.with_cookie(name, "", **forgetting(name, attributes))

    @property
    def text(self) -> str:
        """The body as UTF-8 text, with U+FFFD for what is not."""
        return self.body.decode("utf-8", "replace")

    def parse_json(self) -> Any:
        """Return the body as parsed JSON; raises `ValueError` if it is none."""
        return json.loads(self.body)

    def json(self, **options: Any) -> Any:
        """Return the body as parsed JSON: see `parse_json`."""
        return self.parse_json()


@final
class Result:
    """The plain record of a whole answer: attribute for attribute a `Response`, unvalidated and cheap.

    Nearly every answer is one from its handler to the wire (tests/benchmarks); middleware and handlers see responses.
    """

    __slots__ = ("body", "headers", "status")

    retry: ClassVar[bool] = False
    silent: ClassVar[bool] = False
    pieces: ClassVar[None] = None

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def response(self) -> Response:
        """Return the pydantic model of this answer."""
        return Response.trusted(self.status, self.headers, self.body)


class NotExecuted(Response):
    """A response that says, between natsweb's own parts, that no handler has run for the request."""

    retry: ClassVar[bool] = True


class NoAnswer(Response):
    """A response that is not sent: the path is none of this service's, and may be another's."""

    silent: ClassVar[bool] = True


@dataclass(slots=True)
class Pieces:
    """The body of a streamed response: bytes as they come, and what whoever sends them has to know.

    `failed` gives the answer to an error that comes before the first piece. `heartbeat` is what to send after so many
    seconds without any. A `feed` never ends by itself and ends well at any time; anything else that is cut off is
    an error. `close` ends it early.
    """

    source: AsyncIterator[bytes]
    failed: Callable[[BaseException], Awaitable[Response]] | None = None
    heartbeat: tuple[float, bytes] | None = None
    feed: bool = False

    async def close(self) -> None:
        """Let go of the source, whether it was read or not."""
        close = getattr(self.source, "aclose", None)
        if close is not None:
            await close()


class StreamingResponse(Response):
    """A response whose body comes in pieces: `StreamingResponse(rows(), media_type="text/csv")`.

    `content` is an async iterable of bytes, or of text, which is UTF-8; it is read as fast as the client takes it. With
    a `content-length` header the bytes have to be as many. What is raised before the first piece is the answer;
    later it cuts the connection off, so that the client never takes a part for the whole.

    Raises `TypeError` for content that is no async iterable.
    """

    _pieces: Pieces | None = PrivateAttr(default=None)

    def __init__(
        self,
        content: AsyncIterable[bytes] | AsyncIterable[str] | AsyncIterable[bytes | str] | Pieces,
        *,
        status: int = 200,
        headers: HeaderSource = (),
        media_type: str | None = None,
    ) -> None:
        fields = Headers(headers)
        if media_type is not None:
            fields = fields.without("content-type") + {"content-type": media_type}
        BaseModel.__init__(self, status=status, headers=fields)
        if not isinstance(content, Pieces | AsyncIterable):
            raise TypeError(
                f"a streamed body is an async iterable, not {type(content).__name__}: write an async generator, "
                "or return the whole body"
            )
        self._pieces = content if isinstance(content, Pieces) else Pieces(_encoded(content))

    @property
    def pieces(self) -> Pieces | None:
        """The body as it comes."""
        return self._pieces


async def _encoded(content: AsyncIterable[bytes | str]) -> AsyncIterator[bytes]:
    async for piece in content:
        yield piece.encode() if isinstance(piece, str) else piece
