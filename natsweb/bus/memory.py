"""NATS in memory, with its queue groups and its word that nobody listens.

For tests, and for running without NATS: it is the connection and the server in one.
"""

import asyncio
import logging
import random

from natsweb.bus.inbox import Asking, Inbox
from natsweb.bus.port import Message, Receive, Subscription
from natsweb.errors import Disconnected, NatsDown, TooLarge
from natsweb.subjects import matches

__all__ = ["MemoryBus"]


logger = logging.getLogger("natsweb.bus")


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
