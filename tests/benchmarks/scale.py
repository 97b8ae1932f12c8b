"""A gateway among 200 services of 20 routes each: how soon it knows them all, and what they cost it.

The services run in four processes of `natsweb run`. A gateway on an empty bus is the measure for the memory of one
that starts among them. Both get the same requests: one to each service as soon as they are ready. With
`--known-only` a service that is not in the catalogue is a 404.
"""

import asyncio
import contextlib
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from natsweb.discovery import Directory, survey
from natsweb.embedded import embedded_server
from natsweb.micro import ANNOUNCE, INFO, Announcement, Info, State, parse_info
from natsweb.natsbus import NatsBus, connect
from natsweb.settings import Nats
from tests.benchmarks.proc import cpu_seconds, memory
from tests.benchmarks.report import table
from tests.benchmarks.stacks import APPS, ROOT, Failed, clean_environment, process, tail

__all__ = ["Figure", "measure_scale", "scale_table"]

_PROCESSES = 4
_EACH = 50
_SERVICES = _PROCESSES * _EACH
_ANNOUNCEMENTS = 1000
_READY = 120.0
_SETTLED = 1.0
_AT_ONCE = 50


class Figure(NamedTuple):
    """What was measured, and the bar that it is held to, if there is one."""

    name: str
    value: float
    unit: str
    bar: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the bar is kept."""
        return self.bar is None or self.value <= self.bar


class _Gateway(NamedTuple):
    pid: int
    url: str
    seconds: float


async def measure_scale(say: Callable[[str], None]) -> list[Figure]:
    """Start it all, measure, and end it all; raises `Failed` for what does not start or is not complete."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natsweb-scale-")))
        url = await stack.enter_async_context(embedded_server())
        async with _gateway(url, folder / "empty.log") as gateway:
            alone = gateway.seconds
            await _statuses(gateway)
            await asyncio.sleep(_SETTLED)
            empty = memory(gateway.pid)
        say(f"a gateway on an empty bus: ready after {alone:.2f} s, {empty:.1f} MiB")
        started = time.perf_counter()
        await _start_services(stack, url, folder)
        services = time.perf_counter() - started
        say(f"{_SERVICES} services in {_PROCESSES} processes: ready after {services:.1f} s")
        bus = await connect(Nats(urls=(url,)))
        stack.push_async_callback(bus.close)
        asked = await _ask(bus)
        async with _gateway(url, folder / "full.log") as gateway:
            missing = [number for number, status in enumerate(await _statuses(gateway)) if status != 200]
            if missing:
                raise Failed(
                    f"{len(missing)} of {_SERVICES} services are not in the catalogue of a gateway at its start"
                )
            await asyncio.sleep(_SETTLED)
            full = memory(gateway.pid)
            say(f"a gateway among them: ready after {gateway.seconds:.2f} s, {full:.1f} MiB")
            [info] = [info for payload in await survey(bus, INFO, "s0") if (info := parse_info(payload)) is not None]
            changing = await _announce(bus, gateway.pid, info, ("starting", "up"))
            same = await _announce(bus, gateway.pid, info, ("up", "up"))
            after = memory(gateway.pid)
    return [
        Figure("a gateway starts, until its catalogue is complete", gateway.seconds, "s", 2.0),
        Figure("of that: asking, until nothing has come for 0.1 s", asked, "s"),
        Figure("a gateway starts on an empty bus", alone, "s"),
        Figure("memory of the gateway, more than on an empty bus", full - empty, "MiB", 30.0),
        Figure(f"the same after {2 * _ANNOUNCEMENTS:,} announcements", after - empty, "MiB"),
        Figure("CPU of the gateway for an announcement that changes something", changing, "ms", 1.0),
        Figure("CPU of the gateway for one that does not", same, "ms"),
        Figure(f"{_EACH} services in each `natsweb run` start, until all are up", services, "s"),
    ]


