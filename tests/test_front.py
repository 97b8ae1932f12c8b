"""The front: one table of raw requests through both doors of our server, and what a socket may do to it."""

import asyncio
import gc
import itertools
import json
import re
import select
import socket
import weakref
import zlib
from contextlib import AsyncExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb import Limits, Nats, Request, Response, Service
from natsweb.front import Front
from natsweb.front.protocol import Connection
from natsweb.gateway import Gateway
from natsweb.natsbus import connect
from natsweb.worker import Worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
LARGE = bytes(range(256)) * 3500
HASTY = Limits(head_timeout=0.2, body_timeout=0.2, idle_timeout=0.3, write_timeout=0.3)


# ── the house: service, gateway, two fronts ──


class House(NamedTuple):
    """A service behind one gateway with two fronts, one for each door."""

    service: Service
    gateway: Gateway
    fronts: dict[bool, Front]

    def connections(self, fast):
        """Return the connections of one front."""
        return self.fronts[fast]._server.server_state.connections

    @property
    def flights(self):
        """How many requests are under way."""
        return len(self.gateway.exchange._flights)


def house_service(root):
    """Return a service that echoes, waits, answers large, and counts what should never come."""
    svc = Service("house", root=root)
    svc.seen, svc.smuggled = [], 0
    svc.entered, svc.leave = asyncio.Queue(), asyncio.Event()

    @svc.route("/echo/<path:rest>", methods=METHODS)
    async def echo(rest: str, request: Request) -> Response:
        svc.seen.append(rest)
        body = request.body
        said = {
            "method": request.method,
            "path": request.raw_path,
            "query": request.query,
            "headers": [list(pair) for pair in request.headers],
            "body": body.decode("latin-1") if len(body) < 100 else [len(body), zlib.crc32(body)],
        }
        return Response(headers={"content-type": "application/json"}, body=json.dumps(said).encode())

    @svc.get("/reply/<status>")
    async def reply(status: int) -> Response:
        return Response(status=status, headers={"etag": '"1"'}, body=b"body")

    @svc.route("/slow/<name>", methods=METHODS)
    async def slow(name: str) -> str:
        svc.entered.put_nowait(name)
        await svc.leave.wait()
        return name

    @svc.get("/medium")
    async def medium() -> bytes:
        return LARGE[:30_000]

    @svc.get("/large")
    async def large() -> bytes:
        return LARGE

    @svc.route("/smuggled", methods=METHODS)
    async def smuggled() -> str:
        svc.smuggled += 1
        return "smuggled"

    return svc


async def build(stack, nats_url, root, *, limits=None, grace=1.0, doors=(True, False)):
    """Start a house, which ends with the stack."""
    nats = Nats(urls=(nats_url,))
    bus = await connect(nats)
    stack.push_async_callback(bus.close)
    service = house_service(root)
    worker = Worker(bus, service, concurrency=1000)
    await worker.start()
    stack.push_async_callback(worker.stop, 0)
    gateway = await stack.enter_async_context(Gateway(root, nats=nats, limits=limits))
    fronts = {fast: Front(gateway, port=0, grace=grace, fast=fast) for fast in doors}
    for front in fronts.values():
        await front.start()
        stack.push_async_callback(end, front)
    return House(service, gateway, fronts)


async def stop(front, *, within=1.0, **options):
    """Stop a front, and return whether it let all finish; what keeps it longer is cut."""
    task = asyncio.create_task(front.stop(**options))
    done, _ = await asyncio.wait([task], timeout=within)
    cut(front)
    finished = await task
    assert done, f"stopping took more than {within} s"
    return finished


def cut(front):
    """Cut all connections of a front."""
    for connection in list(front._server.server_state.connections):
        connection.transport.abort()
    front.exchange.cut()


async def end(front):
    """Cut and stop a front: what a test has left behind does not keep it."""
    cut(front)
    await front.stop(now=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(nats_url):
    """Give a house with the default limits, for all tests of this module."""
    async with AsyncExitStack() as stack:
        yield await build(stack, nats_url, "front")


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared):
    """Give the shared house, swept: nothing seen, nothing waiting, and afterwards nothing left."""
    service = shared.service
    service.seen.clear()
    service.smuggled, service.entered, service.leave = 0, asyncio.Queue(), asyncio.Event()
    yield shared
    service.leave.set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(nats_url):
    """Give a house with short times."""
    async with AsyncExitStack() as stack:
        yield await build(stack, nats_url, "hasty", limits=HASTY)


@pytest_asyncio.fixture(loop_scope="module")
async def own(nats_url):
    """Give a function that builds a house with one front, for a test that stops it."""
    async with AsyncExitStack() as stack:

        async def make(fast, **options):
            return await build(stack, nats_url, "own", doors=[fast], **options)

        yield make


# ── the socket ──


