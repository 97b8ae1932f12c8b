"""ASGI apps as handlers: scopes, bodies both ways, what is left after the answer, lifespans, WebSockets."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi import WebSocket as FastWebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.responses import StreamingResponse as StarletteStreaming
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket

from natsweb.asgi import AsgiApp
from natsweb.asgi.conversation import Conversation
from natsweb.asgi.handoff import ClientGone
from natsweb.asgi.http import Http
from natsweb.asgi.scope import http_scope
from natsweb.errors import DeclarationError, Disconnected, StartError, Stopping, WebSocketClosed
from natsweb.headers import Headers
from natsweb.messages import Call, Channel, Request, Response, StreamingResponse
from natsweb.subjects import path_tokens

START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Hold every test to it: whatever it has started has ended."""
    before = asyncio.all_tasks()
    yield
    for _ in range(5):  # what has been cancelled, or told to end, does so
        await asyncio.sleep(0)
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}


class Wire:
    """An in-memory channel: chunks that the test puts in, and a WebSocket if it is told so."""

    finishes = False

    def __init__(self, socket: "Socket | None" = None) -> None:
        self.socket = socket
        self.put: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.asked.set()
                chunk = await self.put.get()
                if isinstance(chunk, Exception):
                    raise chunk
                if chunk is None:
                    return
                yield chunk
        finally:
            self.let_go.set()

    def extend(self, seconds: float) -> None:
        raise NotImplementedError


class Socket:
    """An in-memory WebSocket: `put` is what the client sends, `said` what it hears."""

    def __init__(self, *subprotocols: str) -> None:
        self.subprotocols = list(subprotocols)
        self.is_accepted = False
        self.put: asyncio.Queue[str | bytes | WebSocketClosed] = asyncio.Queue()
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.closed: WebSocketClosed | None = None

    async def accept(self, subprotocol=None, headers=()) -> None:
        self.is_accepted = True
        self.said.put_nowait(("accept", subprotocol, list(Headers(headers))))

    async def receive(self) -> str | bytes:
        found = await self.put.get()
        if isinstance(found, WebSocketClosed):
            self.closed = found
            raise found
        return found

    async def send(self, data: str | bytes) -> None:
        if self.closed is not None:
            raise self.closed
        self.said.put_nowait(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed is not None:
            raise self.closed
        self.closed = WebSocketClosed(code, reason)
        self.said.put_nowait(("close", code, reason))
        self.put.put_nowait(self.closed)


def call_of(path: str = "/", method: str = "GET", *, channel: Channel | None = None, **more: Any) -> Call:
    """Return a call on a path."""
    headers = Headers(more.pop("headers", ()))
    call = Call(method, path_tokens(path), headers=headers, **more)
    call.channel = channel
    return call


def saying(*messages: dict[str, Any]) -> Callable[..., Any]:
    """Return an app that sends these messages and returns."""

    async def app(scope, receive, send) -> None:
        for message in messages:
            await send(message)

    return app


def body(piece: bytes = b"", more: bool = False) -> dict[str, Any]:
    """Return a body message."""
    return {"type": "http.response.body", "body": piece, "more_body": more}


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """Return a head message."""
    return {"type": "http.response.start", "status": status, "headers": headers}


async def answer(app: Callable[..., Any], call: Call | None = None, **options: Any) -> Response:
    """Return the answer of an app."""
    return await AsgiApp(app, **options).handle(call or call_of())


async def rest_of(response: Response) -> list[bytes]:
    """Return the pieces of a streamed answer."""
    assert response.pieces is not None
    return [piece async for piece in response.pieces.source]


async def ended(call: Call) -> None:
    """Do what whoever has made the call does after the reply."""
    if call.after is not None:
        await call.after.close()


# ── scopes ───────────────────────────────────────────────────────────────────────────────────────


async def scope_of(call: Call, **options: Any) -> dict[str, Any]:
    """Return the scope that an app sees."""
    seen: list[dict[str, Any]] = []

    async def app(scope, receive, send) -> None:
        seen.append(scope)
        await send(start())
        await send(body())

    await answer(app, call, **options)
    return seen[0]


async def test_the_scope():
    """A scope has exactly the entries of the specification."""
    call = call_of(
        "/shop/a%2Fb%20c/%C3%BC/",
        "POST",
        query="q=%20&q",
        headers=[("Host", "shop.example:8080"), ("X-A", "1"), ("x-a", "\xe9")],
        body=b"12",
        client="10.0.0.1:4711",
        scheme="https",
    )
    assert await scope_of(call, prefix="/shop") == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/shop/a/b c/ü/",
        "raw_path": b"/shop/a%2Fb%20c/%C3%BC/",
        "query_string": b"q=%20&q",
        "root_path": "/shop",
        "headers": [(b"host", b"shop.example:8080"), (b"x-a", b"1"), (b"x-a", b"\xe9"), (b"content-length", b"2")],
        "client": ("10.0.0.1", 4711),
        "server": ("shop.example", 8080),
        "state": {},
    }


