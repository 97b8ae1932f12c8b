"""`/openapi.json` and `/docs` of a gateway, through both doors: what is shown, when it changes, and to whom."""

import asyncio
import itertools
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from openapi_spec_validator import validate
from pydantic import create_model
from starlette.applications import Starlette
from starlette.routing import Mount

from natsweb import Nats, Request, Response, Service
from natsweb.bus import MemoryBus
from natsweb.discovery import Directory
from natsweb.errors import SettingsError, StartError
from natsweb.front import Front
from natsweb.gateway import Gateway, echo
from natsweb.gateway.fleet import Fleet
from natsweb.gateway.sites import Sites
from natsweb.member import Member
from natsweb.natsbus import connect
from natsweb.rules import Rules

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
numbers = itertools.count(1)

Open = Callable[..., Awaitable[httpx2.AsyncClient]]
Begin = Callable[..., Awaitable[Member]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Give a stack for what has to be stopped at the end of a test."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def bus(nats_url: str, stack: AsyncExitStack) -> Any:
    """Give a connection of services."""
    given = await connect(Nats(urls=(nats_url,)))
    stack.push_async_callback(given.close)
    return given


@pytest.fixture
def root() -> str:
    """Give a root that no other test has used."""
    return f"docs{next(numbers)}"


@pytest.fixture
def begin(bus: Any, root: str, stack: AsyncExitStack) -> Begin:
    """Give a function that starts a service; it stops at the end."""

    async def start(svc: Service, *, on: Any = None, below: str = "") -> Member:
        member = Member(on or bus, svc, root=root + below, quiet=0.02)
        await member.start()
        stack.callback(svc.close)
        stack.push_async_callback(member.stop, 0.1)
        return member

    return start


@pytest.fixture
def gate(nats_url: str, root: str, stack: AsyncExitStack) -> Open:
    """Give a function that starts a gateway with docs, and gives a client of its server."""

    async def start(fast: bool = True, **options: Any) -> httpx2.AsyncClient:
        options = {"docs": True, **options}
        gateway = await stack.enter_async_context(Gateway(root, nats=Nats(urls=(nats_url,)), **options))
        front = Front(gateway, port=0, grace=1.0, fast=fast)
        await front.start()
        stack.push_async_callback(front.stop)
        return await stack.enter_async_context(httpx2.AsyncClient(base_url=front.url))

    return start


def shop(name: str, path: str = "", field: str = "id") -> Service:
    """Return a service with an `Order` of its own."""
    svc = Service(name, version="1.0.0")
    model = create_model("Order", **{field: (int, ...)})  # type: ignore[call-overload]

    async def show(id: int) -> Any:
        return model(**{field: id})

    show.__annotations__["return"] = model
    svc.get(f"{path or '/' + name}/<id>")(show)
    return svc


async def document(client: httpx2.AsyncClient, **options: Any) -> dict[str, Any]:
    """Return the document that a gateway shows, which is valid."""
    response = await client.get("/openapi.json", **options)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    found = response.json()
    validate(found)
    return found


def schema(found: dict[str, Any], path: str) -> Any:
    """Return the schema of what a GET answers."""
    answer = found["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    return found["components"]["schemas"][answer["$ref"].rpartition("/")[2]]


# ── the document ──


@DOORS
async def test_one_document_of_all_services(gate: Open, begin: Begin, fast: bool) -> None:
    """Services that start later come in; equal names of different schemas are told apart."""
    client = await gate(fast)
    assert (await document(client))["paths"] == {}
    await begin(shop("orders"))
    await begin(shop("shop", field="number"))
    found = await document(client)
    assert [*found["paths"]] == ["/orders/{id}", "/shop/{id}"]
    assert [*schema(found, "/orders/{id}")["properties"]] == ["id"]
    assert [*schema(found, "/shop/{id}")["properties"]] == ["number"]
    assert (await client.get("/orders/7")).json() == {"id": 7}


@DOORS
async def test_entity_tags(gate: Open, begin: Begin, fast: bool) -> None:
    """What has not changed is not sent again, and what has is."""
    await begin(shop("orders"))
    client = await gate(fast)
    for path in ("/openapi.json", "/docs", "/docs/swagger-ui-bundle.js"):
        first = await client.get(path)
        tag = first.headers["etag"]
        assert first.headers["cache-control"] == "no-cache"
        for said in (tag, f'"x", W/{tag}', "*"):
            again = await client.get(path, headers={"if-none-match": said})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert "content-type" not in again.headers
        assert (await client.get(path, headers={"if-none-match": '"x"'})).content == first.content
        head = await client.head(path)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)
    tag = (await client.get("/openapi.json")).headers["etag"]
    await begin(shop("shop"))
    changed = await client.get("/openapi.json", headers={"if-none-match": tag})
    assert (changed.status_code, [*changed.json()["paths"]]) == (200, ["/orders/{id}", "/shop/{id}"])


@DOORS
async def test_a_service_that_stops_leaves(
    gate: Open, begin: Begin, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """It is shown while the grace lasts, and then no more; its clash of names goes with it."""
    monkeypatch.setattr(Fleet.__init__, "__kwdefaults__", {"grace": 0.2})
    member = await begin(shop("orders"))
    await begin(shop("shop", field="number"))
    client = await gate(fast)
    both = await client.get("/openapi.json")
    assert [*both.json()["paths"]] == ["/orders/{id}", "/shop/{id}"]
    await member.stop(0.1)
    async with asyncio.timeout(10):
        tag = {"if-none-match": both.headers["etag"]}
        while (response := await client.get("/openapi.json", headers=tag)).status_code == 304:
            await asyncio.sleep(0.01)
    assert response.json()["paths"].keys() == {"/shop/{id}"}
    assert response.json()["components"]["schemas"].keys() == {"FieldError", "Order", "Problem"}


async def test_roots_rules_and_hosts(gate: Open, begin: Begin) -> None:
    """Paths are where they are for who asks; what this gateway does not reach is not shown."""
    roots = {"/v2": f"docs{next(numbers)}", "admin.example.com": f"docs{next(numbers)}"}
    client = await gate(roots=roots, rules=Rules(exclude=["/secret"]))
    await begin(shop("main"))
    await begin(shop("hidden", "/secret"))
    await begin(shop("covered", "/v2"))
    await begin(shop("staged"), below=".staging")
    member = await begin(shop("second"))
    await member.stop(0.1)
    for name, below in (("second", roots["/v2"]), ("admin", roots["admin.example.com"])):
        await Member(member.bus, shop(name), root=below, quiet=0.02).start()
    assert [*(await document(client))["paths"]] == ["/main/{id}", "/staging/staged/{id}", "/v2/second/{id}"]
    for host in ("admin.example.com", "ADMIN.example.com:80"):
        found = await document(client, headers={"host": host})
        assert [*found["paths"]] == ["/admin/{id}"]
    assert "/main/{id}" in (await document(client, headers={"host": "else"}))["paths"]


async def test_mounted_gateway(nats_url: str, root: str, begin: Begin, stack: AsyncExitStack) -> None:
    """Below a prefix of another application, the document says so, and the page finds its files."""
    await begin(shop("orders"))
    gateway = Gateway(root, nats=nats_url, docs=True)
    stack.push_async_callback(gateway.stop)
    app = Starlette(routes=[Mount("/gate/way", app=gateway)])
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        found = (await client.get("/gate/way/openapi.json")).json()
        validate(found)
        assert found["servers"] == [{"url": "/gate/way"}]
        assert [*found["paths"]] == ["/orders/{id}"]
        page = (await client.get("/gate/way/docs")).text
        for file in re.findall(r'(?:src|href)="([^"]+)"', page):
            assert (await client.get(f"/gate/way/{file}")).status_code == 200


async def test_filters_stand_before_the_docs(gate: Open, begin: Begin) -> None:
    """Who is not let in sees no docs either."""
    await begin(shop("orders"))

    async def only_friends(request: Request, call_next: Any) -> Response:
        return await call_next(request) if "x-friend" in request.headers else Response(status=403)

    client = await gate(filters=[only_friends])
    for path in ("/openapi.json", "/docs", "/docs/start.js"):
        assert (await client.get(path)).status_code == 403
        assert (await client.get(path, headers={"x-friend": "1"})).status_code == 200
    assert [*(await document(client, headers={"x-friend": "1"}))["paths"]] == ["/orders/{id}"]


@DOORS
async def test_paths_of_services(gate: Open, begin: Begin, fast: bool) -> None:
    """With docs, GET and HEAD of their paths are the gateway's; without, and for other methods, they are anybody's."""
    svc = Service("own")

    @svc.route("/docs", methods=["GET", "POST"])
    async def docs() -> str:
        return "own"

    @svc.get("/openapi.json")
    async def openapi() -> str:
        return "own"

    await begin(svc)
    client = await gate(fast)
    assert (await client.post("/docs")).text == "own"
    assert "swagger" in (await client.get("/docs")).text
    assert [*(await document(client))["paths"]] == ["/docs", "/openapi.json"]
    client = await gate(fast, docs=False)
    assert [(await client.get(path)).text for path in ("/docs", "/openapi.json")] == ["own", "own"]
    assert (await client.get("/docs/start.js")).status_code == 404


# ── the page ──


@DOORS
async def test_the_page_asks_nobody_else(gate: Open, fast: bool) -> None:
    """No address of another host is in what is ours, no script in the page, and the policy allows none."""
    client = await gate(fast)
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in page.headers["content-security-policy"]
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 4
    for name in ("", *files):
        response = await client.get(f"/{name or 'docs'}")
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
    own = page.text + (await client.get("/docs/start.js")).text
    assert not re.search(r"//|<script>|style=|onload", own)
    assert (await client.get("/docs/swagger-ui.css.map")).status_code == 404


# ── when it cannot be ──


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, asking for docs is an error with the line that installs it."""
    monkeypatch.setitem(sys.modules, "swagger_ui_bundle", None)
    Gateway("api")
    with pytest.raises(StartError) as caught:
        Gateway("api", docs=True)
    assert 'pip install "natsweb[docs-ui]"' in str(caught.value.fix)


@pytest.mark.parametrize("options", [{"discovery": False}, {"exchange": echo}, {"wire": "nats-proxy"}])
def test_docs_need_a_catalogue(options: dict[str, Any]) -> None:
    """A gateway that does not know its services has none."""
    with pytest.raises(SettingsError, match="catalogue"):
        Gateway("api", docs=True, **options)


# ── keeping up ──


class Watched:
    """A fleet on a bus of its own, and what is asked there."""

    def __init__(self, bus: MemoryBus, fleet: Fleet, directory: Directory, asked: list[str]) -> None:
        self.bus = bus
        self.fleet = fleet
        self.directory = directory
        self.asked = asked

    async def paths(self) -> list[str]:
        """Return the paths of the document."""
        return [*json.loads((await self.fleet.document()).body)["paths"]]

    @property
    def services(self) -> list[str]:
        """Whose documents have been asked for, in order."""
        return [subject.split(".")[2] for subject in self.asked]


@pytest.fixture
async def watch(stack: AsyncExitStack, root: str) -> Callable[..., Awaitable[Watched]]:
    """Give a function that starts a fleet."""

    async def start(**options: Any) -> Watched:
        bus = MemoryBus()
        stack.push_async_callback(bus.close)
        fleet = Fleet(Sites(root), Rules(), **options)
        directory = Directory(bus, root, on_change=fleet.changed)
        await directory.start()
        stack.push_async_callback(directory.stop)
        fleet.start(bus, {root: directory})
        stack.push_async_callback(fleet.stop)
        asked: list[str] = []
        await bus.subscribe("$SRV.OPENAPI.>", lambda message: asked.append(message.subject))
        return Watched(bus, fleet, directory, asked)

    return start


async def test_documents_are_fetched_once(watch: Any, begin: Begin) -> None:
    """Neither requests nor further instances of the same fetch a document again; another version does."""
    watched = await watch()
    first = await begin(shop("orders"), on=watched.bus)
    for _ in range(3):
        assert await watched.paths() == ["/orders/{id}"]
    await begin(shop("orders"), on=watched.bus)
    await begin(shop("other"), on=watched.bus)
    assert await watched.paths() == ["/orders/{id}", "/other/{id}"]
    assert watched.services == ["orders", "other"]
    await first.stop(0.1)
    changed = shop("orders", field="number")
    await begin(changed, on=watched.bus)
    assert await watched.paths() == ["/orders/{id}", "/other/{id}"]
    assert b"number" in (await watched.fleet.document()).body
    assert watched.services == ["orders", "other", "orders"]
    assert (await watched.fleet.document()) is (await watched.fleet.document())


async def test_a_restart_does_not_flicker(watch: Any, begin: Begin) -> None:
    """A service that has stopped stays for the grace, also if nobody has asked while it was there."""
    watched = await watch()
    member = await begin(shop("orders"), on=watched.bus)
    async with asyncio.timeout(10):
        while not watched.fleet._known:
            await asyncio.sleep(0)
    before = [one.info.id for one in watched.directory.catalogue.instances]
    await member.stop(0.1)
    assert watched.directory.catalogue.instances == []
    tag = (await watched.fleet.document()).etag
    assert await watched.paths() == ["/orders/{id}"]
    await begin(shop("orders"), on=watched.bus)
    assert [one.info.id for one in watched.directory.catalogue.instances] != before
    assert (await watched.fleet.document()).etag == tag
    assert watched.services == ["orders"]


async def test_what_has_stopped_leaves(watch: Any, begin: Begin) -> None:
    """After the grace it is not shown any more, and comes back as new."""
    watched = await watch(grace=0.05)
    member = await begin(shop("orders"), on=watched.bus)
    await begin(shop("other"), on=watched.bus)
    assert await watched.paths() == ["/orders/{id}", "/other/{id}"]
    await member.stop(0.1)
    async with asyncio.timeout(10):
        while await watched.paths() != ["/other/{id}"]:
            await asyncio.sleep(0.01)
    await begin(shop("orders"), on=watched.bus)
    assert await watched.paths() == ["/orders/{id}", "/other/{id}"]


async def test_documents_that_do_not_come_are_asked_for_again(
    watch: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there stays, and a failure is tried again after a while."""
    monkeypatch.setattr("natsweb.gateway.fleet._RETRY", 0.01)
    monkeypatch.setattr("natsweb.documents._PART_TIME", 0.05)
    watched = await watch()
    silent = shop("silent")
    member = await begin(silent, on=watched.bus)
    # the directory hears of another instance that is not there
    ghost = member.presence.info.model_copy(update={"id": "ghost", "name": "ghost", "endpoints": []})
    watched.directory.catalogue.put(ghost, "up", 0.0)
    watched.fleet.changed()
    assert await watched.paths() == ["/silent/{id}"]
    async with asyncio.timeout(10):
        while watched.services.count("ghost") < 2:
            await asyncio.sleep(0.01)
            await watched.paths()


@pytest.mark.parametrize("limit", ["_MAX_TOTAL", "merge"])
async def test_what_cannot_be_shown_is_left_out(
    watch: Any, begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str
) -> None:
    """Too much, or what cannot be merged: the others are shown, and the log names it."""
    from natsweb.gateway import fleet

    watched = await watch()
    await begin(shop("orders"), on=watched.bus)
    assert await watched.paths() == ["/orders/{id}"]
    if limit == "merge":
        real = fleet.merge

        def merge(title: str, sources: Any) -> Any:
            if any(one.name == "shop" for one in sources):
                raise TypeError("no")
            return real(title, sources)

        monkeypatch.setattr(fleet, "merge", merge)
    else:
        monkeypatch.setattr(fleet, limit, 1000)
    await begin(shop("shop"), on=watched.bus)
    assert await watched.paths() == ["/orders/{id}"]
    assert any("of shop is left out" in one for one in caplog.messages)
