"""NATS events beside requests: how they are declared, bound, run, bounded and drained; and how they are published."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from natsweb import (
    Auth,
    Background,
    Bearer,
    Body,
    Client,
    Depends,
    Header,
    HTTPError,
    Publisher,
    Request,
    Response,
    Router,
    Service,
    StreamingResponse,
    WebSocket,
    current,
    on,
)
from natsweb.bus import MemoryBus, Message, request
from natsweb.cli import app as cli
from natsweb.errors import DeclarationError, TooLarge
from natsweb.events import parse_subject
from natsweb.headers import Headers
from natsweb.natsbus import connect
from natsweb.plain import PlainDoor
from natsweb.settings import Nats
from natsweb.subjects import matches
from natsweb.testing import TestClient
from natsweb.wire import decode_response
from natsweb.worker import Worker

PATIENCE = 10.0


class Order(BaseModel):
    """What an event is about."""

    id: int
    item: str = "tea"


class Journal(list):
    """What has happened; `of` waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def note(self, word: Any) -> None:
        self.append(word)
        self._news.set()

    async def of(self, count: int) -> list[Any]:
        """Wait until so many things have happened; return them."""
        async with asyncio.timeout(PATIENCE):
            while len(self) < count:
                self._news.clear()
                await self._news.wait()
        return list(self)


class House:
    """A bus of one kind, with workers on it; a client has a connection of its own."""

    def __init__(self, stack: AsyncExitStack, nats_url: str | None) -> None:
        self._stack = stack
        self._nats_url = nats_url
        self._memory = MemoryBus()
        self.client: Any = None
        self.workers: list[Worker] = []

    async def connect(self) -> Any:
        if self._nats_url is None:
            return self._memory
        bus = await connect(Nats(urls=(self._nats_url,)))
        self._stack.push_async_callback(bus.close)
        return bus

    async def serve(self, service: Service, **options: Any) -> Worker:
        worker = Worker(await self.connect(), service, **options)
        self._stack.callback(service.close)
        await worker.start()
        self._stack.push_async_callback(worker.stop, 0.2)
        return worker

    async def say(self, subject: str, payload: bytes | str = b"", **headers: str) -> None:
        """Publish as any client would."""
        data = payload.encode() if isinstance(payload, str) else payload
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        header = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else None
        self.client.publish(subject.encode().decode("latin-1"), data, header=header)
        await self.client.flush()

    async def ask(self, subject: str, payload: bytes = b"") -> Response:
        """Ask as `nats req` would."""
        message: Message = await request(self.client, subject, payload, timeout=PATIENCE)
        return decode_response(message.header, message.payload)

    async def tap(self, subject: str) -> Journal:
        """Listen to a subject as anybody may."""
        heard = Journal()
        await self.client.subscribe(subject, heard.note)
        await self.client.flush()
        return heard


@pytest.fixture(params=["memory", "nats"])
async def house(request, nats_url):
    """A bus in memory, and a real server."""
    async with AsyncExitStack() as stack:
        made = House(stack, nats_url if request.param == "nats" else None)
        made.client = await made.connect()
        yield made


@pytest.fixture
def svc(request):
    """A service whose events nobody else listens to."""
    return Service("events")


@pytest.fixture
def heard():
    """What handlers have noted."""
    return Journal()


# ── binding ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_event_is_bound_as_a_request_is(house, svc, heard):
    """Captures with their types, the body as a model, headers, dependencies, the request itself."""

    async def tenant(x_tenant: Annotated[str, Header()] = "nobody") -> str:
        return x_tenant.upper()

    @svc.on("ev1.<id>.created")
    async def created(id: int, order: Order, tenant: Annotated[str, Depends(tenant)], request: Request) -> None:
        heard.note((id, order, tenant, request.method, request.path, request.scheme, request.params))

    await house.serve(svc)
    await house.say("ev1.7.created", '{"id": 7, "item": "cake"}', X_Tenant="acme")
    await house.say("ev1.8.created", '{"id": 8}')
    order = Order(id=7, item="cake")
    assert await heard.of(2) == [
        (7, order, "ACME", "EVENT", "/ev1/7/created", "nats", {"id": "7"}),
        (8, Order(id=8), "NOBODY", "EVENT", "/ev1/8/created", "nats", {"id": "8"}),
    ]


