"""What lives as long as a service: lifespans in one task, undone whatever goes wrong, here and in `natsweb run`."""

import asyncio
import contextlib
import contextvars
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import anyio
import pytest

from natsweb import Depends, HTTPError, Request, Service
from natsweb.errors import DeclarationError, StartError

Journal = list[str]


@pytest.fixture
def service():
    """A service whose threads end with the test."""
    service = Service("test", threads=2)
    yield service
    service.close()


@pytest.fixture
def journal() -> Journal:
    """What happened, in order."""
    return []


def tracked(journal: Journal, name: str, state: Any = None, *, start: Any = None, stop: Any = None) -> Any:
    """Return a lifespan that writes down when it starts, ends, and what it sees; `start` and `stop` are raised."""

    async def life(svc: Service) -> AsyncIterator[Any]:
        journal.append(f"start {name}")
        if start is not None:
            raise start
        try:
            yield state
        except BaseException as error:
            journal.append(f"{name} sees {type(error).__name__}")
            raise
        finally:
            journal.append(f"stop {name}")
            if stop is not None:
                raise stop

    life.__name__ = name
    return life


# ── order and state ──────────────────────────────────────────────────────────────────────────────


async def test_lifespans_end_in_the_reverse_order(service, journal):
    """They start in the order of their declaration, dependencies of scope app after them, and end the other way."""

    async def pool() -> AsyncIterator[int]:
        journal.append("make pool")
        yield 1
        journal.append("close pool")

    @service.get("/")
    async def show(x: Annotated[int, Depends(pool, scope="app")]): ...

    for name in ("one", "two"):
        assert service.lifespan(life := tracked(journal, name)) is life
    async with service as entered:
        assert entered is service
        journal.append("run")
    up, down = ["start one", "start two", "make pool"], ["close pool", "stop two", "stop one"]
    assert journal == [*up, "run", *down]


@dataclass
class State:
    """What a lifespan gives."""

    pool: str


async def test_the_state_of_a_service(journal):
    """`svc.state` is what one lifespan has yielded, from then on and until the service stops."""
    service = Service[State]("test")
    seen = []

    @service.lifespan
    async def gives(svc: Service[State]) -> AsyncIterator[State]:
        yield State("pool")

    @service.lifespan
    async def uses(svc: Service[State]) -> AsyncIterator[None]:
        seen.append(svc.state.pool)
        yield

    @service.get("/")
    async def show(svc: Service[State]) -> str:
        return svc.state.pool

    for _ in range(2):
        with pytest.raises(StartError, match="test has no state, since it has not been started") as caught:
            _ = service.state
        assert "async with svc" in caught.value.fix
        async with service:
            assert service.state == State("pool")
            assert (await service.handle(Request())).text == "pool"
    assert seen == ["pool"] * 2


async def test_the_state_at_the_end_of_a_lifespan(service, journal, caplog):
    """A lifespan may use the state of another one in its second part as well."""
    service.lifespan(tracked(journal, "one", "state"))

    @service.lifespan
    async def uses(svc: Service) -> AsyncIterator[None]:
        yield
        journal.append(svc.state)

    async with service:
        pass
    assert journal == ["start one", "state", "stop one"]
    assert not caplog.records


async def test_no_state(service, journal):
    """Without a lifespan, or with one that yields nothing, the state is None."""
    async with service:
        assert service.state is None
    service.lifespan(tracked(journal, "one"))
    async with service:
        assert service.state is None


async def test_two_states(service, journal):
    """Two lifespans that yield a state are an error that names both; what was started is undone."""
    service.lifespan(tracked(journal, "one", "a"))
    service.lifespan(tracked(journal, "between"))
    service.lifespan(tracked(journal, "two", "b"))
    with pytest.raises(StartError, match="two lifespans of test yield a state") as caught:
        await service.start()
    assert [re.sub(r":\d+", "", line) for line in caught.value.where] == [
        "lifespan one (tests/test_lifespans.py)",
        "lifespan two (tests/test_lifespans.py)",
    ]
    assert journal[3:] == [
        *("two sees StartError", "stop two", "between sees StartError", "stop between"),
        *("one sees StartError", "stop one"),
    ]
    with pytest.raises(StartError, match="has no state"):
        _ = service.state


async def test_falsy_states(service, journal):
    """Zero and an empty list are states."""
    service.lifespan(tracked(journal, "one", []))
    async with service:
        assert service.state == []


