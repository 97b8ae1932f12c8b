"""`Client`: calls other services by path, over NATS, with typed answers and the same errors that handlers raise.

    async with Client() as api:
        order = await api.get("/orders/7", into=Order)

No gateway is on the way: it finds the service that is meant as a gateway does. As a parameter of a handler it uses the
connection of its service. Knows HTTP's words and JSON; how a call travels is `calls`' business.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from typing_extensions import Unpack

from natsweb.bus import Bus
from natsweb.calls import Caller, Source, read_whole, time_left
from natsweb.errors import BadReply, StartError, TimeUp
from natsweb.given import Given
from natsweb.messages import Pieces, Response
from natsweb.questions import CallOptions, Question, error_of, question_of, read_as

__all__ = ["Answer", "CallOptions", "Client"]

T = TypeVar("T")

_MAX_ANSWER = 64 * 1024 * 1024


class Answer:
    """An answer as it comes: `status`, `headers`, and `async for piece in answer` for its bytes, once."""

    def __init__(self, response: Response) -> None:
        self.status = response.status
        self.headers = response.headers
        self._body = response.body
        self._pieces = response.pieces

    def __repr__(self) -> str:
        return f"<Answer {self.status}: {'whole' if self._pieces is None else 'a stream'}>"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._pieces is not None:
            async for piece in self._pieces.source:
                yield piece
        elif self._body:
            yield self._body

    async def lines(self) -> AsyncIterator[str]:
        """Give it line by line, as UTF-8 text without the line ends: for NDJSON and server-sent events."""
        rest = b""
        async for piece in self:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if rest:
            yield rest.decode("utf-8", "replace")

    async def read(self) -> bytes:
        """Return all that is still to come."""
        return b"".join([piece async for piece in self])


class Client(Given):
    """Calls the services below `root`: `async with Client() as api: await api.get("/orders/7", into=Order)`.

    `nats` is a server URL, `Nats` settings, or a connected client of nats-py's, which stays open (default: found as
    the command line does); `bus` is a bus that is used instead. `timeout` is how many seconds an answer may take;
    within a handler it is never more than the time that its own request has left.

    A handler takes one as a parameter, `api: Client`, which uses the connection and the root of its service.

    Calls raise `HTTPError` for an answer from 400 on, with the status, detail, reason and errors of the service; the
    classes of it that say what went wrong on the way (`NoService`, `TimeUp`, `NatsDown`, `Disconnected`); `BadReply`
    for an answer that does not fit `into`; `ValueError` for a path that is none. Raises `NatsUnreachable` at its start.
    """

    def __init__(
        self, root: str = "api", nats: Source = None, *, timeout: float = 10.0, bus: Bus | None = None
    ) -> None:
        self._caller = Caller(root, nats=nats, bus=bus)
        self._timeout = timeout
        self._owner: str | None = None  # the service whose handlers have it
        self._is_ready = bus is not None

    def __repr__(self) -> str:
        state = "ready" if self._caller.is_started else "not started"
        return f"<Client below {self.root}: {state}>"

    # ── life ──

    @property
    def root(self) -> str:
        """The subject that stands for `/`."""
        return self._caller.root

    @property
    def bus(self) -> Bus:
        """The connection that it uses; raises `RuntimeError` before its start."""
        return self._caller.exchange.bus

    @classmethod
    def given_to(cls, service: str, root: str) -> Self:
        """Return the one for the handlers of a service: see `Given`."""
        client = cls(root)
        client._owner = service
        return client

    def attach(self, bus: Bus, root: str) -> None:
        """Use a connection: see `Given`."""
        self._caller = Caller(root, bus=bus)
        self._is_ready = True

    async def start(self) -> None:
        """Connect, and find out who is there; a second call does nothing."""
        await self._caller.start()

    async def stop(self) -> None:
        """Let go of the connection; calls under way end with `Stopping`."""
        await self._caller.stop()
        if self._owner is not None:
            self._is_ready = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _started(self) -> Caller:
        if self._caller.is_started:
            return self._caller
        if self._owner is None:
            raise StartError(f"{self!r} is used before its start", fix="write: async with Client(...) as api")
        if not self._is_ready:
            raise StartError(
                f"a handler of {self._owner} calls another service, and nothing connects {self._owner} to NATS here",
                fix="serve it with natsweb run or natsweb.serve, or test it with natsweb.testing.TestClient",
            )
        await self._caller.start()
        return self._caller

    # ── calls ──

    @overload
    async def request(self, method: str, path: str, *, into: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    async def request(
        self, method: str, path: str, *, into: None = None, **options: Unpack[CallOptions]
    ) -> Response: ...
    @overload
    async def request(self, method: str, path: str, *, into: Any, **options: Unpack[CallOptions]) -> Any: ...
    async def request(self, method: str, path: str, *, into: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the answer to a request: as the type `into`, or else the `Response`.

        `path` begins with `/` and is percent-encoded where it has to be; a query may follow. `into` is anything that
        pydantic can read from JSON; `bytes` and `str` give the body itself. The answer comes whole, 64 MiB at most.
        """
        checks = options.get("raise_for_status", True)
        if into is not None and not checks:
            raise TypeError("into= takes an answer that is no error: leave raise_for_status out, or into")
        question = question_of(method, path, options)
        response = await self._whole(question, options.get("timeout", self._timeout))
        if checks and response.status >= 400:
            raise error_of(response, question)
        return response if into is None else read_as(response, into, question)

    async def _whole(self, question: Question, timeout: float) -> Response:
        limit = _Limit(timeout)
        response = await self._ask(question, timeout)
        if response.pieces is None:
            return response
        body = await limit.read(response.pieces, question)
        return Response.trusted(response.status, response.headers, body)

    async def _ask(self, question: Question, timeout: float) -> Response:
        if not timeout > 0:
            raise ValueError(f"timeout={timeout!r} is no time: give seconds, such as 10")
        caller = await self._started()
        method, raw_path, query, fields, body = question
        incoming = caller.incoming(method, raw_path.encode("ascii"), query.encode("ascii"), fields)
        return await caller.call(incoming, body, timeout=timeout)

    @contextlib.asynccontextmanager
    async def stream(self, method: str, path: str, **options: Unpack[CallOptions]) -> AsyncIterator[Answer]:
        """Give the answer to a request as it comes, of any size: `async with api.stream("GET", "/feed") as answer`.

        `timeout` is for its head. Leaving the block early cancels the handler, in the other process.
        """
        question = question_of(method, path, options)
        timeout = options.get("timeout", self._timeout)
        response = await self._ask(question, timeout)
        try:
            if response.status >= 400 and options.get("raise_for_status", True):
                if response.pieces is not None:
                    body = await _Limit(timeout).read(response.pieces, question)
                    response = Response.trusted(response.status, response.headers, body)
                raise error_of(response, question)
            yield Answer(response)
        finally:
            if response.pieces is not None:
                await response.pieces.close()

    @overload
    async def get(self, path: str, *, into: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    async def get(self, path: str, *, into: None = None, **options: Unpack[CallOptions]) -> Response: ...
    @overload
    async def get(self, path: str, *, into: Any, **options: Unpack[CallOptions]) -> Any: ...
    async def get(self, path: str, *, into: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the answer to GET: see `request`."""
        return await self.request("GET", path, into=into, **options)

    @overload
    async def post(self, path: str, *, into: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    async def post(self, path: str, *, into: None = None, **options: Unpack[CallOptions]) -> Response: ...
    @overload
    async def post(self, path: str, *, into: Any, **options: Unpack[CallOptions]) -> Any: ...
    async def post(self, path: str, *, into: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the answer to POST: see `request`."""
        return await self.request("POST", path, into=into, **options)

    @overload
    async def put(self, path: str, *, into: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    async def put(self, path: str, *, into: None = None, **options: Unpack[CallOptions]) -> Response: ...
    @overload
    async def put(self, path: str, *, into: Any, **options: Unpack[CallOptions]) -> Any: ...
    async def put(self, path: str, *, into: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the answer to PUT: see `request`."""
        return await self.request("PUT", path, into=into, **options)

    @overload
    async def patch(self, path: str, *, into: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    async def patch(self, path: str, *, into: None = None, **options: Unpack[CallOptions]) -> Response: ...
    @overload
    async def patch(self, path: str, *, into: Any, **options: Unpack[CallOptions]) -> Any: ...
    async def patch(self, path: str, *, into: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the answer to PATCH: see `request`."""
        return await self.request("PATCH", path, into=into, **options)

    @overload
    async def delete(self, path: str, *, into: type[T], **options: Unpack[CallOptions]) -> T: ...
    @overload
    async def delete(self, path: str, *, into: None = None, **options: Unpack[CallOptions]) -> Response: ...
    @overload
    async def delete(self, path: str, *, into: Any, **options: Unpack[CallOptions]) -> Any: ...
    async def delete(self, path: str, *, into: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the answer to DELETE: see `request`."""
        return await self.request("DELETE", path, into=into, **options)

    async def head(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Return the answer to HEAD: see `request`."""
        return await self.request("HEAD", path, **options)

    async def options(self, path: str, **options: Unpack[CallOptions]) -> Response:
        """Return the answer to OPTIONS: see `request`."""
        return await self.request("OPTIONS", path, **options)


class _Limit:
    """How long, and how large, an answer may be that is read whole."""

    def __init__(self, seconds: float) -> None:
        left = time_left()
        self._seconds = seconds
        self._due = asyncio.get_running_loop().time() + (seconds if left is None else min(seconds, left))

    async def read(self, pieces: Pieces, question: Question) -> bytes:
        """Return all bytes of an answer; raises `TimeUp`, or `BadReply` for one that is too large."""
        try:
            async with asyncio.timeout_at(self._due):
                body = await read_whole(pieces, _MAX_ANSWER)
        except TimeoutError:
            raise TimeUp(f"the answer to {question} was not whole within {self._seconds:g} s") from None
        if body is None:
            raise BadReply(f"the answer to {question} has more than {_MAX_ANSWER} bytes; read it with stream(...)")
        return body
