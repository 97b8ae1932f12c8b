"""The way from this process to the services below a root: a connection, who is there, and one call after the other.

What `Client` and `NatsTransport` share. It asks as a gateway does, naming the service that is meant, with bodies of any
size both ways; what is asked for while a request is handled goes on with that one's time and ids. Knows bytes; it
knows no JSON and no HTTP client.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import TypeAlias

from natsweb import current
from natsweb.arriving import streamed
from natsweb.bus import Bus
from natsweb.discovery import Directory
from natsweb.errors import Disconnected, HTTPError, NatsDown, NatsRefused, Overloaded, Stopping, TimeUp
from natsweb.exchange import Exchange
from natsweb.flights import Incoming, Opened, Outcome
from natsweb.headers import Headers
from natsweb.messages import Pieces, Response
from natsweb.natsbus import Connection, adopt, connect
from natsweb.settings import Limits, Nats, find_nats
from natsweb.subjects import REPLY_PREFIXES, check_root
from natsweb.uploads import Upload, first_part, launch

__all__ = ["Caller", "Fields", "Source", "read_whole", "time_left"]

logger = logging.getLogger("natsweb.client")

Fields = list[tuple[bytes, bytes]]

#: Where a connection comes from: a URL, settings, or a client of nats-py's.
Source: TypeAlias = str | Nats | Connection | None

_DAY = 86_400.0
_LIMITS = Limits(pending=100_000)


class Caller:
    """Calls the services below `root`, over `bus`, or over a connection of its own made with `nats`.

    `nats` is a server URL, `Nats` settings, or a connected client of nats-py's, which stays open.
    """

    def __init__(self, root: str, *, nats: Source = None, bus: Bus | None = None) -> None:
        self.root = check_root(root)
        self._nats = nats
        self._given_bus = bus
        self._own_bus: Bus | None = None
        self._directory: Directory | None = None
        self._exchange: Exchange | None = None
        self._starting = asyncio.Lock()
        current.want()

    def __repr__(self) -> str:
        return f"<Caller below {self.root}: {'started' if self._exchange else 'not started'}>"

    # ── life ──

    @property
    def is_started(self) -> bool:
        """Whether it can call."""
        return self._exchange is not None

    @property
    def exchange(self) -> Exchange:
        """What carries the requests; raises `RuntimeError` before `start`."""
        if self._exchange is None:
            raise RuntimeError("it has not been started")
        return self._exchange

    async def start(self) -> None:
        """Connect, and find out who is there; a second call does nothing. Raises `NatsUnreachable`."""
        async with self._starting:
            if self._exchange is not None:
                return
            bus = self._given_bus
            if bus is None:
                bus = self._own_bus = await _connect(self._nats, f"natsweb/client/{self.root}")
            prefixes = (*REPLY_PREFIXES, bus.new_inbox().rpartition(".")[0] + ".")
            exchange = Exchange(bus, self.root, timeout=_DAY, limits=_LIMITS, reply_prefixes=prefixes)
            directory = Directory(bus, self.root, on_change=exchange.turn, on_gone=exchange.gone)
            try:
                await directory.start()
            except (HTTPError, NatsRefused) as error:
                await directory.stop()
                logger.warning("there is no catalogue of services, since NATS does not allow it: %s", error)
            except BaseException:
                await directory.stop()
                await self._close()
                raise
            else:
                self._directory = exchange.directory = directory
            self._exchange = exchange

    async def stop(self) -> None:
        """End what is under way, and close the connection if it is its own."""
        exchange, self._exchange = self._exchange, None
        directory, self._directory = self._directory, None
        if exchange is not None:
            exchange.cut()
        if directory is not None:
            await directory.stop()
        await self._close()

    async def _close(self) -> None:
        bus, self._own_bus = self._own_bus, None
        if bus is not None:
            await bus.close()

    # ── calls ──

    async def call(
        self,
        incoming: Incoming,
        body: bytes | AsyncIterator[bytes],
        *,
        timeout: float,
        length: int | None = None,
    ) -> Response:
        """Return the answer to a request, which may stream; whoever gets it closes its pieces.

        `timeout` is how many seconds it may take to come, `length` the size of a `body` that streams, if it is known.
        Raises the `HTTPError` of what goes wrong on the way, and what iterating over the body raises. Cancelling it
        cancels the handler, in the other process.
        """
        exchange = self.exchange
        left = time_left()
        if left is not None and left <= 0:
            raise TimeUp("the request that this call is made for has no time left")
        incoming.limit = min(timeout, _DAY if left is None else left)
        sending = None
        try:
            exchange.admit()
            if isinstance(body, bytes) and len(body) <= exchange.max_body - len(incoming.fields):
                outcome = await exchange.fly(incoming, body)
            else:
                size = len(body) if isinstance(body, bytes) else length
                outcome, sending = await _fly_with(exchange, incoming, _Sending(body), size)
        except HTTPError as error:
            raise _in_own_words(error) from error.__cause__
        if isinstance(outcome, Opened):
            return streamed(outcome, sending)
        if isinstance(outcome, HTTPError):
            raise _in_own_words(outcome)
        status, lines, payload = exchange.decode_reply(*outcome, incoming.method)
        return Response.trusted(status, Headers.from_block(lines), payload)

    def incoming(self, method: str, raw_path: bytes, query: bytes, fields: Fields) -> Incoming:
        """Return a request with header `fields`, and what it passes on of the request that is being handled.

        Raises `BadRequest` for fields that must not be sent.
        """
        return Incoming(method, raw_path, query, self.exchange.encode_fields(_passed_on(fields)))


async def _connect(nats: Source, name: str) -> Bus:
    if isinstance(nats, Nats):
        return await connect(nats, name=name)
    if nats is None or isinstance(nats, str):
        return await connect(find_nats(url=nats), name=name)
    return await adopt(nats)


async def _fly_with(
    exchange: Exchange, incoming: Incoming, upload: "_Sending", length: int | None
) -> "tuple[Outcome, asyncio.Future[None] | None]":
    """Return the outcome of a request whose body streams, and what goes on sending it while the answer streams."""
    try:
        first = await first_part(exchange, incoming, upload, length)
        if upload.failure is not None:
            raise upload.failure
        outcome, sending = await launch(exchange, incoming, first, upload)
    except BaseException:
        await upload.close()
        raise
    if isinstance(outcome, Opened):
        return outcome, sending
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await upload.close()
    if outcome is None:
        raise upload.failure or Disconnected("the request was given up")
    return outcome, None


def _in_own_words(error: HTTPError) -> HTTPError:
    """Return what went wrong on the way, in other words than a gateway has for its clients."""
    if isinstance(error, NatsDown):
        return NatsDown("there is no connection to NATS")
    if isinstance(error, Overloaded):
        return Overloaded("this process calls as much at once as it may")
    if isinstance(error, Stopping):
        return Stopping("the client was stopped before the answer was there")
    return error


class _Sending(Upload):
    """A body on its way out; `failure` is what iterating over it has raised."""

    def __init__(self, body: bytes | AsyncIterator[bytes]) -> None:
        super().__init__()
        self._source = _once(body) if isinstance(body, bytes) else body
        self.failure: BaseException | None = None

    async def next(self) -> bytes:
        """Return the next piece: see `Upload`. One that cannot be had is the end of the request."""
        try:
            piece = await anext(self._source)
            if not isinstance(piece, bytes):
                raise TypeError(f"a body that streams gives bytes, not {type(piece).__name__}")
            return piece
        except StopAsyncIteration:
            self.more = False
        except Exception as error:
            self.failure, self.gone, self.more = error, True, False
        return b""

    async def close(self) -> None:
        """Let go of the source."""
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def read_whole(pieces: Pieces, limit: int) -> bytes | None:
    """Return all bytes of an answer, None for more than `limit`; it is closed in any case."""
    found = bytearray()
    try:
        async for piece in pieces.source:
            found += piece
            if len(found) > limit:
                return None
    finally:
        await pieces.close()
    return bytes(found)


# ── the request that is being handled ────────────────────────────────────────────────────────────


def time_left() -> float | None:
    """Return how many seconds are left of the request that is being handled; None for no bound."""
    request = current.current_request()
    channel = None if request is None else request.channel
    left = channel.time_left() if isinstance(channel, current.Limited) else math.inf
    return None if left == math.inf else left


def _passed_on(fields: Fields) -> Fields:
    """Return header fields with those of the request that is being handled which go on with it."""
    request = current.current_request()
    if request is None:
        return fields
    said = {name.lower() for name, _ in fields}
    return [*fields, *[field for field in current.passed_on(request) if field[0] not in said]]
