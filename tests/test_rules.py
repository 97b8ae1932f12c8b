"""Rules: what of a request may cross a gateway. The values alone, and then through both doors to a real service."""

import asyncio
import base64
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

import httpx2
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from natsweb import Nats, Request, Response, Rules, Service
from natsweb.errors import BadPath, SettingsError
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus import connect
from natsweb.subjects import to_subject
from natsweb.worker import Worker

DOORS = pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]
end_to_end = pytest.mark.asyncio(loop_scope="module")

SENT = [
    (b"Host", b"shop.example"),
    (b"X-Ok", b"1"),
    (b"x-ok", b"2"),
    (b"X-Other", b"3"),
    (b"Authorization", b"Bearer t"),
    (b"Cookie", b"sid=1; theme=dark"),
    (b"Content-Type", b"text/plain"),
    (b"Accept", b"*/*"),
]


def crossing(rules, fields=SENT):
    """Return the names and values that cross, without what describes the body or the host."""
    return [(name, value) for name, value in rules.apply(list(fields)) if name not in (b"host", b"content-type")]


# ── headers and cookies ──


def test_by_default_all_headers_cross_untouched():
    """Rules that say nothing about headers hand back the very same fields."""
    fields = list(SENT)
    assert Rules().are_plain
    assert Rules(exclude=["/a"], timeouts={"/b": 1}).are_plain
    assert Rules().apply(fields) is fields


@pytest.mark.parametrize(
    ("said", "crossed"),
    [
        ({"headers": ["X-Ok"]}, [(b"x-ok", b"1"), (b"x-ok", b"2")]),
        ({"headers": [" x-OK ", "", "  "]}, [(b"x-ok", b"1"), (b"x-ok", b"2")]),
        ({"headers": []}, []),
        ({"headers": ["authorization"]}, [(b"authorization", b"Bearer t")]),
        ({"headers": ["cookie"]}, [(b"cookie", b"sid=1; theme=dark")]),
        ({"headers": [], "cookies": ["theme"]}, [(b"cookie", b"theme=dark")]),
        ({"headers": [], "cookies": []}, []),
        ({"headers": ["Cookie"], "cookies": ["sid"]}, [(b"cookie", b"sid=1")]),
        ({"headers": [], "set": {"X-Tenant": "acme"}}, [(b"x-tenant", b"acme")]),
        ({"headers": ["X-Ok"], "set": {"x-OK": "9"}}, [(b"x-ok", b"9")]),
    ],
)
def test_an_allow_list_lets_nothing_else_through(said, crossed):
    """What is on the list crosses, in any spelling and every time; what is not on it does not."""
    assert crossing(Rules(**said)) == crossed


def test_an_allow_list_always_lets_through_what_describes_the_body():
    """Without them a service could not read the body, or not know who was asked."""
    said = [
        b"content-type",
        b"content-encoding",
        b"content-language",
        b"content-disposition",
        b"content-range",
        b"host",
    ]
    assert [name for name, _ in Rules(headers=[]).apply([(name, b"x") for name in said])] == said


def test_an_allow_list_keeps_what_names_the_fields_of_one_connection():
    """`Connection` stays until the wire drops it, since it says what else must not cross."""
    assert Rules(headers=["x-ok"]).apply([(b"Connection", b"x-ok")]) == [(b"connection", b"x-ok")]


@pytest.mark.parametrize(
    ("cookies", "field", "crossed"),
    [
        (["sid"], b"sid=1; theme=dark", [b"sid=1"]),
        (["theme", "sid"], b"sid=1; x=2;theme=dark ; y", [b"sid=1; theme=dark"]),
        (["sid"], b"xsid=1; sid2=2; SID=3", []),
        (["sid"], b"sid=a=b==; sid=2", [b"sid=a=b==; sid=2"]),
        (["sid"], b" sid = 1", [b"sid = 1"]),
        ([" sid "], b"sid=1", [b"sid=1"]),
        (["sid"], b"sid", [b"sid"]),
        (["sid"], b";;=;sid=", [b"sid="]),
        (["sid"], b"", []),
        (["\xe9"], b"\xe9=1; e=2", [b"\xe9=1"]),
    ],
)
def test_cookies_are_picked_by_name(cookies, field, crossed):
    """Names are exact, values are left alone, and a field without any of them is not there."""
    assert [value for _, value in Rules(cookies=cookies).apply([(b"Cookie", field)])] == crossed


