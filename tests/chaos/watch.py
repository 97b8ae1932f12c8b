"""What processes take of the machine, as Linux tells it: memory and open files, looked at a few times a second."""

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .stage import Process

__all__ = ["Sample", "Watch"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PAUSE = 0.25


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
