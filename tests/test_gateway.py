"""The gateway: one table of requests through every door of it, and what it says when something is wrong."""

import asyncio
import base64
import json
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import fastapi
import httpx2
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

from natsweb import HTTPError, Limits, Nats, Request, Response, Service
from natsweb.embedded import embedded_server
from natsweb.errors import StartError
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.headers import Headers
from natsweb.natsbus import connect
from natsweb.worker import Worker

METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]

table = pytest.mark.asyncio(loop_scope="module")

REPLIES = {
    "cookies": Response(headers=[("set-cookie", "a=1"), ("set-cookie", "b=2; Path=/"), ("set-cookie", "a=3")]),
    "latin": Response(headers={"x-latin": "\xe9\xff", "x-empty": "", "x-comma": "a, b"}),
    "created": Response(status=201, headers={"location": "/reply/created"}, body=b"made"),
    "teapot": Response(status=418, body=b"short and stout"),
    "empty": Response(),
    "204": Response(status=204, headers={"x-a": "1"}),
    "204-body": Response(status=204, headers={"content-length": "4"}, body=b"body"),
    "205": Response(status=205, body=b"body"),
    "304": Response(status=304, headers={"etag": '"1"'}),
    "304-length": Response(status=304, headers={"etag": '"1"', "content-length": "1234"}),
    "304-body": Response(status=304, body=b"body"),
    "short": Response(headers={"content-length": "3"}, body=b"longer"),
    "long": Response(headers={"content-length": "99"}, body=b"shorter"),
    "nonsense-length": Response(headers={"content-length": "many"}, body=b"body"),
    "bytes": Response(body=bytes(range(256)) * 100),
    "hop": Response(
        headers={
            "connection": "x-named",
            "keep-alive": "timeout=99",
            "proxy-connection": "x",
            "transfer-encoding": "chunked",
            "te": "trailers",
            "trailer": "x",
            "upgrade": "h2c",
            "nats-msg-id": "1",
            "nw-status": "599",
            "nw_status": "599",
            "x-kept": "1",
            "status": "503",
        },
        body=b"hop",
    ),
    "named": Response(headers={"connection": "x-named", "x-named": "1", "x-kept": "1"}),
}


def shop(root="api"):
    """Return a service that echoes what it gets, and answers from a table."""
    svc = Service("shop", root=root)
    svc.secrets = 0

    @svc.route("/", methods=["GET"])
    async def index() -> str:
        return "index"

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

    @svc.get("/secret")
    async def secret() -> None:
        svc.secrets += 1

    return svc


class Door(NamedTuple):
    """One way into the gateway."""

    client: httpx2.AsyncClient
    service: Service


@asynccontextmanager
async def front(gateway):
    """The gateway on a socket of its own."""
    await gateway.start()
    server = Front(gateway, port=0, grace=1)
    await server.start()
    try:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            yield client
    finally:
        await server.stop()


@asynccontextmanager
async def starlette(gateway):
    """The gateway mounted in a Starlette app."""
    app = Starlette(routes=[Mount("/shop", gateway)])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://testserver/shop") as client:
        yield client


@asynccontextmanager
async def fast_api(gateway):
    """The gateway mounted in a FastAPI app."""
    app = fastapi.FastAPI()
    app.mount("/shop", gateway)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://testserver/shop") as client:
        yield client


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[front, starlette, fast_api], ids=lambda d: d.__name__
)
async def door(request, nats_url):
    """Give each door of a gateway in front of the shop; mounted ones start at the first request."""
    nats = Nats(urls=(nats_url,))
    async with AsyncExitStack() as stack:
        bus = await connect(nats)
        stack.push_async_callback(bus.close)
        service = shop("doors")  # a root of its own: between two tests of this loop, nobody would answer
        worker = Worker(bus, service)
        await worker.start()
        stack.push_async_callback(worker.stop, 1)
        gateway = Gateway("doors", nats=nats)
        stack.push_async_callback(gateway.stop)
        yield Door(await stack.enter_async_context(request.param(gateway)), service)


def seen(response):
    """Return what the echo saw: the request, its headers as pairs, its body as bytes."""
    echo = response.json()
    echo["headers"] = [tuple(pair) for pair in echo["headers"]]
    echo["body"] = base64.b64decode(echo["body"])
    return echo