def no_lifespan(svc: Service): ...
async def no_yield(svc: Service): ...
async def too_many(svc: Service, more: int): yield  # fmt: skip


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_lifespan, "a lifespan is an async function that yields once, and no_lifespan is none"),
        (no_yield, "and no_yield is none"),
        (too_many, "too_many takes more than the service"),
    ],
)
def test_what_cannot_be_a_lifespan(service, function, words):
    """Mistakes are told where they are made, with the right spelling."""
    with pytest.raises(DeclarationError, match=words) as caught:
        service.lifespan(function)
    assert "test_lifespans.py" in caught.value.where[0]
    assert f"async def {function.__name__}(svc: Service)" in caught.value.fix


async def test_spellings_of_a_lifespan(service, journal):
    """One without parameter, and one under @asynccontextmanager, are lifespans as well."""

    @service.lifespan
    async def bare() -> AsyncIterator[None]:
        journal.append("start bare")
        yield
        journal.append("stop bare")

    @service.lifespan
    @contextlib.asynccontextmanager
    async def decorated(svc: Service) -> AsyncIterator[str]:
        journal.append("start decorated")
        yield svc.name
        journal.append("stop decorated")

    async with service:
        assert service.state == "test"
    assert journal == ["start bare", "start decorated", "stop decorated", "stop bare"]


# ── starting and stopping ────────────────────────────────────────────────────────────────────────


async def test_starting_and_stopping_again(service, journal):
    """Twice does nothing more than once, and a stopped service starts afresh."""
    service.lifespan(tracked(journal, "one"))
    await service.stop()
    assert repr(service._lifespan) == "<Lifespan of test: not running>"
    for _ in range(2):
        assert not service.is_running
        await service.start()
        await service.start()
        assert service.is_running
        assert repr(service._lifespan) == "<Lifespan of test: running>"
        await service.stop()
        await service.stop()
    assert not service.is_running
    assert journal == ["start one", "stop one"] * 2


async def test_two_that_start_at_the_same_time(service, journal):
    """Whoever starts a service that is starting waits until it is ready."""
    release = asyncio.Event()

    @service.lifespan
    async def slow() -> AsyncIterator[str]:
        await release.wait()
        journal.append("ready")
        yield "state"

    async def start() -> None:
        await service.start()
        journal.append(service.state)

    starting = [asyncio.create_task(start()) for _ in range(3)]
    await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*starting)
    await service.stop()
    assert journal == ["ready", "state", "state", "state"]


@pytest.mark.parametrize("how", ["fails", "takes too long", "is cancelled"])
async def test_two_that_start_and_the_first_does_not(service, how):
    """Whoever waits for another's start that fails hears so, and the next one starts the service."""
    starts, crash = [], asyncio.Event()
    service.start_timeout = 0.05 if how == "takes too long" else 60

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        starts.append(1)
        if len(starts) == 1:
            await crash.wait()
            raise OSError("no database")
        yield

    first, second = [asyncio.create_task(service.start()) for _ in range(2)]
    await asyncio.sleep(0)
    if how == "fails":
        crash.set()
    elif how == "is cancelled":
        first.cancel()
    async with asyncio.timeout(10):
        [error] = await asyncio.gather(first, return_exceptions=True)
        assert isinstance(error, asyncio.CancelledError if how == "is cancelled" else StartError)
        with pytest.raises(StartError, match="service test could not start") as caught:
            await second
    assert caught.value.fix == "the first who started it hears why"
    assert not service.is_running
    async with service:
        assert service.is_running
    assert starts == [1, 1]


@pytest.mark.xfail(strict=True, reason="the start that is undone takes the state of the one after it")
async def test_a_start_while_another_one_is_undone(service):
    """A start that has been given up does no harm to the next, however long it takes to undo it."""
    starts, release = [], asyncio.Event()

    @service.lifespan
    async def life() -> AsyncIterator[str]:
        starts.append(1)
        if len(starts) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                await release.wait()
        yield "state"

    first = asyncio.create_task(service.start())
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    second = asyncio.create_task(service.start())
    await asyncio.sleep(0.01)
    release.set()
    await asyncio.gather(first, second, return_exceptions=True)
    outcome = second.exception() or service.state
    await service.stop()
    assert outcome == "state" or isinstance(outcome, StartError)