# what the call has, what the scope has
ENTRIES = [
    ({}, {"client": None, "server": None, "path": "/", "raw_path": b"/", "root_path": "", "headers": []}),
    ({"path": "/a.b/%41"}, {"path": "/a.b/A", "raw_path": b"/a%2Eb/A"}),
    ({"client": "[2001:db8::1]:80"}, {"client": ("2001:db8::1", 80)}),
    ({"client": "nonsense:x"}, {"client": None}),
    ({"client": "10.0.0.1"}, {"client": ("10.0.0.1", 0)}),
    ({"headers": {"host": "a"}}, {"server": ("a", 80)}),
    ({"headers": {"host": "a"}, "scheme": "https"}, {"server": ("a", 443)}),
    ({"headers": {"host": "[::1]"}}, {"server": ("::1", 80)}),
    ({"headers": {"host": "[::1]:81"}}, {"server": ("::1", 81)}),
    ({"headers": {"content-length": "2"}, "body": b"12"}, {"headers": [(b"content-length", b"2")]}),
    ({"headers": {"content-length": "9"}, "body": b"12", "more": True}, {"headers": [(b"content-length", b"9")]}),
    ({"body": b"12", "more": True}, {"headers": []}),
]


@pytest.mark.parametrize(("given", "wanted"), ENTRIES)
async def test_entries_of_the_scope(given, wanted):
    """Addresses, paths and lengths of all kinds."""
    scope = await scope_of(call_of(**given))
    assert {name: scope[name] for name in wanted} == wanted


async def test_a_request_instead_of_a_call():
    """A pydantic request gives the same scope as the call that it was made of."""
    call = call_of("/a/b", "PUT", query="q", headers={"host": "a"}, body=b"12", client="10.0.0.1:1")
    assert await scope_of(call) == await scope_of(call.request())


async def test_context_variables():
    """The app sees the context variables of whoever asks it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("here")

    async def app(scope, receive, send) -> None:
        await send(start())
        await send(body(variable.get().encode()))

    assert (await answer(app)).body == b"here"


@pytest.mark.parametrize("prefix", ["shop", "/shop/", "/"])
def test_a_prefix_that_is_none(prefix):
    """A prefix that no path can begin with is refused at once."""
    with pytest.raises(DeclarationError, match="cannot be mounted"):
        AsgiApp(saying(), prefix=prefix)


# ── plain answers ────────────────────────────────────────────────────────────────────────────────


async def test_a_plain_answer():
    """Status, headers and body come exactly as they were sent, repeated fields as well."""
    fields = ((b"Set-Cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x", b"\xe9"))
    response = await answer(saying(start(201, *fields), body(b"hello")))
    assert type(response) is Response
    assert (response.status, response.body) == (201, b"hello")
    assert response.headers.fields == [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x", b"\xe9")]


LENGTH = (b"content-length", b"5")

# what the app sends, method, body
WHOLE = [
    ([start(200, LENGTH), body(b"hello", more=True), body()], "GET", b"hello"),
    ([start(200, LENGTH), body(b"hello", more=True)], "GET", b"hello"),
    ([start(200, (b"content-length", b"0")), body(more=True), body()], "GET", b""),
    ([start(), {"type": "http.response.body"}], "GET", b""),
    ([start(200, LENGTH), body()], "HEAD", b""),
    ([start(200, LENGTH), body(b"hello")], "HEAD", b""),
    ([start(200, LENGTH), body(b"he", more=True), body()], "HEAD", b""),
    ([start(304, LENGTH), body()], "GET", b""),
    ([start(204), body(more=True), body()], "GET", b""),
    ([{**START, "trailers": True}, body(b"x"), {"type": "http.response.trailers", "headers": []}], "GET", b"x"),
    ([{"type": "http.response.debug", "info": {}}, start(), body(b"x")], "GET", b"x"),
]


@pytest.mark.parametrize(("messages", "method", "wanted"), WHOLE)
async def test_what_is_whole_at_once(messages, method, wanted):
    """An answer is plain if its first part is the last one, as long as it says, or if it has no body."""
    call = call_of(method=method)
    response = await answer(saying(*messages), call)
    assert (response.pieces, response.body) == (None, wanted)
    length = dict(messages[0].get("headers", ())).get(b"content-length")
    assert response.headers.get_bytes(b"content-length") == length
    await ended(call)


async def test_head_of_an_endless_answer():
    """An app that streams for ever is stopped when it is asked for the head only."""
    stopped = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send(start())
        try:
            while True:
                await send(body(b"x", more=True))
        except OSError:
            stopped.set()

    call = call_of(method="HEAD")
    assert (await answer(app, call)).pieces is None
    await stopped.wait()
    await ended(call)


async def test_head_without_a_body_message():
    """An app that takes its time with the body has no say in an answer to HEAD."""
    never = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send(start(200, LENGTH))
        await never.wait()

    call = call_of(method="HEAD")
    response = await answer(app, call)
    assert (response.pieces, response.headers["content-length"]) == (None, "5")
    never.set()
    await ended(call)


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────

# what the app sends, the complaint
MISTAKES = [
    ([], "without an answer"),
    ([start()], "before its answer was complete"),
    ([body()], "before http.response.start"),
    ([start(), start()], "twice"),
    ([start(103)], "status 103"),
    ([start(600)], "status 600"),
    ([{**START, "status": "200"}], "status '200'"),
    ([start(200, (b"a b", b"c"))], "headers that cannot be sent: b'a b'"),
    ([start(200, (b"a", b"b\r\nc: d"))], "headers that cannot be sent"),
    ([start(200, (b"a",))], "headers that cannot be sent"),
    ([start(200, (b"content-length", b"1, 1"))], "no length"),
    ([start(200, LENGTH), body(b"hell")], "shorter than its content-length"),
    ([start(200, LENGTH), body(b"hello!")], "longer than its content-length"),
    ([{"type": "websocket.accept"}], "no part of an HTTP response"),
]


@pytest.mark.parametrize(("messages", "complaint"), MISTAKES)
async def test_mistakes_of_the_app(messages, complaint):
    """What makes no answer is an error that says so."""
    with pytest.raises(RuntimeError, match=complaint):
        await answer(saying(*messages))


@pytest.mark.parametrize("messages", [[body(b"x")], [body(b"x", more=True)], [start()]])
async def test_mistakes_after_the_answer(messages, caplog):
    """What is sent after the end goes nowhere but into the log."""
    call = call_of("/a")
    response = await answer(saying(start(), body(b"hello"), *messages), call)
    assert response.body == b"hello"
    await ended(call)
    [record] = caplog.records
    assert "<Http GET /a> failed after its answer" in record.message
    assert isinstance(record.exc_info[1], RuntimeError)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
async def test_an_error_before_the_answer(error):
    """What the app raises before it has answered is raised, whatever it is."""

    async def app(scope, receive, send) -> None:
        await send(start())
        raise error

    with pytest.raises(type(error)) as caught:
        await answer(app)
    assert caught.value is error


async def test_an_app_that_cancels_itself():
    """A cancellation of the app's own is an error, not one of whoever asks."""

    async def app(scope, receive, send) -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled itself"):
        await answer(app)


