"""WebSockets end to end, over a real server: messages, refusals, goodbyes, deaths, and nothing left behind."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from textwrap import dedent
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx2
import nats
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

from natsweb import (
    Depends,
    HTTPError,
    Nats,
    Request,
    Response,
    Router,
    Service,
    StreamingResponse,
    WebSocket,
    WebSocketClosed,
    jobs,
)
from natsweb.embedded import embedded_server
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus import NatsBus
from natsweb.natsbus import connect as connect_bus
from natsweb.streams import WINDOW
from natsweb.worker import Worker

KIB, MIB = 1024, 1024 * 1024

_numbers = itertools.count()


# ── the house: a service, a gateway, a socket ──


@dataclass
class House:
    """A service behind a gateway behind a socket, each with a connection of its own."""

    service: Service
    worker: Worker
    gateway: Gateway
    front: Front
    clients: list[Any] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Where the gateway listens."""
        parts = urlsplit(self.front.url)
        return parts.hostname or "", parts.port or 0

    async def connect(self, path: str, **options: Any) -> ClientConnection:
        """Open a WebSocket; it closes with the house."""
        options = {"proxy": None, "compression": None, "max_size": None, **options}
        client = await connect(f"ws://{self.address[0]}:{self.address[1]}{path}", **options)
        self.clients.append(client)
        return client

    async def refused(self, path: str, **options: Any) -> Any:
        """Return the answer of a WebSocket that is refused."""
        with pytest.raises(InvalidStatus) as caught:
            await self.connect(path, **options)
        return caught.value.response

    @property
    def left(self) -> list[Any]:
        """What is still there of requests, streams and sockets, on both sides."""
        exchange, both = self.gateway.exchange, (self.worker.bus, self.gateway.exchange.bus)
        return [
            *self.worker._waiting,
            *self.worker._streaming,
            *exchange._flights,
            *exchange._streams,
            *[peer for bus in both for peer in bus.pulse._peers.values()],
            *[asked for bus in both for asked in bus._inbox._pending.values()],
            *self.front._server.server_state.connections,
        ]


@pytest.fixture
async def open_house(nats_url, until, request):
    """Give a function that serves a service; when the test ends, its clients leave and nothing may be left of them."""
    fails = request.node.get_closest_marker("xfail") is not None
    async with AsyncExitStack() as stack:

        async def build(service, *, nats=nats_url, grace=1.0, ws_max_size=16 * MIB, timeout=10.0, **options) -> House:
            buses = [await connect_bus(Nats(urls=(nats,))) for _ in "12"]
            for bus in buses:
                stack.push_async_callback(bus.close)
            worker = Worker(buses[0], service, **options)
            await worker.start()
            stack.push_async_callback(worker.stop, 0)
            stack.callback(service.close)
            gateway = Gateway(
                service.root, bus=buses[1], timeout=timeout, discovery=False, health=False, ws_max_size=ws_max_size
            )
            await stack.enter_async_context(gateway)
            front = Front(gateway, port=0, grace=grace)
            await front.start()
            stack.push_async_callback(front.stop, now=True)
            house = House(service, worker, gateway, front)

            async def leave() -> None:
                for client in house.clients:
                    await client.close()
                if not fails and house.gateway._exchange is not None:
                    await until(lambda: not house.left)

            stack.push_async_callback(leave)
            return house

        yield build


@pytest.fixture
def svc():
    """A service on subjects of its own, with an echo."""
    service = Service("sockets", root=f"sockets.{next(_numbers)}", threads=2)
    service.said, service.journal = asyncio.Queue(), []

    @service.websocket("/echo")
    async def echo(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)

    @service.websocket("/listen")
    async def listen(ws: WebSocket) -> None:
        try:
            while True:
                service.said.put_nowait(await ws.receive())
        except WebSocketClosed as closed:
            service.said.put_nowait(closed)
            raise

    @service.get("/plain")
    async def plain() -> str:
        return "plain"

    return service


@pytest.fixture(autouse=True)
def logged(caplog):
    """Give the errors that were logged; a test takes those out that it expects."""
    errors: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(record.getMessage())

    keep = Keep(logging.ERROR)
    logging.getLogger().addHandler(keep)
    uvicorn_log = logging.getLogger("uvicorn")
    before, uvicorn_log.propagate = uvicorn_log.propagate, True
    yield errors
    uvicorn_log.propagate = before
    logging.getLogger().removeHandler(keep)
    assert not errors


async def goodbye(client) -> tuple[int, str]:
    """Return the code and reason that the server says goodbye with."""
    async with asyncio.timeout(10):
        try:
            while True:
                await client.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is None:
                raise
            return closed.rcvd.code, closed.rcvd.reason


def vanish(client) -> None:
    """Cut a client off without a goodbye."""
    client.transport.abort()


async def soon(awaitable: Any, seconds: float = 10) -> Any:
    """Return what comes within some seconds."""
    async with asyncio.timeout(seconds):
        return await awaitable


@pytest.fixture
def raw():
    """Give a function that opens a bare connection to a house."""

    async def start(house: House) -> Raw:
        client = Raw(await asyncio.open_connection(*house.address))
        house.clients.append(client)
        return client

    return start


# ── messages ──

MESSAGES: dict[str, str | bytes] = {
    "text": "hello",
    "bytes": b"\x00\xff",
    "no text": "",
    "no bytes": b"",
    "umlauts": "äöü €",
    "looks like a part": "T",
    "looks like JSON": '{"a": 1}',
    "a header block": b"NATS/1.0\r\nNw-End: ok;0\r\n\r\n",
    "a chunk less two": bytes(64 * KIB - 2),
    "a chunk less one": bytes(64 * KIB - 1),
    "a chunk": bytes(64 * KIB),
    "a window": "x" * WINDOW,
    "more than a window": "ä" * WINDOW,
}


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_messages(open_house, svc, compression):
    """Messages of both kinds and all sizes come back as they went."""
    house = await open_house(svc)
    client = await house.connect("/echo", compression=compression)
    for message in MESSAGES.values():
        await client.send(message)
        assert await soon(client.recv()) == message


class Said(BaseModel):
    """What clients send."""

    who: str
    text: str


class Heard(BaseModel):
    """What they get."""

    line: str


async def test_models(open_house, svc):
    """Messages of a type are validated on their way in and serialised on their way out."""

    @svc.websocket("/chat")
    async def chat(ws: WebSocket[Said, Heard]) -> None:
        async for said in ws:
            await ws.send(Heard(line=f"{said.who}: {said.text}"))

    house = await open_house(svc)
    client = await house.connect("/chat")
    await client.send('{"who": "a", "text": "ü"}')
    assert json.loads(await soon(client.recv())) == {"line": "a: ü"}
    await client.send(b'{"who": "b", "text": ""}')
    assert await soon(client.recv()) == '{"line":"b: "}'


async def test_the_request_of_a_websocket(open_house, svc):
    """A handler has path, query, headers and the client's address beside the WebSocket, without the handshake's own."""

    @svc.websocket("/rooms/<room>")
    async def enter(ws: WebSocket, room: str, request: Request, page: int = 1) -> None:
        names = [name for name, _ in request.headers if name.startswith("sec-") or name in ("upgrade", "connection")]
        await ws.send(
            {
                "room": room,
                "page": page,
                "method": request.method,
                "scheme": request.scheme,
                "cookie": request.cookies,
                "address": (request.client or "").rpartition(":")[0],
                "names": names,
                "host": request.headers.get("host"),
            }
        )

    house = await open_house(svc)
    headers = {"cookie": "a=1; b=2"}
    client = await house.connect("/rooms/a%2Fb?page=7", additional_headers=headers, compression="deflate")
    assert json.loads(await soon(client.recv())) == {
        "room": "a/b",
        "page": 7,
        "method": "GET",
        "scheme": "ws",
        "cookie": {"a": "1", "b": "2"},
        "address": "127.0.0.1",
        "names": [],
        "host": f"127.0.0.1:{house.address[1]}",
    }
    assert await goodbye(client) == (1000, "")


