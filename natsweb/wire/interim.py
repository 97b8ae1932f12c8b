"""What goes to and fro while a request is under way: accepts, credit, ends (docs/wire.md, streams and control).

Control has a header block and an empty payload; data has no header block at all, so that bytes are never taken for
control. No bus, no sockets, no clocks.
"""

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from natsweb.errors import BadReply
from natsweb.wire.fields import DIGITS, ENDED, FLOW, START, STATUS, STREAM, TIMEOUT, field_lines, split_block

__all__ = [
    "CANCEL",
    "Control",
    "End",
    "decode_control",
    "encode_accept",
    "encode_close",
    "encode_continue",
    "encode_end",
    "encode_flow",
    "encode_upgrade",
    "is_opening",
]

#: Whoever gets it stops what it does for the other side.
CANCEL = START + b"Nw-Flow: -\r\n\r\n"

_STATUS = re.compile(rb"[1-5][0-9]{2}").fullmatch
_OPENING = re.compile(rb"(?i)\r\nnw-(?:stream:[ \t]*1|status:[ \t]*10[0-2])[ \t]*\r\n").search
_CLOSE_CODES = range(1000, 5000)


class End(NamedTuple):
    """How a stream ends: `ok` with its number of bytes, `error` with words, `close` with a code and a reason."""

    kind: Literal["ok", "error", "close"]
    number: int = 0
    text: str = ""


class Control(NamedTuple):
    """A control message, taken apart; what it does not say is None."""

    status: int | None = None
    stream: bool = False
    flow: int | None = None
    cancel: bool = False
    end: End | None = None
    timeout: float | None = None
    lines: bytes = b""


def encode_accept(timeout_ms: int | None = None) -> bytes:
    """Return the word that a request is being worked on; `timeout_ms` asks for more time."""
    more = b"" if timeout_ms is None else b"Nw-Timeout: %d\r\n" % timeout_ms
    return b"%bNw-Status: 102\r\n%b\r\n" % (START, more)


def encode_continue(total: int) -> bytes:
    """Return the word that pins a streamed body to one member, with its first credit."""
    return b"%bNw-Status: 100\r\nNw-Flow: %d\r\n\r\n" % (START, total)


def encode_upgrade(lines: bytes, total: int) -> bytes:
    """Return the word that opens a WebSocket, with field lines for the client and the first credit."""
    return b"%bNw-Status: 101\r\nNw-Flow: %d\r\n%b\r\n" % (START, total, lines)


def encode_flow(total: int) -> bytes:
    """Return the credit of `total` bytes since the start."""
    return b"%bNw-Flow: %d\r\n\r\n" % (START, total)


def encode_end(total: int, error: str | None = None) -> bytes:
    """Return the end of a stream of `total` bytes, or its error in a few words."""
    if error is None:
        return b"%bNw-End: ok;%d\r\n\r\n" % (START, total)
    return b"%bNw-End: error;%b\r\n\r\n" % (START, _words(error, 200))


def encode_close(code: int, reason: str) -> bytes:
    """Return the end of a WebSocket: its code and reason (RFC 6455 section 7.4)."""
    return b"%bNw-End: close;%d;%b\r\n\r\n" % (START, code, _words(reason, 123))


def _words(text: str, limit: int) -> bytes:
    """Return text as one line of UTF-8, cut to `limit` bytes between characters."""
    line = "".join(char if char.isprintable() else " " for char in text).encode("utf-8", "replace")
    return line[:limit].decode("utf-8", "ignore").encode()


def is_opening(header: bytes | None) -> bool:
    """Tell whether a message is an accept or the head of a stream: its sender would like to be told to stop."""
    return header is not None and _OPENING(header) is not None


@lru_cache(512)
def decode_control(header: bytes) -> Control:
    """Return what a control message says; raises `BadReply` for anything malformed."""
    ours, headers = split_block(field_lines(header, BadReply))
    status, flow, ms = ours.get(STATUS), ours.get(FLOW), ours.get(TIMEOUT)
    if status is not None and not _STATUS(status):
        raise BadReply("the service's reply has no valid status")
    if (flow not in (None, b"-") and not DIGITS(flow or b"")) or (ms is not None and not DIGITS(ms)):
        raise BadReply("a control message of the other side makes no sense")
    return Control(
        None if status is None else int(status),
        ours.get(STREAM) == b"1",
        None if flow is None or flow == b"-" else int(flow),
        flow == b"-",
        None if ENDED not in ours else _decode_end(ours[ENDED]),
        None if ms is None else int(ms) / 1000,
        headers.block,
    )


def _decode_end(said: bytes) -> End:
    kind, _, rest = said.partition(b";")
    if kind == b"ok" and DIGITS(rest):
        return End("ok", int(rest))
    if kind == b"error":
        return End("error", 0, rest.decode("utf-8", "replace"))
    code, _, reason = rest.partition(b";")
    if kind == b"close" and DIGITS(code) and int(code) in _CLOSE_CODES:
        return End("close", int(code), reason.decode("utf-8", "replace"))
    raise BadReply("a stream ends in a way that makes no sense")
