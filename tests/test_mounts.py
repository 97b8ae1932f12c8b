"""Applications below a path of a service: whose a request is, what the application sees, when it lives, who knows."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from natsweb import HTTPError, Nats, Request, Response, Router, Service, WebSocket
from natsweb.asgi import AsgiApp
from natsweb.catalogue import Catalogue
from natsweb.cli.routes import route_rows
from natsweb.errors import DeclarationError, StartError
from natsweb.exchange import Exchange
from natsweb.flights import Incoming
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.member import Member
from natsweb.messages import Call
from natsweb.micro import Info
from natsweb.mounts import Below
from natsweb.natsbus import connect as connect_bus
from natsweb.routing import WEBSOCKET
from natsweb.subjects import path_tokens

_numbers = itertools.count()


class Mirror:
    """An ASGI application that answers with what it sees, echoes on WebSockets, and notes when it lives."""

    def __init__(self, name: str = "mirror", journal: list[str] | None = None) -> None:
        self.__name__ = self.name = name
        self.journal = [] if journal is None else journal
        self.fails = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": f"{self.name} {scope['root_path']} {scope['path']}"})
            await send({"type": "websocket.close", "code": 4000, "reason": ""})
        else:
            if scope["path"].endswith("/raise"):
                raise KeyError("raised")
            names = ("method", "path", "root_path", "query_string", "raw_path")
            said = {name: scope[name].decode() if isinstance(scope[name], bytes) else scope[name] for name in names}
            body = (await receive()).get("body", b"").decode()
            answer = json.dumps({"app": self.name, "body": body, **said}).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", self.name.encode())]})
            await send({"type": "http.response.body", "body": answer})

    async def live(self, receive: Any, send: Any) -> None:
        """Live: start, fail if told so, and stop."""
        await receive()
        if self.fails:
            await send({"type": "lifespan.startup.failed", "message": self.fails})
            return
        self.journal.append(f"{self.name} starts")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.journal.append(f"{self.name} stops")
        await send({"type": "lifespan.shutdown.complete"})


@pytest.fixture
def svc():
    """A service whose threads end with the test."""
    service = Service("test", threads=1)
    yield service
    service.close()


async def ask(service: Service, path: str, method: str = "GET", **fields: Any) -> Response:
    """Answer one request."""
    path, _, query = path.partition("?")
    return await service.handle(Request(raw_path=path, method=method, query=query, **fields))


async def seen(service: Service, path: str, method: str = "GET", **fields: Any) -> dict[str, Any]:
    """Return what a mounted mirror sees."""
    response = await ask(service, path, method, **fields)
    assert response.status == 200, response
    return response.parse_json()


# ── whose a request is ──


@pytest.fixture
def mixed(svc):
    """A service with routes of its own, declared around a mount at /shop."""

    async def typed(**_: Any) -> str:
        return "typed"

    async def of_id(id: str) -> str:
        return f"typed {id}"

    async def of_rest(rest: str) -> str:
        return f"typed {rest}"

    async def plain() -> str:
        return "typed"

    async def socket(ws: WebSocket) -> None:
        await ws.accept()

    svc.get("/shop/items/new")(plain)
    svc.mount("/shop", Mirror())
    svc.get("/shop/orders/<id>")(of_id)
    svc.post("/shop")(plain)
    svc.options("/shop/own")(plain)
    svc.head("/shop/heads")(plain)
    svc.get("/shop/files/<path:rest>")(of_rest)
    svc.websocket("/shop/chat")(socket)
    svc.get("/other")(plain)
    return svc


# method, path, what answers: text of a typed route, "mirror", or a status
WHOSE: list[Any] = [
    ("GET", "/shop/items/new", "typed"),
    ("HEAD", "/shop/items/new", "typed"),
    ("POST", "/shop/items/new", "mirror"),
    ("DELETE", "/shop/items/new", "mirror"),
    ("OPTIONS", "/shop/items/new", 204),
    ("PROPFIND", "/shop/items/new", "mirror"),
    ("GET", "/shop/items/old", "mirror"),
    ("OPTIONS", "/shop/items/old", "mirror"),
    ("HEAD", "/shop/items/old", "mirror"),
    ("GET", "/shop/orders/7", "typed 7"),
    ("PUT", "/shop/orders/7", "mirror"),
    ("GET", "/shop/orders/7/items", "mirror"),
    ("GET", "/shop/orders", "mirror"),
    ("GET", "/shop/orders/", "mirror"),
    ("GET", "/shop", "mirror"),
    ("POST", "/shop", "typed"),
    ("OPTIONS", "/shop", 204),
    ("GET", "/shop/", "mirror"),
    ("POST", "/shop/", "mirror"),
    ("GET", "/shop//x", "mirror"),
    ("OPTIONS", "/shop/own", "typed"),
    ("HEAD", "/shop/heads", "typed"),
    ("GET", "/shop/heads", "mirror"),
    ("GET", "/shop/files/a/b", "typed a/b"),
    ("PUT", "/shop/files/a/b", "mirror"),
    ("GET", "/shop/chat", "mirror"),
    ("OPTIONS", "/shop/chat", "mirror"),
    ("GET", "/other", "typed"),
    ("POST", "/other", 405),
    ("GET", "/shopping", 404),
    ("GET", "/", 404),
    ("GET", "/x/shop", 404),
]


@pytest.mark.parametrize(("method", "path", "who"), WHOSE)
async def test_whose_a_request_is(mixed, method, path, who):
    """Routes come before a mount, whatever the order of their declaration; what they do not take is the mount's."""
    response = await ask(mixed, path, method)
    if isinstance(who, int):
        assert response.status == who
    elif who == "mirror":
        assert response.headers["x-app"] == "mirror"
    else:
        assert (response.status, response.text) == (200, who)