async def test_what_a_subject_captures(house, svc, heard):
    """One word, and the rest as it stands in the subject, whatever characters they have."""

    @svc.on("ev2.<word>")
    async def one(word: str) -> None:
        heard.note(word)

    @svc.on("ev2.all.<path:rest>")
    async def rest(rest: str, request: Request) -> None:
        heard.note((rest, request.path))

    await house.serve(svc)
    await house.say("ev2.100%")
    await house.say("ev2.é/ü")
    await house.say("ev2.all.a.b%2Fc.d")
    assert await heard.of(3) == ["100%", "é/ü", ("a.b%2Fc.d", "/ev2/all/a/b%2Fc/d")]


@pytest.mark.parametrize(
    ("kind", "payload", "value"),
    [
        (Annotated[bytes, Body()], b"\x00\xff", b"\x00\xff"),
        (Annotated[list[int], Body()], b"[1, 2]", [1, 2]),
        (Order | None, b'{"id": 1}', Order(id=1)),
        (dict[str, Any], b'{"a": 1}', {"a": 1}),
    ],
)
async def test_bodies(svc, heard, kind, payload, value):
    """A body is what its annotation says."""
    bus = MemoryBus()

    async def take(body) -> None:
        heard.note(body)

    take.__annotations__["body"] = kind
    svc.on("ev3")(take)
    worker = Worker(bus, svc)
    await worker.start()
    bus.publish("ev3", payload)
    assert await heard.of(1) == [value]
    await worker.stop()


async def test_plain_functions_classes_of_state_and_background(house, svc, heard):
    """A plain function runs in a thread; background work and cleanup come after the handler."""

    def resource():
        heard.append("opened")
        yield "it"
        heard.note("closed")

    @svc.on("ev4")
    def take(tasks: Background, it: Annotated[str, Depends(resource)]) -> None:
        tasks.add(heard.note, "background")
        heard.append(it)

    await house.serve(svc)
    await house.say("ev4")
    assert await heard.of(4) == ["opened", "it", "background", "closed"]


# ── who gets an event ────────────────────────────────────────────────────────────────────────────


async def test_instances_share_events(house, heard):
    """Each event goes to one instance, with queue=None to all, and another queue has its own."""

    def build(name: str) -> Service:
        svc = Service("shared")

        @svc.on("ev5.work.<n>")
        async def work(n: int) -> None:
            heard.note(("work", n))

        @svc.on("ev5.all.<n>", queue=None)
        async def everybody(n: int) -> None:
            heard.note(("all", n, name))

        @svc.on("ev5.work.<n>", queue="audit")
        async def audit(n: int) -> None:
            heard.note(("audit", n))

        return svc

    for name in "ab":
        await house.serve(build(name))
    for n in range(20):
        await house.say(f"ev5.work.{n}")
    assert sorted(await heard.of(40)) == sorted((kind, n) for kind in ("work", "audit") for n in range(20))
    heard.clear()
    await house.say("ev5.all.1")
    assert sorted(await heard.of(2)) == [("all", 1, "a"), ("all", 1, "b")]


async def test_several_handlers_for_one_event(house, svc, heard):
    """Every handler whose subject matches runs, once, however the subjects overlap."""

    @svc.on("ev6.<id>.paid")
    async def paid(id: str) -> None:
        heard.note("paid")

    @svc.on("ev6.7.<what>")
    async def seven(what: str) -> None:
        heard.note("seven")

    @svc.on("ev6.<path:rest>")
    async def audit(rest: str) -> None:
        heard.note("audit")

    @svc.on("ev6.<path:rest>", queue=None)
    async def tap(rest: str) -> None:
        heard.note("tap")

    await house.serve(svc)
    await house.say("ev6.7.paid")
    await heard.of(4)
    await house.ask("ev6.end")  # all that came before has been taken
    await heard.of(6)
    assert sorted(heard[:4]) == ["audit", "paid", "seven", "tap"]
    assert sorted(heard[4:]) == ["audit", "tap"]


