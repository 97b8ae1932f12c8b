"""What a case is: a name, a function that plays it on a stage, and what it finds on the way.

It returns what its clients saw. What it finds, figures and broken promises, goes into its `Findings`.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from .ledger import Entry, Outcome
from .stage import Stage
from .watch import Stalls

__all__ = ["Case", "Findings", "Judge", "Scale"]

Judge = Callable[[list[Entry]], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a case is: how often the fault comes, seconds of load before and after it, number of clients.

    `minutes` is for the one case that looks for what grows.
    """

    rounds: int
    seconds: float = 1.0
    clients: int = 64
    minutes: float = 30.0


@dataclass(slots=True)
class Findings:
    """What a case finds: `figures` to record, `broken` promises in words, both besides the columns.

    `deadline` is the time in seconds within which every answer has to be there, `excused` and `repeats` are those of
    `compare`. `stalls` are those of the machine, which nobody is blamed for.
    """

    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    deadline: float = 10.0
    excused: set[str] = field(default_factory=set)
    repeats: bool = False
    stalls: Stalls = field(default_factory=Stalls)
    say: Callable[[str], None] = lambda _: None

    def expect(self, holds: object, words: str) -> None:
        """Enter a broken promise unless it holds."""
        if not holds:
            self.broken.append(words)

    def wait_ms(self, outcome: Outcome) -> float:
        """Return how long a client waited, in milliseconds, without the time in which the machine stood still."""
        return outcome.wait_ms - 1000 * self.stalls.seconds(outcome.sent, outcome.ended)

    def expect_ends(self, outcomes: Iterable[Outcome], allowed: set[str], where: str) -> None:
        """Enter every kind of end that is not among the allowed ones; a 2xx always is."""
        odd = Counter(one.label for one in outcomes if not one.acked and one.label not in allowed)
        for label, count in sorted(odd.items()):
            self.broken.append(f"{where}: {count} x {label}")

    def worst(self, name: str, value: float) -> None:
        """Keep the largest of the values that come under a name."""
        self.figures[name] = round(max(value, self.figures.get(name, 0.0)), 1)

    def add(self, name: str, value: float) -> None:
        """Add to the value under a name."""
        self.figures[name] = self.figures.get(name, 0) + value


Play = Callable[[Stage, Scale, Findings], Awaitable[tuple[list[Outcome], Judge | None]]]


class Case(NamedTuple):
    """A case: its name, what it does in words, how often by default, and the function that plays it.

    The function returns the outcomes, and a further judge for what only the book can tell, if there is one. A `long`
    case goes on for the minutes of its scale.
    """

    name: str
    words: str
    rounds: int
    play: Play
    long: bool = False

    def limit(self, scale: Scale) -> float:
        """Return the seconds after which the case has failed."""
        return 240.0 * max(1.0, scale.rounds / self.rounds, scale.seconds) + self.long * 60 * scale.minutes
