"""One HTTP request over the bus and back: what both doors of the gateway share.

Decides, before anything is sent, whether a request can cross: path, method, header block, sizes, what waits
already. Sends it with its deadline, sends it once more where it was surely not executed, and turns what comes
back, or does not, into a response. It knows no sockets, no ASGI and no HTTP parser.
"""

import asyncio
import random
import re
import time
from collections.abc import Iterable
from typing import NamedTuple

from natsweb.bus import Bus, request
from natsweb.errors import (
    BadRequest,
    HeadersTooLarge,
    HTTPError,
    MethodNotAllowed,
    NatsDown,
    NoService,
    Overloaded,
    TimeUp,
    TooLarge,
)
from natsweb.headers import Headers, encode_line
from natsweb.messages import Response
from natsweb.replies import problem
from natsweb.settings import Limits
from natsweb.subjects import check_root, to_subject
from natsweb.wire import decode_response, encode_request, forwarded_fields, may_retry

__all__ = ["Exchange", "Incoming"]

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]{1,32}").fullmatch
_FORWARDED_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_RETRIES = 2


class Incoming(NamedTuple):
    """An HTTP request as a door of the gateway has it: bytes, but for the ASCII method.

    `raw_path` is still percent-encoded and below the gateway's mount; `fields` are all header lines.
    """

    method: str
    raw_path: bytes
    query: bytes
    fields: list[tuple[bytes, bytes]]
    client: str | None = None
    scheme: str = "http"


class _Budget:
    """Allows retries up to a tenth of the traffic, so that retries never make an overload worse."""

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def earn(self) -> None:
        self._left = min(self._reserve, self._left + self._share)

    def spend(self) -> bool:
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Exchange:
    """Carries requests over `bus` to the services below `root`, each for `timeout` seconds at most."""

    def __init__(self, bus: Bus, root: str, *, timeout: float = 10.0, limits: Limits | None = None) -> None:
        self._bus = bus
        self._root = check_root(root)
        self._timeout = timeout
        self._limits = limits or Limits()
        self._budget = _Budget()
        self._pending = 0
        self._pending_bytes = 0
        self._hold: float = 0.0
        self._resumed = asyncio.Event()
        self._resumed.set()

    def __repr__(self) -> str:
        return f"<Exchange below {self._root}: {self._pending} requests under way>"

    # ── before the body is there ──

    @property
    def max_body(self) -> int:
        """Largest request body in bytes, with the smallest of header blocks."""
        return self._bus.max_payload - self._limits.margin

    def admit(self, length: int | None) -> None:
        """Raise `Overloaded` or `TooLarge` for a request whose body has `length` bytes, if known, before it is read."""
        if not self._bus.is_connected:
            raise _nats_down()
        if self._pending >= self._limits.pending or self._pending_bytes > self._limits.pending_bytes:
            raise Overloaded("the gateway has as many requests under way as it may have")
        if length is not None and length > self.max_body:
            raise self.too_large()

    def too_large(self) -> TooLarge:
        """Return the error of a body over the limit, with the limit in words."""
        return TooLarge(
            f"the request body is too large: at most {self.max_body} bytes, less the size of the headers, "
            f"fit into one NATS message (max_payload of the server is {self._bus.max_payload})"
        )

    # ── the exchange ──

    async def forward(self, incoming: Incoming, body: bytes) -> Response:
        """Return the response to a request; every failure is a response as well (DESIGN: promises)."""
        try:
            subject, headers = self._check(incoming, body)
        except HTTPError as error:
            return problem(error)
        self._pending += 1
        self._pending_bytes += len(body)
        self._budget.earn()
        try:
            return await self._ask(incoming, subject, headers, body)
        except HTTPError as error:
            return problem(error)
        finally:
            self._pending -= 1
            self._pending_bytes -= len(body)

    def _check(self, incoming: Incoming, body: bytes) -> tuple[str, Headers]:
        if incoming.method in ("TRACE", "CONNECT"):
            raise MethodNotAllowed(f"a gateway does not forward {incoming.method}", allow=_FORWARDED_METHODS)
        if not _METHOD(incoming.method):
            raise HTTPError(501, "this is not an HTTP method", reason="unknown_method")
        subject = to_subject(self._root, incoming.raw_path.decode("latin-1"), limit=self._limits.subject)
        headers = self._headers(incoming.fields)
        if len(headers.block) + len(body) > self.max_body:
            raise self.too_large()
        return subject, headers

    def _headers(self, fields: Iterable[tuple[bytes, bytes]]) -> Headers:
        forwarded = forwarded_fields(fields)
        if len(forwarded) > self._limits.header_count:
            raise HeadersTooLarge(f"the request has more than {self._limits.header_count} headers")
        try:
            block = b"".join([encode_line(name, value) for name, value in forwarded])
        except ValueError as error:
            raise BadRequest(str(error)) from None
        if len(block) > self._limits.header_bytes:
            raise HeadersTooLarge(f"the request's headers have more than {self._limits.header_bytes} bytes")
        return Headers.from_block(block)

    async def _ask(self, incoming: Incoming, subject: str, headers: Headers, body: bytes) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        for attempt in range(_RETRIES + 1):
            left = deadline - loop.time()
            if left <= 0:
                break
            header = encode_request(
                incoming.method,
                headers,
                query=incoming.query,
                timeout_ms=int(left * 1000),
                sent_ms=int(time.time() * 1000),
                client=incoming.client,
                scheme=incoming.scheme,
            )
            try:
                message = await request(self._bus, subject, body, header=header, timeout=left)
            except NatsDown:
                raise _nats_down() from None
            except NoService:
                if await self._held(deadline):
                    continue
                if attempt > 0 or not await self._may_go_again(1, deadline):
                    raise
                continue
            if not (may_retry(message.header) and attempt < _RETRIES and await self._may_go_again(attempt, deadline)):
                return decode_response(message.header, message.payload, method=incoming.method)
        raise TimeUp(f"no answer within {self._timeout:g} s")

    async def _may_go_again(self, attempt: int, deadline: float) -> bool:
        """Wait a moment before the next try, if one is allowed: at once for the first, jittered after that."""
        if not self._budget.spend():
            return False
        pause = random.uniform(0.01, 0.03) * attempt
        if asyncio.get_running_loop().time() + pause >= deadline:
            return False
        await asyncio.sleep(pause)
        return True

    # ── holding requests while a service restarts ──

    def pause(self, hold: float) -> None:
        """From now on, requests that nobody listens to wait up to `hold` seconds for `resume`."""
        self._hold = hold
        self._resumed.clear()

    def resume(self) -> None:
        """Send what waits, and stop holding."""
        self._resumed.set()

    async def _held(self, deadline: float) -> bool:
        """Wait for a restarting service; True if the request should be sent again, False if nothing restarts.

        Raises a 503 when the service is not back in time.
        """
        if self._resumed.is_set():
            return False
        left = min(self._hold, deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(left):
                await self._resumed.wait()
        except TimeoutError:
            raise HTTPError(
                503, "the service is restarting", reason="no_service", headers={"retry-after": "1"}
            ) from None
        return True


def _nats_down() -> NatsDown:
    return NatsDown("the gateway has no connection to NATS", headers={"retry-after": "1"})
