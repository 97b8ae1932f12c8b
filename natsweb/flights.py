"""HTTP requests under way through a gateway: from the first try to the one outcome, which may be a stream.

A `Flight` sends its request with its deadline, and once more where it was surely not executed. It hears that it is
being worked on, or that its answer streams, and tells the service when nobody waits any more. Which requests may
cross, and whose they are, is the exchange's business.
"""

import asyncio
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, final

from natsweb.bus import Asked, Bus, Reply
from natsweb.catalogue import Owner
from natsweb.errors import BadReply, Disconnected, HTTPError, NatsDown, NoService, TimeUp
from natsweb.pipes import Stream
from natsweb.proxy_wire import ProxyWire
from natsweb.wire import decode_control, decode_reply, may_retry, stamp

__all__ = ["Budget", "Done", "Flight", "Incoming", "Opened", "Outcome", "Tower", "nats_down"]

_RETRIES = 2
_IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT"})
_RECONNECT = 1.0  # within which a lost request that may be repeated finds a connection again
_FEED = re.compile(rb"(?:^|\n)content-type: *text/event-stream", re.IGNORECASE).search


@final
@dataclass(frozen=True, slots=True)
class Opened:
    """An answer that streams: its status, its field lines, and where its bytes come from. Status 101 is a WebSocket."""

    status: int
    lines: bytes
    stream: Stream
    flight: "Flight"


#: What becomes of a flight: the reply as it came, an answer that streams, or what went wrong.
Outcome: TypeAlias = Reply | Opened | HTTPError

#: Gets the one outcome of a flight.
Done: TypeAlias = Callable[[Outcome], None]


class Tower(Protocol):
    """What a flight needs of the exchange that it belongs to."""

    bus: Bus
    loop: asyncio.AbstractEventLoop
    budget: "Budget"
    turns: int
    reply_prefixes: tuple[bytes, ...]
    #: The origin's format, in place of natsweb's own.
    wire: ProxyWire | None
    #: Whether what may be repeated is, although it may have been executed.
    retry_idempotent: bool
    #: Whether requests that nobody listens to are held, or refused for now.
    is_paused: bool

    @property
    def is_settling(self) -> bool:
        """Whether the connection came back a moment ago."""
        ...

    def prepare(self, incoming: "Incoming") -> bytes:
        """Find out where a request goes."""
        ...

    def nobody(self, incoming: "Incoming") -> HTTPError:
        """Return the error of a request that nobody listens to."""
        ...

    def hold(self, flight: "Flight") -> None:
        """Keep a flight until services are back."""

    def away(self, flight: "Flight") -> None:
        """End a request to a service that is not there."""

    def wait_for_start(self, flight: "Flight") -> None:
        """Keep a flight until its service takes requests."""

    def wait_to_learn(self, flight: "Flight") -> bool:
        """Keep a flight for nobody until more is known of who is there; False if it may go."""
        ...

    def streams(self, flight: "Flight") -> None:
        """Hear that a flight streams from now on."""

    def forget(self, flight: "Flight") -> None:
        """Take a flight that is over off the books."""


class Incoming:
    """An HTTP request as a door of the gateway has it: bytes, but for the ASCII method.

    `raw_path` is still percent-encoded and below the gateway's mount; `fields` are the lines that may cross, as
    `Exchange.encode_fields` gives them. What the exchange makes of it stays with it, until services come or go:
    clients repeat their requests, and a door may launch the same one again. `to` is the subject as the bus takes it,
    `owner` the service that is meant.
    With `more`, the body goes on in a stream; `upgrade` asks for a WebSocket. `limit` is how many seconds the answer
    may take at most, whatever the exchange allows, None for no such bound.
    """

    __slots__ = (
        "client",
        "fields",
        "head",
        "limit",
        "method",
        "more",
        "owner",
        "query",
        "raw_path",
        "scheme",
        "subject",
        "timeout",
        "to",
        "turn",
        "upgrade",
    )

    #: Seconds that the answer may take: the exchange says so.
    timeout: float

    def __init__(
        self,
        method: str,
        raw_path: bytes,
        query: bytes,
        fields: bytes,
        client: str | None = None,
        scheme: str = "http",
        *,
        more: bool = False,
        upgrade: bool = False,
    ) -> None:
        self.method = method
        self.raw_path = raw_path
        self.query = query
        self.fields = fields
        self.client = client
        self.scheme = scheme
        self.more = more
        self.upgrade = upgrade
        self.subject = ""
        self.to = b""
        self.head: bytes | None = None
        self.owner: Owner | None = None
        self.turn = 0
        self.limit: float | None = None

    def __repr__(self) -> str:
        return f"<Incoming {self.method} {self.raw_path.decode('latin-1')}>"