def values(echo, name):
    """Return the values of one header that the echo saw."""
    return [value for found, value in echo["headers"] if found == name]


# ── the table: requests ──


@table
@pytest.mark.parametrize("method", [method for method in METHODS if method != "HEAD"])
@pytest.mark.parametrize("body", [b"", b"\x00\xff\r\n", bytes(300_000)], ids=len)
async def test_methods_and_bodies(door, method, body):
    """Every method carries its body, whatever is in it."""
    response = await door.client.request(method, "/echo/x", content=body)
    echo = seen(response)
    assert (response.status_code, echo["method"], echo["body"]) == (200, method, body)
    assert not {"content-length", "transfer-encoding", "connection"} & {name for name, _ in echo["headers"]}


@table
async def test_head(door):
    """HEAD has the headers of GET, Content-Length included, and no body."""
    got, head = [await door.client.request(method, "/reply/created") for method in ("GET", "HEAD")]
    assert (head.status_code, head.content, head.headers["content-length"]) == (201, b"", "4")
    assert got.headers["location"] == head.headers["location"]
    assert got.content == b"made"


@table
@pytest.mark.parametrize(
    ("path", "raw_path"),
    [
        ("/echo/a", "/echo/a"),
        ("/echo/a/b/c", "/echo/a/b/c"),
        ("/echo/", "/echo/"),
        ("/echo//a//", "/echo//a//"),
        ("/echo/a.b", "/echo/a%2Eb"),
        ("/echo/a%2Fb", "/echo/a%2Fb"),
        ("/echo/%41", "/echo/A"),
        ("/echo/%252e", "/echo/%252e"),
        ("/echo/a b", "/echo/a%20b"),
        ("/echo/%C3%A9", "/echo/%C3%A9"),
        ("/echo/*", "/echo/%2A"),
        ("/echo/%3e", "/echo/%3E"),
        ("/echo/$SYS/@:!", "/echo/$SYS/%40%3A!"),
        ("/echo/%00%0d%0a", "/echo/%00%0D%0A"),
    ],
)
async def test_paths(door, path, raw_path):
    """The service sees the canonical path, below the mount."""
    assert seen(await door.client.get(path))["raw_path"] == raw_path


@table
async def test_the_root(door):
    """`/` is the root itself."""
    assert (await door.client.get("/")).text == "index"


@table
@pytest.mark.parametrize("query", ["", "a=1&a=2&b", "a=.%3E*&b=%2f%2F", "x=a+b%20c&&=", "%41=%zz", "a=?/?"])
async def test_queries(door, query):
    """The query string arrives verbatim."""
    url = httpx2.URL(door.client.base_url, raw_path=door.client.base_url.raw_path + b"echo/x?" + query.encode())
    assert seen(await door.client.get(url))["query"] == query


@table
async def test_request_headers(door):
    """Repeats stay repeats, in order; latin-1 bytes and empty values arrive as they are; names are lower case."""
    echo = seen(
        await door.client.get(
            "/echo/x",
            headers=[
                (b"X-A", b"1"),
                (b"x-a", b"2, 3"),
                (b"X-A", b"1"),
                (b"X-Latin", b"\xe9\xff"),
                (b"X-Empty", b""),
                (b"Cookie", b"a=1; b=2"),
                (b"Status", b"503"),
                (b"Description", b"No Responders"),
            ],
        )
    )
    assert values(echo, "x-a") == ["1", "2, 3", "1"]
    assert values(echo, "x-latin") == ["\xe9\xff"]
    assert values(echo, "x-empty") == [""]
    assert values(echo, "cookie") == ["a=1; b=2"]
    assert values(echo, "status") == ["503"]


DROPPED = [
    "Connection: close, X-Named, Cookie",
    "X-Named: 1",
    "Cookie: secret",
    "Keep-Alive: timeout=1",
    "Proxy-Connection: x",
    "Proxy-Authorization: x",
    "Proxy-Authenticate: x",
    "TE: trailers",
    "Trailer: x",
    "Nats-Msg-Id: 1",
    "nats_msg_id: 1",
    "NATS-Trace-Only: true",
    "Nats_Trace-Dest: x",
    "Nw-Method: DELETE",
    "NW-Timeout: 1",
    "nw_service: other",
    "Nw-Query: a=b",
    "Nw-Sent: 1",
    "Nw-Unknown: 1",
]


