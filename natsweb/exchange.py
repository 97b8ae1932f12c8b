"""One HTTP request over the bus and back: what both doors of the gateway share.

Decides, before anything is sent, whether a request can cross: path, method, header block, sizes, what waits already;
and whose it is. Then a `Flight` carries it. It knows no sockets, no ASGI and no HTTP parser.
"""

import asyncio
import functools
import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from natsweb.arriving import streamed
from natsweb.bus import Bus, Reply
from natsweb.catalogue import Owner
from natsweb.errors import (
    BadReply,
    Disconnected,
    HeadersTooLarge,
    HTTPError,
    MethodNotAllowed,
    NoService,
    Overloaded,
    ServiceAway,
    Stopping,
    TooLarge,
)
from natsweb.flights import Budget, Done, Flight, Incoming, Opened, Outcome, nats_down
from natsweb.headers import Headers
from natsweb.messages import Response
from natsweb.proxy_wire import ProxyWire
from natsweb.replies import problem
from natsweb.routing import WEBSOCKET
from natsweb.rules import Rules
from natsweb.settings import Limits
from natsweb.streams import WINDOW
from natsweb.subjects import REPLY_PREFIXES, check_root, to_subject
from natsweb.wire import decode_reply, encode_fields, is_method, request_head

__all__ = ["FORWARDED_METHODS", "Exchange", "address", "check_method", "check_size"]

logger = logging.getLogger("natsweb.gateway")

FORWARDED_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_SAFE = ("GET", "HEAD", "OPTIONS")
_SETTLING = 2.0
_SILENCE = 0.2  # after which a service that was meant is asked whether it is there (docs/wire.md)
_STARTING = 1.0
_NOBODY = "*"  # no service's name: natsweb services stand aside, others know nothing of it


class Directory(Protocol):
    """Who is there: whose a request is, and where to report one that does not answer."""

    def owner(self, method: str, tokens: Sequence[str]) -> Owner | None:
        """Return the service that is meant."""
        ...

    def was_there(self, tokens: Sequence[str]) -> bool:
        """Tell whether somebody has served a path, now or before."""
        ...

    @property
    def knows_natsweb(self) -> bool:
        """Whether a natsweb service has ever been heard of."""
        ...

    @property
    def new_for(self) -> float:
        """Seconds for which services that are there may not have been heard of yet; then 0 or less."""
        ...

    def suspect(self, name: str) -> None:
        """Find out whether a service is there at all."""
        ...

    def look_again(self) -> None:
        """Find out who else is there."""
        ...


