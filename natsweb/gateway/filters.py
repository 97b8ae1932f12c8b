"""Functions around a gateway's requests, and what may stand in place of NATS.

A filter is what middleware is in a service: `async def f(request, call_next) -> Response`, the first outermost. It may
change the request and its path before, answer itself, and change the response; failures are responses as well, after
the error hook. Knows requests and the exchange; it knows no ASGI.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeAlias

from natsweb.annotations import line_of, name_of
from natsweb.errors import DeclarationError, Disconnected, HTTPError
from natsweb.exchange import Exchange, streamed
from natsweb.flights import Incoming, Opened
from natsweb.gateway.http import Upload, first_part, launch
from natsweb.lifetimes import close_after
from natsweb.messages import Request, Response, Socket
from natsweb.middleware import Handler, Middleware, check_middleware, pass_through
from natsweb.replies import problem

__all__ = ["Filters", "OnGatewayError", "RequestUpload", "UploadChannel", "echo", "forward"]

logger = logging.getLogger("natsweb.gateway")

#: Gets a request and the error that it ends with; returns what the client sees.
OnGatewayError: TypeAlias = Callable[[Request, HTTPError], Awaitable[Response]]


async def echo(request: Request) -> Response:
    """Answer a request with its own body and content type: an exchange for tests, without NATS."""
    kind = request.headers.get("content-type", "application/octet-stream") or ""
    return Response(body=await request.read(), headers={"content-type": kind})


class UploadChannel:
    """What stands behind a request at the gateway: the rest of its body."""

    finishes = False
    socket: Socket | None = None

    def __init__(self, upload: Upload) -> None:
        self._upload = upload

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the body as it comes, once; raises `Disconnected` if the client leaves."""
        while self._upload.more:
            chunk = await self._upload.next()
            if self._upload.gone:
                raise Disconnected("the client has left")
            if chunk:
                yield chunk

    def extend(self, seconds: float) -> None:
        """Do nothing: the time of a request is the exchange's."""


class RequestUpload(Upload):
    """The body of a request that filters have seen, on its way on."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self._chunks = request.stream()

    async def next(self) -> bytes:
        """Return the next piece: see `Upload`."""
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self.more = False
            return b""


async def forward(exchange: Exchange, request: Request, path: bytes) -> Response:
    """Return the response of the services to a request for `path`; raises what goes wrong on the way."""
    exchange.admit()
    incoming = Incoming(
        request.method,
        path,
        request.query.encode("latin-1"),
        exchange.encode_fields(request.headers.fields),
        request.client,
        request.scheme,
    )
    upload = RequestUpload(request)
    said = request.headers.get("content-length") or ""
    length = len(request.body) if not request.more else int(said) if said.isdigit() else None
    body = await first_part(exchange, incoming, upload, length)
    outcome, sending = await launch(exchange, incoming, body, upload)
    if isinstance(outcome, Opened):
        response = streamed(outcome)
        assert response.pieces is not None
        close_after(response.pieces, _Listening(sending))
        return response
    sending.cancel()
    if isinstance(outcome, HTTPError):
        raise outcome
    return (
        problem(Disconnected("the client has left"))
        if outcome is None
        else exchange.to_response(outcome, request.method)
    )


class _Listening:
    """What goes on listening to a client while an answer streams."""

    def __init__(self, task: "asyncio.Future[None]") -> None:
        self._task = task

    async def close(self) -> None:
        self._task.cancel()


class Filters:
    """The filters of one gateway, its error hook, and what is at the end of them."""

    def __init__(self, filters: Sequence[Middleware] = (), on_error: OnGatewayError | None = None) -> None:
        self._filters: list[Middleware] = []
        for one in filters:
            self.add(one)
        self._on_error: OnGatewayError | None = None
        if on_error is not None:
            self.catch(on_error)

    def __repr__(self) -> str:
        return f"<Filters: {', '.join(map(name_of, self._filters)) or 'none'}>"

    @property
    def are_there(self) -> bool:
        """Whether requests have to be seen."""
        return bool(self._filters) or self._on_error is not None

    def add(self, function: Middleware) -> None:
        """Add a filter, inside of those that are there; raises `DeclarationError` for anything else."""
        check_middleware(function)
        self._filters.append(function)

    def catch(self, function: OnGatewayError) -> None:
        """Set the error hook; raises `DeclarationError` for anything but an async function of two."""
        if not inspect.iscoroutinefunction(function) or len(inspect.signature(function).parameters) != 2:
            raise DeclarationError(
                f"the error hook of a gateway is an async function of two, and {name_of(function)} is none",
                where=line_of(function),
                fix="write: async def f(request: Request, error: HTTPError) -> Response",
            )
        self._on_error = function

    async def answer(self, request: Request, endpoint: Handler) -> Response:
        """Return the response to a request that passes all filters on its way to `endpoint`."""

        async def inner(request: Request) -> Response:
            try:
                return await endpoint(request)
            except HTTPError as error:
                return await self._caught(error, request)

        return await pass_through(request, self._filters, inner, self._caught)

    async def _caught(self, error: BaseException, request: Request) -> Response:
        """Return the answer to what was raised; the hook sees it first."""
        if not isinstance(error, Exception):
            raise error
        if not isinstance(error, HTTPError):
            logger.error("a filter failed at %s %s", request.method, request.raw_path, exc_info=error)
            error = HTTPError(500, "the gateway failed; its log says why", reason="gateway_failed")
        if self._on_error is not None:
            try:
                return await self._on_error(request, error)
            except Exception:
                logger.exception("the error hook failed at %s %s", request.method, request.raw_path)
        return problem(error)
