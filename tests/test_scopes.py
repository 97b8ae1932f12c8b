"""Dependencies, a test per sentence of their contract: when they are made, what they see, when they are cleaned up."""

import asyncio
import contextvars
import functools
import itertools
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Optional, Protocol, Union

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

import natsweb.recipes
import natsweb.scopes
from natsweb import (
    Auth,
    Background,
    Bearer,
    Body,
    Depends,
    Form,
    HTTPError,
    Query,
    Request,
    Response,
    Router,
    Service,
    UploadFile,
)
from natsweb.bus import request
from natsweb.errors import DeclarationError, InvalidInput
from natsweb.messages import Call
from natsweb.subjects import path_tokens
from natsweb.wire import decode_response
from natsweb.worker import Worker

Journal = list[str]


@pytest.fixture
def service():
    """A service whose threads end with the test."""
    service = Service("test", threads=4)
    yield service
    service.close()


@pytest.fixture
def journal() -> Journal:
    """What happened, in order."""
    return []


async def ask(service: Service, path: str = "/", **fields: Any) -> Response:
    """Answer one request, cleanup included."""
    return await service.handle(Request(raw_path=path, **fields))


async def serve_one(service: Service, journal: Journal, path: str = "/") -> Response:
    """Answer one request as the worker does, and write down when the reply goes."""
    call = Call("GET", path_tokens(path))
    response = (await service.handle(call)).response()
    journal.append(f"reply {response.status}")
    if call.after is not None:
        await call.after.close()
    return response


# How a dependency with cleanup may be written: as what, and whether in a thread.
KINDS = ["async", "async manager", "sync", "manager", "inline"]


def tracked(
    journal: Journal,
    name: str,
    kind: str = "async",
    *,
    scope: Any = "request",
    translate: Callable[[BaseException], BaseException | None] = lambda error: error,
) -> Depends:
    """Return a dependency that writes down when it is made, which error it sees, and when it is cleaned up.

    `translate` gives what it raises instead of an error, None for nothing.
    """

    def see(error: BaseException) -> None:
        journal.append(f"{name} sees {type(error).__name__}")
        instead = translate(error)
        if instead is not None:
            raise instead

    async def waits() -> AsyncIterator[str]:
        journal.append(f"make {name}")
        try:
            yield name
        except BaseException as error:
            see(error)
        finally:
            journal.append(f"close {name}")

    def blocks() -> Iterator[str]:
        journal.append(f"make {name}")
        try:
            yield name
        except BaseException as error:
            see(error)
        finally:
            journal.append(f"close {name}")

    function: Callable[..., Any] = {
        "async": waits,
        "async manager": asynccontextmanager(waits),
        "sync": blocks,
        "manager": contextmanager(blocks),
        "inline": blocks,
    }[kind]
    return Depends(function, scope=scope, inline=kind == "inline")


def failing(journal: Journal, name: str, error: BaseException, *, scope: Any = "request") -> Depends:
    """Return a dependency whose cleanup raises."""

    async def make() -> AsyncIterator[str]:
        try:
            yield name
        finally:
            journal.append(f"close {name}")
            raise error

    return Depends(make, scope=scope)


# ── order ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_each_scope_ends_in_its_time_and_in_the_reverse_order(service, journal, kind):
    """Handler scope ends before the reply, request scope after it, app scope when the service stops; newest first."""
    dep = functools.partial(tracked, journal, kind=kind)

    @service.get("/")
    async def show(
        a1: Annotated[str, dep("a1", scope="app")],
        r1: Annotated[str, dep("r1", scope="request")],
        h1: Annotated[str, dep("h1", scope="handler")],
        a2: Annotated[str, dep("a2", scope="app")],
        r2: Annotated[str, dep("r2", scope="request")],
        h2: Annotated[str, dep("h2", scope="handler")],
    ) -> str:
        journal.append("handle")
        return a1 + r1 + h1 + a2 + r2 + h2

    async with service:
        assert journal == ["make a1", "make a2"]
        journal.clear()
        assert (await serve_one(service, journal)).text == "a1r1h1a2r2h2"
        made, cleaned = ["make r1", "make h1", "make r2", "make h2"], ["close h2", "close h1"]
        assert journal == [*made, "handle", *cleaned, "reply 200", "close r2", "close r1"]
        journal.clear()
    assert journal == ["close a2", "close a1"]


async def test_a_dependency_ends_before_what_it_is_made_of(service, journal):
    """What a dependency needs is made before it, and cleaned up after it."""
    inner = tracked(journal, "inner")

    async def outer(made_of: Annotated[str, inner]) -> AsyncIterator[str]:
        journal.append("make outer")
        yield f"outer of {made_of}"
        journal.append("close outer")

    @service.get("/")
    async def show(it: Annotated[str, Depends(outer)]) -> str:
        return it

    assert (await serve_one(service, journal)).text == "outer of inner"
    assert journal == ["make inner", "make outer", "reply 200", "close outer", "close inner"]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "status"),
    [(HTTPError(404), 404), (KeyError("k"), 500), (SystemExit(1), 500), (asyncio.CancelledError(), 500)],
    ids=lambda value: type(value).__name__,
)
async def test_both_scopes_see_the_error_of_the_handler(service, journal, kind, error, status):
    """What the handler raises is thrown into the dependencies of the request, those of scope handler first."""

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r", kind)], h: Annotated[str, tracked(journal, "h", kind, scope="handler")]
    ):
        raise error

    assert (await serve_one(service, journal)).status == status
    sees = f"sees {type(error).__name__}"
    assert journal[2:] == [f"h {sees}", "close h", f"reply {status}", f"r {sees}", "close r"]


async def test_an_app_dependency_sees_no_error_of_a_request(service, journal):
    """What lives as long as the service is not touched by one request that fails."""

    @service.get("/")
    async def show(a: Annotated[str, tracked(journal, "a", scope="app")]):
        raise KeyError

    async with service:
        assert (await serve_one(service, journal)).status == 500
        assert (await serve_one(service, journal)).status == 500
    assert journal == ["make a", "reply 500", "reply 500", "close a"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_scope_may_raise_another_error_instead(service, journal, kind):
    """A dependency of scope handler translates the error; the older ones, and the answer, see the new one."""
    to_conflict = tracked(journal, "h", kind, scope="handler", translate=lambda error: HTTPError(409, "taken"))

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r")],
        older: Annotated[str, tracked(journal, "older", scope="handler")],
        h: Annotated[str, to_conflict],
    ):
        raise KeyError

    response = await serve_one(service, journal)
    assert (response.status, response.parse_json()["detail"]) == (409, "taken")
    assert journal[3:] == [
        *("h sees KeyError", "close h", "older sees HTTPError", "close older"),
        *("reply 409", "r sees HTTPError", "close r"),
    ]


async def test_an_error_handler_sees_the_translated_error(service, journal):
    """`on_error` comes after the cleanup of scope handler."""

    class Taken(Exception):
        pass

    @service.on_error(Taken)
    def taken(request: Request, error: Taken) -> Response:
        journal.append("on_error")
        return Response(status=409)

    @service.get("/")
    async def show(h: Annotated[str, tracked(journal, "h", scope="handler", translate=lambda error: Taken())]):
        raise KeyError

    assert (await serve_one(service, journal)).status == 409
    assert journal == ["make h", "h sees KeyError", "close h", "on_error", "reply 409"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("error", "status"), [(KeyError("k"), 500), (HTTPError(404), 404)])
