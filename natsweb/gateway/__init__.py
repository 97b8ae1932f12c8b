"""The gateway as an ASGI application: HTTP requests in, NATS requests out.

Runs under `natsweb gateway`, under any ASGI server, or mounted at a prefix of a Starlette or FastAPI app. It
reads the body, lets the exchange decide and carry, and writes the answer. It imports no service.
"""

import asyncio
import logging

from natsweb.bus import Bus
from natsweb.discovery import Directory
from natsweb.errors import HTTPError, Mistake, NatsRefused, NatsUnreachable
from natsweb.exchange import Exchange
from natsweb.flights import nats_down
from natsweb.gateway.http import CutOff, carry, send_response
from natsweb.gateway.scopes import Receive, Scope, Send, path_below_mount
from natsweb.gateway.websocket import carry_socket
from natsweb.messages import Response
from natsweb.natsbus import connect
from natsweb.replies import problem
from natsweb.settings import Limits, Nats, find_nats
from natsweb.streams import MAX_MESSAGE
from natsweb.subjects import check_root

__all__ = ["CutOff", "Gateway"]

_TRY_AGAIN = 1.0

logger = logging.getLogger("natsweb.gateway")


class Gateway:
    """HTTP in front of the services below `root`.

    `nats` is a server URL or `Nats` settings (default: found as the nats command line does), `bus` an existing
    connection that is used instead and never closed here, `timeout` the seconds a request may take. Connects at
    ASGI startup, or, mounted in another app, at the first request.

    With `discovery` it knows which services are there and names the one that is meant; with `known_only`, what
    no service has claimed is 404 at once, without asking NATS. `health` answers `/healthz` and `/readyz` itself.
    `ws_max_size` is the largest WebSocket message in bytes.

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
        ws_max_size: int = MAX_MESSAGE,
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
        self.ws_max_size = ws_max_size
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
        """Serve one ASGI scope: `http`, `websocket` or `lifespan`."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await carry_socket(self._started, scope, receive, send, largest=self.ws_max_size)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = self._own_answer(scope)
            if response is None:
                await carry(self._started, scope, receive, send)
                return
        except CutOff:
            raise
        except Exception:
            logger.exception("carrying a request failed")
            response = problem(HTTPError(500, "the gateway failed; its log says why", reason="gateway_failed"))
        await send_response(response, scope["method"], send)

    def _own_answer(self, scope: Scope) -> Response | None:
        """Return the answer to a health check, None for anything else."""
        is_check = scope["method"] in ("GET", "HEAD") and scope["path"].endswith(("/healthz", "/readyz"))
        if not self._health or not is_check:
            return None
        below = path_below_mount(scope)
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
