"""Hostile input from end to end: raw HTTP on one side, forged messages on the other, and limits that hold.

What a single module refuses is in its own tests: smuggling and malformed HTTP in test_front, paths in test_subjects,
header blocks in test_wire, announcements in test_discovery, beats in test_beats.
"""

import asyncio
import json
import logging
import random
import re
from contextlib import AsyncExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from natsweb import Limits, Nats, Request, Response, Service
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus import connect
from natsweb.worker import Worker

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])


class House(NamedTuple):
    """A service behind a gateway with a socket."""

    service: Service
    gateway: Gateway
    front: Front


def build_service():
    """Return a service that tells what it gets."""
    svc = Service("hostile", root="hostile")
    svc.orders, svc.entered, svc.leave = 0, asyncio.Queue(), asyncio.Event()

    @svc.route("/echo/<path:rest>", methods=["GET", "POST", "PUT"])
    async def echo(rest: str, request: Request) -> dict[str, object]:
        return {"method": request.method, "headers": list(request.headers), "client": request.client, "path": rest}

    @svc.get("/late/<number>")
    async def late(number: int) -> int:
        await asyncio.sleep(random.uniform(0, 0.05))
        return number

    @svc.get("/wait")
    async def wait() -> str:
        svc.entered.put_nowait(None)
        await svc.leave.wait()
        return "waited"

    @svc.post("/orders")
    async def order() -> str:
        svc.orders += 1
        return "ordered"

    @svc.post("/json")
    async def take(body: dict[str, object]) -> int:
        return len(body)

    @svc.post("/count")
    async def count(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @svc.get("/fails")
    async def fails() -> None:
        raise RuntimeError("no")

    return svc


@pytest.fixture
async def build(nats_url):
    """Give a function that builds a house."""
    async with AsyncExitStack() as stack:

        async def make(*, fast=True, limits=None, log=False):
            nats = Nats(urls=(nats_url,))
            bus = await connect(nats)
            stack.push_async_callback(bus.close)
            service = build_service()
            worker = Worker(bus, service)
            await worker.start()
            stack.push_async_callback(worker.stop, 0)
            gateway = await stack.enter_async_context(Gateway("hostile", nats=nats, limits=limits, timeout=5.0))
            front = Front(gateway, port=0, grace=0.2, fast=fast, log=log)
            await front.start()
            stack.push_async_callback(front.stop)
            stack.callback(service.leave.set)
            return House(service, gateway, front)

        yield make


class Answer(NamedTuple):
    """One answer on a socket."""

    status: int
    head: bytes
    body: bytes

    @property
    def reason(self):
        """The reason that a problem gives."""
        return json.loads(self.body)["reason"]


class Line:
    """A raw connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, house):
        """Connect to a house."""
        address = urlsplit(house.front.url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def answer(self):
        """Read an answer that has its length."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            body = await self.reader.readexactly(int(length[1]) if length else 0)
        return Answer(int(head.split(b" ")[1]), head, body)

    async def ask(self, target, *lines, method="GET", body=b""):
        """Send a request and read its answer."""
        head = "".join(f"{line}\r\n" for line in [f"{method} {target} HTTP/1.1", "Host: x", *lines])
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self.writer.write(f"{head}{length}\r\n".encode("latin-1") + body)
        return await self.answer()

    async def ended(self):
        """Wait until the other side has closed, and return what it said."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.writer.close()


async def once(house, target, *lines, **options):
    """Send one request on a connection of its own."""
    async with await Line.open(house) as line:
        return await line.ask(target, *lines, **options)


# ── what a client forges ──


@DOORS
async def test_headers_that_look_like_ours(build, fast):
    """No spelling of a client's header says to a service, or to NATS, what only a gateway may say."""
    house = await build(fast=fast)
    forged = [
        f"{name}: {value}"
        for prefix in ("Nw-", "nw_", "NW-", "Nats-", "nats_", "NATS_")
        for name, value in [(f"{prefix}Timeout", "1"), (f"{prefix}Service", "other"), (f"{prefix}Client", "1.2.3.4:5")]
    ]
    forged += ["Nw-Reply: hostile.orders", "Nats-Expected-Stream: x", "Nats-Msg-Id: 1", "Nw-Upgrade: websocket"]
    answer = await once(house, "/echo/x", *forged, "X-Kept: 1")
    said = json.loads(answer.body)
    assert answer.status == 200
    assert not [name for name, _ in said["headers"] if name.replace("_", "-").startswith(("nw-", "nats-"))]
    assert ["x-kept", "1"] in said["headers"]
    assert not said["client"].startswith("1.2.3.4")


@DOORS
@pytest.mark.parametrize("line", ["Status: 503", "Description: No Responders", "Reply-To: hostile.orders"])
async def test_headers_that_mean_something_to_nats(build, fast, line):
    """A header that NATS uses as a word of its own is a header like any other."""
    house = await build(fast=fast)
    answer = await once(house, "/echo/x", line)
    name, _, value = line.partition(": ")
    assert answer.status == 200
    assert [name.lower(), value] in json.loads(answer.body)["headers"]
    assert house.service.orders == 0


@DOORS
@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
async def test_a_method_is_that_of_the_request_line(build, fast, name):
    """No header changes the method."""
    house = await build(fast=fast)
    answer = await once(house, "/orders", f"{name}: POST")
    assert (answer.status, house.service.orders) == (405, 0)


@DOORS
@pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 10_000, b'{"a": "\\ud800"}', b"\xff\xfe{", b"1e999" * 5000])
async def test_json_that_is_a_trap(build, fast, body):
    """JSON without end, or out of all bounds, is a clear 4xx, and the service goes on."""
    house = await build(fast=fast)
    answer = await once(house, "/json", "Content-Type: application/json", method="POST", body=body)
    assert 400 <= answer.status < 500
    assert (await once(house, "/late/7")).body == b"7"