async def test_task_groups_inside_of_a_lifespan(service, journal):
    """A cancel scope is entered and left in one task, though start and stop are called from different ones."""
    tasks = []

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        async with anyio.create_task_group() as group, asyncio.TaskGroup() as other:
            group.start_soon(asyncio.sleep, 60)
            work = other.create_task(asyncio.sleep(60))
            with anyio.fail_after(60):
                yield
            group.cancel_scope.cancel()
            work.cancel()
        tasks.append(asyncio.current_task())
        journal.append("left")

    await asyncio.create_task(service.start())
    await asyncio.create_task(service.stop())
    assert journal == ["left"]
    assert tasks[0] is tasks[1]
    assert len(asyncio.all_tasks()) == 1


async def test_context_variables_of_a_lifespan(service):
    """A lifespan sees the variables of whoever starts it, has the same ones at its end, and leaks none."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        seen.append(variable.get())
        token = variable.set("life")
        yield
        variable.reset(token)
        seen.append(variable.get())

    variable.set("starter")
    async with service:
        assert variable.get() == "starter"
    assert seen == ["starter", "starter"]


async def test_cancelling_the_start(service, journal):
    """Whoever is cancelled while starting gets the cancellation when all that was started has been undone."""
    service.lifespan(tracked(journal, "one"))
    started = asyncio.Event()

    @service.lifespan
    async def slow() -> AsyncIterator[None]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            journal.append("slow ends")
        yield

    starting = asyncio.create_task(service.start())
    await started.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert journal == ["start one", "slow ends", "one sees CancelledError", "stop one"]
    assert len(asyncio.all_tasks()) == 1
    assert not service._lifespan.is_running


async def test_cancelling_the_stop(service, journal):
    """The end of a lifespan goes on when whoever waits for it is cancelled."""
    release, ending = asyncio.Event(), asyncio.Event()

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        yield
        ending.set()
        await release.wait()
        journal.append("ended")

    await service.start()
    task = service._lifespan._task
    stopping = asyncio.create_task(service.stop())
    await ending.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    release.set()
    await task
    assert journal == ["ended"]


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error", [KeyError("x"), HTTPError(503), OSError("no database"), TimeoutError()], ids=lambda e: type(e).__name__
)
async def test_a_failure_at_the_start_undoes_what_was_started(service, journal, error):
    """The error says which lifespan failed, has its cause, and those before it have ended."""
    service.lifespan(tracked(journal, "one"))
    service.lifespan(tracked(journal, "two", start=error))
    service.lifespan(tracked(journal, "three"))
    with pytest.raises(StartError) as caught:
        await service.start()
    assert re.fullmatch(
        r"service test could not start: lifespan two \(tests/test_lifespans.py:\d+\) failed with "
        rf"{type(error).__name__}: {re.escape(str(error))}",
        caught.value.what,
    )
    assert caught.value.__cause__ is error
    assert caught.value.exit_code == 3
    assert journal == ["start one", "start two", f"one sees {type(error).__name__}", "stop one"]
    assert not service._lifespan.is_running
    assert len(asyncio.all_tasks()) == 1


async def test_a_start_error_of_a_lifespans_own(service, journal):
    """A lifespan that raises StartError speaks for itself."""
    error = StartError("the schema is too old", fix="run the migrations")
    service.lifespan(tracked(journal, "one", start=error))
    with pytest.raises(StartError) as caught:
        await service.start()
    assert caught.value is error


@pytest.mark.xfail(strict=True, reason="undoing renames the step before it is told: 'a lifespan failed'")
async def test_a_dependency_that_fails_at_the_start(service, journal):
    """What lives as long as the service is undone with the lifespans."""

    async def pool() -> AsyncIterator[int]:
        yield 1
        journal.append("never")

    async def broken(x: Annotated[int, Depends(pool, scope="app")]) -> int:
        raise OSError("no database")

    @service.get("/")
    async def show(x: Annotated[int, Depends(broken, scope="app")]): ...

    service.lifespan(tracked(journal, "one"))
    with pytest.raises(StartError, match=r"a dependency .*failed with OSError: no database"):
        await service.start()
    assert journal == ["start one", "one sees OSError", "stop one"]


async def test_starting_again_after_a_failure(service, journal):
    """A service whose start has failed can be started again."""
    errors = [OSError("not yet")]

    @service.lifespan
    async def life() -> AsyncIterator[str]:
        while errors:
            raise errors.pop()
        yield "ready"

    with pytest.raises(StartError, match="not yet"):
        await service.start()
    async with service:
        assert service.state == "ready"


@pytest.mark.xfail(strict=True, reason="an error of the undoing takes the place of the one that the start failed with")
async def test_the_error_of_the_start_is_the_one_that_is_told(service, journal):
    """Undoing may fail as well; what the start failed with stays the message."""
    service.lifespan(tracked(journal, "one", stop=RuntimeError("of the undoing")))
    service.lifespan(tracked(journal, "two", start=OSError("no database")))
    with pytest.raises(StartError, match=r"lifespan two .* failed with OSError: no database"):
        await service.start()


async def test_a_lifespan_that_yields_nothing_at_all(service, journal):
    """One that returns before its yield is an error."""

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        if journal:
            yield

    with pytest.raises(StartError, match=r"lifespan life .* failed with RuntimeError: generator didn't yield"):
        await service.start()


async def test_a_start_that_takes_too_long(journal):
    """It is cancelled after `start_timeout`, undone, and the error says what took so long."""
    service = Service("test", start_timeout=0.05)
    service.lifespan(tracked(journal, "one"))

    @service.lifespan
    async def slow() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    with pytest.raises(
        StartError, match=r"did not start within 0\.05 s: lifespan slow \(.*\) takes too long"
    ) as caught:
        await service.start()
    assert "start_timeout" in caught.value.fix
    assert journal == ["start one", "one sees CancelledError", "stop one"]
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("where", ["lifespan", "dependency"])
async def test_a_start_that_awaits_what_was_cancelled(service, where):
    """A CancelledError of a lifespan's own is a failure at once, not a start that takes too long."""

    async def cancelled() -> int:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task
        return 1

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        if where == "lifespan":
            await cancelled()
        yield

    if where == "dependency":

        @service.get("/")
        async def show(x: Annotated[int, Depends(cancelled, scope="app")]): ...

    async with asyncio.timeout(10):
        with pytest.raises(StartError, match=r"service test could not start: .* failed with .*it was cancelled"):
            await service.start()
    assert not service.is_running


