"""One exchange on a raw socket, byte by byte: streams, WebSockets, and clients that are slow on purpose.

It tells whether an answer came to its end, which is all that counts where it comes in pieces.
"""

import asyncio
import contextlib
import os
import socket
import time
from urllib.parse import urlsplit

from .ledger import End, Outcome

__all__ = ["Line", "handshake", "new_id"]


_CLOSED, _CLOSE_WAIT = 7, 8  # of Linux


def new_id() -> str:
    """Return an id that no other request has."""
    return os.urandom(8).hex()


class Line:
    """A connection: send bytes, and read the answer to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received = 0
        self.head = b""
        self.tail = b""

    @classmethod
    async def open(cls, url: str, *, limit: int = 65536) -> "Line":
        """Connect; no more than `limit` bytes wait here to be read, or little more."""
        address = urlsplit(url)
        found = socket.create_connection((address.hostname, address.port or 80))
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit)
        found.setblocking(False)
        return cls(*await asyncio.open_connection(sock=found, limit=limit))

    @property
    def is_closed(self) -> bool:
        """Whether the other side has closed or reset the connection, as the system knows it without reading."""
        if self._writer.transport.is_closing():
            return True
        state = self._writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state in (_CLOSED, _CLOSE_WAIT)

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    def get(self, target: str, *fields: str) -> None:
        """Send a GET."""
        lines = "".join(f"{field}\r\n" for field in fields)
        self.send(f"GET {target} HTTP/1.1\r\nHost: chaos\r\n{lines}\r\n".encode())

    async def read_head(self) -> int:
        """Read the head of an answer and return its status, 0 if there is none."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.head = await self._reader.readuntil(b"\r\n\r\n")
        return int(self.head.split(b" ")[1]) if self.head else 0

    async def read_some(self) -> bytes:
        """Return what has come, b"" at the end of the connection, however it ended."""
        try:
            data = await self._reader.read(65536)
        except OSError:
            return b""
        self.received += len(data)
        self.tail = (self.tail + data)[-64:]
        return data

    async def read_stream(self) -> bool:
        """Read a chunked answer whose head is read; True if its end came, False if the connection was closed in it."""
        while not self.tail.endswith(b"\r\n0\r\n\r\n") and self.tail != b"0\r\n\r\n":
            if not await self.read_some():
                return False
        return True

    async def closed(self) -> None:
        """Wait until the other side has closed."""
        while await self.read_some():
            pass

    def close(self) -> None:
        """Close."""
        self._writer.close()

    async def stream(self, id: str, target: str, *fields: str) -> Outcome:
        """Ask for a stream and read it to its end: an answer that was cut off has the end `cut`."""
        sent = time.monotonic()
        self.get(target, *fields)
        status = await self.read_head()
        whole = bool(status) and (b"chunked" not in self.head.lower() or await self.read_stream())
        end: End = "answered" if whole else "cut" if status else "closed"
        self.close()
        return Outcome(id, sent, time.monotonic(), end, status, what=f"GET {target.partition('?')[0]}")


def handshake(target: str) -> bytes:
    """Return the handshake of a WebSocket."""
    return (
        f"GET {target} HTTP/1.1\r\nHost: chaos\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
