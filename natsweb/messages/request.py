"""A request: `Call`, the plain record that it travels in, and `Request`, the model that handlers ask for.

Both have the same attribute names. What stands behind a request while it is under way is its `Channel`. Knows values;
it knows no wire.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    field_validator,
)

from natsweb.errors import BadPath, TooLarge
from natsweb.headers import Headers, HeaderSource
from natsweb.messages.bodies import MODEL, Body
from natsweb.messages.fields import cookies_of, parse_query, quote_query
from natsweb.subjects import decode_token, path_tokens, to_path

__all__ = ["After", "Call", "CallHead", "Channel", "Counts", "Request", "Socket"]


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


#: What of a `Call` is the same for a client's next one, all but path, body and the two times: method, query, headers,
#: client, scheme, service, window, more, upgrade.
CallHead: TypeAlias = tuple[str, str, Headers, str | None, str, str | None, int, bool, bool]


class Call:
    """A request as it came off the wire: attribute for attribute a `Request`, unvalidated and cheap.

    `tokens` are the canonical subject tokens of the path, `headers` field lines that are well-formed,
    `timeout` the seconds left until the answer is due, `sent` the sender's clock in unix ms or None. With `more`,
    `body` is the first part of it and the rest comes through `channel`. `window` is how many bytes of a streamed
    answer the caller takes at first, 0 if it takes one message only; `upgrade` tells that it asks for a WebSocket.
    Whoever made the call counts it in `counter`, which is its route's, and closes `after` when the last byte of the
    reply has gone.
    """

    __slots__ = (
        "after",
        "body",
        "channel",
        "client",
        "counter",
        "headers",
        "method",
        "more",
        "params",
        "query",
        "root_path",
        "scheme",
        "sent",
        "service",
        "timeout",
        "tokens",
        "upgrade",
        "window",
    )

    channel: Channel | None
    after: After | None
    counter: Counts | None

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
        self.root_path = ""
        self.channel = self.after = self.counter = None

    @classmethod
    def repeated(cls, head: CallHead, tokens: list[str], body: bytes, timeout: float, sent: int) -> Self:
        """Return a call whose head has come before."""
        call = object.__new__(cls)
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
        call.tokens = tokens
        call.body = body
        call.timeout = timeout
        call.sent = sent
        call.params = {}
        call.root_path = ""
        call.channel = call.after = call.counter = None
        return call

    @property
    def head(self) -> CallHead:
        """What a client's requests have in common."""
        return (
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


class Request(BaseModel):
    """An HTTP request as a handler, middleware or filter sees it.

    `raw_path` is canonical (WIRE.md, subjects) and `path` its decoded twin; `query` is the raw query string
    without `?`; `client` is `address:port` of the HTTP client as the gateway trusts it; `timeout` the seconds
    that were left when the request arrived; `params` the captures of the route that matched, as text.
    """

    model_config = MODEL

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

    def json(self, **options: Any) -> Any:
        """Return the body as parsed JSON: see `parse_json`."""
        return self.parse_json()

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
