"""The requests of one connection in their turn: one exchange at a time, what is pipelined waits in one queue.

A request of the fast door goes straight to the exchange and its reply straight to the socket; one of the ASGI door gets
a cycle of uvicorn's. Their ends, the timers and the closing of the connection are here. It parses nothing.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from natsweb.bus import Reply
from natsweb.errors import (
    BadReply,
    HTTPError,
    phrase,
)
from natsweb.exchange import FORWARDED_METHODS, Exchange
from natsweb.flights import Flight, Incoming, Opened
from natsweb.front.streaming import StreamedAnswer
from natsweb.front.strict import Head
from natsweb.gateway import CutOff
from natsweb.headers import Headers
from natsweb.pipes import Reader
from natsweb.replies import problem
from natsweb.settings import Limits

__all__ = ["ANSWER", "BODY", "HEAD", "IDLE", "Owner", "Ready", "Turns"]

logger = logging.getLogger("natsweb.front")

_MAX_QUEUE = 16
_FRESH_WAIT = 0.5
_LINGER_TIME = 1.0
_ALLOW = Headers({"allow": ", ".join(FORWARDED_METHODS)})
_STATUS_LINES = {status: f"HTTP/1.1 {status} {phrase(status)}\r\n".encode() for status in range(100, 600)}

# What a connection is doing, for its timers.
IDLE, HEAD, BODY, ANSWER, LINGER = range(5)


class Owner(Protocol):
    """What a connection needs of the server it belongs to."""

    exchange: Exchange
    limits: Limits
    fast: bool
    #: Paths that the gateway answers itself, at the ASGI door.
    here: frozenset[bytes]
    log: bool
    stopping: bool
    #: From host and raw path to the exchange of a request and its path there, if there are several exchanges.
    pick: Callable[[bytes, bytes], tuple[Exchange, bytes]] | None
    #: The field lines that every answer has.
    dates: bytes

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write an answer of the fast door, soon."""

    def flush(self) -> None:
        """Write what waits now."""


class Ready:
    """A complete request for the fast door, or an answer that is ready already."""

    __slots__ = ("body", "exchange", "host", "incoming", "is_old", "keep_alive", "refusal")

    def __init__(self, incoming: Incoming, body: bytes, keep_alive: bool, refusal: HTTPError | None = None) -> None:
        self.is_old = False  # HTTP/1.0
        self.exchange: Exchange | None = None  # the only one
        self.host = b""
        self.incoming = incoming
        self.body = body
        self.keep_alive = keep_alive
        self.refusal = refusal


_NOTHING = Incoming("GET", b"", b"", b"")


