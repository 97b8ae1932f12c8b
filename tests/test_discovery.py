"""Who is there: presences and directories on both buses, and what gateways make of it, request by request."""

import asyncio
import itertools
import json
import logging
import sys
import threading
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from textwrap import dedent

import httpx2
import pytest

from natsweb import HTTPError, Nats, Response, Service, discovery
from natsweb.bus import MemoryBus, request
from natsweb.catalogue import Owner
from natsweb.discovery import Directory, Presence, ask_all, collect, overlaps, survey
from natsweb.embedded import embedded_server
from natsweb.errors import NatsDown
from natsweb.exchange import Exchange
from natsweb.flights import Incoming
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.member import Member
from natsweb.micro import ANNOUNCE, METHOD, WIRE, Announcement, Endpoint, Info, parse_info, parse_stats, verb_subjects
from natsweb.natsbus import connect
from natsweb.wire import decode_request, decode_response, encode_request, is_no_responders
from natsweb.worker import Worker

numbers = itertools.count(1)


@pytest.fixture(params=["memory", "nats"])
async def bus(request, nats_url):
    """Give one bus of each kind, all for ourselves or on the common server."""
    if request.param == "memory":
        given = MemoryBus()
    else:
        given = await connect(Nats(urls=(nats_url,)))
    yield given
    await given.close()


@pytest.fixture
def root():
    """Give a root that no other test has used."""
    return f"d{next(numbers)}"


@pytest.fixture
async def stack():
    """Give a stack for what has to be stopped at the end of a test."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start(bus, root, stack):
    """Give a function that starts services as members, on a bus."""

    async def start(service, *, on=None, **options):
        member = Member(on or bus, service, root=root, **options)
        await member.start()
        stack.push_async_callback(stop_quietly, member, service)
        return member

    return start


async def stop_quietly(member, service):
    """Stop a member, whether or not its bus is still there."""
    with suppress(HTTPError):
        await member.stop(0.1)
    service.close()


class Gate:
    """Where a handler waits until the test lets it go on."""

    def __init__(self):
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def passing(self):
        """Say that somebody is here, and wait."""
        self.reached.set()
        await self.open.wait()


def speaker(name, *routes, version="1.0.0"):
    """Return a service that answers with its name on every route, and keeps the number of what it runs in `ran`."""
    svc = Service(name, version=version)
    svc.ran = []
    for number, route in enumerate(routes):
        methods, path = route.split(" ")
        svc.route(path, methods=methods.split(","), name=f"route{number}")(speaking(svc, number, "<" in path))
    return svc


def speaking(svc, number, captures):
    """Return a handler, with a capture or without."""

    async def alone() -> str:
        svc.ran.append(number)
        return svc.name

    async def of(rest: str) -> str:
        return await alone()

    return of if captures else alone


def said(name, *routes, id="x1", natsweb=True, version="1.0.0"):
    """Return the INFO of a service that may not exist."""
    endpoints = []
    for route in routes:
        methods, _, subject = route.rpartition(" ")
        endpoints.append(Endpoint(name="e", subject=subject, metadata={METHOD: methods} if methods else None))
    return Info(name=name, id=id, version=version, metadata={WIRE: "1"} if natsweb else None, endpoints=endpoints)


def announcement(state, info):
    """Return the bytes of an announcement."""
    return Announcement(state=state, info=info).model_dump_json().encode()


async def ask(bus, subject, payload=b"", **head):
    """Ask a service as the gateway would; return its response."""
    header = encode_request("GET", b"", **head)
    message = await request(bus, subject, payload, header=header, timeout=5)
    return decode_response(message.header, message.payload)


async def stats_of(bus, name):
    """Return the STATS of the one instance of a service: each endpoint by its subject's last token."""
    [answer] = await collect(bus, f"$SRV.STATS.{name}", expect=1)
    stats = parse_stats(answer.message.payload)
    return {one.subject.rpartition(".")[2]: one for one in stats.endpoints}


# ── presences ────────────────────────────────────────────────────────────────────────────────────


async def test_nine_subjects_are_answered_while_every_handler_is_stuck(bus, root, start):
    """PING, INFO and STATS of all, by name and by id, come while no request would be taken any more."""
    svc, gate, thread = Service("stuck"), Gate(), threading.Event()

    @svc.get("/async")
    async def waits() -> str:
        await gate.passing()
        return "done"

    @svc.get("/thread")
    def waits_in_a_thread() -> str:
        thread.wait(10)
        return "done"

    member = await start(svc, concurrency=2)
    asked = [asyncio.ensure_future(ask(bus, f"{root}.{path}")) for path in ("async", "thread")]
    await gate.reached.wait()
    await bus.flush()
    try:
        assert (await ask(bus, f"{root}.async")).status == 503  # busy
        for verb in ("PING", "INFO", "STATS"):
            for subject in verb_subjects(verb, "stuck", member.presence.id):
                found = [json.loads(one.message.payload) for one in await collect(bus, subject)]
                [mine] = [one for one in found if one["id"] == member.presence.id]
                assert (mine["name"], mine["type"]) == ("stuck", f"io.nats.micro.v1.{verb.lower()}_response")
        stats = await stats_of(bus, "stuck")
        assert [stats[path].data["in_flight"] for path in ("async", "thread")] == [1, 1]
    finally:
        gate.open.set()
        thread.set()
    assert [one.status for one in await asyncio.gather(*asked)] == [200, 200]


async def test_another_name_and_id_are_not_answered(bus, start):
    """A service answers for itself only, and for nobody when it has stopped."""
    member = await start(speaker("one", "GET /x"))
    assert await collect(bus, "$SRV.PING.other") == []
    assert await collect(bus, f"$SRV.PING.one.{'0' * 22}") == []
    await member.stop()
    assert await collect(bus, "$SRV.PING.one") == []
    assert repr(member.presence) == f"<Presence of one {member.presence.id}: stopped>"


async def test_answers_have_no_header(bus, start):
    """What comes is one message with the bare document, as from any micro service."""
    await start(speaker("bare", "GET /x"))
    for verb in ("PING", "INFO", "STATS"):
        [answer] = await collect(bus, f"$SRV.{verb}.bare", b"any payload", quiet=0.2)
        assert not answer.message.header
        assert answer.message.reply == ""
        assert answer.seconds < 1


@pytest.mark.parametrize("reply", ["orders.delete", "$SRV.PING.bare", "_INBOX", "_INBOXES.x", "_inbox.x"])
async def test_only_inboxes_are_answered(bus, start, reply):
    """A question that names another subject for its answer gets none, and neither does one that names none."""
    await start(speaker("careful", "GET /x"))
    heard = []
    await bus.subscribe(reply, heard.append)
    await bus.flush()
    for verb in ("PING", "INFO", "STATS"):
        bus.publish(f"$SRV.{verb}.careful", b"", reply=reply)
        bus.publish(f"$SRV.{verb}.careful", b"")
    await bus.flush()
    assert len(await collect(bus, "$SRV.PING.careful")) == 1
    assert [one for one in heard if not one.subject.startswith("$SRV")] == []
    assert [one for one in heard if one.payload] == []


