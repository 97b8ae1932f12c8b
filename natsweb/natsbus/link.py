"""What outlives a nats-py client: subscriptions, requests in flight, and the will to be connected.

`NatsBus` is all of a bus but how bytes go out and come in, which its bodies add. Requests in flight end the moment
the connection does; nothing is sent again by itself.
"""

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.subscription import Subscription as NatsSubscription

from natsweb.bus import Asking, Inbox, Message, Receive, ReceiveParts, Subscription
from natsweb.errors import (
    Disconnected,
    HTTPError,
    NatsDown,
    NatsRefused,
    NatsUnreachable,
    SubjectTooLong,
    TimeUp,
    TooLarge,
)
from natsweb.natsbus.client import RawClient, close_quietly, open_client
from natsweb.settings import Nats, mask

__all__ = ["MAX_LINE", "LinkSubscription", "NatsBus", "check_message", "to_message"]

logger = logging.getLogger("natsweb.nats")

_REBUILD_WAIT = 0.2
_MAX_COMPLAINTS = 1000
_REFUSED = re.compile(r'permissions violation for publish to "([^"]+)"').search
_MAX_LAST_WORDS = 10_000
_MAX_LAST_BYTES = 16 * 1024 * 1024
MAX_LINE = 4096 - 64  # nats-server's limit of a protocol line, less the sizes and the spaces


class LinkSubscription:
    """A subscription that outlives the client it was made on."""

    def __init__(self, bus: "NatsBus", subject: str, queue: str, receive: Receive) -> None:
        self._bus = bus
        self.subject = subject
        self.queue = queue
        self.receive = receive
        self.receive_parts: ReceiveParts | None = None
        self.current: NatsSubscription | None = None
        self.stopped = False

    def stop(self) -> None:
        """Ask for no more messages: see `Subscription.stop`."""
        if not self.stopped:
            self.stopped = True
            self._bus._unsubscribe(self)

    def __repr__(self) -> str:
        return f"<subscription {self.subject} queue={self.queue!r} {'stopped' if self.stopped else 'live'}>"


