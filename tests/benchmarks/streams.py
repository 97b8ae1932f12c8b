"""Streams by natsweb and by FastAPI on uvicorn: large bodies, feeds, a slow reader and many idle WebSockets.

Every measurement gets fresh processes, and in each round the two stacks take turns. CPU and memory are the kernel's
figures for each process: CPU while the work lasted, memory at its peak less what it was before. Clients are processes
of their own (curl, wrk, `crowd`), which count for nothing.
"""

import asyncio
import contextlib
import json
import resource
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.benchmarks.load import find_wrk, measure
from tests.benchmarks.proc import cpu_seconds, forget_peak, memory, peak_memory
from tests.benchmarks.report import machine, table
from tests.benchmarks.stacks import APPS, GATEWAY, NATS_SERVER, QUIET, ROOT, UVICORN, Case, Failed, Stack, running_case

__all__ = ["Measured", "Sizes", "broken_bars", "measure_streams", "streams_as_json", "streams_text"]

#: MiB that each process may grow by while a body of any size goes through it.
GROWTH_BAR = 40.0

_PARTS = ("gateway", "service", "app", NATS_SERVER)
_RATE = 1_000_000
_SLOW_MIB = 200
_OTHERS = 16
_SETTLED = 1.0
_FILES = 20_000

STACKS = {
    "natsweb": Case("", {"service": ("-m", "natsweb", "run", str(APPS / "streamer.py")), "gateway": GATEWAY}),
    "fastapi": Case("", {"app": (*UVICORN[:-2], *QUIET, "streamer_direct:app")}, nats=False),
}


class Sizes(NamedTuple):
    """How much of everything: `mib` of a body, clients of events, WebSockets, and how long things last."""

    rounds: int = 3
    mib: int = 1024
    listeners: int = 1000
    listen: int = 20
    reading: int = 10
    sockets: int = 5000
    idle: float = 10.0
    pinged: float = 25.0


QUICK = Sizes(rounds=1, mib=64, listeners=100, listen=3, reading=3, sockets=500, idle=2.0, pinged=3.0)


class Measured(NamedTuple):
    """What was measured once: figures by name; CPU seconds, and MiB of growth at the peak, of each process."""

    what: str
    stack: str
    round: int
    figures: dict[str, float]
    cpu: dict[str, float]
    growth: dict[str, float]


class _Watch:
    """CPU and memory of the processes of a stack, from now on."""

    def __init__(self, stack: Stack) -> None:
        self._pids = stack.pids
        self._memory = {part: memory(pid) for part, pid in self._pids.items()}
        for pid in self._pids.values():
            forget_peak(pid)
        self.begin()

    def begin(self) -> None:
        """Count CPU from here."""
        self._cpu = {part: cpu_seconds(pid) for part, pid in self._pids.items()}

    def cpu(self) -> dict[str, float]:
        """Return the seconds that each process has used."""
        return {part: cpu_seconds(pid) - self._cpu[part] for part, pid in self._pids.items()}

    def growth(self) -> dict[str, float]:
        """Return how many MiB more than at first each process has had at most."""
        return {part: peak_memory(pid) - self._memory[part] for part, pid in self._pids.items()}

    def more(self) -> dict[str, float]:
        """Return how many MiB more than at first each process has now."""
        return {part: memory(pid) - self._memory[part] for part, pid in self._pids.items()}


async def measure_streams(sizes: Sizes, say: Callable[[str], None]) -> list[Measured]:
    """Measure it all; raises `Failed` for whatever is not answered as it should be."""
    find_wrk()
    if shutil.which("curl") is None:
        raise Failed("curl is not on PATH (apt-get install curl)")
    _raise_limit(sizes.sockets + 100)
    found = list[Measured]()
    with tempfile.NamedTemporaryFile(prefix="natsweb-streams-") as file:
        file.truncate(sizes.mib << 20)
        for work in (_bodies, _events, _slow_reader, _sockets):
            for number in range(1, sizes.rounds + 1):
                names = list(STACKS) if number % 2 else list(reversed(STACKS))
                for name in names:
                    async for one in work(name, number, sizes, Path(file.name)):
                        found.append(one)
                        say(_progress(one))
    return found


