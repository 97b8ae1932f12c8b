"""`WebSocket` in a handler: what its types make of messages, when it accepts, how it ends, what cannot be declared."""

import asyncio
import json
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar

import fastapi
import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from natsweb import Depends, HTTPError, Request, Router, Service, WebSocket, WebSocketClosed, websocket
from natsweb.annotations import Place
from natsweb.errors import DeclarationError, InvalidInput, UpgradeRequired
from natsweb.headers import Headers
from natsweb.messages import Call
from natsweb.sockets import socket_type
from natsweb.subjects import path_tokens

PLACE = Place("app.py:1", '@svc.websocket("/")', "chat(ws)")


class Pipe:
    """A WebSocket in memory: `comes` is what the client sends, `log` what happens."""

    def __init__(self, *comes: str | bytes | WebSocketClosed, subprotocols: tuple[str, ...] = ()) -> None:
        self.comes = deque(comes)
        self.subprotocols = list(subprotocols)
        self.is_accepted = False
        self.log: list[Any] = []

    async def accept(self, subprotocol=None, headers=()) -> None:
        if not self.is_accepted:
            self.is_accepted = True
            self.log.append(("accept", subprotocol, list(Headers(headers))))

    async def receive(self) -> str | bytes:
        found = self.comes.popleft() if self.comes else WebSocketClosed(1000, "bye")
        if isinstance(found, WebSocketClosed):
            raise found
        return found

    async def send(self, data: str | bytes) -> None:
        self.log.append(data)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.log.append(("close", code, reason))


class Channel:
    """What stands behind a call with a WebSocket."""

    finishes = False

    def __init__(self, pipe: Pipe | None) -> None:
        self.socket = pipe


def opened(kind: Any, *comes: str | bytes | WebSocketClosed) -> tuple[WebSocket[Any, Any], Pipe]:
    """Return the WebSocket that a parameter of a type gets."""
    found = socket_type(kind, "ws", PLACE)
    assert found is not None
    pipe = Pipe(*comes)
    return found.wrap(pipe), pipe


def call_of(path: str, pipe: Pipe | None, **fields: Any) -> Call:
    """Return a request for a WebSocket."""
    call = Call("GET", path_tokens(path), upgrade=pipe is not None, **fields)
    call.channel = Channel(pipe)
    return call


@pytest.fixture
def svc():
    """A service whose threads end with the test."""
    service = Service("test", threads=1)
    yield service
    service.close()


# ── types ──


class Color(Enum):
    """Something that JSON writes as its value."""

    RED = "red"


class Order(BaseModel):
    """A model with an alias, a default, and something that is not for others."""

    model_config = ConfigDict(populate_by_name=True)
    id: int = Field(alias="orderId")
    color: Color = Color.RED
    secret: str = Field(default="s", exclude=True)


class Special(Order):
    """One with more fields."""

    extra: str = "x"


class Point(TypedDict):
    """A dict with known keys."""

    x: int


@dataclass
class Pair:
    """A dataclass."""

    a: int
    b: str = ""


class Join(BaseModel):
    """One of two."""

    kind: Literal["join"]


class Say(BaseModel):
    """The other."""

    kind: Literal["say"]
    text: str


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    """A model of something."""

    item: T


Either = Annotated[Join | Say, Field(discriminator="kind")]

# type, message that comes, what the handler gets
READ: list[tuple[Any, str | bytes, Any]] = [
    (WebSocket, "text", "text"),
    (WebSocket, b"\xff", b"\xff"),
    (WebSocket[Any], "{}", "{}"),
    (WebSocket[str | bytes], b"x", b"x"),
    (WebSocket[bytes | str], "x", "x"),
    (WebSocket[str], "", ""),
    (WebSocket[str], '"x"', '"x"'),
    (WebSocket[bytes], b"", b""),
    (WebSocket[bytes], "ä", "ä".encode()),
    (WebSocket[int], "7", 7),
    (WebSocket[int], b"7", 7),
    (WebSocket[list[int]], "[1, 2]", [1, 2]),
    (WebSocket[dict[str, Any]], '{"a": null}', {"a": None}),
    (WebSocket[int | None], "null", None),
    (WebSocket[Order], '{"orderId": 1, "color": "red"}', Order(id=1)),
    (WebSocket[Order], b'{"orderId": 1}', Order(id=1)),
    (WebSocket[Point], '{"x": 1}', {"x": 1}),
    (WebSocket[Pair], '{"a": 1, "b": "x"}', Pair(1, "x")),
    (WebSocket[Either], '{"kind": "say", "text": "x"}', Say(kind="say", text="x")),
    (WebSocket[Join | Say], '{"kind": "join"}', Join(kind="join")),
    (WebSocket[Box[Order]], '{"item": {"orderId": 1}}', Box[Order](item=Order(id=1))),
    (WebSocket[Order, str], '{"orderId": 1}', Order(id=1)),
    (Annotated[WebSocket[int], "noted"], "7", 7),
]


