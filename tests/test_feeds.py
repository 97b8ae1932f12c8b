"""Feeds: what handlers yield, in the shape that the caller takes, and what happens when something goes wrong."""

import asyncio
import contextvars
import json
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from typing import Annotated, Any, NamedTuple, NewType, TypeAlias, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from natsweb.errors import DeclarationError, HTTPError, NoRoute
from natsweb.feeds import Event
from natsweb.headers import Headers
from natsweb.lifetimes import close_after
from natsweb.messages import Call, Request, Response, StreamingResponse
from natsweb.params import Body, Depends, Header
from natsweb.replies import Created, Reply
from natsweb.routers import Router, get
from natsweb.scopes import Background, RequestScope
from natsweb.service import Service
from natsweb.subjects import path_tokens
from natsweb.threads import Threads

SSE, NDJSON, TEXT, OCTETS = (
    "text/event-stream",
    "application/x-ndjson",
    "text/plain; charset=utf-8",
    "application/octet-stream",
)


class Tick(BaseModel):
    """An item."""

    n: int
    made_by: str | None = Field(default=None, exclude=True)


Text = NewType("Text", str)
Short = Annotated[str, Field(max_length=3)]
Item: TypeAlias = Event[Tick] | Tick
Named = TypeAliasType("Named", Event[Tick] | Tick)


@pytest.fixture
def service() -> Iterator[Service]:
    """A service whose threads end with the test."""
    service = Service("test", threads=2)
    yield service
    service.close()


@pytest.fixture
def journal() -> list[str]:
    """What happened, in order."""
    return []