async def test_an_error_that_a_handler_scope_swallows_is_the_answer_all_the_same(
    service, journal, caplog, kind, error, status
):
    """There is nothing else to answer with: the error is answered, and the request's dependencies see it."""

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r")],
        h: Annotated[str, tracked(journal, "h", kind, scope="handler", translate=lambda error: None)],
    ):
        raise error

    assert (await serve_one(service, journal)).status == status
    assert f"r sees {type(error).__name__}" in journal
    assert len(caplog.records) == (status == 500)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_request_scope_cannot_change_the_answer(service, journal, caplog, kind):
    """The reply has gone: an error raised instead is logged, one that is swallowed is swallowed from the older ones."""

    @service.get("/raises")
    async def raises(r: Annotated[str, tracked(journal, "r", kind, translate=lambda error: HTTPError(409))]):
        raise HTTPError(404)

    @service.get("/swallows")
    async def swallows(
        older: Annotated[str, tracked(journal, "older")],
        r: Annotated[str, tracked(journal, "r", kind, translate=lambda error: None)],
    ):
        raise HTTPError(404)

    assert (await serve_one(service, journal, "/raises")).status == 404
    assert [record.getMessage() for record in caplog.records] == ["a dependency's cleanup failed"]
    journal.clear()
    assert (await serve_one(service, journal, "/swallows")).status == 404
    assert journal[2:] == ["reply 404", "r sees HTTPError", "close r", "close older"]


async def test_dependencies_see_an_error_of_the_return_value(service, journal):
    """A handler whose value does not fit its annotation has failed, and nothing is committed for it."""

    @service.get("/")
    async def show(r: Annotated[str, tracked(journal, "r")]) -> int:
        return "no number"  # type: ignore[return-value]

    assert (await serve_one(service, journal)).status == 500
    assert "r sees ValidationError" in journal


async def test_dependencies_see_the_error_of_a_later_one(service, journal):
    """A dependency that cannot be made ends those made before it, with its error."""

    async def broken() -> str:
        raise HTTPError(503)

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r")],
        h: Annotated[str, tracked(journal, "h", scope="handler")],
        b: Annotated[str, Depends(broken)],
        never: Annotated[str, tracked(journal, "never")],
    ):
        raise AssertionError

    assert (await serve_one(service, journal)).status == 503
    assert journal[2:] == ["h sees HTTPError", "close h", "reply 503", "r sees HTTPError", "close r"]


# ── errors in the cleanup ────────────────────────────────────────────────────────────────────────


async def test_a_failing_cleanup_of_scope_handler_is_the_answer(service, journal, caplog):
    """The reply has not gone yet: it is a 500, and the others see the error."""

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r")],
        older: Annotated[str, tracked(journal, "older", scope="handler")],
        h: Annotated[str, failing(journal, "h", OSError("disk full"), scope="handler")],
    ):
        journal.append("handle")

    assert (await serve_one(service, journal)).status == 500
    assert journal[2:] == [
        *("handle", "close h", "older sees OSError", "close older"),
        *("reply 500", "r sees OSError", "close r"),
    ]
    assert "disk full" in caplog.text


async def test_a_failing_cleanup_of_scope_request_is_logged(service, journal, caplog):
    """The reply has gone; the older ones are cleaned up, with the error of the newer one."""

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r")], broken: Annotated[str, failing(journal, "broken", OSError("disk"))]
    ): ...

    assert (await serve_one(service, journal)).status == 204
    assert journal == ["make r", "reply 204", "close broken", "r sees OSError", "close r"]
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "a dependency's cleanup failed")
    assert record.exc_info[0] is OSError


async def test_a_failing_cleanup_of_scope_app_is_logged(service, journal, caplog):
    """A service stops whatever a cleanup raises, and all others run."""

    @service.get("/")
    async def show(
        a: Annotated[str, tracked(journal, "a", scope="app")],
        broken: Annotated[str, failing(journal, "broken", OSError("disk full"), scope="app")],
    ): ...

    async with service:
        assert (await ask(service)).status == 204
    assert journal == ["make a", "close broken", "a sees OSError", "close a"]
    assert "the cleanup of a dependency failed while test was stopping" in caplog.text
    assert "disk full" in caplog.text


@pytest.mark.parametrize("scope", ["handler", "request"])
async def test_a_generator_that_yields_twice(service, caplog, scope):
    """A second yield is an error of the cleanup."""

    async def twice() -> AsyncIterator[int]:
        yield 1
        yield 2

    @service.get("/")
    async def show(x: Annotated[int, Depends(twice, scope=scope)]) -> int:
        return x

    assert (await ask(service)).status == (500 if scope == "handler" else 200)
    assert "generator didn't stop" in caplog.text


async def test_a_generator_that_never_yields(service, caplog):
    """A dependency without a value is a failure."""

    async def never() -> AsyncIterator[int]:
        if sys.argv is None:
            yield 1

    @service.get("/")
    async def show(x: Annotated[int, Depends(never)]): ...

    assert (await ask(service)).status == 500
    assert "generator didn't yield" in caplog.text


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=lambda error: type(error).__name__
)
async def test_no_cleanup_stops_the_process(service, journal, caplog, error):
    """What a cleanup raises goes to the log, whatever it is: `close` of `After` raises nothing."""

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r")], broken: Annotated[str, failing(journal, "broken", error)]
    ): ...

    assert (await ask(service)).status == 204
    assert "close r" in journal
    [record] = caplog.records
    assert record.getMessage() == "a dependency's cleanup failed"
    assert record.exc_info[1] is error


async def test_a_timeout_of_a_cleanups_own_is_called_by_its_name(service, journal, caplog):
    """A cleanup that raises TimeoutError at once did not take longer than it may."""

    @service.get("/")
    async def show(broken: Annotated[str, failing(journal, "broken", TimeoutError("of the database"))]): ...

    await ask(service)
    assert [record.getMessage() for record in caplog.records] == ["a dependency's cleanup failed"]


# ── cleanup that hangs ───────────────────────────────────────────────────────────────────────────


def hanging(journal: Journal, name: str, *, scope: Any = "request") -> Depends:
    """Return a dependency called `name` whose cleanup waits for ever."""

    async def make() -> AsyncIterator[str]:
        try:
            yield name
        finally:
            try:
                await asyncio.Event().wait()
            finally:
                journal.append(f"end of {name}")

    make.__name__ = name
    return Depends(make, scope=scope)


@pytest.mark.parametrize(
    ("scope", "order"),
    [("request", ["reply 204", "end of h", "close r"]), ("handler", ["end of h", "reply 204", "close r"])],
)
async def test_a_cleanup_that_hangs_is_cancelled(service, journal, caplog, monkeypatch, scope, order):
    """After 30 seconds (here less) it is cancelled and that is logged by name; the older ones and the answer go on."""
    monkeypatch.setattr(natsweb.scopes, "_CLEANUP_TIME", 0.01)

    @service.get("/")
    async def show(r: Annotated[str, tracked(journal, "r")], h: Annotated[str, hanging(journal, "h", scope=scope)]): ...

    assert (await serve_one(service, journal)).status == 204
    assert journal == ["make r", *order]
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "the cleanup of h took longer than 0.01 s and was cancelled",
    )


