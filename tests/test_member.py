"""How a service joins and leaves: the order that loses nothing and runs nothing twice, and whom it does not join."""

import asyncio
import itertools
import json
import logging
from contextlib import suppress
from textwrap import dedent

import pytest

from natsweb import Nats, Service
from natsweb.bus import MemoryBus, request
from natsweb.discovery import collect
from natsweb.embedded import embedded_server
from natsweb.errors import HTTPError, NatsDown, NatsRefused, NoService, StartError
from natsweb.member import Member
from natsweb.micro import ANNOUNCE, METHOD, Endpoint, Info
from natsweb.natsbus import connect

numbers = itertools.count(1)


@pytest.fixture(params=["memory", "nats"])
async def bus(request, nats_url):
    """Give one bus of each kind."""
    given = MemoryBus() if request.param == "memory" else await connect(Nats(urls=(nats_url,)))
    yield given
    await given.close()


@pytest.fixture
def root():
    """Give a root that no other test has used."""
    return f"m{next(numbers)}"


def service(name="orders", path="/x", method="GET", **options):
    """Return a service with one route."""
    svc = Service(name, **options)

    async def handler() -> str:
        return name

    svc.route(path, methods=[method])(handler)
    return svc


async def running(bus, svc, root, **options):
    """Return a member that has joined."""
    member = Member(bus, svc, root=root, **options)
    await member.start()
    return member


class Onlooker:
    """A gateway of sorts: for each announcement it asks the service, and takes note only then."""

    def __init__(self, bus, path):
        self._bus = bus
        self._path = path
        self._tasks = []
        self.seen = []

    async def start(self):
        """Listen."""
        await self._bus.subscribe(f"{ANNOUNCE[: ANNOUNCE.rindex('.')]}.>", self._hear)
        await self._bus.flush()

    def _hear(self, message):
        self._tasks.append(asyncio.ensure_future(self._look(message)))

    async def _look(self, message):
        said = json.loads(message.payload)
        answers = await collect(self._bus, f"$SRV.PING.{said['info']['name']}", expect=1, timeout=0.3)
        self.seen.append((said["state"], await listens(self._bus, self._path), len(answers)))
        self._bus.publish(message.reply, b"noted")


async def listens(bus, subject):
    """Tell whether anybody answers requests on a subject."""
    try:
        await request(bus, subject, b"", timeout=2)
    except NoService:
        return False
    return True


def plain(bus, subject, name="legacy", **more):
    """Make a plain NATS micro service answer INFO on a bus; return what to await."""
    info = Info(name=name, id="plain1", version="0.9.0", endpoints=[Endpoint(name="e", subject=subject, **more)])
    payload = info.model_dump_json().encode()
    return bus.subscribe("$SRV.INFO", lambda message: bus.publish(message.reply, payload))


# ── the order ──


async def test_the_order_of_joining_and_leaving(bus, root):
    """It answers $SRV first, says that it starts, waits for that to be noted, subscribes, says that it is up.

    When it leaves, it says so while it still takes requests, and then takes none.
    """
    onlooker = Onlooker(bus, f"{root}.x")
    await onlooker.start()
    member = await running(bus, service(), root)
    assert onlooker.seen == [("starting", False, 1), ("up", True, 1)]
    assert await listens(bus, f"{root}.x")
    assert await member.stop()
    assert onlooker.seen[2:] == [("down", True, 1)]
    assert not await listens(bus, f"{root}.x")
    assert await collect(bus, "$SRV.PING.orders") == []


async def test_who_takes_no_note_is_not_waited_for_long(bus, root):
    """A gateway that hangs delays a start by half a second each time at most."""
    heard = []
    await bus.subscribe(ANNOUNCE, heard.append)
    await bus.flush()
    async with asyncio.timeout(3):
        member = await running(bus, service(), root)
    await bus.flush()
    await bus.flush()
    assert len(heard) == 2
    await member.stop()


async def test_alone_it_is_there_at_once(root):
    """Without services and gateways nothing is waited for."""
    async with asyncio.timeout(0.4):
        member = await running(MemoryBus(), service(), root)
        await member.stop()
    assert repr(member) == f"<Member orders {member.presence.id}>"


