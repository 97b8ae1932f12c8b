"""WebSockets at the plain door: whole messages both ways, between an ASGI server and a handler.

A handler may refuse before the upgrade, with an ordinary answer. What the client sends waits, up to a window; what goes
to it goes as fast as it takes it. Knows ASGI and calls; it knows no service.
"""

import asyncio

from natsweb.errors import HTTPError, WebSocketClosed
from natsweb.gateway.scopes import Receive, Scope, Send
from natsweb.gateway.websocket import close, deny
from natsweb.headers import Headers, HeaderSource
from natsweb.jobs import goodbye
from natsweb.messages import Call, Response
from natsweb.plain.visits import Handle, Inflow, Visit
from natsweb.replies import problem
from natsweb.wire import decode_reply, encode_response, forwarded_fields

__all__ = ["SocketVisit"]

_SERVERS_OWN = ("sec-websocket-protocol", "sec-websocket-extensions", "sec-websocket-accept")
_GOODBYE = 5.0  # seconds that a handler has after its WebSocket has ended


class SocketVisit(Visit):
    """One WebSocket, from its handshake to its end; to its handler it is the `Socket` as well."""

    def __init__(
        self, handle: Handle, call: Call, scope: Scope, receive: Receive, send: Send, *, timeout: float
    ) -> None:
        super().__init__(handle, call, receive, send, timeout=timeout)
        self._scope = scope
        self._inflow: Inflow[str | bytes] = Inflow()
        self._sending = asyncio.Lock()
        self._closed = False
        self._leaving: asyncio.TimerHandle | None = None
        self.socket = self
        self.is_accepted = False
        self.subprotocols: list[str] = list(scope.get("subprotocols") or ())

    async def listen(self) -> None:
        """Take what the client sends, until it leaves."""
        event = await self._receive()
        while event["type"] == "websocket.receive":
            text = event.get("text")
            message = event["bytes"] if text is None else text
            await self._inflow.put(message, len(message))
            event = await self._receive()
        self._inflow.end(WebSocketClosed(event.get("code", 1005) or 1005, event.get("reason") or ""))
        self.leave()

    def leave(self) -> None:
        """Stop working for a client who is gone; whoever talks hears of it, and has a while to clean up."""
        if not self.is_accepted:
            super().leave()
        elif self._leaving is None and not self.complete:
            self._leaving = asyncio.get_running_loop().call_later(_GOODBYE, self.cancel)

    async def conclude(self, response: Response) -> None:
        """Say goodbye, or answer an upgrade that the handler has not taken."""
        if self._leaving is not None:
            self._leaving.cancel()
        if self.is_accepted:
            await self.close(*goodbye(response))
        elif response.status < 400:
            await self.answer(problem(HTTPError(403, "the WebSocket was refused", reason="refused")))
        else:
            await self.answer(response)

    async def send_whole(self, response: Response) -> None:
        """Refuse, before the upgrade."""
        status, lines, body = decode_reply(*encode_response(response), "GET")
        await deny(Response.trusted(status, Headers.from_block(lines), body), self._scope, self.say)

    # ── the handler's side ──

    async def accept(self, subprotocol: str | None = None, headers: HeaderSource = ()) -> None:
        """Answer the upgrade; a second time does nothing."""
        if self.is_accepted:
            return
        fields = forwarded_fields(Headers(headers).without(*_SERVERS_OWN).fields)
        self.is_accepted = True
        if self.take_answer(101):
            await self.say({"type": "websocket.accept", "subprotocol": subprotocol, "headers": fields})

    async def receive(self) -> str | bytes:
        """Return the next message; raises `WebSocketClosed`."""
        return await self._inflow.take()

    async def send(self, data: str | bytes) -> None:
        """Send a message, when the client has room for it; raises `WebSocketClosed`."""
        async with self._sending:
            if self._closed:
                raise WebSocketClosed(1006, "this side has closed it already")
            if self._inflow.ending is not None:
                raise self._inflow.ending
            await self.say({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye, once, also to whoever waits for a message here; never raises."""
        if not self._closed:
            self._closed = True
            is_open = self._inflow.ending is None
            self._inflow.end(WebSocketClosed(code, reason))
            if is_open:
                await close(code, reason, self.say)
