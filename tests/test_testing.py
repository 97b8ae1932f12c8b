"""`TestClient` and its plain twin: in memory and over a real server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import httpx2
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette

from natsweb import (
    Auth,
    Background,
    Bearer,
    Client,
    Depends,
    HTTPError,
    Publisher,
    Request,
    Response,
    Service,
    StreamingResponse,
    WebSocket,
    WebSocketClosed,
)
from natsweb.errors import DeclarationError, SettingsError, StartError
from natsweb.testing import SyncTestClient, TestClient


class Order(BaseModel):
    """What is ordered."""

    id: int
    item: str = "tea"


def get_prices() -> dict[int, int]:
    """Stand for a database."""
    raise RuntimeError("no database in tests")


async def verify(token: str) -> str:
    """Return who has a token."""
    return token


BEARER = Bearer(verify)


class Shop:
    """A service, and what its handlers have heard and done."""

    def __init__(self) -> None:
        self.svc = Service("shop")
        self.did: list[str] = []
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        svc = self.svc

        @svc.lifespan
        async def life() -> AsyncIterator[None]:
            self.did.append("started")
            yield
            self.did.append("stopped")

        @svc.get("/orders/<id>")
        async def show(id: int) -> Order:
            if id == 404:
                raise HTTPError(404, "no such order")
            return Order(id=id)

        @svc.post("/orders")
        async def create(order: Order, request: Request) -> Response:
            self.did.append(f"{request.client} {request.headers['host']}")
            return Response(status=201, body=order.model_dump_json())

        @svc.get("/price/<id>")
        def price(id: int, prices: Annotated[dict[int, int], Depends(get_prices)]) -> int:
            return prices[id]

        @svc.get("/me")
        async def me(who: Annotated[str, Auth(BEARER)]) -> str:
            return who

        @svc.get("/fail")
        async def fail() -> None:
            raise LookupError("a bug")

        @svc.get("/torn")
        async def torn() -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                yield b"some"
                raise LookupError("torn")

            return StreamingResponse(body())

        @svc.get("/ticks")
        async def ticks() -> StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield b"tick\n"
                        await asyncio.sleep(0.001)
                finally:
                    self.cancelled.set()

            return StreamingResponse(body())

        @svc.post("/mirror", stream=True)
        async def mirror(body: AsyncIterator[bytes]) -> StreamingResponse:
            async def back() -> AsyncIterator[bytes]:
                async for piece in body:
                    yield piece.upper()

            return StreamingResponse(back())

        @svc.get("/slow")
        async def slow() -> None:
            await asyncio.sleep(60)

        @svc.websocket("/chat/<room>")
        async def chat(room: str, ws: WebSocket, name: str = "nobody") -> None:
            if room == "closed":
                raise HTTPError(403, "this room is closed")
            await ws.accept("v1" if "v1" in ws.subprotocols else None)
            async for message in ws:
                if message == "bye":
                    await ws.close(4000, "bye")
                await ws.send(f"{name}@{room}: {message}" if isinstance(message, str) else message)
            self.cancelled.set()


@pytest.fixture
def shop() -> Shop:
    """Give a service."""
    return Shop()


@pytest.fixture(params=["memory", "nats"])
def nats(request: pytest.FixtureRequest, nats_url: str) -> str | None:
    """Give the URL of a server, and None."""
    return nats_url if request.param == "nats" else None


@pytest.fixture
async def api(shop: Shop, nats: str | None) -> AsyncIterator[TestClient]:
    """Give a client of the shop."""
    async with TestClient(shop.svc, nats=nats) as client:
        yield client


# ── asynchronous ──


async def test_a_request_goes_all_the_way(api: TestClient, shop: Shop):
    """Through router, binding and validation, with the lifespan run; errors are answers."""
    assert repr(api) == "<TestClient of shop>"
    assert (await api.get("/orders/7")).json() == {"id": 7, "item": "tea"}
    response = await api.post("/orders", json={"id": 1, "item": "milk"})
    assert (response.status_code, response.json()) == (201, {"id": 1, "item": "milk"})
    assert shop.did == ["started", "127.0.0.1:50000 test"]
    for path, status in {"/orders/404": 404, "/orders/x": 422, "/nothing": 404}.items():
        assert (await api.get(path)).status_code == status
    assert (await api.put("/orders/7")).status_code == 405


async def test_the_lifespan_ends_with_the_block(shop: Shop, nats: str | None):
    """A service may be tested several times, one after the other."""
    for _ in range(2):
        async with TestClient(shop.svc, nats=nats) as api:
            assert (await api.get("/orders/7")).status_code == 200
    assert shop.did == ["started", "stopped"] * 2


async def test_a_handler_that_fails(shop: Shop, nats: str | None):
    """A 500 as in production; or what it has raised."""
    async with TestClient(shop.svc, nats=nats) as api:
        assert (await api.get("/fail")).json()["reason"] == "handler_failed"
        assert [str(one) for one in api.failures] == ["a bug"]
        with pytest.raises(httpx2.RemoteProtocolError):
            await api.get("/torn")
    async with TestClient(shop.svc, nats=nats, raise_server_exceptions=True) as api:
        with pytest.raises(LookupError, match="a bug"):
            await api.get("/fail")
        with pytest.raises(LookupError, match="torn"):
            await api.get("/torn")
        assert (await api.get("/orders/404")).status_code == 404


async def test_streams_are_not_buffered(api: TestClient, shop: Shop):
    """In both directions; leaving an answer cancels the handler."""
    turn = asyncio.Queue[bytes]()

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await turn.get():
            yield piece

    async with asyncio.timeout(10):
        async with api.stream("GET", "/ticks") as response:
            async for line in response.aiter_lines():
                assert line == "tick"
                break
        await shop.cancelled.wait()
        turn.put_nowait(b"one")
        async with api.stream("POST", "/mirror", content=pieces()) as response:
            heard = response.aiter_raw()
            assert await anext(heard) == b"ONE"
            turn.put_nowait(b"two")
            assert await anext(heard) == b"TWO"
            turn.put_nowait(b"")
            assert [piece async for piece in heard] == []
    body = bytes(3 * 1024 * 1024)
    assert (await api.post("/mirror", content=body)).content == body


async def test_time_is_up(api: TestClient):
    """It is a 504, as at a gateway."""
    response = await api.get("/slow", timeout=0.05)
    assert (response.status_code, response.json()["reason"]) == (504, "timeout")


async def test_overrides(shop: Shop, nats: str | None):
    """Dependencies and security schemes have their stand-ins inside of the block only."""
    overrides = {get_prices: lambda: {7: 3}, BEARER: lambda: "tester"}
    async with TestClient(shop.svc, nats=nats, overrides=overrides) as api:
        assert (await api.get("/price/7")).json() == 3
        assert (await api.get("/me")).text == "tester"
    async with TestClient(shop.svc, nats=nats) as api:
        assert (await api.get("/price/7")).status_code == 500
        assert (await api.get("/me")).status_code == 401
    with pytest.raises(DeclarationError, match="no route depends on"):
        async with TestClient(shop.svc, overrides={Shop: Shop}):
            pass


async def test_several_services(shop: Shop, nats: str | None):
    """They see each other, and an override goes to those that have the dependency."""
    front = Service("front")

    @front.get("/through/<id>")
    async def through(id: int, api: Client) -> Order:
        return await api.get(f"/orders/{id}", into=Order)

    overrides = {get_prices: lambda: {7: 3}}
    async with TestClient(front, shop.svc, nats=nats, root="api.tests", overrides=overrides) as api:
        assert (await api.get("/through/7")).json()["id"] == 7
        assert (await api.get("/through/404")).json()["detail"] == "no such order"
        assert (await api.get("/price/7")).json() == 3


async def test_an_application_in_a_service():
    """What is mounted is tested with it; anything that is no service is refused, with the way to do it."""
    svc = Service("app")
    svc.mount("/", Starlette())
    async with TestClient(svc) as api:
        assert (await api.get("/x")).text == "Not Found"
    with pytest.raises(SettingsError, match="a test client takes services"):
        TestClient(Starlette())  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="not nothing"):
        TestClient()


async def test_it_has_to_be_started(shop: Shop):
    """Before and after its block there is nothing to ask."""
    client = TestClient(shop.svc)
    with pytest.raises(StartError, match=r"async with TestClient\(svc\) as api"):
        await client.get("/orders/7")


async def test_a_start_that_fails():
    """It raises what has failed, and leaves nothing behind."""
    svc = Service("bad")

    @svc.lifespan
    async def life() -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    with pytest.raises(StartError, match="no database"):
        async with TestClient(svc):
            pass
    with pytest.raises(StartError, match="no database"), SyncTestClient(svc):
        pass


async def test_websockets(api: TestClient, shop: Shop):
    """Messages both ways, goodbyes of both sides, subprotocols, and a refusal."""
    async with asyncio.timeout(10):
        async with api.websocket("/chat/tea", params={"name": "ann"}, subprotocols=["v1", "v2"]) as ws:
            assert ws.subprotocols == ["v1"]
            await ws.send("hello")
            assert await ws.receive() == "ann@tea: hello"
            await ws.send(b"\x00")
            assert await ws.receive() == b"\x00"
            await ws.send({"a": 1})
            assert await ws.receive() == 'ann@tea: {"a":1}'
        await shop.cancelled.wait()
        async with api.websocket("/chat/tea") as ws:
            await ws.send("bye")
            with pytest.raises(WebSocketClosed, match="4000 bye"):
                await ws.receive()
        shop.cancelled.clear()
        with pytest.raises(ZeroDivisionError):
            async with api.websocket("/chat/tea") as ws:
                await ws.send(str(1 // 0))
        with pytest.raises(HTTPError, match="this room is closed"):
            async with api.websocket("/chat/closed"):
                pass
        with pytest.raises(HTTPError, match="404"):
            async with api.websocket("/nothing"):
                pass


async def test_a_websocket_has_the_headers_of_its_client():
    """So that who is logged in is so on WebSockets as well; its own count for more."""
    svc = Service("chat")

    @svc.websocket("/me")
    async def me(ws: WebSocket, who: Annotated[str, Auth(BEARER)]) -> None:
        await ws.send(who)

    async with TestClient(svc, headers={"authorization": "Bearer ann"}) as api:
        async with api.websocket("/me") as ws:
            assert await ws.receive() == "ann"
        async with api.websocket("/me", headers={"Authorization": "Bearer bob"}) as ws:
            assert await ws.receive() == "bob"
    async with TestClient(svc) as api:
        with pytest.raises(HTTPError, match="401"):
            async with api.websocket("/me"):
                pass


# ── events ──


@pytest.fixture
def mailers() -> tuple[Service, Service]:
    """Give two services that hear of each other's events, three deep."""
    shop, mailer = Service("shop"), Service("mailer")

    @shop.lifespan
    async def life() -> AsyncIterator[None]:
        await shop.publisher.publish("shop.opened")
        yield

    @shop.post("/orders")
    async def create(order: Order, events: Publisher) -> None:
        await events.publish(f"orders.{order.id}.created", order)

    @mailer.on("orders.<id>.created")
    async def thank(id: int, order: Order, events: Publisher) -> None:
        await asyncio.sleep(0)
        if order.item == "bug":
            raise LookupError("a bug")
        await events.publish(f"mails.{id}.sent", "thanks")

    @shop.on("mails.<id>.sent")
    async def note(id: int, events: Publisher, background: Background) -> None:
        async def later() -> None:
            await asyncio.sleep(0.01)
            await events.publish(f"notes.{id}")

        background.add(later)

    return shop, mailer