async def test_presence_lasts_as_long_as_the_last_request(bus, root):
    """While it finishes what it has, it can be asked for its stats; then it is gone."""
    svc, reached, go_on = Service("orders"), asyncio.Event(), asyncio.Event()

    @svc.get("/x")
    async def x() -> str:
        reached.set()
        await go_on.wait()
        return "done"

    member = await running(bus, svc, root)
    answer = asyncio.ensure_future(request(bus, f"{root}.x", b""))
    await reached.wait()
    leaving = asyncio.ensure_future(member.stop())
    while member.worker._subscriptions:
        await bus.flush()
    [stats] = await collect(bus, "$SRV.STATS.orders", expect=1)
    assert json.loads(stats.message.payload)["endpoints"][0]["data"]["in_flight"] == 1
    assert not leaving.done()
    go_on.set()
    assert await leaving
    assert (await answer).payload == b"done"
    assert await collect(bus, "$SRV.STATS.orders") == []


async def test_stop_tells_whether_all_was_finished(bus, root):
    """What outlives the grace is cut off, and `stop` says so; the presence is gone all the same."""
    svc, reached = Service("orders"), asyncio.Event()

    @svc.get("/x")
    async def x() -> str:
        reached.set()
        await asyncio.sleep(30)
        return ""

    member = await running(bus, svc, root)
    answer = asyncio.ensure_future(request(bus, f"{root}.x", b""))
    await reached.wait()
    assert not await member.stop(0.01)
    assert b"503" in ((await answer).header or b"")
    assert await collect(bus, "$SRV.PING.orders") == []


async def test_stop_without_a_connection(root, caplog):
    """A service whose NATS has gone leaves without a word, and without an error."""
    async with embedded_server() as url:
        bus = await connect(Nats(urls=(url,)))
        member = await running(bus, service(), root)
    async with asyncio.timeout(10):
        while bus.is_connected:
            await asyncio.sleep(0.002)
        assert await member.stop()
    assert "could not be announced as down" in caplog.text
    await bus.close()


async def test_join_without_a_connection(root, caplog):
    """Without a connection joining fails, and leaves nothing behind."""
    bus = MemoryBus()
    await bus.close()
    with pytest.raises(NatsDown):
        await running(bus, service(), root)
    assert "who else is there could not be asked" in caplog.text


async def test_a_start_that_is_cancelled(bus, root):
    """Whoever is stopped while it subscribes says "down", and answers nothing more."""
    onlooker = Onlooker(bus, f"{root}.x")
    await onlooker.start()
    member, reached = Member(bus, service(), root=root), asyncio.Event()

    async def hang():
        reached.set()
        await asyncio.sleep(30)

    member.worker.start = hang
    starting = asyncio.ensure_future(member.start())
    await reached.wait()
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    assert [state for state, *_ in onlooker.seen] == ["starting", "down"]
    assert await collect(bus, "$SRV.PING.orders") == []


PERMISSIONS = dedent(
    """
    authorization {
      users: [
        {user: all, password: p}
        {user: visitor, password: p, permissions: {publish: [">"], subscribe: ["$SRV.>", "_INBOX.>"]}}
      ]
    }
    """
)


async def test_a_service_that_may_not_subscribe(tmp_path):
    """What NATS refuses is raised; who has heard "starting" hears "down", and the presence is gone."""
    config = tmp_path / "nats.conf"
    config.write_text(PERMISSIONS)
    async with embedded_server(arguments=("-c", str(config))) as url:
        other, bus = [await connect(Nats(urls=(url,), user=user, password="p")) for user in ("all", "visitor")]
        onlooker = Onlooker(other, "mine.x")
        await onlooker.start()
        with pytest.raises(NatsRefused, match="refuses a subscription"):
            await running(bus, service(), "mine")
        assert [state for state, *_ in onlooker.seen] == ["starting", "down"]
        assert await collect(other, "$SRV.PING.orders") == []
        await bus.close()
        await other.close()


# ── whom it does not join ──


@pytest.fixture
async def shop(bus, root):
    """Give a service that takes every path."""
    svc = Service("shop", version="2.0.0")

    @svc.get("/<path:rest>")
    async def all_paths(rest: str) -> str:
        return rest

    @svc.get("/x")
    async def x() -> str:
        return "x"

    member = await running(bus, svc, root)
    yield member
    with suppress(HTTPError):
        await member.stop()


