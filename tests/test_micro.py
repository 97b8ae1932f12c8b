"""Documents of NATS micro services: what ADR-32 says of them, and what hostile peers say instead."""

import json
import re
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb import Nats, Service
from natsweb.bus import MemoryBus
from natsweb.discovery import Presence, collect
from natsweb.embedded import embedded_server
from natsweb.member import Member
from natsweb.micro import (
    ANNOUNCE,
    DOCUMENT,
    METHOD,
    PATH,
    ROOT,
    ROUTES,
    STREAMS,
    WIRE,
    Announcement,
    Endpoint,
    EndpointStats,
    Info,
    Ping,
    Stats,
    parse_announcement,
    parse_info,
    parse_ping,
    parse_stats,
    routes_hash,
    verb_subjects,
)
from natsweb.natsbus import connect

law = settings(deadline=None, max_examples=200)

SECRET = "s3cr3t"

#: What every document has, and what each adds: names and JSON types of ADR-32.
COMMON = {"type": str, "name": str, "id": str, "version": str, "metadata": dict}
ENDPOINT = {"name": str, "subject": str, "queue_group": str, "metadata": dict}
COUNTS = {
    "num_requests": int,
    "num_errors": int,
    "last_error": str,
    "processing_time": int,
    "average_processing_time": int,
}

PARSERS = {"ping": parse_ping, "info": parse_info, "stats": parse_stats, "announcement": parse_announcement}

#: The least that is a document of each kind.
LEAST = {
    "ping": {"name": "orders", "id": "a1", "version": "1.0.0"},
    "info": {"name": "orders", "id": "a1", "version": "1.0.0"},
    "stats": {"name": "orders", "id": "a1", "version": "1.0.0"},
    "announcement": {"state": "up", "info": {"name": "orders", "id": "a1", "version": "1.0.0"}},
}


def shop():
    """Return a service with a few routes."""
    svc = Service("shop", version="1.2.3-rc.1+build", description="sells things")

    @svc.get("/orders/<id>")
    async def show(id: int) -> str:
        return str(id)

    @svc.route("/orders", methods=["POST", "PUT"])
    async def make() -> str:
        return "made"

    @svc.get("/files/<path:rest>")
    async def file(rest: str) -> str:
        return rest

    return svc


def presence_of(service, root=None):
    """Return what a service says of itself, on a bus that nobody else is on."""
    return Presence(MemoryBus(), service, root=root)


def with_value(kind, path, value):
    """Return the least document of a kind with one value put somewhere in it."""
    document = json.loads(json.dumps(LEAST[kind]))
    inner = document
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return json.dumps(document).encode()


# ── ours, against ADR-32 ──


async def test_info_is_what_adr_32_says():
    """INFO has the fields of ADR-32 with their types, and metadata that tell a gateway method and path."""
    said = json.loads(presence_of(shop()).info.model_dump_json())
    assert {key: type(value) for key, value in said.items()} == {**COMMON, "description": str, "endpoints": list}
    assert said["type"] == "io.nats.micro.v1.info_response"
    assert (said["name"], said["version"], said["description"]) == ("shop", "1.2.3-rc.1+build", "sells things")
    hashes = {key: said["metadata"][key] for key in (ROUTES, DOCUMENT)}
    assert said["metadata"] == {WIRE: "1", ROOT: "api", **hashes}
    for endpoint in said["endpoints"]:
        assert {key: type(value) for key, value in endpoint.items()} == ENDPOINT
        assert re.fullmatch(r"[A-Za-z0-9_-]+", endpoint["name"])
        assert all(isinstance(value, str) for value in endpoint["metadata"].values())
    assert [(one["subject"], one["queue_group"], one["metadata"]) for one in said["endpoints"]] == [
        ("api.orders.*", "shop", {METHOD: "GET", PATH: "/orders/<id>", STREAMS: "yes"}),
        ("api.orders", "shop", {METHOD: "POST,PUT", PATH: "/orders", STREAMS: "yes"}),
        ("api.files.>", "shop", {METHOD: "GET", PATH: "/files/<path:rest>", STREAMS: "yes"}),
    ]