async def test_requests_are_no_events(house, svc, heard):
    """Both live in one service, and neither gets what is the other's."""

    @svc.get("/orders/<id>")
    async def show(id: int) -> str:
        heard.note("request")
        return "shown"

    @svc.on("ev7.<id>")
    async def event(id: int) -> None:
        heard.note("event")

    await house.serve(svc)
    assert (await house.ask("api.orders.7")).text == "shown"
    await house.say("ev7.7")
    assert await heard.of(2) == ["request", "event"]
    assert svc.patterns() == ["api.orders.*"]
    assert [endpoint.subject for endpoint, _ in svc.endpoints()] == ["api.orders.*"]
    assert "/ev7" not in json.dumps(svc.openapi())


# ── replies and errors ───────────────────────────────────────────────────────────────────────────


async def test_the_result_is_the_reply(house, svc):
    """`nats req` gets what the handler returns, or the problem."""

    @svc.on("ev8.<id>")
    async def answer(id: int) -> Order:
        if id == 13:
            raise HTTPError(409, "not this one")
        return Order(id=id)

    @svc.on("ev8.pieces.all")
    async def pieces() -> StreamingResponse:
        async def give() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"

        return StreamingResponse(give())

    await house.serve(svc)
    assert (await house.ask("ev8.7")).parse_json() == {"id": 7, "item": "tea"}
    assert (await house.ask("ev8.13")).status == 409
    assert (await house.ask("ev8.x")).parse_json()["errors"][0]["loc"] == ["path", "id"]
    assert (await house.ask("ev8.pieces.all")).body == b"ab"


async def test_replies_that_cannot_be_sent(house, svc, caplog):
    """Whoever waits hears so, and the log says why."""

    @svc.on("ev22.<what>")
    async def answer(what: str) -> Response:
        if what == "large":
            return Response(body=b"x" * 2_000_000)
        if what == "bad":
            return Response.trusted(200, Headers.from_block(b"x-a: \x00\r\n"), b"")

        async def give() -> AsyncIterator[bytes]:
            yield b"a"
            raise RuntimeError("half of it")

        return StreamingResponse(give())

    await house.serve(svc)
    for what in ("large", "bad", "breaks"):
        assert (await house.ask(f"ev22.{what}")).status == 500
    assert "the reply to EVENT ev22.large was not sent" in caplog.text
    assert "the reply to EVENT ev22.bad is none that can be sent" in caplog.text
    assert "half of it" in caplog.text


async def test_headers_of_nats(svc, heard):
    """Its own header fields are the publisher's, and may be taken."""
    bus = MemoryBus()

    @svc.on("ev23")
    async def take(id: Annotated[str, Header(alias="Nats-Msg-Id")]) -> None:
        heard.note(id)

    worker = Worker(bus, svc)
    await worker.start()
    bus.publish("ev23", b"", header=b"NATS/1.0\r\nNats-Msg-Id: 7\r\n\r\n")
    assert await heard.of(1) == ["7"]
    await worker.stop()


async def test_a_reply_goes_to_inboxes_only(house, svc, heard):
    """A subject that is no inbox, such as that of an acknowledgement, gets nothing."""

    @svc.on("ev9")
    async def answer() -> str:
        heard.note("ran")
        return "reply"

    await house.serve(svc)
    tap = await house.tap("orders.delete")
    house.client.publish("ev9", b"", reply="orders.delete")
    await heard.of(1)
    await house.ask("ev9")
    assert tap == []


