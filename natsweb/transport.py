"""`NatsTransport`: an httpx2 client whose requests go over NATS, without a gateway.

    async with httpx2.AsyncClient(transport=NatsTransport("api"), base_url="http://api") as client:
        await client.get("/orders/7")

Bodies and answers stream, the client's timeouts are deadlines, and its own exceptions say what is wrong with the
connection. Requests of plain httpx are answered in kind. Knows httpx; how a call travels is `calls`' business.
"""

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

from natsweb.bus import Bus
from natsweb.calls import Caller, Source
from natsweb.errors import Disconnected, HTTPError, NatsDown, NatsUnreachable, StartError, Stopping, TimeUp
from natsweb.messages import Response
from natsweb.replies import problem
from natsweb.streams import CHUNK

try:
    import httpx2
except ImportError:
    raise StartError(
        "NatsTransport is for httpx2, which is not installed", fix='pip install "natsweb[httpx]"'
    ) from None

__all__ = ["NatsTransport"]

_DAY = 86_400.0
_NO_BODY = (204, 304)

# What goes wrong on the way, and what httpx calls it; all else is an answer, as a gateway would give it.
_CALLED: tuple[tuple[type[Exception], str], ...] = (
    (NatsDown, "ConnectError"),
    (NatsUnreachable, "ConnectError"),
    (TimeUp, "ReadTimeout"),
    (Disconnected, "ReadError"),
    (Stopping, "ReadError"),
)


class NatsTransport(httpx2.AsyncBaseTransport):
    """Carries the requests of an `httpx2.AsyncClient` to the services below `root`.

    `nats` and `bus` are those of `Client`. It connects with the first request. `timeout.read` is how many seconds an
    answer may take, and each piece of it; within a handler, never more than its own request has left.
    """

    #: What services are told of the HTTP client: its address.
    _client: str | None = None

    def __init__(self, root: str = "api", nats: Source = None, *, bus: Bus | None = None) -> None:
        self._caller = Caller(root, nats=nats, bus=bus)

    def __repr__(self) -> str:
        return f"<NatsTransport below {self._caller.root}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, if it is its own; requests under way end."""
        await self._caller.stop()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to a request: what httpx calls."""
        library: Any = sys.modules[type(request).__module__.partition(".")[0]]  # plain httpx, or httpx2
        times = request.extensions.get("timeout", {})
        try:
            await self._start(times.get("connect"))
            response = await self._answer(request, times.get("read"))
        except (HTTPError, NatsUnreachable) as error:
            response = self._refused(error, library, request)
        fields = response.headers.fields
        if response.pieces is None and request.method != "HEAD" and response.status not in _NO_BODY:
            fields = [*fields, (b"content-length", b"%d" % len(response.body))]
        fail = functools.partial(self._failure, library, request)
        stream = _stream_class(library)(response, times.get("read"), fail)
        answer: httpx2.Response = library.Response(response.status, headers=fields, stream=stream, request=request)
        return answer

    async def _start(self, seconds: float | None) -> None:
        if not self._caller.is_started:
            try:
                async with asyncio.timeout(seconds):
                    await self._caller.start()
            except TimeoutError:
                raise NatsDown(f"no connection to NATS within {seconds:g} s") from None

    async def _answer(self, request: httpx2.Request, seconds: float | None) -> Response:
        raw_path, _, query = request.url.raw_path.partition(b"?")
        incoming = self._caller.incoming(request.method, raw_path, query, request.headers.raw)
        incoming.client = self._client
        incoming.scheme = "https" if request.url.scheme == "https" else "http"
        said = request.headers.get("content-length", "")
        length = int(said) if said.isdigit() else 0 if "transfer-encoding" not in request.headers else None
        body: Any = aiter(request.stream)  # type: ignore[arg-type]  # an async client has no other
        if length is not None and length <= CHUNK:
            body = b"".join([piece async for piece in body])
        timeout = _DAY if seconds is None else seconds
        began = asyncio.get_running_loop().time()
        response = await self._caller.call(incoming, body, timeout=timeout, length=length)
        if response.status == 504 and asyncio.get_running_loop().time() - began > timeout * 0.95:
            if response.pieces is not None:
                await response.pieces.close()
            raise TimeUp(f"no answer within {timeout:g} s")  # both sides watch the time, and one of them is first
        return response

    def _refused(self, error: HTTPError | NatsUnreachable, library: Any, request: Any) -> Response:
        """Return the answer that an error is; raises the exception of httpx for one of the connection."""
        for kind, name in _CALLED:
            if isinstance(error, kind):
                raise self._failure(library, request, name, error) from error
        assert isinstance(error, HTTPError)
        return problem(error)

    def _failure(self, library: Any, request: Any, name: str, why: object) -> BaseException:
        """Return an exception of httpx."""
        error: BaseException = getattr(library, name)(str(why), request=request)
        return error


class _Stream:
    """The bytes of an answer, for httpx; `fail` makes its exceptions."""

    def __init__(self, response: Response, seconds: float | None, fail: Callable[[str, object], BaseException]) -> None:
        self._response = response
        self._seconds = seconds
        self._fail = fail

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = self._response.pieces
        if pieces is None:
            yield self._response.body
            return
        while True:
            try:
                async with asyncio.timeout(self._seconds):
                    piece = await anext(pieces.source, b"")
            except TimeoutError:
                await pieces.close()
                raise self._fail("ReadTimeout", "the answer has stopped") from None
            except HTTPError as error:
                raise self._fail("RemoteProtocolError", error) from error
            if not piece:
                return
            yield piece

    async def aclose(self) -> None:
        """Let go of the answer: what is not read yet is not wanted."""
        if self._response.pieces is not None:
            await self._response.pieces.close()


@functools.cache
def _stream_class(library: Any) -> Any:
    return type("NatsStream", (_Stream, library.AsyncByteStream), {})