async def test_an_overlap_is_a_warning(bus, root, shop, caplog):
    """Who takes paths of another service is told so, in one line for each service, and joins."""
    member = await running(bus, service("orders", "/y"), root)
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    id = shop.presence.id
    assert warnings == [f"orders: {root}.y and {root}.> of shop 2.0.0 ({id}) overlap; each request goes to one of them"]
    await member.stop()


async def test_an_equal_pattern_is_said_to_be_one(bus, root, shop, caplog):
    """The same method on the same pattern goes by name, and the warning says so."""
    member = await running(bus, service("orders", "/x"), root)
    [warning] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert f"{root}.x and {root}.x of shop" in warning
    assert warning.endswith("each request goes to one of them, to orders where the patterns are the same")
    await member.stop()


async def test_an_overlap_is_refused_where_that_was_asked_for(bus, root, shop):
    """With on_overlap="refuse" it does not start: what, where and what to do; nothing was announced."""
    heard = []
    await bus.subscribe(ANNOUNCE, heard.append)
    with pytest.raises(StartError) as caught:
        await running(bus, service("orders", "/x"), root, on_overlap="refuse")
    error = caught.value
    assert error.what == "orders takes paths of shop, which is there already, and --on-overlap says refuse"
    assert f"{root}.x and {root}.x of shop 2.0.0 ({shop.presence.id})" in error.where
    assert error.fix == "change the paths or the root of one of them, or start with --on-overlap warn"
    assert error.exit_code == 3
    await bus.flush()
    assert heard == []
    assert await collect(bus, "$SRV.PING.orders") == []


@pytest.mark.parametrize("on_overlap", ["warn", "refuse"])
async def test_a_plain_service_is_refused(bus, root, on_overlap):
    """A service that cannot stand aside would run each request as well: no flag makes that right."""
    await plain(bus, f"{root}.*")
    with pytest.raises(StartError) as caught:
        await running(bus, service(), root, on_overlap=on_overlap)
    error = caught.value
    assert error.what == (
        "orders takes paths of legacy, which knows nothing of natsweb, so that both would run each request"
    )
    assert error.where == [f"{root}.x and {root}.* of legacy 0.9.0 (plain1)"]
    assert error.fix == "change the paths or the root of one of them"
    assert not await listens(bus, f"{root}.x")


async def test_a_plain_service_elsewhere_is_no_matter(bus, root, caplog):
    """Only what overlaps counts."""
    await plain(bus, f"{root}.x.y")
    member = await running(bus, service(), root, on_overlap="refuse")
    assert caplog.records == []
    await member.stop()


@pytest.mark.parametrize("on_overlap", ["warn", "refuse"])
async def test_another_version_of_itself_is_welcome(bus, root, caplog, on_overlap):
    """Instances and versions of one service share its requests without a word."""
    members = [
        await running(bus, service(version=version), root, on_overlap=on_overlap)
        for version in ("1.0.0", "1.0.0", "2.0.0")
    ]
    assert caplog.records == []
    for member in members:
        await member.stop()


async def test_a_plain_service_with_other_methods_is_refused(bus, root):
    """NATS knows no methods: a plain service on the same subject gets each request, whatever it says that it takes."""
    await plain(bus, f"{root}.x", metadata={METHOD: "POST"})
    with pytest.raises(StartError):
        await running(bus, service(), root)


async def test_a_plain_service_of_the_same_name_is_refused(bus, root):
    """A plain service of the same name in a queue group of its own would run each request as well."""
    await plain(bus, f"{root}.x", name="orders", queue_group="q", metadata={METHOD: "GET"})
    with pytest.raises(StartError):
        await running(bus, service(), root)


@pytest.mark.xfail(strict=True, reason="overlaps() passes over everything of the same name, whatever its queue group")
async def test_the_same_name_in_another_queue_group_is_told(bus, root, caplog):
    """Instances of one name in two queue groups each get a copy of every request, and both are meant."""
    members = [await running(bus, service(queue=queue), root) for queue in ("orders", "canary")]
    for member in members:
        await member.stop()
    assert "overlap" in caplog.text


async def test_hostile_neighbours_do_not_keep_it_from_starting(bus, root, caplog):
    """Whatever others answer to INFO, a service starts."""
    await bus.subscribe(
        "$SRV.INFO",
        lambda message: [bus.publish(message.reply, junk) for junk in (b"", b"\xff", b"null", b"[" * 10_000, b"{}")],
    )
    member = await running(bus, service(), root, on_overlap="refuse")
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []
    await member.stop()
