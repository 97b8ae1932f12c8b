"""The port: what a connection to NATS is to all who send and receive.

Messages are bytes and subjects; nothing here knows of HTTP, nor of the connections that stand behind it.
"""

import asyncio
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

from natsweb.beats import Pulse
from natsweb.deadlines import Timed
from natsweb.errors import HTTPError

__all__ = ["Answer", "Asked", "Bus", "Message", "Receive", "ReceiveParts", "Reply", "Subscription", "request"]


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

    def carry(self, asked: Asked, subject: bytes, payload: bytes, header: bytes | None, timeout: float) -> None:
        """Send a request as `ask` does, for one who has bytes, and an object for it anyway.

        Its `settle` is called once, later.
        """

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
