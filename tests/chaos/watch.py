"""What processes take of the machine, as Linux tells it, and when the machine itself stood still.

A shared machine may give nobody a turn for a second: whoever judges how long something took has to know.
"""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .stage import Process

__all__ = ["Sample", "Stalls", "Watch"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PAUSE = 0.25
_TICK, _LATE = 0.01, 0.03


class Sample(NamedTuple):
    """One look at one process: when, bytes of memory that it has, files and sockets that it has open."""

    at: float
    memory: int
    files: int


class Watch:
    """Looks at processes while the context lasts."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self._processes = list(processes)
        self.samples: dict[int, list[Sample]] = {one.pid: [] for one in self._processes}
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Watch {self._processes}>"

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            for one in self._processes:
                with contextlib.suppress(OSError, ValueError, IndexError):
                    self.samples[one.pid].append(sample(one.pid))
            await asyncio.sleep(_PAUSE)

    def third(self, pid: int, number: int, field: str = "memory") -> float:
        """Return the median of one third of the time, 0 to 2."""
        samples = self.samples[pid]
        size = len(samples) // 3
        return statistics.median(getattr(one, field) for one in samples[number * size : (number + 1) * size])


def sample(pid: int) -> Sample:
    """Look at one process now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(time.monotonic(), pages * _PAGE, len(os.listdir(f"/proc/{pid}/fd")))


class Stalls:
    """Notes while the context lasts when this process, which judges the others, was not given a turn for long."""

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Stalls: {len(self._stalls)}>"

    async def __aenter__(self) -> "Stalls":
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _tick(self) -> None:
        due = time.monotonic() + _TICK
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            if now - due > _LATE:
                self._stalls.append((due, now))
            due = now + _TICK

    def seconds(self, start: float, end: float) -> float:
        """Return how many of the seconds between two moments were stalls."""
        return sum(max(0.0, min(end, to) - max(start, since)) for since, to in self._stalls)
