"""Streams end to end, over a real server and through both doors: bodies of any size, cancels, deaths, foul play.

After every test of the shared house nothing of it is left: no flight, no job, no peer, no pending token.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from textwrap import dedent
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio

from natsweb import Event, FileResponse, HTTPError, Nats, Request, Response, Service, StreamingResponse
from natsweb.embedded import embedded_server
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.member import Member
from natsweb.natsbus import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])


def bug(why):
    """Return the mark of a test that shows a bug which is known."""
    return pytest.mark.xfail(strict=True, reason=why)


KIB, MIB = 1024, 1024 * 1024
WINDOW = 512 * KIB
PIECE = 64 * KIB
MAX_BODY = 3 * MIB
ENDLESS = 800
PATTERN = random.Random(7).randbytes(65_537)


def blob(size):
    """Return that many bytes which look like no others."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def digest(data):
    """Return what stands for bytes in JSON."""
    return [len(data), sha256(data).hexdigest()]


# ── the house: a service that joins, a gateway, two fronts ──


class Journal(list):
    """What happened, in order."""

    @asynccontextmanager
    async def of(self, name):
        """Note that something begins, and how it ends."""
        self.append(f"{name} began")
        try:
            yield
        except BaseException as error:
            self.append(f"{name} {type(error).__name__}")
            raise
        self.append(f"{name} ended")

    def has(self, *words):
        """Return whether all of that has happened, as a function."""
        return lambda: set(words) <= set(self)