@table
async def test_request_headers_that_do_not_cross(door):
    """Hop-by-hop headers, those that Connection names, and the wire's own never reach a service."""
    lines = [tuple(line.encode().split(b": ")) for line in DROPPED]
    echo = seen(await door.client.get("/echo/x", headers=[*lines, (b"X-Kept", b"1")]))
    names = {name for name, _ in echo["headers"]}
    assert not names & {name.decode().lower() for name, _ in lines}
    assert not [name for name in names if name.replace("_", "-").startswith(("nats-", "nw-"))]
    assert "x-kept" in names
    assert (echo["method"], echo["query"]) == ("GET", "")


@table
@pytest.mark.parametrize("chunks", [[], [b"a"], [b"a", b"b" * 70_000, b"\r\n0\r\n\r\n"]], ids=len)
async def test_chunked_request_bodies(door, chunks):
    """A body without length arrives whole, and no Transfer-Encoding with it."""

    async def stream():
        for chunk in chunks:
            yield chunk

    echo = seen(await door.client.post("/echo/x", content=stream()))
    assert echo["body"] == b"".join(chunks)
    assert values(echo, "transfer-encoding") == []


@table
async def test_the_client_is_known(door):
    """The service learns the address and the scheme of the HTTP client."""
    echo = seen(await door.client.get("/echo/x"))
    assert echo["client"].startswith("127.0.0.1:")
    assert echo["scheme"] == "http"
    assert 0 < echo["timeout"] <= 10


# ── the table: responses ──


@table
@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("created", 201, b"made"),
        ("teapot", 418, b"short and stout"),
        ("empty", 200, b""),
        ("204", 204, b""),
        ("204-body", 204, b""),
        ("304", 304, b""),
        ("304-length", 304, b""),
        ("304-body", 304, b""),
        ("short", 200, b"longer"),
        ("long", 200, b"shorter"),
        ("nonsense-length", 200, b"body"),
        ("bytes", 200, REPLIES["bytes"].body),
    ],
)
async def test_statuses_and_bodies(door, name, status, body):
    """Status and body cross; Content-Length is computed; the connection serves the next request."""
    response = await door.client.get(f"/reply/{name}")
    assert (response.status_code, response.content) == (status, body)
    assert response.headers.get("content-length") == (None if status in (204, 304) else str(len(body)))
    assert (await door.client.get("/")).text == "index"


@table
async def test_a_205_has_no_body(door):
    """A 205 has no content, however its length is said, and the next response is whole."""
    response = await door.client.get("/reply/205")
    assert (response.status_code, response.content) == (205, b"")
    assert (await door.client.get("/")).text == "index"


@table
async def test_response_headers(door):
    """Several Set-Cookie stay several; latin-1 and empty values arrive as the bytes that they are."""
    response = await door.client.get("/reply/cookies")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2; Path=/", "a=3"]
    raw = [pair for pair in (await door.client.get("/reply/latin")).headers.raw if pair[0].lower().startswith(b"x-")]
    assert raw == [(b"x-latin", b"\xe9\xff"), (b"x-empty", b""), (b"x-comma", b"a, b")]


@table
async def test_response_headers_that_do_not_cross(door):
    """Hop-by-hop headers and the wire's own never reach the client; one called Status does."""
    response = await door.client.get("/reply/hop")
    names = {name.decode().lower() for name, _ in response.headers.raw}
    assert names - {"date"} == {"x-kept", "status", "content-length", "content-type"}
    assert (response.status_code, response.text) == (200, "hop")


@table
async def test_response_headers_that_connection_names(door):
    """What a service's Connection header names belongs to that hop and does not cross."""
    response = await door.client.get("/reply/named")
    assert "x-named" not in response.headers
    assert response.headers["x-kept"] == "1"