async def test_ping_and_stats_are_what_adr_32_says():
    """PING has the common fields only; STATS has counts per endpoint, times in nanoseconds and `started` in UTC."""
    presence = presence_of(shop())
    ping = json.loads(presence.info.ping().model_dump_json())
    assert {key: type(value) for key, value in ping.items()} == COMMON
    assert ping["type"] == "io.nats.micro.v1.ping_response"
    stats = json.loads(presence._stats())
    assert {key: type(value) for key, value in stats.items()} == {**COMMON, "started": str, "endpoints": list}
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", stats["started"])
    for endpoint, info in zip(stats["endpoints"], presence.info.endpoints, strict=True):
        kinds = {key: type(value) for key, value in endpoint.items() if key != "metadata"}
        assert kinds | {"metadata": dict} == ENDPOINT | COUNTS | {"data": dict}
        assert (endpoint["name"], endpoint["subject"]) == (info.name, info.subject)
        assert {key: endpoint[key] for key in COUNTS} == dict.fromkeys(COUNTS, 0) | {"last_error": ""}
    assert {stats["id"], ping["id"]} == {presence.id}


async def test_instances_have_ids_of_their_own():
    """Two instances of a service differ in their id and in nothing else."""
    one, other = [presence_of(shop()).info for _ in range(2)]
    assert one.id != other.id
    assert one.model_copy(update={"id": other.id}) == other


async def test_root_goes_into_subjects_and_metadata():
    """Another root than the service's own stands in its subjects and its metadata."""
    info = presence_of(shop(), root="api.staging").info
    assert (info.metadata or {})[ROOT] == "api.staging"
    assert info.endpoints[1].subject == "api.staging.orders"
    assert info.routes != presence_of(shop()).info.routes


@pytest.mark.parametrize("name", ["info", "ping", "stats", "announcement"])
async def test_documents_survive_the_way(name):
    """What one natsweb says another one understands, value for value."""
    presence = presence_of(shop())
    document = {
        "info": presence.info,
        "ping": presence.info.ping(),
        "stats": parse_stats(presence._stats()),
        "announcement": Announcement(state="starting", info=presence.info),
    }[name]
    assert PARSERS[name](document.model_dump_json().encode()) == document


def test_nine_subjects():
    """Each verb is asked on three subjects."""
    assert verb_subjects("PING", "orders", "a1") == ["$SRV.PING", "$SRV.PING.orders", "$SRV.PING.orders.a1"]
    assert ANNOUNCE.split(".")[0] == "$SRV"
    assert ANNOUNCE.split(".")[1] not in ("PING", "INFO", "STATS")


async def test_names_of_handlers_become_names_of_endpoints():
    """A route's name may be any text; an endpoint's has the characters that ADR-32 allows."""
    svc = Service("s")

    @svc.get("/x", name="zeige größe.jetzt!")
    async def x() -> str:
        return ""

    [endpoint] = presence_of(svc).info.endpoints
    assert re.fullmatch(r"[A-Za-z0-9_-]+", endpoint.name)


# ── other people's ──


@pytest.mark.parametrize("kind", PARSERS)
def test_the_least_document(kind):
    """Name, id and version are enough, everything else has a default."""
    said = PARSERS[kind](json.dumps(LEAST[kind]).encode())
    info = said.info if kind == "announcement" else said
    assert (info.name, info.id, info.version, info.metadata) == ("orders", "a1", "1.0.0", None)
    if kind in ("info", "announcement"):
        assert (info.endpoints, info.description, info.is_natsweb) == ([], "", False)


@pytest.mark.parametrize("kind", PARSERS)
def test_required_fields(kind):
    """A document without one of them is none."""
    for field in ("name", "id", "version"):
        document = json.loads(json.dumps(LEAST[kind]))
        del (document["info"] if kind == "announcement" else document)[field]
        assert PARSERS[kind](json.dumps(document).encode()) is None, field
    assert parse_announcement(b'{"info": {"name": "a", "id": "b", "version": "1"}}') is None
    assert parse_announcement(b'{"state": "up"}') is None


@pytest.mark.parametrize("kind", ["ping", "info", "stats"])
def test_null_metadata_and_unknown_fields(kind):
    """`metadata` may be null, as some clients write it, and fields that nobody knows are ignored."""
    said = PARSERS[kind](with_value(kind, ["metadata"], None))
    assert said is not None
    assert said.metadata is None
    more = json.loads(with_value(kind, ["api_url"], {"deep": [1, {"deeper": None}]}))
    assert PARSERS[kind](json.dumps(more).encode()) == PARSERS[kind](json.dumps(LEAST[kind]).encode())


@pytest.mark.parametrize("value", [None, []])
def test_null_for_what_is_empty(value):
    """Where a list or text is empty, some clients write null."""
    info = parse_info(with_value("info", ["endpoints"], value))
    assert info is not None
    assert info.endpoints == []
    one = {"name": "e", "subject": "a", "queue_group": None, "last_error": None, "metadata": None}
    stats = parse_stats(with_value("stats", ["endpoints"], [one]))
    assert stats is not None
    assert stats.endpoints[0].last_error == ""