@pytest.mark.parametrize(("kind", "comes", "gets"), READ)
async def test_what_comes(kind, comes, gets):
    """Text and bytes come as they are, all else is JSON of the type."""
    ws, _ = opened(kind, comes)
    found = await ws.receive()
    assert found == gets
    assert type(found) is type(gets)


# type, message that comes, where the error is
UNREADABLE: list[tuple[Any, str | bytes, list[Any]]] = [
    (WebSocket[int], "x", ["message"]),
    (WebSocket[int], "", ["message"]),
    (WebSocket[int], "7.5", ["message"]),
    (WebSocket[int], b"\xff", ["message"]),
    (WebSocket[list[int]], '[1, "x"]', ["message", 1]),
    (WebSocket[Order], "{}", ["message", "orderId"]),
    (WebSocket[Order], '{"orderId": 1, "color": "blue"}', ["message", "color"]),
    (WebSocket[Point], '{"x": "y"}', ["message", "x"]),
    (WebSocket[Pair], "{}", ["message", "a"]),
    (WebSocket[Either], '{"kind": "say"}', ["message", "say", "text"]),
    (WebSocket[Either], '{"kind": "shout"}', ["message"]),
    (WebSocket[Order], "[" * 100_000, ["message"]),
    (WebSocket[None], "1", ["message"]),
]


@pytest.mark.parametrize(("kind", "comes", "place"), UNREADABLE, ids=[str(n) for n in range(len(UNREADABLE))])
async def test_what_does_not_fit(kind, comes, place):
    """A message that does not fit is an `InvalidInput` which says where; the next one may fit."""
    ws, _ = opened(kind, comes)
    with pytest.raises(InvalidInput) as caught:
        await ws.receive()
    assert caught.value.errors[0]["loc"] == place
    assert caught.value.detail == "the message does not fit what this WebSocket takes"


async def test_going_on_after_a_message_that_does_not_fit():
    """A handler may catch an `InvalidInput` and go on, in a loop as well."""
    ws, _ = opened(WebSocket[int], "1", "x", "2")
    heard: list[Any] = []
    while True:
        try:
            async for number in ws:
                heard.append(number)
            break
        except InvalidInput as error:
            heard.append(error.status)
    assert heard == [1, 422, 2]


async def test_bytes_where_text_is_wanted():
    """A WebSocket of text takes no bytes."""
    ws, _ = opened(WebSocket[str], b"x", "y")
    with pytest.raises(InvalidInput, match="takes text, and bytes have come"):
        await ws.receive()
    assert await ws.receive() == "y"


# type, what the handler sends, what goes
WRITTEN: list[tuple[Any, Any, str | bytes]] = [
    (WebSocket, "text", "text"),
    (WebSocket, b"\xff", b"\xff"),
    (WebSocket, "", ""),
    (WebSocket, None, "null"),
    (WebSocket, {"a": "ä"}, '{"a":"ä"}'),
    (WebSocket, [1, 2], "[1,2]"),
    (WebSocket, Order(id=1), '{"orderId":1,"color":"red"}'),
    (WebSocket, Pair(1), '{"a":1,"b":""}'),
    (WebSocket[str], "x", "x"),
    (WebSocket[bytes], b"x", b"x"),
    (WebSocket[str, bytes], b"x", b"x"),
    (WebSocket[bytes, str], "x", "x"),
    (WebSocket[int], 7, "7"),
    (WebSocket[str, int], 7, "7"),
    (WebSocket[str, str | bytes], b"x", b"x"),
    (WebSocket[str, Any], 7, "7"),
    (WebSocket[Order], Order(id=1), '{"orderId":1,"color":"red"}'),
    (WebSocket[Order], Special(id=1), '{"orderId":1,"color":"red"}'),
    (WebSocket[Order], {"orderId": 1}, '{"orderId":1,"color":"red"}'),
    (WebSocket[Point], {"x": 1}, '{"x":1}'),
    (WebSocket[Pair], Pair(1, "ä"), '{"a":1,"b":"ä"}'),
    (WebSocket[Either], Join(kind="join"), '{"kind":"join"}'),
    (WebSocket[str, Join | Say], Say(kind="say", text=""), '{"kind":"say","text":""}'),
    (WebSocket[list[Order]], [Order(id=1)], '[{"orderId":1,"color":"red"}]'),
    (WebSocket[Box[Order]], Box[Order](item=Order(id=1)), '{"item":{"orderId":1,"color":"red"}}'),
    (WebSocket[int | None], None, "null"),
]