async def test_the_error_of_the_handler_passes_a_cleanup_that_hangs(service, journal, monkeypatch):
    """Older dependencies see what the handler has raised, not the cancellation of a newer one's cleanup."""
    monkeypatch.setattr(natsweb.scopes, "_CLEANUP_TIME", 0.01)

    @service.get("/")
    async def show(r: Annotated[str, tracked(journal, "r")], h: Annotated[str, hanging(journal, "h")]):
        raise HTTPError(409)

    assert (await serve_one(service, journal)).status == 409
    assert journal == ["make r", "reply 409", "end of h", "r sees HTTPError", "close r"]


async def test_two_cleanups_that_hang_are_both_cancelled(service, journal, caplog, monkeypatch):
    """Each has its own limit: a request never keeps its place among `--concurrency` for ever."""
    monkeypatch.setattr(natsweb.scopes, "_CLEANUP_TIME", 0.01)

    @service.get("/")
    async def show(one: Annotated[str, hanging(journal, "one")], two: Annotated[str, hanging(journal, "two")]): ...

    async with asyncio.timeout(10):
        assert (await ask(service)).status == 204
    assert journal == ["end of two", "end of one"]
    assert [record.getMessage().split(" took ")[0] for record in caplog.records] == [
        "the cleanup of two",
        "the cleanup of one",
    ]


async def test_a_plain_cleanup_that_hangs_is_left_behind(service, journal, caplog, monkeypatch):
    """A thread cannot be cancelled: it is left behind, and the older cleanups run."""
    monkeypatch.setattr(natsweb.scopes, "_CLEANUP_TIME", 0.01)
    release = threading.Event()

    def blocks() -> Iterator[int]:
        yield 1
        release.wait(30)

    @service.get("/")
    async def show(r: Annotated[str, tracked(journal, "r")], b: Annotated[int, Depends(blocks)]): ...

    task = asyncio.create_task(serve_one(service, journal))
    await asyncio.wait([task], timeout=5)
    done = task.done()
    release.set()
    assert (await task).status == 204
    assert done
    assert "close r" in journal
    assert "the cleanup of blocks took longer than 0.01 s" in caplog.text


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelling_the_handler_cleans_up(service, journal, kind):
    """Dependencies of both scopes see the cancellation, and are cleaned up before it gets out."""
    started = asyncio.Event()

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r", kind)], h: Annotated[str, tracked(journal, "h", kind, scope="handler")]
    ):
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(ask(service))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal[2:] == ["h sees CancelledError", "close h", "r sees CancelledError", "close r"]


async def test_cancelling_while_a_dependency_is_made_cleans_up_the_others(service, journal):
    """A dependency that is cancelled at its await ends those made before it."""
    started = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        started.set()
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            journal.append("slow ends")

    @service.get("/")
    async def show(r: Annotated[str, tracked(journal, "r")], s: Annotated[int, Depends(slow)]): ...

    task = asyncio.create_task(ask(service))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == ["make r", "slow ends", "r sees CancelledError", "close r"]


async def test_what_a_thread_opens_after_the_cancellation_is_closed(service, journal):
    """A cancelled request waits for the first part of a plain generator, which gives back what it took."""
    started, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def take() -> Iterator[int]:
        loop.call_soon_threadsafe(started.set)
        release.wait(10)
        journal.append("open")
        try:
            yield 1
        finally:
            journal.append("close")

    @service.get("/")
    async def show(x: Annotated[int, Depends(take)]): ...

    task = asyncio.create_task(ask(service))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == ["open", "close"]


async def test_a_cleanup_that_hangs_after_the_cancellation(service, monkeypatch):
    """A cleanup of what was opened after the cancellation has its limit as well."""
    monkeypatch.setattr("natsweb.threads._LEAVE_TIME", 0.01)
    started, opens, closes = asyncio.Event(), threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def take() -> Iterator[int]:
        loop.call_soon_threadsafe(started.set)
        opens.wait(10)
        try:
            yield 1
        finally:
            closes.wait(10)

    @service.get("/")
    async def show(x: Annotated[int, Depends(take)]): ...

    task = asyncio.create_task(ask(service))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    opens.set()
    done, _ = await asyncio.wait([task], timeout=1)
    closes.set()
    await asyncio.wait([task])
    assert done


@pytest.mark.parametrize("scope", ["handler", "request"])
async def test_nothing_is_cleaned_up_below_a_thread_that_still_uses_it(service, journal, scope):
    """A plain handler that outlives its time keeps its dependencies until it has returned."""
    started, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @service.get("/")
    def show(r: Annotated[str, tracked(journal, "r", scope=scope)]):
        loop.call_soon_threadsafe(started.set)
        release.wait(10)
        journal.append("handler returns")

    task = asyncio.create_task(ask(service))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == ["make r", "handler returns", "r sees CancelledError", "close r"]


# ── over a worker ────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def working(bus, service, **options) -> AsyncIterator[Worker]:
    """Run a worker for a service."""
    worker = Worker(bus, service, **options)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop(0)


async def get(bus, subject: str = "api", *, timeout: int = 30_000) -> Response:
    """Return the response of one request on the bus, with `timeout` ms for the handler."""
    reply = await request(bus, subject, b"", header=b"NATS/1.0\r\nNw-Timeout: %d\r\n\r\n" % timeout, timeout=30)
    return decode_response(reply.header, reply.payload)


@pytest.mark.parametrize("kind", KINDS)
async def test_time_up_cleans_up(service, journal, bus, until, kind):
    """A handler whose time is up is cancelled, and its dependencies see that."""

    @service.get("/")
    async def show(
        r: Annotated[str, tracked(journal, "r", kind)], h: Annotated[str, tracked(journal, "h", kind, scope="handler")]
    ):
        await asyncio.Event().wait()

    async with working(bus, service):
        assert (await get(bus, timeout=400)).status == 504  # enough for threads to start on a busy machine
        await until(lambda: "close r" in journal)
    assert journal[2:] == ["h sees CancelledError", "close h", "r sees CancelledError", "close r"]


async def test_the_reply_does_not_wait_for_the_scope_of_the_request(service, journal, bus):
    """The caller has the answer while the cleanup waits, and the worker waits for the cleanup."""
    release = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        yield 1
        await release.wait()
        journal.append("closed")

    @service.get("/")
    async def show(x: Annotated[int, Depends(slow)]) -> int:
        return x

    async with working(bus, service) as worker:
        assert (await get(bus)).status == 200
        assert journal == []
        stopping = asyncio.create_task(worker.stop(10))
        release.set()
        assert await stopping
    assert journal == ["closed"]


async def test_a_stopping_worker_waits_for_background_work(service, journal, bus):
    """`stop(grace)` is True once the work is done and all is cleaned up."""
    started, release = asyncio.Event(), asyncio.Event()

    async def work():
        started.set()
        await release.wait()
        journal.append("work done")

    @service.get("/")
    async def show(tasks: Background, r: Annotated[str, tracked(journal, "r")]):
        tasks.add(work)

    async with working(bus, service) as worker:
        assert (await get(bus)).status == 204
        await started.wait()
        stopping = asyncio.create_task(worker.stop(10))
        release.set()
        assert await stopping
    assert journal == ["make r", "work done", "close r"]


async def test_background_work_that_is_cut_off_is_cleaned_up_after(service, journal, bus):
    """Work that outlives the grace is cancelled; the dependencies of the request are cleaned up all the same."""
    started = asyncio.Event()

    async def work():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            journal.append("work cancelled")

    @service.get("/")
    async def show(tasks: Background, r: Annotated[str, tracked(journal, "r")]):
        tasks.add(work)

    async with working(bus, service) as worker:
        assert (await get(bus)).status == 204
        await started.wait()
        assert not await worker.stop(0)
    assert journal[:2] == ["make r", "work cancelled"]
    assert "close r" in journal
    assert "r sees GeneratorExit" not in journal  # of the garbage collector