async def test_inboxes_of_another_prefix(nats_url, root, start, stack):
    """A gateway with an inbox prefix of its own, that requests are answered to, hears who is there as well."""
    bus = await connect(Nats(urls=(nats_url,), inbox_prefix="gw1"))
    stack.push_async_callback(bus.close)
    await start(speaker("prefixed", "GET /x"), on=bus, reply_prefixes=("_INBOX.", "gw1."))
    assert (await ask(bus, f"{root}.x")).body == b"prefixed"
    assert len(await collect(bus, "$SRV.INFO.prefixed", timeout=0.3)) == 1


# ── counts ──


async def test_stats_count_what_was_asked(bus, root, start):
    """Requests, errors from 500 on, the last of them, and times; routes that nobody asked for stay at zero."""
    svc = Service("counted")

    @svc.get("/ok")
    async def ok() -> str:
        await asyncio.sleep(0.002)
        return "ok"

    @svc.get("/no/<status>")
    async def no(status: int) -> str:
        raise HTTPError(status, "a secret detail")

    @svc.get("/fails")
    def fails() -> str:
        raise RuntimeError("secret")

    @svc.get("/never")
    async def never() -> str:
        return ""

    await start(svc)
    for _ in range(3):
        await ask(bus, f"{root}.ok")
    for status in (404, 422, 503, 429):
        await ask(bus, f"{root}.no.{status}")
    await ask(bus, f"{root}.fails")
    bus.publish(f"{root}.ok", b"", header=encode_request("GET", b""))  # nobody wants the answer, and it counts
    await ask(bus, f"{root}.ok")
    stats = await stats_of(bus, "counted")
    assert (stats["ok"].num_requests, stats["ok"].num_errors, stats["ok"].last_error) == (5, 0, "")
    assert (stats["*"].num_requests, stats["*"].num_errors) == (4, 1)
    assert stats["*"].last_error == "503 Service Unavailable"
    assert (stats["fails"].num_requests, stats["fails"].num_errors) == (1, 1)
    assert stats["fails"].last_error == "500 Internal Server Error"
    assert (stats["never"].num_requests, stats["never"].processing_time, stats["never"].data) == (
        *(0, 0),
        {"p50": 0, "p99": 0, "in_flight": 0},
    )
    took = stats["ok"]
    assert 5 * 2_000_000 <= took.processing_time < 5_000_000_000
    assert took.average_processing_time == took.processing_time // 5
    assert 2_000_000 <= took.data["p50"] <= took.data["p99"] < 5_000_000_000
    assert took.data["in_flight"] == 0


async def test_what_has_no_route_counts_nowhere(bus, root, start):
    """A 404 or 405 of the router, a broken request and one for another service are no request of a route."""
    await start(speaker("routed", "GET /x", "GET /y/<rest>"))
    await ask(bus, f"{root}.y.a")
    assert decode_response(*(await request(bus, f"{root}.x", b"body"))[2:]).status == 405
    assert (await ask(bus, f"{root}.y.%25")).status == 200
    bus.publish(f"{root}.x", b"", header=b"garbage")
    bus.publish(f"{root}.x", b"", header=encode_request("GET", b"", service="another"))
    await ask(bus, f"{root}.y.b")
    stats = await stats_of(bus, "routed")
    assert (stats["x"].num_requests, stats["*"].num_requests) == (0, 3)
    assert (stats["x"].data["in_flight"], stats["*"].data["in_flight"]) == (0, 0)


async def test_a_deadline_is_an_error_of_the_route(bus, root, start):
    """A handler that is not done in time counts as 504, once, and is no longer in flight."""
    svc, gate = Service("late"), Gate()

    @svc.get("/late")
    async def late() -> str:
        with suppress(asyncio.CancelledError):
            await gate.passing()
        return "too late"

    await start(svc)
    assert (await ask(bus, f"{root}.late", timeout_ms=50)).status == 504
    late_stats = (await stats_of(bus, "late"))["late"]
    assert (late_stats.num_requests, late_stats.num_errors, late_stats.data["in_flight"]) == (1, 1, 0)
    assert late_stats.last_error == "504 Gateway Timeout"
    assert late_stats.data["p50"] >= 40_000_000


async def test_busy_is_counted_nowhere(bus, root, start):
    """What is refused at once was never started: it changes neither the counts nor what is in flight."""
    svc, gate = Service("busy"), Gate()

    @svc.get("/x")
    async def x() -> str:
        await gate.passing()
        return "done"

    await start(svc, concurrency=1)
    first = asyncio.ensure_future(ask(bus, f"{root}.x"))
    await gate.reached.wait()
    assert [(await ask(bus, f"{root}.x")).status for _ in range(3)] == [503] * 3
    one = (await stats_of(bus, "busy"))["x"]
    assert (one.num_requests, one.num_errors, one.data["in_flight"]) == (0, 0, 1)
    gate.open.set()
    assert (await first).status == 200
    one = (await stats_of(bus, "busy"))["x"]
    assert (one.num_requests, one.num_errors, one.data["in_flight"]) == (1, 0, 0)


async def test_what_is_cut_off_at_the_stop_is_counted(bus, root, start):
    """A handler that outlives the grace is an error, and not in flight for good."""
    svc, gate = Service("cut"), Gate()

    @svc.get("/x")
    async def x() -> str:
        await gate.passing()
        return "done"

    member = await start(svc)
    first = asyncio.ensure_future(ask(bus, f"{root}.x"))
    await gate.reached.wait()
    assert not await member.stop(0.01)
    assert (await first).status == 503
    [(_, counter)] = svc.endpoints()
    assert (counter.requests, counter.errors, counter.in_flight) == (1, 1, 0)


async def test_a_handler_that_cancels_itself_is_counted(bus, root, start):
    """It is a 500, and not in flight."""
    svc = Service("suicidal")

    @svc.get("/x")
    async def x() -> str:
        raise asyncio.CancelledError

    await start(svc)
    assert (await ask(bus, f"{root}.x")).status == 500
    one = (await stats_of(bus, "suicidal"))["x"]
    assert (one.num_requests, one.num_errors, one.data["in_flight"]) == (1, 1, 0)


async def test_middleware_that_asks_twice_counts_once(bus, root, start):
    """One request is one count, however often middleware calls what is behind it, and whatever it makes of it."""
    svc = Service("twice")

    async def again(request, call_next):
        await call_next(request)
        response = await call_next(request)
        return Response(status=503, body=response.body)

    svc.middleware(again)

    @svc.get("/x")
    async def x() -> str:
        return "x"

    await start(svc)
    assert (await ask(bus, f"{root}.x")).status == 503
    one = (await stats_of(bus, "twice"))["x"]
    assert (one.num_requests, one.num_errors, one.data["in_flight"]) == (1, 1, 0)


async def test_middleware_that_goes_on_after_the_deadline(bus, root, start, until):
    """A request that reaches its handler after its answer is not in flight for good."""
    svc, reached = Service("stubborn"), asyncio.Event()

    async def stubborn(request, call_next):
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return await call_next(request)

    svc.middleware(stubborn)

    @svc.get("/x")
    async def x() -> str:
        reached.set()
        return "x"

    await start(svc)
    assert (await ask(bus, f"{root}.x", timeout_ms=20)).status == 504
    await reached.wait()
    await bus.flush()
    assert (await stats_of(bus, "stubborn"))["x"].data["in_flight"] == 0


