"""`Request` and `Response`: what handlers, middleware and filters see of HTTP, as frozen pydantic models.

Both survive `model_validate_json(model_dump_json())` whatever their body and headers are: bodies go through
JSON as base64, headers as pairs of latin-1 text. `Call` is the plain record that a request travels in until
somebody asks for the model; it has the same attribute names. This module knows values; it knows no wire.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from string import punctuation
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self
from urllib.parse import parse_qsl, quote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from starlette.requests import cookie_parser
from typing_extensions import TypedDict, Unpack

from natsweb.errors import BadPath, TooLarge
from natsweb.headers import Headers, HeaderSource
from natsweb.subjects import decode_token, path_tokens, to_path

__all__ = [
    "After",
    "Call",
    "CallHead",
    "Channel",
    "CookieAttributes",
    "Counts",
    "NoAnswer",
    "NotExecuted",
    "Pieces",
    "Request",
    "Response",
    "Socket",
    "StreamingResponse",
    "cookie_line",
    "forgetting",
    "parse_query",
    "quote_query",
]


def quote_query(query: str | bytes) -> str:
    """Return a query string in printable ASCII: bytes outside of it become `%XX`, all else stays as it is.

    Text counts as UTF-8. Escapes that are there are left alone, so that it may be called twice.
    """
    if query.isascii():
        text = query if isinstance(query, str) else query.decode("ascii")
        if text.isprintable() and " " not in text:
            return text
    return quote(query, safe=punctuation)


def parse_query(query: str) -> dict[str, list[str]]:
    """Return a query string, decoded: every name with its values in order."""
    given: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True) if query else ():
        if name in given:
            given[name].append(value)
        else:
            given[name] = [value]
    return given


def cookies_of(headers: Headers) -> dict[str, str]:
    """Return the cookies of a request by name; of two with one name the last counts."""
    cookies: dict[str, str] = {}
    for line in headers.getlist("cookie"):
        cookies |= cookie_parser(line)
    return cookies


class CookieAttributes(TypedDict, total=False):
    """Attributes of a cookie (RFC 6265); `max_age` is in seconds."""

    max_age: int | None
    path: str
    domain: str | None
    secure: bool
    httponly: bool
    samesite: Literal["lax", "strict", "none"]


def cookie_line(
    name: str,
    value: str,
    *,
    max_age: int | None = None,
    path: str = "/",
    domain: str | None = None,
    secure: bool = False,
    httponly: bool = True,
    samesite: Literal["lax", "strict", "none"] = "lax",
) -> str:
    """Return the value of a `Set-Cookie` field (RFC 6265); raises `ValueError` for what no cookie can carry."""
    for said in (path, domain or ""):
        if any(char in ";," or not char.isprintable() or not char.isascii() for char in said):
            raise ValueError(f"{said!r} cannot be the path or domain of a cookie")
    if samesite not in ("lax", "strict", "none"):
        raise ValueError(f"samesite={samesite!r} is none of lax, strict and none")
    try:
        cookies: SimpleCookie = SimpleCookie({name: value})
    except CookieError as error:
        raise ValueError(f"{name!r} cannot be the name of a cookie: {error}") from None
    morsel = cookies[name]
    if max_age is not None:
        morsel["max-age"] = max_age
    morsel["path"] = path
    if domain is not None:
        morsel["domain"] = domain
    morsel["secure"] = secure or samesite == "none"
    morsel["httponly"] = httponly
    morsel["samesite"] = samesite
    return morsel.OutputString()


def forgetting(name: str, attributes: CookieAttributes) -> CookieAttributes:
    """Return the attributes with which browsers forget a cookie, also one that has to be secure by its name."""
    secure = attributes.get("secure", False) or name.startswith(("__Host-", "__Secure-"))
    return {**attributes, "secure": secure, "max_age": 0}


class After(Protocol):
    """What is left to do for a request when its reply has gone."""

    async def close(self) -> None:
        """Do it; raises nothing but `asyncio.CancelledError`."""
        ...


class Counts(Protocol):
    """Where a request is counted, once its answer is there."""

    def finish(self, nanoseconds: int, status: int) -> None:
        """Count it."""
        ...

    def abandon(self) -> None:
        """Do not count it."""
        ...


class Socket(Protocol):
    """A WebSocket as whoever carries it offers it: whole messages, text or bytes."""

    @property
    def is_accepted(self) -> bool:
        """Whether the upgrade has been answered with 101."""
        ...

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers."""
        ...

    async def accept(self, subprotocol: str | None = None, headers: HeaderSource = ()) -> None:
        """Answer the upgrade."""

    async def receive(self) -> str | bytes:
        """Return the next message; raises `WebSocketClosed`."""
        ...

    async def send(self, data: str | bytes) -> None:
        """Send a message, when the other side has room for it; raises `WebSocketClosed`."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye (RFC 6455 section 7.4); never raises."""


