"""The handles of a stream: what is behind a request or a reply that has more than two messages.

A `Stream` is one side of it: it hears what the other side sends, keeps both halves of the credit machine, and knows
when the other process is gone. `Reader` and `SocketPipe` are what handlers wait on. Buffers are bounded by the credit
that was given. Knows the bus and the wire; it knows no HTTP.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeAlias

from natsweb.beats import Peer
from natsweb.bus import Bus
from natsweb.errors import BadReply, Disconnected, HTTPError, WebSocketClosed
from natsweb.headers import Headers, HeaderSource
from natsweb.streams import CHUNK, MAX_MESSAGE, WINDOW, Assembler, Inflow, Outflow, next_part
from natsweb.wire import CANCEL, Control, End, decode_control, encode_close, encode_end, encode_flow, encode_upgrade

__all__ = ["Ending", "Reader", "Sink", "SocketPipe", "Stream"]

#: How a stream ends: None for well, else why not, or the goodbye of a WebSocket.
Ending: TypeAlias = HTTPError | WebSocketClosed | None


class Sink(Protocol):
    """Takes what comes in; must not block."""

    def data(self, data: bytes) -> None:
        """Take bytes; whoever has used them up says so with `Stream.used`."""

    def ended(self, ending: Ending) -> None:
        """Take the end, once."""


class Stream:
    """One side of an exchange with the process that has the subject `to` in its inbox.

    `own` is this side's subject, if messages have to carry it, `window` how many bytes may come before they are used,
    `received` and `sent` what went with the first message. `on_cancel` is called when the other side wants nothing any
    more, or is gone.
    """

    __slots__ = (
        "_bus",
        "_heard_end",
        "_own",
        "_peer",
        "_room",
        "_why",
        "flows",
        "inflow",
        "on_cancel",
        "outflow",
        "sink",
        "to",
    )

    def __init__(
        self,
        bus: Bus,
        to: bytes,
        *,
        own: bytes = b"",
        window: int = WINDOW,
        received: int = 0,
        credit: int = 0,
        sent: int = 0,
        on_cancel: Callable[[], None] = lambda: None,
    ) -> None:
        self._bus = bus
        self.to = to
        self._own = own
        self._peer: Peer | None = bus.pulse.join(to, self)
        self._room: asyncio.Future[None] | None = None
        self._why: HTTPError | WebSocketClosed | None = None
        self._heard_end = False
        self.flows = False
        self.inflow = Inflow(window, received)
        self.outflow = Outflow(credit, sent)
        self.on_cancel = on_cancel
        self.sink: Sink = Reader(self)

    def __repr__(self) -> str:
        return f"<Stream with {self.to.decode('latin-1')}: in {self.inflow!r}, out {self.outflow!r}>"

    @property
    def is_over(self) -> bool:
        """Whether the other side has said the end."""
        return self._heard_end

    # ── what comes ──

    def hear(self, header: bytes | None, payload: bytes) -> None:
        """Take a message of the other side."""
        if self._peer is None:
            return
        self._peer.heard = True
        if header is not None:
            try:
                self.control(decode_control(header))
            except BadReply as error:
                self._end(error)
        elif not self._heard_end:
            if self.inflow.receive(len(payload)):
                self.sink.data(payload)
            else:
                self._end(Disconnected("the other side has sent more than it was allowed to"))

    def control(self, control: Control) -> None:
        """Take a control message."""
        if control.flow is not None and self.outflow.allow(control.flow):
            self._wake()
        if control.end is not None:
            self._end(self._ending(control.end))
        if control.cancel:
            self.fail_with(Disconnected("nobody waits for this any more"))
            self.on_cancel()

    def _ending(self, end: End) -> Ending:
        if end.kind == "close":
            return WebSocketClosed(end.number, end.text)
        if end.kind == "error":
            return Disconnected(end.text or "the stream was cut off")
        if end.number != self.inflow.received:
            return Disconnected("bytes of the stream were lost on the way")
        return None

    def _end(self, ending: Ending) -> None:
        """Pass the end on, once; a goodbye and a failure are the end of the other direction as well."""
        if self._heard_end:
            return
        self._heard_end = True
        if ending is not None:
            self._why = self._why or ending
            self._wake()
        self.sink.ended(ending)

    def lose(self, why: str) -> None:
        """End all of it: the other process is gone, or the connection to it."""
        self.fail_with(Disconnected(f"the stream was cut off: {why}"))
        self.on_cancel()

    def fail_with(self, error: HTTPError | WebSocketClosed) -> None:
        """End all of it on this side; nothing is sent."""
        self._why = self._why or error
        self._wake()
        self._end(error)

    def end_well(self) -> None:
        """End what comes, as if the other side had done so."""
        self._end(None)

    def used(self, size: int) -> None:
        """Say that bytes which came have been used up, so that others may come."""
        total = self.inflow.use(size)
        if total is not None and not self._heard_end:
            self._post(encode_flow(total))

    def remind(self) -> None:
        """Say the credit again, so that the other side hears of us."""
        self._post(encode_flow(self.inflow.allowed))

    # ── what goes ──

    @property
    def largest(self) -> int:
        """Largest payload of one data message, in bytes."""
        return min(CHUNK, self._bus.max_payload)

    async def write(self, data: bytes) -> None:
        """Send bytes as the other side takes them; raises why not if it has gone."""
        start, size, largest = 0, len(data), self.largest
        while start < size:
            count = self.outflow.take(size - start, largest)
            if not count or self._why is not None:
                await self.wait_for_room()
                continue
            self._bus.post(self.to, data if count == size else data[start : start + count], None, self._own)
            start += count
            if self._bus.is_congested:
                await self._bus.relieved()
        if self._why is not None:
            raise self._why

    def write_now(self, data: bytes) -> bool:
        """Send a few bytes if they may go at once; False if they may not."""
        if self._why is not None or self.outflow.room < len(data):
            return False
        self.outflow.take(len(data))
        self._bus.post(self.to, data, None, self._own)
        return True

    async def wait_for_room(self) -> None:
        """Wait until at least one more byte may go; raises why not if that will never be."""
        while self._why is None and self.outflow.room <= 0:
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await self._room
        if self._why is not None:
            raise self._why

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def end(self, error: str | None = None) -> None:
        """Say that all has been sent, or in a few words why the rest never will."""
        self._post(encode_end(self.outflow.sent, error), last=error is not None)

    def say(self, header: bytes) -> None:
        """Send a control message; without a connection it goes nowhere."""
        self._post(header)

    def cancel(self) -> None:
        """Tell the other side to stop."""
        self._post(CANCEL, last=True)

    def _post(self, header: bytes, *, last: bool = False) -> None:
        if self._peer is None:
            return
        try:
            self._bus.post(self.to, b"", header, self._own)
        except HTTPError as error:
            self._why = self._why or error
            if last:
                self._bus.post_later(self.to, header, self._own)

    def release(self) -> None:
        """Let go: nothing is sent or heard any more."""
        if self._peer is not None:
            self._bus.pulse.leave(self._peer, self)
            self._peer = None
            self._why = self._why or Disconnected("the stream is over")
            self._wake()
            self._end(self._why)


class Reader:
    """Bytes of a stream, in order, for one who waits for them."""

    __slots__ = ("_chunks", "_ended", "_ending", "_stream", "_waiter")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._chunks: deque[bytes] = deque()
        self._ended = False
        self._ending: Ending = None
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Reader: {len(self._chunks)} chunks wait{', ended' if self._ended else ''}>"

    def data(self, data: bytes) -> None:
        """Take bytes: see `Sink`."""
        self._chunks.append(data)
        self._wake()

    def ended(self, ending: Ending) -> None:
        """Take the end: see `Sink`."""
        self._ended, self._ending = True, ending
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_over(self) -> bool:
        """Whether no more will come."""
        return self._ended

    async def read(self) -> bytes:
        """Return what has come, as it came; empty at the end. Raises why the stream has not ended well."""
        while not self._chunks:
            if self._ended:
                if self._ending is not None:
                    raise self._ending
                return b""
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("somebody else waits for this stream already; let one task read it")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunk = self._chunks.popleft()
        self._stream.used(len(chunk))
        return chunk

    def drain_into(self, sink: Sink) -> None:
        """Hand what waits here to another sink, which takes all that follows."""
        self._stream.sink = sink
        while self._chunks:
            sink.data(self._chunks.popleft())
        if self._ended:
            sink.ended(self._ending)


class SocketPipe:
    """A WebSocket over a stream: whole messages both ways (docs/wire.md, WebSocket)."""

    def __init__(
        self, stream: Stream, *, subprotocols: list[str] | None = None, largest: int = MAX_MESSAGE, open: bool = False
    ) -> None:
        self._stream = stream
        self._reader = Reader(stream)
        before = stream.sink
        stream.sink = self._reader
        if isinstance(before, Reader):
            before.drain_into(self._reader)  # what the other side has said at once is there already
        self._assembler = Assembler(largest)
        self._sending = asyncio.Lock()
        self._closed = False
        self.is_accepted = open
        self.subprotocols = subprotocols or []
        self.on_accept: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<SocketPipe: {'closed' if self._closed else 'open' if self.is_accepted else 'not accepted'}>"

    async def accept(self, subprotocol: str | None = None, headers: HeaderSource = ()) -> None:
        """Answer the upgrade; a second time does nothing."""
        if self.is_accepted:
            return
        fields = Headers(headers).without("sec-websocket-protocol")
        if subprotocol is not None:
            fields = fields + {"sec-websocket-protocol": subprotocol}
        self.is_accepted = True
        self._stream.say(encode_upgrade(fields.block, self._stream.inflow.allowed))
        self.on_accept()

    async def receive(self) -> str | bytes:
        """Return the next message; raises `WebSocketClosed`, with 1006 for a connection that was lost."""
        while True:
            try:
                part = await self._reader.read()
                message = self._assembler.take(part)
            except HTTPError as error:
                raise WebSocketClosed(1006, error.detail) from None
            except WebSocketClosed as closed:
                if not self._reader.is_over:
                    await self.close(closed.code, closed.reason)
                raise
            if message is not None:
                return message

    async def send(self, data: str | bytes) -> None:
        """Send a message, when the other side has room for it; raises `WebSocketClosed`."""
        is_text = isinstance(data, str)
        raw = data.encode() if isinstance(data, str) else bytes(data)
        stream = self._stream
        async with self._sending:
            if self._closed:
                raise WebSocketClosed(1006, "this side has closed it already")
            start = -1
            try:
                while start < len(raw):
                    await stream.wait_for_room()
                    room = min(stream.outflow.room, stream.largest)
                    part, start = next_part(raw, max(start, 0), is_text, room)
                    stream.write_now(part)
            except HTTPError as error:
                raise WebSocketClosed(1006, error.detail) from None
            except asyncio.CancelledError:
                if start > 0:  # the other side has a part, and would take the next message for the rest
                    self.hang_up(1011, "a message was cut off")
                raise

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye, once, also to whoever waits for a message here; never raises."""
        self.hang_up(code, reason)

    def hang_up(self, code: int, reason: str) -> None:
        """Say goodbye, and let whoever talks on this side know."""
        self.say_goodbye(code, reason)
        self._stream.fail_with(WebSocketClosed(code, reason))

    def say_goodbye(self, code: int, reason: str) -> None:
        """Say goodbye, once, for one who does not wait."""
        if not self._closed:
            self._closed = True
            self._stream.say(encode_close(code, reason))
