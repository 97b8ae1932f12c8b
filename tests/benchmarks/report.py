"""From samples to figures: medians, ratios, the bars that they are held to, and how all that is written down.

Ratios are taken inside each round, between cases that ran within seconds of each other, and then the median of
them over the rounds: what slows the whole machine for a while falls out.
"""

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from natsweb.embedded import find_binary
from tests.benchmarks.binding import BINDING_BAR, Binding
from tests.benchmarks.load import Sample
from tests.benchmarks.naming import NAMING_BAR, Naming, Pair
from tests.benchmarks.stacks import CASES, NATS_SERVER

__all__ = [
    "Verdict",
    "as_json",
    "judge",
    "judge_binding",
    "judge_naming",
    "machine",
    "table",
    "tables",
    "update_page",
    "update_scale",
    "update_streams",
]

_PACKAGES = ("natsweb", "nats-py", "pydantic", "fastapi", "starlette", "uvicorn", "uvloop", "httptools")
_PARTS = ("gateway", "service", "app", NATS_SERVER)
_VERSIONS = ("python", NATS_SERVER)


class Bar(NamedTuple):
    """What one figure of a case, divided by that of another (or less it), is to be at most or at least."""

    figure: str
    case: str
    other: str
    relation: str
    limit: float
    sign: str = "/"


class Verdict(NamedTuple):
    """A bar, the measured ratio (median, lowest and highest of the rounds), and whether it holds."""

    bar: Bar
    ratio: float
    low: float
    high: float
    holds: bool


BARS = (
    Bar("CPU", "natsweb", "naive", "<=", 0.40),
    Bar("CPU", "natsweb", "fastapi", "<=", 0.33),
    Bar("req/s", "natsweb", "naive", ">=", 2.3),
    Bar("req/s", "natsweb", "fastapi", ">=", 3.0),
    Bar("CPU", "natsweb-1000", "natsweb", "<=", 1.05),
    Bar("CPU", "natsweb", "natsweb-unnamed", "<=", 1.05),
    Bar("req/s", "natsweb-1000", "natsweb", ">=", 0.95),
)


def judge(samples: Sequence[Sample]) -> list[Verdict]:
    """Return the verdict on each bar whose two cases were measured, at the highest number of connections."""
    busiest = max(sample.connections for sample in samples)
    found = {(sample.case, sample.round): sample for sample in samples if sample.connections == busiest}
    verdicts = []
    for bar in BARS:
        rounds = [number for case, number in found if case == bar.case and (bar.other, number) in found]
        ratios = [
            _figure(bar.figure, found[bar.case, number]) / _figure(bar.figure, found[bar.other, number])
            for number in rounds
        ]
        if ratios:
            ratio = median(ratios)
            holds = ratio <= bar.limit if bar.relation == "<=" else ratio >= bar.limit
            verdicts.append(Verdict(bar, ratio, min(ratios), max(ratios), holds))
    return verdicts


def _figure(name: str, sample: Sample) -> float:
    return sample.rate if name == "req/s" else _cpu(sample)


def _cpu(sample: Sample) -> float:
    """Return the CPU of all Python processes together."""
    return sum(spent for part, spent in sample.cpu.items() if part != NATS_SERVER)


def judge_binding(binding: Binding) -> Verdict:
    """Return the verdict on what typed binding costs."""
    bar = Bar("binding", "natsweb", "by hand", "<=", BINDING_BAR)
    return Verdict(bar, binding.ratio, binding.ratio, binding.ratio, binding.ratio <= bar.limit)


def judge_naming(naming: Naming) -> Verdict:
    """Return the verdict on what it costs to name the service that is meant, for a request that is new."""
    bar = Bar("µs to prepare", "named", "unnamed", "<=", NAMING_BAR, "-")
    added = naming.fresh.difference
    return Verdict(bar, added, added, added, added <= bar.limit)


