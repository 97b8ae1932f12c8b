"""The server's side of the NATS protocol: control lines by line, messages by the length that their line says.

In place of nats-py's parser, whose patterns run over the end of a line: a header block that begins with digits,
which any peer may send, poses as a length there and deafens the client. Messages of subscriptions in `raw` go
straight from the socket to their callback; all else takes nats-py's way.
"""

import asyncio
import json
import logging
from typing import Any, NamedTuple

import nats.errors
from nats.protocol.parser import Parser

from natsweb.bus import ReceiveParts

__all__ = ["Frames"]

logger = logging.getLogger("natsweb.nats")

_MAX_LINE = 1024 * 1024  # an INFO of a large cluster is the longest


class _Other(NamedTuple):
    """Something that is not raw: where it begins and ends, the words of its line, and subject, reply, payload, header.

    Without a message it is the server's own word, or nothing that a server says.
    """

    start: int
    stop: int
    words: list[bytes]
    message: tuple[bytes, bytes, bytes, bytes | None] | None = None


class Frames(Parser):
    """Splits what the server says; `raw` holds callbacks by subscription id, in bytes."""

    def __init__(self, client: Any) -> None:
        self.raw: dict[bytes, ReceiveParts] = {}
        self._busy = 0  # how many reading tasks are in `parse`: one, or that of a lost connection as well
        self._client = client
        super().__init__(client)

    def reset(self) -> None:
        """Forget what has been read: a new connection begins."""
        super().reset()
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._generation = object()

    async def parse(self, data: bytes = b"") -> None:
        """Take bytes that the reading task has got; raises `ProtocolError` for what no server says."""
        generation = self._generation
        self._busy += 1
        try:
            buffer = self._join(data)
            other = self._receive(buffer, 0)
            while other is not None:
                await self._leave(other)
                if self._generation is not generation:
                    return  # reset meanwhile: what is left was said on another connection
                other = self._receive(buffer, other.stop)
        finally:
            self._busy -= 1

    def _join(self, data: bytes) -> bytes:
        """Return all that has not been received yet; nothing while a message is not whole."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return b""
        buffer = b"".join(self._chunks) if len(self._chunks) > 1 else data
        self._chunks, self._have, self._need = [], 0, 0
        return buffer

    def _receive(self, buffer: bytes, start: int) -> _Other | None:
        """Receive the raw messages from `start` on, up to what is none; what is not whole waits for more.

        Long and flat, since every message goes through here (tests/benchmarks, gateway and service).
        """
        raw, size = self.raw, len(buffer)
        while (end := buffer.find(b"\r\n", start)) >= 0:
            words = buffer[start:end].split(b" ")  # a subject may have any other white space in it
            headed = words[0] == b"HMSG"
            body = end + 2
            if not headed and words[0] != b"MSG":
                return _Other(start, body, words)
            try:
                stop = body + int(words[-1])
                middle = body + int(words[-2]) if headed else body
                reply = words[3] if len(words) == 5 + headed else b""
                receive = raw.get(words[2])
            except (ValueError, IndexError):
                return _Other(start, body, words)
            if size < stop + 2:
                self._need = stop + 2 - start
                break
            header = buffer[body:middle] if headed else None
            if receive is None:
                return _Other(start, stop + 2, words, (words[1], reply, buffer[middle:stop], header))
            start = stop + 2
            try:
                receive(words[1], reply, header, buffer[middle:stop])
            except Exception:
                logger.exception("receiving a message failed")
        else:
            if size - start > _MAX_LINE:
                return _Other(start, size, [b""])
        if start < size:
            self._chunks, self._have = [buffer[start:]], size - start
        return None

    async def _leave(self, other: _Other) -> None:
        """Leave to nats-py what is not raw; raises `ProtocolError` for what is nothing."""
        if other.message is None:
            await self._control(other.words)
        elif other.words[2].isdigit():
            await self._client._process_msg(int(other.words[2]), *other.message)
        else:
            raise nats.errors.ProtocolError

    def shortcut(self, reader: asyncio.StreamReader) -> None:
        """Take what the socket gives as it comes, instead of waking the task that reads it from this reader.

        The task gets what is not raw, with all that comes until it has done with it.
        """
        if "feed_data" in vars(reader) or not hasattr(reader, "_buffer"):
            return
        generation, wake = self._generation, reader.feed_data
        waiting: Any = reader

        def feed(data: bytes) -> None:
            if self._busy or waiting._buffer or self._generation is not generation:
                wake(data)
                return
            buffer = self._join(data)
            other = self._receive(buffer, 0)
            if other is not None:
                wake(buffer[other.start :])

        waiting.feed_data = feed

    async def _control(self, words: list[bytes]) -> None:
        operation = words[0]
        if operation == b"PING":
            await self._client._process_ping()
        elif operation == b"PONG":
            await self._client._process_pong()
        elif operation == b"INFO":
            await self._client._process_info(json.loads(b" ".join(words[1:])))
        elif operation == b"-ERR":
            await self._client._process_err(b" ".join(words[1:]).decode("latin-1").strip().lower())
        elif operation != b"+OK":
            raise nats.errors.ProtocolError
