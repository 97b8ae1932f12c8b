"""The ASGI door for HTTP: a request in, of any size; its answer out, as it comes.

What fits into a NATS message goes in one; more goes as a stream, to a service that takes one. Whoever leaves has the
request cancelled, in the other process. An answer that is cut off raises `CutOff`, so that the server closes the
connection without an end that looks like one. Knows ASGI and the exchange.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from natsweb.arriving import Arriving
from natsweb.errors import HTTPError
from natsweb.exchange import Exchange
from natsweb.flights import Opened
from natsweb.gateway.scopes import Receive, Scope, Send, has_body, length_of, to_incoming
from natsweb.headers import Headers
from natsweb.messages import Response
from natsweb.replies import problem
from natsweb.uploads import Upload, first_part, launch

__all__ = ["AsgiUpload", "CutOff", "carry", "refuse", "send_response"]

logger = logging.getLogger("natsweb.gateway")


class CutOff(Exception):
    """An answer that has begun cannot be finished: the connection has to be closed."""


class AsgiUpload(Upload):
    """The body of an ASGI request; `expects` tells that it comes after a 100 Continue only."""

    def __init__(self, receive: Receive, *, expects: bool = False) -> None:
        super().__init__()
        self.expects = expects
        self._receive = receive
        #: Set when all of it has come.
        self.over = asyncio.Event()

    async def next(self) -> bytes:
        """Return the next piece: see `Upload`."""
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self.more, self.gone = False, True
            self.over.set()
            return b""
        self.more = bool(event.get("more_body", False))
        if not self.more:
            self.over.set()
        return bytes(event.get("body", b""))

    async def left(self) -> None:
        """Wait until the client has left: see `Upload`."""
        while not self.gone and (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True


async def carry(exchange: Exchange, path: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request for `path`; raises `CutOff`."""
    upload = AsgiUpload(receive, expects=any(name == b"expect" for name, _ in scope["headers"]))
    try:
        exchange.admit()
        incoming = to_incoming(exchange, path, scope)
        body = await first_part(exchange, incoming, upload, length_of(scope))
    except HTTPError as error:
        await refuse(error, upload, scope, send)
        return
    if upload.gone:
        return
    sending: asyncio.Future[None] | None = None
    try:
        outcome, sending = await launch(exchange, incoming, body, upload)
        if isinstance(outcome, Opened):
            await _send_stream(outcome, incoming.method, sending, send)
        elif outcome is not None:
            response = exchange.to_response(outcome, incoming.method)
            if upload.more or upload.rest:  # nobody wants the rest of the body
                response = response.with_headers({"connection": "close"})
            await send_response(response, incoming.method, send)
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def refuse(error: HTTPError, upload: Upload, scope: Scope, send: Send) -> None:
    """Answer a request that does not cross; the connection cannot stay if its body has not been read."""
    response = problem(error)
    if upload.more and has_body(scope):
        response = response.with_headers({"connection": "close"})
    await send_response(response, scope["method"], send)


async def _send_stream(opened: Opened, method: str, sending: "asyncio.Future[None]", send: Send) -> None:
    """Send an answer as it comes; raises `CutOff` if its end never does, or is not where it should be."""
    headers = Headers.from_block(opened.lines)
    await send({"type": "http.response.start", "status": opened.status, "headers": headers.fields})
    if method == "HEAD" or opened.status in (204, 205, 304):
        await send({"type": "http.response.body", "body": b""})
        return
    said = headers.get("content-length")
    left = int(said) if said is not None and said.isdigit() else None
    try:
        async for chunk in Arriving(opened):
            if left is not None:
                left -= len(chunk)
                if left < 0:
                    raise CutOff("the answer is longer than it says")
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except HTTPError as error:
        raise CutOff(str(error)) from None
    finally:
        opened.flight.drop()
    if left:
        raise CutOff("the answer is shorter than it says")
    await send({"type": "http.response.body", "body": b""})


async def send_response(response: Response, method: str, send: Send) -> None:
    """Send an answer: whole, or its pieces as they come; raises `CutOff` for pieces that do not come to their end."""
    headers = response.headers.fields
    bodiless = response.status in (204, 304)
    pieces = response.pieces
    if pieces is None and not bodiless and method != "HEAD":  # a length that is not known is better left out
        headers = [*headers, (b"content-length", b"%d" % len(response.body))]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if pieces is not None:
        try:
            if not bodiless and method != "HEAD":
                async for piece in _cut_off(pieces.source):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            await pieces.close()
    await send({"type": "http.response.body", "body": b"" if bodiless or method == "HEAD" else response.body})


async def _cut_off(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give the pieces of an answer; raises `CutOff` if they do not come to their end."""
    try:
        async for piece in source:
            yield piece
    except HTTPError as error:
        raise CutOff(str(error)) from None
    except Exception:
        logger.exception("an answer was cut off")
        raise CutOff("the answer was cut off") from None
