"""NATS events beside requests: what a handler of them declares, and how one is published.

An event's subject is a NATS subject, spelled with captures: `orders.<id>.created`, `audit.<path:rest>`. `Publisher` is
what handlers send with, on the worker's own connection. Knows subjects and values; it subscribes to nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel
from pydantic_core import to_json
from typing_extensions import TypedDict

from natsweb.current import passed_on
from natsweb.errors import DeclarationError, StartError
from natsweb.headers import Headers, HeaderSource
from natsweb.messages import Call, Request
from natsweb.params import Depends
from natsweb.paths import Capture, Literal, Part, Tail, Template
from natsweb.subjects import REPLY_PREFIXES, REST, overlap
from natsweb.wire import encode_event

__all__ = ["EventOptions", "Listening", "Outlet", "Publisher", "check_subject", "parse_subject"]

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_CAPTURE = re.compile(rf"<({_NAME})>").fullmatch
_TAIL = re.compile(rf"<path:({_NAME})>").fullmatch
_LITERAL = re.compile(r"[!-~]+").fullmatch
_NOT_LITERAL = re.compile(r"[<>*{}]").search
_RESERVED = tuple([prefix.rstrip(".") for prefix in REPLY_PREFIXES])
_MESSAGE = re.compile(r"[^\s\x00-\x20\x7f.*>]+(?:\.[^\s\x00-\x20\x7f.*>]+)*").fullmatch


class EventOptions(TypedDict, total=False):
    """What `on` takes besides the subject.

    Instances with the same `queue` share the events, each goes to one of them: by default that is the service's own,
    and with None every instance gets every event. `timeout` is how many seconds the handler has (10). `name` is what
    tables call it, `depends` are called first, for their effect only.
    """

    queue: str | None
    timeout: float
    name: str
    depends: Sequence[Depends]


@dataclass(frozen=True, slots=True)
class Listening:
    """How an event handler listens: `queue` is None for every instance, `is_shared` tells that it is the service's."""

    queue: str | None
    is_shared: bool
    timeout: float

    @classmethod
    def of(cls, options: EventOptions, where: str) -> "Listening":
        """Return what the options say; raises `DeclarationError` for what cannot be."""
        unknown = [name for name in options if name not in EventOptions.__annotations__]
        if unknown:
            raise DeclarationError(
                f"an event handler has no option {unknown[0]!r}",
                where=where,
                fix=f"it takes {', '.join(EventOptions.__annotations__)}",
            )
        queue, timeout = options.get("queue"), options.get("timeout", 10.0)
        if queue is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", queue):
            raise DeclarationError(
                f"{queue!r} cannot be a queue group",
                where=where,
                fix="use letters, digits, '.', '-' and '_', or None for every instance",
            )
        if not timeout > 0:
            raise DeclarationError(
                f"an event handler cannot have {timeout!r} seconds", where=where, fix="say more than 0, such as 10.0"
            )
        return cls(queue, "queue" not in options, timeout)


def parse_subject(subject: str, where: str) -> Template:
    """Return the template of an event's subject; raises `DeclarationError` that shows the right spelling."""
    parts: list[Part] = []
    tokens = subject.split(".") if isinstance(subject, str) else []
    for index, token in enumerate(tokens):
        if found := _CAPTURE(token):
            parts.append(Capture(found[1]))
        elif (found := _TAIL(token)) and index == len(tokens) - 1:
            parts.append(Tail(found[1]))
        elif _LITERAL(token) and not _NOT_LITERAL(token):
            parts.append(Literal(token))
        else:
            raise DeclarationError(
                f"{token!r} cannot be a part of the subject {subject!r}{_why_not(token)}",
                where=where,
                fix="write words joined by '.', <id> for one of them, and <path:rest> for the rest at the end",
            )
    template = Template(subject, tuple(parts))
    names = template.names
    if not parts or any(names.count(name) > 1 for name in names):
        raise DeclarationError(
            f"the subject {subject!r} is empty, or has a capture twice",
            where=where,
            fix='write it as "orders.<id>.created"',
        )
    return template


def _why_not(token: str) -> str:
    """Return what is wrong with a part of a subject, if it is a mistake that people make."""
    if not token:
        return ": it is empty"
    if any(character.isspace() for character in token):
        return ": a subject has no blanks"
    if "/" in token and _NOT_LITERAL(token):
        return ": a subject is words joined by '.', not a path"
    if "*" in token or token == ">":
        return ": a wildcard is a capture here, so that it has a name"
    return ""