@pytest.mark.parametrize("text", [True, False])
async def test_the_largest_message(open_house, svc, text):
    """16 MiB pass both ways."""
    house = await open_house(svc)
    client = await house.connect("/echo")
    message = "x" * (16 * MIB) if text else os.urandom(16 * MIB)
    await client.send(message)
    assert await soon(client.recv(), 20) == message


async def test_a_message_that_is_too_large_for_the_gateway(open_house, svc):
    """One byte more closes with 1009, before the service sees any of it; the handler hears the code."""
    house = await open_house(svc)
    client = await house.connect("/listen")
    with contextlib.suppress(ConnectionClosed):
        await client.send(bytes(16 * MIB + 1))
    code, _ = await goodbye(client)
    closed = await soon(svc.said.get())
    assert (code, closed.code) == (1009, 1009)


async def test_a_message_that_is_too_large_for_the_client(open_house, svc):
    """A service that sends one byte too many closes its WebSocket with 1009, and hears so."""

    @svc.websocket("/send/<size>")
    async def send(ws: WebSocket, size: int) -> None:
        await ws.send(bytes(size))
        with pytest.raises(WebSocketClosed) as caught:
            await ws.receive()
        svc.said.put_nowait(caught.value.code)

    house = await open_house(svc)
    client = await house.connect(f"/send/{16 * MIB + 1}")
    code, reason = await goodbye(client)
    assert (code, reason) == (1009, f"a message is larger than {16 * MIB} bytes")
    assert await soon(svc.said.get()) == 1009


@pytest.mark.parametrize("size", [1000, 1001])
async def test_the_size_that_a_gateway_takes(open_house, svc, size):
    """`ws_max_size` is the largest message, both ways."""

    @svc.websocket("/send/<size>")
    async def send(ws: WebSocket, size: int) -> None:
        await ws.send("x" * size)
        async for _ in ws:
            pass

    house = await open_house(svc, ws_max_size=1000)
    down, up = await house.connect(f"/send/{size}"), await house.connect("/echo")
    await up.send("x" * size)
    for client in (down, up):
        if size == 1000:
            assert await soon(client.recv()) == "x" * size
        else:
            assert (await goodbye(client))[0] == 1009


async def test_a_service_takes_no_more_than_is_usual(open_house, svc):
    """A gateway with a larger `ws_max_size` does not make a service take more than 16 MiB."""
    house = await open_house(svc, ws_max_size=20 * MIB)
    client = await house.connect("/listen")
    with contextlib.suppress(ConnectionClosed):
        await client.send(bytes(16 * MIB + 1))
    assert (await goodbye(client))[0] == 1009
    assert (await soon(svc.said.get())).code == 1009


async def test_parts_of_a_message(open_house, svc):
    """A message that the client sends in fragments is one, and pings are answered in between."""
    house = await open_house(svc)
    client = await house.connect("/echo")
    await client.send(["a", "ä", "b"])
    await soon(await client.ping())
    assert await soon(client.recv()) == "aäb"


# ── the handshake ──


async def test_subprotocols(open_house, svc):
    """The handler sees what the client offers, in order, and chooses one."""

    @svc.websocket("/proto")
    async def proto(ws: WebSocket) -> None:
        offered = ws.subprotocols
        await ws.accept("chat.v2" if "chat.v2" in offered else None)
        await ws.send(offered)

    house = await open_house(svc)
    for offered, chosen in [(["x", "chat.v2"], "chat.v2"), (["x"], None), (None, None)]:
        client = await house.connect("/proto", subprotocols=offered)
        assert client.subprotocol == chosen
        assert json.loads(await soon(client.recv())) == (offered or [])


async def test_subprotocols_on_several_lines(open_house, svc, raw):
    """An offer in two header lines is one (RFC 6455 section 11.3.4)."""

    @svc.websocket("/proto")
    async def proto(ws: WebSocket) -> None:
        await ws.accept(ws.subprotocols[-1])
        await ws.send(ws.subprotocols)

    house = await open_house(svc)
    headers = [("Sec-WebSocket-Protocol", "a, b"), ("Sec-WebSocket-Protocol", "c")]
    client = await raw(house)
    client.write(handshake("/proto", headers))
    assert b"\r\nsec-websocket-protocol: c\r\n" in (await client.head()).lower()
    assert await client.message() == '["a","b","c"]'


async def test_headers_of_an_accept(open_house, svc):
    """Headers of an accept reach the client, repeats as well; what belongs to the handshake is the gateway's."""

    @svc.websocket("/headers")
    async def headers(ws: WebSocket) -> None:
        fields = {
            "x-a": "1",
            "set-cookie": ["a=1", "b=2"],
            "sec-websocket-protocol": "nonsense",
            "sec-websocket-accept": "nonsense",
            "sec-websocket-extensions": "nonsense",
        }
        await ws.accept(headers=fields)
        await ws.accept("later", {"x-b": "2"})  # does nothing
        await ws.send("open")

    house = await open_house(svc)
    client = await house.connect("/headers")
    answer = client.response.headers
    assert answer["x-a"] == "1"
    assert answer.get_all("set-cookie") == ["a=1", "b=2"]
    assert answer.get_all("upgrade") == ["websocket"]
    assert [answer.get(name) for name in ("x-b", "sec-websocket-protocol", "sec-websocket-extensions")] == [None] * 3
    assert answer["date"]
    assert await soon(client.recv()) == "open"


async def test_hop_by_hop_headers_of_an_accept(open_house, svc):
    """Headers that belong to one connection do not cross with an accept, as they do not with any answer."""

    @svc.websocket("/headers")
    async def headers(ws: WebSocket) -> None:
        fields = {"connection": "x-b", "upgrade": "h2c", "content-length": "7", "nw-flow": "1", "x-b": "1", "x-a": "1"}
        await ws.accept(headers=fields)
        await ws.send("x" * 1000)

    house = await open_house(svc)
    client = await house.connect("/headers")
    answer = client.response.headers
    assert answer.get_all("upgrade") == ["websocket"]
    assert answer.get_all("connection") == ["Upgrade"]
    assert [answer.get(name) for name in ("x-a", "x-b", "content-length", "nw-flow")] == ["1", None, None, None]
    assert await soon(client.recv()) == "x" * 1000


async def test_refused_with_an_error(open_house, svc):
    """An `HTTPError` before the accept is the answer to the handshake: problem+json, with its headers."""

    @svc.websocket("/no")
    async def no(ws: WebSocket) -> None:
        raise HTTPError(429, "not so fast", reason="slow", headers={"retry-after": "7", "x-a": "ü"})

    house = await open_house(svc)
    answer = await house.refused("/no")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["detail"] == "not so fast"


async def no_accept(ws: WebSocket) -> None:
    """Return without an accept."""


async def fails_first(ws: WebSocket) -> None:
    """Fail without an accept."""
    raise ValueError("secret")


async def closes_first(ws: WebSocket) -> None:
    """Say goodbye without an accept."""
    await ws.close(4000, "at once")


async def wrong_page(ws: WebSocket, page: int) -> None:
    """Want a parameter."""
    await ws.accept()


@pytest.mark.parametrize(
    ("handler", "status", "reason"),
    [(no_accept, 403, "refused"), (fails_first, 500, "handler_failed"), (wrong_page, 422, "invalid_input")],
)
async def test_never_accepted(open_house, svc, logged, handler, status, reason):
    """What ends before its accept is an ordinary answer."""
    svc.websocket("/never")(handler)
    house = await open_house(svc)
    answer = await house.refused("/never")
    assert answer.status_code == status
    assert json.loads(answer.body)["reason"] == reason
    assert b"secret" not in answer.body
    assert len(logged) == (handler is fails_first)
    logged.clear()


async def test_closed_at_once(open_house, svc):
    """A goodbye accepts first: so the client gets its code."""
    svc.websocket("/never")(closes_first)
    house = await open_house(svc)
    assert await goodbye(await house.connect("/never")) == (4000, "at once")


