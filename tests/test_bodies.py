"""Request bodies that come in pieces: read whole up to a limit, taken as they come, or as forms."""

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from hashlib import sha256
from typing import Annotated, Any

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel

from natsweb.errors import BadRequest, DeclarationError, Disconnected, TooLarge
from natsweb.forms import FormLimits, read_form
from natsweb.headers import Headers
from natsweb.messages import Call, Request, Response
from natsweb.params import Body, Depends, Form, UploadFile
from natsweb.routers import Router
from natsweb.service import Service
from natsweb.subjects import path_tokens


class Pipe:
    """The rest of a body in memory: pieces, and perhaps an error at the end; counts what was read."""

    finishes = False
    socket = None

    def __init__(self, *pieces: bytes, error: BaseException | None = None) -> None:
        self.pieces = list(pieces)
        self.error = error
        self.read = 0
        self.opened = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give what is left, once."""
        self.opened += 1
        assert self.opened == 1, "a body is read once"
        while self.pieces:
            self.read += 1
            yield self.pieces.pop(0)
        if self.error is not None:
            raise self.error

    def extend(self, seconds: float) -> None:
        """Nobody waits."""


def a_call(first: bytes, *rest: bytes, path: str = "/", error: BaseException | None = None, **headers: str) -> Call:
    """Return a POST whose body comes in pieces; without `rest`, it is here whole."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    call = Call("POST", path_tokens(path), "", Headers(fields), first, more=bool(rest) or error is not None)
    if call.more:
        call.channel = Pipe(*rest, error=error)
    return call


async def ask(service: Service, call: Call) -> Response:
    """Return an answer, all of it."""
    response = (await service.handle(call)).response()
    if call.after is not None:
        await call.after.close()
    return response


async def passing(request: Request, call_next: Any) -> Response:
    """Hand it on."""
    return await call_next(request)


@pytest.fixture
def service() -> Iterator[Service]:
    """A service that reads little."""
    service = Service("test", max_body=20, threads=2)
    yield service
    service.close()


class Order(BaseModel):
    """What a body may be."""

    id: int


JSON = {"content_type": "application/json"}
PIECES = [(b'{"id":7}',), (b'{"id"', b":7}"), (b"", b'{"id":', b"", b"7", b"}")]


# ── read whole ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("around", ["nothing", "service", "router", "both"])
@pytest.mark.parametrize("kind", ["plain", "request", "dependency", "none"])
@pytest.mark.parametrize("pieces", PIECES)
async def test_a_body_is_whole_where_it_is_needed(service, pieces, kind, around):
    """However a body comes, handlers and dependencies see all of it."""
    router = Router()

    async def taking(order: Order) -> int:
        return order.id

    async def asking(request: Request) -> int:
        return int(request.parse_json()["id"])

    if kind == "plain":

        @router.post("/")
        async def show(order: Order) -> int:
            return order.id

    elif kind == "request":

        @router.post("/")
        def show(request: Request) -> int:
            assert not request.more
            return int(request.parse_json()["id"])

    elif kind == "dependency":

        @router.post("/")
        async def show(a: Annotated[int, Depends(taking)], b: Annotated[int, Depends(asking)]) -> int:
            assert a == b
            return a

    else:

        @router.post("/")
        async def show() -> int:
            return 7

    service.include(router)
    for name, where in (("service", service), ("router", router)):
        if around in (name, "both"):
            where.middleware(passing)
    call = a_call(*pieces, **JSON)
    response = await ask(service, call)
    assert (response.status, response.body) == (200, b"7")
    assert not call.more
    assert call.body == b"".join(pieces)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("with_dependency", [False, True])
