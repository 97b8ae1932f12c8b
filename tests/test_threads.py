"""Threads: a bounded pool, another for cleanup, and nothing that a function raises or waits for gets lost between."""

import asyncio
import contextlib
import contextvars
import re
import threading
from collections.abc import Iterator
from typing import Annotated

import pytest

from natsweb import Depends, Request, Service
from natsweb.threads import InThread, Threads

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def threads():
    """Two threads, gone with the test."""
    threads = Threads(2, "test")
    yield threads
    threads.close()


def thread_name() -> str:
    """Return the name of the thread that asks."""
    return threading.current_thread().name


# ── the pool ─────────────────────────────────────────────────────────────────────────────────────


async def test_threads_start_when_they_are_needed(threads):
    """Before the first call there are none, and each is named after its owner."""
    assert repr(threads) == "<Threads of test: 2, idle>"
    assert re.fullmatch(r"natsweb-test_\d", await threads.run(thread_name))
    assert repr(threads) == "<Threads of test: 2, started>"


async def test_what_a_call_gives(threads):
    """The value of a call, or what it awaits to in the loop."""

    async def later() -> str:
        return thread_name()

    assert await threads.run(lambda: 7) == 7
    assert await threads.run(lambda: None) is None
    assert await threads.run(later) == thread_name()


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_call_raises(threads, error):
    """Any exception of a thread is raised where it is awaited, and the thread lives on."""

    def fail():
        raise error

    for _ in range(3):  # more often than there are threads
        with pytest.raises(BaseException) as caught:
            await threads.run(fail)
        assert caught.value is error


async def test_stop_iteration_becomes_a_runtime_error(threads):
    """No coroutine can raise StopIteration; waiting for ever would be the other way."""
    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            await threads.run(lambda: next(iter([])))
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_the_context_of_a_call(threads):
    """A call sees the caller's variables, keeps its own to itself, and takes another context if told to."""

    def change() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("changed")
        return seen

    VARIABLE.set("caller")
    context = contextvars.copy_context()
    context.run(VARIABLE.set, "context")
    assert await threads.run(change) == "caller"
    assert await threads.run(change, context) == "context"
    assert await threads.run(change, context) == "changed"
    assert VARIABLE.get() == "caller"