@pytest.mark.parametrize(
    ("path", "status", "reason"), [("/nothing", 404, "no_service"), ("/plain", 405, "method_not_allowed")]
)
async def test_no_websocket_there(open_house, svc, path, status, reason):
    """A path without a route is 404, one that answers HTTP only is 405."""
    house = await open_house(svc)
    answer = await house.refused(path)
    assert (answer.status_code, json.loads(answer.body)["reason"]) == (status, reason)


async def test_404_below_a_route_of_the_service(open_house, svc):
    """A path that the service gets and has no route for is its 404."""
    svc.get("/files/<path:rest>")(lambda rest: None)
    svc.websocket("/room/<room>/<seat>")(no_accept_of)
    house = await open_house(svc)
    answer = await house.refused("/room/1/")
    assert (answer.status_code, json.loads(answer.body)["reason"]) == (404, "no_route")


async def no_accept_of(ws: WebSocket, room: str, seat: str) -> None:
    """Return without an accept."""


async def test_http_where_a_websocket_is(open_house, svc):
    """An ordinary request on the path of a WebSocket is 426; OPTIONS says what there is."""
    house = await open_house(svc)
    async with httpx2.AsyncClient(base_url=house.front.url) as client:
        answers = [await client.request(method, "/echo") for method in ("GET", "HEAD", "POST")]
        options = await client.options("/echo")
    assert [answer.status_code for answer in answers] == [426] * 3
    assert answers[0].json()["reason"] == "upgrade_required"
    assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS")


@pytest.mark.xfail(
    strict=True, reason="a 426 has no Upgrade field: `forwarded_fields` drops it, and the fronts do not add it"
)
async def test_426_says_to_what(open_house, svc):
    """A 426 names the protocol (RFC 9110 section 15.5.22: MUST)."""
    house = await open_house(svc)
    async with httpx2.AsyncClient(base_url=house.front.url) as client:
        answer = await client.get("/echo")
    assert answer.headers["upgrade"] == "websocket"


async def test_http_beside_a_websocket(open_house, svc):
    """A path may have both: a GET is answered, a WebSocket opened, and other methods are told of GET alone."""

    @svc.get("/echo")
    async def page() -> str:
        return "page"

    house = await open_house(svc)
    client = await house.connect("/echo")
    await client.send("x")
    assert await soon(client.recv()) == "x"
    async with httpx2.AsyncClient(base_url=house.front.url) as http:
        assert (await http.get("/echo")).text == "page"
        answer = await http.post("/echo")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_handler_that_does_not_decide(open_house, svc):
    """A handshake that is not answered in time is a 504, and the handler is cancelled."""

    @svc.websocket("/never")
    async def never(ws: WebSocket) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            svc.said.put_nowait("cancelled")
            raise

    house = await open_house(svc, timeout=0.2)
    answer = await house.refused("/never")
    assert answer.status_code == 504
    assert await soon(svc.said.get()) == "cancelled"


async def test_a_client_that_leaves_before_the_answer(open_house, svc, raw):
    """A handshake whose client leaves ends the handler."""

    @svc.websocket("/never")
    async def never(ws: WebSocket) -> None:
        svc.said.put_nowait("began")
        try:
            await asyncio.Event().wait()
        finally:
            svc.said.put_nowait("ended")

    house = await open_house(svc)
    client = await raw(house)
    client.write(handshake("/never"))
    assert await soon(svc.said.get()) == "began"
    client.abort()
    assert await soon(svc.said.get()) == "ended"


async def test_more_than_a_service_takes(open_house, svc):
    """Open WebSockets count against `max_streams`, not against `concurrency`: what is over is 503, until one ends."""
    house = await open_house(svc, concurrency=1, max_streams=2)
    clients = [await house.connect("/echo") for _ in range(2)]
    answer = await house.refused("/echo")
    assert (answer.status_code, json.loads(answer.body)["reason"]) == (503, "overloaded")
    await clients[0].close()
    async with asyncio.timeout(10):
        while len(house.worker._streaming) == 2:
            await asyncio.sleep(0.002)
    await house.connect("/echo")


# ── goodbyes ──


class Wide(BaseModel):
    """A message that does not fit."""

    n: int


async def after_accept(ws: WebSocket[Wide]) -> None:
    """Read one message, and do what it says."""
    n = (await ws.receive()).n
    if n >= 600:
        raise ValueError("secret")
    if n:
        raise HTTPError(n, "secret")


@pytest.mark.parametrize(
    ("said", "code", "reason", "log"),
    [
        ('{"n": 0}', 1000, "", False),
        ('{"n": 600}', 1011, "", True),
        ('{"n": 503}', 1011, "", False),
        ('{"n": 403}', 1008, "Forbidden", False),
        ('{"n": "x"}', 1007, "message.n: Input should be a valid integer, unable to parse string as an integer", False),
        ("no JSON", 1007, "message: Invalid JSON: expected ident at line 1 column 2", False),
    ],
)
async def test_how_a_handler_ends(open_house, svc, logged, said, code, reason, log):
    """The end of a handler closes its WebSocket with the code that says why, and nothing of its insides."""
    svc.websocket("/after")(after_accept)
    house = await open_house(svc)
    client = await house.connect("/after")
    await client.send(said)
    assert await goodbye(client) == (code, reason)
    assert bool(logged) == log
    logged.clear()


GOODBYES = [(1000, ""), (1001, "x"), (3000, "ü€"), (4001, "y" * 123), (4999, "z")]


@pytest.mark.parametrize(("code", "reason"), GOODBYES)
async def test_the_goodbye_of_a_handler(open_house, svc, code, reason):
    """Code and reason of a handler reach the client; what it says after that goes nowhere."""

    @svc.websocket("/bye")
    async def bye(ws: WebSocket) -> None:
        await ws.send("last")
        await ws.close(code, reason)
        await ws.close(4444, "again")
        with pytest.raises(WebSocketClosed):
            await ws.send("more")
        svc.said.put_nowait("done")

    house = await open_house(svc)
    client = await house.connect("/bye")
    assert await soon(client.recv()) == "last"
    assert await goodbye(client) == (code, reason)
    assert await soon(svc.said.get()) == "done"


@pytest.mark.parametrize(("code", "reason"), GOODBYES)
async def test_the_goodbye_of_a_client(open_house, svc, code, reason):
    """Code and reason of a client reach the handler, behind all that it has said before."""
    house = await open_house(svc)
    client = await house.connect("/listen")
    await client.send("last")
    await client.close(code, reason)
    assert await soon(svc.said.get()) == "last"
    closed = await soon(svc.said.get())
    assert (closed.code, closed.reason) == (code, reason)


async def test_a_goodbye_without_a_code(open_house, svc, raw):
    """An empty close frame is 1005 for the handler (RFC 6455 section 7.1.5)."""
    house = await open_house(svc)
    client = await raw(house)
    client.write(handshake("/listen"))
    await client.head()
    client.write(frame(Opcode.CLOSE, b""))
    assert (await soon(svc.said.get())).code == 1005


async def test_both_say_goodbye_at_once(open_house, svc):
    """Goodbyes that cross are one end."""

    @svc.websocket("/cross")
    async def cross(ws: WebSocket) -> None:
        await ws.receive()
        await ws.close(4001, "service")

    house = await open_house(svc)
    client = await house.connect("/cross")
    await client.send("x")
    await client.close(4002, "client")
    assert client.close_code in (4001, 4002)


async def test_a_client_that_vanishes(open_house, svc):
    """A connection that is cut ends the handler's iteration, and its cleanup runs."""

    @svc.websocket("/watch")
    async def watch(ws: WebSocket) -> None:
        try:
            async for message in ws:
                svc.said.put_nowait(message)
            svc.said.put_nowait("no more")
        finally:
            svc.said.put_nowait("cleaned up")

    house = await open_house(svc)
    client = await house.connect("/watch")
    await client.send("x")
    assert await soon(svc.said.get()) == "x"
    vanish(client)
    assert [await soon(svc.said.get()) for _ in "12"] == ["no more", "cleaned up"]


