"""HTTP at the plain door: bodies in as they come, answers out whole or piece by piece.

What goes out has gone through the wire's own functions, so that nothing crosses here which does not cross there. An
answer that is cut off raises `CutOff`: the server closes the connection. Knows ASGI and calls; it knows no service.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from natsweb.errors import Disconnected, HandlerFailed, NoRoute
from natsweb.gateway.http import CutOff, send_response
from natsweb.gateway.scopes import Event, Receive, Send
from natsweb.headers import Headers
from natsweb.messages import Call, Pieces, Response
from natsweb.plain.visits import Handle, Inflow, Visit
from natsweb.replies import problem
from natsweb.wire import decode_reply, encode_open, encode_response

__all__ = ["HttpVisit"]

logger = logging.getLogger("natsweb.plain")

_AHEAD = 1024 * 1024  # what a NATS message holds by default
_NO_BODY = (204, 205, 304)
# Seconds in which an error before the first piece is still an ordinary answer, as in `natsweb.jobs`.
_FEED_WAIT, _HEAD_WAIT = 0.5, 2.0


class HttpVisit(Visit):
    """One HTTP request; `expects` tells that its body comes after a 100 Continue only."""

    def __init__(
        self, handle: Handle, call: Call, receive: Receive, send: Send, *, timeout: float, expects: bool
    ) -> None:
        super().__init__(handle, call, receive, send, timeout=timeout)
        self._inflow: Inflow[bytes] = Inflow()
        self._more = call.more
        self._wanted = asyncio.Event()
        if not (expects and call.more):
            self._wanted.set()
        self._turn = asyncio.Lock()  # of whoever sends: the handler's pieces, or what fills the time between them
        self._spoken = False
        self._sent = 0

    # ── the body ──

    async def read_ahead(self, length: int | None) -> bool:
        """Read a body that a NATS message would hold; False if the client leaves meanwhile.

        `length` is what it is said to have, if it says so.
        """
        call = self.call
        chunks, size = [], 0
        while self._more and (length or 0) <= _AHEAD and size <= _AHEAD:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                return False
            self._more = bool(event.get("more_body", False))
            chunks.append(bytes(event.get("body", b"")))
            size += len(chunks[-1])
        call.body, call.more = b"".join(chunks), self._more
        if call.more and length is not None:
            call.headers = call.headers + {"content-length": str(length)}
        return True

    async def listen(self) -> None:
        """Take the body as it comes, and then hear that the client leaves."""
        await self._wanted.wait()
        while (event := await self._receive())["type"] != "http.disconnect":
            if self._more:
                self._more = bool(event.get("more_body", False))
                self.go_on()
                body = bytes(event.get("body", b""))
                await self._inflow.put(body, len(body))
                if not self._more:
                    self._inflow.end(EOFError())
        self._inflow.end(Disconnected("the client has left"))
        self.leave()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Give the rest of the body as it comes, once; raises `Disconnected` if the client leaves."""
        self._wanted.set()
        with contextlib.suppress(EOFError):
            while True:
                if chunk := await self._inflow.take():
                    yield chunk

    # ── the answer ──

    async def conclude(self, response: Response) -> None:
        """Send the response: whole, or as it comes; raises `CutOff`."""
        pieces = response.pieces
        try:
            await self._conclude(response, pieces)
        finally:
            if pieces is not None:
                await pieces.close()

    async def _conclude(self, response: Response, pieces: Pieces | None) -> None:
        if pieces is None:
            await self.answer(response)
        elif self.call.method == "HEAD" or response.status in _NO_BODY:
            await self.answer(Response.trusted(response.status, response.headers, b""))
        elif not self.answered:
            await self._send_pieces(response, pieces)
        elif self.finishes:  # nobody waits for it, and it goes on while it yields
            async for _ in pieces.source:
                pass

    async def say(self, event: Event) -> None:
        """Send an event: see `Visit.say`."""
        if event["type"] == "http.response.body" and not event.get("more_body"):
            self.complete = True  # before the server says so to whoever listens
        await super().say(event)

    async def send_whole(self, response: Response) -> None:
        """Send a response that is not streamed."""
        if response.silent:  # there is no other service that could answer
            response = problem(NoRoute("no route of this service has this path"))
        method = self.call.method
        try:
            status, lines, body = decode_reply(*encode_response(response, method=method), method)
            crossed = Response.trusted(status, Headers.from_block(lines), body)
        except Exception:
            logger.exception("the answer to %s %s is none that can be sent", method, self.call.raw_path)
            crossed = problem(HandlerFailed("the handler's answer cannot be sent; the log says why"))
        await send_response(crossed, method, self.say)

    async def _send_pieces(self, response: Response, pieces: Pieces) -> None:
        filling = asyncio.create_task(self._fill(response, pieces))
        began = False
        try:
            async for piece in pieces.source:
                began = True
                await self._open(response)
                await self._write(piece)
                if self.gone and not self.finishes:
                    return
        except Exception as error:
            if self.gone:
                return
            if began or self.answered:
                raise CutOff("the answer was cut off") from None
            filling.cancel()
            await self.answer(problem(HandlerFailed()) if pieces.failed is None else await pieces.failed(error))
            return
        except asyncio.CancelledError:
            if pieces.feed and not self.gone:  # it never ends by itself, and ends well at any time
                await self._open(response)
                await self._close()
            elif self.answered and not self.gone:
                raise CutOff("the answer was cut off") from None
            raise
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
        await self._open(response)
        self._check_length(response)
        await self._close()

    async def _fill(self, response: Response, pieces: Pieces) -> None:
        """Send the head if no piece comes for a while, and then a little whenever the stream has been silent."""
        await asyncio.sleep(_FEED_WAIT if pieces.feed else _HEAD_WAIT)
        await self._open(response)
        seconds, words = pieces.heartbeat or (0.0, b"")
        while seconds > 0:
            self._spoken = False
            await asyncio.sleep(seconds)
            async with self._turn:
                if not self._spoken:
                    await self.say({"type": "http.response.body", "body": words, "more_body": True})

    async def _open(self, response: Response) -> None:
        """Send the head of a streamed answer, once."""
        if self.take_answer(response.status):
            status, lines, _ = decode_reply(encode_open(response, method=self.call.method), b"", self.call.method)
            fields = Headers.from_block(lines).fields
            async with self._turn:
                await self.say({"type": "http.response.start", "status": status, "headers": fields})

    async def _write(self, piece: bytes) -> None:
        if piece:
            async with self._turn:
                self._sent += len(piece)
                self._spoken = True
                await self.say({"type": "http.response.body", "body": piece, "more_body": True})

    async def _close(self) -> None:
        async with self._turn:
            await self.say({"type": "http.response.body", "body": b""})

    def _check_length(self, response: Response) -> None:
        """Raise `CutOff` unless an answer is as long as it says."""
        said = response.headers.get("content-length")
        if said is not None and said.isdigit() and int(said) != self._sent and not self.gone:
            logger.error(
                "the answer to %s %s has %d bytes, and its content-length says %s",
                self.call.method,
                self.call.raw_path,
                self._sent,
                said,
            )
            raise CutOff("the answer is not as long as it says")