@pytest.mark.parametrize(
    ("pieces", "status"),
    [((b"1" * 20,), 200), ((b"1" * 21,), 413), ((b"1" * 10, b"2" * 10), 200), ((b"1" * 10, b"2" * 11, b"3"), 413)],
)
async def test_a_body_over_the_limit(service, pieces, status, with_dependency, around):
    """A body that is larger than `max_body` is 413, whether it comes in pieces or not; no more than that is read."""
    called: list[bytes] = []
    depends = [Depends(lambda: None)] if with_dependency else []

    @service.post("/", depends=depends)
    async def show(body: Annotated[bytes, Body()]) -> None:
        called.append(body)

    if around:
        service.middleware(passing)
    call = a_call(*pieces)
    response = await ask(service, call)
    assert response.status == (204 if status == 200 else status)
    assert called == ([b"".join(pieces)] if status == 200 else [])
    if status == 413:
        problem = response.parse_json()
        assert problem["reason"] == "too_large"
        assert problem["detail"] == "the request body is too large: this route takes at most 20 bytes of it"
        assert not call.more or call.channel.read == 1


async def test_the_usual_limit():
    """A service takes 16 MiB, unless it says otherwise; less than nothing is a mistake."""
    assert Service("test").max_body == 16 * 1024 * 1024
    with pytest.raises(DeclarationError, match="a body cannot have up to -1 bytes") as caught:
        Service("test", max_body=-1)
    assert "test_bodies.py" in caught.value.where[0]
    service = Service("test", max_body=0)

    @service.get("/")
    async def show() -> int:
        return 1

    assert (await service.handle(Request())).status == 200
    assert (await service.handle(Request(body="1"))).status == 413


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/none", "POST", 404), ("/", "PUT", 405), ("/", "OPTIONS", 204), ("/a/", "GET", 308)],
)
async def test_a_body_that_nobody_takes_is_not_read(service, path, method, status):
    """Without a route nothing is read."""

    @service.post("/")
    @service.get("/a")
    async def show() -> None: ...

    call = a_call(b"1", b"2", path=path)
    call.method = method
    assert (await ask(service, call)).status == status
    assert call.channel.opened == 0


@pytest.mark.parametrize("depends", [[], [Depends(lambda: None)]])
async def test_a_body_that_is_cut_off(service, depends):
    """A client that goes away in the middle of its body is an error like any other."""

    @service.post("/", depends=depends)
    async def show(order: Order) -> None:
        raise AssertionError("must not be called")

    response = await ask(service, a_call(b"{", b'"id":', error=Disconnected("gone"), **JSON))
    assert (response.status, response.parse_json()["reason"]) == (502, "disconnected")


# ── as it comes ──────────────────────────────────────────────────────────────────────────────────

STREAMED = [(), (b"1" * 30,), (b"1" * 10, b"2" * 30), (b"", b"1", b"2" * 40, b"3")]


