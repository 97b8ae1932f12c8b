"""The server's side of the NATS protocol: control lines by line, messages by the length that their line says.

In place of nats-py's parser, whose patterns run over the end of a line: a header block that begins with digits,
which any peer may send, poses as a length there and deafens the client. Messages of subscriptions in `raw` go
straight to their callback; all else takes nats-py's way.
"""

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
        """Take bytes off the socket; raises `ProtocolError` for what no server says.

        Long and flat, since every message goes through here (tests/benchmarks, gateway and service).
        """
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        buffer = b"".join(self._chunks) if len(self._chunks) > 1 else data
        generation, raw, size = self._generation, self.raw, len(buffer)
        start, self._need = 0, 0
        while (end := buffer.find(b"\r\n", start)) >= 0:
            words = buffer[start:end].split(b" ")  # a subject may have any other white space in it
            operation = words[0]
            headed = operation == b"HMSG"
            if headed or operation == b"MSG":
                body = end + 2
                try:
                    stop = body + int(words[-1])
                    middle = body + int(words[-2]) if headed else body
                    reply = words[3] if len(words) == 5 + headed else b""
                except (ValueError, IndexError):
                    raise nats.errors.ProtocolError from None
                if size < stop + 2:
                    self._need = stop + 2 - start
                    break
                header = buffer[body:middle] if headed else None
                start = stop + 2
                receive = raw.get(words[2])
                if receive is not None:
                    try:
                        receive(words[1], reply, header, buffer[middle:stop])
                    except Exception:
                        logger.exception("receiving a message failed")
                    continue
                await self._client._process_msg(int(words[2]), words[1], reply, buffer[middle:stop], header)
            else:
                line, start = buffer[start:end], end + 2
                await self._control(operation, line)
            if self._generation is not generation:
                return  # reset meanwhile: what is left was said on another connection
        else:
            if size - start > _MAX_LINE:
                raise nats.errors.ProtocolError
        self._chunks, self._have = ([buffer[start:]], size - start) if start < size else ([], 0)

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
