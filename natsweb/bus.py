"""The port to NATS: what natsweb asks of a message bus, and a bus in memory that behaves like NATS.

A bus moves opaque messages: subject, reply subject, header block, payload. Everything but `subscribe`, `flush`
and `close` returns at once; received messages and answers come through synchronous callbacks in the event
loop. `MemoryBus` has NATS's semantics (wildcards, queue groups, no responders, limits); one contract suite
holds it equal to a real server. This module knows no HTTP and no nats-py.
"""

import asyncio
import logging
import math
import os
import random
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

from natsweb.beats import Pulse
from natsweb.deadlines import Deadlines, Timed
from natsweb.errors import Disconnected, HTTPError, NatsDown, NoService, TimeUp, TooLarge
from natsweb.subjects import ANY, REPLY_PREFIXES, matches
from natsweb.wire import CANCEL, is_no_responders, is_opening

__all__ = [
    "Answer",
    "Asked",
    "Asking",
    "Bus",
    "Inbox",
    "MemoryBus",
    "Message",
    "Receive",
    "ReceiveParts",
    "Reply",
    "Subscription",
    "request",
]

logger = logging.getLogger("natsweb.bus")

_PREFIXES = tuple([prefix.encode() for prefix in REPLY_PREFIXES])


class Message(NamedTuple):
    """One message as it came: subject and reply are latin-1 text, since a peer may send any bytes.

    `reply` is empty if the sender wants no answer; `header` is None if there is no header block.
    """

    subject: str
    reply: str
    header: bytes | None
    payload: bytes


#: Gets every message of a subscription; must not block.
Receive = Callable[[Message], None]

#: Gets the parts of every message of a subscription, subjects in bytes and an empty reply for none; must not block.
ReceiveParts = Callable[[bytes, bytes, bytes | None, bytes], None]

#: Gets the one outcome of an `ask`: the reply, or why there is none.
Answer = Callable[[Message | HTTPError], None]

#: Header block and payload of a reply.
Reply: TypeAlias = tuple[bytes | None, bytes]


