"""Applications that nobody here wrote for natsweb, behind gateway, NATS and shim: they answer as they do on uvicorn.

FastAPI, Starlette, Quart, Django, and Flask through a2wsgi (`foreign_apps/`). uvicorn's own answer is the reference:
the same requests go to it, straight, and through both doors of a gateway; statuses, fields and bodies are compared.
"""

import asyncio
import contextlib
import gc
import importlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
import pytest_asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus

from natsweb import Nats, Service
from natsweb.embedded import embedded_server
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus import connect
from natsweb.serving import serve

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # Django reads a file in a thread, in one go, and says so; Quart leaves the file of a 304 to the collector.
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume:Warning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]

ROOT = Path(__file__).parent.parent
HOST = "shop.test"
MOUNTS = pytest.mark.parametrize("mount", ["/", "/shop"])

#: Seconds that anything may take before it counts as hanging.
PATIENCE = 20.0

PHOTO = bytes(range(256)) * 20_000  # 5 MB
SMALL = b"x" * 1000

#: Fields that differ, and why.
OURS = {
    "date": "each server says when it answers",
    "server": "uvicorn names itself, the gateway does not",
    "content-length": "an answer that is whole at once has a length, also where the app has named none",
    "transfer-encoding": "the other side of the same thing",
    "connection": "whether a connection stays is between a client and its server",
    "expires": "Quart says until when a file is fresh, counted from now",
}

#: What has the time in it, or what is drawn by chance: what is compared instead.
DRAWN = [
    (re.compile(r"^((?:session|sessionid|seal|messages)=[^.:;]*)[^;]*"), r"\1"),
    (re.compile(r"^((?:csrftoken)=)[^;]*"), r"\1"),
    (re.compile(r"(expires=)[^;]*", re.IGNORECASE), r"\1"),
    (re.compile(r"(boundary=).*"), r"\1"),
]


# ── two ways to the same application ─────────────────────────────────────────────────────────────


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        """Do nothing: pytest owns signals."""
        yield


@asynccontextmanager
async def straight(app: Any, mount: str) -> AsyncIterator[str]:
    """Run an application under uvicorn, as behind a proxy that cuts the prefix off, and give its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which asyncio does not do for this kind of socket
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="auto",  # Django knows none
        http="httptools",
        ws="websockets-sansio",
        root_path=mount.rstrip("/"),
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(PATIENCE):
        while not server.started:
            assert not task.done(), "uvicorn did not start"
            await asyncio.sleep(0.002)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


@asynccontextmanager
async def fronts(nats: str, root: str, **options: Any) -> AsyncIterator[list[str]]:
    """Run a gateway with a socket for each door, and give their URLs: the fast door, the ASGI door."""
    async with Gateway(root, nats=Nats(urls=(nats,)), **options) as gateway:
        both = [Front(gateway, port=0, grace=1.0, fast=fast) for fast in (True, False)]
        for front in both:
            await front.start()
        try:
            yield [front.url for front in both]
        finally:
            await asyncio.gather(*[front.stop(now=True) for front in both])


class Seen(NamedTuple):
    """What a client sees of an answer: only what has to be the same."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes | str

    @classmethod
    def of(cls, response: httpx2.Response) -> "Seen":
        """Return what is seen of a response whose body has been read."""
        pairs = [(name.lower(), value) for name, value in response.headers.multi_items()]
        fields = sorted([(name, plain(value)) for name, value in pairs if name not in OURS], key=lambda pair: pair[0])
        body = response.content
        if boundary := re.search(r"boundary=(\S+)", response.headers.get("content-type", "")):
            body = body.replace(boundary[1].encode(), b"boundary")
        return cls(response.status_code, fields, body)


def plain(value: str) -> str:
    """Return a value without what has the time in it."""
    for pattern, instead in DRAWN:
        value = pattern.sub(instead, value)
    return value


def client(**options: Any) -> httpx2.AsyncClient:
    """Return an HTTP client that has no need of certificates, which take longer to load than anything here."""
    return httpx2.AsyncClient(timeout=PATIENCE, trust_env=False, verify=False, **options)


