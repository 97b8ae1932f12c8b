"""nats-proxy's format: against messages that another implementation wrote, against whoever plays foul, and end to end.

The stand-in for a Go service is a subscriber of nats-py that says the bytes of the fixtures, the one for a Go gateway a
request of nats-py. What the wire carries is read here with a few lines of protobuf of our own.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from textwrap import dedent
from typing import Annotated, NamedTuple

import httpx2
import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import InvalidStatus

from natsweb import Body, HTTPError, Nats, Request, Response, Rules, Service
from natsweb.errors import BadPath, BadReply, BadRequest, StartError, SubjectTooLong
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.headers import Headers
from natsweb.member import Member
from natsweb.natsbus import connect
from natsweb.proxy_wire import ProxyWire

FIXTURES = Path(__file__).parent / "fixtures" / "nats_proxy"
CASES = json.loads((FIXTURES / "cases.json").read_text())
DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
WIRE = ProxyWire()


def fixture(name):
    """Return a message as protobuf.js has written it."""
    return (FIXTURES / f"{name}.bin").read_bytes()


# ── protobuf, by hand ──


def varint(number):
    """Encode a number (protobuf encoding, base 128 varints)."""
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    """Encode one field: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value & (1 << 64) - 1)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data):
    """Yield the (number, value) pairs of an encoded message."""

    def number_at(place):
        found, shift = 0, 0
        while True:
            found |= (data[place] & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if not data[place - 1] & 0x80:
                return found, place

    place = 0
    while place < len(data):
        tag, place = number_at(place)
        value, place = number_at(place)
        if tag & 7:
            assert tag & 7 == 2
            value, place = data[place : place + value], place + value
        yield tag >> 3, value


def read(data):
    """Return a message as plain values."""
    found = {"status": 0, "method": "", "header": {}, "cookies": {}, "body": b""}
    for number, value in fields(data):
        if number == 3:
            entry = dict(fields(value))
            found["header"][entry.get(1, b"").decode()] = entry.get(2, b"").decode()
        elif number == 4:
            entry = dict(fields(value))
            cookie = dict(fields(entry.get(2, b"")))
            found["cookies"][entry[1].decode()] = (cookie.get(1, b"").decode(), cookie.get(2, b"").decode())
        else:
            name = {1: "status", 2: "method", 5: "body"}[number]
            found[name] = value.decode() if number == 2 else value
    return found


def message(*, status=0, method="", header=(), cookies=(), body=b""):
    """Encode a message; header and cookies are pairs of bytes."""
    out = field(1, status) + field(2, method if isinstance(method, bytes) else method.encode())
    out += b"".join(field(3, field(1, name) + field(2, value)) for name, value in header)
    out += b"".join(field(4, field(1, name) + field(2, field(1, value))) for name, value in cookies)
    return out + field(5, body)


JSON = message(method="POST", header=[(b"Content-Type", b"application/json")])


def test_our_own_protobuf_is_right():
    """What the tests read with agrees with what protobuf.js has written."""
    for name, said in CASES.items():
        assert read(fixture(name)) == {
            "status": said.get("status", 0),
            "method": said.get("method", ""),
            "header": said.get("header", {}),
            "cookies": {key: (one["value"], one.get("path", "")) for key, one in said.get("cookies", {}).items()},
            "body": base64.b64decode(said.get("body", "")),
        }


# ── what another implementation has written ──


@pytest.mark.parametrize(
    ("name", "method", "headers", "body"),
    [
        ("get", "GET", [("accept", "*/*"), ("x-trace", "\xe9")], b""),
        (
            "post",
            "POST",
            [
                ("content-type", "application/json"),
                ("user-agent", "Go-http-client/1.1"),
            ],
            b'{"item": "tea"}',
        ),
        ("binary", "PUT", [("content-type", "application/octet-stream")], b"\x00\x01\x02\xfd\xfe\xff\r\n"),
        ("empty", "GET", [], b""),
        ("hops", "POST", [("x-kept", "1")], b"h"),
    ],
)
def test_requests_of_another_implementation(name, method, headers, body):
    """Method, headers, cookies and body are there; what belongs to one connection, or to natsweb, is not."""
    call = WIRE.decode_request(["orders", "7"], fixture(name))
    assert (call.method, call.raw_path, call.body) == (method, "/orders/7", body)
    assert list(call.headers.without("cookie")) == headers
    assert call.cookies == {key: one["value"] for key, one in CASES[name].get("cookies", {}).items()}
    assert (call.query, call.timeout, call.service, call.window, call.more, call.upgrade) == (
        *("", None, None, 0),
        *(False, False),
    )
    assert call.request().method == method


@pytest.mark.parametrize(
    ("name", "status", "lines", "body"),
    [
        ("ok", 200, {"content-type": "text/plain; charset=utf-8"}, b"hello\n"),
        (
            "created",
            201,
            {"location": "/orders/7", "set-cookie": "sid=7; Path=/; HttpOnly", "content-type": "application/json"},
            b'{"id": 7}',
        ),
        (
            "missing",
            404,
            {"content-type": "text/plain; charset=utf-8", "x-content-type-options": "nosniff"},
            b"404 page not found\n",
        ),
        ("hops", 200, {"x-kept": "1"}, b"h"),
        ("empty", 200, {}, b""),
    ],
)
def test_replies_of_another_implementation(name, status, lines, body):
    """A status of 0 is 200, as it is there; hop-by-hop headers and natsweb's own do not cross."""
    found, block, content = WIRE.decode_reply(None, fixture(name), "GET")
    assert (found, dict(Headers.from_block(block)), content) == (status, lines, body)
    assert WIRE.decode_reply(None, fixture(name), "HEAD") == (found, block, b"")


def test_replies_that_have_no_body():
    """Whatever a service sends along with such a status, it is not part of the answer."""
    for status in (204, 205, 304):
        assert WIRE.decode_reply(None, message(status=status, body=b"x"), "GET") == (status, b"", b"")


def test_what_a_newer_version_says_is_passed_over():
    """Unknown fields are no error: that is how the format may grow."""
    more = field(9, b"new") + field(15, 7)
    assert WIRE.decode_request([], fixture("get") + more).method == "GET"
    assert WIRE.decode_reply(None, more + fixture("ok"), "GET")[2] == b"hello\n"


@pytest.fixture(scope="module")
def protobuf_js(tmp_path_factory):
    """Give a function that has messages decoded by protobuf.js."""
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "codec.mjs", "nats_proxy.proto", "cases.json"):
        shutil.copy(FIXTURES / name, folder)
    quietly = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]
    command = ["npm", "install", *quietly, "--fetch-retries=0", "--fetch-timeout=15000"]
    try:
        npm = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        is_there = npm.returncode == 0
    except subprocess.TimeoutExpired:
        is_there = False
    if not is_there:
        if os.environ.get("NATSWEB_REQUIRE") == "all":
            pytest.fail("needs the npm registry", pytrace=False)
        pytest.skip("needs the npm registry")

    def node(mode, said=""):
        return subprocess.run(
            ["node", "codec.mjs", mode], cwd=folder, input=said, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    def decode(*messages):
        said = "".join(f"{one.hex()}\n" for one in messages)
        found = [json.loads(line) for line in node("read", said).splitlines()]
        return [one | {"body": base64.b64decode(one["body"])} for one in found]

    decode.folder, decode.node = folder, node
    return decode


@pytest.mark.needs("npm", "node")
def test_another_implementation_reads_our_requests(protobuf_js):
    """protobuf.js finds in them what natsweb has put in: names as Go writes them, of repeats the first."""
    lines = b"x-trace: \xe9\r\nx-a: 1\r\nx-a: 2\r\ncookie: sid=a=b; theme=dark\r\nte: trailers\r\nx-empty: \r\n"
    [post, get] = protobuf_js(WIRE.encode_request("POST", lines, b"\x00\xff\r\n"), WIRE.encode_request("GET", b"", b""))
    assert post == {
        "status": 0,
        "method": "POST",
        "header": {"X-Trace": "é", "X-A": "1", "X-Empty": ""},
        "cookies": {"sid": {"value": "a=b", "path": "/"}, "theme": {"value": "dark", "path": "/"}},
        "body": b"\x00\xff\r\n",
    }
    assert get == {"status": 0, "method": "GET", "header": {}, "cookies": {}, "body": b""}


@pytest.mark.needs("npm", "node")
def test_another_implementation_reads_our_replies(protobuf_js):
    """Status, headers and body; of repeated headers the first, since the format has one."""
    headers = [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("content-type", "text/html"), ("connection", "close")]
    large = bytes(range(256)) * 1000
    [one, other] = protobuf_js(
        WIRE.encode_response(Response(status=404, headers=headers, body="é")),
        WIRE.encode_response(Response(body=large)),
    )
    assert (one["status"], one["header"]) == (404, {"Set-Cookie": "a=1", "Content-Type": "text/html"})
    assert (one["body"].decode(), other["status"], other["body"]) == ("é", 200, large)


@pytest.mark.needs("npm", "node")
def test_the_fixtures_are_what_the_script_writes(protobuf_js):
    """Whoever writes them again gets the same bytes."""
    protobuf_js.node("write")
    for name in CASES:
        assert (protobuf_js.folder / f"{name}.bin").read_bytes() == fixture(name)


# ── laws ──

tokens = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}", fullmatch=True)
values = st.text(
    st.characters(max_codepoint=255, exclude_categories=["Cc"], exclude_characters="\x7f\xa0\x85"), max_size=8
)
crossing = tokens.filter(
    lambda name: (
        not re.match(r"(?i)n(w|ats)[-_]", name)
        and name.lower() not in {"connection", "te", "trailer", "upgrade", "expect", "cookie"}
    )
)
cookie_values = st.text("abcXYZ019=-_.:/", max_size=8)


