"""Functions around a handler: `async def m(request, call_next) -> Response`, composed without tasks.

The first is the outermost. Each runs in the caller's task, so that context variables pass both ways; `call_next`
never raises, since errors become responses at the place where they come up. Knows values; it knows no routes.
"""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from natsweb.annotations import line_of, name_of, signature_of
from natsweb.errors import DeclarationError
from natsweb.messages import Request, Response, Result

__all__ = ["Handler", "Middleware", "check_middleware", "pass_through"]

#: The one shape of everything that answers: a service, a wrapped application, what middleware calls next.
Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

#: A function around a handler.
Middleware: TypeAlias = Callable[[Request, Handler], Awaitable[Response]]

#: What middleware stands around: it may answer with a plain record.
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response | Result]]

#: From what was raised, and the request, to a response.
Caught: TypeAlias = Callable[[BaseException, Request], Awaitable[Response]]


def check_middleware(function: Any) -> None:
    """Raise `DeclarationError` unless `function` can be middleware."""
    call = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
    if isinstance(function, type) or not inspect.iscoroutinefunction(call):
        raise DeclarationError(
            f"middleware is an async function, and {name_of(function)} is none",
            where=line_of(function),
            fix="write: async def m(request: Request, call_next: Handler) -> Response",
        )
    try:
        inspect.signature(call).bind(None, None)
    except TypeError:
        raise DeclarationError(
            f"middleware {name_of(function)} does not take two arguments",
            where=f"{line_of(function)}  {signature_of(function)}",
            fix=f"write: async def {name_of(function)}(request, call_next)",
        ) from None


async def pass_through(
    request: Request, middleware: Sequence[Middleware], endpoint: Endpoint, caught: Caught
) -> Response:
    """Return the response of `endpoint` behind `middleware`; what one of them raises goes through `caught`."""
    return await _Next(middleware, 0, endpoint, caught)(request)


class _Next:
    """What middleware gets as `call_next`."""

    __slots__ = ("_caught", "_endpoint", "_index", "_middleware")

    def __init__(self, middleware: Sequence[Middleware], index: int, endpoint: Endpoint, caught: Caught) -> None:
        self._middleware = middleware
        self._index = index
        self._endpoint = endpoint
        self._caught = caught

    async def __call__(self, request: Request) -> Response:
        if self._index == len(self._middleware):
            return (await self._endpoint(request)).response()
        function = self._middleware[self._index]
        following = _Next(self._middleware, self._index + 1, self._endpoint, self._caught)
        try:
            response = await function(request, following)
            if not isinstance(response, Response):
                raise TypeError(f"middleware {name_of(function)} returned {type(response).__name__}, not a Response")
            return response
        except BaseException as error:
            return await self._caught(error, request)
