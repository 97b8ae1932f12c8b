"""Streams between two sides, over the bus in memory and a real server: what arrives, what ends it, and who is told."""

import asyncio
import random

import pytest

from natsweb.bus import Asked, MemoryBus
from natsweb.errors import Disconnected, HTTPError, NatsDown, WebSocketClosed
from natsweb.natsbus import PublicBus, connect
from natsweb.pipes import Reader, SocketPipe, Stream
from natsweb.settings import Nats
from natsweb.streams import CHUNK, MAX_MESSAGE, WINDOW
from natsweb.wire import decode_control, encode_close, encode_end, encode_flow

DATA = random.Random(3).randbytes(300_001)


class Side(Asked):
    """One side of a stream, with the subject that it is reached at."""

    hears = stays = True

    def __init__(self, bus):
        self.bus = bus
        self.stream = None
        self.controls = []
        self.cancelled = asyncio.Event()
        bus.open(self)

    def connect(self, to, **options):
        """Talk to the other side."""
        self.stream = Stream(self.bus, to.reply, own=self.reply, on_cancel=self.cancelled.set, **options)
        return self.stream

    def hear(self, reply, header, payload):
        """Take a message."""
        if header is not None:
            self.controls.append(header)
        self.stream.hear(header, payload)

    def settle(self, outcome):
        """Take the loss of the connection."""
        self.stream.fail_with(outcome)

    def say(self, header=None, payload=b""):
        """Send what no stream would."""
        self.bus.post(self.stream.to, payload, header, self.reply)

    def drop(self):
        """Let go."""
        self.stream.release()
        self.bus.drop(self)


@pytest.fixture(params=["memory", "fast", "public"])
async def buses(request, nats_url):
    """Give the buses of two processes, or one that is both."""
    if request.param == "memory":
        bus = MemoryBus()
        yield bus, bus
        await bus.close()
        return
    body = PublicBus if request.param == "public" else None
    both = [await connect(Nats(urls=(nats_url,)), body=body) for _ in range(2)]
    for bus in both:
        await bus.flush()  # so that the server knows of their inboxes
    yield tuple(both)
    for bus in both:
        await bus.close()


@pytest.fixture
async def pair(buses):
    """Give a function that connects two sides; nothing is left of them on the buses afterwards."""
    sides = []

    def pair(window=WINDOW, **options):
        one, two = Side(buses[0]), Side(buses[1])
        one.connect(two, window=window, credit=window, **options)
        two.connect(one, window=window, credit=window)
        sides.extend([one, two])
        return one, two

    yield pair
    for side in sides:
        side.drop()
    for bus in buses:
        assert not bus.pulse._peers
        assert len(bus._inbox) == 0


async def soon(awaitable):
    """Return what something gives, which never takes long."""
    async with asyncio.timeout(10):
        return await awaitable


async def all_of(stream):
    """Return all bytes that come, in pieces as they came."""
    found = []
    while chunk := await stream.sink.read():
        found.append(chunk)
    return found


async def settled(*buses):
    """Wait until all that was sent has been received."""
    for bus in [*buses, *buses]:
        await bus.flush()
        await asyncio.sleep(0)


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", [1, 7, 1000, CHUNK, CHUNK + 1, WINDOW])
async def test_bytes_arrive_in_order(pair, window):
    """Whatever the window, both ways at once, and the end comes behind the last byte."""
    one, two = pair(window)
    data = DATA if window > 7 else DATA[:300]

    async def send(stream, data):
        for start in range(0, len(data), 70_000):
            await stream.write(data[start : start + 70_000])
        stream.end()

    back = data[::-1]
    _, _, there, here = await soon(
        asyncio.gather(
            send(one.stream, data),
            send(two.stream, back),
            all_of(two.stream),
            all_of(one.stream),
            return_exceptions=False,
        )
    )
    assert (b"".join(there), b"".join(here)) == (data, back)
    assert max(map(len, there)) <= min(window, CHUNK)
    assert one.stream.sink.is_over and two.stream.sink.is_over