async def test_a_failure_at_the_stop_is_logged(service, journal, caplog):
    """Stopping goes on, through all lifespans, and says by name what has failed."""
    service.lifespan(tracked(journal, "one"))
    service.lifespan(tracked(journal, "two", stop=OSError("disk full")))
    await service.start()
    await service.stop()
    assert journal == ["start one", "start two", "stop two", "one sees OSError", "stop one"]
    [record] = caplog.records
    assert record.getMessage() == "a lifespan failed while test was stopping"
    assert record.exc_info[1].args == ("disk full",)


async def test_a_lifespan_that_does_not_end(service, journal, caplog, monkeypatch, until):
    """After 25 seconds (here less) it is cancelled and left there."""
    monkeypatch.setattr("natsweb.lifespans._STOP_TIME", 0.01)

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        yield
        try:
            await asyncio.Event().wait()
        finally:
            journal.append("cancelled")

    await service.start()
    await service.stop()
    await until(lambda: journal == ["cancelled"])
    assert "takes longer than 0.01 s to end; leaving it there" in caplog.text
    assert not service._lifespan.is_running


@contextlib.asynccontextmanager
async def crashing(crash: asyncio.Event, group: Any = asyncio.TaskGroup) -> AsyncIterator[None]:
    """Run a task that fails when `crash` is set, in a task group."""

    async def consume() -> None:
        await crash.wait()
        raise OSError("connection lost")

    async with group() as tasks:
        if group is asyncio.TaskGroup:
            tasks.create_task(consume())
        else:
            tasks.start_soon(consume)
        yield


@pytest.mark.parametrize("group", [anyio.create_task_group, asyncio.TaskGroup])
async def test_a_lifespan_that_fails_while_the_service_runs(service, journal, caplog, group):
    """It is logged at once as what it is, `failed` returns, and the service does not go on as if it had a state."""
    crash = asyncio.Event()
    service.lifespan(tracked(journal, "one"))

    @service.lifespan
    async def life() -> AsyncIterator[str]:
        async with crashing(crash, group):
            yield "state"

    @service.get("/")
    async def show(svc: Service) -> str:
        return svc.state

    await service.start()
    assert (await service.handle(Request())).text == "state"
    crash.set()
    async with asyncio.timeout(10):
        await service.failed()
    [record] = caplog.records
    assert record.getMessage() == "a lifespan failed while test was running"
    assert "connection lost" in caplog.text
    assert journal == ["start one", "one sees ExceptionGroup", "stop one"]
    assert not service.is_running
    assert (await service.handle(Request())).status == 500
    await service.stop()
    assert len(asyncio.all_tasks()) == 1


