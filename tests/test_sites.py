"""Several roots behind one gateway: which one a request belongs to, alone and on connections that mix them."""

import asyncio
import random
from contextlib import AsyncExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect as connect_socket

from natsweb import Nats, Request, Service, WebSocket
from natsweb.errors import SettingsError
from natsweb.front import Front
from natsweb.gateway import Gateway, bare_host
from natsweb.gateway.sites import Sites
from natsweb.member import Member
from natsweb.natsbus import connect
from natsweb.subjects import path_tokens, to_path

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
end_to_end = pytest.mark.asyncio(loop_scope="module")


# ── the values ──


OTHERS = {
    "admin.example.com": "admin",
    "Admin.Example.com/v2": "admin.v2",
    "/v2": "v2",
    "/v2/beta/": "beta",
    "/caf%C3%A9": "cafe",
    "/a.b": "dotted",
    "[::1]": "six",
    "bücher.example": "idna",
}


@pytest.mark.parametrize(
    ("host", "path", "root", "below"),
    [
        ("example.com", "/", "main", "/"),
        ("example.com", "/orders/7", "main", "/orders/7"),
        ("", "/orders/7", "main", "/orders/7"),
        ("admin.example.com", "/", "admin", "/"),
        ("admin.example.com", "/orders//7/", "admin", "/orders//7/"),
        ("ADMIN.example.COM:8443", "/x", "admin", "/x"),
        ("evil-admin.example.com", "/x", "main", "/x"),
        ("admin.example.com.evil", "/x", "main", "/x"),
        ("admin.example.com", "/v2/x", "admin.v2", "/x"),
        ("admin.example.com", "/v2", "admin.v2", "/"),
        ("admin.example.com", "/v2x", "admin", "/v2x"),
        ("admin.example.com", "/v2/beta/x", "admin.v2", "/beta/x"),
        ("example.com", "/v2", "v2", "/"),
        ("example.com", "/v2/", "v2", "/"),
        ("example.com", "/v2//", "v2", "//"),
        ("example.com", "/v2/a%2Fb/%41", "v2", "/a%2Fb/A"),
        ("example.com", "/%76%32/x", "v2", "/x"),
        ("example.com", "/V2/x", "main", "/V2/x"),
        ("example.com", "/x/v2", "main", "/x/v2"),
        ("example.com", "//v2", "main", "//v2"),
        ("example.com", "/v2%2Fbeta", "main", "/v2%2Fbeta"),
        ("example.com", "/v2/beta", "beta", "/"),
        ("example.com", "/v2/bet%61/y", "beta", "/y"),
        ("example.com", "/v2/betas", "v2", "/betas"),
        ("example.com", "/caf\xc3\xa9/x", "cafe", "/x"),
        ("example.com", "/caf%c3%a9", "cafe", "/"),
        ("example.com", "/a%2eb/c", "dotted", "/c"),
        ("example.com", "/a/b/c", "main", "/a/b/c"),
        ("[::1]", "/x", "six", "/x"),
        ("[::1]:8000", "/x", "six", "/x"),
        ("xn--bcher-kva.example", "/x", "idna", "/x"),
        ("example.com", "/v2/../x", "main", "/v2/../x"),
        ("example.com", "/v2/%zz", "main", "/v2/%zz"),
    ],
)
def test_the_most_specific_site_has_a_request(host, path, root, below):
    """A host before none, of the paths the longest, by segments; what cannot be a path is refused at the main root."""
    found = Sites("main", OTHERS).pick(bare_host(host.encode("latin-1")), path.encode("latin-1"))
    assert found == (root, below.encode("latin-1"))


def test_one_root_takes_all_as_it_comes():
    """Without others nothing is looked at, not even a path that is none."""
    assert Sites("api").pick(b"any", b"/%zz/..") == ("api", b"/%zz/..")
    assert not Sites("api").are_several


def test_the_roots_are_known():
    """Each once, the main one first."""
    assert Sites("api", {"a.example": "api.a", "b.example": "api.a", "/c": "api"}).roots == ["api", "api.a"]
    assert repr(Sites("api", {"/c": "c"})) == "<Sites of api, c>"


parts = st.lists(st.sampled_from(["a", "b", "a.b", "", "é", "%2F", "A"]), max_size=4)


