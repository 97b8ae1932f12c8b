"""`NatsTransport`: httpx2 clients, and plain httpx's, over NATS without a gateway."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import httpx
import httpx2
import pytest
from pydantic import BaseModel

from natsweb import NatsTransport, Request, Response, Service, StreamingResponse, serve
from natsweb.bus import MemoryBus


class Order(BaseModel):
    """What is ordered."""

    id: int


class Shop:
    """A service, and what its handlers have heard."""

    def __init__(self) -> None:
        self.svc = Service("shop")
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.seen: list[Request] = []
        svc = self.svc

        @svc.route("/echo/<path:rest>", methods=["GET", "POST", "HEAD", "DELETE"])
        async def echo(request: Request, rest: str) -> Response:
            self.seen.append(request)
            headers = [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-query", request.query)]
            return Response(body=request.body, headers=headers)

        @svc.get("/none")
        async def none() -> None: ...

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
        async def ticks(pause: float = 0.001) -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield b"tick\n"
                        await asyncio.sleep(pause)
                finally:
                    self.cancelled.set()

            return StreamingResponse(body(), media_type="text/plain")

        @svc.get("/torn")
        async def torn() -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                yield b"some"
                raise LookupError("torn")

            return StreamingResponse(body())

        @svc.post("/mirror", stream=True)
        async def mirror(body: AsyncIterator[bytes]) -> StreamingResponse:
            async def back() -> AsyncIterator[bytes]:
                async for piece in body:
                    yield piece.upper()

            return StreamingResponse(back())

        @svc.post("/count", stream=True)
        async def count(body: AsyncIterator[bytes]) -> int:
            return sum([len(piece) async for piece in body])


@pytest.fixture
async def shop(nats_url: str) -> AsyncIterator[Shop]:
    """Give a service that is served."""
    shop = Shop()
    async with serve(shop.svc, nats=nats_url):
        yield shop


@pytest.fixture(params=["httpx2", "httpx"])
async def client(request: pytest.FixtureRequest, shop: Shop, nats_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client of either library."""
    library = sys.modules[request.param]
    transport = NatsTransport("api", nats_url)
    assert repr(transport) == "<NatsTransport below api>"
    async with library.AsyncClient(transport=transport, base_url="http://api", timeout=10) as client:
        yield client


def library_of(client: httpx2.AsyncClient):
    """Return the module that a client comes from."""
    return httpx2 if isinstance(client, httpx2.AsyncClient) else httpx


async def test_requests_and_answers(client: httpx2.AsyncClient, shop: Shop):
    """Path, query, headers and body go and come as over HTTP."""
    response = await client.post("/echo/a%2Fb c", params={"q": "ä"}, content=b"body", headers={"x-a": "b"})
    assert (response.status_code, response.content) == (200, b"body")
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert (response.headers["content-length"], response.headers["x-query"]) == ("4", "q=%C3%A4")
    assert dict(client.cookies) == {"a": "1", "b": "2"}
    [heard] = shop.seen
    assert (heard.raw_path, heard.headers["x-a"], heard.headers["host"]) == ("/echo/a%2Fb%20c", "b", "api")
    assert (await client.post("/echo/x", json={"a": 1})).json() == {"a": 1}
    assert (await client.post("/echo/x", files={"f": b"file"})).status_code == 200
    assert (await client.head("/echo/x")).content == b""
    none = await client.get("/none")
    assert (none.status_code, none.content, "content-length" in none.headers) == (204, b"", False)


async def test_what_a_gateway_would_answer_is_an_answer(client: httpx2.AsyncClient):
    """Nobody there, a path that cannot be, a method that does not cross, a body too large: problems, not exceptions."""
    found = await client.get("/nobody")
    assert (found.status_code, found.json()["reason"]) == (404, "no_service")
    assert (await client.get("/a%zz")).status_code in (400, 404)
    assert (await client.request("TRACE", "/echo/x")).status_code == 405
    assert (await client.delete("/count")).status_code == 405
    with pytest.raises(library_of(client).HTTPStatusError):
        (await client.get("/nobody")).raise_for_status()