@pytest.mark.parametrize("fault", ["raises", "refuses", "body", "cancels"])
async def test_a_failure_is_logged_once(house, svc, heard, caplog, fault):
    """With the subject of the event and the place of the handler; nothing else happens."""

    @svc.on("ev10.<id>.x")
    async def fails(id: str, order: Order | None = None) -> None:
        if id == "raises":
            raise RuntimeError("out of tea")
        if id == "refuses":
            raise HTTPError(409, "not now")
        if id == "cancels":
            raise asyncio.CancelledError
        heard.note("ran")

    await house.serve(svc)
    await house.say(f"ev10.{fault}.x", b"{" if fault == "body" else b"")
    await house.say("ev10.fine.x")
    await heard.of(1)
    [record] = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert f"EVENT ev10.{fault}.x failed (tests/test_events.py" in record.getMessage()
    assert {"raises": "out of tea", "refuses": "409 not now", "body": "body: ", "cancels": ""}[fault] in caplog.text


async def test_an_event_that_is_none(house, svc, heard, caplog, nats_url):
    """A subject that is not UTF-8, or a broken header block, is dropped and logged."""

    @svc.on("ev11.<word>")
    async def take(word: str) -> None:
        heard.note(word)

    await house.serve(svc)
    house.client.publish("ev11.\xff", b"")
    house.client.publish("ev11.a", b"", header=b"NATS/1.0\r\nno field\r\n\r\n")
    await house.say("ev11.fine")
    assert await heard.of(1) == ["fine"]
    assert caplog.text.count("was dropped") == 2


async def test_the_time_is_up(house, svc, heard, caplog):
    """A handler that takes too long is cancelled; one that asks for more time gets it."""

    @svc.on("ev12.<what>", timeout=0.1)
    async def slow(what: str, request: Request) -> str:
        if what == "more":
            await request.extend(30)
            await asyncio.sleep(0.2)
            return "late"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.note(request.timeout)
            raise
        return "never"

    await house.serve(svc)
    response = await house.ask("ev12.slow")
    assert (response.status, response.parse_json()["reason"]) == (504, "timeout")
    assert await heard.of(1) == [0.1]
    assert caplog.text.count("EVENT ev12.slow failed") == 1
    assert (await house.ask("ev12.more")).text == "late"


# ── what stands around ───────────────────────────────────────────────────────────────────────────


async def test_routers_middleware_and_error_handlers(house, svc, heard, caplog):
    """A router's prefix and guards are for requests; its middleware and error handlers are for events, too."""
    router = Router("/shop/<shop>", depends=[Auth(Bearer(verify=lambda token: None))])

    class Missing(Exception):
        pass

    @router.middleware
    async def inner(request: Request, call_next: Any) -> Response:
        heard.note(("inner", request.method))
        return await call_next(request)

    @svc.middleware
    async def outer(request: Request, call_next: Any) -> Response:
        heard.note(("outer", request.path))
        response = await call_next(request)
        heard.note(response.status)
        return response

    @router.on_error(Missing)
    async def missing(request: Request, error: Missing) -> Response:
        return Response(status=404, body="missing")

    def own() -> None:
        heard.note("own")

    @router.on("ev13.<id>", depends=[Depends(own)], name="thirteen")
    async def take(id: str) -> str:
        raise Missing

    svc.include(router)
    await house.serve(svc)
    response = await house.ask("ev13.7")
    assert (response.status, response.text) == (404, "missing")
    assert heard == [("outer", "/ev13/7"), ("inner", "EVENT"), "own", 404]
    assert caplog.text == ""
    assert [one.name for one in svc.events] == ["thirteen"]


async def test_methods_of_a_class(house, svc, heard):
    """They are marked, and an instance is included."""

    class Orders:
        @on("ev24.<id>", name="cached")
        async def cached(self, id: int) -> None:
            heard.note(id)

        @on("ev24.<id>", queue=None)
        async def everybody(self, id: int) -> None:
            heard.note("all")

    svc.include(Orders(), prefix="/below")
    await house.serve(svc)
    await house.say("ev24.7")
    assert sorted(map(str, await heard.of(2))) == ["7", "all"]
    assert [(str(one.template), one.name) for one in svc.events] == [
        ("ev24.<id>", "cached"),
        ("ev24.<id>", "everybody"),
    ]