@pytest.mark.parametrize(("kind", "sends", "goes"), WRITTEN)
async def test_what_goes(kind, sends, goes):
    """Text and bytes go as they are, all else as JSON text of the type: by alias, without what is excluded."""
    ws, pipe = opened(kind)
    await ws.send(sends)
    assert pipe.log == [("accept", None, []), goes]


# type, what the handler sends
UNWRITABLE: list[tuple[Any, Any]] = [
    (WebSocket[int], "x"),
    (WebSocket[str, int], "x"),
    (WebSocket[Order], {"orderId": "x"}),
    (WebSocket[Order], None),
    (WebSocket[Order], Join(kind="join")),
    (WebSocket[Point], {}),
    (WebSocket[list[Order]], [1]),
    (WebSocket[Either], Order(id=1)),
]


@pytest.mark.parametrize(("kind", "sends"), UNWRITABLE)
async def test_what_a_handler_must_not_send(kind, sends):
    """A message that is not of the type is the handler's failure, and nothing goes."""
    ws, pipe = opened(kind)
    with pytest.raises(ValueError, match="does not fit its type"):
        await ws.send(sends)
    assert pipe.log[1:] == []


@pytest.mark.parametrize("kind", [WebSocket, WebSocket[bytes]])
@pytest.mark.parametrize("make", [bytearray, memoryview])
async def test_other_bytes(kind, make):
    """Whatever holds bytes goes as bytes."""
    ws, pipe = opened(kind)
    await ws.send(make(b"\xff"))
    assert pipe.log[1:] == [b"\xff"]


@pytest.mark.parametrize("text", [Annotated[str, Field(max_length=3)], Annotated[str, "noted"]])
async def test_text_with_a_note(text):
    """`Annotated[str, ...]` is text, as it is in a body."""
    ws, pipe = opened(WebSocket[text], "abc")
    assert await ws.receive() == "abc"
    await ws.send("xyz")
    assert pipe.log[1:] == ["xyz"]


# ── life ──


async def test_accepted_by_what_comes_first():
    """The first `receive`, `send` or `close` accepts; `accept` does with a subprotocol and headers, and only once."""
    ws, pipe = opened(WebSocket, "x")
    assert repr(ws) == "<WebSocket: not accepted>"
    await ws.receive()
    assert repr(ws) == "<WebSocket: open>"
    await ws.send("y")
    assert pipe.log == [("accept", None, []), "y"]

    ws, pipe = opened(WebSocket)
    await ws.close(4000, "no")
    assert pipe.log == [("accept", None, []), ("close", 4000, "no")]

    ws, pipe = opened(WebSocket, "x")
    pipe.subprotocols = ["a", "b"]
    assert ws.subprotocols == ["a", "b"]
    await ws.accept("b", {"x-a": "1"})
    await ws.accept("a")
    assert [message async for message in ws] == ["x"]
    assert pipe.log == [("accept", "b", [("x-a", "1")])]


@pytest.mark.parametrize("closed", [WebSocketClosed(1000), WebSocketClosed(4000, "x"), WebSocketClosed(1006)])
async def test_the_end(closed):
    """Iterating ends with any goodbye, what has come before it is heard; `receive` raises it."""
    ws, _ = opened(WebSocket, "1", "2", closed)
    assert [message async for message in ws] == ["1", "2"]
    ws, _ = opened(WebSocket, closed)
    with pytest.raises(WebSocketClosed) as caught:
        await ws.receive()
    assert caught.value is closed


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 1016, 2999, 3000, 4000, 4999])
async def test_codes_that_can_be_sent(code):
    """From 1000 to 4999, but for those that only say what happened."""
    ws, pipe = opened(WebSocket)
    await ws.close(code)
    assert pipe.log[-1] == ("close", code, "")


@pytest.mark.parametrize("code", [-1, 0, 999, 1005, 1006, 1015, 5000, 65_536])
async def test_codes_that_cannot(code):
    """Others are a `ValueError` that says which to use, and nothing happens."""
    ws, pipe = opened(WebSocket)
    with pytest.raises(ValueError, match=f"^{code} cannot be the code of a goodbye; use 1000, or 4000 to 4999"):
        await ws.close(code)
    assert pipe.log == []