@DOORS
async def test_no_secret_is_logged(build, fast, caplog):
    """Neither query nor header nor body of a request is in any line of the log, at any level."""
    caplog.set_level(logging.DEBUG)
    house = await build(fast=fast, log=True)
    secrets = ["Authorization: Bearer s3cr3t", "Cookie: sid=s3cr3t", "X-Api-Key: s3cr3t"]
    for target in ("/echo/x", "/fails", "/nobody", "/json", "/a/../b"):
        await once(house, f"{target}?token=s3cr3t", *secrets, method="POST", body=b'{"password": "s3cr3t"}')
        await once(house, f"{target}?token=s3cr3t", *secrets)
    async with await Line.open(house) as line:
        line.writer.write(b"GET /x?s3cr3t HTTP/1.1\r\nHost: x\r\nAuthorization: s3cr3t\r\nX-A : 1\r\n\r\n")
        assert (await line.answer()).status == 400
    assert "POST /json" in caplog.text
    assert "s3cr3t" not in caplog.text


@DOORS
async def test_a_path_cannot_write_log_lines(build, fast, caplog):
    """A line feed in a path stays the escape that it came as."""
    caplog.set_level(logging.DEBUG)
    house = await build(fast=fast, log=True)
    for target in ("/echo/%0aFAKE", "/nobody/%0d%0aFAKE", "/echo/%1b[2J"):
        await once(house, target)
    lines = [record.getMessage() for record in caplog.records]
    assert not [line for line in lines if line.startswith("FAKE") or "\n" in line or "\x1b" in line]
    assert any("%0aFAKE" in line for line in lines)


# ── what a member of the NATS account forges ──


async def test_answers_are_never_crossed(build):
    """Of many requests at once, each gets its own answer."""
    house = await build()

    async def client(numbers):
        async with await Line.open(house) as line:
            return [(number, int((await line.ask(f"/late/{number}")).body)) for number in numbers]

    answers = await asyncio.gather(*[client(range(first, first + 10)) for first in range(0, 500, 10)])
    assert all(number == answer for some in answers for number, answer in some)


async def test_forged_replies(build, bus, peer):
    """Only who has seen a reply subject can answer on it, once; guesses, second answers and junk find nobody."""
    house = await build()
    seen = asyncio.Queue()
    await bus.subscribe("hostile.stolen", seen.put_nowait)
    await bus.flush()
    async with await Line.open(house) as line:
        asking = asyncio.create_task(line.ask("/stolen"))
        async with asyncio.timeout(10):
            reply = (await seen.get()).reply.encode()
        prefix, _, token = reply.rpartition(b".")
        near = [b"%024x" % (int(token, 16) + step) for step in (-1, 1)]
        for guess in (*near, token[:-1], token + b"0", token.upper() + b"-", b"0" * 24, b"beat", b"x"):
            await peer.publish(prefix + b"." + guess, b"forged", header=b"NATS/1.0\r\nNw-Status: 200\r\n\r\n")
        await peer.publish(prefix + b".beat", b"", reply=b"hostile.orders")
        assert not asking.done()
        await peer.publish(reply, b"first")
        await peer.publish(reply, b"second")
        await peer.publish(reply, b"", header=b"\xff\xff")
        assert (await asking).body == b"first"
        assert (await line.ask("/late/7")).body == b"7"
    assert house.service.orders == 0


async def test_a_request_that_wants_its_answer_at_a_service(build, peer):
    """A request whose reply subject is a service's has no answer there, and so cannot make it do something."""
    house = await build()
    for header in (None, b"NATS/1.0\r\nNw-Accept: stream;window=1000\r\n\r\n", b"NATS/1.0\r\nNw-More: 1\r\n\r\n"):
        await peer.publish(b"hostile.echo.x", b"{}", reply=b"hostile.orders", header=header)
    assert (await once(house, "/late/7")).body == b"7"
    assert house.service.orders == 0


