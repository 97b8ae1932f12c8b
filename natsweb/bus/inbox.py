"""Where the replies of one process come in: one subscription, and for each request a subject that nobody can guess.

One timer watches all deadlines. `Asking` is what every bus has of this. Knows the port; it knows no connection.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator

from natsweb.beats import Pulse
from natsweb.bus.port import Answer, Asked, Message, Receive, ReceiveParts, Reply, Subscription
from natsweb.deadlines import Deadlines
from natsweb.errors import HTTPError, NoService, TimeUp
from natsweb.subjects import ANY, REPLY_PREFIXES
from natsweb.wire import CANCEL, is_no_responders, is_opening

__all__ = ["Asking", "Inbox"]


logger = logging.getLogger("natsweb.bus")

_PREFIXES = tuple([prefix.encode() for prefix in REPLY_PREFIXES])


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

    A token is 96 random bits, drawn in bulk from the system: a service that has seen one can guess no other
    (WIRE.md, who may be answered), and none comes twice. `post` sends what the inbox itself has to say.
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
    """Yield reply subjects without end: 96 random bits make each the only one, and unguessable."""
    while True:
        drawn = os.urandom(3072).hex().encode()
        for at in range(0, len(drawn), 24):
            yield start + drawn[at : at + 24]


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
        self.carry(asked, subject.encode("latin-1"), payload, header, timeout)
        return lambda: self.drop(asked)

    def carry(self, asked: Asked, subject: bytes, payload: bytes, header: bytes | None, timeout: float) -> None:
        """Send a request: see `Bus.carry`."""
        reply = self._inbox.open(asked, timeout)
        try:
            self.post(subject, payload, header, reply)
        except HTTPError:
            self._inbox.drop(asked)
            raise

    def drop(self, asked: Asked) -> None:
        """Forget a request: see `Bus.drop`."""
        self._inbox.drop(asked)
