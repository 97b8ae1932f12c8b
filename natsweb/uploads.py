"""A request on its way to a service, whole: its body of any size goes in, its answer comes back as it comes.

`forward` is all that a client needs: a `Request` in, the `Response` of the services out. `first_part` and `launch` are
its two steps, for doors that have no `Request`. Knows the exchange and requests; it knows no ASGI.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import Any

from natsweb.arriving import streamed
from natsweb.errors import Disconnected, HTTPError, TooLarge
from natsweb.exchange import Exchange
from natsweb.flights import Flight, Incoming, Opened, Outcome
from natsweb.messages import Request, Response, Socket
from natsweb.pipes import Stream
from natsweb.replies import problem
from natsweb.streams import CHUNK

__all__ = ["RequestUpload", "Upload", "UploadChannel", "first_part", "forward", "launch"]


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
        #: How many bytes there may be behind the first message.
        self.left_over = sys.maxsize

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
        left = self.left_over - len(rest)
        await stream.write(rest)
        while self.more or ahead is not None:
            chunk = await (ahead or self.next())
            ahead = None
            if self.gone:
                return
            left -= len(chunk)
            if left < 0:
                flight.finish(TooLarge("the request body is larger than this gateway takes"))
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


async def first_part(exchange: Exchange, incoming: Incoming, upload: Upload, length: int | None) -> bytes:
    """Return what goes with the first message: all of the body, if that fits; raises all that `prepare` raises."""
    try:
        exchange.prepare(incoming)
    except HTTPError:
        if length is not None and length <= CHUNK:
            await upload.read_ahead(CHUNK, enough=CHUNK)  # so that the connection can stay
        raise
    most = exchange.limits.body
    if 0 < most < (length or 0):
        raise exchange.over_limit()
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
    upload.left_over = most - len(body) if most else sys.maxsize
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
        return streamed(outcome, sending)
    sending.cancel()
    if isinstance(outcome, HTTPError):
        raise outcome
    return (
        problem(Disconnected("the client has left"))
        if outcome is None
        else exchange.to_response(outcome, request.method)
    )