def a_call(accept: str | None = None, *, method: str = "GET", path: str = "/", **headers: str) -> Call:
    """Return a request."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if accept is not None:
        fields["accept"] = accept
    return Call(method, path_tokens(path), "", Headers(fields))


async def start(service: Service, accept: str | None = None, **named: Any) -> tuple[Response, Call]:
    """Return the head of an answer, and the call."""
    call = a_call(accept, **named)
    return await service.handle(call), call


async def finish(response: Response, call: Call) -> list[bytes]:
    """Send a stream as whoever sends it does: all pieces, then what is left to do."""
    assert response.pieces is not None
    try:
        return [piece async for piece in response.pieces.source]
    finally:
        await response.pieces.close()
        assert call.after is not None
        await call.after.close()


async def send(service: Service, accept: str | None = None, **named: Any) -> tuple[Response, list[bytes]]:
    """Return an answer and its pieces; an error before the first one is the answer."""
    response, call = await start(service, accept, **named)
    if response.pieces is None:
        return response, [response.body]
    assert response.pieces.failed is not None
    try:
        first = await anext(response.pieces.source)
    except StopAsyncIteration:
        return response, await finish(response, call)
    except BaseException as error:
        answer = await response.pieces.failed(error)
        await finish(response, call)
        return answer, [answer.body]
    return response, [first, *await finish(response, call)]


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────


async def ticks(kind: Any, *items: Any) -> AsyncIterator[Any]:
    """Yield the items."""
    for item in items:
        yield item


def feed(service: Service, kind: Any, *items: Any, **options: Any) -> None:
    """Declare a feed of `kind`."""

    @service.get("/", **options)
    async def show() -> AsyncIterator[kind]:
        for item in items:
            yield item


# item type, item, as NDJSON or raw, as an event
ITEMS: list[tuple[Any, Any, bytes, bytes | None]] = [
    (Tick, Tick(n=1), b'{"n":1}\n', b'data: {"n":1}\n\n'),
    (Tick, {"n": "1"}, b'{"n":1}\n', b'data: {"n":1}\n\n'),
    (int, "7", b"7\n", b"data: 7\n\n"),
    (Any, {"a": [None]}, b'{"a":[null]}\n', b'data: {"a":[null]}\n\n'),
    (Any, "a\nb", b'"a\\nb"\n', b"data: a\ndata: b\n\n"),
    (Any, Event("x", id="1"), b'"x"\n', b"id: 1\ndata: x\n\n"),
    (None, None, b"null\n", b"data: null\n\n"),
    (int | None, None, b"null\n", b"data: null\n\n"),
    (list[Tick], [{"n": 1}], b'[{"n":1}]\n', b'data: [{"n":1}]\n\n'),
    (str, "a\nü", "a\nü".encode(), "data: a\ndata: ü\n\n".encode()),
    (Short, "abc", b"abc", b"data: abc\n\n"),
    (Text, "x", b"x", b"data: x\n\n"),
    (str | int, "x", b'"x"\n', b"data: x\n\n"),
    (bytes, b"\0\xff", b"\0\xff", None),
    (bytes | str, "ü", "ü".encode(), None),
    (Event, Event({"a": 1}), b'{"a":1}\n', b'data: {"a":1}\n\n'),
    (Event[Tick], Event({"n": "2"}, event="tick"), b'{"n":2}\n', b'event: tick\ndata: {"n":2}\n\n'),
    (Event[str], Event("x", id="", retry=0), b'"x"\n', b"id: \nretry: 0\ndata: x\n\n"),
    (Item, Tick(n=1), b'{"n":1}\n', b'data: {"n":1}\n\n'),
    (Named, Tick(n=1), b'{"n":1}\n', b'data: {"n":1}\n\n'),
    (Item, Event(Tick(n=1), id="7"), b'{"n":1}\n', b'id: 7\ndata: {"n":1}\n\n'),
    (Union[Event[int], Event[str], None], Event("x"), b'"x"\n', b"data: x\n\n"),  # noqa: UP007
]


@pytest.mark.parametrize(("kind", "item", "plain", "event"), ITEMS)
async def test_items(service, kind, item, plain, event):
    """An item goes through its type, and as a line, raw, or as an event, as the caller likes."""
    feed(service, kind, item, item)
    response, pieces = await send(service)
    raw = {True: OCTETS, False: TEXT}[isinstance(item, bytes) or kind == bytes | str]
    assert response.headers["content-type"] == (NDJSON if plain.endswith(b"\n") and plain != b"a\n" else raw)
    assert pieces == [plain, plain]
    assert response.headers.get("vary") == (None if event is None else "accept")
    assert response.pieces.heartbeat is None
    assert not response.pieces.feed
    response, pieces = await send(service, SSE)
    assert pieces == [event or plain] * 2
    if event is None:
        return
    expected = {"content-type": SSE, "cache-control": "no-store", "x-accel-buffering": "no", "vary": "accept"}
    assert (response.status, dict(response.headers)) == (200, expected)
    assert (response.pieces.feed, response.pieces.heartbeat) == (True, (15.0, b":\n\n"))


# Accept, the shape of a feed of models, of text, of bytes; None is 406
ACCEPTED = [
    (None, NDJSON, TEXT, OCTETS),
    ("*/*", NDJSON, TEXT, OCTETS),
    (SSE, SSE, SSE, OCTETS),
    ("Text/Event-Stream", SSE, SSE, OCTETS),
    (f"{SSE}, */*", SSE, SSE, OCTETS),
    (f"application/json, {SSE}", SSE, SSE, OCTETS),
    (f"{NDJSON}, {SSE}", SSE, SSE, OCTETS),
    (f"{SSE};q=0.5, {NDJSON}", NDJSON, SSE, OCTETS),
    (f"{SSE};q=0.5, */*", NDJSON, TEXT, OCTETS),
    (f"{SSE};q=0, */*", NDJSON, TEXT, OCTETS),
    ("text/*", SSE, TEXT, OCTETS),
    ("text/html, */*;q=0.1", NDJSON, TEXT, OCTETS),
    ("text/html", None, None, OCTETS),
    ("application/json", None, None, OCTETS),
]


@pytest.mark.parametrize("column", [1, 2, 3])
@pytest.mark.parametrize("row", ACCEPTED)
async def test_what_the_caller_accepts(service, row, column):
    """`Accept` chooses the shape: events if they are named, what comes first in a tie, 406 if none fits."""
    kind = {1: int, 2: str, 3: bytes}[column]
    feed(service, kind, {1: 1, 2: "x", 3: b"x"}[column])
    for around in (False, True):
        if around:
            service.middleware(passing)
        response, _ = await send(service, row[0])
        if row[column] is None:
            assert (response.status, response.parse_json()["reason"]) == (406, "not_acceptable")
            assert response.headers["vary"] == "accept"
            assert SSE in response.parse_json()["detail"]
        else:
            assert (response.status, response.headers["content-type"]) == (200, row[column])


async def passing(request: Request, call_next: Any) -> Response:
    """Hand it on."""
    return await call_next(request)


async def test_a_feed_that_nobody_takes_is_closed(service, journal):
    """With 406 the iterator that the handler returned is closed."""

    class Ticks(AsyncIterator[int]):
        async def __anext__(self) -> int:
            raise AssertionError("must not be read")

        async def aclose(self) -> None:
            journal.append("closed")

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        return Ticks()

    response, _ = await start(service, "text/html")
    assert (response.status, journal) == (406, ["closed"])


# ── handlers ─────────────────────────────────────────────────────────────────────────────────────


async def generator() -> AsyncIterator[Tick]:
    """Yield."""
    yield Tick(n=1)


async def iterable() -> AsyncIterable[Tick]:
    """Yield."""
    yield Tick(n=1)


async def async_generator() -> AsyncGenerator[Tick, None]:
    """Yield."""
    yield Tick(n=1)


async def returning() -> AsyncIterator[Tick]:
    """Return one that yields."""
    return generator()


def plainly_returning() -> AsyncIterator[Tick]:
    """Return one that yields, from a thread."""
    return generator()


async def unsaid():
    """Yield without saying so."""
    yield Tick(n=1)


def steps() -> Iterator[Tick]:
    """Yield in threads."""
    yield Tick(n=1)


def iterable_steps() -> Iterable[Tick]:
    """Yield in threads."""
    yield Tick(n=1)


def generator_steps() -> Generator[Tick, None, None]:
    """Yield in threads."""
    yield Tick(n=1)


def unsaid_steps():
    """Yield in threads without saying so."""
    yield Tick(n=1)


async def either() -> AsyncIterator[Tick] | Response:
    """Return one of both."""
    return generator()


async def optional() -> AsyncIterator[Tick] | None:
    """Return one of both."""
    return generator()


async def replying() -> Reply[AsyncIterator[Tick]]:
    """Return one in a reply."""
    return Reply(generator())


HANDLERS = [generator, iterable, async_generator, returning, plainly_returning, unsaid, steps, iterable_steps]
HANDLERS += [generator_steps, unsaid_steps, either, optional, replying]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_handlers(service, handler):
    """A feed may be written in several ways."""
    service.get("/")(handler)
    response, pieces = await send(service)
    assert (response.status, response.headers["content-type"], pieces) == (200, NDJSON, [b'{"n":1}\n'])
    assert (await send(service, SSE))[1] == [b'data: {"n":1}\n\n']


class Methods:
    """Handlers of a class."""

    @get("/")
    async def show(self) -> AsyncIterator[int]:
        """Yield."""
        yield 1


async def test_methods_and_routers(service):
    """Methods yield as well, and routers hand them on."""
    router = Router("/in")
    router.include(Methods(), prefix="/it")
    service.include(router)
    assert (await send(service, path="/in/it/"))[1] == [b"1\n"]


class Countdown(AsyncIterator[int]):
    """An iterator that is no generator, and cannot be closed."""

    left = 2

    async def __anext__(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration
        return self.left


async def test_iterators_that_are_no_generators(service):
    """Any async iterator is a feed."""

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        return Countdown()

    assert (await send(service))[1] == [b"1\n", b"0\n"]
    response, call = await start(service)
    await anext(response.pieces.source)
    await response.pieces.close()
    await call.after.close()
    assert "Feed of application/x-ndjson or text/event-stream" in repr(service.routes[0].to_response(Countdown()))


async def test_what_yields_nothing(service):
    """A feed may be empty."""
    feed(service, int)
    response, pieces = await send(service)
    assert (response.status, pieces) == (200, [])


async def test_empty_pieces_are_left_out(service):
    """Nothing is no piece of a body."""
    feed(service, bytes, b"", b"1", b"", b"2", b"")
    assert (await send(service))[1] == [b"1", b"2"]


async def test_lists_and_iterators_that_are_returned_stay_json(service):
    """A plain function that returns an iterable answers with one JSON array."""

    @service.get("/")
    def show() -> Iterable[Tick]:
        return iter([Tick(n=1), Tick(n=2)])

    response, _ = await start(service, SSE)
    assert (response.headers["content-type"], response.body) == ("application/json", b'[{"n":1},{"n":2}]')


async def test_something_else_instead(service):
    """A handler that may return something else does so, or says in the log that it may not."""

    @service.get("/<which>", status=202)
    async def show(which: str) -> AsyncIterator[int] | Tick | Response | None:
        return {"feed": ticks(int, 1), "tick": Tick(n=1), "own": Response(status=299), "none": None}[which]

    found = {which: (await start(service, path=f"/{which}"))[0] for which in ("feed", "tick", "own", "none")}
    assert {which: one.status for which, one in found.items()} == {"feed": 202, "tick": 202, "own": 299, "none": 202}
    assert found["tick"].body == b'{"n":1}'
    assert found["feed"].pieces is not None


async def test_nothing_else_instead(service, caplog):
    """What is no async iterator is refused, where nothing else was annotated."""

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        return [1]  # type: ignore[return-value]

    assert (await start(service))[0].status == 500
    assert "annotated to return an async iterator, and returned list" in caplog.text


async def test_replies_with_status_and_headers(service):
    """Status and headers of a reply count; what the answer varies by adds up, and events keep their type."""

    @service.get("/")
    async def show() -> Created[AsyncIterator[str]]:
        fields = {"content-type": "text/csv", "x-a": "1", "vary": "origin", "cache-control": "no-cache"}
        return Created(ticks(str, "a,b"), headers=fields)

    response, pieces = await send(service, "text/csv")
    assert (response.status, response.headers["content-type"], response.headers["x-a"]) == (201, "text/csv", "1")
    assert response.headers.getlist("vary") == ["accept", "origin"]
    assert pieces == [b"a,b"]
    response, pieces = await send(service, SSE)
    assert (response.headers["content-type"], response.headers["cache-control"]) == (SSE, "no-cache")
    assert response.headers.getlist("content-type") == [SSE]
    assert pieces == [b"data: a,b\n\n"]


async def test_status_of_the_route(service):
    """The status of a route is that of its feed."""
    feed(service, int, 1, status=203)
    assert (await send(service))[0].status == 203


@pytest.mark.parametrize(
    ("option", "expected"), [({}, (15.0, b":\n\n")), ({"heartbeat": 2}, (2.0, b":\n\n")), ({"heartbeat": 0}, None)]
)
async def test_heartbeat(service, option, expected):
    """A route says how often a silent feed shows that it is alive."""
    feed(service, int, 1, **option)
    assert (await send(service, SSE))[0].pieces.heartbeat == expected


@pytest.mark.parametrize("given", [{}, {"last_event_id": "7"}])
async def test_last_event_id(service, given):
    """A client that comes back tells what it saw last, in a header like any other."""

    @service.get("/")
    async def show(last_event_id: Annotated[str | None, Header()] = None) -> AsyncIterator[Event[str]]:
        yield Event(f"after {last_event_id}", id="8")

    assert (await send(service, SSE, **given))[1] == [f"id: 8\ndata: after {given.get('last_event_id')}\n\n".encode()]


async def test_head_and_other_methods(service):
    """HEAD falls back to GET, and the feed is closed unread; POST may feed as well."""

    @service.route("/", methods=["GET", "POST"])
    async def show(n: Annotated[int | None, Body()] = None) -> AsyncIterator[int]:
        raise AssertionError("must not be read")
        yield 1

    response, call = await start(service, method="HEAD")
    assert (response.status, response.headers["content-type"]) == (200, NDJSON)
    await response.pieces.close()
    await call.after.close()
    response, call = await start(service, method="POST")
    assert response.status == 200
    await response.pieces.close()
    await call.after.close()


async def test_a_model_is_not_validated_twice(service):
    """An instance of the very model goes as it is; one of another class is validated."""
    wrong = Tick.model_construct(n="x")
    feed(service, Tick, wrong)
    with pytest.warns(UserWarning, match="serialized value"):
        assert (await send(service))[1] == [b'{"n":"x"}\n']


async def test_what_middleware_sees(service):
    """Middleware sees a response with headers, and may add to them."""
    feed(service, int, 1)
    seen: list[Response] = []

    @service.middleware
    async def add(request: Request, call_next: Any) -> Response:
        seen.append(await call_next(request))
        return seen[-1].with_headers({"x-a": "1"}).with_cookie("a", "b")

    response, pieces = await send(service, SSE)
    assert isinstance(seen[0], StreamingResponse)
    assert (response.headers["x-a"], response.headers["content-type"], pieces) == ("1", SSE, [b"data: 1\n\n"])
    assert "a=b" in response.headers["set-cookie"]


# ── events ───────────────────────────────────────────────────────────────────────────────────────


class Heard(NamedTuple):
    """An event as a browser hears it."""

    type: str
    data: str
    last_id: str


def parse(stream: str) -> tuple[list[Heard], int | None]:
    """Return the events of a stream, and the time after which to come back (WHATWG HTML, section 9.2.6)."""
    heard, data, kind, last_id, retry = [], "", "", "", None
    for line in re.split(r"\r\n|\n|\r", stream.removeprefix("\ufeff"))[:-1]:
        if not line:
            if data:
                heard.append(Heard(kind or "message", data.removesuffix("\n"), last_id))
            data = kind = ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data += value + "\n"
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return heard, retry


def encoded(*events: Any, kind: Any = Any) -> str:
    """Return the stream of some events."""
    service = Service("test")
    feed(service, kind, *events)
    return b"".join(asyncio.run(send(service, SSE))[1]).decode()


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=8)
datas = st.lists(
    st.sampled_from(["\r", "\n", "\r\n", " ", ":", "data:", "\0", "\ufeff", "x", "ü", "\u2028"]), max_size=8
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(datas.map("".join), lines | st.none(), lines | st.none(), st.integers(0) | st.none()), max_size=4
    )
)
def test_events_are_read_back(events):
    """What is sent is what a browser hears, whatever the text is; ends of lines are \\n then."""
    sent = [Event(data, id=id, event=kind, retry=retry) for data, id, kind, retry in events]
    expected, last_id, again = [], "", None
    for data, id, kind, retry in events:
        last_id = last_id if id is None else id
        again = again if retry is None else retry
        expected.append(Heard(kind or "message", re.sub(r"\r\n|\r", "\n", data), last_id))
    assert parse(encoded(*sent)) == (expected, again)


JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5), st.lists, max_leaves=4)


@settings(deadline=None, max_examples=50)
@given(st.lists(JSON.filter(lambda one: not isinstance(one, str)), max_size=3))
def test_anything_else_is_json(items):
    """Data that is no text is JSON on one line."""
    heard, _ = parse(encoded(*items))
    assert [json.loads(one.data) for one in heard] == items


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"id": "a\nb"}, r"the id of an event is one line of text, not 'a\\nb'"),
        ({"id": "a\rb"}, "the id of an event"),
        ({"id": "a\0b"}, "the id of an event"),
        ({"id": "\ud800"}, "the id of an event"),
        ({"id": 7}, "the id of an event is one line of text, not 7"),
        ({"event": "a\nb"}, "the event of an event is one line"),
        ({"event": "a\r"}, "the event of an event is one line"),
        ({"retry": -1}, "the retry of an event is a whole number of milliseconds from 0, not -1"),
        ({"retry": 1.5}, "a whole number of milliseconds"),
        ({"retry": True}, "a whole number of milliseconds"),
        ({"retry": "1"}, "a whole number of milliseconds"),
    ],
)
def test_what_cannot_be_an_event(wrong, words):
    """Fields that would break out of their line, or that browsers drop, are refused at once."""
    with pytest.raises(ValueError, match=words):
        Event("x", **wrong)


def test_an_event_is_a_value():
    """Events are frozen, compare, and may be written with the type of their data."""
    assert Event[int](1, id="a") == Event(1, id="a")
    assert repr(Event(1)) == "Event(data=1, id=None, event=None, retry=None)"
    with pytest.raises(AttributeError):
        Event(1).data = 2  # type: ignore[misc]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def failing(service: Service, error: BaseException, after: int) -> None:
    """Declare a feed that fails after so many items."""

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise error


@pytest.mark.parametrize("around", [False, True])
async def test_an_error_before_the_first_item_is_the_answer(service, around, caplog):
    """What is raised before anything was sent becomes the answer, like that of any handler."""
    failing(service, HTTPError(409, "no", reason="taken"), 0)
    if around:
        service.middleware(passing)
    response, [body] = await send(service, SSE)
    assert (response.status, json.loads(body)["reason"], caplog.text) == (409, "taken", "")
    assert not response.retry


async def test_a_failure_before_the_first_item_is_a_500(service, caplog):
    """What is no answer is logged once, with route and place."""
    failing(service, KeyError("x"), 0)
    response, _ = await send(service)
    assert (response.status, response.parse_json()["reason"]) == (500, "handler_failed")
    [record] = caplog.records
    assert re.match(r"GET / failed \(\S*test_feeds.py:\d+ show\)", record.getMessage())
    assert isinstance(record.exc_info[1], KeyError)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("after", [0, 1])
async def test_what_would_end_the_process(service, caplog, kind, after):
    """One handler does not stop all others."""
    failing(service, kind(), after)
    if not after:
        assert (await send(service))[0].status == 500
    else:
        with pytest.raises(RuntimeError, match=f"the handler raised {kind.__name__}"):
            await send(service)
    assert len(caplog.records) == 1


async def test_error_handlers_see_it(service):
    """The route's error handlers answer what comes before the first item."""
    failing(service, KeyError("x"), 0)

    @service.on_error(KeyError)
    async def answer(request: Request, error: KeyError) -> Response:
        return Response(status=418, body=f"{request.path} {error}")

    assert (await send(service))[0].text == "/ 'x'"