class Exchange:
    """Carries requests over `bus` to the services below `root`, each for `timeout` seconds at most, by `rules`."""

    def __init__(
        self,
        bus: Bus,
        root: str,
        *,
        timeout: float = 10.0,
        limits: Limits | None = None,
        rules: Rules | None = None,
        wire: ProxyWire | None = None,
        reply_prefixes: tuple[str, ...] = REPLY_PREFIXES,
        retry_idempotent: bool = False,
    ) -> None:
        self.bus = bus
        self.retry_idempotent = retry_idempotent
        self.wire = wire
        self.decode_reply = decode_reply if wire is None else wire.decode_reply
        self.window = WINDOW if wire is None else 0
        self.reply_prefixes = tuple([prefix.encode() for prefix in reply_prefixes])
        self.root = check_root(root)
        self.timeout = timeout
        self.limits = limits or Limits()
        self.rules = rules or Rules()
        spell = None if wire is None else functools.partial(wire.subject, limit=self.limits.subject)
        self._excluded = self.rules.excluded(self.root, spell)
        self._times = self.rules.times(self.root, spell)
        self.budget = Budget()
        self.loop = asyncio.get_running_loop()
        self._flights: set[Flight] = set()
        self._streams: set[Flight] = set()
        self._pending_bytes = 0
        self._clients: Counter[str] = Counter()
        self._ending = False
        self.directory: Directory | None = None
        self.known_only = False
        self.turns = 0
        self._starting: set[Flight] = set()
        self._listener: asyncio.TimerHandle | None = None
        self._held: set[Flight] = set()
        self.is_paused = False
        self._refusal: HTTPError | None = None

    def __repr__(self) -> str:
        return f"<Exchange below {self.root}: {len(self._flights)} requests under way, {len(self._streams)} streams>"

    # ── whether a request can cross ──

    @property
    def max_body(self) -> int:
        """Largest request body in bytes, with the smallest of header blocks."""
        return self.bus.max_payload - self.limits.margin

    def admit(self) -> None:
        """Raise `Overloaded` or `NatsDown` before anything of a request is looked at."""
        if not self.bus.is_connected:
            raise nats_down()
        self._check_pending()

    def may_stream(self, incoming: Incoming) -> bool:
        """Tell whether the service that is meant is known to take a body as a stream."""
        return bool(self.window) and incoming.owner is not None and incoming.owner.streams

    def wants_stream(self, incoming: Incoming) -> bool:
        """Tell whether the route that is meant takes its body as it comes."""
        return incoming.owner is not None and incoming.owner.takes_body

    def _check_pending(self) -> None:
        limits = self.limits
        if len(self._streams) >= limits.streams:
            raise Overloaded("the gateway has as many streams and WebSockets open as it may have")
        if len(self._flights) >= limits.pending or self._pending_bytes > limits.pending_bytes:
            raise Overloaded("the gateway has as many requests under way as it may have")

    def too_large(self) -> TooLarge:
        """Return the error of a body over the limit, with the limit in words."""
        if 0 < self.limits.body < self.max_body:
            return self.over_limit()
        return TooLarge(
            f"the request body is too large: at most {self.max_body} bytes, less the size of the headers, "
            f"fit into one NATS message (max_payload of the server is {self.bus.max_payload})"
        )

    def over_limit(self) -> TooLarge:
        """Return the error of a body that is larger than this gateway takes."""
        return TooLarge(f"the request body is too large: this gateway takes {self.limits.body} bytes at most")

    def encode_fields(self, fields: list[tuple[bytes, bytes]]) -> bytes:
        """Return the field lines that may cross.

        Raises `HeadersTooLarge` over the limits, `BadRequest` for a name or value that must not be sent.
        """
        lines = encode_fields(self.rules.apply(fields))
        check_size(lines, len(fields), self.limits)
        return lines

    def launch(self, incoming: Incoming, body: bytes, done: Done) -> Flight:
        """Send a request; `done` is called once, with its outcome, unless the flight is dropped.

        Raises `HTTPError` for a request that cannot cross; nothing has been sent then.
        """
        if incoming.head is None or incoming.turn != self.turns:
            self.prepare(incoming)
        limits, size = self.limits, len(incoming.fields) + len(body)
        if size > limits.margin and size > self.max_body:
            raise self.too_large()
        if body and 0 < limits.body < len(body):
            raise self.over_limit()
        self._check_pending()
        if limits.per_client and incoming.client is not None:
            self._count_client(incoming.client)
        flight = Flight(self, incoming, body, done)
        self._flights.add(flight)
        self._pending_bytes += len(body)
        self.budget.earn()
        if self._listener is None and self.directory is not None:
            self._listener = self.loop.call_later(_SILENCE, self._listen)
        try:
            flight.send()
        except BaseException:
            flight.drop()
            raise
        return flight

    def _count_client(self, client: str) -> None:
        """Count a request of an address; raises `Overloaded` when it has as many under way as it may have."""
        host = client.rpartition(":")[0]
        if self._clients[host] >= self.limits.per_client:
            detail = f"this client has {self.limits.per_client} requests under way already"
            raise HTTPError(429, detail, reason="too_many_requests", headers={"retry-after": "1"})
        self._clients[host] += 1

    def prepare(self, incoming: Incoming) -> bytes:
        """Find out where a request goes, who is meant, and what it says there.

        Raises `NoService` for a path that nobody has claimed, where only those that somebody has are asked for.
        """
        if incoming.method not in FORWARDED_METHODS:
            check_method(incoming.method)
        raw_path, limit = incoming.raw_path.decode("latin-1"), self.limits.subject
        if self.wire is None:
            incoming.subject = to_subject(self.root, raw_path, limit=limit)
        else:
            incoming.subject = self.wire.subject(self.root, raw_path, limit)
        incoming.to = incoming.subject.encode("latin-1")
        incoming.timeout = self.timeout
        if self._excluded or self._times:
            self._look_up(incoming)
        if incoming.limit is not None:
            incoming.timeout = min(incoming.timeout, incoming.limit)
        owner = service = None
        if self.directory is not None:
            owner = self.directory.owner(WEBSOCKET if incoming.upgrade else incoming.method, self._tokens(incoming))
            if owner is not None:
                service = owner.name
            elif self.known_only and self.directory.new_for <= 0:
                raise NoService("no service has this path")
            elif self.directory.knows_natsweb:
                # Nobody is meant, so that services which the catalogue does not know yet do not all run the request:
                # `turn` sends it again to the one that appears.
                service = _NOBODY
        incoming.owner = owner
        incoming.turn = self.turns
        incoming.head = request_head(
            incoming.method,
            incoming.fields,
            query=incoming.query,
            client=incoming.client,
            scheme=incoming.scheme,
            service=service,
            window=self.window,
            more=incoming.more,
            upgrade=incoming.upgrade,
        )
        return incoming.head

    def _look_up(self, incoming: Incoming) -> None:
        """Find what the rules say of a path; raises `NoService` for one that this gateway does not reach."""
        subject = incoming.subject + "."
        if subject.startswith(self._excluded) or subject.replace("%2F", ".").startswith(self._excluded):
            raise NoService("this gateway has no such path")  # applications take %2F for a slash
        for start, seconds in self._times:
            if subject.startswith(start):
                incoming.timeout = seconds
                return

    def _tokens(self, incoming: Incoming) -> list[str]:
        below = incoming.subject[len(self.root) + 1 :]
        return below.split(".") if below else []

    def streams(self, flight: Flight) -> None:
        """Hear that a flight streams from now on: it is no longer one that waits for its answer."""
        self._flights.discard(flight)
        self._streams.add(flight)
        self._pending_bytes -= len(flight.body)
        flight.body = b""
        if self._ending and flight.is_feed:
            self.loop.call_soon(flight.end_feed)

    def forget(self, flight: Flight) -> None:
        """Take a flight that is over off the books."""
        if self._clients and (flight in self._flights or flight in self._streams) and flight.incoming.client:
            host = flight.incoming.client.rpartition(":")[0]
            self._clients[host] -= 1
            if not self._clients[host]:
                del self._clients[host]
        self._flights.discard(flight)
        if self._streams:
            self._streams.discard(flight)
        self._pending_bytes -= len(flight.body)
        if self._starting:
            self._starting.discard(flight)
        if self._held:
            self._held.discard(flight)

    async def fly(self, incoming: Incoming, body: bytes) -> Outcome:
        """Send a request, and return what becomes of it; raises what `launch` raises. Cancelling drops the request."""
        landed: asyncio.Future[Outcome] = self.loop.create_future()
        flight = self.launch(incoming, body, landed.set_result)
        try:
            return await landed
        except BaseException:
            flight.drop()
            raise

    async def forward(self, incoming: Incoming, body: bytes) -> Response:
        """Return the response to a request, which may stream; every failure before that is a response as well.

        Cancelling drops the request, and so does closing the pieces of a stream before their end.
        """
        try:
            outcome = await self.fly(incoming, body)
        except HTTPError as error:
            return problem(error)
        if isinstance(outcome, Opened):
            return streamed(outcome)
        return self.to_response(outcome, incoming.method)

    def to_response(self, outcome: Reply | HTTPError, method: str) -> Response:
        """Return the response of a flight's outcome."""
        try:
            if isinstance(outcome, HTTPError):
                return problem(outcome)
            status, lines, body = self.decode_reply(*outcome, method)
            return Response.trusted(status, Headers.from_block(lines), body)
        except HTTPError as error:
            if isinstance(error, BadReply):
                logger.warning("the reply to a %s cannot be sent: %s", method, error.detail)
            return problem(error)

    def end_feeds(self) -> None:
        """End the feeds, which never end by themselves, and those to come: the gateway stops."""
        self._ending = True
        for flight in [one for one in self._streams if one.is_feed]:
            flight.end_feed()

    def cut(self) -> int:
        """End everything under way with a 503; return how many that were."""
        flights = [*self._flights, *self._streams]
        stopping = Stopping("the gateway stopped before the answer was there")
        for flight in flights:
            if flight.opened and flight.stream is not None:
                flight.stream.fail_with(stopping)
            else:
                flight.finish(stopping)
        return len(flights)

    @property
    def is_settling(self) -> bool:
        """Whether the connection came back so lately that services may not have subscribed again."""
        return self.loop.time() - self.bus.reconnected_at < _SETTLING

    # ── whose a request is ──

    def turn(self) -> None:
        """Look again whose requests are: services have come or gone.

        What was meant for nobody no natsweb service has run, but somebody else may: only what is safe is sent again.
        """
        self.turns += 1
        for flight in [one for one in self._flights if one.sent_to is None and one.is_sent and one.stream is None]:
            if flight.incoming.method in _SAFE:
                flight.look_again()
        waiting, self._starting = self._starting, set()
        for flight in waiting:
            flight.send()

    def wait_for_start(self, flight: Flight) -> None:
        """Keep a flight until the service that is meant, and has just announced itself, takes requests."""
        self._starting.add(flight)
        flight.wait(_STARTING, lambda: flight.finish(self.nobody(flight.incoming)))

    def wait_to_learn(self, flight: Flight) -> bool:
        """Keep a flight for nobody, since its service may have been too busy yet to say a word; False if it may go.

        It is kept until somebody says that the path is its own, or until everybody has had the time to. What is safe
        goes out all the same, and once more to the service that appears: see `turn`.
        """
        directory, incoming = self.directory, flight.incoming
        if directory is None or (left := directory.new_for) <= 0:
            return False
        if not self.known_only and (incoming.method in _SAFE or not directory.knows_natsweb):
            return False
        incoming.head = None  # who is meant is asked again
        self._starting.add(flight)

        def go_on() -> None:
            self._starting.discard(flight)
            flight.finish(self.nobody(incoming)) if flight.is_late else flight.send()

        flight.wait(left, go_on)
        return True

    def away(self, flight: Flight) -> None:
        """End a request to a service that is not there, unless it is known to come back."""
        if self.is_paused:
            self.hold(flight)
            return
        if self.directory is not None:
            self.directory.look_again()
        flight.finish(self.nobody(flight.incoming))

    def nobody(self, incoming: Incoming) -> HTTPError:
        """Return the error of a request that nobody listens to: 404, or 503 if somebody has."""
        if self.directory is None or not self.directory.was_there(self._tokens(incoming)):
            return NoService("no service listens on this path")
        return ServiceAway("the service of this path is not there")

    def _listen(self) -> None:
        """Have those services looked for that have not said a word for a while."""
        self._listener = None
        later = self.loop.time() - _SILENCE
        silent = [one for one in self._flights if one.due < later + one.incoming.timeout and one.stream is None]
        if self.directory is not None:
            for name in {one.sent_to.name for one in silent if one.sent_to is not None}:
                self.directory.suspect(name)
            if any(one.sent_to is None for one in silent):
                self.directory.look_again()
        if self._flights:
            self._listener = self.loop.call_later(_SILENCE, self._listen)

    def gone(self, name: str) -> None:
        """End what a service was asked for that is gone: it may have been executed."""
        for flight in [one for one in self._flights if one.sent_to is not None and one.sent_to.name == name]:
            if flight not in self._starting:
                flight.lose(Disconnected(f"the service {name} went away before it had answered"))

    # ── holding requests while a service restarts ──

    def pause(self) -> None:
        """From now on, requests that nobody listens to wait for `resume` or `refuse`, as long as they may take."""
        self.is_paused = True
        self._refusal = None

    def refuse(self, detail: str) -> None:
        """Answer requests that nobody listens to with a 503, those that wait as well, until `pause` or `resume`."""
        self.is_paused = True
        self._refusal = _not_serving(detail)
        held, self._held = self._held, set()
        for flight in held:
            flight.finish(self._refusal)

    def resume(self) -> None:
        """Send what waits, and stop holding."""
        self.is_paused = False
        held, self._held = self._held, set()
        for flight in held:
            flight.send()

    def hold(self, flight: Flight) -> None:
        """Keep a flight until `resume`, or answer 503: when its time is up, or at once while requests are refused."""
        if self._refusal is not None:
            flight.finish(self._refusal)
            return
        self._held.add(flight)
        flight.wait(math.inf, lambda: flight.finish(_not_serving("the service is still starting")))


def _not_serving(detail: str) -> HTTPError:
    return HTTPError(503, detail, reason="no_service", headers={"retry-after": "1"})


def check_method(method: str) -> None:
    """Raise `MethodNotAllowed` for a method that never crosses, and 501 for what is none."""
    if method in ("TRACE", "CONNECT"):
        raise MethodNotAllowed(f"a gateway does not forward {method}", allow=FORWARDED_METHODS)
    if not is_method(method):
        raise HTTPError(501, "this is not an HTTP method", reason="unknown_method")


def check_size(lines: bytes, count: int, limits: Limits) -> None:
    """Raise `HeadersTooLarge` for `count` fields, `lines` of which cross, over the limits."""
    if len(lines) > limits.header_bytes:
        raise HeadersTooLarge(f"the request's headers have more than {limits.header_bytes} bytes")
    if count > limits.header_count:
        raise HeadersTooLarge(f"the request has more than {limits.header_count} headers")


def address(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
