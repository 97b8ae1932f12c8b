"""What an endpoint has done, against the plain way of counting it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.counters import Counter

law = settings(deadline=None, max_examples=300)

MICROSECOND = 1_000
SECOND = 1_000_000_000

durations = st.lists(st.integers(0, 100) | st.integers(0, SECOND) | st.integers(0, 1500 * SECOND), min_size=1)


def counted(*requests):
    """Return a counter that has seen requests: durations, or pairs of duration and status."""
    counter = Counter()
    for one in requests:
        counter.started += 1
        counter.finish(*(one if isinstance(one, tuple) else (one, 200)))
    return counter


def naive(values, share):
    """Return the smallest value that `share` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share - 1e-9) - 1)]


@law
@given(durations, st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0]))
def test_percentile_is_near_the_naive_one(values, share):
    """A percentile is never below the true one, and at most a quarter (or a microsecond) above."""
    exact = naive(values, share)
    assert exact <= counted(*values).percentile(share) <= exact * 1.25 + 2 * MICROSECOND


@law
@given(durations)
def test_percentiles_rise(values):
    """A larger share has no smaller percentile."""
    counter = counted(*values)
    found = [counter.percentile(step / 20) for step in range(21)]
    assert found == sorted(found)


@law
@given(durations, st.randoms(use_true_random=False))
def test_order_does_not_matter(values, random):
    """The same durations in another order give the same counts."""
    shuffled = random.sample(values, len(values))
    one, other = counted(*values), counted(*shuffled)
    assert (one.spent, one.requests, one.percentile(0.5)) == (other.spent, other.requests, other.percentile(0.5))


@pytest.mark.parametrize("duration", [0, 1, 1023, 1024, 4095, 4096, SECOND, 3600 * SECOND, 10**15, 2**80])
def test_any_duration_is_counted(duration):
    """The shortest and the longest have a bucket; what is longer than half an hour is in the last one."""
    counter = counted(duration)
    assert counter.spent == duration
    assert counter.percentile(1.0) > 0
    if duration < 2000 * SECOND:
        assert duration <= counter.percentile(0.5) <= duration * 1.25 + 2 * MICROSECOND


def test_nothing_has_no_percentiles():
    """Without requests all is zero."""
    counter = Counter()
    assert (counter.requests, counter.errors, counter.in_flight, counter.percentile(0.5)) == (0, 0, 0, 0)
    assert counter.last_error == ""


@pytest.mark.parametrize(
    ("status", "last"),
    [
        *((status, "") for status in [200, 204, 302, 304, 400, 404, 422, 429, 499]),
        (500, "500 Internal Server Error"),
        (503, "503 Service Unavailable"),
        (504, "504 Gateway Timeout"),
        (599, "599 Error"),
    ],
)
def test_errors_are_statuses_from_500_on(status, last):
    """What the caller did wrong is no error of the endpoint's."""
    counter = counted((1, status))
    assert (counter.requests, counter.errors, counter.last_error) == (1, int(status >= 500), last)


def test_last_error_is_the_last():
    """A success in between leaves the last error alone."""
    counter = counted((1, 500), (1, 504), (1, 200), (1, 404))
    assert (counter.requests, counter.errors, counter.last_error) == (4, 2, "504 Gateway Timeout")


def test_in_flight():
    """What has started is in flight until it is finished or abandoned."""
    counter = Counter()
    counter.started += 3
    assert counter.in_flight == 3
    counter.finish(5, 200)
    counter.abandon()
    assert (counter.in_flight, counter.requests, counter.spent) == (1, 1, 5)
    assert repr(counter) == "<Counter: 1 requests, 0 errors, 1 in flight>"


def test_reset():
    """A reset counter is as a new one."""
    counter = counted((SECOND, 500), (5, 200))
    counter.reset()
    fresh = Counter()
    for name in ("requests", "errors", "spent", "last_error", "started", "in_flight"):
        assert getattr(counter, name) == getattr(fresh, name)
    assert counter.percentile(0.99) == 0
    counter.started += 1
    counter.finish(7, 200)
    assert (counter.requests, counter.spent, counter.in_flight) == (1, 7, 0)


def test_reset_while_requests_are_under_way():
    """What is in flight stays in flight."""
    counter = Counter()
    counter.started += 1
    counter.reset()
    assert counter.in_flight == 1
    counter.finish(1, 200)
    assert counter.in_flight == 0