@given(st.lists(parts.filter(any), max_size=3), parts)
def test_the_law_of_paths(prefixes, asked):
    """The site is the longest prefix in segments; what is left, behind the prefix, is the path again."""

    def tokens(segments):
        return path_tokens("/" + "/".join(segments).encode().decode("latin-1"))

    wheres = {}
    for number, prefix in enumerate(prefixes):
        found = tokens(prefix)
        while found[-1] == "%":
            found.pop()
        wheres[tuple(found)] = f"r{number}"
    found = Sites("main", {to_path(where): root for where, root in wheres.items()})
    raw = "/" + "/".join(asked).encode().decode("latin-1")
    root, below = found.pick(b"x", raw.encode("latin-1"))
    whole = path_tokens(raw)
    fitting = [where for where in wheres if tuple(whole[: len(where)]) == where]
    longest = max(fitting, key=len, default=())
    assert root == wheres.get(longest, "main")
    assert [*longest, *path_tokens(below.decode("latin-1"))] == whole or whole[len(longest) :] == ["%"]


@pytest.mark.parametrize(
    ("others", "what", "fix"),
    [
        ({"": "a"}, "'' says neither a host nor a path", '"admin.example.com" or "/staging"'),
        ({"/": "a"}, "'/' says neither a host nor a path", '"admin.example.com" or "/staging"'),
        ({"admin example.com": "a"}, "'admin example.com' is no host", "without scheme"),
        ({"*.example.com": "a"}, "'*.example.com' is no host", "without scheme"),
        ({"/a/../b": "a"}, "'/a/../b' is no path of a root: the path has a '..' segment", "/staging"),
        ({"/%zz": "a"}, "'/%zz' is no path of a root", "/staging"),
        ({"/a": ""}, "'' cannot be a root", "api.staging"),
        ({"/a": "$SYS"}, "'$SYS' cannot be a root", "api.staging"),
        ({"/a": "api.>"}, "'api.>' cannot be a root", "api.staging"),
        ({"/a": "_INBOX"}, "'_INBOX' cannot be a root", "api.staging"),
    ],
)
def test_what_cannot_be_a_site(others, what, fix):
    """Mistakes are found when the gateway is made, with the remedy."""
    with pytest.raises(SettingsError) as raised:
        Gateway("api", roots=others)
    assert what in raised.value.what
    assert fix in raised.value.fix


def test_a_host_that_idna_does_not_take():
    """A label that is too long is a mistake like any other."""
    try:
        with pytest.raises(SettingsError):
            Sites("api", {"ü" * 70 + ".example": "a"})
    except UnicodeError as error:
        raise AssertionError(str(error)) from None


@pytest.mark.parametrize("where", ["admin.example.com:8080", "http://admin.example.com", "::1"])
def test_a_host_with_a_port_or_a_scheme(where):
    """It is a mistake, or is left out as the port of a request is; it must not make a site that nobody reaches."""
    try:
        found = Sites("api", {where: "admin"})
    except SettingsError:
        return
    assert "admin" in {found.pick(bare_host(host), b"/")[0] for host in (b"admin.example.com:8080", b"[::1]:8080")}


@pytest.mark.parametrize("twice", [["/a", "/%61"], ["/a", "/a/"], ["a.example", "A.example"]])
def test_a_site_that_is_there_twice(twice):
    """Two roots for the same requests are a mistake."""
    try:
        Sites("api", {where: f"r{number}" for number, where in enumerate(twice)})
    except SettingsError:
        return
    raise AssertionError("it was taken")


def test_a_host_with_a_dot_at_its_end():
    """`admin.example.com.` is the same host (RFC 1034 section 3.1)."""
    assert Sites("api", {"admin.example.com": "admin"}).pick(bare_host(b"admin.example.com.:80"), b"/")[0] == "admin"


# ── end to end ──


class House(NamedTuple):
    """Services below several roots, behind one gateway with two fronts, one for each door."""

    gateway: Gateway
    urls: dict[bool, str]


ROOTS = {"admin.example.com": "s-admin", "/v2": "s-v2", "admin.example.com/v2": "s-admin-v2", "[::1]/v2": "s-six"}