# ── what may be a dependency ─────────────────────────────────────────────────────────────────────


class Page(BaseModel):
    """A model as a class to call: its fields are parameters."""

    page: int = 1


@dataclass
class Window:
    """A dataclass as a class to call."""

    size: int = 10


class Repo:
    """A class with a constructor."""

    def __init__(self, page: int = 1) -> None:
        self.page = page


class ChildRepo(Repo):
    """A class with the constructor of its base."""


class Provider:
    """Dependencies as methods and as an instance that can be called."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal if journal is not None else []

    async def __call__(self, page: int = 1) -> int:
        return page

    def method(self, page: int = 1) -> int:
        return page

    async def generator(self, page: int = 1) -> AsyncIterator[int]:
        yield page
        self.journal.append("closed")


class CallableGenerator:
    """An instance whose call is a generator."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def __call__(self, page: int = 1) -> Iterator[int]:
        yield page
        self.journal.append("closed")


async def waits(page: int = 1) -> int:
    """Give the page."""
    return page


def blocks(page: int = 1) -> int:
    """Give the page."""
    return page


def with_factor(factor: int, page: int = 1) -> int:
    """Give a multiple of the page."""
    return factor * page


def gives_awaitable(page: int = 1) -> Any:
    """Give what has to be awaited."""
    return waits(page)


# annotation, what comes of ?page=3
GIVEN = [
    (Annotated[int, Depends(waits)], "3"),
    (Annotated[int, Depends(blocks)], "3"),
    (Annotated[int, Depends(blocks, inline=True)], "3"),
    (Annotated[int, Depends(gives_awaitable)], "3"),
    (Annotated[int, Depends(Provider())], "3"),
    (Annotated[int, Depends(Provider().method)], "3"),
    (Annotated[int, Depends(functools.partial(with_factor, 10))], "30"),
    (Annotated[int, Depends(functools.partial(waits))], "3"),
    (Annotated[int, Depends(functools.partial(Provider()))], "3"),
    (Annotated[Page, Depends()], "Page(page=3)"),
    (Annotated[Page, Depends(Page)], "Page(page=3)"),
    (Annotated[Window, Depends()], "Window(size=10)"),
    (Annotated[Any, Depends(lambda: 7)], "7"),
]


@pytest.mark.parametrize(("annotation", "text"), GIVEN, ids=[str(index) for index in range(len(GIVEN))])
async def test_what_may_be_a_dependency(service, annotation, text):
    """Functions, classes, models, callables, partials and bound methods are called with what the request has."""

    @service.get("/")
    async def show(x: annotation) -> str:
        return repr(x)

    response = await ask(service, query="page=3")
    assert (response.status, response.text) == (200, text)


async def test_a_class_with_a_constructor(service):
    """A class is called with what its constructor takes."""

    @service.get("/")
    async def show(repo: Annotated[Repo, Depends()]) -> int:
        return repo.page

    assert (await ask(service, query="page=3")).text == "3"


async def test_a_class_with_the_constructor_of_its_base(service):
    """An inherited constructor counts as one's own."""

    @service.get("/")
    async def show(repo: Annotated[ChildRepo, Depends()]) -> int:
        return repo.page

    assert (await ask(service, query="page=3")).text == "3"


async def test_a_partial_of_a_class(service):
    """A class with some of its arguments gives instances of the class."""

    @service.get("/")
    async def show(repo: Annotated[Repo, Depends(functools.partial(Repo, page=4))]) -> int:
        return repo.page

    assert (await ask(service)).text == "4"


@pytest.mark.parametrize("make", [lambda journal: Provider(journal).generator, CallableGenerator])
@pytest.mark.parametrize("wrap", [lambda function: function, functools.partial])
async def test_generators_of_instances_clean_up(service, journal, make, wrap):
    """A bound method, or an instance, that yields has its cleanup, behind a partial as well."""

    @service.get("/")
    async def show(x: Annotated[int, Depends(wrap(make(journal)))]) -> int:
        return x

    assert (await ask(service, query="page=3")).text == "3"
    assert journal == ["closed"]


@pytest.mark.parametrize("function", [getattr, vars])
def test_what_has_no_signature(service, function):
    """A thing whose parameters nobody can tell is refused with the remedy."""
    with pytest.raises(DeclarationError, match=r"the parameters of .* cannot be told") as caught:
        service.get("/", depends=[Depends(function)])(waits)
    assert caught.value.fix == "wrap it in a function"


# ── where they run ───────────────────────────────────────────────────────────────────────────────

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_plain_functions_run_in_threads_unless_inline(service):
    """A plain dependency has a thread, `inline` and classes do without, async ones are in the loop's."""

    class Where:
        def __init__(self) -> None:
            self.name = threading.current_thread().name

    def where() -> str:
        return threading.current_thread().name

    async def in_loop() -> str:
        return threading.current_thread().name

    @service.get("/")
    async def show(
        thread: Annotated[str, Depends(where)],
        inline: Annotated[str, Depends(where, inline=True)],
        coroutine: Annotated[str, Depends(in_loop)],
        made: Annotated[Where, Depends()],
    ) -> list[str]:
        return [thread, inline, coroutine, made.name]

    thread, *others = (await ask(service)).parse_json()
    assert thread.startswith("natsweb-test")
    assert set(others) == {threading.current_thread().name}


async def test_a_plain_generator_is_left_by_a_thread_for_cleanup(service, journal):
    """Entering takes a thread of the handlers', leaving one of the others."""

    def make() -> Iterator[None]:
        journal.append(threading.current_thread().name)
        yield
        journal.append(threading.current_thread().name)

    @service.get("/")
    async def show(x: Annotated[None, Depends(make)]): ...

    await ask(service)
    entered, left = journal
    assert re.fullmatch(r"natsweb-test_\d", entered)
    assert re.fullmatch(r"natsweb-test-cleanup_\d", left)


@pytest.mark.parametrize(
    ("kind", "seen"), [("async", "set"), ("async manager", "set"), ("inline", "set"), ("sync", "unset")]
)
@pytest.mark.parametrize("scope", ["handler", "request"])
async def test_context_variables(service, journal, kind, seen, scope):
    """A dependency's variables reach the handler unless it has a thread; both of its parts share them in any case."""

    async def waits() -> AsyncIterator[None]:
        token = VARIABLE.set("set")
        yield
        journal.append(VARIABLE.get())
        VARIABLE.reset(token)

    def blocks() -> Iterator[None]:
        token = VARIABLE.set("set")
        yield
        journal.append(VARIABLE.get())
        VARIABLE.reset(token)

    function = {"async": waits, "async manager": asynccontextmanager(waits)}.get(kind, blocks)

    @service.get("/")
    async def show(x: Annotated[None, Depends(function, scope=scope, inline=kind == "inline")]) -> str:
        return VARIABLE.get()

    assert (await ask(service)).text == seen
    assert journal == ["set"]
    assert VARIABLE.get() == "unset"