def _raise_limit(least: int) -> None:
    """Let processes that are started from here on have many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if wanted < least:
        raise Failed(f"{least} open files are needed, and the limit is {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.asynccontextmanager
async def _running(name: str) -> AsyncIterator[Stack]:
    async with running_case(name, STACKS[name], "/small", b'{"bytes":0}') as stack:
        await asyncio.sleep(_SETTLED)
        yield stack


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


async def _bodies(name: str, number: int, sizes: Sizes, file: Path) -> AsyncIterator[Measured]:
    """One large body up, one down."""
    size = sizes.mib << 20
    for what, path, options in (
        ("up", "/up", ("-T", str(file))),
        ("down", f"/down/{sizes.mib}", ("-o", "/dev/null")),
    ):
        async with _running(name) as stack:
            watch = _Watch(stack)
            seconds, passed = await _curl(stack, path, *options)
            if passed != size:
                raise Failed(f"{name}: {passed} of {size} bytes went {what}")
            yield Measured(what, name, number, {"MB/s": size / 1e6 / seconds}, watch.cpu(), watch.growth())


async def _curl(stack: Stack, path: str, *options: str) -> tuple[float, int]:
    """Return how long a transfer took, and how many bytes went, as the receiver of them says."""
    url = stack.url.removesuffix("/small") + path
    wanted = "\n%{http_code} %{time_total} %{size_download}"
    command = ["curl", "-sS", "--max-time", "300", "-w", wanted, *options, url]
    pipe = asyncio.subprocess.PIPE
    curl = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        said, error = await curl.communicate()
    finally:
        await _kill(curl)
    body, _, facts = said.decode().rpartition("\n")
    status, seconds, size = facts.split()
    if curl.returncode or status != "200":
        raise Failed(f"{stack.name}: {path} was answered {status}, and curl ended with {curl.returncode}: {error!r}")
    return float(seconds), int(json.loads(body)["bytes"]) if body else int(size)


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# ── crowds ───────────────────────────────────────────────────────────────────────────────────────


class _Crowd:
    """A process of clients: it says how a step went, and waits to be told of the next."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, timeout: float) -> dict[str, Any]:
        """Return what it says next."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout)
        if not line:
            raise Failed(f"the clients have ended, with {await self._process.wait()}")
        facts: dict[str, Any] = json.loads(line)
        return facts

    def go_on(self) -> None:
        """Tell it to take the next step."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")


@contextlib.asynccontextmanager
async def _crowd(stack: Stack, what: str, path: str, *numbers: int) -> AsyncIterator[_Crowd]:
    port = str(urlsplit(stack.url).port)
    command = [sys.executable, "-m", "tests.benchmarks.crowd", what, port, path, *[str(one) for one in numbers]]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        yield _Crowd(process)
    finally:
        await _kill(process)


async def _all_open(crowd: _Crowd, name: str, count: int) -> float:
    facts = await crowd.says(300)
    if facts["opened"] != count:
        raise Failed(f"{name}: {facts['opened']} of {count} connections were opened: {facts['failures']}")
    seconds: float = facts["seconds"]
    await asyncio.sleep(_SETTLED)
    return seconds


async def _events(name: str, number: int, sizes: Sizes, _: Path) -> AsyncIterator[Measured]:
    """Many clients that get ten events a second each."""
    async with _running(name) as stack, _crowd(stack, "events", "/ticks", sizes.listeners, sizes.listen) as crowd:
        watch = _Watch(stack)
        await _all_open(crowd, name, sizes.listeners)
        watch.begin()
        crowd.go_on()
        facts = await crowd.says(sizes.listen + 60)
        cpu, growth = watch.cpu(), watch.more()
        if facts["missed"] or facts["lost"]:
            raise Failed(f"{name}: {facts['missed']} events are missing, connections were lost: {facts['lost']}")
    figures = {"events/s": facts["rate"], "p50": facts["p50"], "p99": facts["p99"]}
    yield Measured("events", name, number, figures, cpu, growth)