async def test_an_error_after_the_answer(caplog):
    """Starlette answers 500 by itself and raises then: the answer counts, and the error is logged."""

    async def fail(request) -> None:
        raise ValueError("no")

    call = call_of("/a")
    response = await answer(Starlette(routes=[Route("/a", fail)]), call)
    assert (response.status, response.text) == (500, "Internal Server Error")
    await ended(call)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["no"]


# ── streamed answers ─────────────────────────────────────────────────────────────────────────────


async def test_backpressure():
    """The app's send waits until its piece has been taken: it is never ahead by more than one."""
    done: list[int] = []

    async def app(scope, receive, send) -> None:
        await send(start(200, (b"content-length", b"3")))
        for number in range(3):
            await send(body(b"%d" % number, more=True))
            done.append(number)

    call = call_of()
    response = await answer(app, call)
    assert isinstance(response, StreamingResponse)
    assert response.headers["content-length"] == "3"
    assert response.pieces is not None
    assert not response.pieces.feed
    for number in range(3):
        for _ in range(10):
            await asyncio.sleep(0)
        assert done == list(range(number))
        assert await anext(response.pieces.source) == b"%d" % number
    with pytest.raises(StopAsyncIteration):
        await anext(response.pieces.source)
    await ended(call)
    assert done == [0, 1, 2]


async def test_pieces():
    """Empty parts are no pieces, and the last part may have one."""
    app = saying(start(), body(more=True), body(b"a", more=True), body(more=True), body(b"b"))
    assert await rest_of(await answer(app)) == [b"a", b"b"]


async def test_sending_from_two_tasks():
    """Two tasks of an app may send at once; no piece is lost."""

    async def app(scope, receive, send) -> None:
        await send(start())
        await asyncio.gather(*(send(body(b"%d" % number, more=True)) for number in range(5)))
        await send(body())

    assert await rest_of(await answer(app)) == [b"0", b"1", b"2", b"3", b"4"]


async def test_an_event_stream_is_answered_at_its_head():
    """A feed is answered before its first event, and ends well."""
    event = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send(start(200, (b"content-type", b"text/event-stream; charset=utf-8")))
        await event.wait()
        await send(body(b"data: 1\n\n"))

    response = await answer(app)
    assert response.pieces is not None
    assert response.pieces.feed
    event.set()
    assert await rest_of(response) == [b"data: 1\n\n"]


async def test_a_head_without_a_body_is_answered_soon():
    """A body that takes its time does not hold back the head."""
    event = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send(start(202))
        await event.wait()
        await send(body(b"late"))

    response = await answer(app)
    assert (response.status, response.pieces is None) == (202, False)
    event.set()
    assert await rest_of(response) == [b"late"]


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([start(), body(b"a", more=True)], "before its answer was complete"),
        ([start(200, LENGTH), body(b"a", more=True), body(b"b")], "shorter"),
        ([start(200, LENGTH), body(b"a", more=True), body(b"bcdefg")], "longer"),
        ([start(), body(b"a", more=True), start()], "twice"),
    ],
)
async def test_an_error_in_the_middle(messages, complaint):
    """What goes wrong after the first piece is raised where the next one is asked for, again and again."""
    response = await answer(saying(*messages))
    assert response.pieces is not None
    assert await anext(response.pieces.source) == b"a"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=complaint):
            await anext(response.pieces.source)


async def test_an_exception_in_the_middle():
    """What the app raises in the middle of its answer is what cuts the stream off."""

    async def rows() -> AsyncIterator[str]:
        yield "a"
        raise ValueError("no")

    async def show(request) -> StarletteStreaming:
        return StarletteStreaming(rows())

    response = await answer(Starlette(routes=[Route("/", show)]))
    assert response.pieces is not None
    assert await anext(response.pieces.source) == b"a"
    with pytest.raises(ValueError, match="no"):
        await anext(response.pieces.source)


