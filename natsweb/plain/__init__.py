"""A service as an ASGI application: `uvicorn app:svc` serves it over plain HTTP, without NATS.

What gateway, wire and worker are together, in one process: the same requests are taken and refused, and handlers see
the same of them; answers, errors, deadlines and WebSockets are the same. Knows ASGI and the service; no bus is near.
"""

import asyncio
import logging
from typing import Any

from natsweb.errors import HTTPError, Mistake, ServiceAway, StartError
from natsweb.exchange import FORWARDED_METHODS, address, check_method, check_size
from natsweb.gateway.http import send_response
from natsweb.gateway.scopes import Receive, Scope, Send, fields_of, has_body, length_of, path_below_mount
from natsweb.gateway.websocket import deny
from natsweb.headers import Headers
from natsweb.messages import Call, quote_query
from natsweb.plain.http import HttpVisit
from natsweb.plain.websocket import SocketVisit
from natsweb.replies import problem
from natsweb.service import Service
from natsweb.settings import Limits
from natsweb.subjects import path_tokens, to_subject
from natsweb.wire import encode_fields

__all__ = ["PlainDoor"]

logger = logging.getLogger("natsweb.plain")

_TRY_AGAIN = 1.0


class PlainDoor:
    """Serves `service` as an ASGI application; a `Service` called with a scope makes one of these.

    `timeout` is how many seconds a handler has until its answer, or the head of a stream, is there; of `limits` those
    of paths and headers hold, all others are the server's. The service starts with the ASGI lifespan, or, mounted in
    an application that passes none on, at its first request.
    """

    def __init__(self, service: Service[Any], *, timeout: float = 10.0, limits: Limits | None = None) -> None:
        self._service = service
        self._timeout = timeout
        self._limits = limits or Limits()
        self._lives = False
        self._starting: asyncio.Future[bool] | None = None
        self._failed_at = float("-inf")

    def __repr__(self) -> str:
        return f"<PlainDoor of {self._service!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: `http`, `websocket` or `lifespan`; raises `CutOff` for an answer that is cut off."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._open(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            call = self._to_call(scope)
            await self._started()
        except HTTPError as error:
            await send_response(problem(error), scope["method"], send)
            return
        length = length_of(scope)
        streams = call.more and length is None and self._service.takes_stream(call)
        expects = any(name == b"expect" for name, _ in scope["headers"])
        visit = HttpVisit(self._service.handle, call, receive, send, timeout=self._timeout, expects=expects)
        if streams or await visit.read_ahead(length):
            await visit.run()

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            call = self._to_call(scope)
            await self._started()
        except HTTPError as error:
            await deny(problem(error), scope, send)
            return
        await SocketVisit(self._service.handle, call, scope, receive, send, timeout=self._timeout).run()

    def _to_call(self, scope: Scope) -> Call:
        """Return the request of a scope, as it would come off the wire; raises `HTTPError` where it never would."""
        upgrade = scope["type"] == "websocket"
        method = "GET" if upgrade else scope["method"]
        if method not in FORWARDED_METHODS:
            check_method(method)
        raw_path = path_below_mount(scope).decode("latin-1")
        to_subject(self._service.root, raw_path, limit=self._limits.subject)  # too long here is what is too long there
        fields = fields_of(scope)
        lines = encode_fields(fields)
        check_size(lines, len(fields), self._limits)
        client = scope.get("client")
        call = Call(
            method,
            path_tokens(raw_path),
            quote_query(scope.get("query_string", b"")),
            Headers.from_block(lines),
            client=address(client[0], client[1]) if client else None,
            scheme=scope.get("scheme", "ws" if upgrade else "http"),
            timeout=self._timeout,
            more=not upgrade and has_body(scope),
            upgrade=upgrade,
        )
        call.root_path = scope.get("root_path", "")
        return call

    # ── starting and stopping ──

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            await self._bring_up()
        except Mistake as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        self._lives = True
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown
        await self._service.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _bring_up(self) -> None:
        """Start the service; raises `StartError` for one that publishes, unless a lifespan gives it a connection."""
        service = self._service
        await service.start()
        if service.publisher.is_connected:
            return
        routes = [*service.routes, *service.events]
        if publishing := [route.place for route in routes if route.recipe is not None and route.recipe.publishes]:
            await service.stop()
            raise StartError(
                f"{service.name} publishes events, and plain HTTP has no NATS to publish them on",
                where=publishing,
                fix="serve it with natsweb run, or let a lifespan attach a connection (docs/plain.md)",
            )
        if service.events:
            logger.warning("%s hears no events: plain HTTP has no NATS (%s)", service.name, service.events[0].place)

    async def _started(self) -> None:
        """Start the service where no lifespan has done so; raises `HTTPError` if it is not there."""
        if self._service.is_running:
            return
        if not self._lives and asyncio.get_running_loop().time() - self._failed_at >= _TRY_AGAIN:
            if self._starting is None or self._starting.done():
                self._starting = asyncio.ensure_future(self._start())
            if await asyncio.shield(self._starting):
                return
        raise ServiceAway("the service is not running; its log says why")

    async def _start(self) -> bool:
        try:
            await self._bring_up()
        except Mistake as error:
            self._failed_at = asyncio.get_running_loop().time()
            logger.error("%s", error)
            return False
        return True