class Channel(Protocol):
    """What stands behind a request while it is under way: the rest of its body, its time, its WebSocket."""

    #: Whether the handler runs to its end even if nobody waits for it any more.
    finishes: bool

    @property
    def socket(self) -> Socket | None:
        """The WebSocket, if that is what the request asks for."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the rest of the body as it comes, once; raises `Disconnected` if it is cut off."""
        ...

    def extend(self, seconds: float) -> None:
        """Have the answer due `seconds` from now, here and at the caller."""


class CallHead(NamedTuple):
    """What of a `Call` is the same for a client's next one: all but path, body and the two times."""

    method: str
    query: str
    headers: Headers
    client: str | None
    scheme: str
    service: str | None
    window: int
    more: bool
    upgrade: bool


class Call:
    """A request as it came off the wire: attribute for attribute a `Request`, unvalidated and cheap.

    `tokens` are the canonical subject tokens of the path, `headers` field lines that are well-formed,
    `timeout` the seconds left until the answer is due, `sent` the sender's clock in unix ms or None. With `more`,
    `body` is the first part of it and the rest comes through `channel`. `window` is how many bytes of a streamed
    answer the caller takes at first, 0 if it takes one message only; `upgrade` tells that it asks for a WebSocket.
    Whoever made the call counts it in `counter`, which is its route's, and closes `after` when the last byte of the
    reply has gone.
    """

    channel: Channel | None = None
    root_path = ""
    after: "After | None" = None
    counter: "Counts | None" = None

    def __init__(
        self,
        method: str,
        tokens: list[str],
        query: str = "",
        headers: Headers | None = None,
        body: bytes = b"",
        *,
        client: str | None = None,
        scheme: str = "http",
        timeout: float | None = None,
        sent: int | None = None,
        service: str | None = None,
        window: int = 0,
        more: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.tokens = tokens
        self.query = query
        self.headers = Headers() if headers is None else headers
        self.body = body
        self.client = client
        self.scheme = scheme
        self.timeout = timeout
        self.sent = sent
        self.service = service
        self.window = window
        self.more = more
        self.upgrade = upgrade
        self.params: dict[str, str] = {}

    @classmethod
    def repeated(cls, head: CallHead, tokens: list[str], body: bytes, timeout: float, sent: int) -> Self:
        """Return a call whose head has come before."""
        call = cls.__new__(cls)
        (
            call.method,
            call.query,
            call.headers,
            call.client,
            call.scheme,
            call.service,
            call.window,
            call.more,
            call.upgrade,
        ) = head
        call.tokens, call.body, call.timeout, call.sent, call.params = tokens, body, timeout, sent, {}
        return call

    @property
    def head(self) -> CallHead:
        """What a client's requests have in common."""
        return CallHead(
            self.method,
            self.query,
            self.headers,
            self.client,
            self.scheme,
            self.service,
            self.window,
            self.more,
            self.upgrade,
        )

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the request, by name."""
        return cookies_of(self.headers)

    @property
    def raw_path(self) -> str:
        """The canonical path, percent-encoded."""
        return to_path(self.tokens)

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it comes: what is here, and then the rest; once."""
        return _chunks(self.body, self.channel if self.more else None)

    async def read(self, limit: int) -> bytes:
        """Return the whole body, which stays; raises `TooLarge` for more than `limit` bytes."""
        if self.more:
            self.body = await _read(self.chunks(), limit)
            self.more = False
        return self.body

    def request(self) -> "Request":
        """Return the pydantic model of this call."""
        request = Request(
            method=self.method,
            raw_path=self.raw_path,
            query=self.query,
            headers=self.headers,
            body=self.body,
            client=self.client,
            scheme=self.scheme,
            timeout=self.timeout,
            root_path=self.root_path,
            params=self.params,
        )
        request._call = self
        if self.more:
            fields: Any = request.__dict__
            del fields["body"]  # which is not whole: see `Request.__getattr__`
        return request


async def _chunks(first: bytes, rest: Channel | None) -> AsyncIterator[bytes]:
    if first:
        yield first
    if rest is not None:
        async with aclosing(rest.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk


async def _read(chunks: AsyncIterator[bytes], limit: int) -> bytes:
    found = bytearray()
    async for chunk in chunks:
        found += chunk
        if len(found) > limit:
            raise TooLarge(f"the request body is too large: this route takes at most {limit} bytes of it")
    return bytes(found)


def _text_to_bytes(body: Any, info: ValidationInfo) -> Any:
    """Take text from Python as UTF-8; in JSON, text is base64."""
    return body.encode() if isinstance(body, str) and info.mode == "python" else body


Body = Annotated[bytes, BeforeValidator(_text_to_bytes)]

_MODEL = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Request(BaseModel):
    """An HTTP request as a handler, middleware or filter sees it.

    `raw_path` is canonical (WIRE.md, subjects) and `path` its decoded twin; `query` is the raw query string
    without `?`; `client` is `address:port` of the HTTP client as the gateway trusts it; `timeout` the seconds
    that were left when the request arrived; `params` the captures of the route that matched, as text.
    """

    model_config = _MODEL

    method: str = Field(default="GET", pattern=r"^[!#$%&'*+\-.^_`|~0-9A-Z]+$")
    raw_path: str = "/"
    query: str = ""
    headers: Headers = Headers()
    body: Body = b""
    client: str | None = None
    scheme: str = "http"
    timeout: float | None = None
    root_path: str = ""
    params: dict[str, str] = Field(default_factory=dict)

    _call: Call | None = PrivateAttr(default=None)

    if TYPE_CHECKING:  # what the validators take, which is more than what the fields hold

        def __init__(
            self,
            *,
            method: str = "GET",
            raw_path: str = "/",
            query: str = "",
            headers: HeaderSource = ...,
            body: bytes | str = b"",
            client: str | None = None,
            scheme: str = "http",
            timeout: float | None = None,
            root_path: str = "",
            params: dict[str, str] = ...,
        ) -> None: ...

    @field_validator("raw_path", mode="after")
    @classmethod
    def _canonical(cls, raw_path: str) -> str:
        try:
            return to_path(path_tokens(raw_path.encode().decode("latin-1")))
        except BadPath as error:
            raise ValueError(error.detail) from None

    @field_validator("query", mode="after")
    @classmethod
    def _printable(cls, query: str) -> str:
        return quote_query(query)

    @property
    def tokens(self) -> list[str]:
        """The canonical subject tokens of the path."""
        return path_tokens(self.raw_path)

    @property
    def path(self) -> str:
        """The decoded path: `/files/a b` for a raw path of `/files/a%20b`."""
        return "/" + "/".join([decode_token(token) for token in self.tokens])

    @property
    def query_params(self) -> dict[str, list[str]]:
        """The query string, decoded: every name with its values in order."""
        return parse_query(self.query)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the request, by name."""
        return cookies_of(self.headers)

    @property
    def text(self) -> str:
        """The body as UTF-8 text, with U+FFFD for what is not."""
        return self.body.decode("utf-8", "replace")

    def parse_json(self) -> Any:
        """Return the body as parsed JSON; raises `ValueError` if it is none."""
        return json.loads(self.body)

    def prefers(self, *media_types: str) -> str | None:
        """Return which of `media_types` the caller likes best by its `Accept`, None if it takes none of them.

        Equal wishes, and no `Accept` at all, go to the first (RFC 9110 section 12.5.1).
        """
        ranges = [_parse_range(part) for part in ",".join(self.headers.getlist("accept")).split(",") if part.strip()]
        if not ranges:
            return media_types[0] if media_types else None
        best = max(media_types, key=lambda offer: _quality(offer, ranges), default=None)
        return best if best is not None and _quality(best, ranges) > 0 else None

    if not TYPE_CHECKING:  # a checker would take it for a method that knows every name

        def __getattr__(self, name: str) -> Any:
            if name == "body" and not self._call.more:  # read through another view of it
                return self._call.body
            if name == "body":
                raise RuntimeError(
                    "the body of this request comes as a stream and is not here yet: use "
                    "`await request.read()`, or `async for chunk in request.stream()`"
                )
            return super().__getattr__(name)

    def __eq__(self, other: object) -> bool:
        """Tell whether two requests say the same, however they came."""
        return isinstance(other, Request) and self.__dict__ == other.__dict__

    @property
    def channel(self) -> Channel | None:
        """What stands behind the request while it is under way."""
        return None if self._call is None else self._call.channel

    @property
    def upgrade(self) -> bool:
        """Whether it asks for a WebSocket."""
        return self._call is not None and self._call.upgrade

    @property
    def more(self) -> bool:
        """Whether the body is not all here: it is long, and comes as a stream."""
        return "body" not in self.__dict__

    def stream(self) -> AsyncIterator[bytes]:
        """Give the body as it comes, in pieces of any size; a body that is here already is one piece.

        A body that comes as a stream can be read once. Iterating raises `Disconnected` if it is cut off.
        """
        if self.more and self._call is not None:
            return self._call.chunks()
        return _chunks(self.body, None)

    async def read(self, limit: int = 16 * 1024 * 1024) -> bytes:
        """Return the whole body, which is `request.body` from then on; raises `TooLarge` over `limit` bytes."""
        if self.more and self._call is not None:
            fields: Any = self.__dict__
            fields["body"] = await self._call.read(limit)
        return self.body

    async def extend(self, seconds: float) -> None:
        """Have the answer due `seconds` from now instead of when the caller first said: for work that takes longer.

        The caller and all gateways on the way are told. Raises `ValueError` for less than nothing, or over a day.
        """
        if not 0 < seconds <= 86_400:
            raise ValueError(f"extend takes up to 86400 seconds, not {seconds!r}")
        if self.channel is not None:
            self.channel.extend(seconds)

    def request(self) -> "Request":
        """Return itself: `Call` and `Request` give the model in the same way."""
        return self


def _parse_range(text: str) -> tuple[str, float]:
    """Return media range and quality of one part of an `Accept` field."""
    media, *params = [piece.strip().lower() for piece in text.split(";")]
    for param in params:
        name, _, value = param.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
                return media, min(quality, 1.0) if quality >= 0.0 else 0.0  # not a number is none
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(offer: str, ranges: list[tuple[str, float]]) -> float:
    """Return how much an offered media type is wanted: the most specific range that fits it says so."""
    kind = offer.partition(";")[0].strip().lower()
    for fitting in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [quality for media, quality in ranges if media == fitting]
        if found:
            return max(found)
    return 0.0


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

    model_config = _MODEL

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
        self = cls.__new__(cls)
        fields: Any = self.__dict__
        fields["status"] = status
        fields["headers"] = headers
        fields["body"] = body
        _set_fields_set(self, _RESPONSE_FIELDS)
        _set_extra(self, None)
        _set_private(self, None)
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
