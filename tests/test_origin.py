"""What savaki/nats-proxy does wrong, each fault by its words, end to end, to show that it is gone; and its router.

The rest of its features have test files of their own: rules, filters, sites, proxy_wire.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import httpx2
import nats
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from natsweb import HTTPError, Nats, Request, Response, Rules, Service
from natsweb.errors import StartError
from natsweb.front import Front
from natsweb.gateway import Gateway, echo
from natsweb.member import Member
from natsweb.natsbus import connect
from natsweb.wire import decode_response, encode_request

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
EXAMPLES = Path(__file__).parent.parent / "examples"


# ── the house ──


class House(NamedTuple):
    """A service behind one gateway with two fronts, one for each door."""

    service: Service
    gateway: Gateway
    member: Member
    urls: dict[bool, str]


def everything(root, name="everything", **options):
    """Return a service with a route for each of the faults."""
    svc = Service(name, root=root, **options)
    svc.entered, svc.leave, svc.waiting, svc.most, svc.noted = 0, asyncio.Event(), 0, 0, asyncio.Queue()

    @svc.route("/echo", methods=METHODS)
    @svc.route("/echo/<path:rest>", methods=METHODS)
    async def echo_(request: Request, rest: str = "") -> Response:
        said = {
            "method": request.method,
            "path": request.raw_path,
            "query": request.query,
            "headers": list(request.headers),
            "size": len(await request.read()),
            "client": request.client,
            "scheme": request.scheme,
        }
        headers = [("content-type", "application/json"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
        return Response(headers=headers, body=json.dumps(said))

    @svc.get("/wait")
    async def wait() -> str:
        svc.entered += 1
        svc.waiting += 1
        svc.most = max(svc.most, svc.waiting)
        try:
            await svc.leave.wait()
        finally:
            svc.waiting -= 1
        return "waited"

    @svc.get("/quick/<milliseconds>")
    async def quick(milliseconds: int) -> str:
        svc.entered += 1
        await asyncio.sleep(milliseconds / 1000)
        return "done"

    @svc.get("/fails")
    async def fails() -> None:
        raise RuntimeError("pq: password authentication failed for user root")

    @svc.get("/exits")
    async def exits() -> None:
        sys.exit(3)

    @svc.get("/gone")
    async def gone() -> None:
        raise HTTPError(404, "no such thing", reason="gone")

    @svc.get("/bytes/<size>")
    async def whole(size: int) -> bytes:
        return b"x" * size

    @svc.get("/pieces")
    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await svc.leave.wait()
        yield b"second"

    @svc.post("/note")
    async def note(request: Request) -> str:
        svc.noted.put_nowait(request.text)
        return "noted"

    return svc


async def join(stack, nats_url, service):
    """Let a service join until the stack ends, and return the member."""
    bus = await connect(Nats(urls=(nats_url,)))
    stack.push_async_callback(bus.close)
    await stack.enter_async_context(service)
    member = Member(bus, service, quiet=0.02)
    await member.start()
    stack.push_async_callback(member.stop, 0)
    return member


async def put_in_front(stack, nats_url, root, **options):
    """Start a gateway with a front for each door, and return it and their URLs."""
    gateway = await stack.enter_async_context(Gateway(root, nats=Nats(urls=(nats_url,)), **options))
    fronts = {fast: Front(gateway, port=0, grace=0.1, fast=fast) for fast in (True, False)}
    for front in fronts.values():
        await front.start()
        stack.push_async_callback(front.stop, now=True)
    return gateway, {fast: front.url for fast, front in fronts.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(nats_url):
    """Give a house."""
    async with AsyncExitStack() as stack:
        service = everything("origin")
        member = await join(stack, nats_url, service)
        gateway, urls = await put_in_front(stack, nats_url, "origin")
        yield House(service, gateway, member, urls)


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared):
    """Give the house, swept."""
    service = shared.service
    service.entered, service.most, service.leave = 0, 0, asyncio.Event()
    yield shared
    service.leave.set()


@pytest_asyncio.fixture(loop_scope="module")
async def own(nats_url):
    """Give a stack for what one test starts."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="module")