async def _slow_reader(name: str, number: int, sizes: Sizes, _: Path) -> AsyncIterator[Measured]:
    """Ordinary requests of 16 clients, alone and beside one who reads a large body slowly."""
    async with _running(name) as stack:
        await measure(stack, connections=_OTHERS, seconds=1)
        watch = _Watch(stack)
        alone = await measure(stack, connections=_OTHERS, seconds=sizes.reading, round=number)
        figures = {"req/s": alone.rate, "p50": alone.p50, "p99": alone.p99}
        yield Measured("alone", name, number, figures, watch.cpu(), watch.growth())
        async with _crowd(stack, "slow", f"/down/{_SLOW_MIB}", _RATE) as crowd:
            watch = _Watch(stack)
            if (await crowd.says(30))["status"] != "200":
                raise Failed(f"{name}: the slow reader got no answer")
            beside = await measure(stack, connections=_OTHERS, seconds=sizes.reading, round=number)
            cpu, growth = watch.cpu(), watch.growth()
            crowd.go_on()
            facts = await crowd.says(30)
        if facts["ended"]:
            raise Failed(f"{name}: the slow reader was cut off after {facts['bytes']} bytes")
        rate = facts["bytes"] / facts["seconds"] / 1e6
        figures = {"req/s": beside.rate, "p50": beside.p50, "p99": beside.p99, "MB/s": rate}
        yield Measured("slow", name, number, figures, cpu, growth)


async def _sockets(name: str, number: int, sizes: Sizes, _: Path) -> AsyncIterator[Measured]:
    """Many WebSockets that are opened, say nothing for a while, and then get one echo each."""
    async with _running(name) as stack, _crowd(stack, "sockets", "/echo", sizes.sockets) as crowd:
        watch = _Watch(stack)
        opened = await _all_open(crowd, name, sizes.sockets)
        opening, growth = watch.cpu(), watch.more()
        watch.begin()
        await asyncio.sleep(sizes.idle)
        cpu = watch.cpu()
        watch.begin()
        await asyncio.sleep(sizes.pinged)
        later = watch.cpu()
        crowd.go_on()
        facts = await crowd.says(300)
        if facts["echoes"] != sizes.sockets or facts["failures"]:
            raise Failed(f"{name}: {facts['echoes']} of {sizes.sockets} sockets echo: {facts['failures']}")
        figures = {"open": opened, "echo": facts["seconds"], "pings": facts["pings"]}
        yield Measured("sockets", name, number, figures, cpu, growth)
        yield Measured("opening", name, number, {}, opening, {})
        yield Measured("pinged", name, number, {}, later, {})


# ── what is said of it ───────────────────────────────────────────────────────────────────────────


def _progress(one: Measured) -> str:
    figures = "  ".join(f"{name} {value:.2f}" for name, value in one.figures.items())
    cpu = ", ".join(f"{part} {spent:.2f}" for part, spent in one.cpu.items())
    growth = ", ".join(f"{part} {more:.1f}" for part, more in one.growth.items())
    return f"{one.round} {one.what:<8} {one.stack:<8} {figures}  CPU s: {cpu}  MiB: {growth}"


def broken_bars(found: Sequence[Measured]) -> list[str]:
    """Return which processes have grown by more than they may while one body went through them."""
    return [
        f"{one.what}, round {one.round}: {part} of {one.stack} grew by {more:.1f} MiB"
        for one in found
        if one.what in ("up", "down", "slow") and one.stack == "natsweb"
        for part, more in one.growth.items()
        if more >= GROWTH_BAR
    ]


def streams_as_json(found: Sequence[Measured], sizes: Sizes) -> str:
    """Return everything: the machine, the sizes, each measurement of each round."""
    everything = {"machine": machine(), "sizes": sizes._asdict(), "measured": [one._asdict() for one in found]}
    return json.dumps(everything, indent=1)