class Asked(Timed):
    """A request under way on a bus, which hears what becomes of it.

    Whoever has more to keep for a request derives from it: one object for each is enough (tests/benchmarks).
    """

    __slots__ = ("reply", "timeout")

    #: Whether it wants messages that themselves have a reply subject: more will come, and it stays. Else the first
    #: message is the outcome.
    hears: ClassVar[bool] = False
    #: Whether it stays in any case, until it is dropped: all messages go to `hear`.
    stays: ClassVar[bool] = False

    # The reply subject, and the seconds that were left: the bus sets both.
    reply: bytes
    timeout: float

    def settle(self, outcome: Reply | HTTPError) -> None:
        """Take the one outcome: a reply, or why there is none."""
        raise NotImplementedError

    def hear(self, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """Take one of several messages; `reply` is empty if it has none."""
        raise NotImplementedError


class Subscription(Protocol):
    """A live subscription."""

    def stop(self) -> None:
        """Ask for no more messages; those that are on their way still arrive, all before the next `flush` ends."""


class Bus(Protocol):
    """A connection to NATS, or something that behaves like one."""

    @property
    def max_payload(self) -> int:
        """Largest size of header block plus payload, in bytes."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether a message published now would leave at once."""
        ...

    @property
    def reconnected_at(self) -> float:
        """When the connection last came back, in the event loop's time; -inf if it never was lost."""
        ...

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message.

        Raises `TooLarge` over `max_payload`, `NatsDown` without a connection; nothing has been sent then.
        """

    def ask(
        self, subject: str, payload: bytes, *, header: bytes | None = None, timeout: float, answer: Answer
    ) -> Callable[[], None]:
        """Send a request; `answer` is called once, later: with the first reply or with what went wrong.

        That is `NoService` (nobody listens), `TimeUp` after `timeout` seconds, or `Disconnected`. Raises as
        `publish` does, and then `answer` is never called. Returns a function that drops the request: a later
        reply goes nowhere.
        """
        ...

    def new_inbox(self) -> str:
        """Return an unguessable subject where answers of many may go; it is to be subscribed to."""
        ...

    def carry(self, asked: Asked, subject: str, payload: bytes, header: bytes | None, timeout: float) -> None:
        """Send a request as `ask` does, for one who has an object for it anyway; its `settle` is called once, later."""

    def drop(self, asked: Asked) -> None:
        """Forget a request that `carry` has sent, if it is still under way: a later reply goes nowhere."""

    def open(self, asked: Asked) -> None:
        """Give a subject of ours to one that `stays`: `asked.reply`. It has no deadline, and ends with `drop`."""

    def post(self, subject: bytes, payload: bytes, header: bytes | None = None, reply: bytes = b"") -> None:
        """Send a message, as `publish` does, for one who has bytes."""

    def post_later(self, subject: bytes, header: bytes | None, reply: bytes = b"", payload: bytes = b"") -> None:
        """Send a last word as soon as there is a connection again: that something has ended, or with what answer.

        More than a bus keeps of these is dropped.
        """

    @property
    def pulse(self) -> Pulse:
        """Who tells whether other processes are alive."""
        ...

    @property
    def is_congested(self) -> bool:
        """Whether more than is good waits to be sent: streams wait for `relieved` then."""
        ...

    async def relieved(self) -> None:
        """Wait until there is room again; returns at once without a connection."""

    async def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject` (with wildcards); with `queue`, one member of that group gets each."""
        ...

    async def subscribe_parts(self, subject: str, receive: ReceiveParts, *, queue: str = "") -> Subscription:
        """Do as `subscribe`, with less between the connection and `receive`."""
        ...

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait until the server has seen all that was sent, and all that it had sent has been received.

        Raises `NatsDown` without a connection, `TimeUp` after `timeout` seconds, `NatsRefused` if the server has
        refused a subscription since the last `flush`.
        """

    async def close(self) -> None:
        """Send what is pending and let go of everything; requests in flight end with `Disconnected`."""


async def request(
    bus: Bus, subject: str, payload: bytes, *, header: bytes | None = None, timeout: float = 10.0
) -> Message:
    """Send a request and wait for its first reply; raises what `Bus.ask` reports. Cancelling drops the request."""
    future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def answer(outcome: Message | HTTPError) -> None:
        if future.done():
            return
        if isinstance(outcome, HTTPError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    drop = bus.ask(subject, payload, header=header, timeout=timeout, answer=answer)
    try:
        return await future
    finally:
        drop()


class _Called(Asked):
    """A request whose outcome goes to a callback."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def settle(self, outcome: Reply | HTTPError) -> None:
        if isinstance(outcome, HTTPError):
            self._answer(outcome)
        else:
            self._answer(Message(self.reply.decode("latin-1"), "", *outcome))


#: Sends subject, payload, header block and reply subject.
Post = Callable[[bytes, bytes, bytes | None, bytes], None]


class Inbox:
    """The requests of one connection that wait for a reply, below one unguessable subject.

    A token is `<counter>-<64 random bits>`: a service that has seen one can guess no other (WIRE.md, who may
    be answered). Random bits are drawn in bulk from the system. `post` sends what the inbox itself has to say.
    """

    def __init__(self, post: Post, prefix: str = "_INBOX") -> None:
        self._prefix = prefix
        self._own = f"{prefix}.".encode("latin-1")
        self.subject = self.fresh()
        self._replies = _reply_subjects(f"{self.subject}.".encode("latin-1"))
        self._pending: dict[bytes, Asked] = {}  # by reply subject
        self.pulse = Pulse(self.subject.encode("latin-1"), lambda subject, reply: post(subject, b"", None, reply))
        self._post = post
        self._deadlines = Deadlines(self._pending.values, self._time_up)
        self.unclaimed = 0

    def fresh(self) -> str:
        """Return an unguessable subject beside this one, for a subscription of its own."""
        return f"{self._prefix}.{os.urandom(16).hex()}"

    @property
    def pattern(self) -> str:
        """What to subscribe to."""
        return f"{self.subject}.{ANY}"

    def __len__(self) -> int:
        return len(self._pending)

    def open(self, asked: Asked, timeout: float) -> bytes:
        """Wait for the reply to a new request; return its reply subject."""
        asked.reply = reply = next(self._replies)
        asked.timeout = timeout
        asked.due = self._deadlines.start(timeout)
        self._pending[reply] = asked
        return reply

    def open_for_good(self, asked: Asked) -> None:
        """Wait for any number of messages."""
        asked.reply = reply = next(self._replies)
        asked.due = math.inf
        self._pending[reply] = asked

    def _time_up(self, asked: Asked) -> None:
        self.settle(asked.reply, TimeUp(f"no answer within {asked.timeout:g} s"))

    def drop(self, asked: Asked) -> None:
        """Forget a request; its answer will go nowhere."""
        self._pending.pop(asked.reply, None)

    def receive(self, message: Message) -> None:
        """Take a message on the inbox: see `take`."""
        reply = message.reply.encode("latin-1")
        self.take(message.subject.encode("latin-1"), reply, message.header, message.payload)

    def take(self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """Take a message on the inbox in raw parts; one that nobody waits for is counted and dropped."""
        asked = self._pending.get(subject)
        if asked is None:
            self._unclaimed(subject, reply, header)
            return
        if asked.stays or (reply and asked.hears):
            asked.hear(reply, header, payload)
            return
        del self._pending[subject]
        if not payload and is_no_responders(header):
            asked.settle(NoService("no service listens on this path"))
        else:
            asked.settle((header, payload))

    def _unclaimed(self, subject: bytes, reply: bytes, header: bytes | None) -> None:
        """Take a message that nobody waits for; who offers to work, or to stream, is told to stop."""
        if subject == self.pulse.subject:
            self.pulse.hear(reply, header)
            return
        self.unclaimed += 1
        if reply.startswith((self._own, *_PREFIXES)) and is_opening(header):
            try:
                self._post(reply, b"", CANCEL, b"")
            except HTTPError:
                logger.debug("there is no connection to NATS to say that an answer has come too late")

    def settle(self, reply: bytes, error: HTTPError) -> None:
        """End the request of `reply` with `error`, unless it has its outcome."""
        asked = self._pending.pop(reply, None)
        if asked is not None:
            asked.settle(error)

    def fail_all(self, error: HTTPError) -> None:
        """End every request with `error`."""
        waiting = list(self._pending.values())
        self._pending.clear()
        for asked in waiting:
            try:
                asked.settle(error)
            except Exception:
                logger.exception("an answer's callback failed")

    def close(self) -> None:
        """Disarm the deadlines; `fail_all` comes first."""
        self._deadlines.close()
        self.pulse.close()


def _reply_subjects(start: bytes) -> Iterator[bytes]:
    """Yield reply subjects without end: a counter makes each the only one, 64 random bits unguessable."""
    counter = 0
    while True:
        drawn = os.urandom(2048).hex().encode()
        for at in range(0, len(drawn), 16):
            counter += 1
            yield b"%b%x-%b" % (start, counter, drawn[at : at + 16])


class Asking:
    """How every bus asks and takes messages apart, given how it publishes and subscribes; replies come to the inbox."""

    _inbox: Inbox

    async def subscribe_parts(self, subject: str, receive: ReceiveParts, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject`: see `Bus.subscribe_parts`."""

        def take(message: Message) -> None:
            receive(message.subject.encode("latin-1"), message.reply.encode("latin-1"), message.header, message.payload)

        return await self.subscribe(subject, take, queue=queue)

    async def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject`: see `Bus.subscribe`."""
        raise NotImplementedError

    @property
    def pulse(self) -> Pulse:
        """Who tells whether other processes are alive."""
        return self._inbox.pulse

    @property
    def is_congested(self) -> bool:
        """Whether more than is good waits to be sent: see `Bus.is_congested`."""
        return False

    async def relieved(self) -> None:
        """Wait until there is room again: see `Bus.relieved`."""

    def open(self, asked: Asked) -> None:
        """Give a subject of ours to one that stays: see `Bus.open`."""
        self._inbox.open_for_good(asked)

    def post_later(self, subject: bytes, header: bytes | None, reply: bytes = b"", payload: bytes = b"") -> None:
        """Send a last word later: see `Bus.post_later`. A bus that is closed for good has no later."""

    def post(self, subject: bytes, payload: bytes, header: bytes | None = None, reply: bytes = b"") -> None:
        """Send a message: see `Bus.post`."""
        self.publish(subject.decode("latin-1"), payload, header=header, reply=reply.decode("latin-1"))

    def new_inbox(self) -> str:
        """Return a subject for many replies: see `Bus.new_inbox`."""
        return self._inbox.fresh()

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message: see `Bus.publish`."""
        raise NotImplementedError

    def ask(
        self, subject: str, payload: bytes, *, header: bytes | None = None, timeout: float, answer: Answer
    ) -> Callable[[], None]:
        """Send a request: see `Bus.ask`."""
        asked = _Called(answer)
        self.carry(asked, subject, payload, header, timeout)
        return lambda: self.drop(asked)

    def carry(self, asked: Asked, subject: str, payload: bytes, header: bytes | None, timeout: float) -> None:
        """Send a request: see `Bus.carry`."""
        reply = self._inbox.open(asked, timeout)
        try:
            self.publish(subject, payload, header=header, reply=reply.decode("latin-1"))
        except HTTPError:
            self._inbox.drop(asked)
            raise

    def drop(self, asked: Asked) -> None:
        """Forget a request: see `Bus.drop`."""
        self._inbox.drop(asked)


class _MemorySubscription:
    def __init__(self, bus: "MemoryBus", subject: str, queue: str, receive: Receive) -> None:
        self._bus = bus
        self.subject = subject
        self.queue = queue
        self.receive = receive

    def stop(self) -> None:
        self._bus._subscriptions.discard(self)

    def __repr__(self) -> str:
        state = "live" if self in self._bus._subscriptions else "stopped"
        return f"<subscription {self.subject} queue={self.queue!r} {state}>"


class MemoryBus(Asking):
    """NATS in memory: one connection that is also the server, for tests and for running without NATS.

    `max_payload` is in bytes, as in nats-server (1 MiB by default).
    """

    def __init__(self, *, max_payload: int = 1024 * 1024) -> None:
        self.max_payload = max_payload
        self.reconnected_at = float("-inf")
        self._subscriptions: set[_MemorySubscription] = set()
        self._inbox = Inbox(self.post)
        self._closed = False
        inbox = _MemorySubscription(self, self._inbox.pattern, "", self._inbox.receive)
        self._subscriptions.add(inbox)

    def __repr__(self) -> str:
        return f"<MemoryBus: {'closed' if self._closed else f'{len(self._subscriptions)} subscriptions'}>"

    @property
    def is_connected(self) -> bool:
        """True until `close`."""
        return not self._closed

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message: see `Bus.publish`."""
        if self._closed:
            raise NatsDown("the bus is closed")
        if not isinstance(payload, bytes):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        if len(payload) + len(header or b"") > self.max_payload:
            raise TooLarge(f"the message is larger than max_payload ({self.max_payload} bytes)")
        message = Message(subject, reply, header, payload)
        receivers = self._receivers(subject)
        if not receivers and reply:
            nobody = b"NATS/1.0 503\r\nNats-Subject: %b\r\n\r\n" % subject.encode("latin-1", "replace")
            message = Message(reply, "", nobody, b"")
            receivers = self._receivers(reply)
        for subscription in receivers:
            asyncio.get_running_loop().call_soon(self._deliver, subscription, message)

    def _receivers(self, subject: str) -> list[_MemorySubscription]:
        """Return every plain subscription that matches, and one at random of each queue group."""
        receivers = []
        groups: dict[str, list[_MemorySubscription]] = {}
        for subscription in self._subscriptions:
            if not matches(subscription.subject, subject):
                continue
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
            else:
                receivers.append(subscription)
        return receivers + [random.choice(members) for members in groups.values()]

    @staticmethod
    def _deliver(subscription: _MemorySubscription, message: Message) -> None:
        try:
            subscription.receive(message)
        except Exception:
            logger.exception("receiving on %s failed", subscription.subject)

    async def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject`: see `Bus.subscribe`."""
        if self._closed:
            raise NatsDown("the bus is closed")
        subscription = _MemorySubscription(self, subject, queue, receive)
        self._subscriptions.add(subscription)
        return subscription

    async def flush(self, timeout: float = 5.0) -> None:
        """Let everything that was sent arrive."""
        if self._closed:
            raise NatsDown("the bus is closed")
        await asyncio.sleep(0)

    async def close(self) -> None:
        """End requests in flight and forget all subscriptions."""
        if not self._closed:
            self._closed = True
            self._subscriptions.clear()
            self._inbox.fail_all(Disconnected("the bus is closed"))
            self._inbox.close()
