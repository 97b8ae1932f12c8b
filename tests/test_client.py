"""`Client`: calls of other services, alone and within handlers, over a real server and in memory."""

import asyncio
import contextlib
import dataclasses
import enum
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx2
import nats as nats_py
import pytest
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from natsweb import (
    Client,
    Depends,
    HTTPError,
    Nats,
    Publisher,
    Reply,
    Request,
    Response,
    Service,
    StreamingResponse,
    serve,
)
from natsweb.bus import MemoryBus
from natsweb.embedded import embedded_server
from natsweb.errors import (
    BadReply,
    DeclarationError,
    Disconnected,
    NatsDown,
    NatsUnreachable,
    NoService,
    Overloaded,
    SettingsError,
    StartError,
    Stopping,
    TimeUp,
    TooLarge,
)


class Order(BaseModel):
    """What is ordered."""

    id: int
    item: str


@dataclasses.dataclass
class Line:
    """A plain dataclass, with what JSON has no word for."""

    count: int
    tags: frozenset[str]


class Colour(enum.Enum):
    """One of two."""

    RED = "red"
    BLUE = "blue"


class Shop:
    """A service, and what its handlers have heard and seen."""

    def __init__(self) -> None:
        self.svc = Service("shop", max_body=64)
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.seen: list[Request] = []
        svc = self.svc

        @svc.get("/orders/<id>")
        async def show(id: int, wait: float = 0) -> Order:
            if id == 404:
                raise HTTPError(404, f"no order {id}", reason="no_order", headers={"retry-after": "7", "x-in": "side"})
            return Order(id=id, item="tea")

        @svc.get("/orders")
        async def orders() -> list[Order]:
            return [Order(id=1, item="tea"), Order(id=2, item="milk")]

        @svc.post("/orders")
        async def create(order: Order) -> Reply[Order]:
            return Reply(order, status=201, headers={"location": f"/orders/{order.id}"})

        @svc.delete("/orders/<id>")
        async def delete(id: int) -> None:
            return None

        @svc.route("/echo/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
        async def echo(request: Request, rest: str) -> dict[str, object]:
            self.seen.append(request)
            return {
                "method": request.method,
                "path": request.raw_path,
                "query": request.query,
                "type": request.headers.get("content-type"),
                "body": request.text,
            }

        @svc.get("/hang")
        async def hang() -> str:
            self.began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            return "late"

        @svc.get("/ticks")
        async def ticks() -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                try:
                    for number in range(1_000_000):
                        self.began.set()
                        yield b"tick %d\n" % number
                        await asyncio.sleep(0.001)
                finally:
                    self.cancelled.set()

            return StreamingResponse(body(), media_type="text/plain")

        @svc.get("/lines")
        async def lines() -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                for piece in (b'{"id": 1, "it', b'em": "tea"}\r\n{"id"', b': 2, "item": "milk"}\n', b"\xc3\xa4"):
                    yield piece

            return StreamingResponse(body(), media_type="application/x-ndjson")

        @svc.get("/large")
        async def large(size: int) -> bytes:
            return bytes(size)

        @svc.post("/count", stream=True)
        async def count(body: AsyncIterator[bytes]) -> int:
            total = 0
            async for piece in body:
                self.began.set()
                total += len(piece)
            return total

        @svc.post("/mirror", stream=True)
        async def mirror(body: AsyncIterator[bytes]) -> StreamingResponse:
            async def back() -> AsyncIterator[bytes]:
                async for piece in body:
                    yield piece.upper()

            return StreamingResponse(back())

        @svc.get("/plain/<status>")
        async def plain(status: int) -> Response:
            return Response(status=status, headers={"location": "/x"}, body="Traceback: boom")

        @svc.get("/odd/<status>")
        async def odd(status: int) -> Response:
            body = '{"detail": "no such thing", "errors": ["odd"], "reason": 7}'
            return Response(status=status, headers={"content-type": "application/json"}, body=body)


@pytest.fixture
def shop() -> Shop:
    """Give a service."""
    return Shop()


@pytest.fixture(params=["nats", "nats-py", "memory"])
async def api(request: pytest.FixtureRequest, shop: Shop, nats_url: str) -> AsyncIterator[Client]:
    """Give a client of the shop: over a connection of its own, over one of nats-py's, and in memory."""
    if request.param == "memory":
        bus = MemoryBus()
        async with serve(shop.svc, bus=bus), Client(bus=bus) as client:
            yield client
        await bus.close()
    elif request.param == "nats-py":
        nc = await nats_py.connect(nats_url)
        async with serve(shop.svc, nats=nats_url), Client("api", nc) as client:
            yield client
        assert nc.is_connected
        await nc.close()
    else:
        async with serve(shop.svc, nats=nats_url), Client(nats=nats_url) as client:
            yield client


# ── answers ──


async def test_an_answer_is_of_the_type_that_is_asked_for(api: Client):
    """`into` is any type that pydantic reads; without it there is the response."""
    assert await api.get("/orders/7", into=Order) == Order(id=7, item="tea")
    assert await api.get("/orders", into=list[Order]) == [Order(id=1, item="tea"), Order(id=2, item="milk")]
    assert await api.get("/orders/7", into=Order | None) == Order(id=7, item="tea")
    assert await api.delete("/orders/7", into=Order | None) is None
    assert (await api.get("/orders/7", into=bytes)) == b'{"id":7,"item":"tea"}'
    assert await api.get("/plain/200", into=str) == "Traceback: boom"
    assert await api.get("/orders/7", into=Annotated[dict[str, object], []]) == {"id": 7, "item": "tea"}
    response = await api.get("/orders/7")
    assert (response.status, response.parse_json()) == (200, {"id": 7, "item": "tea"})


async def test_every_method(api: Client, shop: Shop):
    """Each verb has its own, others go by `request`; HEAD has no body."""
    for verb in (api.get, api.post, api.put, api.patch, api.delete):
        assert (await verb("/echo/a", into=dict))["method"] == verb.__name__.upper()
    assert (await api.head("/echo/a")).body == b""
    assert (await api.options("/echo/a")).status == 200
    assert (await api.request("patch", "/echo/a", into=dict))["method"] == "PATCH"


@pytest.mark.parametrize(
    ("given", "body"),
    [
        (Order(id=1, item="tea"), '{"id":1,"item":"tea"}'),
        (Line(2, frozenset(["a"])), '{"count":2,"tags":["a"]}'),
        ([Order(id=1, item="ä"), None], '[{"id":1,"item":"ä"},null]'),
        (None, "null"),
    ],
)
async def test_json_is_whatever_pydantic_writes(api: Client, given: object, body: str):
    """Models, dataclasses, and what is made of them; None is a value as well."""
    heard = await api.post("/echo/a", json=given, into=dict)
    assert (heard["body"], heard["type"]) == (body, "application/json")


async def test_other_bodies(api: Client):
    """Bytes go as they are, `data` is a form; a content type of one's own counts."""
    assert (await api.post("/echo/a", body=b"raw", into=dict))["body"] == "raw"
    form = await api.post("/echo/a", data={"a": "b c", "n": [1, 2], "none": None, "yes": True}, into=dict)
    assert (form["body"], form["type"]) == ("a=b+c&n=1&n=2&yes=true", "application/x-www-form-urlencoded")
    other = await api.post("/echo/a", json=1, headers={"Content-Type": "application/vnd.x+json"}, into=dict)
    assert other["type"] == "application/vnd.x+json"
    for wrong, hint in [
        ("content", "did you mean body="),
        ("jsn", "did you mean json="),
        ("bla", "it takes json, data"),
    ]:
        with pytest.raises(TypeError, match=f"a call has no {wrong}=; {hint}"):
            await api.post("/echo/a", **{wrong: b"x"})
    with pytest.raises(TypeError, match="json= and data= are both the body"):
        await api.post("/echo/a", json=1, data={})
    with pytest.raises(TypeError, match="body= takes bytes, or an async iterable of bytes, not str"):
        await api.post("/echo/a", body="text")  # type: ignore[call-overload]
    created = await api.post("/orders", json={"id": 3, "item": "rice"})
    assert (created.status, created.headers["location"]) == (201, "/orders/3")


@pytest.mark.parametrize(
    ("path", "params", "raw", "query"),
    [
        ("/echo/a b", {}, "/echo/a%20b", ""),
        ("/echo/a%2Fb", {}, "/echo/a%2Fb", ""),
        ("/echo/ä", {}, "/echo/%C3%A4", ""),
        ("/echo/", {}, "/echo/", ""),
        ("/echo/a?x=1&y=", {"z": 2}, "/echo/a", "x=1&y=&z=2"),
        ("/echo/a?q=é x", {}, "/echo/a", "q=%C3%A9%20x"),
        (
            "/echo/a",
            {"c": Colour.RED, "l": ["ä", None, 1.5], "n": None, "f": False},
            "/echo/a",
            "c=red&l=%C3%A4&l=1.5&f=false",
        ),
    ],
)
async def test_paths_and_queries(api: Client, path: str, params: dict[str, object], raw: str, query: str):
    """What a URL cannot have is encoded, what is encoded stays so."""
    heard = await api.get(path, params=params, into=dict)
    assert (heard["path"], heard["query"]) == (raw, query)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("orders", "does not begin with '/'"),
        ("http://api/orders", "without scheme and host"),
        ("", "does not begin with '/'"),
        ("/orders/{id}", r"has a '\{' in it: fill values in"),
        ("/orders/<id>", "has a '<' in it"),
        ("/orders#top", "has a '#' in it"),
        ("/orders/../admin", "has a '..' segment"),
        ("/orders/%zz", "two hexadecimal digits"),
        ("/orders/%ff", "not UTF-8"),
        ("/orders/\ud800", "it is not text"),
    ],
)
async def test_a_path_that_is_none_is_refused_before_anything_is_sent(api: Client, path: str, words: str):
    """The sentence says what is wrong, and how to write it."""
    with pytest.raises(ValueError, match=words):
        await api.get(path)


