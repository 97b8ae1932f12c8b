"""What an endpoint has done: how often, how long, how often it failed. Counting costs less than a microsecond.

Durations go into buckets that grow with their size, four to each doubling, so that percentiles are right to within a
fifth. Knows numbers; it knows no requests.
"""

from natsweb.errors import phrase

__all__ = ["Counter"]

_BUCKETS = 128


class Counter:
    """Counts of one endpoint; durations are nanoseconds."""

    __slots__ = ("_buckets", "errors", "last_error", "requests", "spent", "started")

    def __init__(self) -> None:
        self.started = self.requests = 0
        self.reset()

    def __repr__(self) -> str:
        return f"<Counter: {self.requests} requests, {self.errors} errors, {self.in_flight} in flight>"

    def reset(self) -> None:
        """Begin again at zero."""
        self.started = self.in_flight  # what is under way goes on
        self.requests = 0
        self.errors = 0
        self.spent = 0
        self.last_error = ""
        self._buckets = [0] * _BUCKETS

    @property
    def in_flight(self) -> int:
        """How many have started and not finished."""
        return self.started - self.requests

    def finish(self, nanoseconds: int, status: int) -> None:
        """Count one request that was started; a status from 500 on is an error."""
        self.requests += 1
        self.spent += nanoseconds
        size = nanoseconds >> 10
        length = size.bit_length()
        index = (length << 2) | ((size >> (length - 3)) & 3) if length > 2 else size
        self._buckets[index if index < _BUCKETS else _BUCKETS - 1] += 1
        if status >= 500:
            self.errors += 1
            self.last_error = f"{status} {phrase(status)}"

    def abandon(self) -> None:
        """Take back the start of a request that is not counted after all."""
        self.started -= 1

    def percentile(self, share: float) -> int:
        """Return the duration that `share` (0 to 1) of all requests did not exceed; 0 without requests."""
        left = self.requests * share
        for index, count in enumerate(self._buckets):
            left -= count
            if count and left <= 0:
                return _upper_end(index)
        return 0


def _upper_end(index: int) -> int:
    """Return the longest duration of a bucket, in nanoseconds."""
    length, quarter = index >> 2, index & 3
    if length <= 2:
        return (index + 1) << 10
    return ((4 + quarter + 1) << (length - 3)) << 10