async def test_streams_are_not_buffered(client: httpx2.AsyncClient, shop: Shop):
    """An endless answer comes piece by piece; leaving it cancels the handler."""
    async with asyncio.timeout(10):
        async with client.stream("GET", "/ticks") as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                assert line == "tick"
                break
        await shop.cancelled.wait()


async def test_both_ways_at_once(client: httpx2.AsyncClient):
    """A body is still being sent while its answer comes."""
    turn = asyncio.Queue[bytes]()

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await turn.get():
            yield piece

    async with asyncio.timeout(10):
        turn.put_nowait(b"one")
        async with client.stream("POST", "/mirror", content=pieces()) as response:
            heard = response.aiter_raw()
            assert await anext(heard) == b"ONE"
            turn.put_nowait(b"two")
            assert await anext(heard) == b"TWO"
            turn.put_nowait(b"")
            assert [piece async for piece in heard] == []


async def test_large_bodies(client: httpx2.AsyncClient):
    """Of known length and not, more than fits into a message."""
    size = 3 * 1024 * 1024

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3 * 16):
            yield bytes(64 * 1024)

    assert (await client.post("/count", content=bytes(size))).json() == size
    assert (await client.post("/count", content=pieces())).json() == size
    assert (await client.post("/echo/x", content=bytes(size))).content == bytes(size)


async def test_timeouts_are_deadlines(client: httpx2.AsyncClient, shop: Shop):
    """The read timeout is the time of the answer, whoever notices first, and of each piece of it."""
    library = library_of(client)
    async with asyncio.timeout(10):
        await client.get("/none")  # which connects, and has a time of its own
        for _ in range(5):
            shop.cancelled.clear()
            with pytest.raises(library.ReadTimeout):
                await client.get("/hang", timeout=0.05)
            await shop.cancelled.wait()
        shop.cancelled.clear()
        with pytest.raises(library.ReadTimeout, match="the answer has stopped"):
            await client.get("/ticks", params={"pause": 60}, timeout=0.2)
        await shop.cancelled.wait()


async def test_an_answer_that_is_cut_off(client: httpx2.AsyncClient):
    """It is no whole answer, and says so."""
    with pytest.raises(library_of(client).RemoteProtocolError, match="cut off"):
        await client.get("/torn")


async def test_no_connection():
    """httpx2's own exceptions, with ours as the cause."""
    async with httpx2.AsyncClient(transport=NatsTransport("api", "nats://127.0.0.1:1")) as client:
        with pytest.raises(httpx2.ConnectError, match=r"no NATS server at nats://127\.0\.0\.1:1"):
            await client.get("http://api/x")

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    never = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{never.sockets[0].getsockname()[1]}"
    async with httpx2.AsyncClient(transport=NatsTransport("api", url), timeout=0.1) as client:
        with pytest.raises(httpx2.ConnectError, match=r"no connection to NATS within 0\.1 s"):
            await client.get("http://api/x")
    never.close()
    bus = MemoryBus()
    async with httpx2.AsyncClient(transport=NatsTransport("api", bus=bus)) as client:
        assert (await client.get("http://api/x")).status_code == 404
        await bus.close()
        with pytest.raises(httpx2.ConnectError, match="there is no connection to NATS"):
            await client.get("http://api/x")


async def test_closing_ends_what_is_under_way(shop: Shop, nats_url: str):
    """A client that is closed leaves nothing behind."""
    client = httpx2.AsyncClient(transport=NatsTransport("api", nats_url), base_url="http://api")
    async with asyncio.timeout(10):
        call = asyncio.create_task(client.get("/hang"))
        await shop.began.wait()
        await client.aclose()
        with pytest.raises(httpx2.ReadError):
            await call
        await shop.cancelled.wait()


def test_without_httpx2_it_says_what_to_install():
    """And nothing else of natsweb needs httpx2: it is not even imported."""
    code = """
import sys
import natsweb, natsweb.client, natsweb.cli
assert "httpx2" not in sys.modules and "httpx" not in sys.modules
sys.modules["httpx2"] = None
try:
    natsweb.NatsTransport
except natsweb.errors.StartError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert 'pip install "natsweb[httpx]"' in run.stdout