# ── asking all ──


async def test_collect(bus):
    """All answers come, with the time that each took; nobody there is an empty list at once."""
    assert await collect(bus, "d0.nobody", timeout=30) == []
    for number in range(5):
        await bus.subscribe("d0.many", lambda one, n=number: bus.publish(one.reply, b"%d" % n))
    answers = await collect(bus, "d0.many", timeout=30)
    assert sorted(one.message.payload for one in answers) == [b"0", b"1", b"2", b"3", b"4"]
    assert all(0 <= one.seconds < 10 for one in answers)
    assert len(await collect(bus, "d0.many", expect=2, quiet=30, timeout=30)) == 2


async def test_collect_waits_no_longer_than_it_may(bus):
    """Who listens and says nothing, or never stops talking, is waited for until the time is up."""
    loop = asyncio.get_running_loop()
    await bus.subscribe("d0.silent", lambda _: None)
    before = loop.time()
    assert await collect(bus, "d0.silent", timeout=0.2) == []
    assert 0.19 <= loop.time() - before < 5

    def talk(reply):
        with suppress(NatsDown):
            bus.publish(reply, b"more")
            loop.call_later(0.02, talk, reply)

    await bus.subscribe("d0.talking", lambda one: talk(one.reply))
    before = loop.time()
    assert len(await collect(bus, "d0.talking", timeout=0.3)) > 3
    assert loop.time() - before < 5


async def test_survey_by_name(bus, start):
    """All are asked, or those of one name."""
    await start(speaker("one", "GET /x"))
    await start(speaker("two", "GET /y"))
    assert {"one", "two"} <= {parse_info(one).name for one in await survey(bus)}
    assert [parse_info(one).name for one in await survey(bus, "INFO", "two")] == ["two"]
    assert len(await ask_all(bus, "PING", "one")) == 1


# ── directories ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def look(bus, root, stack):
    """Give a function that starts a directory, whose changes and whose dead are written down."""

    async def look(*, on=None):
        changes, dead = [], []
        directory = Directory(on or bus, root, on_change=lambda: changes.append(1), on_gone=dead.append)
        directory.changes, directory.dead = changes, dead
        await directory.start()
        stack.push_async_callback(directory.stop)
        return directory

    return look


def owner(directory, path):
    """Return the name of the service that is there and gets a GET, if any."""
    one = directory.owner("GET", path.split("."))
    return None if one is None or one.is_away else one.name


def states(directory, *names):
    """Return name and state of all instances with one of these names."""
    return [(one.info.name, one.state) for one in directory.catalogue.instances if one.info.name in names]


async def test_the_catalogue_is_complete_when_start_returns(bus, root, stack, look):
    """Whoever was there before is known at once, however many they are."""
    names = [f"many{number}" for number in range(60)]
    for name in names:
        presence = Presence(bus, speaker(name, f"GET /{name}"), root=root)
        await presence.start()
        await presence.announce("up")
        stack.callback(presence.stop)
    directory = await look()
    assert directory.is_ready
    assert sorted(states(directory, *names)) == sorted((name, "up") for name in names)
    assert owner(directory, "many59") == "many59"
    assert repr(directory).endswith("instances>: ready>")


async def test_an_empty_cluster_is_complete_at_once(root):
    """Where nobody answers, nothing is waited for."""
    directory = Directory(MemoryBus(), root)
    async with asyncio.timeout(0.5):
        await directory.start()
    assert directory.is_ready
    assert directory.catalogue.instances == []
    await directory.stop()


async def test_announcements(bus, root, look, start, until):
    """A service is known from its first word to its last, and the gateway says that it has noted each."""
    directory = await look()
    heard = []
    await bus.subscribe(ANNOUNCE, lambda one: heard.append(json.loads(one.payload)["state"]))
    member = await start(speaker("announced", "GET /x"))
    await until(lambda: states(directory, "announced") == [("announced", "up")])
    assert heard == ["starting", "up"]
    assert len(directory.changes) == 2
    await member.stop()
    await until(lambda: states(directory, "announced") == [])
    assert heard == ["starting", "up", "down"]
    assert owner(directory, "x") is None
    assert directory.was_there(["x"])


async def test_who_has_noted_an_announcement(bus, root, look):
    """`announce` returns how many gateways have answered; without any it does not wait."""
    presence = Presence(bus, speaker("noted", "GET /x"), root=root)
    await look()
    await look()
    assert await presence.announce("starting") == 2
    assert await presence.announce("up") == 2
    alone = Presence(MemoryBus(), speaker("alone", "GET /x"), root=root)
    async with asyncio.timeout(0.4):
        assert await alone.announce("starting") == 0
        assert await alone.announce("up") == 0


async def test_gateways_that_have_come_since_are_waited_for(bus, root, look):
    """A gateway that started after the service has to note its "down", too: it would ask who has unsubscribed."""
    presence = Presence(bus, speaker("older", "GET /x"), root=root)
    await look()
    assert await presence.announce("up") == 1
    await look()
    assert await presence.announce("down") == 2


async def test_an_announcement_is_noted_to_inboxes_only(bus, look):
    """An announcement that names another subject for the answer is taken in, and answered nowhere."""
    directory = await look()
    heard = []
    await bus.subscribe("orders.delete", heard.append)
    bus.publish(ANNOUNCE, announcement("up", said("sly", "GET other.x")), reply="orders.delete")
    await bus.flush()
    await bus.flush()
    assert states(directory, "sly") == [("sly", "up")]
    assert heard == []


async def test_a_gateway_that_asks_does_not_take_a_starting_service_for_one_that_is_up(bus, root, look, until):
    """INFO has no state: who has announced that it starts is starting until it says otherwise."""
    presence = Presence(bus, speaker("slow", "GET /x"), root=root)
    await presence.start()
    directory = await look()
    await presence.announce("starting")
    await directory._ask()
    assert states(directory, "slow") == [("slow", "starting")]
    await presence.announce("up")
    assert states(directory, "slow") == [("slow", "up")]
    presence.stop()


async def test_a_gateway_that_starts_while_a_service_starts(bus, root, look):
    """A gateway that comes after `starting` and before the subscriptions does not send requests there yet."""
    svc, gate = speaker("both", "GET /x"), Gate()
    member = Member(bus, svc, root=root)
    subscribe, member.worker.start = member.worker.start, gate.passing
    starting = asyncio.ensure_future(member.start())
    await gate.reached.wait()
    directory = await look()
    found = directory.owner("GET", ["x"])
    gate.open.set()
    await starting
    await subscribe()
    await member.stop()
    assert found is None or found.is_starting


async def test_a_service_that_stops_is_not_put_back(bus, root, look, start):
    """A service that has said "down" finishes what it has, and answers INFO meanwhile; it gets nothing new."""
    svc, gate = Service("leaving"), Gate()

    @svc.get("/x")
    async def x() -> str:
        await gate.passing()
        return "done"

    directory = await look()
    member = await start(svc)
    last = asyncio.ensure_future(ask(bus, f"{root}.x"))
    await gate.reached.wait()
    leaving = asyncio.ensure_future(member.stop(5))
    while states(directory, "leaving"):
        await bus.flush()
    await directory._ask()
    put_back = states(directory, "leaving")
    gate.open.set()
    assert (await last).body == b"done"
    await leaving
    assert put_back == []