def streams_text(found: Sequence[Measured], sizes: Sizes) -> str:
    """Return the tables as Markdown."""
    groups = dict[tuple[str, str], list[Measured]]()
    for one in found:
        groups.setdefault((one.what, one.stack), []).append(one)
    parts = [f"{part} s" for part in _PARTS]
    grown = [f"{part} MiB" for part in _PARTS]
    pairs = [(what, name) for what in ("up", "down") for name in STACKS]
    bodies = [
        [f"{what}, {name}", _figure(groups[what, name], "MB/s", "{:,.0f}"), *_costs(groups[what, name], "{:.2f}")]
        for what, name in pairs
    ]
    growth = [[f"{what}, {name}", *_growth(groups[what, name], "{:.1f}")] for what, name in pairs]
    growth += [[f"slow reader, {name}", *_growth(groups["slow", name], "{:.1f}")] for name in STACKS]
    events = [
        [
            name,
            _figure(groups["events", name], "events/s", "{:,.0f}"),
            _figure(groups["events", name], "p50", "{:.2f}"),
            _figure(groups["events", name], "p99", "{:.2f}"),
            _figure(groups["events", name], "p99", "{:.2f}", min),
            *_costs(groups["events", name], "{:.1f}"),
        ]
        for name in STACKS
    ]
    reading = [
        [
            f"{name}, {'alone' if what == 'alone' else 'beside a slow reader'}",
            _figure(groups[what, name], "req/s", "{:,.0f}"),
            _figure(groups[what, name], "p50", "{:.2f}"),
            _figure(groups[what, name], "p99", "{:.2f}"),
            _figure(groups[what, name], "p99", "{:.2f}", min),
        ]
        for name in STACKS
        for what in ("alone", "slow")
    ]
    sockets = [
        [
            name,
            _figure(groups["sockets", name], "open", "{:.1f}"),
            _figure(groups["sockets", name], "echo", "{:.1f}"),
            _figure(groups["sockets", name], "pings", "{:,.0f}"),
        ]
        for name in STACKS
    ]
    resting = [
        [f"{words}, {name}", *_costs(groups[what, name], "{:.2f}")]
        for what, words in (
            ("opening", "opening all"),
            ("sockets", f"then {sizes.idle:g} s"),
            ("pinged", f"then {sizes.pinged:g} s"),
        )
        for name in STACKS
    ]
    each = [
        [f"{what}, {name}", *_growth(groups[kind, name], "{:.1f}", 1024 / count)]
        for kind, what, count in (("events", "client of events", sizes.listeners), ("sockets", "socket", sizes.sockets))
        for name in STACKS
    ]
    size = "1 GiB" if sizes.mib == 1024 else f"{sizes.mib} MiB"
    blocks = [
        f"{size} as one body; CPU in seconds:",
        table((size, "MB/s", *parts), bodies),
        f"How much each process grew at most, in any round (bar for natsweb: < {GROWTH_BAR:g} MiB):",
        table((f"{size} and the slow reader", *grown), growth),
        f"{sizes.listeners:,} clients that get 10 events/s each, for {sizes.listen} s; CPU in seconds:",
        table(("events", "events/s", "p50 ms", "p99 ms", "lowest p99", *parts), events),
        f"Requests of {_OTHERS} clients, alone and beside one that reads {_SLOW_MIB} MiB at {_RATE / 1e6:g} MB/s:",
        table(("requests", "req/s", "p50 ms", "p99 ms", "lowest p99"), reading),
        f"{sizes.sockets:,} WebSockets: opening all, and after {sizes.idle + sizes.pinged:g} idle s one echo on each:",
        table(("sockets", "open s", "echo s", "pings"), sockets),
        "CPU in seconds, for all of these sockets, while nobody says anything but pings:",
        table(("sockets", *parts), resting),
        "Memory of each process, in KiB for each open connection:",
        table(("one more", *[f"{part} KiB" for part in _PARTS]), each),
    ]
    return "\n\n".join(blocks)


def _figure(group: Sequence[Measured], name: str, form: str, choose: Callable[[list[float]], float] = median) -> str:
    return form.format(choose([one.figures[name] for one in group]))


def _costs(group: Sequence[Measured], form: str) -> list[str]:
    columns = [[one.cpu[part] for one in group if part in one.cpu] for part in _PARTS]
    return [form.format(median(column)) if column else "" for column in columns]


def _growth(group: Sequence[Measured], form: str, factor: float = 1.0) -> list[str]:
    columns = [[one.growth[part] * factor for one in group if part in one.growth] for part in _PARTS]
    return [form.format(max(column)) if column else "" for column in columns]