async def test_nothing_at_all(pair):
    """An empty write sends nothing; an end without bytes is one."""
    one, two = pair()
    await soon(one.stream.write(b""))
    one.stream.end()
    assert await soon(two.stream.sink.read()) == b""
    assert await soon(two.stream.sink.read()) == b""


async def test_a_writer_waits_for_credit(pair, buses):
    """It goes on when half a window was used, and not before."""
    one, two = pair(1000)
    writing = asyncio.create_task(one.stream.write(DATA[:1500]))
    await settled(*buses)
    assert two.stream.inflow.received == 1000
    assert not writing.done()
    assert await soon(two.stream.sink.read()) == DATA[:1000]
    await soon(writing)
    assert await soon(two.stream.sink.read()) == DATA[1000:1500]


async def test_what_went_with_the_first_message(buses):
    """It counts: as received, as sent, and in the count of the end."""
    one, two = Side(buses[0]), Side(buses[1])
    one.connect(two, credit=10, sent=10)
    two.connect(one, received=10, window=100)
    two.stream.say(encode_flow(two.stream.inflow.allowed))
    await soon(one.stream.write(b"x" * 20))
    one.stream.end()
    assert b"".join(await soon(all_of(two.stream))) == b"x" * 20
    assert decode_control(two.controls[-1]).end == ("ok", 30, "")
    for side in (one, two):
        side.drop()


async def test_a_reminder(pair, buses):
    """The credit is said again, and lets nothing more go."""
    one, two = pair(1000)
    two.stream.remind()
    await settled(*buses)
    assert [decode_control(header).flow for header in one.controls] == [1000]
    assert one.stream.outflow.room == 1000


async def test_written_now_or_not(pair):
    """A few bytes go if there is room for all of them, and else none of them."""
    one, two = pair(5)
    assert one.stream.write_now(b"abc")
    assert not one.stream.write_now(b"def")
    assert one.stream.write_now(b"de")
    assert await soon(two.stream.sink.read()) == b"abc"
    one.drop()
    assert not one.stream.write_now(b"x")


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────

ENDS = {
    "too few": (encode_end(4), "lost"),
    "too many": (encode_end(2), "lost"),
    "nothing": (encode_end(0), "lost"),
    "an error": (encode_end(0, "the disk is full"), "the disk is full"),
    "an error without words": (encode_end(0, ""), "cut off"),
    "garbage": (b"NATS/1.0\r\nNw-End: banana\r\n\r\n", "makes no sense"),
    "no header block": (b"garbage", "malformed"),
    "garbage credit": (b"NATS/1.0\r\nNw-Flow: all\r\n\r\n", "makes no sense"),
}


@pytest.mark.parametrize(("header", "words"), ENDS.values(), ids=ENDS)
async def test_an_end_that_is_no_good_one(pair, buses, header, words):
    """What has come is given, and then the error; and whoever writes the other way hears of it."""
    if header == b"garbage" and isinstance(buses[0], PublicBus):
        pytest.skip("nats-py sends header lines only")
    one, two = pair(10)
    two.stream.write_now(b"x" * 10)
    writing = asyncio.create_task(two.stream.write(b"more"))
    await soon(one.stream.write(b"abc"))
    one.say(header)
    assert await soon(two.stream.sink.read()) == b"abc"
    for _ in range(2):
        with pytest.raises(HTTPError, match=words) as caught:
            await soon(two.stream.sink.read())
        assert caught.value.status == 502
    with pytest.raises(HTTPError, match=words):
        await soon(writing)


async def test_more_than_was_allowed(pair):
    """One byte too many is not given to anybody: it is the end."""
    one, two = pair(10)
    one.say(payload=b"x" * 10)
    one.say(payload=b"y")
    assert await soon(two.stream.sink.read()) == b"x" * 10
    with pytest.raises(Disconnected, match="more than it was allowed"):
        await soon(two.stream.sink.read())