async def test_a_thread_sees_the_variables_of_the_caller(service):
    """A plain dependency sees what was set before it, by an async one for example."""

    async def user() -> str:
        VARIABLE.set("ann")
        return "ann"

    def greeting(who: Annotated[str, Depends(user)]) -> Iterator[str]:
        yield f"hello {VARIABLE.get()}"

    @service.get("/")
    async def show(x: Annotated[str, Depends(greeting)]) -> str:
        return x

    assert (await ask(service)).text == "hello ann"


# ── sharing ──────────────────────────────────────────────────────────────────────────────────────


def counting() -> Callable[[], int]:
    """Return a function that gives 1, 2, 3..."""
    numbers = itertools.count(1)

    def count() -> int:
        return next(numbers)

    return count


async def test_a_dependency_is_called_once_per_request(service):
    """Within a request all get the same value, guards and other dependencies too; the next request has its own."""
    count = counting()

    async def other(x: Annotated[int, Depends(count)]) -> int:
        return x

    @service.get("/", depends=[Depends(count)])
    async def show(
        a: Annotated[int, Depends(count)], b: Annotated[int, Depends(count)], c: Annotated[int, Depends(other)]
    ) -> list[int]:
        return [a, b, c]

    assert (await ask(service)).parse_json() == [1, 1, 1]
    assert (await ask(service)).parse_json() == [2, 2, 2]


async def test_a_dependency_that_is_not_shared(service):
    """With `shared=False` each parameter has its own; the shared ones are not touched by it."""
    count = counting()

    @service.get("/")
    async def show(
        a: Annotated[int, Depends(count, shared=False)],
        b: Annotated[int, Depends(count)],
        c: Annotated[int, Depends(count, shared=False)],
        d: Annotated[int, Depends(count)],
    ) -> list[int]:
        return [a, b, c, d]

    assert (await ask(service)).parse_json() == [1, 2, 3, 2]


async def test_scopes_do_not_share(service, journal):
    """The same function in two scopes is called for each."""
    count = counting()

    @service.get("/")
    async def show(
        a: Annotated[int, Depends(count, scope="handler")], b: Annotated[int, Depends(count, scope="request")]
    ) -> list[int]:
        return [a, b]

    assert (await ask(service)).parse_json() == [1, 2]


async def test_a_diamond(service, journal):
    """What two dependencies need is made once, before both, and cleaned up once, after both."""
    bottom = tracked(journal, "bottom")

    def side(name: str) -> Depends:
        async def make(x: Annotated[str, bottom]) -> AsyncIterator[str]:
            journal.append(f"make {name}")
            yield f"{name} on {x}"
            journal.append(f"close {name}")

        return Depends(make)

    async def top(a: Annotated[str, side("left")], b: Annotated[str, side("right")]) -> str:
        return f"{a}, {b}"

    @service.get("/")
    async def show(x: Annotated[str, Depends(top)]) -> str:
        return x

    assert (await serve_one(service, journal)).text == "left on bottom, right on bottom"
    made, closed = ["make bottom", "make left", "make right"], ["close right", "close left", "close bottom"]
    assert journal == [*made, "reply 200", *closed]


async def test_a_callable_that_cannot_be_hashed(service):
    """Identity is what tells such things apart."""

    class Odd(list):
        def __call__(self) -> int:
            return len(self)

    one, other = Odd([1]), Odd([1])

    @service.get("/")
    async def show(a: Annotated[int, Depends(one)], b: Annotated[int, Depends(other)]) -> list[int]:
        return [a, b]

    one.append(2)
    assert (await ask(service)).parse_json() == [2, 1]
    with service.override(one, lambda: 9):
        assert (await ask(service)).parse_json() == [9, 1]


# ── scope app ────────────────────────────────────────────────────────────────────────────────────


async def test_an_app_dependency_is_made_once(service):
    """All routes and requests share it, and it may be made of others and of the service."""
    count = counting()

    async def name(svc: Service, number: Annotated[int, Depends(count, scope="app")]) -> str:
        return f"{svc.name} {number}"

    Name = Annotated[str, Depends(name, scope="app")]

    @service.get("/a")
    async def a(x: Name) -> str:
        return x

    @service.get("/b")
    def b(x: Name) -> str:
        return x

    async with service:
        answers = await asyncio.gather(*[ask(service, path) for path in ["/a", "/b"] * 20])
    assert {answer.text for answer in answers} == {"test 1"}
    async with service:
        assert (await ask(service, "/a")).text == "test 2"


async def test_an_app_dependency_of_a_service_that_was_not_started(service, caplog, journal):
    """It is an error that says how to start the service."""

    @service.get("/")
    async def show(x: Annotated[str, tracked(journal, "pool", scope="app")]): ...

    assert (await ask(service)).status == 500
    assert "lives as long as the service, which has not been started" in caplog.text
    assert "async with svc" in caplog.text
    assert journal == []


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


class Db:
    """Something that a handler wants."""


class Session:
    """Something else."""


class SubDb(Db):
    """More than what a handler wants."""


class Findable(Protocol):
    """What a handler may ask for as well."""

    def find(self) -> int: ...


class Keys(TypedDict):
    """A dict at run time."""

    x: int


def typed(given: Any, *, yields: bool = False) -> Callable[..., Any]:
    """Return a dependency that says that it gives `given`."""

    async def gives(): ...

    async def gives_and_cleans():
        yield

    function = gives_and_cleans if yields else gives
    function.__annotations__["return"] = AsyncIterator[given] if yields else given
    return function


# given, wanted
UNFIT = [(Session, Db), (Db, SubDb), (str, int), (list[int], dict[str, int]), (int, str)]
FIT = [
    *[(Db, Db), (SubDb, Db), (Any, Db), (Db, Any), (int, float), (bool, int), (list[int], list[str]), (Db, object)],
    *[(Session, Findable), (Keys, dict), (dict, Keys), (Db, Db | None)],
    *[(Annotated[Db, "x"], Db), (Db | None, Db), (Optional[Db], Db), (Union[Db, Session], Db), (None, None)],  # noqa: UP007, UP045
    *[(Db | Session, Db), (Db, Db | Session)],
]


@pytest.mark.parametrize("yields", [False, True])
@pytest.mark.parametrize(("given", "wanted"), UNFIT)
def test_types_that_do_not_fit(service, given, wanted, yields):
    """What a dependency surely does not give is an error that names both types and the way there."""
    gives = typed(given, yields=yields)

    async def between(x: Annotated[wanted, Depends(gives)]) -> int: ...

    with pytest.raises(DeclarationError) as caught:

        @service.get("/")
        async def show(y: Annotated[int, Depends(between)]): ...

    verb = "yields" if yields else "gives"
    assert caught.value.what == f"{gives.__name__} {verb} {given.__name__}, and parameter 'x' wants {wanted.__name__}"
    place, *chain = caught.value.where
    assert place.endswith(str(service._declared[-1].where.signature))
    assert [link.split(" (")[0] for link in chain] == ["needs between", f"needs {gives.__name__}"]
    assert all("test_scopes.py:" in link for link in chain)


@pytest.mark.parametrize("yields", [False, True])
@pytest.mark.parametrize(("given", "wanted"), FIT)
def test_types_that_may_fit(service, given, wanted, yields):
    """Whatever may be right is taken."""

    @service.get("/")
    async def show(x: Annotated[wanted, Depends(typed(given, yields=yields))]): ...

    service.compile()


