"""The contract of `Bus`, held by every body of it alike."""

import asyncio
import logging
from typing import NamedTuple

import pytest

from natsweb.bus import Bus, Inbox, MemoryBus, Message
from natsweb.bus import request as ask_for
from natsweb.errors import Disconnected, HTTPError, NatsDown, NoService, TimeUp, TooLarge
from natsweb.natsbus import FastBus, PublicBus, connect
from natsweb.natsbus.fast import fits
from natsweb.settings import Nats

BLOCK = b"NATS/1.0\r\na: 1\r\nA: 2\r\na: 1\r\nx-latin: \xe9\xff\r\nx-empty: \r\nStatus: 503\r\nDescription: no\r\n\r\n"


class Pair(NamedTuple):
    """Two ends of one NATS; in memory, both are the one bus."""

    bus: Bus
    other: Bus


async def memory(_: str) -> Pair:
    """Return the bus in memory, twice."""
    bus = MemoryBus()
    return Pair(bus, bus)


async def public(url: str) -> Pair:
    """Return two connections to a real server, by nats-py's public API."""
    nats = Nats(urls=(url,))
    return Pair(await connect(nats, body=PublicBus), await connect(nats, body=PublicBus))


async def fast(url: str) -> Pair:
    """Return two connections to a real server, by raw frames."""
    nats = Nats(urls=(url,))
    assert fits(nats)
    return Pair(await connect(nats, body=FastBus), await connect(nats, body=FastBus))


BODIES = [memory, public, fast]


@pytest.fixture(params=BODIES, ids=lambda body: body.__name__)
async def pair(request, nats_url):
    """Give two ends of one NATS, for every body of the bus."""
    made = await request.param(nats_url)
    yield made
    await made.bus.close()
    await made.other.close()


def known(request, body, reason):
    """Mark a test as failing on one body."""
    if body.__name__ in request.node.callspec.id:
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))


class Box:
    """Receives messages, and lets a test wait for them."""

    def __init__(self):
        self.queue = asyncio.Queue()

    def __call__(self, outcome):
        self.queue.put_nowait(outcome)

    def __len__(self):
        return self.queue.qsize()

    async def get(self):
        async with asyncio.timeout(10):
            return await self.queue.get()

    async def take(self, count):
        return [await self.get() for _ in range(count)]


async def listen(bus, subject, *, queue=""):
    """Subscribe a box; when this returns, the server knows of it."""
    box = Box()
    subscription = await bus.subscribe(subject, box, queue=queue)
    await bus.flush()
    return box, subscription


async def answer_with(bus, subject, *replies):
    """Answer every request on a subject with some replies."""

    def receive(message):
        for reply in replies:
            bus.publish(message.reply, reply, header=BLOCK)

    await bus.subscribe(subject, receive)
    await bus.flush()


# ── messages ──