async def test_an_event_is_handled_when_publish_returns(mailers: tuple[Service, Service], nats: str | None):
    """With those that its handlers publish, also in the background; all of them can be seen."""
    async with TestClient(*mailers, nats=nats) as api:
        assert [one.subject for one in api.published] == ["shop.opened"]
        for count in range(1, 4):
            api.published.clear()
            await api.publish(f"orders.{count}.created", Order(id=count), headers={"x-request-id": "r1"})
            sent, noted = api.published
            assert (sent.subject, sent.text, sent.headers["x-request-id"]) == (f"mails.{count}.sent", "thanks", "r1")
            assert (noted.subject, noted.body) == (f"notes.{count}", b"")
        await api.publish("nobody.listens")
        assert api.failures == []


async def test_events_of_a_request(mailers: tuple[Service, Service], nats: str | None):
    """They have been published when its answer is here, and are handled after `wait_for_events`."""
    async with TestClient(*mailers, nats=nats) as api:
        api.published.clear()
        await api.post("/orders", json={"id": 7})
        assert api.published[0].subject == "orders.7.created"
        assert api.published[0].json() == {"id": 7, "item": "tea"}
        await api.wait_for_events()
        assert [one.subject for one in api.published] == ["orders.7.created", "mails.7.sent", "notes.7"]