def test_dependencies_without_annotations_fit_everything(service):
    """A generator that does not say what it yields, and a function that says nothing, are taken."""

    def bare():
        yield 1

    def loose() -> Iterator:
        yield 1

    @service.get("/")
    async def show(
        a: Annotated[Db, Depends(lambda: None)], b: Annotated[Db, Depends(bare)], c: Annotated[Db, Depends(loose)]
    ): ...

    service.compile()


def chicken(x: "Annotated[int, Depends(egg)]") -> int: ...
def egg(x: "Annotated[int, Depends(chicken)]") -> int: ...
def snake(x: "Annotated[int, Depends(snake)]") -> int: ...


@pytest.mark.parametrize(
    ("start", "circle"),
    [(chicken, "chicken -> egg -> chicken"), (egg, "egg -> chicken -> egg"), (snake, "snake -> snake")],
)
def test_circles(service, start, circle):
    """Dependencies that need each other are shown as a circle."""
    with pytest.raises(DeclarationError, match="dependencies go round in a circle: ") as caught:

        @service.get("/")
        async def show(x: Annotated[int, Depends(start)]): ...

    assert caught.value.what.endswith(f": {circle}")
    assert caught.value.fix == "take one of them out of it"
    assert caught.value.where[1].startswith(f"needs {start.__name__} (")


SCOPES = ["handler", "request", "app"]


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(range(3), range(3))))
def test_what_outlives_what_it_is_made_of(service, outer, inner):
    """A dependency needs others that live as long at least; else both remedies are named."""

    async def short() -> int: ...

    async def long(x: Annotated[int, Depends(short, scope=SCOPES[inner])]) -> int: ...

    def declare():
        @service.get("/")
        async def show(x: Annotated[int, Depends(long, scope=SCOPES[outer])]): ...

    if inner >= outer:
        declare()
        return
    with pytest.raises(DeclarationError, match=r"long lives for the \w+ and needs short, which ends with ") as caught:
        declare()
    assert caught.value.fix == f'give long scope="{SCOPES[inner]}", or short scope="{SCOPES[outer]}"'


@pytest.mark.parametrize("annotation", [int, Annotated[str, Query()], Request, Background, Call])
def test_an_app_dependency_takes_nothing_of_a_request(service, annotation):
    """There is no request when it is made."""

    async def pool(x: annotation) -> int: ...

    with pytest.raises(DeclarationError, match="pool lives as long as the service, and its parameter 'x' comes from"):

        @service.get("/")
        async def show(p: Annotated[int, Depends(pool, scope="app")]): ...


def untyped(x): ...
def starred(*x: int): ...
def two_bodies(a: Annotated[int, Body()], b: Annotated[int, Body()]): ...
def default_marker(x: int = Query()): ...  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (untyped, "parameter 'x' has no type"),
        (starred, r"parameter \*x: int cannot be filled"),
        (two_bodies, "both want the request body"),
        (default_marker, "as its default"),
    ],
)
def test_mistakes_inside_a_dependency(service, function, words):
    """A dependency's parameters are checked like a handler's, and the error shows the way from the handler."""

    async def between(x: Annotated[Any, Depends(function)]): ...

    with pytest.raises(DeclarationError, match=words) as caught:

        @service.get("/")
        async def show(x: Annotated[Any, Depends(between)]): ...

    first, place, *chain = caught.value.where
    assert f"Depends({function.__name__})" in first
    assert "async def show" in place
    assert [link.split(" (")[0] for link in chain] == ["needs between", f"needs {function.__name__}"]


def unknown_name(x: "Nowhere"): ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.xfail(strict=True, reason="the error shows the handler, not the dependency that has the annotation")
def test_an_unknown_name_inside_a_dependency(service):
    """A name that nobody defines is named when the service is compiled, with the dependency that has it."""

    @service.get("/")
    async def show(x: Annotated[Any, Depends(unknown_name)]): ...

    with pytest.raises(DeclarationError, match="'Nowhere' names nothing") as caught:
        service.compile()
    assert "unknown_name" in "\n".join(caught.value.where[1:])


def test_a_name_that_is_defined_later(service):
    """An annotation of a dependency may name what stands further down."""

    def early(x: "Later") -> Any:
        return x

    @service.get("/")
    async def show(x: Annotated[Any, Depends(early)]): ...

    class Later(BaseModel):
        x: int

    service.compile()
    assert service.routes[0].recipe.steps[0].plan.parameters[0].source == "body"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Depends(7), "Depends takes a function or a class, not 7"),
        (lambda: Depends(waits, scope="session"), "'session' is no scope of a dependency"),
        (lambda: Service("x").get("/", depends=[waits])(blocks), "is no dependency"),
        (lambda: Service("x", depends=[Depends]), "is no dependency"),
        (lambda: Router("/x", depends=["waits"]), "'waits' is no dependency"),
        (lambda: Router("/x", depends=[Depends()]), "is no dependency"),  # of which annotation?
    ],
)
def test_depends_that_cannot_be(make, words):
    """What cannot be a dependency, or its scope, is refused where it is written."""
    with pytest.raises(DeclarationError, match=words):
        make()


def test_a_parameter_that_depends_on_nothing(service):
    """`Depends()` on a type that is no class has nothing to call."""
    with pytest.raises(DeclarationError, match="parameter 'x' depends on nothing that can be called") as caught:

        @service.get("/")
        async def show(x: Annotated[int | str, Depends()]): ...

    assert caught.value.fix == "write Depends(get_db)"


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────


async def test_dependencies_take_all_that_handlers_take(service):
    """Captures, query, body, the request, the service and background work are bound in a dependency as well."""

    async def all_of_it(
        id: int, q: Annotated[int, Query()], body: Page, request: Request, call: Call, svc: Service, tasks: Background
    ) -> list[Any]:
        return [id, q, body.page, request.params, call.method, svc.name, repr(tasks)]

    @service.post("/<id>")
    async def show(x: Annotated[list, Depends(all_of_it)]) -> list:
        return x

    response = await service.handle(Request(method="POST", raw_path="/7", query="q=1", body=b'{"page": 2}'))
    assert response.parse_json() == [7, 1, 2, {"id": "7"}, "POST", "test", "<Background: 0 functions>"]


async def test_all_refused_fields_are_reported_together(service, journal):
    """The 422 lists the fields of all dependencies and of the handler, and no dependency is called after the first."""

    async def first(a: int) -> str:
        journal.append("first")
        return "first"

    async def second(b: int) -> str:
        journal.append("second")
        return "second"

    async def third(c: int = 1) -> str:
        journal.append("third")
        return "third"

    @service.get("/<id>")
    async def show(
        id: int,
        e: int,
        x: Annotated[str, Depends(first)],
        y: Annotated[str, Depends(second)],
        z: Annotated[str, Depends(third)],
    ):
        journal.append("handler")

    response = await ask(service, "/x", query="a=1&b=no&c=no")
    assert response.status == 422
    assert [error["loc"] for error in response.parse_json()["errors"]] == [
        ["query", "b"],
        ["query", "c"],
        ["path", "id"],
        ["query", "e"],
    ]
    assert journal == ["first"]


async def test_dependencies_see_a_refused_input(service, journal):
    """A dependency made before the refusal sees it as an error."""

    @service.get("/")
    async def show(
        e: int, r: Annotated[str, tracked(journal, "r")], h: Annotated[str, tracked(journal, "h", scope="handler")]
    ): ...

    assert (await serve_one(service, journal)).status == 422
    sees = InvalidInput.__name__
    assert journal[2:] == [f"h sees {sees}", "close h", "reply 422", f"r sees {sees}", "close r"]