def streaming_service(root, folder, name="streams"):
    """Return a service with a route for everything that streams, and some that do not."""
    svc = Service(name, root=root, max_body=MAX_BODY)
    svc.journal, svc.go, svc.items, svc.seen, svc.made = Journal(), asyncio.Event(), asyncio.Queue(), asyncio.Queue(), 0
    file = folder / "file.bin"
    file.write_bytes(blob(5_000_000))

    async def pieces_of(data, size=100_000):
        async with svc.journal.of("pieces"):
            for start in range(0, len(data), size):
                yield data[start : start + size]

    @svc.get("/bytes/<size>")
    async def whole(size: int) -> bytes:
        return blob(size)

    @svc.get("/pieces/<size>")
    async def pieces(size: int) -> AsyncIterator[bytes]:
        async for piece in pieces_of(blob(size)):
            yield piece

    @svc.get("/said/<size>/<said>")
    async def said(size: int, said: int) -> StreamingResponse:
        return StreamingResponse(pieces_of(blob(size)), headers={"content-length": str(said)})

    @svc.get("/file")
    async def a_file() -> FileResponse:
        return FileResponse(file)

    @svc.get("/long/<size>/<extra>")
    async def long(size: int, extra: int) -> Response:
        return Response(body=blob(size), headers={"x-long": "a" * extra})

    @svc.get("/fails/<after>/<said>")
    async def fails(after: int, said: int) -> StreamingResponse:
        async def pieces():
            for _ in range(after):
                yield blob(1000)
            raise ValueError("in the middle")

        return StreamingResponse(pieces(), headers={"content-length": str(said)} if said else {})

    @svc.get("/endless")
    async def endless() -> AsyncIterator[bytes]:
        async with svc.journal.of("endless"):
            for _ in range(ENDLESS):
                svc.made += 1
                yield blob(PIECE)

    @svc.get("/events", heartbeat=0.1)
    async def events() -> AsyncIterator[Event[int]]:
        async with svc.journal.of("events"):
            while True:
                yield Event(await svc.items.get())

    @svc.get("/hasty", heartbeat=0.02)
    async def hasty() -> AsyncIterator[Event[int]]:
        while True:
            yield Event(await svc.items.get())

    @svc.get("/lines")
    async def lines() -> AsyncIterator[dict[str, int]]:
        async with svc.journal.of("lines"):
            yield {"n": 0}
            await svc.go.wait()
            yield {"n": 1}

    @svc.get("/silent")
    async def silent() -> AsyncIterator[bytes]:
        async with svc.journal.of("silent"):
            await svc.go.wait()
            yield b"at last"

    @svc.get("/wait")
    async def wait() -> str:
        async with svc.journal.of("wait"):
            await svc.go.wait()
        return "waited"

    @svc.post("/later", stream=True)
    async def later(request: Request) -> dict[str, list]:
        async with svc.journal.of("later"):
            await svc.go.wait()
        return {"got": digest(await request.read())}

    @svc.get("/finish", on_disconnect="finish")
    async def finish() -> str:
        async with svc.journal.of("finish"):
            await svc.go.wait()
        return "finished"

    @svc.get("/nap/<ms>")
    async def nap(ms: int) -> str:
        if ms:
            await asyncio.sleep(ms / 1000)
        return "rested"

    @svc.get("/extended/<ms>")
    async def extended(ms: int, request: Request) -> str:
        await request.extend(5)
        await asyncio.sleep(ms / 1000)
        return "in time"

    @svc.post("/whole")
    async def take_whole(request: Request) -> dict[str, list]:
        return {"got": digest(request.body)}

    @svc.post("/taken")
    async def take_pieces(chunks: AsyncIterator[bytes]) -> dict[str, list]:
        async with svc.journal.of("taken"):
            body = b""
            async for chunk in chunks:
                body += chunk
                svc.seen.put_nowait(len(body))
        return {"got": digest(body)}

    @svc.post("/refused", stream=True)
    async def refused(request: Request) -> str:
        svc.journal.append("refused")
        raise HTTPError(401, "who are you?", reason="nobody")

    @svc.post("/echo")
    async def echo(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk

    @svc.post("/greeting")
    async def greet(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"hello "
        async for chunk in chunks:
            yield chunk

    return svc


class House(NamedTuple):
    """A service that has joined, and one gateway with a front for each door."""

    service: Service
    member: Member
    gateway: Gateway
    fronts: dict[bool, Front]

    @property
    def exchange(self):
        """The gateway's own."""
        return self.gateway.exchange

    @property
    def root(self):
        """Where its subjects begin."""
        return self.gateway.root

    def left(self):
        """Return what is still held somewhere, by name."""
        exchange, worker = self.exchange, self.member.worker
        held = {
            "flights": exchange._flights,
            "streams": exchange._streams,
            "bytes": exchange._pending_bytes,
            "waiting": worker._waiting,
            "streaming": worker._streaming,
            "gateway's peers": exchange.bus.pulse._peers,
            "service's peers": worker.bus.pulse._peers,
            "gateway's inbox": exchange.bus._inbox._pending,
            "service's inbox": worker.bus._inbox._pending,
        }
        return {name: what for name, what in held.items() if what}

    def tasks(self, fast):
        """Return the tasks of the ASGI door that run."""
        return self.fronts[fast]._server.server_state.tasks


async def build(stack, nats_url, root, folder, *, timeout=10.0, doors=(True, False), gateway_url=None):
    """Start a house, which ends with the stack."""
    bus = await connect(Nats(urls=(nats_url,)))
    stack.push_async_callback(bus.close)
    service = streaming_service(root, folder)
    stack.callback(service.close)
    member = Member(bus, service, quiet=0.02)
    await member.start()
    stack.push_async_callback(member.stop, 0)
    gateway = await stack.enter_async_context(
        Gateway(root, nats=Nats(urls=(gateway_url or nats_url,)), timeout=timeout)
    )
    fronts = {fast: Front(gateway, port=0, grace=1.0, fast=fast) for fast in doors}
    for front in fronts.values():
        await front.start()
        stack.push_async_callback(end, front)
    return House(service, member, gateway, fronts)


async def end(front):
    """Cut and stop a front: what a test has left behind does not keep it."""
    for connection in list(front._server.server_state.connections):
        connection.transport.abort()
    for task in front._server.server_state.tasks:
        task.cancel()
    await front.stop(now=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(nats_url, tmp_path_factory):
    """Give a house for all tests of this module that leave it standing."""
    async with AsyncExitStack() as stack:
        yield await build(stack, nats_url, "streaming", tmp_path_factory.mktemp("files"))


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared, until):
    """Give the shared house, swept; afterwards nothing is left in it."""
    service = shared.service
    service.journal.clear()
    service.go, service.items, service.seen, service.made = asyncio.Event(), asyncio.Queue(), asyncio.Queue(), 0
    yield shared
    service.go.set()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            await until(lambda: not shared.left())
    left = {name: repr(what) for name, what in shared.left().items()}
    for flight in [*shared.exchange._flights, *shared.exchange._streams]:  # so that one test spoils no other
        flight.drop()
    for job in [*shared.member.worker._waiting, *shared.member.worker._streaming]:
        job.cancel()
    assert left == {}


@pytest_asyncio.fixture(loop_scope="module")
async def own(nats_url, tmp_path):
    """Give a function that builds a house for a test that hurts it."""
    async with AsyncExitStack() as stack:

        async def make(fast=True, *, root="own", url=None, **options):
            return await build(stack, url or nats_url, root, tmp_path, doors=[fast], **options)

        yield make


# ── a client that sees bytes ──


class Got(NamedTuple):
    """One answer; `whole` tells whether its end was there, and not only the end of the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def json(self):
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def problem(self):
        """Return (status, reason) of a problem+json."""
        assert self.headers["content-type"] == "application/problem+json"
        return self.status, self.json["reason"]


class Client:
    """A bare HTTP client."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def send(self, *segments):
        """Send; a server that has closed is told nothing."""
        with contextlib.suppress(ConnectionError):
            for segment in segments:
                self.writer.write(segment)
                await self.writer.drain()

    async def close(self):
        """Go away at once."""
        self.writer.transport.abort()

    async def head(self):
        """Return status and headers of the next answer, or of a 100."""
        async with asyncio.timeout(10):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        line, *fields = raw[:-4].split(b"\r\n")
        status = int(re.fullmatch(rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*", line)[1])
        headers = dict(field.decode("latin-1").split(": ", 1) for field in fields)
        assert len(headers) == len(fields), "a field is there twice"
        return status, headers

    async def chunk(self):
        """Return the next chunk of a chunked body; empty for the last one."""
        async with asyncio.timeout(10):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            data = await self.reader.readexactly(size + 2)
        assert data[-2:] == b"\r\n"
        return data[:-2]

    async def body(self, headers):
        """Return the body behind a head, and whether it is whole."""
        body = bytearray()
        try:
            if headers.get("transfer-encoding") == "chunked":
                while chunk := await self.chunk():
                    body += chunk
                return bytes(body), True
            async with asyncio.timeout(20):
                left = int(headers["content-length"]) if "content-length" in headers else None
                while left is None or len(body) < left:
                    data = await self.reader.read(1 << 18 if left is None else min(1 << 18, left - len(body)))
                    if not data:
                        return bytes(body), left is None
                    body += data
                return bytes(body), True
        except asyncio.IncompleteReadError as error:
            return bytes(body) + error.partial, False
        except ConnectionResetError:
            return bytes(body), False

    async def answer(self, *, head=False):
        """Return the next answer."""
        status, headers = await self.head()
        while status < 200:
            status, headers = await self.head()
        if head or status in (204, 304):
            return Got(status, headers, b"", True)
        return Got(status, headers, *await self.body(headers))

    async def rest(self):
        """Return what comes until the connection ends."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def client(front, *, buffer=None):
    """Connect to a front; `buffer` is how much the system takes in for a client that does not read."""
    address = urlsplit(front.url)
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (address.hostname, address.port))
    reader, writer = await asyncio.open_connection(sock=connection, limit=64 * KIB)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()


def req(target, *lines, method="GET", version="1.1", body=b""):
    """Return the bytes of a request."""
    head = [f"{method} {target} HTTP/{version}", "Host: x", *lines]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n" + body


def post(target, body, *lines):
    """Return the bytes of a request with a body of known length."""
    return req(target, f"Content-Length: {len(body)}", *lines, method="POST", body=body)


def chunks(*pieces):
    """Return a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])


CHUNKED = "Transfer-Encoding: chunked"
REST = req("/nap/0")


async def ask(front, raw, **options):
    """Return the answer to one request on a connection of its own."""
    async with client(front) as one:
        await one.send(raw)
        return await one.answer(**options)


async def is_alive(one):
    """Tell whether a connection takes another request."""
    await one.send(REST)
    return (await one.answer()).body == b"rested"


# ── downloads ──

DOWNLOADS = [
    pytest.param("/bytes/5000000", True, id="bytes"),
    pytest.param("/pieces/5000000", False, id="generator"),
    pytest.param("/said/5000000/5000000", True, id="generator with a length"),
    pytest.param("/file", True, id="file"),
]


@DOORS
@pytest.mark.parametrize(("target", "has_length"), DOWNLOADS)
async def test_answers_larger_than_a_message(house, fast, target, has_length):
    """All bytes arrive, with the length where it is known and chunked where not; the connection stays."""
    async with client(house.fronts[fast]) as one:
        for _ in range(2):
            await one.send(req(target))
            got = await one.answer()
            assert (got.status, got.whole) == (200, True)
            assert digest(got.body) == digest(blob(5_000_000))
            assert got.headers.get("content-length") == ("5000000" if has_length else None)
            assert got.headers.get("transfer-encoding") == (None if has_length else "chunked")
        assert await is_alive(one)


@DOORS
@pytest.mark.parametrize(("target", "has_length"), DOWNLOADS)
async def test_old_clients(house, fast, target, has_length):
    """HTTP/1.0 knows no chunks: the answer ends with the connection."""
    async with client(house.fronts[fast]) as one:
        await one.send(req(target, version="1.0"))
        got = await one.answer()
        assert "transfer-encoding" not in got.headers
        assert got.headers["connection"] == "close"
        assert digest(got.body) == digest(blob(5_000_000))
        assert await one.rest() == b""


@DOORS
@pytest.mark.parametrize(("target", "has_length"), DOWNLOADS)
async def test_a_client_that_closes_afterwards(house, fast, target, has_length):
    """`Connection: close` is kept, behind the last byte."""
    async with client(house.fronts[fast]) as one:
        await one.send(req(target, "Connection: close"))
        got = await one.answer()
        assert (got.headers["connection"], got.whole) == ("close", True)
        assert digest(got.body) == digest(blob(5_000_000))
        assert await one.rest() == b""


@DOORS
@pytest.mark.parametrize(("target", "has_length"), DOWNLOADS)
async def test_head(house, fast, target, has_length):
    """A HEAD gets the head alone; what was begun for it is closed, and the connection goes on."""
    async with client(house.fronts[fast]) as one:
        await one.send(req(target, method="HEAD"))
        got = await one.answer(head=True)
        assert got.status == 200
        assert "transfer-encoding" not in got.headers
        if has_length:
            assert got.headers["content-length"] == "5000000"
        assert await is_alive(one)
    assert house.service.journal.count("pieces began") == house.service.journal.count("pieces ended")


@DOORS
async def test_requests_behind_a_stream(house, fast):
    """What is pipelined behind a stream is answered behind it."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/pieces/2000000") + REST + req("/bytes/2000000") + req("/nap/1"))
        assert digest((await one.answer()).body) == digest(blob(2_000_000))
        assert (await one.answer()).body == b"rested"
        assert digest((await one.answer()).body) == digest(blob(2_000_000))
        assert (await one.answer()).body == b"rested"


@DOORS
@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, MIB - 1025, MIB - 1024, MIB - 1023, MIB, MIB + 1])
async def test_sizes_around_the_limits(house, fast, size):
    """Whether an answer fits into one message or not is nobody's business."""
    for target in (f"/bytes/{size}", f"/pieces/{size}", f"/said/{size}/{size}"):
        got = await ask(house.fronts[fast], req(target))
        assert (got.status, got.whole, digest(got.body)) == (200, True, digest(blob(size)))


@DOORS
@pytest.mark.parametrize("extra", [0, 1000, 5000, 20_000])
async def test_long_headers_and_a_body_that_just_fits(house, fast, extra):
    """Header block and body share a message: a body that fits without its headers is streamed."""
    for size in (MIB - 22_000, MIB - 2_000, MIB - 1_024):
        got = await ask(house.fronts[fast], req(f"/long/{size}/{extra}"))
        assert (got.status, len(got.headers["x-long"])) == (200, extra)
        assert digest(got.body) == digest(blob(size))


# ── what goes wrong on the service's side ──


@DOORS
async def test_an_error_before_the_first_piece(house, fast):
    """It is an ordinary answer, and the connection goes on."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/fails/0/0"))
        got = await one.answer()
        assert (got.problem, got.whole) == ((500, "handler_failed"), True)
        assert "content-length" in got.headers
        assert await is_alive(one)


@DOORS
async def test_an_error_in_the_middle_of_chunks(house, fast):
    """The last chunk never comes."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/fails/3/0") + REST)
        got = await one.answer()
        assert (got.status, got.whole, got.body) == (200, False, blob(1000) * 3)
        assert await one.rest() == b""