async def test_data_behind_the_end(pair, buses):
    """It is nobody's."""
    one, two = pair()
    one.stream.end()
    one.say(payload=b"late")
    one.say(encode_end(0, "too late"))
    await settled(*buses)
    assert await soon(two.stream.sink.read()) == b""


async def test_an_end_does_not_end_the_other_direction(pair):
    """Who has said all may still listen, and the other still talk."""
    one, two = pair()
    one.stream.end()
    assert await soon(two.stream.sink.read()) == b""
    await soon(two.stream.write(DATA))
    two.stream.end()
    assert b"".join(await soon(all_of(one.stream))) == DATA


@pytest.mark.parametrize("first", [True, False])
async def test_a_cancel(pair, first):
    """Either side may want no more: the other one stops reading and writing, and is told once."""
    sides = pair(10)
    one, two = sides if first else reversed(sides)
    reading = asyncio.create_task(two.stream.sink.read())
    writing = asyncio.create_task(two.stream.write(b"x" * 11))
    one.stream.cancel()
    await soon(two.cancelled.wait())
    for waiting in (reading, writing):
        with pytest.raises(Disconnected, match="nobody waits"):
            await soon(waiting)
    with pytest.raises(Disconnected):
        await soon(two.stream.write(b""))


async def test_letting_go_wakes_who_writes(pair, buses):
    """A stream that is over takes nothing more, says nothing, and hears nothing."""
    one, two = pair(10)
    waiting = [asyncio.create_task(one.stream.write(b"x" * 11)) for _ in range(3)]
    await settled(*buses)
    one.stream.release()
    for writing in waiting:
        with pytest.raises(Disconnected, match="over"):
            await soon(writing)
    one.stream.end()
    two.say(payload=b"x")
    await settled(*buses)
    assert two.controls == []
    assert one.stream.inflow.received == 0
    one.stream.release()


async def test_several_who_write_at_once(pair):
    """All of them go on when there is room, and all bytes arrive."""
    one, two = pair(100)
    writing = asyncio.gather(*[one.stream.write(b"%d" % number * 150) for number in range(5)])
    got = b""
    while len(got) < 750:
        got += await soon(two.stream.sink.read())
    await soon(writing)
    assert {byte: got.count(b"%d" % byte) for byte in range(5)} == dict.fromkeys(range(5), 150)


async def test_two_who_read_at_once(pair):
    """The second is told that somebody reads already, and the first gets what comes."""
    one, two = pair()
    reading = asyncio.create_task(two.stream.sink.read())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="somebody else"):
        await two.stream.sink.read()
    await one.stream.write(b"1")
    async with asyncio.timeout(5):
        assert await reading == b"1"


async def test_a_reader_that_is_cancelled_loses_nothing(pair):
    """Who stops waiting leaves what comes to the next."""
    one, two = pair()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await two.stream.sink.read()
    await one.stream.write(b"here")
    assert await soon(two.stream.sink.read()) == b"here"


async def test_a_writer_that_is_cancelled_has_sent_what_it_has(pair, buses):
    """The count stays right."""
    one, two = pair(10)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await one.stream.write(b"x" * 15)
    assert one.stream.outflow.sent == 10
    one.stream.end()
    assert await soon(all_of(two.stream)) == [b"x" * 10]


async def test_a_process_that_is_gone(pair):
    """All of it ends, with the reason."""
    one, _ = pair(10)
    writing = asyncio.create_task(one.stream.write(b"x" * 11))
    await asyncio.sleep(0)
    one.stream.lose("its process is gone")
    assert one.cancelled.is_set()
    with pytest.raises(Disconnected, match="its process is gone"):
        await soon(writing)
    with pytest.raises(Disconnected, match="its process is gone"):
        await soon(one.stream.sink.read())


