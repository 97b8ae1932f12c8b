"""The credit machine of a stream, and the parts of WebSocket messages: counting, and nothing else (docs/wire.md).

A receiver allows a total number of bytes since the start, and raises it as bytes are used up; a sender never sends
more than that. Totals make lost and repeated credits harmless: the next one says it all. Both halves are plain
counters: no messages, no bus, no clocks, no waiting.
"""

from natsweb.errors import WebSocketClosed

__all__ = ["CHUNK", "MAX_MESSAGE", "WINDOW", "Assembler", "Inflow", "Outflow", "next_part"]

CHUNK = 64 * 1024  # the largest payload of one data message
WINDOW = 512 * 1024
MAX_MESSAGE = 16 * 1024 * 1024

_TEXT, _TEXT_PART, _BYTES, _BYTES_PART = b"t", b"T", b"b", b"B"


class Outflow:
    """The sending half: how many bytes may go, and how many have gone."""

    __slots__ = ("allowed", "sent")

    def __init__(self, allowed: int = 0, sent: int = 0) -> None:
        self.allowed = allowed
        self.sent = sent

    def __repr__(self) -> str:
        return f"<Outflow: {self.sent} of {self.allowed} bytes>"

    @property
    def room(self) -> int:
        """How many bytes may go now."""
        return self.allowed - self.sent

    def allow(self, total: int) -> bool:
        """Take a credit: bytes since the start; True if it lets more go than before."""
        if total <= self.allowed:
            return False
        self.allowed = total
        return True

    def take(self, size: int, largest: int = CHUNK) -> int:
        """Return how many of `size` bytes go now, and count them as sent; 0 if a credit has to come first."""
        room = self.allowed - self.sent
        count = size if size <= largest else largest
        if count > room:
            count = room if room > 0 else 0
        self.sent += count
        return count


class Inflow:
    """The receiving half: how many bytes were allowed, have come, and have been used up."""

    __slots__ = ("allowed", "received", "used", "window")

    def __init__(self, window: int = WINDOW, received: int = 0) -> None:
        self.window = window
        self.received = received
        self.used = received
        self.allowed = received + window

    def __repr__(self) -> str:
        return f"<Inflow: {self.used} used of {self.received} of {self.allowed} bytes>"

    def receive(self, size: int) -> bool:
        """Count bytes that have come; False if they are more than was allowed."""
        self.received += size
        return self.received <= self.allowed

    def use(self, size: int) -> int | None:
        """Count bytes as used up; return the total to allow, whenever half of the window is free."""
        self.used += size
        total = self.used + self.window
        if total - self.allowed < (self.window + 1) // 2:
            return None
        self.allowed = total
        return total


# ── WebSocket messages ───────────────────────────────────────────────────────────────────────────


def next_part(data: bytes, start: int, is_text: bool, room: int) -> tuple[bytes, int]:
    """Return the part of a message that goes next, `room` bytes (one or more) at most, and where the one after starts.

    The first byte says what it is, and whether more follows: the message is over at the length of `data`.
    """
    stop = start + min(room, CHUNK) - 1
    if len(data) <= stop:
        return (_TEXT if is_text else _BYTES) + data[start:], len(data)
    return (_TEXT_PART if is_text else _BYTES_PART) + data[start:stop], stop


class Assembler:
    """Puts parts together to whole messages, of `largest` bytes at most."""

    __slots__ = ("_is_text", "_largest", "_parts", "_size")

    def __init__(self, largest: int = MAX_MESSAGE) -> None:
        self._largest = largest
        self._parts: list[bytes] = []
        self._size = 0
        self._is_text: bool | None = None

    def __repr__(self) -> str:
        return f"<Assembler: {self._size} bytes of a message>"

    def take(self, part: bytes) -> str | bytes | None:
        """Return the message that a part completes, None if more is to come.

        Raises `WebSocketClosed` with the code to close with: 1009 for a message that is too large, 1007 for text that
        is not UTF-8, 1002 for a part that makes no sense (RFC 6455 section 7.4.1).
        """
        kind = part[:1]
        is_text = kind in (_TEXT, _TEXT_PART)
        if kind not in (_TEXT, _TEXT_PART, _BYTES, _BYTES_PART) or self._is_text not in (None, is_text):
            raise WebSocketClosed(1002, "a part of a message makes no sense")
        self._size += len(part) - 1
        if self._size > self._largest:
            raise WebSocketClosed(1009, f"a message is larger than {self._largest} bytes")
        self._parts.append(part[1:])
        self._is_text = is_text
        if kind in (_TEXT_PART, _BYTES_PART):
            return None
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._size, self._is_text = [], 0, None
        return _decode(data) if is_text else data


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WebSocketClosed(1007, "a text message is not UTF-8") from None
