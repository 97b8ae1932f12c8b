"""All instances of one service on a stage, and when it surely was there.

It is there from the moment in which an instance has said that it is ready, until the last one is told to stop. It
is away from the end of the last one, or from one second after it was told to stop if it takes longer to finish what
it has, until the next is started. In between, when it comes or goes, its requests may be executed by it or by the
next owner. Times are those of the ledger.
"""

import asyncio
import math
import time
from typing import Literal, NamedTuple

from .ledger import Outcome
from .stage import Process, Stage

__all__ = ["Fleet", "Presence"]

#: What a service surely was during a request; `changing` if it came or went meanwhile.
Presence = Literal["up", "away", "changing"]

_SAID = 1.0  # within which a service that is told to stop has said so to all gateways, in seconds


class _Span(NamedTuple):
    presence: Presence
    start: float
    end: float


class Fleet:
    """The instances of the service that is called `app` in `service.py`."""

    def __init__(self, stage: Stage, app: str) -> None:
        self.app = app
        self.instances: list[Process] = []
        self._stage = stage
        self._coming = 0
        self._spans: list[_Span] = []
        self._presence: Presence = "away"
        self._since = -math.inf

    def __repr__(self) -> str:
        return f"<Fleet {self.app}: {self._presence}, {len(self.instances)} instances>"

    def _turn(self, presence: Presence) -> None:
        """Note that from now on it is something else."""
        if presence != self._presence:
            now = time.monotonic()
            self._spans.append(_Span(self._presence, self._since, now))
            self._presence, self._since = presence, now

    def during(self, outcome: Outcome) -> Presence:
        """Return what the service was all the time from a request to its answer."""
        for span in (*self._spans, _Span(self._presence, self._since, math.inf)):
            if span.start <= outcome.sent and outcome.ended < span.end:
                return span.presence
        return "changing"

    async def start(self) -> Process:
        """Start one more instance; when this returns it serves."""
        if self._presence == "away":
            self._turn("changing")
        self._coming += 1
        process = await self._stage.service(self.app)
        self._coming -= 1
        self.instances.append(process)
        self._turn("up")
        return process

    def _leave(self) -> Process:
        process = self.instances.pop(0)
        if not self.instances:
            self._turn("changing")
        return process

    def _left(self) -> None:
        if not self.instances and not self._coming:
            self._turn("away")

    async def stop(self) -> int:
        """Stop the oldest instance; return its exit code."""
        stopping = asyncio.create_task(self._leave().stop())
        await asyncio.wait([stopping], timeout=_SAID)
        self._left()
        return await stopping

    async def kill(self) -> float:
        """Kill the oldest instance; return when."""
        process, now = self._leave(), time.monotonic()
        await process.kill()
        self._left()
        return now