async def test_a_bus_that_is_closed(buses):
    """Whoever writes or reads hears of it."""
    one, two = Side(buses[0]), Side(buses[1])
    one.connect(two, credit=100)
    two.connect(one, credit=100)
    reading = asyncio.create_task(one.stream.sink.read())
    await asyncio.sleep(0)
    await buses[0].close()
    with pytest.raises((Disconnected, NatsDown)):
        await soon(one.stream.write(b"x"))
    with pytest.raises(Disconnected):
        await soon(reading)
    one.stream.end()
    one.stream.cancel()
    for side in (one, two):
        side.stream.release()


async def test_another_sink(pair, buses):
    """What waits in a reader goes to the sink that follows, and then the rest, and the end once."""
    one, two = pair(10)
    reader = two.stream.sink
    await one.stream.write(b"first")
    await settled(*buses)
    taken = []

    class Sink:
        def data(self, data):
            taken.append(data)
            two.stream.used(len(data))

        def ended(self, ending):
            taken.append(ending)

    reader.drain_into(Sink())
    await one.stream.write(b"second" * 3)
    one.stream.end()
    await settled(*buses)
    assert (taken[0], b"".join(taken[1:-1]), taken[-1]) == (b"first", b"second" * 3, None)


async def test_another_sink_behind_the_end(pair, buses):
    """A stream that has ended ends for the next sink as well."""
    one, two = pair()
    await one.stream.write(b"all")
    one.stream.end("broken")
    await settled(*buses)
    other = Reader(two.stream)
    two.stream.sink.drain_into(other)
    assert await soon(other.read()) == b"all"
    with pytest.raises(Disconnected, match="broken"):
        await soon(other.read())


# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sockets(pair):
    """Give a function that makes the two ends of an open WebSocket."""

    def sockets(window=WINDOW, **options):
        one, two = pair(window)
        return (
            SocketPipe(one.stream, open=True, **options),
            SocketPipe(two.stream, open=True, **options),
        )

    return sockets


async def test_messages_both_ways(sockets):
    """Text stays text, bytes stay bytes, empty ones are messages, and none runs into another."""
    here, there = sockets(100)
    messages = ["", b"", "grün", b"\xff\x00", "x" * 250, b"y" * 99, b"z" * 100, "\N{SNOWMAN}" * 99]

    async def talk(one, other):
        for message in messages:
            _, got = await asyncio.gather(one.send(message), other.receive())
            assert (type(got), got) == (type(message), message)

    await soon(asyncio.gather(talk(here, there), talk(there, here)))