@DOORS
async def test_an_error_in_the_middle_of_a_known_length(house, fast):
    """Fewer bytes come than were said, and the connection closes."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/fails/3/5000") + REST)
        got = await one.answer()
        assert (got.status, got.whole, got.body) == (200, False, blob(1000) * 3)
        assert await one.rest() == b""


@DOORS
async def test_an_error_in_the_middle_for_an_old_client(house, fast):
    """Where only the end of the connection tells, it is a reset."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/fails/3/0", version="1.0"))
        got = await one.answer()
        assert ("transfer-encoding" in got.headers, got.status, got.whole) == (False, 200, False)


@DOORS
@pytest.mark.parametrize(("size", "said"), [(1000, 2000), (250_000, 250_001), (2000, 1000), (250_000, 150_000)])
async def test_a_length_that_is_not_true(house, fast, size, said):
    """No client takes it for what it says: fewer bytes, and the connection closes."""
    async with client(house.fronts[fast]) as one:
        await one.send(req(f"/said/{size}/{said}"))
        got = await one.answer()
        assert got.whole is False
        assert len(got.body) < said
        assert await one.rest() == b""


# ── uploads ──


@DOORS
@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, MIB, 2_500_000])
@pytest.mark.parametrize("target", ["/whole", "/taken"])
async def test_bodies_of_known_length(house, fast, target, size):
    """They arrive whole, whatever their size and however the route takes them; the connection stays."""
    async with client(house.fronts[fast]) as one:
        await one.send(post(target, blob(size)))
        got = await one.answer()
        assert (got.status, got.json) == (200, {"got": digest(blob(size))})
        assert await is_alive(one)


@DOORS
@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, MIB, 2_500_000])
@pytest.mark.parametrize("target", ["/whole", "/taken"])
async def test_bodies_of_unknown_length(house, fast, target, size):
    """So do chunked ones."""
    pieces = [blob(size)[start : start + 50_000] for start in range(0, size, 50_000)]
    async with client(house.fronts[fast]) as one:
        await one.send(req(target, CHUNKED, method="POST"), *[chunks(piece)[:-5] for piece in pieces], chunks())
        got = await one.answer()
        assert (got.status, got.json) == (200, {"got": digest(blob(size))})
        assert await is_alive(one)


@DOORS
@pytest.mark.parametrize("more", range(-2, 3))
async def test_bodies_that_just_fit(house, fast, more):
    """One byte more or less than a message takes, with all the headers there are."""
    lines = ("X-Filler: " + "a" * 3000, "X-More: 1")
    fields = sum(len(line) + 2 for line in ("Host: x", *lines))
    size = house.exchange.max_body - fields + more
    for raw in (post("/whole", blob(size), *lines), req("/whole", CHUNKED, *lines, method="POST") + chunks(blob(size))):
        got = await ask(house.fronts[fast], raw)
        assert (got.status, got.json) == (200, {"got": digest(blob(size))})


@DOORS
async def test_more_than_memory_takes(house, fast):
    """A body far over the limit of what is read whole goes through a route that takes it as it comes."""
    size = 20 * MIB
    got = await ask(house.fronts[fast], post("/taken", blob(size)))
    assert got.json == {"got": digest(blob(size))}


@DOORS
async def test_both_ways_at_once(own, fast):
    """An answer may begin before its request has ended: what goes in comes out, as it goes."""
    house = await own(fast)
    async with asyncio.timeout(2), client(house.fronts[fast]) as one:
        await one.send(req("/echo", CHUNKED, method="POST"))
        status, headers = 0, {}
        for number in range(5):
            await one.send(chunks(b"%d" % number)[:-5])
            if not number:
                status, headers = await one.head()
            assert await one.chunk() == b"%d" % number
        await one.send(chunks())
        assert await one.chunk() == b""
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert await is_alive(one)


@DOORS
async def test_a_large_echo(house, fast):
    """Ten megabytes in and out at the same time, both slowed by each other."""
    async with client(house.fronts[fast]) as one:
        sending = asyncio.create_task(one.send(post("/echo", blob(10 * MIB))))
        got = await one.answer()
        assert digest(got.body) == digest(blob(10 * MIB))
        await sending


@DOORS
async def test_an_answer_that_begins_before_the_body_is_read(own, fast):
    """A handler may say something first, and only then read."""
    house = await own(fast)
    async with asyncio.timeout(2), client(house.fronts[fast]) as one:
        sending = asyncio.create_task(one.send(post("/greeting", blob(2_000_000))))
        got = await one.answer()
        assert digest(got.body) == digest(b"hello " + blob(2_000_000))
        await sending