# ── errors ──


async def test_an_error_is_the_one_that_the_service_has_raised(api: Client):
    """Status, detail, reason and refused fields come over, and of the headers what tells the caller what to do."""
    with pytest.raises(HTTPError) as caught:
        await api.get("/orders/404", into=Order)
    error = caught.value
    assert (error.status, error.detail, error.reason) == (404, "no order 404", "no_order")
    assert error.headers == {"retry-after": "7"}
    assert error.__notes__ == ["this is the answer to GET /orders/404"]
    with pytest.raises(HTTPError) as caught:
        await api.post("/orders", json={"id": "x"})
    assert (caught.value.status, caught.value.reason) == (422, "invalid_input")
    assert {tuple(one["loc"])[-1] for one in caught.value.errors} == {"id", "item"}


async def test_an_error_that_is_no_problem_is_clear_too(api: Client):
    """What another framework says in `detail` is the detail; any other body is for the log only."""
    with pytest.raises(HTTPError) as caught:
        await api.get("/plain/500")
    assert (caught.value.status, caught.value.detail, str(caught.value)) == (500, "", "500 Internal Server Error")
    assert caught.value.__notes__[1] == "its body is text/plain; charset=utf-8: Traceback: boom"
    with pytest.raises(HTTPError) as caught:
        await api.get("/odd/409")
    assert (caught.value.detail, caught.value.reason, caught.value.errors) == ("no such thing", None, [])


