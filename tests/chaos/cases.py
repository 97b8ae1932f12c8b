"""The cases: which process goes away under which load, and what is promised beyond the columns that must be 0.

To add one, write a function that plays on a stage and enter it in `CASES`. Those about whose a request is are in
`owners`.
"""

import asyncio
import time

from .case import Case, Findings, Judge, Scale
from .clients import Load
from .faults import FAULT_CASES
from .ledger import Entry, Outcome
from .owners import OWNER_CASES
from .pressure import PRESSURE_CASES
from .stage import Process, Stage

__all__ = ["CASES"]


async def _two_services(stage: Stage, *arguments: str) -> tuple[list[Process], Process, str]:
    """Start a nats-server, two instances of the service and a gateway."""
    nats = await stage.nats()
    first, second, (_, url) = await asyncio.gather(stage.service(), stage.service(), stage.gateway(*arguments))
    return [first, second], nats, url


async def rolling_restart(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Restart three instances in turn, the next when the last is back: nobody notices."""
    services, _, url = await _two_services(stage)
    services.append(await stage.service())
    async with Load(url, scale.clients) as load:
        await asyncio.sleep(scale.seconds)
        for number in range(scale.rounds):
            for index, service in enumerate(services):
                began = time.monotonic()
                code = await service.stop()
                findings.worst("slowest stop ms", (time.monotonic() - began) * 1000)
                findings.expect(code == 0, f"an instance exits with {code} after SIGTERM")
                services[index] = await stage.service()
                findings.add("restarts", 1)
            findings.say(f"round {number + 1}: {len(load.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    findings.expect_ends(load.outcomes, set(), "during the restarts")
    return load.outcomes, None


async def gateway_stop(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Stop the gateway: what it has accepted is answered, what comes later is refused."""
    return await _stop_gateways(stage, scale, findings, keep=True)


async def gateway_stop_new(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Stop the gateway while every request comes on a new connection, which no race of idle ones excuses."""
    return await _stop_gateways(stage, scale, findings, keep=False)


async def _stop_gateways(
    stage: Stage, scale: Scale, findings: Findings, *, keep: bool
) -> tuple[list[Outcome], Judge | None]:
    """Start and stop one gateway after the other, each under a load of its own."""
    await stage.nats()
    await asyncio.gather(stage.service(), stage.service())
    outcomes: list[Outcome] = []
    stopped = []
    for number in range(scale.rounds):
        gateway, url = await stage.gateway()
        async with Load(url, scale.clients, keep=keep, leave=True) as load:
            await asyncio.sleep(scale.seconds)
            stopped.append(time.monotonic())
            findings.add("in flight", load.in_flight)
            code = await gateway.stop()
            findings.worst("slowest stop ms", (time.monotonic() - stopped[-1]) * 1000)
            findings.expect(code == 0, f"the gateway exits with {code} after SIGTERM")
            left = await load.all_left(10)
            findings.expect(left, "a client can still connect after the gateway has ended")
        closing = sum(one.closing for one in load.outcomes)
        findings.expect(closing, "no answer says Connection: close")
        findings.add("Connection: close", closing)
        early = [one for one in load.outcomes if one.ended < stopped[-1]]
        findings.expect_ends(early, set(), "before the gateway stops")
        findings.expect_ends(load.outcomes, {"refused", "closed", "503 stopping"}, "while the gateway stops")
        outcomes += load.outcomes
        findings.say(f"round {number + 1}: {len(outcomes)} requests")

    def judge(entries: list[Entry]) -> None:
        started = {entry.id for entry in entries}
        cut = [one.id for one in outcomes if one.label == "503 stopping" and one.id in started]
        findings.expect(not cut, f"{len(cut)} requests that had started got 503 stopping long before the grace ended")

    return outcomes, judge


_AWAY = 1.0


async def nats_restart(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill nats-server and start it again: who waits is told at once, and all goes on by itself."""
    _, nats, url = await _two_services(stage, "--timeout", "5")
    faults: list[tuple[float, float]] = []
    async with Load(url, scale.clients) as load:
        for number in range(scale.rounds):
            await asyncio.sleep(scale.seconds)
            killed = time.monotonic()
            await nats.kill()
            await asyncio.sleep(_AWAY)
            nats = await stage.nats()
            faults.append((killed, time.monotonic()))
            await asyncio.sleep(_AWAY + scale.seconds)
            findings.say(f"round {number + 1}: {len(load.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    ends = [killed for killed, _ in faults[1:]] + [float("inf")]
    findings.expect_ends((one for one in load.outcomes if one.ended < faults[0][0]), set(), "before the first kill")
    for (killed, back), end in zip(faults, ends, strict=True):
        _judge_nats([one for one in load.outcomes if killed <= one.ended < end], killed, back, findings)
    return load.outcomes, None


def _judge_nats(outcomes: list[Outcome], killed: float, back: float, findings: Findings) -> None:
    """Judge what ended after one kill of nats-server and before the next."""
    flying = [one for one in outcomes if one.sent < killed]
    away = [one for one in outcomes if one.sent >= killed and one.ended < back]
    after = [one for one in outcomes if one.sent >= killed and one.ended >= back]
    findings.add("in flight", len(flying))
    findings.expect_ends(flying, {"502 disconnected", "503 nats_down"}, "in flight when nats-server was killed")
    findings.expect_ends(away, {"502 disconnected", "503 nats_down"}, "while nats-server was away")
    findings.expect_ends(after, {"503 nats_down"}, "after nats-server was back")
    findings.expect(not any(one.acked and one.sent > killed + 0.1 for one in away), "a 2xx without nats-server")

    told = max((one.ended - killed for one in outcomes if one.status == 502), default=0.0)
    findings.add("told 502", sum(one.status == 502 for one in outcomes))
    findings.worst("502 within ms of the kill", told * 1000)
    findings.expect(told < 1, f"a 502 came {told:.1f} s after the kill")

    refused = max((one.wait_ms for one in away if one.status == 503), default=0.0)
    findings.worst("503 within ms", refused)
    findings.expect(refused < 1000, f"a 503 took {refused:.0f} ms while nats-server was away")

    first = min((one.ended for one in after if one.acked), default=float("inf")) - back
    last = max((one.ended for one in after if not one.acked), default=back) - back
    findings.worst("first 2xx after the return ms", first * 1000)
    findings.worst("last failure after the return ms", last * 1000)
    findings.expect(first < 3 and last < 3, f"serving again {max(first, last):.1f} s after nats-server was back")


_DEADLINE = 2.0
_NOTICED = 0.5


async def service_kill(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill one of two instances: only what it had is lost, and ends at the deadline."""
    services, _, url = await _two_services(stage, "--timeout", f"{_DEADLINE:g}")
    killed: dict[int, float] = {}
    async with Load(url, scale.clients) as load:
        for number in range(scale.rounds):
            await asyncio.sleep(scale.seconds)
            victim = services[number % 2]
            killed[victim.pid] = time.monotonic()
            await victim.kill()
            await asyncio.sleep(_DEADLINE)
            services[number % 2] = await stage.service()
            findings.say(f"round {number + 1}: {len(load.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    findings.expect_ends(load.outcomes, {"504 timeout"}, "around the kill of an instance")

    def judge(entries: list[Entry]) -> None:
        _judge_kill(load.outcomes, entries, killed, findings)

    return load.outcomes, judge


def _judge_kill(outcomes: list[Outcome], entries: list[Entry], killed: dict[int, float], findings: Findings) -> None:
    """Judge that every 504 was with a killed instance, or on its way to it, and came at the deadline."""
    where = {entry.id: entry.pid for entry in entries}
    done = {entry.id for entry in entries if entry.wrote == "done"}
    lost = sum(1 for id, pid in where.items() if pid in killed and id not in done)
    findings.add("under way in the killed", lost)
    for one in outcomes:
        if one.status != 504:
            continue
        findings.add("told 504", 1)
        findings.worst("504 within ms", one.wait_ms)
        late = not _DEADLINE - 0.1 <= one.wait_ms / 1000 <= _DEADLINE + 1
        findings.expect(not late, f"{one.id}: 504 after {one.wait_ms:.0f} ms, not at the deadline of {_DEADLINE:g} s")
        pid = where.get(one.id)
        if pid is None:
            findings.add("told 504, never started", 1)
            near = any(one.sent <= at + _NOTICED and one.ended >= at for at in killed.values())
            findings.expect(near, f"{one.id}: 504, but no instance was killed while it was on its way")
        else:
            findings.expect(pid in killed, f"{one.id}: 504, though the instance that had it ({pid}) was not killed")


CASES: tuple[Case, ...] = (
    Case("rolling-restart", "three instances restart in turn", 10, rolling_restart),
    Case("gateway-stop", "the gateway stops", 5, gateway_stop),
    Case("gateway-stop-new", "the gateway stops, a new connection for each request", 5, gateway_stop_new),
    Case("nats-restart", "nats-server is killed, and back after 1 s", 3, nats_restart),
    Case("service-kill", "one of two instances is killed", 3, service_kill),
    *OWNER_CASES,
    *FAULT_CASES,
    *PRESSURE_CASES,
)