@DOORS
@pytest.mark.parametrize("size", [5, 2_000_000])
@pytest.mark.parametrize("target", ["/whole", "/taken"])
async def test_expect_100_continue(house, fast, target, size):
    """The client is told to go on, once somebody wants its body."""
    async with client(house.fronts[fast]) as one:
        await one.send(req(target, f"Content-Length: {size}", "Expect: 100-continue", method="POST"))
        assert (await one.head())[0] == 100
        await one.send(blob(size))
        got = await one.answer()
        assert (got.status, got.json) == (200, {"got": digest(blob(size))})
        assert await is_alive(one)


@DOORS
@pytest.mark.parametrize("lines", [["Content-Length: 5000000"], [CHUNKED]], ids=["length", "chunked"])
async def test_an_answer_that_does_not_wait_for_the_body(house, fast, lines):
    """A handler that refuses unseen: the client hears it before it has sent all, and the connection closes."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/refused", *lines, method="POST", body=chunks(b"x")[:-5] if lines == [CHUNKED] else b"x"))
        got = await one.answer()
        assert (got.problem, got.headers["connection"]) == ((401, "nobody"), "close")
        assert await one.rest() == b""


@DOORS
async def test_a_refusal_for_one_who_sends_it_all(house, fast):
    """A client that does not listen while it sends is not stopped by the refusal, and finds it afterwards."""
    address = urlsplit(house.fronts[fast].url)

    def send_and_receive():
        with socket.create_connection((address.hostname, address.port), timeout=10) as one:
            one.sendall(post("/refused", blob(5_000_000)))
            return one.recv(1 << 16)

    assert (await asyncio.to_thread(send_and_receive)).startswith(b"HTTP/1.1 401 ")


@DOORS
async def test_a_refusal_instead_of_100_continue(house, fast):
    """Who is refused is not told first to go on."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/refused", "Content-Length: 5000000", "Expect: 100-continue", method="POST"))
        assert (await one.head())[0] == 401


@DOORS
async def test_more_than_the_service_reads(house, fast):
    """Over `max_body` it is 413, before it has been sent where its length is known, in words that say the limit."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/whole", f"Content-Length: {MAX_BODY + 1}", method="POST"))
        got = await one.answer()
        assert got.problem == (413, "too_large")
        assert str(MAX_BODY) in got.json["detail"]
        assert got.headers["connection"] == "close"
    got = await ask(house.fronts[fast], req("/whole", CHUNKED, method="POST") + chunks(*[blob(MIB)] * 4))
    assert got.problem == (413, "too_large")


@DOORS
async def test_a_foreign_service_gets_no_part_for_the_whole(house, wire, fast):
    """Who is not known to take streams gets whole bodies only; over max_payload it is 413, with the limit in words."""
    got_by_it = await wire.listen(f"{house.root}.foreign")
    for raw in (post("/foreign", blob(MIB)), req("/foreign", CHUNKED, method="POST") + chunks(blob(MIB), b"x")):
        got = await ask(house.fronts[fast], raw)
        assert got.problem == (413, "too_large")
        assert str(MIB) in got.json["detail"] and "max_payload" in got.json["detail"]
    await wire.flush()
    assert got_by_it.empty()


@DOORS
async def test_a_client_that_leaves_in_the_middle_of_its_body(house, fast, until):
    """The handler is cancelled."""
    async with client(house.fronts[fast]) as one:
        await one.send(post("/taken", blob(3_000_000))[:2_000_000])
        await until(house.service.journal.has("taken began"))
        await one.close()
    await until(house.service.journal.has("taken CancelledError"))


@DOORS
@pytest.mark.parametrize("lines", [[CHUNKED], ["Content-Length: 2000000"]], ids=["chunked", "length"])
async def test_the_first_piece_comes_first(house, fast, lines):
    """A route that takes its body as it comes has the first piece before the client has sent the second."""
    first, second = b"first", blob(1_999_995)
    framed = [chunks(first)[:-5], chunks(second)] if lines == [CHUNKED] else [first, second]
    async with client(house.fronts[fast]) as one:
        await one.send(req("/taken", *lines, method="POST"), framed[0])
        async with asyncio.timeout(5):
            assert await house.service.seen.get() == 5
        await one.send(framed[1])
        assert (await one.answer()).json == {"got": digest(first + second)}


# ── what a request costs ──


@pytest.mark.parametrize(
    ("raw", "replies"),
    [
        pytest.param(REST, ["200"], id="GET"),
        pytest.param(post("/whole", b"body"), ["200"], id="POST"),
        pytest.param(req("/whole", CHUNKED, method="POST") + chunks(b"bo", b"dy"), ["200"], id="chunked POST"),
        pytest.param(req("/fails/0/0"), ["500"], id="error before a stream"),
        pytest.param(req("/pieces/10", method="HEAD"), ["200"], id="HEAD of a stream"),
        pytest.param(req("/nap/150"), ["102", "200"], id="slow"),
    ],
)
@DOORS
async def test_messages_of_an_ordinary_request(house, wire, fast, raw, replies):
    """A request and its reply; who works for more than 50 ms says so, once."""
    seen = await wire.listen(">")
    await ask(house.fronts[fast], raw, head=raw.startswith(b"HEAD"))
    await house.exchange.bus.flush()
    await house.member.bus.flush()
    await wire.flush()
    messages = [seen.get_nowait() for _ in range(seen.qsize())]
    [asked] = [one for one in messages if one.subject.startswith(f"{house.root}.")]
    fields = fields_of(asked.header)
    assert (fields["nw-accept"], "nw-more" in fields) == (f"stream;window={WINDOW}", False)
    answers = [one for one in messages if one.subject == asked.reply]
    assert [fields_of(one.header).get("nw-status", "200") for one in answers] == replies
    assert [bool(one.reply) for one in answers] == [status == "102" for status in replies]


# ── nobody waits any more ──


@DOORS
async def test_a_client_that_leaves_after_the_accept(house, fast, until):
    """The handler is cancelled at its next await."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/wait"))
        await until(lambda: any(job.stream is not None for job in house.member.worker._waiting))
        await one.close()
    async with asyncio.timeout(1):
        await until(house.service.journal.has("wait CancelledError"))


@DOORS
async def test_a_client_that_leaves_before_the_accept(house, fast, until):
    """Its request is cancelled when the service says that it is at work."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/wait"))
    async with asyncio.timeout(3):
        await until(house.service.journal.has("wait CancelledError"))


@DOORS
async def test_a_client_that_leaves_one_who_finishes(house, fast, until):
    """With on_disconnect="finish" the handler runs to its end."""
    journal = house.service.journal
    async with client(house.fronts[fast]) as one:
        await one.send(req("/finish"))
        await until(lambda: any(job.stream is not None for job in house.member.worker._waiting))
        await one.close()
    await until(lambda: not house.exchange._flights)
    await until(lambda: all(job.gone for job in house.member.worker._waiting))
    house.service.go.set()
    await until(journal.has("finish ended"))
    assert "finish CancelledError" not in journal


@DOORS
async def test_a_client_that_leaves_in_the_middle_of_a_stream(house, fast, until):
    """The generator is closed."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/endless"))
        await one.head()
        await one.chunk()
        await one.close()
    await until(lambda: "endless ended" not in house.service.journal and len(house.service.journal) == 2)