async def test_errors_may_be_answers_like_any_other(api: Client):
    """With raise_for_status=False."""
    assert (await api.get("/plain/500", raise_for_status=False)).text == "Traceback: boom"
    with pytest.raises(TypeError, match="into= takes an answer that is no error"):
        await api.get("/plain/500", into=str, raise_for_status=False)


async def test_an_answer_that_does_not_fit(api: Client):
    """It is the other service's fault: a 502 whose cause says what does not fit."""
    with pytest.raises(BadReply, match="the answer to GET /orders/7 does not fit Line") as caught:
        await api.get("/orders/7", into=Line)
    assert isinstance(caught.value.__cause__, ValidationError)
    with pytest.raises(BadReply, match="is text/plain; charset=utf-8, and not JSON for Order"):
        await api.get("/plain/200", into=Order)
    with pytest.raises(BadReply, match="answered with 308, to /x"):
        await api.get("/plain/308", into=Order)
    with pytest.raises(BadReply, match="does not fit Order"):
        await api.delete("/orders/7", into=Order)


async def test_nobody_there(api: Client):
    """A path that nobody has is a 404 with a class of its own; one that a service refuses is its own 404."""
    with pytest.raises(NoService):
        await api.get("/nobody")
    with pytest.raises(HTTPError) as caught:
        await api.put("/orders")
    assert (caught.value.status, caught.value.reason) == (405, "method_not_allowed")
    assert "POST" in caught.value.headers["allow"]


async def test_the_service_that_is_meant_gets_the_call(shop: Shop):
    """Where two services have a path, the more specific one alone runs it."""
    bus = MemoryBus()
    wide = Service("all")
    others: list[str] = []

    @wide.route("/<path:rest>", methods=["GET", "POST"])
    async def other(rest: str) -> str:
        others.append(rest)
        return rest

    async with serve(shop.svc, bus=bus), serve(wide, bus=bus), Client(bus=bus) as api:
        assert await api.get("/orders/7", into=Order) == Order(id=7, item="tea")
        assert await api.get("/elsewhere", into=str) == "elsewhere"
    assert others == ["elsewhere"]
    await bus.close()


