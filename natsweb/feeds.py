"""Answers that come item by item: a handler that yields, or returns an async iterator.

`async def ticks() -> AsyncIterator[Tick]` is a feed. What the caller accepts decides its shape: server-sent events
(WHATWG HTML, section 9.2), else NDJSON; `str` is plain text and `bytes` go as they are. Items go through the validator
of their annotation, like whole answers. A feed is driven by whoever sends it, step by step in one task: nothing here
starts one. Knows replies and values; it knows no routes and no wire.
"""

import contextvars
import functools
import inspect
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from natsweb.annotations import ASYNC_ITERATORS, ITERATORS, Place, items_of, name_of, strip
from natsweb.errors import DeclarationError, NotAcceptable
from natsweb.headers import Headers
from natsweb.lifetimes import close_source
from natsweb.messages import Call, Pieces, Request, Response, Result, StreamingResponse
from natsweb.replies import Deferred, Reply, ToResponse, compile_json, compile_reply, union_parts
from natsweb.threads import Threads

__all__ = ["HEARTBEAT", "Event", "FeedType", "caller_of", "compile_feed", "feed_of"]

T = TypeVar("T")

#: Seconds without an event after which a comment shows that the connection is alive.
HEARTBEAT = 15.0

_SSE, _NDJSON, _TEXT = "text/event-stream", "application/x-ndjson", "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"
_COMMENT = b":\n\n"
_NOTHING: Any = object()
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class Event(Generic[T]):
    """One server-sent event: `yield Event(tick, id="7", event="tick")` in a feed of `AsyncIterator[Event[Tick]]`.

    `data` of text goes line by line, anything else as JSON. `event` is its type ("message" if there is none), `id` what
    the client sends as `Last-Event-ID` when it comes back, `retry` after how many milliseconds it does so. A handler
    takes that header as a parameter: `last_event_id: Annotated[str | None, Header()] = None`. To callers that take no
    events only the data goes.

    Raises `ValueError` for an `id` or `event` of more than one line, and for a `retry` that is no whole number from 0.
    """

    data: T
    id: str | None = field(default=None, kw_only=True)
    event: str | None = field(default=None, kw_only=True)
    retry: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, value, forbidden in (("id", self.id, "\r\n\0"), ("event", self.event, "\r\n")):
            if value is not None and (not isinstance(value, str) or not _fits_a_line(value, forbidden)):
                raise ValueError(f"the {name} of an event is one line of text, not {value!r}")
        retry: object = self.retry
        if retry is not None and (not isinstance(retry, int) or isinstance(retry, bool) or retry < 0):
            raise ValueError(f"the retry of an event is a whole number of milliseconds from 0, not {retry!r}")


def _fits_a_line(value: str, forbidden: str) -> bool:
    return not any(char in forbidden or "\ud800" <= char <= "\udfff" for char in value)


def _encode_event(data: bytes, event: Event[Any] | None) -> bytes:
    """Return an event as it is sent; data of several lines is a field for each."""
    fields: list[tuple[str, Any]] = []
    if event is not None:
        fields = [("event", event.event), ("id", event.id), ("retry", event.retry)]
    head = "".join([f"{name}: {value}\n" for name, value in fields if value is not None])
    lines = [b"data: %b\n" % line for line in _LINE_END.split(data)]
    return head.encode() + b"".join(lines) + b"\n"


# ── what a handler's annotation says ─────────────────────────────────────────────────────────────


class FeedType(NamedTuple):
    """A return annotation that is a feed: the type of its items, and what else may be returned."""

    item: Any
    rest: Any = _NOTHING

    @property
    def has_rest(self) -> bool:
        """Whether the handler may return something else instead."""
        return self.rest is not _NOTHING

    @property
    def media_types(self) -> tuple[str, ...]:
        """The content types that a caller may get, the usual one first."""
        return _media_types(self.item)

    @property
    def data(self) -> Any:
        """The type of what an item tells, whether it is an event or not."""
        return _union([one for part in _members(self.item) for one in (_data_of(part) if _is_event(part) else [part])])