def test_every_cookie_field_is_looked_at():
    """HTTP/2 clients split `Cookie`, and a proxy in front may have left it so."""
    fields = [(b"cookie", b"sid=1"), (b"cookie", b"theme=dark"), (b"cookie", b"x=1; sid=2")]
    assert Rules(cookies=["sid"]).apply(fields) == [(b"cookie", b"sid=1"), (b"cookie", b"sid=2")]


def test_what_the_gateway_sets_is_there_once():
    """It replaces all that the client says under that name, keeps `=` in its value, and stands last."""
    rules = Rules(set={"X-Tenant": " a=b ", "Authorization": ""})
    fields = [(b"x-TENANT", b"evil"), (b"x-ok", b"1"), (b"X-Tenant", b"more"), (b"authorization", b"Bearer t")]
    assert rules.apply(fields) == [(b"x-ok", b"1"), (b"x-tenant", b"a=b"), (b"authorization", b"")]


names = st.sampled_from(["x-a", "X-A", "x-b", "cookie", "Accept", "x-c", "host"])


@given(
    st.lists(st.tuples(names, st.binary(max_size=5)), max_size=12),
    st.none() | st.lists(names, max_size=4),
    st.dictionaries(names, st.sampled_from(["1", "2"]), max_size=3),
)
def test_the_law_of_headers(fields, allowed, written):
    """What crosses is a sub-sequence of what came, of allowed names only, and then what the gateway sets."""
    rules = Rules(headers=allowed, set=written)
    came = [(name.encode().lower(), value) for name, value in fields]
    crossed = [(name.lower(), value) for name, value in rules.apply([(n.encode(), v) for n, v in fields])]
    ours = {name.lower().encode(): value.encode() for name, value in written.items()}
    listed = None if allowed is None else {name.lower().encode() for name in allowed} | {b"host"}
    expected = [(n, v) for n, v in came if n not in ours and (listed is None or n in listed)]
    kept = crossed[: len(expected)]
    assert kept == expected
    assert dict(crossed[len(expected) :]) == ours


# ── paths ──


@pytest.mark.parametrize(
    ("excluded", "path", "is_out"),
    [
        ("/secret", "/secret", True),
        ("/secret", "/secret/", True),
        ("/secret", "/secret/a/b", True),
        ("/secret", "/secrets", False),
        ("/secret", "/a/secret", False),
        ("/secret", "/Secret", False),
        ("/secret", "/", False),
        ("/secret/", "/secret", True),
        ("/secret///", "/secret/x", True),
        ("/secret", "/%73ecret", True),
        ("/%73ecret", "/secret", True),
        ("/secret", "/secret%2Fx", False),
        ("/a.b", "/a.b/c", True),
        ("/a.b", "/a/b/c", False),
        ("/a b", "/a%20b", True),
        ("/%C3%A9", "/%c3%a9/x", True),
        ("/*", "/*", True),
        ("/*", "/x", False),
        ("/a/b", "/a/b/c", True),
        ("/a/b", "/a", False),
        ("/a//b", "/a//b", True),
        ("/a//b", "/a/b", False),
        ("/", "/", True),
        ("/", "/any/thing", True),
    ],
)
def test_excluded_paths(excluded, path, is_out):
    """A path is excluded with all below it, however it is spelled, and its neighbours are not."""
    beginnings = Rules(exclude=[excluded]).excluded("api")
    assert f"{to_subject('api', path)}.".startswith(beginnings) is is_out


segments = st.lists(st.sampled_from(["a", "b", "a.b", "", "é", "a b", "*", ">", "%"]), max_size=4)


