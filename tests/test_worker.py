"""The worker over a real server: every request gets exactly one reply, whatever its handler does."""

import asyncio
import gc
import logging
import random
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natsweb.bus import MemoryBus, request
from natsweb.errors import NoService
from natsweb.messages import Request, Response
from natsweb.natsbus import connect
from natsweb.service import Service
from natsweb.settings import Nats
from natsweb.wire import decode_response, may_retry
from natsweb.worker import Worker


def block(**fields):
    """Return a header block of the wire's own fields, as docs/wire.md has it."""
    return "".join(["NATS/1.0\r\n", *[f"Nw-{name}: {value}\r\n" for name, value in fields.items()], "\r\n"]).encode()


class App:
    """The smallest thing that a worker serves: one handler for all below the root."""

    name = queue = "app"
    root = "api"

    def __init__(self, handle):
        self.handle = handle

    def patterns(self, root=None):
        return [root or self.root, f"{root or self.root}.>"]


async def ok(call):
    """Answer 200 with the body that came."""
    return Response(body=call.body)


class Box(asyncio.Queue):
    """A queue that is not waited on for ever."""

    async def get(self):
        async with asyncio.timeout(30):
            return await super().get()


class Gate:
    """A handler that waits until it is opened, and knows who waits and who was cancelled."""

    def __init__(self):
        self.open = asyncio.Event()
        self.arrived = Box()
        self.cancelled = Box()

    async def __call__(self, call):
        self.arrived.put_nowait(call)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(call)
            raise
        return Response(body=call.body)


class Inbox:
    """A plain subscription for replies, so that a second reply is seen as well."""

    def __init__(self, bus):
        self.bus = bus
        self.queue = Box()

    async def subscribe(self, subject="_INBOX.test"):
        self.subject = subject
        await self.bus.subscribe(subject, self.queue.put_nowait)
        await self.bus.flush()
        return self

    def send(self, subject, payload=b"", *, header=None):
        self.bus.publish(subject, payload, header=header, reply=self.subject)

    async def get(self):
        message = await self.queue.get()
        return decode_response(message.header, message.payload)

    async def rest(self, worker):
        """Stop the worker, and count the replies that nobody took."""
        await worker.stop(0)
        await self.bus.flush()
        return self.queue.qsize()


@pytest.fixture
async def inbox(bus):
    """Give an inbox on the test's bus."""
    return await Inbox(bus).subscribe()


@asynccontextmanager
async def working(bus, handle, **options):
    """Run a worker with one handler."""
    worker = Worker(bus, App(handle), **options)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(0)


async def get(bus, subject, payload=b""):
    """Return the response of one request."""
    reply = await request(bus, subject, payload, header=block(Timeout=30_000), timeout=30)
    return decode_response(reply.header, reply.payload)


# ── exactly one reply ──


def raising(error):
    """Return a handler that raises."""

    async def handle(call):
        raise error

    return handle


def returning(value):
    """Return a handler that returns."""

    async def handle(call):
        return value

    return handle


async def cancels_itself(call):
    """Cancel the own task, and meet it at the next await."""
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


async def waits_for_a_cancelled_task(call):
    """Wait for another task that is cancelled."""
    other = asyncio.create_task(asyncio.sleep(3600))
    asyncio.get_running_loop().call_soon(other.cancel)
    await other


async def injects_a_header(call):
    """Try to put a second line into a header's value."""
    return Response(headers={"x": f"a\r\nSet-Cookie: evil=1{call.method}"})


