"""The bus over a real NATS server: the only module that imports nats-py.

`NatsBus` keeps what must outlive a nats-py client: subscriptions, requests in flight, the inbox. nats-py closes
itself for good on most server errors; then a new client is built and everything is subscribed again. Requests
in flight end the moment the connection does. Bytes go through nats-py's public API with small overrides: header
blocks come out raw (its dict loses repeats and bytes), and neither a subject that is not UTF-8 nor a header block
that looks like protocol can end the read loop.
"""

import asyncio
import contextlib
import json
import logging
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.protocol.parser import Parser

from natsweb.bus import Answer, Inbox, Message, Receive, Subscription
from natsweb.errors import Disconnected, HTTPError, NatsDown, NatsRefused, NatsUnreachable, Overloaded, TimeUp, TooLarge
from natsweb.settings import Nats, mask

__all__ = ["NatsBus", "connect"]

logger = logging.getLogger("natsweb.nats")

_CONNECT_TIMEOUT = 2
_RECONNECT_WAIT = 0.2
_PING_INTERVAL = 1
_PINGS_MISSED = 2
_MAX_UNSENT = 64 * 1024 * 1024
_MAX_LINE = 1024 * 1024  # an INFO of a large cluster is the longest


class _Raw(dict[str, str]):
    """nats-py's headers, with the header block they were parsed from."""

    block: bytes = b""


class _Frames(Parser):
    """The server's protocol, line by line and then by the length that the line says.

    nats-py's own patterns run over the end of a line: a header block that begins with digits, which any peer
    may send, poses as a length there and deafens the client.
    """

    def reset(self) -> None:
        super().reset()
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._generation = object()

    async def parse(self, data: bytes = b"") -> None:
        """Take bytes off the socket; raises `ProtocolError` for what no server says."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        buffer = b"".join(self._chunks) if len(self._chunks) > 1 else data
        generation = self._generation
        start, self._need = 0, 0
        while (end := buffer.find(b"\r\n", start)) >= 0:
            words = buffer[start:end].split(b" ")  # a subject may have any other white space in it
            operation = words[0]
            if operation in (b"MSG", b"HMSG"):
                body = end + 2
                sid, subject, reply, header_size, size = _message_line(words, operation == b"HMSG")
                if len(buffer) < body + size + 2:
                    self._need = body + size + 2 - start
                    break
                header = buffer[body : body + header_size] if operation == b"HMSG" else None
                start = body + size + 2
                await self.nc._process_msg(sid, subject, reply, buffer[body + header_size : start - 2], header)
            else:
                line, start = buffer[start:end], end + 2
                await self._control(operation, line)
            if self._generation is not generation:
                return  # reset meanwhile: what is left was said on another connection
        else:
            if len(buffer) - start > _MAX_LINE:
                raise nats.errors.ProtocolError
        self._chunks, self._have = [buffer[start:]], len(buffer) - start

    async def _control(self, operation: bytes, line: bytes) -> None:
        if operation == b"PING":
            await self.nc._process_ping()
        elif operation == b"PONG":
            await self.nc._process_pong()
        elif operation == b"INFO":
            await self.nc._process_info(json.loads(line[5:]))
        elif operation == b"-ERR":
            await self.nc._process_err(line[5:].decode("latin-1").strip().lower())
        elif operation != b"+OK":
            raise nats.errors.ProtocolError


def _message_line(words: list[bytes], has_header: bool) -> tuple[int, bytes, bytes, int, int]:
    """Return sid, subject, reply, header size and whole size of a MSG or HMSG line."""
    try:
        _, subject, sid, *rest = words
        size = int(rest.pop())
        header_size = int(rest.pop()) if has_header else 0
        reply = rest.pop() if rest else b""
        number = int(sid)
    except (ValueError, IndexError):
        raise nats.errors.ProtocolError from None
    if rest or not 0 <= header_size <= size:
        raise nats.errors.ProtocolError
    return number, subject, reply, header_size, size


class _Client(Client):
    """A nats-py client that keeps header blocks and survives subjects that are not UTF-8."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Frames(self)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if not headers:
            return None
        raw = _Raw()
        raw.block = bytes(headers)
        return raw

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Msg:
        return Msg(
            _client=self,
            subject=subject.decode("latin-1"),
            reply=reply.decode("latin-1"),
            data=data,
            headers=headers,
            _sid=sid,
        )


class _Latin1(str):
    """Header text that reaches the socket byte for byte through `Client.publish`."""

    __slots__ = ()

    def strip(self, *_: Any) -> "_Latin1":
        return self

    def translate(self, *_: Any) -> "_Latin1":
        return self

    def encode(self, *_: Any, **__: Any) -> bytes:
        return super().encode("latin-1")


