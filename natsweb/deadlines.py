"""One timer for all deadlines of a process.

Setting and cancelling a deadline, which every request does, is one set operation each; the event loop sees a
single timer that is armed for the earliest deadline. A deadline fires at its time or up to one tick later,
never earlier. Must be used from the thread of its event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

__all__ = ["Deadline", "Deadlines"]

logger = logging.getLogger("natsweb")


class Deadline:
    """One armed deadline; `cancel()` may be called at any time, also after it has fired."""

    __slots__ = ("_bucket", "arguments", "callback")

    def __init__(self, bucket: "set[Deadline]", callback: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._bucket = bucket
        self.callback = callback
        self.arguments = arguments

    def cancel(self) -> None:
        """Disarm the deadline, and let go of what it holds: whoever owns it is often among that."""
        self._bucket.discard(self)
        self.arguments = ()


class Deadlines:
    """Deadlines in buckets of `tick` seconds."""

    def __init__(self, tick: float = 0.02) -> None:
        self._tick = tick
        self._buckets: dict[int, set[Deadline]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def __repr__(self) -> str:
        return f"<Deadlines: {len(self)} armed>"

    def after(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> Deadline:
        """Arm a deadline; `callback(*arguments)` runs in the event loop, and an exception of it is logged."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        number = int((loop.time() + (seconds if seconds > 0.0 else 0.0)) / self._tick) + 1
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = set()
        deadline = Deadline(bucket, callback, arguments)
        bucket.add(deadline)
        if self._timer is None or number < self._armed_for:
            self._arm(loop, number)
        return deadline

    def _arm(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = number
        self._timer = loop.call_at(number * self._tick, self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time() / self._tick
        for number in sorted(self._buckets):
            if number > now + 0.001:
                break
            bucket = self._buckets.get(number)
            while bucket:
                deadline = bucket.pop()
                try:
                    deadline.callback(*deadline.arguments)
                except Exception:
                    logger.exception("a deadline's callback failed")
        self._forget_empty()
        if self._buckets:
            self._arm(loop, min(self._buckets))

    def _forget_empty(self) -> None:
        for number in [number for number, bucket in self._buckets.items() if not bucket]:
            del self._buckets[number]

    def close(self) -> None:
        """Disarm everything."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for bucket in self._buckets.values():
            bucket.clear()
        self._buckets.clear()
