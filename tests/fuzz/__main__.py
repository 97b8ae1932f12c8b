"""`python -m tests.fuzz`: fuzz each target for a while, with coverage of natsweb as the guide (atheris, libFuzzer).

What breaks a law is written to `bench/fuzz/TARGET/crash-*`; once mended, it belongs into `cases/`, where a test plays
it. Exit code 1 if anything was found.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from .seeds import SEEDS

_WORK = Path("bench/fuzz")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Fuzz what reads foreign bytes.")
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(SEEDS), help=", ".join(SEEDS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default 60)")
    parser.add_argument("--runs", type=int, help="so many runs for each target instead, always the same ones")
    parser.add_argument("--one", choices=list(SEEDS), help=argparse.SUPPRESS)
    return parser.parse_args()


def _requests() -> list[bytes]:
    """Return the requests of the tables in `test_front`."""
    from tests.test_front import BROKEN, VALID

    return [b"\0" + row.values[0] for row in [*VALID, *BROKEN] if len(row.values[0]) < 1000]


def _fuzz(name: str, seconds: int, runs: int | None) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["natsweb", "tests.fuzz"]):
        from .targets import TARGETS

    corpus = _WORK / (name if runs is None else f"{name}-runs")
    if runs is not None:
        shutil.rmtree(corpus, ignore_errors=True)  # what an earlier one has found would make it another
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [*SEEDS[name], *(_requests() if name == "doors" else [])]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        *([f"-max_total_time={seconds}"] if runs is None else [f"-runs={runs}", "-seed=1"]),
        f"-artifact_prefix={corpus}/",
        "-max_len=4096",
        "-timeout=20",
        f"-verbosity={1 if runs is None else 0}",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Fuzz what the command line names, and return the exit code."""
    arguments = _arguments()
    if arguments.one:
        _fuzz(arguments.one, arguments.seconds, arguments.runs)
    failed = []
    for name in arguments.only or SEEDS:
        runs = [] if arguments.runs is None else ["--runs", str(arguments.runs)]
        print(f"{name}: {f'{arguments.runs} runs' if runs else f'{arguments.seconds} s'}", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, "--seconds", str(arguments.seconds), *runs]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"found something: {', '.join(failed)}" if failed else "no law is broken")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