async def test_error_handlers_cannot_stream_it(service, caplog):
    """An error handler that streams its answer to the error of a stream is a mistake."""
    failing(service, KeyError("x"), 0)

    @service.on_error(KeyError)
    async def answer(request: Request, error: KeyError) -> Response:
        return StreamingResponse(ticks(str, "x"))

    response, _ = await send(service)
    assert (response.status, response.pieces) == (500, None)
    assert "an error handler cannot stream its answer" in caplog.text


async def test_error_handlers_may_stream_otherwise(service):
    """An error handler may answer with a stream where nothing has been streamed, also for what was not executed."""

    @service.on_error(NoRoute)
    async def answer(request: Request, error: NoRoute) -> Response:
        return StreamingResponse(ticks(str, "x", "y"), status=404)

    response, _ = await start(service, path="/none")
    assert response.status == 404
    assert [piece async for piece in response.pieces.source] == [b"x", b"y"]


@pytest.mark.parametrize("error", [KeyError("x"), HTTPError(409)])
@pytest.mark.parametrize("around", [False, True])
async def test_a_later_error_is_logged_once_and_cuts_the_stream(service, caplog, around, error):
    """What is raised after the first item comes out of the source."""
    failing(service, error, 2)
    if around:
        service.middleware(passing)
    response, call = await start(service)
    source = response.pieces.source
    assert [await anext(source), await anext(source)] == [b"0\n", b"1\n"]
    with pytest.raises(type(error)):
        await anext(source)
    with pytest.raises(StopAsyncIteration):
        await anext(source)
    await response.pieces.close()
    await call.after.close()
    [record] = caplog.records
    assert record.getMessage().startswith("GET / failed (")
    assert record.exc_info[1] is error


