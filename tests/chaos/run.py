"""From a case to its report: play it on a fresh stage, compare, name the evidence.

A `Report` is broken if a column that must be 0 is not, or if the case found a promise of its own broken. This
module knows how a case is run; it does not print.
"""

import asyncio
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .case import Case, Findings, Scale
from .ledger import Entry, Outcome, Tally, compare
from .stage import Stage

__all__ = ["Report", "run"]

_SHOWN = 5
_LINES = 40


@dataclass(frozen=True, slots=True)
class Report:
    """What came out of one case: the tally, figures, broken promises in words, and the evidence for them."""

    tally: Tally
    figures: dict[str, float]
    broken: list[str]
    evidence: list[str]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken


async def run(case: Case, scale: Scale, say: Callable[[str], None] = lambda _: None) -> Report:
    """Play a case on a stage of its own and return the report; `say` gets a line for every step."""
    began = time.monotonic()
    findings = Findings(say=say)
    with tempfile.TemporaryDirectory(prefix="natsweb-chaos-") as folder:
        async with Stage(Path(folder)) as stage:
            try:
                async with asyncio.timeout(case.limit(scale)), findings.stalls:
                    outcomes, judge = await case.play(stage, scale, findings)
            except Exception as error:  # the other cases are played all the same
                outcomes, judge = [], None
                findings.broken.append(f"the case itself failed: {error!r}, {traceback.format_exc(limit=-3)}")
            entries, codes = await stage.end()
            output = stage.output
    for process, code in codes.items():
        findings.broken.append(f"{process} exits with {code} after SIGTERM")
    if judge is not None:
        judge(entries)
    if failures := sum("Traceback" in line for line in output):
        findings.add("tracebacks in logs", failures)
    waits = [findings.wait_ms(one) for one in outcomes if one.end == "answered"]
    late = [wait for wait in waits if wait > (findings.deadline + 1) * 1000]
    findings.expect(not late, f"{len(late)} answers after their deadline, the last after {max(late, default=0):.0f} ms")
    tally = compare(case.name, outcomes, entries, excused=findings.excused, repeats=findings.repeats)
    broken = [f"{name}: {len(ids)}" for name, ids in tally.must_be_zero.items() if ids] + findings.broken
    evidence = [*_evidence(tally, outcomes, entries), *_last_words(output)] if broken else []
    return Report(tally, findings.figures, broken, evidence, time.monotonic() - began)


def _last_words(output: Iterable[str]) -> list[str]:
    """Return the last lines of the processes that say more than that they run."""
    return [line for line in output if '"event": "ready"' not in line and "[INF]" not in line][-_LINES:]


def _evidence(tally: Tally, outcomes: Iterable[Outcome], entries: Iterable[Entry]) -> list[str]:
    """Return lines that show some requests of each column, and of the unknown: what was told, what was written."""
    told = {outcome.id: outcome for outcome in outcomes}
    lines = []
    unknown = [id for id in tally.unknown if id not in tally.unanswered and id not in tally.raced]
    for name, ids in {**tally.must_be_zero, "unknown": unknown}.items():
        for id in ids[:_SHOWN]:
            outcome = told.get(id)
            said = f"{outcome.label} after {outcome.wait_ms:.0f} ms" if outcome else "never sent"
            reused = " on a reused connection" if outcome and outcome.reused else ""
            start = outcome.sent if outcome else 0.0
            wrote = [f"{one.wrote} by {one.pid} at +{one.at - start:.3f} s" for one in entries if one.id == id]
            lines.append(f"{name}: {id}: {said}{reused}; book: {', '.join(wrote) or 'nothing'}")
    return lines