def feed_of(function: Callable[..., Any], returns: Any, place: Place) -> FeedType | None:
    """Return what the return annotation of a handler says of its feed, or None for a handler that has none.

    Raises `DeclarationError` for a function that yields and says that it returns something else.
    """
    is_async = inspect.isasyncgenfunction(function)
    if is_async or inspect.isgeneratorfunction(function):
        found = (Any,) if returns is Any else items_of(returns, ASYNC_ITERATORS if is_async else ITERATORS)
        if not found:
            word = "AsyncIterator" if is_async else "Iterator"
            raise DeclarationError(
                f"{name_of(function)} yields, and its return annotation is no {word}",
                where=str(place),
                fix=f"annotate it with {word}[...] of what it yields, or return the whole answer",
            )
        return FeedType(found[0])
    parts = [(part, _feed_item(part)) for part in union_parts(returns)]
    items = [item for _, found in parts for item in found]
    if len(items) > 1:
        raise DeclarationError(
            f"{name_of(function)} returns one of several feeds, which nobody could tell apart",
            where=str(place),
            fix="return one feed of either item: AsyncIterator[A | B]",
        )
    others = [part for part, found in parts if not found]
    return FeedType(items[0], _union(others) if others else _NOTHING) if items else None


def _feed_item(part: Any) -> tuple[Any, ...]:
    kind = get_origin(part) or part
    if isinstance(kind, type) and issubclass(kind, Reply):
        part = next(iter(get_args(part)), Any)
    return items_of(part, ASYNC_ITERATORS)


def _members(item: Any) -> tuple[Any, ...]:
    while type(item).__name__ == "TypeAliasType":
        item = item.__value__
    return get_args(item) if get_origin(item) in (Union, UnionType) else (item,)


def _is_event(part: Any) -> bool:
    kind = get_origin(strip(part)) or strip(part)
    return isinstance(kind, type) and issubclass(kind, Event)


def _data_of(part: Any) -> list[Any]:
    return [next(iter(get_args(strip(part))), Any)]


def _union(parts: list[Any]) -> Any:
    return Union[tuple(parts)] if len(parts) != 1 else parts[0]  # noqa: UP007


def _media_types(item: Any) -> tuple[str, ...]:
    kinds = {strip(part) for part in _members(item)}
    if kinds <= {bytes, str}:
        return (_BYTES,) if bytes in kinds else (_TEXT, _SSE)
    return (_NDJSON, _SSE)


# ── items ────────────────────────────────────────────────────────────────────────────────────────


class _Items:
    """Validates and encodes the items of one type; those that are events, by the type of their data."""

    def __init__(self, item: Any) -> None:
        parts = _members(item)
        events = [data for part in parts if _is_event(part) for data in _data_of(part)]
        plain = [part for part in parts if not _is_event(part)]
        self._shown = item
        self._plain = _compile(item if not events else _union(plain)) if plain else None
        self._data = _compile(_union(events)) if events else self._plain if item is Any else None

    def take(self, value: Any) -> tuple[Any, Callable[[Any], bytes]]:
        """Return an item's data, validated, with its encoder to JSON; raises for one that does not fit."""
        is_event = isinstance(value, Event)
        codec = self._data if is_event else self._plain
        if codec is None:
            raise TypeError(
                f"the handler is annotated to yield {self._shown}, and yielded {'an' if is_event else 'no'} Event"
            )
        check, to_bytes = codec
        return check(value.data if is_event else value), to_bytes

    def as_bytes(self, value: Any) -> bytes:
        """Return text or bytes as they are."""
        data, _ = self.take(value)
        return data.encode() if isinstance(data, str) else data

    def as_line(self, value: Any) -> bytes:
        """Return a line of NDJSON."""
        data, to_bytes = self.take(value)
        return to_bytes(data) + b"\n"

    def as_event(self, value: Any) -> bytes:
        """Return a server-sent event."""
        data, to_bytes = self.take(value)
        text = data.encode() if type(data) is str else to_bytes(data)
        return _encode_event(text, value if isinstance(value, Event) else None)


def _compile(annotation: Any) -> tuple[Callable[[Any], Any], Callable[[Any], bytes]]:
    """Return the validator and encoder of one type; an instance of the very model is not validated again."""
    validate, to_bytes = compile_json(annotation)
    model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

    def check(value: Any) -> Any:
        return value if validate is None or type(value) is model else validate(value)

    return check, functools.partial(to_bytes, by_alias=True)


# ── from a handler's value to a response ─────────────────────────────────────────────────────────


class _Shape(NamedTuple):
    """One way to send a feed."""

    media_type: str
    headers: Headers
    encode: Callable[[Any], bytes]
    heartbeat: tuple[float, bytes] | None = None