def test_endpoint_of_another_client():
    """An endpoint without queue group or metadata is one of the default group that knows of no HTTP."""
    info = parse_info(with_value("info", ["endpoints"], [{"name": "e", "subject": "a.b", "metadata": None}]))
    assert info is not None
    [endpoint] = info.endpoints
    assert (endpoint.queue_group, endpoint.methods, endpoint.path, endpoint.streams) == ("q", (), None, False)
    assert info.is_natsweb is False
    assert info.routes == routes_hash(info.endpoints)


@pytest.mark.parametrize(
    ("said", "methods"),
    [("GET", ("GET",)), ("GET,POST", ("GET", "POST")), ("", ()), (",", ()), ("GET,,PUT,", ("GET", "PUT"))],
)
def test_methods(said, methods):
    """The methods of an endpoint are a list with commas; empty ones are none."""
    assert Endpoint(name="e", subject="a", metadata={METHOD: said}).methods == methods


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b" ", b"null", b"[]", b"{}", b'"orders"', b"1e999", b"{", b"\xff\xfe", b'{"name": "\xff"}'),
        *(b"\x00", b"[" * 100_000, b'{"a":' * 100_000, b"NaN", "{“name”: 1}".encode(), b'{"name":"a"}' * 2),
    ],
    ids=lambda payload: f"{payload[:12]!r}",
)
def test_what_is_no_document(kind, payload):
    """Anything else is None, and raises nothing: no JSON, no object, not UTF-8, nested without end."""
    assert PARSERS[kind](payload) is None


BAD_VALUES = [
    *((["name"], value) for value in ["", "a.b", "a b", "a*", ">", "ü", "a\n", "\nA", "a" * 257, None, 7, ["a"], {}]),
    *((["id"], value) for value in ["", "a.b", "a b", "*", "a\r\nPUB x 0", "i" * 129, None, 7, []]),
    *((["version"], value) for value in [None, 7, [], "1" * 257]),
    *((["metadata"], value) for value in ["text", 7, [], {"a": 1}, {"a": None}, {"a": {}}]),
    *((["endpoints"], value) for value in ["text", 7, [None], [7], [[]], [{}], [{"name": "e"}]]),
    *(
        (["endpoints"], [{"name": "e", "subject": value}])
        for value in ["", " ", "a b", "a\tb", "a\r\nb", "a\0b", "a\x7f", "a\u2028b", "a" * 4097, None, 7]
    ),
    *(
        (["endpoints"], [{"name": "e", "subject": "a", key: value}])
        for key, value in [("queue_group", 7), ("metadata", []), ("metadata", {METHOD: 1}), ("name", "n" * 257)]
    ),
]


@pytest.mark.parametrize(("path", "value"), BAD_VALUES, ids=lambda part: f"{part!r}"[:40])
def test_hostile_values(path, value):
    """A value of the wrong type or size, or a name that would be another subject, spoils INFO and announcement."""
    assert parse_info(with_value("info", path, value)) is None
    assert parse_announcement(with_value("announcement", ["info", *path], value)) is None


@pytest.mark.parametrize("state", ["", "UP", "gone", None, 7, ["up"], "up "])
def test_hostile_states(state):
    """Only three states are some."""
    assert parse_announcement(with_value("announcement", ["state"], state)) is None


def test_half_a_surrogate_pair_is_no_text():
    """JSON can write text that UTF-8 cannot: it is refused, or can be said again."""
    said = parse_info(b'{"name": "a", "id": "b", "version": "1", "description": "\\ud800"}')
    assert said is None or said.model_dump_json()


def test_a_large_document_is_quick():
    """A megabyte of endpoints is taken in, or not, in a moment."""
    endpoints = [{"name": "e", "subject": f"api.x{number}"} for number in range(20_000)]
    info = parse_info(with_value("info", ["endpoints"], endpoints))
    assert info is None or len(info.endpoints) == 20_000


keys = st.text() | st.sampled_from(["name", "id", "version", "metadata", "endpoints", "subject", "state", "info"])
json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda one: st.lists(one) | st.dictionaries(keys, one)
)


@law
@given(json_values)
def test_any_json_is_a_document_or_none(value):
    """No JSON raises anything but is a document or None."""
    payload = json.dumps(value).encode()
    for parse in PARSERS.values():
        said = parse(payload)
        assert said is None or isinstance(said, (Ping, Info, Stats, Announcement))


