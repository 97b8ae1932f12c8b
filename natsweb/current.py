"""The request that is being handled, for what acts on its behalf: calls of other services go on with its time and ids.

Nothing is noted, and nothing spent, until something in this process is interested: see `want`. Knows requests; it
knows no handlers.
"""

from contextvars import ContextVar, Token
from typing import TypeAlias

from natsweb.messages import Call, Request

__all__ = ["Limited", "current_request", "leave", "passed_on", "take_up", "want"]

Before: TypeAlias = "Token[Call | Request | None]"

#: Fields of a request that go on with what is sent on its behalf: its id, W3C trace context and baggage.
_PASSED_ON = (b"x-request-id", b"traceparent", b"tracestate", b"baggage")

_under_way: ContextVar[Call | Request | None] = ContextVar("natsweb_request", default=None)

# Whether requests are to be noted. Whoever answers them looks here, since to note one takes 0.1 us (tests/benchmarks).
is_wanted = False


class Limited:
    """A `Channel` that knows when its answer is due."""

    __slots__ = ()

    def time_left(self) -> float:
        """Return how many seconds are left for the answer; infinity if it has no bound, or is there."""
        raise NotImplementedError


def want() -> None:
    """Have requests noted from now on, in all of this process."""
    global is_wanted
    is_wanted = True


def take_up(call: Call | Request) -> Before:
    """Note a request as the one that this task is about; return what `leave` takes."""
    return _under_way.set(call)


def leave(before: Before) -> None:
    """Go back to what this task was about before."""
    _under_way.reset(before)


def current_request() -> Call | Request | None:
    """Return the request that this task is about, None outside of handlers."""
    return _under_way.get()


def passed_on(request: Call | Request) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a request that go on with what is sent on its behalf."""
    return [field for field in request.headers.fields if field[0] in _PASSED_ON]