class _Lines:
    """A header block in the shape that `Client.publish` reads: repeated names stay repeated.

    nats-py writes `name: value` whatever the space around the colon was; `size` is the size of what it writes.
    """

    def __init__(self, block: bytes) -> None:
        self._lines = [line for line in block.split(b"\r\n")[1:-2] if b":" in line]
        self.size = 12 + sum(len(name) + len(value.encode()) + 4 for name, value in self.items())

    def items(self) -> Iterator[tuple[str, str]]:
        for line in self._lines:
            name, _, value = line.partition(b":")
            yield name.decode("ascii"), _Latin1(value.strip(b" \t").decode("latin-1"))


class _NatsSubscription:
    """A subscription that outlives the client it was made on."""

    def __init__(self, bus: "NatsBus", subject: str, queue: str, receive: Receive) -> None:
        self._bus = bus
        self.subject = subject
        self.queue = queue
        self.receive = receive
        self.current: NatsSubscription | None = None
        self.stopped = False

    def stop(self) -> None:
        self._bus._stop(self)

    async def on_message(self, message: Msg) -> None:
        block = message.headers.block if isinstance(message.headers, _Raw) else None
        try:
            self.receive(Message(message.subject, message.reply, block, message.data))
        except Exception:
            logger.exception("receiving on %s failed", self.subject)

    def __repr__(self) -> str:
        return f"<subscription {self.subject} queue={self.queue!r} {'stopped' if self.stopped else 'live'}>"


