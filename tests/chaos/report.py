"""Reports as text: the summary table, JSON, and the table in the documentation."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from natsweb.embedded import find_binary

from .run import Report

__all__ = ["machine", "summary", "to_json", "update_page"]

_HEAD = ("case", "sent", "2xx", "executed", "acked, not handled", "twice", "refused, handled", "wrong", "no answer")
_TAIL = ("worst ms", "other ends")
_ROW = re.compile(r"\| ([a-z -]+) \||- (?:\*\*Broken\*\* in )?`([a-z -]+)`:")
_MARKS = re.compile(r"(<!-- chaos:begin -->\n).*?(<!-- chaos:end -->)", re.DOTALL)


def _cells(report: Report) -> list[str]:
    tally = report.tally
    counts = [tally.sent, tally.acked, tally.executed, *(len(ids) for ids in tally.must_be_zero.values())]
    others = ", ".join(f"{count:,} x {label}" for label, count in tally.others.items())
    return [tally.case, *(f"{count:,}" for count in counts), f"{tally.worst_ms:,.0f}", others or "none"]


def _figures(report: Report) -> str:
    return ", ".join(f"{name} {value:,g}" for name, value in report.figures.items())


def summary(reports: Sequence[Report]) -> str:
    """Return the table of all reports, their figures, and what is broken with its evidence."""
    rows = [[*_HEAD, *_TAIL], *(_cells(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    for report in reports:
        lines.append(f"{report.tally.case}: {_figures(report)}")
    for report in reports:
        for words in report.broken:
            lines.append(f"BROKEN {report.tally.case}: {words}")
        if report.broken:
            lines += [f"    {line}" for line in report.evidence]
    good = sum(report.is_good for report in reports)
    lines += ["", f"{good} of {len(reports)} cases keep every promise"]
    return "\n".join(lines)


def to_json(reports: Sequence[Report]) -> str:
    """Return the reports as JSON, with the machine and the date."""
    return json.dumps(
        {
            "machine": machine(),
            "date": date.today().isoformat(),
            "cases": [
                {
                    "case": report.tally.case,
                    "sent": report.tally.sent,
                    "acked": report.tally.acked,
                    "executed": report.tally.executed,
                    **{name: len(ids) for name, ids in report.tally.must_be_zero.items()},
                    "unknown": len(report.tally.unknown),
                    "worst_ms": round(report.tally.worst_ms, 1),
                    "others": report.tally.others,
                    "figures": report.figures,
                    "broken": report.broken,
                    "evidence": report.evidence,
                    "seconds": round(report.seconds, 1),
                }
                for report in reports
            ],
        },
        indent=2,
    )


def machine() -> str:
    """Return what the figures depend on: processor, system, Python and nats-server."""
    cpu = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        cpu = found[1]
    server = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, timeout=10, check=False)
    version = server.stdout.strip().removeprefix("nats-server: v")
    python = platform.python_version()
    return f"{os.cpu_count()} cores ({cpu}), {platform.system()}, Python {python}, nats-server {version}"


def update_page(page: Path, reports: Sequence[Report], order: Sequence[str] = ()) -> None:
    """Write the results between the marks of a page; those of other cases stay. Raises `ValueError` without marks.

    `order` is that of the cases.
    """
    text = page.read_text()
    marks = _MARKS.search(text)
    if marks is None:
        raise ValueError(f"{page.name} has no marks for the results")
    new = {report.tally.case for report in reports}
    old = [line for line in marks[0].splitlines() if (case := _case_of(line)) and case not in new]
    head = [*_HEAD, *_TAIL]
    rows = [head, ["---", *["--:"] * (len(head) - 2), "---"]]
    table = [line for line in old if line.startswith("|")]
    table += [f"| {' | '.join(_cells(report))} |" for report in reports]
    notes = [line for line in old if not line.startswith("|")]
    notes += [f"- `{report.tally.case}`: {_figures(report)}" for report in reports if report.figures]
    notes += [f"- **Broken** in `{one.tally.case}`: {words}" for one in reports for words in one.broken]

    def place(line: str) -> int:
        case = _case_of(line)
        return order.index(case) if case in order else len(order)

    lines = [f"{date.today().isoformat()}, {machine()}.", "", *(f"| {' | '.join(row)} |" for row in rows)]
    lines += [*sorted(table, key=place), "", *sorted(notes, key=place), ""]
    results = f"{marks[1]}\n" + "\n".join(lines) + f"\n{marks[2]}"
    page.write_text(text[: marks.start()] + results + text[marks.end() :])


def _case_of(line: str) -> str | None:
    """Return the case that a line of the results is about."""
    found = _ROW.match(line)
    name = found and (found[1] or found[2])
    return None if name in (None, "case", "---") else name
