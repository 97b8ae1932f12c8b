"""Bytes past nats-py's queues: frames go straight to the socket, messages straight from the parser to their callback.

All that is published in one turn of the event loop leaves in one write. It stands on a few insides of nats-py,
which `fits` checks; connecting, TLS, login, reconnecting and the replay of subscriptions stay nats-py's.
"""

import asyncio
import contextlib
from typing import Any

from nats.aio import transport
from nats.aio.client import Client
from nats.protocol.parser import Parser

from natsweb.bus import ReceiveParts, Subscription
from natsweb.errors import NatsDown, Overloaded
from natsweb.natsbus.client import RawClient
from natsweb.natsbus.link import MAX_LINE, LinkSubscription, NatsBus, check_message, to_message
from natsweb.settings import Nats

__all__ = ["FastBus", "fits"]

_MAX_UNSENT = 64 * 1024 * 1024
_HIGH_WATER = 256 * 1024
_AHEAD, _BUSY = 32, 64


def fits(settings: Nats) -> bool:
    """Tell whether this nats-py is one that `FastBus` knows, and the servers are reached by TCP."""
    return _SEAMS and not any(url.startswith(("ws:", "wss:")) for url in settings.urls)


def _check_seams() -> bool:
    """Look at the insides of nats-py that `FastBus` touches."""
    client = Client()
    tcp: Any = transport.TcpTransport
    wanted = ("_ps", "_remove_sub", "_flush_pending", "_transport", "_status", "_max_payload", "_process_msg")
    return (
        all(hasattr(client, name) for name in wanted)
        and isinstance(client._ps, Parser)
        and hasattr(tcp(), "_io_writer")
    )


_SEAMS = _check_seams()
_CONNECTED = Client.CONNECTED