def takers(service: Service) -> None:
    """Declare handlers that take the body as it comes."""

    @service.post("/iterator")
    async def iterator(chunks: AsyncIterator[bytes]) -> list[str]:
        return [chunk.decode() async for chunk in chunks]

    @service.post("/iterable")
    async def iterable(chunks: AsyncIterable[bytes], limit: int = 3) -> list[str]:
        return [chunk.decode() async for chunk in chunks]

    @service.post("/option", stream=True)
    async def option(request: Request) -> list[str]:
        return [chunk.decode() async for chunk in request.stream()]

    async def collect(chunks: AsyncIterator[bytes]) -> list[str]:
        return [chunk.decode() async for chunk in chunks]

    @service.post("/dependency")
    async def dependency(found: Annotated[list[str], Depends(collect)]) -> list[str]:
        return found

    @service.post("/feed")
    async def feed(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            yield chunk


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("path", ["/iterator", "/iterable", "/option", "/dependency"])
@pytest.mark.parametrize("pieces", STREAMED)
async def test_a_body_as_it_comes(service, path, pieces, around):
    """A handler or dependency may take the body piece by piece, of any media type and size, also if it is here."""
    takers(service)
    if around:
        service.middleware(passing)
    call = a_call(*(pieces or (b"",)), path=path, content_type="image/png")
    response = await ask(service, call)
    assert response.status == 200
    assert response.parse_json() == [piece.decode() for piece in pieces if piece or piece is not pieces[0]]


async def test_an_echo(service):
    """A body may go out as it comes in: nothing is read before it is asked for."""
    takers(service)
    call = a_call(b"1", b"2", b"3", path="/feed")
    response = await service.handle(call)
    assert (response.status, call.channel.read) == (200, 0)
    source = response.pieces.source
    assert (await anext(source), call.channel.read) == (b"1", 0)
    assert (await anext(source), call.channel.read) == (b"2", 1)
    assert [piece async for piece in source] == [b"3"]
    await call.after.close()


async def test_a_stream_is_bound_with_all_else(service):
    """Refused parameters are refused before anything of the body is read."""
    takers(service)
    call = a_call(b"1", b"2", path="/iterable")
    call.query = "limit=x"
    assert (await ask(service, call)).status == 422
    assert call.channel.opened == 0


async def takes(chunks: AsyncIterator[bytes]) -> int:
    """Take a stream."""
    return 1


async def with_body(chunks: AsyncIterator[bytes], order: Order) -> None:
    """Want the body twice."""


async def with_form(chunks: AsyncIterator[bytes], a: Annotated[str, Form()]) -> None:
    """Want the body twice."""


async def with_taker(order: Order, n: Annotated[int, Depends(takes)]) -> None:
    """Want the body twice."""


async def twice(a: AsyncIterator[bytes], b: AsyncIterable[bytes]) -> None:
    """Want the stream twice."""


async def twice_below(chunks: AsyncIterator[bytes], n: Annotated[int, Depends(takes)]) -> None:
    """Want the stream twice."""


async def of_text(chunks: AsyncIterator[str]) -> None:
    """Want text."""


async def with_default(chunks: AsyncIterator[bytes] | None = None) -> None:
    """Want it or not."""


async def for_good(n: Annotated[int, Depends(takes, scope="app")]) -> None:
    """Keep what is a request's."""


async def only_body(order: Order) -> None:
    """Want the body whole."""


async def only_form(a: Annotated[str, Form()]) -> None:
    """Want a form."""


@pytest.mark.parametrize(
    ("handler", "options", "what"),
    [
        (with_body, {}, "'chunks' takes the body as it comes, and 'order' wants it as a body"),
        (with_form, {}, "'chunks' takes the body as it comes, and 'a' wants it as a form"),
        (with_taker, {}, "'chunks' takes the body as it comes, and 'order' wants it as a body"),
        (only_body, {"stream": True}, "stream=True takes the body as it comes, and 'order' wants it as a body"),
        (only_form, {"stream": True}, "stream=True takes the body as it comes, and 'a' wants it as a form"),
        (twice, {}, "'a' and 'b' both take the body as it comes, which is read once"),
        (twice_below, {}, "'chunks' and 'chunks' both take the body as it comes"),
        (of_text, {}, "parameter 'chunks' is the body as it comes, which is bytes"),
        (with_default, {}, "parameter 'chunks' is the body as it comes, and has a default besides"),
        (for_good, {}, "its parameter 'chunks' comes from a request"),
    ],
)
def test_mistakes(service, handler, options, what):
    """A body is wanted in one way only: what, where and the remedy are said at declaration."""
    with pytest.raises(DeclarationError) as caught:
        service.post("/", **options)(handler)
    assert what in caught.value.what
    assert "test_bodies.py" in caught.value.where[0]
    assert caught.value.fix


def test_what_gateways_are_told(service):
    """A route that takes its body as it comes says so; forms are no such routes."""
    takers(service)

    @service.post("/form")
    async def form(a: Annotated[str, Form()]) -> None: ...

    service.compile()
    found = {one.metadata["http.path"]: one.metadata["natsweb.streams"] for one, _ in service.endpoints()}
    paths = ["/iterator", "/iterable", "/option", "/dependency", "/feed"]
    assert found == {**dict.fromkeys(paths, "body"), "/form": "yes"}


def test_streams_in_the_document(service):
    """A body that is taken as it comes may be of any type."""
    takers(service)
    document = service.openapi()
    validate(document)
    for path in ("/iterator", "/option", "/dependency"):
        assert document["paths"][path]["post"]["requestBody"] == {"content": {"*/*": {"schema": {}}}}


# ── middleware ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["service", "router"])
async def test_middleware_that_asks_for_a_body_that_is_not_here(service, where, caplog):
    """A body that comes as a stream is no attribute; the error says what to do."""
    router = Router()

    @router.post("/")
    async def show(order: Order) -> int:
        return order.id

    @(service if where == "service" else router).middleware
    async def peek(request: Request, call_next: Any) -> Response:
        assert request.body
        return await call_next(request)

    service.include(router)
    assert (await ask(service, a_call(b'{"id":7}', **JSON))).body == b"7"
    assert (await ask(service, a_call(b'{"id"', b":7}", **JSON))).status == 500
    assert "the body of this request comes as a stream and is not here yet: use `await request.read()`" in caplog.text


@pytest.mark.parametrize("where", ["service", "router", "both"])
@pytest.mark.parametrize("kind", ["body", "chunks", "form", "request"])
@pytest.mark.parametrize("changed", [False, True])
async def test_middleware_that_has_read_the_body(service, kind, where, changed):
    """What middleware has read is there for all that follow."""
    router = Router()
    if kind == "body":

        @router.post("/")
        async def show(id: Annotated[int, Body(embed=True)]) -> int:
            return id

    elif kind == "chunks":

        @router.post("/")
        async def show(chunks: AsyncIterator[bytes]) -> int:
            return int(json.loads(b"".join([chunk async for chunk in chunks]))["id"])

    elif kind == "request":

        @router.post("/", stream=True)
        async def show(request: Request) -> int:
            return int(request.parse_json()["id"])

    else:

        @router.post("/")
        async def show(id: Annotated[int, Form()]) -> int:
            return id

    async def log(request: Request, call_next: Any) -> Response:
        copied = request.model_copy(update={"scheme": "https"}) if changed else request
        body = await copied.read()
        assert body == copied.body
        assert not copied.more
        return await call_next(copied)

    for name, one in (("service", service), ("router", router)):
        if where in (name, "both"):
            one.middleware(log)
    service.include(router)
    pieces = (b"i", b"d=7") if kind == "form" else (b'{"id"', b":7}")
    media = "application/x-www-form-urlencoded" if kind == "form" else "application/json"
    response = await ask(service, a_call(*pieces, content_type=media))
    assert (response.status, response.body) == (200, b"7")


async def test_middleware_that_tries_twice(service):
    """A second try has the body that the first one read."""
    tries: list[bytes] = []

    @service.post("/", depends=[Depends(lambda: None)])
    async def show(body: Annotated[bytes, Body()]) -> int:
        tries.append(body)
        return 1 // (len(tries) - 1)

    @service.middleware
    async def again(request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        return await call_next(request) if response.status == 500 else response

    assert (await ask(service, a_call(b"1", b"2"))).status == 200
    assert tries == [b"12", b"12"]


async def test_a_request_of_somebody_elses(service):
    """A request that was not made of a call has its body in it."""
    takers(service)
    response = await service.handle(Request(method="POST", raw_path="/iterator", body="12"))
    assert response.parse_json() == ["12"]


# ── forms ────────────────────────────────────────────────────────────────────────────────────────

MULTIPART, URLENCODED = "multipart/form-data; boundary=b", "application/x-www-form-urlencoded"
LARGE = bytes(range(256)) * 20 * 1024


def part(attributes: str, content: bytes) -> bytes:
    """Return one part of a multipart body."""
    return f"--b\r\nContent-Disposition: form-data{attributes}\r\n\r\n".encode() + content + b"\r\n"


FORM = part('; name="a"', b"1") + part('; name="f"; filename="x"', LARGE) + b"--b--\r\n"


def pieces_of(body: bytes, size: int) -> list[bytes]:
    """Return a body in pieces of a size."""
    return [body[start : start + size] for start in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1 << 10, 1 << 16, (1 << 16) + 1, 1 << 20])
@pytest.mark.parametrize("around", [False, True])
async def test_a_large_file(service, size, around):
    """A file of 5 MB goes to disk while it comes; the body is never there whole, and has its own limit."""
    rolled: list[bool] = []

    @service.post("/")
    async def show(a: Annotated[int, Form()], f: UploadFile) -> list[Any]:
        rolled.append(f.file._rolled)
        return [a, f.size, sha256(await f.read()).hexdigest()]

    if around:
        service.middleware(passing)
    call = a_call(*pieces_of(FORM, size), content_type=MULTIPART)
    response = await ask(service, call)
    assert response.parse_json() == [1, len(LARGE), sha256(LARGE).hexdigest()]
    assert rolled == [True]
    assert (call.channel.pieces, len(call.body)) == ([], size)


@pytest.mark.parametrize("size", range(1, 60, 3))
async def test_forms_in_small_pieces(size):
    """Wherever a form is cut into pieces, it is the same form."""
    body = part('; name="a"', "ü--b--".encode()) + part('; name="f"; filename="x"', b"\r\n--bb\r\n--") + b"--b--"
    found = await read_form(a_call(b"", *pieces_of(body, size), content_type=MULTIPART))
    assert found[0] == ("a", "ü--b--")
    assert isinstance(found[1][1], UploadFile)
    assert await found[1][1].read() == b"\r\n--bb\r\n--"
    await found[1][1].close()
    body = "a=1&b=ü+%20x&a=%C3%BC".encode()
    found = await read_form(a_call(b"", *pieces_of(body, size), content_type=URLENCODED))
    assert found == [("a", "1"), ("b", "ü  x"), ("a", "ü")]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("gone", [0, 1, 2, 3, 5, 7, 9, 12])
async def test_forms_that_are_cut_off(size, gone):
    """A form without its closing boundary is 400, wherever it is cut into pieces, whatever its content looks like."""
    body = part('; name="a"', b"1") + part('; name="a"', b"1--b--2") + b"--b--"
    call = a_call(b"", *pieces_of(body[: len(body) - gone], size), content_type=MULTIPART)
    if not gone:
        assert await read_form(call) == [("a", "1"), ("a", "1--b--2")]
        return
    with pytest.raises(BadRequest, match="the form is cut off"):
        await read_form(call)


@pytest.mark.parametrize("body", ["", "1234567"])
async def test_forms_over_their_limit(body):
    """A form has a limit of its own, for the body as a whole."""
    limits = FormLimits(body_bytes=6)
    call = a_call(b"a=", body.encode(), content_type=URLENCODED)
    if not body:
        assert await read_form(call, limits) == [("a", "")]
        return
    with pytest.raises(TooLarge, match="the form is over a limit: its body may have 6 bytes"):
        await read_form(call, limits)
    with pytest.raises(TooLarge):
        await read_form(a_call(b"a=12345", content_type=URLENCODED), limits)
    assert FormLimits().body_bytes == 1 << 30


async def test_forms_whose_client_goes_away():
    """A form whose body is cut off is its sender's error."""
    call = a_call(FORM[:2000], FORM[2000:9000], error=Disconnected("gone"), content_type=MULTIPART)
    with pytest.raises(Disconnected):
        await read_form(call)


async def test_forms_without_a_type():
    """A body that comes as a stream and says no type is no form."""
    with pytest.raises(Exception, match="this route takes a form"):
        await read_form(a_call(b"", b"a=1"))