async def test_dependencies_are_replaced_in_tests(house, svc, heard):
    """`override` holds for events as well."""

    def database() -> str:
        return "real"

    @svc.on("ev14")
    async def take(db: Annotated[str, Depends(database)]) -> None:
        heard.note(db)

    await house.serve(svc)
    with svc.override(database, lambda: "fake"):
        await house.say("ev14")
        await heard.of(1)
    await house.say("ev14")
    assert await heard.of(2) == ["fake", "real"]


# ── many events, and the end ─────────────────────────────────────────────────────────────────────


async def test_events_wait_for_their_turn(house, svc, heard):
    """At most `concurrency` run at once, all others wait, and requests are answered meanwhile."""
    running = most = 0
    go_on = asyncio.Event()

    @svc.on("ev15.<n>")
    async def take(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1
        heard.note(n)

    @svc.get("/ping")
    async def ping() -> str:
        return "pong"

    await house.serve(svc, concurrency=3)
    for n in range(20):
        await house.say(f"ev15.{n}")
    assert (await house.ask("api.ping")).text == "pong"
    go_on.set()
    assert sorted(await heard.of(20)) == list(range(20))
    assert most == 3


async def test_more_events_than_can_wait(svc, heard, caplog, monkeypatch):
    """They are dropped, and the log says how many."""
    monkeypatch.setattr("natsweb.subscriber._BACKLOG", 5)
    bus, go_on = MemoryBus(), asyncio.Event()

    @svc.on("ev16.<n>")
    async def take(n: int) -> None:
        await go_on.wait()
        heard.note(n)

    worker = Worker(bus, svc, concurrency=1)
    await worker.start()
    for n in range(9):
        bus.publish(f"ev16.{n}", b"")
    await bus.flush()
    await bus.flush()
    go_on.set()
    assert await heard.of(6) == [0, 1, 2, 3, 4, 5]
    assert "events is too slow for its events: 1 were dropped so far" in caplog.text
    assert await worker.stop()
    assert len(heard) == 6


async def test_stopping_drains(house, svc, heard):
    """What has come is finished, in the backlog as well; nothing comes any more."""
    go_on = asyncio.Event()

    @svc.on("ev17.<n>")
    async def take(n: int, tasks: Background) -> None:
        await go_on.wait()
        tasks.add(heard.note, n)

    worker = await house.serve(svc, concurrency=2)
    for n in range(6):
        await house.say(f"ev17.{n}")
    stopping = asyncio.ensure_future(worker.stop(PATIENCE))
    asyncio.get_running_loop().call_later(0.1, go_on.set)
    assert await stopping
    assert sorted(heard) == list(range(6))
    await house.say("ev17.7")
    assert len(heard) == 6


async def test_stopping_has_an_end(house, svc, heard, caplog):
    """After the grace what still runs is cancelled, what waits is dropped, and both are said."""

    @svc.on("ev18.<n>")
    async def take(n: int) -> None:
        heard.note(n)
        await asyncio.Event().wait()

    worker = await house.serve(svc, concurrency=1)
    asking = asyncio.ensure_future(house.ask("ev18.0"))
    await heard.of(1)
    await house.say("ev18.1")
    assert not await worker.stop(0.1)
    assert (await asking).status == 503
    assert heard == [0]
    assert "1 events were cut off, and 1 dropped" in caplog.text
    assert "EVENT ev18.0 failed" in caplog.text


# ── publishing ───────────────────────────────────────────────────────────────────────────────────


async def test_a_handler_publishes(house, svc, heard):
    """On the worker's connection, anything, with the trace of the request that it belongs to."""

    @svc.post("/orders")
    async def make(order: Order, events: Publisher) -> None:
        await events.publish(f"ev19.{order.id}.made", order, headers={"X-Mine": "1"})

    @svc.on("ev19.<id>.made")
    async def pass_on(id: int, order: Order, events: Publisher, x_mine: Annotated[str, Header()]) -> None:
        await events.publish("ev19.seen", {"id": UUID(int=id), "mine": x_mine})

    await house.serve(svc)
    heard = await house.tap("ev19.>")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await house.say("api.orders", '{"id": 7}', traceparent=trace, X_Request_Id="r1", X_Other="2")
    made, seen = await heard.of(2)
    assert (made.subject, made.payload) == ("ev19.7.made", b'{"id":7,"item":"tea"}')
    lines = {line.lower() for line in made.header.decode().split("\r\n")[1:] if line}
    base = {f"traceparent: {trace}", "x-request-id: r1", "content-type: application/json"}
    assert lines == base | {"x-mine: 1"}
    assert json.loads(seen.payload) == {"id": str(UUID(int=7)), "mine": "1"}
    assert {line.lower() for line in seen.header.decode().split("\r\n")[1:] if line} == base


async def test_lifespans_and_shared_dependencies_publish(nats_url):
    """`svc.publisher` is connected before the lifespan starts, and a dependency of scope app gets one."""
    bus = MemoryBus()
    heard = Journal()
    await bus.subscribe("ev20", heard.note)
    svc = Service("early")

    async def outbox(events: Publisher) -> Publisher:
        await events.publish("ev20", "shared")
        return events

    @svc.lifespan
    async def life(svc: Service) -> AsyncIterator[None]:
        await svc.publisher.publish("ev20", "starts")
        yield
        await svc.publisher.publish("ev20", "stops")

    @svc.get("/")
    async def index(out: Annotated[Publisher, Depends(outbox, scope="app")]) -> str:
        return "x"

    worker = Worker(bus, svc)
    async with svc:
        await worker.start()
        await worker.stop()
    assert [one.payload for one in await heard.of(3)] == [b"starts", b"shared", b"stops"]


@pytest.mark.parametrize(
    ("message", "payload", "kind"),
    [
        (None, b"", None),
        (b"\x00", b"\x00", None),
        (bytearray(b"x"), b"x", None),
        ("é", "é".encode(), "text/plain; charset=utf-8"),
        (Order(id=1), b'{"id":1,"item":"tea"}', "application/json"),
        ([1, None], b"[1,null]", "application/json"),
    ],
)
async def test_what_is_published(message, payload, kind):
    """Bytes and text as they are, anything else as JSON."""
    bus, heard, publisher = MemoryBus(), Journal(), Publisher("test")
    publisher.connect(bus)
    await bus.subscribe("a.é".encode().decode("latin-1"), heard.note)
    await publisher.publish("a.é", message)
    [told] = await heard.of(1)
    assert told.payload == payload
    assert (told.header or b"").decode() == ("" if kind is None else f"NATS/1.0\r\ncontent-type: {kind}\r\n\r\n")
    with pytest.raises(TooLarge):
        await publisher.publish("a", b"x" * 2_000_000)


@pytest.mark.parametrize(
    "subject", ["", "a b", "a.*", "a.>", "a..b", ".a", "a.", "$SYS.x", "$JS.API.x", "_INBOX.a", "a\r\n"]
)
async def test_where_nothing_is_published(subject):
    """Wildcards, blanks, and subjects of NATS's own."""
    publisher = Publisher("test")
    publisher.connect(MemoryBus())
    with pytest.raises(ValueError, match="no subject to publish on"):
        await publisher.publish(subject)


async def test_a_test_client_serves_events(svc, heard):
    """What a handler publishes arrives, without a server."""

    @svc.post("/orders")
    async def make(order: Order, events: Publisher) -> None:
        await events.publish(f"ev25.{order.id}", order)

    @svc.on("ev25.<id>")
    async def made(order: Order, id: int) -> None:
        heard.note((id, order))

    async with TestClient(svc) as client:
        assert (await client.post("/orders", json={"id": 7})).status_code == 204
        assert await heard.of(1) == [(7, Order(id=7))]


async def test_an_event_is_the_request_that_calls_are_made_for(svc, heard, monkeypatch):
    """Calls of other services go on with its ids and its time, as they do for a request."""
    monkeypatch.setattr(current, "is_wanted", True)
    bus = MemoryBus()

    @svc.on("ev26")
    async def take() -> None:
        heard.note(current.current_request())

    worker = Worker(bus, svc)
    await worker.start()
    bus.publish("ev26", b"", header=b"NATS/1.0\r\nx-request-id: r1\r\n\r\n")
    [call] = await heard.of(1)
    assert (call.method, call.headers["x-request-id"], call.timeout) == ("EVENT", "r1", 10.0)
    await worker.stop()


async def test_publishing_without_a_connection(caplog):
    """It fails, and says what to do; to the caller it is a 500 like any other."""
    svc = Service("alone")

    @svc.get("/")
    async def index(events: Publisher) -> None:
        assert not events.is_connected
        await events.publish("a.b")

    async with svc:
        assert (await svc.handle(Request())).status == 500
    assert "alone publishes on 'a.b', and has no connection to NATS" in caplog.text
    assert "svc.publisher.connect(MemoryBus())" in caplog.text


async def test_plain_http_says_so_at_its_start(caplog):
    """A service that publishes does not start without NATS; one that only listens does, with a word in the log."""
    svc = Service("plain")

    @svc.on("ev21")
    async def take() -> None: ...

    told: list[dict[str, Any]] = []
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def send(event: dict[str, Any]) -> None:
        told.append(event)

    await PlainDoor(svc)({"type": "lifespan"}, receive, send)
    assert told[0]["type"] == "lifespan.startup.complete"
    assert "plain hears no events" in caplog.text

    @svc.get("/")
    async def index(events: Publisher) -> None: ...

    events.append({"type": "lifespan.startup"})
    await PlainDoor(svc)({"type": "lifespan"}, receive, send)
    assert told[-1]["type"] == "lifespan.startup.failed"
    assert "plain publishes events, and plain HTTP has no NATS" in told[-1]["message"]
    assert "index" in told[-1]["message"]
    assert not svc.is_running

    svc.publisher.connect(MemoryBus())
    events.extend([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    await PlainDoor(svc)({"type": "lifespan"}, receive, send)
    assert told[-1]["type"] == "lifespan.shutdown.complete"


# ── declaring ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("subject", "pattern"),
    [("a", "a"), ("a.<b>.c", "a.*.c"), ("a.<path:rest>", "a.>"), ("user:made.v1/x", "user:made.v1/x")],
)
def test_subjects(subject, pattern):
    """A capture is a wildcard; all else stands for itself."""
    template = parse_subject(subject, "here")
    assert (str(template), ".".join(template.shape)) == (subject, pattern)
    assert matches(pattern, pattern.replace("*", "x").replace(">", "x.y"))


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("", "cannot be a part"),
        ("a..b", "cannot be a part of the subject 'a..b': it is empty"),
        ("a.*", "write words joined by '.', <id> for one of them"),
        ("a.>", "'>' cannot be a part of the subject 'a.>': a wildcard is a capture here, so that it has a name"),
        ("a.{id}", "cannot be a part"),
        ("Orders created", "cannot be a part of the subject 'Orders created': a subject has no blanks"),
        ("/orders/<id>", "a subject is words joined by '.', not a path"),
        ("é", "cannot be a part"),
        ("a.<path:rest>.b", "cannot be a part"),
        ("a.<b>.<b>", "has a capture twice"),
        ("$SRV.PING", "is NATS's own"),
        ("_INBOX.<path:rest>", "is NATS's own"),
        ("_R_.x", "is NATS's own"),
        ("api", "could be requests"),
        ("api.orders", "could be requests"),
        ("<any>", "could be requests"),
        ("<any>.created", "could be requests"),
        ("<path:rest>", "could be requests"),
    ],
)
def test_subjects_that_cannot_be(svc, subject, words):
    """They are refused where they stand, and what to write is said."""
    with pytest.raises(DeclarationError) as refused:

        @svc.on(subject)
        async def take(any: str = "", b: str = "", id: str = "", rest: str = "") -> None: ...

    assert words in str(refused.value)
    assert "test_events.py" in str(refused.value)
    assert "fix: " in str(refused.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": "a b"}, "cannot be a queue group"),
        ({"queue": ""}, "cannot be a queue group"),
        ({"timeout": 0}, "cannot have 0 seconds"),
        ({"status": 201}, "no option 'status'"),
        ({"depends": [print]}, "is no dependency"),
    ],
)
def test_options_that_cannot_be(svc, options, words):
    """An option that makes no sense is refused."""
    with pytest.raises(DeclarationError, match=words):

        @svc.on("a", **options)
        async def take() -> None: ...


