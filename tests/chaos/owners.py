"""Cases about whose a request is: services whose patterns overlap come and go, and never do both run a request.

A request is in the wrong place if a service has executed it that was not its owner at any time from the moment in
which it was sent until its answer was there. `Fleet.during` says which services were there all that time; where
one came or went, both it and the next owner are right.
"""

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from .case import Case, Findings, Judge, Scale
from .clients import Load, Wanted, get, post
from .fleet import Fleet
from .ledger import Entry, Outcome
from .stage import Stage

__all__ = ["OWNER_CASES"]

#: Services that may have executed a request.
Places = Callable[[Outcome], set[str]]

#: What happens next.
Then = Callable[[], Awaitable[None]]

_LONGEST = 1000.0  # what a request may take, in milliseconds, where nothing has been killed


def _shop(id: str, pause: float) -> Wanted:
    """Make a request of any kind: two of three are for orders."""
    path = random.choice(("/orders/{}", "/orders/{}", "/customers/{}/notes")).format(random.randrange(100))
    return random.choice((get, post))(path, id, pause)


def _orders(id: str, pause: float) -> Wanted:
    return random.choice((get, post))(f"/orders/{random.randrange(100)}", id, pause)


def _things(id: str, pause: float) -> Wanted:
    return random.choice((get, post))(f"/things/{random.randrange(100)}", id, pause)


def _is_order(outcome: Outcome) -> bool:
    return " /orders/" in outcome.what


def _places(orders: Fleet) -> Places:
    """Return who may have executed a request where `orders` is carved out of the monolith."""

    def places(outcome: Outcome) -> set[str]:
        if not _is_order(outcome):
            return {"monolith"}
        return {"up": {"orders"}, "away": {"monolith"}, "changing": {"orders", "monolith"}}[orders.during(outcome)]

    return places


def _judge_places(
    outcomes: Iterable[Outcome], entries: Iterable[Entry], apps: dict[int, str], places: Places, findings: Findings
) -> None:
    """Judge that every request was executed by a service that could be its owner."""
    started = {entry.id: entry for entry in entries if entry.wrote == "started"}
    wrong: dict[str, list[str]] = {}
    for one in outcomes:
        entry = started.get(one.id)
        if entry is None:
            continue
        allowed, app = places(one), apps[entry.pid]
        findings.add("placed exactly" if len(allowed) == 1 else "placed while an owner changed", 1)
        if app not in allowed:
            wrong.setdefault(f"executed by {app}, not by {' or '.join(sorted(allowed))}", []).append(
                f"{one.id}: {one.what}, started {(entry.at - one.sent) * 1000:.0f} ms after it was sent"
            )
    for words, ids in wrong.items():
        findings.expect(False, f"{len(ids)} requests {words}, the first {ids[0]}")


def _judge_waits(outcomes: Iterable[Outcome], findings: Findings, where: str = "", longest: float = _LONGEST) -> None:
    """Judge that nobody waited long for an answer."""
    late = [one for one in outcomes if one.end == "answered" and findings.wait_ms(one) > longest]
    labels = ", ".join(f"{count} x {label}" for label, count in sorted(Counter(one.label for one in late).items()))
    worst = max((one.wait_ms for one in late), default=0.0)
    findings.expect(not late, f"{where}{labels}: after more than {longest:.0f} ms, the last after {worst:.0f} ms")


async def _restart(fleet: Fleet, findings: Findings) -> None:
    """Replace the oldest instance: the next one is there before it goes."""
    await fleet.start()
    await _stop(fleet, findings)
    findings.add("restarts", 1)


async def _stop(fleet: Fleet, findings: Findings) -> None:
    code = await fleet.stop()
    findings.expect(code == 0, f"an instance of {fleet.app} exits with {code} after SIGTERM")


