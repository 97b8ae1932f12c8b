"""The meter itself: it flags each kind of violation, knows how a request ended, and finds none in a short real run."""

import asyncio
from pathlib import Path

import pytest

from .case import Scale
from .cases import CASES
from .clients import Load
from .ledger import Book, Entry, Outcome, compare, read_book
from .report import summary, update_page
from .run import Report, run


def told(status: int, reason: str = "", **more: object) -> Outcome:
    """Return the outcome of request `a`, answered with a status."""
    return Outcome("a", 1.0, 1.5, "answered", status, reason, **more)  # type: ignore[arg-type]


def unanswered(end: str, *, reused: bool = False) -> Outcome:
    """Return the outcome of request `a`, which ended without an answer."""
    return Outcome("a", 1.0, 1.5, end, reused=reused)  # type: ignore[arg-type]


def book(*words: str, id: str = "a") -> list[Entry]:
    """Return entries of one request."""
    return [Entry(word, id, 7, 1.1) for word in words]  # type: ignore[arg-type]


HANDLED = book("started", "done")


@pytest.mark.parametrize(
    ("outcome", "entries", "columns"),
    [
        (told(200), HANDLED, set()),
        (told(200), [], {"acked but not handled"}),
        (told(200), book("started"), {"acked but not handled"}),
        (told(200), book("started", "cancelled"), {"acked but not handled"}),
        (told(200), HANDLED + HANDLED, {"handled twice"}),
        (told(504, "timeout"), book("started", "cancelled", "started"), {"handled twice"}),
        (told(200, right=False), HANDLED, {"wrong body"}),
        (told(503, right=False), [], {"wrong body"}),
        (told(200), HANDLED + book("started", id="b"), {"wrong body"}),
        (told(404, "no_service"), [], set()),
        (told(404, "no_service"), book("started"), {"refused but handled"}),
        (told(405, "method_not_allowed"), HANDLED, {"refused but handled"}),
        (told(413, "too_large"), HANDLED, {"refused but handled"}),
        (told(429), HANDLED, {"refused but handled"}),
        (told(503, "overloaded"), HANDLED, {"refused but handled"}),
        (told(503, "no_service"), HANDLED, {"refused but handled"}),
        (told(503, "nats_down"), HANDLED, {"refused but handled"}),
        (told(503, "stopping"), HANDLED, set()),
        (told(502, "disconnected"), HANDLED, set()),
        (told(504, "timeout"), HANDLED, set()),
        (unanswered("refused"), [], set()),
        (unanswered("refused"), HANDLED, {"refused but handled"}),
        (unanswered("closed", reused=True), [], set()),
        (unanswered("closed", reused=True), HANDLED, {"no answer"}),
        (unanswered("closed"), [], {"no answer"}),
        (unanswered("cut", reused=True), HANDLED, {"no answer"}),
        (unanswered("silent", reused=True), HANDLED, {"no answer"}),
    ],
)
def test_each_violation_is_flagged(outcome: Outcome, entries: list[Entry], columns: set[str]) -> None:
    """One request beside its entries: exactly the columns that it breaks are not 0."""
    tally = compare("made up", [outcome], entries)
    assert {name for name, ids in tally.must_be_zero.items() if ids} == columns


def test_the_counts() -> None:
    """Sent, answered, executed, unknown and the worst wait are counted beside the columns."""
    outcomes = [
        told(200),
        Outcome("b", 1.0, 3.0, "answered", 504, "timeout"),
        Outcome("c", 1.0, 1.1, "answered", 503, "nats_down"),
        Outcome("d", 1.0, 9.0, "closed", reused=True),
    ]
    tally = compare("made up", outcomes, HANDLED + book("started", id="b"))
    assert (tally.sent, tally.acked, tally.executed, tally.worst_ms) == (4, 1, 2, 2000)
    assert tally.others == {"503 nats_down": 1, "504 timeout": 1, "closed": 1}
    assert (tally.unknown, tally.raced) == (["b", "d"], ["d"])


def test_the_book_keeps_every_line(tmp_path: Path) -> None:
    """What several writers append is read again; a file that is not there has no entries."""
    path = tmp_path / "book"
    assert read_book(path) == []
    books = [Book(path), Book(path)]
    for number in range(100):
        books[number % 2].write("started", f"x-{number}")
    for one in books:
        one.close()
    assert [entry.id for entry in read_book(path)] == [f"x-{number}" for number in range(100)]


def test_the_table_in_the_documentation(tmp_path: Path) -> None:
    """The table replaces what is between the marks, and nothing else; a page without marks is an error."""
    report = Report(compare("made up", [told(200)], HANDLED), {"restarts": 2}, ["no luck"], ["a line"], 1.0)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- chaos:begin -->\nold\n<!-- chaos:end -->\nafter\n")
    update_page(page, [report])
    update_page(page, [report])
    assert page.read_text().count("| made up | 1 | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 500 | none |") == 1
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    assert "old" not in page.read_text()
    assert "BROKEN made up: no luck" in summary([report])
    page.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        update_page(page, [report])


@pytest.mark.parametrize(
    ("answer", "label", "right"),
    [
        (b"", "closed", True),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "cut", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "cut", True),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"id":"none"}', "0", False),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"id":"none"}', "200", False),
        (b'HTTP/1.1 503 X\r\nContent-Length: 31\r\n\r\n{"status":503,"reason":"a word"}', "0", False),
        (b'HTTP/1.1 503 X\r\nContent-Length: 32\r\n\r\n{"status":503,"reason":"a word"}', "503 a word", True),
        (b"gibberish\r\n\r\n", "0", False),
    ],
)
async def test_a_client_knows_how_a_request_ended(answer: bytes, label: str, right: bool) -> None:
    """A server that says this and hangs up is seen through."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with Load(f"http://{host}:{port}", 1) as load:
            while not load.outcomes:
                await asyncio.sleep(0.001)
    assert {(one.label, one.right) for one in load.outcomes} == {(label, right)}


async def test_a_client_leaves_when_it_is_refused() -> None:
    """Nobody listens: that is no unanswered request, since none was sent."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
    async with Load(f"http://{host}:{port}", 2, leave=True) as load:
        assert await load.all_left(5)
    assert [one.label for one in load.outcomes] == ["refused", "refused"]


async def test_a_short_rolling_restart_loses_nothing() -> None:
    """Three instances restart once each under sixteen clients: every request is answered 200 and done once."""
    [case] = [case for case in CASES if case.name == "rolling-restart"]
    report = await run(case, Scale(rounds=1, seconds=0.2, clients=16))
    assert report.is_good, summary([report])
    assert report.figures["restarts"] == 3
    assert report.tally.sent == report.tally.acked == report.tally.executed > 200