@given(
    st.sampled_from(METHODS),
    st.dictionaries(crossing, values, max_size=5),
    st.dictionaries(st.text("abcxyz-_", min_size=1, max_size=5), cookie_values, max_size=3),
    st.binary(max_size=50),
)
def test_requests_go_there_and_back(method, headers, cookies, body):
    """Of each name one value, cookies by name: what is encoded is decoded again."""
    headers = {name.lower(): value.strip() for name, value in headers.items()}
    lines = Headers(headers).block
    if cookies:
        lines += Headers({"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}).block
    call = WIRE.decode_request(["x"], WIRE.encode_request(method, lines, body))
    assert (call.method, call.body, call.cookies) == (method, body, cookies)
    assert dict(call.headers.without("cookie")) == headers


@given(st.integers(200, 599), st.dictionaries(crossing, values, max_size=5), st.binary(max_size=50))
def test_replies_go_there_and_back(status, headers, body):
    """Status, headers and body come out as they went in."""
    headers = {name.lower(): value.strip() for name, value in headers.items()}
    encoded = WIRE.encode_response(Response(status=status, headers=headers, body=body))
    found, lines, content = WIRE.decode_reply(None, encoded, "GET")
    assert (found, dict(Headers.from_block(lines))) == (status, headers)
    assert content == (b"" if status in (204, 205, 304) else body)


def test_a_repeated_header_has_its_first_value():
    """The format has one value for each name, and the first is what most readers would take."""
    assert read(WIRE.encode_request("GET", b"x-a: 1\r\nX-A: 2\r\n", b""))["header"] == {"X-A": "1"}
    assert read(WIRE.encode_response(Response(headers=[("x-a", "1"), ("x-a", "2")])))["header"] == {"X-A": "1"}


# ── who plays foul ──

SAID = [b"", b"a", b"x-a", b"X-A", b"Cookie", b"Connection", b"x-a, \xff", b"\r\n", b"a\r\nb: c", b"\x00", b" ", b"="]
SAID += [
    b"\xff\xfe",
    "中".encode(),
    "İ".encode(),
    b"\xc2\x85",
    b"Nw-Service",
    b"nats_x",
    b"GET",
    b"a;b",
    b":",
    b"x" * 300,
]
pieces = st.sampled_from(SAID)
pairs = st.lists(st.tuples(pieces | st.binary(max_size=6), pieces | st.binary(max_size=6)), max_size=3)
hostile = st.one_of(
    st.binary(max_size=60),
    st.builds(
        message,
        status=st.integers(-(1 << 63), (1 << 64) - 1),
        method=st.sampled_from([b"", b"GET", b"get", b"\xff", b"\xc3\x84", b"TRACE"]),
        header=pairs,
        cookies=pairs,
        body=st.binary(max_size=4),
    ),
    st.builds(
        lambda name, cut, flip: bytes(
            byte ^ (flip if place == cut else 0) for place, byte in enumerate(fixture(name)[: cut * 2])
        ),
        st.sampled_from(list(CASES)),
        st.integers(0, 150),
        st.integers(1, 255),
    ),
)


@given(hostile)
def test_hostile_requests(payload):
    """Whatever comes is a request that natsweb can have, or a `BadRequest`."""
    try:
        call = WIRE.decode_request(["x"], payload)
    except BadRequest:
        return
    request = call.request()
    assert request.cookies == call.cookies
    assert not re.search(rb"[\x00\n][^\n]", call.headers.block.replace(b"\r\n", b"\n\n").replace(b"\n\n", b""))
    assert not [name for name, _ in call.headers if name.startswith(("nw-", "nats-")) or name == "connection"]


@given(hostile, st.sampled_from(["GET", "HEAD"]))
def test_hostile_replies(payload, method):
    """Whatever comes is an answer that HTTP can have, or a `BadReply`."""
    try:
        status, lines, body = WIRE.decode_reply(None, payload, method)
    except BadReply:
        return
    assert 200 <= status <= 599
    assert Response(status=status, headers=Headers(Headers.from_block(lines)), body=body)
    assert lines.count(b"\n") == lines.count(b"\r\n") == len(Headers.from_block(lines))


@pytest.mark.parametrize("status", [-1, 1, 100, 101, 199, 600, 1 << 31, (1 << 32) + 200])
def test_statuses_that_are_none(status):
    """What HTTP has no final answer for is refused; numbers are 32 bits wide, as protobuf says."""
    if status & 0xFFFFFFFF == 200:
        assert WIRE.decode_reply(None, message(status=status), "GET")[0] == 200
        return
    with pytest.raises(BadReply):
        WIRE.decode_reply(None, message(status=status), "GET")


@pytest.mark.parametrize("method", ["get", "Get", "\u00c4", "G\u00c4T"])
def test_methods_that_are_none(method):
    """Methods are upper case ASCII, as on natsweb's own wire."""
    with pytest.raises(BadRequest):
        WIRE.decode_request([], message(method=method))


@pytest.mark.parametrize("method", ["GET ", "G T", "GET\r\nX: Y", "GET\n", "(GET)", "GET:"])
def test_methods_with_other_characters(method):
    """A method is a token (RFC 9110 section 9.1); anything else is no request, and no failure of the handler either."""
    try:
        WIRE.decode_request([], message(method=method))
    except BadRequest:
        return
    raise AssertionError("it was taken")


# ── paths and subjects ──


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("/", "api"),
        ("/a/b/c", "api.a.b.c"),
        ("/a/", "api.a"),
        ("/a//", "api.a"),
        ("/%41/b%2dc", "api.A.b-c"),
        ("/a@b:c", "api.a@b:c"),
        ("/$SYS", "api.$SYS"),
        ("/%25", "api.%"),
        ("/%2541", "api.%41"),
        ("/%C3%A9", "api.\xc3\xa9"),
        ("/\xc3\xa9", "api.\xc3\xa9"),
        ("/%E4%B8%AD", "api.\xe4\xb8\xad"),
    ],
)
def test_subjects_of_paths(path, subject):
    """Dots for slashes, nothing escaped, none at the end: what a Go service subscribes to; UTF-8 as its bytes."""
    assert WIRE.subject("api", path, 3072) == subject


