"""The ASGI door for HTTP: a request in, of any size; its answer out, as it comes.

What fits into a NATS message goes in one; more goes as a stream, to a service that takes one. Whoever leaves has the
request cancelled, in the other process. An answer that is cut off raises `CutOff`, so that the server closes the
connection without an end that looks like one. Knows ASGI and the exchange.
"""

import asyncio
from typing import Any

from natsweb.errors import HTTPError
from natsweb.exchange import Exchange, bytes_of
from natsweb.flights import Flight, Incoming, Opened, Outcome
from natsweb.gateway.scopes import Receive, Scope, Send, has_body, length_of, to_incoming
from natsweb.headers import Headers
from natsweb.messages import Response
from natsweb.pipes import Stream
from natsweb.replies import problem
from natsweb.streams import CHUNK

__all__ = ["AsgiUpload", "CutOff", "Upload", "carry", "first_part", "launch", "refuse", "send_response"]


class CutOff(Exception):
    """An answer that has begun cannot be finished: the connection has to be closed."""


class Upload:
    """The body of one request on its way in.

    `more` tells whether there is more to come, `rest` is what has come and does not go with the first message, `gone`
    tells that whoever sends it has left.
    """

    def __init__(self) -> None:
        self.rest = b""
        self.more = True
        self.gone = False
        self.expects = False

    async def next(self) -> bytes:
        """Return the next piece, and find out whether there are others."""
        raise NotImplementedError

    async def left(self) -> None:
        """Wait until whoever sends it has left, when all of it has come."""
        await asyncio.get_running_loop().create_future()

    async def read_ahead(self, limit: int, *, enough: int) -> bytes:
        """Return the body if it has at most `limit` bytes; else what has come of it, once that is `enough`."""
        chunks: list[bytes] = []
        size = 0
        while self.more and size <= limit and size < enough:
            chunk = await self.next()
            size += len(chunk)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def send_rest(self, flight: Flight, timeout: float) -> None:
        """Send what does not go with the first message, as the service takes it; then wait until the client leaves."""
        if self.rest or self.more:
            try:
                await self._pass_on(flight, timeout)
            except HTTPError:
                pass  # the answer says why, or is there already
        if not self.gone:
            await self.left()

    async def _pass_on(self, flight: Flight, timeout: float) -> None:
        stream, ahead = await self._until_wanted(flight)
        if stream is None:
            if ahead is not None:
                ahead.cancel()
            return
        rest, self.rest = self.rest, b""
        await stream.write(rest)
        while self.more or ahead is not None:
            chunk = await (ahead or self.next())
            ahead = None
            if self.gone:
                return
            flight.go_on(timeout)  # the time of an answer begins when the question has been heard
            await stream.write(chunk)
        stream.end()

    async def _until_wanted(self, flight: Flight) -> tuple[Stream | None, "asyncio.Future[bytes] | None"]:
        """Return where the body goes once somebody wants it, and what is read ahead meanwhile.

        Only who reads hears that the client leaves; nothing is read of one who waits for 100 Continue.
        """
        if self.expects or not self.more:
            return await flight.pinned(), None
        ahead = asyncio.ensure_future(self.next())
        pinning = asyncio.ensure_future(flight.pinned())
        try:
            waiting: list[asyncio.Future[Any]] = [ahead, pinning]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self.gone:
                return None, None
            return await pinning, ahead
        except BaseException:
            ahead.cancel()
            raise
        finally:
            pinning.cancel()


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


async def first_part(exchange: Exchange, incoming: Incoming, upload: Upload, length: int | None) -> bytes:
    """Return what goes with the first message: all of the body, if that fits; raises all that `prepare` raises."""
    try:
        exchange.prepare(incoming)
    except HTTPError:
        if length is not None and length <= CHUNK:
            await upload.read_ahead(CHUNK, enough=CHUNK)  # so that the connection can stay
        raise
    limit = exchange.max_body - len(incoming.fields)
    streams = exchange.may_stream(incoming)
    if not streams and (length or 0) > limit:
        raise exchange.too_large()
    enough = limit + 1
    if streams and (length or 0) > limit:
        enough = 0  # it will not fit, and nothing of it is read before the service wants it
    elif streams and length is None and exchange.wants_stream(incoming):
        enough = 1  # it has to be seen as it comes
    body = await upload.read_ahead(limit, enough=enough)
    if len(body) <= limit and not upload.more:
        return body
    if not streams:
        raise exchange.too_large()
    incoming.more = True
    incoming.head = None
    if length is not None:
        incoming.fields = b"content-length: %d\r\n%b" % (length, incoming.fields)
    first = min(CHUNK, max(limit, 0))
    body, upload.rest = body[:first], body[first:]
    return body


async def launch(
    exchange: Exchange, incoming: Incoming, body: bytes, upload: Upload
) -> tuple[Outcome | None, "asyncio.Future[None]"]:
    """Return what becomes of a request, None if its client leaves first, and what goes on listening to the client.

    Whoever gets that cancels it at the end; when it ends, a stream is dropped. An `HTTPError` is an outcome as well.
    """
    landed: asyncio.Future[Any] = exchange.loop.create_future()
    try:
        flight = exchange.launch(incoming, body, landed.set_result)
    except HTTPError as error:
        return error, asyncio.ensure_future(upload.left())
    sending = asyncio.ensure_future(upload.send_rest(flight, incoming.timeout))
    try:
        await asyncio.wait([landed, sending], return_when=asyncio.FIRST_COMPLETED)
        if not landed.done() and not upload.gone and sending.exception() is not None:
            await landed  # the server has no events any more; the answer may still be wanted
    except BaseException:
        flight.drop()
        sending.cancel()
        raise
    if not landed.done():
        flight.drop()
        return None, sending
    outcome = landed.result()
    if isinstance(outcome, Opened):
        sending.add_done_callback(lambda _: flight.drop())
    return outcome, sending


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
        async for chunk in bytes_of(opened):
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
    if pieces is not None and not bodiless and method != "HEAD":
        try:
            async for piece in pieces.source:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except HTTPError as error:
            raise CutOff(str(error)) from None
        finally:
            await pieces.close()
    await send({"type": "http.response.body", "body": b"" if bodiless or method == "HEAD" else response.body})