async def test_two_polls_without_an_answer(bus, look, start, until):
    """An instance that has left without a word is dropped when it has missed two polls, not one."""
    directory = await look()
    member = await start(speaker("silent", "GET /x"))
    await start(speaker("living", "GET /y"))
    await until(lambda: len(states(directory, "silent", "living")) == 2)
    member.presence.stop()
    member.worker._subscriptions[0].stop()
    await bus.flush()
    now = asyncio.get_running_loop().time
    for expected in (2, 1):
        asked = now()
        await directory._ask()
        directory._expire(asked)
        assert len(states(directory, "silent", "living")) == expected
    assert states(directory, "living") == [("living", "up")]
    assert directory.was_there(["x"])


async def test_an_answer_in_between_forgives_a_miss(bus, look, until):
    """Two misses count only in a row."""
    directory = await look()
    bus.publish(ANNOUNCE, announcement("up", said("flaky", "GET other.x")))
    await until(lambda: states(directory, "flaky"))
    now = asyncio.get_running_loop().time
    for _ in range(3):
        directory._expire(now())
        bus.publish(ANNOUNCE, announcement("up", said("flaky", "GET other.x")))
        await bus.flush()
        await bus.flush()
    assert states(directory, "flaky") == [("flaky", "up")]
    assert len(directory.changes) == 1
    directory._expire(now())
    directory._expire(now())
    assert states(directory, "flaky") == []


async def test_the_poller_drops_who_is_gone(bus, look, until, monkeypatch):
    """It asks every now and then, by itself."""
    monkeypatch.setattr(discovery, "_POLL", 0.01)
    directory = await look()
    bus.publish(ANNOUNCE, announcement("up", said("ghost", "GET other.x")))
    await until(lambda: states(directory, "ghost"))
    await until(lambda: not states(directory, "ghost"))
    assert len(directory.changes) == 2


async def test_the_poller_forgets_routes_of_long_ago(bus, root, look, until, monkeypatch):
    """After an hour a path that nobody serves counts as never claimed."""
    monkeypatch.setattr(discovery, "_POLL", 0.01)
    monkeypatch.setattr(discovery, "_REMEMBERED", 0.01)
    directory = await look()
    for state in ("up", "down"):
        bus.publish(ANNOUNCE, announcement(state, said("old", f"GET {root}.x")))
    await until(lambda: len(directory.changes) == 2)
    await until(lambda: not directory.was_there(["x"]))


async def test_a_reconnect_asks_again(root, until):
    """When NATS is back, the catalogue is asked for at once: announcements may have been missed."""
    bus = MemoryBus()
    directory = Directory(bus, root)
    await directory.start()
    presence = Presence(bus, speaker("missed", "GET /x"), root=root)
    await presence.start()
    await bus.flush()  # the poller has begun
    bus.reconnected_at = asyncio.get_running_loop().time()
    await until(lambda: states(directory, "missed"))
    await directory.stop()


async def test_a_server_that_restarts(root, until, stack):
    """After a restart of the server a gateway finds whoever is there, without announcements."""
    async with embedded_server() as url:
        port = int(url.rpartition(":")[2])
        bus = await connect(Nats(urls=(url,)))
        stack.push_async_callback(bus.close)
        directory = Directory(bus, root)
        await directory.start()
        stack.push_async_callback(directory.stop)
    await until(lambda: not bus.is_connected)
    async with embedded_server(port=port) as url:
        other = await connect(Nats(urls=(url,)))
        presence = Presence(other, speaker("after", "GET /x"), root=root)
        await presence.start()
        await until(lambda: states(directory, "after"))
        await other.close()


async def test_polling_goes_on_without_a_connection(root, until, monkeypatch):
    """While NATS is away nobody is dropped, and nothing is raised."""
    monkeypatch.setattr(discovery, "_POLL", 0.01)
    async with embedded_server() as url:
        bus = await connect(Nats(urls=(url,)))
        directory = Directory(bus, root)
        await directory.start()
        other = await connect(Nats(urls=(url,)))
        member = Member(other, speaker("kept", "GET /x"), root=root)
        await member.start()
        await until(lambda: states(directory, "kept"))
    await until(lambda: not bus.is_connected)
    await asyncio.sleep(1)  # several polls that must not count
    assert states(directory, "kept") == [("kept", "up")]
    assert directory._poller is not None
    assert not directory._poller.done()
    await directory.stop()
    await other.close()
    await bus.close()


async def test_suspect(bus, root, look, start, until):
    """A service that nobody answers for is dropped and said to be gone; one that answers stays."""
    directory = await look()
    await start(speaker("alive", "GET /y"))
    bus.publish(ANNOUNCE, announcement("up", said("dead", f"GET {root}.x", id="a")))
    bus.publish(ANNOUNCE, announcement("up", said("dead", f"GET {root}.x", id="b")))
    await until(lambda: len(states(directory, "dead", "alive")) == 3)
    directory.suspect("alive")
    directory.suspect("dead")
    await until(lambda: directory.dead)
    await bus.flush()
    assert directory.dead == ["dead"]
    assert states(directory, "dead", "alive") == [("alive", "up")]
    assert directory.was_there(["x"])


async def test_suspecting_asks_once_a_second(bus, look):
    """However many requests get no answer, one question goes out."""
    directory = await look()
    asked = []
    await bus.subscribe("$SRV.PING.suspected", asked.append)
    await bus.flush()
    for _ in range(100):
        directory.suspect("suspected")
    await bus.flush()
    await bus.flush()
    assert len(asked) == 1


async def test_who_is_slow_to_answer_a_ping_stays(bus, look, until, monkeypatch):
    """Only the server's word that nobody is there drops a service: a slow one may be at work."""
    monkeypatch.setattr(discovery, "_PING_TIME", 0.05)
    directory = await look()
    bus.publish(ANNOUNCE, announcement("up", said("slow", "GET other.x")))
    await bus.subscribe("$SRV.PING.slow", lambda _: None)
    await until(lambda: states(directory, "slow"))
    directory.suspect("slow")
    await asyncio.sleep(0.2)
    assert states(directory, "slow") == [("slow", "up")]
    assert directory.dead == []


async def test_stop_ends_all(bus, look):
    """A directory that has stopped hears nothing."""
    directory = await look()
    await directory.stop()
    await bus.flush()
    bus.publish(ANNOUNCE, announcement("up", said("late", "GET other.x")))
    await bus.flush()
    await bus.flush()
    assert states(directory, "late") == []
    await directory.stop()


# ── what peers say that is not so ──

