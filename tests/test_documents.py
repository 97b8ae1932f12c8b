"""Documents on NATS: what an instance answers, how large it may be, and what is believed of others' answers."""

import asyncio
import hashlib
import itertools
import json
import logging
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, create_model

from natsweb import Nats, Service
from natsweb.bus import MemoryBus, request
from natsweb.catalogue import Catalogue
from natsweb.documents import MAX_SIZE, Paper, document_subject, fetch, fetch_all, newest, places
from natsweb.errors import BadReply, NoService, TimeUp
from natsweb.member import Member
from natsweb.merges import Place, shape_of
from natsweb.micro import DOCUMENT, METHOD, PATH, Endpoint, Info
from natsweb.natsbus import connect

numbers = itertools.count(1)


@pytest.fixture(params=["memory", "nats"])
async def bus(request, nats_url):
    """Give one bus of each kind."""
    given = MemoryBus() if request.param == "memory" else await connect(Nats(urls=(nats_url,)))
    yield given
    await given.close()


@pytest.fixture
async def start(bus):
    """Give a function that starts a service and returns what it says of itself."""
    async with AsyncExitStack() as stack:

        async def begin(svc: Service) -> Info:
            member = Member(bus, svc, root=f"documents{next(numbers)}", quiet=0.02)
            await member.start()
            stack.callback(svc.close)
            stack.push_async_callback(member.stop, 0.1)
            return member.presence.info

        yield begin


def shop(fields: int = 1) -> Service:
    """Return a service with a model of some fields."""
    svc = Service("shop", version="1.0.0")
    model = create_model("Order", **{f"field{number}": (int, ...) for number in range(fields)})  # type: ignore[call-overload]

    async def show(id: int): ...

    show.__annotations__["return"] = model
    svc.get("/orders/<id>")(show)
    return svc


def other(document: str, **rest: Any) -> Info:
    """Return what somebody else says of itself."""
    return Info(name="other", id=f"i{next(numbers)}", version="1", metadata={DOCUMENT: document}, **rest)


def print_of(payload: bytes) -> str:
    """Return size and hash, as metadata say them."""
    return f"{len(payload)};{hashlib.sha256(payload).hexdigest()[:16]}"


async def answering(bus: Any, info: Info, *parts: bytes) -> list[bytes]:
    """Answer one part after the other for an instance, whatever is asked; return a list of what was."""
    asked: list[bytes] = []

    def receive(message: Any) -> None:
        asked.append(message.payload)
        bus.publish(message.reply, parts[min(len(asked), len(parts)) - 1])

    await bus.subscribe(document_subject(info), receive)
    await bus.flush()
    return asked


async def test_every_service_answers_its_document(bus, start):
    """The one of `svc.openapi()`; its metadata tell size and hash."""
    svc = shop()
    info = await start(svc)
    assert await fetch(bus, info) == svc.openapi()
    answer = await request(bus, f"$SRV.OPENAPI.shop.{info.id}", b"")
    assert json.loads(answer.payload) == svc.openapi()
    assert info.document == print_of(answer.payload)


async def test_large_documents_come_in_parts(bus, start):
    """What is larger than a message comes in several, which are asked for one by one."""
    svc = shop(20_000)
    info = await start(svc)
    assert int(info.document.partition(";")[0]) > bus.max_payload
    assert await fetch(bus, info) == svc.openapi()
    whole = json.dumps(svc.openapi(), separators=(",", ":")).encode()
    answer = await request(bus, document_subject(info), str(len(whole) - 10).encode())
    assert answer.payload == whole[-10:]


@pytest.mark.parametrize("asked", [b"-1", b"x", b"99999999", b"9" * 5000, b"1.5", b"\xd9\xa1"])
async def test_nothing_is_answered_to_nonsense(asked):
    """An offset that is none, or behind the end, gives nothing."""
    assert Paper("shop", shop().openapi).part(1000, asked) == b""


async def test_parts_fit_into_a_message():
    """However small the largest message is."""
    paper = Paper("shop", shop().openapi)
    assert len(paper.part(10, b"")) == 10
    assert paper.part(10, b"10") == paper.part(20, b"")[10:]


def test_services_without_a_document(caplog):
    """Nothing to describe, too large, or a failure: no metadata, and the log says why."""

    def fails() -> dict[str, Any]:
        raise RuntimeError("no")

    assert Paper("empty", Service("empty").openapi).metadata == {}
    assert not caplog.records
    assert Paper("failing", fails).metadata == {}
    assert Paper("large", lambda: {"paths": {"/": "x" * MAX_SIZE}}).metadata == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "cannot be written" in caplog.messages[0]
    assert f"more than {MAX_SIZE}" in caplog.messages[1]


async def test_what_others_answer_is_not_believed(bus):
    """A document that is not the one that metadata tell of, or none at all, is refused."""
    good = json.dumps({"openapi": "3.1.0", "paths": {}}).encode()
    info = other(print_of(good))
    asked = await answering(bus, info, good[:10], good[10:])
    assert await fetch(bus, info) == json.loads(good)
    assert asked == [b"0", b"10"]
    for answers in ([good[:-1] + b" "], [good + b" "], [good[:10], b""]):
        info = other(print_of(good))
        await answering(bus, info, *answers)
        with pytest.raises(BadReply, match="another document"):
            await fetch(bus, info)
    bad = b"[]"
    info = other(print_of(bad))
    await answering(bus, info, bad)
    with pytest.raises(BadReply, match="another document"):
        await fetch(bus, info)


