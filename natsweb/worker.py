"""A service on the bus: subscribes its patterns, runs its handler for every request, answers each exactly once.

One task per request, at most `concurrency` of them; beyond that the answer is a busy 503 at once. The deadline
comes with the request: when it is up the caller gets a 504 and the handler is cancelled, whatever it does then.
What is left to do after the reply, cleanup and background work, counts as part of the request. Answers go to inbox
subjects only. The mirror image of the gateway; it knows no HTTP server.
"""

import asyncio
import contextlib
import logging
import math
import sys
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from natsweb.bus import Bus, Message, Subscription
from natsweb.deadlines import Deadlines, Timed
from natsweb.errors import (
    HandlerFailed,
    HTTPError,
    NatsRefused,
    NotAcceptable,
    Overloaded,
    ReplyTooLarge,
    Stopping,
    TimeUp,
    TooLarge,
)
from natsweb.messages import Call, Pieces, Response
from natsweb.replies import problem
from natsweb.subjects import REPLY_PREFIXES, subject_tokens
from natsweb.wire import decode_request, encode_response

__all__ = ["App", "Worker"]

logger = logging.getLogger("natsweb.worker")

_CLOCK_SKEW = 5.0
_KNOWN = 512


class App(Protocol):
    """What a worker serves: a `Service`, or anything shaped like one."""

    name: str
    queue: str
    root: str

    def patterns(self, root: str | None = None) -> list[str]:
        """Return the subjects to subscribe to."""
        ...

    async def handle(self, call: Call) -> Response:
        """Answer one request."""
        ...


class _Job(Timed):
    """One request under way: answered at most once."""

    __slots__ = ("answered", "call", "reply", "started", "task", "timeout")

    def __init__(self, call: Call, reply: str) -> None:
        self.call = call
        self.reply = reply
        self.answered = False
        self.started = time.perf_counter_ns()
        self.timeout = 0.0
        self.task: asyncio.Task[None] | None = None