REFUSED = ["//a", "/a//b", "/a.b", "/a%2Eb", "/a%2Fb/%2E%2E", "/a/../b", "/.", "/*", "/a%2A", "/>", "/%3E", "/a%20b"]
REFUSED += ["/%09", "/a%0D%0APUB%20x%200", "/%00", "/%C2%A0", "/%C2%85", "/%E2%80%AE", "/%FF", "/%zz", "a", ""]


@pytest.mark.parametrize("path", REFUSED)
def test_paths_that_have_no_subject_of_their_own(path):
    """What would be read as another path, as a wildcard or as protocol is refused, not mangled."""
    with pytest.raises(BadPath):
        WIRE.subject("api", path, 3072)


def test_paths_that_are_too_long():
    """Counted in bytes of the subject, as everywhere."""
    assert WIRE.subject("api", "/aaaa", 8) == "api.aaaa"
    with pytest.raises(SubjectTooLong):
        WIRE.subject("api", "/aaaaa", 8)
    with pytest.raises(SubjectTooLong):
        WIRE.subject("api", "/%C3%A9%C3%A9a", 8)


@pytest.mark.parametrize(
    ("subject", "path"),
    [
        ("api", "/"),
        ("api.a.b", "/a/b"),
        ("api.a@b", "/a%40b"),
        ("api.%", "/%25"),
        ("api.%41", "/%2541"),
        ("api.a%2Fb", "/a%252Fb"),
        ("api.\xc3\xa9", "/%C3%A9"),
        ("api.a b", "/a%20b"),
        ("api.a/b", "/a%2Fb"),
    ],
)
def test_paths_of_subjects(subject, path):
    """A Go gateway escapes nothing, so a token is a segment as it stands."""
    assert WIRE.decode_request(WIRE.tokens("api", subject), b"").raw_path == path