def echoing(root):
    """Return a service that says who it is, and what it is asked for."""
    svc = Service(root.replace(".", "-"), root=root)

    async def said(request: Request) -> str:
        body = await request.read()
        return f"{root} {request.method} {request.raw_path} {request.query} {len(body)}"

    @svc.route("/", methods=["GET", "POST"])
    async def top(request: Request) -> str:
        return await said(request)

    @svc.route("/<path:rest>", methods=["GET", "POST"])
    async def below(rest: str, request: Request) -> str:
        return await said(request)

    @svc.websocket("/ws/talk")
    async def talk(ws: WebSocket) -> None:
        async for message in ws:
            await ws.send(f"{root} {message}")

    return svc


async def serve(stack, nats_url, *services):
    """Let services join, each with a connection of its own, until the stack ends."""
    for service in services:
        bus = await connect(Nats(urls=(nats_url,)))
        stack.push_async_callback(bus.close)
        stack.callback(service.close)
        member = Member(bus, service, quiet=0.02)
        await member.start()
        stack.push_async_callback(member.stop, 0)


async def put_in_front(stack, gateway):
    """Start a gateway with a front for each door, and return their URLs."""
    await stack.enter_async_context(gateway)
    fronts = {fast: Front(gateway, port=0, grace=0.1, fast=fast) for fast in (True, False)}
    for front in fronts.values():
        await front.start()
        stack.push_async_callback(front.stop, now=True)
    return {fast: front.url for fast, front in fronts.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(nats_url):
    """Give a house with a service below each root."""
    async with AsyncExitStack() as stack:
        await serve(stack, nats_url, *[echoing(root) for root in ["s-main", *ROOTS.values()]])
        gateway = Gateway("s-main", nats=Nats(urls=(nats_url,)), roots=ROOTS)
        yield House(gateway, await put_in_front(stack, gateway))


HOSTS = {
    "example.com": "",
    "admin.example.com": "admin",
    "ADMIN.Example.com:80": "admin",
    "admin.example.com.evil": "",
    "xadmin.example.com": "",
    "[::1]:8080": "six",
    "127.0.0.1": "",
    "": "",
}
PATHS = {
    "/": ("/", False),
    "/a/b": ("/a/b", False),
    "/v2": ("/", True),
    "/v2/": ("/", True),
    "/v2//": ("//", True),
    "/%76%32/a": ("/a", True),
    "/v2/v2/a.b": ("/v2/a%2Eb", True),
    "/v2x": ("/v2x", False),
    "/V2/a": ("/V2/a", False),
    "/a/v2": ("/a/v2", False),
    "//v2": ("//v2", False),
    "/v2%2Fa": ("/v2%2Fa", False),
}
MODEL = {
    ("", False): "s-main",
    ("", True): "s-v2",
    ("admin", False): "s-admin",
    ("admin", True): "s-admin-v2",
    ("six", False): "s-main",
    ("six", True): "s-six",
}


def one_of_many(dice):
    """Return the bytes of a request, and what its answer has to be."""
    host, path = dice.choice(list(HOSTS)), dice.choice(list(PATHS))
    below, in_v2 = PATHS[path]
    query = dice.choice(["", "a=/v2&b=admin.example.com"])
    target, shown = path + (f"?{query}" if query else ""), host
    if host and dice.random() < 0.2:  # the host of an absolute target counts (RFC 9112 section 3.2.2)
        target, shown = f"http://{host}{target}", dice.choice(list(HOSTS))
    size = dice.choice([None, None, None, 0, 5, 70_000])
    lines = [f"Host: {shown}", *dice.choice([[], ["X-Forwarded-Host: admin.example.com"], ["X-A: 1"]])]
    method, body = "GET", b""
    if size is not None:
        method, body = "POST", b"x" * size
        if dice.random() < 0.3:
            lines.append("Transfer-Encoding: chunked")
            body = (b"%x\r\n%b\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"
        else:
            lines.append(f"Content-Length: {size}")
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""])
    return head.encode() + body, f"{MODEL[HOSTS[host], in_v2]} {method} {below} {query} {size or 0}"


