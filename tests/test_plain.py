"""A service is an ASGI application: one table of requests to three bodies of the same service, which agree.

`plain` is uvicorn with the service alone, `memory` and `nats` have a gateway in front and a bus in between.
"""

import asyncio
import contextlib
import gzip
import hashlib
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
import uvicorn
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.responses import StreamingResponse as StarletteStream
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from natsweb import (
    Background,
    Body,
    Cookie,
    Depends,
    Event,
    Form,
    Header,
    HTTPError,
    Limits,
    Nats,
    Request,
    Response,
    Service,
    StreamingResponse,
    UploadFile,
    WebSocket,
    WebSocketClosed,
)
from natsweb.bus import MemoryBus
from natsweb.errors import Disconnected
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.headers import Headers
from natsweb.member import Member
from natsweb.natsbus import connect
from natsweb.plain import PlainDoor

table = pytest.mark.asyncio(loop_scope="module")

BODIES = ("plain", "memory", "nats")
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
PATIENCE = 10.0


class Journal(list):
    """What has happened in a service; `of` waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def note(self, word: Any) -> None:
        self.append(word)
        self._news.set()

    async def of(self, word: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while word not in self:
                self._news.clear()
                await self._news.wait()


class Order(BaseModel):
    """What comes and goes."""

    id: int
    item: str = Field(min_length=1)


REPLIES = {
    "created": Response(status=201, headers={"location": "/reply/created"}, body=b"made"),
    "cookies": Response(headers=[("set-cookie", "a=1"), ("set-cookie", "b=2; Path=/")]),
    "latin": Response(headers={"x-latin": "\xe9\xff", "x-empty": ""}),
    "empty": Response(),
    "204": Response(status=204, headers={"x-a": "1"}),
    "204-body": Response(status=204, headers={"content-length": "4"}, body=b"body"),
    "205": Response(status=205, body=b"body"),
    "304": Response(status=304, headers={"etag": '"1"'}, body=b"body"),
    "short": Response(headers={"content-length": "3"}, body=b"longer"),
    "long": Response(headers={"content-length": "99"}, body=b"shorter"),
    "bytes": Response(body=bytes(range(256)) * 100),
    "hop": Response(
        headers={
            "connection": "x-named",
            "x-named": "1",
            "keep-alive": "timeout=99",
            "transfer-encoding": "chunked",
            "trailer": "x",
            "upgrade": "h2c",
            "nats-msg-id": "1",
            "nw-status": "599",
            "nw_status": "599",
            "x-kept": "1",
        },
        body=b"hop",
    ),
}


def old_app(journal: Journal) -> Starlette:
    """Return an application that knows nothing of natsweb."""

    async def hello(request: StarletteRequest) -> PlainTextResponse:
        said = await request.body()
        return PlainTextResponse(f"{request.method} {request.url.path} {request.scope['root_path']} {len(said)}")

    async def lines(request: StarletteRequest) -> StarletteStream:
        async def pieces():
            for index in range(3):
                yield f"{index}\n"

        return StarletteStream(pieces(), media_type="text/plain")

    async def talk(ws: Any) -> None:
        await ws.accept(subprotocol="v1" if "v1" in ws.scope["subprotocols"] else None)
        async for text in ws.iter_text():
            await ws.send_text(f"old {text}")
        journal.note("old left")

    async def fails(request: StarletteRequest) -> None:
        raise RuntimeError("old secret")

    routes = [
        Route("/hello", hello, methods=["GET", "POST"]),
        Route("/lines", lines),
        Route("/fails", fails),
        WebSocketRoute("/talk", talk),
    ]
    return Starlette(routes=routes)


def build(root: str, journal: Journal) -> Service:
    """Return the service that all three serve."""
    svc = Service("parity", root=root, max_body=200_000)

    @svc.middleware
    async def stamp(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        return response.with_headers({"x-stamp": "1"})

    @svc.lifespan
    async def life(svc: Service) -> AsyncIterator[dict[str, int]]:
        journal.note("started")
        yield {"answer": 42}
        journal.note("stopped")

    @svc.get("/")
    async def index() -> str:
        return "index"

    @svc.get("/orders/<id>")
    async def show(id: int) -> Order:
        return Order(id=id, item="tea")

    @svc.get("/orders/<id>/<part>")
    async def part(id: int, part: str) -> str:
        return f"{part} of {id}"

    @svc.post("/orders", status=201)
    async def make(order: Order) -> Order:
        return order

    @svc.get("/search")
    async def search(
        q: str, page: int = 1, x_tenant: Annotated[str, Header()] = "-", sid: Annotated[str, Cookie()] = "-"
    ) -> dict[str, Any]:
        return {"q": q, "page": page, "tenant": x_tenant, "sid": sid}

    @svc.route("/echo/<path:rest>", methods=METHODS)
    async def echo(rest: str, request: Request) -> Response:
        return Response(headers={"content-type": "application/json"}, body=request.model_dump_json())

    @svc.get("/reply/<name>")
    async def reply(name: str) -> Response:
        return REPLIES[name]

    @svc.get("/fails")
    async def fails() -> None:
        raise RuntimeError("secret")

    @svc.get("/gone")
    async def gone() -> None:
        raise HTTPError(410, "it is gone", reason="sold", headers={"x-a": "1"})

    @svc.get("/state")
    def state() -> dict[str, int]:
        return svc.state

    @svc.post("/form")
    async def form(name: Annotated[str, Form()], age: Annotated[int, Form()] = 0) -> dict[str, Any]:
        return {"name": name, "age": age}

    @svc.post("/upload")
    async def upload(file: UploadFile, note: Annotated[str, Form()] = "") -> dict[str, Any]:
        data = await file.read()
        return {"name": file.filename, "size": len(data), "sha": hashlib.sha256(data).hexdigest(), "note": note}

    @svc.post("/whole")
    async def whole(body: Annotated[bytes, Body()]) -> dict[str, int]:
        return {"size": len(body)}

    @svc.post("/digest")
    async def digest(body: AsyncIterator[bytes]) -> dict[str, Any]:
        sha, size = hashlib.sha256(), 0
        async for chunk in body:
            sha.update(chunk)
            size += len(chunk)
        return {"size": size, "sha": sha.hexdigest()}

    @svc.post("/unread", stream=True)
    async def unread(request: Request) -> str:
        return "I do not care"

    @svc.post("/upper", stream=True)
    async def upper(request: Request) -> StreamingResponse:
        return StreamingResponse(chunk.upper() async for chunk in request.stream())

    @svc.post("/first", stream=True)
    async def first(request: Request) -> None:
        try:
            async for chunk in request.stream():
                journal.note(("first", bytes(chunk)))
        except Disconnected:
            journal.note("first cut")
            raise
        except asyncio.CancelledError:
            journal.note("first cut")
            raise

    @svc.get("/pieces")
    async def pieces(count: int, size: int = 10) -> StreamingResponse:
        async def give() -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x" * size

        return StreamingResponse(give(), media_type="text/plain")

    @svc.get("/said")
    async def said(count: int, said: int) -> StreamingResponse:
        async def give() -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x"

        return StreamingResponse(give(), headers={"content-length": str(said)})

    @svc.get("/breaks")
    async def breaks(after: int) -> StreamingResponse:
        async def give() -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"x"
            raise RuntimeError("secret")

        return StreamingResponse(give())

    @svc.get("/cancels")
    async def cancels(after: int) -> StreamingResponse:
        async def give() -> AsyncIterator[bytes]:
            for _ in range(after):
                yield b"x"
            raise asyncio.CancelledError

        return StreamingResponse(give())

    @svc.get("/finish-stream", on_disconnect="finish")
    async def finish_stream() -> StreamingResponse:
        async def give() -> AsyncIterator[bytes]:
            yield b"x"
            journal.note("streamed")

        await svc.go_on.wait()
        return StreamingResponse(give())

    @svc.get("/refuses")
    async def refuses() -> AsyncIterator[Order]:
        raise HTTPError(409, "not now")
        yield Order(id=1, item="tea")

    @svc.get("/feed")
    async def feed(count: int = 3) -> AsyncIterator[Event[Order]]:
        for index in range(count):
            yield Event(Order(id=index, item="tea"), id=str(index))

    @svc.get("/quiet", heartbeat=0.05)
    async def quiet() -> AsyncIterator[Event[int]]:
        try:
            await asyncio.Event().wait()
            yield Event(1)
        finally:
            journal.note("quiet over")

    @svc.get("/large")
    async def large(size: int) -> bytes:
        return b"l" * size

    @svc.get("/wait")
    async def wait() -> str:
        journal.note("waiting")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            journal.note("cancelled")
            raise
        return "never"

    @svc.get("/finish", on_disconnect="finish")
    async def finish() -> str:
        journal.note("finishing")
        await svc.go_on.wait()
        journal.note("finished")
        return "done"

    @svc.get("/extended")
    async def extended(request: Request) -> str:
        await request.extend(30)
        await asyncio.sleep(0.9)
        return "late"

    def resource():
        journal.note("opened")
        yield "it"
        journal.note("closed")

    @svc.get("/background")
    async def background(tasks: Background, it: Annotated[str, Depends(resource)]) -> str:
        tasks.add(journal.note, "background")
        return it

    @svc.get("/cancels-itself")
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    @svc.get("/exits")
    async def exits() -> None:
        raise SystemExit(3)

    @svc.websocket("/chat/<room>")
    async def chat(ws: WebSocket[str], room: str) -> None:
        async for text in ws:
            await ws.send(f"{room}: {text}")
        journal.note("left")

    @svc.websocket("/typed")
    async def typed(ws: WebSocket[Order]) -> None:
        async for order in ws:
            await ws.send(order)

    @svc.websocket("/offers")
    async def offers(ws: WebSocket[str]) -> None:
        await ws.accept("v2" if "v2" in ws.subprotocols else None, {"x-room": "7"})
        await ws.send(",".join(ws.subprotocols))

    @svc.websocket("/refused")
    async def refused(ws: WebSocket[str]) -> None:
        raise HTTPError(401, "who are you?", headers={"www-authenticate": "Bearer"})

    @svc.websocket("/ignored")
    async def ignored(ws: WebSocket[str]) -> None:
        return

    @svc.websocket("/ends")
    async def ends(ws: WebSocket[str], how: str) -> None:
        await ws.accept()
        if how == "fails":
            raise RuntimeError("secret")
        if how == "refuses":
            raise HTTPError(403, "no more")
        if how == "own":
            await ws.close(4007, "own words")

    @svc.websocket("/closes")
    async def closes(ws: WebSocket[str]) -> None:
        await ws.accept()
        await ws.close(4001, "enough")
        try:
            await ws.receive()
        except WebSocketClosed as closed:
            journal.note(("closed", closed.code))
        try:
            await ws.send("more")
        except WebSocketClosed as closed:
            journal.note(("sent", closed.code))

    @svc.websocket("/bytes")
    async def back(ws: WebSocket[bytes]) -> None:
        async for data in ws:
            await ws.send(data[::-1])

    @svc.websocket("/pours")
    async def pours(ws: WebSocket[bytes]) -> None:
        try:
            while True:
                await ws.send(b"p" * 65536)
                svc.poured += 1
        except WebSocketClosed:
            journal.note("poured")

    @svc.websocket("/deaf")
    async def deaf(ws: WebSocket[str]) -> None:
        await ws.accept()
        journal.note("deaf")
        await svc.go_on.wait()
        async for text in ws:
            journal.note(text)

    svc.go_on = asyncio.Event()
    svc.poured = 0
    svc.mount("/old", old_app(journal))
    return svc


class Quietly(uvicorn.Server):
    """A uvicorn server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


