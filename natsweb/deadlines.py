"""One timer for all deadlines of one holder.

What has a deadline carries it itself, and its holder (an inbox, a worker) keeps what is under way anyway. So setting
a deadline is one comparison, and what is over before its time just leaves its holder: nothing is armed or
cancelled for a request. A single timer, armed for the earliest deadline that it was told of, looks through all that
is held. A deadline fires at its time or up to `slack` later, never earlier. For one event loop, from its thread.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

__all__ = ["Deadlines", "Timed"]

logger = logging.getLogger("natsweb")


class Timed:
    """Something under way that has a deadline; `due` is in the event loop's time."""

    __slots__ = ("due",)

    due: float


T = TypeVar("T", bound=Timed)


class Deadlines(Generic[T]):
    """Watches the deadlines of what `held` returns; looks at most every `slack` seconds.

    `time_up` gets each that is due, and also one that another's call has ended in the same moment.
    """

    def __init__(self, held: Callable[[], Iterable[T]], time_up: Callable[[T], None], slack: float = 0.01) -> None:
        self._held = held
        self._time_up = time_up
        self._slack = slack
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Deadlines: {'idle' if self._timer is None else 'armed'}>"

    def start(self, seconds: float) -> float:
        """Return what is due in `seconds`; whoever gets it as `due` has to be held before the event loop goes on."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if due < self._armed_for:
            self._arm(loop, due)
        return due

    def _arm(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = due
        self._timer = loop.call_at(due + self._slack, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fire what is due, and wait for the earliest of the rest."""
        self._timer, self._armed_for = None, math.inf
        now = loop.time()
        for one in [one for one in self._held() if one.due <= now]:
            if self._closed:
                return
            one.due = math.inf  # once, even if it stays
            try:
                self._time_up(one)
            except Exception:
                logger.exception("a deadline's callback failed")
        earliest = min([one.due for one in self._held()], default=math.inf)
        if earliest < self._armed_for:
            self._arm(loop, earliest)

    def close(self) -> None:
        """Fire nothing any more; what is held is its holder's business."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