@DOORS
async def test_a_client_that_leaves_before_the_first_piece(house, fast, until):
    """A handler that has given nothing of its stream yet is cancelled as well."""
    async with client(house.fronts[fast]) as one:
        await one.send(req("/silent"))
        await until(house.service.journal.has("silent began"))
    async with asyncio.timeout(1):
        await until(house.service.journal.has("silent CancelledError"))


@bug("asyncio hears of no end where reading is paused: a client that has sent much is missed until its time is up")
@DOORS
async def test_a_client_that_leaves_before_its_body_is_wanted(own, fast, until):
    """A handler that has not asked for the body yet is cancelled as well."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(post("/later", blob(3_000_000))[:1000])
        await until(house.service.journal.has("later began"))
    async with asyncio.timeout(1):
        await until(house.service.journal.has("later CancelledError"))


@DOORS
async def test_a_client_that_leaves_a_stream_that_says_nothing(own, fast, until):
    """Nothing waits for the next event on its behalf, in neither process."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(req("/events", "Accept: text/event-stream"))
        house.service.items.put_nowait(1)
        await one.head()
        await one.close()
    await until(lambda: len(house.service.journal) == 2)
    await until(lambda: not house.left())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await until(lambda: not house.tasks(fast))
    assert not house.tasks(fast)


@DOORS
async def test_time_is_up(own, fast, until):
    """The client gets a 504, and the handler is cancelled."""
    house = await own(fast, timeout=0.3)
    assert (await ask(house.fronts[fast], req("/wait"))).problem == (504, "timeout")
    await until(house.service.journal.has("wait CancelledError"))
    await until(lambda: not house.left())


@DOORS
async def test_more_time(own, fast, until):
    """A handler that asks for more time gets it, in both processes."""
    house = await own(fast, timeout=0.3)
    got = await ask(house.fronts[fast], req("/extended/600"))
    assert (got.status, got.body) == (200, b"in time")
    await until(lambda: not house.left())


# ── slow readers ──


@DOORS
async def test_a_client_that_does_not_read(house, fast, until):
    """Its stream stops after a window and what sockets hold, others go on; when it reads again, all of it arrives."""
    svc = house.service
    calm = [0, 0]

    def is_calm():
        calm[:] = [calm[0] + 1, svc.made] if svc.made == calm[1] else [0, svc.made]
        return calm[0] > 100 and svc.made

    async with asyncio.timeout(30), client(house.fronts[fast], buffer=64 * KIB) as one:
        await one.send(req("/endless"))
        await until(is_calm)
        assert svc.made < ENDLESS / 2
        for front in [*house.fronts.values()] * 5:
            assert (await ask(front, REST)).body == b"rested"
        status, headers = await one.head()
        body, whole = await one.body(headers)
        assert (status, whole, len(body)) == (200, True, ENDLESS * PIECE)
        assert sha256(body).digest() == sha256(blob(PIECE) * ENDLESS).digest()


# ── feeds ──


async def events(lines):
    """Yield the numbers of a feed."""
    async for line in lines:
        if line.startswith("data: "):
            yield int(line[6:])


@DOORS
async def test_events_one_by_one(house, fast):
    """Each event is there before the next one exists."""
    house.service.items.put_nowait(0)
    async with (
        asyncio.timeout(10),
        httpx2.AsyncClient() as http,
        http.stream("GET", f"{house.fronts[fast].url}/events", headers={"accept": "text/event-stream"}) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events(response.aiter_lines())
        for number in range(5):
            assert await anext(found) == number
            house.service.items.put_nowait(number + 1)


@DOORS
@pytest.mark.parametrize(
    ("target", "first"),
    [
        ("/events", "silence"),
        ("/events", "event"),
        ("/hasty", "silence"),
        ("/hasty", "event"),
    ],
)
async def test_a_feed_that_is_silent(house, fast, target, first):
    """A comment shows that it is alive, again and again, whether it has said something before or not."""
    async with client(house.fronts[fast]) as one:
        if first == "event":
            house.service.items.put_nowait(1)
        await one.send(req(target, "Accept: text/event-stream"))
        status, headers = await one.head()
        assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        if first == "event":
            assert await one.chunk() == b"data: 1\n\n"
        for _ in range(3):
            assert await one.chunk() == b":\n\n"
        house.service.items.put_nowait(7)
        while (chunk := await one.chunk()) == b":\n\n":
            pass
        assert chunk == b"data: 7\n\n"


@DOORS
async def test_a_feed_of_a_service_that_stops(own, fast, until):
    """It ends well: the last chunk is there, and a client that knows feeds comes again."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(req("/events", "Accept: text/event-stream"))
        house.service.items.put_nowait(1)
        _, headers = await one.head()
        assert await one.chunk() == b"data: 1\n\n"
        assert await house.member.stop(5)
        body, whole = await one.body(headers)
        assert (body.replace(b":\n\n", b""), whole) == (b"", True)
    await until(lambda: not house.left())


@DOORS
async def test_a_feed_that_has_not_begun_when_its_service_stops(own, fast, until):
    """It ends as well, or is an answer that says to come again: no failure."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(req("/events", "Accept: text/event-stream"))
        await until(house.service.journal.has("events began"))
        assert await house.member.stop(5)
        assert (await one.answer()).status in (200, 503)


@DOORS
async def test_a_feed_of_a_front_that_stops(own, fast, until):
    """It ends well as well, and does not keep the front for its grace."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(req("/events", "Accept: text/event-stream"))
        house.service.items.put_nowait(1)
        _, headers = await one.head()
        assert await one.chunk() == b"data: 1\n\n"
        stopping = asyncio.create_task(house.fronts[fast].stop())
        body, whole = await one.body(headers)
        finished = await stopping
        assert (body.replace(b":\n\n", b""), whole, finished) == (b"", True, True)
    await until(lambda: not house.left())


@DOORS
async def test_lines_of_a_service_that_stops(own, fast, until):
    """A stream that has an end is finished, within the grace."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(req("/lines"))
        _, headers = await one.head()
        assert await one.chunk() == b'{"n":0}\n'
        stopping = asyncio.create_task(house.member.stop(10))
        await until(lambda: house.member.worker._stopping)
        house.service.go.set()
        assert (await one.body(headers), await stopping) == ((b'{"n":1}\n', True), True)
    await until(lambda: not house.left())


@DOORS
async def test_a_stream_that_outlives_the_grace(own, fast, until):
    """It is cut off, so that nobody takes it for whole; nobody waits for the rest."""
    house = await own(fast)
    async with client(house.fronts[fast]) as one:
        await one.send(req("/lines"))
        _, headers = await one.head()
        assert await one.chunk() == b'{"n":0}\n'
        assert await house.member.stop(0) is False
        assert await one.body(headers) == (b"", False)
    await until(lambda: not house.left())


@DOORS
async def test_a_large_answer_that_outlives_the_grace(own, fast, until):
    """So is one that was ready, but whose client reads too slowly."""
    house = await own(fast)
    async with client(house.fronts[fast], buffer=64 * KIB) as one:
        await one.send(req("/bytes/40000000"))
        _, headers = await one.head()
        assert await house.member.stop(0) is False
        async with asyncio.timeout(3):
            _, whole = await one.body(headers)
        assert whole is False
    await until(lambda: not house.left())


# ── deaths ──

APP = dedent(
    """
    import asyncio, pathlib
    from collections.abc import AsyncIterator
    from natsweb import Service
    svc = Service("mortal", root="{root}")

    @svc.get("/wait")
    async def wait() -> str:
        pathlib.Path("entered").touch()
        await asyncio.Event().wait()
        return ""

    @svc.get("/lines")
    async def lines() -> AsyncIterator[dict[str, int]]:
        yield {{"n": 0}}
        await asyncio.Event().wait()
    """
)


@pytest_asyncio.fixture(loop_scope="module")
async def begin(tmp_path, nats_url):
    """Give a function that starts `natsweb ...` as a process."""
    processes = []

    async def begin(*arguments):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "natsweb"),
            *arguments,
            cwd=tmp_path,
            env=clean | {"NATS_URL": nats_url, "XDG_CONFIG_HOME": str(tmp_path)},
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest_asyncio.fixture(loop_scope="module")
async def mortal(begin, tmp_path, nats_url, until):
    """Give a service that runs in a process of its own, and the two fronts of a gateway for it."""
    (tmp_path / "app.py").write_text(APP.format(root="mortal"))
    process = await begin("run", "app")
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(Gateway("mortal", nats=Nats(urls=(nats_url,))))
        fronts = {fast: Front(gateway, port=0, grace=1.0, fast=fast) for fast in (True, False)}
        for front in fronts.values():
            await front.start()
            stack.push_async_callback(end, front)
        await until(lambda: any(one.state == "up" for one in gateway.directory.catalogue.named("mortal")))
        yield process, gateway, fronts


