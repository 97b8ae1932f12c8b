"""HTTP/1.1 on a connection, parsed: our protocol class on uvicorn's, with two doors into the gateway.

The fast door takes ordinary requests (a body of at most 64 KiB with its length, no Expect, no Upgrade) straight from
parser callbacks to the exchange: no task, no scope, no Request. All else goes through the gateway's ASGI door. Both
answer alike. What comes of a request is `turns`' business; sockets, TLS and flow control are uvicorn's.
"""

import asyncio
import logging
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from natsweb.errors import (
    BadRequest,
    HeadersTooLarge,
    HTTPError,
    MethodNotAllowed,
    Overloaded,
    SubjectTooLong,
)
from natsweb.exchange import FORWARDED_METHODS, address
from natsweb.flights import Incoming
from natsweb.front.cycles import CycleTransport, OldCycle
from natsweb.front.strict import Head, check_handshake, check_head, is_handshake, plain_line, split_target
from natsweb.front.turns import ANSWER, BODY, HEAD, IDLE, Owner, Ready, Turns
from natsweb.gateway import bare_host

__all__ = ["Connection", "Owner"]

logger = logging.getLogger("natsweb.front")

_FAST_BODY = 64 * 1024
_MAX_OVERHEAD = 64 * 1024
_RECENT = 64 * 1024
_REPEATED = 4 * 1024
_UPGRADE = (b"upgrade", b"http2-settings")


class Connection(Turns):
    """One HTTP connection."""

    def __init__(self, owner: Owner, **options: Any) -> None:
        super().__init__(owner, **options)
        # The request that is being parsed.
        self._head_size = 0
        self._method = ""
        self._path = b""
        self._query = b""
        self._fast = False
        self._replay = self._handover = False
        self._keep_alive = True
        self._parts: list[bytes] = []
        self._recent = b""
        self._fed = 0
        self._body_size = 0
        # The last head, since clients send the same again and again.
        self._known_headers: list[tuple[bytes, bytes]] = []
        self._known_head: Head | None = None
        self._known_fields: bytes | None = None
        self._known_ordinary = False
        # The last segment that was one such request and nothing else, and what it has below its request line.
        self._begun = 0
        self._whole: Ready | None = None
        self._repeated = b""
        self._repeated_lines = b""
        self._repeated_item: Ready | None = None

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

    def _repeat(self, data: bytes) -> Ready | None:
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

    def _ready(self, method: str, path: bytes, query: bytes, fields: bytes, host: bytes) -> Ready:
        """Return a request without a body, with the exchange that it belongs to."""
        exchange = None
        if self._owner.pick is not None:
            exchange, path = self._owner.pick(host, path)
        item = Ready(Incoming(method, path, query, fields, self._address, self.scheme or "http"), b"", True)
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
            self.enter(cycle)

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
            self.enter(item)
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
        make = OldCycle if version == "1.0" else RequestResponseCycle
        cycle = make(
            scope=scope,  # type: ignore[arg-type]
            transport=CycleTransport(self),  # type: ignore[arg-type]
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
