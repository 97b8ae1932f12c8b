"""`TestClient`: an `httpx2.AsyncClient` for a service, with all that lies between the two in production.

Knows httpx2; how requests reach the service is `stage`'s business.
"""

import contextlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from natsweb.headers import HeaderSource
from natsweb.service import Service
from natsweb.settings import Nats
from natsweb.sockets import WebSocket
from natsweb.testing.stage import Overrides, Published, Stage, merged

__all__ = ["TestClient"]


class TestClient(httpx2.AsyncClient):
    """An httpx2 client of `services`: `async with TestClient(svc) as api: await api.get("/orders/7")`.

    The services run, with their lifespans, inside of the block: in memory, or over the NATS server `nats`. Streams are
    not buffered, and several services can call each other. `root` is where they are served (default: the first one's
    own), `overrides` are dependencies with what stands in for them. A handler that fails is a 500, as in production;
    with `raise_server_exceptions` what it has raised comes out of the call. Other `options` are those of
    `httpx2.AsyncClient`; `timeout` is 10 seconds.
    """

    __test__ = False  # for pytest: it is no test

    def __init__(
        self,
        *services: Service[Any],
        nats: str | Nats | None = None,
        root: str | None = None,
        overrides: Overrides | None = None,
        raise_server_exceptions: bool = False,
        timeout: Any = 10.0,
        base_url: str = "http://test",
        **options: Any,
    ) -> None:
        self._stage = Stage(services, nats=nats, root=root, overrides=overrides)
        self._stage.transport.raises = raise_server_exceptions
        super().__init__(transport=self._stage.transport, base_url=base_url, timeout=timeout, **options)

    def __repr__(self) -> str:
        return f"<TestClient of {', '.join(one.name for one in self._stage.services)}>"

    @property
    def failures(self) -> list[BaseException]:
        """What handlers have raised that is no answer, of events also an `HTTPError`; the oldest first."""
        return self._stage.failures

    @property
    def published(self) -> list[Published]:
        """The events that the services have published, the oldest first."""
        return self._stage.published

    async def publish(self, subject: str, message: Any = None, *, headers: HeaderSource = ()) -> None:
        """Publish an event, and return when all its handlers have finished: see `Publisher.publish`.

        The events that these handlers publish are waited for as well. What a handler has raised stands in `failures`;
        with `raise_server_exceptions` it is raised here.
        """
        await self._stage.publish(subject, message, headers)

    async def wait_for_events(self) -> None:
        """Return when the services have handled all events that have been published: by a request, for example."""
        await self._stage.wait_for_events()

    async def __aenter__(self) -> Self:
        await self._stage.start()
        return await super().__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc_value, traceback)
        finally:
            await self._stage.stop()

    # httpx2's own speaks frames over a socket, and there is none.
    def websocket(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        headers: HeaderSource = (),
        subprotocols: Sequence[str] = (),
    ) -> contextlib.AbstractAsyncContextManager[WebSocket[Any, Any]]:
        """Open a WebSocket: `async with api.websocket("/chat/tea") as ws: await ws.send("hello")`.

        It has the headers of the client, and its own. Text and bytes go as they are, anything else as JSON; what comes
        is text or bytes. Raises the `HTTPError` of a handler that refuses it.
        """
        return self._stage.websocket(path, params or {}, merged(self.headers, headers), subprotocols)
