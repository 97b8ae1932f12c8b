"""One request under way in a service: answered at most once, by a message or by a stream.

Until it is answered its caller may be told that it is being worked on, may say that nobody waits any more, and may send
the rest of its body; a WebSocket goes both ways. What handlers see of all this is the `Channel`. Knows the wire and its
own caller; which requests are taken, and who runs them, is the worker's business.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import ClassVar, Protocol

from natsweb.bus import Asked, Bus, Reply
from natsweb.current import Limited
from natsweb.errors import HandlerFailed, HTTPError, NatsDown, NotAcceptable, ReplyTooLarge, TooLarge, phrase
from natsweb.messages import Call, Pieces, Response, Result
from natsweb.pipes import Reader, SocketPipe, Stream
from natsweb.proxy_wire import ProxyWire
from natsweb.replies import problem
from natsweb.wire import (
    encode_accept,
    encode_continue,
    encode_open,
    encode_response,
    is_no_responders,
)

__all__ = ["Desk", "Job", "collect", "goodbye"]

logger = logging.getLogger("natsweb.worker")

# Seconds in which an error before the first piece is still an ordinary answer: a feed may have nothing to say.
_FEED_WAIT, _HEAD_WAIT = 0.5, 2.0
_MARGIN = 1024
_GOODBYE = 5.0  # seconds that a handler has after its WebSocket has ended


class Desk(Protocol):
    """What a job needs of the worker that has it."""

    bus: Bus
    #: The origin's format, in place of natsweb's own.
    wire: ProxyWire | None

    def streams(self, job: "Job") -> None:
        """Hear that a job streams from now on, and has no deadline any more."""


class Job(Asked, Limited):
    """One request under way; `caller` is the subject that its answer goes to, empty if nobody wants one."""

    __slots__ = (
        "_desk",
        "_goodbye",
        "_reader",
        "_socket",
        "accepted",
        "answered",
        "call",
        "caller",
        "ends_well",
        "finishes",
        "gone",
        "started",
        "stream",
        "task",
        "window",
    )

    hears: ClassVar[bool] = True
    stays: ClassVar[bool] = True

    def __init__(self, desk: Desk, call: Call, caller: bytes) -> None:
        self._desk = desk
        self.call = call
        self.caller = caller
        self.window = call.window if caller else 0
        self.accepted = False
        self.answered = False
        self.started = time.perf_counter_ns()
        self.timeout = 0.0
        self.task: asyncio.Task[None] | None = None
        self.stream: Stream | None = None
        self._reader: Reader | None = None
        self._socket: SocketPipe | None = None
        self._goodbye: asyncio.TimerHandle | None = None
        self.finishes = False
        self.gone = False
        self.ends_well = False

    def __repr__(self) -> str:
        return f"<Job {self.call.method} {self.call.raw_path}: {'answered' if self.answered else 'under way'}>"

    # ── both ways ──

    def connect(self) -> Stream:
        """Give this side of the exchange a subject of its own, once."""
        if self.stream is None:
            self._desk.bus.open(self)
            first = len(self.call.body) if self.call.more else 0
            self.stream = Stream(
                self._desk.bus,
                self.caller,
                own=self.reply,
                received=first,
                credit=self.window,
                on_cancel=self.leave,
            )
        return self.stream

    def accept(self) -> None:
        """Tell the caller that the request is being worked on; it may say from then on that nobody waits."""
        if self.window and not self.accepted and not self.answered:
            self.accepted = True
            self.connect().say(encode_accept())

    def begin(self) -> None:
        """Make ready for the rest of a body, or for a WebSocket."""
        stream = self.connect()
        stream.flows = True
        if self.call.upgrade:
            offered = ",".join(self.call.headers.getlist("sec-websocket-protocol"))
            words = [word.strip() for word in offered.split(",") if word.strip()]
            self._socket = SocketPipe(stream, subprotocols=words)
            self._socket.on_accept = self._accepted
        else:
            self._reader = Reader(stream)
            stream.sink = self._reader

    def _accepted(self) -> None:
        self._stop_waiting()
        self.answered = True
        self._count(101)

    def hear(self, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """Take a message of the caller: more of the body, credit, or that nobody waits any more."""
        if is_no_responders(header):
            self.leave()
        elif self.stream is not None:
            if header is None and not self.answered:  # while a body comes, the time counts anew
                self.due = max(self.due, asyncio.get_running_loop().time() + self.timeout)
            self.stream.hear(header, payload)
            if self._socket is not None and self.stream.is_over:
                self._say_goodbye()

    def settle(self, outcome: Reply | HTTPError) -> None:
        """Take the loss of the connection to NATS: no stream survives it."""
        if self.stream is not None and isinstance(outcome, HTTPError):
            self.stream.fail_with(outcome)
            if self.answered and not self.gone:
                self.stream.end("its connection to NATS was lost")
            if self._reader is not None or self._socket is not None or self.answered:
                self.leave()

    def leave(self) -> None:
        """Stop working for a caller who is gone; a handler that has to finish goes on."""
        if self.gone:
            return
        self.gone = True
        self.answered = True
        if self._socket is not None:
            self._say_goodbye()
            return
        if not self.finishes:
            self.cancel()

    def _say_goodbye(self) -> None:
        """Leave a while to whoever talks on a WebSocket that has ended: it hears of that, and cleans up."""
        self._goodbye = self._goodbye or asyncio.get_running_loop().call_later(_GOODBYE, self.cancel)

    def cancel(self) -> None:
        """Cancel the handler at its next await."""
        if self.task is not None:
            self.task.cancel()

    def let_go(self) -> None:
        """Forget all that the exchange holds: it is over."""
        if self._goodbye is not None:
            self._goodbye.cancel()
        if self.stream is not None:
            self.stream.release()
            self._desk.bus.drop(self)
        self.call.channel = None
        self.task = None  # no cycle stays behind for the garbage collector

    # ── the channel of the handler ──

    @property
    def socket(self) -> SocketPipe | None:
        """The WebSocket, if that is what the request asks for."""
        return self._socket

    async def end_socket(self, response: Response) -> None:
        """Say goodbye on a WebSocket whose handler has ended, or answer an upgrade that it has not taken."""
        socket = self._socket
        if socket is None or not socket.is_accepted:
            refused = HTTPError(403, "the WebSocket was refused", reason="refused")
            await self.send(problem(refused) if response.status < 400 else response)
        else:
            await socket.close(*goodbye(response))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the rest of the body as it comes, once."""
        if self._reader is not None:
            if self.stream is not None and not self.gone:  # not before somebody wants it (Expect: 100-continue)
                self.accepted = True
                self.stream.say(encode_continue(self.stream.inflow.allowed))
            while chunk := await self._reader.read():
                yield chunk

    def time_left(self) -> float:
        """Return how many seconds are left for the answer: see `Limited`."""
        return math.inf if self.answered else self.due - asyncio.get_running_loop().time()

    def extend(self, seconds: float) -> None:
        """Have the answer due `seconds` from now, here and at the caller."""
        if self.answered:
            return
        self.timeout = seconds
        self.due = asyncio.get_running_loop().time() + seconds
        if self.window:
            self.accepted = True
            self.connect().say(encode_accept(round(seconds * 1000)))

    # ── the answer ──

    async def send(self, response: Response) -> None:
        """Answer: in one message, or with a stream that ends before this returns."""
        pieces = response.pieces
        if pieces is not None:
            try:
                await self._send_pieces(response, pieces)
            finally:
                await pieces.close()
        elif self.window and len(response.body) > self._room(response) and self.call.method != "HEAD":
            await self._send_large(response)
        else:
            self.answer(response)

    def _room(self, response: Response) -> int:
        """Return how many bytes of a body go into one message behind the head of a response."""
        return self._desk.bus.max_payload - len(response.headers.block) - _MARGIN

    async def _send_large(self, response: Response) -> None:
        """Send a body that is larger than a NATS message may be."""
        if self.answered:
            return
        stream, body = self.connect(), response.body
        self._open(response.with_headers({"content-length": str(len(body))}))
        try:
            await stream.write(body)
            stream.end()
        except HTTPError as error:
            logger.debug("the answer to %s %s was not sent to its end: %s", *self._who, error.detail)
        except asyncio.CancelledError:
            self._cut(stream, "the service stops")
            raise

    async def _send_pieces(self, response: Response, pieces: Pieces) -> None:
        if self.answered:  # nobody waits for it; but a handler that has to finish does so while it yields
            if self.finishes:
                async for _ in pieces.source:
                    pass
            return
        if not self.window or self.call.method == "HEAD":
            self.answer(await collect(response, pieces, self.call.method, self._room(response)))
            return
        stream = self.connect()
        wait = _FEED_WAIT if pieces.feed else _HEAD_WAIT
        head = asyncio.get_running_loop().call_later(wait, self._open, response)
        beat = _Heartbeat(stream, pieces.heartbeat, lambda: self.answered)
        self.ends_well = pieces.feed
        began = False
        try:
            async for piece in pieces.source:
                began = True
                head.cancel()
                self._open(response)
                beat.pause()
                await stream.write(piece)
                beat.go_on()
        except Exception as error:
            if began or self.answered:
                self._cut(stream, "the answer was cut off")
                return
            self.answer(problem(HandlerFailed()) if pieces.failed is None else await pieces.failed(error))
        except asyncio.CancelledError:
            if self.ends_well and not self.gone:
                self._open(response)
            self._cut(stream, None if self.ends_well else "the service stops")
            raise
        else:
            self._open(response)
            self._check_length(response, stream)
        finally:
            head.cancel()
            beat.stop()

    def _cut(self, stream: Stream, why: str | None) -> None:
        """End a stream that has begun before its time."""
        if self.answered and not self.gone:
            stream.end(why)

    def _check_length(self, response: Response, stream: Stream) -> None:
        said = response.headers.get("content-length")
        if said is not None and said != str(stream.outflow.sent):
            logger.error(
                "the answer to %s %s has %d bytes, and its content-length says %s",
                self.call.method,
                self.call.raw_path,
                stream.outflow.sent,
                said,
            )
            stream.end("its length is not what it says")
        else:
            stream.end()

    def _open(self, response: Response) -> None:
        """Send the head of a streamed answer, once."""
        if not self.answered:
            self.answered = True
            self._stop_waiting()
            self._count(response.status)
            assert self.stream is not None
            self.stream.flows = True
            self.stream.say(encode_open(response, method=self.call.method))

    def _stop_waiting(self) -> None:
        self.due = math.inf
        self._desk.streams(self)

    def answer(self, response: Response | Result) -> None:
        """Publish the one answer of a request; later ones go nowhere."""
        if self.answered:
            return
        self.answered = True
        if response.silent:
            return
        self._count(response.status)
        if not self.caller:
            return
        try:
            self._publish(response)
        except TooLarge:
            limit = self._desk.bus.max_payload
            logger.error("the answer to %s %s is larger than max_payload (%d bytes)", *self._who, limit)
            self._publish_instead(ReplyTooLarge("the answer does not fit into one NATS message"))
        except HTTPError as error:
            logger.warning("the answer to %s %s was not sent: %s", *self._who, error.detail)
        except Exception:
            logger.exception("the answer to %s %s is none that can be sent", *self._who)
            self._publish_instead(HandlerFailed("the handler's answer cannot be sent; the log says why"))

    def _count(self, status: int) -> None:
        counter = self.call.counter
        if counter is not None:
            self.call.counter = None
            counter.finish(time.perf_counter_ns() - self.started, status)

    def _publish_instead(self, error: HTTPError) -> None:
        try:
            self._publish(problem(error))
        except HTTPError as why:
            logger.warning("the answer to %s %s was not sent: %s", *self._who, why.detail)

    def _publish(self, response: Response | Result) -> None:
        wire = self._desk.wire
        if wire is None:
            header, payload = encode_response(response, method=self.call.method, retry=response.retry)
        else:
            header, payload = None, wire.encode_response(response)
        bus = self._desk.bus
        try:
            bus.post(self.caller, payload, header)
        except NatsDown:  # whoever asked may have a connection to another server, and wait
            bus.post_later(self.caller, header, payload=payload)

    @property
    def _who(self) -> tuple[str, str]:
        return self.call.method, self.call.raw_path