def scale_table(figures: list[Figure]) -> str:
    """Return the figures as a table."""
    rows = [
        [
            figure.name,
            f"{figure.value:.2f} {figure.unit}",
            "" if figure.bar is None else f"< {figure.bar:g} {figure.unit}",
            "" if figure.bar is None else "yes" if figure.holds else "**no**",
        ]
        for figure in figures
    ]
    return table((f"{_SERVICES} services of 20 routes", "measured", "bar", "holds"), rows)


async def _start_services(stack: contextlib.AsyncExitStack, url: str, folder: Path) -> None:
    waiting = []
    for number in range(_PROCESSES):
        first = number * _EACH
        environment = {**_environment(url), "MANY_FIRST": f"{first}"}
        apps = [f"{APPS / 'many.py'}:s{one}" for one in range(first, first + _EACH)]
        log = folder / f"services-{number}.log"
        started = await stack.enter_async_context(process(["-m", "natsweb", "run", *apps], environment, log))
        waiting.append(_ready(started, log, _EACH))
    await asyncio.gather(*waiting)


def _environment(url: str) -> dict[str, str]:
    return {**clean_environment(), "NATS_URL": url, "PYTHONPATH": str(ROOT)}


@contextlib.asynccontextmanager
async def _gateway(url: str, log: Path) -> AsyncIterator[_Gateway]:
    """Run a gateway while the context lasts."""
    began = time.perf_counter()
    command = ["-m", "natsweb", "gateway", "--port", "0", "--known-only"]
    async with process(command, _environment(url), log) as started:
        [facts] = await _ready(started, log, 1)
        yield _Gateway(started.pid, facts["http"], time.perf_counter() - began)


async def _ready(started: asyncio.subprocess.Process, log: Path, lines: int) -> list[dict[str, str]]:
    """Wait until a process has said that often that it is ready; return what it said."""
    give_up = time.perf_counter() + _READY
    while True:
        said = [line for line in log.read_text().splitlines(keepends=True) if line.startswith('{"event": "ready"')]
        if len(said) == lines and said[-1].endswith("\n"):
            return [json.loads(line) for line in said]
        if started.returncode is not None or time.perf_counter() > give_up:
            raise Failed(f"{log.stem} did not start:\n{tail(log)}")
        await asyncio.sleep(0.002)


async def _statuses(gateway: _Gateway) -> list[int]:
    """Ask every service for something, and return the statuses."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def ask(number: int) -> int:
        async with gate:
            return await asyncio.to_thread(_status, f"{gateway.url}/s{number}/shelf{number % 20}/7")

    return await asyncio.gather(*[ask(number) for number in range(_SERVICES)])


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def _ask(bus: NatsBus) -> float:
    """Fill a directory of our own, make sure that it is complete, and return how long that took."""
    directory = Directory(bus, "api")
    began = time.perf_counter()
    await directory.start()
    seconds = time.perf_counter() - began
    known = len(directory.catalogue.instances)
    await directory.stop()
    if known != _SERVICES:
        raise Failed(f"a directory knows {known} services at its start, not {_SERVICES}")
    return seconds


async def _announce(bus: NatsBus, pid: int, info: Info, states: tuple[State, State]) -> float:
    """Say many times what a service does; return the CPU that it takes the gateway to note one, in milliseconds."""
    said = [Announcement(state=state, info=info).model_dump_json().encode() for state in states]
    noted = asyncio.Semaphore(0)
    inbox = bus.new_inbox()
    subscription = await bus.subscribe(inbox, lambda _: noted.release())
    await bus.flush()
    before = cpu_seconds(pid)
    for number in range(_ANNOUNCEMENTS):
        bus.publish(ANNOUNCE, said[number % 2], reply=inbox)
        async with asyncio.timeout(5):
            await noted.acquire()
    spent = cpu_seconds(pid) - before
    subscription.stop()
    return spent * 1000 / _ANNOUNCEMENTS
