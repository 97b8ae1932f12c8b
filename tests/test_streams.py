"""The credit machine as a pair, over a channel that loses, repeats and reorders credits; and messages in parts."""

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from natsweb.errors import WebSocketClosed
from natsweb.streams import CHUNK, MAX_MESSAGE, WINDOW, Assembler, Inflow, Outflow, next_part

law = settings(deadline=None, max_examples=200)
some = st.randoms(use_true_random=False)


# ── the pair ─────────────────────────────────────────────────────────────────────────────────────


class Pair(RuleBasedStateMachine):
    """A sender and a receiver; data comes in order, credits as they like."""

    @initialize(window=st.integers(1, 40), first=st.integers(0, 10), credit=st.booleans())
    def begin(self, window, first, credit):
        """The first part may go with the first message; the first credit is known from there, or comes on its own."""
        self.window, self.first = window, first
        self.inflow = Inflow(window, first)
        self.outflow = Outflow(self.inflow.allowed if credit else first, first)
        self.newest = self.inflow.allowed
        self.credits = [] if credit else [self.newest]
        self.seen = self.newest if credit else 0
        self.wire, self.waiting = deque(), deque()
        self.written, self.used = [], []
        self.tick = 0

    @rule(size=st.integers(1, 60), largest=st.integers(1, 20))
    def write(self, size, largest):
        """Send what may go: at most `largest` at once, and never more than there is room for."""
        room = self.outflow.room
        count = self.outflow.take(size, largest)
        assert count == max(0, min(size, largest, room))
        if count:
            data = [self.tick + n for n in range(count)]
            self.tick += count
            self.written += data
            self.wire.append(data)

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self):
        """The oldest data message arrives."""
        data = self.wire.popleft()
        assert self.inflow.receive(len(data))
        self.waiting.append(data)

    @precondition(lambda self: self.waiting)
    @rule()
    def use(self):
        """The receiver uses up what has waited longest, and may say more credit."""
        data = self.waiting.popleft()
        self.used += data
        total = self.inflow.use(len(data))
        if total is not None:
            assert total > self.newest
            self.newest = total
            self.credits.append(total)

    @precondition(lambda self: self.credits)
    @rule(chance=some, keep=st.booleans())
    def credit(self, chance, keep):
        """Any credit arrives, and may come again."""
        at = chance.randrange(len(self.credits))
        total = self.credits[at] if keep else self.credits.pop(at)
        more = self.outflow.allow(total)
        assert more == (total > self.seen and total > self.first)
        self.seen = max(self.seen, total)

    @precondition(lambda self: self.credits)
    @rule(chance=some)
    def lose(self, chance):
        """Any credit is lost."""
        self.credits.pop(chance.randrange(len(self.credits)))

    @rule()
    def remind(self):
        """The receiver says its credit again."""
        self.credits.append(self.inflow.allowed)

    @invariant()
    def keeps_the_order(self):
        """All that was used is the beginning of all that was written."""
        if hasattr(self, "used"):
            assert self.used == self.written[: len(self.used)]

    @invariant()
    def keeps_the_window(self):
        """Never is more under way and waiting than the window has."""
        if hasattr(self, "used"):
            assert self.outflow.sent <= self.outflow.allowed <= self.inflow.allowed
            assert self.outflow.sent - self.inflow.used <= self.window
            assert self.inflow.allowed == self.newest
            assert self.inflow.received - self.inflow.used == sum(map(len, self.waiting))

    def teardown(self):
        """When all has been used and the newest credit got through, there is room: they never wait for each other."""
        if not hasattr(self, "used"):
            return
        while self.wire:
            self.deliver()
        while self.waiting:
            self.use()
        self.outflow.allow(self.newest)
        assert self.outflow.room >= max(1, self.window - self.window // 2)
        assert self.used == self.written


Pair.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestPair = Pair.TestCase


@law
@given(st.integers(1, 3000), st.integers(1, 5000), st.lists(st.integers(1, 900), min_size=1), some)
def test_a_whole_transfer(window, size, pieces, chance):
    """Whatever the window and the pieces, all bytes arrive, in few credits: each is worth half a window at least."""
    inflow, outflow = Inflow(window), Outflow(window)
    data = chance.randbytes(size)
    got, credits, start, turn = b"", 0, 0, 0
    while start < size:
        count = outflow.take(min(size - start, pieces[turn % len(pieces)]))
        turn += 1
        assert count, "both wait"
        assert inflow.receive(count)
        got += data[start : start + count]
        start += count
        total = inflow.use(count)
        if total is not None:
            credits += 1
            assert outflow.allow(total)
    assert got == data
    assert credits <= size // ((window + 1) // 2)


def test_what_goes_at_once():
    """The chunk, the room and the data: the least of them goes."""
    outflow = Outflow(3 * CHUNK)
    assert outflow.take(10 * CHUNK) == CHUNK
    assert outflow.take(10) == 10
    assert outflow.take(10 * CHUNK, 3 * CHUNK) == 2 * CHUNK - 10
    outflow = Outflow(5)
    assert [outflow.take(3), outflow.take(3), outflow.take(3)] == [3, 2, 0]
    assert (outflow.room, outflow.sent) == (0, 5)


def test_credits_are_totals():
    """One that is old or repeated lets nothing more go."""
    outflow = Outflow()
    assert [outflow.allow(total) for total in (10, 10, 5, 11, 0)] == [True, False, False, True, False]
    assert outflow.room == 11


def test_no_room_is_never_less_than_nothing_to_send():
    """A body whose first part is more than the credit waits until it is less."""
    outflow = Outflow(10, 15)
    assert (outflow.room, outflow.take(3)) == (-5, 0)
    assert outflow.allow(16)
    assert outflow.take(3) == 1


def test_more_than_was_allowed():
    """One byte too many is seen."""
    inflow = Inflow(10)
    assert inflow.receive(10)
    assert not inflow.receive(1)


def test_credit_at_half_a_window():
    """Not for every byte, and never later."""
    inflow = Inflow(10)
    inflow.receive(10)
    assert [inflow.use(1) for _ in range(10)] == [None, None, None, None, 15, None, None, None, None, 20]


def test_their_words():
    """A repr tells the state."""
    inflow, outflow = Inflow(10, 2), Outflow(5, 1)
    inflow.receive(3)
    assert repr(inflow) == "<Inflow: 2 used of 5 of 12 bytes>"
    assert repr(outflow) == "<Outflow: 1 of 5 bytes>"
    assert repr(Assembler()) == "<Assembler: 0 bytes of a message>"
    assert WINDOW // 2 > CHUNK


# ── messages in parts ────────────────────────────────────────────────────────────────────────────


def parts_of(message, rooms):
    """Return the parts of a message, for rooms that come one after the other, and again."""
    data, is_text = (message.encode(), True) if isinstance(message, str) else (message, False)
    start, parts, turn = -1, [], 0
    while start < len(data):
        room = rooms[turn % len(rooms)]
        part, start = next_part(data, max(start, 0), is_text, room)
        assert 1 <= len(part) <= min(room, CHUNK)
        parts.append(part)
        turn += 1
    return parts


MESSAGES = st.one_of(st.text(max_size=40), st.binary(max_size=60))
ROOMS = st.lists(st.integers(1, 20), min_size=1, max_size=8).filter(lambda rooms: max(rooms) > 1)


@law
@given(st.lists(st.tuples(MESSAGES, ROOMS), max_size=6))
def test_messages_come_out_whole(messages):
    """However a message was split, also in the middle of a character, it comes out as it was, and the next one too."""
    assembler = Assembler()
    for message, rooms in messages:
        *parts, last = parts_of(message, rooms)
        assert all(part[:1] in b"TB" and assembler.take(part) is None for part in parts)
        assert last[:1] in b"tb"
        found = assembler.take(last)
        assert (type(found), found) == (type(message), message)
    assert repr(assembler) == "<Assembler: 0 bytes of a message>"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 2, CHUNK - 1, CHUNK, 5 * CHUNK + 3])