@pytest.mark.parametrize("size", [MAX_MESSAGE, CHUNK - 1, CHUNK])
async def test_large_messages(sockets, size):
    """A message may have 16 MiB, whatever the window."""
    here, there = sockets()
    message = (DATA * (size // len(DATA) + 1))[:size]
    _, got = await soon(asyncio.gather(here.send(message), there.receive()))
    assert (len(got), got == message) == (size, True)


async def test_messages_over_the_limit(sockets):
    """They close it with 1009, on both sides."""
    here, there = sockets(100, largest=1000)
    sending = asyncio.create_task(here.send(b"x" * 1001))
    with pytest.raises(WebSocketClosed) as caught:
        await soon(there.receive())
    assert caught.value.code == 1009
    with pytest.raises(WebSocketClosed) as caught:
        await soon(here.receive())
    assert caught.value.code == 1009
    await asyncio.gather(sending, return_exceptions=True)
    for one in (here, there):
        with pytest.raises(WebSocketClosed):
            await soon(one.send("more"))


@pytest.mark.parametrize(("part", "code"), [(b"x", 1002), (b"t\xff", 1007), (b"Thalf", None)])
async def test_parts_of_a_stranger(pair, part, code):
    """What breaks the rules closes it with the code that says so; half a message is none."""
    one, two = pair()
    there = SocketPipe(two.stream, open=True)
    one.say(payload=part)
    if code is None:
        one.say(encode_close(1000, "bye"))
    with pytest.raises(WebSocketClosed) as caught:
        await soon(there.receive())
    assert caught.value.code == (code or 1000)
    if code:
        with pytest.raises(WebSocketClosed) as caught:
            await soon(one.stream.sink.read())
        assert caught.value.code == code


async def test_senders_wait_for_each_other(sockets):
    """Parts of two messages never mix, however small the window is."""
    here, there = sockets(20)
    messages = [bytes([number]) * 200 for number in range(8)]
    sending = asyncio.gather(*[here.send(message) for message in messages])
    assert sorted([await soon(there.receive()) for _ in messages]) == messages
    await soon(sending)


async def test_a_send_that_is_cancelled(sockets):
    """The message that follows is not taken for the rest of the one that was cut off."""
    here, there = sockets(20)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await here.send(b"a" * 100)
    sending = asyncio.create_task(here.send(b"b" * 10))
    try:
        got = await soon(there.receive())
    except WebSocketClosed:
        got = b"b" * 10  # as good: it was cut off, visibly
    await asyncio.gather(sending, return_exceptions=True)
    assert got == b"b" * 10


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1011, 3000, 4999])
async def test_goodbyes(sockets, code):
    """Code and reason arrive; who has said goodbye sends no more, and a second goodbye is not said."""
    here, there = sockets()
    await here.send("last")
    await here.close(code, "grün \N{SNOWMAN}")
    await here.close(1011, "again")
    assert await soon(there.receive()) == "last"
    for _ in range(2):
        with pytest.raises(WebSocketClosed) as caught:
            await soon(there.receive())
        assert (caught.value.code, caught.value.reason) == (code, "grün \N{SNOWMAN}")
    with pytest.raises(WebSocketClosed):
        await soon(here.send("more"))
    with pytest.raises(WebSocketClosed):
        await soon(there.send("more"))
    assert "closed" in repr(here)


async def test_a_goodbye_to_one_who_sends(sockets, buses):
    """Whoever waits for room hears of it."""
    here, there = sockets(10)
    sending = asyncio.create_task(here.send(b"x" * 100))
    await settled(*buses)
    await there.close(1001, "away")
    with pytest.raises(WebSocketClosed) as caught:
        await soon(sending)
    assert caught.value.code == 1001


async def test_hanging_up(sockets):
    """Both sides hear of it, that which hangs up as well."""
    here, there = sockets()
    reading = asyncio.create_task(here.receive())
    await asyncio.sleep(0)
    here.hang_up(1012, "the service stops")
    for receiving in (reading, there.receive()):
        with pytest.raises(WebSocketClosed) as caught:
            await soon(receiving)
        assert (caught.value.code, caught.value.reason) == (1012, "the service stops")


async def test_a_connection_that_is_lost(pair):
    """It is 1006, for whoever talks and whoever listens."""
    one, two = pair(10)
    here = SocketPipe(one.stream, open=True)
    SocketPipe(two.stream, open=True)
    talking = [asyncio.create_task(here.receive()), asyncio.create_task(here.send(b"x" * 100))]
    await asyncio.sleep(0)
    one.stream.lose("its process is gone")
    for talk in talking:
        with pytest.raises(WebSocketClosed, match="its process is gone") as caught:
            await soon(talk)
        assert caught.value.code == 1006


async def test_an_upgrade(pair, buses):
    """It is answered once, with the chosen subprotocol, the headers and the first credit."""
    one, two = pair()
    there = SocketPipe(two.stream, subprotocols=["chat", "json"])
    accepted = []
    there.on_accept = lambda: accepted.append(there.is_accepted)
    assert "not accepted" in repr(there)
    await there.accept("json", {"x-a": "1", "sec-websocket-protocol": "other"})
    await there.accept("chat")
    await settled(*buses)
    [header] = one.controls
    said = decode_control(header)
    assert (said.status, said.flow) == (101, WINDOW)
    assert said.lines == b"x-a: 1\r\nsec-websocket-protocol: json\r\n"
    assert accepted == [True]
    assert "open" in repr(there)