class Answer(NamedTuple):
    """One parsed response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self):
        """Whether it says that the connection closes."""
        return self.headers.get("connection") == "close"

    @property
    def problem(self):
        """Return (status, reason) of a problem+json."""
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(self.body)
        assert found["status"] == self.status
        return self.status, found["reason"]


class Socket:
    """A bare HTTP client that sees bytes, and the end of the connection as the end."""

    def __init__(self, front, *, buffer=None):
        address = urlsplit(front.url)
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect((address.hostname, address.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.ended = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    async def send(self, *segments):
        """Send, giving the server a turn after each segment; a server that has closed is told nothing."""
        try:
            for segment in segments:
                await asyncio.get_running_loop().sock_sendall(self.socket, segment)
                for _ in range(2 * (len(segments) > 1)):
                    await asyncio.sleep(0)
        except OSError:
            pass

    def is_readable(self):
        """Tell whether something has come, or the connection has ended."""
        return bool(select.select([self.socket], [], [], 0)[0])

    async def _more(self):
        try:
            data = await asyncio.get_running_loop().sock_recv(self.socket, 1 << 18)
        except OSError:
            data = b""
        self.received += data
        self.ended = not data
        return data

    async def rest(self, *, within=10.0):
        """Return all that comes until the connection ends."""
        async with asyncio.timeout(within):
            while await self._more():
                pass
        received, self.received = self.received, b""
        return received

    async def answer(self, *, head=False, within=10.0):
        """Return the next answer."""
        async with asyncio.timeout(within):
            while (found := split(self.received, head=head)) is None:
                assert await self._more(), f"the connection ended after {self.received!r}"
        answer, self.received = found
        return answer


def split(raw, *, head=False):
    """Return (the first answer, the rest), or None if it is not whole; `head`: it answers a HEAD."""
    start, end, rest = raw.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *fields = start.split(b"\r\n")
    status = int(re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*", line)[1])
    headers = dict(field.decode("latin-1").split(": ", 1) for field in fields)
    assert len(headers) == len(fields), "a field is there twice"
    bodiless = head or status < 200 or status in (204, 304)
    length = 0 if bodiless else int(headers["content-length"])
    return None if len(rest) < length else (Answer(status, headers, rest[:length]), rest[length:])


def answers(raw, *, head=False):
    """Return all answers in what a connection received; `head`: the first one answers a HEAD."""
    found = []
    while raw:
        answer, raw = split(raw, head=head and not [one for one in found if one.status >= 200])
        found.append(answer)
    return found


async def exchange(front, *segments, within=10.0):
    """Send to a new connection, and return what it received before it ended."""
    with Socket(front) as client:
        await client.send(*segments)
        return await client.rest(within=within)


async def ping(front):
    """Return the answer to a request on a connection of its own."""
    (answer,) = answers(await exchange(front, LAST))
    return answer


def req(*lines, method="GET", target="/echo/x", version="HTTP/1.1", host="Host: x", body=""):
    """Return the bytes of a request, from latin-1 text."""
    head = [f"{method} {target} {version}", *([host] if host is not None else []), *lines]
    body = body if isinstance(body, bytes) else body.encode("latin-1")
    return "".join(f"{line}\r\n" for line in head).encode("latin-1") + b"\r\n" + body


def chunked(body, *lines, **options):
    """Return the bytes of a POST with a chunked body."""
    return req("Transfer-Encoding: chunked", *lines, body=body, **{"method": "POST", **options})


SMUGGLED = req(target="/smuggled")
LAST_SMUGGLED = req("Connection: close", target="/smuggled")
NEXT = req(target="/echo/next")
LAST = req("Connection: close", target="/echo/last")
HELLO = "5\r\nhello\r\n0\r\n\r\n"
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")


def row(raw, *expected, id):
    """Return a row of a table."""
    return pytest.param(raw, *expected, id=id)


# ── the table: what is served ──

BIG = {size: bytes(range(256)) * (size // 256) + bytes(size % 256) for size in (65_535, 65_536, 65_537, 300_000)}


def echoed(**wanted):
    """Return the expectation of a 200 whose echo has these values."""
    return [200, wanted]


VALID = [
    *[
        row(req(method=method), [echoed(method=method, body="")], True, id=method)
        for method in METHODS
        if method != "HEAD"
    ],
    *[
        row(req("Content-Length: 5", method=method, body="hello"), [echoed(body="hello")], True, id=f"{method} + body")
        for method in METHODS
        if method != "HEAD"
    ],
    row(req(method="HEAD"), [[200, b""]], True, id="HEAD"),
    row(req("Content-Length: 5", method="HEAD", body="hello"), [[200, b""]], True, id="HEAD + body"),
    row(req("Connection: close", method="HEAD"), [[200, b""]], False, id="HEAD + close"),
    row(req(target="/reply/200"), [[200, b"body"]], True, id="200"),
    row(req(target="/reply/204"), [[204, b""]], True, id="204"),
    row(req(target="/reply/205"), [[205, b""]], True, id="205"),
    row(req(target="/reply/304"), [[304, b""]], True, id="304"),
    row(req(target="/reply/599"), [[599, b"body"]], True, id="599"),
    row(req(target="/no/body"), [[404, "no_service"]], True, id="no service"),
    row(req(target="/a/../b"), [[400, "bad_path"]], True, id="dots"),
    row(req(target="/%zz"), [[400, "bad_path"]], True, id="bad escape"),
    row(req(method="TRACE"), [[405, "method_not_allowed"]], True, id="TRACE"),
    row(req(method="PROPFIND"), [[405, "method_not_allowed"]], True, id="a method without route"),
    row(req(version="HTTP/1.0", host=None), [echoed(headers=[])], False, id="1.0"),
    row(req(version="HTTP/1.0"), [echoed(headers=[["host", "x"]])], False, id="1.0 + host"),
    row(req("Connection: keep-alive", version="HTTP/1.0"), [echoed(body="")], False, id="1.0 + keep-alive"),
    row(
        req("Content-Length: 5", "Expect: 100-continue", method="PUT", version="HTTP/1.0", body="hello"),
        [echoed(body="hello")],
        False,
        id="1.0 + expect",
    ),
    row(req("Connection: close"), [echoed(body="")], False, id="close"),
    row(req("CONNECTION: Keep-Alive, CLOSE"), [echoed(body="")], False, id="close, in a list"),
    row(req("Connection: keep-alive"), [echoed(body="")], True, id="keep-alive"),
    row(req(target="http://y:1/echo/x?a"), [echoed(headers=[["host", "y:1"]], query="a")], True, id="absolute-form"),
    row(req(target="HTTPS://[::1]/echo/x"), [echoed(headers=[["host", "[::1]"]])], True, id="absolute-form, https"),
    row(req(target="http://y", host="Host:"), [[404, "no_service"]], True, id="absolute-form without path"),
    row(req(method="OPTIONS", target="*"), [[204, b""]], True, id="OPTIONS *"),
    row(req("Connection: close", method="OPTIONS", target="*"), [[204, b""]], False, id="OPTIONS * + close"),
    row(
        req("Content-Length: 5", method="OPTIONS", target="*", body="hello"), [[204, b""]], True, id="OPTIONS * + body"
    ),
    row(chunked(HELLO, method="OPTIONS", target="*"), [[204, b""]], True, id="OPTIONS * + chunked"),
    row(req(*H2C, method="OPTIONS", target="*"), [[204, b""]], True, id="OPTIONS * + h2c"),
    row(req(host="Host:"), [echoed(headers=[["host", ""]])], True, id="empty host"),
    row(req(target="/echo/x?"), [echoed(path="/echo/x", query="")], True, id="empty query"),
    row(req(target="/echo/x?a=?&b"), [echoed(query="a=?&b")], True, id="query"),
    row(req(target="//echo"), [[404, "no_service"]], True, id="empty segment"),
    row(req(target="/echo/" + "a" * 2000), [echoed(path="/echo/" + "a" * 2000)], True, id="long target"),
    row(req("X-A: " + "a" * 30_000), [echoed(headers=[["host", "x"], ["x-a", "a" * 30_000]])], True, id="30 KB header"),
    row(req(*["X-A: 1"] * 99), [echoed(headers=[["host", "x"], *[["x-a", "1"]] * 99])], True, id="100 headers"),
    row(
        req("x-a:1", "X-A:  2\t", "X-a: a\tb", "x-empty:", "X-Latin: \x80\xff", host="hOsT:x"),
        [
            echoed(
                headers=[
                    ["host", "x"],
                    ["x-a", "1"],
                    ["x-a", "2"],
                    ["x-a", "a\tb"],
                    ["x-empty", ""],
                    ["x-latin", "\x80\xff"],
                ]
            )
        ],
        True,
        id="header spellings",
    ),
    row(req("Transfer_Encoding: chunked"), [echoed(body="")], True, id="underscore"),
    row(b"\r\n\r\n" + req(), [echoed(body="")], True, id="leading empty lines"),
    row(req("Content-Length:\t0 "), [echoed(body="")], True, id="empty body"),
    row(req("Content-Length: 005", method="POST", body="hello"), [echoed(body="hello")], True, id="length 005"),
    *[
        row(
            req(f"Content-Length: {size}", method="POST", body=body),
            [echoed(body=[size, zlib.crc32(body)])],
            True,
            id=f"{size} bytes",
        )
        for size, body in BIG.items()
    ],
    row(chunked(HELLO), [echoed(body="hello", headers=[["host", "x"]])], True, id="chunked"),
    row(chunked("0\r\n\r\n"), [echoed(body="")], True, id="chunked, empty"),
    row(chunked("000A\r\n0123456789\r\n00\r\n\r\n"), [echoed(body="0123456789")], True, id="chunked, zeros"),
    row(chunked('5;a=b;c="d;e"\r\nhello\r\n0;x\r\n\r\n'), [echoed(body="hello")], True, id="chunk extensions"),
    row(
        chunked("5\r\nhello\r\n0\r\nX-A: 1\r\nHost: y\r\n\r\n"),
        [echoed(body="hello", headers=[["host", "x"]])],
        True,
        id="trailers",
    ),
    row(
        chunked(b"493e0\r\n" + BIG[300_000] + b"\r\n0\r\n\r\n"),
        [echoed(body=[300_000, zlib.crc32(BIG[300_000])])],
        True,
        id="chunked, 300 KB",
    ),
    row(req("Transfer-Encoding: CHUNKED", body=HELLO), [echoed(method="GET", body="hello")], True, id="GET + chunked"),
    row(
        req("Expect: 100-Continue", "Content-Length: 5", method="POST", body="hello"),
        [[100, b""], echoed(body="hello", headers=[["host", "x"]])],
        True,
        id="expect",
    ),
    row(chunked(HELLO, "Expect: 100-continue"), [[100, b""], echoed(body="hello")], True, id="expect + chunked"),
    row(req(*H2C), [echoed(headers=[["host", "x"]])], True, id="h2c"),
    row(req(*H2C, "Content-Length: 5", method="POST", body="hello"), [echoed(body="hello")], True, id="h2c + body"),
    row(chunked(HELLO, *H2C), [echoed(body="hello")], True, id="h2c + chunked"),
    row(
        req(*H2C, "Expect: 100-continue", "Content-Length: 5", method="PUT", body="hello"),
        [[100, b""], echoed(body="hello")],
        True,
        id="h2c + expect",
    ),
    row(req(*H2C, target="http://y/echo/x"), [echoed(headers=[["host", "y"]])], True, id="h2c + absolute-form"),
    row(req("Connection: close, upgrade", "Upgrade: h2c"), [echoed(body="")], False, id="h2c + close"),
    row(
        req(*H2C, version="HTTP/1.0"),
        [echoed(body="")],
        False,
        id="1.0 + h2c",
    ),
    row(
        req(*H2C, version="HTTP/1.0", host=None),
        [echoed(body="")],
        False,
        id="1.0 + h2c, no host",
    ),
    row(req("Upgrade: h2c"), [echoed(headers=[["host", "x"]])], True, id="upgrade without connection"),
    row(req("Connection: upgrade"), [echoed(headers=[["host", "x"]])], True, id="connection without upgrade"),
    row(
        req("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        [echoed(headers=[["host", "x"], ["sec-websocket-version", "13"]])],
        True,
        id="websocket",
    ),
]


@DOORS
@pytest.mark.parametrize(("raw", "expected", "stays_open"), VALID)
async def test_served(house, fast, raw, expected, stays_open):
    """Both doors answer as the table says, and what is pipelined behind is answered if the connection lives on."""
    got = answers(await exchange(house.fronts[fast], raw + NEXT + LAST), head=raw.startswith(b"HEAD"))
    tail = [("/echo/next", False), ("/echo/last", True)] if stays_open else []
    assert [(answer.status, answer.closes) for answer in got] == [
        *[(status, not stays_open) for status, _ in expected],
        *[(200, closes) for _, closes in tail],
    ]
    assert [json.loads(answer.body)["path"] for answer in got[len(expected) :]] == [path for path, _ in tail]
    for answer, (_, said) in zip(got, expected, strict=False):
        if isinstance(said, bytes):
            assert answer.body == said
        elif isinstance(said, str):
            assert answer.problem[1] == said
        else:
            assert json.loads(answer.body) | said == json.loads(answer.body)
        assert answer.status == 100 or "date" in answer.headers


# ── the table: what is refused ──


def refused(status, reason, rows):
    """Return rows that all end in one status and reason."""
    return [row(raw, status, reason, id=name) for name, raw in rows.items()]


def length(*values, body="hello"):
    """Return a POST with these Content-Lengths."""
    return req(*[f"Content-Length: {value}" for value in values], method="POST", body=body)


def coding(*values):
    """Return a POST with these Transfer-Encodings."""
    return req(*[f"Transfer-Encoding: {value}" for value in values], method="POST", body=HELLO)


CONTROLS = [code for code in [*range(32), 127] if chr(code) not in "\t\n\r"]

BROKEN = [
    *refused(
        400,
        "bad_request",
        {
            "CL + TE": req("Content-Length: 15", "Transfer-Encoding: chunked", method="POST", body=HELLO),
            "TE + CL": req("Transfer-Encoding: chunked", "Content-Length: 15", method="POST", body=HELLO),
            "CL + TE gzip": req("Content-Length: 15", "Transfer-Encoding: gzip", method="POST", body=HELLO),
            "two CL": length("5", "5"),
            "two CL that differ": length("5", "6"),
            **{f"CL {value!r}": length(value) for value in ["+5", "5,5", "5, 5", "-1", "0x5", "", "5a", "5 5", "1_0"]},
            "CL overflow": length("18446744073709551621"),
            "CL in superscript": length("\xb2"),
            "TE twice": coding("chunked", "chunked"),
            "TE chunked and identity": coding("chunked", "identity"),
            "TE chunked, chunked": coding("chunked, chunked"),
            "TE chunked, identity": coding("chunked, identity"),
            "TE chunked,": coding("chunked,"),
            "TE empty": coding(""),
            "TE with a control": coding("\x0bchunked"),
            "TE in 1.0": chunked(HELLO, version="HTTP/1.0"),
            "TE in 1.0, GET": req("Transfer-Encoding: chunked", version="HTTP/1.0"),
            "obs-fold": req("X-A: 1", " 2"),
            "obs-fold by tab": req("X-A: 1", "\t2"),
            "obs-fold of TE": req("Transfer-Encoding:", " chunked", method="POST", body=HELLO),
            "space before the first header": req(host=" Host: x"),
            "space before colon": req("X-A : 1"),
            "space before colon of CL": req("Content-Length : 5", method="POST", body="hello"),
            "space before colon of TE": req("Transfer-Encoding : chunked", method="POST", body=HELLO),
            "tab before colon": req("X-A\t: 1"),
            "no colon": req("X-A"),
            "no name": req(": 1"),
            "bare LF": b"GET /echo/x HTTP/1.1\nHost: x\n\n",
            "bare LF after the request line": b"GET /echo/x HTTP/1.1\nHost: x\r\n\r\n",
            "bare LF after a header": req("X-A: 1\nX-B: 2"),
            "bare LF at the end": b"GET /echo/x HTTP/1.1\r\nHost: x\r\n\n",
            "bare CR after the request line": b"GET /echo/x HTTP/1.1\rHost: x\r\n\r\n",
            "bare CR after a header": req("X-A: 1\rX-B: 2"),
            "bare CR at the end": b"GET /echo/x HTTP/1.1\r\nHost: x\r\n\rX",
            **{f"{code:02x} in a value": req(f"X-A: a{chr(code)}b") for code in CONTROLS},
            **{f"{code:02x} in a name": req(f"X{chr(code)}A: 1") for code in CONTROLS},
            **{f"{char} in a name": req(f"X{char}A: 1") for char in '"(),/;<=>?@[\\]{}\x80\xe9'},
            **{
                f"chunk size {size!r}": chunked(f"{size}\r\nhello\r\n0\r\n\r\n")
                for size in [
                    "0x5",
                    "5 ",
                    " 5",
                    "-5",
                    "+5",
                    "",
                    "g",
                    ";a",
                    "5 ;a",
                    "f" * 17,
                    "5\n",
                    "5\r",
                    "5;\0",
                    "5;a\nb",
                ]
            },
            "chunk data without CRLF": chunked("5\r\nhello0\r\n\r\n"),
            "chunk data too long": chunked("5\r\nhello!\r\n0\r\n\r\n"),
            "chunk data too short": chunked("6\r\nhello\r\n0\r\n\r\n"),
            "chunk data with bare LF": chunked("5\r\nhello\n0\r\n\r\n"),
            "last chunk with bare LF": chunked("5\r\nhello\r\n0\r\n\n"),
            "trailer with a space before colon": chunked("5\r\nhello\r\n0\r\nX-A : 1\r\n\r\n"),
            "trailer with NUL": chunked("5\r\nhello\r\n0\r\nX-A: \0\r\n\r\n"),
            "trailer with bare LF": chunked("5\r\nhello\r\n0\r\nX-A: 1\n\r\n"),
            "trailer Content-Length": chunked("5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"),
            "no Host": req(host=None),
            "no Host, absolute-form": req(target="http://x/echo/x", host=None),
            "two Hosts": req("Host: x"),
            "two Hosts that differ": req("Host: y"),
            "two Hosts in 1.0": req("Host: y", version="HTTP/1.0"),
            **{
                f"Host {value}": req(host=f"Host: {value}")
                for value in ["x y", "x/y", "x@y", "x:a", "[::1", "x:1:2", "\xe9"]
            },
            "HTTP/1.2": req(version="HTTP/1.2"),
            "HTTP/3.0": req(version="HTTP/3.0"),
            "HTTP/1.10": req(version="HTTP/1.10"),
            "http/1.1": req(version="http/1.1"),
            "HTTP/1": req(version="HTTP/1"),
            "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "space behind the version": req(version="HTTP/1.1 "),
            **{
                f"GET {target!r}": req(target=target)
                for target in ["*", "", "echo/x", "x:80", "?a", "http://", "http:///x"]
            },
            **{
                f"GET {target!r}": req(target=target)
                for target in ["/echo/x#a", "/echo/x?a#b", "http://x/#a", "ftp://x/"]
            },
            **{
                f"GET {target!r}": req(target=target)
                for target in ["/echo/ x", "/echo/\tx", "/echo/\0", "/echo/\x7f", "/\xe9"]
            },
            **{f"GET {target!r}": req(target=target) for target in ["http://u@x/", "http://a b/", "http://y\\/echo"]},
            "POST *": req(method="POST", target="*"),
            "an RTSP method": req(method="DESCRIBE"),
        },
    ),
    *refused(
        501,
        "transfer_encoding",
        {
            f"TE {value}": coding(value)
            for value in ["gzip", "gzip, chunked", "identity", "xchunked", "chunked;a=b", '"chunked"']
        },
    ),
    *refused(
        501,
        "unknown_method",
        {
            **{
                f"method {name!r}": req(method=name)
                for name in ["get", "Get", "FOO", "GETX", "G ET", "", "A" * 50, "\0GET"]
            },
            "a space before the method": b" " + req(),
            "TLS on the wrong port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40),
        },
    ),
    *refused(
        505,
        "http_version",
        {"HTTP/2.0": req(version="HTTP/2.0"), "HTTP/0.9": req(version="HTTP/0.9"), "simple": b"GET /echo/x\r\n\r\n"},
    ),
    *refused(
        405,
        "method_not_allowed",
        {"CONNECT": req(method="CONNECT", target="x:80"), "CONNECT a path": req(method="CONNECT")},
    ),
    *refused(417, "expectation", {"Expect": req("Expect: 200-ok", "Content-Length: 5", method="POST", body="hello")}),
    *refused(
        414,
        "path_too_long",
        {"9 KiB target": req(target="/echo/" + "a" * 9200), "9 KiB query": req(target="/echo/x?" + "a" * 9200)},
    ),
    *refused(
        431,
        "headers_too_large",
        {
            "40 KiB header": req("X-A: " + "a" * 40_960),
            "40 KiB name": req("X" * 40_960 + ": 1"),
            "40 KiB headers": req(*["X-A: " + "a" * 990] * 41),
            "101 headers": req(*["X-A: 1"] * 100),
            "40 KiB trailer": chunked("5\r\nhello\r\n0\r\nX-A: " + "a" * 40_960 + "\r\n\r\n"),
        },
    ),
    row(req(version="RTSP/1.0"), 400, "bad_request", id="RTSP/1.0"),
    row(
        req(method="SOURCE", target="/echo/x", version="ICE/1.0"),
        400,
        "bad_request",
        id="ICE/1.0",
    ),
    row(
        chunked("5;" + "a" * 2_000_000 + "\r\nhello\r\n0\r\n\r\n"),
        400,
        "bad_request",
        id="2 MB chunk extension",
    ),
]


@DOORS
@pytest.mark.parametrize(("raw", "status", "reason"), BROKEN)
async def test_refused(house, fast, raw, status, reason):
    """What could be read in two ways is one clear problem, then the end; nothing behind it is ever a request."""
    (answer,) = answers(await exchange(house.fronts[fast], raw + SMUGGLED + LAST_SMUGGLED))
    assert answer.problem == (status, reason)
    assert answer.closes
    assert ("allow" in answer.headers) is (status == 405)
    assert (await ping(house.fronts[fast])).status == 200
    assert house.service.smuggled == 0


@DOORS
@pytest.mark.parametrize(
    "raw",
    [
        row(req("Connection: close"), id="a service's answer"),
        row(chunked(HELLO, "Connection: close"), id="an answer through the ASGI door"),
        row(req("Connection: close", target="/a/../b"), id="an answer at once"),
        row(req("Connection: close", method="OPTIONS", target="*"), id="OPTIONS *"),
        row(req(version="HTTP/1.0"), id="1.0"),
    ],
)
async def test_after_close_nothing_is_executed(house, fast, raw):
    """A request behind one that closes the connection never reaches the service (RFC 9112 section 9.6)."""
    (answer,) = answers(await exchange(house.fronts[fast], raw + SMUGGLED * 2))
    assert answer.closes
    assert (await ping(house.fronts[fast])).status == 200
    assert house.service.smuggled == 0


@DOORS
@pytest.mark.parametrize(
    "trailer", ["X-A: 1", "Host: y", "Expect: x", "Upgrade: h2c", "Nw-Status: 1", "Connection: close"]
)
async def test_a_trailer_says_nothing(house, fast, trailer):
    """A trailer is dropped, whatever it would mean in a head; `Connection: close` ends the connection all the same."""
    raw = chunked(f"5\r\nhello\r\n0\r\n{trailer}\r\n\r\n") + NEXT + LAST
    one, *others = answers(await exchange(house.fronts[fast], raw, within=5))
    assert json.loads(one.body)["headers"] == [["host", "x"]]
    closes = trailer == "Connection: close"
    assert [one.closes, *[other.closes for other in others]] == ([True] if closes else [False, False, True])


@DOORS
async def test_a_trailer_of_a_request_to_the_server(house, fast):
    """`OPTIONS *` with a body whose trailer says `close` ends the connection, too."""
    raw = chunked("5\r\nhello\r\n0\r\nConnection: close\r\n\r\n", method="OPTIONS", target="*")
    (answer,) = answers(await exchange(house.fronts[fast], raw + LAST, within=1))
    assert (answer.status, answer.closes) == (204, True)


@pytest.mark.xfail(strict=True, reason="httptools does not tell: any ` HTTP/1.0` in the segment will do; harmless")
@DOORS
@pytest.mark.parametrize(
    "raw",
    [req("X-A: HTTP/1.0", version="RTSP/1.0"), req(version="RTSP/1.0") + req(version="HTTP/1.0")],
    ids=["header", "next request"],
)
async def test_a_protocol_is_read_in_its_own_request_line(house, fast, raw):
    """What a later line says does not make RTSP into HTTP."""
    (answer,) = answers(await exchange(house.fronts[fast], raw))
    assert answer.problem == (400, "bad_request")


@DOORS
async def test_a_body_refused_early_leaves_no_doubt(house, fast):
    """After a 413 in place of a 100 the client need not send the body: so the connection closes."""
    with Socket(house.fronts[fast]) as client:
        await client.send(req("Expect: 100-continue", "Content-Length: 2000000", method="POST"))
        answer = await client.answer()
        assert answer.problem == (413, "too_large")
        assert answer.closes


# ── what repeats on a connection ──


@DOORS
@pytest.mark.parametrize(("raw", "expected"), [row(*one.values[:2], id=one.id) for one in VALID if one.values[2]])
async def test_the_same_again_is_answered_the_same(house, fast, raw, expected):
    """A request that comes three times on a connection, each in a segment of its own, has one answer three times."""
    with Socket(house.fronts[fast]) as client:
        rounds = []
        for _ in range(3):
            await client.send(raw)
            rounds.append([await client.answer(head=raw.startswith(b"HEAD")) for _ in expected])
        await client.send(LAST)
        assert (await client.answer()).status == 200
    said = [[(answer.status, answer.closes, answer.body) for answer in one] for one in rounds]
    assert said[0] == said[1] == said[2]
    assert [status for status, *_ in said[0]] == [status for status, _ in expected]


@pytest.fixture
def parsed(monkeypatch):
    """Give the list of request targets that the parser has seen, of connections that are made from now on."""
    seen = []
    complete = Connection.on_headers_complete

    def note(self):
        seen.append(self.url)
        complete(self)

    monkeypatch.setattr(Connection, "on_headers_complete", note)
    return seen


async def test_headers_that_repeat_are_not_parsed_again(house, parsed):
    """With the same lines below a plain request line, method, path and query are all that is looked at."""
    lines = ("X-A: 1", "Cookie: a=b; c=d")
    asked = [
        ("GET", "/echo/x"),
        ("GET", "/echo/x"),
        ("POST", "/echo/y?a=b&c=%20?/"),
        ("GET", "/echo/a%2Fb"),
        ("GET", "/echo/"),
    ]
    with Socket(house.fronts[True]) as client:
        for method, target in asked:
            await client.send(req(*lines, method=method, target=target))
            answer = await client.answer()
            path, _, query = target.partition("?")
            assert json.loads(answer.body) == {
                "method": method,
                "path": path,
                "query": query,
                "headers": [["host", "x"], ["x-a", "1"], ["cookie", "a=b; c=d"]],
                "body": "",
            }
        assert parsed == [b"/echo/x"]
        await client.send(req(*lines, "X-B: 2"))
        assert ["x-b", "2"] in json.loads((await client.answer()).body)["headers"]
        await client.send(req(*lines))
        assert ["x-b", "2"] not in json.loads((await client.answer()).body)["headers"]
    assert len(parsed) == 3


async def test_what_is_remembered_has_a_limit(house, parsed):
    """A long head is parsed each time, so that an idle connection stays small."""
    with Socket(house.fronts[True]) as client:
        for _ in range(3):
            await client.send(req("X-A: " + "a" * 4096))
            assert (await client.answer()).status == 200
    assert len(parsed) == 3


_LINES = b"\r\n" + req().partition(b"\r\n")[2]

ODD = {
    "fragment": b"GET /echo/x#a" + b" HTTP/1.1" + _LINES,
    "asterisk": b"OPTIONS * HTTP/1.1" + _LINES,
    "asterisk of GET": b"GET * HTTP/1.1" + _LINES,
    "absolute form": b"GET http://y/echo/x HTTP/1.1" + _LINES,
    "authority form": b"CONNECT x:80 HTTP/1.1" + _LINES,
    "no path": b"GET x HTTP/1.1" + _LINES,
    "empty target": b"GET  HTTP/1.1" + _LINES,
    "TRACE": b"TRACE /echo/x HTTP/1.1" + _LINES,
    "unknown method": b"BREW /echo/x HTTP/1.1" + _LINES,
    "lower case": b"get /echo/x HTTP/1.1" + _LINES,
    "1.0": b"GET /echo/x HTTP/1.0" + _LINES,
    "1.2": b"GET /echo/x HTTP/1.2" + _LINES,
    "0.9": b"GET /echo/x" + _LINES,
    "RTSP": b"GET /echo/x RTSP/1.1" + _LINES,
    "two spaces": b"GET  /echo/x HTTP/1.1" + _LINES,
    "space at the end": b"GET /echo/x HTTP/1.1 " + _LINES,
    "space in the target": b"GET /echo/x y HTTP/1.1" + _LINES,
    "tab": b"GET\t/echo/x HTTP/1.1" + _LINES,
    "control": b"GET /echo/\x01 HTTP/1.1" + _LINES,
    "NUL": b"GET /echo/\x00 HTTP/1.1" + _LINES,
    "UTF-8": "GET /echo/\xe9 HTTP/1.1".encode() + _LINES,
    "latin-1": b"GET /echo/\xe9 HTTP/1.1" + _LINES,
    "bad escape": b"GET /echo/%zz HTTP/1.1" + _LINES,
    "dots": b"GET /echo/../x HTTP/1.1" + _LINES,
    "two slashes": b"GET //echo/x HTTP/1.1" + _LINES,
    "quote": b'GET /echo/"x HTTP/1.1' + _LINES,
    "CRLF before": b"\r\n" + req(),
    "CR before": b"\r" + req(),
    "CRLF behind": req() + b"\r\n",
    "a letter before": b"G" + req(),
    "a space before": b" " + req(),
    "a request line as a header": b"GET /smuggled HTTP/1.1\r\n" + req(),
    "two": req() + req(),
    "long target": b"GET /echo/" + b"a" * 3500 + b" HTTP/1.1" + _LINES,
    "long query": b"GET /echo/x?" + b"a" * 9000 + b" HTTP/1.1" + _LINES,
}


@pytest.mark.parametrize("first", [req(), b"\r\n" + req()], ids=["plain", "behind CRLF"])
@pytest.mark.parametrize("raw", [row(raw, id=name) for name, raw in ODD.items()])
async def test_an_odd_request_line_above_lines_that_repeat(house, first, raw):
    """Whatever comes above the lines of the request before, it is answered as on a connection of its own."""
    alone = await exchange(house.fronts[True], raw, LAST)
    with Socket(house.fronts[True]) as client:
        for _ in range(2):
            await client.send(first)
            assert (await client.answer()).status == 200
        await client.send(raw, LAST)
        behind = await client.rest()
    assert [(one.status, one.body) for one in answers(behind)] == [(one.status, one.body) for one in answers(alone)]
    assert house.service.smuggled == 0


async def test_a_repeated_segment_inside_of_a_body_is_body(house):
    """The bytes of the request before are no request where a body is due, nor behind the begin of another request."""
    again = req()
    with Socket(house.fronts[True]) as client:
        await client.send(again)
        await client.answer()
        await client.send(req(f"Content-Length: {len(again)}", method="POST"), again)
        assert json.loads((await client.answer()).body)["body"] == again.decode()
        await client.send(again)
        await client.answer()
        await client.send(b"POST /echo/x HTTP/1.1\r\nX-A: ", again)
        assert json.loads((await client.answer()).body)["method"] == "POST"
        await client.send(b"G", again)
        assert (await client.answer()).status in (400, 501)


# ── pipelining ──


def numbered(number, **options):
    """Return a request that tells its number."""
    return req(target=f"/echo/{number}", **options)


@DOORS
@pytest.mark.parametrize("cut", [0, 1, 7, 1000], ids=lambda size: f"cut at {size}")
async def test_pipelined_requests_are_answered_in_order(house, fast, cut):
    """Ten requests of all kinds come back in their order, whatever the segments are."""
    kinds = [
        numbered(0),
        chunked(HELLO, target="/echo/1"),
        numbered(2),
        req(method="HEAD", target="/echo/3"),
        req(target="/slow/4"),
        numbered(5),
        req("Content-Length: 5", method="POST", target="/echo/6", body="hello"),
        req(*H2C, target="/echo/7"),
        req("Expect: 100-continue", "Content-Length: 5", method="PUT", target="/echo/8", body="hello"),
        numbered(9),
    ]
    raw = b"".join(kinds)
    with Socket(house.fronts[fast]) as client:
        await client.send(*[raw[start : start + cut] for start in range(0, len(raw), cut)] if cut else [raw])
        for number in range(10):
            if number == 4:
                assert await house.service.entered.get() == "4"
                house.service.leave.set()
            answer = await client.answer(head=number == 3)
            if number == 8:
                assert answer.status == 100
                answer = await client.answer()
            assert (answer.status, answer.closes) == (200, False)
            if number != 3:
                assert answer.body == b"4" if number == 4 else json.loads(answer.body)["path"] == f"/echo/{number}"
    assert house.service.seen == [str(number) for number in range(10) if number != 4]


@DOORS
@pytest.mark.parametrize("kind", [numbered, lambda number: chunked(HELLO, target=f"/echo/{number}")], ids=["cl", "te"])
async def test_more_than_may_be_pipelined(house, fast, kind):
    """One request under way and sixteen behind it are answered in order; then the connection closes."""
    with Socket(house.fronts[fast]) as client:
        await client.send(b"".join([req(target="/slow/0"), *map(kind, range(1, 40))]))
        await house.service.entered.get()
        house.service.leave.set()
        first, *rest = answers(await client.rest())
    assert first.body == b"0"
    assert [json.loads(answer.body)["path"] for answer in rest] == [f"/echo/{number}" for number in range(1, 17)]
    assert [answer.closes for answer in [first, *rest]] == [False] * 16 + [True]
    assert house.service.seen == [str(number) for number in range(1, 17)]


@DOORS
async def test_many_upgrades_in_one_segment(house, fast):
    """However many requests are parsed again, none of them is lost to the depth of the stack."""
    got = answers(await exchange(house.fronts[fast], req(*H2C, target="/a/../b") * 1500 + LAST, within=5))
    assert {answer.status for answer in got[:-1]} == {400}
    assert len(got) == 1501 if fast else len(got) >= 17
    assert got[-1].closes


@DOORS
@pytest.mark.parametrize("broken", [req(host=None), b"\0\x01\x02", coding("gzip")], ids=["host", "junk", "gzip"])
@pytest.mark.parametrize("second", [numbered(2), chunked(HELLO, target="/echo/2")], ids=["fast", "chunked"])
async def test_a_broken_request_behind_good_ones(house, fast, second, broken):
    """Two good answers, then the refusal, then the end, though the first answer takes its time."""
    with Socket(house.fronts[fast]) as client:
        await client.send(req(target="/slow/1") + second + broken + SMUGGLED)
        await house.service.entered.get()
        house.service.leave.set()
        one, two, refusal = answers(await client.rest())
    assert (one.body, json.loads(two.body)["path"], refusal.closes) == (b"1", "/echo/2", True)
    assert refusal.status in (400, 501)
    assert not (one.closes or two.closes)
    assert house.service.smuggled == 0


@DOORS
@pytest.mark.parametrize(
    "broken", [b"\0\x01\x02", req(host=None), chunked("5\r\nhello!")], ids=["junk", "host", "bad chunk"]
)
@pytest.mark.parametrize("first", [req(target="/slow/1"), chunked(HELLO, target="/slow/1")], ids=["fast", "chunked"])
async def test_a_broken_request_behind_one_under_way(house, fast, first, broken):
    """The answer under way comes whole before the refusal of what follows."""
    with Socket(house.fronts[fast]) as client:
        await client.send(first)
        await house.service.entered.get()
        await client.send(broken)
        house.service.leave.set()
        one, refusal = answers(await client.rest(within=1))
    assert (one.status, one.body, one.closes) == (200, b"1", False)
    assert refusal.problem == (501 if broken[0] == 0 else 400, "unknown_method" if broken[0] == 0 else "bad_request")
    assert refusal.closes


# ── both doors are one ──

rows = st.sampled_from(
    [param.values[0] for param in [*VALID, *BROKEN] if not param.marks and len(param.values[0]) < 2000]
)
common = st.sampled_from([req(target="/reply/204"), req(target="/reply/304"), NEXT, chunked(HELLO), req(*H2C)])
lines = st.sampled_from(
    [
        "Content-Length: 5",
        "Content-Length: 3",
        "Content-Length: 9",
        "Transfer-Encoding: chunked",
        "Connection: upgrade",
        "Connection: close",
        "Upgrade: h2c",
        "Expect: 100-continue",
        "X-A: b",
        "X-A : b",
    ]
)
composed = st.builds(
    lambda method, target, version, lines, body: req(*lines, method=method, target=target, version=version, body=body),
    st.sampled_from([method for method in [*METHODS, "TRACE", "get"] if method != "HEAD"]),
    st.sampled_from(["/echo/a", "/echo/a?b", "*", "/%2e", "http://y/echo/b", "/reply/304"]),
    st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/2.0"]),
    st.lists(lines, max_size=3),
    st.sampled_from(["", "hello", HELLO, "\r\n"]),
)


def breaks_in_its_body(raw):
    """Tell whether a request has a chunked body that breaks: behind others, that has a test of its own."""
    return b"transfer-encoding: chunked" in raw.lower() and not raw.endswith(HELLO.encode())


behind = st.one_of(common, rows, composed).filter(lambda raw: not breaks_in_its_body(raw))


@settings(deadline=None, max_examples=150)
@given(st.one_of(common, rows, composed), st.lists(behind, max_size=5), st.lists(st.integers(1, 400), max_size=12))
async def test_both_doors_answer_alike(shared, first, others, cuts):
    """Any sequence of requests, good or broken and cut anywhere, has the same answers at both doors, to the byte."""
    raw = b"".join([first, *others]) + LAST * 3
    places = [0, *itertools.accumulate(cuts), len(raw)]
    segments = [raw[start:end] for start, end in itertools.pairwise(places) if raw[start:end]]
    one, other = [await exchange(shared.fronts[fast], *segments, within=5) for fast in (True, False)]
    assert plain(one) == plain(other)
    assert plain(one).startswith(b"HTTP/1.1 ")


def plain(raw):
    """Return what a connection received, without dates and reason phrases."""
    return re.sub(rb"(HTTP/1\.1 [0-9]{3}) [^\r]*|\r\ndate: [^\r]*", rb"\1", raw)


# ── times ──


@DOORS
@pytest.mark.parametrize(
    "half",
    [
        b"G",
        b"GET /echo/x HTTP/1.1\r\nHost: x\r\n",
        req("Content-Length: 5", method="POST", body="hel"),
        req("Content-Length: 100000", method="POST", body="hel"),
        chunked("5\r\nhello\r\n"),
        chunked("5\r\nhello\r\n0\r\nX-A: "),
    ],
    ids=["method", "head", "body", "long body", "chunk", "trailer"],
)
async def test_half_a_request_and_then_silence(hasty, fast, half):
    """It is a 408, and the end."""
    (answer,) = answers(await exchange(hasty.fronts[fast], half))
    assert answer.problem == (408, "slow_request")
    assert answer.closes


@DOORS
async def test_a_head_that_trickles(hasty, fast):
    """The time is for the whole head: a byte now and then does not prolong it."""
    with Socket(hasty.fronts[fast]) as client:
        for byte in b"GET /echo/x HTTP/1.1\r\nHost: x.example\r\n":
            await client.send(bytes([byte]))
            await asyncio.sleep(0.05)  # the trickle itself; a read that is cancelled could lose the answer
            if client.is_readable():
                break
        received = await client.rest()
    (answer,) = answers(received)
    assert answer.problem == (408, "slow_request")


@DOORS
@pytest.mark.parametrize(
    "half", [b"GET / HT", req("Content-Length: 5", method="POST", body="hel")], ids=["head", "body"]
)
async def test_half_a_request_behind_a_whole_one(hasty, fast, half):
    """The time of a request runs as soon as those before it are answered."""
    one, refusal = answers(await exchange(hasty.fronts[fast], NEXT + half))
    assert one.status == 200
    assert refusal.problem == (408, "slow_request")


@DOORS
@pytest.mark.parametrize("raw", [b"", NEXT, chunked(HELLO)], ids=["fresh", "after an answer", "after a chunked body"])
async def test_a_connection_at_rest(hasty, fast, raw):
    """It is closed without a word."""
    assert len(answers(await exchange(hasty.fronts[fast], raw))) == bool(raw)


@DOORS
async def test_a_client_that_does_not_read(hasty, fast, until):
    """It is dropped, while another is served."""
    assert not hasty.connections(fast)
    with Socket(hasty.fronts[fast], buffer=4096) as client:
        await client.send(req(target="/large") * 12)
        await until(lambda: [one for one in hasty.connections(fast) if one.flow.write_paused])
        assert (await ping(hasty.fronts[fast])).status == 200
        await until(lambda: not hasty.connections(fast))


@DOORS
async def test_a_body_refused_early_is_answered_once(hasty, fast):
    """A 413 before the body is the answer: none follows when the body never comes."""
    got = answers(await exchange(hasty.fronts[fast], req("Content-Length: 2000000", method="POST")))
    assert [answer.status for answer in got] == [413]


@DOORS
async def test_a_client_that_writes_and_does_not_read(hasty, fast, until):
    """Sending a body by and by does not prolong the time for reading the answers."""
    with Socket(hasty.fronts[fast], buffer=4096) as client:
        await client.send(req(target="/large") * 7)
        await until(lambda: [one for one in hasty.connections(fast) if one.flow.write_paused])
        await client.send(req("Content-Length: 60000", method="POST"))
        for _ in range(30):
            await client.send(b"x")
            await asyncio.sleep(0.05)
        assert not hasty.connections(fast)


@DOORS
async def test_a_client_that_does_not_read_the_end(hasty, fast, until):
    """What is left of an answer, however little, does not keep a connection past its time."""
    state = hasty.fronts[fast]._server.server_state
    with Socket(hasty.fronts[fast], buffer=4096) as client:
        await client.send(b"")
        await until(lambda: hasty.connections(fast))
        (connection,) = hasty.connections(fast)
        while not connection.transport.get_write_buffer_size():
            before = state.total_requests
            await client.send(req(target="/medium"))
            await until(lambda: state.total_requests > before)  # noqa: B023
            await asyncio.sleep(0)
        assert not connection.flow.write_paused
        async with asyncio.timeout(1.5):
            await until(lambda: not hasty.connections(fast))


# ── clients that go ──


@DOORS
@pytest.mark.parametrize("way", ["close", "half-close"])
@pytest.mark.parametrize("raw", [req(target="/slow/x"), chunked(HELLO, target="/slow/x")], ids=["fast", "chunked"])
async def test_a_client_that_goes(house, fast, way, raw, until):
    """The request is dropped, and nothing of the connection stays."""
    with Socket(house.fronts[fast]) as client:
        await client.send(raw)
        await house.service.entered.get()
        assert house.flights == 1
        gone = weakref.ref(*house.connections(fast))
        client.socket.close() if way == "close" else client.socket.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(1):
            await until(lambda: not house.connections(fast) and not house.flights)
    assert "0 requests under way" in repr(house.gateway.exchange)
    await until(lambda: gc.collect() < 0 or gone() is None)


@DOORS
async def test_a_client_that_goes_with_more_behind(house, fast, until):
    """What is queued on a connection that has gone is never sent, and what runs is dropped."""
    with Socket(house.fronts[fast]) as client:
        await client.send(req(target="/slow/x") + SMUGGLED)
        await house.service.entered.get()
    async with asyncio.timeout(1):
        await until(lambda: not house.connections(fast) and not house.flights)
    assert (await ping(house.fronts[fast])).status == 200
    assert house.service.smuggled == 0


# ── stopping ──


@DOORS
async def test_stop_lets_answers_finish(own, fast):
    """Connections at rest close at once; an answer under way comes whole, and the last one says `close`."""
    house = await own(fast, grace=5.0)
    front = house.fronts[fast]
    with Socket(front) as idle, Socket(front) as busy, Socket(front) as late:
        await idle.send(NEXT)
        assert (await idle.answer()).status == 200
        await busy.send(req(target="/slow/x") + NEXT)
        await house.service.entered.get()
        stopping = asyncio.create_task(stop(front, within=10))
        assert await idle.rest() == b""
        await late.send(NEXT)
        (first,) = answers(await late.rest())
        assert (first.status, first.closes) == (200, True)
        assert not stopping.done()
        house.service.leave.set()
        one, two = answers(await busy.rest())
        assert (one.body, one.closes, two.status, two.closes) == (b"x", False, 200, True)
        assert await stopping is True
    assert await front.stop() is True


@DOORS
async def test_a_stopped_front_takes_no_connections(own, fast):
    """Its port is free again."""
    front = (await own(fast)).fronts[fast]
    with Socket(front) as client:
        address = client.socket.getpeername()
    assert await stop(front) is True
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


@DOORS
async def test_a_stopped_front_has_a_name(own, fast):
    """Its repr says that it does not serve."""
    front = (await own(fast)).fronts[fast]
    await stop(front)
    assert "not started" in repr(front)


@DOORS
async def test_stop_loses_no_answer_of_the_same_moment(own, fast):
    """An answer that is there when the server stops reaches the client."""
    house = await own(fast, grace=5.0)
    with Socket(house.fronts[fast]) as client:
        await client.send(req(target="/slow/x"))
        await house.service.entered.get()
        (connection,) = house.connections(fast)
        finished = connection._finished

        def finish_and_stop(keep_alive):
            finished(keep_alive)
            connection.shutdown()

        connection._finished = finish_and_stop
        house.service.leave.set()
        assert [answer.body for answer in answers(await client.rest())] == [b"x"]


@DOORS
@pytest.mark.parametrize("now", [False, True], ids=["after the grace", "now"])
@pytest.mark.parametrize("raw", [req(target="/slow/x"), chunked(HELLO, target="/slow/x")], ids=["fast", "chunked"])
async def test_stop_cuts_what_takes_too_long(own, fast, now, raw):
    """It gets a 503 that says why and closes, and `stop` tells."""
    house = await own(fast, grace=30.0 if now else 0.3)
    with Socket(house.fronts[fast]) as busy:
        await busy.send(raw)
        await house.service.entered.get()
        assert await stop(house.fronts[fast], within=5, now=now) is False
        (answer,) = answers(await busy.rest())
    assert answer.problem == (503, "stopping")
    assert answer.closes


@DOORS
@pytest.mark.parametrize("now", [False, True], ids=["after the grace", "now"])
@pytest.mark.parametrize(
    "raw",
    [
        req(target="/slow/x") * 3,
        chunked(HELLO, target="/slow/x") * 3,
        req(target="/slow/x") + chunked("5\r\nhello\r\n"),
    ],
    ids=["fast", "chunked", "half a body"],
)
async def test_stop_cuts_what_waits_behind(own, fast, now, raw):
    """What is queued on a connection does not keep `stop`: nothing is started any more."""
    house = await own(fast, grace=30.0 if now else 0.3)
    with Socket(house.fronts[fast]) as busy:
        await busy.send(raw)
        await house.service.entered.get()
        assert await stop(house.fronts[fast], within=1.5 - 0.5 * now, now=now) is False
        assert (503, "stopping") in [answer.problem for answer in answers(await busy.rest())]
    assert house.service.entered.empty()


@DOORS
async def test_stop_now_with_half_a_body(own, fast, until):
    """A body that is still on its way does not keep `stop`."""
    house = await own(fast, grace=30.0)
    with Socket(house.fronts[fast]) as busy:
        await busy.send(chunked("5\r\nhello\r\n"))
        await until(lambda: "reading a body" in repr(house.connections(fast)))
        await stop(house.fronts[fast], now=True)


@DOORS
async def test_stop_now_with_a_client_that_does_not_read(own, fast, until):
    """Nor does a client that reads nothing."""
    house = await own(fast, grace=30.0)
    with Socket(house.fronts[fast], buffer=4096) as busy:
        await busy.send(req(target="/large") * 12)
        await until(lambda: [one for one in house.connections(fast) if one.flow.write_paused])
        await stop(house.fronts[fast], now=True)


@DOORS
async def test_stop_may_lose_its_patience(own, fast):
    """`stop(now=True)` while `stop()` waits ends both."""
    house = await own(fast, grace=30.0)
    front = house.fronts[fast]
    with Socket(front) as idle, Socket(front) as busy:
        await busy.send(req(target="/slow/x"))
        await house.service.entered.get()
        await idle.send(NEXT)
        await idle.answer()
        patient = asyncio.create_task(stop(front, within=5))
        assert await idle.rest() == b""
        try:
            assert await stop(front, now=True) is False
        finally:
            house.service.leave.set()
            await patient


# ── much ──


@DOORS
async def test_an_answer_larger_than_the_buffers(house, fast):
    """It arrives whole, also when the client begins to read late, and so do those behind it."""
    with Socket(house.fronts[fast], buffer=16_384) as client:
        await client.send(req(target="/large") * 5 + LAST)
        assert (await ping(house.fronts[fast])).status == 200
        got = answers(await client.rest())
    assert [answer.body == LARGE for answer in got] == [True] * 5 + [False]
    assert json.loads(got[-1].body)["path"] == "/echo/last"


@DOORS
async def test_many_connections(house, fast):
    """Two hundred clients at once each get their own bodies back, whichever door these take."""

    async def talk(number):
        with Socket(house.fronts[fast]) as client:
            for turn in range(3):
                body = f"{number}/{turn}"
                if (number + turn) % 2:
                    await client.send(req(f"Content-Length: {len(body)}", method="POST", body=body))
                else:
                    await client.send(chunked(f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"))
                answer = await client.answer()
                assert json.loads(answer.body)["body"] == body

    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(talk(number))


# ── when natsweb itself fails ──


@pytest.fixture
def broken_launch(house, monkeypatch):
    """Give a function that makes the exchange fail at its next launch but `after`."""
    exchange = house.gateway.exchange
    launch = exchange.launch

    def arm(after=0):
        left = [after]

        def fail(*arguments):
            left[0] -= 1
            if left[0] == -1:
                raise RuntimeError("secret")
            return launch(*arguments)

        monkeypatch.setattr(exchange, "launch", fail)

    return arm


@DOORS
@pytest.mark.parametrize("raw", [NEXT, chunked(HELLO)], ids=["fast", "chunked"])
async def test_a_fault_of_ours_hurts_one_request(house, fast, raw, broken_launch):
    """It is a 500 without inner detail; the next connection is served."""
    broken_launch()
    with Socket(house.fronts[fast]) as client:
        await client.send(raw)
        answer = await client.answer(within=1)
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert (await ping(house.fronts[fast])).status == 200


@DOORS
async def test_a_fault_of_ours_is_a_problem(house, fast, broken_launch):
    """It has the same shape at both doors, and says that the connection closes."""
    broken_launch()
    (answer,) = answers(await exchange(house.fronts[fast], LAST))
    assert answer.problem == (500, "gateway_failed")
    assert answer.closes


@DOORS
async def test_a_fault_of_the_bus_leaves_no_flight(house, fast, monkeypatch):
    """A request that could not be sent is not under way."""

    def fail(*_, **__):
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(type(house.gateway.exchange.bus), "carry", fail)
        assert (await ping(house.fronts[fast])).status == 500
    left = house.flights
    house.gateway.exchange._flights.clear()
    assert left == 0


@DOORS
async def test_a_fault_of_ours_behind_a_good_request(house, fast, broken_launch):
    """The answer before it has arrived, and both the next connection and the bus live on."""
    broken_launch(after=1)
    with Socket(house.fronts[fast]) as client:
        await client.send(NEXT + LAST)
        one, fault = answers(await client.rest(within=1))
    assert (one.status, fault.status, fault.closes) == (200, 500, True)
    assert [(await ping(house.fronts[other])).status for other in (True, False)] == [200, 200]
