"""Cases about too much and too slow: overload, stuck neighbours, slow clients, rude handlers, and time."""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack

from .case import Case, Findings, Judge, Scale
from .clients import Load, Offer, Wanted, get, once, post
from .ledger import Outcome
from .raw import Line, handshake, new_id
from .stage import Stage
from .watch import Watch, sample

__all__ = ["PRESSURE_CASES"]

_HANDLER = 0.05
_CONCURRENCY = 20
_OFFERED = 4  # times what the service can do


async def overload(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Offer four times what a service can do, for 30 s: it does what it can, and the rest is told so at once."""
    await stage.nats()
    service, (gateway, url) = await asyncio.gather(
        stage.service("svc", "--concurrency", str(_CONCURRENCY)), stage.gateway()
    )
    capacity = _CONCURRENCY / _HANDLER
    async with (
        Watch([service, gateway]) as watch,
        Offer(url, _OFFERED * capacity, compose=lambda id, _: post("/work", id, _HANDLER)) as offer,
    ):
        began = time.monotonic()
        await asyncio.sleep(30 * scale.seconds)
        spent = time.monotonic() - began
    outcomes = offer.outcomes
    findings.expect_ends(outcomes, {"503 overloaded"}, "under overload")
    served = sum(one.acked for one in outcomes) / spent
    refused = sorted(one.wait_ms for one in outcomes if one.status == 503)
    findings.worst("offered a second", len(outcomes) / spent)
    findings.worst("served a second", served)
    findings.worst("of capacity %", 100 * served / capacity)
    findings.expect(served >= 0.8 * capacity, f"only {served:.0f} of {capacity:.0f} a second were served")
    p95 = refused[int(len(refused) * 0.95)] if refused else 0.0
    findings.worst("503 p50 ms", statistics.median(refused or [0.0]))
    findings.worst("503 p95 ms", p95)
    findings.expect(p95 < 100, f"a 503 took {p95:.0f} ms (p95)")
    for name, process in (("service", service), ("gateway", gateway)):
        _judge_growth(watch, name, process.pid, findings, share=0.05)
    return outcomes, None


def _judge_growth(watch: Watch, name: str, pid: int, findings: Findings, *, share: float, slack: int = 0) -> None:
    """Judge that the last third of the time took no more memory than the middle one."""
    middle, last = watch.third(pid, 1), watch.third(pid, 2)
    findings.figures[f"{name} MiB, middle third"] = round(middle / 2**20, 1)
    findings.figures[f"{name} MiB, last third"] = round(last / 2**20, 1)
    grown = last - middle
    findings.expect(grown <= share * middle + slack, f"the {name} grew by {grown / 2**20:.1f} MiB in the last third")


def _judge_others(alone: Sequence[Outcome], beside: Sequence[Outcome], what: str, findings: Findings) -> None:
    """Judge that a load has been served beside something as it was alone."""
    before = statistics.median(one.wait_ms for one in alone)
    after = statistics.median(one.wait_ms for one in beside)
    worst = max(one.wait_ms for one in beside)
    findings.worst("p50 alone ms", before)
    findings.worst("p50 beside ms", after)
    findings.worst("worst beside ms", worst)
    findings.expect_ends([*alone, *beside], set(), what)
    findings.expect(after <= 1.5 * before, f"p50 {after:.1f} ms {what}, {before:.1f} ms alone")
    findings.expect(worst < 1000, f"a request took {worst:.0f} ms {what}")


async def neighbour(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Have one service answer nothing, first since its handlers hang, then since it is halted: others do not notice."""
    await stage.nats()
    stuck, _, (_, url) = await asyncio.gather(
        stage.service("stuck"), stage.service(), stage.gateway("--timeout", "/stuck=2")
    )
    few = scale.clients // 4
    async with Load(url, few) as alone:
        await asyncio.sleep(3 * scale.seconds)
    outcomes = list(alone.outcomes)
    for what in ("beside hanging handlers", "beside a halted service"):
        async with Load(url, 2 * scale.clients, compose=lambda id, _: get("/stuck", id, 60.0)) as hanging:
            await asyncio.sleep(0.5)
            if "halted" in what:
                stuck.pause()
            async with Load(url, few) as others:
                await asyncio.sleep(4 * scale.seconds)
            stuck.resume()
        _judge_others(alone.outcomes, others.outcomes, what, findings)
        findings.expect_ends(hanging.outcomes, {"504 timeout", "503 overloaded"}, "at the stuck service")
        outcomes += others.outcomes + hanging.outcomes
        findings.say(f"{what}: {len(outcomes)} requests")
    return outcomes, None


_SLOW = 500
_LIMITS = ("head_timeout=4", "body_timeout=4", "idle_timeout=4", "write_timeout=4")


async def slow_clients(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Let 500 clients write and read as slowly as they can: others do not notice, and the slow ones are cut off."""
    await stage.nats()
    limits = [word for one in _LIMITS for word in ("--limit", one)]
    _, (gateway, url) = await asyncio.gather(stage.service(), stage.gateway(*limits))
    few = scale.clients // 4
    async with Load(url, few) as alone:
        await asyncio.sleep(3 * scale.seconds)
    before = sample(gateway.pid)
    async with asyncio.TaskGroup() as group:
        kinds = (_slow_head, _slow_body, _slow_reader, _silent, _pipeliner)
        slow = [group.create_task(kinds[number % len(kinds)](url)) for number in range(_SLOW)]
        await asyncio.sleep(1)
        async with Load(url, few) as others:
            await asyncio.sleep(5 * scale.seconds)
    after = sample(gateway.pid)
    lived = [task.result() for task in slow]
    findings.worst("slow clients", len(lived))
    findings.worst("the last cut off after s", max(lived))
    for number, kind in enumerate(kinds):
        longest = max(lived[number :: len(kinds)])
        findings.expect(longest < 20, f"{kind.__name__.strip('_')}: cut off after {longest:.0f} s only")
    findings.worst("gateway MiB more", (after.memory - before.memory) / 2**20)
    findings.expect(after.files - before.files < 10, f"{after.files - before.files} sockets are still open")
    _judge_others(alone.outcomes, others.outcomes, "beside slow clients", findings)
    return alone.outcomes + others.outcomes, None


async def _trickle(line: Line, began: float) -> float:
    """Send a byte a second until the other side has had enough; return how long that took."""
    reading = asyncio.create_task(line.closed())
    try:
        while not reading.done() and time.monotonic() - began < 30:
            line.send(b"x")
            await asyncio.wait([reading], timeout=1.0)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        line.close()
    return time.monotonic() - began


async def _slow_head(url: str) -> float:
    began, line = time.monotonic(), await Line.open(url)
    line.send(b"GET /work HTTP/1.1\r\nHost: chaos\r\nX-Slow: ")
    return await _trickle(line, began)


async def _slow_body(url: str) -> float:
    """Begin a body, and leave it at that."""
    began, line = time.monotonic(), await Line.open(url)
    line.send(b"POST /work HTTP/1.1\r\nHost: chaos\r\nContent-Length: 1000\r\n\r\nx")
    return await _until_closed(line, began)


async def _silent(url: str) -> float:
    began, line = time.monotonic(), await Line.open(url)
    return await _until_closed(line, began)


async def _until_closed(line: Line, began: float) -> float:
    try:
        async with asyncio.timeout(30):
            await line.closed()
    except TimeoutError:
        pass
    line.close()
    return time.monotonic() - began


async def _slow_reader(url: str) -> float:
    """Ask for 16 MiB, and read none of it until the connection is closed."""
    began, line = time.monotonic(), await Line.open(url, limit=1024)
    line.get("/stream?count=256&size=65536")
    while not line.is_closed and time.monotonic() - began < 30:
        await asyncio.sleep(0.2)
    line.close()
    return time.monotonic() - began


async def _pipeliner(url: str) -> float:
    """Send many requests at once, and read no answer until the connection is closed."""
    began, line = time.monotonic(), await Line.open(url, limit=1024)
    line.send(b"GET /tasks HTTP/1.1\r\nHost: chaos\r\n\r\n" * 200)
    return await _until_closed(line, began)


_KINDS = {
    "raises": (500, 1),
    "base": (500, 1),
    "exits": (500, 1),
    "interrupts": (500, 1),
    "cancelled": (500, 1),
    "cancels": (500, 1),
    "never": (504, 0),
    "garbage": (500, 1),
    "split": (500, 1),
    "name": (500, 1),
    "status": (502, 0),
    "blocking/raises": (500, 1),
    "blocking/exits": (500, 1),
}


async def rude_handlers(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Have a handler do what it must not: one clean answer, one error in the log, and the next request is fine."""
    await stage.nats()
    service, _, (_, url) = await asyncio.gather(stage.service("rude"), stage.service(), stage.gateway("--timeout", "1"))
    outcomes: list[Outcome] = []
    for _ in range(scale.rounds):
        for kind, (status, errors) in _KINDS.items():
            before = sum(" ERROR " in line for line in service.output)
            one = await once(url, f"/rude/{kind}")
            following = await once(url, "/rude/fine")
            await asyncio.sleep(0.05)  # what is logged comes through a pipe
            logged = sum(" ERROR " in line for line in service.output) - before
            findings.expect(one.status == status and one.right, f"{kind}: {one.label}, right: {one.right}")
            findings.expect(following.acked, f"the request after {kind}: {following.label}")
            findings.expect(logged == errors, f"{kind}: {logged} errors in the log, not {errors}")
            outcomes += [one, following]
    findings.expect(service.is_running, "a handler has ended its service")
    return outcomes, None


_STOP = 1.0


async def open_streams(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Stop a service, and then a gateway, with server-sent events and WebSockets open: neither waits for them."""
    await stage.nats()
    service, (gateway, url) = await asyncio.gather(stage.service(), stage.gateway())
    outcomes: list[Outcome] = []
    for number in range(scale.rounds):
        for what in ("service", "gateway"):
            events, sockets = [await _events(url) for _ in range(20)], [await _socket(url) for _ in range(20)]
            stopping = service if what == "service" else gateway
            began = time.monotonic()
            code = await stopping.stop()
            spent = time.monotonic() - began
            findings.worst(f"{what} stopped within ms", spent * 1000)
            findings.expect(code == 0, f"the {what} exits with {code}")
            findings.expect(spent < _STOP, f"the {what} took {spent:.1f} s to stop")
            whole = await asyncio.gather(*[_ends(line.read_stream()) for line in events])
            closed = await asyncio.gather(*[_ends(_goodbye(line)) for line in sockets])
            findings.expect(all(whole), f"{whole.count(False)} event streams did not end well with the {what}")
            findings.expect(all(closed), f"{closed.count(False)} WebSockets were not closed with 1012 by the {what}")
            for line in [*events, *sockets]:
                line.close()
            if what == "service":
                service = await stage.service()
            else:
                gateway, url = await stage.gateway()
        findings.say(f"round {number + 1}")
    async with Load(url, 4) as load:
        await asyncio.sleep(0.2)
    findings.expect_ends(load.outcomes, set(), "afterwards")
    return outcomes + load.outcomes, None


async def _events(url: str) -> Line:
    line = await Line.open(url)
    line.get("/stream?count=10000&pause=0.05", "Accept: text/event-stream")
    assert await line.read_head() == 200, line.head
    return line


async def _socket(url: str) -> Line:
    line = await Line.open(url)
    line.send(handshake("/socket"))
    assert await line.read_head() == 101, line.head
    return line


async def _ends(work: Awaitable[bool]) -> bool:
    """Return what comes of it, False if nothing does."""
    try:
        async with asyncio.timeout(5):
            return await work
    except TimeoutError:
        return False


async def _goodbye(line: Line) -> bool:
    """Read a WebSocket to its end; True if that was a close frame with 1012."""
    data = b""
    while b"\x88" not in data and (more := await line.read_some()):
        data += more
    _, found, frame = data.partition(b"\x88")
    return bool(found) and frame[1:3] == (1012).to_bytes(2, "big")


async def mixed(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Mix all kinds of traffic for long: neither memory nor tasks nor open files grow."""
    await stage.nats()
    service, (gateway, url) = await asyncio.gather(stage.service(), stage.gateway())
    findings.worst("minutes", scale.minutes)
    streams: list[Outcome] = []
    tasks: list[int] = []
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(Load(url, scale.clients // 2, compose=_any))
        fresh = await stack.enter_async_context(Load(url, 4, compose=_any, keep=False))
        watch = await stack.enter_async_context(Watch([service, gateway]))
        end = time.monotonic() + 60 * scale.minutes
        while time.monotonic() < end:
            streams += await asyncio.gather(*[_stream(url) for _ in range(4)])
            await asyncio.gather(_leaver(url), _upload(url), _chat(url))
            tasks.append(await _tasks(url))
        for name, process in (("service", service), ("gateway", gateway)):
            _judge_growth(watch, name, process.pid, findings, share=0.03, slack=1 << 20)
            files = watch.third(process.pid, 2, "files") - watch.third(process.pid, 0, "files")
            findings.expect(
                files <= 5, f"the {name} has {files:.0f} more files open in the last third than in the first"
            )
        third = len(tasks) // 3
        first, last = statistics.median(tasks[:third]), statistics.median(tasks[-third:])
        findings.worst("tasks, first third", first)
        findings.worst("tasks, last third", last)
        findings.expect(last <= first + 5, f"{last:.0f} tasks in the last third, {first:.0f} in the first")
    findings.expect_ends([*load.outcomes, *fresh.outcomes, *streams], set(), "in mixed traffic")
    return load.outcomes + fresh.outcomes + streams, None


def _any(id: str, pause: float) -> Wanted:
    return random.choice((get, post))("/work", id, pause)


async def _stream(url: str) -> Outcome:
    id, line = new_id(), await Line.open(url)
    return await line.stream(id, f"/stream?id={id}&count=20&size={random.choice((0, 100_000))}")


async def _leaver(url: str) -> None:
    """Begin a stream, and leave in its middle."""
    line = await Line.open(url)
    line.get("/stream?count=10000&size=10000")
    await line.read_head()
    await line.read_some()
    line.close()


async def _upload(url: str) -> None:
    """Send two megabytes."""
    line, size = await Line.open(url), 2 << 20
    line.send(f"POST /upload HTTP/1.1\r\nHost: chaos\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(size))
    assert await line.read_head() == 200, line.head
    line.close()


async def _chat(url: str) -> None:
    """Open a WebSocket, say something, and leave without a goodbye."""
    line = await _socket(url)
    line.send(b"\x81\x82\0\0\0\0hi")
    await line.read_some()
    line.close()


async def _tasks(url: str) -> int:
    line = await Line.open(url)
    line.get("/tasks")
    await line.read_head()
    found = await line.read_some()
    line.close()
    return int(found or 0)


PRESSURE_CASES: tuple[Case, ...] = (
    Case("neighbour", "one of two services is stuck", 1, neighbour),
    Case("slow-clients", "500 clients write and read as slowly as they can", 1, slow_clients),
    Case("rude-handlers", "handlers do what they must not", 1, rude_handlers),
    Case("open-streams", "SIGTERM with server-sent events and WebSockets open", 2, open_streams),
    Case("overload", "four times what a service can do is offered for 30 s", 1, overload),
    Case("mixed", "all kinds of traffic, for long", 1, mixed, long=True),
)
