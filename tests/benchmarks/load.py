"""Load from wrk, and what it and the kernel say about it: one `Sample` for each run.

The CPU time of a process is the user and system time that /proc/PID/stat shows for it, all threads included,
over the time that wrk ran.
"""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.stacks import Failed, Stack

__all__ = ["Sample", "find_wrk", "measure", "under_load"]

_TICKS = os.sysconf("SC_CLK_TCK")
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}
_SLACK = 15.0


class Sample(NamedTuple):
    """The figures of one run; latencies are milliseconds, CPU is microseconds per request for each part."""

    case: str
    round: int
    connections: int
    requests: int
    rate: float
    p50: float
    p99: float
    cpu: dict[str, float]


def find_wrk() -> str:
    """Return the path of wrk; raises `Failed` with the install line."""
    if found := shutil.which("wrk"):
        return found
    raise Failed("wrk is not on PATH (apt-get install wrk)")


async def measure(stack: Stack, *, connections: int, seconds: float, round: int = 0) -> Sample:
    """Run wrk against a stack; raises `Failed` on any answer that is not a 2xx and on any broken connection."""
    before = {part: _cpu(pid) for part, pid in stack.pids.items()}
    async with under_load(stack, connections=connections, seconds=seconds) as wrk:
        output, _ = await asyncio.wait_for(wrk.communicate(), seconds + _SLACK)
    spent = {part: _cpu(pid) - before[part] for part, pid in stack.pids.items()}
    text = output.decode()
    if wrk.returncode or "Non-2xx" in text or "Socket errors" in text:
        raise Failed(f"{stack.name} at c={connections} did not answer every request:\n{text}")
    requests = int(_find(r"(\d+) requests in", text)[0])
    if not requests:
        raise Failed(f"{stack.name} at c={connections} answered nothing:\n{text}")
    return Sample(
        stack.name,
        round,
        connections,
        requests,
        rate=float(_find(r"Requests/sec:\s+([\d.]+)", text)[0]),
        p50=_latency("50", text),
        p99=_latency("99", text),
        cpu={part: seconds * 1e6 / requests for part, seconds in spent.items()},
    )


@contextlib.asynccontextmanager
async def under_load(stack: Stack, *, connections: int, seconds: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run wrk while the context lasts, for at most `seconds`."""
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "5s", "--latency"]
    pipe = asyncio.subprocess.PIPE
    wrk = await asyncio.create_subprocess_exec(find_wrk(), *options, stack.url, stdout=pipe, start_new_session=True)
    try:
        yield wrk
    finally:
        if wrk.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                wrk.kill()
            await wrk.wait()


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used; see proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _latency(percentile: str, text: str) -> float:
    number, unit = _find(rf"\s{percentile}%\s+([\d.]+)(us|ms|s|m)\s", text)
    return float(number) * _MILLISECONDS[unit]


def _find(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise Failed(f"wrk's output is not as expected:\n{text}")
    return found.groups()