WRONG = {
    "None": (returning(None), "handler_failed"),
    "text": (returning("text"), "handler_failed"),
    "tuple": (returning((200, b"")), "handler_failed"),
    "class": (returning(Response), "handler_failed"),
    "ValueError": (raising(ValueError("secret")), "handler_failed"),
    "TimeoutError": (raising(TimeoutError()), "handler_failed"),
    "StopIteration": (raising(StopIteration()), "handler_failed"),
    "CancelledError": (raising(asyncio.CancelledError()), "handler_failed"),
    "SystemExit": (raising(SystemExit(3)), "handler_failed"),
    "KeyboardInterrupt": (raising(KeyboardInterrupt()), "handler_failed"),
    "GeneratorExit": (raising(GeneratorExit()), "handler_failed"),
    "BaseException": (raising(BaseException("secret")), "handler_failed"),
    "ExceptionGroup": (raising(BaseExceptionGroup("secret", [SystemExit(1)])), "handler_failed"),
    "cancels itself": (cancels_itself, "handler_failed"),
    "waits for a cancelled task": (waits_for_a_cancelled_task, "handler_failed"),
    "header injection": (injects_a_header, "handler_failed"),
    "2 MiB": (returning(Response(body=bytes(2 << 20))), "reply_too_large"),
    "2 MiB of header": (returning(Response(headers={"x": "v" * (2 << 20)})), "reply_too_large"),
}
UNCHECKED = {
    "body of text": {"body": "text"},
    "body of None": {"body": None},
    "status of text": {"status": "200"},
    "status of None": {"status": None},
    "headers of a dict": {"headers": {"a": "b"}},
}


@pytest.mark.parametrize(("handle", "reason"), WRONG.values(), ids=WRONG)
async def test_a_handler_that_goes_wrong_is_a_500(bus, inbox, handle, reason, caplog):
    """One reply, no secret in it, a traceback in the log; and the next request is served."""
    turn = iter([handle])

    async def first_wrong(call):
        return await next(turn, ok)(call)

    async with working(bus, first_wrong) as worker:
        inbox.send("api.x")
        response = await inbox.get()
        assert (response.status, response.parse_json()["reason"]) == (500, reason)
        assert "secret" not in response.text
        assert "evil" not in repr(response.headers)
        inbox.send("api.x", b"next")
        assert (await inbox.get()).body == b"next"
        assert await inbox.rest(worker) == 0
    assert caplog.records or "cancel" in response.text


@pytest.mark.parametrize("update", UNCHECKED.values(), ids=UNCHECKED)
async def test_a_response_that_pydantic_did_not_check_is_a_500(bus, inbox, update):
    """`model_copy(update=...)` checks nothing: what comes of it is answered once, and the worker lives on."""
    turn = iter([returning(Response().model_copy(update=update))])

    async def first_wrong(call):
        return await next(turn, ok)(call)

    worker = Worker(bus, App(first_wrong))
    await worker.start()
    inbox.send("api.x")
    inbox.send("api.x", b"next")
    replies = []
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            replies = [await inbox.get(), await inbox.get()]
    gc.collect()  # a task that failed unseen says so now, and not in the middle of another test
    assert [(reply.status, reply.body == b"next") for reply in replies] == [(500, False), (200, True)]
    assert await inbox.rest(worker) == 0


async def test_a_handler_that_never_returns(bus, inbox):
    """When the time that came with the request is up, the caller gets a 504 and the handler is cancelled."""
    gate = Gate()
    async with working(bus, gate) as worker:
        inbox.send("api.x", header=block(Timeout=30))
        response = await inbox.get()
        assert (response.status, response.parse_json()["reason"]) == (504, "timeout")
        await gate.cancelled.get()
        assert await inbox.rest(worker) == 0


async def test_the_workers_own_timeout(bus, inbox):
    """A request that says no time has the worker's."""
    gate = Gate()
    async with working(bus, gate, timeout=0.03):
        inbox.send("api.x")
        assert (await inbox.get()).status == 504
        await gate.cancelled.get()


async def test_a_handler_that_swallows_its_cancellation(bus, inbox):
    """Its late answer goes nowhere; the 504 came at the deadline, and its place is free when it has ended."""
    swallowed, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(call):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await go.wait()
        ended.set()
        return Response(body=b"late")

    turn = iter([stubborn])

    async def handle(call):
        return await next(turn, ok)(call)

    async with working(bus, handle, concurrency=1) as worker:
        inbox.send("api.x", header=block(Timeout=30))
        assert (await inbox.get()).status == 504
        await swallowed.wait()
        inbox.send("api.x")
        assert (await inbox.get()).status == 503
        go.set()
        await ended.wait()
        inbox.send("api.x", b"next")
        assert (await inbox.get()).body == b"next"
        assert await inbox.rest(worker) == 0