async def client():
    """Give an HTTP client that has as many connections as it wants."""
    async with httpx2.AsyncClient(timeout=30, limits=httpx2.Limits(max_connections=None)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def foreign(nats_url):
    """Give a connection of nats-py."""
    connection = await nats.connect(nats_url)
    yield connection
    await connection.close()


def raw_url(url, target):
    """Return a URL with a target that nobody normalises."""
    return httpx2.URL(url).copy_with(raw_path=target.encode())


# ── the faults, by their words ──


@DOORS
async def test_the_query_string_is_lost(house, client, fast):
    """It arrives as it was written."""
    query = "a=1&a=2&b&c=%2F.*&=/?"
    assert (await client.get(raw_url(house.urls[fast], f"/echo?{query}"))).json()["query"] == query


@DOORS
@pytest.mark.parametrize("cookies", [None, ["sid"]])
async def test_cookies_are_never_forwarded(own, nats_url, client, fast, cookies):
    """They arrive, all of them or those on the list."""
    root = f"cookies-{fast}-{cookies is None}".lower()
    await join(own, nats_url, everything(root))
    _, urls = await put_in_front(own, nats_url, root, rules=Rules(cookies=cookies))
    seen = (await client.get(f"{urls[fast]}/echo", headers={"cookie": "sid=7; theme=dark"})).json()
    assert dict(seen["headers"])["cookie"] == ("sid=7; theme=dark" if cookies is None else "sid=7")


@DOORS
async def test_of_a_repeated_header_only_the_first_value_is_kept(house, client, fast):
    """All values arrive, in both directions: two cookies are two cookies."""
    response = await client.get(f"{house.urls[fast]}/echo", headers=[("x-a", "1"), ("x-a", "2"), ("x-a", "1")])
    assert [value for name, value in response.json()["headers"] if name == "x-a"] == ["1", "2", "1"]
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]


@DOORS
async def test_dots_in_a_segment_are_read_as_slashes(house, client, fast):
    """`/echo/a.b` and `/echo/a/b` are two paths."""
    paths = ["/echo/a.b", "/echo/a/b", "/echo/..a", "/echo/a."]
    assert [(await client.get(raw_url(house.urls[fast], path))).json()["path"] for path in paths] == [
        "/echo/a%2Eb",
        "/echo/a/b",
        "/echo/%2E%2Ea",
        "/echo/a%2E",
    ]


@DOORS
@pytest.mark.parametrize("segment", ["a%2Fb", "a%2Eb", "%2A", "%3E", "a%20b", "%0D%0APUB%20x%200%0D%0A", "%00", "%25"])
async def test_escapes_in_a_path_are_undone(house, client, fast, segment):
    """What is escaped in a segment stays in that segment, and none of it is protocol."""
    response = await client.get(raw_url(house.urls[fast], f"/echo/{segment}/x"))
    assert (response.status_code, response.json()["path"]) == (200, f"/echo/{segment}/x")


@DOORS
async def test_slashes_at_the_end_and_double_slashes_are_lost(house, client, fast):
    """The service sees each of them."""
    for path in ("/echo/a/", "/echo//a", "/echo///", "/echo/a//b/"):
        assert (await client.get(raw_url(house.urls[fast], path))).json()["path"] == path


@DOORS
async def test_every_error_is_a_400_with_its_text(house, own, nats_url, client, fast):
    """Nobody there, too late and broken are three statuses, and none tells what the log should tell."""
    _, urls = await put_in_front(own, nats_url, "origin", timeout=0.2)
    answers = [await client.get(urls[fast] + path) for path in ("/nowhere", "/wait", "/fails")]
    assert [(one.status_code, one.json()["reason"]) for one in answers] == [
        (404, "no_service"),
        (504, "timeout"),
        (500, "handler_failed"),
    ]
    assert "password" not in answers[2].text