async def test_an_answer_through_middleware():
    """Starlette's BaseHTTPMiddleware makes a stream of every answer; by its length it is plain again."""

    async def pass_on(request, call_next) -> Any:
        response = await call_next(request)
        response.headers["x-seen"] = "1"
        return response

    async def show(request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", show)], middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)])
    call = call_of()
    response = await answer(app, call)
    assert b"".join([response.body] if response.pieces is None else await rest_of(response)) == b"hello"
    assert response.headers["x-seen"] == "1"
    await ended(call)


# ── request bodies ───────────────────────────────────────────────────────────────────────────────


async def test_a_body_that_is_here():
    """A body that is here is one message."""

    async def app(scope, receive, send) -> None:
        message = await receive()
        assert message == {"type": "http.request", "body": b"hello", "more_body": False}
        await send(start())
        await send(body(message["body"]))
        assert await receive() == {"type": "http.disconnect"}
        assert await receive() == {"type": "http.disconnect"}

    call = call_of(body=b"hello")
    assert (await answer(app, call)).body == b"hello"
    await ended(call)


@pytest.mark.parametrize("as_request", [False, True])
async def test_a_body_that_comes_as_a_stream(as_request):
    """The parts of a body come as they are asked for, and go back as they come."""
    wire = Wire()

    async def app(scope, receive, send) -> None:
        await send(start())
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send(body(message["body"].upper(), more=more))

    call = call_of(body=b"a", more=True, channel=wire)
    response = await AsgiApp(app).handle(call.request() if as_request else call)
    assert response.pieces is not None
    assert await anext(response.pieces.source) == b"A"
    await wire.asked.wait()
    wire.put.put_nowait(b"b")
    assert await anext(response.pieces.source) == b"B"
    wire.put.put_nowait(None)
    assert await rest_of(response) == []
    await ended(call)
    await wire.let_go.wait()


async def test_a_part_that_the_app_did_not_wait_for():
    """A receive that is given up loses nothing: the next one gives the part."""
    wire = Wire()

    async def app(scope, receive, send) -> None:
        reading = asyncio.ensure_future(receive())
        await wire.asked.wait()
        reading.cancel()
        await asyncio.wait([reading])
        wire.put.put_nowait(b"hello")
        message = await receive()
        await send(start())
        await send(body(message["body"]))

    call = call_of(more=True, channel=wire)
    assert (await answer(app, call)).body == b"hello"
    await ended(call)
    await wire.let_go.wait()


async def test_a_body_that_is_cut_off():
    """A body that breaks off is a disconnect for the app, and its answer is that error."""
    wire = Wire()
    wire.put.put_nowait(b"a")
    wire.put.put_nowait(Disconnected("cut off"))

    async def app(scope, receive, send) -> None:
        await StarletteRequest(scope, receive).body()

    with pytest.raises(Disconnected, match="cut off"):
        await answer(app, call_of(more=True, channel=wire))


async def test_an_app_that_answers_a_body_that_is_cut_off():
    """An app may answer all the same."""
    wire = Wire()
    wire.put.put_nowait(Disconnected("cut off"))

    async def app(scope, receive, send) -> None:
        assert await receive() == {"type": "http.disconnect"}
        assert await receive() == {"type": "http.disconnect"}
        await send(start(400))
        await send(body())

    assert (await answer(app, call_of(more=True, channel=wire))).status == 400


async def test_a_body_that_nobody_reads():
    """The disconnect after the answer ends a receive that waits for the rest of the body."""
    wire = Wire()

    async def app(scope, receive, send) -> None:
        listening = asyncio.ensure_future(receive())
        await wire.asked.wait()
        await send(start())
        await send(body())
        assert await listening == {"type": "http.disconnect"}

    call = call_of(more=True, channel=wire)
    await answer(app, call)
    await ended(call)
    await wire.let_go.wait()


# ── the client leaves ────────────────────────────────────────────────────────────────────────────


async def test_cancelling_before_the_answer():
    """A cancelled request ends at once; its app hears of it, cannot send, and ends by itself."""
    waiting, heard, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send) -> None:
        await receive()
        waiting.set()
        assert await receive() == {"type": "http.disconnect"}
        heard.set()
        for message in (start(), body()):
            with pytest.raises(OSError, match="client is gone"):
                await send(message)
        gone.set()

    one = AsgiApp(app)
    task = asyncio.create_task(one.handle(call_of()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not heard.is_set()
    await gone.wait()
    await one.stop()


async def test_cancelling_while_a_body_comes():
    """A cancelled request ends a receive that waits for a part of its body."""
    wire, heard = Wire(), asyncio.Event()

    async def app(scope, receive, send) -> None:
        assert await receive() == {"type": "http.disconnect"}
        heard.set()

    task = asyncio.create_task(answer(app, call_of(more=True, channel=wire)))
    await wire.asked.wait()
    task.cancel()
    await heard.wait()
    await wire.let_go.wait()


async def test_an_app_without_grace():
    """Without any grace the app may be cancelled before its first step; nothing is left of it."""
    begun: list[int] = []

    async def app(scope, receive, send) -> None:
        begun.append(1)

    call = call_of()
    running: set[Conversation] = set()
    one = Http(app, http_scope(call, "", {}), call, running, grace=0)
    task = asyncio.create_task(one.respond())
    one_step = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: (one.cancel(), one_step.set_result(None)))
    await one_step
    with pytest.raises(RuntimeError, match="cancelled itself"):
        await task
    assert (begun, running) == ([], set())


async def test_what_nobody_asked_for():
    """An error of the body that comes when the app has ended already is nobody's."""
    wire = Wire()

    async def app(scope, receive, send) -> None:
        reading = asyncio.ensure_future(receive())
        await wire.asked.wait()
        reading.cancel()
        wire.put.put_nowait(Disconnected("cut off"))
        await wire.let_go.wait()
        await send(start())
        await send(body())

    assert (await answer(app, call_of(more=True, channel=wire))).status == 200


async def test_an_app_that_does_not_listen_is_cancelled():
    """After its grace an app that goes on is cancelled, and may clean up."""
    waiting, cleaned = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send) -> None:
        waiting.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.set()

    task = asyncio.create_task(answer(app, grace=0.01))
    await waiting.wait()
    task.cancel()
    await cleaned.wait()