async def carve_out(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Carve a service out of a monolith, and put it back, while instances of both restart: nobody notices."""
    await stage.nats()
    monolith, orders = Fleet(stage, "monolith"), Fleet(stage, "orders")
    (_, one), (_, two), *_ = await asyncio.gather(stage.gateway(), stage.gateway(), monolith.start(), monolith.start())
    half = scale.clients // 2
    async with Load(one, half, compose=_shop) as left, Load(two, half, compose=_shop) as right:
        await asyncio.sleep(scale.seconds)
        for number in range(scale.rounds):
            await asyncio.gather(orders.start(), orders.start())
            await asyncio.sleep(scale.seconds / 4)
            await asyncio.gather(_restart(orders, findings), _restart(monolith, findings))
            await asyncio.sleep(scale.seconds / 4)
            if number % 2:
                await asyncio.gather(_stop(orders, findings), _stop(orders, findings))
            else:
                await _stop(orders, findings)
                await _stop(orders, findings)
            await asyncio.sleep(scale.seconds / 4)
            findings.say(f"round {number + 1}: {len(left.outcomes) + len(right.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    outcomes = left.outcomes + right.outcomes
    findings.expect_ends(outcomes, set(), "while a service was carved out")
    _judge_waits(outcomes, findings)
    return outcomes, lambda entries: _judge_places(outcomes, entries, stage.apps, _places(orders), findings)


async def methods(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Restart, and take away, the services of GET and of POST of one path: no 405, and each does its own."""
    await stage.nats()
    fleets = {"GET": Fleet(stage, "reader"), "POST": Fleet(stage, "writer")}
    (_, one), (_, two), *_ = await asyncio.gather(
        stage.gateway(), stage.gateway(), *[fleet.start() for fleet in fleets.values()]
    )
    half = scale.clients // 2
    async with Load(one, half, compose=_things) as left, Load(two, half, compose=_things) as right:
        await asyncio.sleep(scale.seconds)
        for number in range(scale.rounds):
            await asyncio.gather(*[_restart(fleet, findings) for fleet in fleets.values()])
            await asyncio.sleep(scale.seconds / 4)
            for fleet in fleets.values():
                await _stop(fleet, findings)
                await asyncio.sleep(scale.seconds / 4)
                await fleet.start()
                findings.add("times away", 1)
            findings.say(f"round {number + 1}: {len(left.outcomes) + len(right.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    outcomes = left.outcomes + right.outcomes
    own = {"GET": "reader", "POST": "writer"}

    def was_up(outcome: Outcome) -> bool:
        return fleets[outcome.what.partition(" ")[0]].during(outcome) == "up"

    findings.expect_ends((one for one in outcomes if was_up(one)), set(), "while the service was there")
    findings.expect_ends((one for one in outcomes if not was_up(one)), {"503 service_away"}, "while it was not there")
    _judge_waits(outcomes, findings, longest=2 * _LONGEST)  # one that starts is waited for

    def judge(entries: list[Entry]) -> None:
        _judge_places(outcomes, entries, stage.apps, lambda one: {own[one.what.partition(" ")[0]]}, findings)

    return outcomes, judge


_TOLD = 1.5  # after which a service that was killed has to be known to be gone, in seconds


async def owner_kill(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Kill the only instance of an owner whose paths a monolith takes too: who waits is told long before 10 s."""
    await stage.nats()
    monolith, orders = Fleet(stage, "monolith"), Fleet(stage, "orders")
    (_, one), (_, two), *_ = await asyncio.gather(stage.gateway(), stage.gateway(), monolith.start(), orders.start())
    half, killed = scale.clients // 2, list[float]()
    # Handlers that take longer than 200 ms have the gateways ask for a sign of life all the time.
    async with (
        Load(one, half, compose=_shop, pause=0.3) as left,
        Load(two, half, compose=_shop, pause=0.3) as right,
    ):
        for number in range(scale.rounds):
            await asyncio.sleep(scale.seconds + random.uniform(0, 1))
            killed.append(await orders.kill())
            await asyncio.sleep(_TOLD + scale.seconds)
            await orders.start()
            findings.say(f"round {number + 1}: {len(left.outcomes) + len(right.outcomes)} requests")
        await asyncio.sleep(scale.seconds)
    outcomes = left.outcomes + right.outcomes
    findings.expect_ends(outcomes, {"502 disconnected"}, "around the kill of an owner")
    _judge_waits(outcomes, findings, longest=(_TOLD + 0.3) * 1000)
    for at, end in zip(killed, [*killed[1:], math.inf], strict=True):
        _judge_owner_kill([one for one in outcomes if at <= one.ended < end], at, findings)
    early = [one for one in outcomes if not one.acked and one.ended < killed[0]]
    findings.expect(not early, f"{len(early)} failures before the first kill")

    def judge(entries: list[Entry]) -> None:
        done = {entry.id for entry in entries if entry.wrote == "done"}
        lost = {entry.id for entry in entries if stage.apps[entry.pid] == "orders"} - done
        findings.add("under way in the killed", len(lost))
        told = {one.id for one in outcomes if one.status == 502}
        findings.add("told 502, never started", len(told - {entry.id for entry in entries}))
        _judge_places(outcomes, entries, stage.apps, _places(orders), findings)

    return outcomes, judge


def _judge_owner_kill(outcomes: Sequence[Outcome], at: float, findings: Findings) -> None:
    """Judge what ended after a kill and before the next: who was told when, and when the next owner served."""
    failed = [one for one in outcomes if not one.acked]
    told = max((one.ended - at for one in failed), default=0.0)
    findings.add("told 502", len(failed))
    findings.worst("502 within ms of the kill", told * 1000)
    findings.expect(told < _TOLD, f"a failure {told:.1f} s after the kill")
    served = [one.ended for one in outcomes if _is_order(one) and one.acked and one.sent > at]
    findings.worst("served by the next owner ms after the kill", (min(served, default=at + 99) - at) * 1000)
    after = [findings.wait_ms(one) for one in outcomes if _is_order(one) and at + _TOLD <= one.sent < at + _TOLD + 1]
    findings.worst("longest wait afterwards ms", max(after, default=0.0))
    findings.expect(max(after, default=0.0) < 600, "a request waited for the owner that was known to be gone")


_DRAIN = 2.0


async def gateway_joins(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Start a second gateway while services serve, start, and finish their last requests: it knows who is there."""
    await stage.nats()
    monolith, orders = Fleet(stage, "monolith"), Fleet(stage, "orders")
    (_, one), *_ = await asyncio.gather(stage.gateway(), monolith.start(), orders.start())
    outcomes: list[Outcome] = []
    half = scale.clients // 2
    async with Load(one, half, compose=_shop) as load:
        await asyncio.sleep(scale.seconds)
        for number in range(scale.rounds):
            stop = partial(_stop, orders, findings)
            outcomes += await _join(stage, half, scale.seconds, "before a service stops", findings, then=stop)
            await orders.start()
            await _stop_slowly(stage, one, orders, half, findings, outcomes)
            starting = asyncio.create_task(orders.start())
            await asyncio.sleep(random.uniform(0, 0.2))
            outcomes += await _join(stage, half, scale.seconds, "while a service starts", findings)
            await starting
            findings.say(f"round {number + 1}: {len(outcomes) + len(load.outcomes)} requests")
    findings.expect_ends(load.outcomes, set(), "at the first gateway")
    _judge_waits(load.outcomes, findings, "at the first gateway: ")
    outcomes += load.outcomes
    return outcomes, lambda entries: _judge_places(outcomes, entries, stage.apps, _places(orders), findings)


async def _join(
    stage: Stage, clients: int, seconds: float, when: str, findings: Findings, *, then: Then | None = None
) -> list[Outcome]:
    """Start a gateway, have it carry requests as soon as it is ready, and stop it again."""
    gateway, url = await stage.gateway()
    async with Load(url, clients, compose=_shop) as load:
        await asyncio.sleep(seconds)
        if then is not None:
            await then()
            await asyncio.sleep(seconds)
    findings.expect(await gateway.stop() == 0, "a gateway does not exit with 0 after SIGTERM")
    findings.expect_ends(load.outcomes, set(), f"at a gateway that started {when}")
    _judge_waits(load.outcomes, findings, f"at a gateway that started {when}: ")
    return load.outcomes


async def _stop_slowly(
    stage: Stage, url: str, orders: Fleet, clients: int, findings: Findings, outcomes: list[Outcome]
) -> None:
    """Stop a service that has requests to finish, and start a gateway meanwhile."""
    async with Load(url, 4, compose=lambda id, _: _orders(id, _DRAIN)) as slow:
        await asyncio.sleep(0.2)
        stopping = asyncio.create_task(_stop(orders, findings))
        slow.no_more()
        await asyncio.sleep(0.2)
        outcomes += await _join(stage, clients, _DRAIN, "while a service finishes", findings)
        await stopping
    findings.expect_ends(slow.outcomes, set(), "slow requests of a service that stops")
    outcomes += slow.outcomes


async def gateway_last(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Start services before any gateway is there, then a gateway; then a service stops under load."""
    await stage.nats()
    monolith, orders = Fleet(stage, "monolith"), Fleet(stage, "orders")
    await monolith.start()
    outcomes: list[Outcome] = []
    for number in range(scale.rounds):
        await orders.start()
        async with AsyncExitStack() as stack:
            gateways = await asyncio.gather(stage.gateway(), stage.gateway())
            half = scale.clients // 2
            loads = [await stack.enter_async_context(Load(url, half, compose=_shop)) for _, url in gateways]
            await asyncio.sleep(scale.seconds)
            await _stop(orders, findings)
            await asyncio.sleep(scale.seconds)
        for gateway, _ in gateways:
            findings.expect(await gateway.stop() == 0, "a gateway does not exit with 0 after SIGTERM")
        for load in loads:
            outcomes += load.outcomes
        findings.say(f"round {number + 1}: {len(outcomes)} requests")
    findings.expect_ends(outcomes, set(), "where the gateway came last")
    _judge_waits(outcomes, findings)
    return outcomes, lambda entries: _judge_places(outcomes, entries, stage.apps, _places(orders), findings)


async def gateway_early(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Start a gateway while two services that overlap are busy and answer nothing, and a third one does.

    Which of the two runs a request depends on who answers first; what counts is that never both do.
    """
    await stage.nats()
    monolith, orders = Fleet(stage, "monolith"), Fleet(stage, "orders")
    _, *busy = await asyncio.gather(stage.service(), monolith.start(), orders.start())
    outcomes: list[Outcome] = []
    for number in range(scale.rounds):
        for process in busy:
            process.pause()
        gateway, url = await stage.gateway()
        async with Load(url, scale.clients, compose=_shop) as load:
            await asyncio.sleep(0.1)
            for process in busy:
                process.resume()
            await asyncio.sleep(scale.seconds)
        findings.expect(await gateway.stop() == 0, "a gateway does not exit with 0 after SIGTERM")
        outcomes += load.outcomes
        findings.say(f"round {number + 1}: {len(outcomes)} requests")
    findings.expect_ends(outcomes, {"503 service_away"}, "at a gateway that started while services were busy")
    _judge_waits(outcomes, findings)
    return outcomes, None


_LONG = 19.0  # longer than a gateway takes to ask again who is there


async def long_finish(stage: Stage, scale: Scale, findings: Findings) -> tuple[list[Outcome], Judge | None]:
    """Stop a service that takes 19 s for its last requests: the others go to the next owner all that time."""
    await stage.nats()
    monolith, orders = Fleet(stage, "monolith"), Fleet(stage, "orders")
    (_, one), (_, two), *_ = await asyncio.gather(
        stage.gateway("--timeout", "25"), stage.gateway("--timeout", "25"), monolith.start(), orders.start()
    )
    half, outcomes = scale.clients // 2, list[Outcome]()
    findings.deadline = 25
    for number in range(scale.rounds):
        async with (
            Load(one, 4, compose=lambda id, _: _orders(id, _LONG), patience=30) as slow,
            Load(one, half, compose=_shop, patience=30) as left,
            Load(two, half, compose=_shop, patience=30) as right,
        ):
            await asyncio.sleep(0.2)
            slow.no_more()
            began = time.monotonic()
            await _stop(orders, findings)
            findings.worst("slowest stop ms", (time.monotonic() - began) * 1000)
            await asyncio.sleep(scale.seconds)
        findings.expect_ends(slow.outcomes, set(), "the last requests of a service that stops")
        others = left.outcomes + right.outcomes
        findings.expect_ends(others, set(), "while a service finishes for long")
        _judge_waits(others, findings, "while a service finishes for long: ")
        outcomes += slow.outcomes + others
        findings.say(f"round {number + 1}: {len(outcomes)} requests")
        if number + 1 < scale.rounds:
            await orders.start()
    return outcomes, lambda entries: _judge_places(outcomes, entries, stage.apps, _places(orders), findings)


OWNER_CASES: tuple[Case, ...] = (
    Case("carve-out", "a service is carved out of a monolith, and both restart", 10, carve_out),
    Case("methods", "GET and POST of one path in two services, which restart", 4, methods),
    Case("owner-kill", "the owner is killed, and a monolith takes its paths too", 4, owner_kill),
    Case("gateway-joins", "a gateway starts while services serve, stop and start", 3, gateway_joins),
    Case("gateway-last", "services start before the gateways, then one stops", 3, gateway_last),
    Case("gateway-early", "a gateway starts while services are too busy to answer", 3, gateway_early),
    Case("long-finish", "a service takes 19 s for its last requests", 1, long_finish),
)