async def test_failures_of_events(mailers: tuple[Service, Service], nats: str | None):
    """They stand in `failures`, those that would be a 4xx as well, or come out of `publish`."""
    async with TestClient(*mailers, nats=nats) as api:
        await api.publish("orders.7.created", Order(id=7, item="bug"))
        await api.publish("orders.7.created", {"id": "x"})
        bug, refused = api.failures
        assert str(bug) == "a bug"
        assert isinstance(refused, HTTPError)
        assert refused.status == 422
    async with TestClient(*mailers, nats=nats, raise_server_exceptions=True) as api:
        with pytest.raises(LookupError, match="a bug"):
            await api.publish("orders.7.created", Order(id=7, item="bug"))
    assert mailers[0].publisher.on_publish is None


async def test_events_before_the_start(mailers: tuple[Service, Service]):
    """There is nothing yet to publish on."""
    with pytest.raises(StartError, match="before its start"):
        await TestClient(*mailers).publish("orders.7.created")


# ── plain ──


def test_plain_events(mailers: tuple[Service, Service], nats: str | None):
    """The same from a thread without an event loop."""
    with SyncTestClient(*mailers, nats=nats) as api:
        api.published.clear()
        api.publish("orders.7.created", Order(id=7))
        api.post("/orders", json={"id": 8})
        api.wait_for_events()
        subjects = [one.subject for one in api.published]
        assert subjects == ["mails.7.sent", "notes.7", "orders.8.created", "mails.8.sent", "notes.8"]


