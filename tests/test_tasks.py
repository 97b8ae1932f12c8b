"""Work in asyncio tasks: those that never wait share one, and no piece sees anything of another."""

import asyncio
import contextvars

import pytest

from natsweb.tasks import Tasks

NOTE = contextvars.ContextVar("NOTE", default="nothing")


class Piece:
    """Work that does what `do` says."""

    def __init__(self, do):
        self.do = do
        self.task = None
        self.done = asyncio.Event()


async def run(pieces):
    """Do them, as a worker does: nothing gets out."""
    for piece in pieces:
        try:
            await piece.do()
        except BaseException as error:
            piece.error = error
        finally:
            piece.done.set()


@pytest.fixture
async def tasks():
    """Tasks that nothing has been started in."""
    return Tasks(run, "test")


def started(tasks, *works):
    """Start works, and return their pieces."""
    pieces = [Piece(work) for work in works]
    for piece in pieces:
        tasks.start(piece)
    return pieces


async def all_done(pieces):
    """Wait until all of them have ended."""
    async with asyncio.timeout(5):
        for piece in pieces:
            await piece.done.wait()


async def test_what_does_not_wait_shares_a_task(tasks):
    """In its order, in one turn."""
    order = []

    def note(number):
        async def work():
            order.append(number)

        return work

    pieces = started(tasks, *[note(number) for number in range(50)])
    assert order == []
    await all_done(pieces)
    assert order == list(range(50))
    assert len({piece.task for piece in pieces}) == 1


async def test_what_waits_holds_up_nobody(tasks):
    """What is behind it goes on in another task, and its own ends with it."""
    gate, order = asyncio.Event(), []

    async def wait():
        await gate.wait()
        order.append("first")

    async def quick():
        order.append("second")

    first, second, third = pieces = started(tasks, wait, quick, wait)
    await second.done.wait()
    assert order == ["second"]
    assert first.task is not second.task
    gate.set()
    await all_done(pieces)
    assert order == ["second", "first", "first"]
    assert len({first.task, second.task, third.task}) >= 2
    assert first.task is not third.task
    await asyncio.sleep(0)
    assert first.task.done()


async def test_cancelling_one_hits_one(tasks):
    """A task that waits belongs to its work."""
    gate = asyncio.Event()

    async def quick():
        pass

    pieces = started(tasks, quick, gate.wait, gate.wait, quick)
    await pieces[3].done.wait()
    pieces[1].task.cancel()
    await pieces[1].done.wait()
    assert isinstance(pieces[1].error, asyncio.CancelledError)
    assert not pieces[2].done.is_set()
    gate.set()
    await all_done(pieces)
    assert not hasattr(pieces[2], "error")


async def test_who_cancels_itself_hits_nobody_else(tasks):
    """Whether it then waits or not."""

    async def cancel_and_return():
        asyncio.current_task().cancel()

    async def cancel_and_wait():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async def wait():
        await asyncio.sleep(0)
        assert not asyncio.current_task().cancelling()

    pieces = started(tasks, cancel_and_return, wait, cancel_and_wait, wait)
    await all_done(pieces)
    assert not hasattr(pieces[1], "error")
    assert not hasattr(pieces[3], "error")


async def test_context_variables_do_not_leak(tasks):
    """Not from one work to the next, and not from whoever starts it; a reset is no change."""
    seen = []

    async def change():
        NOTE.set("changed")

    async def change_and_reset():
        NOTE.reset(NOTE.set("changed"))

    async def wait_and_change():
        await asyncio.sleep(0)
        NOTE.set("changed later")

    async def look():
        seen.append(NOTE.get())

    NOTE.set("the caller's")
    pieces = started(tasks, look, change, look, change_and_reset, look, wait_and_change, look, change)
    await all_done(pieces)
    await all_done(started(tasks, look))
    assert seen == ["nothing"] * 5


async def test_time_limits_and_groups(tasks):
    """What is bound to the current task works in every place of a batch."""
    reached = []

    async def quick():
        pass

    async def limited():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        reached.append("limit")

    async def grouped():
        async with asyncio.TaskGroup() as group:
            group.create_task(quick())
        reached.append("group")

    pieces = started(tasks, quick, limited, quick, grouped, limited)
    await all_done(pieces)
    assert not any(hasattr(piece, "error") for piece in pieces)
    assert sorted(reached) == ["group", "limit", "limit"]


async def test_work_that_starts_work(tasks):
    """It runs behind what is there already, whether the first one waits for it or not."""
    inner = []

    async def start_and_wait():
        inner.extend(started(tasks, asyncio.Event().wait, quick))
        await inner[1].done.wait()

    async def quick():
        pass

    [outer] = started(tasks, start_and_wait)
    await all_done([outer])
    inner[0].task.cancel()
    await all_done(inner)