async def test_an_inbox_of_ones_own(shop: Shop, nats_url: str):
    """With permissions by inbox, both sides have one prefix, and streams go there too."""
    nats = Nats(urls=(nats_url,), inbox_prefix="_shop")
    options = {"reply_prefixes": ("_shop.",)}
    async with serve(shop.svc, nats=nats, **options), Client(nats=nats) as api:
        assert len(await api.get("/large", params={"size": 2_000_000}, into=bytes)) == 2_000_000
        assert await api.post("/count", body=bytes(2_000_000), into=int) == 2_000_000


async def test_too_much_at_once(api: Client, shop: Shop, monkeypatch: pytest.MonkeyPatch):
    """The sentence is about this process, and not about a gateway."""
    monkeypatch.setattr("natsweb.exchange.Exchange._check_pending", lambda _: throw(Overloaded("the gateway")))
    with pytest.raises(Overloaded, match="this process calls as much at once as it may"):
        await api.get("/orders/7")


def throw(error: Exception) -> None:
    """Raise an error."""
    raise error


# ── streams ──


async def test_an_answer_as_it_comes(api: Client, shop: Shop):
    """Pieces come while the handler still runs; leaving the block cancels it, in the other process."""
    async with asyncio.timeout(10):
        async with api.stream("GET", "/ticks") as answer:
            assert (answer.status, answer.headers["content-type"]) == (200, "text/plain")
            async for piece in answer:
                assert piece.startswith(b"tick 0\n")
                break
        await shop.cancelled.wait()


async def test_an_answer_that_nobody_reads_is_given_up(api: Client, shop: Shop):
    """Also when nothing of it has been read."""
    async with asyncio.timeout(10):
        async with api.stream("GET", "/ticks"):
            pass
        await shop.cancelled.wait()


async def test_lines_of_an_answer(api: Client):
    """Lines are whole whatever the pieces are."""
    async with api.stream("GET", "/lines") as answer:
        found = [line async for line in answer.lines()]
    assert [Order.model_validate_json(line).item for line in found[:2]] == ["tea", "milk"]
    assert found[2:] == ["ä"]
    async with api.stream("GET", "/orders/7") as answer:
        assert [line async for line in answer.lines()] == ['{"id":7,"item":"tea"}']
    async with api.stream("DELETE", "/orders/7") as answer:
        assert (answer.status, await answer.read()) == (204, b"")


async def test_errors_of_a_stream(api: Client):
    """An error is raised before there is a stream, unless it is wanted as an answer."""
    with pytest.raises(HTTPError, match="no order"):
        async with api.stream("GET", "/orders/404"):
            pass
    async with api.stream("GET", "/plain/500", raise_for_status=False) as answer:
        assert await answer.read() == b"Traceback: boom"


async def test_large_bodies_both_ways(api: Client):
    """More than fits into a NATS message, known or not, whole or in pieces."""
    size = 3 * 1024 * 1024

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3 * 16):
            yield bytes(64 * 1024)

    assert len(await api.get("/large", params={"size": size}, into=bytes)) == size
    assert await api.post("/count", body=bytes(size), into=int) == size
    assert await api.post("/count", body=pieces(), into=int) == size
    assert await api.post("/count", body=pieces(), headers={"content-length": str(size)}, into=int) == size
    with pytest.raises(HTTPError) as caught:
        await api.post("/echo/a", body=bytes(size))
    assert caught.value.status == 413


async def test_both_ways_at_once(api: Client):
    """A body is still being sent while its answer comes."""
    turn = asyncio.Queue[bytes]()

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await turn.get():
            yield piece

    async with asyncio.timeout(10):
        turn.put_nowait(b"one")
        async with api.stream("POST", "/mirror", body=pieces()) as answer:
            heard = aiter(answer)
            assert await anext(heard) == b"ONE"
            turn.put_nowait(b"two")
            assert await anext(heard) == b"TWO"
            turn.put_nowait(b"")
            with pytest.raises(StopAsyncIteration):
                await anext(heard)


