"""HTTP/1.1 on a connection: our protocol class on uvicorn's, with two doors into the gateway.

The fast door takes ordinary requests (a body of at most 64 KiB with its length, no Expect, no Upgrade) straight
from parser callbacks to the exchange, and the reply straight to the socket: no task, no scope, no Request. All
else goes through the gateway's ASGI door. Both answer alike. One exchange at a time: what is pipelined waits in
one queue. Its own state machine, timers and error answers; sockets, TLS and flow control are uvicorn's.
"""

import asyncio
import contextlib
import functools
import logging
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from natsweb.bus import Reply
from natsweb.errors import (
    BadReply,
    BadRequest,
    HeadersTooLarge,
    HTTPError,
    MethodNotAllowed,
    Overloaded,
    SubjectTooLong,
    phrase,
)
from natsweb.exchange import FORWARDED_METHODS, Exchange, address
from natsweb.flights import Flight, Incoming, Opened
from natsweb.front.streaming import StreamedAnswer
from natsweb.front.strict import Head, check_handshake, check_head, is_handshake, plain_line, split_target
from natsweb.gateway import CutOff, bare_host
from natsweb.headers import Headers
from natsweb.pipes import Reader
from natsweb.replies import problem
from natsweb.settings import Limits

__all__ = ["Connection", "Owner"]

logger = logging.getLogger("natsweb.front")

_FAST_BODY = 64 * 1024
_MAX_QUEUE = 16
_FRESH_WAIT = 0.5
_LINGER_TIME = 1.0
_MAX_OVERHEAD = 64 * 1024
_RECENT = 64 * 1024
_REPEATED = 4 * 1024
_UPGRADE = (b"upgrade", b"http2-settings")
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

    def date_lines(self) -> bytes:
        """Return the field lines that every answer has."""
        ...

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write an answer of the fast door, soon."""

    def flush(self) -> None:
        """Write what waits now."""


class _Ready:
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


class _OldCycle(RequestResponseCycle):
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


class _CycleTransport:
    """What an exchange of the ASGI door sees of the socket: closing is the connection's business."""

    __slots__ = ("_connection",)

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        self._connection.close_behind_answer()


