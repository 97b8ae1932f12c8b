"""The events of a service on the bus: subscribes their subjects, and runs every handler that an event is for.

At most so many at once; what comes beyond that waits here, in order, and is drained when the service stops. Delivery is
at most once: nothing is acknowledged, and what does not fit into the backlog is dropped and logged. The reply of an
event is its handler's result, if it wants one. Beside the worker's requests; it knows no HTTP.
"""

import asyncio
import contextlib
import functools
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from natsweb.bus import Bus, Message, Subscription
from natsweb.current import Limited
from natsweb.errors import HandlerFailed, HTTPError, ReplyTooLarge, Stopping, TimeUp, TooLarge
from natsweb.events import Listening, Publisher, check_subject
from natsweb.jobs import collect
from natsweb.messages import Call, Response, Result, Socket
from natsweb.paths import Template
from natsweb.replies import problem
from natsweb.routes import Route
from natsweb.subjects import decode_token, matches, minimal_cover
from natsweb.wire import EVENT, decode_event, encode_response, event_words

__all__ = ["Listens", "Subscriber"]

logger = logging.getLogger("natsweb.worker")

_BACKLOG, _BACKLOG_BYTES = 10_000, 64 * 1024 * 1024
_MARGIN = 1024
_SAY_AGAIN = 5.0


@runtime_checkable
class Listens(Protocol):
    """What has handlers of events: a `Service`."""

    name: str
    queue: str
    publisher: Publisher

    @property
    def events(self) -> list[Route]:
        """The handlers of events."""
        ...

    def hand(self, route: Route, call: Call, params: dict[str, str]) -> Coroutine[Any, Any, Response | Result]:
        """Give an event to one of them."""
        ...


class Subscriber:
    """Runs the event handlers of `app` on `bus`, `concurrency` at once.

    `root` is that of its requests, which no event may be below; replies go to subjects below `reply_prefixes` only.
    """

    def __init__(self, bus: Bus, app: Listens, *, root: str, concurrency: int, reply_prefixes: tuple[str, ...]) -> None:
        self.bus = bus
        self.app = app
        self._root = root
        self._concurrency = concurrency
        self._reply_prefixes = reply_prefixes
        self._subscriptions: list[Subscription] = []
        self._waiting: deque[_Event] = deque()
        self._waiting_bytes = 0
        self._running: set[_Event] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._dropped = 0
        self._seen = 0
        self._said_at = -math.inf
        app.publisher.connect(bus)

    def __repr__(self) -> str:
        return f"<Subscriber of {self.app.name}: {len(self._running)} events under way, {len(self._waiting)} wait>"

    async def start(self) -> None:
        """Subscribe; raises `DeclarationError` for events that could be requests below the root."""
        for route in self.app.events:
            check_subject(route.template, self._root, str(route.where))
        for pattern, queue, routes in _subscriptions(self.app.events, self.app.queue):
            receive = functools.partial(self._receive, routes)
            self._subscriptions.append(await self.bus.subscribe(pattern, receive, queue=queue))

    def stop(self) -> None:
        """Ask for no more events; those on their way still arrive."""
        for subscription in self._subscriptions:
            subscription.stop()
        self._subscriptions.clear()

    async def finish(self, grace: float) -> bool:
        """Finish what is here, for `grace` seconds; True if that was all. What is left is cancelled, or dropped."""
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            left = list(self._running)
            logger.error("%d events were cut off, and %d dropped, when it stopped", len(left), len(self._waiting))
            self._waiting.clear()
            for event in left:
                event.end(Stopping("the service stopped before the handler had finished"))
            await asyncio.wait([event.task for event in left if event.task is not None], timeout=1.0)
            return False
        return True

    @property
    def seen(self) -> int:
        """How many events have come, for each handler that they were for."""
        return self._seen

    async def finished(self) -> None:
        """Wait until every event that has come is handled."""
        await self._idle.wait()

    # ── one event ──

    def _receive(self, routes: Sequence[tuple[str, Route]], message: Message) -> None:
        """Take an event off the bus, for each of its handlers. Never blocks."""
        reply = message.reply if message.reply.startswith(self._reply_prefixes) else ""
        try:
            words = event_words(message.subject)
            for pattern, route in routes:
                if matches(pattern, message.subject):
                    call = decode_event(words, message.header, message.payload)
                    self._take(_Event(self, route, call, _captures(route.template, words), reply))
        except HTTPError as error:
            logger.warning("%s %s was dropped: %s", EVENT, message.subject, error.detail)

    def _take(self, event: "_Event") -> None:
        self._seen += 1
        if len(self._running) < self._concurrency:
            self._run(event)
        elif len(self._waiting) < _BACKLOG and self._waiting_bytes <= _BACKLOG_BYTES:
            self._waiting.append(event)
            self._waiting_bytes += len(event.call.body)
        else:
            self._drop()

    def _drop(self) -> None:
        """Count an event that does not fit, and say so from time to time."""
        self._dropped += 1
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= _SAY_AGAIN:
            self._said_at = now
            logger.error("%s is too slow for its events: %d were dropped so far", self.app.name, self._dropped)

    def _run(self, event: "_Event") -> None:
        self._idle.clear()
        self._running.add(event)
        event.task = asyncio.create_task(event.run(), name="natsweb event")

    def over(self, event: "_Event") -> None:
        """Go on with the next when one is over."""
        self._running.discard(event)
        if self._waiting:
            following = self._waiting.popleft()
            self._waiting_bytes -= len(following.call.body)
            self._run(following)
        elif not self._running:
            self._idle.set()