async def test_a_lifespan_that_ends_while_the_service_runs(service, caplog):
    """One that catches the error of its task group has ended all the same, and what it held is gone."""
    crash = asyncio.Event()

    @service.lifespan
    async def life() -> AsyncIterator[None]:
        with contextlib.suppress(ExceptionGroup):
            async with crashing(crash):
                yield

    await service.start()
    crash.set()
    async with asyncio.timeout(10):
        await service.failed()
    assert not service.is_running
    await service.stop()
    assert not caplog.records


async def test_a_service_that_never_ran_has_not_failed(service):
    """`failed` of a service that nobody has started waits, as that of a running one."""
    failed = asyncio.create_task(service.failed())
    done, _ = await asyncio.wait([failed], timeout=0.05)
    assert not done
    failed.cancel()


async def test_a_stop_is_no_failure(service, journal):
    """`failed` does not return when the service is stopped, even if the end of a lifespan fails."""
    service.lifespan(tracked(journal, "one", stop=OSError("disk full")))
    await service.start()
    failed = asyncio.create_task(service.failed())
    await service.stop()
    await asyncio.sleep(0)
    assert not failed.done()
    failed.cancel()


async def test_starting_again_after_a_failure_while_running(service, journal):
    """A service whose lifespan has failed starts anew, and may fail and be stopped anew."""
    crashes = [asyncio.Event(), asyncio.Event()]

    @service.lifespan
    async def life() -> AsyncIterator[int]:
        journal.append("start")
        async with crashing(crashes[len(journal) - 1]) if len(journal) < 3 else contextlib.nullcontext():
            yield len(journal)

    for number, crash in enumerate(crashes, 1):
        await service.start()
        assert (service.is_running, service.state) == (True, number)
        crash.set()
        async with asyncio.timeout(10):
            await service.failed()
        assert not service.is_running
    async with service:
        assert service.state == 3
    assert journal == ["start"] * 3
    assert len(asyncio.all_tasks()) == 1


# ── the command line ─────────────────────────────────────────────────────────────────────────────


class Process:
    """A `natsweb` process whose output can be waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Read until the output matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while not (found := re.search(pattern, self.output)):
                chunk = await self.process.stdout.read(4096)
                assert chunk, f"ended without saying {pattern!r}:\n{self.output}"
                self.output += chunk.decode()
        return found

    async def ends(self) -> int:
        """Wait for the end and return the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()


Run = Callable[..., "asyncio.Future[Process]"]


