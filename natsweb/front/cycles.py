"""Exchanges of the ASGI door: uvicorn's cycles, where they have to be ours.

A cycle does not close the connection itself, and HTTP/1.0 gets no chunks. Knows ASGI messages; it parses nothing.
"""

import asyncio
import sys
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["Closing", "CycleTransport", "OldCycle"]


class Closing(Protocol):
    """What a cycle needs of its connection."""

    transport: asyncio.Transport

    def close_behind_answer(self) -> None:
        """Close when the answer is out."""


class OldCycle(RequestResponseCycle):
    """An exchange of the ASGI door for HTTP/1.0, which has no chunks: without a length, closing ends the answer."""

    async def send(self, message: Any) -> None:
        """Send a message of the application: see ASGI."""
        if message["type"] == "http.response.start":
            if not any(name.lower() == b"content-length" for name, _ in message.get("headers", ())):
                self.chunked_encoding = False
                self.expected_content_length = sys.maxsize
        elif not message.get("more_body", False) and self.expected_content_length > sys.maxsize // 2:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class CycleTransport:
    """What an exchange of the ASGI door sees of the socket: closing is the connection's business."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Closing) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        """Write bytes of an answer."""
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        """Tell whether the connection closes."""
        return self._connection.transport.is_closing()

    def close(self) -> None:
        """Close behind the answer."""
        self._connection.close_behind_answer()