async def answer_of(reader):
    """Return the body of the next answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    assert head.startswith("http/1.1 200 "), head
    length = head.partition("content-length: ")[2].partition("\r\n")[0]
    return (await reader.readexactly(int(length))).decode()


@end_to_end
@DOORS
@pytest.mark.parametrize("seed", range(8))
async def test_no_request_reaches_another_site(house, fast, seed):
    """On connections that mix hosts, paths, sizes and pipelining, each answer is that of the site that was asked."""
    dice = random.Random(seed)
    address = urlsplit(house.urls[fast])
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    asked = []
    async with asyncio.timeout(30):
        for _ in range(25):
            group = [one_of_many(dice) for _ in range(dice.choice([1, 1, 2, 5]))]
            if dice.random() < 0.4:  # the very same once more, which the fast door knows by heart
                group += [group[-1]]
            asked += [expected for _, expected in group]
            raw = b"".join(raw for raw, _ in group)
            cut = dice.randrange(len(raw)) if dice.random() < 0.3 else 0
            for piece in (raw[:cut], raw[cut:]):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            for _, expected in group:
                assert await answer_of(reader) == expected
    writer.close()
    await writer.wait_closed()
    assert len({one.partition(" ")[0] for one in asked}) >= 4


@end_to_end
@DOORS
async def test_two_hosts_in_turn(house, fast):
    """The same bytes but for the host, again and again on one connection, never get each other's answer."""
    address = urlsplit(house.urls[fast])
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    async with asyncio.timeout(30):
        for number in range(100):
            host, root = [("example.com", "s-main"), ("admin.example.com", "s-admin")][number % 2]
            writer.write(f"GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert await answer_of(reader) == f"{root} GET /x  0"
    writer.close()
    await writer.wait_closed()


@end_to_end
@DOORS
async def test_sockets_have_their_site_too(house, fast):
    """A WebSocket goes where an ordinary request of its host and path would."""
    url = house.urls[fast].replace("http", "ws", 1)
    for path, root in (("/ws/talk", "s-main"), ("/v2/ws/talk", "s-v2")):
        async with connect_socket(url + path) as ws:
            await ws.send("hello")
            assert await ws.recv() == f"{root} hello"
    port = urlsplit(url).port
    async with connect_socket(f"ws://admin.example.com:{port}/ws/talk", host="127.0.0.1") as ws:
        await ws.send("hello")
        assert await ws.recv() == "s-admin hello"


@end_to_end
async def test_sites_below_a_mount(house):
    """In a mounted gateway, the path of a site begins below the mount."""
    app = Starlette(routes=[Mount("/shop", house.gateway)])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://example.com") as client:
        assert (await client.get("/shop/v2/x")).text == "s-v2 GET /x  0"
        assert (await client.get("/shop/x")).text == "s-main GET /x  0"
        assert (await client.get("/shop/x", headers={"host": "admin.example.com"})).text == "s-admin GET /x  0"


def named(root, name):
    """Return a service with one route."""
    svc = Service(name, root=root)

    @svc.get("/who")
    async def who() -> str:
        return name

    return svc


@end_to_end
@DOORS
async def test_two_gateways_on_one_cluster(nats_url, fast):
    """Two gateways with roots of which one is below the other serve two worlds with the same paths."""
    async with AsyncExitStack() as stack:
        await serve(stack, nats_url, named("two", "live"), named("two.staging", "staging"))
        nats = Nats(urls=(nats_url,))
        live = (await put_in_front(stack, Gateway("two", nats=nats)))[fast]
        staging = (await put_in_front(stack, Gateway("two.staging", nats=nats)))[fast]
        client = await stack.enter_async_context(httpx2.AsyncClient())
        assert (await client.get(f"{live}/who")).text == "live"
        assert (await client.get(f"{staging}/who")).text == "staging"
        assert (await client.get(f"{live}/staging/who")).text == "staging"  # the root below is a path above
        assert (await client.get(f"{staging}/staging/who")).status_code == 404


@end_to_end
@DOORS
async def test_each_site_knows_its_own_services(nats_url, fast):
    """With `known_only`, what nobody has claimed below a root is 404 there, whoever has it below another."""
    async with AsyncExitStack() as stack:
        await serve(stack, nats_url, named("known", "live"), named("known-b", "other"))
        gateway = Gateway(
            "known", nats=Nats(urls=(nats_url,)), roots={"/b": "known-b", "/c": "known-c"}, known_only=True
        )
        url = (await put_in_front(stack, gateway))[fast]
        client = await stack.enter_async_context(httpx2.AsyncClient())
        assert (await client.get(f"{url}/who")).text == "live"
        assert (await client.get(f"{url}/b/who")).text == "other"
        assert (await client.get(f"{url}/c/who")).json()["reason"] == "no_service"
