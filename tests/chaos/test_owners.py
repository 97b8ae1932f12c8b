"""The judges of whose a request is: they flag what was executed in the wrong place or took too long, and only that."""

import asyncio
import time

import pytest

from .case import Findings, Scale
from .cases import CASES
from .fleet import Fleet, Presence
from .ledger import Entry, Outcome
from .owners import _judge_places, _judge_waits, _places
from .report import summary
from .run import run


class OneProcess:
    """A stage and a process at once: it starts and stops in no time."""

    async def service(self, app: str) -> "OneProcess":
        return self

    async def stop(self) -> int:
        return 0

    async def kill(self) -> int:
        return -9


def request(path: str = "/orders/1", sent: float = 1.0, ended: float = 1.5, status: int = 200) -> Outcome:
    """Return the outcome of request `a`."""
    return Outcome("a", sent, ended, "answered", status, what=f"GET {path}")


async def test_a_fleet_knows_when_it_was_there() -> None:
    """It is up from its first start to its last stop; a request over a change is judged by neither rule."""
    fleet, moments = Fleet(OneProcess(), "orders"), [time.monotonic()]  # type: ignore[arg-type]
    for step in (fleet.start, fleet.start, fleet.stop, fleet.stop, fleet.start, fleet.kill):
        await step()
        moments.append(time.monotonic())

    def during(first: int, last: int) -> Presence:
        return fleet.during(request(sent=moments[first], ended=moments[last]))

    assert fleet.during(request(sent=moments[0] - 2, ended=moments[0] - 1)) == "away"
    assert [during(step, step) for step in range(1, 7)] == ["up", "up", "up", "away", "up", "away"]
    assert (during(1, 3), during(0, 1), during(3, 4), during(4, 6)) == ("up", "changing", "changing", "changing")
    assert during(0, 6) == "changing"


@pytest.mark.parametrize(
    ("path", "presence", "app", "is_right"),
    [
        ("/orders/1", "up", "orders", True),
        ("/orders/1", "up", "monolith", False),
        ("/orders/1", "away", "monolith", True),
        ("/orders/1", "away", "orders", False),
        ("/orders/1", "changing", "orders", True),
        ("/orders/1", "changing", "monolith", True),
        ("/customers/1/notes", "up", "monolith", True),
        ("/customers/1/notes", "up", "orders", False),
        ("/customers/1/notes", "changing", "orders", False),
    ],
)
def test_the_wrong_place_is_flagged(path: str, presence: Presence, app: str, is_right: bool) -> None:
    """Who has executed a request is laid beside who was there while it was under way."""

    class Always(Fleet):
        def during(self, outcome: Outcome) -> Presence:
            return presence

    findings, orders = Findings(), Always(OneProcess(), "orders")  # type: ignore[arg-type]
    _judge_places([request(path)], [Entry("started", "a", 7, 1.1)], {7: app}, _places(orders), findings)
    assert (not findings.broken) == is_right
    assert sum(findings.figures.values()) == 1


def test_a_request_that_nobody_executed_is_in_no_place() -> None:
    """Without an entry in the book there is nothing to judge."""
    findings = Findings()
    _judge_places([request(status=503)], [], {}, lambda _: set(), findings)
    assert (findings.broken, findings.figures) == ([], {})


@pytest.mark.parametrize(("ended", "is_late"), [(1.9, False), (2.1, True)])
def test_a_long_wait_is_flagged(ended: float, is_late: bool) -> None:
    """More than a second is too long, whatever the answer was."""
    findings = Findings()
    _judge_waits([request(ended=ended)], findings)
    assert bool(findings.broken) == is_late


async def test_a_machine_that_stands_still_is_not_blamed_on_anybody() -> None:
    """What a client waited while nobody was given a turn does not count; the rest does."""
    findings = Findings()
    async with findings.stalls:
        await asyncio.sleep(0.05)
        before = time.monotonic()
        time.sleep(0.3)
        after = time.monotonic()
        await asyncio.sleep(0.05)
    assert 0.25 < findings.stalls.seconds(before - 1, after) < after - before + 0.05
    assert findings.stalls.seconds(before - 9, before - 8) == 0
    _judge_waits([request(sent=before - 0.9, ended=after)], findings)
    assert findings.broken == []
    _judge_waits([request(sent=before - 1.2, ended=after)], findings)
    assert len(findings.broken) == 1


async def test_a_short_carving_out_loses_nothing() -> None:
    """A service takes over a monolith's paths and gives them back under 16 clients at two gateways."""
    [case] = [case for case in CASES if case.name == "carve-out"]
    report = await run(case, Scale(rounds=1, seconds=0.2, clients=16))
    assert report.is_good, summary([report])
    assert report.tally.sent == report.tally.acked == report.tally.executed > 200
    assert report.figures["placed exactly"] > report.figures["placed while an owner changed"] / 4
