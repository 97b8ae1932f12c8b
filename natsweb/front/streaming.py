"""An answer of the fast door whose body comes in pieces: straight from the stream to the socket, without a task.

Chunked, unless its length is known or the client speaks HTTP/1.0, whose answers end with the connection (RFC 9112
section 6). What the socket does not take is not acknowledged to the service: a slow reader slows its writer, and nobody
else. An answer that is cut off, or has another length than it says, closes the connection without a last chunk.
"""

import re
from typing import Protocol

from natsweb.flights import Opened
from natsweb.pipes import Ending

__all__ = ["Line", "StreamedAnswer"]

_LENGTH = re.compile(rb"(?:^|\n)content-length: ([0-9]+)\r\n").search


class Line(Protocol):
    """The connection that an answer goes out on."""

    def put(self, data: bytes) -> None:
        """Write, soon."""

    @property
    def is_full(self) -> bool:
        """Whether the client does not read as fast as it is written to."""
        ...

    def answered(self, keep_alive: bool) -> None:
        """Hear that the answer is out."""

    def cut_off(self, *, visibly: bool) -> None:
        """Close in the middle of an answer; `visibly` where only a reset tells it from the end."""


class StreamedAnswer:
    """One answer under way on `line`; `head` are the lines that every answer has, status line first."""

    __slots__ = ("_chunked", "_held", "_keep_alive", "_left", "_line", "_opened", "_over")

    def __init__(self, line: Line, opened: Opened, head: bytes, *, keep_alive: bool, is_old: bool) -> None:
        self._line = line
        self._opened = opened
        found = _LENGTH(opened.lines)
        self._left = None if found is None else int(found[1])
        self._chunked = found is None and not is_old
        self._keep_alive = keep_alive and (self._chunked or found is not None)
        self._held = 0
        self._over = False
        close = b"" if self._keep_alive else b"connection: close\r\n"
        frame = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        line.put(b"%b%b%b%b\r\n" % (head, opened.lines, frame, close))

    def __repr__(self) -> str:
        return f"<StreamedAnswer {self._opened.status}: {self._held} bytes wait for the client>"

    def data(self, data: bytes) -> None:
        """Write bytes of the body: see `Sink`."""
        if self._over:
            return
        size = len(data)
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                self._cut()
                return
        if self._chunked:
            self._line.put(b"%x\r\n%b\r\n" % (size, data))
        elif data:
            self._line.put(data)
        if self._line.is_full:
            self._held += size
        else:
            self._opened.stream.used(size)

    def resume(self) -> None:
        """Go on: the client reads again."""
        held, self._held = self._held, 0
        if held:
            self._opened.stream.used(held)

    def ended(self, ending: Ending) -> None:
        """Write the end, or cut the answer off: see `Sink`."""
        if self._over:
            return
        if ending is not None or self._left:
            self._cut()
            return
        self._over = True
        self._opened.flight.close()
        if self._chunked:
            self._line.put(b"0\r\n\r\n")
        self._line.answered(self._keep_alive)

    def abandon(self) -> None:
        """Write nothing more: the connection is gone."""
        self._over = True

    def _cut(self) -> None:
        self._over = True
        self._opened.flight.drop()
        self._line.cut_off(visibly=not self._chunked and self._left is None)