async def test_options_of_a_path_with_both(mixed):
    """OPTIONS of a path that has routes is the service's answer, which names their methods."""
    response = await ask(mixed, "/shop/items/new", "OPTIONS")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_mount_at_the_top(svc):
    """A mount at / takes all that is not a route's: there is no 404 and no 405 any more."""

    @svc.get("/orders/<id>")
    async def show(id: int) -> int:
        return id

    svc.mount("/", Mirror())
    assert (await ask(svc, "/orders/7")).text == "7"
    for method, path in [("GET", "/"), ("PUT", "/orders/7"), ("GET", "/orders/7/"), ("GET", "/a//b/"), ("POST", "/a")]:
        assert (await seen(svc, path, method))["raw_path"] == path
    assert (await ask(svc, "/orders/x")).status == 422


async def test_mounts_beside_and_inside_of_each_other(svc):
    """Of two mounts the deeper one wins, and each sees its own prefix."""
    for prefix in ("/a", "/", "/a/b", "/c"):
        svc.mount(prefix, Mirror(prefix))
    whose = {
        "/": "/",
        "/x": "/",
        "/a": "/a",
        "/a/": "/a",
        "/a/x": "/a",
        "/a/b": "/a/b",
        "/a/b/": "/a/b",
        "/a/b/c/d": "/a/b",
        "/a/bc": "/a",
        "/c/a/b": "/c",
        "/ab": "/",
    }
    for path, prefix in whose.items():
        found = await seen(svc, path)
        assert (found["app"], found["root_path"], found["path"]) == (prefix, prefix.rstrip("/"), path)


async def test_applications_inside_of_applications(svc):
    """An application that mounts another one does so below its own prefix."""
    inner = Starlette(
        routes=[Route("/deep", lambda request: PlainTextResponse(str(request.url_for("here"))), name="here")]
    )
    outer = FastAPI()
    outer.mount("/inner", inner)
    svc.mount("/shop", outer)
    response = await ask(svc, "/shop/inner/deep", headers={"host": "example.test"})
    assert response.text == "http://example.test/shop/inner/deep"
    assert (await ask(svc, "/shop/inner/nothing")).status == 404
    assert '"/shop"' in (await ask(svc, "/shop/openapi.json")).text  # FastAPI's servers


async def test_the_routes_of_a_router_beside_a_mount(svc):
    """Routes of an included router come before a mount as well, late ones too."""
    router = Router("/shop/new")
    svc.mount("/shop", Mirror())
    svc.include(router)

    @router.get("/<id>")
    async def show(id: int) -> int:
        return id

    assert (await ask(svc, "/shop/new/7")).text == "7"
    assert (await seen(svc, "/shop/new"))["app"] == "mirror"


# ── what the application sees ──