@table
@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/nobody/here", 404, "no_service"),
        ("GET", "/reply/a/b", 404, "no_service"),
        ("GET", "/gone", 410, "sold"),
        ("POST", "/secret", 405, "method_not_allowed"),
        ("TRACE", "/secret", 405, "method_not_allowed"),
        ("GET", "/fails", 500, "handler_failed"),
        ("GET", "/*", 404, "no_service"),
        ("GET", "/%2A", 404, "no_service"),
        ("GET", "/%3E", 404, "no_service"),
        ("GET", "/>", 404, "no_service"),
        ("GET", "/*/*", 404, "no_service"),
        ("GET", "/$SYS/REQ/SERVER/PING", 404, "no_service"),
        ("GET", "/$JS/API/INFO", 404, "no_service"),
        ("GET", "/_INBOX/x", 404, "no_service"),
        ("GET", "/a%zz", 400, "bad_path"),
        ("GET", "/%FF", 400, "bad_path"),
        ("GET", "/a/%2e%2e/secret", 400, "bad_path"),
        ("GET", "/%2e", 400, "bad_path"),
        ("GET", "/" + "a" * 3100, 414, "path_too_long"),
    ],
)
async def test_problems(door, method, path, status, reason, caplog):
    """Every failure is problem+json with a stable reason and no inner detail; no other route's handler runs."""
    url = httpx2.URL(door.client.base_url, raw_path=door.client.base_url.raw_path.rstrip(b"/") + path.encode())
    response = await door.client.request(method, url)
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"], problem["reason"]) == (status, status, reason)
    assert ("allow" in response.headers) is (status == 405)
    assert "secret" not in problem["detail"].replace("/secret", "")
    assert door.service.secrets == 0


@table
@pytest.mark.parametrize(
    "headers",
    [{"x-large": "v" * 40_000}, [(f"x-{number}", "1") for number in range(120)]],
    ids=["bytes", "count"],
)
async def test_too_many_headers(door, headers):
    """A header block over the limit, in bytes or in lines, is a 431 and reaches nobody."""
    response = await door.client.get("/echo/x", headers=headers)
    assert (response.status_code, response.json()["reason"]) == (431, "headers_too_large")
    assert (await door.client.get("/")).text == "index"


@table
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit(door, chunked):
    """A body that fits into no message is a 413 that says the limit; one that just fits is carried."""

    async def stream():
        for _ in range(20):
            yield bytes(100_000)

    response = await door.client.post("/echo/x", content=stream() if chunked else bytes(2_000_000))
    assert (response.status_code, response.json()["reason"]) == (413, "too_large")
    assert "1048576" in response.json()["detail"]
    fits = bytes(1024 * 1024 - 2048)
    response = await door.client.put("/reply/created", content=fits)
    assert response.status_code == 405
    assert (await door.client.get("/")).text == "index"


# ── our own socket ──


