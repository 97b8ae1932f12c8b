"""A service on the bus: subscribes its patterns, runs its handler for every request, answers each exactly once.

One task per request, at most `concurrency` of them. A rush beyond that waits a moment; where more come than are worked
off, the answer is a busy 503, soon. The deadline
comes with the request: when it is up the caller gets a 504 and the handler is cancelled, whatever it does then.
What is left to do after the reply, cleanup and background work, counts as part of the request. Answers go to inbox
subjects only. The mirror image of the gateway; it knows no HTTP server.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol

from natsweb.bus import Bus, Subscription
from natsweb.deadlines import Deadlines
from natsweb.errors import BadRequest, HandlerFailed, HTTPError, NatsRefused, Overloaded, Stopping, TimeUp
from natsweb.jobs import Job
from natsweb.messages import Call, Response, Result
from natsweb.proxy_wire import ProxyWire
from natsweb.replies import problem
from natsweb.subjects import REPLY_PREFIXES, subject_tokens
from natsweb.subscriber import Listens, Subscriber
from natsweb.tasks import Tasks
from natsweb.wire import decode_request

__all__ = ["App", "Worker"]

logger = logging.getLogger("natsweb.worker")

_CLOCK_SKEW = 5.0
_ACCEPT_AFTER = 45_000_000  # nanoseconds
_PAUSE = 0.025
_SHORT_PAUSE = 0.01  # while requests wait for their turn, so that none waits long to be refused
_LARGE = 16 * 1024
_KNOWN = 512
# How long a request waits for its turn, in nanoseconds: long in a rush, which is over soon, and hardly at all once
# others have waited for that long; another instance may have time. After B. Maurer, Fail at Scale, ACM Queue 13(8).
_RUSH, _STANDING = 500_000_000, 25_000_000
_BACKLOG_BYTES = 64 * 1024 * 1024


class App(Protocol):
    """What a worker serves: a `Service`, or anything shaped like one."""

    name: str
    queue: str
    root: str

    def patterns(self, root: str | None = None) -> list[str]:
        """Return the subjects to subscribe to."""
        ...

    def handle(self, call: Call) -> Coroutine[Any, Any, Response | Result]:
        """Answer one request."""
        ...


class Worker:
    """Serves `app` on `bus` below `root` (default: the app's own).

    `concurrency` bounds the requests under way, `backlog` those that wait for their turn, `max_streams` those whose
    answer streams and the open WebSockets, `timeout` is for requests that say none (seconds),
    `reply_prefixes` are the subjects that answers may go to, `wire` is the format of
    gateways of the origin's kind.
    """

    def __init__(
        self,
        bus: Bus,
        app: App,
        *,
        root: str | None = None,
        concurrency: int = 100,
        max_streams: int = 10_000,
        backlog: int = 4096,
        timeout: float = 10.0,
        reply_prefixes: tuple[str, ...] = REPLY_PREFIXES,
        wire: ProxyWire | None = None,
    ) -> None:
        self.wire = wire
        self.bus = bus
        self._app = app
        self._root = root or app.root
        self._concurrency = concurrency
        self._max_streams = max_streams
        self._timeout = timeout
        self._reply_prefixes = tuple([prefix.encode() for prefix in reply_prefixes])
        self._paths: dict[bytes, list[str]] = {}  # tokens by subject, of the last few
        self._said: set[str] = set()
        self._waiting: set[Job] = set()
        self._streaming: set[Job] = set()
        self._backlog: deque[Job] = deque()
        self._backlog_limit = backlog
        self._backlog_bytes = 0
        self._queued_since = 0  # when the backlog was empty last, if it is not now
        self._refused_at = -_RUSH  # when something in it had waited for too long, last
        self._filling = False
        self._subscriptions: list[Subscription] = []
        self._deadlines = Deadlines(lambda: self._waiting, self._time_up)
        self._sweeper: asyncio.TimerHandle | None = None
        self._stopping = False
        self._tasks = Tasks(self._run, "natsweb request")
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Event | None = None
        self.events: Subscriber | None = None  # what runs its event handlers
        if isinstance(app, Listens):
            self.events = Subscriber(bus, app, root=self._root, concurrency=concurrency, reply_prefixes=reply_prefixes)

    def __repr__(self) -> str:
        state = "live" if self._subscriptions else "stopped"
        return f"<Worker {self._app.name} below {self._root}: {state}, {len(self._waiting)} requests under way>"

    async def start(self) -> None:
        """Subscribe; when this returns, the server sends requests here."""
        if self.events is not None:
            await self.events.start()
        for pattern in self._app.patterns(self._root):
            self._subscriptions.append(await self.bus.subscribe_parts(pattern, self._receive, queue=self._app.queue))
        await self.bus.flush()

    async def stop(self, grace: float = 25.0) -> bool:
        """Take no more requests, finish those that are here, send their answers; True if all were finished.

        What still runs after `grace` seconds is cancelled and answered 503. The order is what loses nothing:
        unsubscribe, a round trip, finish, flush.
        """
        for subscription in self._subscriptions:
            subscription.stop()
        self._subscriptions.clear()
        if self.events is not None:
            self.events.stop()
        await self._round_trip()
        events = None if self.events is None else asyncio.create_task(self.events.finish(grace))
        self._stopping = True
        for job in [*self._waiting, *self._streaming]:
            self._end_stream(job)
        if self._waiting or self._streaming or self._backlog:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._idle.wait()
        while self._backlog:
            self._refuse(self._next(), Stopping("the service stopped before it had come to this request"))
        left = [*self._waiting, *self._streaming]
        for job in left:
            job.answer(problem(Stopping("the service stopped before the handler had finished")))
            job.cancel()
        if left:
            await asyncio.wait([job.task for job in left if job.task is not None], timeout=1.0)
        finished = events is None or await events
        await self._round_trip()
        self._deadlines.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        return finished and not left

    async def _round_trip(self) -> None:
        try:
            await self.bus.flush()
        except (HTTPError, NatsRefused) as error:
            logger.warning("stopping %s without a round trip to NATS: %s", self._app.name, error)

    # ── one request ──

    def _receive(self, subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> None:
        """Take a request off the bus: decode it, and start its task or answer at once. Never blocks.

        Flat, since every request goes through here (tests/benchmarks).
        """
        if reply and not reply.startswith(self._reply_prefixes):
            logger.warning("a request on %r wants its answer on %r, which is no inbox", subject, reply)
            reply = b""
        try:
            tokens = self._paths.get(subject) or self._find_path(subject)
            if self.wire is None:
                call = decode_request(tokens, header, payload)
            elif header is not None and b"\r\nNw-" in header:
                self._say_once("a request in natsweb's format has come, and is left to others: --wire says nats-proxy")
                return
            else:
                call = self.wire.decode_request(tokens, payload)
        except HTTPError as error:
            Job(self, Call("GET", []), reply).answer(problem(error))
            return
        if call.service is not None and call.service != self._app.name:
            return
        timeout = call.timeout
        if timeout is None:
            timeout = self._timeout
        elif call.sent is not None and time.time() - call.sent / 1000 > timeout + _CLOCK_SKEW:
            logger.debug("dropped a request that sat in a stalled pipe for longer than its time")
            return
        job = Job(self, call, reply)
        job.timeout = timeout
        job.due = self._deadlines.start(timeout)
        if self._backlog or len(self._waiting) >= self._concurrency or len(self._streaming) >= self._max_streams:
            self._queue(job)
        else:
            self._start(job)

    def _say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            logger.warning("%s: %s", self._app.name, words)

    def _start(self, job: Job) -> None:
        call = job.call
        call.channel = job
        self._waiting.add(job)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_PAUSE, self._sweep)
        if (call.more or call.upgrade) and not self._begin(job):
            self._forget(job)
        else:
            self._tasks.start(job)

    def _begin(self, job: Job) -> bool:
        """Make ready for the rest of a body, or for a WebSocket; False if that cannot be, and is answered."""
        try:
            if not job.caller or (job.window <= 1 and job.call.upgrade):
                raise BadRequest("a stream needs a caller that takes one (Nw-Accept)")
            job.begin()
        except HTTPError as error:
            job.answer(problem(error))
        except Exception:
            logger.exception("a request of %s could not begin", self._app.name)
            job.answer(problem(HandlerFailed("the service failed; its log says why")))
        else:
            return True
        return False

    # ── a rush ──

    def _queue(self, job: Job) -> None:
        """Have a request wait for its turn, or refuse it at once."""
        size = len(job.call.body)
        full = len(self._backlog) >= self._backlog_limit or self._backlog_bytes + size > _BACKLOG_BYTES
        if full or len(self._streaming) >= self._max_streams:
            self._refuse(job, Overloaded("the service has as many requests as it takes"))
            return
        if not self._backlog and job.started - self._refused_at > _RUSH:  # else it is empty since it was refused
            self._queued_since = job.started
        self._backlog.append(job)
        self._backlog_bytes += size

    def _next(self) -> Job:
        """Take the first out of the backlog."""
        job = self._backlog.popleft()
        self._backlog_bytes -= len(job.call.body)
        return job

    def _fill(self) -> None:
        """Start what waits, as far as there is room."""
        self._filling = False
        while self._backlog and len(self._waiting) < self._concurrency:
            self._start(self._next())

    def _refuse_late(self) -> None:
        """Refuse what has waited for too long."""
        now = time.perf_counter_ns()
        patience = _STANDING if now - self._queued_since > _RUSH else _RUSH
        while self._backlog and now - self._backlog[0].started > min(patience, self._backlog[0].timeout * 1e9):
            self._refused_at = now
            self._refuse(self._next(), Overloaded("the service has more requests than it can work off"))

    def _refuse(self, job: Job, error: HTTPError) -> None:
        job.answer(problem(error, executed=False))

    def _find_path(self, subject: bytes) -> list[str]:
        """Return the tokens of a subject that was not asked for lately; raises `BadPath`."""
        wire = self.wire
        text = subject.decode("latin-1")
        tokens = subject_tokens(self._root, text) if wire is None else wire.tokens(self._root, text)
        if len(self._paths) >= _KNOWN:
            self._paths.clear()
        self._paths[subject] = tokens
        return tokens

    async def _run(self, jobs: Iterator[Job]) -> None:
        for job in jobs:
            if job.answered:  # before its turn came: its caller has left, or its time is up
                self._forget(job)
                continue
            call = job.call
            try:
                result = await self._app.handle(call)
                if type(result) is Result and not call.upgrade and len(result.body) <= _LARGE:
                    job.answer(result)  # nearly always, and so it is asked for first (tests/benchmarks)
                else:
                    await self._send(job, result)
            except asyncio.CancelledError:
                # Cancelled by us, it has its answer; a handler that cancels itself still owes one.
                if not job.answered:
                    logger.error("a handler of %s cancelled itself: %s %s", self._app.name, call.method, call.raw_path)
                job.answer(problem(HandlerFailed("the handler cancelled itself")))
            except BaseException:
                logger.exception("serving a request of %s failed", self._app.name)
                job.answer(problem(HandlerFailed("the service failed; its log says why")))
            try:
                if call.after is not None:
                    job.due = math.inf  # what follows the answer has its own deadlines
                    await call.after.close()
            finally:
                if call.counter is not None:  # its route was found when it had been answered already
                    call.counter.abandon()
                self._forget(job)

    async def _send(self, job: Job, result: Response | Result) -> None:
        """Answer with anything that an app may return: large, in pieces, on a WebSocket; else raises `TypeError`."""
        if not isinstance(result, Response | Result):
            raise TypeError(f"{self._app.name} answered with {type(result).__name__}, not a Response")
        response = result.response()
        if job.socket is not None:
            await job.end_socket(response)
        elif response.pieces is not None or len(response.body) > _LARGE:
            await job.send(response)
        else:
            job.answer(response)

    def _forget(self, job: Job) -> None:
        """Let go of a request that is over, and use its place."""
        self._waiting.discard(job)
        if self._streaming:
            self._streaming.discard(job)
        job.let_go()
        if self._backlog:
            self._make_room()
        elif self._idle is not None and not self._waiting and not self._streaming:
            self._idle.set()

    def _make_room(self) -> None:
        if not self._filling:
            self._filling = True
            self._loop.call_soon(self._fill)

    def _time_up(self, job: Job) -> None:
        job.answer(problem(TimeUp(f"the handler did not answer within {job.timeout:g} s")))
        if not job.finishes:
            job.cancel()

    # ── what jobs ask for ──

    def streams(self, job: Job) -> None:
        """Hear that a job streams: it counts no more as under way, and may have to end when the worker stops."""
        if job in self._waiting:
            self._waiting.discard(job)
            self._streaming.add(job)
            if self._backlog:
                self._make_room()
        if self._stopping:
            self._end_stream(job)

    def _end_stream(self, job: Job) -> None:
        """End what would never end by itself: feeds end well, WebSockets with 1012 (service restart)."""
        socket = job.socket
        if socket is not None and socket.is_accepted:
            socket.hang_up(1012, "the service stops")
            job.leave()
        elif job.ends_well:
            job.cancel()

    def _sweep(self) -> None:
        """Accept what has not been answered at once: its caller knows then whom to tell that nobody waits any more."""
        self._sweeper = None
        before = time.perf_counter_ns() - _ACCEPT_AFTER
        for job in tuple(self._waiting):
            if job.started <= before:
                try:
                    job.accept()
                except HTTPError as error:
                    logger.debug("no accept was sent: %s", error.detail)
                except Exception:
                    logger.exception("no accept was sent for %r", job)
        if self._backlog:
            self._refuse_late()
        if self._waiting or self._backlog:
            self._sweeper = self._loop.call_later(_SHORT_PAUSE if self._backlog else _PAUSE, self._sweep)
