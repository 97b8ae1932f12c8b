"""The examples: each does what its README says."""

import asyncio
import contextlib
import importlib.util
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from natsweb import Gateway, Request, Response, Rules, serve
from natsweb.front import Front

EXAMPLES = Path(__file__).parent.parent / "examples"
KEY = {"x-api-key": "sesame"}
JSON = {"content-type": "application/json"}
PHOTO = (
    b"--line\r\n"
    b'Content-Disposition: form-data; name="photo"; filename="cat.png"\r\n'
    b"Content-Type: image/png\r\n\r\n"
    b"a cat\r\n"
    b"--line--\r\n"
)


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the shop, with its data in a folder of the test."""
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))
    module = load("shop/shop.py")
    async with module.svc:
        yield module


def load(name: str) -> ModuleType:
    """Return an example as a module of its own."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(example: ModuleType, line: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
    """Return an example's answer to `POST /products?x=1`."""
    method, target = line.split(" ")
    path, _, query = target.partition("?")
    return await example.svc.handle(
        Request(method=method, raw_path=path, query=query, headers=headers or {}, body=body)
    )


async def test_the_shop_keeps_products(shop):
    """Products are created, shown, changed and listed."""
    made = await ask(shop, "POST /products", KEY | JSON, b'{"name": "tea", "cents": 350}')
    assert (made.status, made.headers["location"]) == (201, "/products/1")
    assert (await ask(shop, f"GET {made.headers['location']}")).parse_json() == made.parse_json()
    changed = await ask(shop, "PATCH /products/1", KEY | JSON, b'{"cents": 400}')
    assert changed.parse_json() == {"name": "tea", "cents": 400, "id": 1}
    assert (await ask(shop, "GET /products?limit=5")).parse_json() == [changed.parse_json()]
    assert (await ask(shop, "GET /products?limmit=5")).status == 422
    assert (await ask(shop, "GET /products/2")).parse_json()["reason"] == "no_product"


async def test_the_shop_wants_a_key(shop):
    """Who writes without a key gets a 401, whatever was sent, and nothing is written."""
    assert (await ask(shop, "POST /products", JSON, b"{}")).status == 401
    assert (await ask(shop, "POST /products", {"x-api-key": "open"} | JSON, b"{}")).status == 401
    assert (await ask(shop, "GET /products")).parse_json() == []


async def test_the_shop_rolls_back(shop, monkeypatch):
    """A taken name is a 409; what a handler wrote before it failed is not there, and neither is an open session."""
    body = b'{"name": "tea", "cents": 350}'
    await ask(shop, "POST /products", KEY | JSON, body)
    again = await ask(shop, "POST /products", KEY | JSON, body)
    assert (again.status, again.parse_json()["reason"]) == (409, "name_taken")

    sessions = []
    find = shop.find

    def fail(session: sqlite3.Connection, id: int):
        sessions.append(session)
        session.execute("DELETE FROM products")
        return find(session, id)

    monkeypatch.setattr(shop, "find", fail)
    assert (await ask(shop, "GET /products/1")).status == 404
    assert [one["name"] for one in (await ask(shop, "GET /products")).parse_json()] == ["tea"]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        sessions[0].execute("SELECT 1")


async def test_the_shop_shows_photos(shop):
    """An uploaded photo comes back as it was; other files, and photos of nothing, are refused."""
    await ask(shop, "POST /products", KEY | JSON, b'{"name": "tea", "cents": 350}')
    form = KEY | {"content-type": "multipart/form-data; boundary=line"}
    assert (await ask(shop, "GET /products/1/photo")).status == 404
    assert (await ask(shop, "PUT /products/1/photo", form, PHOTO)).status == 204
    shown = await ask(shop, "GET /products/1/photo")
    assert (shown.body, shown.headers["content-type"]) == (b"a cat", "image/png")
    assert (await ask(shop, "GET /products/1/photo", {"if-none-match": shown.headers["etag"]})).status == 304
    assert (await ask(shop, "PUT /products/1/photo", form, PHOTO.replace(b"image/png", b"text/html"))).status == 415
    assert (await ask(shop, "PUT /products/2/photo", form, PHOTO)).status == 404


