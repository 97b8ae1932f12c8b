"""The gateway as an ASGI application: HTTP requests in, NATS requests out.

Runs under `natsweb gateway`, under any ASGI server, or mounted at a prefix of a Starlette or FastAPI app. It
reads the body, lets the exchange decide and carry, and writes the answer. It imports no service.
"""

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from natsweb.bus import Bus
from natsweb.discovery import Directory
from natsweb.errors import HTTPError, Mistake, NatsRefused, NatsUnreachable, SettingsError
from natsweb.exchange import Exchange
from natsweb.flights import nats_down
from natsweb.gateway.docs import Docs
from natsweb.gateway.filters import Filters, OnGatewayError, echo
from natsweb.gateway.http import AsgiUpload, CutOff, carry, refuse, send_response
from natsweb.gateway.scopes import Receive, Scope, Send, bare_host, host_of, path_below_mount, to_incoming
from natsweb.gateway.seen import carry_seen, to_request
from natsweb.gateway.sites import Sites
from natsweb.gateway.websocket import Handshake, carry_socket
from natsweb.messages import Request, Response
from natsweb.middleware import Handler, Middleware
from natsweb.natsbus import connect
from natsweb.proxy_wire import ProxyWire
from natsweb.replies import problem
from natsweb.rules import Rules
from natsweb.settings import Limits, Nats, find_nats
from natsweb.streams import MAX_MESSAGE
from natsweb.subjects import REPLY_PREFIXES
from natsweb.uploads import forward

__all__ = ["CutOff", "Gateway", "bare_host", "echo"]

F = TypeVar("F", bound=Middleware)
E = TypeVar("E", bound=OnGatewayError)

_TRY_AGAIN = 1.0

logger = logging.getLogger("natsweb.gateway")