async def test_a_client_that_vanishes_while_it_is_sent_to(open_house, svc):
    """A handler that only sends hears it, too."""

    @svc.websocket("/tick")
    async def tick(ws: WebSocket) -> None:
        try:
            while True:
                await ws.send("tick")
                await asyncio.sleep(0)
        except WebSocketClosed as closed:
            svc.said.put_nowait(closed.code)
            raise

    house = await open_house(svc)
    client = await house.connect("/tick")
    await client.recv()
    vanish(client)
    assert await soon(svc.said.get()) in (1005, 1006)


LEAVES = pytest.mark.parametrize("leave", ["goodbye", "vanish"])
SLEEPS = "a goodbye of the client, unlike a cancel, never starts the grace: SocketPipe and Job do not hear of it"


async def leave_by(how: str, client: ClientConnection) -> None:
    """Leave, politely or not."""
    if how == "goodbye":
        await client.close()
    else:
        vanish(client)


@LEAVES
async def test_a_handler_that_only_sleeps(open_house, svc, monkeypatch, leave):
    """A handler that neither reads nor sends is cancelled when its client has been gone for the grace."""
    monkeypatch.setattr(jobs, "_GOODBYE", 0.05)

    @svc.websocket("/sleep")
    async def sleep(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            svc.said.put_nowait("cancelled")
            raise

    house = await open_house(svc)
    await leave_by(leave, await house.connect("/sleep"))
    assert await soon(svc.said.get(), 3) == "cancelled"


@LEAVES
async def test_a_handler_has_a_grace(open_house, svc, monkeypatch, leave):
    """A handler that has heard of the end has some seconds to finish what it does."""
    monkeypatch.setattr(jobs, "_GOODBYE", 5.0)

    @svc.websocket("/finish")
    async def finish(ws: WebSocket) -> None:
        async for _ in ws:
            pass
        await asyncio.sleep(0.1)
        svc.said.put_nowait("finished")

    house = await open_house(svc)
    await leave_by(leave, await house.connect("/finish"))
    assert await soon(svc.said.get(), 3) == "finished"


# ── ends of processes and connections ──


async def test_a_service_that_stops(open_house, svc):
    """Open WebSockets are closed with 1012 when the service stops, quickly, and their handlers end by themselves."""

    @svc.websocket("/watch")
    async def watch(ws: WebSocket) -> None:
        try:
            while True:
                await ws.receive()
        except WebSocketClosed as closed:
            svc.said.put_nowait((closed.code, closed.reason))

    house = await open_house(svc)
    client = await house.connect("/watch")
    assert await soon(house.worker.stop(), 1)
    assert await goodbye(client) == (1012, "the service stops")
    assert svc.said.get_nowait() == (1012, "the service stops")


async def test_a_service_that_stops_and_handlers_that_do_not(open_house, svc, monkeypatch):
    """A handler that does not hear of it is cancelled after the grace of WebSockets, not that of the service."""
    monkeypatch.setattr(jobs, "_GOODBYE", 0.05)

    @svc.websocket("/sleep")
    async def sleep(ws: WebSocket) -> None:
        await ws.accept()
        await asyncio.Event().wait()

    house = await open_house(svc)
    client = await house.connect("/sleep")
    assert await soon(house.worker.stop(20), 2)
    assert (await goodbye(client))[0] == 1012


async def test_a_service_that_stops_before_the_accept(open_house, svc):
    """A handler that opens its WebSocket while the service stops says goodbye at once."""
    go = asyncio.Event()

    @svc.websocket("/late")
    async def late(ws: WebSocket) -> None:
        svc.said.put_nowait("began")
        await go.wait()
        async for _ in ws:
            pass

    house = await open_house(svc)
    opening = asyncio.ensure_future(house.connect("/late"))
    await soon(svc.said.get())
    stopping = asyncio.ensure_future(house.worker.stop())
    async with asyncio.timeout(5):
        while not house.worker._stopping:
            await asyncio.sleep(0.002)
    go.set()
    assert await soon(stopping, 1)
    assert (await goodbye(await opening))[0] == 1012


async def test_a_gateway_that_stops(open_house, svc, until):
    """A gateway that stops closes with 1012, quickly, and handlers hear the code."""
    house = await open_house(svc)
    clients = [await house.connect("/listen") for _ in range(3)]
    assert await soon(house.front.stop(), 1)
    for client in clients:
        assert (await goodbye(client))[0] == 1012
        assert (await soon(svc.said.get())).code == 1012


async def test_a_gateway_that_stops_while_a_service_sends(open_house, svc):
    """A client that does not read does not keep a gateway that stops."""

    @svc.websocket("/flood")
    async def flood(ws: WebSocket) -> None:
        try:
            while True:
                await ws.send(bytes(64 * KIB))
        except WebSocketClosed:
            svc.said.put_nowait("closed")

    house = await open_house(svc, grace=0.2)
    client = await small_client(house, "/flood")
    await until_stuck(house)
    await soon(house.front.stop(), 1.5)
    assert await soon(svc.said.get()) == "closed"
    client.abort()


SERVICE = dedent(
    """
    from natsweb import Service, WebSocket

    svc = Service("mortal", root="mortal")

    @svc.websocket("/ws")
    async def hold(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)
    """
)


async def test_a_service_that_is_killed(open_house, nats_url, tmp_path):
    """A service process that dies closes its WebSockets with 1011 within three seconds; there is nobody to ask."""
    (tmp_path / "app.py").write_text(SERVICE)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "natsweb", "run", "app:svc", "--nats", nats_url),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b'"event": "ready"' not in await process.stdout.readline():
                pass
        house = await open_house(Service("nobody", root="mortal"))
        client = await house.connect("/ws")
        await client.send("x")
        assert await soon(client.recv()) == "x"
        process.send_signal(signal.SIGKILL)
        code, reason = await soon(goodbye(client), 3.5)
        assert (code, reason) == (1011, "")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.fixture
async def own_server() -> AsyncIterator[AsyncExitStack]:
    """Give a stack to run a server in, which the test may end."""
    async with AsyncExitStack() as stack:
        yield stack


async def test_nats_ends(open_house, svc, own_server):
    """Without NATS no WebSocket goes on: 1011 for the client, 1006 for the handler."""
    house = await open_house(svc, nats=await own_server.enter_async_context(embedded_server()))
    client = await house.connect("/listen")
    await own_server.aclose()
    assert await soon(goodbye(client), 3) == (1011, "")
    assert (await soon(svc.said.get(), 3)).code == 1006


def lose_nats(bus: NatsBus) -> None:
    """Cut a connection to NATS; it comes back by itself."""
    bus._client._transport._io_writer.transport.abort()


@pytest.mark.parametrize("side", ["service", "gateway"])
async def test_one_side_loses_nats(open_house, svc, side):
    """A side that loses its connection, and has it back at once, ends its WebSockets, and the other side hears it."""
    house = await open_house(svc)
    client = await house.connect("/listen")
    await client.send("x")
    assert await soon(svc.said.get()) == "x"
    lose_nats(house.worker.bus if side == "service" else house.gateway.exchange.bus)
    closed = await soon(svc.said.get(), 4)
    assert (await soon(goodbye(client), 4)) == (1011, "")
    assert closed.code == 1006


# ── around handlers ──