class Connection(HttpToolsProtocol):
    """One HTTP connection."""

    def __init__(self, owner: Owner, **options: Any) -> None:
        super().__init__(**options)
        self._owner = owner
        self._app: Any = self._logged if owner.log else self.app
        self._limits = owner.limits
        self._address: str | None = None
        self.doing = IDLE
        self.since = self.loop.time()
        self._queue: deque[_Ready | RequestResponseCycle] = deque()
        self._running: _Ready | RequestResponseCycle | None = None
        self._flight: Flight | None = None
        self._streamed: StreamedAnswer | None = None
        self._buffered = 0
        self._answered = False
        self._began = self.since
        self._deaf = False
        self._refused = False
        self._stopping = False
        self._fault: HTTPError | None = None
        # The request that is being parsed.
        self._head: Head | None = None
        self._head_size = 0
        self._method = ""
        self._path = b""
        self._query = b""
        self._fast = False
        self._replay = self._handover = False
        self._keep_alive = True
        self._parts: list[bytes] = []
        self._parsing = False
        self._version = "1.1"
        self._recent = b""
        self._fed = 0
        self._body_size = 0
        self._entered: RequestResponseCycle | None = None
        # The last head, since clients send the same again and again.
        self._known_headers: list[tuple[bytes, bytes]] = []
        self._known_head: Head | None = None
        self._known_fields: bytes | None = None
        self._known_ordinary = False
        # The last segment that was one such request and nothing else, and what it has below its request line.
        self._begun = 0
        self._whole: _Ready | None = None
        self._repeated = b""
        self._repeated_lines = b""
        self._repeated_item: _Ready | None = None

    def __repr__(self) -> str:
        doing = ("idle", "reading a head", "reading a body", "answering", "closing")[self.doing]
        return f"<Connection {self._address}: {doing}, {len(self._queue)} waiting>"

    # ── the socket ──

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: see `asyncio.Protocol`."""
        super().connection_made(transport)
        self._stopping = self._owner.stopping
        if self.client:
            self._address = address(*self.client)
        if len(self.connections) > self._limits.connections:
            self._refuse(Overloaded("the gateway has as many connections as it may have"))

    def data_received(self, data: bytes) -> None:
        """Take bytes; a broken request is answered in its turn, and then the connection closes."""
        if (
            self.doing == IDLE
            and self._repeated_lines
            and not (self._deaf or self._queue or self.flow.write_paused)
            and (item := self._repeated_item if data == self._repeated else self._repeat(data)) is not None
        ):
            self._running, self.doing = item, ANSWER
            if self._owner.log:
                self._began = self.loop.time()
            self._launch(item)
            return
        while data and not self._deaf:
            data = self._feed(data)

    def _repeat(self, data: bytes) -> _Ready | None:
        """Return the request of a segment that has the headers of the one before, without parsing them again.

        Byte for byte the same lines, which the parser has found to be one ordinary request without a body, below a
        request line that is plain: it would find the same. It saves a third of the gateway's own time
        (tests/benchmarks).
        """
        end = data.find(b"\r\n")
        if len(data) > _REPEATED or data[end:] != self._repeated_lines:
            return None
        line = plain_line(data, 0, end)
        before = self._repeated_item
        if line is None or before is None:
            return None
        method, path, query = line.groups()
        if path in self._owner.here:
            return None
        self._repeated = data
        item = self._ready(method.decode("ascii"), path, query or b"", before.incoming.fields, before.host)
        self._repeated_item = item
        return self._repeated_item

    def _remember(self, data: bytes) -> None:
        """Keep a segment that was one ordinary request without a body, and nothing else."""
        end = data.find(b"\r\n")
        item = self._whole
        if item is not None and not item.body and item.keep_alive and plain_line(data, 0, end):
            self._repeated, self._repeated_lines, self._repeated_item = data, data[end:], item

    def _ready(self, method: str, path: bytes, query: bytes, fields: bytes, host: bytes) -> _Ready:
        """Return a request without a body, with the exchange that it belongs to."""
        exchange = None
        if self._owner.pick is not None:
            exchange, path = self._owner.pick(host, path)
        item = _Ready(Incoming(method, path, query, fields, self._address, self.scheme or "http"), b"", True)
        item.exchange, item.host = exchange, host
        return item

    def _feed(self, data: bytes) -> bytes:
        """Parse some bytes; return those that are to be parsed again."""
        if self.doing == BODY and not self.flow.write_paused:
            self.since = self.loop.time()
        alone = self.doing == IDLE and len(data) <= _REPEATED
        self._begun = 0
        self._fed += len(data)
        # What may hold the request line: httptools takes RTSP/1.0 for HTTP/1.0, and does not tell.
        self._recent = (self._recent + data)[-_RECENT:] if self._parsing and self._head is None else data
        try:
            self.parser.feed_data(data)
            if self._parsing and self._fed - self._body_size > _MAX_OVERHEAD + 16 * self._body_size:
                self._fail(BadRequest("there is far more around the chunks of the body than in them"))
            if alone and self._begun == 1 and self._known_ordinary and not self._parsing:
                self._remember(data)
        except HTTPError as error:
            self._fault = None
            self._refuse(error)
        except httptools.HttpParserUpgrade as upgrade:
            if self._handover:
                self._hand_over(data[upgrade.args[0] :])
                return b""
            return self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserInvalidMethodError:
            self._refuse(HTTPError(501, "this server does not know the method", reason="unknown_method"))
        except httptools.HttpParserError as error:
            if (
                self._fault is None
                and error.__context__ is not None
                and not isinstance(error, httptools.HttpParserInvalidURLError)
            ):
                logger.error("reading a request failed", exc_info=error)
            self._refuse(self._fault or BadRequest(f"this is not HTTP/1.1: {error}"))
        return b""

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

    # ── the parser's callbacks ──

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begun += 1
        self._whole = None
        self.url = b""
        self.headers = []
        self._head = None
        self._head_size = 0
        self._replay = self._handover = False
        self._entered = None
        self._parts = []
        self._parsing = True
        self._fed = self._body_size = 0
        if self._running is None:
            self.doing = HEAD
            self.since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.url += url
        if len(self.url) > self._limits.target:
            self._fail(SubjectTooLong(f"the request target is longer than {self._limits.target} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line; after the head, a trailer, which is counted and dropped."""
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.header_bytes:
            self._fail(HeadersTooLarge(f"the request's headers have more than {self._limits.header_bytes} bytes"))
        if self._head is None:
            self.headers.append((name.lower(), value))
            if len(self.headers) > self._limits.header_count:
                self._fail(HeadersTooLarge(f"the request has more than {self._limits.header_count} headers"))

    def on_headers_complete(self) -> None:
        """The head is there: check it, and choose the door."""
        try:
            self._choose_door()
        except HTTPError as error:
            self._fail(error)

    def _choose_door(self) -> None:
        parser, headers = self.parser, self.headers
        version = self._version = parser.get_http_version()
        self._method = method = parser.get_method().decode("ascii")
        url = self.url
        if headers == self._known_headers and version == "1.1" and self._known_head is not None:
            head = self._known_head
            path, _, query = url.partition(b"?")
            plain = url[:1] == b"/" and b"#" not in url and method != "CONNECT" and path not in self._owner.here
            if self._known_ordinary and plain:
                # The same head as before, of an ordinary request, and a path: all has been decided already.
                self._head, self._keep_alive, self._fast = head, True, True
                self._path, self._query = path, query
                if head.length and self._running is None:
                    self.doing = BODY
                return
        else:
            head = self._known_head = check_head(version, headers)
            self._known_headers, self._known_fields, self._known_ordinary = headers, None, False
        self._head = head
        if version == "1.0" and b" HTTP/1.0\r" not in self._recent:
            raise BadRequest("the protocol in the request line is not HTTP")
        self._keep_alive = version == "1.1" and parser.should_keep_alive()
        if method == "CONNECT":
            raise MethodNotAllowed("a gateway does not forward CONNECT", allow=FORWARDED_METHODS)
        self._replay = parser.should_upgrade()
        if self._replay and is_handshake(method, head, headers):
            if self.ws_protocol_class is None:
                raise HTTPError(
                    501,
                    'this gateway takes no WebSockets; its host needs pip install "natsweb[ws]"',
                    reason="no_websockets",
                )
            check_handshake(self.url, headers)
            self._path, self._query, _ = split_target(method, self.url)
            self._handover = self._running is None and not self._queue
            return
        if self.url == b"*" and method == "OPTIONS":
            self._path, self._query, self._fast = b"*", b"", True
            return
        self._path, self._query, authority = split_target(method, self.url)
        if authority is not None:
            self.headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
            self._known_head, self._known_fields = None, None
        if self._replay:
            return
        self._fast = (
            self._owner.fast
            and self._path not in self._owner.here
            and not head.chunked
            and not head.expects_continue
            and head.upgrade is None
            and (head.length or 0) <= _FAST_BODY
        )
        self._known_ordinary = self._fast and self._keep_alive and authority is None and version == "1.1"
        if head.length or head.chunked:
            self.doing = BODY if self._running is None else self.doing
        if not self._fast:
            self._entered = cycle = self._new_cycle(version, head)
            self._enter(cycle)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_size += len(body)
        if self._fast:
            self._parts.append(body)
            return
        cycle = self._entered
        if cycle is None or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._parsing = False
        if self._replay:
            return
        if self._fast:
            body = b"".join(self._parts) if self._parts else b""
            fields = self._known_fields
            if fields is None:
                try:
                    fields = self._owner.exchange.encode_fields(self.headers)
                except HTTPError as error:
                    self._fail(error)
                    return
                if self.headers is self._known_headers:
                    self._known_fields = fields
            keep_alive = self._keep_alive and self.parser.should_keep_alive()
            self._whole = item = self._ready(self._method, self._path, self._query, fields, self._asked_host())
            item.body, item.keep_alive = body, keep_alive
            item.is_old = self._version == "1.0"
            self._enter(item)
            return
        cycle = self._entered
        if cycle is not None and not self.parser.should_keep_alive():
            cycle.keep_alive = False  # a trailer may say so, and then the parser hears no more
        if cycle is not None and not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()
        if self._running is not None:
            self.doing = ANSWER

    def _asked_host(self) -> bytes:
        """Return the host of the request, where that makes a difference."""
        if self._owner.pick is None:
            return b""
        return next((bare_host(value) for name, value in self.headers if name == b"host"), b"")

    def _fail(self, error: HTTPError) -> None:
        """Leave the parser with an error that `data_received` answers."""
        self._fault = error
        raise error

    def _hand_over(self, rest: bytes) -> None:
        """Give the connection to uvicorn's WebSocket protocol, with the handshake and all that has come behind it."""
        self._owner.flush()
        self._deaf = True
        self.connections.discard(self)
        lines = [b"%b: %b\r\n" % field for field in self.headers]
        target = self._path + (b"?" + self._query if self._query else b"")
        make: Any = self.ws_protocol_class
        protocol = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"GET %b HTTP/1.1\r\n%b\r\n%b" % (target, b"".join(lines), rest))

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Return a request without its Upgrade: no protocol is offered here, and httptools skips the body."""
        fields = []
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join([one for one in value.split(b",") if one.strip().lower() not in _UPGRADE])
            if name not in _UPGRADE and (value or name != b"connection"):
                fields.append(b"%b: %b\r\n" % (name, value))
        line = f"{self._method} {self.url.decode('latin-1')} HTTP/{self._version}\r\n".encode("latin-1")
        head = b"%b%b\r\n" % (line, b"".join(fields))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head + rest

    # ── one exchange at a time ──

    def _enter(self, item: _Ready | RequestResponseCycle) -> None:
        """Start a request, or let it wait for those before it."""
        if self._running is None and not self._queue and not self.flow.write_paused:
            if type(item) is _Ready and item.refusal is None and item.incoming.raw_path != b"*":
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

    def _start(self, item: _Ready | RequestResponseCycle) -> None:
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

    def _launch(self, item: _Ready) -> None:
        exchange = item.exchange or self._owner.exchange
        try:
            flight = exchange.launch(item.incoming, item.body, self._landed)
        except HTTPError as error:
            self._answer(item, error)
            return
        except Exception:
            logger.exception("sending a request failed")
            failed = HTTPError(500, "the gateway failed; its log says why", reason="gateway_failed")
            self._answer(_Ready(item.incoming, b"", False), failed)
            return
        if self._running is item:
            self._flight = flight

    def _landed(self, outcome: Reply | Opened | HTTPError) -> None:
        """Write the outcome of the flight under way."""
        item = self._running
        if isinstance(outcome, Opened):
            if isinstance(item, _Ready) and not self.transport.is_closing():
                self._open(item, outcome)
            else:
                outcome.flight.drop()
            return
        self._flight = None
        if isinstance(item, _Ready) and not self.transport.is_closing():
            self._answer(item, outcome)

    # ── an answer that streams ──

    def _open(self, item: _Ready, opened: Opened) -> None:
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
        head = _STATUS_LINES[status] + self._owner.date_lines()
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

    def _answer(self, item: _Ready, outcome: Reply | HTTPError) -> None:
        try:
            if isinstance(outcome, HTTPError):
                raise outcome
            status, lines, body = self._owner.exchange.decode_reply(*outcome, item.incoming.method)
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
        line, dates = _STATUS_LINES[status], owner.date_lines()
        close = b"" if keep_alive else b"connection: close\r\n"
        if status == 204 or status == 304 or method == "HEAD":
            data = b"%b%b%b%b\r\n" % (line, dates, lines, close)
        else:
            data = b"%b%b%bcontent-length: %d\r\n%b\r\n%b" % (line, dates, lines, len(body), close, body)
        owner.write(self.transport, data)
        self._finished(keep_alive)

    def _log_answer(self, method: str, status: int) -> None:
        path = self._running.incoming.raw_path if isinstance(self._running, _Ready) else b""
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
        refusal = _Ready(_NOTHING, b"", False, error)
        if self._running is None and not self._queue:
            self._start(refusal)
        else:
            self._queue.append(refusal)

    # ── the ASGI door ──

    def _new_cycle(self, version: str, head: Head) -> RequestResponseCycle:
        scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "method": self._method,
            "path": unquote(self._path.decode("latin-1")),
            "raw_path": self._path,
            "query_string": self._query,
        }
        make = _OldCycle if version == "1.0" else RequestResponseCycle
        cycle = make(
            scope=scope,  # type: ignore[arg-type]
            transport=_CycleTransport(self),  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=head.expects_continue,
            keep_alive=self._keep_alive,
            on_response=lambda: None,
        )
        cycle.more_body = bool(head.length or head.chunked)
        if not cycle.more_body:
            cycle.message_event.set()
        cycle.on_response = lambda: self._cycle_done(cycle)
        return cycle

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