def test_a_subject_that_is_no_text():
    """It is refused with an answer."""
    with pytest.raises(BadPath):
        WIRE.tokens("api", "api.\xff")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5), max_size=4))
def test_the_law_of_subjects(segments):
    """A path that has a subject is the path of that subject: nobody reaches another one."""
    path = "/" + "/".join("".join(f"%{byte:02X}" for byte in segment.encode()) for segment in segments)
    try:
        subject = WIRE.subject("api", path, 3072)
    except BadPath:
        return
    assert subject.isprintable() or not subject.isascii()
    assert re.fullmatch(rb"api(\.[^\x00- .*>\x7f]+)*", subject.encode("latin-1"))
    call = WIRE.decode_request(WIRE.tokens("api", subject), b"")
    assert call.request().path == "/" + "/".join(segments)


# ── end to end: services of the origin's kind behind a natsweb gateway ──


class Go(NamedTuple):
    """A stand-in for a service in Go: its replies by subject, and what it was asked."""

    replies: dict[str, bytes | None]
    asked: list[tuple[str, dict]]


@pytest.fixture
async def foreign(nats_url):
    """Give a connection of nats-py."""
    client = await nats.connect(nats_url)
    yield client
    await client.close()


@pytest.fixture
async def go(foreign):
    """Give a stand-in for a service in Go below `px`, in the queue group that all of them share."""
    found = Go({}, [])

    async def answer(msg):
        assert msg.headers is None
        found.asked.append((msg.subject, read(msg.data)))
        reply = found.replies.get(msg.subject, fixture("missing"))
        if reply is not None and msg.reply:
            await foreign.publish(msg.reply, reply)

    for subject in ("px", "px.>"):
        await foreign.subscribe(subject, queue="service", cb=answer)
    await foreign.flush()
    return found


