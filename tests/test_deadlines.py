"""The law of `Deadlines`: at its time or up to a tick later, never earlier, unless cancelled."""

import asyncio
import logging
import random
import time
from functools import partial

import pytest

from natsweb.deadlines import Deadlines


@pytest.fixture
def deadlines():
    """Give deadlines that are closed with the test."""
    armed = Deadlines(tick=0.01)
    yield armed
    armed.close()


async def test_all_fire_and_none_early(deadlines):
    """A thousand deadlines between zero and a few ticks all fire, each at its time or later."""
    loop = asyncio.get_running_loop()
    late, done = [], asyncio.Event()

    def fire(due):
        late.append(loop.time() - due)
        if len(late) == 1000:
            done.set()

    for _ in range(1000):
        seconds = random.uniform(0, 0.1)
        deadlines.after(seconds, partial(fire, loop.time() + seconds))
    assert len(deadlines) == 1000
    async with asyncio.timeout(10):
        await done.wait()
    assert min(late) >= -1e-6
    assert len(deadlines) == 0


@pytest.mark.parametrize("seconds", [0, -1, -1e9])
async def test_a_past_deadline_fires_soon_but_not_inside_after(deadlines, seconds):
    """What is already due fires from the event loop, never from within `after`."""
    fired = asyncio.Event()
    deadlines.after(seconds, fired.set)
    assert not fired.is_set()
    async with asyncio.timeout(10):
        await fired.wait()


async def test_a_cancelled_deadline_never_fires(deadlines):
    """`cancel` disarms, may be called again, and after the deadline has fired."""
    fired, done = [], asyncio.Event()
    kept = deadlines.after(0.02, done.set)
    for _ in range(100):
        deadlines.after(0.01, lambda: fired.append(1)).cancel()
    async with asyncio.timeout(10):
        await done.wait()
    kept.cancel()
    kept.cancel()
    assert fired == []


async def test_one_of_a_bucket_may_cancel_the_others(deadlines):
    """Of deadlines that cancel each other when they fire, exactly one fires."""
    fired, done, armed = [], asyncio.Event(), []

    def fire():
        fired.append(1)
        for other in armed:
            other.cancel()

    armed += [deadlines.after(0.005, fire) for _ in range(20)]
    deadlines.after(0.05, done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert fired == [1]


async def test_an_earlier_deadline_armed_later_comes_first(deadlines):
    """The timer moves forward for a deadline that is due before the one it was armed for."""
    order, done = [], asyncio.Event()
    far = deadlines.after(3600, lambda: order.append("far"))
    deadlines.after(0.08, lambda: (order.append("second"), done.set()))
    deadlines.after(0.01, lambda: order.append("first"))
    async with asyncio.timeout(10):
        await done.wait()
    assert order == ["first", "second"]
    assert len(deadlines) == 1
    far.cancel()
    assert len(deadlines) == 0


async def test_a_failing_callback_hurts_no_other(deadlines, caplog):
    """An exception of a callback is logged, and the others fire."""
    fired = asyncio.Queue()

    def fail():
        raise RuntimeError("boom")

    for seconds in (0.0, 0.0, 0.03):
        deadlines.after(seconds, fail)
        deadlines.after(seconds, lambda: fired.put_nowait(1))
    with caplog.at_level(logging.ERROR, "natsweb"):
        async with asyncio.timeout(10):
            for _ in range(3):
                await fired.get()
    assert len([record for record in caplog.records if record.exc_info]) == 3


async def test_a_callback_may_arm_the_next(deadlines):
    """A chain of deadlines, each armed by the one before, runs to its end."""
    done, left = asyncio.Event(), [5]

    def fire():
        left[0] -= 1
        if left[0]:
            deadlines.after(0, fire)
        else:
            done.set()

    deadlines.after(0, fire)
    async with asyncio.timeout(10):
        await done.wait()


async def test_close_disarms_everything(deadlines):
    """After `close` nothing fires and nothing is armed."""
    fired = []
    for seconds in (0, 0.01, 0.02):
        deadlines.after(seconds, lambda: fired.append(1))
    deadlines.close()
    assert len(deadlines) == 0
    other, done = Deadlines(tick=0.01), asyncio.Event()
    other.after(0.05, done.set)
    async with asyncio.timeout(10):
        await done.wait()
    assert fired == []


async def test_close_inside_a_callback_disarms_the_rest(deadlines):
    """A callback that closes is the last that fires, and the event loop sees no exception."""
    fired, errors, done = [], [], asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))

    def close():
        fired.append(1)
        deadlines.close()

    for seconds in (0, 0, 0, 0.011, 0.022, 0.033):
        deadlines.after(seconds, close)
    other = Deadlines(tick=0.01)
    other.after(0.08, done.set)
    # Block the loop until all are due, so that one turn meets them all.
    time.sleep(0.06)
    async with asyncio.timeout(10):
        await done.wait()
    assert (fired, errors) == ([1], [])