@DOORS
async def test_a_service_that_is_killed_at_work(mortal, fast, tmp_path, until):
    """Once it has accepted a request its death is a 502, after two beats and not after the request's time."""
    process, gateway, fronts = mortal
    async with client(fronts[fast]) as one:
        await one.send(req("/wait"))
        await until((tmp_path / "entered").exists)
        await until(lambda: any(flight.stream is not None for flight in gateway.exchange._flights))
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(3):
            assert (await one.answer()).problem == (502, "disconnected")
    await until(lambda: not gateway.exchange._flights and not gateway.exchange.bus.pulse._peers)


@DOORS
async def test_a_service_that_is_killed_in_the_middle_of_a_stream(mortal, fast, until):
    """The answer is cut off."""
    process, gateway, fronts = mortal
    async with client(fronts[fast]) as one:
        await one.send(req("/lines"))
        _, headers = await one.head()
        assert await one.chunk() == b'{"n":0}\n'
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(3):
            assert await one.body(headers) == (b"", False)
    await until(lambda: not gateway.exchange._streams and not gateway.exchange.bus.pulse._peers)


@pytest.mark.parametrize("target", ["/wait", "/lines"])
async def test_a_gateway_that_is_killed(own, begin, target, until):
    """What a service does for it is cancelled, whether it has begun to answer or not."""
    house = await own(root="widow")
    process = await begin("gateway", "--root", "widow", "--port", "0")
    async with asyncio.timeout(20):
        said = ""
        while not (found := re.search(r"http://[0-9.]+:([0-9]+)", said)):
            said += (await process.stderr.readline()).decode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
    writer.write(req(target))
    worker = house.member.worker
    await until(lambda: any(job.stream is not None for job in [*worker._waiting, *worker._streaming]))
    process.kill()
    async with asyncio.timeout(3):
        await until(house.service.journal.has(f"{target[1:]} CancelledError"))
    await until(lambda: not house.left())
    writer.transport.abort()
    assert await reader.read() or True


def hang_up(bus):
    """Lose a connection to NATS, as when a cable is pulled."""
    bus._client._transport._io_writer.transport.abort()


@DOORS
@pytest.mark.parametrize("whose", ["gateway", "service"])
@pytest.mark.parametrize("target", ["/wait", "/lines"])
async def test_a_connection_to_nats_that_is_lost(own, fast, whose, target, until):
    """What was under way ends soon and visibly on both sides; a moment later all is served again."""
    house = await own(fast)
    worker = house.member.worker
    async with client(house.fronts[fast]) as one:
        await one.send(req(target))
        await until(lambda: any(job.stream is not None for job in [*worker._waiting, *worker._streaming]))
        exchange = house.exchange
        await until(lambda: any(one.stream is not None for one in [*exchange._flights, *exchange._streams]))
        headers = None
        if target == "/lines":
            _, headers = await one.head()
            assert await one.chunk() == b'{"n":0}\n'
        bus = house.exchange.bus if whose == "gateway" else house.member.bus
        before = bus._client.stats["reconnects"]
        hang_up(bus)
        await until(lambda: bus._client.stats["reconnects"] > before and bus.is_connected)
        if whose == "service" and target == "/wait":
            house.service.go.set()  # it says its answer on the new connection
        async with asyncio.timeout(3):
            if headers is not None:
                assert await one.body(headers) == (b"", False)
            else:
                assert (await one.answer()).status == (502 if whose == "gateway" else 200)
    async with asyncio.timeout(3):
        await until(lambda: not house.left())

    async def served():
        async with asyncio.timeout(5):
            while (await ask(house.fronts[fast], REST)).status != 200:
                pass

    await served()


@DOORS
async def test_a_server_that_goes_away_and_comes_back(own, fast, until):
    """Streams are cut off, nothing hangs, and the next request is served when NATS is back."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with AsyncExitStack() as server:
        url = await server.enter_async_context(embedded_server(port=port))
        house = await own(fast, url=url)
        async with client(house.fronts[fast]) as one, client(house.fronts[fast]) as two:
            await one.send(req("/lines"))
            _, headers = await one.head()
            await two.send(post("/taken", blob(2_000_000))[:1_000_000])
            await until(house.service.journal.has("taken began"))
            await server.aclose()
            async with asyncio.timeout(5):
                await one.body(headers)
                assert (await two.answer()).status in (502, 503)
        await until(lambda: not house.left())
        async with embedded_server(port=port):
            await until(lambda: house.exchange.bus.is_connected and house.member.bus.is_connected)
            got = None
            while got is None or got.status != 200:
                got = await ask(house.fronts[fast], req("/bytes/2000000"))
            assert digest(got.body) == digest(blob(2_000_000))
            await end(house.fronts[fast])


# ── the other part is played by a stranger, who has read docs/wire.md ──


def fields_of(header):
    """Return the fields of a header block, names in lower case."""
    start, *lines = (header or b"NATS/1.0\r\n\r\n").decode("latin-1").split("\r\n")
    assert start == "NATS/1.0"
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[:-2])}


def block(**fields):
    """Return a header block of the wire's own fields."""
    lines = [f"Nw-{name}: {value}\r\n" for name, value in fields.items()]
    return "".join(["NATS/1.0\r\n", *lines, "\r\n"]).encode()


