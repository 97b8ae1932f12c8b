"""Services on a stage of their own: served, with a way to them, and all that their handlers fail with.

What both test clients stand on. Knows services and buses; it knows no HTTP client.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from pydantic_core import from_json

from natsweb.annotations import Place
from natsweb.bus import Bus, MemoryBus
from natsweb.calls import Caller
from natsweb.errors import BadReply, DeclarationError, HTTPError, NatsUnreachable, SettingsError, StartError
from natsweb.events import Publisher
from natsweb.flights import Incoming
from natsweb.gateway.websocket import Handshake
from natsweb.headers import Headers, HeaderSource
from natsweb.messages import Response
from natsweb.pipes import SocketPipe
from natsweb.questions import CallOptions, error_of, question_of
from natsweb.replies import problem
from natsweb.service import Service
from natsweb.serving import serve
from natsweb.settings import Nats
from natsweb.sockets import SocketType, WebSocket, socket_type
from natsweb.transport import NatsTransport

__all__ = ["CLIENT", "Overrides", "Published", "Stage", "StageTransport", "merged", "override_all"]

#: Dependency or security scheme -> what stands in for it.
Overrides = Mapping[Any, Callable[..., Any]]

#: Where the requests of a test seem to come from.
CLIENT = "127.0.0.1:50000"

_ANY_MESSAGE = cast(SocketType, socket_type(WebSocket, "ws", Place("", "", "")))


@dataclass(frozen=True, slots=True)
class Published:
    """An event that a service has published."""

    subject: str
    body: bytes
    headers: Headers

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    def json(self) -> Any:
        """Return what the body is as JSON; raises `ValueError` if it is none."""
        return from_json(self.body)


class Stage:
    """Serves `services` while it is entered: in memory, or over the NATS server `nats`."""

    def __init__(
        self,
        services: Sequence[Service[Any]],
        *,
        nats: str | Nats | None,
        root: str | None,
        overrides: Overrides | None,
    ) -> None:
        if not services or not all(isinstance(one, Service) for one in services):
            raise SettingsError(
                f"a test client takes services, not {', '.join(map(repr, services)) or 'nothing'}",
                fix="an ASGI application is mounted in one: svc = Service('app'); svc.mount('/', app)",
            )
        self.services = services
        self.root = root or services[0].root
        self._nats = nats
        self._bus: Bus | None = MemoryBus() if nats is None else None
        self._overrides = overrides or {}
        self._served: list[serve] = []
        self._stack = contextlib.AsyncExitStack()
        self._publisher = Publisher("of a test")
        self.published: list[Published] = []
        self.transport = StageTransport(self.root, nats, bus=self._bus, take_failure=self.take_failure)

    def __repr__(self) -> str:
        return f"<Stage of {', '.join(one.name for one in self.services)}: {'served' if self._served else 'empty'}>"

    @property
    def failures(self) -> list[BaseException]:
        """What handlers have raised that is no answer, the oldest first: the last hundred of each service."""
        return [failure for one in self._served for failure in one.failures]

    def take_failure(self) -> BaseException | None:
        """Return what a handler has raised last, once."""
        found = [one.failures for one in self._served if one.failures]
        return found[0].pop() if found else None

    async def start(self) -> None:
        """Serve the services; raises what `serve` raises, and `DeclarationError` for an override of nothing."""
        async with contextlib.AsyncExitStack() as stack:
            override_all(stack, self.services, self._overrides)
            if self._bus is not None:
                stack.push_async_callback(self._bus.close)
            await self.transport.start()
            stack.push_async_callback(self.transport.aclose)
            self._publisher.connect(self.transport.caller.exchange.bus)
            for service in self.services:
                stack.callback(setattr, service.publisher, "on_publish", service.publisher.on_publish)
                service.publisher.on_publish = self._take_published
                served = serve(service, nats=self._nats, bus=self._bus, root=self.root, grace=1.0)
                await stack.enter_async_context(served)
                self._served.append(served)
            self._stack = stack.pop_all()

    def _take_published(self, subject: str, body: bytes, headers: Headers) -> None:
        self.published.append(Published(subject, body, headers))

    async def publish(self, subject: str, message: Any, headers: HeaderSource) -> None:
        """Publish an event, and wait until it is handled: see `TestClient.publish`."""
        bus = self.transport.caller.exchange.bus
        await self._publisher.publish(subject, message, headers=headers)
        await bus.flush()
        await self.wait_for_events()
        if self.transport.raises and (failure := self.take_failure()) is not None:
            raise failure

    async def wait_for_events(self) -> None:
        """Wait until every event is handled: see `TestClient.wait_for_events`."""
        subscribers = [one.events for one in self._served if one.events is not None]
        before = -1
        while before != (seen := sum(one.seen for one in subscribers)):
            before = seen
            for one in subscribers:
                await one.finished()
            # What they have published comes to the server with the first round trip, and to all others with the second.
            for one in [*subscribers, *subscribers]:
                await one.bus.flush()

    async def stop(self) -> None:
        """End all, in the reverse order."""
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()

    @contextlib.asynccontextmanager
    async def websocket(
        self, path: str, params: Mapping[str, object], headers: HeaderSource, subprotocols: Sequence[str]
    ) -> AsyncIterator[WebSocket[Any, Any]]:
        """Open a WebSocket, and close it at the end; raises the `HTTPError` that refuses it."""
        options: CallOptions = {"params": params, "headers": headers}
        question = question_of("GET", path, options)
        fields = question.fields
        if subprotocols:
            fields = [*fields, *Headers({"sec-websocket-protocol": ", ".join(subprotocols)}).fields]
        caller = self.transport.caller
        incoming: Incoming = caller.incoming("GET", question.raw_path.encode(), question.query.encode(), fields)
        incoming.upgrade, incoming.scheme, incoming.client = True, "ws", CLIENT
        handshake = Handshake()
        try:
            response = await handshake.ask(caller.exchange, incoming)
            if handshake.opened is None:
                if response.status >= 400:
                    raise error_of(response, question)
                raise BadReply(f"the answer to a WebSocket on {path} is {response.status}")
            said = Headers.from_block(handshake.opened.lines).getlist("sec-websocket-protocol")
            pipe = SocketPipe(handshake.opened.stream, subprotocols=said, open=True)
            yield WebSocket(pipe, _ANY_MESSAGE)
            await pipe.close()
            handshake.opened.flight.close()
        finally:
            handshake.close()


def override_all(stack: contextlib.AsyncExitStack, services: Sequence[Service[Any]], given: Overrides) -> None:
    """Override dependencies until `stack` ends, each in all services that have it.

    Raises `DeclarationError` for one that none of them has.
    """
    for dependency, replacement in given.items():
        refused: DeclarationError | None = None
        found = False
        for service in services:
            try:
                stack.enter_context(service.override(dependency, replacement))
                found = True
            except DeclarationError as error:
                refused = error
        if refused is not None and not found:
            raise refused


def merged(clients: httpx2.Headers, own: HeaderSource) -> Headers:
    """Return the headers of a client with others, which count where a name is in both."""
    given = Headers(own)
    return Headers([*[(name, value) for name, value in clients.multi_items() if name not in given], *given])


class StageTransport(NatsTransport):
    """Carries the requests of a test: what goes wrong on the way is an answer, as it is at a gateway.

    With `raises`, what a handler has failed with (`take_failure`) is raised in the place of its 500.
    """

    _client = CLIENT

    def __init__(
        self, root: str, nats: str | Nats | None, *, bus: Bus | None, take_failure: Callable[[], BaseException | None]
    ) -> None:
        super().__init__(root, nats, bus=bus)
        self._take_failure = take_failure
        self.raises = False

    @property
    def caller(self) -> Caller:
        """What carries the requests; raises `StartError` before the start."""
        if not self._caller.is_started:
            raise StartError(
                "a test client is used before its start, or after its end", fix="async with TestClient(svc) as api: ..."
            )
        return self._caller

    async def start(self) -> None:
        """Connect."""
        await self._caller.start()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to a request: what httpx calls."""
        self.caller  # noqa: B018  # which has to be there
        response = await super().handle_async_request(request)
        if self.raises and response.status_code == 500 and (failure := self._take_failure()) is not None:
            await response.aclose()
            raise failure
        return response

    def _refused(self, error: HTTPError | NatsUnreachable, library: Any, request: Any) -> Response:
        if isinstance(error, HTTPError):
            return problem(error)
        raise error

    def _failure(self, library: Any, request: Any, name: str, why: object) -> BaseException:
        failure = self._take_failure() if self.raises and name == "RemoteProtocolError" else None
        return failure or super()._failure(library, request, name, why)
