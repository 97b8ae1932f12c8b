"""Filters around a gateway's requests, the error hook, and what may stand in place of NATS: through two servers.

One door is natsweb's own server, the other one is uvicorn with the gateway mounted in Starlette.
"""

import asyncio
import contextlib
import contextvars
import itertools
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from textwrap import dedent
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import InvalidStatus

from natsweb import Depends, Event, HTTPError, Limits, Nats, Request, Response, Service, StreamingResponse, WebSocket
from natsweb.errors import DeclarationError
from natsweb.front import Front
from natsweb.gateway import CutOff, Gateway, echo
from natsweb.member import Member
from natsweb.natsbus import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
NOWHERE = "nats://127.0.0.1:1"
numbers = itertools.count()
LARGE = bytes(range(256)) * 12_000


# ── the house: a service that joins, gateways as tests want them, two doors ──


def working_service():
    """Return a service that echoes, waits, streams and talks, and notes what becomes of its handlers."""
    svc = Service("work", root="filters")
    svc.journal, svc.items, svc.seen = [], asyncio.Queue(), asyncio.Queue()

    @contextlib.contextmanager
    def noting(name):
        svc.journal.append(f"{name} began")
        try:
            yield
        except BaseException as error:
            svc.journal.append(f"{name} {type(error).__name__}")
            raise
        svc.journal.append(f"{name} ended")

    @svc.route("/echo/<path:rest>", methods=METHODS)
    async def echo(rest: str, request: Request) -> Response:
        svc.journal.append("echo")
        said = {
            "method": request.method,
            "path": request.raw_path,
            "query": request.query,
            "headers": [list(pair) for pair in request.headers],
            "body": request.text,
            "client": request.client,
        }
        return Response(status=201, headers={"content-type": "application/json"}, body=json.dumps(said))

    @svc.get("/gone")
    async def gone() -> None:
        raise HTTPError(410, "it is gone", reason="sold")

    @svc.get("/fails")
    async def fails() -> None:
        raise RuntimeError("the handler's own")

    @svc.get("/slow")
    async def slow() -> None:
        with noting("slow"):
            await asyncio.get_running_loop().create_future()

    @svc.get("/bytes/<size>")
    async def whole(size: int) -> bytes:
        return (LARGE * (size // len(LARGE) + 1))[:size]

    @svc.get("/endless/<name>")
    async def endless(name: str) -> AsyncIterator[bytes]:
        with noting(f"endless {name}"):
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.001)

    @svc.get("/events")
    async def events() -> AsyncIterator[Event[str]]:
        with noting("events"):
            while True:
                yield Event(await svc.items.get())

    @svc.post("/upload", stream=True)
    async def upload(request: Request) -> dict[str, object]:
        hashed, size = sha256(), 0
        with noting("upload"):
            async for chunk in request.stream():
                hashed.update(chunk)
                size += len(chunk)
                svc.seen.put_nowait(size)
        return {"size": size, "sha": hashed.hexdigest()}

    @svc.websocket("/talk/<name>")
    async def talk(name: str, request: Request, ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(f"{name} {request.query} {request.headers.get('x-user')} {message}")

    return svc


async def join(stack, nats_url, service):
    """Let a service join until the stack ends."""
    bus = await connect(Nats(urls=(nats_url,)))
    stack.push_async_callback(bus.close)
    await stack.enter_async_context(service)
    member = Member(bus, service, quiet=0.02)
    await member.start()
    stack.push_async_callback(member.stop, 0)
    return member


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def working(nats_url):
    """Give the service, which has joined."""
    async with AsyncExitStack() as stack:
        service = working_service()
        await join(stack, nats_url, service)
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def service(working):
    """Give the service, with nothing noted yet."""
    working.journal.clear()
    working.items, working.seen = asyncio.Queue(), asyncio.Queue()
    return working


@asynccontextmanager
async def front(gateway):
    """The gateway on natsweb's own server."""
    async with gateway:
        server = Front(gateway, port=0, grace=0.1)
        await server.start()
        try:
            yield server.url
        finally:
            await server.stop(now=True)


class Quiet(uvicorn.Server):
    """A uvicorn server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        """Do nothing."""
        yield


@asynccontextmanager
async def mounted(gateway):
    """The gateway at /shop of a Starlette application on uvicorn; it starts with the first request that needs NATS."""
    config = uvicorn.Config(
        Starlette(routes=[Mount("/shop", gateway)]),
        port=0,
        ws="websockets-sansio",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = Quiet(config)
    task = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/shop"
    finally:
        server.should_exit = True
        await task
        await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module", params=[front, mounted], ids=lambda door: door.__name__)
async def serve(request, nats_url, service):
    """Give a function that puts a gateway behind a door, and returns its URL."""
    async with AsyncExitStack() as stack:

        async def start(*filters, nats=nats_url, **options):
            options.setdefault("root", "filters")
            gateway = Gateway(nats=Nats(urls=(nats,)), filters=filters, **options)
            return await stack.enter_async_context(request.param(gateway))

        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def client():
    """Give an HTTP client."""
    async with httpx2.AsyncClient(timeout=30) as client:
        yield client


async def passing(request, call_next):
    """Do nothing, as a filter."""
    return await call_next(request)


class Line(NamedTuple):
    """A bare connection to a door."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, url, target, *lines, method="GET"):
        """Send the head of a request for a path below the URL."""
        head = [f"{method} {urlsplit(url).path}{target} HTTP/1.1", "Host: x", *lines, "", ""]
        self.writer.write("\r\n".join(head).encode())
        await self.writer.drain()

    async def until(self, words):
        """Read until some words have come, and return all that has come."""
        async with asyncio.timeout(20):
            return await self.reader.readuntil(words)


@asynccontextmanager
async def line_to(url):
    """Connect to a door."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


# ── what a filter can do ──


async def test_the_first_is_outermost(nats_url, service, client):
    """Filters of the constructor come first, then those that were added, each inside of the ones before."""
    trace = []

    def named(name):
        async def note(request, call_next):
            trace.append(f"{name} in")
            response = await call_next(request)
            trace.append(f"{name} out")
            return response

        return note

    gateway = Gateway("filters", nats=Nats(urls=(nats_url,)), filters=[named("a"), named("b")])
    third = named("c")
    assert gateway.filter(third) is third
    async with front(gateway) as url:
        assert (await client.get(f"{url}/echo/x")).status_code == 201
    assert trace == ["a in", "b in", "c in", "c out", "b out", "a out"]


@pytest.mark.parametrize(
    ("update", "seen"),
    [
        ({"method": "PUT"}, {"method": "PUT"}),
        ({"raw_path": "/echo/other%20one"}, {"path": "/echo/other%20one"}),
        ({"raw_path": "/echo/a/%2E%41"}, {"path": "/echo/a/%2EA"}),
        ({"query": "b=2&b=3"}, {"query": "b=2&b=3"}),
        ({"body": b"other"}, {"body": "other"}),
        ({"body": b""}, {"body": ""}),
        ({"body": LARGE[:65].hex().encode() * 100}, {"body": LARGE[:65].hex() * 100}),
        ({"client": "203.0.113.9:80"}, {"client": "203.0.113.9:80"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_a_filter_changes_a_request(serve, client, update, seen):
    """The service sees what the filter has made of it, and all else as it came."""

    async def change(request, call_next):
        return await call_next(request.model_copy(update=update))

    response = await client.post(f"{await serve(change)}/echo/x?a=1", content=b"body", headers={"x-a": "1"})
    untouched = {"method": "POST", "path": "/echo/x", "query": "a=1", "body": "body"}
    echoed = response.json()
    assert response.status_code == 201
    assert ["x-a", "1"] in echoed["headers"]
    assert {name: echoed[name] for name in untouched | seen} == untouched | seen


async def test_a_filter_changes_headers(serve, client):
    """Added, removed and repeated headers arrive so; what belongs to the wire still does not cross."""

    async def change(request, call_next):
        headers = request.headers.without("x-gone") + {"x-a": ["1", "2"], "nw-service": "evil"}
        return await call_next(request.model_copy(update={"headers": headers}))

    response = await client.get(f"{await serve(change)}/echo/x", headers={"x-gone": "1", "x-stays": "2"})
    headers = [tuple(pair) for pair in response.json()["headers"] if pair[0].startswith(("x-", "nw-"))]
    assert headers == [("x-stays", "2"), ("x-a", "1"), ("x-a", "2")]


async def test_a_filter_sees_a_request_as_a_handler_would(serve, client):
    """Path below the mount and decoded, query, cookies, body and client are there."""
    seen = []

    async def look(request, call_next):
        seen.append((request.path, request.query_params, request.cookies, request.text, request.client, request.scheme))
        return await call_next(request)

    url = await serve(look)
    await client.post(f"{url}/echo/a%20b?x=1&x=2", content=b"hi", headers={"cookie": "sid=7"})
    [(path, query, cookies, text, address, scheme)] = seen
    assert (path, query, cookies, text, scheme) == ("/echo/a b", {"x": ["1", "2"]}, {"sid": "7"}, "hi", "http")
    assert address.startswith("127.0.0.1:")


async def test_a_filter_answers_itself(serve, service, client):
    """Nothing reaches a service then, and the connection stays for the next request."""

    async def guard(request, call_next):
        if request.headers.get("authorization") != "Bearer sesame":
            return Response(status=401, headers={"www-authenticate": "Bearer"}, body="who are you?")
        return await call_next(request)

    url = await serve(guard)
    refused = await client.post(f"{url}/echo/x", content=b"a" * 1000)
    assert (refused.status_code, refused.text) == (401, "who are you?")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert service.journal == []
    assert (await client.get(f"{url}/echo/x", headers={"authorization": "Bearer sesame"})).status_code == 201


async def test_a_filter_that_answers_needs_no_nats(client):
    """A mounted gateway connects when a request gets to the end of the filters, and not before."""

    async def answer(request, call_next):
        return Response(body="here") if request.path == "/here" else await call_next(request)

    async with mounted(Gateway("filters", nats=NOWHERE, filters=[answer])) as url:
        assert (await client.get(f"{url}/here")).text == "here"
        response = await client.get(f"{url}/there")
        assert (response.status_code, response.json()["reason"]) == (503, "nats_down")


async def test_a_filter_may_ask_twice(serve, service, client):
    """The second answer is as good as the first."""

    async def insist(request, call_next):
        first = await call_next(request)
        assert first.status == 404
        return await call_next(request.model_copy(update={"raw_path": f"/echo{request.raw_path}"}))

    response = await client.post(f"{await serve(insist)}/nowhere", content=b"body")
    assert (response.json()["path"], response.json()["body"]) == ("/echo/nowhere", "body")


async def test_a_filter_changes_a_response(serve, client):
    """Status, headers and body, repeated headers too."""

    async def change(request, call_next):
        response = await call_next(request)
        assert response.status == 201
        changed = Response(status=203, headers=response.headers.without("content-type"), body=response.body[:1])
        return changed.with_headers({"x-a": "1"}).with_cookie("a", "1").with_cookie("b", "2")

    response = await client.get(f"{await serve(change)}/echo/x")
    assert (response.status_code, response.text, response.headers["x-a"]) == (203, "{", "1")
    assert len(response.headers.get_list("set-cookie")) == 2
    assert "content-type" not in response.headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_head_through_filters(serve, client, method):
    """HEAD has the headers of GET, those of filters too, and no body."""

    async def add(request, call_next):
        return (await call_next(request)).with_headers({"x-a": "1"})

    response = await client.request(method, f"{await serve(add)}/echo/x")
    assert (response.status_code, response.headers["x-a"]) == (201, "1")
    assert bool(response.content) is (method == "GET")


async def test_context_variables_pass(serve, client):
    """What an outer filter sets, an inner one reads, and the other way round when the answer comes back."""
    user, cost = contextvars.ContextVar("user", default=""), contextvars.ContextVar("cost", default=0)

    async def outer(request, call_next):
        user.set(request.headers["x-user"])
        response = await call_next(request)
        return response.with_headers({"x-cost": str(cost.get())})

    async def inner(request, call_next):
        cost.set(len(user.get()))
        return await call_next(request.model_copy(update={"query": f"user={user.get()}"}))

    url = await serve(outer, inner)
    names = ["a", "bb", "ccc"] * 5
    responses = await asyncio.gather(*[client.get(f"{url}/echo/x", headers={"x-user": name}) for name in names])
    assert [(one.json()["query"], one.headers["x-cost"]) for one in responses] == [
        (f"user={name}", str(len(name))) for name in names
    ]


# ── what goes wrong ──


async def test_failures_are_responses(serve, client):
    """A filter sees the gateway's own errors, those of services, and their reasons; none is raised."""
    seen = []

    async def note(request, call_next):
        response = await call_next(request)
        seen.append((response.status, response.parse_json()["reason"]))
        return response

    url = await serve(note)
    for path in ("/nowhere", "/gone", "/fails"):
        await client.get(url + path)
    assert seen == [(404, "no_service"), (410, "sold"), (500, "handler_failed")]


@pytest.mark.parametrize("kind", ["raises", "returns nothing"])
async def test_a_filter_that_fails(serve, service, client, caplog, kind):
    """It is a 500 that says nothing of the cause, which is in the log; a filter around it sees the response."""
    seen = []

    async def outer(request, call_next):
        response = await call_next(request)
        seen.append(response.status)
        return response

    async def broken(request, call_next):
        if kind == "raises":
            raise ValueError("the filter's own secret")
        return

    url = await serve(outer, broken)
    with caplog.at_level(logging.ERROR, "natsweb.gateway"):
        response = await client.get(f"{url}/echo/x")
    assert (response.status_code, response.json()["reason"], seen) == (500, "gateway_failed", [500])
    assert "secret" not in response.text
    assert "a filter failed at GET /echo/x" in caplog.text
    assert ("the filter's own secret" if kind == "raises" else "not a Response") in caplog.text
    assert (await client.get(f"{url}/echo/x")).status_code == 500


async def test_a_filter_may_raise_an_answer(serve, client, caplog):
    """An `HTTPError` is an answer, and nothing is logged."""

    async def refuse(request, call_next):
        raise HTTPError(402, "pay first", reason="unpaid")

    response = await client.get(f"{await serve(refuse)}/echo/x")
    assert (response.status_code, response.json()["reason"]) == (402, "unpaid")
    assert "filter failed" not in caplog.text


async def test_a_path_that_a_filter_makes_is_checked(serve, service, client):
    """What cannot be a path is the gateway's 400, as it would be for a client."""

    async def change(request, call_next):
        return await call_next(request.model_copy(update={"raw_path": request.headers["x-path"]}))

    url = await serve(change)
    for path in ("/a/../echo/x", "/%zz", "echo"):
        response = await client.get(f"{url}/", headers={"x-path": path})
        assert (response.status_code, response.json()["reason"]) == (400, "bad_path")
    assert service.journal == []


@pytest.mark.parametrize("path", ["/slow", "/endless/one", "/events"])
async def test_a_client_that_leaves(serve, service, client, until, path):
    """The handler in the other process is cancelled, with filters as without."""
    service.items.put_nowait("first")
    name = path.strip("/").replace("/", " ")
    url = await serve(passing)
    async with line_to(url) as line:
        await line.ask(url, path)
        await until(lambda: f"{name} began" in service.journal)
        if name != "slow":
            await line.until(b"\r\n\r\n")
    await until(lambda: len(service.journal) == 2)
    assert service.journal[1] in (f"{name} CancelledError", f"{name} GeneratorExit")


async def test_a_filter_is_cancelled_when_its_client_leaves(serve, until):
    """A filter that waits for something else hears of it, too."""
    journal = []

    async def wait(request, call_next):
        journal.append("waits")
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            journal.append("cancelled")
            raise

    url = await serve(wait)
    async with line_to(url) as line:
        await line.ask(url, "/echo/x")
        await until(lambda: journal)
    await until(lambda: journal == ["waits", "cancelled"])


# ── bodies that are long, and answers that come in pieces ──


async def test_a_large_upload(serve, service, client):
    """A body that no message holds goes through a filter that does not look at it."""

    async def change(request, call_next):
        assert request.more
        assert request.headers["content-length"] == str(len(LARGE))
        response = await call_next(request.model_copy(update={"headers": request.headers + {"x-a": "1"}}))
        return response.with_headers({"x-status": str(response.status)})

    response = await client.post(f"{await serve(change)}/upload", content=LARGE)
    assert response.json() == {"size": len(LARGE), "sha": sha256(LARGE).hexdigest()}
    assert response.headers["x-status"] == "200"


async def test_a_large_upload_that_a_filter_reads(serve, service, client):
    """A filter may read all of it, and what it has read goes on to the service."""

    async def read(request, call_next):
        body = await request.read()
        response = await call_next(request)
        return response.with_headers({"x-sha": sha256(body).hexdigest()})

    response = await client.post(f"{await serve(read)}/upload", content=LARGE)
    assert response.json() == {"size": len(LARGE), "sha": response.headers["x-sha"]}


async def test_a_large_upload_that_a_filter_replaces(serve, service, client):
    """With a body of its own in place of the client's, that is what arrives."""

    async def replace(request, call_next):
        return await call_next(request.model_copy(update={"body": b"short"}))

    response = await client.post(f"{await serve(replace)}/upload", content=LARGE)
    assert response.json() == {"size": 5, "sha": sha256(b"short").hexdigest()}


async def test_an_upload_piece_by_piece(serve, service):
    """The service sees the first piece before the client has sent the second."""
    url = await serve(passing)
    async with line_to(url) as line:
        await line.ask(url, "/upload", "Transfer-Encoding: chunked", method="POST")
        for number in range(1, 4):
            line.writer.write(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            async with asyncio.timeout(10):
                while await service.seen.get() < 1000 * number:
                    pass
        line.writer.write(b"0\r\n\r\n")
        assert b'"size":3000' in (await line.until(b"}")).replace(b" ", b"")


async def test_a_filter_that_refuses_an_upload(serve, service):
    """The answer is there before the body has come, and says that the connection closes."""

    async def refuse(request, call_next):
        return Response(status=403, body="no")

    url = await serve(refuse)
    async with line_to(url) as line:
        await line.ask(url, "/upload", "Content-Length: 5000000", method="POST")
        head = (await line.until(b"\r\n\r\n")).lower()
    assert head.startswith(b"http/1.1 403")
    assert b"connection: close" in head
    assert service.journal == []


async def test_a_client_that_leaves_in_the_middle_of_its_body(serve, service, until):
    """The handler that reads the body is told."""
    url = await serve(passing)
    async with line_to(url) as line:
        await line.ask(url, "/upload", "Content-Length: 5000000", method="POST")
        line.writer.write(b"x" * 2_000_000)
        await line.writer.drain()
        async with asyncio.timeout(10):
            await service.seen.get()
    await until(lambda: len(service.journal) == 2)
    assert service.journal[1] in ("upload CancelledError", "upload Disconnected")


@pytest.mark.parametrize("size", [1000, 300_000, 5_000_000])
async def test_a_large_answer(serve, client, size):
    """Whatever its size, it comes whole, with the headers that a filter has changed."""

    async def add(request, call_next):
        return (await call_next(request)).with_headers({"x-a": "1"})

    response = await client.get(f"{await serve(add)}/bytes/{size}")
    assert (len(response.content), response.headers["x-a"]) == (size, "1")
    assert response.content == (LARGE * 3)[:size]


async def test_events_one_by_one(serve, service):
    """Each event is out before the next one exists, behind the headers that a filter has added."""

    async def add(request, call_next):
        response = await call_next(request)
        assert response.pieces is not None
        return response.with_headers({"x-feed": "yes"})

    url = await serve(add)
    async with line_to(url) as line:
        await line.ask(url, "/events", "Accept: text/event-stream")
        for number in range(5):
            service.items.put_nowait(f"number {number}")
            said = await line.until(b"number %d" % number)
            if number == 0:
                assert b"x-feed: yes" in said.lower()
                assert b"text/event-stream" in said


async def test_a_filter_that_looks_at_pieces(serve, service, client):
    """A filter may put a stream of its own around the service's."""

    async def double(request, call_next):
        response = await call_next(request)

        async def pieces():
            async for piece in response.pieces.source:
                yield piece + piece

        return StreamingResponse(pieces(), status=response.status, headers=response.headers.without("content-length"))

    response = await client.get(f"{await serve(double)}/bytes/2000000")
    assert len(response.content) == 4_000_000


async def test_a_stream_of_a_filter_that_fails(serve, service, client, caplog):
    """The connection is cut off, so that nobody takes a part for the whole; the next request is served."""

    async def spoil(request, call_next):
        response = await call_next(request)
        if response.pieces is None:
            return response

        async def pieces():
            async for piece in response.pieces.source:
                yield piece
                raise ValueError("the filter's own")

        return StreamingResponse(pieces(), status=response.status)

    url = await serve(spoil)
    with pytest.raises(httpx2.RemoteProtocolError):
        await client.get(f"{url}/bytes/2000000")
    assert "the filter's own" in caplog.text
    assert (await client.get(f"{url}/echo/x")).status_code == 201


async def test_a_stream_that_fails_has_no_second_answer(caplog):
    """After the start of a response there is none for the error."""

    async def spoiled(request: Request) -> Response:
        async def pieces():
            yield b"a"
            raise ValueError("broken")

        return StreamingResponse(pieces())

    sent = []

    async def send(event):
        sent.append(event)

    async def receive():
        if sent:
            await asyncio.get_running_loop().create_future()
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "headers": [], "query_string": b""}
    with contextlib.suppress(CutOff):
        await Gateway(exchange=spoiled)(scope, receive, send)
    assert [event["type"] for event in sent] == ["http.response.start", "http.response.body"]
    assert "broken" in caplog.text


async def test_a_filter_that_wants_no_stream(serve, service, client):
    """A filter that answers something else in place of a stream ends the stream in the service."""

    async def replace(request, call_next):
        await call_next(request)
        return Response(status=503, body="not now")

    url = await serve(replace)
    name = f"endless {next(numbers)}"
    assert (await client.get(f"{url}/{name.replace(' ', '/')}")).text == "not now"
    async with asyncio.timeout(2):
        while {f"{name} CancelledError", f"{name} GeneratorExit"}.isdisjoint(service.journal):
            await asyncio.sleep(0.01)


# ── WebSockets ──


def ws(url):
    """Return the URL of a WebSocket."""
    return url.replace("http", "ws", 1)


async def test_a_socket_through_filters(serve):
    """A filter changes path, query and headers of the handshake, and messages go both ways."""

    async def change(request, call_next):
        headers = request.headers.without("x-user") + {"x-user": "ann"}
        response = await call_next(
            request.model_copy(update={"raw_path": "/talk/other", "query": "a=1", "headers": headers})
        )
        assert response.status == 204
        return response

    url = await serve(change)
    async with connect_socket(f"{ws(url)}/talk/x?b=2", additional_headers={"x-user": "evil"}) as socket:
        for message in ("one", "two"):
            await socket.send(message)
            assert await socket.recv() == f"other a=1 ann {message}"


async def test_a_socket_is_refused_before_the_upgrade(serve, service):
    """The client gets the filter's own answer, with status, headers and body, and no service is asked."""

    async def guard(request, call_next):
        return Response(status=401, headers={"www-authenticate": "Bearer"}, body="who are you?")

    url = await serve(guard)
    with pytest.raises(InvalidStatus) as refused:
        async with connect_socket(f"{ws(url)}/talk/x"):
            pass
    response = refused.value.response
    assert (response.status_code, response.body) == (401, b"who are you?")
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_socket_that_nobody_takes(serve):
    """The filter sees the error as a response, and so does the client."""
    seen = []

    async def note(request, call_next):
        response = await call_next(request)
        seen.append(response.status)
        return response

    url = await serve(note)
    with pytest.raises(InvalidStatus) as refused:
        async with connect_socket(f"{ws(url)}/nowhere"):
            pass
    assert (refused.value.response.status_code, seen) == (404, [404])


async def test_a_filter_may_refuse_an_open_socket(serve, until):
    """What is not 204 any more is not opened, and the service is told that nobody talks to it."""

    async def change_mind(request, call_next):
        await call_next(request)
        return Response(status=409, body="no")

    url = await serve(change_mind)
    with pytest.raises(InvalidStatus) as refused:
        async with connect_socket(f"{ws(url)}/talk/x"):
            pass
    assert refused.value.response.status_code == 409


async def test_a_filter_that_fails_at_a_socket(serve, caplog):
    """It is a 500 before the upgrade, and in the log."""

    async def broken(request, call_next):
        raise ValueError("broken")

    url = await serve(broken)
    with pytest.raises(InvalidStatus) as refused:
        async with connect_socket(f"{ws(url)}/talk/x"):
            pass
    assert refused.value.response.status_code == 500
    assert "a filter failed at GET /talk/x" in caplog.text


# ── the error hook ──


async def page(request, error):
    """Answer an error with a page."""
    return Response(
        status=error.status,
        headers={"content-type": "text/html", "x-path": request.raw_path},
        body=f"<h1>{error.reason}</h1>",
    )


@pytest.mark.parametrize(
    ("options", "method", "path", "size", "status", "reason"),
    [
        ({}, "GET", "/nowhere", 0, 404, "no_service"),
        ({}, "POST", "/nowhere", 3_000_000, 413, "too_large"),
        ({"limits": Limits(pending=0)}, "GET", "/echo/x", 0, 503, "overloaded"),
        ({"timeout": 0.2}, "GET", "/slow", 0, 504, "timeout"),
        ({}, "TRACE", "/echo/x", 0, 405, "method_not_allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_the_hook_answers_errors(serve, client, options, method, path, size, status, reason):
    """What the gateway itself says is the hook's to say, with the request at hand."""
    url = await serve(on_error=page, **options)
    response = await client.request(method, url + path, content=b"x" * size if size else None)
    assert (response.status_code, response.text) == (status, f"<h1>{reason}</h1>")
    assert response.headers["content-type"] == "text/html"
    assert response.headers["x-path"] == path


async def test_the_hook_answers_without_nats(client):
    """A gateway that cannot reach NATS has its error pages all the same."""
    async with mounted(Gateway("filters", nats=NOWHERE, on_error=page)) as url:
        response = await client.get(f"{url}/echo/x")
    assert (response.status_code, response.text) == (503, "<h1>nats_down</h1>")


async def test_the_hook_leaves_services_alone(serve, client):
    """An answer of a service is one, whatever its status."""
    url = await serve(on_error=page)
    assert (await client.get(f"{url}/gone")).json()["reason"] == "sold"
    assert (await client.get(f"{url}/fails")).json()["reason"] == "handler_failed"
    assert (await client.get(f"{url}/echo/x")).status_code == 201


async def test_filters_see_what_the_hook_says(serve, client):
    """The hook is inside of the filters, and catches what they raise as well."""

    async def look(request, call_next):
        if request.path == "/broken":
            raise ValueError("broken")
        response = await call_next(request)
        return response.with_headers({"x-seen": response.text})

    url = await serve(look, on_error=page)
    assert (await client.get(f"{url}/nowhere")).headers["x-seen"] == "<h1>no_service</h1>"
    assert (await client.get(f"{url}/broken")).text == "<h1>gateway_failed</h1>"


async def test_a_hook_that_fails(serve, client, caplog):
    """The answer is the one that there would have been without it, and the log has the traceback."""

    async def broken(request, error):
        raise ValueError("the hook's own")

    response = await client.get(f"{await serve(on_error=broken)}/nowhere")
    assert (response.status_code, response.json()["reason"]) == (404, "no_service")
    assert "the error hook failed at GET /nowhere" in caplog.text
    assert "the hook's own" in caplog.text


async def test_the_hook_answers_sockets_too(serve):
    """A WebSocket that nobody takes is refused with the hook's answer."""
    url = await serve(on_error=page)
    with pytest.raises(InvalidStatus) as refused:
        async with connect_socket(f"{ws(url)}/nowhere"):
            pass
    assert (refused.value.response.status_code, refused.value.response.body) == (404, b"<h1>no_service</h1>")


async def test_what_cannot_be_a_filter_or_a_hook():
    """Mistakes are found where they are made, with the remedy."""

    def plain(request, call_next):
        return call_next(request)

    async def one(request):
        return Response()

    for wrong in (plain, one, None, 7):
        with pytest.raises(DeclarationError):
            Gateway("api", filters=[wrong])
    for wrong in (plain, one, passing.__name__):
        with pytest.raises(DeclarationError, match="error hook"):
            Gateway("api").on_error(wrong)


# ── in place of NATS ──


@asynccontextmanager
async def in_memory(gateway):
    """The gateway as a plain ASGI application, asked without a socket."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway), base_url="http://testserver") as client:
        yield client


async def test_echo_needs_no_nats():
    """`exchange=echo` answers a request with its own body; filters are around it."""

    async def add(request, call_next):
        return (await call_next(request)).with_headers({"x-path": request.raw_path})

    async with in_memory(Gateway(nats=NOWHERE, exchange=echo, filters=[add])) as client:
        response = await client.post("/a%20b", content=b"hello", headers={"content-type": "text/plain"})
        assert (response.status_code, response.text, response.headers["x-path"]) == (200, "hello", "/a%20b")
        assert response.headers["content-type"] == "text/plain"
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.post("/x", content=LARGE)).content == LARGE


async def test_any_handler_answers():
    """An async function of a request; what it raises is an answer, or a 500 that is logged."""

    async def answer(request: Request) -> Response:
        if request.path == "/broken":
            raise ValueError("broken")
        if request.path == "/gone":
            raise HTTPError(410, "gone", reason="sold")
        return Response(body=f"{request.method} {request.path}?{request.query}")

    async with in_memory(Gateway(exchange=answer)) as client:
        assert (await client.put("/x?a=1")).text == "PUT /x?a=1"
        assert (await client.get("/gone")).json()["reason"] == "sold"
        assert (await client.get("/broken")).status_code == 500


async def test_a_service_answers_without_nats():
    """A service's `handle` is a handler, so a whole service can be tried over HTTP in memory."""
    service = working_service()
    async with service, in_memory(Gateway(exchange=service.handle)) as client:
        response = await client.patch("/echo/x?a=1", content=b"body")
        assert (response.json()["method"], response.json()["body"]) == ("PATCH", "body")
        assert (await client.get("/nowhere")).json()["reason"] == "no_route"
        assert (await client.get("/bytes/3000000")).content == LARGE[:3_000_000]
        assert (await client.post("/upload", content=LARGE)).json()["size"] == len(LARGE)


def closing_service():
    """Return a service whose stream has a dependency that is cleaned up behind it."""
    svc = Service("closing")
    svc.closed = []

    async def resource() -> AsyncIterator[str]:
        yield "it"
        svc.closed.append("it")

    @svc.get("/rows")
    async def rows(it: Annotated[str, Depends(resource)]) -> AsyncIterator[bytes]:
        yield it.encode()

    return svc


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_a_stream_was_made_of_is_cleaned_up(method):
    """Also when no byte of it is sent."""
    service = closing_service()
    async with service, in_memory(Gateway(exchange=service.handle)) as client:
        assert (await client.request(method, "/rows")).status_code == 200
        assert service.closed == ["it"]


async def test_a_stand_in_takes_no_sockets():
    """A WebSocket is refused, and the reason says why."""
    async with mounted(Gateway(exchange=echo)) as url:
        with pytest.raises(InvalidStatus) as refused:
            async with connect_socket(f"{ws(url)}/talk/x"):
                pass
    assert refused.value.response.status_code == 501
    assert json.loads(refused.value.response.body)["reason"] == "no_websockets"


async def test_a_stand_in_on_uvicorn(client):
    """On any ASGI server, and mounted."""
    async with mounted(Gateway(exchange=echo)) as url:
        assert (await client.post(f"{url}/x", content=b"hello")).text == "hello"


async def test_a_stand_in_on_the_front(client):
    """On natsweb's own server."""
    async with front(Gateway(nats=NOWHERE, exchange=echo)) as url:
        assert (await client.post(f"{url}/x", content=b"hello")).text == "hello"


# ── the command line ──

MODULE = dedent(
    """
    from natsweb import Response

    async def outer(request, call_next):
        response = await call_next(request)
        return response.with_headers({"x-outer": response.headers.get("x-inner", "none")})

    class tools:
        async def inner(request, call_next):
            if request.headers.get("x-block"):
                return Response(status=401, body="blocked")
            return (await call_next(request)).with_headers({"x-inner": "yes"})

    def plain(request, call_next): ...
    """
)


class Said(NamedTuple):
    """A `natsweb` process and what it has said."""

    process: asyncio.subprocess.Process
    words: list[str]

    async def until(self, pattern):
        """Read stderr until it matches."""
        async with asyncio.timeout(20):
            while not (found := re.search(pattern, "".join(self.words))):
                chunk = await self.process.stderr.read(4096)
                assert chunk, f"ended without saying {pattern!r}:\n{''.join(self.words)}"
                self.words.append(chunk.decode())
        return found


@pytest_asyncio.fixture(loop_scope="module")
async def begin(tmp_path, nats_url):
    """Give a function that starts `natsweb ...` in a folder with a module of filters."""
    (tmp_path / "mine.py").write_text(MODULE)
    processes = []

    async def start(*arguments):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "natsweb", *arguments),
            cwd=tmp_path,
            env={**clean, "NATS_URL": nats_url, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return Said(process, [])

    yield start
    for process in processes:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def test_filters_from_the_command_line(begin, service, client):
    """`--filter module:name`, the first outermost; names in classes are found as well."""
    gateway = await begin(
        "gateway", "--root", "filters", "--port", "0", "--filter", "mine:outer", "--filter", "mine:tools.inner"
    )
    url = (await gateway.until(r'"http": "(http://[^"]+)"'))[1]
    response = await client.get(f"{url}/echo/x")
    assert (response.status_code, response.headers["x-outer"]) == (201, "yes")
    blocked = await client.get(f"{url}/echo/x", headers={"x-block": "1"})
    assert (blocked.status_code, blocked.headers["x-outer"]) == (401, "none")


async def test_rules_and_roots_from_the_command_line(begin, service, client):
    """All that `Gateway` takes from code, as flags."""
    said = ["--root", "nobody", "--root", "/f=filters", "--root", "f.example=filters"]
    said += ["--header", "X-Ok", "--cookie", "sid", "--set", "X-Tenant=a=b", "--exclude", "/echo/secret"]
    said += ["--timeout", "5", "--timeout", "/slow=0.2"]
    gateway = await begin("gateway", *said, "--port", "0")
    url = (await gateway.until(r'"http": "(http://[^"]+)"'))[1]
    sent = {"x-ok": "1", "x-no": "2", "cookie": "sid=1; theme=dark", "x-tenant": "evil"}
    for target, headers in ((f"{url}/f/echo/x?a=1", {}), (f"{url}/echo/x?a=1", {"host": "f.example"})):
        response = await client.get(target, headers={**sent, **headers})
        seen = dict(map(tuple, response.json()["headers"]))
        seen.pop("host")
        assert seen == {"x-ok": "1", "cookie": "sid=1", "x-tenant": "a=b"}
        assert (response.json()["path"], response.json()["query"]) == ("/echo/x", "a=1")
    assert (await client.get(f"{url}/f/echo/secret/x")).status_code == 404
    assert (await client.get(f"{url}/f/slow")).json()["detail"] == "no answer within 0.2 s"
    assert (await client.get(f"{url}/echo/x")).status_code == 404


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        (["--filter", "nowhere:x"], 2, ["no module 'nowhere'", "fix: "]),
        (["--filter", "mine:missing"], 2, ["mine has no 'missing'", "fix: "]),
        (["--filter", "mine"], 2, ["mine has no", "fix: name it as mine:name"]),
        (["--filter", "mine:plain"], 1, ["plain", "async function", "fix: "]),
        (["--set", "X-Tenant"], 2, ["--set X-Tenant is no KEY=VALUE", "fix: --set X-Tenant=acme"]),
        (["--set", "=x"], 2, ["is no KEY=VALUE", "fix: "]),
        (["--set", "X Y=1"], 2, ["'X Y' cannot be sent as a header", "fix: "]),
        (["--header", "x:"], 2, ["'x:' is no name of a header", "fix: "]),
        (["--exclude", "admin"], 2, ["'admin' is no path", "fix: write it as /admin"]),
        (["--timeout", "soon"], 2, ["--timeout wants seconds", "fix: "]),
        (["--timeout", "0"], 2, ["--timeout 0 cannot be", "fix: "]),
        (["--timeout", "/a=-1"], 2, ["-1.0 s cannot be the time for /a", "fix: "]),
        (["--root", "a", "--root", "b"], 2, ["--root a and --root b both want all paths", "fix: "]),
        (["--root", "/a=$SYS"], 2, ["'$SYS' cannot be a root", "fix: "]),
        (["--root", "/=a"], 2, ["says neither a host nor a path", "fix: "]),
        (["--wire", "soap"], 2, ["--wire soap is neither natsweb nor nats-proxy", "fix: --wire nats-proxy"]),
        (["--wire", "nats-proxy", "--known-only"], 2, ["--known-only wants a catalogue", "fix: "]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else None,
)
async def test_mistakes_on_the_command_line(begin, said, code, words):
    """Each has its exit code, what is wrong, and how to write it; nothing listens."""
    gateway = await begin("gateway", "--port", "0", *said)
    async with asyncio.timeout(20):
        _, complained = await gateway.process.communicate()
    assert gateway.process.returncode == code, complained.decode()
    for word in words:
        assert word in complained.decode()
    assert "Traceback" not in complained.decode()