class Stranger:
    """A NATS client with subjects, header blocks and payloads, and nothing else."""

    def __init__(self, bus):
        self.bus = bus
        self._subscriptions = []

    async def listen(self, subject):
        """Return a queue of all messages on a subject."""
        queue = asyncio.Queue()
        self._subscriptions.append(await self.bus.subscribe(subject, queue.put_nowait))
        await self.bus.flush()
        return queue

    async def flush(self):
        """Wait until all that was sent before has been received."""
        await self.bus.flush()

    def say(self, subject, payload=b"", *, reply="", header=None, **fields):
        """Send a message, with a header block if there is one, or fields for one."""
        self.bus.publish(subject, payload, header=block(**fields) if fields else header, reply=reply)

    def forget(self):
        """Stop listening."""
        for one in self._subscriptions:
            one.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def wire(nats_url):
    """Give a stranger with a connection of its own."""
    bus = await connect(Nats(urls=(nats_url,)))
    stranger = Stranger(bus)
    yield stranger
    stranger.forget()
    await bus.close()


class Caller:
    """A stranger's request, and all that comes for it."""

    def __init__(self, wire, number):
        self.wire = wire
        self.inbox = f"_INBOX.stranger{number}"
        self.control = ""
        self.data = b""

    async def ask(self, subject, payload=b"", *, reply=None, **fields):
        """Send the request."""
        self.queue = await self.wire.listen(f"{self.inbox}.*")
        self.wire.say(subject, payload, reply=reply or f"{self.inbox}.1", **fields)
        return self

    async def next(self):
        """Return the fields of the next message with a header block; data before it is kept."""
        async with asyncio.timeout(10):
            while True:
                message = await self.queue.get()
                if message.subject.endswith(".beat"):
                    continue
                if message.reply:
                    assert message.reply == (self.control or message.reply)
                    self.control = message.reply
                if message.header is None:
                    assert message.reply, "every message of a member says where it can be reached"
                    self.data += message.payload
                    continue
                self.payload = message.payload
                return fields_of(message.header)

    async def takes(self, house):
        """Return all data that has come when nothing more is on its way."""
        for bus in (house.member.bus, self.wire.bus, house.member.bus, self.wire.bus):
            await bus.flush()
        while not self.queue.empty():
            message = self.queue.get_nowait()
            assert message.header is None or message.subject.endswith(".beat")
            self.data += message.payload
        return self.data

    def say(self, payload=b"", **fields):
        """Say something to the member."""
        self.wire.say(self.control, payload, **fields)


@pytest.fixture
def caller(wire):
    """Give a caller."""
    return Caller(wire, random.getrandbits(64))


async def test_a_strangers_credit(house, caller):
    """Never more bytes come than were allowed, and a credit that is lost, repeated or late does no harm."""
    await caller.ask(f"{house.root}.pieces.5000", Accept="stream;window=1000")
    head = await caller.next()
    assert (head["nw-status"], head["nw-stream"]) == ("200", "1")
    assert await caller.takes(house) == blob(1000)
    caller.say(Flow=1001)
    caller.say(Flow=900)
    assert await caller.takes(house) == blob(1001)
    for _ in range(3):
        caller.say(Flow=4000)
    assert await caller.takes(house) == blob(4000)
    caller.say(Flow=10_000)
    assert (await caller.next())["nw-end"] == "ok;5000"
    assert caller.data == blob(5000)


async def test_a_stranger_that_wants_no_more(house, caller, until):
    """`Nw-Flow: -` ends what is done for it, and nothing more comes."""
    await caller.ask(f"{house.root}.pieces.5000000", Accept="stream;window=1000")
    await caller.next()
    assert await caller.takes(house) == blob(1000)
    caller.say(Flow="-")
    await until(lambda: len(house.service.journal) == 2)
    assert house.service.journal[1] in ("pieces CancelledError", "pieces GeneratorExit")
    caller.say(Flow=10_000_000)
    assert await caller.takes(house) == blob(1000)


async def test_a_stranger_that_leaves_before_the_head(house, caller, until):
    """It says so when it hears the accept."""
    await caller.ask(f"{house.root}.wait", Accept="stream;window=1000")
    assert await caller.next() == {"nw-status": "102"}
    caller.say(Flow="-")
    await until(house.service.journal.has("wait CancelledError"))


@pytest.mark.parametrize("target", ["events", "hasty"])
async def test_the_head_comes_first(house, caller, target):
    """Whatever shows that a feed is alive comes behind its head; before that it is an accept."""
    header = b"NATS/1.0\r\nNw-Accept: stream;window=1000\r\naccept: text/event-stream\r\n\r\n"
    await caller.ask(f"{house.root}.{target}", header=header)
    while (head := await caller.next()).get("nw-status") == "102":
        pass
    caller.say(Flow="-")
    assert (head["nw-stream"], caller.data) == ("1", b"")


@pytest.mark.parametrize("target", ["pieces.200000", "said.200000.200000"])
async def test_a_stranger_that_takes_one_message(house, caller, target):
    """Without `Nw-Accept` a stream is collected, and says its length no more than any reply."""
    await caller.ask(f"{house.root}.{target}", Method="GET")
    head = await caller.next()
    assert not {"nw-stream", "content-length"} & set(head)
    assert (head.get("nw-status", "200"), digest(caller.payload)) == ("200", digest(blob(200_000)))
    assert caller.control == ""
    assert await caller.takes(house) == b""


@pytest.mark.parametrize("size", [MIB - 100, MIB - 10, MIB, MIB + 1, 5_000_000])
async def test_a_stranger_that_takes_one_message_and_would_get_more(house, caller, size):
    """Over max_payload it is 406, in words that say why."""
    await caller.ask(f"{house.root}.said.{size}.{size}", Method="GET")
    head = await caller.next()
    if size > MIB:
        assert head["nw-status"] == "406"
        assert "max" in caller.payload.decode() or "one NATS message" in caller.payload.decode()
    else:
        assert head.get("nw-status", "200") in ("200", "406")


@pytest.mark.parametrize("target", ["nap.0", "pieces.5000", "nap.100"])
async def test_a_stranger_that_names_another_subject(house, wire, caller, target):
    """What is no inbox gets neither answer nor accept nor stream; the handler runs."""
    victim = await wire.listen("orders.>")
    await caller.ask(f"{house.root}.{target}", reply="orders.delete", Accept="stream;window=1000")
    await caller.takes(house)
    await wire.flush()
    assert victim.empty()


async def test_a_stranger_that_sends_its_body_in_parts(house, caller):
    """The member pins it with a 100 and gives credit; parts of any size and a right end make the body."""
    first, second = blob(1000), blob(3000)[1000:]
    await caller.ask(f"{house.root}.taken", first, Method="POST", More="1", Accept="stream;window=1000")
    pinned = await caller.next()
    assert (pinned["nw-status"], int(pinned["nw-flow"])) == ("100", 1000 + WINDOW)
    for at in range(0, 2000, 500):
        caller.say(second[at : at + 500])
    caller.say(End="ok;3000")
    assert (await caller.next()).get("nw-status", "200") == "200"
    assert json.loads(caller.payload) == {"got": digest(first + second)}