async def test_without_not_found_nothing_is_answered(own, nats_url, client, foreign):
    """`not_found=False` silences what no route takes, and nothing else."""
    await join(own, nats_url, everything("silent", not_found=False))
    for line, status in (("GET echo", 200), ("POST gone", 405), ("GET gone", 404), ("GET fails", 500)):
        method, token = line.split()
        assert (await ask(foreign, f"silent.{token}", method)).status == status


async def test_a_message_that_cannot_be_decoded_gets_no_reply(house, foreign):
    """It is answered with a 400 at once."""
    for broken in ({"Nw-Method": "ge t"}, {"Nw-Timeout": "soon"}, {"Nw-Scheme": "gopher"}):
        reply = await foreign.request("origin.echo", headers=broken, timeout=5)
        assert (reply.headers["Nw-Status"], json.loads(reply.data)["reason"]) == ("400", "bad_request")


@DOORS
async def test_a_handler_that_panics_ends_the_process(house, client, fast):
    """A handler that even calls `sys.exit` is a 500, and the next request is served."""
    for path in ("/exits", "/fails", "/exits"):
        assert (await client.get(house.urls[fast] + path)).status_code == 500
    assert (await client.get(f"{house.urls[fast]}/echo")).status_code == 200


@DOORS
async def test_host_scheme_and_client_are_lost(house, client, fast):
    """The service knows who was asked, how, and by whom."""
    seen = (await client.get(f"{house.urls[fast]}/echo", headers={"host": "shop.example:8080"})).json()
    assert (dict(seen["headers"])["host"], seen["scheme"]) == ("shop.example:8080", "http")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", seen["client"])


@DOORS
async def test_requests_are_handled_one_by_one(house, client, until, fast):
    """As many as come run side by side."""
    answers = [asyncio.ensure_future(client.get(f"{house.urls[fast]}/wait")) for _ in range(20)]
    await until(lambda: house.service.waiting == 20)
    house.service.leave.set()
    assert [(await one).text for one in answers] == ["waited"] * 20
    assert house.service.most == 20


@DOORS
async def test_more_than_a_megabyte_fails(house, client, fast):
    """Bodies and answers have any size."""
    response = await client.post(f"{house.urls[fast]}/echo", content=bytes(3_000_000))
    assert (response.status_code, response.json()["size"]) == (200, 3_000_000)
    assert len((await client.get(f"{house.urls[fast]}/bytes/3000000")).content) == 3_000_000


@DOORS
async def test_the_whole_answer_is_buffered(house, client, fast):
    """The first piece is at the client before the second exists."""
    async with client.stream("GET", f"{house.urls[fast]}/pieces") as response:
        received = b""
        async for piece in response.aiter_raw():
            received += piece
            if received == b"first":
                house.service.leave.set()
    assert received == b"firstsecond"


@DOORS
async def test_all_services_share_one_queue(own, nats_url, client, fast):
    """A service that takes all paths takes none of those that another one has."""
    root = f"queues-{fast}".lower()
    wide, narrow = Service("wide", root=root), Service("narrow", root=root)

    @wide.get("/<path:rest>")
    async def anything(rest: str) -> str:
        return "wide"

    @narrow.get("/orders/<id>")
    async def order(id: int) -> str:
        return "narrow"

    assert (wide.queue, narrow.queue) == ("wide", "narrow")
    await join(own, nats_url, wide)
    await join(own, nats_url, narrow)
    _, urls = await put_in_front(own, nats_url, root)
    assert {(await client.get(f"{urls[fast]}/orders/{number}")).text for number in range(20)} == {"narrow"}
    assert (await client.get(f"{urls[fast]}/others")).text == "wide"