def test_how_an_end_reads():
    """`WebSocketClosed` says code and reason."""
    assert [str(WebSocketClosed(*one)) for one in [(), (4000,), (4000, "x y")]] == ["1000", "4000", "4000 x y"]


# ── in a service ──


async def test_a_handler_through_its_service(svc):
    """A service finds the handler of a WebSocket, and gives it what it asks for."""

    @svc.websocket("/rooms/<room>")
    async def chat(ws: WebSocket[int], room: str, request: Request, step: int = 1) -> None:
        async for number in ws:
            await ws.send(number + step)
        await ws.send(len(room) + len(request.params))

    pipe = Pipe("1", "2")
    response = await svc.handle(call_of("/rooms/tea", pipe, query="step=10"))
    assert response.status < 400
    assert pipe.log == [("accept", None, []), "11", "12", "4"]


async def test_a_parameter_that_does_not_fit(svc):
    """What the handler asks for besides is checked before it accepts."""

    @svc.websocket("/")
    async def chat(ws: WebSocket, page: int) -> None:
        await ws.accept()

    pipe = Pipe()
    response = await svc.handle(call_of("/", pipe))
    assert (response.status, pipe.log) == (422, [])


async def test_a_websocket_that_has_ended_is_no_error(svc, caplog):
    """`WebSocketClosed` that gets out of a handler is an end like any other, an error handler for all is not asked."""
    asked = []

    @svc.on_error(Exception)
    async def failed(request: Request, error: Exception) -> HTTPError:
        asked.append(error)
        return HTTPError(500)

    @svc.websocket("/")
    async def chat(ws: WebSocket) -> None:
        while True:
            await ws.receive()

    response = await svc.handle(call_of("/", Pipe("x")))
    assert response.status < 400
    assert asked == []
    assert caplog.records == []


async def test_a_failure_to_send_is_a_failure(svc, caplog):
    """A message that is not of the type fails the handler: 500, the log says why, and the caller does not hear it."""

    @svc.websocket("/")
    async def chat(ws: WebSocket[str, Order]) -> None:
        await ws.send({"orderId": "x"})

    response = await svc.handle(call_of("/", Pipe()))
    assert response.status == 500
    assert b"orderId" not in response.body
    assert "does not fit its type" in caplog.text


async def test_dependencies_share_the_websocket(svc):
    """A dependency may take the WebSocket as well, with types of its own: it is the same one."""

    async def hello(ws: WebSocket[str, int]) -> str:
        await ws.accept("x")
        await ws.send(1)
        return await ws.receive()

    @svc.websocket("/")
    async def chat(ws: WebSocket[Order], first: Annotated[str, Depends(hello)]) -> None:
        await ws.send(Order(id=len(first)))

    pipe = Pipe("four")
    await svc.handle(call_of("/", pipe))
    assert pipe.log == [("accept", "x", []), "1", '{"orderId":4,"color":"red"}']


async def test_a_class_of_handlers(svc):
    """`@websocket` marks a method."""

    class Rooms:
        @websocket("/<room>")
        async def enter(self, ws: WebSocket, room: str) -> None:
            await ws.send(room)

    svc.include(Rooms(), prefix="/rooms")
    pipe = Pipe()
    await svc.handle(call_of("/rooms/tea", pipe))
    assert pipe.log[-1] == "tea"


async def test_a_service_without_a_socket(svc):
    """A WebSocket route without something that carries it is a 426."""

    @svc.websocket("/")
    async def chat(ws: WebSocket) -> None:
        await ws.accept()

    call = call_of("/", Pipe())
    call.channel = Channel(None)
    assert (await svc.handle(call)).status == 426
    found = socket_type(WebSocket, "ws", PLACE)
    assert found is not None
    with pytest.raises(UpgradeRequired):
        found.wrap(None)


