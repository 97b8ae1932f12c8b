"""The law of `Deadlines`: at its time or up to a tick later, never earlier, unless cancelled."""

import asyncio
import logging
import random
import time
from functools import partial

import pytest

from natsweb.deadlines import Deadlines, Timed


class Held(Timed):
    """Something with a deadline, and what it does when its time is up."""

    __slots__ = ("call",)


class Holder:
    """Holds things, with a deadline each: what an inbox or a worker is."""

    def __init__(self):
        self.held = set()
        self.deadlines = Deadlines(lambda: self.held, self.time_up)

    def after(self, seconds, call):
        """Hold something that calls when its time is up."""
        one = Held()
        one.call = call
        one.due = self.deadlines.start(seconds)
        self.held.add(one)
        return one

    def time_up(self, one):
        """Let go and call, unless it is over."""
        if one in self.held:
            self.held.discard(one)
            one.call()

    def cancel(self, one):
        """Let go of something."""
        self.held.discard(one)


@pytest.fixture
def holder():
    """Give a holder whose deadlines are closed with the test."""
    one = Holder()
    yield one
    one.deadlines.close()


async def test_all_fire_and_none_early(holder):
    """A thousand deadlines between zero and a few ticks all fire, each at its time or later."""
    loop = asyncio.get_running_loop()
    late, done = [], asyncio.Event()

    def fire(due):
        late.append(loop.time() - due)
        if len(late) == 1000:
            done.set()

    for _ in range(1000):
        seconds = random.uniform(0, 0.1)
        holder.after(seconds, partial(fire, loop.time() + seconds))
    assert len(holder.held) == 1000
    async with asyncio.timeout(10):
        await done.wait()
    assert min(late) >= -1e-6
    assert len(holder.held) == 0


@pytest.mark.parametrize("seconds", [0, -1, -1e9])
async def test_a_past_deadline_fires_soon_but_not_inside_after(holder, seconds):
    """What is already due fires from the event loop, never from within `after`."""
    fired = asyncio.Event()
    holder.after(seconds, fired.set)
    assert not fired.is_set()
    async with asyncio.timeout(10):
        await fired.wait()


async def test_a_cancelled_deadline_never_fires(holder):
    """What its holder lets go of is disarmed; that may happen after the deadline has fired."""
    fired, done = [], asyncio.Event()
    kept = holder.after(0.02, done.set)
    for _ in range(100):
        holder.cancel(holder.after(0.01, lambda: fired.append(1)))
    async with asyncio.timeout(10):
        await done.wait()
    holder.cancel(kept)
    assert fired == []


async def test_one_that_is_due_may_cancel_the_others(holder):
    """Of deadlines that cancel each other when they fire, exactly one fires."""
    fired, done, armed = [], asyncio.Event(), []

    def fire():
        fired.append(1)
        for other in armed:
            holder.cancel(other)

    armed += [holder.after(0.005, fire) for _ in range(20)]
    holder.after(0.05, done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert fired == [1]


async def test_an_earlier_deadline_armed_later_comes_first(holder):
    """The timer moves forward for a deadline that is due before the one it was armed for."""
    order, done = [], asyncio.Event()
    far = holder.after(3600, lambda: order.append("far"))
    holder.after(0.08, lambda: (order.append("second"), done.set()))
    holder.after(0.01, lambda: order.append("first"))
    async with asyncio.timeout(10):
        await done.wait()
    assert order == ["first", "second"]
    assert len(holder.held) == 1
    holder.cancel(far)
    assert len(holder.held) == 0


async def test_a_failing_callback_hurts_no_other(holder, caplog):
    """An exception of a callback is logged, and the others fire."""
    fired = asyncio.Queue()

    def fail():
        raise RuntimeError("boom")

    for seconds in (0.0, 0.0, 0.03):
        holder.after(seconds, fail)
        holder.after(seconds, lambda: fired.put_nowait(1))
    with caplog.at_level(logging.ERROR, "natsweb"):
        async with asyncio.timeout(10):
            for _ in range(3):
                await fired.get()
    assert len([record for record in caplog.records if record.exc_info]) == 3


async def test_a_callback_may_arm_the_next(holder):
    """A chain of deadlines, each armed by the one before, runs to its end."""
    done, left = asyncio.Event(), [5]

    def fire():
        left[0] -= 1
        if left[0]:
            holder.after(0, fire)
        else:
            done.set()

    holder.after(0, fire)
    async with asyncio.timeout(10):
        await done.wait()


async def test_close_disarms_everything(holder):
    """After `close` nothing fires and nothing is armed."""
    fired = []
    for seconds in (0, 0.01, 0.02):
        holder.after(seconds, lambda: fired.append(1))
    holder.deadlines.close()
    other, done = Holder(), asyncio.Event()
    other.after(0.05, done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert fired == []


async def test_close_inside_a_callback_disarms_the_rest(holder):
    """A callback that closes is the last that fires, and the event loop sees no exception."""
    fired, errors, done = [], [], asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))

    def close():
        fired.append(1)
        holder.deadlines.close()

    for seconds in (0, 0, 0, 0.011, 0.022, 0.033):
        holder.after(seconds, close)
    other = Holder()
    other.after(0.08, done.set)
    # Block the loop until all are due, so that one turn meets them all.
    time.sleep(0.06)
    async with asyncio.timeout(10):
        await done.wait()
    assert (fired, errors) == ([1], [])


async def test_what_stays_held_fires_once():
    """Something that its holder keeps beyond its time is not called again, and the timer does not spin."""
    fired, done = [], asyncio.Event()
    one = Held()
    deadlines = Deadlines(lambda: [one], fired.append)
    one.due = deadlines.start(0.0)
    other = Holder()
    other.after(0.08, done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert fired == [one]
    assert "idle" in repr(deadlines)


async def test_one_timer_serves_all(holder, monkeypatch):
    """A later deadline arms nothing, and what is over in time leaves the timer alone."""
    armed = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at
    monkeypatch.setattr(loop, "call_at", lambda *arguments: armed.append(1) or call_at(*arguments))
    for _ in range(1000):
        holder.cancel(holder.after(3600, armed.clear))
    assert len(armed) == 1