class _Event(Limited):
    """One event for one handler: to whom it is a request's `Channel`."""

    finishes = False
    socket: Socket | None = None

    def __init__(self, subscriber: Subscriber, route: Route, call: Call, params: dict[str, str], reply: str) -> None:
        self.call = call
        self.task: asyncio.Task[None] | None = None
        self._subscriber = subscriber
        self._route = route
        self._params = params
        self._reply = reply
        self._answered = False
        listening = route.declared.listening
        assert listening is not None
        self._timeout = listening.timeout
        self._timer: asyncio.TimerHandle | None = None
        call.channel = self
        call.timeout = listening.timeout

    async def run(self) -> None:
        """Run the handler, reply, and do what is left to do after that."""
        self.extend(self._timeout)
        try:
            await self._conclude(await self._subscriber.app.hand(self._route, self.call, self._params))
        except asyncio.CancelledError:
            self._say(HandlerFailed("the handler cancelled itself"))
        except Exception:  # of a reply that streams
            self._say(HandlerFailed("the reply failed in the middle; the log says why"))
        try:
            self._stop_timer()
            if self.call.after is not None:
                await self.call.after.close()
        finally:
            self.call.channel = None
            self._subscriber.over(self)

    async def _conclude(self, result: Response | Result) -> None:
        response = result.response()
        pieces = response.pieces
        if pieces is not None:
            try:
                room = self._subscriber.bus.max_payload - len(response.headers.block) - _MARGIN
                response = await collect(response, pieces, self.call.method, room)
            finally:
                await pieces.close()
        self._answer(response)

    def _answer(self, response: Response) -> None:
        """Reply, once, if somebody wants that."""
        if self._answered:
            return
        self._answered = True
        try:
            self._publish(response)
        except HTTPError as error:
            logger.warning("the reply to %s was not sent: %s", self._words, error.detail)
            self._publish_instead(error)
        except Exception:
            logger.exception("the reply to %s is none that can be sent", self._words)
            self._publish_instead(HandlerFailed("the handler's answer cannot be sent; the log says why"))

    def _publish_instead(self, error: HTTPError) -> None:
        if isinstance(error, TooLarge):
            error = ReplyTooLarge("the reply does not fit into one NATS message")
        with contextlib.suppress(HTTPError):
            self._publish(problem(error))

    def _publish(self, response: Response) -> None:
        if self._reply:
            header, payload = encode_response(response)
            self._subscriber.bus.publish(self._reply, payload, header=header)

    def end(self, error: HTTPError) -> None:
        """Cancel the handler, and say why."""
        self._say(error)
        if self.task is not None:
            self.task.cancel()

    def _say(self, error: HTTPError) -> None:
        if not self._answered:
            logger.error("%s failed (%s): %s", self._words, self._route.place, error.detail)
            self._answer(problem(error))

    @property
    def _words(self) -> str:
        return f"{EVENT} {'.'.join(map(decode_token, self.call.tokens))}"

    # ── the channel of the handler ──

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the rest of the body: there is none."""
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk

    def time_left(self) -> float:
        """Return how many seconds are left for the answer: see `Limited`."""
        timer = None if self._answered else self._timer
        return math.inf if timer is None else timer.when() - asyncio.get_running_loop().time()

    def extend(self, seconds: float) -> None:
        """Give the handler `seconds` from now."""
        if self._answered:
            return
        self._stop_timer()
        self._timeout = seconds
        if seconds < math.inf:
            error = TimeUp(f"the handler did not finish within {seconds:g} s")
            self._timer = asyncio.get_running_loop().call_later(seconds, self.end, error)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _captures(template: Template, words: list[str]) -> dict[str, str]:
    """Return the captures of a subject, as they stand in it."""
    params = {name: words[index] for index, name in template.captures}
    if template.tail is not None:
        index, name = template.tail
        params[name] = ".".join(words[index:])
    return params


def _subscriptions(events: Sequence[Route], queue: str) -> Iterator[tuple[str, str, list[tuple[str, Route]]]]:
    """Yield pattern, queue group and handlers, each with its own pattern, of each subscription.

    NATS gives a message to one subscription of a queue group, also where their patterns overlap: so a group has the
    fewest patterns, and each of them may bring an event for any of its handlers. Without a group each has its own.
    """
    groups: dict[str, list[tuple[str, Route]]] = {}
    for route in events:
        pattern = ".".join(route.template.shape)
        listening = route.declared.listening
        assert isinstance(listening, Listening)
        group = queue if listening.is_shared else listening.queue
        if group is None:
            yield pattern, "", [(pattern, route)]
        else:
            groups.setdefault(group, []).append((pattern, route))
    for group, routes in groups.items():
        for pattern in minimal_cover(pattern for pattern, _ in routes):
            yield pattern, group, routes