@given(segments, segments)
def test_the_law_of_excluded_paths(excluded, asked):
    """A path is excluded exactly if the segments of the excluded one are its first."""

    def spell(parts):
        return "/" + "/".join("".join(f"%{byte:02x}" for byte in part.encode()) for part in parts)

    wanted = list(excluded)
    while wanted and not wanted[-1]:
        wanted.pop()  # slashes at the end say nothing
    try:
        beginnings = Rules(exclude=[spell(excluded)]).excluded("api")
        subject = to_subject("api", spell(asked)) + "."
    except BadPath:
        return
    asked = [] if asked in ([], [""]) else asked
    assert subject.startswith(beginnings) is (asked[: len(wanted)] == wanted)


def test_the_longest_path_says_the_time():
    """Of several beginnings that fit, the longest comes first, in whichever order they were given."""
    said = {"/a": 1, "/a/b/c": 3, "/": 9, "/a/b": 2.5}
    for one in (said, dict(reversed(said.items()))):
        assert Rules(timeouts=one).times("api") == (
            ("api.a.b.c.", 3),
            ("api.a.b.", 2.5),
            ("api.a.", 1),
            ("api.", 9),
        )


@pytest.mark.parametrize(
    ("said", "what", "fix"),
    [
        ({"headers": ["x y"]}, "'x y' is no name of a header", "X-Tenant"),
        ({"headers": ["x:"]}, "'x:' is no name of a header", "X-Tenant"),
        ({"headers": ["\u4e2d"]}, "is no name of a header", "X-Tenant"),
        ({"set": {"": "x"}}, "'' cannot be sent as a header", "Name=value"),
        ({"set": {"x-a": "1\r\nx-b: 2"}}, "control character", "Name=value"),
        ({"set": {"x-a": "\u4e2d"}}, "'x-a' cannot be sent as a header", "Name=value"),
        ({"exclude": ["secret"]}, "'secret' is no path: it does not begin with /", "/secret"),
        ({"exclude": [""]}, "'' is no path", "/admin"),
        ({"exclude": ["/a/../b"]}, "'/a/../b' is no path: the path has a '..' segment", "/admin"),
        ({"exclude": ["/%zz"]}, "'/%zz' is no path", "/admin"),
        ({"exclude": ["/%ff"]}, "'/%ff' is no path", "/admin"),
        ({"timeouts": {"slow": 1}}, "'slow' is no path", "/slow"),
        ({"timeouts": {"/a": 0}}, "0 s cannot be the time for /a", "seconds, such as 60"),
        ({"timeouts": {"/a": -1}}, "-1 s cannot be the time for /a", "seconds, such as 60"),
        ({"timeouts": {"/a": float("inf")}}, "inf s cannot be the time for /a", "seconds, such as 60"),
        ({"timeouts": {"/a": float("nan")}}, "nan s cannot be the time for /a", "seconds, such as 60"),
    ],
)
def test_what_cannot_be_is_said_at_once(said, what, fix):
    """Every mistake is found when the rules are made; it names the value and says how it is written."""
    with pytest.raises(SettingsError) as raised:
        Rules(**said)
    assert what in raised.value.what
    assert fix in raised.value.fix


@pytest.mark.parametrize("name", ["\u4e2d", "a;b", "a=b", "", "a b"])
def test_names_that_no_cookie_has(name):
    """A name that can never match is a mistake like any other."""
    try:
        Rules(cookies=[name])
    except SettingsError:
        return
    raise AssertionError("it was taken")


def test_rules_are_values():
    """They are frozen, and equal if they say the same."""
    assert Rules(headers=["a"]) == Rules(headers=["a"])
    assert Rules(headers=["a"]) != Rules(headers=["b"])
    with pytest.raises(AttributeError):
        Rules().headers = []


# ── end to end ──


class House(NamedTuple):
    """A service behind one gateway with two fronts, one for each door."""

    service: Service
    urls: dict[bool, str]