async def test_the_shop_keeps_one_folder(shop, tmp_path):
    """Database and photos are where SHOP_DATA says."""
    await ask(shop, "POST /products", KEY | JSON, b'{"name": "tea", "cents": 350}')
    assert sorted(one.name for one in tmp_path.iterdir()) == ["photos", "shop.db"]


# ── feed ──


async def events(feed: ModuleType, count: int, **headers: str) -> list[tuple[int, object]]:
    """Return the numbers and the data of the first events."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await ask(feed, "GET /feed/samples", {"accept": "text/event-stream", **fields})
    assert response.headers["content-type"] == "text/event-stream"
    assert response.pieces is not None
    found = []
    async with contextlib.aclosing(response.pieces.source) as source:
        async for piece in source:
            fields = dict(line.split(": ", 1) for line in piece.decode().splitlines() if line)
            assert fields["event"] == "sample"
            found.append((int(fields["id"]), json.loads(fields["data"])))
            if len(found) == count:
                return found
    raise AssertionError("the feed has ended")


async def test_the_feed_goes_on():
    """Whoever comes back gets what follows the last event that it has seen, the same from any instance."""
    first = await events(load("feed/app.py"), 100)
    again = await events(load("feed/app.py"), 90, last_event_id=str(first[9][0]))
    assert again == first[10:]
    assert [number for number, _ in first] == [*range(first[0][0], first[0][0] + 100)]


async def test_the_feed_takes_any_last_event():
    """One from long ago, or from the time to come, gets what there is."""
    feed = load("feed/app.py")
    [(oldest, _)] = await events(feed, 1, last_event_id="7")
    [(newest, _)] = await events(feed, 1, last_event_id="999999999999")
    assert feed.KEPT <= newest - oldest < feed.KEPT + 40


async def test_the_feed_has_other_shapes():
    """Without an EventSource it is NDJSON, and there is a page to look at."""
    feed = load("feed/app.py")
    response = await ask(feed, "GET /feed/samples")
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.pieces is not None
    async with contextlib.aclosing(response.pieces.source) as source:
        assert json.loads(await anext(source)).keys() == {"requests", "milliseconds", "errors"}
    page = await ask(feed, "GET /feed")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "https://" not in page.text  # nothing comes from elsewhere


# ── chat ──


async def hear(socket: ClientConnection) -> str:
    """Return the next line of a room."""
    async with asyncio.timeout(10):
        line = json.loads(await socket.recv())
    return f"{line['who']}: {line['text']}"


async def test_the_chat_has_rooms(serve):
    """What is said in a room is heard by all who are there, and by nobody else; what is no message ends the talk."""
    chat = load("chat/app.py")
    url = (await serve(chat.svc, root="rooms")).replace("http", "ws")

    def enter(room: str, who: str) -> connect:
        return connect(f"{url}/chat/{room}?who={who}", proxy=None)

    async with enter("tea", "ada") as ada, enter("coffee", "eve") as eve:
        assert (await hear(ada), await hear(eve)) == ("ada: has come in", "eve: has come in")
        async with enter("tea", "bob") as bob:
            assert (await hear(ada), await hear(bob)) == ("bob: has come in", "bob: has come in")
            await bob.send('{"text": "hello"}')
            assert (await hear(ada), await hear(bob)) == ("bob: hello", "bob: hello")
        assert await hear(ada) == "bob: has left"
        await eve.send('{"text": ""}')
        async with asyncio.timeout(10):
            await eve.wait_closed()
        assert eve.close_code == 1007
        assert [*chat.ROOMS] == ["tea"]
    with pytest.raises(InvalidStatus) as refused:
        await enter("tea", "x" * 31)
    assert refused.value.response.status_code == 422


# ── legacy ──


@contextlib.asynccontextmanager
async def fronted(nats_url: str, root: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client of a gateway below a root."""
    async with Gateway(root, nats=nats_url) as gateway, front_of(gateway) as client:
        yield client