@law
@given(st.binary())
def test_any_bytes_are_a_document_or_none(payload):
    """No bytes raise anything."""
    for parse in PARSERS.values():
        parse(payload)


# ── the hash of the routes ──

endpoints = st.lists(
    st.builds(
        Endpoint,
        name=st.sampled_from("ab"),
        subject=st.sampled_from(["a", "a.b", "a.*", ">"]),
        queue_group=st.sampled_from(["q", "w"]),
        metadata=st.none()
        | st.dictionaries(st.sampled_from([METHOD, PATH, "x"]), st.sampled_from(["GET", "POST", ""])),
    ),
    max_size=5,
)


@law
@given(endpoints, st.randoms(use_true_random=False))
def test_hash_does_not_know_order(some, random):
    """The order of endpoints and of metadata does not matter, the handlers' names neither."""
    other = [
        one.model_copy(
            update={"name": "x", "metadata": one.metadata and dict(reversed(list(one.metadata.items())))}, deep=True
        )
        for one in some
    ]
    random.shuffle(other)
    assert routes_hash(some) == routes_hash(other)
    assert re.fullmatch("[0-9a-f]{16}", routes_hash(some))


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "a.c"},
        {"queue_group": "w"},
        {"metadata": {METHOD: "GET,POST", PATH: "/b"}},
        {"metadata": {METHOD: "GET", PATH: "/c"}},
        {"metadata": {METHOD: "GET"}},
    ],
)
def test_hash_knows_what_requests_notice(change):
    """Another subject, queue group, method or template is another hash."""
    one = Endpoint(name="e", subject="a.b", metadata={METHOD: "GET", PATH: "/b"})
    assert routes_hash([one]) != routes_hash([one.model_copy(update=change)])
    assert routes_hash([one]) != routes_hash([one, one])
    assert routes_hash([]) != routes_hash([one])


def test_hash_is_the_same_in_every_process():
    """It does not depend on the process: gateways compare those of many."""
    one = Endpoint(name="e", subject="a.b", metadata={METHOD: "GET", PATH: "/b"})
    assert routes_hash([one]) == "4ab5b0d21599bd6b"


async def test_instances_of_one_program_have_one_hash():
    """Two processes that serve the same routes say the same hash, whatever the order of declaration."""
    one, other = Service("s"), Service("s")

    async def x() -> str:
        return ""

    async def y() -> str:
        return ""

    for path, function in (("/x", x), ("/y", y)):
        one.get(path)(function)
    for path, function in (("/y", y), ("/x", x)):
        other.get(path)(function)
    assert presence_of(one).info.routes == presence_of(other).info.routes


# ── secrets ──


@asynccontextmanager
async def guarded(arguments, **login):
    """Give a bus that has logged in with a secret."""
    async with embedded_server(arguments=arguments) as url:
        urls = (url.replace("://", f"://{login.pop('in_url')}@"),) if "in_url" in login else (url,)
        bus = await connect(Nats(urls=urls, **login))
        try:
            yield bus
        finally:
            await bus.close()


@pytest.mark.parametrize(
    ("arguments", "login"),
    [
        (("--user", "u", "--pass", SECRET), {"user": "u", "password": SECRET}),
        (("--user", "u", "--pass", SECRET), {"in_url": f"u:{SECRET}"}),
        (("--auth", SECRET), {"token": SECRET}),
        (("--auth", SECRET), {"in_url": SECRET}),
    ],
)
async def test_no_document_has_a_secret(arguments, login, monkeypatch):
    """Neither login nor environment are in anything that a service answers or announces."""
    monkeypatch.setenv("NATS_PASSWORD", SECRET)
    monkeypatch.setenv("DATABASE_URL", f"postgres://u:{SECRET}@db")
    async with guarded(arguments, **dict(login)) as bus:
        heard = []
        await bus.subscribe("$SRV.NW.>", heard.append)
        member = Member(bus, shop())
        await member.start()
        for verb in ("PING", "INFO", "STATS"):
            [answer] = await collect(bus, f"$SRV.{verb}.shop", expect=1)
            heard.append(answer.message)
        await member.stop()
        await bus.flush()
        assert len(heard) == 6
        for message in heard:
            assert SECRET.encode() not in message.payload + (message.header or b"")


def test_stats_of_endpoints_are_endpoints():
    """What STATS says of an endpoint is all that INFO says, and counts."""
    assert set(Endpoint.model_fields) < set(EndpointStats.model_fields)