@pytest.fixture
def plain(shop: Shop, nats: str | None) -> Iterator[SyncTestClient]:
    """Give a client of the shop for plain functions."""
    with SyncTestClient(shop.svc, nats=nats) as client:
        yield client


def test_plain_requests(plain: SyncTestClient, shop: Shop):
    """The same without async."""
    assert repr(plain) == "<SyncTestClient of shop>"
    assert plain.get("/orders/7").json() == {"id": 7, "item": "tea"}
    assert plain.post("/orders", json={"id": 1}).status_code == 201
    assert plain.get("/orders/404").status_code == 404
    assert plain.get("/fail").status_code == 500
    assert [str(one) for one in plain.failures] == ["a bug"]


def test_plain_streams(plain: SyncTestClient, shop: Shop):
    """Pieces come as they are made, and go as they are given."""
    with plain.stream("GET", "/ticks") as response:
        assert next(response.iter_lines()) == "tick"

    def pieces() -> Iterator[bytes]:
        for _ in range(48):
            yield bytes(64 * 1024)

    assert plain.post("/mirror", content=pieces()).content == bytes(48 * 64 * 1024)
    with pytest.raises(httpx2.RemoteProtocolError):
        plain.get("/torn")


def test_plain_exceptions_and_overrides(shop: Shop, nats: str | None):
    """What a handler raises comes out in this thread."""
    overrides = {get_prices: lambda: {7: 3}}
    with SyncTestClient(shop.svc, nats=nats, raise_server_exceptions=True, overrides=overrides) as api:
        with pytest.raises(LookupError, match="a bug"):
            api.get("/fail")
        assert api.get("/price/7").json() == 3
    assert shop.did == ["started", "stopped"]


def test_plain_websockets(plain: SyncTestClient):
    """Also from a thread without an event loop."""
    with plain.websocket("/chat/tea", subprotocols=["v1"]) as ws:
        assert ws.subprotocols == ["v1"]
        ws.send("hello")
        assert ws.receive() == "nobody@tea: hello"
        ws.send("bye")
        assert list(ws) == []
    with plain.websocket("/chat/tea") as ws:
        ws.close(1000, "done")
    with pytest.raises(ZeroDivisionError), plain.websocket("/chat/tea") as ws:
        ws.send(str(1 // 0))
    with pytest.raises(HTTPError, match="this room is closed"), plain.websocket("/chat/closed"):
        pass


def test_plain_has_to_be_started(shop: Shop):
    """Before and after its block there is nothing to ask."""
    with SyncTestClient(shop.svc) as api:
        pass
    with pytest.raises(RuntimeError):
        api.get("/orders/7")
    with pytest.raises(StartError, match="before its start"):
        SyncTestClient(shop.svc).get("/orders/7")
