"""Where the time goes: the Python processes of a case under py-spy while wrk runs.

A share of the samples times the CPU per request is what a function costs. py-spy sees Python functions only:
what C code does counts for the function that calls it. py-spy also takes a process that waits for a core for one
that works, so the process that it looks at gets a core of its own.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.load import measure, under_load
from tests.benchmarks.stacks import NATS_SERVER, Failed, Stack

__all__ = ["profile"]

_RATE = 500
_SLACK = 20.0


async def profile(stack: Stack, folder: Path, *, connections: int, seconds: float, top: int = 25) -> None:
    """Print the functions of each Python process that take most, and leave the stacks in `folder`."""
    sample = await measure(stack, connections=connections, seconds=seconds)
    print(f"{stack.name}: {sample.rate:,.0f} req/s at c={connections}, without py-spy")
    for part, pid in stack.pids.items():
        if part == NATS_SERVER:
            continue
        file = folder / f"{stack.name}-{part}.raw"
        with _alone(pid, {os.getpid(), *stack.pids.values()}):
            async with under_load(stack, connections=connections, seconds=seconds + 5):
                await _record(pid, seconds, file)
        own, total = _count(file)
        samples = sum(own.values())
        print(f"\n{stack.name}, {part}: {sample.cpu[part]:.1f} us per request, {samples} samples in {file}")
        for title, counts in (("by self time", own), ("by total time", total)):
            print(f"\n  us/req  share  {title}")
            # What is in every sample is the way down to the event loop.
            for frame, count in [one for one in counts.most_common() if one[1] < samples][:top]:
                share = count / samples
                print(f"  {share * sample.cpu[part]:6.2f}  {share:5.1%}  {_short(frame)}")


@contextlib.contextmanager
def _alone(pid: int, everyone: set[int]) -> Iterator[None]:
    """Keep a process on one core, and everyone else, with whom they start, on the others."""
    cores = os.sched_getaffinity(0)
    own = {min(cores)}
    for one in everyone:
        _pin(one, own if one == pid else cores - own or own)
    try:
        yield
    finally:
        for one in everyone:
            with contextlib.suppress(OSError):
                _pin(one, cores)


def _pin(pid: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


async def _record(pid: int, seconds: float, file: Path) -> None:
    """Run py-spy on a process."""
    tool = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if tool is None:
        raise Failed("there is no py-spy (pip install py-spy)")
    options = ["--format", "raw", "--function", "--rate", f"{_RATE}", "--duration", f"{max(1, round(seconds))}"]
    spy = await asyncio.create_subprocess_exec(
        *(tool, "record", "--pid", f"{pid}", *options, "--output", str(file)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, said = await asyncio.wait_for(spy.communicate(), seconds + _SLACK)
    finally:
        if spy.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                spy.kill()
            await spy.wait()
    if spy.returncode:
        raise Failed(f"py-spy has failed (it may need root):\n{said.decode()}")


def _count(file: Path) -> tuple[Counter[str], Counter[str]]:
    """Return how many samples end in each function, and how many have it anywhere."""
    own, total = Counter[str](), Counter[str]()
    for line in file.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        names = frames.split(";")
        own[names[-1]] += int(count)
        for name in set(names):
            total[name] += int(count)
    return own, total


def _short(frame: str) -> str:
    """Leave out the folders above a library."""
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rpartition('site-packages/')[2]}"