class NatsBus:
    """A `Bus` over nats-py's public API. Make one with `connect`."""

    def __init__(self, nats: Nats, name: str) -> None:
        self._nats = nats
        self._name = name
        self._client = _Client()
        self._subscriptions: list[_NatsSubscription] = []
        self._inbox = Inbox(nats.inbox_prefix)
        self._unsent: deque[Callable[[], Any]] = deque()
        self._unsent_bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: asyncio.Task[None] | None = None
        self._rebuilder: asyncio.Task[None] | None = None
        self._closing = False
        self._complaints: set[str] = set()
        self._refused: list[str] = []
        self.rebuilds = 0

    def __repr__(self) -> str:
        state = "closed" if self._closing else "connected" if self.is_connected else "down"
        return f"<NatsBus {self._nats.display}: {state}, {len(self._inbox)} requests in flight>"

    # ── state ──

    @property
    def is_connected(self) -> bool:
        """Whether a message published now would leave at once."""
        return self._client.is_connected and not self._closing

    @property
    def max_payload(self) -> int:
        """The server's limit for header block plus payload, in bytes."""
        return int(self._client.max_payload)

    @property
    def server(self) -> str:
        """URL of the connected server, without credentials."""
        url = self._client.connected_url
        return mask(url.geturl()) if url is not None else self._nats.display

    # ── connecting ──

    async def start(self) -> None:
        """Connect; raises `NatsUnreachable` when no server takes us."""
        self._writer = asyncio.create_task(self._write_all(), name="natsweb bus writer")
        try:
            self._client = await self._new_client()
            await self.subscribe(self._inbox.pattern, self._inbox.receive)
        except BaseException:
            await self.close()
            raise

    async def _new_client(self) -> _Client:
        client = _Client()
        problems: list[str] = []

        async def on_error(error: Exception) -> None:
            problems.append(_say(error))
            if "permissions violation for subscription" in problems[-1]:
                self._refused.append(problems[-1])
            if client is self._client:  # a failing first connect is reported as a whole, by what it raises
                self._complain(problems[-1])

        async def on_disconnect() -> None:
            self._lost(client)

        async def on_closed() -> None:
            self._closed_for_good(client)

        try:
            await client.connect(
                servers=list(self._nats.urls),
                name=self._name,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                closed_cb=on_closed,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=_RECONNECT_WAIT,  # type: ignore[arg-type]  # seconds, and fractions work
                connect_timeout=_CONNECT_TIMEOUT,
                ping_interval=_PING_INTERVAL,
                max_outstanding_pings=_PINGS_MISSED,
                pending_size=0,
                inbox_prefix=self._nats.inbox_prefix,
                **_login(self._nats),
            )
        except (OSError, nats.errors.Error, TimeoutError, ValueError) as error:
            why = problems[-1] if problems else _say(error)
            if isinstance(error, ConnectionError) and getattr(client, "_server_info", {}).get("auth_required"):
                # The server says why and hangs up; a client that is still writing loses the words.
                why = "authorization violation"
            await _close_quietly(client)
            raise _unreachable(self._nats, why) from error
        # The same options govern the first connect, which must fail soon, and all later ones, which never give up.
        client.options["allow_reconnect"] = True
        client.options["max_reconnect_attempts"] = -1
        return client

    def _complain(self, text: str) -> None:
        """Log a server's complaint once, not once a message."""
        if text not in self._complaints and len(self._complaints) < 1000:
            self._complaints.add(text)
            logger.warning("NATS: %s", text)

    def _lost(self, client: _Client) -> None:
        if client is self._client and not self._closing:
            logger.warning("connection to NATS lost; %d requests in flight end", len(self._inbox))
            self._inbox.fail_all(Disconnected("the connection to NATS was lost while the request was under way"))

    def _closed_for_good(self, client: _Client) -> None:
        if client is self._client and not self._closing:
            self._inbox.fail_all(Disconnected("the connection to NATS was lost while the request was under way"))
            self._rebuilder = asyncio.create_task(self._rebuild(), name="natsweb bus rebuild")

    async def _rebuild(self) -> None:
        """Replace a client that nats-py has given up, and subscribe everything again."""
        self._complaints.clear()
        while not self._closing:
            try:
                client = await self._new_client()
                for subscription in self._subscriptions:
                    if not subscription.stopped:
                        await self._subscribe_on(client, subscription)
            except (NatsUnreachable, nats.errors.Error, OSError):
                await asyncio.sleep(_RECONNECT_WAIT)
                continue
            self._client = client
            self.rebuilds += 1
            logger.warning("connected to NATS again with a new client")
            return

    # ── sending ──

    def publish(self, subject: str, payload: bytes, *, header: bytes | None = None, reply: str = "") -> None:
        """Send a message: see `Bus.publish`. Also raises `Overloaded` when too much waits to be sent."""
        if not isinstance(payload, bytes):
            raise TypeError(f"a payload is bytes, not {type(payload).__name__}")
        lines = None if header is None else _Lines(header)
        size = len(payload) + max(len(header or b""), 0 if lines is None else lines.size)
        if not self.is_connected:
            raise NatsDown("there is no connection to NATS")
        if size > self.max_payload:
            raise TooLarge(f"the message is larger than the NATS server's max_payload ({self.max_payload} bytes)")
        if self._unsent_bytes + self._client.pending_data_size > _MAX_UNSENT:
            raise Overloaded("the connection to NATS is congested")
        client = self._client
        self._unsent_bytes += size

        async def send() -> None:
            self._unsent_bytes -= size
            await client.publish(subject, payload, reply, headers=lines)  # type: ignore[arg-type]

        self._unsent.append(send)
        self._idle.clear()
        self._wake.set()

    async def _write_all(self) -> None:
        """Hand messages to nats-py in order; its `publish` is a coroutine, ours is not."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsent:
                try:
                    await self._unsent.popleft()()
                except Exception as error:  # whatever one message does, the next ones go out
                    self._complain(f"a message was not sent: {_say(error)}")
            self._idle.set()

    def ask(
        self, subject: str, payload: bytes, *, header: bytes | None = None, timeout: float, answer: Answer
    ) -> Callable[[], None]:
        """Send a request: see `Bus.ask`."""
        reply = self._inbox.open(timeout, answer)
        try:
            self.publish(subject, payload, header=header, reply=reply)
        except HTTPError:
            self._inbox.drop(reply)
            raise
        return lambda: self._inbox.drop(reply)

    # ── receiving ──

    async def subscribe(self, subject: str, receive: Receive, *, queue: str = "") -> Subscription:
        """Receive what is sent on `subject`: see `Bus.subscribe`. Raises `NatsDown` without a connection."""
        if not self.is_connected:
            raise NatsDown("there is no connection to NATS")
        subscription = _NatsSubscription(self, subject, queue, receive)
        await self._subscribe_on(self._client, subscription)
        self._subscriptions.append(subscription)
        return subscription

    async def _subscribe_on(self, client: _Client, subscription: _NatsSubscription) -> None:
        subscription.current = await client.subscribe(
            subscription.subject, subscription.queue, cb=subscription.on_message
        )

    def _stop(self, subscription: _NatsSubscription) -> None:
        if subscription.stopped:
            return
        subscription.stopped = True
        client, current = self._client, subscription.current

        async def unsubscribe() -> None:
            if current is None:
                return
            if client.is_connected:
                await client._send_unsubscribe(current._id)
            else:
                await current.unsubscribe()  # so that nats-py does not subscribe it again

        self._unsent.append(unsubscribe)
        self._idle.clear()
        self._wake.set()

    async def flush(self, timeout: float = 5.0) -> None:
        """Wait for a round trip to the server, behind all that was sent: see `Bus.flush`."""
        if self._closing:
            raise NatsDown("the connection to NATS is closed")
        async with _deadline(timeout, "NATS did not answer a ping"):
            await self._idle.wait()
            if not self.is_connected:
                raise NatsDown("there is no connection to NATS")
            await asyncio.sleep(0)  # nats-py writes a ping ahead of what waits for its flusher; let that go first
            await self._client.flush(timeout=max(1, round(timeout)))
            for subscription in self._subscriptions:
                while subscription.current is not None and subscription.current.pending_msgs:
                    await asyncio.sleep(0)
        self._raise_refused()
        for subscription in [one for one in self._subscriptions if one.stopped]:
            self._subscriptions.remove(subscription)
            if subscription.current is not None:
                with contextlib.suppress(nats.errors.Error):
                    await subscription.current.unsubscribe()

    def _raise_refused(self) -> None:
        refused, self._refused = self._refused, []
        if refused:
            raise NatsRefused(
                f"the NATS server at {self.server} refuses a subscription",
                where=refused,
                fix="let this user subscribe to the service's subjects, and to its inbox",
            )

    async def close(self) -> None:
        """Send what is pending, close the connection; requests in flight end with `Disconnected`."""
        if self._closing:
            return
        if self.is_connected:
            with contextlib.suppress(HTTPError, NatsRefused):
                await self.flush(2)
        self._closing = True
        self._inbox.fail_all(Disconnected("this process closes its connection to NATS"))
        self._inbox.close()
        for task in (self._writer, self._rebuilder):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await _close_quietly(self._client)


async def connect(nats: Nats, *, name: str = "natsweb", wait: float = 0.0) -> NatsBus:
    """Return a connected bus; tries again for `wait` seconds before it raises `NatsUnreachable`.

    `name` is what the server shows for this connection.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + wait
    told = False
    while True:
        bus = NatsBus(nats, name)
        try:
            await bus.start()
        except NatsUnreachable as error:
            if loop.time() >= give_up:
                raise
            if not told:
                told = True
                logger.warning("%s; trying for %g s", error.what, wait)
            await asyncio.sleep(min(0.5, max(0.0, give_up - loop.time())))
        else:
            return bus