# mount, path, path and raw_path as the application sees them
PATHS = [
    ("/", "/", "/", "/"),
    ("/", "/a/b", "/a/b", "/a/b"),
    ("/shop", "/shop", "/shop", "/shop"),
    ("/shop", "/shop/", "/shop/", "/shop/"),
    ("/shop", "/shop/a%20b", "/shop/a b", "/shop/a%20b"),
    ("/shop", "/shop/%C3%BC", "/shop/ü", "/shop/%C3%BC"),
    ("/shop", "/shop/a%2Fb", "/shop/a/b", "/shop/a%2Fb"),
    ("/shop", "/shop/%41", "/shop/A", "/shop/A"),
    ("/shop", "/shop//a//", "/shop//a//", "/shop//a//"),
    ("/a/b", "/a/b/c", "/a/b/c", "/a/b/c"),
    ("/ü", "/%C3%BC/x", "/ü/x", "/%C3%BC/x"),
    ("/a b", "/a%20b", "/a b", "/a%20b"),
]


@pytest.mark.parametrize(("mount", "path", "decoded", "raw"), PATHS)
async def test_paths(svc, mount, path, decoded, raw):
    """The application sees the whole path, decoded and canonical, and its own place as `root_path`."""
    svc.mount(mount, Mirror())
    found = await seen(svc, f"{path}?a=%20&b")
    assert (found["path"], found["raw_path"]) == (decoded, raw)
    assert found["root_path"] == mount.rstrip("/")
    assert found["query_string"] == "a=%20&b"


async def test_bodies(svc):
    """Methods and bodies pass."""
    svc.mount("/shop", Mirror())
    found = await seen(svc, "/shop/x", "PATCH", body=b"body")
    assert (found["method"], found["body"]) == ("PATCH", "body")


async def test_a_path_that_climbs(svc):
    """A path that climbs out of the mount in its encoded form never gets there."""
    svc.mount("/shop", Mirror())
    assert (await ask(svc, "/shop/a%2F..%2F..%2Fb")).status == 400


@pytest.mark.parametrize("prefix", ["", "/shop", "/a/b"])
async def test_a_natsweb_handler_below_a_prefix(svc, prefix):
    """A `Handler` sees the path below its mount, and where that is."""

    async def handler(request: Request) -> Response:
        return Response(body=f"{request.root_path} {request.raw_path} {request.method}")

    svc.mount(prefix or "/", handler)
    assert (await ask(svc, f"{prefix}/x/y%2Fz", "PUT")).text == f"{prefix} /x/y%2Fz PUT"
    assert (await ask(svc, prefix or "/")).text == f"{prefix} / GET"
    assert repr(svc.mounts[0].app) == f"<handler below {prefix or '/'}>"
    assert isinstance(svc.mounts[0].app, Below)


# ── around ──


async def test_middleware_and_guards(svc):
    """Middleware of the service stands around a mount; that of routers, dependencies and guards do not."""
    journal = []

    @svc.middleware
    async def around(request, call_next):
        journal.append(request.raw_path)
        response = await call_next(request)
        return response.with_headers({"x-around": "1"})

    async def inner(request, call_next):
        raise AssertionError("not around a mount")

    svc.include(Router("/shop", middleware=[inner]))
    svc.mount("/shop", Mirror())
    response = await ask(svc, "/shop/x")
    assert response.headers["x-around"] == "1"
    assert response.parse_json()["app"] == "mirror"
    assert journal == ["/shop/x"]


async def test_middleware_that_changes_the_path(svc):
    """Middleware may send a request to a mount, or away from it."""

    @svc.middleware
    async def move(request, call_next):
        moved = {"/old": "/shop/x", "/shop/secret": "/own"}
        return await call_next(request.model_copy(update={"raw_path": moved.get(request.raw_path, request.raw_path)}))

    @svc.get("/own")
    async def own() -> str:
        return "own"

    svc.mount("/shop", Mirror())
    assert (await seen(svc, "/old"))["path"] == "/shop/x"
    assert (await ask(svc, "/shop/secret")).text == "own"


async def test_what_an_application_raises(svc, caplog):
    """An exception is the service's: `on_error` may answer it, else it is a 500, in the log and in `on_failure`."""
    failures: list[BaseException] = []
    svc.on_failure = failures.append
    svc.mount("/shop", Mirror())
    response = await ask(svc, "/shop/raise")
    assert (response.status, response.parse_json()["reason"]) == (500, "handler_failed")
    assert [type(one) for one in failures] == [KeyError]
    assert "KeyError: 'raised'" in caplog.text

    @svc.on_error(KeyError)
    async def missing(request: Request, error: KeyError) -> HTTPError:
        return HTTPError(404, f"no {error.args[0]}")

    response = await ask(svc, "/shop/raise")
    assert (response.status, response.parse_json()["detail"]) == (404, "no raised")
    assert len(failures) == 1


