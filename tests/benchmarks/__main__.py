"""Run the benchmarks: `python -m tests.benchmarks`, or `make bench`."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from natsweb.errors import Mistake
from tests.benchmarks.binding import measure_binding
from tests.benchmarks.instructions import count_instructions
from tests.benchmarks.load import Sample, find_wrk, measure
from tests.benchmarks.naming import measure_naming
from tests.benchmarks.profile import profile
from tests.benchmarks.report import (
    as_json,
    judge,
    judge_binding,
    judge_naming,
    tables,
    update_page,
    update_scale,
    update_streams,
)
from tests.benchmarks.scale import measure_scale, scale_table
from tests.benchmarks.stacks import CASES, ROOT, Failed, running
from tests.benchmarks.streams import QUICK, Sizes, broken_bars, measure_streams, streams_as_json, streams_text

WARM_UP = 1.0
PAGE = ROOT / "docs" / "benchmarks.md"


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description="Measure natsweb beside others.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each case runs (5)")
    parser.add_argument("--seconds", type=int, default=3, help="how long each run takes (3)")
    parser.add_argument("--only", metavar="NAME", action="append", choices=CASES, help="a case to run; repeatable")
    parser.add_argument("--connections", type=_numbers, default=[1, 64], help="connections, with commas (1,64)")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results.json", help="where the samples go")
    parser.add_argument("--docs", action="store_true", help=f"update the results in {PAGE.relative_to(ROOT)}")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a bar is missed")
    parser.add_argument("--scale", action="store_true", help="measure a gateway among 200 services instead")
    parser.add_argument("--streams", action="store_true", help="measure bodies, events and WebSockets instead")
    parser.add_argument("--instructions", action="store_true", help="count instructions by Valgrind instead")
    parser.add_argument("--quick", action="store_true", help="with --streams: little of everything, to try it out")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time goes, by py-spy (natsweb, or --only)"
    )
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return sorted({int(number) for number in text.split(",")})


async def main(given: argparse.Namespace) -> int:
    """Do what was asked; SIGTERM cancels it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if given.scale:
        return await _scale(given)
    if given.streams:
        return await _streams(given)
    if given.instructions:
        for side, count in (await count_instructions()).items():
            print(f"{side:8} {count:,} instructions a request")
        return 0
    find_wrk()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    if given.profile:
        for name in given.only or ["natsweb"]:
            async with running(name) as stack:
                busiest = given.connections[-1]
                await profile(stack, given.json.parent, connections=busiest, seconds=given.seconds)
        return 0
    binding, naming = measure_binding(), measure_naming()
    samples = await collect(given)
    verdicts = [*judge(samples), judge_binding(binding), judge_naming(naming)]
    settings = {name: getattr(given, name) for name in ("rounds", "seconds", "connections")}
    given.json.write_text(as_json(samples, verdicts, settings))
    text = tables(samples, verdicts, binding, naming)
    print(f"\n{text}\n\nall samples: {given.json}")
    if given.docs:
        update_page(PAGE, samples, text)
    return 1 if given.strict and not all(verdict.holds for verdict in verdicts) else 0


async def _scale(given: argparse.Namespace) -> int:
    """Measure a gateway among many services, and nothing else."""
    figures = await measure_scale(lambda words: print(words, flush=True))
    text = scale_table(figures)
    print(f"\n{text}")
    if given.docs:
        update_scale(PAGE, text)
    return 1 if given.strict and not all(figure.holds for figure in figures) else 0


async def _streams(given: argparse.Namespace) -> int:
    """Measure streams, and nothing else."""
    sizes = QUICK if given.quick else Sizes()
    found = await measure_streams(sizes, lambda words: print(words, flush=True))
    path = given.json.with_name("streams.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(streams_as_json(found, sizes))
    text = streams_text(found, sizes)
    print(f"\n{text}\n\nall measurements: {path}")
    if given.docs:
        update_streams(PAGE, text, sizes.rounds)
    broken = broken_bars(found)
    for words in broken:
        print(f"missed: {words}", file=sys.stderr)
    return 1 if given.strict and broken else 0


async def collect(given: argparse.Namespace) -> list[Sample]:
    """Run every case once in each round, in fresh processes, and start each round with another case."""
    names = [name for name, case in CASES.items() if (name in given.only if given.only else not case.extra)]
    samples = []
    for number in range(1, given.rounds + 1):
        first = (number - 1) % len(names)
        for name in names[first:] + names[:first]:
            async with running(name) as stack:
                await measure(stack, connections=given.connections[-1], seconds=WARM_UP)
                for connections in given.connections:
                    sample = await measure(stack, connections=connections, seconds=given.seconds, round=number)
                    samples.append(sample)
                    print(progress(sample, given.rounds), flush=True)
    return samples


def progress(sample: Sample, rounds: int) -> str:
    """Return the line that is printed after a run."""
    cpu = ", ".join(f"{part} {spent:.1f}" for part, spent in sample.cpu.items())
    figures = f"{sample.rate:8,.0f} req/s  p50 {sample.p50:6.2f} ms  p99 {sample.p99:6.2f} ms"
    return f"{sample.round}/{rounds} {sample.case:<12} c={sample.connections:<3}{figures}  CPU us: {cpu}"


def run() -> int:
    """Return the exit code: 1 for a missed bar if that counts, 2 if something could not be measured."""
    try:
        return asyncio.run(main(options()))
    except (Failed, Mistake, TimeoutError) as error:
        print(f"error: {error or 'wrk did not end in time'}", file=sys.stderr)
        return 2
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130


if __name__ == "__main__":
    sys.exit(run())