async def run_uvicorn(stack: AsyncExitStack, app: Any, **options: Any) -> str:
    """Serve an application on a free port until the stack closes; return its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    options = {"log_config": None, "access_log": False, "ws": "websockets-sansio", "lifespan": "on", **options}
    server = Quietly(uvicorn.Config(app, **options))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():
        await asyncio.sleep(0.005)

    async def stop() -> None:
        server.should_exit = True
        await task

    stack.push_async_callback(stop)
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


class House(NamedTuple):
    """One of the three, running."""

    name: str
    url: str
    client: httpx2.AsyncClient
    service: Service
    journal: Journal


async def start(stack: AsyncExitStack, name: str, nats_url: str, root: str, *, timeout: float = 10.0) -> House:
    """Start one of the three bodies."""
    journal = Journal()
    service = build(root, journal)
    if name == "plain":
        url = await run_uvicorn(stack, service if timeout == 10.0 else PlainDoor(service, timeout=timeout))
    else:
        await stack.enter_async_context(service)
        buses = [MemoryBus()] * 2 if name == "memory" else [await connect(Nats(urls=(nats_url,))) for _ in range(2)]
        for bus in buses:
            stack.push_async_callback(bus.close)
        member = Member(buses[0], service, quiet=0.02)
        await member.start()
        stack.push_async_callback(member.stop, 1.0)
        gateway = await stack.enter_async_context(Gateway(root, bus=buses[1], timeout=timeout))
        front = Front(gateway, port=0, grace=1.0)
        await front.start()
        stack.push_async_callback(front.stop)
        url = front.url
    client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=PATIENCE))
    return House(name, url, client, service, journal)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BODIES)
async def shared(request, nats_url):
    """One of the three bodies for all tests of this module; the next one begins when the one before has ended."""
    async with AsyncExitStack() as stack:
        yield await start(stack, request.param, nats_url, f"plain{BODIES.index(request.param)}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reference(nats_url):
    """What all are compared with: the service behind a gateway and a bus in memory."""
    async with AsyncExitStack() as stack:
        yield await start(stack, "memory", nats_url, "plain9")


@pytest.fixture
def house(shared):
    """The same, with nothing in its journal."""
    shared.journal.clear()
    shared.service.go_on.clear()
    return shared


@pytest.fixture
def quiet_log(caplog):
    """Let the tracebacks of handlers that fail on purpose out of the way."""
    caplog.set_level(logging.CRITICAL)


# ── whole requests and answers ───────────────────────────────────────────────────────────────────

BIG = bytes(range(256)) * 12_000  # 3 MB
LINES = "\n".join(f'{{"id":{index},"item":"tea"}}' for index in range(3)) + "\n"
EVENTS = "".join(f'id: {index}\ndata: {{"id":{index},"item":"tea"}}\n\n' for index in range(3))


class Case(NamedTuple):
    """A request and what it is answered: status, fields, the body or what is in it."""

    name: str
    method: str
    path: str
    status: int
    said: Any = None
    headers: Any = ()
    content: bytes | None = None
    fields: dict[str, str | None] = {}  # noqa: RUF012


JSON = [("content-type", "application/json")]
FORM = [("content-type", "application/x-www-form-urlencoded")]

CASES = [
    Case("the top", "GET", "/", 200, b"index", fields={"content-type": "text/plain; charset=utf-8", "x-stamp": "1"}),
    Case("a capture", "GET", "/orders/7", 200, {"id": 7, "item": "tea"}, fields={"content-length": "21"}),
    Case("a bad capture", "GET", "/orders/x", 422, {"reason": "invalid_input"}),
    Case("a model", "POST", "/orders", 201, {"id": 1, "item": "x"}, JSON, b'{"id": 1, "item": "x"}'),
    Case("a bad model", "POST", "/orders", 422, {"reason": "invalid_input"}, JSON, b'{"id": "x", "item": ""}'),
    Case("no JSON", "POST", "/orders", 422, None, JSON, b"{"),
    Case("no body", "POST", "/orders", 422, None),
    Case("another type", "POST", "/orders", 415, None, FORM, b"id=1"),
    Case("a query", "GET", "/search?q=a+b%26&page=2", 200, {"q": "a b&", "page": 2, "tenant": "-", "sid": "-"}),
    Case(
        "a header and a cookie",
        "GET",
        "/search?q=1",
        200,
        {"tenant": "t", "sid": "s"},
        [("X-Tenant", "t"), ("cookie", "sid=s")],
    ),
    Case("no query", "GET", "/search", 422, {"reason": "invalid_input"}),
    Case("HEAD of a GET", "HEAD", "/orders/7", 200, b"", fields={"content-length": "21"}),
    Case("HEAD of a stream", "HEAD", "/pieces?count=3", 200, b"", fields={"content-type": "text/plain"}),
    Case(
        "HEAD of a feed",
        "HEAD",
        "/quiet",
        200,
        b"",
        fields={"content-type": "text/event-stream"},
        headers=[("accept", "text/event-stream")],
    ),
    Case("HEAD of an error", "HEAD", "/orders/x", 422, b""),
    Case("OPTIONS", "OPTIONS", "/orders/7", 204, b"", fields={"allow": "GET, HEAD, OPTIONS"}),
    Case(
        "another method",
        "DELETE",
        "/orders/7",
        405,
        {"reason": "method_not_allowed"},
        fields={"allow": "GET, HEAD, OPTIONS"},
    ),
    Case("TRACE", "TRACE", "/orders/7", 405, {"reason": "method_not_allowed"}, fields={"allow": ", ".join(METHODS)}),
    Case("a method of others", "PURGE", "/orders/7", 405),
    Case(
        "a slash too many", "GET", "/orders/7/?a=1", 308, fields={"location": "../7?a=1", "cache-control": "no-store"}
    ),
    Case("a POST with a slash too many", "POST", "/orders/7/", 404),
    Case("no route", "GET", "/orders/7/8/9", 404),
    Case("nothing", "GET", "/nothing", 404),
    Case("a bad escape", "GET", "/orders/%zz", 400, {"reason": "bad_path"}),
    Case("a dot segment", "GET", "/echo/%2e%2e/x", 400, {"reason": "bad_path"}),
    Case("no UTF-8", "GET", "/echo/%ff", 400, {"reason": "bad_path"}),
    Case("an escape that need not be", "GET", "/%6frders/7", 200, {"id": 7}),
    Case("a dot and a slash in a segment", "GET", "/echo/a.b%2Fc", 200, {"raw_path": "/echo/a%2Eb%2Fc"}),
    Case("a long path", "GET", "/echo/" + "a" * 3100, 414),
    Case("many headers", "GET", "/", 431, None, [(f"x-{index}", "1") for index in range(120)]),
    Case("large headers", "GET", "/", 431, None, [("x-a", "a" * 9000) for _ in range(4)]),
    Case("an error", "GET", "/fails", 500, {"reason": "handler_failed"}),
    Case(
        "an error that is an answer",
        "GET",
        "/gone",
        410,
        {"reason": "sold", "detail": "it is gone"},
        fields={"x-a": "1", "content-type": "application/problem+json"},
    ),
    Case("a handler that cancels itself", "GET", "/cancels-itself", 500, {"reason": "handler_failed"}),
    Case("a handler that exits", "GET", "/exits", 500, {"reason": "handler_failed"}),
    Case("the state of a lifespan, in a thread", "GET", "/state", 200, {"answer": 42}),
    Case("a form", "POST", "/form", 200, {"name": "a b", "age": 3}, FORM, b"name=a+b&age=3"),
    Case("a bad form", "POST", "/form", 422, None, FORM, b"age=x"),
    Case("a body at the limit", "POST", "/whole", 200, {"size": 200_000}, (), b"x" * 200_000),
    Case("a body over the limit", "POST", "/whole", 413, None, (), b"x" * 200_001),
    Case("a body far over the limit", "POST", "/whole", 413, None, (), BIG),
    Case(
        "a body as it comes",
        "POST",
        "/digest",
        200,
        {"size": len(BIG), "sha": hashlib.sha256(BIG).hexdigest()},
        (),
        BIG,
    ),
    Case("a small body as it comes", "POST", "/digest", 200, {"size": 3}, (), b"abc"),
    Case("a body that nobody reads", "POST", "/unread", 200, b"I do not care", (), b"x" * 10),
    Case("a large body that nobody reads", "POST", "/unread", 200, b"I do not care", (), BIG),
    Case("a stream", "GET", "/pieces?count=3", 200, b"x" * 30, fields={"content-type": "text/plain"}),
    Case("an empty stream", "GET", "/pieces?count=0", 200, b""),
    Case("a large stream", "GET", "/pieces?count=30&size=100000", 200, b"x" * 3_000_000),
    Case("a stream as long as it says", "GET", "/said?count=3&said=3", 200, b"xxx", fields={"content-length": "3"}),
    Case("HEAD of one that says its length", "HEAD", "/said?count=3&said=3", 200, b"", fields={"content-length": "3"}),
    Case("a stream that fails at once", "GET", "/breaks?after=0", 500, {"reason": "handler_failed"}),
    Case("a feed that is refused", "GET", "/refuses", 409, {"detail": "not now"}),
    Case("NDJSON", "GET", "/feed", 200, LINES.encode(), fields={"content-type": "application/x-ndjson"}),
    Case(
        "events",
        "GET",
        "/feed",
        200,
        EVENTS.encode(),
        [("accept", "text/event-stream")],
        fields={"content-type": "text/event-stream", "cache-control": "no-store"},
    ),
    Case("neither", "GET", "/feed", 406, None, [("accept", "image/png")], fields={"vary": "accept"}),
    Case(
        "an answer larger than a message",
        "GET",
        "/large?size=3000000",
        200,
        b"l" * 3_000_000,
        fields={"content-length": "3000000"},
    ),
    Case("a mounted application", "POST", "/old/hello", 200, b"POST /old/hello /old 3", (), b"abc"),
    Case("a stream of one", "GET", "/old/lines", 200, b"0\n1\n2\n"),
    Case("what it does not have", "GET", "/old/nothing", 404, b"Not Found"),
    Case("its error", "GET", "/old/fails", 500),
    *[Case(f"reply {name}", "GET", f"/reply/{name}", reply.status) for name, reply in REPLIES.items()],
    *[Case(f"HEAD reply {name}", "HEAD", f"/reply/{name}", reply.status, b"") for name, reply in REPLIES.items()],
]


#: What every answer is compared by: fields that a server adds, and those of one connection, are its own.
OWN = {"date", "server", "connection", "transfer-encoding"}


async def ask(house: House, case: Case) -> httpx2.Response:
    """Ask for a case, with its path as it stands."""
    url = httpx2.URL(house.url).copy_with(raw_path=case.path.encode())
    headers = [("host", "shop.test"), *case.headers]
    house.client.cookies.clear()
    return await house.client.request(case.method, url, headers=headers, content=case.content)


@table
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_answers_agree(house, reference, case, quiet_log):
    """Every case is answered as the table says, and to the last field as the other bodies answer it."""
    response = await ask(house, case)
    assert response.status_code == case.status
    if isinstance(case.said, bytes):
        assert response.content == case.said
    elif case.said is not None:
        found = response.json()
        assert {key: found[key] for key in case.said} == case.said
    assert {name: response.headers.get(name) for name in case.fields} == case.fields
    if case.status != 404:  # a path that no subscription covers: the gateway says so itself
        assert comparable(response) == comparable(await ask(reference, case))


def comparable(response: httpx2.Response) -> tuple[list[tuple[str, str]], Any]:
    """Return of an answer what has to be the same in all bodies."""
    fields = sorted([(name, value) for name, value in response.headers.multi_items() if name not in OWN])
    said: Any = response.content
    if response.headers.get("content-type") == "application/json" and said:
        said = response.json()
    if isinstance(said, dict) and "raw_path" in said:
        fields = [field for field in fields if field[0] != "content-length"]
        said = {**said, "client": None, "timeout": round(said["timeout"]), "headers": sorted(said["headers"])}
    return fields, said


ECHOES = [
    Case("GET", "GET", "/echo/a%20b/?x=1&x=%C3%A9&y", 200),
    Case(
        "POST",
        "POST",
        "/echo/x",
        200,
        None,
        [("content-type", "text/plain"), ("content-encoding", "gzip")],
        gzip.compress(b"x", mtime=0),
    ),
    Case("PUT of nothing", "PUT", "/echo/x", 200),
    Case(
        "repeats",
        "GET",
        "/echo/x",
        200,
        None,
        [("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("cookie", "a=1"), ("cookie", "b=2")],
    ),
    Case(
        "what nobody forges",
        "GET",
        "/echo/x",
        200,
        None,
        [("nw-method", "DELETE"), ("nw_service", "x"), ("nats-msg-id", "1"), ("NW-Client", "x"), ("x-nw", "kept")],
    ),
    Case(
        "what belongs to one connection",
        "GET",
        "/echo/x",
        200,
        None,
        [
            ("connection", "x-named, keep-alive"),
            ("x-named", "1"),
            ("te", "trailers"),
            ("keep-alive", "1"),
            ("proxy-authorization", "x"),
        ],
    ),
    Case("latin", "GET", "/echo/x", 200, None, [("x-a", b"\xe9\xff"), ("x-empty", "")]),
    Case("a body of a megabyte", "POST", "/echo/x", 200, None, (), b"x" * 199_000),
]


@table
@pytest.mark.parametrize("case", ECHOES, ids=lambda case: case.name)
async def test_handlers_see_the_same(house, reference, case):
    """A handler gets the same request, to the last header, whichever way it has come."""
    response = await ask(house, case)
    assert response.status_code == 200
    found = response.json()
    assert not [name for name, _ in found["headers"] if name.replace("_", "-").startswith(("nw-", "nats-"))]
    assert found["client"].startswith("127.0.0.1:")
    assert comparable(response) == comparable(await ask(reference, case))


@table
async def test_a_file_is_uploaded(house):
    """A form with a file of any size arrives, as it comes."""
    for data in (b"small", BIG):
        response = await house.client.post("/upload", files={"file": ("a.bin", data)}, data={"note": "n"})
        assert response.json() == {
            "name": "a.bin",
            "size": len(data),
            "sha": hashlib.sha256(data).hexdigest(),
            "note": "n",
        }


@table
@pytest.mark.parametrize(("path", "size"), [("/digest", 3_000_000), ("/digest", 30), ("/whole", 100_000)])
async def test_bodies_of_unknown_length(house, path, size):
    """A chunked body arrives, whether it is taken as it comes or whole."""

    async def pieces():
        for _ in range(10):
            yield b"c" * (size // 10)

    assert (await house.client.post(path, content=pieces())).json()["size"] == size


@table
async def test_a_body_of_unknown_length_over_the_limit(house):
    """It is refused when it has become too long."""

    async def pieces():
        for _ in range(50):
            yield b"c" * 50_000

    assert (await house.client.post("/whole", content=pieces())).status_code == 413


# ── answers that do not come to their end ────────────────────────────────────────────────────────


@table
@pytest.mark.parametrize("path", ["/breaks?after=3", "/cancels?after=3", "/said?count=3&said=5"])
async def test_an_answer_that_is_cut_off_looks_like_it(house, path, quiet_log):
    """The connection is closed in the middle, so that no client takes a part for the whole."""
    with pytest.raises(httpx2.RemoteProtocolError):
        await house.client.get(path)
    assert (await house.client.get("/")).status_code == 200


async def open_raw(house: House, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send bytes on a connection of one's own."""
    address = urlsplit(house.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(request)
    return reader, writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Leave."""
    writer.close()
    await writer.wait_closed()


@table
async def test_a_client_that_leaves_cancels_the_handler(house):
    """At its next await, and nothing is logged."""
    _, writer = await open_raw(house, b"GET /wait HTTP/1.1\r\nhost: a\r\n\r\n")
    await house.journal.of("waiting")
    await asyncio.sleep(0.1)  # over NATS, the gateway hears only then whom to tell
    await hang_up(writer)
    await house.journal.of("cancelled")


@table
async def test_a_handler_that_finishes_does_so(house):
    """With on_disconnect="finish" a handler runs to its end without its client."""
    _, writer = await open_raw(house, b"GET /finish HTTP/1.1\r\nhost: a\r\n\r\n")
    await house.journal.of("finishing")
    await hang_up(writer)
    house.service.go_on.set()
    await house.journal.of("finished")


@table
async def test_a_client_that_leaves_ends_its_feed(house):
    """A feed that nobody reads ends; until then it shows that it is alive."""
    lines = b"GET /quiet HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n"
    reader, writer = await open_raw(house, lines)
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert b":" in await reader.readuntil(b"\n\n")  # a comment
    await hang_up(writer)
    await house.journal.of("quiet over")


@table
async def test_a_client_that_leaves_cuts_its_upload(house):
    """What a client has sent of a body arrives at once, and then that the rest never will."""
    head = b"POST /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    _, writer = await open_raw(house, head + b"3\r\nabc\r\n")
    await house.journal.of(("first", b"abc"))
    writer.write(b"3\r\ndef\r\n")
    await house.journal.of(("first", b"def"))
    await hang_up(writer)
    await house.journal.of("first cut")


@table
async def test_both_directions_at_once(house):
    """An answer may stream while its question still comes."""
    head = b"POST /upper HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    reader, writer = await open_raw(house, head + b"3\r\nabc\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(8) == b"3\r\nABC\r\n"
        writer.write(b"2\r\nde\r\n")
        assert await reader.readexactly(7) == b"2\r\nDE\r\n"
        writer.write(b"0\r\n\r\n")
        assert await reader.readexactly(5) == b"0\r\n\r\n"
    await hang_up(writer)


@table
async def test_a_body_is_asked_for_when_somebody_wants_it(house):
    """`Expect: 100-continue` is answered when the handler reads, and not at all if it never does."""
    lines = b"host: a\r\nexpect: 100-continue\r\ncontent-length: 3000000\r\n\r\n"
    async with asyncio.timeout(PATIENCE):
        reader, writer = await open_raw(house, b"POST /digest HTTP/1.1\r\n" + lines)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"x" * 3_000_000)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await hang_up(writer)
        reader, writer = await open_raw(house, b"POST /unread HTTP/1.1\r\n" + lines)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await hang_up(writer)


@table
async def test_what_follows_the_answer(house):
    """Background work and the cleanup of dependencies come after the answer, in this order."""
    assert (await house.client.get("/background")).text == "it"
    await house.journal.of("closed")
    assert house.journal == ["opened", "background", "closed"]


UPGRADE = (
    b"GET %b HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)

# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def talk(house: House, path: str, **options: Any) -> AsyncIterator[Any]:
    """Open a WebSocket, for ten seconds at most."""
    url = house.url.replace("http", "ws") + path
    async with asyncio.timeout(PATIENCE), connect_socket(url, max_size=None, **options) as ws:
        yield ws


@table
async def test_messages_go_both_ways(house):
    """Text and bytes of any size come back, and the handler hears of the goodbye."""
    async with talk(house, "/chat/a%20b") as ws:
        await ws.send("one")
        assert await ws.recv() == "a b: one"
        await ws.send("é" * 300_000)
        assert await ws.recv() == "a b: " + "é" * 300_000
    await house.journal.of("left")
    async with talk(house, "/bytes") as ws:
        await ws.send(BIG)
        assert await ws.recv() == BIG[::-1]


@table
@pytest.mark.parametrize(("offered", "chosen"), [(["v1", "v2"], "v2"), (["v1"], None), (None, None)])
async def test_subprotocols(house, offered, chosen):
    """The handler sees what is offered, chooses one, and adds fields to the answer."""
    async with talk(house, "/offers", subprotocols=offered) as ws:
        assert ws.subprotocol == chosen
        assert ws.response.headers["x-room"] == "7"
        assert await ws.recv() == ",".join(offered or [])


@table
@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/refused", 401, None),
        ("/ignored", 403, "refused"),
        ("/ends", 422, "invalid_input"),
        ("/orders/7", 405, "method_not_allowed"),
        ("/orders/%zz", 400, "bad_path"),
    ],
)
async def test_an_upgrade_that_is_refused(house, reference, path, status, reason):
    """It is answered as a request would be."""
    answers = []
    for one in (house, reference):
        with pytest.raises(InvalidStatus) as refused:
            async with talk(one, path):
                pass
        response = refused.value.response
        assert response.status_code == status
        answers.append(json.loads(response.body))
    assert answers[0] == answers[1]
    assert (answers[0]["status"], answers[0].get("reason")) == (status, reason)
    assert ("www-authenticate" in response.headers) == (status == 401)


@table
async def test_a_request_where_a_websocket_is_wanted(house):
    """It is asked to upgrade."""
    response = await house.client.get("/ignored")
    assert response.status_code == 426


@table
@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/ends?how=well", 1000, ""),
        ("/ends?how=own", 4007, "own words"),
        ("/ends?how=fails", 1011, ""),
        ("/ends?how=refuses", 1008, "Forbidden"),
    ],
)
async def test_how_a_websocket_ends(house, path, code, reason, quiet_log):
    """The end of the handler is the end of the socket, with the code that says how it has ended."""
    async with talk(house, path) as ws:
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (code, reason)


@table
async def test_what_a_handler_has_closed_is_over(house):
    """Whoever still waits for a message or sends one hears so."""
    async with talk(house, "/closes") as ws:
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert (ws.close_code, ws.close_reason) == (4001, "enough")
    await house.journal.of(("sent", 1006))
    assert house.journal == [("closed", 4001), ("sent", 1006)]


@table
async def test_typed_messages(house):
    """A message that does not fit is the end."""
    async with talk(house, "/typed") as ws:
        await ws.send('{"id": 1, "item": "tea"}')
        assert await ws.recv() == '{"id":1,"item":"tea"}'
        await ws.send("{}")
        with pytest.raises(ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 1007


@table
async def test_a_client_that_reads_slowly_slows_the_handler(house):
    """What is sent and not read is bounded; a handler that sends hears that the client has left."""
    house.service.poured = 0
    address = urlsplit(house.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=65536)
    writer.write(UPGRADE % b"/pours")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    before = -1
    while house.service.poured != before:  # until it stands still
        before = house.service.poured
        await asyncio.sleep(0.2)
    assert before * 65536 < 32 * 1024 * 1024
    writer.transport.abort()
    await house.journal.of("poured")


@table
async def test_messages_that_nobody_has_read_yet(house):
    """They wait, and so does the goodbye after them."""
    async with talk(house, "/deaf") as ws:
        await house.journal.of("deaf")
        for text in ("one", "two"):
            await ws.send(text)
    house.service.go_on.set()
    await house.journal.of("two")
    assert house.journal == ["deaf", "one", "two"]


@table
async def test_a_websocket_of_a_mounted_application(house):
    """An application of its own talks as well, and hears of the goodbye."""
    async with talk(house, "/old/talk", subprotocols=["v1"]) as ws:
        assert ws.subprotocol == "v1"
        await ws.send("x")
        assert await ws.recv() == "old x"
    await house.journal.of("old left")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=BODIES)
async def hasty_house(request, nats_url):
    """One of the three bodies, where nothing may take longer than a fraction of a second."""
    async with AsyncExitStack() as stack:
        yield await start(stack, request.param, nats_url, f"hasty{BODIES.index(request.param)}", timeout=0.7)


@pytest.fixture
def hasty(hasty_house):
    """The same, with nothing in its journal."""
    hasty_house.journal.clear()
    hasty_house.service.go_on.clear()
    return hasty_house


@table
async def test_the_time_is_up(hasty):
    """The client hears so, and the handler is cancelled."""
    response = await hasty.client.get("/wait")
    assert (response.status_code, response.json()["reason"]) == (504, "timeout")
    await hasty.journal.of("cancelled")


@table
async def test_more_time(hasty):
    """A handler that asks for more time gets it."""
    assert (await hasty.client.get("/extended")).text == "late"


@table
async def test_the_time_is_up_for_one_that_finishes(hasty):
    """The client hears so; the handler goes on."""
    assert (await hasty.client.get("/finish")).status_code == 504
    hasty.service.go_on.set()
    await hasty.journal.of("finished")


@table
async def test_a_stream_of_one_that_finishes(hasty):
    """It is read to its end, whether anybody is there to take it or not."""
    assert (await hasty.client.get("/finish-stream")).status_code == 504
    hasty.service.go_on.set()
    await hasty.journal.of("streamed")


@table
async def test_the_time_begins_when_the_question_has_been_heard(hasty):
    """A body may take longer than the answer."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x"
            await asyncio.sleep(0.3)

    assert (await hasty.client.post("/digest", content=pieces())).json()["size"] == 4


@table
async def test_an_answer_that_streams_has_no_deadline(hasty):
    """A feed may be silent for longer than an answer may take."""
    async with hasty.client.stream("GET", "/quiet", headers={"accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        await asyncio.sleep(0.5)
        assert await anext(response.aiter_bytes())


# ── the plain one alone ──────────────────────────────────────────────────────────────────────────


def small(journal: Journal | None = None, **options: Any) -> Service:
    """Return a service with a lifespan and little else."""
    svc = Service("small", **options)

    @svc.lifespan
    async def life(svc: Service) -> AsyncIterator[dict[str, int]]:
        if journal is not None:
            journal.note("started")
        yield {"answer": 42}
        if journal is not None:
            journal.note("stopped")

    @svc.get("/state")
    async def state() -> dict[str, int]:
        return svc.state

    @svc.get("/where/<id>")
    async def where(request: Request, id: int) -> dict[str, Any]:
        return {"root_path": request.root_path, "path": request.path, "id": id}

    return svc


def test_the_lifespan_is_the_servers():
    """The service starts and stops with its ASGI server."""
    journal = Journal()
    with TestClient(small(journal)) as client:
        assert journal == ["started"]
        assert client.get("/state").json() == {"answer": 42}
    assert journal == ["started", "stopped"]


class Talk:
    """An ASGI server in a test: what it says, and what it was told."""

    def __init__(self, *events: dict[str, Any], fails: bool = False) -> None:
        self.told: list[dict[str, Any]] = []
        self._events = list(events)
        self._fails = fails

    async def receive(self) -> dict[str, Any]:
        if not self._events:
            await asyncio.Event().wait()
        return self._events.pop(0)

    async def send(self, event: dict[str, Any]) -> None:
        if self._fails:
            raise OSError("the client has left")
        self.told.append(event)


UP, DOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}
LAST = {"type": "http.request", "body": b"", "more_body": False}


def scope_of(path: str, **fields: Any) -> dict[str, Any]:
    """Return the scope of a GET."""
    base = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "query_string": b""}
    return {**base, "path": path, "headers": [], "client": None, "scheme": "http", **fields}


async def ask_at(app: Any, path: str, **fields: Any) -> httpx2.Response:
    """Ask an application without a server."""
    talk = Talk(LAST)
    await app(scope_of(path, **fields), talk.receive, talk.send)
    start, *bodies = talk.told
    return httpx2.Response(start["status"], headers=start["headers"], content=b"".join(one["body"] for one in bodies))


async def test_a_lifespan_that_fails(caplog):
    """The server is told why, in words that a person can use."""
    svc = small()

    @svc.lifespan
    async def database(svc: Service) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    talk = Talk(UP)
    await svc({"type": "lifespan"}, talk.receive, talk.send)
    [told] = talk.told
    assert told["type"] == "lifespan.startup.failed"
    assert "no database" in told["message"]


async def test_after_the_shutdown():
    """A request that comes too late is told to come again."""
    svc, talk = small(), Talk(UP, DOWN)
    await svc({"type": "lifespan"}, talk.receive, talk.send)
    assert [one["type"] for one in talk.told] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    response = await ask_at(svc, "/state")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_mounted_in_an_application():
    """Below a path of another application it sees the rest of the path; without a lifespan it starts when needed."""
    journal = Journal()
    svc = small(journal)
    app = Starlette(routes=[Mount("/shop", app=svc)])
    assert (await ask_at(app, "/shop/state")).json() == {"answer": 42}
    found = await ask_at(app, "/shop/where/7", raw_path=b"/shop/where/%37")
    assert found.json() == {"root_path": "/shop", "path": "/where/7", "id": 7}
    assert (await ask_at(app, "/shop/where/7/")).headers["location"] == "../7"
    assert journal == ["started"]
    await svc.stop()


async def test_a_service_that_cannot_start_when_needed(caplog):
    """It is a 503, whose reason is in the log, and it is not tried for each request."""
    svc, tries = small(), []

    @svc.lifespan
    async def database(svc: Service) -> AsyncIterator[None]:
        tries.append(1)
        raise OSError("no database")
        yield

    found = await asyncio.gather(*[ask_at(svc, "/state") for _ in range(3)])
    assert [one.status_code for one in [*found, await ask_at(svc, "/state")]] == [503] * 4
    assert tries == [1]
    assert "no database" in caplog.text


async def test_a_service_that_somebody_else_has_started():
    """It is served as it is, and nobody stops it."""
    async with small() as svc:
        assert (await ask_at(svc, "/state")).status_code == 200
        with pytest.raises(TypeError):
            await svc("scope")
    assert repr(PlainDoor(svc)) == "<PlainDoor of <Service small 0.0.0: 2 routes below api>>"


async def test_what_none_of_its_routes_takes():
    """Without other services there is nobody to leave a request to."""
    async with small(not_found=False) as svc:
        assert (await ask_at(svc, "/nothing")).json()["reason"] == "no_route"


async def test_limits_of_ones_own():
    """Paths and headers have the bounds of a gateway, which can be others."""
    async with small() as svc:
        door = PlainDoor(svc, limits=Limits(subject=20, header_count=1))
        assert (await ask_at(door, "/where/12345678901234567890")).status_code == 414
        assert (await ask_at(door, "/state", headers=[(b"a", b"1"), (b"b", b"2")])).status_code == 431


async def test_an_answer_that_cannot_be_sent(caplog):
    """It is a 500, and nothing of it gets out."""
    svc = small()

    @svc.get("/bad")
    async def bad() -> Response:
        return Response.trusted(200, Headers.from_block(b"x-a: \x00\r\n"), b"secret")

    async with svc:
        response = await ask_at(svc, "/bad")
    assert response.status_code == 500
    assert b"secret" not in response.content


async def test_a_server_that_says_that_the_client_has_left():
    """Servers may raise it from `send` (ASGI, HTTP 2.4): it is the same as a disconnect."""
    svc, over = small(), asyncio.Event()

    @svc.get("/pours")
    async def pours() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            over.set()

    async with svc, asyncio.timeout(PATIENCE):
        talk = Talk(LAST, fails=True)
        await svc(scope_of("/pours"), talk.receive, talk.send)
        await over.wait()


async def test_a_client_that_leaves_before_its_body_has_come():
    """No handler hears of it."""
    async with small() as svc:
        talk = Talk({"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"})
        fields = {"headers": [(b"content-length", b"10")], "method": "POST"}
        await svc(scope_of("/state", **fields), talk.receive, talk.send)
        assert talk.told == []


async def test_a_server_that_stops(caplog):
    """After its grace a feed ends well, and a handler that still waits is answered 503."""
    journal = Journal()
    async with AsyncExitStack() as stack:
        server = AsyncExitStack()
        url = await run_uvicorn(server, build("stops", journal), timeout_graceful_shutdown=1)
        client = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=PATIENCE))
        feed = await stack.enter_async_context(client.stream("GET", "/quiet", headers={"accept": "text/event-stream"}))
        waiting = asyncio.ensure_future(client.get("/wait"))
        await journal.of("waiting")
        await server.aclose()
        assert b"".join([chunk async for chunk in feed.aiter_bytes()]).startswith(b":")
        response = await waiting
        assert (response.status_code, response.json()["reason"]) == (503, "stopping")
    assert journal[-1] == "stopped"