async def test_dependencies(open_house, svc):
    """What a handler depends on is made before it and cleaned up when its WebSocket has ended, whatever ended it."""
    journal = svc.journal

    async def session(room: str) -> AsyncIterator[str]:
        journal.append("open")
        try:
            yield f"session of {room}"
        finally:
            journal.append("close")
            svc.said.put_nowait("closed")

    @svc.websocket("/rooms/<room>")
    async def enter(ws: WebSocket, room: str, session: Annotated[str, Depends(session)]) -> None:
        await ws.send(session)
        async for message in ws:
            journal.append(message)
            if message == "fail":
                raise HTTPError(409, "no")

    house = await open_house(svc)
    for room, message in [("1", "leave"), ("2", "vanish"), ("3", "fail")]:
        client = await house.connect(f"/rooms/{room}")
        assert await soon(client.recv()) == f"session of {room}"
        await client.send(message)
        async with asyncio.timeout(10):
            while journal[-1] != message and svc.said.empty():
                await asyncio.sleep(0.002)
        await leave_by("vanish" if message == "vanish" else "goodbye", client)
        await soon(svc.said.get())
    assert journal == ["open", "leave", "close", "open", "vanish", "close", "open", "fail", "close"]


async def test_a_dependency_that_refuses(open_house, svc):
    """A dependency that raises before the accept refuses; the handler is not called."""

    async def token_of(request: Request) -> str:
        if request.headers.get("authorization") is None:
            raise HTTPError(401, "who are you?", headers={"www-authenticate": "Bearer"})
        return request.headers["authorization"]

    @svc.websocket("/private")
    async def private(ws: WebSocket, token: Annotated[str, Depends(token_of)]) -> None:
        await ws.send(token)

    house = await open_house(svc)
    answer = await house.refused("/private")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    client = await house.connect("/private", additional_headers={"authorization": "x"})
    assert await soon(client.recv()) == "x"


@pytest.mark.parametrize("around", ["service", "router"])
async def test_middleware(open_house, svc, around):
    """Middleware stands around a WebSocket as around any request: before its accept, and behind its end."""
    router = Router("/r")

    @(svc if around == "service" else router).middleware
    async def gate(request, call_next):
        if request.query == "no":
            return Response(status=401, headers={"x-gate": "1"}, body="no")
        svc.journal.append("before")
        response = await call_next(request)
        svc.journal.append(response.status)
        return response

    @router.websocket("/in")
    async def inside(ws: WebSocket) -> None:
        svc.journal.append("in")
        async for _ in ws:
            pass

    svc.include(router)
    house = await open_house(svc)
    answer = await house.refused("/r/in?no")
    assert (answer.status_code, answer.headers["x-gate"], answer.body) == (401, "1", b"no")
    await (await house.connect("/r/in")).close()
    async with asyncio.timeout(10):
        while len(svc.journal) < 3:
            await asyncio.sleep(0.002)
    assert svc.journal[:2] == ["before", "in"]
    assert svc.journal[2] < 400


async def test_error_handlers(open_house, svc):
    """`on_error` answers before the accept, and decides the code of the goodbye after it."""

    @svc.on_error(KeyError)
    async def missing(request: Request, error: KeyError) -> HTTPError:
        return HTTPError(404, f"no {error.args[0]}")

    @svc.websocket("/fail/<when>")
    async def fail(ws: WebSocket, when: str) -> None:
        if when == "late":
            await ws.accept()
        raise KeyError(when)

    house = await open_house(svc)
    answer = await house.refused("/fail/early")
    assert (answer.status_code, json.loads(answer.body)["detail"]) == (404, "no early")
    assert await goodbye(await house.connect("/fail/late")) == (1008, "Not Found")


async def test_refused_with_a_stream(open_house, svc):
    """A refusal is an answer in one piece: a stream is 502, and its source is closed."""

    @svc.middleware
    async def stream(request, call_next):
        async def pieces():
            try:
                while True:
                    yield b"x" * 1000
            finally:
                svc.said.put_nowait("closed")

        return StreamingResponse(pieces(), status=403)

    house = await open_house(svc)
    assert (await house.refused("/echo")).status_code == 502
    assert await soon(svc.said.get()) == "closed"


# ── many at once ──


async def test_many_senders(open_house, svc):
    """Tasks that send on one WebSocket at once never mix their messages, and each one's stay in order."""

    @svc.websocket("/many")
    async def many(ws: WebSocket) -> None:
        async def send(number: int) -> None:
            for index in range(10):
                await ws.send(bytes([number, index]) * 60_000)

        await asyncio.gather(*[send(number) for number in range(8)])

    house = await open_house(svc)
    client = await house.connect("/many")
    heard: dict[int, list[int]] = {}
    for _ in range(80):
        message = await soon(client.recv())
        assert message == message[:2] * 60_000
        heard.setdefault(message[0], []).append(message[1])
    assert heard == {number: list(range(10)) for number in range(8)}


async def small_client(house: House, path: str) -> "Raw":
    """Return a client on a socket with small buffers, which reads only when told to."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await loop.sock_connect(sock, house.address)
    client = Raw(await asyncio.open_connection(sock=sock, limit=4096))
    house.clients.append(client)
    client.write(handshake(path))
    await client.head()
    return client


async def until_stuck(house: House) -> None:
    """Wait until a service that sends has to wait for its client: no credit, and a gateway that cannot write."""

    def stuck() -> bool:
        sockets = [one for one in house.front._server.server_state.connections if hasattr(one, "writable")]
        streams = [job.stream for job in house.worker._streaming]
        return any(not one.writable.is_set() for one in sockets) and any(one.outflow.room <= 0 for one in streams)

    seen = 0
    async with asyncio.timeout(10):
        while seen < 50:
            await asyncio.sleep(0.002)
            seen = seen + 1 if stuck() else 0


async def test_a_client_that_does_not_read(open_house, svc):
    """A sender stops when window and socket buffers are full, others go on, and nothing is lost when it reads."""
    count = 400

    @svc.websocket("/numbers")
    async def numbers(ws: WebSocket) -> None:
        for svc.sent in range(1, count + 1):
            await ws.send(svc.sent.to_bytes(4) + bytes(64 * KIB))
        svc.said.put_nowait("all sent")

    house = await open_house(svc)
    client = await small_client(house, "/numbers")
    await until_stuck(house)
    stopped = svc.sent
    assert stopped * 64 * KIB < WINDOW + 8 * MIB  # the kernel's buffers are most of it
    assert svc.said.empty()

    other = await house.connect("/echo")
    for _ in range(20):
        await other.send("x" * 10_000)
        assert len(await soon(other.recv(), 2)) == 10_000
    assert svc.sent == stopped

    for number in range(1, count + 1):
        message = await client.message()
        assert (int.from_bytes(message[:4]), len(message)) == (number, 4 + 64 * KIB)
    assert await soon(svc.said.get()) == "all sent"
    await client.close()


async def test_a_handler_that_does_not_read(open_house, svc):
    """A client that sends to a handler which does not read has to wait, and others go on."""
    go = asyncio.Event()

    @svc.websocket("/slow")
    async def slow(ws: WebSocket) -> None:
        await ws.accept()
        await go.wait()
        async for message in ws:
            svc.said.put_nowait((message[0], len(message)))

    house = await open_house(svc)
    client = await house.connect("/slow")

    async def send() -> None:
        for number in range(200):
            await client.send(bytes([number]) * 100_000)

    sending = asyncio.ensure_future(send())
    [job] = house.worker._streaming
    async with asyncio.timeout(10):
        while job.stream.inflow.received < WINDOW:
            await asyncio.sleep(0.002)
    other = await house.connect("/echo")
    for _ in range(20):
        await other.send("x" * 10_000)
        assert len(await soon(other.recv(), 2)) == 10_000
    assert job.stream.inflow.received == WINDOW
    assert not sending.done()
    go.set()
    await soon(sending)
    assert [await soon(svc.said.get()) for _ in range(200)] == [(number, 100_000) for number in range(200)]


sizes = st.lists(
    st.tuples(st.booleans(), st.one_of(st.integers(0, 300), st.integers(0, 70_000), st.integers(0, 1_200_000))),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(down=sizes, up=sizes)
async def test_order(shared_house, down, up):
    """Both directions at once, whatever the sizes: every message arrives once, whole and in its place."""
    house, svc = shared_house
    svc.plan = [make(index, *one) for index, one in enumerate(down)]
    client = await house.connect("/both")

    async def send() -> None:
        for index, one in enumerate(up):
            await client.send(make(index, *one))

    async def hear() -> None:
        for expected in svc.plan:
            assert await client.recv() == expected

    await soon(asyncio.gather(send(), hear()), 20)
    for index, one in enumerate(up):
        assert await soon(svc.said.get()) == make(index, *one)
    await client.close()
    assert isinstance(await soon(svc.said.get()), WebSocketClosed)
    house.clients.remove(client)


def make(index: int, is_text: bool, size: int) -> str | bytes:
    """Return a message that looks like no other of its connection."""
    text = (f"{index}ä." * (size // 3 + 1))[:size]
    return text if is_text else text.encode()


@pytest.fixture
async def shared_house(open_house, svc):
    """Give a house with a handler that sends a plan and notes what it hears, at once."""

    @svc.websocket("/both")
    async def both(ws: WebSocket) -> None:
        async def send() -> None:
            for message in svc.plan:
                await ws.send(message)

        async def hear() -> None:
            try:
                while True:
                    svc.said.put_nowait(await ws.receive())
            except WebSocketClosed as closed:
                svc.said.put_nowait(closed)

        await asyncio.gather(send(), hear())

    return await open_house(svc), svc


async def test_two_hundred_at_once(open_house, svc, until):
    """Two hundred WebSockets talk at once; when they have left nothing of them is there."""
    house = await open_house(svc, concurrency=300)

    async def talk(number: int) -> None:
        client = await house.connect("/echo", open_timeout=30)
        for index in range(5):
            await client.send(f"{number} {index}")
            assert await client.recv() == f"{number} {index}"
        if number % 2:
            await client.close()
        else:
            vanish(client)

    before = len(asyncio.all_tasks())
    await soon(asyncio.gather(*[talk(number) for number in range(200)]), 30)
    await until(lambda: not house.left)
    await until(lambda: len(asyncio.all_tasks()) <= before)


# ── raw clients: what is on the wire of the socket ──


def handshake(path: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the bytes of a handshake."""
    protocol = ClientProtocol(parse_uri(f"ws://gateway.test{path}"))
    request = protocol.connect()
    for name, value in headers:
        request.headers[name] = value
    return request.serialize()