async def test_a_failure_behind_the_answer(svc):
    """What an application raises behind its answer is heard as well."""
    failures: list[BaseException] = []
    svc.on_failure = failures.append

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        raise KeyError("behind")

    svc.mount("/shop", app)
    call = Call("GET", path_tokens("/shop"))
    response = await svc.handle(call)
    assert (response.status, response.body) == (200, b"done")
    if call.after is not None:
        await call.after.close()
    assert [type(one) for one in failures] == [KeyError]


# ── mistakes ──


# prefix, what is said, what to do
WRONG_PREFIXES = [
    ("shop", "'shop' cannot be a prefix", "write '/shop'"),
    ("/shop/", "'/shop/' cannot be a prefix", "write '/shop'"),
    ("//", "'//' cannot be a prefix", "leave it out for '/'"),
    ("/<shop>", "cannot be mounted at '/<shop>'", "at a path without captures"),
    ("/a/<path:rest>", "cannot be mounted at", "at a path without captures"),
    ("/{shop}", "", "<shop>"),
    ("/a?b", "", "write paths decoded"),
]


@pytest.mark.parametrize(("prefix", "what", "fix"), WRONG_PREFIXES)
def test_prefixes_that_cannot_be_one(svc, prefix, what, fix):
    """A prefix that cannot be one is refused, in three parts, with the line of the user."""
    with pytest.raises(DeclarationError) as caught:
        svc.mount(prefix, Mirror())
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where[0].startswith("tests/test_mounts.py:")
    assert svc.mounts == []


@pytest.mark.parametrize("app", [None, "shop:app", 7, Response()])
def test_what_cannot_be_mounted(svc, app):
    """Something that cannot be called is no application."""
    with pytest.raises(DeclarationError, match="cannot be mounted at '/shop'") as caught:
        svc.mount("/shop", app)
    assert 'svc.mount("/shop", app)' in caught.value.fix


def test_two_mounts_in_one_place(svc):
    """A path has one mount: the second one is told of the first."""
    svc.mount("/shop", Mirror("one"))
    with pytest.raises(DeclarationError, match=r"^\* /shop is declared twice") as caught:
        svc.mount("/shop", Mirror("two"))
    assert "mount of one" in caught.value.where[0]
    assert "mount of two" in caught.value.where[1]


async def test_a_mount_that_was_refused_does_not_live(svc):
    """An application that could not be mounted is not started with the service."""
    svc.mount("/shop", Mirror("one"))
    two = Mirror("two")
    with contextlib.suppress(DeclarationError):
        svc.mount("/shop", two)
    async with svc:
        assert two.journal == []


# ── life ──


def life_of(journal: list[str], name: str) -> Any:
    """Return a lifespan that notes when it begins and ends."""

    async def life(svc: Service) -> AsyncIterator[None]:
        journal.append(f"{name} starts")
        try:
            yield
        finally:
            journal.append(f"{name} stops")

    return life


async def test_lifespans(svc):
    """Applications start behind the service's own lifespans, in the order of their mounts, and stop before them."""
    journal: list[str] = []
    svc.lifespan(life_of(journal, "first"))
    svc.mount("/a", Mirror("a", journal))
    svc.lifespan(life_of(journal, "second"))
    svc.mount("/b", Mirror("b", journal))
    for _ in "12":
        async with svc:
            assert (await seen(svc, "/a"))["app"] == "a"
        assert journal == [
            *["first starts", "second starts", "a starts", "b starts"],
            *["b stops", "a stops", "second stops", "first stops"],
        ]
        journal.clear()


async def test_an_application_that_does_not_start(svc):
    """An application that cannot start keeps the service from starting; what has started before it is stopped."""
    journal: list[str] = []
    svc.lifespan(life_of(journal, "own"))
    svc.mount("/a", Mirror("a", journal))
    svc.mount("/b", broken := Mirror("b", journal))
    broken.fails = "Traceback ...\nRuntimeError: no database"
    with pytest.raises(StartError) as caught:
        await svc.start()
    assert "no database" in str(caught.value)
    assert journal == ["own starts", "a starts", "a stops", "own stops"]
    assert not svc.is_running
    broken.fails = ""
    async with svc:
        assert journal[-1] == "b starts"


