"""`SyncTestClient`: the same for tests that are plain functions.

Services run in a thread with an event loop of its own. Knows threads; the rest is `client`'s business.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from natsweb.errors import WebSocketClosed
from natsweb.headers import HeaderSource
from natsweb.service import Service
from natsweb.settings import Nats
from natsweb.sockets import WebSocket
from natsweb.testing.stage import Overrides, Published, Stage, StageTransport, merged

__all__ = ["Portal", "SyncTestClient", "SyncWebSocket"]

T = TypeVar("T")


class Portal:
    """An event loop in a thread, while it is entered."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="natsweb-test", daemon=True)

    def __repr__(self) -> str:
        return f"<Portal: {'open' if self._thread.is_alive() else 'closed'}>"

    async def _live(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._ending.wait()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns in there; Ctrl-C here cancels it."""
        assert self._loop is not None
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            raise

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()


class SyncTestClient(httpx2.Client):
    """An `httpx2.Client` of `services`: `with SyncTestClient(svc) as api: api.get("/orders/7")`: see `TestClient`."""

    __test__ = False

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
        self._portal = Portal()
        self._stage = Stage(services, nats=nats, root=root, overrides=overrides)
        self._stage.transport.raises = raise_server_exceptions
        transport = _Transport(self._portal, self._stage.transport)
        super().__init__(transport=transport, base_url=base_url, timeout=timeout, **options)

    def __repr__(self) -> str:
        return f"<SyncTestClient of {', '.join(one.name for one in self._stage.services)}>"

    @property
    def failures(self) -> list[BaseException]:
        """What handlers have raised that is no answer, of events also an `HTTPError`; the oldest first."""
        return self._stage.failures

    @property
    def published(self) -> list[Published]:
        """The events that the services have published, the oldest first."""
        return self._stage.published

    def publish(self, subject: str, message: Any = None, *, headers: HeaderSource = ()) -> None:
        """Publish an event, and return when all its handlers have finished: see `TestClient.publish`."""
        self._portal.run(self._stage.publish(subject, message, headers))

    def wait_for_events(self) -> None:
        """Return when the services have handled all events that have been published."""
        self._portal.run(self._stage.wait_for_events())

    def __enter__(self) -> Self:
        self._portal.__enter__()
        try:
            self._portal.run(self._stage.start())
        except BaseException:
            self._portal.__exit__(None, None, None)
            raise
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            super().__exit__(exc_type, exc_value, traceback)
            self._portal.run(self._stage.stop())
        finally:
            self._portal.__exit__(None, None, None)

    @contextlib.contextmanager
    def websocket(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        headers: HeaderSource = (),
        subprotocols: Sequence[str] = (),
    ) -> Iterator["SyncWebSocket"]:
        """Open a WebSocket: see `TestClient.websocket`."""
        opening = self._stage.websocket(path, params or {}, merged(self.headers, headers), subprotocols)
        socket = self._portal.run(opening.__aenter__())
        try:
            yield SyncWebSocket(self._portal, socket)
        except BaseException as error:
            with contextlib.suppress(type(error)):
                self._portal.run(opening.__aexit__(type(error), error, error.__traceback__))
            raise
        else:
            self._portal.run(opening.__aexit__(None, None, None))


class SyncWebSocket:
    """A `WebSocket` for plain functions."""

    def __init__(self, portal: Portal, socket: WebSocket[Any, Any]) -> None:
        self._portal = portal
        self._socket = socket

    @property
    def subprotocols(self) -> list[str]:
        """What the service has chosen."""
        return self._socket.subprotocols

    def send(self, message: Any) -> None:
        """Send a message; raises `WebSocketClosed`."""
        self._portal.run(self._socket.send(message))

    def receive(self) -> Any:
        """Return the next message; raises `WebSocketClosed`."""
        return self._portal.run(self._socket.receive())

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye."""
        self._portal.run(self._socket.close(code, reason))

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                yield self.receive()
            except WebSocketClosed:
                return


class _Transport(httpx2.BaseTransport):
    """Hands requests over to an event loop, and their answers back."""

    def __init__(self, portal: Portal, transport: StageTransport) -> None:
        self._portal = portal
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._transport.caller  # noqa: B018  # which has to be there
        stream = _Body(request.stream)
        twin = httpx2.Request(
            request.method, request.url, headers=request.headers, stream=stream, extensions=request.extensions
        )
        answer = self._portal.run(self._transport.handle_async_request(twin))
        headers = answer.headers.raw
        return httpx2.Response(answer.status_code, headers=headers, stream=_Answer(self._portal, answer.stream))


class _Body(httpx2.AsyncByteStream):
    """The body of a request, which a plain iterator gives: iterated in a thread, since it may wait."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = iter(self._stream)
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece


class _Answer(httpx2.SyncByteStream):
    """The body of an answer, for a plain iterator."""

    def __init__(self, portal: Portal, stream: Any) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        pieces = aiter(self._stream)

        async def following() -> bytes:
            return await anext(pieces, b"")

        while piece := self._portal.run(following()):
            yield piece

    def close(self) -> None:
        self._portal.run(self._stream.aclose())