async def test_closing_a_stream_early(caplog):
    """A stream that is closed early ends the app, read or not, without a word in the log."""
    for count in (0, 1):
        closed = asyncio.Event()

        async def numbers(closed: asyncio.Event = closed) -> AsyncIterator[str]:
            try:
                while True:
                    yield "x"
            finally:
                closed.set()

        async def show(request, source: Any = numbers) -> StarletteStreaming:
            return StarletteStreaming(source())

        call = call_of()
        response = await answer(Starlette(routes=[Route("/", show)]), call)
        assert response.pieces is not None
        for _ in range(count):
            assert await anext(response.pieces.source) == b"x"
        await response.pieces.close()
        await ended(call)
        with pytest.raises((Stopping, OSError)):
            await anext(response.pieces.source)
        await closed.wait()
    assert not caplog.records


async def test_a_reply_that_has_gone_without_its_stream():
    """A streamed answer that nobody has read is closed with the reply."""
    call = call_of()
    response = await answer(saying(start(), body(b"a", more=True), body(b"b")), call)
    assert response.pieces is not None
    await ended(call)


async def test_closing_after_the_end():
    """Closing a stream that has ended disturbs nothing."""
    after = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send(start())
        await send(body(b"a", more=True))
        await send(body(b"b"))
        await asyncio.sleep(0)
        after.set()

    call = call_of()
    response = await answer(app, call)
    assert await rest_of(response) == [b"a", b"b"]
    assert response.pieces is not None
    await response.pieces.close()
    await ended(call)
    assert after.is_set()


async def test_what_goes_wrong_when_the_client_has_gone(caplog):
    """An app's own error on its way out is logged; that it was told to leave is none."""

    async def app(scope, receive, send) -> None:
        await send(start())
        try:
            await send(body(b"a", more=True))
        except ClientGone:
            if scope["path"] == "/bug":
                raise ValueError("no") from None
            raise ExceptionGroup("several", [ClientGone(), ClientGone()]) from None

    for path, count in (("/", 0), ("/bug", 1)):
        call = call_of(path)
        await answer(app, call)
        await ended(call)
        assert len(caplog.records) == count


# ── after the answer ─────────────────────────────────────────────────────────────────────────────