async def test_a_cancellation_that_nobody_asked_for_ends_one_request_only(bus, inbox):
    """A handler that is cancelled from outside owes its answer, and the others don't notice."""
    gate, tasks = Gate(), []

    async def handle(call):
        tasks.append(asyncio.current_task())
        return await gate(call)

    async with working(bus, handle) as worker:
        inbox.send("api.a", b"a")
        inbox.send("api.b", b"b")
        await gate.arrived.get()
        await gate.arrived.get()
        tasks[0].cancel()
        assert (await inbox.get()).status == 500
        gate.open.set()
        assert (await inbox.get()).body == b"b"
        assert await inbox.rest(worker) == 0


# ── what is taken and what is not ──


async def test_requests_run_at_once(bus, inbox):
    """Fifty requests wait for each other in their handlers: the receive callback blocks for none."""
    gate = Gate()
    async with working(bus, gate):
        for number in range(50):
            inbox.send("api.x", b"%d" % number)
        for _ in range(50):
            await gate.arrived.get()
        gate.open.set()
        assert {(await inbox.get()).body for _ in range(50)} == {b"%d" % number for number in range(50)}


async def overloaded(inbox):
    """Take the next answer: a busy 503 that may be sent elsewhere."""
    message = await inbox.queue.get()
    response = decode_response(message.header, message.payload)
    assert (response.status, response.parse_json()["reason"]) == (503, "overloaded")
    assert may_retry(message.header)
    assert response.headers["retry-after"] == "1"


async def test_beyond_its_bound_a_worker_is_busy_at_once(bus, inbox):
    """Without a backlog, the answer is a 503 with Nw-Retry, while the others still run; a free place is used."""
    gate = Gate()
    async with working(bus, gate, concurrency=3, backlog=0):
        for _ in range(3):
            inbox.send("api.x")
            await gate.arrived.get()
        inbox.send("api.x")
        await overloaded(inbox)
        gate.open.set()
        for _ in range(3):
            assert (await inbox.get()).status == 200
        inbox.send("api.x")
        assert (await inbox.get()).status == 200


async def test_a_rush_waits_for_its_turn(bus, inbox):
    """A hundred requests at once, for three places: all are answered, in the order that they came in."""
    most = running = 0

    async def handle(call):
        nonlocal most, running
        running += 1
        most = max(most, running)
        for _ in range(10):
            await asyncio.sleep(0)
        running -= 1
        return Response(body=call.body)

    async with working(bus, handle, concurrency=3):
        for number in range(100):
            inbox.send("api.x", b"%d" % number)
        assert [int((await inbox.get()).body) for _ in range(100)] == list(range(100))
    assert most == 3


async def test_a_request_does_not_wait_long_for_its_turn(bus, inbox):
    """It is refused after half a second; those behind it, soon: another instance may have time."""
    gate = Gate()
    async with working(bus, gate, concurrency=1):
        for _ in range(3):
            inbox.send("api.x")
        await gate.arrived.get()
        began = time.perf_counter()
        await overloaded(inbox)
        await overloaded(inbox)
        assert time.perf_counter() - began > 0.3
        gate.open.set()
        assert (await inbox.get()).status == 200


async def test_an_overload_that_goes_on_is_no_new_rush(bus, inbox, monkeypatch):
    """A backlog that is empty since all in it was refused is still one that has stood for long."""
    gate = Gate()
    async with working(bus, gate, concurrency=1) as worker:
        for _ in range(2):
            inbox.send("api.x")
        await gate.arrived.get()
        await overloaded(inbox)
        hour = 3600 * 10**9
        monkeypatch.setattr("natsweb.worker._RUSH", hour)  # so long a new rush would wait, and be no new one
        worker._queued_since -= 2 * hour
        inbox.send("api.x")
        await overloaded(inbox)
        gate.open.set()
        assert (await inbox.get()).status == 200