# ── nats-py's ways, in ours ──────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def _deadline(timeout: float, words: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout):
            yield
    except (TimeoutError, nats.errors.TimeoutError):
        raise TimeUp(words) from None
    except (nats.errors.Error, OSError) as error:
        raise NatsDown("there is no connection to NATS") from error


async def _close_quietly(client: Client) -> None:
    with contextlib.suppress(Exception):  # closing while reconnecting raises ConnectionResetError and others
        await client.close()


def _login(nats: Nats) -> dict[str, Any]:
    """Return the connect options of a login and TLS."""
    options: dict[str, Any] = {
        "user": nats.user,
        "password": nats.password,
        "token": nats.token,
        "user_credentials": str(nats.creds) if nats.creds else None,
        "tls_handshake_first": nats.tls_first,
    }
    if nats.nkey is not None:
        options["nkeys_seed_str"] = nats.nkey.read_text().strip()
    if nats.ca or nats.cert or nats.tls_first:
        context = ssl.create_default_context(cafile=str(nats.ca) if nats.ca else None)
        if nats.cert:
            context.load_cert_chain(str(nats.cert), str(nats.key) if nats.key else None)
        options["tls"] = context
    return options


def _say(error: BaseException) -> str:
    """Return an error of nats-py in a few words, without credentials."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    text = str(error).removeprefix("nats: ").strip("' ") or type(error).__name__
    return re.sub(r"//[^@/\s]+@", "//***@", text)


def _unreachable(nats: Nats, why: str) -> NatsUnreachable:
    if "authorization" in why.lower() or "authentication" in why.lower():
        return NatsUnreachable(
            f"the NATS server at {nats.display} refused the login ({why})",
            where=f"looked at: {', '.join(nats.looked_at)}" if nats.looked_at else (),
            fix="check user, password, token or credentials file (NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_CREDS)",
        )
    return NatsUnreachable(
        f"no NATS server at {nats.display} ({why})",
        where=f"looked at: {', '.join(nats.looked_at)}" if nats.looked_at else (),
        fix="natsweb dev starts one for you, or set NATS_URL",
    )