class Http:
    """A bare HTTP client on a socket."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, url):
        address = urlsplit(url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass

    def send(self, data):
        self.writer.write(data)

    async def receive(self):
        """Return status, header block and body of the next response."""
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await self.reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            if b"transfer-encoding: chunked" in head.lower():
                assert await self.reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
        return int(head.split(b" ")[1]), head, body


@pytest.fixture
async def http(serve):
    """Give a socket to a gateway in front of the shop."""
    async with await Http.connect(await serve(shop())) as connected:
        yield connected


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/../secret", 400),
        (b"/echo/../secret", 400),
        (b"/./secret", 400),
        (b"/echo/%2e%2E/secret", 400),
        (b"/%C0%AF", 400),
    ],
)
async def test_targets_that_no_client_library_sends(http, target, status):
    """A path is never resolved, and what has no canonical form is a 400; the connection lives on."""
    for _ in range(2):
        http.send(b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await http.receive())[0] == status


async def test_a_body_over_the_limit_is_refused_before_it_is_sent(http):
    """Content-Length alone is enough for a 413; a client that asks with Expect gets it instead of 100."""
    http.send(b"POST /echo/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\nexpect: 100-continue\r\n\r\n")
    status, _, body = await http.receive()
    assert status == 413
    assert b"at most" in body


async def test_a_chunked_body_is_refused_at_the_crossing_byte(http, serve):
    """The 413 comes while the body still runs; the gateway serves the next client."""
    http.send(b"POST /echo/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    for _ in range(11):
        http.send(b"186a0\r\n" + bytes(100_000) + b"\r\n")
    assert (await http.receive())[0] == 413
    address = http.writer.get_extra_info("peername")
    async with await Http.connect(f"http://{address[0]}:{address[1]}") as other:
        other.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await other.receive())[2] == b"index"


async def test_a_client_that_expects_100_gets_it(http):
    """A body of good size is asked for, and carried."""
    http.send(b"POST /echo/x HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(20):
        assert await http.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    http.send(b"abc")
    status, _, body = await http.receive()
    assert (status, json.loads(body)["body"]) == (200, base64.b64encode(b"abc").decode())
    assert b'"expect"' not in body


@pytest.mark.parametrize("name", ["204-body", "205", "304", "304-body", "304-length"])
async def test_after_a_response_without_body_the_next_is_whole(http, name):
    """On one connection, two pipelined requests get two responses; no body is taken for the start of the next."""
    http.send(f"GET /reply/{name} HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    status, _, body = await http.receive()
    assert (status, body) == (int(name[:3]), b"")
    assert (await http.receive())[2] == b"index"


async def test_a_port_that_is_taken(nats_url):
    """It is a StartError that names the address."""
    async with Gateway(nats=nats_url) as gateway:
        one = Front(gateway, port=0)
        await one.start()
        port = urlsplit(one.url).port
        with pytest.raises(StartError, match=f"cannot listen on http://127.0.0.1:{port}"):
            await Front(gateway, port=port).start()
        assert await one.stop() is True
        assert await one.stop() is True


# ── when something is wrong behind the gateway ──


@pytest.fixture
async def ask(nats_url):
    """Give a function that makes an ASGI client of a gateway with a connection of its own."""
    async with AsyncExitStack() as stack:

        async def make(root="api", *, nats=None, **options):
            gateway = Gateway(root, nats=nats or nats_url, **options)
            stack.push_async_callback(gateway.stop)
            await gateway.start()
            transport = httpx2.ASGITransport(gateway)
            return await stack.enter_async_context(
                httpx2.AsyncClient(transport=transport, base_url="http://t")
            ), gateway

        yield make


async def answer_on(bus, subject, *replies):
    """Answer on a subject, with the replies in turn and the last one for ever; return what was received."""
    received = []

    def receive(message):
        received.append(message)
        header, payload = replies[min(len(received), len(replies)) - 1]
        bus.publish(message.reply, payload, header=header)

    await bus.subscribe(subject, receive)
    await bus.flush()
    return received


BUSY = (b"NATS/1.0\r\nNw-Status: 503\r\nNw-Retry: 1\r\nretry-after: 1\r\n\r\n", b"busy")
FINE = (b"NATS/1.0\r\nx-a: 1\r\n\r\n", b"fine")


@pytest.mark.parametrize(
    ("replies", "status", "tries"),
    [
        ([FINE], 200, 1),
        ([BUSY, FINE], 200, 2),
        ([BUSY, BUSY, FINE], 200, 3),
        ([BUSY], 503, 3),
        ([(b"NATS/1.0\r\nNw-Status: 503\r\n\r\n", b"")], 503, 1),
        ([(b"NATS/1.0\r\nNw-Status: 404\r\nNw-Retry: 1\r\n\r\n", b"")], 404, 3),
    ],
)
async def test_what_was_not_executed_is_sent_again(ask, bus, replies, status, tries):
    """A busy answer goes elsewhere, twice at most; then it is the answer. The client sees no Nw- header."""
    received = await answer_on(bus, "api.busy", *replies)
    client, _ = await ask()
    response = await client.post("/busy", content=b"body")
    assert (response.status_code, len(received)) == (status, tries)
    assert {message.payload for message in received} == {b"body"}
    assert len({message.reply for message in received}) == tries
    assert not [name for name in response.headers if name.startswith("nw-")]


async def test_retries_have_a_budget(ask, bus):
    """A service that is always busy does not get three times the traffic for long."""
    received = await answer_on(bus, "api.busy", BUSY)
    client, _ = await ask()
    for _ in range(60):
        assert (await client.get("/busy")).status_code == 503
    assert 60 < len(received) <= 60 + 10 + 6 + 1


async def test_a_full_service_is_a_503(ask, bus):
    """With its only instance full, the answer is 503 with Retry-After; when that is free again, 200."""
    svc = Service("one")
    entered, leave = asyncio.Event(), asyncio.Event()

    @svc.get("/slow")
    async def slow() -> str:
        entered.set()
        await leave.wait()
        return "done"

    worker = Worker(bus, svc, concurrency=1)
    await worker.start()
    client, _ = await ask()
    first = asyncio.create_task(client.get("/slow"))
    await entered.wait()
    response = await client.get("/slow")
    assert (response.status_code, response.json()["reason"], response.headers["retry-after"]) == (
        503,
        "overloaded",
        "1",
    )
    leave.set()
    assert (await first).text == "done"
    assert (await client.get("/slow")).text == "done"
    assert await worker.stop(10)


async def test_the_deadline(ask, bus):
    """When the gateway's time is up, the answer is a 504, and the handler in the other process is cancelled."""
    svc = Service("one")
    cancelled = asyncio.Event()

    @svc.get("/slow")
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    worker = Worker(bus, svc)
    await worker.start()
    client, _ = await ask(timeout=0.1)
    response = await client.get("/slow")
    assert (response.status_code, response.json()["reason"]) == (504, "timeout")
    async with asyncio.timeout(10):
        await cancelled.wait()
    assert await worker.stop(10)