class Worker:
    """Serves `app` on `bus` below `root` (default: the app's own).

    `concurrency` bounds the requests under way, `timeout` is for requests that say none (seconds),
    `reply_prefixes` are the subjects that answers may go to.
    """

    def __init__(
        self,
        bus: Bus,
        app: App,
        *,
        root: str | None = None,
        concurrency: int = 100,
        timeout: float = 10.0,
        reply_prefixes: tuple[str, ...] = REPLY_PREFIXES,
    ) -> None:
        self._bus = bus
        self._app = app
        self._root = root or app.root
        self._concurrency = concurrency
        self._timeout = timeout
        self._reply_prefixes = reply_prefixes
        self._paths: dict[str, list[str]] = {}  # tokens by subject, of the last few
        self._jobs: set[_Job] = set()
        self._subscriptions: list[Subscription] = []
        self._deadlines = Deadlines(lambda: self._jobs, self._time_up)
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Event | None = None

    def __repr__(self) -> str:
        state = "live" if self._subscriptions else "stopped"
        return f"<Worker {self._app.name} below {self._root}: {state}, {len(self._jobs)} requests under way>"

    async def start(self) -> None:
        """Subscribe; when this returns, the server sends requests here."""
        for pattern in self._app.patterns(self._root):
            self._subscriptions.append(await self._bus.subscribe(pattern, self._receive, queue=self._app.queue))
        await self._bus.flush()

    async def stop(self, grace: float = 25.0) -> bool:
        """Take no more requests, finish those that are here, send their answers; True if all were finished.

        What still runs after `grace` seconds is cancelled and answered 503. The order is what loses nothing:
        unsubscribe, a round trip, finish, flush.
        """
        for subscription in self._subscriptions:
            subscription.stop()
        self._subscriptions.clear()
        await self._round_trip()
        if self._jobs:
            self._idle = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._idle.wait()
        left = list(self._jobs)
        for job in left:
            self._answer(job, problem(Stopping("the service stopped before the handler had finished")))
            self._cancel(job)
        if left:
            await asyncio.wait([job.task for job in left if job.task is not None], timeout=1.0)
        await self._round_trip()
        self._deadlines.close()
        return not left

    async def _round_trip(self) -> None:
        try:
            await self._bus.flush()
        except (HTTPError, NatsRefused) as error:
            logger.warning("stopping %s without a round trip to NATS: %s", self._app.name, error)

    # ── one request ──

    def _receive(self, message: Message) -> None:
        """Take a request off the bus: decode it, and start its task or answer at once. Never blocks.

        Flat, since every request goes through here (tests/benchmarks).
        """
        subject, reply, header, payload = message
        if reply and not reply.startswith(self._reply_prefixes):
            logger.warning("a request on %r wants its answer on %r, which is no inbox", subject, reply)
            reply = ""
        try:
            call = decode_request(self._paths.get(subject) or self._find_path(subject), header, payload)
        except HTTPError as error:
            self._answer(_Job(Call("GET", []), reply), problem(error))
            return
        if call.service is not None and call.service != self._app.name:
            return
        timeout = call.timeout
        if timeout is None:
            timeout = self._timeout
        elif call.sent is not None and time.time() - call.sent / 1000 > timeout + _CLOCK_SKEW:
            logger.debug("dropped a request that sat in a stalled pipe for longer than its time")
            return
        job = _Job(call, reply)
        if len(self._jobs) >= self._concurrency:
            self._answer(job, problem(Overloaded("the service has as many requests as it takes"), executed=False))
            return
        job.timeout = timeout
        job.due = self._deadlines.start(timeout)
        self._jobs.add(job)
        job.task = _new_task(self._run(job), self._loop)

    def _find_path(self, subject: str) -> list[str]:
        """Return the tokens of a subject that was not asked for lately; raises `BadPath`."""
        tokens = subject_tokens(self._root, subject)
        if len(self._paths) >= _KNOWN:
            self._paths.clear()
        self._paths[subject] = tokens
        return tokens

    async def _run(self, job: _Job) -> None:
        try:
            response = await self._app.handle(job.call)
            if not isinstance(response, Response):
                raise TypeError(f"{self._app.name} answered with {type(response).__name__}, not a Response")
            if response.pieces is not None:
                response = await _collect(response, response.pieces, job.call.method, self._bus.max_payload)
        except asyncio.CancelledError:
            # Cancelled by us, it has its answer; a handler that cancels itself still owes one.
            response = problem(HandlerFailed("the handler cancelled itself"))
        except BaseException:
            logger.exception("serving a request of %s failed", self._app.name)
            response = problem(HandlerFailed("the service failed; its log says why"))
        self._answer(job, response)
        try:
            if job.call.after is not None:
                job.due = math.inf  # what follows the answer has its own deadlines
                await job.call.after.close()
        finally:
            if job.call.counter is not None:  # its route was found when it had been answered already
                job.call.counter.abandon()
            self._jobs.discard(job)
            job.task = None  # no cycle stays behind for the garbage collector
            if self._idle is not None and not self._jobs:
                self._idle.set()

    def _time_up(self, job: _Job) -> None:
        self._answer(job, problem(TimeUp(f"the handler did not answer within {job.timeout:g} s")))
        self._cancel(job)

    @staticmethod
    def _cancel(job: _Job) -> None:
        if job.task is not None:
            job.task.cancel()

    def _answer(self, job: _Job, response: Response) -> None:
        """Publish the one answer of a request; later ones go nowhere."""
        if job.answered:
            return
        job.answered = True
        counter = job.call.counter
        if counter is not None:
            job.call.counter = None
            counter.finish(time.perf_counter_ns() - job.started, response.status)
        if not job.reply:
            return
        try:
            self._publish(job, response)
        except TooLarge:
            limit = self._bus.max_payload
            logger.error("the answer to %s %s is larger than max_payload (%d bytes)", *_who(job), limit)
            self._publish_instead(job, ReplyTooLarge("the answer does not fit into one NATS message"))
        except HTTPError as error:
            logger.warning("the answer to %s %s was not sent: %s", *_who(job), error.detail)
        except Exception:
            logger.exception("the answer to %s %s is none that can be sent", *_who(job))
            self._publish_instead(job, HandlerFailed("the handler's answer cannot be sent; the log says why"))

    def _publish_instead(self, job: _Job, error: HTTPError) -> None:
        try:
            self._publish(job, problem(error))
        except HTTPError as why:
            logger.warning("the answer to %s %s was not sent: %s", *_who(job), why.detail)

    def _publish(self, job: _Job, response: Response) -> None:
        header, payload = encode_response(response, method=job.call.method, retry=response.retry)
        self._bus.publish(job.reply, payload, header=header)


if sys.version_info >= (3, 12):

    def _new_task(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Start a task at once: a handler that never waits is over before it would have been scheduled."""
        return asyncio.Task(work, loop=loop, name="natsweb request", eager_start=True)

else:

    def _new_task(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        """Start a task, with a name: to number it takes longer."""
        return asyncio.Task(work, loop=loop, name="natsweb request")


async def _collect(response: Response, pieces: Pieces, method: str, largest: int) -> Response:
    """Return a streamed answer as one message, for a caller that takes no more than that; 406 if it is too large."""
    body = bytearray()
    try:
        async for piece in pieces.source:
            if method == "HEAD":
                break
            body += piece
            if len(body) > largest:
                return problem(NotAcceptable(f"the answer is a stream of more than one NATS message ({largest} bytes)"))
    except Exception as error:
        if body or pieces.failed is None:
            raise
        return await pieces.failed(error)
    finally:
        await pieces.close()
    headers = response.headers if method == "HEAD" else response.headers.without("content-length")
    return Response.trusted(response.status, headers, bytes(body))


def _who(job: _Job) -> tuple[str, str]:
    return job.call.method, job.call.raw_path