@pytest.fixture
async def put_in_front(nats_url):
    """Give a function that starts a gateway with a front, and returns its URL."""
    async with AsyncExitStack() as stack:

        async def start(fast=True, root="px", **options):
            options = {"wire": "nats-proxy", **options}
            gateway = await stack.enter_async_context(Gateway(root, nats=Nats(urls=(nats_url,)), **options))
            front = Front(gateway, port=0, grace=0.1, fast=fast)
            await front.start()
            stack.push_async_callback(front.stop, now=True)
            return front.url

        yield start


@pytest.fixture
async def client():
    """Give an HTTP client."""
    async with httpx2.AsyncClient(timeout=30) as client:
        yield client


@DOORS
async def test_a_gateway_asks_services_in_go(go, put_in_front, client, fast):
    """The service gets what a Go gateway would send it, and its reply is the answer."""
    url = await put_in_front(fast)
    go.replies["px.orders.7"] = fixture("created")
    headers = {"x-trace": "\xe9".encode("latin-1"), "cookie": "sid=a=b; theme=dark"}
    response = await client.put(f"{url}/orders/7/?lost=1", content=b"\x00\xff", headers=headers)
    assert (response.status_code, response.json()) == (201, {"id": 7})
    assert (response.headers["location"], response.headers["set-cookie"]) == ("/orders/7", "sid=7; Path=/; HttpOnly")
    [(subject, seen)] = go.asked
    assert (subject, seen["method"], seen["status"], seen["body"]) == ("px.orders.7", "PUT", 0, b"\x00\xff")
    assert seen["cookies"] == {"sid": ("a=b", "/"), "theme": ("dark", "/")}
    assert seen["header"]["X-Trace"] == "é"
    assert seen["header"]["Host"] == url.removeprefix("http://")
    assert "Cookie" not in seen["header"]


@DOORS
async def test_answers_of_services_in_go(go, put_in_front, client, fast):
    """A status of 0 is 200, an error of theirs is theirs, HEAD has no body, `/` is the root."""
    url = await put_in_front(fast)
    go.replies.update({"px": fixture("ok"), "px.empty": fixture("empty"), "px.hops": fixture("hops")})
    assert (await client.get(url)).text == "hello\n"
    missing = await client.get(f"{url}/nowhere")
    assert (missing.status_code, missing.text) == (404, "404 page not found\n")
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert (await client.get(f"{url}/empty")).status_code == 200
    hops = await client.get(f"{url}/hops")
    assert (hops.headers["x-kept"], hops.headers.get("x-named"), hops.headers.get("nw-status")) == ("1", None, None)


@DOORS
@pytest.mark.parametrize(
    ("path", "reply", "status", "reason"),
    [
        ("/broken", b"\xff\xff", 502, "bad_reply"),
        ("/broken", message(status=99), 502, "bad_reply"),
        ("/broken", message(status=200, header=[(b"a\r\nb", b"c")]), 502, "bad_reply"),
        ("/silent", None, 504, "timeout"),
        ("/a.b", b"", 400, "bad_path"),
        ("/a%20b", b"", 400, "bad_path"),
        ("/a//b", b"", 400, "bad_path"),
    ],
    ids=lambda value: "reply" if isinstance(value, bytes) else None,
)
async def test_what_goes_wrong_in_front_of_go(go, put_in_front, client, fast, path, reply, status, reason):
    """Each failure is its own, and none is a raw error text."""
    url = await put_in_front(fast, timeout=0.3)
    go.replies.update({"px.broken": reply, "px.silent": None})
    response = await client.get(url + path)
    assert (response.status_code, response.json()["reason"]) == (status, reason)
    if status == 400:
        assert go.asked == []


@DOORS
async def test_nobody_there_and_too_much(put_in_front, client, fast):
    """Without a service it is a 404 at once, and what no message holds is a 413."""
    url = await put_in_front(fast, root="px-nobody")
    response = await client.get(f"{url}/x")
    assert (response.status_code, response.json()["reason"]) == (404, "no_service")
    response = await client.post(f"{url}/x", content=bytes(2_000_000))
    assert (response.status_code, response.json()["reason"]) == (413, "too_large")


