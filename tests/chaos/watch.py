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
from typing import NamedTuple, Self

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


class _Looking:
    """Something that looks at the machine while the context lasts."""

    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        raise NotImplementedError


class Watch(_Looking):
    """Looks at processes while the context lasts."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self._processes = list(processes)
        self.samples: dict[int, list[Sample]] = {one.pid: [] for one in self._processes}

    def __repr__(self) -> str:
        return f"<Watch {self._processes}>"

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


class Stalls(_Looking):
    """Notes while the context lasts when this process, which judges the others, was not given a turn for long."""

    def __init__(self) -> None:
        self._stalls: list[tuple[float, float]] = []

    def __repr__(self) -> str:
        return f"<Stalls: {len(self._stalls)}>"

    async def _look(self) -> None:
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