class Noting:
    """Something that is left to do after a reply."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    async def close(self) -> None:
        self.notes.append("before")


@pytest.mark.parametrize("as_request", [False, True])
async def test_background_tasks(as_request):
    """Background tasks run while the reply goes, and are waited for, before what was there before."""
    notes: list[str] = []
    gate = asyncio.Event()

    async def work() -> None:
        await gate.wait()
        notes.append("work")

    async def show(request) -> PlainTextResponse:
        return PlainTextResponse("hello", background=BackgroundTask(work))

    call = call_of()
    call.after = Noting(notes)
    one = AsgiApp(Starlette(routes=[Route("/", show)]))
    response = await one.handle(call.request() if as_request else call)
    assert (response.text, notes) == ("hello", [])
    closing = asyncio.create_task(call.after.close())
    await asyncio.sleep(0)
    assert notes == []
    gate.set()
    await closing
    assert notes == ["work", "before"]
    assert "0 requests" in repr(one)


async def test_what_is_left_to_stop():
    """What no call takes care of is awaited by `stop`, and cancelled after the grace."""
    gates = {"/": asyncio.Event(), "/never": asyncio.Event()}
    ends: list[str] = []

    async def app(scope, receive, send) -> None:
        await send(start())
        await send(body())
        try:
            await gates[scope["path"]].wait()
            ends.append(scope["path"])
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    one = AsgiApp(app, grace=0.01)
    for path in gates:
        await one.handle(Request(raw_path=path))
    gates["/"].set()
    await one.stop()
    assert ends == ["/", "cancelled"]


async def test_cancelling_what_is_left():
    """Whoever gives up waiting for the rest cancels it, and what was there before still has its turn."""
    notes: list[str] = []

    async def app(scope, receive, send) -> None:
        await send(start())
        await send(body())
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            notes.append("cancelled")

    call = call_of()
    call.after = Noting(notes)
    await answer(app, call)
    closing = asyncio.create_task(call.after.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.sleep(0)
    assert sorted(notes) == ["before", "cancelled"]


async def test_an_error_in_the_background(caplog):
    """What background work raises is logged and harms nobody."""

    async def work() -> None:
        raise ValueError("no")

    async def show(request) -> PlainTextResponse:
        return PlainTextResponse("hello", background=BackgroundTask(work))

    call = call_of()
    assert (await answer(Starlette(routes=[Route("/", show)]), call)).text == "hello"
    await ended(call)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["no"]


async def test_nothing_is_left_of_a_plain_answer():
    """An app that returns with its answer leaves nothing to do."""
    call = call_of()
    await answer(saying(start(), body(b"hello")), call)
    assert call.after is None


async def test_stopping_under_a_request():
    """A request that is still without an answer when the app stops has it: the service is stopping."""
    waiting = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await receive()
        waiting.set()
        await receive()

    one = AsgiApp(app)
    task = asyncio.create_task(one.handle(call_of()))
    await waiting.wait()
    await one.stop()
    with pytest.raises(Stopping):
        await task


async def test_an_app_that_cannot_be_stopped(caplog, monkeypatch):
    """An app that goes on after it was cancelled is left there, with a word in the log."""
    monkeypatch.setattr("natsweb.asgi._CANCELLING_TIME", 0.01)
    gate = asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send(start())
        await send(body())
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                pass

    one = AsgiApp(app, grace=0.01)
    call = call_of()
    await one.handle(call)
    await one.stop()
    assert "goes on after it was cancelled" in caplog.text
    gate.set()
    await ended(call)


# ── lifespans ────────────────────────────────────────────────────────────────────────────────────


async def test_the_lifespan_of_starlette():
    """Startup comes first, its state is in each scope as a copy, and shutdown comes last."""
    notes: list[str] = []
    counts: list[int] = []

    @asynccontextmanager
    async def lifespan(app) -> AsyncIterator[dict[str, Any]]:
        notes.append("up")
        yield {"pool": counts, "name": "a"}
        notes.append("down")

    async def show(request) -> PlainTextResponse:
        request.state.pool.append(1)
        request.scope["state"]["name"] += "b"
        return PlainTextResponse(request.scope["state"]["name"])

    one = AsgiApp(Starlette(routes=[Route("/", show)], lifespan=lifespan))
    assert not one.is_running
    async with one:
        assert (one.is_running, notes) == (True, ["up"])
        await one.start()
        for _ in range(2):
            assert (await one.handle(call_of())).text == "ab"
    assert (one.is_running, notes, counts) == (False, ["up", "down"], [1, 1])
    await one.stop()
    async with one:
        assert notes == ["up", "down", "up"]


async def test_a_startup_that_fails():
    """A startup that fails is an error that says why, in three parts."""

    @asynccontextmanager
    async def lifespan(app) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    one = AsgiApp(Starlette(lifespan=lifespan))
    with pytest.raises(StartError) as caught:
        await one.start()
    assert caught.value.what == "the ASGI app could not start: OSError: no database"
    assert caught.value.where and caught.value.fix
    assert not one.is_running


def speaking(*messages: str, then: Callable[[], Any] | None = None) -> Callable[..., Any]:
    """Return an app that answers each lifespan message with the next one of `messages`."""

    async def app(scope, receive, send) -> None:
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        for message in messages:
            await receive()
            kind, _, text = message.partition(":")
            await send({"type": f"lifespan.{kind}", **({"message": text} if text else {})})
        if then is not None:
            await then()

    return app


async def test_a_startup_that_says_no():
    """An app may fail without a traceback, and without a reason."""
    for message, what in (("startup.failed:no disk", "no disk"), ("startup.failed", "it does not say why")):
        with pytest.raises(StartError, match=what):
            await AsgiApp(speaking(message)).start()


@pytest.mark.parametrize("error", [None, AssertionError("http only"), SystemExit(1)])
async def test_apps_without_a_lifespan(error):
    """An app that knows no lifespan is served without one."""

    async def app(scope, receive, send) -> None:
        if scope["type"] != "http":
            if error is not None:
                raise error
            return
        await saying(start(), body(b"hello"))(scope, receive, send)

    async with AsgiApp(app) as one:
        assert one.is_running
        assert (await one.handle(call_of())).body == b"hello"


async def test_a_startup_that_takes_too_long():
    """A startup has a deadline, and is cancelled then; whoever cancels the start cancels it as well."""
    cancelled: list[int] = []
    begun = asyncio.Event()

    async def app(scope, receive, send) -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.append(1)

    with pytest.raises(StartError, match=r"did not start within 0\.01 s"):
        await AsgiApp(app).start(0.01)
    assert cancelled == [1]
    begun.clear()
    task = asyncio.create_task(AsgiApp(app).start())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == [1, 1]


async def test_a_shutdown_that_fails(caplog):
    """What goes wrong while the app stops is logged."""
    async with AsgiApp(speaking("startup.complete", "shutdown.failed:no disk")):
        pass
    assert "failed while it was stopping: no disk" in caplog.text


async def test_a_shutdown_that_takes_too_long(caplog):
    """A shutdown has a deadline."""

    async def hang() -> None:
        await asyncio.get_running_loop().create_future()

    one = AsgiApp(speaking("startup.complete", then=hang))
    await one.start()
    await one.stop(0.01)
    assert "did not stop within 0.01 s" in caplog.text
    assert not one.is_running


async def test_a_lifespan_that_breaks_off(caplog):
    """A lifespan that fails while the app runs is logged; the app goes on."""

    async def fail() -> None:
        raise ValueError("no")

    async with AsgiApp(speaking("startup.complete", then=fail)):
        for _ in range(3):
            await asyncio.sleep(0)
        assert "the lifespan of the ASGI app failed" in caplog.text


async def test_a_lifespan_that_says_nonsense(caplog):
    """A message that is none of a lifespan is the app's mistake."""
    caplog.set_level(logging.INFO)
    async with AsgiApp(speaking("startup.done")):
        pass
    assert "'lifespan.startup.done', which is no part of a lifespan" in caplog.text


# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────


def upgrade(socket: Socket, path: str = "/ws", **more: Any) -> Call:
    """Return a call that asks for a WebSocket."""
    return call_of(path, upgrade=True, channel=Wire(socket), **more)


def websocket(handler: Callable[..., Any]) -> Starlette:
    """Return an app with one WebSocket."""
    return Starlette(routes=[WebSocketRoute("/ws", handler)])


async def test_a_websocket():
    """Text and bytes go both ways, and the end comes with its code."""
    socket = Socket("chat", "other")
    ends: list[Any] = []

    async def app(scope, receive, send) -> None:
        assert await receive() == {"type": "websocket.connect"}
        headers = [(b"x-a", b"1"), (b"x-a", b"2")]
        await send({"type": "websocket.accept", "subprotocol": "chat", "headers": headers})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        ends.extend([message, await receive()])
        with pytest.raises(OSError):
            await send({"type": "websocket.send", "text": "late"})

    for message in ("a", "", b"b", b"", WebSocketClosed(4000, "bye")):
        socket.put.put_nowait(message)
    response = await answer(app, upgrade(socket))
    assert (response.status, response.body) == (204, b"")
    said = [socket.said.get_nowait() for _ in range(socket.said.qsize())]
    assert said == [("accept", "chat", [("x-a", "1"), ("x-a", "2")]), "a", "", b"b", b""]
    assert ends == [{"type": "websocket.disconnect", "code": 4000, "reason": "bye"}] * 2


async def test_the_scope_of_a_websocket():
    """The scope of a WebSocket has its scheme and subprotocols, and no method."""
    seen: list[dict[str, Any]] = []

    async def app(scope, receive, send) -> None:
        seen.append(scope)
        await send({"type": "websocket.close"})

    await answer(app, upgrade(Socket("a", "b"), "/shop/ws", scheme="https"), prefix="/shop")
    await answer(app, upgrade(Socket()))
    scope, plain = seen
    assert scope["type"] == "websocket" and "method" not in scope
    assert (scope["scheme"], plain["scheme"]) == ("wss", "ws")
    assert (scope["subprotocols"], plain["subprotocols"]) == (["a", "b"], [])
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == ("/shop/ws", b"/shop/ws", "/shop")
    assert scope["extensions"] == {"websocket.http.response": {}}


async def test_a_websocket_of_fastapi():
    """FastAPI's WebSockets work; the app may leave it to the exception that the client has gone."""
    app, socket = FastAPI(), Socket()

    @app.websocket("/ws/{name}")
    async def echo(websocket: FastWebSocket, name: str) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text(f"{name}: {await websocket.receive_text()}")

    task = asyncio.create_task(AsgiApp(app).handle(upgrade(socket, "/ws/me").request()))
    assert await socket.said.get() == ("accept", None, [])
    for text in ("a", "b"):
        socket.put.put_nowait(text)
        assert await socket.said.get() == f"me: {text}"
    socket.put.put_nowait(WebSocketClosed(1001))
    assert (await task).status == 204


@pytest.mark.parametrize(("given", "wanted"), [({}, (1000, "")), ({"code": 4001, "reason": "no"}, (4001, "no"))])
async def test_the_app_closes(given, wanted):
    """The app's code and reason go to the client; after that there is nothing to send, and a disconnect to hear."""
    socket = Socket()
    heard: list[Any] = []

    async def app(scope, receive, send) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.close", **given})
        heard.append(await receive())
        with pytest.raises(OSError):
            await send({"type": "websocket.send", "text": "late"})

    await answer(app, upgrade(socket))
    assert [await socket.said.get() for _ in range(2)] == [("accept", None, []), ("close", *wanted)]
    assert heard == [{"type": "websocket.disconnect", "code": wanted[0], "reason": wanted[1]}]


async def test_an_app_that_returns():
    """An app that returns from an open WebSocket closes it."""
    socket = Socket()

    async def leave(websocket: StarletteWebSocket) -> None:
        await websocket.accept()

    assert (await answer(websocket(leave), upgrade(socket))).status == 204
    assert [await socket.said.get() for _ in range(2)] == [("accept", None, []), ("close", 1000, "")]


async def test_a_client_that_is_faster():
    """Sending to a client that has gone is an OSError; closing is nothing."""
    socket = Socket()

    async def app(scope, receive, send) -> None:
        await send({"type": "websocket.accept"})
        socket.closed = WebSocketClosed(1001)
        if scope["path"] == "/close":
            await send({"type": "websocket.close"})
            return
        with pytest.raises(OSError):
            await send({"type": "websocket.send", "text": "a"})

    for path in ("/close", "/send"):
        assert (await answer(app, upgrade(socket, path))).status == 204