async def test_a_socket_in_front_of_go(go, put_in_front):
    """The format has no WebSockets: the handshake is refused."""
    url = await put_in_front()
    go.replies["px.talk"] = fixture("missing")
    with pytest.raises(InvalidStatus) as refused:
        async with connect_socket(f"{url.replace('http', 'ws', 1)}/talk"):
            pass
    assert refused.value.response.status_code >= 400


@DOORS
async def test_rules_in_front_of_go(go, put_in_front, client, fast):
    """Allow-lists, headers that are set, and exclusions work with this wire, too."""
    rules = Rules(headers=["x-ok"], cookies=["sid"], set={"x-tenant": "acme"}, exclude=["/secret"])
    url = await put_in_front(fast, rules=rules)
    for path in ("/secret", "/secret/", "/%73ecret/x"):
        assert (await client.get(url + path)).json()["reason"] == "no_service"
    assert go.asked == []
    await client.get(f"{url}/x", headers={"x-ok": "1", "x-no": "2", "x-tenant": "evil", "cookie": "sid=1; b=2"})
    [(_, seen)] = go.asked
    assert set(seen["header"]) == {"Host", "X-Ok", "X-Tenant"}
    assert (seen["header"]["X-Tenant"], seen["cookies"]) == ("acme", {"sid": ("1", "/")})


@DOORS
@pytest.mark.parametrize("path", ["/@admin", "/caf%C3%A9"])
async def test_exclusions_that_are_escaped(go, put_in_front, client, fast, path):
    """A path is excluded however its subject is spelled."""
    url = await put_in_front(fast, rules=Rules(exclude=[path]))
    await client.get(f"{url}{path}/x")
    assert go.asked == []


async def test_a_gateway_of_the_command_line_asks_go(go, begin, client):
    """`natsweb gateway --wire nats-proxy` is what a Go gateway is replaced with."""
    gateway = await begin("gateway", "--root", "px", "--wire", "nats-proxy", "--port", "0")
    url = (await gateway.until(r'"http": "(http://[^"]+)"'))[1]
    go.replies["px.orders"] = fixture("created")
    assert (await client.post(f"{url}/orders", content=b"{}")).json() == {"id": 7}
    assert go.asked[0][1]["method"] == "POST"


# ── end to end: natsweb services behind a gateway of the origin's kind ──


