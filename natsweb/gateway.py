"""The gateway as an ASGI application: HTTP requests in, NATS requests out.

Runs under `natsweb gateway`, under any ASGI server, or mounted at a prefix of a Starlette or FastAPI app. It
reads the body, lets the exchange decide and carry, and writes the answer. It imports no service.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from natsweb.bus import Bus
from natsweb.discovery import Directory
from natsweb.errors import HTTPError, Mistake, NatsRefused, NatsUnreachable
from natsweb.exchange import Exchange, Incoming, address, nats_down
from natsweb.messages import Response
from natsweb.natsbus import connect
from natsweb.replies import problem
from natsweb.settings import Limits, Nats, find_nats
from natsweb.subjects import check_root

__all__ = ["Gateway"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_TRY_AGAIN = 1.0

logger = logging.getLogger("natsweb.gateway")


class Gateway:
    """HTTP in front of the services below `root`.

    `nats` is a server URL or `Nats` settings (default: found as the nats command line does), `bus` an existing
    connection that is used instead and never closed here, `timeout` the seconds a request may take. Connects at
    ASGI startup, or, mounted in another app, at the first request.

    With `discovery` it knows which services are there and names the one that is meant; with `known_only`, what
    no service has claimed is 404 at once, without asking NATS. `health` answers `/healthz` and `/readyz` itself.

    Raises `SettingsError` for a root that could reach system subjects.
    """

    def __init__(
        self,
        root: str = "api",
        *,
        nats: str | Nats | None = None,
        bus: Bus | None = None,
        timeout: float = 10.0,
        limits: Limits | None = None,
        discovery: bool = True,
        known_only: bool = False,
        health: bool = True,
    ) -> None:
        self.root = check_root(root)
        self._nats = nats
        self._given_bus = bus
        self._own_bus: Bus | None = None
        self._timeout = timeout
        self._limits = limits
        self._discovery = discovery
        self._known_only = known_only
        self._health = health
        self._exchange: Exchange | None = None
        self.directory: Directory | None = None
        self._starting = asyncio.Lock()
        self._failed_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Gateway {self.root}: {'started' if self._exchange else 'not started'}>"

    # ── life ──

    @property
    def exchange(self) -> Exchange:
        """The exchange behind both doors; raises `RuntimeError` before `start`."""
        if self._exchange is None:
            raise RuntimeError("the gateway has not been started")
        return self._exchange

    async def start(self) -> None:
        """Connect to NATS; raises `NatsUnreachable`. A second call does nothing."""
        async with self._starting:
            if self._exchange is not None:
                return
            bus = self._given_bus
            if bus is None:
                nats = self._nats if isinstance(self._nats, Nats) else find_nats(url=self._nats)
                bus = self._own_bus = await connect(nats, name=f"natsweb/gateway/{self.root}")
            exchange = Exchange(bus, self.root, timeout=self._timeout, limits=self._limits)
            if self._discovery:
                self.directory = await self._look_around(bus, exchange)
            self._exchange = exchange

    async def _look_around(self, bus: Bus, exchange: Exchange) -> Directory | None:
        """Return the directory of services, complete; None if NATS does not let this user have one."""
        directory = Directory(bus, self.root, on_change=exchange.turn, on_gone=exchange.gone)
        try:
            await directory.start()
        except (HTTPError, NatsRefused) as error:
            await directory.stop()
            logger.warning("there is no catalogue of services, since NATS does not allow it: %s", error)
            return None
        exchange.directory = directory
        exchange.known_only = self._known_only
        return directory

    async def stop(self) -> None:
        """Close the connection, if it is the gateway's own."""
        self._exchange = None
        directory, self.directory = self.directory, None
        if directory is not None:
            await directory.stop()
        bus, self._own_bus = self._own_bus, None
        if bus is not None:
            await bus.close()

    async def __aenter__(self) -> "Gateway":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _started(self) -> Exchange:
        """Return the exchange; where no startup event came (a mounted app), connect now."""
        if self._exchange is None:
            now = asyncio.get_running_loop().time()
            if now - self._failed_at < _TRY_AGAIN:
                raise nats_down()
            try:
                await self.start()
            except NatsUnreachable:
                self._failed_at = now
                raise nats_down() from None
        return self.exchange

    # ── ASGI ──

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: `http`, or `lifespan`. A `websocket` is refused."""
        if scope["type"] == "http":
            try:
                response = self._own_answer(scope) or await self._answer(scope, receive)
            except Exception:
                logger.exception("carrying a request failed")
                response = problem(HTTPError(500, "the gateway failed; its log says why", reason="gateway_failed"))
            if response is not None:
                await _send(response, scope["method"], send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "this gateway carries no WebSockets yet"})

    def _own_answer(self, scope: Scope) -> Response | None:
        """Return the answer to a health check, None for anything else."""
        is_check = scope["method"] in ("GET", "HEAD") and scope["path"].endswith(("/healthz", "/readyz"))
        if not self._health or not is_check:
            return None
        below = _path_below_mount(scope)
        if below == b"/healthz":
            return Response(body="ok\n")
        if below == b"/readyz":
            return Response(body="ready\n") if self.is_ready else problem(nats_down())
        return None

    @property
    def here(self) -> frozenset[bytes]:
        """The paths that this gateway answers itself."""
        return frozenset([b"/healthz", b"/readyz"]) if self._health else frozenset()

    @property
    def is_ready(self) -> bool:
        """Whether requests can be carried: started, and connected to NATS."""
        return self._exchange is not None and self._exchange.bus.is_connected

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Mistake as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the response, or None if the client has gone."""
        try:
            exchange = await self._started()
            exchange.admit(_content_length(scope))
            body = await _read(receive, exchange)
        except HTTPError as error:
            response = problem(error)
            return response.with_headers({"connection": "close"}) if _has_body(scope) else response
        if body is None:
            return None
        client = scope.get("client")
        try:
            fields = exchange.encode_fields(list(scope["headers"]))
        except HTTPError as error:
            return problem(error)
        incoming = Incoming(
            method=scope["method"],
            raw_path=_path_below_mount(scope),
            query=scope.get("query_string", b""),
            fields=fields,
            client=address(client[0], client[1]) if client else None,
            scheme=scope.get("scheme", "http"),
        )
        return await _unless_gone(exchange.forward(incoming, body), receive)