async def test_a_backlog_is_bounded(bus, inbox):
    """What does not fit is refused at once; what waits is answered when there is room."""
    gate = Gate()
    async with working(bus, gate, concurrency=1, backlog=2):
        for number in range(4):
            inbox.send("api.x", b"%d" % number)
        await overloaded(inbox)
        gate.open.set()
        assert [(await inbox.get()).body for _ in range(3)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize("grace", [5.0, 0.05])
async def test_a_worker_that_stops_with_a_backlog(bus, inbox, grace):
    """It comes to all that waits, or refuses it when its time is up."""
    gate = Gate()
    async with working(bus, gate, concurrency=1) as worker:
        for _ in range(3):
            inbox.send("api.x")
        await gate.arrived.get()
        stopping = asyncio.create_task(worker.stop(grace))
        if grace > 1:
            gate.open.set()
        assert await stopping is (grace > 1)
        assert [(await inbox.get()).status for _ in range(3)] == [200 if grace > 1 else 503] * 3


@pytest.mark.parametrize(
    ("age", "timeout", "fresh"), [(0, 1000, True), (-1e6, 1000, True), (3, 1000, True), (60, 1000, False)]
)
async def test_a_stale_request_is_dropped(bus, inbox, age, timeout, fresh):
    """A request that sat in a stalled pipe for longer than its time runs no handler and has no answer."""
    sent = int((time.time() - age) * 1000)
    async with working(bus, ok) as worker:
        inbox.send("api.x", b"old", header=block(Timeout=timeout, Sent=sent))
        inbox.send("api.x", b"new")
        bodies = [(await inbox.get()).body for _ in range(2 if fresh else 1)]
        assert sorted(bodies) == ([b"new", b"old"] if fresh else [b"new"])
        assert await inbox.rest(worker) == 0


async def test_another_service_is_meant(bus, inbox):
    """A request that names another service gets no answer here, one that names this does."""
    async with working(bus, ok) as worker:
        inbox.send("api.x", b"1", header=block(Service="other"))
        inbox.send("api.x", b"2", header=block(Service="app"))
        assert (await inbox.get()).body == b"2"
        assert await inbox.rest(worker) == 0


async def test_without_reply_subject_the_handler_runs(bus):
    """A message that wants no answer is handled, and nobody is answered."""
    gate = Gate()
    gate.open.set()
    async with working(bus, gate):
        bus.publish("api.x", b"event")
        call = await gate.arrived.get()
        assert (call.method, call.tokens, call.body) == ("POST", ["x"], b"event")


@pytest.mark.parametrize(
    ("reply", "answered"),
    [
        ("_INBOX.a.1", True),
        ("_R_.a.1", True),
        ("_GR_.a.1", True),
        ("orders.delete", False),
        ("_INBOX", False),
        ("_INBOXES.a", False),
        ("api.y", False),
        ("x._INBOX.a", False),
    ],
)
async def test_who_may_be_answered(reply, answered, caplog):
    """Answers go to inboxes only; a request with another reply subject runs, and what it names gets nothing.

    In memory, since a server lets only other servers say `_R_` and `_GR_`.
    """
    gate = Gate()
    gate.open.set()
    bus = MemoryBus()
    inbox, other = await Inbox(bus).subscribe(), await Inbox(bus).subscribe(reply)
    async with working(bus, gate) as worker:
        other.send("api.x", b"1")
        await gate.arrived.get()
        inbox.send("api.x", b"2")
        assert (await inbox.get()).body == b"2"
        await inbox.rest(worker)
        assert other.queue.qsize() == answered
    assert ("is no inbox" in caplog.text) is not answered


@pytest.mark.parametrize(
    "subject", ["api.%61dmin", "api.%2f", "api.%", "api.a%2", "api.%zz", "api.a.b*", "api.é", "api.%2E"]
)
async def test_a_subject_that_is_not_canonical_reaches_no_handler(bus, inbox, peer, subject):
    """A peer that may not publish `api.admin` does not get there by another spelling: 400."""
    gate = Gate()
    async with working(bus, gate) as worker:
        await peer.publish(subject.encode(), b"", reply=b"_INBOX.test")
        assert (await inbox.get()).status == 400
        assert gate.arrived.empty()
        assert await inbox.rest(worker) == 0


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"NATS/1.0\r\nNw-Method: get\r\n\r\n", 400),
        (b"NATS/1.0\r\nNw-Timeout: soon\r\n\r\n", 400),
        (b"NATS/1.0\r\nNw-Sent: -1\r\n\r\n", 400),
        (b"NATS/1.0\r\nNw-Scheme: gopher\r\n\r\n", 400),
        (b"NATS/1.0\r\nNw-Version: 2\r\n\r\n", 505),
        (b"NATS/1.0\r\nx: a\rb\r\n\r\n", 400),
        (b"NATS/1.0\r\nNw-Timeout: 999999999999999\r\n\r\n", 200),
        (b"NATS/1.0\r\nNw-Unknown: 1\r\nNats-Msg-Id: 7\r\n\r\n", 200),
        (b"NATS/1.0\r\nStatus: 503\r\n\r\n", 200),
        (b"NATS/1.0\r\nNw-Timeout: 0\r\n\r\n", 504),
    ],
)
async def test_a_peer_that_breaks_the_wire_format(bus, inbox, peer, header, status):
    """What docs/wire.md does not allow is a 400 or 505, never silence."""

    async def slow_or_ok(call):
        return await (Gate() if call.timeout == 0 else ok)(call)

    async with working(bus, slow_or_ok) as worker:
        await peer.publish(b"api.x", b"", reply=b"_INBOX.test", header=header)
        assert (await inbox.get()).status == status
        assert await inbox.rest(worker) == 0


