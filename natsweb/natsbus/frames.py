"""The server's side of the NATS protocol: control lines by line, messages by the length that their line says.

In place of nats-py's parser, whose patterns run over the end of a line: a header block that begins with digits,
which any peer may send, poses as a length there and deafens the client. Messages of subscriptions in `raw` go
straight from the socket to their callback; all else takes nats-py's way.
"""

import asyncio
import json
import logging
from typing import Any

import nats.errors
from nats.protocol.parser import Parser

from natsweb.bus import ReceiveParts

__all__ = ["Frames"]

logger = logging.getLogger("natsweb.nats")

_MAX_LINE = 1024 * 1024  # an INFO of a large cluster is the longest


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
            rest = self.take(data)
            while rest:
                rest = await self._first(rest)
                if self._generation is not generation:
                    return  # reset meanwhile: what is left was said on another connection
                rest = self.take(rest) if rest else b""
        finally:
            self._busy -= 1

    def take(self, data: bytes) -> bytes:
        """Receive the raw messages in these bytes, up to what is none: that comes back, with all behind it.

        Long and flat, since every message goes through here (tests/benchmarks, gateway and service).
        """
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return b""
        buffer = b"".join(self._chunks) if len(self._chunks) > 1 else data
        raw, size = self.raw, len(buffer)
        start, self._need = 0, 0
        self._chunks, self._have = [], 0
        while (end := buffer.find(b"\r\n", start)) >= 0:
            words = buffer[start:end].split(b" ")  # a subject may have any other white space in it
            headed = words[0] == b"HMSG"
            if not headed and words[0] != b"MSG":
                return buffer[start:]
            body = end + 2
            try:
                stop = body + int(words[-1])
                middle = body + int(words[-2]) if headed else body
                reply = words[3] if len(words) == 5 + headed else b""
                receive = raw.get(words[2])
            except (ValueError, IndexError):
                return buffer[start:]
            if size < stop + 2:
                self._need = stop + 2 - start
                break
            if receive is None:
                return buffer[start:]
            start = stop + 2
            try:
                receive(words[1], reply, buffer[body:middle] if headed else None, buffer[middle:stop])
            except Exception:
                logger.exception("receiving a message failed")
        else:
            if size - start > _MAX_LINE:
                return buffer[start:]
        if start < size:
            self._chunks, self._have = [buffer[start:]], size - start
        return b""

    async def _first(self, buffer: bytes) -> bytes:
        """Have nats-py do what the first line of a buffer says, and return what comes behind it."""
        end = buffer.find(b"\r\n")
        if end < 0:
            raise nats.errors.ProtocolError
        line, body = buffer[:end], end + 2
        words = line.split(b" ")
        headed = words[0] == b"HMSG"
        if not headed and words[0] != b"MSG":
            await self._control(words[0], line)
            return buffer[body:]
        try:
            stop = body + int(words[-1])
            middle = body + int(words[-2]) if headed else body
            reply = words[3] if len(words) == 5 + headed else b""
            number = int(words[2])
        except (ValueError, IndexError):
            raise nats.errors.ProtocolError from None
        header = buffer[body:middle] if headed else None
        await self._client._process_msg(number, words[1], reply, buffer[middle:stop], header)
        return buffer[stop + 2 :]

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
            elif rest := self.take(data):
                wake(rest)

        waiting.feed_data = feed

    async def _control(self, operation: bytes, line: bytes) -> None:
        if operation == b"PING":
            await self._client._process_ping()
        elif operation == b"PONG":
            await self._client._process_pong()
        elif operation == b"INFO":
            await self._client._process_info(json.loads(line[5:]))
        elif operation == b"-ERR":
            await self._client._process_err(line[5:].decode("latin-1").strip().lower())
        elif operation != b"+OK":
            raise nats.errors.ProtocolError