def goodbye(response: Response) -> tuple[int, str]:
    """Return with which code and reason a WebSocket is closed whose handler has ended so (RFC 6455 section 7.4.1)."""
    status = response.status
    if status < 400:
        return 1000, ""
    return 1011 if status >= 500 else 1007 if status == 422 else 1008, _reason(response)


def _reason(response: Response) -> str:
    """Return why, in the 123 bytes that a goodbye has for it: the first field of a 422, or the phrase of the status."""
    words = phrase(response.status)
    if response.status == 422 and response.headers.get("content-type") == "application/problem+json":
        with contextlib.suppress(ValueError, LookupError, TypeError):
            first = response.parse_json()["errors"][0]
            words = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return words.encode()[:123].decode("utf-8", "ignore")


class _Heartbeat:
    """Says a little on a stream that has been silent for a while, but never in the middle of a piece."""

    def __init__(self, stream: Stream, heartbeat: tuple[float, bytes] | None, ready: Callable[[], bool]) -> None:
        self._stream = stream
        self._ready = ready
        self._seconds, self._words = heartbeat or (0.0, b"")
        self._spoken = False
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    def pause(self) -> None:
        """A piece begins."""
        self._busy = self._spoken = True

    def go_on(self) -> None:
        """A piece is out."""
        self._busy = False

    def _arm(self) -> None:
        if self._seconds > 0:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._beat)

    def _beat(self) -> None:
        if not self._spoken and not self._busy and self._ready():  # the head comes first
            with contextlib.suppress(HTTPError):
                self._stream.write_now(self._words)
        self._spoken = self._busy
        self._arm()

    def stop(self) -> None:
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()


async def collect(response: Response, pieces: Pieces, method: str, largest: int) -> Response:
    """Return a streamed answer as one message, for a caller that takes no more than that; 406 if it is too large.

    For HEAD it is the head alone. An error before the first piece is its answer.
    """
    body = bytearray()
    if method != "HEAD":
        try:
            async for piece in pieces.source:
                body += piece
                if len(body) > largest:
                    limit = f"more than fits into one NATS message ({largest} bytes), and this caller takes one"
                    return problem(NotAcceptable(f"the answer is a stream of {limit}"))
        except Exception as error:
            if body or pieces.failed is None:
                raise
            return await pieces.failed(error)
    headers = response.headers if method == "HEAD" else response.headers.without("content-length")
    return Response.trusted(response.status, headers, bytes(body))