@contextlib.asynccontextmanager
async def front_of(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """Give a client of a gateway."""
    front = Front(gateway, port=0, grace=1.0)
    await front.start()
    try:
        async with httpx2.AsyncClient(base_url=front.url, trust_env=False) as client:
            yield client
    finally:
        await front.stop()


async def test_a_part_of_the_old_shop_moves(nats_url: str):
    """The application answers everything, but for what the new service takes while it is there."""
    old, new = load("legacy/app.py"), load("legacy/orders.py")
    async with serve(old.app, nats=nats_url, root="old", name="old-shop"), fronted(nats_url, "old") as client:

        async def by() -> str:
            return str((await client.get("/orders/7")).json()["by"])

        home = (await client.get("/")).text
        assert "since 2019" in home
        assert (await client.get(home.partition('href="')[2].partition('"')[0])).json() == {"id": 1, "name": "tea"}
        assert await by() == "the old shop"
        async with serve(new.svc, nats=nats_url, root="old"):
            assert await by() == "the new service"
            assert (await client.delete("/orders/8")).status_code == 204
            assert (await client.get("/items/2")).json()["name"] == "cup"
        assert await by() == "the old shop"


# ── simple, multiple, wrapped, staging ──


def said_by(name: str) -> list[tuple[str, str]]:
    """Return the lines of a README that are typed, each with what is printed below it."""
    text = (EXAMPLES / name / "README.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(typed, printed) for typed, printed in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", "".join(blocks), re.M)]


async def asked(client: httpx2.AsyncClient, name: str) -> None:
    """Ask what a README asks with curl, and compare the answers."""
    curls = [(typed, printed) for typed, printed in said_by(name) if typed.startswith("curl ")]
    assert curls
    for typed, printed in curls:
        target = re.match(r"curl localhost:8000(\S*)", typed)
        headers = dict(one.split(": ") for one in re.findall(r"-H '([^']+)'", typed))
        assert target is not None
        assert (await client.get(target[1] or "/", headers=headers)).text == printed.rstrip("\n")


async def test_the_simple_one(capsys: pytest.CaptureFixture[str]):
    """Service, gateway and client in one process: it prints what its README says."""
    await load("simple/app.py").main()
    assert [(typed, capsys.readouterr().out) for typed, _ in said_by("simple")] == said_by("simple")


async def test_two_services_under_one_gateway(nats_url: str):
    """Each sees the path below its own root; what neither has is a 404."""
    module = load("multiple/app.py")
    async with (
        serve(module.foo, nats=nats_url, root="api.foo"),
        serve(module.bar, nats=nats_url, root="api.bar"),
        fronted(nats_url, "api") as client,
    ):
        await asked(client, "multiple")
        assert (await client.get("/baz")).status_code == 404


async def test_an_application_that_is_wrapped(nats_url: str):
    """It answers below its mount, and its own URLs lead there."""
    app = load("wrapped/app.py").app
    async with serve(app, nats=nats_url, root="wrapped", mount="/sample"), fronted(nats_url, "wrapped") as client:
        await asked(client, "wrapped")
        assert (await client.get("/ping")).status_code == 404


async def test_two_worlds_behind_one_gateway(nats_url: str, monkeypatch: pytest.MonkeyPatch):
    """The host says which one; the path of the inner root leads nowhere."""
    live, trial = load("staging/app.py"), load("staging/app.py")
    monkeypatch.setattr(trial, "os", SimpleNamespace(environ={"PRICE": "375"}))
    async with (
        serve(live.svc, nats=nats_url, root="worlds"),
        serve(trial.svc, nats=nats_url, root="worlds.staging"),
        Gateway(
            "worlds",
            nats=nats_url,
            roots={"staging.localhost": "worlds.staging"},
            rules=Rules(exclude=["/staging"]),
        ) as gateway,
        front_of(gateway) as client,
    ):
        await asked(client, "staging")
        assert (await client.get("/staging/prices/tea")).json()["reason"] == "no_service"


async def test_two_teams(nats_url: str):
    """One service asks the other; while that is away it says so, and goes on when it is back."""
    users, orders = load("teams/users.py"), load("teams/orders.py")
    curls = [printed.rstrip("\n") for typed, printed in said_by("teams") if typed.startswith("curl ")]
    async with (
        serve(orders.svc, nats=nats_url, root="teams"),
        fronted(nats_url, "teams") as client,
    ):
        async with serve(users.svc, nats=nats_url, root="teams"):
            assert [(await client.get(path)).text for path in ("/users/1", "/orders/7", "/orders/8")] == curls[:3]
            assert (await client.get("/orders/9")).json()["detail"] == "no order 9"
        assert (await client.get("/orders/7")).text == curls[3]
        async with serve(users.svc, nats=nats_url, root="teams"):
            assert (await client.get("/orders/7")).text == curls[1]