JUNK = [
    *(b"", b"null", b"{}", b"\xff\xfe", b"[" * 50_000, b'{"state": "up"}', b'{"state": "up", "info": 7}'),
    announcement("up", said("ok")).replace(b'"up"', b'"gone"'),
    announcement("up", said("ok")).replace(b'"ok"', b'"a.b"'),
    announcement("up", said("ok")).replace(b'"ok"', b'"a\\r\\nPUB x 0"'),
    announcement("up", said("ok", "GET api.x")).replace(b"api.x", b"api x"),
    announcement("up", said("ok", id="i")).replace(b'"i"', b'"%b"' % (b"i" * 200)),
]


@pytest.mark.parametrize("payload", JUNK, ids=lambda payload: repr(payload[-30:]))
async def test_malformed_announcements(bus, look, payload, caplog):
    """They change nothing, and nothing is raised."""
    directory = await look()
    before = directory.catalogue.instances
    inbox = bus.new_inbox()
    noted = []
    await bus.subscribe(inbox, noted.append)
    bus.publish(ANNOUNCE, payload, reply=inbox)
    bus.publish(directory._inbox, payload)
    await bus.flush()
    await bus.flush()
    assert directory.catalogue.instances == before
    assert not [one for one in noted if not is_no_responders(one.header)]
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_an_announcement_in_anothers_name(bus, root, look, start, until):
    """Who announces another's id is believed until that one is asked again; then its routes are its own again."""
    directory = await look()
    member = await start(speaker("victim", "GET /x"))
    await until(lambda: states(directory, "victim"))
    bus.publish(ANNOUNCE, announcement("up", said("thief", f"GET {root}.y", id=member.presence.id)))
    await until(lambda: states(directory, "thief"))
    await directory._ask()
    assert states(directory, "victim", "thief") == [("victim", "up")]
    assert (owner(directory, "x"), owner(directory, "y")) == ("victim", None)


async def test_more_instances_than_it_takes(bus, look, monkeypatch, caplog):
    """Beyond the bound new instances are left out, and those that are known go on changing."""
    directory = await look()
    here = len(directory.catalogue.instances)
    monkeypatch.setattr(discovery, "_MAX_INSTANCES", here + 5)
    for number in range(20):
        bus.publish(ANNOUNCE, announcement("up", said("flood", "GET other.x", id=str(number))))
    bus.publish(ANNOUNCE, announcement("down", said("flood", "GET other.x", id="3")))
    await bus.flush()
    await bus.flush()
    assert {one.info.id for one in directory.catalogue.named("flood")} == {"0", "1", "2", "4"}
    assert "more than" in caplog.text


async def test_who_was_never_there_is_not_remembered(bus, root, look):
    """Taking leave without having come makes no claims: they would grow without bound."""
    directory = await look()
    before = len(directory.catalogue._spots)
    for number in range(20):
        bus.publish(ANNOUNCE, announcement("down", said("flood", f"GET {root}.x{number}", id=str(number))))
    await bus.flush()
    await bus.flush()
    assert not directory.was_there(["x7"])
    assert len(directory.catalogue._spots) == before