@pytest.fixture
async def run(tmp_path: Path, nats_url: str) -> AsyncIterator[Run]:
    """Give a function that writes `app.py` and runs it with `natsweb run`."""
    processes = []

    async def start(code: str, *arguments: str) -> Process:
        (tmp_path / "app.py").write_text(HEAD + dedent(code))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "natsweb", "run", *(arguments or ["app:svc"]), "--root", "life"),
            cwd=tmp_path,
            env={**clean, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1", "NATS_URL": nats_url},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        processes.append(process)
        return Process(process)

    yield start  # type: ignore[misc]
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


HEAD = """import asyncio
from natsweb import Background, Service

svc = Service("life")

@svc.get("/")
async def show() -> str:
    return "life"

"""

FAILS = """
@svc.lifespan
async def first(svc):
    print("first starts", flush=True)
    yield
    print("first stops", flush=True)

@svc.lifespan
async def second(svc):
    await connect()
    yield

async def connect():
    raise OSError("no database here")
"""

CLEANS = FAILS.replace(
    '    yield\n    print("first stops", flush=True)',
    '    try:\n        yield\n    finally:\n        print("first stops", flush=True)',
)


async def test_run_with_a_lifespan_that_fails(run):
    """Exit code 3, the user's traceback, an error in three parts, and what was started has ended."""
    process = await run(CLEANS)
    assert await process.ends() == 3, process.output
    assert "first starts\nfirst stops\n" in process.output
    assert "Traceback" in process.output
    assert 'raise OSError("no database here")' in process.output
    assert "error: service life could not start: lifespan second (app.py:" in process.output
    assert "failed with OSError: no database here" in process.output
    assert "  fix: " in process.output
    assert '"event": "ready"' not in process.output
    assert process.output.count("Traceback") == 1
    assert "natsweb/cli" not in process.output
    assert "never retrieved" not in process.output


async def test_run_undoes_services_that_have_started(run):
    """If the second of two services cannot start, the first one ends."""
    process = await run(
        """
        @svc.lifespan
        async def life(svc):
            print("life starts", flush=True)
            yield
            print("life stops", flush=True)

        other = Service("other")

        @other.get("/other")
        async def other_show(): ...

        @other.lifespan
        async def broken(svc):
            raise KeyError("setting")
            yield
        """,
        "app:svc",
        "app:other",
    )
    assert await process.ends() == 3
    assert "life starts\n" in process.output
    assert "life stops\n" in process.output
    assert "service other could not start: lifespan broken" in process.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_runs_the_end_of_the_lifespan(run, number):
    """A clean stop is exit code 0, and the lifespan has ended."""
    process = await run(
        """
        @svc.lifespan
        async def life(svc):
            print("starts", flush=True)
            yield
            await asyncio.sleep(0)
            print("stops", flush=True)
        """
    )
    await process.says('"event": "ready"')
    process.process.send_signal(number)
    assert await process.ends() == 0
    assert process.output.count("stops") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_a_slow_start(run, number):
    """The start is given up, what was started is undone, and the exit code is 0."""
    process = await run(
        """
        @svc.lifespan
        async def first(svc):
            try:
                yield
            finally:
                print("first stops", flush=True)

        @svc.lifespan
        async def slow(svc):
            print("waiting", flush=True)
            try:
                await asyncio.sleep(600)
                yield
            finally:
                print("slow gives up", flush=True)
        """
    )
    await process.says("waiting")
    process.process.send_signal(number)
    assert await process.ends() == 0, process.output
    assert "slow gives up\nfirst stops\n" in process.output
    assert "ready" not in process.output
    assert "Traceback" not in process.output


async def test_run_ends_with_its_lifespan(run, bus):
    """A lifespan that fails while the service runs stops the process: exit code 1, and the log says why."""
    process = await run(
        """
        @svc.lifespan
        async def first(svc):
            try:
                yield
            finally:
                print("first stops", flush=True)

        @svc.lifespan
        async def life(svc):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(consume())
                yield

        async def consume():
            await lost.wait()
            raise OSError("connection lost")

        lost = asyncio.Event()

        @svc.get("/lose")
        async def lose():
            lost.set()
        """
    )
    await process.says('"event": "ready"')
    bus.publish("life.lose", b"", header=b"NATS/1.0\r\n\r\n", reply="_INBOX.nobody")
    assert await process.ends() == 1, process.output
    assert "a lifespan failed while life was running" in process.output
    assert "OSError: connection lost" in process.output
    assert "a lifespan has failed; stopping" in process.output
    assert process.output.count("first stops\n") == 1
    assert "never retrieved" not in process.output


async def test_run_ends_with_one_of_two_lifespans(run):
    """If a lifespan of one service fails, the others are stopped with it."""
    process = await run(
        """
        @svc.lifespan
        async def life(svc):
            yield
            print("life stops", flush=True)

        other = Service("other")

        @other.get("/other")
        async def other_show(): ...

        @other.lifespan
        async def broken(svc):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(consume())
                yield

        async def consume():
            raise OSError("connection lost")
        """,
        "app:svc",
        "app:other",
    )
    assert await process.ends() == 1, process.output
    assert "a lifespan failed while other was running" in process.output
    assert process.output.count("life stops\n") == 1


async def test_a_failure_at_the_end_of_a_lifespan_is_told(run):
    """The process ends, and the log has the traceback."""
    process = await run(
        """
        @svc.lifespan
        async def life(svc):
            yield
            raise OSError("disk full")
        """
    )
    await process.says('"event": "ready"')
    process.process.send_signal(signal.SIGTERM)
    assert await process.ends() == 0
    assert "failed while life was stopping" in process.output
    assert "OSError: disk full" in process.output


async def test_background_work_ends_before_the_lifespan(run, bus):
    """SIGTERM waits for the work of requests that have been answered; what it uses is there until it is done."""
    process = await run(
        """
        @svc.lifespan
        async def life(svc):
            yield
            print("stops", flush=True)

        async def work():
            print("working", flush=True)
            await asyncio.sleep(0.3)
            print("work done", flush=True)

        @svc.get("/work")
        async def begin(tasks: Background):
            tasks.add(work)
        """
    )
    await process.says('"event": "ready"')
    bus.publish("life.work", b"", header=b"NATS/1.0\r\n\r\n", reply="_INBOX.nobody")
    await process.says("working")
    process.process.send_signal(signal.SIGTERM)
    assert await process.ends() == 0
    assert re.search(r"working\n(.*\n)*work done\n(.*\n)*stops\n", process.output)