def shop(root):
    """Return a service that echoes what it gets, waits, and notes what should never come."""
    svc = Service("shop", root=root)
    svc.reached = []

    @svc.route("/echo/<path:rest>", methods=METHODS)
    async def echo(rest: str, request: Request) -> Response:
        return Response(headers={"content-type": "application/json"}, body=request.model_dump_json())

    @svc.route("/<path:rest>", methods=METHODS)
    async def reach(rest: str, request: Request) -> str:
        svc.reached.append(request.raw_path)
        if rest.startswith("slow"):
            await asyncio.get_running_loop().create_future()
        return rest

    async def old(request) -> PlainTextResponse:
        svc.reached.append(f"old app: {request.url.path}")
        return PlainTextResponse("old")

    svc.mount("/old", Starlette(routes=[Route("/{rest:path}", old, methods=METHODS)]))
    return svc


async def build(stack, nats_url, root, rules, *, timeout=10.0):
    """Start a house, which ends with the stack."""
    nats = Nats(urls=(nats_url,))
    bus = await connect(nats)
    stack.push_async_callback(bus.close)
    service = await stack.enter_async_context(shop(root))
    worker = Worker(bus, service)
    await worker.start()
    stack.push_async_callback(worker.stop, 0)
    gateway = await stack.enter_async_context(Gateway(root, nats=nats, rules=rules, timeout=timeout))
    fronts = {fast: Front(gateway, port=0, grace=0.1, fast=fast) for fast in (True, False)}
    for front in fronts.values():
        await front.start()
        stack.push_async_callback(front.stop, now=True)
    return House(service, {fast: front.url for fast, front in fronts.items()})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(nats_url):
    """Give a house with an allow-list of headers and cookies, headers of its own, and paths that it does not reach."""
    rules = Rules(
        headers=["X-Ok"],
        cookies=["sid"],
        set={"X-Tenant": "acme=1"},
        exclude=["/secret", "/a.b/c", "/old/admin"],
        timeouts={"/slow": 0.3, "/slow/longer": 0.9, "/echo/quick": 4},
    )
    async with AsyncExitStack() as stack:
        yield await build(stack, nats_url, "rules", rules)


@pytest_asyncio.fixture(loop_scope="module")
async def house(strict):
    """Give the house, with nothing reached yet."""
    strict.service.reached.clear()
    return strict


def said(response):
    """Return the headers that the service has seen."""
    return [tuple(pair) for pair in response.json()["headers"]]


@end_to_end
@DOORS
async def test_only_the_list_arrives(house, fast):
    """The service sees what is on the lists and what the gateway sets, on each request of a connection alike."""
    sent = [("X-Ok", "1"), ("x-other", "2"), ("Authorization", "Bearer t"), ("X-Tenant", "evil"), ("x-tenant", "more")]
    sent += [("Cookie", "theme=dark; sid=7; sid2=8"), ("X-Ok", "3"), ("Content-Language", "de")]
    async with httpx2.AsyncClient(base_url=house.urls[fast]) as client:
        for _ in range(3):  # the third time the fast door knows the whole request
            headers = said(await client.get("/echo/x", headers=sent))
            assert sorted(headers) == sorted(
                [
                    ("host", house.urls[fast].removeprefix("http://")),
                    ("x-ok", "1"),
                    ("x-ok", "3"),
                    ("cookie", "sid=7"),
                    ("content-language", "de"),
                    ("x-tenant", "acme=1"),
                ]
            )
        assert ("x-tenant", "acme=1") in said(await client.get("/echo/x", headers={"x-tenant": ""}))
        assert "cookie" not in dict(said(await client.get("/echo/x", headers={"cookie": "theme=dark"})))