@pytest.mark.parametrize("handler", ["async", "sync"])
@pytest.mark.parametrize("after", [0, 1])
async def test_an_item_that_does_not_fit_is_the_handlers_failure(service, caplog, journal, handler, after):
    """An item that its type refuses is a 500, or cuts the stream; the generator is closed."""

    async def waits() -> AsyncIterator[Tick]:
        try:
            for _ in range(after):
                yield Tick(n=1)
            yield {"n": "x"}  # type: ignore[misc]
            journal.append("never")
        finally:
            journal.append("closed")

    def blocks() -> Iterator[Tick]:
        try:
            for _ in range(after):
                yield Tick(n=1)
            yield {"n": "x"}  # type: ignore[misc]
            journal.append("never")
        finally:
            journal.append("closed")

    service.get("/")(waits if handler == "async" else blocks)
    response, call = await start(service)
    for _ in range(after):
        await anext(response.pieces.source)
    with pytest.raises(ValueError) as caught:
        await anext(response.pieces.source)
    assert journal == ["closed"]
    if not after:
        assert (await response.pieces.failed(caught.value)).status == 500
    await response.pieces.close()
    await call.after.close()
    assert (len(caplog.records), journal) == (1, ["closed"])


@pytest.mark.parametrize(
    ("kind", "item", "words"),
    [
        (Tick, Event(Tick(n=1)), "yielded an Event"),
        (Event[Tick], Tick(n=1), "yielded no Event"),
        (str, "\ud800", "surrogate"),
    ],
)
async def test_events_where_none_are_due(service, caplog, kind, item, words):
    """An event that was not annotated, something else than an event, and text that is none are failures."""
    feed(service, kind, item)
    assert (await send(service, SSE))[0].status == 500
    assert words in caplog.text


