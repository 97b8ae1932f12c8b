"""What an ASGI app answers, from its `http.response.*` messages to a `Response`.

An answer is whole with its last body message, or with as many bytes as its `content-length` says; what is whole at
once is a plain `Response`, everything else a streamed one whose pieces are taken one by one. The app's mistakes are
`RuntimeError`s at the message that makes them. Knows messages and responses; it runs no app.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.types import Message

from natsweb.asgi.handoff import ClientGone, Handoff
from natsweb.headers import Headers
from natsweb.messages import Pieces, Response, StreamingResponse

__all__ = ["Answer"]

_WITHOUT_BODY = (204, 304)  # RFC 9110 section 6.4.1
_UNFINISHED = {
    False: "the ASGI app returned without an answer: it has sent no http.response.start",
    True: "the ASGI app returned before its answer was complete: no last http.response.body has come",
}


class Answer:
    """The answer to one request; `over` is done when the app has no one left to talk to.

    `start` and `add` are the app's side, `response` and `take` the other one.
    """

    def __init__(self, *, is_head: bool) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_whole = False
        self.is_cut = False
        self._is_head = is_head
        self._is_streamed = False
        self._ended = False
        self._status = 0
        self._headers: Headers | None = None
        self._length: int | None = None
        self._count = 0
        self._body = b""
        self._failure: BaseException | None = None
        self._started = asyncio.Event()
        self._begun = asyncio.Event()

    @functools.cached_property
    def _handoff(self) -> Handoff:
        return Handoff()

    # ── the app's side ──

    def start(self, message: Message) -> None:
        """Take the head: an `http.response.start` message."""
        if self._headers is not None:
            raise RuntimeError("the ASGI app has sent http.response.start twice")
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise RuntimeError(f"the ASGI app answers with status {status!r}; an answer has one from 200 to 599")
        headers = _headers_of(message.get("headers", ()))
        length = headers.get("content-length")
        if length is not None and not (length.isascii() and length.isdigit() and len(length) < 19):
            raise RuntimeError(f"the ASGI app says content-length {length!r}, which is no length")
        self._status, self._headers = int(status), headers
        self._length = None if length is None else int(length)
        self._started.set()

    async def add(self, message: Message) -> None:
        """Take a part of the body: an `http.response.body` message; wait until it has been taken."""
        if self._headers is None:
            raise RuntimeError("the ASGI app has sent http.response.body before http.response.start")
        if self._ended:
            raise RuntimeError("the ASGI app has sent http.response.body after its last one")
        body, more = bytes(message.get("body", b"")), bool(message.get("more_body", False))
        if self._has_no_body:
            if self.is_whole and more:
                raise ClientGone  # it could go on for ever, and nobody hears it
            body, last = b"", True
        else:
            self._count += len(body)
            self._check_length(more)
            last = not more or self._count == self._length
        self._ended = not more
        if self.is_whole:
            self._let_go()
            return
        if last and not self._is_streamed and not self._begun.is_set():
            self._body = body
            self.finish()
            return
        self._begun.set()
        if body or last:
            await self._handoff.give(body, last)

    @property
    def _has_no_body(self) -> bool:
        return self._is_head or self._status in _WITHOUT_BODY

    def _check_length(self, more: bool) -> None:
        if self._length is None:
            return
        if self._count > self._length or (self._count < self._length and not more):
            longer = "longer" if self._count > self._length else "shorter"
            raise RuntimeError(f"the ASGI app's body is {longer} than its content-length, which is {self._length}")

    def finish(self) -> None:
        """Take it for whole, with the head alone."""
        self._complete()
        self._begun.set()

    async def until_over(self) -> None:
        """Wait until the app has no one left to talk to."""
        await asyncio.wait([self.over])

    def end(self, error: BaseException | None) -> None:
        """Take note that the app has ended, with `error` or without one."""
        self._let_go()
        if not self.is_whole:
            self._failure = error or RuntimeError(_UNFINISHED[self._headers is not None])
            self._handoff.end()
            self._started.set()
            self._begun.set()

    # ── the other side ──

    async def response(self, patience: float | None, leave: Callable[[], None]) -> Response:
        """Return the response, as soon as it is known how its body comes; raises what the app raised before that.

        A head that has no body yet is answered with after `patience` seconds, that of an event stream at once.
        `leave` is called if a streamed body is closed.
        """
        await self._started.wait()
        is_feed = self._headers is not None and _is_feed(self._headers)
        if not is_feed or self._has_no_body:
            await self._wait_for_the_body(patience)
        if self._headers is None or (self._failure is not None and not self._handoff.is_full):
            raise self._failure or RuntimeError(_UNFINISHED[False])
        if self.is_whole:
            return Response.trusted(self._status, self._headers, self._body)
        self._is_streamed = True
        return StreamingResponse(Pieces(_Taking(self, leave), feed=is_feed), status=self._status, headers=self._headers)

    async def _wait_for_the_body(self, patience: float | None) -> None:
        if self._begun.is_set():
            return
        try:
            async with asyncio.timeout(patience):
                await self._begun.wait()
        except TimeoutError:
            if self._has_no_body:
                self._complete()

    async def take(self) -> bytes:
        """Return the next piece of a streamed body; raises `StopAsyncIteration` at its end, or what the app raised."""
        piece = None if self.is_whole else await self._handoff.take()
        if self._handoff.is_ended and not self.is_cut:
            self._complete()
        if piece:
            return piece
        if self.is_whole:
            raise StopAsyncIteration
        raise self._failure or ClientGone

    def cut(self) -> None:
        """End it before it is whole: nobody is there any more to take the rest."""
        if not self.is_whole:
            self.is_cut = True
            self._handoff.close()
            self._let_go()

    def _complete(self) -> None:
        self.is_whole = True
        if self._ended or self._has_no_body:  # else the app still works, with its last byte out
            self._let_go()

    def _let_go(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Taking(AsyncIterator[bytes]):
    """The pieces of a streamed answer; unlike a generator, it can be closed before it was begun."""

    def __init__(self, answer: Answer, leave: Callable[[], None]) -> None:
        self._answer = answer
        self._leave = leave

    async def __anext__(self) -> bytes:
        return await self._answer.take()

    async def aclose(self) -> None:
        self._leave()


def _headers_of(pairs: Any) -> Headers:
    try:
        return Headers([(name, value) for name, value in pairs])
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"the ASGI app answers with headers that cannot be sent: {error}") from None


def _is_feed(headers: Headers) -> bool:
    return (headers.get("content-type") or "").partition(";")[0].strip().lower() == "text/event-stream"
