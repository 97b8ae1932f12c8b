"""How long what a streamed answer is made of lives: until the last byte has gone, or nobody wants it any more.

A handler that streams has returned and still runs. Its dependencies end after it, and see its error; an error
before the first piece becomes an ordinary answer, a later one is logged and cuts the stream off. Whoever sends a
stream iterates its source in one task: nothing here starts one. Knows streams and scopes; it knows no handlers.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from natsweb.errors import HandlerFailed
from natsweb.messages import After, Pieces, Response
from natsweb.replies import problem
from natsweb.scopes import RequestScope

__all__ = ["close_after", "close_source", "watch"]


async def close_source(source: AsyncIterator[Any]) -> None:
    """Close an iterator that can be closed."""
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


def watch(
    pieces: Pieces,
    scope: RequestScope,
    stack: contextlib.AsyncExitStack,
    answer: Callable[[BaseException], Awaitable[Response]],
    log: Callable[[BaseException], None],
) -> None:
    """Bind a stream to the request that it answers: whose dependencies live until it has ended, and see its error.

    `stack` is what ends with the handler. An error before the first piece becomes the response that `answer` gives; a
    later one is logged, and comes out of the source.
    """

    async def failed(error: BaseException) -> Response:
        try:
            await stack.__aexit__(type(error), error, error.__traceback__)
        except BaseException as raised:
            error = raised
        scope.error = error
        response = await answer(error)
        if response.pieces is None:
            return response
        await response.pieces.close()
        log(TypeError("an error handler cannot stream its answer to an error of a stream"))
        return problem(HandlerFailed("the handler failed; the service's log says why"))

    def note(error: BaseException, began: bool) -> None:
        scope.error = error
        if began and not isinstance(error, asyncio.CancelledError):
            log(error)

    watched = _Watched(pieces, note, log)
    pieces.source, pieces.failed = watched, failed
    scope.stack.push_async_exit(stack)
    scope.stack.push_async_callback(watched.aclose)


class _Watched(AsyncIterator[bytes]):
    """The bytes of a stream under the eyes of its service."""

    def __init__(
        self, pieces: Pieces, note: Callable[[BaseException, bool], None], log: Callable[[BaseException], None]
    ) -> None:
        self._source = pieces.source
        self._ends_well = pieces.feed
        self._note = note
        self._log = log
        self._began = False
        self._over = False

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        try:
            piece = await self._source.__anext__()
        except StopAsyncIteration:
            self._over = True
            raise
        except BaseException as error:
            await self._fail(error)
            if isinstance(error, Exception | asyncio.CancelledError):
                raise
            raise RuntimeError(f"the handler raised {type(error).__name__}") from error  # which would stop a loop
        self._began = True
        return piece

    async def _fail(self, error: BaseException) -> None:
        self._note(error, self._began)
        await self._close()

    async def aclose(self) -> None:
        """End it, now; a stream that was cut off in the middle is an error for what it was made of."""
        if self._over:
            return
        if self._began and not self._ends_well:
            self._note(asyncio.CancelledError("the stream was cut off"), False)
        await self._close()

    async def _close(self) -> None:
        self._over = True
        try:
            await close_source(self._source)
        except Exception as error:
            self._log(error)


def close_after(pieces: Pieces, after: After) -> None:
    """Have `after` closed when a stream has ended, for callers that know of nothing but the response."""
    answer, followed = pieces.failed, _Followed(pieces.source, after)

    async def failed(error: BaseException) -> Response:
        try:
            if answer is None:
                raise error
            return await answer(error)
        finally:
            await followed.follow()

    pieces.source, pieces.failed = followed, failed


class _Followed(AsyncIterator[bytes]):
    """The bytes of a stream with something to do at their end."""

    def __init__(self, source: AsyncIterator[bytes], after: After) -> None:
        self._source = source
        self._after: After | None = after
        self._began = False

    async def __anext__(self) -> bytes:
        try:
            piece = await self._source.__anext__()
        except BaseException as error:
            if self._began or isinstance(error, StopAsyncIteration):  # else its answer comes first
                await self.follow()
            raise
        self._began = True
        return piece

    async def aclose(self) -> None:
        """End it, and do what follows."""
        try:
            await close_source(self._source)
        finally:
            await self.follow()

    async def follow(self) -> None:
        """Do what follows, once."""
        after, self._after = self._after, None
        if after is not None:
            await after.close()