class Gateway:
    """HTTP in front of the services below `root`.

    `nats` is a server URL or `Nats` settings (default: found as the nats command line does), `bus` an existing
    connection that is used instead and never closed here, `timeout` the seconds a request may take. Connects at
    ASGI startup, or, mounted in another app, at the first request.

    With `discovery` it knows which services are there and names the one that is meant; with `known_only`, what
    no service has claimed is 404 at once, without asking NATS. `health` answers `/healthz` and `/readyz` itself, `docs`
    `/openapi.json` and `/docs`: the documents of all services as one, and a page for people, behind the filters.
    `ws_max_size` is the largest WebSocket message in bytes.

    `roots` are further roots, by host or path: `{"admin.example.com": "api.admin", "/staging": "api.staging"}`. `rules`
    say which headers, cookies and paths cross, and for how long. `filters` stand around every request, the first
    outermost, and `on_error` answers in place of the gateway's own errors. `exchange` is a `Handler` that answers
    instead of the services: no NATS is needed then. With `wire="nats-proxy"` the services are those of that library.
    `reply_prefixes` are where services may be told to stop, to go on, or to send more: inboxes.
    With `retry_idempotent`, a GET, HEAD, OPTIONS, PUT or DELETE whose service or connection was lost is sent again.

    Raises `SettingsError` for a root that could reach system subjects, and `docs` without a catalogue; `StartError` if
    what `docs` needs is not installed.
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
        docs: bool = False,
        ws_max_size: int = MAX_MESSAGE,
        roots: Mapping[str, str] | None = None,
        rules: Rules | None = None,
        filters: Sequence[Middleware] = (),
        on_error: OnGatewayError | None = None,
        exchange: Handler | None = None,
        wire: Literal["natsweb", "nats-proxy"] = "natsweb",
        reply_prefixes: tuple[str, ...] = REPLY_PREFIXES,
        retry_idempotent: bool = False,
    ) -> None:
        self.sites = Sites(root, roots)
        self.root = root
        self.rules = rules or Rules()
        self._filters = Filters(filters, on_error)
        self._handler = exchange
        self._reply_prefixes = reply_prefixes
        self._retry_idempotent = retry_idempotent
        self._wire = ProxyWire() if wire == "nats-proxy" else None
        self._nats = nats
        self._given_bus = bus
        self._own_bus: Bus | None = None
        self._timeout = timeout
        self.limits = limits or Limits()
        self._discovery = discovery
        self._known_only = known_only
        self._health = health
        if docs and not (discovery and exchange is None and wire == "natsweb"):
            raise SettingsError(
                "docs are made of what the catalogue knows, and this gateway has none", fix="leave docs=True out"
            )
        self._docs = Docs(self.sites, self.rules) if docs else None
        self.ws_max_size = ws_max_size
        self._exchange: Exchange | None = None
        self._exchanges: dict[str, Exchange] = {}
        self._directories: list[Directory] = []
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
            if self._exchange is not None or self._handler is not None:
                return
            bus = self._given_bus
            if bus is None:
                nats = self._nats if isinstance(self._nats, Nats) else find_nats(url=self._nats)
                bus = self._own_bus = await connect(nats, name=f"natsweb/gateway/{self.root}")
            for root in self.sites.roots:
                exchange = self._new_exchange(bus, root)
                if (
                    self._discovery
                    and self._wire is None
                    and (directory := await self._look_around(bus, exchange)) is not None
                ):
                    self._directories.append(directory)
                self._exchanges[root] = exchange
            if self._docs is not None:
                self._docs.fleet.start(bus, {one.catalogue.root: one for one in self._directories})
            self.directory = self._directories[0] if self._directories else None
            self._exchange = self._exchanges[self.root]

    def _new_exchange(self, bus: Bus, root: str) -> Exchange:
        return Exchange(
            bus,
            root,
            timeout=self._timeout,
            limits=self.limits,
            rules=self.rules,
            wire=self._wire,
            reply_prefixes=self._reply_prefixes,
            retry_idempotent=self._retry_idempotent,
        )

    async def _look_around(self, bus: Bus, exchange: Exchange) -> Directory | None:
        """Return the directory of services, complete; None if NATS does not let this user have one."""
        on_change = functools.partial(self._turn, exchange)
        directory = Directory(bus, exchange.root, on_change=on_change, on_gone=exchange.gone)
        try:
            await directory.start()
        except (HTTPError, NatsRefused) as error:
            await directory.stop()
            logger.warning("there is no catalogue of services, since NATS does not allow it: %s", error)
            return None
        exchange.directory = directory
        exchange.known_only = self._known_only
        return directory

    def _turn(self, exchange: Exchange) -> None:
        exchange.turn()
        if self._docs is not None:
            self._docs.fleet.changed()

    async def stop(self) -> None:
        """Close the connection, if it is the gateway's own."""
        self._exchange = self.directory = None
        self._exchanges.clear()
        if self._docs is not None:
            await self._docs.fleet.stop()
        directories, self._directories = self._directories, []
        for directory in directories:
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
            opening = functools.partial(self._open_socket, scope)
            await carry_socket(opening, scope, receive, send, largest=self.ws_max_size)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = self._own_answer(scope)
            if response is None:
                await self._carry(scope, receive, send)
                return
        except CutOff:
            raise
        except Exception:
            logger.exception("carrying a request failed")
            response = problem(HTTPError(500, "the gateway failed; its log says why", reason="gateway_failed"))
        await send_response(response, scope["method"], send)

    async def _carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.sees_requests:
            endpoint = self._handler or functools.partial(self._forward, scope)
            await carry_seen(self._filters, endpoint, scope, receive, send)
            return
        try:
            await self._started()
        except HTTPError as error:
            await refuse(error, AsgiUpload(receive), scope, send)
            return
        host, path = host_of(scope), path_below_mount(scope)
        if self._docs is not None and self._docs.takes(scope["method"], path):
            response = await self._docs.answer(path, scope["headers"], host, scope.get("root_path", ""))
            await send_response(response, scope["method"], send)
            return
        exchange, path = self.pick(host, path)
        await carry(exchange, path, scope, receive, send)

    async def _forward(self, scope: Scope, request: Request) -> Response:
        await self._started()
        host = host_of(scope)
        if self._docs is not None and self._docs.takes(request.method, plain := request.path.encode()):
            return await self._docs.answer(plain, request.headers.fields, host, scope.get("root_path", ""))
        exchange, path = self.pick(host, request.raw_path.encode("latin-1"))
        return await forward(exchange, request, path)

    async def _open_socket(self, scope: Scope, handshake: Handshake) -> Response:
        if self._handler is not None:
            raise HTTPError(501, "what stands in for the services here takes no WebSockets", reason="no_websockets")
        await self._started()
        if not self._filters.are_there:
            exchange, path = self.pick(host_of(scope), path_below_mount(scope))
            return await handshake.ask(exchange, to_incoming(exchange, path, scope))

        async def ask(request: Request) -> Response:
            exchange, path = self.pick(host_of(scope), request.raw_path.encode("latin-1"))
            query, fields = request.query.encode("latin-1"), request.headers.fields
            seen = {**scope, "query_string": query, "headers": fields}
            return await handshake.ask(exchange, to_incoming(exchange, path, seen))

        return await self._filters.answer(to_request(scope, upgrade=True).request(), ask)

    # ── around requests ──

    def filter(self, function: F) -> F:
        """Put `async def f(request, call_next) -> Response` around all requests, inside of those that are there.

        It may change the request before, its path too; answer itself; and change the response. Failures are responses.
        Requests of a gateway with filters take its ASGI door.
        """
        self._filters.add(function)
        return function

    def on_error(self, function: E) -> E:
        """Let `async def f(request, error) -> Response` answer in place of the gateway's own errors."""
        self._filters.catch(function)
        return function

    @property
    def sees_requests(self) -> bool:
        """Whether every request has to become a `Request` here: for filters, or for what stands in for NATS."""
        return self._filters.are_there or self._handler is not None

    @property
    def stands_in(self) -> bool:
        """Whether something answers in place of the services."""
        return self._handler is not None

    def pick(self, host: bytes, raw_path: bytes) -> tuple[Exchange, bytes]:
        """Return the exchange that a request belongs to, and its path there."""
        root, path = self.sites.pick(host, raw_path)
        return self._exchanges[root], path

    def end_feeds(self) -> None:
        """End the feeds under way, and those to come: the gateway stops."""
        for exchange in self._exchanges.values():
            exchange.end_feeds()

    def cut(self) -> int:
        """End everything under way with a 503; return how many that were."""
        return sum([exchange.cut() for exchange in self._exchanges.values()])

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
        own = [b"/healthz", b"/readyz"] if self._health else []
        return frozenset([*own, *(self._docs.paths if self._docs else ())])

    @property
    def is_ready(self) -> bool:
        """Whether requests can be carried: started, and connected to NATS."""
        if self._handler is not None:
            return True
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