async def test_a_form_is_read_once_for_all(service):
    """A form that a dependency and the handler take from is parsed once, and 415 is one of its errors."""

    async def user(name: Annotated[str, Form()]) -> str:
        return name

    @service.post("/")
    async def show(who: Annotated[str, Depends(user)], age: Annotated[int, Form()]) -> list[Any]:
        return [who, age]

    form = {"content-type": "application/x-www-form-urlencoded"}
    right = await service.handle(Request(method="POST", headers=form, body=b"name=ann&age=7"))
    assert right.parse_json() == ["ann", 7]
    wrong = await service.handle(Request(method="POST", headers=form, body=b"age=x"))
    assert [error["loc"] for error in wrong.parse_json()["errors"]] == [["body", "name"], ["body", "age"]]
    assert (await service.handle(Request(method="POST", body=b"{}"))).status == 415

    @service.post("/alone")
    async def alone(age: Annotated[int, Form()]) -> int:
        return age

    answer = await service.handle(Request(method="POST", raw_path="/alone", headers=form, body=b"age=7"))
    assert answer.text == "7"


async def test_uploaded_files_are_closed_after_the_reply(service, journal):
    """A file of a form is there until the background work is done, also if an input is refused."""
    files: list[UploadFile] = []

    async def keep(photo: UploadFile) -> UploadFile:
        files.append(photo)
        return photo

    @service.post("/")
    async def show(photo: Annotated[UploadFile, Depends(keep)], tasks: Background, q: int = 0):
        tasks.add(lambda: journal.append(f"{photo.filename} {photo.file.closed}"))

    body = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.png"\r\n\r\nPNG\r\n--x--\r\n'
    for query, status in (("", 204), ("q=x", 422)):
        form = Request(
            method="POST", headers={"content-type": "multipart/form-data; boundary=x"}, body=body, query=query
        )
        assert (await service.handle(form)).status == status
    assert journal == ["a.png False"]
    assert [file.file.closed for file in files] == [True, True]


def test_a_form_and_another_body(service):
    """A request has one body: a dependency that takes a form and a handler that takes JSON cannot meet."""

    async def user(name: Annotated[str, Form()]) -> str:
        return name

    with pytest.raises(DeclarationError, match="wants a JSON body and 'name' a form"):

        @service.post("/")
        async def show(who: Annotated[str, Depends(user)], page: Page): ...


@pytest.mark.parametrize("where", ["handler", "dependency"])
def test_a_form_without_its_library(service, monkeypatch, where):
    """The missing library is named at declaration, with the line that installs it."""
    monkeypatch.setattr("natsweb.dependencies.has_parser", lambda: False)

    async def user(name: Annotated[str, Form()]) -> str:
        return name

    async def show(who: Annotated[str, Depends(user)]): ...

    with pytest.raises(DeclarationError, match="the library that reads forms is not installed") as caught:
        service.post("/")(user if where == "handler" else show)
    assert caught.value.fix == 'pip install "natsweb[forms]"'


# ── guards, and who calls ────────────────────────────────────────────────────────────────────────


async def test_guards_run_from_the_outermost_to_the_innermost(service, journal):
    """Those of the service, the routers, the route, in their order; then the handler's own; each once."""

    def guard(name: str) -> Depends:
        async def check() -> None:
            journal.append(name)

        return Depends(check)

    again = guard("outer 2")
    outer = Router("/outer", depends=[guard("outer"), again])
    inner = Router("/inner", depends=[guard("inner"), again])

    @inner.get("/", depends=[guard("route 1"), guard("route 2")])
    async def show(own: Annotated[None, guard("own")]):
        journal.append("handler")

    outer.include(inner)
    service.depends.append(guard("service"))
    service.include(outer)
    assert (await ask(service, "/outer/inner/")).status == 204
    assert journal == ["service", "outer", "outer 2", "inner", "route 1", "route 2", "own", "handler"]


async def test_a_guard_that_refuses_stops_the_rest(service, journal):
    """What a guard raises is the answer; nothing after it is called."""

    async def refuse() -> None:
        raise HTTPError(403, "not you")

    @service.get("/", depends=[Depends(refuse), tracked(journal, "later")])
    async def show(x: Annotated[str, tracked(journal, "own")]):
        journal.append("handler")

    assert (await ask(service)).status == 403
    assert journal == []


async def test_a_guard_cleans_up(service, journal):
    """A guard that yields is a dependency like any other."""

    @service.get("/", depends=[tracked(journal, "guard", scope="handler")])
    async def show(): ...

    assert (await serve_one(service, journal)).status == 204
    assert journal == ["make guard", "close guard", "reply 204"]


def nobody(token: str) -> None:
    """Refuse every token."""


async def test_who_calls_comes_first(service, journal):
    """Without credentials nothing is made and nothing is validated, not even by guards of outer routers."""
    router = Router("/r", depends=[tracked(journal, "guard")])

    @router.get("/<id>")
    async def show(
        id: int, q: int, db: Annotated[str, tracked(journal, "db")], user: Annotated[str, Auth(Bearer(nobody))]
    ): ...

    service.include(router)
    response = await ask(service, "/r/no-number", query="q=no-number")
    assert response.status == 401
    assert "errors" not in response.parse_json()
    assert journal == []


async def test_who_calls_comes_first_inside_of_a_dependency_too(service, journal):
    """`current_user` that takes the token from `Auth` is the usual spelling: a stranger learns nothing of inputs."""

    async def page(size: int) -> int:
        return size

    async def current_user(token: Annotated[str, Auth(Bearer(nobody))]) -> str:
        return token

    @service.get("/")
    async def show(
        page: Annotated[int, Depends(page)],
        db: Annotated[str, tracked(journal, "db")],
        user: Annotated[str, Depends(current_user)],
    ): ...

    assert (await ask(service, query="size=no-number")).status == 401
    assert journal == []


# ── override ─────────────────────────────────────────────────────────────────────────────────────


async def real() -> str:
    """Give the real thing."""
    return "real"


async def made_of_real(x: Annotated[str, Depends(real)]) -> str:
    """Give something made of it."""
    return f"made of {x}"


@pytest.fixture
def overridable(service):
    """A service that needs `real` twice, once inside of another dependency."""

    @service.get("/")
    async def show(a: Annotated[str, Depends(real)], b: Annotated[str, Depends(made_of_real)]) -> str:
        return f"{a}, {b}"

    return service


async def fake_async() -> str:
    """Stand in as a coroutine."""
    return "fake"


def fake_plain(q: str = "fake") -> str:
    """Stand in as a plain function with an input of its own."""
    return q


async def fake_generator() -> AsyncIterator[str]:
    """Stand in as a generator."""
    yield "fake"


@pytest.mark.parametrize("fake", [fake_async, fake_plain, fake_generator, lambda: "fake", lambda: fake_async()])
async def test_override(overridable, fake):
    """A stand-in of any kind takes the place everywhere, until the block ends."""
    assert (await ask(overridable)).text == "real, made of real"
    with overridable.override(real, fake):
        assert (await ask(overridable)).text == "fake, made of fake"
    assert (await ask(overridable)).text == "real, made of real"


async def test_overrides_within_each_other(overridable):
    """The innermost block counts; leaving it brings the outer one back, after an error as well."""
    with overridable.override(real, lambda: "one"):
        with overridable.override(real, lambda: "two"), overridable.override(made_of_real, lambda: "three"):
            assert (await ask(overridable)).text == "two, three"
        with pytest.raises(KeyError), overridable.override(real, lambda: "four"):
            raise KeyError
        assert (await ask(overridable)).text == "one, made of one"
    assert (await ask(overridable)).text == "real, made of real"