@pytest.mark.parametrize("payload", [b"", b"x", b"\r\n\r\n\x00PUB a 0\r\n", bytes(range(256)) * 300])
@pytest.mark.parametrize(
    "header",
    [None, BLOCK, b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\nx: " + b"v" * 40_000 + b"\r\n\r\n"],
    ids=["none", "repeats", "empty", "large"],
)
async def test_bytes_arrive_as_they_were_sent(pair, header, payload):
    """Subject, reply, header block and payload arrive exactly: repeats, latin-1, empty values, a `Status` header."""
    box, _ = await listen(pair.bus, "a.b")
    pair.other.publish("a.b", payload, header=header, reply="_INBOX.me.1")
    assert await box.get() == Message("a.b", "_INBOX.me.1", header, payload)
    pair.other.publish("a.b", payload, header=header)
    assert await box.get() == Message("a.b", "", header, payload)


@pytest.mark.parametrize("line", [b"a:1", b"a:  1", b"a: 1 ", b"A:"])
async def test_a_header_line_is_not_tidied(pair, line, request):
    """White space around a value is the wire's business; a bus moves the block as it is."""
    known(request, public, "Client.publish writes each line anew as `name: value`")
    box, _ = await listen(pair.bus, "a")
    block = b"NATS/1.0\r\n" + line + b"\r\n\r\n"
    pair.other.publish("a", b"", header=block)
    assert (await box.get()).header == block


@pytest.mark.parametrize(
    ("pattern", "subject", "arrives"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.%2E", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("*.b", "a.b", True),
        ("*.*", "a.b", True),
        ("a.*.c", "a.b.c", True),
        ("a.*.>", "a.b", False),
        ("a", "ab", False),
    ],
)
async def test_wildcards(pair, pattern, subject, arrives):
    """`*` is one token, `>` one or more at the end."""
    box, _ = await listen(pair.bus, pattern)
    end, _ = await listen(pair.bus, "end")
    pair.other.publish(subject, b"")
    pair.other.publish("end", b"")
    await end.get()
    await pair.bus.flush()
    assert len(box) == arrives


async def test_order_is_kept(pair):
    """Messages of one sender arrive in their order, also across the subjects of one subscription."""
    box, _ = await listen(pair.bus, "n.*")
    for number in range(1000):
        pair.other.publish(f"n.{number % 7}", b"%d" % number)
    assert [int(message.payload) for message in await box.take(1000)] == list(range(1000))


async def test_a_group_gets_one_copy_and_every_plain_subscription_its_own(pair):
    """One member of a queue group gets each message, every member some, and plain subscriptions all."""
    members = [(await listen(bus, "work.*", queue="g"))[0] for bus in (pair.bus, pair.bus, pair.other)]
    others = [(await listen(pair.bus, "work.>", queue="h"))[0]]
    plain = [(await listen(bus, subject))[0] for bus, subject in ((pair.bus, "work.1"), (pair.other, "work.*"))]
    for _ in range(300):
        pair.other.publish("work.1", b"")
    for box in (*others, *plain):
        await box.take(300)
    await pair.bus.flush()
    await pair.other.flush()
    assert sum(map(len, members)) == 300
    assert min(map(len, members)) > 30
    assert not any(map(len, (*others, *plain)))


# ── requests ──


async def test_ask_gets_the_reply(pair):
    """The answer is the reply's message, its header block untouched, called later than `ask` returns."""
    await answer_with(pair.other, "echo", b"yes")
    box = Box()
    pair.bus.ask("echo", b"", timeout=10, answer=box)
    assert len(box) == 0
    reply = await box.get()
    assert (reply.payload, reply.header, reply.reply) == (b"yes", BLOCK, "")


async def test_five_hundred_requests_get_their_own_answers(pair):
    """Answers that come in any order go to the requests they belong to."""
    waiting = []

    def receive(message):
        waiting.append(message)
        if len(waiting) == 500:
            for one in reversed(waiting):
                pair.other.publish(one.reply, one.payload)

    await pair.other.subscribe("echo", receive)
    await pair.other.flush()
    replies = await asyncio.gather(*[ask_for(pair.bus, "echo", b"%d" % number) for number in range(500)])
    assert [int(reply.payload) for reply in replies] == list(range(500))


async def test_nobody_listens(pair):
    """A request that nobody can get ends at once with `NoService`, long before its time is up."""
    async with asyncio.timeout(10):
        with pytest.raises(NoService):
            await ask_for(pair.bus, "nobody.here", b"", timeout=3600)


async def test_a_subscription_that_stopped_is_nobody(pair):
    """After `stop` and `flush`, a request finds nobody."""
    _, subscription = await listen(pair.other, "gone")
    subscription.stop()
    subscription.stop()
    await pair.other.flush()
    async with asyncio.timeout(10):
        with pytest.raises(NoService):
            await ask_for(pair.bus, "gone", b"", timeout=3600)


async def test_time_is_up(pair):
    """A request that nobody answers ends with `TimeUp`, and a late reply goes nowhere."""
    box, _ = await listen(pair.other, "silent")
    with pytest.raises(TimeUp):
        await ask_for(pair.bus, "silent", b"", timeout=0.02)
    pair.other.publish((await box.get()).reply, b"late")
    await pair.other.flush()
    await pair.bus.flush()
    assert pair.bus._inbox.unclaimed == 1


async def test_the_first_reply_wins(pair):
    """Later replies are dropped and counted."""
    await answer_with(pair.other, "eager", b"1", b"2", b"3")
    box = Box()
    pair.bus.ask("eager", b"", timeout=10, answer=box)
    assert (await box.get()).payload == b"1"
    await pair.other.flush()
    await pair.bus.flush()
    assert (len(box), pair.bus._inbox.unclaimed, len(pair.bus._inbox)) == (0, 2, 0)


async def test_a_dropped_request_has_no_answer(pair):
    """Dropping, also twice and after the answer, leaves no trace and calls nobody."""
    box, _ = await listen(pair.other, "slow")
    answers = Box()
    drop = pair.bus.ask("slow", b"", timeout=10, answer=answers)
    message = await box.get()
    drop()
    drop()
    pair.other.publish(message.reply, b"")
    await pair.other.flush()
    await pair.bus.flush()
    assert (len(answers), pair.bus._inbox.unclaimed, len(pair.bus._inbox)) == (0, 1, 0)


async def test_a_cancelled_request_is_dropped(pair):
    """Cancelling `request` forgets it."""
    box, _ = await listen(pair.other, "slow")
    task = asyncio.create_task(ask_for(pair.bus, "slow", b""))
    await box.get()
    assert len(pair.bus._inbox) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(pair.bus._inbox) == 0


async def test_tokens_cannot_be_guessed(pair):
    """Reply subjects of one inbox share its prefix and nothing random; two inboxes share nothing."""
    box, _ = await listen(pair.other, "look")
    for _ in range(600):
        pair.bus.ask("look", b"", timeout=10, answer=lambda _: None)
    replies = [message.reply for message in await box.take(600)]
    assert {reply.rpartition(".")[0] for reply in replies} == {pair.bus._inbox.subject}
    randoms = {bytes.fromhex(reply.rpartition(".")[2]) for reply in replies}
    assert len(randoms) == 600
    assert {len(random) for random in randoms} == {12}
    assert len({Inbox(print).subject for _ in range(100)}) == 100


async def test_a_forged_reply_finds_nobody(pair):
    """A peer that knows the inbox but not the token answers nothing."""
    await listen(pair.other, "slow")
    answers = Box()
    pair.bus.ask("slow", b"", timeout=10, answer=answers)
    for token in ("1", "1-", "1-0000000000000000", "*", "x"):
        pair.other.publish(f"{pair.bus._inbox.subject}.{token}", b"forged")
    await pair.other.flush()
    await pair.bus.flush()
    assert (len(answers), len(pair.bus._inbox)) == (0, 1)


# ── limits and failures ──


@pytest.mark.parametrize("header", [None, BLOCK], ids=["plain", "header"])
async def test_max_payload_counts_header_and_payload(pair, header):
    """A message of exactly the limit arrives; one byte more is `TooLarge`, nothing is sent, and the bus lives on."""
    box, _ = await listen(pair.bus, "big")
    fits = pair.other.max_payload - len(header or b"")
    for send in (
        lambda: pair.other.publish("big", bytes(fits + 1), header=header),
        lambda: pair.other.ask("big", bytes(fits + 1), header=header, timeout=10, answer=lambda _: None),
    ):
        with pytest.raises(TooLarge):
            send()
    assert len(pair.other._inbox) == 0
    pair.other.publish("big", bytes(fits), header=header)
    assert len((await box.get()).payload) == fits
    await pair.other.flush()
    assert pair.other.is_connected
    assert len(box) == 0


async def test_a_message_of_the_limit_survives_an_untidy_header(pair, request):
    """The limit holds for the block as it was given, whatever its white space."""
    known(request, public, "the block is counted as nats-py will write it, and refused")
    box, _ = await listen(pair.bus, "big")
    block = b"NATS/1.0\r\n" + b"a:b\r\n" * 100 + b"\r\n"
    pair.other.publish("big", bytes(pair.other.max_payload - len(block)), header=block)
    await pair.other.flush(1)
    assert len((await box.get()).header) == len(block)


async def test_an_exception_hurts_one_message_only(pair, caplog):
    """What a receive callback raises is logged; later messages and other subscriptions don't notice."""
    got = Box()

    def receive(message):
        if message.payload == b"bad":
            raise RuntimeError("boom")
        got(message)

    await pair.bus.subscribe("risky", receive)
    await pair.bus.flush()
    with caplog.at_level(logging.ERROR, "natsweb"):
        for payload in (b"1", b"bad", b"2"):
            pair.other.publish("risky", payload)
        assert [message.payload for message in await got.take(2)] == [b"1", b"2"]
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize("body", ["text", None, 7], ids=repr)
async def test_a_message_that_is_no_bytes_hurts_its_sender_only(pair, body):
    """A payload of the wrong type is the caller's `TypeError` or is lost; the bus goes on sending."""
    box, _ = await listen(pair.bus, "odd")
    try:
        pair.other.publish("odd", body)
    except TypeError:
        pass
    pair.other.publish("odd", b"good")
    async with asyncio.timeout(2):
        while (await box.queue.get()).payload != b"good":
            pass


async def test_stop_and_flush_lose_nothing_and_let_nothing_after(pair):
    """All that the server had sent before the stop arrives before the flush ends, and nothing after it."""
    box, subscription = await listen(pair.bus, "flow", queue="g")
    rest, _ = await listen(pair.other, "flow", queue="g")
    sent = 0
    running = True

    async def send():
        nonlocal sent
        while running:
            pair.other.publish("flow", b"%d" % sent)
            sent += 1
            await asyncio.sleep(0)

    sender = asyncio.create_task(send())
    await box.get()
    subscription.stop()
    await pair.bus.flush()
    stopped_with = len(box)
    then = sent
    async with asyncio.timeout(10):
        while sent < then + 200:
            await asyncio.sleep(0)
    running = False
    await sender
    await pair.other.flush()
    await pair.bus.flush()
    assert len(box) == stopped_with
    assert 1 + len(box) + len(rest) == sent


async def test_stop_delivers_what_is_on_its_way(pair):
    """Messages that were sent before the stop arrive, all of them, before the flush ends."""
    box, subscription = await listen(pair.bus, "flow")
    for _ in range(500):
        pair.other.publish("flow", b"x" * 100)
    await pair.other.flush()
    subscription.stop()
    await pair.bus.flush()
    assert len(box) == 500


async def test_flush_waits_for_answers_on_their_way(pair):
    """What the server had sent before a flush has been received when it ends."""
    box, _ = await listen(pair.bus, "many")
    for _ in range(1000):
        pair.other.publish("many", b"")
    await pair.other.flush()
    await pair.bus.flush()
    assert len(box) == 1000


async def test_a_closed_bus_is_down(pair):
    """After `close`, everything raises `NatsDown`, and closing again does nothing."""
    await pair.bus.close()
    await pair.bus.close()
    assert not pair.bus.is_connected
    with pytest.raises(NatsDown):
        pair.bus.publish("a", b"")
    with pytest.raises(NatsDown):
        pair.bus.ask("a", b"", timeout=10, answer=lambda _: None)
    with pytest.raises(NatsDown):
        await pair.bus.subscribe("a", lambda _: None)
    with pytest.raises(NatsDown):
        await pair.bus.flush()
    assert "closed" in repr(pair.bus)


async def test_stopping_on_a_closed_bus(pair):
    """A subscription may be stopped after `close`, and a flush then still says at once that the bus is down."""
    _, subscription = await listen(pair.bus, "a")
    await pair.bus.close()
    subscription.stop()
    with pytest.raises(NatsDown):
        await pair.bus.flush(0.5)


async def test_close_ends_requests_in_flight(pair):
    """Every request in flight ends at once with `Disconnected`, even if the callback of one fails."""
    await listen(pair.other, "slow")
    box = Box()

    def fail(_):
        raise RuntimeError("boom")

    pair.bus.ask("slow", b"", timeout=3600, answer=fail)
    for _ in range(3):
        pair.bus.ask("slow", b"", timeout=3600, answer=box)
    async with asyncio.timeout(10):
        await pair.bus.close()
    outcomes = await box.take(3)
    assert all(isinstance(outcome, HTTPError) for outcome in outcomes)
    assert [type(outcome) for outcome in outcomes] == [Disconnected] * 3


async def test_close_sends_what_is_pending(pair):
    """What was published before `close` still leaves."""
    if pair.bus is pair.other:
        pytest.skip("one bus in memory has nobody left to receive")
    box, _ = await listen(pair.other, "last")
    pair.bus.publish("last", b"word")
    await pair.bus.close()
    assert (await box.get()).payload == b"word"