@pytest.mark.parametrize(
    "header",
    [
        b"garbage\r\n\r\n",
        b"NATS/1.0\r\n",
        b"NATS/1.0\r\nx: 1\r\n",
        b"NATS/2.0\r\n\r\n",
        b"NATS/1.0\r\nx: a\nset-cookie: evil=1\r\n\r\n",
        b"NATS/1.0\r\nx: a\rset-cookie: evil=1\r\n\r\n",
        b"NATS/1.0\r\nx: a\x00b\r\n\r\n",
        b"NATS/1.0\r\nset cookie: evil=1\r\n\r\n",
        b"NATS/1.0\r\nx: 1\r\n\r\nset-cookie: evil=1\r\n\r\n",
        b"NATS/1.0\r\n: 1\r\n\r\n",
        b"NATS/1.0\r\nNw-Status: abc\r\n\r\n",
        b"NATS/1.0\r\nNw-Status: 99\r\n\r\n",
        b"NATS/1.0\r\nNw-Status: 101\r\n\r\n",
        b"NATS/1.0\r\nNw-Status: 600\r\n\r\n",
        b"NATS/1.0\r\nNw-Status: 200 OK\r\n\r\n",
        b"NATS/1.0\r\nNw-Status:\r\n\r\n",
        b"NATS/1.0\r\nNw-Version: 2\r\n\r\n",
        b"NATS/1.0 408\r\n\r\n",
    ],
)
async def test_a_malformed_reply_is_a_502(ask, bus, peer, header):
    """Nothing of a reply that breaks the wire format reaches the client."""
    got = asyncio.Queue()
    await bus.subscribe("api.bad", got.put_nowait)
    await bus.flush()
    client, _ = await ask()
    task = asyncio.create_task(client.get("/bad"))
    async with asyncio.timeout(20):
        message = await got.get()
        await peer.publish(message.reply.encode(), b"evil", header=header)
        response = await task
    assert (response.status_code, response.json()["reason"]) == (502, "bad_reply")
    assert "evil" not in response.text + repr(response.headers)


@pytest.mark.parametrize(
    ("header", "payload", "status", "kind"),
    [
        (None, b'{"a":1}', 200, "application/json"),
        (None, b"7", 200, "application/json"),
        (None, "grüß".encode(), 200, "text/plain; charset=utf-8"),
        (None, b"\xff\xfe", 200, "application/octet-stream"),
        (None, b"", 200, None),
        (None, b"[" * 100_000, 200, "text/plain; charset=utf-8"),
        (b"NATS/1.0\r\n\r\n", b"{}", 200, "application/json"),
        (b"NATS/1.0\r\nContent-Type:text/csv\r\n\r\n", b"a,b", 200, "text/csv"),
        (b"NATS/1.0\r\nNats-Service-Error-Code: 409\r\nNats-Service-Error: taken\r\n\r\n", b"x", 409, None),
        (b"NATS/1.0\r\nNats-Service-Error-Code: 7\r\nNats-Service-Error: odd\r\n\r\n", b"x", 500, None),
        (b"NATS/1.0\r\nStatus: 503\r\nDescription: none\r\n\r\n", b"x", 200, None),
    ],
)
async def test_replies_of_plain_nats_clients(ask, bus, peer, header, payload, status, kind):
    """A reply without headers is a 200 of a guessed type; errors of NATS micro services keep their status."""
    got = asyncio.Queue()
    await bus.subscribe("api.plain", got.put_nowait)
    await bus.flush()
    client, _ = await ask()
    task = asyncio.create_task(client.get("/plain"))
    async with asyncio.timeout(20):
        await peer.publish((await got.get()).reply.encode(), payload, header=header)
        response = await task
    assert (response.status_code, response.content, response.headers.get("content-type")) == (status, payload, kind)
    assert not [name for name in response.headers if name.startswith("nats-")]