class Budget:
    """Allows retries up to a tenth of the traffic, so that retries never make an overload worse."""

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def __repr__(self) -> str:
        return f"<Budget: {self._left:.1f} retries>"

    def earn(self) -> None:
        """Count a request."""
        if self._left < self._reserve:
            self._left += self._share

    def spend(self) -> bool:
        """Tell whether one may be sent again now."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Flight(Asked):
    """One request under way: from the first try to its one outcome, or to the end of the stream that this is."""

    __slots__ = (
        "_attempt",
        "_deadline",
        "_done",
        "_exchange",
        "_lost",
        "_lost_at",
        "_pinned",
        "_timer",
        "body",
        "incoming",
        "is_feed",
        "opened",
        "sent_to",
        "stream",
    )

    hears: ClassVar[bool] = True

    #: When the whole of it is due, in the event loop's time: set by the first try, or by waiting for one.
    _deadline: float

    def __init__(self, exchange: Tower, incoming: Incoming, body: bytes, done: Done) -> None:
        self.incoming = incoming
        self.body = body
        self.reply = b""
        self.due = math.inf  # until the bus has it
        self.sent_to: Owner | None = None
        self._exchange = exchange
        self._done: Done | None = done
        self._attempt = 0
        self._lost: Disconnected | None = None  # what a try that may have been executed has come to
        self._lost_at = 0.0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._pinned: asyncio.Future[Stream | None] | None = None
        self.stream: Stream | None = None
        self.opened = False
        self.is_feed = False

    def __repr__(self) -> str:
        return f"<Flight {self.incoming.subject}: {'over' if self._done is None else f'try {self._attempt}'}>"

    def send(self) -> None:
        """Try once (more)."""
        exchange, incoming = self._exchange, self.incoming
        if self._timer is not None:  # of a wait that something else has ended
            self._timer.cancel()
            self._timer = None
        left = incoming.timeout if self._deadline == 0.0 else self._deadline - exchange.loop.time()
        if left <= 0:
            self.finish(TimeUp(f"no answer within {incoming.timeout:g} s"))
            return
        head = incoming.head
        if head is None or incoming.turn != exchange.turns:
            try:
                head = exchange.prepare(incoming)
            except HTTPError as error:
                self.finish(error)
                return
        self.sent_to = owner = incoming.owner
        if owner is None:
            if exchange.wait_to_learn(self):
                return
        elif owner.is_starting or owner.is_away:
            exchange.wait_for_start(self) if owner.is_starting else exchange.away(self)
            return
        self._attempt += 1
        header: bytes | None = None
        payload = self.body
        if exchange.wire is None:
            header = stamp(head, int(left * 1000), int(time.time() * 1000))
        else:
            payload = exchange.wire.encode_request(incoming.method, incoming.fields, payload)
        try:
            exchange.bus.carry(self, incoming.to, payload, header, left)
        except NatsDown:
            if self._lost is not None and exchange.loop.time() - self._lost_at < _RECONNECT:
                self._attempt -= 1
                self.wait(0.05, self.send)
            else:
                self.finish(nats_down())
        except HTTPError as error:
            self.finish(error)
        else:
            if self._deadline == 0.0:
                self._deadline = self.due

    def settle(self, outcome: Reply | HTTPError) -> None:
        """Take what the bus says: try again where that can do no harm, else end."""
        if type(outcome) is tuple:
            if self.opened and self.stream is not None:
                self.stream.fail_with(BadReply("a message of the service says no more where it comes from"))
                return
            if self.stream is not None:
                self._release()
            if not may_retry(outcome[0]) or self._pinned_already:
                done, self._done = self._done, None
                if done is not None:
                    self._exchange.forget(self)
                    done(outcome)
                return
            # Another member may take it at once; after that, not all at the same time.
            pause = 0.0 if self._attempt == 1 else random.uniform(0.01, 0.03)
            if self._attempt <= _RETRIES and self._go_again(pause):
                return
        elif self.opened:
            if isinstance(outcome, HTTPError) and self.stream is not None:
                self.stream.fail_with(outcome)
            return
        elif isinstance(outcome, NoService):
            if self._exchange.is_paused:
                self._exchange.hold(self)
                return
            if self._exchange.is_settling:  # NATS has just come back, and services may be a moment later
                self.wait(random.uniform(0.02, 0.06), self.send)
                return
            if self._attempt == 1 and self._go_again(random.uniform(0.01, 0.03)):
                return
            outcome = self._exchange.nobody(self.incoming)
        elif isinstance(outcome, Disconnected):
            self.lose(outcome)
            return
        self.finish(outcome)

    def _go_again(self, pause: float) -> bool:
        loop = self._exchange.loop
        if not self._exchange.budget.spend() or loop.time() + pause >= self._deadline:
            return False
        self._timer = loop.call_later(pause, self.send)
        return True

    def lose(self, why: Disconnected) -> None:
        """End what may have been executed, or send it again where that is allowed: see `Gateway`."""
        exchange, incoming = self._exchange, self.incoming
        whole = not incoming.more and not incoming.upgrade
        may = exchange.retry_idempotent and incoming.method in _IDEMPOTENT and whole
        if not may or self.opened or self._done is None or self._attempt > _RETRIES:
            self.finish(why)
            return
        if self.stream is not None:
            self.stream.cancel()
            self._release()
        exchange.bus.drop(self)
        self._lost, self._lost_at = why, exchange.loop.time()
        self.wait(random.uniform(0.01, 0.03), self.send)

    @property
    def is_late(self) -> bool:
        """Whether its time is up."""
        return self._exchange.loop.time() >= self._deadline

    @property
    def is_sent(self) -> bool:
        """Whether it is on the bus."""
        return self._attempt > 0 and self._timer is None and self._done is not None

    def look_again(self) -> None:
        """Send a request that was meant for nobody to the natsweb service that has appeared: none has run it."""
        try:
            self._exchange.prepare(self.incoming)
        except HTTPError as error:
            self.finish(error)
            return
        if self.incoming.owner is not None and self.incoming.owner.is_natsweb:
            self._exchange.bus.drop(self)
            self.send()

    def wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` after `seconds`, or at the deadline, unless something else happens first."""
        loop = self._exchange.loop
        if self._deadline == 0.0:
            self._deadline = loop.time() + self.incoming.timeout
        self._timer = loop.call_at(min(loop.time() + seconds, self._deadline), then)

    # ── more than one message ──

    def hear(self, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """Take a message that says where its sender can be reached: an accept, a head, or a part of a stream."""
        stream = self.stream
        if stream is not None and (header is None or self.opened):
            stream.hear(header, payload)
            if header is not None:
                self._pin(header)
            return
        try:
            if header is None or not self._interim(reply, header):
                self._exchange.bus.drop(self)  # a reply like any other
                self.settle((header, payload))
        except HTTPError as error:
            self.finish(error)

    def _interim(self, reply: bytes, header: bytes) -> bool:
        """Take an accept or the head of a stream; False if it is neither."""
        control = decode_control(header)
        accept = control.status in (100, 101, 102)
        stream = self.stream
        if not accept and not control.stream:
            if stream is None or (control.flow is None and not control.cancel and control.end is None):
                return False
            stream.control(control)
            if control.end is not None:
                raise Disconnected("the service ended its answer before it began")
            return True
        if stream is None:
            if not reply.startswith(self._exchange.reply_prefixes):
                if control.status == 102:
                    return True  # the answer may come all the same
                raise BadReply("the service wants to be answered where no inbox is")
            sent = len(self.body)
            stream = self.stream = Stream(self._exchange.bus, reply, credit=sent, sent=sent, on_cancel=self._gone)
        stream.control(control)
        if control.status == 101 and self.incoming.upgrade:
            self._open(101, control.lines)
        elif control.stream:
            status, lines, _ = decode_reply(header, b"", self.incoming.method)
            self._open(status, lines)
        elif control.status == 100:
            self._pin(header)
        if control.timeout is not None and not self.opened:
            self.give_time(control.timeout)
        return True

    def _pin(self, header: bytes) -> None:
        """Let the rest of the body go where it is wanted, before the answer or after it has begun."""
        pinned = self._pinned
        if not self.incoming.more or self.stream is None or (pinned is not None and pinned.done()):
            return
        if decode_control(header).status == 100:
            self.stream.flows = True
            if pinned is None:  # it wants the rest before whoever sends it has asked
                pinned = self._pinned = self._exchange.loop.create_future()
            pinned.set_result(self.stream)

    def _open(self, status: int, lines: bytes) -> None:
        done, self._done = self._done, None
        if done is None or self.stream is None:
            return
        self.opened = True
        self.stream.flows = True
        self.is_feed = _FEED(lines) is not None
        self.due = math.inf
        self._exchange.streams(self)
        done(Opened(status, lines, self.stream, self))

    def _gone(self) -> None:
        """Hear that the service wants no more of this, or that its process is gone: it may have been executed."""
        self.lose(Disconnected("the service went away before it had answered"))

    def go_on(self, seconds: float) -> None:
        """Have the answer due `seconds` from now, unless the service has asked for more."""
        if not self.opened:
            self.due = self._deadline = max(self._deadline, self._exchange.loop.time() + max(seconds, self.timeout))

    def give_time(self, seconds: float) -> None:
        """Have the answer due `seconds` from now."""
        if not self.opened:
            self.timeout = seconds
            self.due = self._deadline = self._exchange.loop.time() + seconds

    def end_feed(self) -> None:
        """End an answer that may end at any time: its client comes again."""
        if self.opened and self.stream is not None:
            self.stream.cancel()
            self.stream.end_well()

    async def pinned(self) -> Stream | None:
        """Wait until one member has taken the request, and return where the rest of its body goes.

        None when the request has ended before that.
        """
        if self._pinned is None:
            self._pinned = self._exchange.loop.create_future()
            if self._done is None and not self.opened:
                return None
        return await self._pinned

    @property
    def _pinned_already(self) -> bool:
        return self._pinned is not None and self._pinned.done() and self._pinned.result() is not None

    # ── the end ──

    def finish(self, outcome: HTTPError | Reply) -> None:
        """End with an outcome, unless it has ended; a lost try is told as such, since it may have been executed."""
        done = self._done
        if done is not None:
            self.drop()
            done(outcome if self._lost is None else self._lost)

    def drop(self) -> None:
        """End without an outcome: nobody waits for it any more, and the service is told so."""
        if self._done is None and not self.opened:
            return
        self._done = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.stream is not None:
            self.stream.cancel()
        self.close()

    def close(self) -> None:
        """Let go of all: it is over, and the service knows."""
        self.opened = False
        if self.stream is not None:
            self._release()
        self._exchange.bus.drop(self)
        self._exchange.forget(self)

    def _release(self) -> None:
        if self.stream is not None:
            self.stream.release()
            self.stream = None
        if self._pinned is not None and not self._pinned.done():
            self._pinned.set_result(None)


def nats_down() -> NatsDown:
    """Return the error of a gateway without a connection to NATS."""
    return NatsDown("the gateway has no connection to NATS", headers={"retry-after": "1"})