def orders(root="px", **options):
    """Return a service with something of everything."""
    svc = Service("orders", root=root, **options)
    svc.journal, svc.entered = [], asyncio.Queue()

    @svc.route("/echo/<path:rest>", methods=METHODS)
    async def echo(rest: str, request: Request) -> Response:
        svc.journal.append(f"{request.method} {request.raw_path}")
        said = {"method": request.method, "path": request.raw_path, "cookies": request.cookies, "body": request.text}
        headers = [("content-type", "application/json"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
        return Response(status=202, headers=headers, body=json.dumps(said | {"trace": request.headers.get("x-trace")}))

    @svc.get("/rows")
    async def rows() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d\n" % number

    @svc.get("/large")
    async def large() -> bytes:
        return bytes(2_000_000)

    @svc.get("/fails")
    async def fails() -> None:
        raise RuntimeError("secret")

    @svc.get("/gone")
    async def gone() -> None:
        raise HTTPError(410, "it is gone", reason="sold")

    @svc.post("/typed")
    async def typed(body: Annotated[dict[str, int], Body()]) -> int:
        return sum(body.values())

    @svc.post("/note")
    async def note(request: Request) -> None:
        svc.entered.put_nowait(request.text)

    return svc


@pytest.fixture
async def serve(nats_url):
    """Give a function that lets a service join, in the origin's format unless another is said."""
    async with AsyncExitStack() as stack:

        async def start(service, wire=WIRE, queue="service"):
            bus = await connect(Nats(urls=(nats_url,)))
            stack.push_async_callback(bus.close)
            service.queue = queue
            await stack.enter_async_context(service)
            member = Member(bus, service, quiet=0.02, wire=wire)
            await member.start()
            stack.push_async_callback(member.stop, 0)
            return service

        yield start


async def ask(foreign, subject, payload, timeout=5):
    """Return the reply to a request of a Go gateway, as plain values."""
    reply = await foreign.request(subject, payload, timeout=timeout)
    assert reply.headers is None
    return read(reply.data)


async def test_a_service_answers_gateways_in_go(serve, foreign):
    """Requests of the fixtures get their answers, in the same format and in one message."""
    await serve(orders())
    reply = await ask(foreign, "px.echo.a@b", fixture("post"))
    assert (reply["status"], reply["header"]) == (202, {"Content-Type": "application/json", "Set-Cookie": "a=1"})
    assert json.loads(reply["body"]) == {
        "method": "POST",
        "path": "/echo/a%40b",
        "cookies": {"sid": "a=b", "theme": "dark"},
        "body": '{"item": "tea"}',
        "trace": None,
    }
    assert json.loads((await ask(foreign, "px.echo.x", fixture("get")))["body"])["trace"] == "\xe9"
    assert (
        await ask(
            foreign,
            "px.typed",
            message(method="POST", header=[(b"Content-Type", b"application/json")], body=b'{"a": 40, "b": 2}'),
        )
    )["body"] == b"42"
    assert (await ask(foreign, "px.rows", fixture("get")))["body"]


@pytest.mark.parametrize(
    ("subject", "payload", "status", "reason"),
    [
        ("px.echo.x", b"\xff\xff\xff", 400, "bad_request"),
        ("px.echo.x", b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request"),
        ("px.echo.x", message(method="get"), 400, "bad_request"),
        ("px.echo.x", message(method="GET", header=[(b"a b", b"c")]), 400, "bad_request"),
        ("px.echo.x", message(method="GET", header=[(b"x-a", "中".encode())]), 400, "bad_request"),
        ("px.gone", fixture("get"), 410, "sold"),
        ("px.fails", fixture("get"), 500, "handler_failed"),
        ("px.large", fixture("get"), 500, "reply_too_large"),
        ("px.gone", fixture("post"), 405, "method_not_allowed"),
        (
            "px.typed",
            message(method="POST", header=[(b"Content-Type", b"application/json")], body=b"{"),
            422,
            "invalid_input",
        ),
    ],
)
async def test_what_goes_wrong_behind_go(serve, foreign, subject, payload, status, reason):
    """Every message with a reply subject is answered at once, also one that cannot be read."""
    await serve(orders())
    reply = await ask(foreign, subject, payload)
    assert (reply["status"], json.loads(reply["body"])["reason"]) == (status, reason)
    assert reply["header"]["Content-Type"] == "application/problem+json"
    assert b"secret" not in reply["body"]


async def test_a_message_that_wants_no_answer(serve, foreign):
    """Without a reply subject the handler runs, and nobody is answered."""
    service = await serve(orders())
    heard = []

    async def hear(msg):
        heard.append(msg)

    await foreign.subscribe("_INBOX.>", cb=hear)
    await foreign.publish("px.note", message(method="POST", header=[(b"Content-Type", b"text/plain")], body=b"hello"))
    async with asyncio.timeout(10):
        assert await service.entered.get() == "hello"
    await ask(foreign, "px.echo.x", fixture("get"))  # whatever came before has been handled
    assert len([msg for msg in heard if read(msg.data)["status"] != 202]) == 0


async def test_old_and_new_share_a_queue(serve, go, foreign):
    """An instance in Go and one of natsweb take turns in one queue group, and each request is answered once."""
    service = await serve(orders())
    go.replies["px.echo.x"] = fixture("created")
    replies = [await ask(foreign, "px.echo.x", fixture("get")) for _ in range(60)]
    statuses = [reply["status"] for reply in replies]
    assert set(statuses) == {201, 202}
    assert len(service.journal) == statuses.count(202)
    assert len(go.asked) == statuses.count(201)


async def test_two_instances_share_a_queue(serve, foreign):
    """Each request runs in one of them."""
    first, second = await serve(orders()), await serve(orders())
    for _ in range(60):
        assert (await ask(foreign, "px.echo.x", fixture("get")))["status"] == 202
    assert first.journal
    assert second.journal
    assert len(first.journal) + len(second.journal) == 60


async def test_silence_in_this_format(serve, go, foreign):
    """With `not_found=False` what no route takes is left to others."""
    await serve(orders(not_found=False), queue="orders")
    go.replies.update({"px.other": fixture("ok"), "px.echo.x": None})
    assert (await ask(foreign, "px.other", fixture("get")))["body"] == b"hello\n"
    assert (await ask(foreign, "px.echo.x", fixture("get")))["status"] == 202


@DOORS
async def test_both_sides_of_natsweb(serve, put_in_front, client, fast):
    """Gateway and service in this format: all that it can carry arrives."""
    await serve(orders())
    url = await put_in_front(fast)
    response = await client.patch(f"{url}/echo/a/b/?lost=1", content=b"body", headers={"cookie": "sid=1"})
    assert response.status_code == 202
    assert response.json() == {
        "method": "PATCH",
        "path": "/echo/a/b",
        "cookies": {"sid": "1"},
        "body": "body",
        "trace": None,
    }
    assert response.headers.get_list("set-cookie") == ["a=1"]
    assert (await client.get(f"{url}/rows")).status_code == 200
    assert (await client.get(f"{url}/gone")).json()["reason"] == "sold"
    assert (await client.get(f"{url}/large")).json()["reason"] == "reply_too_large"


async def test_a_service_of_the_command_line_answers_go(begin, foreign, tmp_path, client):
    """`natsweb run --wire nats-proxy --queue service`, and in front of it the gateway in the same format."""
    (tmp_path / "shop.py").write_text(
        dedent(
            """
            from natsweb import Service
            svc = Service("shop", root="px.cli")

            @svc.get("/who/<name>")
            async def who(name: str) -> str:
                return f"hello {name}"
            """
        )
    )
    service = await begin("run", "shop", "--wire", "nats-proxy", "--queue", "service")
    assert '"queue": "service"' in (await service.until(r"\{.*\}"))[0]
    reply = await ask(foreign, "px.cli.who.ann", fixture("get"))
    assert (reply["status"], reply["body"]) == (200, b"hello ann")
    assert (await ask(foreign, "px.cli.who.ann", b"\xff"))["status"] == 400
    gateway = await begin("gateway", "--root", "px.cli", "--wire", "nats-proxy", "--port", "0")
    url = (await gateway.until(r'"http": "(http://[^"]+)"'))[1]
    assert (await client.get(f"{url}/who/ann")).text == "hello ann"


# ── both formats on one cluster ──


async def test_a_service_in_this_format_is_not_announced(serve, put_in_front, client):
    """A gateway of natsweb's own format has it in no catalogue, and says that nobody has claimed its paths."""
    service = await serve(orders())
    url = await put_in_front(wire="natsweb", known_only=True)
    assert (await client.get(f"{url}/echo/x")).json()["reason"] == "no_service"
    assert service.journal == []


async def test_each_gateway_asks_its_own(serve, put_in_front, client):
    """With a root for each format, the same service runs in both, and nothing crosses."""
    old, new = await serve(orders()), await serve(orders(root="px-new"), wire=None, queue="orders")
    old_url, new_url = await put_in_front(), await put_in_front(root="px-new", wire="natsweb")
    assert (await client.get(f"{old_url}/echo/old")).status_code == 202
    assert (await client.get(f"{new_url}/echo/new?a=1")).headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert (old.journal, new.journal) == (["GET /echo/old"], ["GET /echo/new"])


async def test_a_request_in_the_other_format_is_not_run(serve, put_in_front, client):
    """Below one root, a service in this format leaves requests of natsweb's gateways to those who are meant."""
    old, new = await serve(orders()), await serve(orders(), wire=None, queue="orders")
    url = await put_in_front(wire="natsweb")
    for _ in range(10):
        response = await client.get(f"{url}/echo/x")
        assert (response.status_code, response.headers.get_list("set-cookie")) == (202, ["a=1", "b=2"])
    assert (old.journal, len(new.journal)) == ([], 10)


# ── the extra ──


def test_without_protobuf(monkeypatch):
    """The extra is named where it is needed, with the line that installs it."""
    from natsweb import proxy_wire

    proxy_wire._message_class.cache_clear()
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pb2", None)
    try:
        for needs in (ProxyWire, lambda: Gateway("api", wire="nats-proxy")):
            with pytest.raises(StartError) as raised:
                needs()
            assert raised.value.what == "--wire nats-proxy needs protobuf, which is not installed"
            assert raised.value.fix == 'pip install "natsweb[nats-proxy]"'
    finally:
        proxy_wire._message_class.cache_clear()


class Said(NamedTuple):
    """A `natsweb` process and what it has said."""

    process: asyncio.subprocess.Process
    words: list[str]

    async def until(self, pattern):
        """Read stderr until it matches."""
        async with asyncio.timeout(20):
            while not (found := re.search(pattern, "".join(self.words))):
                chunk = await self.process.stderr.read(4096)
                assert chunk, f"ended without saying {pattern!r}:\n{''.join(self.words)}"
                self.words.append(chunk.decode())
        return found


@pytest.fixture
async def begin(tmp_path, nats_url):
    """Give a function that starts `natsweb ...` in a folder of the test."""
    processes = []

    async def start(*arguments, **environ):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "natsweb", *arguments),
            cwd=tmp_path,
            env={**clean, "NATS_URL": nats_url, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1", **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return Said(process, [])

    yield start
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await process.communicate()


@pytest.mark.parametrize("command", [["gateway", "--port", "0"], ["run", "shop"]], ids=lambda one: one[0])
async def test_commands_without_protobuf(begin, tmp_path, command):
    """The command ends before anything is served, and says what to install."""
    (tmp_path / "hidden" / "google").mkdir(parents=True)
    (tmp_path / "hidden" / "google" / "__init__.py").touch()
    (tmp_path / "shop.py").write_text(
        "from natsweb import Service\nsvc = Service('shop')\n@svc.get('/')\ndef x(): ...\n"
    )
    path = os.pathsep.join([str(tmp_path / "hidden"), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = (await begin(*command, "--wire", "nats-proxy", PYTHONPATH=path)).process
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 3, said.decode()
    assert "--wire nats-proxy needs protobuf, which is not installed" in said.decode()
    assert 'fix: pip install "natsweb[nats-proxy]"' in said.decode()
    assert "Traceback" not in said.decode()