async def _query(page: int) -> int:
    return page


async def _query_inside(page: Annotated[int, Depends(_query)]) -> None: ...


async def _socket(ws: WebSocket) -> None: ...


async def _stream(body: AsyncIterator[bytes]) -> None: ...


async def _feed() -> AsyncIterator[int]:
    yield 1


async def _capture() -> None: ...


@pytest.mark.parametrize(
    ("subject", "function", "words"),
    [
        ("a", _query, "comes from a query, which an event has not"),
        ("a", _query_inside, "comes from a query"),
        ("a", _socket, "an event is one message"),
        ("a", _stream, "an event is one message"),
        ("a", _feed, "an event is one message"),
        ("a.<id>", _capture, "route <id> has no parameter"),
        ("a", print, ""),
    ],
)
def test_handlers_that_cannot_be(svc, subject, function, words):
    """What an event never has is not asked for."""
    with pytest.raises(DeclarationError) as refused:
        svc.on(subject)(function)
    assert words in str(refused.value)


async def test_a_root_that_the_events_are_below(svc):
    """Started below another root, the service looks again."""

    @svc.on("shop.<id>")
    async def take(id: str) -> None: ...

    worker = Worker(MemoryBus(), svc, root="shop")
    with pytest.raises(DeclarationError, match="could be requests"):
        await worker.start()


