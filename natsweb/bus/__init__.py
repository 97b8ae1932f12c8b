"""The port to NATS: what natsweb asks of a message bus, and a bus in memory that behaves like NATS.

A bus moves opaque messages: subject, reply subject, header block, payload. Everything but `subscribe`, `flush`
and `close` returns at once; received messages and answers come through synchronous callbacks in the event
loop. `MemoryBus` has NATS's semantics (wildcards, queue groups, no responders, limits); one contract suite
holds it equal to a real server. This module knows no HTTP and no nats-py.
"""

from natsweb.bus.inbox import Asking, Inbox
from natsweb.bus.memory import MemoryBus
from natsweb.bus.port import (
    Answer,
    Asked,
    Bus,
    Message,
    Receive,
    ReceiveParts,
    Reply,
    Subscription,
    request,
)

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
