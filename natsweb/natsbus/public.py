"""Bytes by nats-py's public API: slower, for a nats-py whose insides `fast` does not know, and for `ws://`.

nats-py's `publish` is a coroutine and ours is not, so one task hands messages over, in order. It writes header
lines anew as `name: value`; everything else about them arrives as it was given.
"""

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from nats.aio.msg import Msg

from natsweb.bus import Message
from natsweb.errors import NatsDown, Overloaded
from natsweb.natsbus.client import RawClient, RawHeaders, say
from natsweb.natsbus.link import LinkSubscription, NatsBus, check_message
from natsweb.settings import Nats

__all__ = ["PublicBus"]

logger = logging.getLogger("natsweb.nats")

_MAX_UNSENT = 64 * 1024 * 1024
_HIGH_WATER = 1024 * 1024


class _Latin1(str):
    """Header text that reaches the socket byte for byte through `Client.publish`."""

    __slots__ = ()

    def strip(self, *_: Any) -> "_Latin1":
        return self

    def translate(self, *_: Any) -> "_Latin1":
        return self

    def encode(self, *_: Any, **__: Any) -> bytes:
        return super().encode("latin-1")


class _Lines:
    """A header block in the shape that `Client.publish` reads: repeated names stay repeated.

    nats-py writes `name: value` whatever the space around the colon was; `size` is the size of what it writes.
    """

    def __init__(self, block: bytes) -> None:
        self._lines = [line for line in block.split(b"\r\n")[1:-2] if b":" in line]
        self.size = 12 + sum(len(name) + len(value.encode()) + 4 for name, value in self.items())

    def items(self) -> Iterator[tuple[str, str]]:
        for line in self._lines:
            name, _, value = line.partition(b":")
            yield name.decode("ascii"), _Latin1(value.strip(b" \t").decode("latin-1"))


class PublicBus(NatsBus):
    """A bus over `Client.publish` and `Client.subscribe`."""

    def __init__(self, settings: Nats, name: str) -> None:
        super().__init__(settings, name)
        self._unsent: deque[Callable[[], Awaitable[None]]] = deque()
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect; raises `NatsUnreachable` when no server takes us."""
        self._writer = asyncio.create_task(self._write_all(), name="natsweb bus writer")
        await super().start()

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message: see `Bus.publish`. Also raises `Overloaded` when too much waits to be sent."""
        if not isinstance(payload, bytes):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        if not self.is_connected:
            raise NatsDown("there is no connection to NATS")
        lines = None if header is None else _Lines(header)
        size = len(payload) + max(len(header or b""), 0 if lines is None else lines.size)
        check_message(subject, reply, size, self.max_payload)
        if self._unsent_bytes + self._client.pending_data_size > _MAX_UNSENT:
            raise Overloaded("the connection to NATS is congested")
        self._unsent_bytes += size
        self._put(functools.partial(self._publish, self._client, size, subject, payload, reply, lines))

    @property
    def is_congested(self) -> bool:
        """Whether more than is good waits to be sent: see `Bus.is_congested`."""
        return self._unsent_bytes > _HIGH_WATER

    async def relieved(self) -> None:
        """Wait until nearly all has been handed over: see `Bus.relieved`."""
        while self._unsent_bytes > _HIGH_WATER and self.is_connected:
            await asyncio.sleep(0.001)

    async def _publish(self, client: RawClient, size: int, *message: Any) -> None:
        self._unsent_bytes -= size
        await client.publish(*message)

    def _put(self, send: Callable[[], Awaitable[None]]) -> None:
        self._unsent.append(send)
        self._idle.clear()
        self._wake.set()

    async def _write_all(self) -> None:
        """Hand messages to nats-py in order; its `publish` is a coroutine, ours is not."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsent:
                try:
                    await self._unsent.popleft()()
                except Exception as error:  # whatever one message does, the next ones go out
                    self._on_error(self._client, f"a message was not sent: {say(error)}")
            self._idle.set()

    async def _subscribe(self, client: RawClient, subscription: LinkSubscription) -> None:
        async def receive(message: Msg) -> None:
            block = self._block(message.headers, message.data)
            try:
                subscription.receive(Message(message.subject, message.reply, block, message.data))
            except Exception:
                logger.exception("receiving on %s failed", subscription.subject)

        subscription.current = await client.subscribe(subscription.subject, subscription.queue, cb=receive)

    def _block(self, headers: Any, payload: bytes) -> bytes | None:
        """Return the header block of a message of nats-py's."""
        return headers.block if isinstance(headers, RawHeaders) else None

    def _unsubscribe(self, subscription: LinkSubscription) -> None:
        client, current = self._client, subscription.current
        if current is None:
            return

        async def unsubscribe() -> None:
            if client.is_connected:
                await client._send_unsubscribe(current._id)
            else:
                await current.unsubscribe()  # so that nats-py does not subscribe it again

        self._put(unsubscribe)

    async def _all_sent(self) -> None:
        await self._idle.wait()
        await asyncio.sleep(0)  # nats-py writes a ping ahead of what waits for its flusher; let that go first

    async def _all_received(self) -> None:
        for subscription in self._subscriptions:
            while subscription.current is not None and subscription.current.pending_msgs:
                await asyncio.sleep(0)

    async def close(self) -> None:
        """Send what is pending, close the connection; requests in flight end with `Disconnected`."""
        await super().close()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