async def test_a_refused_websocket():
    """A WebSocket that is closed before it was accepted is 403."""
    socket = Socket()

    async def refuse(websocket: StarletteWebSocket) -> None:
        await websocket.close(4003)
        assert (await websocket._receive())["code"] == 1006

    response = await answer(websocket(refuse), upgrade(socket))
    assert (response.status, response.parse_json()["reason"]) == (403, "refused")
    assert socket.said.empty()
    assert (await answer(websocket(refuse), upgrade(socket, "/elsewhere"))).status in (403, 404)


async def test_a_response_instead_of_a_websocket():
    """A WebSocket can be answered with any response, plain or streamed."""

    async def deny(websocket: StarletteWebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("come back", 429, {"retry-after": "1"}))

    response = await answer(websocket(deny), upgrade(Socket()))
    assert (response.status, response.text, response.headers["retry-after"]) == (429, "come back", "1")

    async def stream(websocket: StarletteWebSocket) -> None:
        async def rows() -> AsyncIterator[str]:
            yield "a"
            yield "b"

        await websocket.send_denial_response(StarletteStreaming(rows(), 401))

    call = upgrade(Socket())
    response = await answer(websocket(stream), call)
    assert (response.status, await rest_of(response)) == (401, [b"a", b"b"])
    await ended(call)


ACCEPT = {"type": "websocket.accept"}
DENY = {"type": "websocket.http.response.start", "status": 401, "headers": []}

# what the app sends, the complaint
WEBSOCKET_MISTAKES = [
    ([], "without an answer"),
    ([DENY], "before its answer was complete"),
    ([{"type": "websocket.send", "text": "a"}], "'websocket.send' to a WebSocket that is connecting"),
    ([ACCEPT, ACCEPT], "'websocket.accept' to a WebSocket that is open"),
    ([ACCEPT, DENY], "that is open"),
    ([DENY, ACCEPT], "that is refusing"),
    ([ACCEPT, {"type": "websocket.send"}], "without text and without bytes"),
    ([{**ACCEPT, "headers": [(b"a", b"b\nc")]}], "headers that cannot be sent"),
    ([START], "'http.response.start'"),
]


@pytest.mark.parametrize(("messages", "complaint"), WEBSOCKET_MISTAKES)
async def test_mistakes_with_websockets(messages, complaint):
    """What has no place in a WebSocket's life is an error that says so."""
    with pytest.raises(RuntimeError, match=complaint):
        await answer(saying(*messages), upgrade(Socket()))


@pytest.mark.parametrize("accepts", [False, True])
async def test_an_error_in_a_websocket(accepts):
    """What the app raises is raised, and closing an open socket is left to whoever serves it."""
    socket = Socket()

    async def fail(websocket: StarletteWebSocket) -> None:
        if accepts:
            await websocket.accept()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await answer(websocket(fail), upgrade(socket))
    assert socket.closed is None


async def test_cancelling_a_websocket():
    """A cancelled WebSocket ends at once; its app hears 1006, and cannot send any more."""
    socket, heard = Socket(), asyncio.Event()

    async def app(scope, receive, send) -> None:
        await receive()
        await send(ACCEPT)
        assert await receive() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        with pytest.raises(OSError):
            await send({"type": "websocket.send", "text": "late"})
        heard.set()

    task = asyncio.create_task(answer(app, upgrade(socket)))
    await socket.said.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await heard.wait()
    assert socket.closed is None


async def test_stopping_under_a_websocket():
    """An app that stops tells its WebSockets so, with 1012."""
    socket, codes = Socket(), []

    async def app(scope, receive, send) -> None:
        await receive()
        await send(ACCEPT)
        codes.append((await receive())["code"])

    one = AsgiApp(app)
    task = asyncio.create_task(one.handle(upgrade(socket)))
    await socket.said.get()
    await one.stop()
    assert codes == [1012]
    assert (await task).status == 204


# ── frameworks ───────────────────────────────────────────────────────────────────────────────────


async def test_fastapi_below_a_prefix():
    """FastAPI under a prefix: routes, mounts, bodies, and links that have the prefix in them."""
    app = FastAPI()

    @app.post("/orders/{number}")
    async def order(number: int, item: dict[str, str], request: StarletteRequest) -> dict[str, Any]:
        return {"number": number, "item": item, "url": str(request.url_for("order", number=1))}

    async def inner(request) -> PlainTextResponse:
        return PlainTextResponse(request.url.path)

    app.mount("/inner", Starlette(routes=[Mount("/deep", routes=[Route("/{name}", inner)])]))
    async with AsgiApp(app, prefix="/shop") as one:
        headers = {"host": "example.com", "content-type": "application/json"}
        response = await one.handle(call_of("/shop/orders/7", "POST", headers=headers, body=b'{"a": "b"}'))
        wanted = {"number": 7, "item": {"a": "b"}, "url": "http://example.com/shop/orders/1"}
        assert (response.status, response.parse_json()) == (200, wanted)
        response = await one.handle(call_of("/shop/inner/deep/%C3%BC", headers=headers))
        assert response.text == "/shop/inner/deep/ü"
        assert (await one.handle(call_of("/shop/none"))).status == 404