class Side:
    """A client of one of the servers; `prefix` is what its paths begin with."""

    def __init__(self, app: str, url: str, prefix: str, happened: list[str]) -> None:
        self.app = app
        self.url = url
        self.prefix = prefix
        self.happened = happened
        self.patience = PATIENCE
        self.http = client(base_url=url, headers={"host": HOST})

    def at(self, path: str) -> str:
        """Return the path of the application's path."""
        return self.prefix + path

    async def ask(self, method: str, path: str, **options: Any) -> Seen:
        """Send a request; what comes as a function is called for what it makes."""
        options = {name: value() if callable(value) else value for name, value in options.items()}
        return Seen.of(await self.http.request(method, self.at(path), **options))

    @asynccontextmanager
    async def streaming(self, method: str, path: str, **options: Any) -> AsyncIterator[httpx2.Response]:
        """Send a request, and give the response before its body has been read."""
        async with self.http.stream(method, self.at(path), **options) as response:
            yield response

    def talking(self, path: str, **options: Any) -> Any:
        """Open a WebSocket."""
        address = urlsplit(self.url)
        where = {"host": address.hostname, "port": address.port, "proxy": None}
        return connect_socket(f"ws://{HOST}{self.at(path)}", max_size=None, **where, **options)

    async def upload_half(self, path: str) -> None:
        """Begin to send a body, wait until the application is in the middle of it, and hang up."""
        address = urlsplit(self.url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST {self.at(path)} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 9000000\r\n\r\n"
        writer.write(head.encode() + SMALL * 100)
        await writer.drain()
        await self.until("swallowing")
        hang_up(writer)

    async def until(self, word: str) -> None:
        """Wait until something has happened in the application."""
        async with asyncio.timeout(self.patience):
            while word not in self.happened:
                await asyncio.sleep(0.002)


def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a socket at once, with a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class House(NamedTuple):
    """One application on uvicorn, and another instance of it behind the gateway."""

    name: str
    reference: tuple[str, list[str]]
    doors: dict[str, str]
    happened: list[str]
    mount: str

    def sides(self) -> list[tuple[str, Side]]:
        """Return a fresh client for each way, uvicorn's first."""
        prefix = self.mount.rstrip("/")
        ways = [("uvicorn", Side(self.name, self.reference[0], "", self.reference[1]))]
        return ways + [(door, Side(self.name, url, prefix, self.happened)) for door, url in self.doors.items()]


def create(name: str) -> tuple[Any, list[str]]:
    """Return a new instance of one of the applications, and the list of what happens in it."""
    module = importlib.import_module(f"foreign_apps.{name}_app")
    happened: list[str] = getattr(module, "happened", [])
    return module.create(happened), happened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def houses(nats_url: str) -> AsyncIterator[Callable[[str, str], Awaitable[House]]]:
    """Give a function that starts a house the first time that it is asked for."""
    built: dict[tuple[str, str], House] = {}
    stacks: list[AsyncExitStack] = []

    async def house(name: str, mount: str) -> House:
        if (name, mount) not in built:
            root = f"foreign-{name}-{mount.strip('/') or 'top'}"
            stacks.append(stack := AsyncExitStack())
            app, there = create(name)
            reference = await stack.enter_async_context(straight(app, mount))
            app, here = create(name)
            await stack.enter_async_context(serve(app, nats=nats_url, root=root, mount=mount, grace=1.0))
            urls = await stack.enter_async_context(fronts(nats_url, root))
            doors = dict(zip(["fast door", "asgi door"], urls, strict=True))
            built[name, mount] = House(name, (reference, there), doors, here, mount)
        return built[name, mount]

    yield house
    await asyncio.gather(*[stack.aclose() for stack in stacks])


# ── what is asked ────────────────────────────────────────────────────────────────────────────────

#: What a case does with a side; what it returns is compared.
Do = Callable[[Side], Awaitable[Any]]


class Case(NamedTuple):
    """Something that is done to an application in the same way on every side."""

    app: str
    name: str
    do: Do
    bug: str | None = None


CASES: list[Case] = []


def ask(app: str, method: str, path: str, name: str = "", *, bug: str | None = None, **options: Any) -> None:
    """Declare a case of one request; `bug` is why natsweb does not pass it yet."""

    async def do(side: Side) -> Seen:
        return await side.ask(method, path, **options)

    CASES.append(Case(app, f"{method} {path}{' ' if name else ''}{name}", do, bug))


def flow(*apps: str, bug: str | None = None) -> Callable[[Do], Do]:
    """Declare a case of several steps."""

    def declare(function: Do) -> Do:
        CASES.extend(Case(app, function.__name__, function, bug) for app in apps)
        return function

    return declare


async def in_pieces() -> AsyncIterator[bytes]:
    """A body whose length nobody knows."""
    for one in range(20):
        yield bytes([65 + one]) * 50_000


ask("fastapi", "GET", "/plants/7")
ask("fastapi", "GET", "/plants/7?size=2&tag=a&tag=b%20c&tag=", headers={"x-trowel": "caf\xe9".encode("latin-1")})
ask("fastapi", "GET", "/plants/seven?size=0", "is 422")
ask("fastapi", "GET", "/plants/7", "with a cookie", headers={"cookie": "soil=wet; other=1"})
ask("fastapi", "GET", "/plants")
ask("fastapi", "GET", "/plants/?a=1", "redirects")
ask("fastapi", "GET", "/seeds?a=1", "redirects")
ask("fastapi", "POST", "/seeds", "redirects")
ask("fastapi", "POST", "/plants", "creates", json={"name": "fern", "price": 2.5, "tags": ["green"]})
ask("fastapi", "POST", "/plants", "is refused", json={"name": "f", "price": -1})
ask("fastapi", "POST", "/plants", "is no JSON", content=b'{"name": ', headers={"content-type": "application/json"})
ask("fastapi", "PATCH", "/plants/moss", json={"to": "fern"})
ask("fastapi", "DELETE", "/plants/moss")
ask("fastapi", "HEAD", "/plants")
ask("fastapi", "GET", "/potted")
ask("fastapi", "GET", "/broken-pot")
ask("fastapi", "GET", "/orchid")
ask("fastapi", "GET", "/nowhere")
ask("fastapi", "GET", "/where?a=%20b&c")
ask("fastapi", "GET", "/headers", headers=[("x-a", "1"), ("accept-language", "de"), ("X-A", "2"), ("x-e", "")])
ask("fastapi", "GET", "/page", "compressed")
ask("fastapi", "GET", "/page", "not compressed", headers={"accept-encoding": "identity"})
ask("fastapi", "GET", "/catalogue")
ask("fastapi", "GET", "/rows?count=20")
ask("fastapi", "GET", "/rows", "not compressed", headers={"accept-encoding": "identity"})
ask("fastapi", "GET", "/large", headers={"accept-encoding": "identity"})
ask("fastapi", "POST", "/upload", files={"photo": ("rose.png", PHOTO, "image/png")}, data={"note": "5 MB"})
ask("fastapi", "POST", "/files", files=[("files", ("a", b"1")), ("files", ("b", SMALL))])
ask("fastapi", "POST", "/login", data={"user": "jo", "word": "ßecret&"})
ask("fastapi", "POST", "/login", "incomplete", data={"user": "jo"})
ask("fastapi", "GET", "/shed", "without a name")
ask("fastapi", "GET", "/shed", "with a name", auth=("jo", "secret"))
ask("fastapi", "POST", "/letters?to=jo")
ask("fastapi", "GET", "/openapi.json")
ask("fastapi", "GET", "/docs")
ask("fastapi", "GET", "/office/ledger/7")
ask("fastapi", "GET", "/office/openapi.json")
ask("fastapi", "GET", "/static/quart_app.py", headers={"accept-encoding": "identity"})
ask("fastapi", "GET", "/plants", "of another origin", headers={"origin": "https://garden.example"})
ask(
    "fastapi",
    "OPTIONS",
    "/plants",
    "as a preflight",
    headers={"origin": "https://garden.example", "access-control-request-method": "POST"},
)
ask("fastapi", "OPTIONS", "/plants", "of an unknown origin", headers={"origin": "https://evil.example"})
ask("fastapi", "GET", "/boom")

ask("starlette", "GET", "/")
ask("starlette", "HEAD", "/")
ask("starlette", "GET", "/bench")
ask("starlette", "PUT", "/bench", content=b"a plank")
ask("starlette", "DELETE", "/bench", "is 405")
ask("starlette", "OPTIONS", "/bench")
ask("starlette", "GET", "/show/a%20%C3%BC%2B?q=%3Cb%3E")
ask("starlette", "GET", "/show/a.b*c")
ask("starlette", "GET", "/links?x=1")
ask("starlette", "GET", "/go")
ask("starlette", "GET", "/folder?x=1", "redirects")
ask("starlette", "GET", "/member", "is 403")
ask("starlette", "GET", "/member", "with a name", headers={"x-name": "jo"})
ask("starlette", "POST", "/form", "of fields", data={"a": "1", "b": "ü&="})
ask("starlette", "POST", "/form", "of files", files={"a": ("a.bin", PHOTO)}, data={"b": "2"})
ask("starlette", "POST", "/digest", "at once", content=SMALL)
ask("starlette", "PUT", "/digest", "5 MB", content=PHOTO)
ask("starlette", "POST", "/digest", "in pieces", content=in_pieces)
ask("starlette", "POST", "/digest", "of nothing")
ask("starlette", "GET", "/events?count=5")
ask("starlette", "GET", "/later")
ask("starlette", "GET", "/many")
ask("starlette", "GET", "/status/204")
ask("starlette", "GET", "/status/304")
ask("starlette", "GET", "/status/205")
ask("starlette", "GET", "/status/503")
ask("starlette", "GET", "/gone")
ask("starlette", "GET", "/nowhere/at/all/")
ask("starlette", "GET", "/double//slash///")
ask("starlette", "PURGE", "/cache?all")
ask("starlette", "REPORT", "/cache", content=b"<all/>")
ask("starlette", "GET", "/inner/deep/a/b%2Fc/")
ask("starlette", "GET", "/raw/what/ever")
ask("starlette", "GET", "/static/starlette_app.py")
ask("starlette", "HEAD", "/static/starlette_app.py")
ask("starlette", "GET", "/static/starlette_app.py", "a range", headers={"range": "bytes=10-49"})
ask("starlette", "GET", "/static/starlette_app.py", "two ranges", headers={"range": "bytes=0-9,20-29"})
ask("starlette", "GET", "/static/starlette_app.py", "out of range", headers={"range": "bytes=9000000-"})
ask("starlette", "GET", "/static/none.css")
ask("starlette", "GET", "/boom")

ask("quart", "GET", "/")
ask("quart", "HEAD", "/")
ask("quart", "GET", "/hello/a%20%C3%BC", headers={"x-lamp": "on"})
ask("quart", "GET", "/hooked")
ask("quart", "GET", "/where?a=1&a=2&b=%20")
ask("quart", "GET", "/folder", "redirects")
ask("quart", "GET", "/folder/")
ask("quart", "GET", "/go")
ask("quart", "GET", "/plain")
ask("quart", "GET", "/cookie", headers={"cookie": "taper=long"})
ask("quart", "GET", "/shelf/quart_app.py")
ask("quart", "GET", "/shelf/quart_app.py", "a range", headers={"range": "bytes=5-20"})
ask("quart", "GET", "/shelf/nothing")
ask("quart", "GET", "/teapot")
ask("quart", "GET", "/nowhere")
ask("quart", "PUT", "/method")
ask("quart", "POST", "/method", "is 405")
ask("quart", "OPTIONS", "/method")
ask("quart", "GET", "/cellar/7")
ask("quart", "POST", "/json", json={"a": [1, "ü"]})
ask("quart", "POST", "/json", "is none", content=b"{", headers={"content-type": "application/json"})
ask("quart", "POST", "/form", "of fields", data={"a": ["1", "2"], "b": "&"})
ask("quart", "POST", "/form", "of files", files={"wax": ("w.bin", PHOTO)}, data={"b": "2"})
ask("quart", "POST", "/digest", "5 MB", content=PHOTO)
ask("quart", "POST", "/digest", "in pieces", content=in_pieces)
ask("quart", "POST", "/digest", "too large", content=PHOTO * 3)
ask("quart", "POST", "/mirror", content=b"Wick and Wax")
ask("quart", "GET", "/rows")
ask("quart", "POST", "/later")
ask("quart", "GET", "/boom")

ask("django", "GET", "/")
ask("django", "HEAD", "/")
ask("django", "GET", "/where?q=1&q=%C3%BC&r=", headers={"x-reader": "jo"})
ask("django", "GET", "/books/12")
ask("django", "GET", "/books/0")
ask("django", "GET", "/attic/box/a%20b/c%2Fd/")
ask("django", "GET", "/folder?x=1", "gets its slash")
ask("django", "GET", "/go")
ask("django", "GET", "/desk")
ask("django", "PUT", "/desk", content=b"desk")
ask("django", "PATCH", "/desk", "is 405")
ask("django", "OPTIONS", "/desk")
ask("django", "POST", "/guestbook", "without a token", data={"name": "jo"})
ask("django", "POST", "/upload", "small", files={"a": ("a.txt", b"small")}, data={"b": "2"})
ask("django", "POST", "/upload", "5 MB", files={"a": ("a ü.bin", PHOTO)})
ask("django", "GET", "/upload", "is 405")
ask("django", "POST", "/raw", "small", content=SMALL, headers={"content-type": "text/x"})
ask("django", "POST", "/raw", "in pieces", content=in_pieces)
ask("django", "GET", "/rows")
ask("django", "GET", "/source", headers={"accept-encoding": "identity"})
ask("django", "GET", "/stale")
ask("django", "GET", "/cookies", headers={"cookie": "mark=old; dust=much"})
ask("django", "GET", "/nowhere")
ask("django", "GET", "/", "of an unknown host", headers={"host": "evil.example"})
ask("django", "GET", "/boom")

ask("flask", "GET", "/")
ask("flask", "HEAD", "/")
ask("flask", "GET", "/hello/a%20%C3%BC")
ask("flask", "GET", "/where?a=1&a=2&b=%20")
ask("flask", "GET", "/jars/3")
ask("flask", "GET", "/folder", "redirects")
ask("flask", "GET", "/go")
ask("flask", "GET", "/cookie", headers={"cookie": "lid=loose"})
ask("flask", "GET", "/shelf/flask_app.py")
ask("flask", "GET", "/shelf/flask_app.py", "a range", headers={"range": "bytes=5-20"})
ask("flask", "GET", "/shelf/nothing")
ask("flask", "GET", "/teapot")
ask("flask", "PUT", "/method")
ask("flask", "POST", "/method", "is 405")
ask("flask", "OPTIONS", "/method")
ask("flask", "POST", "/json", json={"a": [1, "ü"]})
ask("flask", "POST", "/form", "of fields", data={"a": ["1", "2"], "b": "&"})
ask("flask", "POST", "/form", "of files", files={"wax": ("w.bin", PHOTO)}, data={"b": "2"})
ask("flask", "POST", "/digest", "5 MB", content=PHOTO)
ask("flask", "POST", "/digest", "in pieces", content=in_pieces)
ask("flask", "GET", "/rows")
ask("flask", "GET", "/large")
ask("flask", "GET", "/boom")


@flow("fastapi", "starlette", "quart", "django", "flask")
async def a_session(side: Side) -> list[Seen]:
    """A session lives in a cookie."""
    return [await side.ask("GET", "/visits") for _ in range(3)]


@flow("starlette")
async def a_session_that_is_cleared(side: Side) -> list[Seen]:
    """An emptied session deletes its cookie."""
    return [await side.ask("GET", path) for path in ("/visits", "/visits?forget=1", "/visits")]


@flow("starlette", "flask", "quart")
async def a_file_that_has_not_changed(side: Side) -> list[Seen]:
    """An ETag, or a date, comes back as a condition, and the answer is 304."""
    path = "/static/flask_app.py" if side.app == "starlette" else "/shelf/flask_app.py"
    fields = (await side.http.get(side.at(path))).headers
    conditions = [{"if-none-match": fields["etag"]}, {"if-modified-since": fields["last-modified"]}]
    seen = [await side.ask("GET", path, headers=condition) for condition in conditions]
    assert [one.status for one in seen] == [304, 304]
    return seen


@flow("quart")
async def flashed_messages(side: Side) -> list[Seen]:
    """What one request says for the next."""
    return [await side.ask("GET", path) for path in ("/visits", "/flashes", "/flashes")]


@flow("django")
async def async_sessions(side: Side) -> list[Seen]:
    """A session lives in a cookie, for async views as well."""
    return [await side.ask("GET", path) for path in ("/visits", "/async-visits", "/visits")]


@flow("django")
async def a_form(side: Side) -> list[Any]:
    """CSRF token, validation, redirect, message: each is one step of the form."""
    seen: list[Any] = []
    for fields in ({"name": "", "pages": "0"}, {"name": "jo"}, None):
        shown = await side.http.get(side.at("/guestbook"))
        [token] = re.findall(r'csrfmiddlewaretoken" value="([A-Za-z0-9]+)"', shown.text)
        seen.append((shown.status_code, shown.text.replace(token, "TOKEN")))
        if fields is not None:
            data = {**fields, "csrfmiddlewaretoken": token}
            said = await side.http.post(side.at("/guestbook"), data=data)
            text = re.sub(r'(csrfmiddlewaretoken" value=")[A-Za-z0-9]+', r"\1", said.text)
            seen.append((said.status_code, said.headers.get("location"), text))
    assert "success: thanks, jo" in seen[-1][1]
    return seen


@flow("django")
async def a_page_that_has_not_changed(side: Side) -> list[Any]:
    """Conditional GET and gzip of Django's middleware (whose gzip has random bytes, for BREACH)."""
    first = await side.http.get(side.at("/page"))
    again = await side.http.get(side.at("/page"), headers={"if-none-match": first.headers["etag"]})
    return [first.status_code, first.text, first.headers["content-encoding"], first.headers["etag"], again.status_code]


async def measured(side: Side) -> Seen:
    """The last byte of the content-length is not the end of the app: its generator goes on for a moment."""
    seen = await side.ask("GET", "/measured", headers={"accept-encoding": "identity"})
    await side.until("swept up")
    return seen


CASES.append(Case("starlette", "GET /measured", measured))
CASES.append(Case("quart", "GET /measured", measured))
CASES.append(Case("django", "GET /measured", measured))


@flow("fastapi")
async def an_answer_that_breaks_off(side: Side) -> None:
    """An app that fails in the middle of its answer has the connection closed, without a proper end."""
    with pytest.raises(httpx2.RemoteProtocolError):
        await side.ask("GET", "/half", headers={"accept-encoding": "identity"})


@flow("fastapi", "quart")
async def a_client_that_leaves_a_download(side: Side) -> None:
    """A client that hangs up ends the generator of the answer."""
    path, word = {
        "fastapi": ("/endless", "tap closed"),
        "quart": ("/endless", "wick out"),
    }[side.app]
    async with side.streaming("GET", path) as response:
        async for _ in response.aiter_raw():
            break
    await side.until(word)


@flow("django", bug="the app's send raises before the app has heard of the disconnect that it listens for")
async def a_client_that_stops_reading(side: Side) -> None:
    """A client that hangs up while the app waits for it to read ends the generator, which cleans up at once."""
    address = urlsplit(side.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port, limit=1000)
    writer.write(f"GET {side.at('/flood')} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    await side.until("drop")
    count = 0
    while count != len(side.happened):
        count = len(side.happened)
        await asyncio.sleep(0.1)  # it has come to a standstill when nothing happens any more
    gc.disable()  # which would close the generator as well, some time
    try:
        hang_up(writer)
        await side.until("tap closed")
    finally:
        gc.enable()
        side.happened[:] = [one for one in side.happened if one != "drop"]


async def wait_and_leave(side: Side, path: str, word: str) -> None:
    """Ask for what takes for ever, hang up, and wait until the app knows."""
    address = urlsplit(side.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"GET {side.at(path)} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    await side.until("waiting")
    hang_up(writer)
    await side.until(word)


@flow("fastapi")
async def a_client_that_does_not_wait(side: Side) -> None:
    """`request.is_disconnected()` turns true."""
    await wait_and_leave(side, "/waiting", "disconnected")


@flow("django")
async def a_client_that_does_not_wait_for_a_view(side: Side) -> None:
    """An async view is cancelled."""
    await wait_and_leave(side, "/patient", "view cancelled")


@flow("fastapi", "quart")
async def a_client_that_leaves_an_upload(side: Side) -> None:
    """A client that hangs up in the middle of its body is a disconnect for the app."""
    await side.upload_half("/swallow")
    await side.until({"fastapi": "ClientDisconnect", "quart": "cancelled"}[side.app])


async def talk(side: Side, path: str, *said: str | bytes, answers: int | None = None, **options: Any) -> list[Any]:
    """Say something on a WebSocket, hear as many answers, and return all that came, with the goodbye."""
    heard: list[Any] = []
    try:
        async with asyncio.timeout(side.patience), side.talking(path, **options) as connection:
            heard.append(connection.subprotocol)
            try:
                for one in said:
                    await connection.send(one)
                for _ in range(len(said) if answers is None else answers):
                    heard.append(await connection.recv())
            except ConnectionClosed:
                pass
            await connection.close()
            heard.append((connection.close_code, connection.close_reason))
    except InvalidStatus as refused:
        fields = [(name.lower(), value) for name, value in refused.response.headers.raw_items()]
        heard.append((refused.response.status_code, dict(fields).get("content-type"), refused.response.body))
    return heard


@flow("fastapi")
async def a_talk(side: Side) -> list[Any]:
    """Text, bytes and JSON; the client leaves."""
    return await talk(side, "/talk/7?token=t", "a", b"bcd", "", "where", "ü" * 70_000, subprotocols=["dill", "mint"])


@flow("fastapi")
async def a_talk_that_the_app_ends(side: Side) -> list[Any]:
    """The app says goodbye with a code and a reason of its own."""
    return await talk(side, "/talk/7?token=t", "a", "bye")


@flow("fastapi")
async def a_talk_that_is_refused(side: Side) -> list[Any]:
    """A dependency refuses, a parameter does not fit, no route is there: each is 403 (compared without the body)."""
    heard = [await talk(side, path) for path in ("/talk/7", "/talk/seven?token=t", "/none")]
    return [one[0][0] for one in heard]


@flow("fastapi")
async def a_talk_that_is_denied(side: Side) -> list[Any]:
    """The app answers a handshake with a response of its own."""
    return await talk(side, "/closed")


@flow("starlette")
async def an_endpoint(side: Side) -> list[Any]:
    """JSON messages through a class, and headers of the handshake."""
    async with side.talking("/echo") as connection:
        await connection.send('{"a": 1}')
        said = [await connection.recv(), connection.response.headers["x-echo"]]
        await connection.close(4003, "enough")
    await side.until("echo left with 4003")
    return said


@flow("starlette")
async def a_subprotocol(side: Side) -> list[Any]:
    """The app chooses one of the client's protocols."""
    return await talk(side, "/chooses", "a", "b", subprotocols=["one", "two"])


@flow("fastapi", "starlette", "flask")
async def an_upload_that_asks_first(side: Side) -> tuple[bytes, bytes]:
    """`Expect: 100-continue`: the body is asked for, and then taken."""
    path = {"fastapi": "/swallow", "starlette": "/digest", "flask": "/digest"}[side.app]
    address = urlsplit(side.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {side.at(path)} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(side.patience):
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(SMALL)
        answered = await reader.readline()
        await reader.readuntil(b"1000")
    writer.close()
    await writer.wait_closed()
    return asked, answered


@flow("starlette")
async def messages_of_all_sizes(side: Side) -> list[Any]:
    """The app pushes, and closes."""
    return [zlib.crc32(one) if isinstance(one, bytes) else one for one in await talk(side, "/pushes", answers=6)]


@flow("starlette", "flask")
async def a_refused_socket(side: Side) -> list[Any]:
    """The app closes before it accepts: 403 (compared without the body)."""
    return [(await talk(side, "/refuses"))[0][0]]


@flow("quart")
async def a_quart_talk(side: Side) -> list[Any]:
    """Text, bytes, addresses, and a session that a request has begun."""
    await side.ask("GET", "/visits")
    [value] = [cookie.value for cookie in side.http.cookies.jar]
    headers = {"cookie": f"session={value}"}
    heard = await talk(side, "/talk/7", "a", b"bc", "where", subprotocols=["tallow"], additional_headers=headers)
    await side.until("talk over")
    return heard


@flow("quart")
async def a_quart_talk_that_the_app_ends(side: Side) -> list[Any]:
    """The app says goodbye with a code and a reason of its own."""
    return await talk(side, "/talk/7", "bye")


@flow("quart")
async def a_quart_talk_that_is_refused(side: Side) -> list[Any]:
    """An abort before accepting is an ordinary answer."""
    return [await talk(side, "/refused"), await talk(side, "/talk/x")]


# ── the comparison ───────────────────────────────────────────────────────────────────────────────


def param(case: Case) -> Any:
    """Return a case with its name, and one that is a bug as such."""
    marks = [pytest.mark.xfail(strict=True, reason=case.bug)] if case.bug else []
    return pytest.param(case, id=f"{case.app}: {case.name}", marks=marks)


@MOUNTS
@pytest.mark.parametrize("case", [param(case) for case in CASES])
async def test_the_same_as_on_uvicorn(houses, case, mount):
    """Both doors answer what uvicorn answers, the same happens in the application, and nothing is left of it."""
    house = await houses(case.app, mount)
    wanted: Any = None
    for name, side in house.sides():
        side.patience = 1.0 if case.bug and name != "uvicorn" else PATIENCE
        side.happened.clear()
        before = asyncio.all_tasks()
        try:
            async with side.http:
                got = await case.do(side)
            if name == "uvicorn":
                await ended(before, PATIENCE)
                wanted = got, sorted(side.happened)
                continue
            assert got == wanted[0], name
            await ended(before, side.patience)
            assert sorted(side.happened) == wanted[1], name
        finally:
            await asyncio.sleep(0)
            for task in asyncio.all_tasks() - before:
                task.cancel()  # so that what a bug has left behind does not keep the house from stopping


async def ended(before: set[Any], patience: float) -> None:
    """Wait until no task is there that was not there before."""
    give_up = time.monotonic() + patience
    while left := asyncio.all_tasks() - before:
        assert time.monotonic() < give_up, f"still there: {left}"
        await asyncio.sleep(0.001)


# ── what differs, and is meant to ────────────────────────────────────────────────────────────────


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """An application without any framework."""
    match scope["type"], scope["path"].rpartition("/")[2]:
        case "lifespan", _:
            raise RuntimeError("this one has no lifespan")
        case _, "fails":
            raise LookupError("no answer at all")
        case _, "says-nothing":
            return
        case "websocket", "talks":
            await send({"type": "websocket.accept"})
            raise ZeroDivisionError("a socket of nothing")
        case "websocket", _:
            await send({"type": "websocket.close"})
        case _, "slow":
            await asyncio.sleep(PATIENCE)
        case "http", "early":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise LookupError("the other half")
        case _:
            names = ["raw_path", "path", "root_path", "asgi", "http_version"]
            said = {name: scope[name].decode() if name == "raw_path" else scope[name] for name in names}
            said["headers"] = sorted({name.decode() for name, _ in scope["headers"]})
            await Response(json.dumps(said), media_type="application/json")(scope, receive, send)


async def status_of(side: Side, method: str, path: str) -> int:
    """Return a status; the path goes as it is, which httpx2 would tidy up."""
    address = urlsplit(side.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"{method} {side.at(path)} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(said.split()[1])


async def scope_entry(side: Side, name: str, path: str = "/x", **options: Any) -> Any:
    """Return what the application sees."""
    return (await side.http.get(side.at(path), **options)).json()[name]


async def body_seen(side: Side) -> Any:
    """Return the content type and body of a failing application's answer."""
    seen = await side.ask("GET", "/fails")
    return seen.status, dict(seen.fields).get("content-type"), len(seen.body) > 60


# what is done, what uvicorn says, what natsweb says, why
DIFFERENT = {
    "an app that fails": (
        body_seen,
        (500, "text/plain; charset=utf-8", False),
        (500, "application/problem+json", True),
        "a 500 that no framework has made is a problem+json, as all errors of natsweb are",
    ),
    "a refused WebSocket": (
        lambda side: talk(side, "/refuses"),
        [(403, "text/plain; charset=utf-8", b"")],
        None,
        "403 on both sides; natsweb's has a body that says so",
    ),
    "a failing WebSocket": (
        lambda side: talk(side, "/talks", answers=1),
        [None, (1006, "")],
        [None, (1011, "")],
        "uvicorn drops the connection, natsweb says 1011 (RFC 6455 section 7.4.1)",
    ),
    "dots": (
        lambda side: status_of(side, "GET", "/a/../b"),
        200,
        400,
        "dot segments are refused, since the path is the subject that permissions are about",
    ),
    "TRACE": (lambda side: status_of(side, "TRACE", "/"), 200, 405, "a gateway does not forward TRACE"),
    "raw_path": (
        lambda side: scope_entry(side, "raw_path", "/x%2fy%41"),
        "{prefix}/x%2fy%41",
        "{prefix}/x%2FyA",
        "raw_path is the canonical path, which the subject can hold",
    ),
    "the version of the specification": (
        lambda side: scope_entry(side, "asgi"),
        {"version": "3.0", "spec_version": "2.3"},
        {"version": "3.0", "spec_version": "2.4"},
        "2.4: send raises when the client has gone; a Starlette stream may read its request's body meanwhile",
    ),
    "hop-by-hop fields": (
        lambda side: scope_entry(side, "headers", headers={"te": "x", "connection": "x-hop", "x-hop": "1"}),
        ["accept", "accept-encoding", "connection", "host", "te", "user-agent", "x-hop"],
        ["accept", "accept-encoding", "host", "user-agent"],
        "fields of one connection do not cross the gateway (RFC 9110 section 7.6.1)",
    ),
}


@MOUNTS
@pytest.mark.parametrize("name", DIFFERENT)
async def test_what_differs_on_purpose(nats_url, name, mount):
    """Each difference is one that was chosen, here with its reason."""
    do, on_uvicorn, on_natsweb, why = DIFFERENT[name]
    prefix = mount.rstrip("/")

    def filled(value: Any) -> Any:
        return value.replace("{prefix}", prefix) if isinstance(value, str) else value

    async with straight(bare, mount) as url:
        side = Side("bare", url, "", [])
        async with side.http:
            assert await do(side) == filled(on_uvicorn), why
    async with serve(bare, nats=nats_url, root="different", mount=mount), fronts(nats_url, "different") as urls:
        for url in urls:
            side = Side("bare", url, prefix, [])
            async with side.http:
                got = await do(side)
            if on_natsweb is None:
                [(status, kind, body)] = got
                assert (status, kind, json.loads(body)["reason"]) == (403, "application/problem+json", "refused"), why
            else:
                assert got == filled(on_natsweb), why


async def test_bodies_both_ways(nats_url):
    """A Starlette stream that reads the request while it answers: uvicorn's own loses parts of it (spec 2.3)."""
    app, happened = create("fastapi")
    whole = b"".join([piece async for piece in in_pieces()])
    async with serve(app, nats=nats_url, root="mirror", mount="/shop"), fronts(nats_url, "mirror") as urls:
        for url in urls:
            side = Side("fastapi", url, "/shop", happened)
            async with side.http:
                seen = await side.ask("POST", "/mirror", content=in_pieces, headers={"accept-encoding": "identity"})
            assert (seen.status, zlib.crc32(seen.body)) == (200, zlib.crc32(whole.swapcase()))


async def test_an_app_that_takes_too_long(nats_url):
    """The gateway has a deadline, which uvicorn has not: 504, and the app hears of it."""
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await receive()
            assert (await receive())["type"] == "http.disconnect"
            ended.set()

    async with serve(app, nats=nats_url, root="late"), fronts(nats_url, "late", timeout=0.2) as urls:
        for url in urls:
            ended.clear()
            async with client() as http:
                assert (await http.get(url)).status_code == 504
            async with asyncio.timeout(PATIENCE):
                await ended.wait()


async def test_an_answer_in_two_parts_does_not_wait(nats_url):
    """The connections of the front have TCP_NODELAY: the ASGI door writes head and body one after the other."""
    async with Gateway("nodelay", nats=Nats(urls=(nats_url,))) as gateway:
        front = Front(gateway, port=0, grace=1.0)
        await front.start()
        try:
            async with client() as http:
                await http.get(front.url + "/healthz")
                [connection] = front._server.server_state.connections
                accepted = connection.transport.get_extra_info("socket")
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        finally:
            await front.stop(now=True)


async def test_health_checks(nats_url):
    """The gateway answers /healthz and /readyz itself, unless it is told to leave them to the application."""

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("the app's")

    app = Starlette(routes=[Route("/healthz", healthz)])
    async with serve(app, nats=nats_url, root="health"):
        for health, wanted in ((True, "ok\n"), (False, "the app's")):
            async with fronts(nats_url, "health", health=health) as urls, client() as http:
                assert [(await http.get(url + "/healthz")).text for url in urls] == [wanted, wanted]


# ── the mount itself ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["fastapi", "starlette", "quart", "django", "flask"])
async def test_the_path_of_the_mount(houses, name):
    """`/shop` without a slash leads to the application's first page, at once or by a redirect below the mount."""
    house = await houses(name, "/shop")
    for _, side in house.sides()[1:]:
        async with side.http:
            answers = [await side.http.get("/shop")]
            while location := answers[-1].headers.get("location"):
                assert re.fullmatch(rf"(http://{HOST})?/shop/", location)
                answers.append(await side.http.get(urlsplit(location).path))
            first = await side.http.get("/shop/")
        if name != "quart":  # which takes no path that is its root_path, and says 404 of its own accord
            assert (answers[-1].status_code, answers[-1].text) == (first.status_code, first.text)
        assert len(answers) <= 2


@pytest.mark.parametrize("name", ["fastapi", "starlette", "quart"])
async def test_the_lifespan_runs_once(nats_url, name):
    """Startup ends before the first request, shutdown comes after the last, each once."""
    app, happened = create(name)
    path = {"fastapi": "/where", "starlette": "/", "quart": "/where"}[name]
    async with fronts(nats_url, "life") as urls, client() as http:
        served = serve(app, nats=nats_url, root="life", mount="/shop")
        await served.start()
        assert happened == ["started"]
        for url in urls * 3:
            assert (await http.get(f"{url}/shop{path}")).status_code == 200
        assert happened == ["started"]
        assert await served.stop() is True
        assert happened == ["started", "ended"]
        assert [(await http.get(f"{url}/shop{path}")).status_code for url in urls] == [503, 503]


async def test_each_request_goes_to_exactly_one(nats_url):
    """An app at the top, another below a path, and services below others, one of them deeper in the second app."""
    asked: list[str] = []

    def site(name: str) -> Starlette:
        async def page(request: Request) -> Response:
            asked.append(name)
            return PlainTextResponse(name)

        methods = ["GET", "POST", "DELETE"]
        return Starlette(routes=[Route("/", page, methods=methods), Route("/{rest:path}", page, methods=methods)])

    orders, prices = Service("orders", root="one"), Service("prices", root="one")

    @orders.get("/orders")
    @orders.get("/orders/<id>")
    async def order(id: int = 0) -> str:
        asked.append("orders")
        return "orders"

    @orders.delete("/orders/<id>")
    async def cancel(id: int) -> str:
        asked.append("orders")
        return "orders"

    @prices.get("/shop/prices/<path:rest>")
    async def price(rest: str) -> str:
        asked.append("prices")
        return "prices"

    wanted = {
        ("GET", "/"): "site",
        ("POST", "/"): "site",
        ("GET", "/about"): "site",
        ("GET", "/orders"): "orders",
        ("GET", "/orders/7"): "orders",
        ("DELETE", "/orders/7"): "orders",
        ("GET", "/orders/7/lines"): "site",
        ("GET", "/ordersandmore"): "site",
        ("GET", "/shop"): "shop",
        ("GET", "/shop/"): "shop",
        ("POST", "/shop/cart"): "shop",
        ("GET", "/shop/prices"): "shop",
        ("GET", "/shop/prices/7"): "prices",
        ("GET", "/shop/prices/7/8"): "prices",
        ("GET", "/shops"): "site",
    }
    async with AsyncExitStack() as stack:
        for app, options in (
            (site("site"), {"mount": "/", "name": "site"}),
            (site("shop"), {"mount": "/shop", "name": "shop"}),
            (orders, {}),
            (prices, {}),
        ):
            await stack.enter_async_context(serve(app, nats=nats_url, root="one", **options))
        urls = await stack.enter_async_context(fronts(nats_url, "one"))
        http = await stack.enter_async_context(client(follow_redirects=True))
        for (method, path), name in wanted.items():
            for url in urls * 3:
                asked.clear()
                answer = await http.request(method, url + path)
                assert (answer.status_code, answer.text.strip('"'), asked) == (200, name, [name]), (method, path)


# ── failures ─────────────────────────────────────────────────────────────────────────────────────

# application, path, status for the caller (None: it breaks off), what is raised
FAILURES = [
    ("fastapi", "/boom", 500, ZeroDivisionError),
    ("fastapi", "/half", None, LookupError),
    ("starlette", "/boom", 500, ZeroDivisionError),
    ("bare", "/fails", 500, LookupError),
    ("bare", "/early", None, LookupError),
    ("bare", "/says-nothing", 500, RuntimeError),
]


@pytest.mark.parametrize(("name", "path", "status", "kind"), FAILURES)
async def test_what_an_app_raises(nats_url, caplog, name, path, status, kind):
    """It is a 500 for the caller, or the connection breaks off; it stands in `failures` and in the log."""
    app, happened = (bare, []) if name == "bare" else create(name)
    async with serve(app, nats=nats_url, root="fails", mount="/shop") as served, fronts(nats_url, "fails") as urls:
        for url in urls:
            side = Side(name, url, "/shop", happened)
            async with side.http:
                if status is None:
                    with pytest.raises(httpx2.RemoteProtocolError):
                        await side.ask("GET", path, headers={"accept-encoding": "identity"})
                else:
                    assert (await side.ask("GET", path)).status == status
    assert [type(error) for error in served.failures] == [kind, kind]
    assert [one for one in caplog.records if one.name.startswith("natsweb") and one.exc_info]


async def test_what_an_app_raises_in_a_socket(nats_url):
    """It stands in `failures`; the client hears 1011."""
    async with serve(bare, nats=nats_url, root="fails", mount="/shop") as served, fronts(nats_url, "fails") as urls:
        for url in urls:
            side = Side("bare", url, "/shop", [])
            async with side.http:
                assert (await talk(side, "/talks", answers=1))[-1][0] == 1011
    assert [type(error) for error in served.failures] == [ZeroDivisionError, ZeroDivisionError]


async def test_frameworks_that_answer_themselves(nats_url):
    """Quart, Django and Flask make a 500 of what a view raises: nothing is left for `failures`."""
    for name in ("quart", "django", "flask"):
        app, happened = create(name)
        async with serve(app, nats=nats_url, root="own", mount="/") as served, fronts(nats_url, "own") as urls:
            side = Side(name, urls[0], "", happened)
            async with side.http:
                assert (await side.ask("GET", "/boom")).status == 500
        assert not served.failures


# ── many in turn ─────────────────────────────────────────────────────────────────────────────────


# application, path
TURNS = [("fastapi", "/where"), ("starlette", "/"), ("quart", "/where"), ("django", "/where")]


async def subscriptions(http: httpx2.AsyncClient, monitor: str) -> int:
    """Return how many subscriptions nats-server has for its clients."""
    connections = (await http.get(f"{monitor}/connz?subs=1")).json()["connections"]
    return sum(one["subscriptions"] for one in connections)


async def resources(http: httpx2.AsyncClient, monitor: str) -> dict[str, int]:
    """Return what may leak."""
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": len(os.listdir("/proc/self/fd")),
        "subscriptions": await subscriptions(http, monitor),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("own", [False, True], ids=["one connection", "own connections"])
async def test_two_hundred_apps_in_turn(own):
    """204 apps, four at a time: tasks, files and subscriptions are what they were before."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monitor, spent = f"http://127.0.0.1:{port}", 0.0
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(embedded_server(arguments=("-m", str(port))))
        bus = await connect(Nats(urls=(url,)))
        stack.push_async_callback(bus.close)
        where: dict[str, Any] = {"nats": url} if own else {"bus": bus}
        [front, _] = await stack.enter_async_context(fronts(url, "turn"))
        http = await stack.enter_async_context(client())
        before: dict[str, int] = {}
        for number in range(51):
            if number == 1:  # each framework has loaded what it loads once
                while (now := await resources(http, monitor)) != before:
                    before = now
                    await asyncio.sleep(0.05)
            apps = [serve(create(name)[0], root="turn", mount=f"/{name}", name=name, **where) for name, _ in TURNS]
            began = time.perf_counter()
            await asyncio.gather(*[served.start() for served in apps])
            spent += time.perf_counter() - began
            for name, path in TURNS:
                assert (await http.get(f"{front}/{name}{path}", headers={"host": HOST})).status_code == 200
            began = time.perf_counter()
            assert all(await asyncio.gather(*[served.stop() for served in apps]))
            spent += time.perf_counter() - began
            assert not [error for served in apps for error in served.failures]
        give_up = time.monotonic() + PATIENCE
        while (after := await resources(http, monitor)) != before and time.monotonic() < give_up:
            await asyncio.sleep(0.05)
        assert after == before, f"{len(TURNS)} apps start and stop in {spent / 51 * 1000:.1f} ms"


# ── as processes ─────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[dict[str, Any]]:
    """Run a natsweb command while the context lasts, and give the line that says that it is ready."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "natsweb",
        *arguments,
        cwd=ROOT,
        env=clean,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            said: list[bytes] = []
            while not (said and said[-1].startswith(b'{"event": "ready"')):
                said.append(await running.stderr.readline())
                assert said[-1], said
            yield json.loads(said[-1])
            running.send_signal(signal.SIGTERM)
            said = [await running.stderr.read()]
            assert (await running.wait(), b"Traceback" in said[0]) == (0, False), said
    finally:
        if running.returncode is None:
            running.kill()
            await running.communicate()


@pytest.mark.parametrize("name", ["fastapi", "django"])
async def test_as_processes(nats_url, name):
    """`natsweb run MODULE:app --mount /shop` and `natsweb gateway` are all that it takes."""
    target = f"tests.foreign_apps.{name}_app:app"
    options = ["--nats", nats_url, "--root", f"proc-{name}"]
    async with (
        process("run", target, "--mount", "/shop", *options),
        process("gateway", "--port", "0", *options) as ready,
        client(base_url=ready["http"], headers={"host": HOST}) as http,
    ):
        said = (await http.get("/shop/where?a=1")).json()
        if name == "fastapi":
            assert (said["self"], said["season"]) == (f"http://{HOST}/shop/where", "spring")
            documents = await http.get("/shop/openapi.json")
            assert documents.json()["servers"] == [{"url": "/shop"}]
            assert "'/shop/openapi.json'" in (await http.get("/shop/docs")).text
            address = urlsplit(ready["http"])
            where = {"host": address.hostname, "port": address.port, "proxy": None}
            async with connect_socket(f"ws://{HOST}/shop/talk/7?token=t", **where) as connection:
                await connection.send("hello")
                assert await connection.recv() == "t@7: hello"
        else:
            assert (said["script"], said["path_info"], said["reverse"]) == ("/shop", "/where", "/shop/books/7")
        files = {"photo": ("rose.png", PHOTO)}
        uploaded = (await http.post("/shop/upload", files=files)).json()
        assert [len(PHOTO), zlib.crc32(PHOTO)] == (uploaded["sum"] if name == "fastapi" else uploaded["photo"][2:])
        assert (await http.get("/elsewhere")).status_code == 404