async def test_a_sniffer_takes_replies_away(house, client, nats_url, tmp_path):
    """While `natsweb sniff` looks on, every answer is the service's, and the sniffer has seen each request."""
    process = await natsweb(tmp_path, nats_url, "sniff", "--root", "origin", "--count", "20")
    try:
        await said(process, "listening below origin")
        answers = [await client.get(f"{house.urls[True]}/echo?n={number}") for number in range(20)]
        assert [one.json()["query"] for one in answers] == [f"n={number}" for number in range(20)]
        async with asyncio.timeout(20):
            printed, _ = await process.communicate()
        assert [f"GET /echo?n={number} HTTP/1.1" in printed.decode() for number in range(20)] == [True] * 20
    finally:
        await end(process)


async def test_the_echo_handler_needs_nats():
    """It needs nothing, not even a server."""
    gateway = Gateway(nats="nats://127.0.0.1:1", exchange=echo)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(gateway), base_url="http://testserver") as client:
        assert (await client.post("/any/path", content=b"hello")).text == "hello"


@DOORS
async def test_each_request_leaks_a_context(house, client, until, fast):
    """When the answers are out, no flight, job or task of them is left; also when clients have left before."""
    url = house.urls[fast]
    await client.get(f"{url}/echo")
    before = len(asyncio.all_tasks())
    assert {(await client.get(f"{url}/quick/0")).status_code for _ in range(200)} == {200}
    for _ in range(5):
        with contextlib.suppress(httpx2.TimeoutException):
            await client.get(f"{url}/wait", timeout=0.05)
    exchange, worker = house.gateway.exchange, house.member.worker
    await until(lambda: not (exchange._flights or exchange._streams or worker._waiting or worker._streaming))
    await until(lambda: len(asyncio.all_tasks()) <= before)
    assert exchange._pending_bytes == 0


@DOORS
async def test_authorization_accept_and_user_agent_are_not_forwarded(house, client, fast):
    """By default all headers of a request arrive, and no list has to be kept."""
    sent = {
        "authorization": "Bearer t",
        "accept": "text/csv",
        "user-agent": "me/1",
        "x-any": "1",
        "referer": "http://x/",
    }
    seen = dict((await client.get(f"{house.urls[fast]}/echo", headers=sent)).json()["headers"])
    assert sent.items() <= seen.items()


@DOORS
async def test_stopping_drops_what_is_queued(own, nats_url, client, until, fast):
    """A service that stops finishes what it has been sent, and each answer arrives."""
    root = f"drain-{fast}".lower()
    service = everything(root)
    member = await join(own, nats_url, service)
    _, urls = await put_in_front(own, nats_url, root)
    answers = [asyncio.ensure_future(client.get(f"{urls[fast]}/quick/300")) for _ in range(50)]
    await until(lambda: service.entered == 50)
    assert await member.stop(10)
    assert [(await one).text for one in answers] == ["done"] * 50


async def test_the_documentation_shows_what_does_not_work(tmp_path):
    """The smallest example is run as its README says, and prints what stands there."""
    readme = (EXAMPLES / "simple" / "README.md").read_text()
    command, printed = re.search(r"```console\n\$ (.*?)\n(.*?)```", readme, re.DOTALL).groups()
    assert command == "python examples/simple/app.py"
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, EXAMPLES / "simple" / "app.py"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("NATS")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == printed


async def test_a_service_that_dies_is_a_wait_of_ten_seconds(own, nats_url, client, tmp_path):
    """A request to a process that is killed at work is answered in a moment."""
    (tmp_path / "mortal.py").write_text(
        dedent(
            """
            import asyncio
            from natsweb import Service
            svc = Service("mortal", root="mortal")

            @svc.get("/wait")
            async def wait() -> None:
                print("entered", flush=True)
                await asyncio.sleep(60)
            """
        )
    )
    process = await natsweb(tmp_path, nats_url, "run", "mortal")
    try:
        await said(process, '"event": "ready"')
        _, urls = await put_in_front(own, nats_url, "mortal")
        answer = asyncio.ensure_future(client.get(f"{urls[True]}/wait"))
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"entered\n"
        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        response = await answer
        assert (response.status_code, response.json()["reason"]) == (502, "disconnected")
        assert time.monotonic() - began < 8
    finally:
        await end(process)