async def test_a_body_that_fails_ends_the_request(api: Client, shop: Shop):
    """What iterating over the body raises comes out of the call, before and while it is sent."""

    async def at_once() -> AsyncIterator[bytes]:
        raise LookupError("at once")
        yield b""

    async def later() -> AsyncIterator[bytes]:
        yield b"something"
        await shop.began.wait()
        raise LookupError("later")

    async def no_bytes() -> AsyncIterator[bytes]:
        yield "text"  # type: ignore[misc]

    async with asyncio.timeout(10):
        with pytest.raises(LookupError, match="at once"):
            await api.post("/count", body=at_once())
        with pytest.raises(LookupError, match="later"):
            await api.post("/count", body=later())
        with pytest.raises(TypeError, match="gives bytes, not str"):
            await api.post("/count", body=no_bytes())


async def test_a_body_is_closed_when_it_is_not_wanted(api: Client):
    """An answer may come before the body has been read: its generator is closed."""
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(64 * 1024)
        finally:
            closed.set()

    with pytest.raises(HTTPError):
        await api.post("/orders/404", body=endless())
    assert closed.is_set()


async def test_an_answer_that_is_too_large_to_be_read_whole(api: Client, monkeypatch: pytest.MonkeyPatch):
    """It is refused, with the way to read it."""
    monkeypatch.setattr("natsweb.client._MAX_ANSWER", 1024 * 1024)
    with pytest.raises(BadReply, match=r"has more than 1048576 bytes; read it with stream"):
        await api.get("/large", params={"size": 2 * 1024 * 1024})


# ── time ──


async def test_cancelling_a_call_cancels_the_handler(api: Client, shop: Shop):
    """In the other process, at its next await."""
    async with asyncio.timeout(10):
        call = asyncio.create_task(api.get("/hang"))
        await shop.began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await shop.cancelled.wait()


async def test_the_time_of_a_call(api: Client, shop: Shop):
    """When it is up the handler is cancelled; a stream that is read whole has to be whole by then."""
    async with asyncio.timeout(10):
        with pytest.raises(HTTPError) as caught:
            await api.get("/hang", timeout=0.1)
        assert (caught.value.status, caught.value.reason) == (504, "timeout")
        await shop.cancelled.wait()
        shop.cancelled.clear()
        with pytest.raises(ValueError, match="timeout=0 is no time: give seconds"):
            await api.get("/orders/7", timeout=0)
        with pytest.raises(TimeUp, match=r"the answer to GET /ticks was not whole within 0\.2 s"):
            await api.get("/ticks", timeout=0.2)
        await shop.cancelled.wait()


async def test_the_handler_of_another_process_is_cancelled(nats_url: str):
    """Whoever leaves a call, or the answer to one, is noticed there."""
    code = """
import asyncio, sys
from natsweb import Service, StreamingResponse, serve

svc = Service("far")

@svc.get("/hang")
async def hang() -> None:
    print("began", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print("cancelled", flush=True)

@svc.get("/ticks")
async def ticks() -> StreamingResponse:
    async def body():
        try:
            while True:
                yield b"tick"
                await asyncio.sleep(0.001)
        finally:
            print("closed", flush=True)
    return StreamingResponse(body())

async def main():
    async with serve(svc, nats=sys.argv[1], root="api.far"):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, nats_url), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"ready\n"
        async with Client("api.far", nats_url) as api:
            call = asyncio.create_task(api.get("/hang"))
            assert await process.stdout.readline() == b"began\n"
            call.cancel()
            assert await process.stdout.readline() == b"cancelled\n"
            async with api.stream("GET", "/ticks") as answer:
                assert await anext(aiter(answer)) == b"tick"
            assert await process.stdout.readline() == b"closed\n"
        process.stdin.close()
        assert await process.wait() == 0


# ── life ──


async def test_a_client_has_to_be_started(nats_url: str):
    """Its states show; calls after its end are refused, those under way end."""
    client = Client("api.staging", Nats(urls=(nats_url,)))
    assert (repr(client), client.root) == ("<Client below api.staging: not started>", "api.staging")
    with pytest.raises(StartError, match="used before its start"):
        await client.get("/")
    async with client:
        await client.start()
        assert repr(client) == "<Client below api.staging: ready>"
        assert client.bus.is_connected
    with pytest.raises(StartError, match="async with Client"):
        await client.get("/")


async def test_stopping_ends_calls_under_way(shop: Shop, nats_url: str):
    """They hear that this process stops."""
    async with serve(shop.svc, nats=nats_url):
        client = Client(nats=nats_url)
        await client.start()
        call = asyncio.create_task(client.get("/hang"))
        await shop.began.wait()
        await client.stop()
        with pytest.raises(Stopping, match="the client was stopped"):
            await call


async def test_what_cannot_be_a_connection(nats_url: str):
    """Nobody there, nothing that is a connection, and a client of nats-py's that is none yet."""
    with pytest.raises(NatsUnreachable):
        await Client(nats="nats://127.0.0.1:1").start()
    with pytest.raises(SettingsError, match="42 cannot be used as nats="):
        await Client(nats=42).start()
    with pytest.raises(SettingsError, match="a NATS client that is not connected"):
        await Client(nats=nats_py.NATS()).start()
    with pytest.raises(SettingsError, match="cannot be a root"):
        Client("$SYS")


