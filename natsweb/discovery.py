"""Who is there: services say it, gateways and the command line ask and listen.

`Presence` makes a service an ordinary NATS micro service (ADR-32) and announces its state; `Directory` keeps a
gateway's catalogue, from announcements and from what services answer, without a request ever waiting for it;
`survey` asks once. Knows the bus and the documents of `micro`; it knows no HTTP.
"""

import asyncio
import contextlib
import datetime
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from natsweb.bus import Bus, Message, Subscription
from natsweb.catalogue import Catalogue
from natsweb.counters import Counter
from natsweb.documents import Paper, document_subject
from natsweb.errors import HTTPError, NatsRefused, NoService
from natsweb.micro import (
    ANNOUNCE,
    INFO,
    PING,
    PREFIX,
    STATS,
    Announcement,
    Endpoint,
    EndpointStats,
    Info,
    State,
    Stats,
    parse_announcement,
    parse_info,
    verb_subjects,
)
from natsweb.subjects import REPLY_PREFIXES, overlap, tokens_below
from natsweb.wire import is_no_responders

__all__ = ["Answered", "Described", "Directory", "Overlap", "Presence", "ask_all", "collect", "overlaps", "survey"]

logger = logging.getLogger("natsweb.discovery")

_QUIET = 0.1  # how long nothing has to come for an answer of many to be complete, in seconds
_NEW = 1.0  # within which a service that is busy when a gateway starts should have answered it
_NOTED = 0.5  # how long a service waits for the gateways' word
_POLL = 15.0
_SUSPECT = 1.0
_PING_TIME = 1.0
_REMEMBERED = 3600.0
_MAX_INSTANCES = 10_000


class Answered(NamedTuple):
    """One of several answers, and the seconds that it took."""

    message: Message
    seconds: float


async def collect(
    bus: Bus,
    subject: str,
    payload: bytes = b"",
    *,
    expect: int | None = None,
    quiet: float = _QUIET,
    timeout: float = 1.0,
) -> list[Answered]:
    """Return all answers to one message: `expect` of them, or until nothing has come for `quiet` seconds.

    It takes `timeout` seconds at most. Nobody there is an empty list, at once. Raises `NatsDown` without a connection.
    """
    clock = time.perf_counter  # uvloop's own counts in milliseconds
    arrived: asyncio.Queue[Answered] = asyncio.Queue()
    inbox = bus.new_inbox()
    sent = clock()
    subscription = await bus.subscribe(inbox, lambda one: arrived.put_nowait(Answered(one, clock() - sent)))
    answers: list[Answered] = []
    try:
        await bus.flush()
        sent = clock()
        bus.publish(subject, payload, reply=inbox)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                answers.append(await arrived.get())
                while not is_no_responders(answers[-1].message.header) and len(answers) != expect:
                    async with asyncio.timeout(quiet):
                        answers.append(await arrived.get())
    finally:
        subscription.stop()
    return [one for one in answers if not is_no_responders(one.message.header)]


async def survey(
    bus: Bus, verb: str = INFO, name: str | None = None, *, quiet: float = _QUIET, timeout: float = 1.0
) -> list[bytes]:
    """Return what all services, or those called `name`, answer to a verb of ADR-32: see `collect`."""
    return [one.message.payload for one in await ask_all(bus, verb, name, quiet=quiet, timeout=timeout)]


async def ask_all(
    bus: Bus, verb: str, name: str | None = None, *, quiet: float = _QUIET, timeout: float = 1.0
) -> list[Answered]:
    """Ask all services, or those called `name`, for a verb of ADR-32: see `collect`."""
    subject = f"{PREFIX}.{verb}" if name is None else f"{PREFIX}.{verb}.{name}"
    return await collect(bus, subject, quiet=quiet, timeout=timeout)


# ── a service's side ─────────────────────────────────────────────────────────────────────────────


class Described(Protocol):
    """What a presence has to know of a service."""

    name: str
    version: str
    description: str

    def endpoints(self, root: str | None = None) -> list[tuple[Endpoint, Counter]]:
        """Return its endpoints below `root`, with what they have done."""
        ...

    def metadata(self, root: str | None = None) -> dict[str, str]:
        """Return what it says of itself."""
        ...

    def openapi(self) -> dict[str, Any]:
        """Return its OpenAPI document."""
        ...