async def natsweb(folder, nats_url, *arguments):
    """Start `natsweb ...` in a folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "natsweb", *arguments),
        cwd=folder,
        env={**clean, "NATS_URL": nats_url, "XDG_CONFIG_HOME": str(folder), "NO_COLOR": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def said(process, words):
    """Wait until a process has said something on stderr."""
    found = ""
    async with asyncio.timeout(20):
        while words not in found:
            chunk = await process.stderr.read(4096)
            assert chunk, f"ended without saying {words!r}:\n{found}"
            found += chunk.decode()


async def end(process):
    """End a process."""
    if process.returncode is None:
        process.terminate()
    await process.communicate()


# ── what its router does, and ours as well ──


async def ask(foreign, subject, method="GET", body=b"", timeout=5):
    """Return the response to a request on the bus; raises `TimeoutError` if nobody answers."""
    inbox = foreign.new_inbox()
    replies = await foreign.subscribe(inbox)
    header = encode_request(method, b"")
    headers = dict(line.split(": ", 1) for line in header.decode().split("\r\n")[1:] if line)
    await foreign.publish(subject, body, reply=inbox, headers=headers)
    reply = await replies.next_msg(timeout=timeout)
    block = b"NATS/1.0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in reply.headers.items())
    return decode_response(block + b"\r\n", reply.data, method=method)


def named(name, root, path="/x", **options):
    """Return a service with one route that says its name."""
    svc = Service(name, root=root, **options)
    svc.count = 0

    @svc.get(path)
    async def say(request: Request) -> str:
        svc.count += 1
        return name

    return svc


async def test_a_queue_is_shared_by_name(own, nats_url, foreign):
    """Instances of a service take turns below a queue group of any name, each request runs once."""
    one, other = named("one", "shared", queue="q"), named("one", "shared", queue="q")
    await join(own, nats_url, one)
    await join(own, nats_url, other)
    for _ in range(40):
        assert (await ask(foreign, "shared.x")).status == 200
    assert one.count + other.count == 40
    assert one.count
    assert other.count


async def test_a_queue_that_two_services_share(own, nats_url):
    """NATS would give requests of the one to the other: such a queue is refused when the second one starts."""
    await join(own, nats_url, named("wide", "shared", queue="q"))
    with pytest.raises(StartError, match="has the same queue group"):
        await join(own, nats_url, named("narrow", "shared", queue="q"))


def items(root, **options):
    """Return a service whose one pattern, `items.*`, has a subject that none of its routes takes: that of `/items/`."""
    svc = Service("items", root=root, **options)

    @svc.get("/items/<id>")
    async def item(id: int) -> int:
        if id > 9:
            raise HTTPError(404, "no such item", reason="no_item")
        return id

    return svc


async def test_silence_leaves_room_for_others(own, nats_url, client, foreign):
    """A plain subscriber of the same subtree answers what the silent service has no route for."""
    await join(own, nats_url, items("room", not_found=False))

    async def plain(msg):
        await asyncio.sleep(0.02)  # whoever else would answer has done so by then
        await msg.respond(b"plain")

    await foreign.subscribe("room.items.%", cb=plain)
    await foreign.flush()
    _, urls = await put_in_front(own, nats_url, "room")
    for _ in range(5):
        assert (await client.post(f"{urls[True]}/items/")).text == "plain"
        assert (await client.get(f"{urls[True]}/items/7")).text == "7"


async def test_silence_leaves_room_for_another_service(own, nats_url, client, foreign):
    """So does another service of natsweb, also when nobody has named the one that is meant."""
    await join(own, nats_url, items("rooms", not_found=False))
    other = Service("other", root="rooms")

    @other.post("/<path:rest>")
    async def anything(rest: str) -> str:
        return "other"

    await join(own, nats_url, other)
    _, urls = await put_in_front(own, nats_url, "rooms")
    for _ in range(5):
        assert (await client.post(f"{urls[True]}/items/")).text == "other"
        assert (await ask(foreign, "rooms.items.%", "POST")).text == "other"
        assert (await client.get(f"{urls[True]}/items/7")).text == "7"


async def test_silence_waits_for_nobody(own, nats_url, foreign):
    """Nothing is said where there is no route; a wrong method and the handler's own 404 are answered."""
    await join(own, nats_url, items("hush", not_found=False))
    with pytest.raises(nats.errors.TimeoutError):
        await ask(foreign, "hush.items.%", "POST", timeout=0.3)
    answers = [await ask(foreign, "hush.items.7"), await ask(foreign, "hush.items.7", "DELETE")]
    answers.append(await ask(foreign, "hush.items.12"))
    assert [one.status for one in answers] == [200, 405, 404]
    assert answers[2].parse_json()["reason"] == "no_item"