async def test_a_connection_of_nats_py_is_watched(shop: Shop, nats_url: str):
    """When its owner closes it, calls fail at once, and those under way end."""
    nc = await nats_py.connect(nats_url)
    async with asyncio.timeout(10), serve(shop.svc, nats=nats_url), Client(nats=nc) as api:
        call = asyncio.create_task(api.get("/hang", timeout=60))
        await shop.began.wait()
        await nc.close()
        with pytest.raises(NatsDown, match="there is no connection to NATS"):
            await api.get("/orders/7")
        with pytest.raises(Disconnected):
            await call


async def test_a_connection_of_nats_py_comes_back(shop: Shop, until):
    """Its owner's client connects again, and calls go on."""
    async with asyncio.timeout(30), contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(contextlib.AsyncExitStack())
        url = await first.enter_async_context(embedded_server())
        nc = await nats_py.connect(url, reconnect_time_wait=0.05, error_cb=ignore)  # type: ignore[arg-type]
        stack.push_async_callback(nc.close)
        await stack.enter_async_context(serve(shop.svc, nats=url))
        api = await stack.enter_async_context(Client(nats=nc))
        call = asyncio.create_task(api.get("/hang", timeout=60))
        await shop.began.wait()
        await first.aclose()
        with pytest.raises(Disconnected):
            await call
        with pytest.raises(NatsDown):
            await api.get("/orders/7")
        await stack.enter_async_context(embedded_server(port=urlsplit(url).port))
        await until(lambda: api.bus.is_connected)
        assert await api.get("/orders/7", into=Order) == Order(id=7, item="tea")


async def ignore(error: Exception) -> None:
    """Do nothing about an error."""