def check_subject(template: Template, root: str, where: str) -> None:
    """Raise `DeclarationError` for a subject that is NATS's own, an inbox, or below the `root` of requests."""
    first = template.shape[0]
    if first.startswith("$") or first in _RESERVED:
        raise DeclarationError(
            f"{template.text!r} is not a subject for events: {first} is NATS's own",
            where=where,
            fix="listen to subjects of your own, such as orders.<id>.created",
        )
    pattern = ".".join(template.shape)
    if overlap(pattern, root) or overlap(pattern, f"{root}.{REST}"):
        raise DeclarationError(
            f"the events {template.text!r} could be requests: the service's root is {root!r}",
            where=where,
            fix=f"begin the subject with another word than {root.partition('.')[0]!r}, or give Service(root=...)",
        )


# ── publishing ───────────────────────────────────────────────────────────────────────────────────


class Outlet(Protocol):
    """What a publisher needs of a connection: see `natsweb.bus.Bus`."""

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message."""

    @property
    def is_congested(self) -> bool:
        """Whether more than is good waits to be sent."""
        ...

    async def relieved(self) -> None:
        """Wait until there is room again."""


class Publisher:
    """Publishes NATS messages: `await events.publish("orders.7.created", order)`.

    A handler or dependency gets one as a parameter of this type; a lifespan uses `svc.publisher`. It sends on the
    connection of whoever serves the service. What is published while a request is handled carries its `traceparent`,
    `tracestate`, `baggage` and `x-request-id` on.
    """

    __slots__ = ("_name", "_outlet", "_passed_on", "on_publish")

    def __init__(self, name: str) -> None:
        self._name = name
        self._outlet: Outlet | None = None
        self._passed_on = Headers()
        #: Hears of all that is on its way: subject, body and fields. For tests.
        self.on_publish: Callable[[str, bytes, Headers], None] | None = None

    def __repr__(self) -> str:
        return f"<Publisher of {self._name}: {'connected' if self.is_connected else 'not connected'}>"

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to send on."""
        return self._outlet is not None

    def connect(self, bus: Outlet) -> None:
        """Send on `bus` from now on: a worker does so for its service, and a test with a `MemoryBus`."""
        self._outlet = bus

    def within(self, call: Call | Request) -> "Publisher":
        """Return a publisher for what is published while a request is handled."""
        own = Publisher(self._name)
        own._outlet = self._outlet
        own._passed_on = Headers([(name.decode(), value.decode("latin-1")) for name, value in passed_on(call)])
        own.on_publish = self.on_publish
        return own

    async def publish(self, subject: str, message: Any = None, *, headers: HeaderSource = ()) -> None:
        """Send `message` to all who listen to `subject`, at most once; it returns when it is on its way.

        Bytes and text are sent as they are, anything else as JSON. Raises `ValueError` for a subject with wildcards or
        blanks, or one of NATS's own; `StartError` without a connection, `NatsDown` while it is lost, `TooLarge` over
        the server's max_payload.
        """
        outlet = self._outlet
        if outlet is None:
            raise StartError(
                f"service {self._name} publishes on {subject!r}, and has no connection to NATS",
                fix="serve it with natsweb run; in a test, svc.publisher.connect(MemoryBus()) from natsweb.bus",
            )
        if not _MESSAGE(subject) or subject.startswith("$") or subject.partition(".")[0] in _RESERVED:
            raise ValueError(
                f"{subject!r} is no subject to publish on: words joined by '.', without wildcards, blanks and '$'"
            )
        payload, kind = _encode(message)
        fields = Headers(headers)
        fields = self._passed_on.without(*[name for name, _ in fields]) + fields
        if kind is not None and "content-type" not in fields:
            fields = fields + kind
        outlet.publish(subject.encode().decode("latin-1"), payload, header=encode_event(fields))
        if self.on_publish is not None:
            self.on_publish(subject, payload, fields)
        if outlet.is_congested:
            await outlet.relieved()


def _encode(message: Any) -> tuple[bytes, Mapping[str, str] | None]:
    """Return the payload of a message, and the field that says what it is."""
    if message is None:
        return b"", None
    if isinstance(message, bytes | bytearray | memoryview):
        return bytes(message), None
    if isinstance(message, str):
        return message.encode(), {"content-type": "text/plain; charset=utf-8"}
    if isinstance(message, BaseModel):
        return message.__pydantic_serializer__.to_json(message, by_alias=True), {"content-type": "application/json"}
    return to_json(message, by_alias=True), {"content-type": "application/json"}