WORDS = st.sampled_from(
    [
        b"NATS/1.0",
        b"\r\n",
        b"\n",
        b": ",
        b"Nw-Method",
        b"Nw-Timeout",
        b"Nw-Sent",
        b"Nw-Service",
        b"Nw-Query",
        b"GET",
        b"5",
    ]
)
BLOCKS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.one_of(WORDS, st.binary(max_size=4)), max_size=12).map(b"".join),
    st.lists(st.one_of(WORDS, st.binary(max_size=4)), max_size=12).map(
        lambda parts: b"NATS/1.0\r\n" + b"".join(parts) + b"\r\n\r\n"
    ),
)
TOKENS = st.lists(
    st.binary(min_size=1, max_size=6).filter(lambda token: not set(token) & set(b" \t\r\n.\x0b\x0c")), max_size=3
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(messages=st.lists(st.tuples(TOKENS, st.none() | BLOCKS, st.binary(max_size=20)), min_size=1, max_size=8))
async def test_no_bytes_of_a_peer_kill_a_worker(bus, peer, messages):
    """Random subjects, header blocks and payloads are answered or dropped; the next real request is served."""
    svc = Service("fuzz")

    @svc.route("/<path:rest>", methods=["GET", "POST"])
    async def echo(rest: str, request: Request) -> str:
        return request.text

    worker = Worker(bus, svc)
    await worker.start()
    try:
        for tokens, header, payload in messages:
            await peer.publish(b".".join([b"api", *tokens]), payload, header=header, reply=b"_INBOX.nobody")
        assert (await get(bus, "api.x", b"alive")).body == b"alive"
    finally:
        assert await worker.stop(10)


# ── several instances ──


@pytest.fixture
async def nodes(nats_url):
    """Give three connections, as of three processes."""
    made = [await connect(Nats(urls=(nats_url,))) for _ in range(3)]
    yield made
    for bus in made:
        await bus.close()


async def test_instances_share_the_load(bus, nodes):
    """Three instances handle each request once, and each instance gets a share."""
    seen = [Counter() for _ in nodes]

    def counting(counter):
        async def handle(call):
            counter[call.body] += 1
            return Response()

        return handle

    workers = [
        Worker(node, App(counting(counter)), concurrency=1000) for node, counter in zip(nodes, seen, strict=True)
    ]
    for worker in workers:
        await worker.start()
    responses = await asyncio.gather(*[get(bus, "api.x", b"%d" % number) for number in range(300)])
    assert {response.status for response in responses} == {200}
    assert sum(seen, Counter()) == Counter(b"%d" % number for number in range(300))
    assert min(map(len, seen)) > 30
    for worker in workers:
        assert await worker.stop()


async def test_a_literal_wins_over_a_capture_in_every_instance(bus, nodes):
    """Of 1,000 requests to overlapping routes on two instances, each reaches the right handler, once."""
    calls = Counter()
    workers = []
    for node in nodes[:2]:
        svc = Service("orders")

        @svc.get("/orders/<id>")
        async def show(id: str) -> str:
            calls["show"] += 1
            return f"show {id}"

        @svc.get("/orders/new")
        async def new() -> str:
            calls["new"] += 1
            return "new"

        assert svc.patterns() == ["api.orders.*"]
        workers.append(Worker(node, svc, concurrency=1000))
        await workers[-1].start()
    ids = [random.choice(["new", str(random.randrange(10_000)), "newer"]) for _ in range(1000)]
    texts = [response.text for response in await asyncio.gather(*[get(bus, f"api.orders.{id}") for id in ids])]
    assert texts == ["new" if id == "new" else f"show {id}" for id in ids]
    assert calls["new"] == ids.count("new")
    assert calls["new"] + calls["show"] == 1000
    for worker in workers:
        assert await worker.stop()


# ── stopping ──


async def gone(bus, subject="api.x"):
    """Wait until nobody listens on a subject."""
    gone = asyncio.Event()

    def answer(outcome):
        if isinstance(outcome, NoService):
            gone.set()

    while not gone.is_set():
        drop = bus.ask(subject, b"probe", timeout=10, answer=answer)
        await bus.flush()
        drop()


async def test_stop_finishes_what_is_under_way(bus, nodes, inbox):
    """What runs when the stop begins is answered; what comes after it finds nobody."""
    gate = Gate()
    async with working(nodes[0], gate) as worker:
        inbox.send("api.x", b"1")
        await gate.arrived.get()
        stopping = asyncio.create_task(worker.stop(30))
        await gone(bus)
        assert not stopping.done()
        gate.open.set()
        assert await stopping is True
        while (await inbox.get()).body != b"1":
            pass
        with pytest.raises(NoService):
            await get(bus, "api.x")
    assert "stopped" in repr(worker)


async def test_stop_answers_what_is_longer_than_its_grace(nodes, inbox):
    """What still runs then is cancelled and answered 503; `stop` says that not all was finished."""
    gate = Gate()
    async with working(nodes[0], gate) as worker:
        inbox.send("api.x")
        await gate.arrived.get()
        assert await worker.stop(0.03) is False
        response = await inbox.get()
        assert (response.status, response.parse_json()["reason"]) == (503, "stopping")
        await gate.cancelled.get()
        assert await inbox.rest(worker) == 0


async def test_stop_waits_for_no_handler_that_will_not_end(nodes, inbox):
    """A handler that swallows its cancellation delays the stop by a moment, not for ever."""
    over = asyncio.Event()

    async def stubborn(call):
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                pass
        return Response()

    async with working(nodes[0], stubborn) as worker:
        inbox.send("api.x")
        while "1 requests" not in repr(worker):
            await asyncio.sleep(0)
        assert await worker.stop(0) is False
        assert (await inbox.get()).status == 503
        over.set()
        assert await worker.stop(10) is True


async def test_stopping_without_a_connection(caplog):
    """A worker whose connection is gone stops all the same."""
    bus = MemoryBus()
    worker = Worker(bus, App(ok))
    await worker.start()
    await bus.close()
    with caplog.at_level(logging.WARNING):
        assert await worker.stop(1) is True
    assert "round trip" in caplog.text


async def test_a_rolling_restart_loses_nothing(bus, nodes):
    """While instances stop and start, with one always there, every request is answered 200."""
    running = True
    statuses = Counter()

    async def slowly(call):
        await asyncio.sleep(random.choice([0, 0.002]))
        return Response(body=call.body)

    async def client(number):
        while running:
            statuses[(await get(bus, "api.x", b"%d" % number)).status] += 1

    workers = [Worker(node, App(slowly)) for node in nodes]
    for worker in workers:
        await worker.start()
    clients = [asyncio.create_task(client(number)) for number in range(16)]
    for _ in range(5):
        for index, node in enumerate(nodes):
            assert await workers[index].stop(30) is True
            workers[index] = Worker(node, App(slowly))
            await workers[index].start()
    running = False
    await asyncio.gather(*clients)
    assert set(statuses) == {200}
    assert statuses[200] > 100
    for worker in workers:
        assert await worker.stop(30)