@end_to_end
@DOORS
@pytest.mark.parametrize("size", [0, 10, 100_000])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_bodies_cross_an_allow_list(house, fast, size, is_chunked):
    """Length and coding of a body are not a matter of lists."""
    data = bytes(range(250)) * (size // 250) if size > 10 else b"x" * size

    async def pieces():
        yield data[:5]
        yield data[5:]

    async with httpx2.AsyncClient(base_url=house.urls[fast]) as client:
        headers = {"content-type": "image/png"}
        response = await client.post("/echo/x", content=pieces() if is_chunked else data, headers=headers)
    assert response.json()["headers"][-1] == ["x-tenant", "acme=1"]
    assert base64.urlsafe_b64decode(response.json()["body"]) == data
    assert dict(said(response))["content-type"] == "image/png"


SPELLINGS = ["/secret", "/secret/", "/secret//", "/secret/x", "/%73ecret", "/%73%65%63%72%65%74/x", "/secre%74?a=/b"]
SPELLINGS += ["/a.b/c", "/a%2eb/c/d", "/a%2Eb/%63", "/old/admin", "/old/%61dmin/x"]


@end_to_end
@DOORS
@pytest.mark.parametrize("path", SPELLINGS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_excluded_paths_are_not_reached(house, fast, path, method):
    """In no spelling and with no method; the answer is that of a path that nobody has."""
    async with httpx2.AsyncClient() as client:
        url = httpx2.URL(house.urls[fast]).copy_with(raw_path=path.encode())
        response = await client.request(method, url)
    assert (response.status_code, response.json()["reason"]) == (404, "no_service")
    assert house.service.reached == []


@end_to_end
@DOORS
@pytest.mark.parametrize("path", ["/secrets", "/Secret", "/x/secret", "/a/b/c", "/a.b", "/a.bc", "/old/administrator"])
async def test_their_neighbours_are_reached(house, fast, path):
    """What only looks like an excluded path is served."""
    async with httpx2.AsyncClient() as client:
        assert (await client.get(house.urls[fast] + path)).status_code == 200


@end_to_end
@DOORS
async def test_an_escaped_slash_does_not_lead_past_an_exclusion(house, fast):
    """A mounted application sees the decoded path, in which `/old/admin%2Fx` begins like `/old/admin/x`."""
    async with httpx2.AsyncClient() as client:
        url = httpx2.URL(house.urls[fast]).copy_with(raw_path=b"/old/admin%2Fx")
        response = await client.get(url)
    assert (response.status_code, house.service.reached) == (404, [])


@end_to_end
@DOORS
@pytest.mark.parametrize(("path", "seconds"), [("/slow", 0.3), ("/slow/x", 0.3), ("/%73low/longer/x", 0.9)])
async def test_times_by_path(house, fast, path, seconds):
    """The answer that never comes is a 504 when the time of its path is up, and not later or before."""
    async with httpx2.AsyncClient(timeout=30) as client:
        began = time.monotonic()
        response = await client.get(house.urls[fast] + path)
        spent = time.monotonic() - began
    assert (response.status_code, response.json()["reason"]) == (504, "timeout")
    assert f"{seconds:g} s" in response.json()["detail"]
    assert seconds - 0.05 < spent < 5


@end_to_end
@DOORS
async def test_the_service_is_told_its_time(house, fast):
    """The time of the path is what the handler has left, too."""
    async with httpx2.AsyncClient(base_url=house.urls[fast]) as client:
        assert 3 < (await client.get("/echo/quick/x")).json()["timeout"] <= 4
        assert 9 < (await client.get("/echo/quickly")).json()["timeout"] <= 10


@end_to_end
async def test_a_path_may_have_more_time_than_others(nats_url, until):
    """A short time for all and a long one for some: the long one is still waiting when the short one is up."""
    async with AsyncExitStack() as stack:
        rules = Rules(timeouts={"/slow/report": 60})
        house = await build(stack, nats_url, "rules-more", rules, timeout=0.2)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=30))
        report = asyncio.ensure_future(client.get(house.urls[True] + "/slow/report"))
        await until(lambda: house.service.reached)
        assert (await client.get(house.urls[True] + "/slow/x")).status_code == 504
        assert not report.done()
        report.cancel()
        await asyncio.gather(report, return_exceptions=True)


@end_to_end
@DOORS
async def test_cookies_alone(nats_url, fast):
    """With a list of cookies only, all other headers cross."""
    async with AsyncExitStack() as stack:
        house = await build(stack, nats_url, "rules-cookies", Rules(cookies=["sid"]))
        client = await stack.enter_async_context(httpx2.AsyncClient())
        headers = dict(
            said(await client.get(house.urls[fast] + "/echo/x", headers={"cookie": "a=1; sid=2", "x-a": "b"}))
        )
    assert (headers["cookie"], headers["x-a"]) == ("sid=2", "b")