@pytest.mark.parametrize("room", [2, 3, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK])
def test_parts_at_the_edges(size, room):
    """A part is never larger than a data message, nor than the room; the last one is empty if the message is."""
    size = min(size, 2000 * room)
    message = random.Random(size).randbytes(size)
    parts = parts_of(message, [room])
    assert b"".join(part[1:] for part in parts) == message
    assert [part[:1] for part in parts] == [b"B"] * (len(parts) - 1) + [b"b"]
    assert len(parts[-1]) > 1 or not message


def code_of(parts, largest=MAX_MESSAGE):
    """Return the code that a receiver closes with, None if it does not."""
    assembler = Assembler(largest)
    try:
        for part in parts:
            found = assembler.take(part)
            assert found is None or len(found if isinstance(found, bytes) else found.encode()) <= largest
    except WebSocketClosed as closed:
        return closed.code
    return None


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"x"],
        [b"\x00data"],
        [b"Thalf", b"bother"],
        [b"Thalf", b"Bother"],
        [b"Bhalf", b"tother"],
        [b"Bhalf", b"Tother"],
        [b"twhole", b""],
        [b"Thalf", b""],
        [b"Thalf", b"xrest"],
    ],
)
def test_parts_that_make_no_sense(parts):
    """They are a protocol error."""
    assert code_of(parts) == 1002


@pytest.mark.parametrize(
    "parts", [[b"t12345678901"], [b"B12345", b"B67890", b"B1"], [b"T1234567890", b"t1"], [b"b" + bytes(100)]]
)
def test_messages_that_are_too_large(parts):
    """One byte over the limit is seen before the message is whole."""
    assert code_of(parts, 10) == 1009


def test_a_message_of_the_limit():
    """It passes, and so does the next one."""
    assembler = Assembler(10)
    for _ in range(3):
        assert assembler.take(b"B12345") is None
        assert assembler.take(b"b67890") == b"1234567890"


@pytest.mark.parametrize(
    "parts", [[b"t\xff"], [b"T\xc3", b"t("], [b"t\xc3"], [b"T\xed\xa0", b"t\x80"], [b"T\xe2\x82", b"T", b"t"]]
)
def test_text_that_is_none(parts):
    """UTF-8 is checked on the whole message."""
    assert code_of(parts) == 1007


@law
@given(st.lists(st.binary(max_size=8), max_size=10), st.integers(0, 20))
def test_no_parts_do_anything_else(parts, largest):
    """Whatever comes is a message within the limit, more to come, or one of three codes."""
    assert code_of(parts, largest) in (None, 1002, 1007, 1009)