def tables(samples: Sequence[Sample], verdicts: Sequence[Verdict], binding: Binding, naming: Naming) -> str:
    """Return the four tables as Markdown that reads well on a terminal too."""
    counts = sorted({sample.connections for sample in samples})
    groups = {
        (case, count): group
        for case in CASES
        for count in counts
        if (group := [sample for sample in samples if (sample.case, sample.connections) == (case, count)])
    }
    speed = [_speed(group) for group in groups.values()]
    cost = [_cost(group) for (_, count), group in groups.items() if count == counts[-1]]
    blocks = [
        table(("case", "connections", "req/s", "p50 ms", "p99 ms"), speed),
        f"CPU in microseconds per request at {counts[-1]} connections:",
        table(("case", *_PARTS, f"all but {NATS_SERVER}"), cost),
    ]
    blocks.append(f"Binding one request: {binding.hand:.1f} µs by hand, {binding.natsweb:.1f} µs by natsweb.")
    blocks += [
        "A request on its way through the gateway's exchange, in microseconds, with 200 services of 20 routes:",
        table(
            ("request", "unnamed", "named", "added"), [_naming(*pair) for pair in zip(_REQUESTS, naming, strict=True)]
        ),
    ]
    head = ("ratio", "median", "lowest", "highest", "bar", "holds")
    blocks += [f"Ratios at {counts[-1]} connections:", table(head, [_judgement(verdict) for verdict in verdicts])]
    return "\n\n".join(blocks)


def _speed(group: Sequence[Sample]) -> list[str]:
    rate, p50, p99 = (median(getattr(sample, name) for sample in group) for name in ("rate", "p50", "p99"))
    return [group[0].case, f"{group[0].connections}", f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}"]


def _cost(group: Sequence[Sample]) -> list[str]:
    columns = [[sample.cpu[part] for sample in group if part in sample.cpu] for part in _PARTS]
    columns.append([_cpu(sample) for sample in group])
    return [group[0].case, *[f"{median(column):.1f}" if column else "" for column in columns]]


_REQUESTS = ("new, of one client", "new, of 64 clients in turn", "repeated")


def _naming(name: str, pair: Pair) -> list[str]:
    return [name, f"{pair.without:.2f}", f"{pair.named:.2f}", f"{pair.difference:+.2f}"]


def _judgement(verdict: Verdict) -> list[str]:
    bar, *ratios, holds = verdict
    said = [f"{bar.figure}, {bar.case} {bar.sign} {bar.other}", *[f"{ratio:.2f}" for ratio in ratios]]
    return [*said, f"{bar.relation} {bar.limit:.2f}", "yes" if holds else "**no**"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first stand on the right."""
    first, *others = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        [row[0].ljust(first), *[cell.rjust(width) for cell, width in zip(row[1:], others, strict=True)]]
        for row in (head, *rows)
    ]
    lines.insert(1, ["-" * first, *["-" * (width - 1) + ":" for width in others]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> dict[str, str]:
    """Return what the figures depend on: the processor and the versions of everything that ran."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": found[1] if found else platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        NATS_SERVER: said.stdout.rpartition("v")[2].strip(),
        **{package: version(package) for package in (*_PACKAGES, "websockets")},
    }


def as_json(samples: Sequence[Sample], verdicts: Sequence[Verdict], settings: dict[str, Any]) -> str:
    """Return everything: the machine, each sample of each round, the verdicts."""
    judged = [
        {**verdict.bar._asdict(), **dict(zip(verdict._fields[1:], verdict[1:], strict=True))} for verdict in verdicts
    ]
    everything = {"machine": machine(), "settings": settings, "bars": judged, "samples": [s._asdict() for s in samples]}
    return json.dumps(everything, indent=1)


def update_page(page: Path, samples: Sequence[Sample], text: str) -> None:
    """Write machine, date and tables between the markers of a page."""
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in (*_VERSIONS, *_PACKAGES))
    rounds = max(sample.round for sample in samples)
    write_block(page, "results", f"{_place(facts)}, medians of {rounds} rounds.\n{versions}.\n\n{text}")


def update_scale(page: Path, text: str) -> None:
    """Write machine, date and the table of many services between markers of their own."""
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in (*_VERSIONS, "natsweb"))
    write_block(page, "scale", f"{_place(facts)}; {versions}.\n\n{text}")


def update_streams(page: Path, text: str, rounds: int) -> None:
    """Write machine, date and the tables of streams between markers of their own."""
    facts = machine()
    packages = ("natsweb", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "websockets")
    versions = ", ".join(f"{name} {facts[name]}" for name in (*_VERSIONS, *packages))
    write_block(page, "streams", f"{_place(facts)}, medians of {rounds} rounds.\n{versions}.\n\n{text}")


def _place(facts: dict[str, str]) -> str:
    return f"{facts['date']}, {facts['cores']} cores of {facts['cpu']}"


def write_block(page: Path, name: str, text: str) -> None:
    """Replace what is between the markers called `name`; raises `ValueError` if the page does not have them once."""
    block = re.compile(rf"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.DOTALL)
    content, count = block.subn(lambda _: f"\n{text}\n\n", page.read_text())
    if count != 1:
        raise ValueError(f"{page} has not one block between the markers called {name}")
    page.write_text(content)
