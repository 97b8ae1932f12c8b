"""Any ASGI 3 application as a natsweb handler: FastAPI, Starlette, Django, Quart, unchanged.

`AsgiApp` gives each request to the app in a task of its own and turns what it sends into a `Response`: plain where it
is whole at once, streamed with backpressure otherwise; WebSockets and lifespan as the specification has them. Knows
calls and responses; it knows neither services nor NATS.
"""

import asyncio
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Self

from starlette.types import ASGIApp

from natsweb.asgi.conversation import Conversation
from natsweb.asgi.http import Http
from natsweb.asgi.lifespan import AppLifespan
from natsweb.asgi.scope import http_scope, websocket_scope
from natsweb.asgi.websocket import WebSocket
from natsweb.errors import DeclarationError
from natsweb.messages import Call, Request, Response

__all__ = ["AsgiApp"]

logger = logging.getLogger("natsweb.asgi")

_PATIENCE = 0.1  # for the first part of a body whose head is there
_CANCELLING_TIME = 1.0


class AsgiApp:
    """An ASGI application under `prefix`: `handle` answers requests, `start` and `stop` run its lifespan.

    `prefix` is the app's `root_path`, such as `/shop`. `grace` is how many seconds the app has to end a request whose
    client has gone.
    """

    def __init__(self, app: ASGIApp, *, prefix: str = "", grace: float = 5.0) -> None:
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise DeclarationError(
                f"an ASGI app cannot be mounted at {prefix!r}",
                fix='a prefix begins with "/" and does not end with one, as in "/shop"; at the top it is ""',
            )
        self.app = app
        self.prefix = prefix
        self.grace = grace
        #: Gets what the app raises when it has answered already: it is logged in any case.
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        self._lifespan: AppLifespan | None = None
        self._running: set[Conversation] = set()

    def __repr__(self) -> str:
        state = "running" if self.is_running else "not running"
        return f"<AsgiApp at {self.prefix or '/'}: {state}, {len(self._running)} requests>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it has been started and not been stopped."""
        return self._lifespan is not None

    async def start(self, timeout: float = 60.0) -> None:
        """Run the app's startup; raises `StartError` if it fails, or takes longer than `timeout` seconds."""
        if self._lifespan is None:
            lifespan = AppLifespan(self.app)
            await lifespan.start(timeout)
            self._lifespan = lifespan

    async def stop(self, timeout: float = 10.0) -> None:
        """End what still runs, within the grace, and then run the app's shutdown, within `timeout` seconds."""
        try:
            await self._drain(min(self.grace, timeout))
        finally:
            lifespan, self._lifespan = self._lifespan, None
            if lifespan is not None:
                await lifespan.stop(timeout)

    async def handle(self, call: Call | Request) -> Response:
        """Answer one request; raises what the app raises before it has answered.

        A WebSocket is answered when it is over, or refused. What the app does after its answer hangs on the call's
        `after`, if there is one, and is awaited by `stop` otherwise.
        """
        state = {} if self._lifespan is None else self._lifespan.state
        socket = None if call.channel is None else call.channel.socket
        if socket is None:
            http = Http(self.app, http_scope(call, self.prefix, state), call, self._running, grace=self.grace)
            http.on_failure = self.on_failure
            return await http.respond(_PATIENCE)
        scope = websocket_scope(call, self.prefix, state, socket)
        talk = WebSocket(self.app, scope, call, self._running, grace=self.grace)
        talk.on_failure = self.on_failure
        return await talk.respond(_PATIENCE)

    async def _drain(self, grace: float) -> None:
        """Tell all that the service is stopping, wait, and cancel what is left."""
        running = list(self._running)
        for conversation in running:
            conversation.leave(1012)
        if not await _all_ended(running, grace):
            for conversation in running:
                conversation.cancel()
            if not await _all_ended(running, _CANCELLING_TIME):
                logger.error("%r goes on after it was cancelled; leaving it there", self)


async def _all_ended(conversations: list[Conversation], timeout: float) -> bool:
    """Wait until all have ended, and tell whether they have."""
    tasks = [conversation.task for conversation in conversations if conversation.task is not None]
    return not tasks or not (await asyncio.wait(tasks, timeout=timeout))[1]