async def test_a_service_that_is_not_silent_says_404(own, nats_url, foreign):
    """That is the default."""
    await join(own, nats_url, items("loud"))
    response = await ask(foreign, "loud.items.%", "POST")
    assert (response.status, response.parse_json()["reason"]) == (404, "no_route")


async def test_a_message_without_reply_runs_the_handler(house, foreign):
    """Fire and forget: the handler runs, and nobody is answered."""
    heard = await foreign.subscribe("_INBOX.>")
    await foreign.publish("origin.note", b"fire", headers={"Nw-Method": "POST", "content-type": "text/plain"})
    await foreign.publish("origin.note", b"and forget")
    async with asyncio.timeout(10):
        assert [await house.service.noted.get() for _ in range(2)] == ["fire", "and forget"]
    await foreign.flush()
    assert heard.pending_msgs == 0


@DOORS
async def test_a_prefix_is_stripped_for_handlers_and_kept_for_applications(own, nats_url, client, fast):
    """A natsweb handler sees the path below its mount; an ASGI application sees all of it, and where it is mounted."""
    root = f"mounts-{fast}".lower()
    svc = named("mounts", root)

    async def below(request: Request) -> Response:
        return Response(body=f"{request.root_path} {request.raw_path} {request.query} {request.text}")

    async def whole(request):
        return JSONResponse([request.scope["root_path"], request.scope["path"], request.url.query])

    svc.mount("/h", below)
    svc.mount("/deep/er", below)
    svc.mount("/old", Starlette(routes=[Route("/{rest:path}", whole, methods=["GET", "POST"])]))
    await join(own, nats_url, svc)
    url = (await put_in_front(own, nats_url, root))[1][fast]
    for path, seen in (
        ("/h", "/h /  "),
        ("/h/", "/h /  "),
        ("/h/a.b/%2F?x=1", "/h /a%2Eb/%2F x=1 "),
        ("/h//x", "/h //x  "),
        ("/deep/er/x", "/deep/er /x  "),
    ):
        assert (await client.get(raw_url(url, path))).text == seen
    assert (await client.post(f"{url}/h/x", content=b"hello")).text == "/h /x  hello"
    assert (await client.get(f"{url}/old/a/b?x=1")).json() == ["/old", "/old/a/b", "x=1"]
    assert (await client.get(f"{url}/x")).text == "mounts"


async def test_a_service_below_another(own, nats_url, client):
    """A service can be mounted in another one, as its documentation says."""
    outer, inner = named("outer", "nested"), named("inner", "nested", "/y")
    try:
        outer.mount("/in", inner)
    except Exception as error:
        raise AssertionError(str(error)) from None
    await join(own, nats_url, outer)
    url = (await put_in_front(own, nats_url, "nested"))[1][True]
    assert (await client.get(f"{url}/in/y")).text == "inner"