async def test_an_error_while_closing_is_logged(service, caplog):
    """What a generator raises when it is closed goes to the log, and nowhere else."""

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise KeyError("x")

    response, call = await start(service, SSE)
    await anext(response.pieces.source)
    await response.pieces.close()
    await response.pieces.close()
    await call.after.close()
    assert [record.exc_info[0] for record in caplog.records] == [KeyError]


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────


def tracked(journal: list[str], name: str, scope: Any) -> Depends:
    """Return a dependency that writes down when it is made and cleaned up, and which error it sees."""

    async def make() -> AsyncIterator[str]:
        journal.append(f"make {name}")
        try:
            yield name
        except BaseException as error:
            journal.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            journal.append(f"close {name}")

    return Depends(make, scope=scope)


def tracked_feed(service: Service, journal: list[str], *, fails: int | None = None) -> None:
    """Declare a feed of two items with dependencies of both scopes, and background work."""

    @service.get("/")
    async def show(
        tasks: Background,
        r: Annotated[str, tracked(journal, "r", "request")],
        h: Annotated[str, tracked(journal, "h", "handler")],
    ) -> AsyncIterator[int]:
        tasks.add(journal.append, "background")
        try:
            for number in range(2):
                if number == fails:
                    raise KeyError(number)
                journal.append(f"item {number}")
                yield number
        finally:
            journal.append("closed")