async def test_a_call_that_is_cancelled_before_it_starts_never_runs(threads):
    """While all threads are busy, cancelling a call takes it out of the queue."""
    release, ran = threading.Event(), []
    busy = [asyncio.create_task(threads.run(lambda: release.wait(10))) for _ in range(2)]
    waiting = asyncio.create_task(threads.run(lambda: ran.append(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    assert await asyncio.gather(*busy) == [True, True]
    await threads.run(lambda: None)
    assert ran == []


async def test_a_cancelled_caller_waits_for_its_thread(threads):
    """Nothing is cleaned up under a thread that runs; whoever is cancelled a second time does not wait."""
    release = threading.Event()
    waiting = asyncio.create_task(threads.run(lambda: release.wait(10)))
    hasty = asyncio.create_task(threads.run(lambda: release.wait(10)))
    await asyncio.sleep(0)
    waiting.cancel()
    hasty.cancel()
    await asyncio.sleep(0)
    hasty.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hasty
    assert not waiting.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_closing_drops_what_has_not_started(threads):
    """What runs is left behind, what waits is cancelled, and the next call has new threads."""
    release = threading.Event()
    busy = [asyncio.create_task(threads.run(lambda: release.wait(10))) for _ in range(2)]
    waiting = asyncio.create_task(threads.run(thread_name))
    await asyncio.sleep(0)
    threads.close()
    assert repr(threads) == "<Threads of test: 2, idle>"
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await threads.run(thread_name)
    release.set()
    assert await asyncio.gather(*busy) == [True, True]


async def test_closing_leaves_no_threads(until):
    """A closed pool's threads end."""
    threads = Threads(3, "leaver")
    await asyncio.gather(*[threads.run(thread_name) for _ in range(10)])
    await threads.clean_up(thread_name, contextvars.copy_context())
    threads.close()
    threads.close()
    await until(lambda: not any("leaver" in thread.name for thread in threading.enumerate()))


# ── cleanup ──────────────────────────────────────────────────────────────────────────────────────


async def test_cleanup_has_threads_of_its_own(threads):
    """A cleanup runs while all threads of handlers are busy."""
    release = threading.Event()
    busy = [asyncio.create_task(threads.run(lambda: release.wait(10))) for _ in range(2)]
    async with asyncio.timeout(5):
        name = await threads.clean_up(thread_name, contextvars.copy_context())
    release.set()
    await asyncio.gather(*busy)
    assert re.fullmatch(r"natsweb-test-cleanup_\d", name)


async def test_a_cleanup_that_is_given_up_leaves_its_thread_behind(threads):
    """A cancelled caller does not wait for a thread of cleanup, and the next ones have new threads."""
    release, context = threading.Event(), contextvars.copy_context()
    hanging = [asyncio.create_task(threads.clean_up(lambda: release.wait(10), context.copy())) for _ in range(4)]
    await asyncio.sleep(0)
    hanging[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging[0]
    async with asyncio.timeout(5):
        assert re.fullmatch(r"natsweb-test-cleanup_\d", await threads.clean_up(thread_name, context))
    release.set()
    assert await asyncio.gather(*hanging[1:]) == [True] * 3


async def test_cleanup_raises_what_it_raises(threads):
    """SystemExit and the like come out where the cleanup is awaited."""

    def leave():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await threads.clean_up(leave, contextvars.copy_context())


async def test_a_context_manager_in_threads(threads):
    """Both ends have the same context variables, and threads of the two pools."""
    names = []

    @contextlib.contextmanager
    def manage() -> Iterator[str]:
        token = VARIABLE.set("inside")
        names.append(thread_name())
        yield VARIABLE.get()
        names.append(thread_name())
        VARIABLE.reset(token)

    async with InThread(threads, manage()) as value:
        assert value == "inside"
        assert VARIABLE.get() == "unset"
    assert [name.rpartition("_")[0] for name in names] == ["natsweb-test", "natsweb-test-cleanup"]


@pytest.mark.parametrize("swallow", [True, False])
async def test_a_context_manager_sees_the_error(threads, swallow):
    """The error is thrown into it, and it may swallow it."""
    seen = []

    @contextlib.contextmanager
    def manage() -> Iterator[None]:
        try:
            yield
        except KeyError as error:
            seen.append(error)
            if not swallow:
                raise

    error = KeyError("x")
    with contextlib.ExitStack() as stack:
        if not swallow:
            stack.enter_context(pytest.raises(KeyError))
        async with InThread(threads, manage()):
            raise error
    assert seen == [error]


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit(3)], ids=["StopIteration", "SystemExit"])
async def test_errors_that_no_future_carries_reach_a_context_manager(threads, error):
    """StopIteration and SystemExit of the block are seen by the generator and come out again."""
    seen = []

    @contextlib.contextmanager
    def manage() -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(error)
            raise

    async def block() -> None:
        async with InThread(threads, manage()):
            raise error

    with pytest.raises((RuntimeError, SystemExit)):
        await block()
    assert seen == [error]


# ── no deadlock ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scope", ["handler", "request"])
@pytest.mark.parametrize("size", [1, 2])
async def test_handlers_that_wait_for_a_cleanup(scope, size):
    """Plain handlers that hold every thread until a plain cleanup frees a connection all get their turn."""
    service = Service("test", threads=2)
    connections = threading.Semaphore(size)

    def connection() -> Iterator[list[bool]]:
        taken: list[bool] = []
        yield taken
        if taken:
            connections.release()

    @service.get("/")
    def show(taken: Annotated[list[bool], Depends(connection, scope=scope)]) -> bool:
        if connections.acquire(timeout=20):
            taken.append(True)
        return bool(taken)

    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[service.handle(Request()) for _ in range(20)])
    service.close()
    assert {answer.text for answer in answers} == {"true"}


@pytest.mark.parametrize("scope", ["handler", "request"])
async def test_dependencies_that_wait_for_a_cleanup(scope):
    """Plain dependencies that hold every thread until another request's cleanup frees one get theirs."""
    service = Service("test", threads=2)
    connections = threading.Semaphore(1)

    def connection() -> Iterator[bool]:
        taken = connections.acquire(timeout=20)
        yield taken
        if taken:
            connections.release()

    @service.get("/")
    async def show(taken: Annotated[bool, Depends(connection, scope=scope)]) -> bool:
        await asyncio.sleep(0)
        return taken

    async with asyncio.timeout(20):
        answers = await asyncio.gather(*[service.handle(Request()) for _ in range(20)])
    service.close()
    assert {answer.text for answer in answers} == {"true"}


@pytest.mark.parametrize(
    "when",
    [
        "after",
        pytest.param(
            "behind",
            marks=pytest.mark.xfail(strict=True, reason="what waits for a hanging cleanup's thread never runs"),
        ),
    ],
)
async def test_cleanups_that_hang_do_not_stop_all_others(monkeypatch, until, when):
    """However many cleanups hang in their threads, that of another request runs, later or while it waits for them."""
    monkeypatch.setattr("natsweb.scopes._CLEANUP_TIME", 1.0)
    service = Service("test", threads=2)
    release, hanging, cleaned = threading.Event(), [], []

    def stuck() -> Iterator[None]:
        yield
        hanging.append(True)
        release.wait(30)

    def fine() -> Iterator[None]:
        yield
        cleaned.append(True)

    @service.get("/stuck")
    async def show_stuck(x: Annotated[None, Depends(stuck)]): ...

    @service.get("/fine")
    async def show_fine(x: Annotated[None, Depends(fine)]): ...

    stuck_ones = [asyncio.create_task(service.handle(Request(raw_path="/stuck"))) for _ in range(8)]
    if when == "after":
        await asyncio.wait(stuck_ones)
    else:
        await until(lambda: len(hanging) == 4)
    await service.handle(Request(raw_path="/fine"))
    done = list(cleaned)
    release.set()
    await asyncio.gather(*stuck_ones)
    service.close()
    assert done == [True]


async def test_a_thread_pool_that_is_full_leaves_async_requests_alone():
    """Requests without plain functions are answered while every thread is blocked."""
    service = Service("test", threads=1)
    release = threading.Event()

    @service.get("/plain")
    def plain() -> bool:
        return release.wait(20)

    @service.get("/async")
    async def other(x: Annotated[int, Depends(lambda: 7, inline=True)]) -> int:
        return x

    blocked = [asyncio.create_task(service.handle(Request(raw_path="/plain"))) for _ in range(5)]
    assert (await service.handle(Request(raw_path="/async"))).text == "7"
    release.set()
    assert {answer.text for answer in await asyncio.gather(*blocked)} == {"true"}
    service.close()