def _reset(transport: asyncio.Transport) -> None:
    """Close with a reset, which leaves nothing to be read and does not look like the end of an answer."""
    found = transport.get_extra_info("socket")
    with contextlib.suppress(OSError, AttributeError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Turns(HttpToolsProtocol):
    """The requests of one connection, one after the other; what is parsed comes in by `enter`."""

    def __init__(self, owner: Owner, **options: Any) -> None:
        super().__init__(**options)
        self._owner = owner
        self._app: Any = self._logged if owner.log else self.app
        self._limits = owner.limits
        self._address: str | None = None
        self.doing = IDLE
        self.since = self.loop.time()
        self._queue: deque[Ready | RequestResponseCycle] = deque()
        self._running: Ready | RequestResponseCycle | None = None
        self._flight: Flight | None = None
        self._streamed: StreamedAnswer | None = None
        self._buffered = 0
        self._answered = False
        self._began = self.since
        self._deaf = False
        self._refused = False
        self._stopping = False
        # Of the request that is being parsed: its head, what it runs in already, and what was wrong with it.
        self._parsing = False
        self._head: Head | None = None
        self._version = "1.1"
        self._entered: RequestResponseCycle | None = None
        self._fault: HTTPError | None = None

    # ── the socket ──

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whatever runs for this connection has nobody to answer to."""
        self._deaf = True
        self._queue.clear()
        if self._streamed is not None:
            self._streamed.abandon()
        if self._flight is not None:
            self._flight.drop()
            self._flight = None
        if isinstance(self._running, RequestResponseCycle):
            self.cycle = self._running
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Close: a client that has half closed counts as gone."""

    def shutdown(self) -> None:
        """Close when the answers under way are out: the server stops."""
        self._stopping = True
        if self._running is None:
            # A connection that has asked nothing yet was accepted all the same: its first request gets its answer.
            if self._answered:
                self._close()
        elif not self._queue and isinstance(self._running, RequestResponseCycle):
            self._running.keep_alive = False

    def cut(self) -> None:
        """Start nothing more, and wait for nobody: what runs gets its answer in a moment, from the exchange."""
        self._deaf = True
        self._queue.clear()
        running = self._running
        if running is None or self.flow.write_paused:
            self._owner.flush()
            self.transport.abort()
        elif isinstance(running, RequestResponseCycle):
            running.keep_alive = False
            if running.more_body:
                self.transport.abort()

    def _linger(self) -> None:
        """Close our side only, for a moment (RFC 9112 section 9.6): a reset would destroy the refusal on its way."""
        if self.doing == LINGER:
            return
        self.flow.resume_reading()
        self._owner.flush()
        if self._stopping or not self.transport.can_write_eof():
            self._close()
            return
        self.transport.write_eof()
        self.doing, self.since = LINGER, self.loop.time()

    def close_behind_answer(self) -> None:
        """Close behind an answer of the ASGI door; what the client still sends is read and thrown away for a moment."""
        self._deaf = self._refused = True
        self._linger()

    def _close(self) -> None:
        """Close, behind the answers that wait to be written."""
        self.since = self.loop.time()
        self._owner.flush()
        self.transport.close()

    def resume_writing(self) -> None:
        """Go on: the client reads again."""
        super().resume_writing()
        self.since = self.loop.time()
        if self._streamed is not None:
            self._streamed.resume()
        if self._running is None:
            self._next()

    def check_time(self, now: float) -> None:
        """Close, with a 408 where a request has begun, what took longer than its limit."""
        if self.flow.write_paused and (waits := self.transport.get_write_buffer_size()) != self._buffered:
            self._buffered, self.since = waits, now  # slow, but it reads
        limits, spent = self._limits, now - self.since
        if self.transport.is_closing() or self.flow.write_paused:
            if spent > limits.write_timeout:
                _reset(self.transport)  # or the system keeps for minutes what nobody reads
        elif self.doing == LINGER:
            if spent > _LINGER_TIME:
                self.transport.close()
        elif self.doing == IDLE:
            if spent > (_FRESH_WAIT if self._stopping else limits.idle_timeout):
                self._close()
        elif self.doing == HEAD and spent > limits.head_timeout:
            self._refuse(HTTPError(408, "the request's head did not come in time", reason="slow_request"))
        elif self.doing == BODY and self.flow.read_paused:
            self.since = now  # it is the service that does not take it
        elif self.doing == BODY and spent > limits.body_timeout:
            self._refuse(HTTPError(408, "the request's body did not come in time", reason="slow_request"))

    # ── one exchange at a time ──

    def enter(self, item: Ready | RequestResponseCycle) -> None:
        """Start a request, or let it wait for those before it."""
        if self._running is None and not self._queue and not self.flow.write_paused:
            if type(item) is Ready and item.refusal is None and item.incoming.raw_path != b"*":
                self._running, self.doing, self._began = item, ANSWER, self.loop.time()
                self._launch(item)
            else:
                self._start(item)
        elif len(self._queue) < _MAX_QUEUE:
            self._queue.append(item)
            if len(self._queue) >= _MAX_QUEUE // 2:  # not before: who reads nothing sees no client go
                self.flow.pause_reading()
        else:  # more than a client may pipeline: those that wait are answered, the rest may be sent again
            self._deaf = True

    def _start(self, item: Ready | RequestResponseCycle) -> None:
        self._running = item
        self.doing, self._began = ANSWER, self.loop.time()
        last = (self._stopping or self._deaf) and not self._queue
        if isinstance(item, RequestResponseCycle):
            item.keep_alive = item.keep_alive and not last
            self.doing = BODY if item.more_body else ANSWER
            self._owner.flush()
            self._start_asgi_task(item, functools.partial(self._run_door, item))
            return
        if item.refusal is not None:
            self._answer(item, item.refusal)
        elif item.incoming.raw_path == b"*":
            self._write(204, _ALLOW.block, b"", "OPTIONS", item.keep_alive)
        else:
            self._launch(item)

    def _launch(self, item: Ready) -> None:
        exchange = item.exchange or self._owner.exchange
        try:
            flight = exchange.launch(item.incoming, item.body, self._landed)
        except HTTPError as error:
            self._answer(item, error)
            return
        except Exception:
            logger.exception("sending a request failed")
            failed = HTTPError(500, "the gateway failed; its log says why", reason="gateway_failed")
            self._answer(Ready(item.incoming, b"", False), failed)
            return
        if self._running is item:
            self._flight = flight

    def _landed(self, outcome: Reply | Opened | HTTPError) -> None:
        """Write the outcome of the flight under way."""
        item = self._running
        wanted = item if isinstance(item, Ready) and not self.transport.is_closing() else None
        if type(outcome) is not Opened:
            self._flight = None
            if wanted is not None:
                self._answer(wanted, outcome)
        elif wanted is not None:
            self._open(wanted, outcome)
        else:
            outcome.flight.drop()

    # ── an answer that streams ──

    def _open(self, item: Ready, opened: Opened) -> None:
        """Begin an answer that comes in pieces."""
        method, status = item.incoming.method, opened.status
        if status in (204, 205, 304) or method == "HEAD":
            opened.flight.drop()
            self._flight = None
            self._write(status, opened.lines, b"", method, item.keep_alive)
            return
        self._flight = opened.flight
        if self._owner.log:
            self._log_answer(method, status)
        last = (self._stopping or self._deaf or self._owner.stopping) and not self._queue
        head = _STATUS_LINES[status] + self._owner.dates
        keep_alive = item.keep_alive and not last
        self._streamed = answer = StreamedAnswer(self, opened, head, keep_alive=keep_alive, is_old=item.is_old)
        reader = opened.stream.sink
        assert isinstance(reader, Reader)
        reader.drain_into(answer)

    def put(self, data: bytes) -> None:
        """Write a piece of an answer: see `Line`."""
        self._owner.write(self.transport, data)

    @property
    def is_full(self) -> bool:
        """Whether the client does not read as fast as it is written to: see `Line`."""
        return self.flow.write_paused

    def answered(self, keep_alive: bool) -> None:
        """Go on behind an answer that came in pieces: see `Line`."""
        self._streamed = self._flight = None
        if not self.transport.is_closing():
            self._finished(keep_alive and not (self._stopping and not self._queue))

    def cut_off(self, *, visibly: bool) -> None:
        """Close in the middle of an answer: see `Line`."""
        self._streamed = self._flight = None
        self._running = None
        self._deaf = True
        self._queue.clear()
        self._owner.flush()
        if visibly:
            _reset(self.transport)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Note that the client does not read as fast as it is written to."""
        super().pause_writing()
        self.since, self._buffered = self.loop.time(), 0

    def _answer(self, item: Ready, outcome: Reply | HTTPError) -> None:
        try:
            if not isinstance(outcome, tuple):
                raise outcome
            header, payload = outcome
            status, lines, body = self._owner.exchange.decode_reply(header, payload, item.incoming.method)
        except HTTPError as error:
            if isinstance(error, BadReply):
                path = item.incoming.raw_path.decode("latin-1")
                logger.warning("the reply to %s %s cannot be sent: %s", item.incoming.method, path, error.detail)
            response = problem(error)
            status, lines, body = response.status, response.headers.block, response.body
        self._write(status, lines, body, item.incoming.method, item.keep_alive)

    def _write(self, status: int, lines: bytes, body: bytes, method: str, keep_alive: bool) -> None:
        """Write one answer, and go on with what waits."""
        owner = self._owner
        if (self._stopping or self._deaf or owner.stopping) and not self._queue:
            keep_alive = False
        if owner.log:
            self._log_answer(method, status)
        line, dates = _STATUS_LINES[status], owner.dates
        close = b"" if keep_alive else b"connection: close\r\n"
        if status == 204 or status == 304 or method == "HEAD":
            data = b"%b%b%b%b\r\n" % (line, dates, lines, close)
        else:
            data = b"%b%b%bcontent-length: %d\r\n%b\r\n%b" % (line, dates, lines, len(body), close, body)
        owner.write(self.transport, data)
        self._finished(keep_alive)

    def _log_answer(self, method: str, status: int) -> None:
        path = self._running.incoming.raw_path if isinstance(self._running, Ready) else b""
        logger.info(
            "%s %s %d  %.1f ms", method, path.decode("latin-1"), status, (self.loop.time() - self._began) * 1000
        )

    def _finished(self, keep_alive: bool) -> None:
        self._running = None
        self._answered = True
        self.server_state.total_requests += 1
        self.since = self.loop.time()
        if not keep_alive:
            self._deaf = True
            self._linger() if self._refused else self._close()
            return
        self.doing = IDLE if not self._parsing else HEAD if self._head is None else BODY
        if self._queue or self.flow.read_paused:
            self._next()

    def _next(self) -> None:
        if self.transport.is_closing():
            return
        if self._queue:
            if not self.flow.write_paused:
                self._start(self._queue.popleft())
            if len(self._queue) < _MAX_QUEUE // 2:
                self.flow.resume_reading()
            return
        self.flow.resume_reading()

    def _refuse(self, error: HTTPError) -> None:
        """Answer a broken request in its turn, then close: what follows it cannot be told apart any more."""
        self._fault = None
        if self._deaf:
            return
        self._deaf = self._refused = True
        running = self._entered
        if running is not None and running is self._running:
            # Its answer may have begun, and its body will never be whole: there is nothing right to say.
            running.disconnected = True
            running.message_event.set()
            if running.response_started:
                self._close()
                return
            self._running = None
        elif running is not None and running in self._queue:
            self._queue.remove(running)  # its body will never be whole
        refusal = Ready(_NOTHING, b"", False, error)
        if self._running is None and not self._queue:
            self._start(refusal)
        else:
            self._queue.append(refusal)

    # ── the ASGI door ──

    async def _run_door(self, cycle: RequestResponseCycle, scope: Any, receive: Any, send: Any) -> None:
        """Run the ASGI door; an answer that it cannot finish ends the connection."""
        try:
            await self._app(scope, receive, send)
        except CutOff as why:
            logger.debug("an answer was cut off: %s", why)
            if self._running is cycle and not cycle.disconnected:
                cycle.disconnected = True
                lengths = [name for name, _ in cycle.scope["headers"] if name == b"content-length"]
                self.cut_off(visibly=self._version == "1.0" and not lengths)

    async def _logged(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the ASGI door, and log its answer."""

        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start":
                spent = (self.loop.time() - self._began) * 1000
                path = scope["raw_path"].decode("latin-1")
                logger.info("%s %s %d  %.1f ms", scope["method"], path, message["status"], spent)
            await send(message)

        app: Any = self.app
        await app(scope, receive, noting)

    def _cycle_done(self, cycle: RequestResponseCycle) -> None:
        """An answer of the ASGI door is out."""
        if self._running is cycle and not self.transport.is_closing():
            self._finished(cycle.keep_alive)