@pytest.mark.parametrize(
    "line",
    [
        b"Nw-Status: 200\r\nx-a: 1\rset-cookie: evil=1",
        b"Nw-Status: 200\r\nx-a: 1\nset-cookie: evil=1",
        b"Nw-Status: 200\r\nx-a: \0",
        b"Nw-Status: 200\r\nset-cookie : evil=1",
        b"Nw-Status: 200\r\n set-cookie: evil=1",
        b"Nw-Status: 99",
        b"Nw-Status: 200 OK",
        b"Nw-Status: 101",
    ],
)
@DOORS
async def test_headers_that_a_service_forges(build, bus, peer, fast, line, caplog):
    """A reply that is no answer is a 502 with none of its lines, is logged, and the connection stays."""
    house = await build(fast=fast)
    seen = asyncio.Queue()
    await bus.subscribe("hostile.sly", seen.put_nowait)
    await bus.flush()
    async with await Line.open(house) as client:
        asking = asyncio.create_task(client.ask("/sly"))
        async with asyncio.timeout(10):
            message = await seen.get()
        await peer.publish(message.reply.encode(), b"x", header=b"NATS/1.0\r\n" + line + b"\r\n\r\n")
        answer = await asking
        assert (answer.status, answer.reason) == (502, "bad_reply")
        assert b"evil" not in answer.head + answer.body
        assert (await client.ask("/late/7")).body == b"7"
    assert "cannot be sent" in caplog.text


# ── limits ──


@DOORS
async def test_connections_have_a_limit(build, fast):
    """A connection too many is told so and closed; when one has gone, the next is served."""
    house = await build(fast=fast, limits=Limits(connections=2))
    async with await Line.open(house) as one, await Line.open(house) as two:
        assert (await one.ask("/late/1")).body == b"1"
        assert (await two.ask("/late/2")).body == b"2"
        async with await Line.open(house) as three:
            said = await three.ended()
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close\r\n" in said
        assert b"retry-after: 1\r\n" in said
        assert said.endswith(b'"reason":"overloaded"}')
        assert (await one.ask("/late/3")).body == b"3"
    async with asyncio.timeout(10):
        while (await once(house, "/late/4")).status == 503:
            await asyncio.sleep(0.01)


@DOORS
async def test_targets_have_a_limit(build, fast):
    """A request target over the limit is a 414."""
    house = await build(fast=fast, limits=Limits(target=100))
    assert (await once(house, "/echo/x?" + "a" * 90)).status == 200
    answer = await once(house, "/echo/x?" + "a" * 93)
    assert (answer.status, answer.reason) == (414, "path_too_long")


@DOORS
@pytest.mark.parametrize("size", [9, 10, 11, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["cl", "te"])
@pytest.mark.parametrize("limit", [10, 2_000_000])
async def test_bodies_have_a_limit(build, fast, size, chunked, limit):
    """A body over the limit is a 413, whether its length is known or not, also as a stream."""
    house = await build(fast=fast, limits=Limits(body=limit))
    async with await Line.open(house) as line:
        body = bytes(size)
        head = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
        line.writer.write(f"POST /count HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        line.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body)
        answer = await line.answer()
        if size <= limit:
            assert (answer.status, answer.body) == (200, b"%d" % size)
        else:
            assert (answer.status, answer.reason) == (413, "too_large")
    assert (await once(house, "/late/7")).body == b"7"


@DOORS
async def test_a_client_has_a_limit(build, fast):
    """An address with as many requests under way as it may have gets a 429; when one is over, it may go on."""
    house = await build(fast=fast, limits=Limits(per_client=2))
    async with await Line.open(house) as one, await Line.open(house) as two:
        waiting = [asyncio.create_task(line.ask("/wait")) for line in (one, two)]
        async with asyncio.timeout(10):
            for _ in waiting:
                await house.service.entered.get()
        answer = await once(house, "/late/7")
        assert (answer.status, answer.reason) == (429, "too_many_requests")
        assert b"retry-after: 1\r\n" in answer.head
        house.service.leave.set()
        assert [(await task).body for task in waiting] == [b"waited"] * 2
        assert (await one.ask("/late/7")).body == b"7"
    assert not house.gateway.exchange._clients


async def test_a_response_of_a_hostile_size_of_headers(build, bus):
    """A service's header block is bounded by NATS itself, and what fits crosses whole."""
    house = await build()
    large = Response(headers=[(f"x-{number}", "v" * 1000) for number in range(100)])
    await bus.subscribe(
        "hostile.large",
        lambda message: bus.publish(message.reply, b"", header=b"NATS/1.0\r\n" + bytes(large.headers.block) + b"\r\n"),
    )
    await bus.flush()
    async with await Line.open(house) as line:
        line.reader._limit = 1 << 20
        answer = await line.ask("/large")
    assert answer.status == 200
    assert answer.head.count(b"\r\nx-") == 100


class Gone:
    """The transport of a client that has left, as uvloop's is: writing raises."""

    def is_closing(self):
        return True

    def write(self, data):
        raise RuntimeError("the handler is closed")


class Here:
    """The transport of a client that waits."""

    def __init__(self):
        self.written = b""

    def is_closing(self):
        return False

    def write(self, data):
        self.written += data


async def test_who_leaves_costs_no_other_its_answer(build):
    """Answers go out together; one whose client has left in the same moment does not keep the others."""
    house = await build()
    here = Here()
    house.front.write(Gone(), b"lost")
    house.front.write(here, b"answer")
    house.front.flush()
    assert here.written == b"answer"