async def test_the_state_of_an_application(svc):
    """What an application's lifespan leaves in its state is there for its requests, and for no other application's."""

    @contextlib.asynccontextmanager
    async def life(app: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"made": "one"}

    def show(request: Any) -> PlainTextResponse:
        return PlainTextResponse(getattr(request.state, "made", "nothing"))

    svc.mount("/one", Starlette(routes=[Route("/one", show)], lifespan=life))
    svc.mount("/two", Starlette(routes=[Route("/two", show)]))
    async with svc:
        assert [(await ask(svc, path)).text for path in ("/one/one", "/two/two")] == ["one", "nothing"]


# ── who knows ──


def test_endpoints(svc):
    """A mount is two endpoints without methods, which say that they take bodies as they come."""

    @svc.get("/shop/new")
    async def new() -> str: ...

    svc.mount("/shop", Mirror("my app!"))
    assert svc.patterns() == ["api.shop", "api.shop.>"]
    found = [(one.name, one.subject, one.methods, one.path, one.takes_body) for one, _ in svc.endpoints("top")]
    assert found == [
        ("new", "top.shop.new", ("GET",), "/shop/new", False),
        ("my_app_", "top.shop", (), "/shop", True),
        ("my_app_", "top.shop.>", (), "/shop/<path:rest>", True),
    ]
    before = svc.metadata()["natsweb.routes"]
    svc.mount("/more", Mirror())
    assert svc.metadata()["natsweb.routes"] != before


def test_patterns_of_a_mount_at_the_top(svc):
    """A mount at / is everything."""
    svc.mount("/", Mirror())
    assert svc.patterns() == ["api", "api.>"]


async def test_counters(svc):
    """What a mount answers is counted at its endpoint."""
    svc.mount("/shop", Mirror())
    for path in ("/shop", "/shop/x", "/shop/y"):
        call = Call("GET", path_tokens(path))
        await svc.handle(call)
        assert call.counter is not None
    assert [counter.started for _, counter in svc.endpoints()] == [1, 2]


def test_rows(svc):
    """`natsweb routes` shows a mount with its place."""

    @svc.get("/shop/new")
    async def new() -> str: ...

    svc.websocket("/chat")(chat)
    svc.mount("/shop", Mirror())
    rows = route_rows(svc, "top")
    assert [(row["method"], row["path"], row["subject"], row["handler"]) for row in rows] == [
        ("GET", "/shop/new", "top.shop.new", "new"),
        (WEBSOCKET, "/chat", "top.chat", "chat"),
        ("*", "/shop", "top.shop", "mirror"),
        ("*", "/shop/<path:rest>", "top.shop.>", "mirror"),
    ]
    assert all(row["file"].startswith("tests/test_mounts.py:") for row in rows)


async def chat(ws: WebSocket) -> None:
    """Say who it is."""
    await ws.send("typed")


def test_no_document_of_mounts(svc):
    """OpenAPI knows routes only."""
    svc.mount("/shop", Mirror())
    assert svc.openapi()["paths"] == {}


def test_how_it_reads():
    """Mounts say what and where they are."""
    service = Service("reads", threads=1)
    service.mount("/shop", Mirror())
    [top, below] = service.mounts
    assert isinstance(top.app, AsgiApp)
    assert repr(top.app) == "<AsgiApp at /shop: not running, 0 requests>"
    assert (top.name, str(below.template)) == ("mirror", "/shop/<path:rest>")
    assert top.place.startswith("tests/test_mounts.py:")
    service.close()


# ── several services ──


def catalogue(*services: Service) -> Catalogue:
    """Return a catalogue of services that are up."""
    found = Catalogue("api")
    for service in services:
        info = Info(
            name=service.name,
            id=service.name,
            version="1.0.0",
            metadata=service.metadata(),
            endpoints=[endpoint for endpoint, _ in service.endpoints()],
        )
        found.put(info, "up", 0.0)
    return found


@pytest.fixture
def carved() -> list[Service]:
    """An old application at the top, one at /shop, and a new service that takes some of both over."""
    old, shop, new = [Service(name, threads=1) for name in ("old", "shop", "new")]
    old.mount("/", Mirror("old"))
    shop.mount("/shop", Mirror("shop"))

    @new.get("/shop/orders/<id>")
    async def show(id: int) -> int:
        return id

    new.websocket("/chat")(chat)
    new.websocket("/shop/<room>")(chat_in)
    return [old, shop, new]


async def chat_in(ws: WebSocket, room: str) -> None:
    """Say nothing."""