async def test_an_instance_of_thousands_is_taken_in_like_the_first(root):
    """A large cluster does not hold up requests: what an announcement costs does not grow with those that are known."""
    directory = Directory(MemoryBus(), root)
    infos = [said(f"s{number}", f"GET {root}.x{number}", id=str(number)) for number in range(4000)]
    calls = Counter()

    def count(frame, event, argument):
        calls[len(directory.catalogue) // 1000] += 1

    sys.setprofile(count)
    try:
        for info in infos:
            directory._put(info, "up")
    finally:
        sys.setprofile(None)
    assert len(directory.catalogue) == 4000
    assert 0 < calls[3] < 1.1 * calls[0]


# ── overlaps ──


@pytest.mark.parametrize(
    ("mine", "its", "found"),
    [
        (["GET api.x"], ["GET api.x"], [("api.x", "api.x", False, True)]),
        (["GET api.x.*"], ["GET api.>"], [("api.x.*", "api.>", False, False)]),
        (["GET api.x.*"], ["api.>"], [("api.x.*", "api.>", True, False)]),
        (["GET api.x"], ["GET api.y", "GET apix.>"], []),
        (["GET api.x", "GET b.y"], ["GET *.*"], [("api.x", "*.*", False, False), ("b.y", "*.*", False, False)]),
        (["GET api.x"], ["POST api.x", "GET api.x"], [("api.x", "api.x", False, True)]),
        (["GET api.x"], [], []),
    ],
)
def test_overlaps(mine, its, found):
    """Where patterns of two services meet: once a pair, as equal if one pair of them is."""
    other = said("other", *its, natsweb=all(" " in one for one in its))
    assert [
        (one.pattern, one.others, one.is_plain, one.is_equal) for one in overlaps(said("me", *mine), [other])
    ] == found


def test_overlaps_with_itself_are_none():
    """Another version or instance of the same service takes the same requests, as it should."""
    me = said("me", "GET api.x")
    assert overlaps(me, [me, said("me", "GET api.>", id="2", version="2.0.0")]) == []
    many = [said("other", "GET api.x", id=str(number)) for number in range(5)]
    assert len(overlaps(me, many)) == 1
    assert str(overlaps(me, many[:1])[0]) == "api.x and api.x of other 1.0.0 (0)"


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


class Caller:
    """A gateway's insides without a socket."""

    def __init__(self, bus, root, timeout):
        self.exchange = Exchange(bus, root, timeout=timeout)
        self.directory = Directory(bus, root, on_change=self.exchange.turn, on_gone=self.exchange.gone)

    async def ask(self, path, method="GET"):
        """Carry a request; return the response."""
        return await self.exchange.forward(Incoming(method, path.encode(), b"", b""), b"")

    def ask_soon(self, path, method="GET"):
        """Carry a request meanwhile."""
        return asyncio.ensure_future(self.ask(path, method))


@pytest.fixture
def gateway(bus, root, stack):
    """Give a function that starts an exchange with a directory."""

    async def gateway(*, on=None, timeout=5.0, known_only=False):
        caller = Caller(on or bus, root, timeout)
        await caller.directory.start()
        stack.push_async_callback(caller.directory.stop)
        caller.exchange.directory = caller.directory
        caller.exchange.known_only = known_only
        return caller

    return gateway


async def tap(bus, root):
    """Return a list that fills with (service that is meant, method, subject) of every request below a root."""
    heard = []

    def receive(message):
        call = decode_request([], message.header, message.payload)
        heard.append((call.service, call.method, message.subject))

    for pattern in (root, f"{root}.>"):
        await bus.subscribe(pattern, receive)
    await bus.flush()
    return heard


async def test_each_request_names_its_owner(bus, root, gateway, start):
    """The header of every request says who is meant, overlap or not; where nobody is known it says nothing."""
    await start(speaker("monolith", "GET,POST,PUT /<path:rest>", "GET /"))
    await start(speaker("orders", "GET /orders/<rest>", "GET,POST /orders"))
    caller = await gateway(timeout=0.3)
    heard = await tap(bus, root)
    asked = [
        *(("GET", "/", "monolith"), ("GET", "/orders/7", "orders"), ("HEAD", "/orders/7", "orders")),
        *(("POST", "/orders", "orders"), ("PUT", "/orders", "monolith"), ("POST", "/orders/7", "monolith")),
        *(("GET", "/orders/", "monolith"), ("GET", "/else", "monolith"), ("DELETE", "/orders", "orders")),
        *(("GET", "/orders/a%2Eb", "orders"), ("OPTIONS", "/orders/7", "orders")),
    ]
    for method, path, _ in asked:
        await caller.ask(path, method)
    assert [(name, method) for name, method, _ in heard if method != "DELETE"] == [
        (name, method) for method, _, name in asked if method != "DELETE"
    ]
    assert {name for name, method, _ in heard if method == "DELETE"} == {"orders"}


async def test_who_is_not_meant_stays_silent(bus, root, gateway, start):
    """Of two services that match, one runs the request and one answers it."""
    old, new = speaker("old", "GET,POST /<path:rest>"), speaker("new", "GET,POST /x/<rest>")
    await start(old)
    await start(new)
    caller = await gateway()
    for method in ("GET", "POST"):
        assert (await caller.ask("/x/1", method)).body == b"new"
        assert (await caller.ask("/y", method)).body == b"old"
    await bus.flush()
    assert (len(old.ran), len(new.ran)) == (2, 2)


async def test_methods_of_one_path_in_two_services(bus, gateway, start):
    """GET in one and POST in the other: each gets its own, and 405 comes from one of them."""
    reads, writes = speaker("reads", "GET /x"), speaker("writes", "POST /x")
    await start(reads)
    await start(writes)
    caller = await gateway()
    assert [(await caller.ask("/x", method)).body for method in ("GET", "POST", "HEAD")][:2] == [b"reads", b"writes"]
    denied = await caller.ask("/x", "DELETE")
    assert (denied.status, denied.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert (len(reads.ran), len(writes.ran)) == (2, 1)


async def test_nobody_or_nobody_now(bus, gateway, start):
    """A path that nobody has ever had is 404; one whose service is away is 503 with Retry-After."""
    caller = await gateway()
    member = await start(speaker("away", "GET /x/<rest>"))
    assert (await caller.ask("/x/1")).status == 200
    assert (await caller.ask("/y")).status == 404
    await member.stop()
    for method in ("GET", "POST"):
        gone = await caller.ask("/x/1", method)
        assert (gone.status, gone.headers["retry-after"]) == (503, "1")
        assert gone.parse_json()["reason"] == "service_away"
    assert (await caller.ask("/y")).parse_json()["reason"] == "no_service"


async def test_who_leaves_without_a_word(bus, gateway, start):
    """Nobody listens any more, and nobody has said so: 503 as well."""
    caller = await gateway()
    member = await start(speaker("crashed", "GET /x"))
    member.presence.stop()
    for subscription in member.worker._subscriptions:
        subscription.stop()
    await bus.flush()
    assert (await caller.ask("/x")).status == 503


async def test_known_only(bus, root, gateway, start, until):
    """What no service has claimed is 404 without a message; what one has claimed is asked for as ever."""
    caller = await gateway(known_only=True)
    heard = await tap(bus, root)
    assert (await caller.ask("/x")).status == 404
    await start(speaker("known", "GET /x"))
    await until(lambda: caller.directory.owner("GET", ["x"]))
    assert (await caller.ask("/x")).status == 200
    assert (await caller.ask("/y")).status == 404
    assert (await caller.ask("/x", "DELETE")).status == 405
    await bus.flush()
    assert {subject for _, _, subject in heard} == {f"{root}.x"}


async def test_known_only_and_a_service_that_is_away(bus, gateway, start, until):
    """A service that was there and restarts is 503 and not 404, with --known-only as well."""
    caller = await gateway(known_only=True)
    member = await start(speaker("restarts", "GET /x"))
    assert (await caller.ask("/x")).status == 200
    await member.stop()
    assert (await caller.ask("/x")).status == 503


async def test_a_path_of_a_service_that_is_busy_when_the_gateway_starts(bus, root, gateway, start, until):
    """What is not safe waits until its service has said a word; it is executed then, and once."""
    await start(speaker("other", "GET /other"))
    caller = await gateway()
    heard = await tap(bus, root)
    waiting = [caller.ask_soon("/x", "POST") for _ in range(3)]
    await until(lambda: len(caller.exchange._starting) == 3)
    await bus.flush()
    assert heard == []
    svc = speaker("busy", "POST /x")
    await start(svc)
    assert [one.body for one in await asyncio.gather(*waiting)] == [b"busy"] * 3
    assert len(svc.ran) == 3
    assert not caller.exchange._flights
    assert not caller.exchange._starting


async def test_a_path_that_nobody_claims_when_the_gateway_starts(bus, root, gateway, start):
    """After a moment it goes to whoever listens there, all the same, and at once from then on."""
    await start(speaker("other", "GET /other"))
    caller = await gateway()
    heard = []

    def answer(message):
        heard.append(message.subject)
        bus.publish(message.reply, b"plain")

    await bus.subscribe(f"{root}.plain", answer)
    assert (await caller.ask("/plain", "POST")).body == b"plain"
    assert caller.directory.new_for <= 0
    assert (await caller.ask("/nobody", "POST")).status == 404
    assert heard == [f"{root}.plain"]


async def test_known_only_waits_for_who_is_busy(bus, root, gateway, start, until):
    """A gateway that has just started does not know yet that no service has a path; it says so when the time is up."""
    caller = await gateway(known_only=True)
    waiting = caller.ask_soon("/x")
    await until(lambda: caller.exchange._starting)
    await start(speaker("busy", "GET /x"))
    assert (await waiting).body == b"busy"
    hurried = await gateway(known_only=True, timeout=0.1)
    assert (await hurried.ask("/y")).status == 404


async def test_a_redirect_with_known_only(bus, gateway, start):
    """A path that only a redirect leads from, `/x/`, is redirected, with known_only as well."""
    await start(speaker("slashes", "GET /x/<rest>", "GET /x"))
    caller = await gateway()
    assert (await caller.ask("/x/")).status == 308
    strict = await gateway(known_only=True)
    assert (await strict.ask("/x/")).status == 308


async def test_a_request_waits_for_a_service_that_starts(bus, root, gateway, start, until):
    """It goes out when the service says that it is up, and not before."""
    caller = await gateway()
    heard = await tap(bus, root)
    svc = speaker("soon", "GET /x")
    member = Member(bus, svc, root=root)
    await member.presence.announce("starting")
    waiting = [caller.ask_soon("/x") for _ in range(3)]
    await until(lambda: len(caller.exchange._starting) == 3)
    await bus.flush()
    assert heard == []
    await member.start()
    assert [one.body for one in await asyncio.gather(*waiting)] == [b"soon"] * 3
    assert len(svc.ran) == len(heard) == 3
    assert not caller.exchange._flights
    await member.stop()


async def test_a_service_that_never_starts(bus, root, gateway, until):
    """Whoever waits for it hears 503 after a second, and a client that leaves is forgotten."""
    caller = await gateway()
    bus.publish(ANNOUNCE, announcement("starting", said("never", f"GET {root}.x")))
    await until(lambda: states(caller.directory, "never"))
    leaves = caller.ask_soon("/x")
    stays = caller.ask_soon("/x")
    await until(lambda: len(caller.exchange._starting) == 2)
    leaves.cancel()
    assert (await stays).status == 503
    assert not caller.exchange._flights
    assert not caller.exchange._starting


async def test_a_service_that_gives_up_starting(bus, root, gateway, start, until):
    """When it says "down", whoever waits is sent to the next owner, or told that nobody is there."""
    await start(speaker("old", "POST /x", "GET /y"))
    caller = await gateway()
    new = said("new", f"GET {root}.x")
    bus.publish(ANNOUNCE, announcement("starting", new))
    await until(lambda: states(caller.directory, "new"))
    waiting = caller.ask_soon("/x")
    await until(lambda: caller.exchange._starting)
    bus.publish(ANNOUNCE, announcement("down", new))
    assert (await waiting).status == 405  # it has the path, though not the method
    assert not caller.exchange._flights


async def test_a_slow_answer_after_a_wait(bus, root, gateway, until):
    """A request that has waited for a start has its whole time for the answer, not what was left of the wait."""
    svc = Service("thoughtful")

    @svc.get("/x")
    async def x() -> str:
        await asyncio.sleep(1.2)
        return "done"

    caller = await gateway()
    member = Member(bus, svc, root=root)
    await member.presence.announce("starting")
    waiting = caller.ask_soon("/x")
    await until(lambda: caller.exchange._starting)
    await member.start()
    response = await waiting
    await member.stop(0)
    assert (response.status, response.body) == (200, b"done")


async def test_a_slow_answer_after_a_restart(bus, root, gateway, until):
    """A request that was held while `natsweb dev` restarted a service ends as any other when its time is up."""
    caller = await gateway(timeout=0.5)
    caller.exchange.pause()
    waiting = caller.ask_soon("/x")
    await until(lambda: caller.exchange._held)
    await bus.subscribe(f"{root}.x", lambda message: None)
    await bus.flush()
    caller.exchange.resume()
    assert (await waiting).status == 504


async def test_waiting_for_a_start_is_part_of_the_deadline(bus, root, gateway, until):
    """What was spent on waiting is not given to the request again."""
    caller = await gateway(timeout=5)
    times = asyncio.Queue()
    await bus.subscribe(
        f"{root}.x", lambda message: times.put_nowait(decode_request([], message.header, message.payload).timeout)
    )
    bus.publish(ANNOUNCE, announcement("starting", said("slow", f"GET {root}.x")))
    await until(lambda: states(caller.directory, "slow"))
    waiting = caller.ask_soon("/x")
    await until(lambda: caller.exchange._starting)
    await asyncio.sleep(0.2)
    bus.publish(ANNOUNCE, announcement("up", said("slow", f"GET {root}.x")))
    async with asyncio.timeout(10):
        assert 0 < await times.get() <= 4.8
    waiting.cancel()


async def test_an_owner_that_is_dead_ends_what_it_was_asked(bus, root, gateway, start, until):
    """A named service that is silent is asked whether it lives: if not, its requests end with 502 long before 504."""
    old = speaker("old", "GET /<path:rest>")
    await start(old)
    caller = await gateway(timeout=30)
    bus.publish(ANNOUNCE, announcement("up", said("dead", f"GET {root}.x.*")))
    await until(lambda: states(caller.directory, "dead"))
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*[caller.ask("/x/1") for _ in range(3)])
    assert [(one.status, one.parse_json()["reason"]) for one in answers] == [(502, "disconnected")] * 3
    assert old.ran == []  # it was not meant, and they may have been executed
    assert (await caller.ask("/x/1")).body == b"old"
    assert not caller.exchange._flights


async def test_a_slow_owner_is_left_alone(bus, gateway, start):
    """A service that takes its time and answers pings is waited for."""
    svc = Service("thorough")

    @svc.get("/x")
    async def x() -> str:
        await asyncio.sleep(0.7)
        return "done"

    await start(svc)
    caller = await gateway()
    assert (await caller.ask("/x")).body == b"done"
    assert states(caller.directory, "thorough") == [("thorough", "up")]


async def test_who_is_away_is_not_asked(bus, root, gateway, start):
    """A request to a service that is gone is 503 at once, and makes the gateway look whether it is back unheard."""
    caller = await gateway()
    member = await start(speaker("away", "GET /x"))
    await member.stop()
    heard = await tap(bus, root)
    assert (await caller.ask("/x")).status == 503
    await bus.flush()
    assert heard == []
    back = Member(bus, speaker("away", "GET /x"), root=root)
    await back.worker.start()
    await back.presence.start()
    back.presence._info_bytes = back.presence.info.model_dump_json().encode()  # up, and nobody has heard it
    async with asyncio.timeout(5):
        while (await caller.ask("/x")).status == 503:
            await bus.flush()
    assert (await caller.ask("/x")).body == b"away"
    await back.stop()


async def test_what_nobody_has_claimed_is_for_nobody(bus, root, gateway, start):
    """A request for a path that is not known names no service that there is: natsweb's stay silent, others answer."""
    await start(speaker("known", "GET /x"))
    caller = await gateway(timeout=0.5)
    hidden = speaker("hidden", "GET /y")
    worker = Worker(bus, hidden, root=root)
    await worker.start()
    await bus.subscribe(f"{root}.plain", lambda message: bus.publish(message.reply, b"plain"))
    heard = await tap(bus, root)
    assert (await caller.ask("/y")).status == 504
    assert (await caller.ask("/plain")).body == b"plain"
    assert [name for name, _, _ in heard] == ["*", "*"]
    assert hidden.ran == []
    await worker.stop()


async def test_a_request_finds_who_appears_meanwhile(bus, root, gateway, start):
    """A request that a service was too new for goes there as soon as the service is known, and runs once."""
    await start(speaker("known", "GET /x"))
    caller = await gateway()
    svc = speaker("hidden", "GET /y")
    worker = Worker(bus, svc, root=root)
    await worker.start()
    waiting = caller.ask_soon("/y")
    await bus.flush()
    await bus.flush()
    assert svc.ran == []
    bus.publish(ANNOUNCE, announcement("up", said("hidden", f"GET {root}.y")))
    assert (await waiting).body == b"hidden"
    assert svc.ran == [0]
    await worker.stop()


async def test_a_plain_subscriber_at_work_is_not_doubled(bus, root, gateway, start, until):
    """What a subscriber that knows no Nw-Service is at work on is not sent to a service that appears meanwhile."""
    await start(speaker("known", "GET /x"))
    caller = await gateway()
    taken = []
    await bus.subscribe(f"{root}.y", taken.append)
    await bus.flush()
    waiting = caller.ask_soon("/y", "POST")
    await until(lambda: taken)
    svc = speaker("late", "POST /<path:rest>")
    await start(svc)
    await bus.flush()
    await bus.flush()
    bus.publish(taken[0].reply, b"plain")
    await waiting
    assert svc.ran == []


async def test_no_directory_names_nobody(bus, root, start):
    """Without discovery a request says nothing of services, and everything is as before."""
    await start(speaker("plainly", "GET /x"))
    heard = await tap(bus, root)
    exchange = Exchange(bus, root, timeout=5)
    response = await exchange.forward(Incoming("GET", b"/x", b"", b""), b"")
    assert response.body == b"plainly"
    assert heard == [(None, "GET", f"{root}.x")]
    assert exchange._listener is None


async def test_what_was_prepared_is_prepared_again_when_services_change(bus, root, gateway, start, until):
    """The same incoming request, launched again, goes to whoever owns it now."""
    caller = await gateway()
    await start(speaker("old", "GET /<path:rest>"))
    await until(lambda: states(caller.directory, "old"))
    incoming = Incoming("GET", b"/x", b"", b"")
    assert (await caller.exchange.forward(incoming, b"")).body == b"old"
    head = incoming.head
    assert (await caller.exchange.forward(incoming, b"")).body == b"old"
    assert incoming.head is head
    new = await start(speaker("new", "GET /x"))
    await until(lambda: len(states(caller.directory, "new", "old")) == 2)
    assert (await caller.exchange.forward(incoming, b"")).body == b"new"
    assert incoming.owner == Owner("new", "/x", streams=True)
    await new.stop()
    assert (await caller.exchange.forward(incoming, b"")).body == b"old"


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
async def test_a_client_that_repeats_itself_is_moved(nats_url, root, stack, until, fast):
    """A keep-alive client that sends the same bytes again and again gets the new owner once there is one."""
    buses = [await connect(Nats(urls=(nats_url,))) for _ in range(3)]
    for one in buses:
        stack.push_async_callback(one.close)
    old, new = speaker("old", "GET /<path:rest>"), speaker("new", "GET /x")
    monolith = Member(buses[0], old, root=root)
    await monolith.start()
    stack.push_async_callback(stop_quietly, monolith, old)
    gateway = await stack.enter_async_context(Gateway(root, bus=buses[1]))
    front = Front(gateway, port=0, grace=1, fast=fast)
    await front.start()
    stack.push_async_callback(front.stop)
    limits = httpx2.Limits(max_connections=1)
    client = await stack.enter_async_context(httpx2.AsyncClient(base_url=front.url, limits=limits))
    seen = []

    async def carve_out():
        member = Member(buses[2], new, root=root)
        await member.start()
        return member

    carving = asyncio.ensure_future(carve_out())
    while not carving.done() or seen[-1:] != ["new"]:
        seen.append((await client.get("/x")).text)
    member = await carving
    leaving = asyncio.ensure_future(member.stop())
    while not leaving.done() or seen[-1:] != ["old"]:
        seen.append((await client.get("/x")).text)
    assert [name for name, _ in itertools.groupby(seen)] in (["old", "new", "old"], ["new", "old"])
    assert len(old.ran) + len(new.ran) == len(seen)


# ── permissions ──

PERMISSIONS = dedent(
    """
    authorization {
      users: [
        {user: all, password: p}
        {user: gateway, password: p, permissions: {publish: ["perm", "perm.>"], subscribe: ["_INBOX.>"]}}
        {user: service, password: p, permissions: {publish: ["_INBOX.>"], subscribe: ["perm.>", "_INBOX.>"]}}
        {user: listener, password: p, permissions: {publish: ["perm.>", "_INBOX.>"], subscribe: [">"]}}
      ]
    }
    """
)


@asynccontextmanager
async def with_permissions(tmp_path, *users):
    """Run a server with permissions, and give a connection of each user."""
    config = tmp_path / "nats.conf"
    config.write_text(PERMISSIONS)
    async with embedded_server(arguments=("-c", str(config))) as url, AsyncExitStack() as stack:
        buses = []
        for user in users:
            bus = await connect(Nats(urls=(url,), user=user, password="p"))
            stack.push_async_callback(bus.close)
            buses.append(bus)
        yield buses


async def test_a_gateway_that_may_not_look(tmp_path, caplog):
    """Without permission for $SRV there is no catalogue, a warning, and requests go their way unnamed."""
    async with with_permissions(tmp_path, "all", "gateway") as (other, bus):
        svc = speaker("permitted", "GET /x")
        member = Member(other, svc, root="perm")
        await member.start()
        heard = await tap(other, "perm")
        async with Gateway("perm", bus=bus, known_only=True) as gateway:
            assert gateway.directory is None
            assert gateway.is_ready
            exchange = gateway.exchange
            assert (await exchange.forward(Incoming("GET", b"/x", b"", b""), b"")).body == b"permitted"
        await member.stop()
        assert heard == [(None, "GET", "perm.x")]
    assert "no catalogue of services" in caplog.text


async def test_a_gateway_that_may_listen_and_not_ask(tmp_path, until):
    """Without permission to ask, services that only announce themselves go on being served."""
    async with with_permissions(tmp_path, "all", "listener") as (other, bus), Gateway("perm", bus=bus) as gateway:
        member = Member(other, speaker("permitted", "GET /x"), root="perm")
        await member.start()
        await until(lambda: states(gateway.directory, "permitted") == [("permitted", "up")])
        asked = asyncio.get_running_loop().time()
        gateway.directory._expire(asked)
        gateway.directory._expire(asked)
        response = await gateway.exchange.forward(Incoming("GET", b"/x", b"", b""), b"")
        await member.stop()
    assert response.body == b"permitted"


async def test_a_service_that_may_not_announce_itself(tmp_path, caplog):
    """Without permission for $SRV a service serves all the same, and says what it could not do."""
    async with with_permissions(tmp_path, "all", "service") as (other, bus):
        svc = speaker("quiet", "GET /x")
        member = Member(bus, svc, root="perm")
        await member.start()
        assert (await ask(other, "perm.x")).body == b"quiet"
        assert await collect(other, "$SRV.PING.quiet", timeout=0.2) == []
        assert await member.stop()
    assert "quiet could not be announced as starting" in caplog.text


# ── versions ──


async def test_a_rolling_deploy_loses_nothing(bus, root, gateway, start, until, caplog):
    """Two versions of one service share its requests while one takes over from the other, without a warning."""
    caller = await gateway()
    old, new = speaker("rolling", "GET /x", version="1.0.0"), speaker("rolling", "GET /x", "GET /y", version="2.0.0")
    first = await start(old)
    answers = []
    stop = asyncio.Event()

    async def keep_asking():
        while not stop.is_set():
            answers.append((await caller.ask("/x")).status)

    asking = asyncio.ensure_future(keep_asking())
    second = await start(new)
    await until(lambda: new.ran)
    await first.stop()
    count = len(answers)
    await until(lambda: len(answers) > count + 20)
    stop.set()
    await asking
    assert set(answers) == {200}
    assert (await caller.ask("/y")).status == 200
    assert [one.info.version for one in caller.directory.catalogue.named("rolling")] == ["2.0.0"]
    assert "overlap" not in caplog.text
    assert second.presence.id != first.presence.id


async def test_time_up_without_a_bus():
    """Asking on a bus that is closed raises, and a directory that cannot ask says nothing wrong."""
    bus = MemoryBus()
    directory = Directory(bus, "api")
    await directory.start()
    await bus.close()
    with pytest.raises(NatsDown):
        await collect(bus, "$SRV.PING")
    await directory._ask()
    directory.suspect("anybody")
    assert await Presence(bus, speaker("s", "GET /x")).announce("up") == 0
    await directory.stop()