def compile_feed(feed: FeedType, status: int | None, heartbeat: float = HEARTBEAT) -> ToResponse:
    """Return the function that turns the feed that a handler gave into its response, or whatever else it returned.

    `status` is the route's own, `heartbeat` seconds, 0 for none. Raises what `compile_reply` raises.
    """
    items = _Items(feed.item)
    plain, *others = feed.media_types
    told = {"vary": "accept"} if others else {}
    fields = {"content-type": plain, **told}
    shapes = [_Shape(plain, Headers(fields), items.as_line if plain == _NDJSON else items.as_bytes)]
    if others:
        fields = {"content-type": _SSE, "cache-control": "no-store", "x-accel-buffering": "no", **told}
        beat = (float(heartbeat), _COMMENT) if heartbeat else None
        shapes.append(_Shape(_SSE, Headers(fields), items.as_event, beat))
    to_rest = compile_reply(feed.rest, status) if feed.has_rest else _refuse

    def to_response(value: Any) -> Response | Result | Deferred:
        own, headers = None, Headers()
        body = value
        if isinstance(value, Reply):
            body, own, headers = value.body, value.status, value.headers
        if not isinstance(body, AsyncIterable):
            return to_rest(value)
        return _Begun(aiter(body), shapes, own or status or 200, headers)

    return to_response


def _refuse(value: Any) -> Response:
    raise TypeError(f"the handler is annotated to return an async iterator, and returned {type(value).__name__}")


class _Begun(Deferred):
    """A feed that has begun, before it is known which shape the caller takes."""

    def __init__(self, items: AsyncIterator[Any], shapes: list[_Shape], status: int, headers: Headers) -> None:
        self._items = items
        self._shapes = shapes
        self._status = status
        self._headers = headers

    def __repr__(self) -> str:
        return f"<Feed of {' or '.join([shape.media_type for shape in self._shapes])}>"

    async def render(self, call: Call | Request) -> Response:
        """Return the response; raises `NotAcceptable` for a caller that takes none of the shapes."""
        shape = self._choose(call.request())
        if shape is None:
            await close_source(self._items)
            raise NotAcceptable(
                f"this route answers with {' or '.join([one.media_type for one in self._shapes])}",
                headers={"vary": "accept"},
            )
        is_sse = shape.media_type == _SSE
        own = self._headers.without("content-type") if is_sse else self._headers
        names = [name for name, _ in own if name != "vary"]  # what varies adds up
        pieces = Pieces(_Encoded(self._items, shape.encode), heartbeat=shape.heartbeat, feed=is_sse)
        return StreamingResponse(pieces, status=self._status, headers=shape.headers.without(*names) + own)

    def _choose(self, request: Request) -> _Shape | None:
        """Return the shape that the caller likes best; events win a tie if it has named them."""
        if len(self._shapes) == 1:
            return self._shapes[0]
        [plain, sse] = self._shapes
        by_type = {self._headers.get("content-type") or plain.media_type: plain, _SSE: sse}
        names_it = _SSE in ",".join(request.headers.getlist("accept")).lower()
        found = request.prefers(*sorted(by_type, key=lambda one: (one == _SSE) is not names_it))
        return None if found is None else by_type[found]


class _Encoded(AsyncIterator[bytes]):
    """The bytes of a feed's items."""

    def __init__(self, items: AsyncIterator[Any], encode: Callable[[Any], bytes]) -> None:
        self._items = items
        self._encode = encode

    async def __anext__(self) -> bytes:
        while True:
            piece = self._encode(await self._items.__anext__())
            if piece:
                return piece

    async def aclose(self) -> None:
        await close_source(self._items)


# ── generators as handlers ───────────────────────────────────────────────────────────────────────


def caller_of(function: Callable[..., Any], threads: Threads) -> tuple[Callable[..., Any], bool]:
    """Return how a handler is called, and whether that is awaited; one that yields gives its feed, not yet begun."""
    if inspect.isasyncgenfunction(function):

        async def begin(**arguments: Any) -> Any:
            return function(**arguments)

        return begin, True
    if inspect.isgeneratorfunction(function):

        async def begin_in_threads(**arguments: Any) -> Any:
            return _Steps(function(**arguments), threads)

        return begin_in_threads, True
    return function, inspect.iscoroutinefunction(function)


class _Steps(AsyncIterator[Any]):
    """A plain generator as an async iterator: each step in a thread, all of them in one context."""

    def __init__(self, generator: Any, threads: Threads) -> None:
        self._generator = generator
        self._threads = threads
        self._context = contextvars.copy_context()

    async def __anext__(self) -> Any:
        found = await self._threads.run(self._step, self._context)
        if not found:
            raise StopAsyncIteration
        return found[0]

    def _step(self) -> tuple[Any, ...]:
        """Return the next item, if there is one, in a tuple: nothing looks at it on its way out of the thread."""
        for item in self._generator:
            return (item,)
        return ()

    async def aclose(self) -> None:
        await self._threads.clean_up(self._generator.close, self._context)