def test_a_type_that_is_defined_later(svc):
    """It is looked up when the module is whole."""

    @svc.on("a")
    async def take(order: "Later") -> None: ...  # noqa: F821

    with pytest.raises(DeclarationError, match="'Later' names nothing"):
        svc.compile()


@pytest.fixture
def module(tmp_path):
    """A module with a service that listens, and has no route."""
    file = tmp_path / "listens.py"
    file.write_text(
        "from natsweb import Service\n\nsvc = Service('listens')\n\n\n"
        "@svc.on('orders.<id>.created')\nasync def created(id: int) -> None: ...\n"
    )
    return file


def test_tables_show_events(module):
    """`natsweb routes` and `natsweb check` know of them."""
    run = CliRunner().invoke
    table = run(cli, ["routes", str(module)]).output
    assert table.splitlines()[1].split()[:4] == ["EVENT", "orders.<id>.created", "orders.*.created", "created"]
    [row] = json.loads(run(cli, ["routes", str(module), "--json"]).output)
    assert (row["method"], row["subject"]) == ("EVENT", "orders.*.created")
    assert "0 routes, 1 event handlers, all compiled" in run(cli, ["check", str(module)]).output


def test_a_plain_function_that_takes_what_has_to_be_awaited():
    """It is refused where it is declared: its calls would never be made."""
    svc = Service("plainly")

    def publish(events: Publisher) -> None:
        events.publish("a")

    def call(api: Client) -> None:
        api.get("/")

    for function, kind in ((publish, "Publisher"), (call, "Client")):
        with pytest.raises(DeclarationError, match=f"is a {kind}, which has to be awaited") as caught:
            svc.get("/")(function)
        assert caught.value.fix == f"write it as async def {function.__name__}(...)"