@pytest.mark.parametrize(
    ("payloads", "fields"),
    [
        pytest.param([b"x" * 10], {"End": "ok;5"}, id="wrong count"),
        pytest.param([], {"End": "error;gave up"}, id="error"),
        pytest.param([], {"End": "banana"}, id="garbage"),
        pytest.param([], {"Flow": "much"}, id="garbage credit"),
        pytest.param([b"x" * (WINDOW + 1)], {"End": f"ok;{WINDOW + 1}"}, id="more than allowed"),
    ],
)
async def test_a_strangers_body_that_breaks_the_rules(house, caller, until, payloads, fields):
    """The handler hears of it and the caller gets an answer: no part is taken for the whole, and nothing hangs."""
    await caller.ask(f"{house.root}.taken", Method="POST", More="1", Accept="stream;window=1000")
    await caller.next()
    for payload in payloads:
        caller.say(payload)
    caller.say(**fields)
    assert (await caller.next())["nw-status"] in ("400", "502")
    await until(lambda: len(house.service.journal) == 2)
    assert house.service.journal[1] in ("taken Disconnected", "taken BadReply")


class Playing(NamedTuple):
    """A request that a stranger has got, and how to talk to who has sent it."""

    wire: Stranger
    reply: str
    control: str
    heard: asyncio.Queue

    def say(self, payload=b"", *, control=None, **fields):
        """Say something to the gateway."""
        self.wire.say(self.reply, payload, reply=self.control if control is None else control, **fields)

    async def hears(self):
        """Return the fields of the next control message."""
        async with asyncio.timeout(10):
            while (message := await self.heard.get()).subject.endswith(".beat"):
                pass
        return fields_of(message.header)


@pytest_asyncio.fixture(loop_scope="module")
async def playing(house, wire):
    """Give a function that sends a request through a door and lets the stranger have it."""
    inbox = f"_INBOX.member{random.getrandbits(64)}"
    heard = await wire.listen(f"{inbox}.*")
    asked = await wire.listen(f"{house.root}.foreign")

    async def play(one):
        await one.send(req("/foreign"))
        async with asyncio.timeout(10):
            message = await asked.get()
        assert fields_of(message.header)["nw-accept"] == f"stream;window={WINDOW}"
        return Playing(wire, message.reply, f"{inbox}.1", heard)

    return play


@DOORS
async def test_a_strangers_stream(house, playing, fast):
    """A member in any language: accept, head, data, end; unknown fields and messages are passed over."""
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=102)
        member.say(Status=201, Stream=1, Unknown="7")
        member.say(b"one ")
        member.say(Unknown="7")
        member.say(b"two")
        member.say(End="ok;7")
        got = await one.answer()
        assert (got.status, got.body, got.whole) == (201, b"one two", True)
        assert await is_alive(one)


@DOORS
async def test_a_stranger_gets_credit(house, playing, fast):
    """More than a window goes through as credit comes, which is a total since the start."""
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=200, Stream=1)
        sent, allowed, body = 0, WINDOW, blob(3 * WINDOW)
        reading = asyncio.create_task(one.answer())
        while sent < len(body):
            while sent < min(allowed, len(body)):
                part = body[sent : min(sent + PIECE, allowed)]
                member.say(part)
                sent += len(part)
            if sent < len(body):
                allowed = max(allowed, int((await member.hears())["nw-flow"]))
                assert allowed <= sent + WINDOW
        member.say(End=f"ok;{sent}")
        assert digest((await reading).body) == digest(body)


@DOORS
async def test_a_stranger_that_wants_its_credit_elsewhere(house, playing, wire, fast):
    """A head whose control subject is no inbox is a 502, and nothing is said to that subject."""
    victim = await wire.listen("orders.>")
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=200, Stream=1, control="orders.delete")
        assert (await one.answer()).problem == (502, "bad_reply")
    await house.exchange.bus.flush()
    await wire.flush()
    assert victim.empty()


@DOORS
async def test_the_first_control_subject_stays(house, playing, wire, fast, until):
    """What later messages name is passed over: the cancel goes where the head came from."""
    victim = await wire.listen("orders.>")
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=200, Stream=1)
        await one.head()
        member.say(b"data", control="orders.delete")
        assert await one.chunk() == b"data"
    assert (await member.hears())["nw-flow"] == "-"
    await wire.flush()
    assert victim.empty()


BROKEN = {
    "more than allowed": [(b"x" * (WINDOW + 1), {})],
    "wrong count": [(b"abc", {}), (b"", {"End": "ok;4"})],
    "count of nothing": [(b"", {"End": "ok;4"})],
    "error": [(b"abc", {}), (b"", {"End": "error;gone"})],
    "garbage at the end": [(b"abc", {}), (b"", {"End": "banana"})],
    "a goodbye": [(b"abc", {}), (b"", {"End": "close;1000;bye"})],
    "garbage credit": [(b"abc", {}), (b"", {"Flow": "-1"})],
    "no more wanted": [(b"abc", {}), (b"", {"Flow": "-"})],
}


@DOORS
@pytest.mark.parametrize("messages", BROKEN.values(), ids=BROKEN)
async def test_a_strangers_stream_that_breaks_the_rules(house, playing, fast, messages):
    """It is cut off at once, visibly; the front serves on."""
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=200, Stream=1)
        for payload, fields in messages:
            member.say(payload, **fields)
        async with asyncio.timeout(3):
            got = await one.answer()
        assert (got.status, got.whole) == (200, False)
        assert got.body in (b"", b"abc")
        assert await one.rest() == b""
    assert (await ask(house.fronts[fast], REST)).status == 200


@DOORS
async def test_a_strangers_header_block_that_is_none(house, playing, fast):
    """Bytes that are no header block end the stream, too."""
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=200, Stream=1)
        member.wire.bus.publish(member.reply, b"", header=b"garbage\r\n", reply=member.control)
        async with asyncio.timeout(3):
            assert (await one.answer()).whole is False


@DOORS
@pytest.mark.parametrize(
    ("payload", "fields"),
    [(b"data", {}), (b"", {"End": "ok;0"}), (b"", {"Status": 200}), (b"", {"Unknown": "7"})],
    ids=["data", "end", "reply", "unknown"],
)
async def test_a_stranger_that_forgets_where_it_can_be_reached(house, playing, fast, payload, fields):
    """A message in the middle of a stream without a reply subject breaks the rules: it ends, one way or the other."""
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        member.say(Status=200, Stream=1)
        await one.head()
        member.say(payload, control="", **fields)
        async with asyncio.timeout(1):
            await one.body({"transfer-encoding": "chunked"})


@DOORS
@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([(b"", {"Status": 102}), (b"", {"End": "ok;0"})], 502),
        ([(b"", {"Status": 102}), (b"", {"Flow": "-"})], 502),
        ([(b"", {"Status": 102}), (b"", {"Flow": "x"})], 502),
        ([(b"", {"Status": "1x2"})], 502),
        ([(b"", {"Status": 99, "Stream": 1})], 502),
        ([(b"", {"Status": 102}), (b"late", {"Status": 203})], 203),
        ([(b"", {"Status": 100, "Flow": 100}), (b"late", {"Status": 203})], 203),
    ],
)
async def test_a_stranger_that_accepts_and_then(house, playing, fast, messages, status):
    """Whatever it says after its accept, the client has one answer."""
    async with client(house.fronts[fast]) as one:
        member = await playing(one)
        for payload, fields in messages:
            member.say(payload, control="" if fields.get("Status") == 203 else None, **fields)
        async with asyncio.timeout(3):
            assert (await one.answer()).status == status
        assert await is_alive(one)