# method, path, owner
OWNERS = [
    ("GET", "/", "old"),
    ("GET", "/x/y", "old"),
    ("PROPFIND", "/x", "old"),
    (WEBSOCKET, "/x", "old"),
    ("GET", "/shop", "shop"),
    ("GET", "/shop/x", "shop"),
    ("DELETE", "/shop/x/y", "shop"),
    ("GET", "/shop/orders/7", "new"),
    ("HEAD", "/shop/orders/7", "new"),
    ("PUT", "/shop/orders/7", "shop"),
    (WEBSOCKET, "/shop/orders/7", "shop"),
    ("GET", "/shop/orders/7/items", "shop"),
    (WEBSOCKET, "/chat", "new"),
    ("GET", "/chat", "old"),
    (WEBSOCKET, "/shop/room", "new"),
    ("GET", "/shop/room", "shop"),
    (WEBSOCKET, "/shop", "shop"),
]


@pytest.mark.parametrize(("method", "path", "owner"), OWNERS)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_owners(carved, order, method, path, owner):
    """The most specific pattern that has the method, or takes all of them, says whose a request is."""
    found = catalogue(*[carved[index] for index in order]).owner(method, path_tokens(path))
    assert found is not None
    assert found.name == owner


def test_the_owner_of_options(carved):
    """OPTIONS of a path with a route is its service's, beside a mount of another as beside one of its own."""
    found = catalogue(*carved).owner("OPTIONS", path_tokens("/shop/orders/7"))
    assert found is not None
    assert found.name == "new"


class Town:
    """Several services as members, behind a gateway that knows them."""

    def __init__(self, exchange: Exchange, front: Front, members: dict[str, Member]) -> None:
        self.exchange = exchange
        self.front = front
        self.members = members

    async def ask(self, path: str, method: str = "GET") -> Response:
        """Return the answer to a request through the gateway."""
        return await self.exchange.forward(Incoming(method, path.encode(), b"", b""), b"")

    async def talk(self, path: str) -> str | int:
        """Return the first message of a WebSocket, or the status of its refusal."""
        try:
            async with connect(self.front.url.replace("http", "ws") + path, proxy=None) as client:
                return str(await asyncio.wait_for(client.recv(), 10))
        except InvalidStatus as refused:
            return refused.response.status_code


@pytest.fixture
async def town(nats_url, carved):
    """Give the services of `carved` as members behind a gateway."""
    root = f"mounts.{next(_numbers)}"
    settings = Nats(urls=(nats_url,))
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(Gateway(root, nats=settings, health=False))
        members = {}
        for service in carved:
            bus = await connect_bus(settings)
            stack.push_async_callback(bus.close)
            await stack.enter_async_context(service)
            members[service.name] = member = Member(bus, service, root=root, quiet=0.02)
            await member.start()
            stack.push_async_callback(member.stop, 0)
        front = Front(gateway, port=0)
        await front.start()
        stack.push_async_callback(front.stop, now=True)
        yield Town(gateway.exchange, front, members)


async def test_a_route_that_is_carved_out(town):
    """A service beside mounts of others takes its own routes, WebSockets too; when it stops they are the mounts'."""

    async def whose(path: str, method: str = "GET") -> str:
        response = await town.ask(path, method)
        assert response.status == 200
        return str(response.parse_json()["app"]) if response.text.startswith("{") else "new"

    assert [await whose(path) for path in ("/", "/a", "/shop/x", "/shop/orders/7")] == ["old", "old", "shop", "new"]
    assert await whose("/shop/orders/7", "PUT") == "shop"
    assert await whose("/chat") == "old"
    assert await town.talk("/chat") == "typed"
    assert await town.talk("/talk") == "old  /talk"
    assert await town.talk("/shop/a/b") == "shop /shop /shop/a/b"
    assert await town.talk("/shop/room") == 403

    await town.members["new"].stop()
    assert await whose("/shop/orders/7") == "shop"
    assert await town.talk("/chat") == "old  /chat"


async def test_what_info_says(town, nats_url):
    """`$SRV.INFO` has the two endpoints of a mount, with its path and that it takes streams, but no methods."""
    client = await nats.connect(nats_url)
    reply = await client.request("$SRV.INFO.shop", timeout=5)
    await client.close()
    endpoints = json.loads(reply.data)["endpoints"]
    root = town.exchange.root
    assert [(one["name"], one["subject"], one["metadata"]) for one in endpoints] == [
        ("shop", f"{root}.shop", {"http.path": "/shop", "natsweb.streams": "body"}),
        ("shop", f"{root}.shop.>", {"http.path": "/shop/<path:rest>", "natsweb.streams": "body"}),
    ]