MADE = ["make r", "make h"]


async def test_dependencies_live_as_long_as_the_stream(service, journal):
    """Nothing is cleaned up before the stream has ended: handler scope goes first, request scope after it."""
    tracked_feed(service, journal)
    response, call = await start(service)
    assert journal == MADE
    assert await finish(response, call) == [b"0\n", b"1\n"]
    assert journal == [*MADE, "item 0", "item 1", "closed", "background", "close h", "close r"]


async def test_dependencies_see_an_early_error(service, journal):
    """An error before the first item is seen by all, handler scope before the answer."""
    tracked_feed(service, journal, fails=0)
    response, call = await start(service)
    with pytest.raises(KeyError) as caught:
        await anext(response.pieces.source)
    answer = await response.pieces.failed(caught.value)
    journal.append(f"reply {answer.status}")
    await response.pieces.close()
    await call.after.close()
    assert journal == [
        *(*MADE, "closed", "h sees KeyError", "close h", "reply 500"),
        *("r sees KeyError", "close r"),
    ]


async def test_handler_scope_may_change_an_early_error(service):
    """A dependency of the handler's scope may raise another error instead, which is the answer."""

    async def translate() -> AsyncIterator[None]:
        try:
            yield
        except KeyError:
            raise HTTPError(404, reason="translated") from None

    @service.get("/")
    async def show(t: Annotated[None, Depends(translate, scope="handler")]) -> AsyncIterator[int]:
        raise KeyError("x")
        yield 1

    response, _ = await send(service)
    assert (response.status, response.parse_json()["reason"]) == (404, "translated")


async def test_dependencies_see_a_later_error(service, journal, caplog):
    """An error in the middle is seen by all; there is no background work then."""
    tracked_feed(service, journal, fails=1)
    response, call = await start(service)
    with pytest.raises(KeyError):
        await finish(response, call)
    assert journal == [
        *(*MADE, "item 0", "closed"),
        *("h sees KeyError", "close h", "r sees KeyError", "close r"),
    ]
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("accept", "seen"), [(SSE, False), (NDJSON, True)])
async def test_a_client_that_leaves(service, journal, accept, seen):
    """The generator is closed at once. Events may end at any time; of anything else the rest is missing."""
    tracked_feed(service, journal)
    response, call = await start(service, accept)
    await anext(response.pieces.source)
    await response.pieces.close()
    assert journal == [*MADE, "item 0", "closed"]
    await call.after.close()
    seeing = ["h sees CancelledError", "close h", "r sees CancelledError", "close r"]
    assert journal[4:] == (seeing if seen else ["background", "close h", "close r"])