def frame(opcode: Opcode, data: bytes) -> bytes:
    """Return a frame as clients send them."""
    return Frame(opcode, data).serialize(mask=True)


class Raw:
    """A client on a bare socket."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.reader, self.writer = streams

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    async def head(self) -> bytes:
        """Return the next head."""
        return await soon(self.reader.readuntil(b"\r\n\r\n"))

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body of the next answer."""
        head = (await self.head()).lower()
        _, _, length = head.partition(b"\r\ncontent-length: ")
        size = int(length.split(b"\r\n")[0] or 0) if length else 0
        return int(head.split()[1]), await soon(self.reader.readexactly(size))

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame; raises `EOFError`."""
        first, size = await soon(self.reader.readexactly(2))
        if size >= 126:
            size = int.from_bytes(await soon(self.reader.readexactly(2 if size == 126 else 8)))
        return first & 15, await soon(self.reader.readexactly(size))

    async def message(self) -> str | bytes:
        """Return the next message."""
        opcode, payload = await self.frame()
        if opcode == Opcode.CLOSE:
            raise EOFError
        return payload.decode() if opcode == Opcode.TEXT else payload

    async def goodbye(self) -> int:
        """Return the code of the close frame that comes next."""
        opcode, payload = await self.frame()
        assert opcode == Opcode.CLOSE
        return int.from_bytes(payload[:2])

    def abort(self) -> None:
        """Cut the connection."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


GET = b"GET /plain HTTP/1.1\r\nhost: gateway.test\r\n\r\n"


async def is_open(client: Raw) -> None:
    """Hold a client to it: its handshake is answered, and it talks to the echo."""
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    client.write(frame(Opcode.TEXT, b"x"))
    assert await client.message() == "x"


async def test_messages_behind_the_handshake(open_house, svc, raw):
    """What comes in one segment with the handshake is not lost."""
    house = await open_house(svc)
    client = await raw(house)
    client.write(handshake("/echo") + frame(Opcode.TEXT, b"early") + frame(Opcode.BINARY, b"bird"))
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    assert [await client.message(), await client.message()] == ["early", b"bird"]


async def test_a_handshake_in_pieces(open_house, svc, raw):
    """A handshake may come byte by byte."""
    house = await open_house(svc)
    client = await raw(house)
    client.writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in handshake("/echo"):
        client.write(bytes([byte]))
        await asyncio.sleep(0)
    await is_open(client)


async def test_a_handshake_after_a_request(open_house, svc, raw):
    """A connection that was kept alive may become a WebSocket."""
    house = await open_house(svc)
    client = await raw(house)
    for _ in range(3):
        client.write(GET)
        assert await client.answer() == (200, b"plain")
    client.write(handshake("/echo"))
    await is_open(client)


async def test_a_handshake_behind_a_request(open_house, svc, raw):
    """A handshake that is pipelined is an ordinary request: it is answered in its turn, and the connection goes on."""
    house = await open_house(svc)
    client = await raw(house)
    client.write(GET + handshake("/echo") + GET)
    assert await client.answer() == (200, b"plain")
    assert (await client.answer())[0] == 426
    assert await client.answer() == (200, b"plain")
    client.write(handshake("/echo"))
    await is_open(client)


async def test_a_refused_handshake_ends_the_connection(open_house, svc, raw):
    """Behind a refusal the connection closes, and says so."""
    house = await open_house(svc)
    client = await raw(house)
    client.write(handshake("/nothing"))
    head = (await client.head()).lower()
    assert head.startswith(b"http/1.1 404 ")
    assert b"\r\nconnection: close\r\n" in head
    client.write(GET)
    assert b"HTTP/1.1" not in await soon(client.reader.read())


# A line of the head, what stands in its place, and the status on /echo and on /plain.
NEARLY = [
    (b"Sec-WebSocket-Key:", b"X-Key:", 426, 200),
    (b"Upgrade: websocket", b"Upgrade: h2c", 426, 200),
    (b"Upgrade: websocket", b"X-Upgrade: websocket", 426, 200),
    (b"Connection: Upgrade", b"Connection: keep-alive", 426, 200),
    (b"GET ", b"HEAD ", 426, 200),
    (b"GET ", b"OPTIONS ", 204, 204),
    (b"GET ", b"POST ", 426, 405),
]


@pytest.mark.parametrize(("line", "instead", "socket_status", "plain_status"), NEARLY)
async def test_what_is_nearly_a_handshake(open_house, svc, raw, line, instead, socket_status, plain_status):
    """A request that only mentions WebSockets is an ordinary one, and the connection goes on."""
    house = await open_house(svc)
    client = await raw(house)
    for path, status in [("/echo", socket_status), ("/plain", plain_status)]:
        client.write(handshake(path).replace(line, instead))
        head = await client.head()
        assert int(head.split()[1]) == status
        if not instead.startswith(b"HEAD"):
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            await client.reader.readexactly(int(length or 0))
    client.write(GET)
    assert await client.answer() == (200, b"plain")