class Presence:
    """One service instance as NATS sees it: answers `$SRV.*` without waiting for a handler, and announces itself.

    `id` tells instances apart. `quiet` is for how many seconds nothing has to come for the gateways' word to be
    complete. Knows requests by their counters only.
    """

    def __init__(
        self,
        bus: Bus,
        service: Described,
        *,
        root: str | None = None,
        reply_prefixes: tuple[str, ...] = REPLY_PREFIXES,
        quiet: float = _QUIET,
    ) -> None:
        self._bus = bus
        self._quiet = quiet
        self._reply_prefixes = reply_prefixes
        self._endpoints = service.endpoints(root)
        self._subscriptions: list[Subscription] = []
        self._started = datetime.datetime.now(datetime.UTC)
        self._gateways: int | None = None
        self.id = os.urandom(11).hex()
        self._paper = Paper(service.name, service.openapi)
        self.info = Info(
            name=service.name,
            id=self.id,
            version=service.version,
            description=service.description,
            metadata={**service.metadata(root), **self._paper.metadata},
            endpoints=[endpoint for endpoint, _ in self._endpoints],
        )
        self._ping_bytes = self.info.ping().model_dump_json().encode()
        self._info_bytes = self.info.stating("starting").model_dump_json().encode()

    def __repr__(self) -> str:
        return f"<Presence of {self.info.name} {self.id}: {'live' if self._subscriptions else 'stopped'}>"

    async def start(self) -> None:
        """Answer the nine subjects, and the document's; raises what subscribing raises."""
        answers: dict[str, Callable[[bytes], bytes]] = {
            PING: lambda _: self._ping_bytes,
            INFO: lambda _: self._info_bytes,
            STATS: lambda _: self._stats(),
        }
        for verb, answer in answers.items():
            for subject in verb_subjects(verb, self.info.name, self.id):
                receive = _answering(self._bus, answer, self._reply_prefixes)
                self._subscriptions.append(await self._bus.subscribe(subject, receive))
        if self._paper.metadata:
            receive = _answering(self._bus, self._part, self._reply_prefixes)
            self._subscriptions.append(await self._bus.subscribe(document_subject(self.info), receive))

    def stop(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions:
            subscription.stop()
        self._subscriptions.clear()

    async def announce(self, state: State, *, wait: float = _NOTED) -> int:
        """Say what the service does now; return how many gateways have taken note of it within `wait` seconds.

        All that answer are waited for; only "up", which nothing depends on, waits for as many as the last time.
        """
        self._info_bytes = self.info.stating(state).model_dump_json().encode()
        said = Announcement(state=state, info=self.info).model_dump_json().encode()
        try:
            expect = self._gateways if state == "up" else None
            if expect == 0:
                self._bus.publish(ANNOUNCE, said)
                return 0
            self._gateways = len(
                await collect(self._bus, ANNOUNCE, said, expect=expect, quiet=self._quiet, timeout=wait)
            )
            return self._gateways
        except (HTTPError, NatsRefused) as error:
            logger.warning("%s could not be announced as %s: %s", self.info.name, state, error)
            return 0

    def _part(self, asked: bytes) -> bytes:
        return self._paper.part(self._bus.max_payload, asked)

    def _stats(self) -> bytes:
        stats = Stats(
            name=self.info.name,
            id=self.id,
            version=self.info.version,
            metadata=self.info.metadata,
            started=self._started.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            endpoints=[_counted(endpoint, counter) for endpoint, counter in self._endpoints],
        )
        return stats.model_dump_json(exclude_none=True).encode()


def _counted(endpoint: Endpoint, counter: Counter) -> EndpointStats:
    return EndpointStats(
        name=endpoint.name,
        subject=endpoint.subject,
        queue_group=endpoint.queue_group,
        num_requests=counter.requests,
        num_errors=counter.errors,
        last_error=counter.last_error,
        processing_time=counter.spent,
        average_processing_time=counter.spent // counter.requests if counter.requests else 0,
        data={
            "p50": counter.percentile(0.5),
            "p99": counter.percentile(0.99),
            "in_flight": counter.in_flight,
        },
    )


def _answering(
    bus: Bus, answer: Callable[[bytes], bytes], reply_prefixes: tuple[str, ...]
) -> Callable[[Message], None]:
    def receive(message: Message) -> None:
        if not message.reply.startswith(reply_prefixes):
            return
        try:
            bus.publish(message.reply, answer(message.payload))
        except HTTPError as error:
            logger.warning("an answer to %s was not sent: %s", message.subject, error)

    return receive


class Overlap(NamedTuple):
    """Two patterns of different services that match the same subject.

    `is_plain` tells whether the other service knows nothing of `Nw-Service`, so that both would run a request;
    `is_equal` whether the patterns, and one of the methods, are the same; `is_shared` whether the queue group is, so
    that either would get what is the other's.
    """

    pattern: str
    other: Info
    others: str
    is_plain: bool
    is_equal: bool
    is_shared: bool

    def __str__(self) -> str:
        return f"{self.pattern} and {self.others} of {self.other.name} {self.other.version} ({self.other.id})"


def overlaps(info: Info, others: Iterable[Info]) -> list[Overlap]:
    """Return where a service's patterns meet those of other services; another version of itself is none."""
    found: dict[tuple[str, str, str], Overlap] = {}
    for other in others:
        if other.name == info.name and other.is_natsweb == info.is_natsweb:
            continue
        for mine in info.endpoints:
            for its in other.endpoints:
                apart = mine.methods and its.methods and not set(mine.methods) & set(its.methods)
                if (apart and other.is_natsweb and info.is_natsweb) or not overlap(mine.subject, its.subject):
                    continue
                equal = mine.subject == its.subject and bool(set(mine.methods) & set(its.methods))
                key = (mine.subject, its.subject, other.name)
                if key not in found or equal:
                    found[key] = Overlap(
                        mine.subject,
                        other,
                        its.subject,
                        is_plain=not (other.is_natsweb and info.is_natsweb),
                        is_equal=equal,
                        is_shared=mine.queue_group == its.queue_group and other.name != info.name,
                    )
    return list(found.values())


# ── a gateway's side ─────────────────────────────────────────────────────────────────────────────


class Directory:
    """The catalogue of the services below `root`, kept up to date from `start` to `stop`.

    `on_change` is called when requests may be somebody else's from now on, `on_gone` for a service that has
    left without a word.
    """

    def __init__(
        self,
        bus: Bus,
        root: str,
        *,
        on_change: Callable[[], None] = lambda: None,
        on_gone: Callable[[str], None] = lambda name: None,
        reply_prefixes: tuple[str, ...] = REPLY_PREFIXES,
    ) -> None:
        self.catalogue = Catalogue(root)
        #: Returns whose a request is: see `Catalogue.owner`.
        self.owner = self.catalogue.owner
        self._bus = bus
        self._on_change = on_change
        self._on_gone = on_gone
        self._reply_prefixes = (*reply_prefixes, f"{bus.new_inbox().rpartition('.')[0]}.")
        self._loop = asyncio.get_running_loop()
        self._subscriptions: list[Subscription] = []
        self._inbox = bus.new_inbox()
        self._poller: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._suspected: dict[str, float] = {}
        self._looked = float("-inf")
        self._answered = False
        self._missed: dict[str, int] = {}
        self.id = os.urandom(11).hex()
        self.is_ready = False
        self._new_until = float("inf")

    def __repr__(self) -> str:
        return f"<Directory of {self.catalogue!r}: {'ready' if self.is_ready else 'not ready'}>"

    async def start(self) -> None:
        """Listen, and ask who is there; when this returns the catalogue is complete, but for who is too busy."""
        self._subscriptions.append(await self._bus.subscribe(self._inbox, self._take_info))
        self._subscriptions.append(await self._bus.subscribe(ANNOUNCE, self._take_announcement))
        await self._bus.flush()
        await self._ask()
        self.is_ready = True
        self._new_until = self._loop.time() + _NEW
        self._poller = asyncio.create_task(self._poll(), name="natsweb directory")

    async def stop(self) -> None:
        """Stop asking and listening."""
        for subscription in self._subscriptions:
            subscription.stop()
        self._subscriptions.clear()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
            self._poller = None

    def was_there(self, tokens: Sequence[str]) -> bool:
        """Tell whether somebody has served a path, now or before."""
        return self.catalogue.was_there(tokens)

    @property
    def new_for(self) -> float:
        """Seconds for which a service that is there may have had no time yet to say so; from then on 0 or less."""
        return self._new_until - self._loop.time()

    @property
    def knows_natsweb(self) -> bool:
        """Whether a natsweb service has ever been heard of: then none is missing for long."""
        return self.catalogue.knows_natsweb

    # ── what comes in ──

    def _take_info(self, message: Message) -> None:
        self._arrived.set()
        self._answered = True
        if is_no_responders(message.header):
            return
        info = parse_info(message.payload)
        if info is not None:
            self._missed.pop(info.id, None)
            self._put(info, info.state)

    def _take_announcement(self, message: Message) -> None:
        said = parse_announcement(message.payload)
        if said is None:
            logger.debug("an announcement was none: %.200r", message.payload)
            return
        self._missed.pop(said.info.id, None)
        self._put(said.info, said.state)
        if message.reply.startswith(self._reply_prefixes):
            with contextlib.suppress(HTTPError):
                self._bus.publish(message.reply, b'{"type":"io.natsweb.v1.noted","id":"%b"}' % self.id.encode())

    def _put(self, info: Info, state: State) -> None:
        if len(self.catalogue) >= _MAX_INSTANCES and self.catalogue.instance(info.id) is None:
            logger.error("more than %d instances; %s %s is not taken in", _MAX_INSTANCES, info.name, info.id)
            return
        if self.catalogue.put(info, state, self._loop.time()):
            level = logging.INFO if self._concerns(info) else logging.DEBUG
            logger.log(level, "%s %s (%s) is %s", info.name, info.version, info.id, state)
            self._on_change()

    def _concerns(self, info: Info) -> bool:
        """Tell whether an instance has anything below the root."""
        return any(tokens_below(self.catalogue.root, one.subject) is not None for one in info.endpoints)

    # ── asking ──

    async def _ask(self) -> None:
        """Ask all services, and wait until no more answers come."""
        self._arrived.clear()
        self._answered = False
        try:
            self._bus.publish(f"{PREFIX}.{INFO}", b"", reply=self._inbox)
        except HTTPError:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._arrived.wait()
                while len(self.catalogue):
                    self._arrived.clear()
                    async with asyncio.timeout(_QUIET):
                        await self._arrived.wait()

    async def _poll(self) -> None:
        """Ask again every now and then, and soon after NATS has come back."""
        seen = self._bus.reconnected_at
        due = self._loop.time() + _POLL * random.uniform(0.8, 1.2)
        while True:
            await asyncio.sleep(0.2)
            now = self._loop.time()
            if self._bus.reconnected_at == seen and now < due:
                continue
            if not self._bus.is_connected:
                continue
            seen, due = self._bus.reconnected_at, now + _POLL * random.uniform(0.8, 1.2)
            await self._ask()
            self._expire(now)

    def _expire(self, asked: float) -> None:
        """Drop instances that have not answered twice in a row; silence of all is no answer at all."""
        if not self._answered:
            return
        for one in self.catalogue.instances:
            if one.seen >= asked:
                continue
            missed = self._missed[one.info.id] = self._missed.get(one.info.id, 0) + 1
            if missed >= 2:
                self._missed.pop(one.info.id, None)
                self._drop(one.info)
        self.catalogue.forget(asked - _REMEMBERED)

    def _drop(self, info: Info) -> None:
        if self.catalogue.drop(info.id, self._loop.time()):
            level = logging.WARNING if self._concerns(info) else logging.DEBUG
            logger.log(level, "%s %s (%s) is gone", info.name, info.version, info.id)
            self._on_change()

    def look_again(self) -> None:
        """Ask once more who is there, once a second at most."""
        now = self._loop.time()
        if now - self._looked >= _SUSPECT:
            self._looked = now
            with contextlib.suppress(HTTPError):
                self._bus.publish(f"{PREFIX}.{INFO}", b"", reply=self._inbox)

    def suspect(self, name: str) -> None:
        """Ask whether a service that does not answer is there, once a second at most; drop it if nobody is."""
        now = self._loop.time()
        if now - self._suspected.get(name, float("-inf")) < _SUSPECT:
            return
        self._suspected[name] = now

        def answer(outcome: Message | HTTPError) -> None:
            if not isinstance(outcome, NoService):
                return
            if self.catalogue.drop_service(name, self._loop.time()):
                logger.warning("%s is gone", name)
                self._on_change()
            self._on_gone(name)

        with contextlib.suppress(HTTPError):
            self._bus.ask(f"{PREFIX}.{PING}.{name}", b"", timeout=_PING_TIME, answer=answer)