async def test_a_user_that_may_not_look_around(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Without a catalogue it asks whoever listens, as a gateway does."""
    config = tmp_path / "nats.conf"
    config.write_text(
        """
        authorization: {users: [
            {user: service, password: p},
            {user: client, password: p, permissions: {publish: ["api.>", "_INBOX.>"], subscribe: ["_INBOX.>"]}}
        ]}
        """
    )
    async with embedded_server(arguments=("-c", str(config))) as url:
        service, client = [Nats(urls=(url,), user=name, password="p") for name in ("service", "client")]
        async with serve(shop.svc, nats=service), Client(nats=client) as api:
            assert "there is no catalogue of services" in caplog.text
            assert await api.get("/orders/7", into=Order) == Order(id=7, item="tea")


# ── within handlers ──


class Chain:
    """A service whose handlers call the shop."""

    def __init__(self) -> None:
        self.svc = Service("front")
        svc = self.svc

        @svc.get("/through/<id>")
        async def through(id: int, api: Client) -> Order:
            return await api.get(f"/orders/{id}", into=Order)

        @svc.get("/wait")
        async def wait(api: Client) -> Response:
            return await api.get("/hang", timeout=60)

        @svc.get("/tell")
        async def tell(api: Client) -> object:
            return await api.get("/echo/x", into=dict)


async def test_a_handler_calls_another_service(shop: Shop, nats_url: str):
    """On its service's own connection and below its root; errors pass through."""
    chain = Chain()
    async with (
        serve(shop.svc, nats=nats_url, root="api.here"),
        serve(chain.svc, nats=nats_url, root="api.here"),
        Client("api.here", nats_url) as api,
    ):
        assert await api.get("/through/7", into=Order) == Order(id=7, item="tea")
        with pytest.raises(HTTPError) as caught:
            await api.get("/through/404")
        assert (caught.value.status, caught.value.reason) == (404, "no_order")


async def test_a_handler_calls_another_service_in_memory(shop: Shop):
    """The same without a server; the service can be served anew after that."""
    chain = Chain()
    for _ in range(2):
        bus = MemoryBus()
        async with serve(shop.svc, bus=bus), serve(chain.svc, bus=bus), Client(bus=bus) as api:
            assert await api.get("/through/7", into=Order) == Order(id=7, item="tea")
        await bus.close()


async def test_cancellation_goes_through_all_services(shop: Shop):
    """Who leaves the first call has the last handler cancelled."""
    bus = MemoryBus()
    async with asyncio.timeout(10), serve(shop.svc, bus=bus), serve(Chain().svc, bus=bus), Client(bus=bus) as api:
        call = asyncio.create_task(api.get("/wait"))
        await shop.began.wait()
        call.cancel()
        await shop.cancelled.wait()
    await bus.close()


async def test_a_call_within_a_handler_has_its_time_and_its_ids(shop: Shop):
    """The time that is left, whatever the call says, and the fields that tie the log lines of both together."""
    bus = MemoryBus()
    ids = {"x-request-id": "r-1", "traceparent": "00-1", "tracestate": "a=b", "baggage": "k=v"}
    async with asyncio.timeout(10), serve(shop.svc, bus=bus), serve(Chain().svc, bus=bus), Client(bus=bus) as api:
        await api.get("/tell", timeout=3, headers={**ids, "x-other": "stays here"})
        [heard] = shop.seen
        assert {name: heard.headers.get(name) for name in ids} == ids
        assert "x-other" not in heard.headers
        assert heard.timeout is not None
        assert heard.timeout <= 3
        with pytest.raises(HTTPError) as caught:
            await api.get("/wait", timeout=0.2)
        assert caught.value.status == 504
        await shop.cancelled.wait()
    await bus.close()


async def test_a_client_of_ones_own_has_the_time_of_a_plain_handler(shop: Shop):
    """Also in a handler that takes neither a Client nor a request, in tasks that it starts, but not after its end."""
    bus = MemoryBus()
    svc = Service("plain")
    own = Client(bus=bus)
    later = asyncio.Event()
    left: list[asyncio.Task[object]] = []

    @svc.get("/tell/<id>")
    async def tell(id: int) -> object:
        [heard] = await asyncio.gather(own.get("/echo/x", headers={"x-request-id": "mine"}, into=dict))

        async def afterwards() -> object:
            await later.wait()
            return await own.get("/echo/y", timeout=30, into=dict)

        left.append(asyncio.create_task(afterwards()))
        return heard

    async with asyncio.timeout(10), serve(shop.svc, bus=bus), serve(svc, bus=bus), own, Client(bus=bus) as api:
        await api.get("/tell/1", timeout=2, headers={"x-request-id": "theirs", "traceparent": "00-2"})
        later.set()
        await left[0]
        first, second = shop.seen
        assert (first.headers.getlist("x-request-id"), first.headers["traceparent"]) == (["mine"], "00-2")
        assert first.timeout is not None
        assert first.timeout <= 2
        assert second.timeout is not None
        assert second.timeout > 20
    await bus.close()


async def test_requests_share_a_task_beside_a_client():
    """What is noted of a request is gone with it, so that a task which has not waited takes the next one."""
    svc = Service("plain")
    tasks: set[object] = set()

    @svc.get("/<id>")
    async def show(id: int) -> int:
        tasks.add(asyncio.current_task())
        return id

    bus = MemoryBus()
    async with serve(svc, bus=bus), Client(bus=bus) as api:
        assert await asyncio.gather(*[api.get(f"/{n}", into=int) for n in range(10)]) == list(range(10))
    assert len(tasks) == 1
    await bus.close()


async def test_a_handler_of_events_calls_with_its_own_time(shop: Shop):
    """What is handled may be an event: its time bounds calls as well."""
    bus = MemoryBus()
    svc = Service("audit")
    heard = asyncio.Event()

    @svc.on("orders.<id>.paid", timeout=3)
    async def audit(id: int, api: Client) -> None:
        await api.get("/echo/x", timeout=60)
        heard.set()

    async with asyncio.timeout(10), serve(shop.svc, bus=bus), serve(svc, bus=bus):
        bus.publish("orders.7.paid", b"")
        await heard.wait()
    assert shop.seen[0].timeout is not None
    assert shop.seen[0].timeout <= 3
    await bus.close()


async def test_a_service_over_plain_http_calls_with_its_own_client(shop: Shop, nats_url: str):
    """It has no NATS of its own; a client that it makes has the time of its requests, and their ids."""
    svc = Service("plain")

    @svc.lifespan
    async def life() -> AsyncIterator[Client]:
        async with Client(nats=nats_url) as api:
            yield api

    @svc.get("/tell")
    async def tell() -> object:
        api: Client = svc.state
        return await api.get("/echo/x", timeout=60, into=dict)

    transport = httpx2.ASGITransport(svc)
    async with serve(shop.svc, nats=nats_url), svc, httpx2.AsyncClient(transport=transport) as client:
        assert (await client.get("http://test/tell", headers={"x-request-id": "r-1"})).json()["path"] == "/echo/x"
    [heard] = shop.seen
    assert heard.headers["x-request-id"] == "r-1"
    assert heard.timeout is not None
    assert heard.timeout <= 10


async def test_middleware_has_the_last_word_on_ids(shop: Shop):
    """An id that middleware gives a request goes on with it."""
    bus = MemoryBus()
    chain = Chain()

    @chain.svc.middleware
    async def named(request: Request, call_next: object) -> Response:
        headers = request.headers.without("x-request-id") + {"x-request-id": "given"}
        return await call_next(request.model_copy(update={"headers": headers}))  # type: ignore[operator,no-any-return]

    async with serve(shop.svc, bus=bus), serve(chain.svc, bus=bus), Client(bus=bus) as api:
        await api.get("/tell")
        assert shop.seen[0].headers["x-request-id"] == "given"
    await bus.close()


async def test_a_client_of_another_root_as_a_dependency(shop: Shop):
    """It is made of the service's own, and lives as long as the service."""
    bus = MemoryBus()
    svc = Service("front")

    async def billing(api: Client) -> AsyncIterator[Client]:
        async with Client("billing", bus=api.bus) as client:
            yield client

    @svc.get("/through")
    async def through(api: Annotated[Client, Depends(billing, scope="app")]) -> Order:
        return await api.get("/orders/7", into=Order)

    async with serve(shop.svc, bus=bus, root="billing"), serve(svc, bus=bus), Client(bus=bus) as api:
        assert await api.get("/through", into=Order) == Order(id=7, item="tea")
    await bus.close()


async def test_a_mounted_service_calls_others_too(shop: Shop):
    """It has the connection of the one that it is mounted in."""
    bus = MemoryBus()
    svc = Service("all")
    svc.mount("/below", Chain().svc)
    async with serve(shop.svc, bus=bus), serve(svc, bus=bus), Client(bus=bus) as api:
        assert await api.get("/below/through/7", into=Order) == Order(id=7, item="tea")
    await bus.close()


async def test_without_nats_a_handler_says_what_is_missing(caplog: pytest.LogCaptureFixture):
    """The service says so when it starts; only the handler that calls fails, and the log says how to mend it."""
    chain = Chain()
    with caplog.at_level(logging.WARNING):
        async with chain.svc:
            assert "handlers of front take a Client, and nothing connects it to NATS here" in caplog.text
            response = await chain.svc.handle(Request(raw_path="/tell"))
    assert response.status == 500
    assert "a handler of front calls another service, and nothing connects front to NATS here" in caplog.text
    assert "natsweb run" in caplog.text


def test_a_client_is_not_made_of_a_request():
    """`Depends()` on the class itself would take its root from the query."""
    svc = Service("front")
    with pytest.raises(DeclarationError, match="a Client is handed over by the service"):

        @svc.get("/")
        async def show(api: Annotated[Client, Depends()]) -> None: ...


async def test_too_large_for_a_service_that_takes_no_streams(nats_url: str):
    """A plain NATS service gets one message, or none."""
    nc = await nats_py.connect(nats_url)

    async def answer(message: Msg) -> None:
        await message.respond(b"heard")

    await nc.subscribe("plain.x", cb=answer)
    async with Client("plain", nc) as api:
        assert await api.post("/x", body=b"small", into=str) == "heard"
        with pytest.raises(TooLarge):
            await api.post("/x", body=bytes(2 * 1024 * 1024))
    await nc.close()


async def test_a_lifespan_connects_what_handlers_take(nats_url, caplog):
    """Without a worker, under uvicorn, a lifespan may attach a connection: a client and a publisher use it."""
    near, far = Service("near", root="attached"), Service("far", root="attached")

    @far.get("/far/<id>")
    async def answer(id: int) -> int:
        return id + 1

    @near.lifespan
    async def connect(service: Service) -> AsyncIterator[None]:
        async with Client("attached", nats=nats_url) as api:
            service.attach(api.bus)
            yield

    @near.get("/near/<id>")
    async def ask(id: int, api: Client, events: Publisher) -> int:
        await events.publish("near.asked", id)
        return await api.get(f"/far/{id}", into=int)

    async with serve(far, nats=nats_url), near:
        assert (await near.handle(Request(raw_path="/near/1"))).parse_json() == 2
    assert "nothing connects" not in caplog.text