async def test_a_stream_that_nobody_sends_is_closed_with_its_dependencies(service, journal):
    """Middleware that answers something else leaves nothing open."""
    tracked_feed(service, journal)

    @service.middleware
    async def instead(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        await anext(response.pieces.source)
        return Response(status=204)

    response, call = await start(service)
    assert (response.status, response.pieces) == (204, None)
    await call.after.close()
    assert journal[2:4] == ["item 0", "background"]
    assert journal[4:] == ["closed", "close h", "close r"]


@pytest.mark.parametrize("handler", ["async", "sync"])
async def test_cancellation_closes_the_generator(service, journal, handler):
    """A sender that is cancelled while it waits for an item ends the generator there, and dependencies see it."""
    waiting, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @service.get("/async")
    async def waits(h: Annotated[str, tracked(journal, "h", "handler")]) -> AsyncIterator[int]:
        try:
            yield 1
            waiting.set()
            await asyncio.Event().wait()
        finally:
            journal.append("closed")

    @service.get("/sync")
    def blocks(h: Annotated[str, tracked(journal, "h", "handler")]) -> Iterator[int]:
        try:
            yield 1
            loop.call_soon_threadsafe(waiting.set)
            go_on.wait(5)
            yield 2
        finally:
            journal.append("closed")

    response, call = await start(service, path=f"/{handler}")
    sending = asyncio.create_task(finish(response, call))
    await waiting.wait()
    sending.cancel()
    loop.call_later(0.01, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert journal == ["make h", "closed", "h sees CancelledError", "close h"]


async def test_task_groups_and_timeouts_around_items(service, journal):
    """All steps run in one task, so that a task group or a timeout may stand around what is yielded."""

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            queue: asyncio.Queue[int] = asyncio.Queue()
            group.create_task(queue.put(1))
            yield await queue.get()
            group.create_task(queue.put(2))
            yield await queue.get()
            group.create_task(asyncio.sleep(0)).add_done_callback(lambda _: journal.append("done"))

    assert (await send(service))[1] == [b"1\n", b"2\n"]
    assert journal == ["done"]


async def test_a_task_group_that_fails(service, caplog):
    """What a task of the feed raises ends the feed."""

    @service.get("/")
    async def show() -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            yield 1
            group.create_task(fail())
            await asyncio.sleep(5)
            yield 2

    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(ExceptionGroup):
        await send(service)
    assert len(caplog.records) == 1


# ── plain generators ─────────────────────────────────────────────────────────────────────────────


async def test_plain_generators_run_in_threads(service, journal):
    """Each step of a plain generator runs in a thread of the service's, in one context; so does its end."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")

    @service.get("/")
    def show() -> Iterator[str]:
        try:
            journal.append(threading.current_thread().name)
            yield user.get()
            journal.append(threading.current_thread().name)
            yield user.get()
        finally:
            journal.append(user.get())

    user.set("a")
    response, call = await start(service)
    user.set("b")
    assert await finish(response, call) == [b"a", b"a"]
    assert [name.rpartition("_")[0] for name in journal[:2]] == ["natsweb-test"] * 2
    assert journal[2] == "a"
    journal.clear()
    response, call = await start(service)
    await anext(response.pieces.source)
    await response.pieces.close()
    assert journal[1:] == ["b"]


async def test_steps_of_plain_generators_stay_what_they_are(service, caplog):
    """Something awaitable is an item like any other, and StopIteration inside is an error."""

    @service.get("/<which>")
    def show(which: str) -> Iterator[Any]:
        if which == "stop":
            next(iter(()))
        future: asyncio.Future[None] = asyncio.Future(loop=loop)
        yield future

    loop = asyncio.get_running_loop()
    assert (await send(service, path="/stop"))[0].status == 500
    assert "generator raised StopIteration" in caplog.text
    caplog.clear()
    assert (await send(service, path="/future"))[0].status == 500
    assert "Unable to serialize unknown type" in caplog.text


# ── responses that stream ────────────────────────────────────────────────────────────────────────


async def rows(*, fails: int | None = None) -> AsyncIterator[str]:
    """Yield three rows of text."""
    for number in range(3):
        if number == fails:
            raise KeyError(number)
        yield f"{number}\n"


@pytest.mark.parametrize("annotation", [StreamingResponse, Response, Any, Reply[Any]])
async def test_streaming_responses(service, annotation, caplog):
    """A handler may return a streamed response of its own, whose errors are handled like those of a feed."""

    @service.get("/<fails>")
    async def show(fails: int) -> annotation:
        found = StreamingResponse(rows(fails=fails), status=203, media_type="text/csv")
        return Reply(found, headers={"x-a": "1"}) if annotation == Reply[Any] else found

    response, pieces = await send(service, path="/9")
    assert (response.status, response.headers["content-type"], pieces) == (203, "text/csv", [b"0\n", b"1\n", b"2\n"])
    assert ("x-a" in response.headers) == (annotation == Reply[Any])
    assert (await send(service, path="/0"))[0].status == 500
    with pytest.raises(KeyError):
        await send(service, path="/1")
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["GET /<fails> failed"] * 2


async def test_streaming_responses_have_a_type(service):
    """A stream that says no type is not for browsers to guess."""

    @service.get("/")
    async def show() -> Response:
        return StreamingResponse(rows())

    assert (await send(service))[0].headers["content-type"] == OCTETS


async def test_streaming_responses_with_dependencies(service, journal):
    """Dependencies live until a streamed response has ended."""

    @service.get("/")
    async def show(h: Annotated[str, tracked(journal, "h", "handler")]) -> StreamingResponse:
        return StreamingResponse(rows())

    response, call = await start(service)
    assert journal == ["make h"]
    await finish(response, call)
    assert journal == ["make h", "close h"]


@pytest.mark.parametrize("where", ["service", "router"])
async def test_streams_of_middleware(service, caplog, where):
    """Middleware may stream as well, instead of a handler or around what it streams."""
    router = Router()

    @router.get("/<fails>")
    async def show(fails: int) -> AsyncIterator[str]:
        async for row in rows(fails=fails):
            yield row

    async def louder(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in source:
            yield piece + b"!"

    @(service if where == "service" else router).middleware
    async def change(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        return StreamingResponse(louder(response.pieces.source), headers=response.headers)

    service.include(router)
    response, pieces = await send(service, path="/9")
    assert (response.headers["content-type"], pieces) == (TEXT, [b"0\n!", b"1\n!", b"2\n!"])
    assert (await send(service, path="/0"))[0].status == 500
    caplog.clear()
    with pytest.raises(KeyError):
        await send(service, path="/1")
    assert caplog.records


@pytest.mark.parametrize("end", ["read", "closed", "unread", "late", "early"])
async def test_a_request_instead_of_a_call(service, journal, end):
    """For whoever passes a `Request`, what is left to do is done when the stream has ended."""
    tracked_feed(service, journal, fails={"late": 1, "early": 0}.get(end))
    response = await service.handle(Request())
    source = response.pieces.source
    assert journal == MADE
    if end == "read":
        assert [piece async for piece in source] == [b"0\n", b"1\n"]
        assert journal[-2:] == ["close h", "close r"]
    elif end == "early":
        with pytest.raises(KeyError) as caught:
            await anext(source)
        assert journal[-1] == "closed"
        assert (await response.pieces.failed(caught.value)).status == 500
    elif end != "unread":
        await anext(source)
    if end == "late":
        with pytest.raises(KeyError):
            await anext(source)
        assert journal[-2:] == ["r sees KeyError", "close r"]
    await response.pieces.close()
    await response.pieces.close()
    assert journal.count("close r") == 1
    assert journal[-1] == "close r"


async def test_a_request_whose_stream_is_not_the_services(service):
    """An answer without an error handler of its own, with something left to do, raises the error again."""
    response = StreamingResponse(rows(fails=0))
    close_after(response.pieces, RequestScope(Threads(1, "x")))
    with pytest.raises(KeyError) as caught:
        await anext(response.pieces.source)
    with pytest.raises(KeyError):
        await response.pieces.failed(caught.value)


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


def declared(service: Service, handler: Any, **options: Any) -> DeclarationError:
    """Return the mistake of a handler."""
    with pytest.raises(DeclarationError) as caught:
        service.get("/", **options)(handler)
    assert "test_feeds.py" in caught.value.where[0]
    assert caught.value.fix
    return caught.value


async def wrong_async() -> Iterator[int]:  # type: ignore[misc]
    """Yield what it does not say."""
    yield 1


def wrong_sync() -> AsyncIterator[int]:  # type: ignore[misc]
    """Yield what it does not say."""
    yield 1


def wrong_list() -> list[int]:  # type: ignore[misc]
    """Yield what it does not say."""
    yield 1


async def two() -> AsyncIterator[int] | AsyncIterator[str]:
    """Return one of two."""
    return ticks(int, 1)


async def strange() -> AsyncIterator[threading.Event]:
    """Yield what pydantic does not know."""
    yield threading.Event()


async def plain() -> int:
    """Return."""
    return 1


@pytest.mark.parametrize(
    ("handler", "options", "what"),
    [
        (wrong_async, {}, "wrong_async yields, and its return annotation is no AsyncIterator"),
        (wrong_sync, {}, "wrong_sync yields, and its return annotation is no Iterator"),
        (wrong_list, {}, "wrong_list yields, and its return annotation is no Iterator"),
        (two, {}, "two returns one of several feeds"),
        (strange, {}, "the return type is none that pydantic can take"),
        (plain, {"heartbeat": 5}, "heartbeat= is for feeds, and this handler gives none"),
        (generator, {"heartbeat": -1}, "a feed cannot have a heartbeat of -1"),
        (generator, {"heartbeat": float("nan")}, "a feed cannot have a heartbeat of nan"),
    ],
)
def test_mistakes(service, handler, options, what):
    """What cannot be a feed says so when it is declared."""
    assert what in declared(service, handler, **options).what


# ── documents ────────────────────────────────────────────────────────────────────────────────────


def content(service: Service, status: str = "200") -> dict[str, Any]:
    """Return the content of an answer in the document, which is valid."""
    document = service.openapi()
    validate(document)
    found: dict[str, Any] = document["paths"]["/"]["get"]["responses"][status]["content"]
    return found


TICK = {"$ref": "#/components/schemas/Tick"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Tick, {NDJSON: TICK, SSE: TICK}),
        (Item, {NDJSON: TICK, SSE: TICK}),
        (Event[Tick], {NDJSON: TICK, SSE: TICK}),
        (
            Event[Tick] | int,
            {NDJSON: {"anyOf": [TICK, {"type": "integer"}]}, SSE: {"anyOf": [TICK, {"type": "integer"}]}},
        ),
        (Event, {NDJSON: {}, SSE: {}}),
        (Any, {NDJSON: {}, SSE: {}}),
        (str, {"text/plain": {"type": "string"}, SSE: {"type": "string"}}),
        (bytes, {OCTETS: {}}),
    ],
)
def test_feeds_in_the_document(service, kind, expected):
    """Each shape of a feed is described by what an item tells."""
    feed(service, kind)
    assert content(service) == {media: {"schema": schema} for media, schema in expected.items()}


def test_other_answers_in_the_document(service):
    """What may be returned instead of a feed is described as well."""

    @service.get("/")
    async def show() -> AsyncIterator[Tick] | Reply[int]:
        return Reply(1)

    assert set(content(service)) == {NDJSON, SSE, "application/json"}


def test_what_gateways_are_told(service):
    """Every route says that it streams."""
    feed(service, int)

    @service.get("/plain")
    async def show() -> int:
        return 1

    service.compile()
    assert [one.metadata["natsweb.streams"] for one, _ in service.endpoints()] == ["yes", "yes"]
