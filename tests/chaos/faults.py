"""Cases about processes that die, hang or retire: services, gateways, nats-servers, one or a cluster of them."""

import asyncio
import math
import signal
import time
from collections.abc import Sequence

from .case import Case, Findings, Judge, Scale
from .clients import Load, Wanted, get, post
from .ledger import Entry, Outcome
from .raw import Line, new_id
from .stage import Process, Stage, free_port

__all__ = ["FAULT_CASES"]

_TOLD = 3.0  # within which whoever waits for a process that died knows it, in seconds


async def gateway_rolling(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Restart two gateways in turn, each on its own port; a client that is refused goes to the other."""
    await stage.nats()
    ports = [str(free_port()), str(free_port())]
    (one, _), (two, _), *_ = await asyncio.gather(
        *[stage.gateway("--port", port) for port in ports], stage.service(), stage.service()
    )
    gateways = [one, two]
    async with Load([f"http://127.0.0.1:{port}" for port in ports], scale.clients) as load:
        await asyncio.sleep(scale.seconds)
        for number in range(scale.rounds):
            for index, port in enumerate(ports):
                began = time.monotonic()
                code = await gateways[index].stop()
                findings.worst("slowest stop ms", (time.monotonic() - began) * 1000)
                findings.expect(code == 0, f"a gateway exits with {code} after SIGTERM")
                gateways[index], _ = await stage.gateway("--port", port)
                findings.add("restarts", 1)
                await asyncio.sleep(scale.seconds / 4)
            findings.say(f"round {number + 1}: {len(load.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    closing = sum(one.closing for one in load.outcomes)
    findings.add("Connection: close", closing)
    findings.expect(closing, "no answer says Connection: close")
    findings.expect_ends(load.outcomes, {"closed"}, "while gateways restart")  # of idle connections: see `compare`
    return load.outcomes, None


async def service_kill_idle(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill one of two instances while nobody asks: the next request goes to the other."""
    await stage.nats()
    victim, _, (_, url) = await asyncio.gather(stage.service(), stage.service(), stage.gateway())
    outcomes: list[Outcome] = []
    for number in range(scale.rounds):
        await victim.kill()
        async with Load(url, scale.clients, pause=0.0) as load:
            await asyncio.sleep(scale.seconds)
        outcomes += load.outcomes
        victim = await stage.service()
        findings.say(f"round {number + 1}: {len(outcomes)} requests")
    findings.expect_ends(outcomes, set(), "after an idle instance was killed")
    return outcomes, None


async def service_kill_busy(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill one of two instances in the middle of handlers and of streams: who waits knows it soon."""
    return await _kill_busy(stage, scale, findings)


async def service_kill_repeat(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """The same with --retry-idempotent: each GET is answered by the other instance."""
    findings.repeats = True
    return await _kill_busy(stage, scale, findings, "--retry-idempotent")


def _slowly(id: str, _: float) -> Wanted:
    return (get, post)[hash(id) % 2]("/work", id, 4.0)


async def _kill_busy(
    stage: Stage, scale: Scale, findings: Findings, *arguments: str
) -> tuple[list[Outcome], Judge | None]:
    await stage.nats()
    victim, _, (_, url) = await asyncio.gather(stage.service(), stage.service(), stage.gateway(*arguments))
    outcomes: list[Outcome] = []
    for number in range(scale.rounds):
        async with (
            Load(url, scale.clients // 2, compose=_slowly) as load,
            asyncio.TaskGroup() as group,
        ):
            streams = [group.create_task(_stream(url, count=60, pause=0.1)) for _ in range(8)]
            await asyncio.sleep(1.0)
            load.no_more()
            killed = time.monotonic()
            await victim.kill()
        cut = [one for one in map(asyncio.Task.result, streams) if one.end != "answered"]
        findings.add("streams", len(streams))
        findings.add("streams that were cut off", len(cut))
        findings.expect(cut or number, "no stream was in the instance that was killed")
        findings.excused |= {one.id for one in cut if one.ended > killed}
        _judge_loss([*load.outcomes, *cut], killed, bool(arguments), findings)
        outcomes += load.outcomes + [task.result() for task in streams]
        victim = await stage.service()
        findings.say(f"round {number + 1}: {len(outcomes)} requests")
    return outcomes, None


def _judge_loss(outcomes: Sequence[Outcome], killed: float, repeats: bool, findings: Findings) -> None:
    """Judge that whoever has lost their instance knows it in time, and that nobody else has lost anything."""
    lost = [one for one in outcomes if not one.acked or one.end != "answered"]
    told = max((one.ended - killed for one in lost), default=0.0)
    findings.add("told 502", sum(one.status == 502 for one in lost))
    findings.worst("told within ms of the kill", told * 1000)
    findings.expect(told < _TOLD, f"told {told:.1f} s after the kill")
    findings.expect_ends((one for one in lost if one.end == "answered"), {"502 disconnected"}, "around the kill")
    if repeats:
        gets = [one for one in lost if one.status == 502 and one.what.startswith("GET")]
        findings.expect(not gets, f"{len(gets)} GETs were not answered by the other instance")
        findings.add("GETs answered", sum(one.acked and one.what == "GET /work" for one in outcomes))


async def _stream(url: str, *, count: int, pause: float) -> Outcome:
    id = new_id()
    line = await Line.open(url)
    return await line.stream(id, f"/stream?id={id}&count={count}&pause={pause}")


async def gateway_kill(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill the gateway with handlers and streams under way: all of them are cancelled."""
    await stage.nats()
    await stage.service()
    outcomes: list[Outcome] = []
    kills: list[tuple[float, set[str]]] = []
    for number in range(scale.rounds):
        gateway, url = await stage.gateway()
        async with (
            Load(url, scale.clients // 2, compose=lambda id, _: post("/work", id, 8.0), leave=True) as load,
            asyncio.TaskGroup() as group,
        ):
            streams = [group.create_task(_stream(url, count=80, pause=0.1)) for _ in range(8)]
            await asyncio.sleep(scale.seconds)
            load.no_more()
            killed = time.monotonic()
            await gateway.kill()
        ended = [one for one in [*load.outcomes, *map(asyncio.Task.result, streams)] if one.ended > killed]
        kills.append((killed, {one.id for one in ended}))
        findings.excused |= kills[-1][1]
        outcomes += load.outcomes + [task.result() for task in streams]
        await asyncio.sleep(_TOLD)
        findings.say(f"round {number + 1}: {len(outcomes)} requests")

    def judge(entries: list[Entry]) -> None:
        started = {entry.id for entry in entries if entry.wrote == "started"}
        over = {entry.id: entry.at for entry in entries if entry.wrote in ("cancelled", "done")}
        done = {entry.id for entry in entries if entry.wrote == "done"}
        for killed, ids in kills:
            running = ids & started
            findings.add("running", len(running))
            last = max((over.get(id, math.inf) - killed for id in running), default=0.0)
            findings.worst("cancelled within ms of the kill", last * 1000)
            findings.expect(last < _TOLD, f"a handler ended {last:.1f} s after the gateway was killed")
            findings.expect(not running & done, f"{len(running & done)} handlers ran to their end for nobody")

    return outcomes, judge


_AWAY = 10.0


async def nats_away(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill nats-server for ten seconds: a 502 at once for what was under way, then a 503 at once; then all goes on."""
    nats = await stage.nats()
    _, _, (_, url) = await asyncio.gather(stage.service(), stage.service(), stage.gateway())
    async with Load(url, scale.clients, pause=0.2) as load:
        await asyncio.sleep(scale.seconds)
        for _ in range(scale.rounds):
            killed = time.monotonic()
            await nats.kill()
            await asyncio.sleep(_AWAY)
            nats = await stage.nats()
            back = time.monotonic()
            await asyncio.sleep(1 + scale.seconds)
            _judge_away(load.outcomes, killed, back, findings)
    return load.outcomes, None


def _judge_away(outcomes: Sequence[Outcome], killed: float, back: float, findings: Findings) -> None:
    flying = [one for one in outcomes if one.sent < killed <= one.ended]
    away = [one for one in outcomes if killed <= one.sent < back]
    after = [one for one in outcomes if one.ended >= back]
    findings.add("in flight", len(flying))
    findings.expect_ends(flying, {"502 disconnected", "503 nats_down"}, "in flight when nats-server was killed")
    findings.expect_ends(away, {"502 disconnected", "503 nats_down"}, "while nats-server was away")
    told = max((one.ended - killed for one in flying), default=0.0)
    findings.worst("502 within ms of the kill", told * 1000)
    findings.expect(told < 1, f"a 502 came {told:.1f} s after the kill")
    slow = max((one.wait_ms for one in away if one.status == 503 and one.ended < back), default=0.0)
    findings.worst("503 within ms", slow)
    findings.expect(slow < 500, f"a 503 took {slow:.0f} ms while nats-server was away")
    first = min((one.ended for one in after if one.acked), default=math.inf) - back
    last = max((one.ended for one in after if not one.acked), default=back) - back
    findings.worst("serving again after ms", max(first, last) * 1000)
    findings.expect(max(first, last) < 1, f"serving again {max(first, last):.1f} s after nats-server was back")


_HALT = 20.0
_SHORT = 1.0  # deadline of the requests around a halt, in seconds
_NOTICED = 3.5  # two pings of ours, one a second, that have no answer, and a moment
_SEEN = 4.5  # the same of nats-server, which closes a connection one ping later


async def nats_halt(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Halt nats-server for 20 s: 504 until noticed, then 503 at once; what runs late is acknowledged to nobody."""
    nats = await stage.nats()
    _, _, (_, url) = await asyncio.gather(stage.service(), stage.service(), stage.gateway("--timeout", f"{_SHORT:g}"))
    return await _halt(
        scale, findings, nats, url, {"502 disconnected", "503 nats_down", "504 timeout"}, noticed=_NOTICED, streams=8
    )


async def service_halt(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Halt one of two instances for 20 s: 504 until nats-server notices, then the other has it all."""
    await stage.nats(config='ping_interval: "1s"\nping_max: 2\n')
    victim, _, (_, url) = await asyncio.gather(
        stage.service(), stage.service(), stage.gateway("--timeout", f"{_SHORT:g}")
    )
    return await _halt(scale, findings, victim, url, {"502 disconnected", "504 timeout"}, noticed=_SEEN, streams=0)


async def _halt(
    scale: Scale, findings: Findings, victim: Process, url: str, ends: set[str], *, noticed: float, streams: int
) -> tuple[list[Outcome], Judge | None]:
    findings.deadline = _SHORT
    async with Load(url, scale.clients) as load, asyncio.TaskGroup() as group:
        under_way = [group.create_task(_stream(url, count=400, pause=0.1)) for _ in range(streams)]
        await asyncio.sleep(scale.seconds)
        halted = time.monotonic()
        victim.pause()
        await asyncio.sleep(_HALT)
        resumed = time.monotonic()
        victim.resume()
        await asyncio.sleep(3 + scale.seconds)
    ended = [task.result() for task in under_way]
    findings.excused |= {one.id for one in ended}
    findings.expect(all(one.end == "cut" for one in ended), "a stream did not end with an error")
    if ended:
        findings.worst("streams cut off within ms", max(one.ended - halted for one in ended) * 1000)
    later = [one for one in load.outcomes if halted + noticed < one.sent and one.ended < resumed]
    settled = [one for one in load.outcomes if one.sent > resumed + 2]
    findings.expect_ends(load.outcomes, ends, "around the halt")
    findings.expect_ends(settled, set(), "two seconds after the halt")
    findings.expect_ends(later, ends - {"504 timeout", "502 disconnected"}, "after the halt was noticed")
    last = max((one.ended - halted for one in load.outcomes if one.status == 504), default=0.0)
    findings.worst("last 504 ms after the halt", last * 1000)
    refused = max((one.wait_ms for one in later), default=0.0)
    findings.worst("longest wait once noticed ms", refused)
    findings.expect(refused < 500, f"a request waited {refused:.0f} ms after the halt was noticed")

    def judge(entries: list[Entry]) -> None:
        over = {one.id: one for one in load.outcomes}
        late = [one for one in entries if one.wrote == "started" and one.id in over and one.at > over[one.id].ended]
        findings.add("executed late", len(late))
        acked = [one for one in late if over[one.id].acked]
        findings.expect(not acked, f"{len(acked)} requests were answered 2xx before they were executed")

    return load.outcomes + ended, judge


async def cluster(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill one of three nats-servers, retire another: no GET fails that is sent again, and nothing of ours restarts."""
    findings.repeats, findings.deadline = True, _SHORT
    servers = await stage.cluster(3)
    (_, one), (_, two), *_ = await asyncio.gather(
        *[stage.gateway("--retry-idempotent", "--timeout", f"{_SHORT:g}") for _ in range(2)],
        *[stage.service() for _ in range(3)],
    )
    async with Load([one, two], scale.clients, compose=lambda id, pause: get("/work", id, pause), again=3) as load:
        await asyncio.sleep(scale.seconds)
        for number in range(scale.rounds):
            for index in range(3):
                await servers[index].kill()
                await asyncio.sleep(2)
                servers[index] = await stage.member(index)
                await asyncio.sleep(2)
            findings.say(f"round {number + 1}: each was killed, {len(load.outcomes)} requests")
        retiring = servers[0]
        retiring.tell(signal.SIGUSR2)
        began = time.monotonic()
        while retiring.is_running and time.monotonic() - began < 60:
            await asyncio.sleep(0.2)
        findings.expect(not retiring.is_running, "the retiring nats-server does not end")
        findings.worst("retired within s", time.monotonic() - began)
        settled = time.monotonic()
        await asyncio.sleep(1 + scale.seconds)
    failed = [one for one in load.outcomes if not one.acked]
    findings.add("sent again by clients", len(failed))
    findings.expect(not load.given_up, f"{len(load.given_up)} GETs failed four times")
    # What a nats-server had in its hands when it was killed is lost: a 504.
    ends = {"502 disconnected", "503 nats_down", "503 service_away", "504 timeout"}
    findings.expect_ends(load.outcomes, ends, "in the cluster")
    last = [one for one in failed if one.sent > settled + 0.5]
    findings.expect(not last, f"{len(last)} failures after all was over")
    return load.outcomes, None


FAULT_CASES: tuple[Case, ...] = (
    Case("gateway-rolling", "two gateways restart in turn", 5, gateway_rolling),
    Case("service-kill-idle", "one of two idle instances is killed", 3, service_kill_idle),
    Case("service-kill-busy", "one of two instances is killed within handlers and streams", 3, service_kill_busy),
    Case("service-kill-repeat", "the same with --retry-idempotent", 3, service_kill_repeat),
    Case("gateway-kill", "the gateway is killed with handlers under way", 3, gateway_kill),
    Case("nats-away", "nats-server is killed, and away for 10 s", 1, nats_away),
    Case("nats-halt", "nats-server is halted for 20 s", 1, nats_halt),
    Case("service-halt", "one of two instances is halted for 20 s", 1, service_halt),
    Case("cluster", "of three nats-servers each is killed, then one retires", 1, cluster),
)
