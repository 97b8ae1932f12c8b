"""`python -m tests.chaos`: play the cases, print a table, exit 1 if a promise is broken."""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from .case import Scale
from .cases import CASES
from .report import summary, to_json, update_page
from .run import Report, run

_PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description="Stop, kill and restart things under load.")
    names = [case.name for case in CASES]
    parser.add_argument("--only", metavar="NAME", action="append", choices=names, help=", ".join(names))
    parser.add_argument("--rounds", type=int, help="how often the fault comes, in every case")
    parser.add_argument("--seconds", type=float, default=1.0, help="load before and after each fault (default 1)")
    parser.add_argument("--clients", type=int, default=64, help="clients at once (default 64)")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long mixed traffic goes on (default 30)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the reports to a file")
    parser.add_argument("--docs", action="store_true", help="also write the results into the documentation")
    return parser.parse_args()


async def _play(arguments: argparse.Namespace) -> list[Report]:
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {words}", flush=True)

    reports = []
    for case in CASES:
        if arguments.only and case.name not in arguments.only:
            continue
        scale = Scale(arguments.rounds or case.rounds, arguments.seconds, arguments.clients, arguments.minutes)
        say(f"{case.name}: {case.words}, {scale.rounds} rounds, {scale.clients} clients")
        report = await run(case, scale, lambda words: say(f"  {words}"))
        say(f"  {'kept' if report.is_good else 'BROKEN: ' + '; '.join(report.broken[:3])}")
        reports.append(report)
    return reports


def main() -> int:
    """Play the cases that the command line names, and return the exit code."""
    arguments = _arguments()
    reports = asyncio.run(_play(arguments))
    print(f"\n{summary(reports)}")
    if arguments.json:
        arguments.json.write_text(to_json(reports) + "\n")
    if arguments.docs:
        update_page(_PAGE, reports, [case.name for case in CASES])
    return 0 if all(report.is_good for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
