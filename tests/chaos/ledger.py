"""The comparison: what clients were told against what services did, request by request.

Every request has an id of its own. A client keeps one `Outcome` for it, the service that handles it appends
`Entry` lines to a file. `compare` lays one beside the other and names each request that breaks a promise. It
knows statuses and reasons, the names that gateway and services give to failures. It starts nothing, waits for
nothing and reads no socket.

All times are seconds of the machine's monotonic clock, which its processes share.
"""

import os
import time
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["REFUSALS", "Book", "End", "Entry", "Outcome", "Tally", "Wrote", "compare", "read_book"]

Wrote = Literal["started", "done", "cancelled"]

#: How a request ended for its client: with a whole answer; the connection was refused; it was closed before the
#: first byte of the answer, or within it; or there was nothing for as long as the client had patience.
End = Literal["answered", "refused", "closed", "cut", "silent"]

#: Statuses that promise that no handler was started, each with the reasons it holds for (none named: for all).
#: Not among them are 502 `disconnected`, 503 `stopping` and 504 `timeout`: these say that nobody knows.
REFUSALS: dict[int, frozenset[str]] = {
    400: frozenset({"bad_path", "bad_request"}),
    404: frozenset(),
    405: frozenset(),
    413: frozenset(),
    414: frozenset(),
    415: frozenset(),
    422: frozenset(),
    429: frozenset(),
    431: frozenset(),
    501: frozenset(),
    503: frozenset({"nats_down", "no_service", "overloaded", "service_away"}),
}


class Outcome(NamedTuple):
    """What one client saw of one request.

    `reused` tells that the connection had carried an answer before, `closing` that the answer said
    `Connection: close`, `right` that the body was the one that belongs to the request and the status, `what` is
    its method and path.
    """

    id: str
    sent: float
    ended: float
    end: End
    status: int = 0
    reason: str = ""
    right: bool = True
    reused: bool = False
    closing: bool = False
    what: str = ""

    @property
    def acked(self) -> bool:
        """Whether the client was told that it is done."""
        return self.end == "answered" and 200 <= self.status < 300

    @property
    def refusal(self) -> bool:
        """Whether the client was told that nothing was done."""
        if self.end != "answered" or self.status not in REFUSALS:
            return self.end == "refused"
        reasons = REFUSALS[self.status]
        return not reasons or self.reason in reasons

    @property
    def label(self) -> str:
        """The status and the reason, or how it ended without an answer."""
        return f"{self.status} {self.reason}".strip() if self.end == "answered" else self.end

    @property
    def wait_ms(self) -> float:
        """How long the client waited, in milliseconds."""
        return (self.ended - self.sent) * 1000


class Entry(NamedTuple):
    """One line that a service wrote: what became of a request, in which process and when."""

    wrote: Wrote
    id: str
    pid: int
    at: float


class Book:
    """Appends entries to a file, each with one write, so that lines of several processes never mix."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Book {self._path}>"

    def write(self, wrote: Wrote, id: str) -> None:
        """Append one entry; when this returns, no end of the process can lose it."""
        os.write(self._file, f"{wrote} {id} {self._pid} {time.monotonic():.6f}\n".encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_book(path: Path) -> list[Entry]:
    """Return the entries of a file, in the order in which they were written; none if there is no file."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        wrote, id, pid, at = line.split(" ")
        if wrote not in ("started", "done", "cancelled"):
            raise ValueError(f"not an entry: {line!r}")
        entries.append(Entry(wrote, id, int(pid), float(at)))  # type: ignore[arg-type]
    return entries


@dataclass(frozen=True, slots=True)
class Tally:
    """The comparison of one case: counts, and the ids behind each column that must be 0.

    `others` counts what was answered but not with a 2xx, by status and reason; `unknown` are the requests whose
    client was left not knowing, `raced` those of them that a closing idle connection explains.
    """

    case: str
    sent: int
    acked: int
    others: dict[str, int]
    executed: int
    worst_ms: float
    acked_not_handled: list[str] = field(default_factory=list)
    handled_twice: list[str] = field(default_factory=list)
    refused_but_handled: list[str] = field(default_factory=list)
    wrong_body: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    raced: list[str] = field(default_factory=list)

    @property
    def must_be_zero(self) -> dict[str, list[str]]:
        """The five columns that no fault may make more than 0."""
        return {
            "acked but not handled": self.acked_not_handled,
            "handled twice": self.handled_twice,
            "refused but handled": self.refused_but_handled,
            "wrong body": self.wrong_body,
            "no answer": self.unanswered,
        }


#: Methods that a case may allow to be executed more than once.
_IDEMPOTENT = ("DELETE ", "GET ", "HEAD ", "OPTIONS ", "PUT ")


def compare(
    case: str,
    outcomes: Sequence[Outcome],
    entries: Iterable[Entry],
    *,
    excused: Container[str] = (),
    repeats: bool = False,
) -> Tally:
    """Return what the outcomes and the entries of one case say together.

    `excused` are requests that may have no answer, since what they were sent to was killed. With `repeats`, what is
    idempotent may have been executed more than once.
    """
    wrote: dict[str, Counter[Wrote]] = {}
    for entry in entries:
        wrote.setdefault(entry.id, Counter())[entry.wrote] += 1
    nothing: Counter[Wrote] = Counter()
    ours = {outcome.id for outcome in outcomes}
    tally = Tally(
        case,
        sent=len(outcomes),
        acked=sum(outcome.acked for outcome in outcomes),
        others=dict(sorted(Counter(one.label for one in outcomes if not one.acked).items())),
        executed=sum(1 for id in wrote if id in ours),
        worst_ms=max((one.wait_ms for one in outcomes if one.end == "answered"), default=0.0),
    )
    for outcome in outcomes:
        may_repeat = repeats and outcome.what.startswith(_IDEMPOTENT)
        _judge(outcome, wrote.get(outcome.id, nothing), tally, may_repeat=may_repeat, excused=outcome.id in excused)
    # What a service got that no client sent is a body that was changed on the way.
    tally.wrong_body.extend(id for id in wrote if id not in ours)
    return tally


def _judge(outcome: Outcome, wrote: Counter[Wrote], tally: Tally, *, may_repeat: bool, excused: bool) -> None:
    """Enter one request in the columns that it belongs to."""
    id = outcome.id
    if outcome.acked and not wrote["done"]:
        tally.acked_not_handled.append(id)
    if not may_repeat and (wrote["started"] > 1 or wrote["done"] > 1):
        tally.handled_twice.append(id)
    if outcome.refusal and wrote:
        tally.refused_but_handled.append(id)
    if outcome.end == "answered" and not outcome.right:
        tally.wrong_body.append(id)
    if outcome.end == "closed" and outcome.reused and not wrote:
        # The server closed an idle connection while the request was on its way to it: nobody has read it.
        tally.raced.append(id)
    elif outcome.end in ("closed", "cut", "silent") and not excused:
        tally.unanswered.append(id)
    if not outcome.acked and not outcome.refusal:
        tally.unknown.append(id)