def _has_body(scope: Scope) -> bool:
    """Tell whether a body was announced, which nobody has read to its end."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def _unless_gone(work: Coroutine[Any, Any, Response], receive: Receive) -> Response | None:
    """Return what `work` gives, or None, with the work cancelled, when the client goes first."""
    answering = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if answering.done() or leaving.exception() is not None:
            return await answering
        return None
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


async def _read(receive: Receive, exchange: Exchange) -> bytes | None:
    """Return the whole body, or None if the client has gone; raises `TooLarge` at the crossing byte."""
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        chunk = event.get("body", b"")
        size += len(chunk)
        if size > exchange.max_body:
            raise exchange.too_large()
        if chunk:
            chunks.append(chunk)
        if not event.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _path_below_mount(scope: Scope) -> bytes:
    """Return the raw path without the segments of `root_path` (ASGI: `path` and `raw_path` include it)."""
    raw = bytes(scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0]
    prefix = scope.get("root_path", "").strip("/")
    if not prefix:
        return raw
    wanted = prefix.encode().split(b"/")
    segments = raw.split(b"/")[1:]
    if [unquote_to_bytes(segment) for segment in segments[: len(wanted)]] != wanted:
        return raw
    return b"/" + b"/".join(segments[len(wanted) :])


async def _send(response: Response, method: str, send: Send) -> None:
    headers = response.headers.fields
    bodiless = response.status in (204, 304)
    if not bodiless and method != "HEAD":  # a length that is not known is better left out
        headers = [*headers, (b"content-length", b"%d" % len(response.body))]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if bodiless else response.body})