async def test_no_path_leaves_the_root(ask, bus):
    """Whatever the path, the subject is below the root, and has no wildcard of NATS in it."""
    subjects = asyncio.Queue()

    def receive(message):
        if message.reply and message.subject != "$SRV.INFO":  # which the gateway asks of its own accord
            subjects.put_nowait(message.subject)
            bus.publish(message.reply, b"seen")

    await bus.subscribe(">", receive)
    await bus.flush()
    client, _ = await ask()
    paths = [
        "$SYS/REQ/SERVER/PING",
        "$JS/API/INFO",
        "$SRV/PING",
        "_INBOX/x",
        "*",
        ">",
        "a/%3E/b",
        "a%2Eb",
        "%24SYS",
        "a%0d%0aPUB x 1",
    ]
    for path in paths:
        assert (await client.get(f"/{path}")).text == "seen"
        async with asyncio.timeout(10):
            subject = await subjects.get()
        assert subject.startswith("api.")
        assert not set(subject) & set("*> \r\n\t")
        assert subject.count(".") == path.count("/") + 1
    assert subjects.empty()


async def test_a_root_knows_its_tokens(ask, bus):
    """A gateway on `api` does not reach `apis`, and one on `api.staging` not `api.orders`."""
    for subject in ("apis.x", "api.orders"):
        await answer_on(bus, subject, FINE)
    assert (await (await ask("api"))[0].get("/x")).status_code == 404
    assert (await (await ask("api.staging"))[0].get("/orders")).status_code == 404
    assert (await (await ask("api"))[0].get("/orders")).text == "fine"


async def test_too_many_requests_under_way(ask, bus):
    """Beyond its limit the gateway answers 503 at once, and takes more when some are done."""
    got = asyncio.Queue()
    await bus.subscribe("api.slow", got.put_nowait)
    await bus.flush()
    client, gateway = await ask(limits=Limits(pending=3))
    tasks = [asyncio.create_task(client.get("/slow")) for _ in range(3)]
    async with asyncio.timeout(20):
        messages = [await got.get() for _ in range(3)]
        response = await client.get("/slow")
        assert (response.status_code, response.json()["reason"], response.headers["retry-after"]) == (
            503,
            "overloaded",
            "1",
        )
        for message in messages:
            bus.publish(message.reply, b"done")
        assert [(await task).text for task in tasks] == ["done"] * 3
        assert "0 requests under way" in repr(gateway.exchange)


async def test_a_large_path_hurts_no_other_request(ask, bus):
    """While requests are under way, ones that are too long for NATS are refused and the others get their answers."""
    got = asyncio.Queue()
    await bus.subscribe("api.slow", got.put_nowait)
    await bus.flush()
    client, _ = await ask()
    tasks = [asyncio.create_task(client.get("/slow")) for _ in range(20)]
    async with asyncio.timeout(20):
        messages = [await got.get() for _ in range(20)]
        for length in (3100, 4050, 8000):
            assert (await client.get("/" + "a" * length)).status_code == 414
        assert (await client.get("/x", headers={"x": "v" * 50_000})).status_code == 431
        assert (await client.post("/x", content=bytes(1024 * 1024 - 100))).status_code == 413
        for message in messages:
            bus.publish(message.reply, b"done")
        assert {(await task).text for task in tasks} == {"done"}


async def test_nats_goes_away_and_comes_back(ask, until, tmp_path):
    """What is under way is a 502 at once, what comes later a 503 with Retry-After, and then all is well again."""
    file = tmp_path / "pid"
    async with embedded_server(arguments=("--pid", str(file))) as url:
        client, gateway = await ask(nats=url)
        bus = await connect(Nats(urls=(url,)))
        got = asyncio.Queue()
        await bus.subscribe("api.slow", got.put_nowait)
        await answer_on(bus, "api.fast", FINE)
        task = asyncio.create_task(client.get("/slow"))
        await got.get()
        os.kill(int(file.read_text()), signal.SIGKILL)
        async with asyncio.timeout(8):
            response = await task
        assert (response.status_code, response.json()["reason"]) == (502, "disconnected")
        response = await client.get("/fast")
        assert (response.status_code, response.json()["reason"], response.headers["retry-after"]) == (
            503,
            "nats_down",
            "1",
        )
        async with embedded_server(port=urlsplit(url).port):
            await until(lambda: bus.is_connected and gateway._own_bus.is_connected)
            await bus.flush()
            assert (await client.get("/fast")).text == "fine"
            await bus.close()


