"""Functions around a gateway's requests, and what may stand in place of NATS.

A filter is what middleware is in a service: `async def f(request, call_next) -> Response`, the first outermost. It may
change the request and its path before, answer itself, and change the response; failures are responses as well, after
the error hook. Knows requests and the exchange; it knows no ASGI.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from natsweb.annotations import line_of, name_of
from natsweb.errors import DeclarationError, HTTPError
from natsweb.messages import Request, Response
from natsweb.middleware import Handler, Middleware, check_middleware, pass_through
from natsweb.replies import problem

__all__ = ["Filters", "OnGatewayError", "echo"]

logger = logging.getLogger("natsweb.gateway")

#: Gets a request and the error that it ends with; returns what the client sees.
OnGatewayError: TypeAlias = Callable[[Request, HTTPError], Awaitable[Response]]


async def echo(request: Request) -> Response:
    """Answer a request with its own body and content type: an exchange for tests, without NATS."""
    kind = request.headers.get("content-type", "application/octet-stream") or ""
    return Response(body=await request.read(), headers={"content-type": kind})


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