async def test_tasks_beside_the_handler(svc):
    """A handler may read and write in two tasks; the end of one shows in the other."""

    @svc.websocket("/")
    async def chat(ws: WebSocket) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(hear(ws))
            group.create_task(ws.send("x"))

    async def hear(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(message)

    pipe = Pipe("1")
    assert (await svc.handle(call_of("/", pipe))).status < 400
    assert sorted(pipe.log[1:]) == ["1", "x"]


# ── what cannot be declared ──


async def no_ws(room: str) -> None:
    """Take no WebSocket."""


async def takes_ws(ws: WebSocket) -> None:
    """Take a WebSocket."""


async def takes_unknown(ws: WebSocket[Pipe]) -> None:
    """Take one of a type that pydantic cannot take."""


async def sends_unknown(ws: WebSocket[str, Pipe]) -> None:
    """Send one."""


async def by_dependency(ws: WebSocket) -> None:
    """Take a WebSocket."""


async def depends_on_ws(it: Annotated[None, Depends(by_dependency)]) -> None:
    """Take one by a dependency."""


# how it is declared, handler, what is said, where, what to do
WRONG: list[tuple[Any, Any, str, str, str]] = [
    (lambda r: r.websocket("/<room>"), no_ws, "of a WebSocket does not take one", "no_ws(room", "ws: WebSocket"),
    (lambda r: r.get("/x"), takes_ws, "takes a WebSocket, and its route answers HTTP", "takes_ws(ws", "websocket(...)"),
    (lambda r: r.post("/x"), depends_on_ws, "takes a WebSocket, and its route answers", "depends_on_ws", "websocket("),
    (lambda r: r.websocket("/x"), takes_unknown, "Pipe", "takes_unknown(ws", ""),
    (lambda r: r.websocket("/x"), sends_unknown, "Pipe", "sends_unknown(ws", ""),
]


@pytest.mark.parametrize(("declare", "handler", "what", "where", "fix"), WRONG)
@pytest.mark.parametrize("make", [lambda svc: svc, lambda svc: Router("/r")])
def test_mistakes(svc, make, declare, handler, what, where, fix):
    """A handler that cannot work is refused by its decorator: what, where, and what to do."""
    router = make(svc)

    def all_of_it() -> None:
        declare(router)(handler)
        svc.include(router)

    with pytest.raises(DeclarationError) as caught:
        all_of_it()
    assert what in caught.value.what
    assert where in str(caught.value.where)
    assert "tests/test_sockets.py:" in str(caught.value.where)
    assert fix in caught.value.fix
    assert caught.value.fix


def test_a_handler_whose_dependency_takes_it(svc):
    """It is enough if a dependency takes the WebSocket."""
    svc.websocket("/x")(depends_on_ws)
    svc.compile()


def test_both_in_one_place(svc):
    """Two handlers of WebSockets on one path are one too many; a GET beside one is not."""
    svc.websocket("/x")(takes_ws)
    svc.get("/x")(lambda: None)
    with pytest.raises(DeclarationError, match=r"^WEBSOCKET /x is declared twice"):
        svc.websocket("/x")(takes_ws)


@pytest.mark.parametrize("kind", [WebSocket[int] | None, Optional[WebSocket[int]]])  # noqa: UP045
async def test_a_websocket_that_may_be_none(svc, kind):
    """A parameter that may be None is a WebSocket: on a route of WebSockets there is always one."""

    async def chat(ws) -> None:
        await ws.send(await ws.receive() + 1)

    chat.__annotations__["ws"] = kind
    svc.websocket("/x")(chat)
    pipe = Pipe("1")
    await svc.handle(call_of("/x", pipe))
    assert pipe.log[1:] == ["2"]


async def another_frameworks(ws: fastapi.WebSocket) -> None:
    """Take FastAPI's WebSocket."""


def test_another_frameworks_websocket(svc):
    """FastAPI's WebSocket is refused by name."""
    with pytest.raises(DeclarationError, match=r"'ws' is (fastapi|starlette)'s WebSocket"):
        svc.websocket("/x")(another_frameworks)


def test_the_remedy_for_another_frameworks_websocket(svc):
    """What is said instead is natsweb's own."""
    with pytest.raises(DeclarationError) as caught:
        svc.websocket("/x")(another_frameworks)
    assert caught.value.fix == "did you mean natsweb.WebSocket?"


def test_types_that_come_later():
    """A type that is defined below the handler is known when the service compiles."""
    service = Service("late", threads=1)

    @service.websocket("/x")
    async def chat(ws: "WebSocket[Later]") -> None: ...  # noqa: F821

    with pytest.raises(DeclarationError, match="'Later' names nothing"):
        service.compile()
    globals()["Later"] = Order
    try:
        service.compile()
    finally:
        del globals()["Later"]
        service.close()


def test_no_document_of_websockets(svc):
    """OpenAPI knows no WebSockets: they are left out, and their types with them."""
    svc.websocket("/x")(takes_ws)

    @svc.get("/y")
    async def y() -> int:
        return 1

    assert list(svc.openapi()["paths"]) == ["/y"]
    assert "Order" not in json.dumps(svc.openapi())