# A line of the head, what stands in its place, the status.
BROKEN = [
    (b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Version: 8", 400),
    (b"Sec-WebSocket-Version: 13", b"X-Version: 13", 400),
    (b"Sec-WebSocket-Key: ", b"Sec-WebSocket-Key: x", 400),
    (b"Host: gateway.test\r\n", b"", 400),
    (b"GET /echo", b"GET /a/../echo", 400),
    (b"GET /echo", b"GET /%ff", 400),
    (b"GET /echo", b"GET /%zz", 400),
    (b"GET /echo", b"GET /" + b"x" * 4000, 414),
    (b"Host:", b"X-A: " + b"x" * 8000 + b"\r\nHost:", 101),
    (b"Host:", b"X-A: " + b"x" * 9000 + b"\r\nHost:", 431),
    (b"GET /echo", b"GET /echo?" + b"x" * 8150, 101),
    (b"GET /echo", b"GET /echo?" + b"x" * 8180, 414),
    (b"Host:", b"".join([b"X-%d: 1\r\n" % number for number in range(90)]) + b"Host:", 101),
    (b"Host:", b"X-A: \xff\xe4\r\nHost:", 101),
    (b"Host:", b"X-A: \xc3\xa4\r\nHost:", 101),
    (b"GET /echo", b"GET http://gateway.test/echo", 101),
]


@pytest.mark.parametrize(("line", "instead", "status"), BROKEN, ids=[str(n) for n in range(len(BROKEN))])
async def test_odd_handshakes(open_house, svc, raw, line, instead, status):
    """Every handshake has an answer: what our limits allow is opened, what is broken is refused."""
    house = await open_house(svc)
    client = await raw(house)
    client.write(handshake("/echo").replace(line, instead))
    assert int((await soon(client.head(), 3)).split()[1]) == status


async def test_a_handshake_with_a_body(open_house, svc, raw):
    """A body is no part of a handshake: it is refused, and never taken for frames."""
    house = await open_house(svc)
    client = await raw(house)
    hidden = frame(Opcode.TEXT, b"smuggled")
    client.write(handshake("/listen", [("Content-Length", str(len(hidden)))]) + hidden)
    assert int((await soon(client.head(), 3)).split()[1]) in (400, 413, 426)
    assert svc.said.empty()


FOUL = [
    (frame(Opcode.TEXT, b"\xff\xfe"), 1007),
    (frame(Opcode.CONT, b"x"), 1002),
    (Frame(Opcode.TEXT, b"x").serialize(mask=False), 1002),
    (frame(Opcode.CLOSE, b"\x03"), 1002),
    (frame(Opcode.CLOSE, (1005).to_bytes(2)), 1002),
    (frame(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
    (b"\x83\x80\x00\x00\x00\x00", 1002),
]


@pytest.mark.parametrize(("data", "code"), FOUL, ids=[str(number) for number in range(len(FOUL))])
async def test_foul_frames(open_house, svc, raw, logged, data, code):
    """What is no WebSocket frame closes with the code of RFC 6455 section 7.4.1, and the handler hears it."""
    house = await open_house(svc)
    client = await raw(house)
    client.write(handshake("/listen"))
    await client.head()
    client.write(frame(Opcode.TEXT, b"before"))
    assert await soon(svc.said.get()) == "before"
    client.write(data)
    assert await client.goodbye() == code
    assert (await soon(svc.said.get())).code == code
    logged.clear()  # uvicorn logs text that is not UTF-8


# ── raw NATS peers: what is on the wire behind the gateway ──


@pytest.fixture
async def nats_client(nats_url):
    """Give a plain NATS client."""
    client = await nats.connect(nats_url)
    yield client
    await client.close()


class Part:
    """One side of a WebSocket, played by a plain NATS client: what comes, and where answers go."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.to = ""
        self.inbox = ""

    async def listen(self) -> "Part":
        """Have an inbox."""
        base = self.client.new_inbox()
        self.inbox = f"{base}.1"
        await self.client.subscribe(f"{base}.*", cb=self._take)
        await self.client.flush()
        return self

    async def _take(self, message: Any) -> None:
        if not message.subject.endswith(".beat"):
            self.heard.put_nowait(message)

    async def next(self) -> tuple[dict[str, str] | None, bytes]:
        """Return headers and payload of what comes next."""
        message = await soon(self.heard.get())
        self.to = self.to or message.reply
        return message.headers, message.data

    async def say(self, payload: bytes = b"", **headers: str) -> None:
        """Send data, or control."""
        named = {name.replace("_", "-"): value for name, value in headers.items()} or None
        await self.client.publish(self.to, payload, reply=self.inbox, headers=named)
        await self.client.flush()


@pytest.fixture
async def as_service(nats_client, open_house, nats_url):
    """Give a function that opens a WebSocket to a service which the test plays; it returns both."""

    async def start(*accept: tuple[str, str], **options: Any) -> tuple[ClientConnection, Part, Any]:
        root = f"played.{next(_numbers)}"
        house = await open_house(Service("nobody", root=root), **options)
        asked: asyncio.Queue[Any] = asyncio.Queue()
        await nats_client.subscribe(f"{root}.ws", cb=asked.put)
        await nats_client.flush()
        opening = asyncio.ensure_future(house.connect("/ws?a=1", subprotocols=["x", "y"]))
        request = await soon(asked.get())
        part = await Part(nats_client).listen()
        part.to = request.reply
        await part.say(Nw_Status="101", Nw_Flow="1000", **dict(accept))
        return await soon(opening), part, request

    return start


async def test_a_service_on_the_wire(as_service):
    """What a gateway asks for, and how the two talk (docs/wire.md, WebSocket)."""
    client, part, request = await as_service(("sec-websocket-protocol", "y"), ("x-a", "1"))
    assert (client.subprotocol, client.response.headers["x-a"]) == ("y", "1")
    assert request.data == b""
    said = request.headers
    assert said["Nw-Upgrade"] == "websocket"
    assert (said["Nw-Method"], said["Nw-Query"], said["Nw-Scheme"]) == ("GET", "a=1", "ws")
    assert said["Nw-Accept"] == f"stream;window={WINDOW}"
    assert said["sec-websocket-protocol"] == "x, y"
    assert "sec-websocket-key" not in said
    for payload in (b"tone", b"Ttw\xc3", b"T\xaf", b"to", b"b\xff", b"t", b"Bx", b"b"):
        await part.say(payload)
    assert [await soon(client.recv()) for _ in range(5)] == ["one", "twïo", b"\xff", "", b"x"]
    await client.send("hello")
    assert await part.next() == (None, b"thello")
    await client.send("x" * 2000)
    first = await part.next()
    assert first == (None, b"T" + b"x" * (1000 - 6 - 1))
    assert part.heard.empty()
    await part.say(Nw_Flow="1900")
    await part.say(Nw_Flow="1500")  # less than before: nothing
    await part.say(Nw_Flow="9000")
    rest = b""
    while len(rest) < 2000 - 993:
        _, piece = await part.next()
        assert piece[:1] in (b"T", b"t")
        rest += piece[1:]
    assert piece[:1] == b"t"
    await client.close(4003, "böe")
    assert await part.next() == ({"Nw-End": "close;4003;böe"}, b"")


@pytest.mark.parametrize(
    ("said", "code", "answer"),
    [
        ([b"t\xff"], 1007, "close;1007"),
        ([b"x"], 1002, "close;1002"),
        ([b""], 1002, "close;1002"),
        ([b"Ta", b"bc"], 1002, "close;1002"),
        ([b"T" + bytes(600), b"t" + bytes(600)], 1009, "close;1009"),
        ([{"Nw-End": "close;4001;x"}], 4001, None),
        ([{"Nw-End": "close;1005;"}], 1000, None),
        ([{"Nw-End": "close;1006;gone"}], 1011, None),
        ([{"Nw-End": "error;lost"}], 1011, None),
        ([{"Nw-End": "ok;99"}], 1011, None),
        ([{"Nw-End": "close;99;x"}], 1011, None),
        ([{"Nw-End": "nonsense"}], 1011, None),
        ([{"Nw-Flow": "-"}], 1011, None),
        ([{"Nw-Flow": "x"}], 1011, None),
        ([b"t" + bytes(WINDOW)], 1011, None),
    ],
)
async def test_ends_on_the_wire(as_service, said, code, answer):
    """However a service ends a WebSocket, or breaks it, the client gets a code that can be sent."""
    client, part, _ = await as_service(ws_max_size=1000)
    for one in said:
        if isinstance(one, bytes):
            await part.say(one)
        else:
            await part.say(**one)
    assert (await soon(goodbye(client), 3))[0] == code
    if answer is not None:
        headers, _ = await part.next()
        assert headers["Nw-End"].startswith(answer)


async def test_a_service_that_only_counts(as_service):
    """The end of a WebSocket is a goodbye: `Nw-End: ok` is none, with the right number neither."""
    client, part, _ = await as_service()
    await part.say(b"tx")
    assert await soon(client.recv()) == "x"
    await part.say(Nw_End="ok;2")
    assert (await soon(goodbye(client), 3))[0] in (1002, 1011)


async def test_headers_of_a_service_on_the_wire(as_service):
    """Headers of one connection do not pass from a service's accept to the client."""
    said = [("connection", "x-b"), ("upgrade", "h2c"), ("content-length", "7"), ("x-b", "1"), ("x-a", "1")]
    client, _, _ = await as_service(*said)
    answer = client.response.headers
    assert answer.get_all("upgrade") == ["websocket"]
    assert [answer.get(name) for name in ("x-a", "x-b", "content-length")] == ["1", None, None]


@pytest.fixture
async def as_gateway(nats_client, open_house, svc):
    """Give a function that asks the service for a WebSocket as a gateway which the test plays."""

    async def start(path: str, window: int = 1000, **headers: str) -> Part:
        await open_house(svc)
        part = await Part(nats_client).listen()
        subject = f"{svc.root}.{path}"
        said = {"Nw-Upgrade": "websocket", "Nw-Accept": f"stream;window={window}", **headers}
        await nats_client.publish(subject, b"", reply=part.inbox, headers=said)
        return part

    return start


async def test_a_gateway_on_the_wire(as_gateway, svc):
    """What a service answers, and how the two talk: any NATS client can be the gateway."""
    part = await as_gateway("echo")
    headers, payload = await part.next()
    assert (headers["Nw-Status"], headers["Nw-Flow"], payload) == ("101", str(WINDOW), b"")
    await part.say(b"thello")
    assert await part.next() == (None, b"thello")
    await part.say(b"t" + b"x" * 2000)
    assert await part.next() == (None, b"T" + b"x" * (1000 - 6 - 1))
    await part.say(Nw_Flow="3000")
    assert await part.next() == (None, b"t" + b"x" * (2000 - 993))
    await part.say(Nw_End="close;4001;so")
    assert await part.next() == ({"Nw-End": "close;1000;"}, b"")


async def test_a_sender_that_gives_up(as_gateway, svc):
    """A send that is cancelled in the middle of its message leaves no part of it in front of the next: it closes."""

    @svc.websocket("/hasty")
    async def hasty(ws: WebSocket) -> None:
        sending = asyncio.ensure_future(ws.send("x" * 5000))
        await ws.receive()
        sending.cancel()
        await asyncio.wait([sending])
        await ws.send("whole")

    part = await as_gateway("hasty")
    await part.next()
    assert await part.next() == (None, b"T" + b"x" * 999)
    await part.say(b"tgo")
    await part.say(Nw_Flow="9000")
    headers, payload = await part.next()
    assert (headers or {}).get("Nw-End", "").startswith("close;"), payload


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([b"t\xff"], 1007),
        ([b"x"], 1002),
        ([b"Ta", b"bc"], 1002),
        ([{"Nw-End": "close;4001;x"}], 4001),
        ([{"Nw-End": "error;lost"}], 1006),
        ([{"Nw-End": "ok;99"}], 1006),
        ([{"Nw-Flow": "-"}], 1006),
        ([{"Nw-Flow": "x"}], 1006),
        ([b"t" + bytes(WINDOW)], 1006),
    ],
)
async def test_ends_of_callers(as_gateway, svc, said, code):
    """However a caller ends a WebSocket, or breaks it, the handler hears a code."""
    part = await as_gateway("listen")
    if not isinstance(said[0], bytes) or said[0] != b"t" + bytes(WINDOW):
        await part.next()
    for one in said:
        if not part.to:
            await part.next()
        if isinstance(one, bytes):
            await part.say(one)
        else:
            await part.say(**one)
    closed = await soon(svc.said.get(), 3)
    assert closed.code == code


async def test_a_caller_that_dies(nats_url, open_house, svc):
    """A gateway whose process is gone is noticed within three seconds: the handler hears 1006."""
    await open_house(svc)
    client = await nats.connect(nats_url)
    part = await Part(client).listen()
    said = {"Nw-Upgrade": "websocket", "Nw-Accept": "stream;window=1000"}
    await client.publish(f"{svc.root}.listen", b"", reply=part.inbox, headers=said)
    await part.next()
    await client.close()
    assert (await soon(svc.said.get(), 3.5)).code == 1006


@pytest.mark.parametrize("accept", [None, "stream;window=0"])
async def test_a_caller_that_takes_no_streams(nats_client, open_house, svc, accept):
    """A WebSocket needs a caller that takes a stream: else it is a 400, in one message."""
    await open_house(svc)
    said = {"Nw-Upgrade": "websocket", **({} if accept is None else {"Nw-Accept": accept})}
    reply = await nats_client.request(f"{svc.root}.listen", b"", headers=said, timeout=5)
    assert reply.headers["Nw-Status"] == "400"
    assert svc.said.empty()


async def test_a_caller_who_wants_no_answer(nats_client, open_house, svc, until):
    """A WebSocket without a reply subject talks to nobody, and ends."""
    house = await open_house(svc)
    await nats_client.publish(f"{svc.root}.echo", b"", headers={"Nw-Upgrade": "websocket"})
    await nats_client.flush()
    await until(lambda: not house.left)


# ── the gateway in another application ──


@pytest.fixture
async def hosted(open_house, svc):
    """Give a function that serves the gateway inside of a Starlette app, under uvicorn."""
    async with AsyncExitStack() as stack:

        async def start(prefix: str, *, extension: bool = True, ws: str = "websockets-sansio") -> str:
            house = await open_house(svc)

            async def app(scope: Any, receive: Any, send: Any) -> None:
                if not extension:
                    scope = {name: value for name, value in scope.items() if name != "extensions"}
                await house.gateway(scope, receive, send)

            outer = Starlette(routes=[Mount(prefix, app)])
            config = uvicorn.Config(outer, port=0, log_config=None, ws=ws, lifespan="off")
            server = uvicorn.Server(config)
            server.capture_signals = contextlib.nullcontext
            task = asyncio.create_task(server.serve())

            async def stop() -> None:
                server.should_exit = True
                await task

            stack.push_async_callback(stop)
            async with asyncio.timeout(10):
                while not server.started:
                    await asyncio.sleep(0.002)
            port = server.servers[0].sockets[0].getsockname()[1]
            return f"ws://127.0.0.1:{port}{prefix}"

        yield start


@pytest.mark.parametrize("ws", ["websockets-sansio", "wsproto"])
@pytest.mark.parametrize("prefix", ["", "/api/v1"])
async def test_inside_of_another_application(hosted, svc, prefix, ws):
    """A gateway mounted in an ASGI app carries WebSockets under any server, refusals and goodbyes included."""

    @svc.websocket("/bye")
    async def bye(ws: WebSocket) -> None:
        await ws.accept(ws.subprotocols[0], {"x-a": "1"})
        await ws.send(await ws.receive())
        await ws.close(4001, "bye")

    url = await hosted(prefix, ws=ws)
    async with connect(f"{url}/bye", proxy=None, subprotocols=["chat"]) as client:
        assert (client.subprotocol, client.response.headers["x-a"]) == ("chat", "1")
        await client.send("x" * 100_000)
        assert len(await soon(client.recv())) == 100_000
        assert await goodbye(client) == (4001, "bye")
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"{url}/plain", proxy=None):
            pass
    assert caught.value.response.status_code == 405
    assert json.loads(caught.value.response.body)["reason"] == "method_not_allowed"


async def test_a_server_without_denial_responses(hosted):
    """Where the server cannot send an answer to a handshake, a refusal is its 403."""
    url = await hosted("/in", extension=False)
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"{url}/nothing", proxy=None):
            pass
    assert caught.value.response.status_code == 403
    async with connect(f"{url}/echo", proxy=None) as client:
        await client.send("x")
        assert await soon(client.recv()) == "x"