@pytest.mark.parametrize("document", ["", "x", "5", "-1;0123456789abcdef", f"{MAX_SIZE + 1};0123456789abcdef"])
async def test_metadata_that_cannot_be(document):
    """Nothing is asked for a size that cannot be, or is too large."""
    with pytest.raises(BadReply):
        await fetch(MemoryBus(), other(document))


async def test_bytes_that_trickle_end(bus, monkeypatch):
    """An instance that answers byte by byte is given up after a while."""
    monkeypatch.setattr("natsweb.documents._TIME", 0.05)
    info = other(f"{MAX_SIZE};0123456789abcdef")
    await answering(bus, info, b"x")
    with pytest.raises(TimeUp):
        await fetch(bus, info)


async def test_documents_that_do_not_come_are_left_out(bus, start, caplog):
    """The others are there."""
    info = await start(shop())
    gone = other(info.document)
    with pytest.raises(NoService):
        await fetch(bus, gone)
    found = await fetch_all(bus, [gone, info])
    assert [*found] == [info.id]
    assert any(gone.id in one for one in caplog.messages)


def test_newest():
    """One of each service, the last."""
    infos = [Info(name=name, id=f"{name}{number}", version="1") for number in (1, 2) for name in "ab"]
    assert [one.id for one in newest(infos)] == ["a2", "b2"]


def endpoint(subject: str, path: str | None, methods: str = "GET") -> Endpoint:
    """Return an endpoint."""
    metadata = {METHOD: methods, **({} if path is None else {PATH: path})}
    return Endpoint(name="x", subject=subject, metadata=metadata)


@pytest.mark.parametrize(
    ("root", "front", "subject", "path", "found"),
    [
        ("api", [], "api", "/", {"/": "/"}),
        ("api", [], "api.orders.*", "/orders/<id>", {"/orders/{id}": "/orders/{id}"}),
        ("api", [], "api.files.>", "/files/<path:rest>", {"/files/{rest}": "/files/{rest}"}),
        ("api", [], "api.orders.%", "/orders/", {"/orders/": "/orders/"}),
        ("api", [], "api.a%2Eb", "/a.b", {"/a.b": "/a.b"}),
        # a service below a longer root: its paths have more in front
        ("api", [], "api.staging.orders", "/orders", {"/orders": "/staging/orders"}),
        ("api", [], "api.staging", "/", {"/": "/staging"}),
        # a gateway with a longer root: the same in front is cut off
        ("api.staging", [], "api.staging.orders", "/staging/orders", {"/staging/orders": "/orders"}),
        ("api.staging", [], "api.staging", "/staging", {"/staging": "/"}),
        ("api.staging", [], "api.orders", "/orders", {}),
        ("api.staging", [], "api.*.orders", "/<tenant>/orders", {}),
        ("api", ["v2"], "api.orders", "/orders", {"/orders": "/v2/orders"}),
        ("api", ["v2"], "api", "/", {"/": "/v2"}),
        ("api", [], "other.orders", "/orders", {}),
        ("api", [], "api.orders", None, {}),
        ("api", [], "api.orders", "orders", {}),
    ],
)
def test_places(root, front, subject, path, found):
    """Paths are where the gateway has them, by the root and what stands in front of it."""
    info = Info(name="a", id="a1", version="1", endpoints=[endpoint(subject, path)])
    catalogue = Catalogue(root)
    catalogue.put(info, "up", 0.0)
    wanted = {shape_of(said): [Place(place, frozenset({"GET"}))] for said, place in found.items()}
    assert places(info, catalogue, front=front) == wanted


def test_places_of_what_others_own():
    """A method that another service is asked for is not shown, and nothing that is not to be shown."""
    one = Info(name="a", id="a1", version="1", endpoints=[endpoint("api.x.*", "/x/<id>")])
    two = Info(name="b", id="b1", version="1", endpoints=[endpoint("api.x.*", "/x/<no>", "GET,POST")])
    catalogue = Catalogue("api")
    for info in (one, two):
        catalogue.put(info, "up", 0.0)
    assert places(one, catalogue) == {"/x/{}": [Place("/x/{id}", frozenset({"GET"}))]}
    assert places(two, catalogue) == {"/x/{}": [Place("/x/{no}", frozenset({"POST"}))]}
    assert places(one, catalogue, shows=lambda subject, tokens: (subject, tokens) != ("api.x.*", ["x", "*"])) == {}
    catalogue.drop("a1", 1.0)
    assert places(one, catalogue) == {"/x/{}": [Place("/x/{id}", frozenset())]}
    assert places(two, catalogue)["/x/{}"] == [Place("/x/{no}", frozenset({"GET", "POST"}))]


@pytest.mark.parametrize("bus", ["nats"], indirect=True)
async def test_live(bus, start, nats_url):
    """`natsweb openapi --live` prints one document of all services that are there."""
    billing = Service("billing", description="sends bills")

    class Order(BaseModel):
        total: float

    @billing.get("/bills/<id>")
    async def bill(id: int) -> Order: ...

    info = await start(shop())
    await start(billing)
    root = info.endpoints[0].subject.partition(".")[0]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "natsweb", "openapi", "--live", "--nats", nats_url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    done = await asyncio.to_thread(run, "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    validate(document)
    assert [*document["paths"]] == ["/orders/{id}"]
    done = await asyncio.to_thread(run, "--root", root, "svc")
    assert (done.returncode, done.stdout) == (2, "")
    assert "takes no app" in done.stderr


async def test_live_without_services(nats_url):
    """Nobody there is code 1, and nothing is printed."""
    command = [sys.executable, "-m", "natsweb", "openapi", "--live", "--nats", nats_url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no service answers" in done.stderr
