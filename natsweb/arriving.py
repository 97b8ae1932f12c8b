"""The body of an answer that streams, as its bytes come from the service.

What every door that knows responses reads. Knows flights and streams; it knows no request.
"""

import asyncio
from collections.abc import AsyncIterator

from natsweb.flights import Opened
from natsweb.headers import Headers
from natsweb.messages import Pieces, StreamingResponse
from natsweb.pipes import Reader

__all__ = ["Arriving", "streamed"]


class Arriving(AsyncIterator[bytes]):
    """The bytes of an answer as they come; raises why it is cut off.

    Closing it early drops the request, read or not: the handler is cancelled, in the other process. `sending` is what
    goes on listening to whoever asked, and ends with it.
    """

    def __init__(self, opened: Opened, sending: "asyncio.Future[None] | None" = None) -> None:
        self._flight = opened.flight
        reader = opened.stream.sink
        assert isinstance(reader, Reader)
        self._reader = reader
        self._sending = sending

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._reader.read()
        except BaseException:
            await self.aclose()
            raise
        if not chunk:
            self._flight.close()
            await self.aclose()
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        """Let go of it."""
        self._flight.drop()
        if self._sending is not None:
            self._sending.cancel()


def streamed(opened: Opened, sending: "asyncio.Future[None] | None" = None) -> StreamingResponse:
    """Return an answer that streams as a response; see `Arriving`."""
    pieces = Pieces(Arriving(opened, sending))
    return StreamingResponse(pieces, status=opened.status, headers=Headers.from_block(opened.lines))