class NatsBus(Asking):
    """A `Bus` over nats-py; its bodies are `PublicBus` and `FastBus`. Make one with `connect`."""

    def __init__(self, settings: Nats, name: str) -> None:
        self._settings = settings
        self._name = name
        self._client = RawClient()
        self._subscriptions: list[LinkSubscription] = []
        self._inbox = Inbox(self.post, settings.inbox_prefix)
        self._up = False
        self._closing = False
        self._rebuilder: asyncio.Task[None] | None = None
        self._complaints: set[str] = set()
        self._refused: list[str] = []
        self._flushes: set[asyncio.Future[None]] = set()
        self._last_words: deque[tuple[bytes, bytes, bytes | None, bytes]] = deque(maxlen=_MAX_LAST_WORDS)
        self._last_bytes = 0
        self.rebuilds = 0
        self.reconnected_at = float("-inf")

    def __repr__(self) -> str:
        state = "closed" if self._closing else "connected" if self.is_connected else "down"
        return f"<{type(self).__name__} {self._settings.display}: {state}, {len(self._inbox)} requests in flight>"

    # ── what a body adds ──

    async def _subscribe(self, client: RawClient, subscription: LinkSubscription) -> None:
        """Subscribe on a client, and set `subscription.current`."""
        raise NotImplementedError

    def _unsubscribe(self, subscription: LinkSubscription) -> None:
        """Tell the server to send no more; what is on its way is still received."""
        raise NotImplementedError

    async def _all_sent(self) -> None:
        """Wait until all that was published is on its way, ahead of any ping."""
        raise NotImplementedError

    async def _all_received(self) -> None:
        """Wait until all that nats-py has read has been received."""

    def _take_back(self) -> list[bytes]:
        """Return the reply subjects of requests that never left, and drop all that has not left."""
        return []

    def _forget(self, subscription: LinkSubscription) -> None:
        """Let go of what a body keeps for a subscription that is over."""

    # ── state ──

    @property
    def is_connected(self) -> bool:
        """Whether a message published now would leave at once."""
        return self._up and self._client.is_connected

    @property
    def max_payload(self) -> int:
        """The server's limit for header block plus payload, in bytes."""
        return int(self._client.max_payload)

    @property
    def server(self) -> str:
        """URL of the connected server, without credentials."""
        url = self._client.connected_url
        return mask(url.geturl()) if url is not None else self._settings.display

    # ── the connection ──

    async def start(self) -> None:
        """Connect; raises `NatsUnreachable` when no server takes us."""
        try:
            self._client = await self._new_client()
            self._up = True
            await self.subscribe(self._inbox.pattern, self._inbox.receive)
        except BaseException:
            await self.close()
            raise

    async def _new_client(self) -> RawClient:
        return await open_client(
            self._settings,
            self._name,
            on_error=self._on_error,
            on_down=self._on_down,
            on_up=self._on_up,
            on_closed=self._on_closed,
        )

    def _on_error(self, client: RawClient, text: str) -> None:
        """Log a server's complaint, once and not once a message."""
        if "permissions violation for subscription" in text:
            self._refused.append(text)
        if found := _REFUSED(text):
            self._inbox.pulse.refused(found[1].encode("latin-1"))
        if client is self._client and text not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(text)
            logger.warning("NATS: %s", text)

    def _on_down(self, client: RawClient) -> None:
        if client is not self._client or self._closing:
            return
        self._up = False
        logger.warning("connection to NATS lost; %d requests in flight end", len(self._inbox))
        for lost in self._flushes:
            if not lost.done():
                lost.set_result(None)
        for reply in self._take_back():
            self._inbox.settle(reply, NatsDown("there is no connection to NATS"))
        self._inbox.fail_all(Disconnected("the connection to NATS was lost while the request was under way"))

    def _on_up(self, client: RawClient) -> None:
        if client is not self._client or self._closing:
            return
        self._up = True
        self.reconnected_at = asyncio.get_running_loop().time()
        self._complaints.clear()
        logger.warning("connected to NATS again")
        with contextlib.suppress(HTTPError):
            while self._last_words:
                self.post(*self._last_words.popleft())
        self._last_words.clear()
        self._last_bytes = 0

    def post_later(self, subject: bytes, header: bytes | None, reply: bytes = b"", payload: bytes = b"") -> None:
        """Send a last word later: see `Bus.post_later`."""
        self._last_bytes += len(payload)
        if self._last_bytes <= _MAX_LAST_BYTES:
            self._last_words.append((subject, payload, header, reply))
        else:
            self._last_bytes -= len(payload)

    def _on_closed(self, client: RawClient) -> None:
        if client is self._client and not self._closing:
            self._on_down(client)
            self._rebuilder = asyncio.create_task(self._rebuild(), name="natsweb bus rebuild")

    async def _rebuild(self) -> None:
        """Replace a client that nats-py has given up, and subscribe everything again."""
        while not self._closing:
            try:
                client = await self._new_client()
                for subscription in [one for one in self._subscriptions if not one.stopped]:
                    await self._subscribe(client, subscription)
                await client.flush()
            except (NatsUnreachable, nats.errors.Error, OSError):
                await asyncio.sleep(_REBUILD_WAIT)
                continue
            self._client = client
            self.rebuilds += 1
            self._on_up(client)
            return

    # ── requests and subscriptions ──

    async def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject`: see `Bus.subscribe`. Raises `NatsDown` without a connection."""
        return await self._add(LinkSubscription(self, subject, queue, receive))

    async def _add(self, subscription: LinkSubscription) -> Subscription:
        if not self.is_connected:
            raise NatsDown("there is no connection to NATS")
        await self._subscribe(self._client, subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait for a round trip to the server, behind all that was sent: see `Bus.flush`."""
        if self._closing or not self.is_connected:
            raise NatsDown("there is no connection to NATS")
        async with _deadline(timeout, "NATS did not answer a ping"):
            await self._all_sent()
            await self._round_trip(timeout)
            await self._all_received()
        for subscription in [one for one in self._subscriptions if one.stopped]:
            self._subscriptions.remove(subscription)
            self._forget(subscription)
            if subscription.current is not None:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.current.unsubscribe()
        refused, self._refused = self._refused, []
        if refused:
            raise NatsRefused(
                f"the NATS server at {self.server} refuses a subscription",
                where=refused,
                fix="let this user subscribe to these subjects; docs/gateway.md lists what is needed",
            )

    async def _round_trip(self, timeout: float) -> None:
        """Wait for the answer to a ping, or for the loss of the connection."""
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pong = asyncio.ensure_future(self._client.flush(timeout=max(1, round(timeout))))
        self._flushes.add(lost)
        try:
            await asyncio.wait([pong, lost], return_when=asyncio.FIRST_COMPLETED)
            if not pong.done():
                raise NatsDown("the connection to NATS was lost")
            await pong
        finally:
            self._flushes.discard(lost)
            lost.cancel()
            pong.cancel()

    async def close(self) -> None:
        """Send what is pending, close the connection; requests in flight end with `Disconnected`."""
        if self._closing:
            return
        if self.is_connected:
            with contextlib.suppress(HTTPError, NatsRefused):
                await self.flush(2)
        self._closing, self._up = True, False
        self._inbox.fail_all(Disconnected("this process closes its connection to NATS"))
        self._inbox.close()
        if self._rebuilder is not None:
            self._rebuilder.cancel()
            await asyncio.gather(self._rebuilder, return_exceptions=True)
        await self._close_client()

    async def _close_client(self) -> None:
        await close_quietly(self._client)


def check_message(subject: str | bytes, reply: str | bytes, size: int, max_payload: int) -> None:
    """Raise before anything is sent that the server would answer by closing the connection."""
    if size > max_payload:
        raise TooLarge(f"the message is larger than the NATS server's max_payload ({max_payload} bytes)")
    if len(subject) + len(reply) > MAX_LINE:
        raise SubjectTooLong("the subject is too long for a NATS protocol line")


def to_message(subject: bytes, reply: bytes, header: bytes | None, payload: bytes) -> Message:
    """Return a message of raw parts: subjects are latin-1 text, since a peer may send any bytes."""
    # Past Message.__new__, which takes twice as long (tests/benchmarks).
    return tuple.__new__(Message, (subject.decode("latin-1"), reply.decode("latin-1"), header, payload))


@contextlib.asynccontextmanager
async def _deadline(timeout: float, words: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except (TimeoutError, nats.errors.TimeoutError):
        raise TimeUp(words) from None
    except (nats.errors.Error, OSError) as error:
        raise NatsDown("there is no connection to NATS") from error