async def test_a_stand_in_may_give_another_type(overridable):
    """Types are not checked for a stand-in: a test may give what it likes."""

    def other() -> int:
        return 7

    with overridable.override(real, other):
        assert (await ask(overridable)).text == "7, made of 7"


async def test_a_stand_in_keeps_the_scope(service, journal):
    """A stand-in is made and cleaned up when the original would have been."""

    async def fake() -> AsyncIterator[str]:
        yield "fake"
        journal.append("close fake")

    @service.get("/")
    async def show(x: Annotated[str, Depends(real, scope="handler")]) -> str:
        return x

    with service.override(real, fake):
        await serve_one(service, journal)
    assert journal == ["close fake", "reply 200"]


def test_overriding_what_nobody_needs(overridable):
    """A function that no route depends on is an error that says which one to name."""
    with pytest.raises(DeclarationError, match="no route depends on waits") as caught:
        overridable.override(waits, blocks).__enter__()
    assert "test_scopes.py" in caught.value.where[0]


async def test_overriding_what_lives_as_long_as_the_service(service):
    """It can be overridden before the start, and not while the service runs."""

    @service.get("/")
    async def show(x: Annotated[str, Depends(real, scope="app")]) -> str:
        return x

    async with service:
        with pytest.raises(DeclarationError, match="lives as long as the service, which is running"):
            service.override(real, fake_async).__enter__()
        assert (await ask(service)).text == "real"
    with service.override(real, fake_async):
        async with service:
            assert (await ask(service)).text == "fake"
    async with service:
        assert (await ask(service)).text == "real"


async def test_a_stand_in_that_cannot_work(overridable):
    """A mistake in a stand-in is an error of the `with` line, and the real one stays."""
    with pytest.raises(DeclarationError, match="parameter 'x' has no type"):
        overridable.override(real, untyped).__enter__()
    assert (await ask(overridable)).text == "real, made of real"


# ── background work ──────────────────────────────────────────────────────────────────────────────


async def test_background_work_runs_after_the_reply_in_order(service, journal):
    """Async and plain functions run one after the other, after the reply and before the dependencies end."""

    async def waits(word: str) -> None:
        await asyncio.sleep(0)
        journal.append(word)

    def blocks(word: str, *, end: str) -> None:
        journal.append(f"{word} in {threading.current_thread().name.split('_')[0]}{end}")

    @service.get("/")
    async def show(tasks: Background, r: Annotated[str, tracked(journal, "r")]):
        tasks.add(waits, "one")
        tasks.add(blocks, "two", end="!")
        tasks.add(functools.partial(waits, "three"))
        tasks.add(waits, "four")
        journal.append(repr(tasks))

    await serve_one(service, journal)
    assert journal[1:] == [
        *("<Background: 4 functions>", "reply 204"),
        *("one", "two in natsweb-test!", "three", "four", "close r"),
    ]


async def test_dependencies_and_the_handler_add_to_the_same_work(service, journal):
    """`Background` is the request's, whoever asks for it."""

    async def audit(tasks: Background) -> None:
        tasks.add(journal.append, "of the dependency")

    @service.get("/", depends=[Depends(audit)])
    def show(tasks: Background):
        tasks.add(journal.append, "of the handler")

    await serve_one(service, journal)
    assert journal == ["reply 204", "of the dependency", "of the handler"]


@pytest.mark.parametrize("error", [HTTPError(404), KeyError("x")])
async def test_no_background_work_after_an_error(service, journal, error):
    """Work is done only if the handler has returned."""

    @service.get("/")
    async def show(tasks: Background):
        tasks.add(journal.append, "work")
        raise error

    await serve_one(service, journal)
    assert journal == [f"reply {getattr(error, 'status', 500)}"]


async def test_background_work_may_add_more(service, journal):
    """What work adds is done as well."""

    @service.get("/")
    async def show(tasks: Background):
        tasks.add(lambda: tasks.add(journal.append, "more"))

    await serve_one(service, journal)
    assert journal == ["reply 204", "more"]


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize(
    "error", [KeyError("x"), SystemExit(3), asyncio.CancelledError()], ids=lambda error: type(error).__name__
)
async def test_failing_background_work_is_logged(service, journal, caplog, error, kind):
    """What fails is logged by name; the rest of the work is done, and the dependencies are cleaned up."""

    async def waits() -> None:
        raise error

    def blocks() -> None:
        raise error

    @service.get("/")
    async def show(tasks: Background, r: Annotated[str, tracked(journal, "r")]):
        tasks.add(waits if kind == "async def" else blocks)
        tasks.add(journal.append, "next")

    await serve_one(service, journal)
    assert journal[1:] == ["reply 204", "next", "close r"]
    [record] = caplog.records
    assert "background work failed" in record.getMessage()
    assert ("waits" if kind == "async def" else "blocks") in record.getMessage()
    assert record.exc_info[1] is error


def test_background_takes_functions():
    """A call instead of a function is a mistake that is told at once."""
    with pytest.raises(TypeError, match="takes a function and its arguments, not None"):
        Background().add(None)


# ── attempts ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", ["service", "router"])
async def test_a_failed_attempt_stays_failed(service, journal, level):
    """Middleware that tries again commits the second attempt only: the first sees its error, its work is not done."""
    router = Router("/r")
    attempts = itertools.count(1)

    @(service if level == "service" else router).middleware
    async def again(request, call_next):
        response = await call_next(request)
        return await call_next(request) if response.status == 500 else response

    async def session() -> AsyncIterator[int]:
        number = next(attempts)
        try:
            yield number
        except KeyError:
            journal.append(f"roll back {number}")
        else:
            journal.append(f"commit {number}")

    @router.get("/")
    async def pay(number: Annotated[int, Depends(session)], tasks: Background):
        tasks.add(journal.append, f"receipt {number}")
        if number == 1:
            raise KeyError

    service.include(router)
    assert (await serve_one(service, journal, "/r/")).status == 204
    assert journal == ["reply 204", "receipt 2", "commit 2", "roll back 1"]


# ── leaks ────────────────────────────────────────────────────────────────────────────────────────


async def test_requests_leave_no_tasks_and_no_context(service, journal):
    """After a hundred requests, good and bad, there is no task more than before, and no variable is set."""

    async def user() -> AsyncIterator[str]:
        VARIABLE.set("somebody")
        yield "somebody"

    @service.get("/<id>")
    async def show(id: int, u: Annotated[str, Depends(user)], r: Annotated[str, tracked(journal, "r", "sync")]):
        if id % 2:
            raise KeyError

    before = asyncio.all_tasks()
    answers = await asyncio.gather(*[ask(service, f"/{number}") for number in range(100)])
    assert {answer.status for answer in answers} == {204, 500}
    assert asyncio.all_tasks() == before
    assert VARIABLE.get() == "unset"
    assert journal.count("close r") == 100


def test_reprs(service, journal):
    """Handles tell their state."""
    scope = natsweb.scopes.RequestScope(service._threads)
    assert repr(scope) == "<RequestScope: <Background: 0 functions>>"
    assert repr(natsweb.recipes.AppScope(service._threads)) == "<AppScope: 0 dependencies>"
    assert repr(Depends(waits)) == "Depends(waits)"