class FastBus(NatsBus):
    """A bus over raw frames."""

    def __init__(self, settings: Nats, name: str) -> None:
        super().__init__(settings, name)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._scheduled = False
        self._ahead = _AHEAD  # the length of `_out` at which it is written in the middle of a turn; 0 for never
        self._waiter: asyncio.Task[None] | None = None
        self._relief: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def _new_client(self) -> RawClient:
        client = await super()._new_client()
        self._shorten(client)
        return client

    def _on_up(self, client: RawClient) -> None:
        super()._on_up(client)
        self._shorten(client)

    def _shorten(self, client: RawClient) -> None:
        """Let messages skip the task that reads them from the socket's reader, which is new with each connection."""
        reader: Any = getattr(client._transport, "_io_reader", None)
        if isinstance(reader, asyncio.StreamReader):
            client.frames.shortcut(reader)

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message: see `Bus.publish`. Also raises `Overloaded` when too much waits to be sent."""
        self.post(subject.encode("latin-1"), payload, header, reply.encode("latin-1"))

    def post(self, subject: bytes, payload: bytes, header: bytes | None = None, reply: bytes = b"") -> None:
        """Send a message: see `Bus.post`. Also raises `Overloaded` when too much waits to be sent.

        Flat, with what `_put` does, since every message goes through here (tests/benchmarks).
        """
        client = self._client
        if not self._up or client._status != _CONNECTED:
            raise NatsDown("there is no connection to NATS")
        size = len(payload)
        if header is None:
            frame = b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, size, payload)
        else:
            length = len(header)
            size += length
            frame = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, length, size, header, payload)
        whole = len(frame)
        if size > client._max_payload or whole - size > MAX_LINE:
            check_message(subject, reply, size, client._max_payload)
        if self._out_bytes > _MAX_UNSENT:
            raise Overloaded("the connection to NATS is congested")
        self._out.append(frame)
        self._out_bytes += whole
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write_soon)
        elif len(self._out) == self._ahead:
            self._ahead = 0
            self._write()

    def _put(self, frame: bytes) -> None:
        self._out.append(frame)
        self._out_bytes += len(frame)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._write_soon)

    @property
    def is_congested(self) -> bool:
        """Whether more waits to be sent than the socket takes at once: see `Bus.is_congested`."""
        return self._out_bytes > _HIGH_WATER

    async def relieved(self) -> None:
        """Wait until the socket has taken what waits: see `Bus.relieved`."""
        while self._out_bytes > _HIGH_WATER and self.is_connected:
            self._relief = self._relief or self._loop.create_future()
            await asyncio.wait([self._relief])

    def _relieve(self) -> None:
        relief, self._relief = self._relief, None
        if relief is not None and not relief.done():
            relief.set_result(None)

    def _write_soon(self) -> None:
        """Write at the end of a turn of the event loop, so that all messages of it go together.

        All but the first ones of a long turn, which have gone ahead: the next process works on them while this one is
        still making the others, else 64 requests would go round together and each process wait for the one before.
        Where far more come in a turn, all are at work in any case, and another write only costs.
        """
        self._scheduled = False
        self._ahead = _AHEAD if len(self._out) <= _BUSY else 0
        self._write()

    def _write(self) -> None:
        """Write all that waits, unless the socket does not take it: then it waits where it can be taken back."""
        writer = self._socket()
        if not self._out or writer is None or writer.transport.is_closing() or not self._client.is_connected:
            return
        transport = writer.transport
        if self._out_bytes <= _HIGH_WATER and transport.get_write_buffer_size() <= _HIGH_WATER:
            out, self._out = self._out, []
            self._out_bytes = 0
            transport.write(out[0] if len(out) == 1 else b"".join(out))
            self._relieve()
            return
        sent = 0
        while sent < len(self._out) and transport.get_write_buffer_size() <= _HIGH_WATER:
            transport.write(self._out[sent])
            self._out_bytes -= len(self._out[sent])
            sent += 1
        del self._out[:sent]
        if self._out_bytes <= _HIGH_WATER:
            self._relieve()
        if self._out and (self._waiter is None or self._waiter.done()):
            self._waiter = asyncio.create_task(self._write_later(writer), name="natsweb bus writer")

    async def _write_later(self, writer: asyncio.StreamWriter) -> None:
        """Write what waits as the socket takes it."""
        with contextlib.suppress(OSError):
            while self._out and not writer.transport.is_closing():
                await writer.drain()
                if writer.transport.get_write_buffer_size() > _HIGH_WATER:
                    await asyncio.sleep(0.001)
                self._write()

    def _socket(self) -> asyncio.StreamWriter | None:
        found: Any = getattr(self._client._transport, "_io_writer", None)
        return found if isinstance(found, asyncio.StreamWriter) else None

    def _take_back(self) -> list[bytes]:
        out, self._out, self._out_bytes = self._out, [], 0
        self._relieve()
        return [words[2] for frame in out if len(words := frame.split(b" ", 3)) == 4]

    async def subscribe_parts(self, subject: str, receive: ReceiveParts, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject`: see `Bus.subscribe_parts`."""
        subscription = LinkSubscription(self, subject, queue, lambda message: None)
        subscription.receive_parts = receive
        return await self._add(subscription)

    async def _subscribe(self, client: RawClient, subscription: LinkSubscription) -> None:
        subscription.current = current = await client.subscribe(subscription.subject, subscription.queue)
        receive = subscription.receive
        if receive == self._inbox.receive:
            client.frames.raw[b"%d" % current._id] = self._inbox.take
            return
        if subscription.receive_parts is not None:
            client.frames.raw[b"%d" % current._id] = subscription.receive_parts
            return

        def take(subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
            receive(to_message(subject, reply, header, payload))

        client.frames.raw[b"%d" % current._id] = take

    def _unsubscribe(self, subscription: LinkSubscription) -> None:
        current = subscription.current
        if current is not None:
            self._client._remove_sub(current._id)  # so that it is not subscribed again after a reconnect
            if self.is_connected:
                self._put(b"UNSUB %d\r\n" % current._id)

    def _forget(self, subscription: LinkSubscription) -> None:
        if subscription.current is not None:
            self._client.frames.raw.pop(b"%d" % subscription.current._id, None)
            subscription.current = None

    async def _all_sent(self) -> None:
        await self._client._flush_pending(force_flush=True)
        while self._out:
            self._write()
            if self._out:
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Send what is pending, close the connection; requests in flight end with `Disconnected`."""
        await super().close()
        if self._waiter is not None:
            self._waiter.cancel()
            await asyncio.gather(self._waiter, return_exceptions=True)