async def test_a_gateway_that_finds_no_nats(ask, until):
    """Started at the first request, it answers 503 with Retry-After, and does not try again for each request."""
    async with embedded_server() as url:
        pass
    gateway = Gateway(nats=url)
    transport = httpx2.ASGITransport(gateway)
    async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client, asyncio.timeout(20):
        for _ in range(3):
            response = await client.get("/x")
            assert (response.status_code, response.json()["reason"]) == (503, "nats_down")
            assert response.headers["retry-after"] == "1"
    assert "not started" in repr(gateway)


# ── holding, and life ──


async def test_requests_are_held_while_a_service_restarts(ask, bus, until):
    """Between pause and resume, a request that nobody listens to waits for the service and is answered by it."""
    client, gateway = await ask()
    gateway.exchange.pause()
    task = asyncio.create_task(client.post("/late", content=b"body"))
    await until(lambda: "1 requests" in repr(gateway.exchange))
    await gateway._own_bus.flush()
    assert not task.done()
    received = await answer_on(bus, "api.late", FINE)
    gateway.exchange.resume()
    async with asyncio.timeout(10):
        assert (await task).text == "fine"
    assert [message.payload for message in received] == [b"body"]
    assert (await client.get("/nobody")).status_code == 404


async def test_a_hold_ends(ask, bus):
    """A service that is not back in time is a 503 with Retry-After; one that is there is not held."""
    client, gateway = await ask(timeout=0.3)
    await answer_on(bus, "api.here", FINE)
    gateway.exchange.pause()
    assert (await client.get("/here")).text == "fine"
    response = await client.get("/late")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "still starting" in response.json()["detail"]


async def test_a_hold_is_given_up(ask, bus, until):
    """Of a service that has not started, requests that wait hear at once, and so do those to come, until it is back."""
    client, gateway = await ask()
    exchange = gateway.exchange
    exchange.pause()
    held = asyncio.create_task(client.get("/late"))
    await until(lambda: exchange._held)
    exchange.refuse("it is broken")
    for response in (await held, await client.get("/late")):
        assert (response.status_code, response.json()["reason"]) == (503, "no_service")
        assert response.json()["detail"] == "it is broken"
    exchange.pause()
    held = asyncio.create_task(client.get("/late"))
    await until(lambda: exchange._held)
    await answer_on(bus, "api.late", FINE)
    exchange.resume()
    assert (await held).text == "fine"
    assert not exchange._flights


async def live(gateway, *events):
    """Send lifespan events to a gateway, and return what it says."""
    said = []
    waiting = iter(events)

    async def receive():
        return {"type": f"lifespan.{next(waiting)}"}

    async def send(event):
        said.append(event)

    await gateway({"type": "lifespan"}, receive, send)
    return said


async def test_lifespan(nats_url):
    """Startup connects, shutdown lets go."""
    gateway = Gateway(nats=nats_url)
    states = []

    async def app(scope, receive, send):
        async def note(event):
            states.append((event["type"].removeprefix("lifespan."), "not started" in repr(gateway)))
            await send(event)

        await gateway(scope, receive, note)

    await live(app, "startup", "shutdown")
    assert states == [("startup.complete", False), ("shutdown.complete", True)]


async def test_lifespan_without_nats(nats_url):
    """Startup fails with the sentence that says what to do, and raises nothing."""
    async with embedded_server() as url:
        pass
    (event,) = await live(Gateway(nats=url), "startup")
    assert event["type"] == "lifespan.startup.failed"
    assert "NATS_URL" in event["message"]


async def test_a_given_bus_is_not_closed(bus):
    """The gateway uses a connection that it was given, and leaves it open."""
    await answer_on(bus, "api.x", FINE)
    gateway = Gateway(bus=bus)
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway), base_url="http://t")
    async with gateway, client:
        assert (await client.get("/x")).text == "fine"
    assert bus.is_connected


def test_headers_cannot_be_injected():
    """No header that natsweb builds takes a CR, LF or NUL."""
    for value in ("a\r\nb: c", "a\nb", "a\rb", "a\0b"):
        with pytest.raises(ValueError, match="header x has a"):
            Headers({"x": value})
