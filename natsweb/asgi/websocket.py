"""A WebSocket as an ASGI app sees it: `websocket.*` messages on one side, a `Socket` on the other.

Until it is accepted the app may refuse it: with `websocket.close`, which is a 403, or with a response of its own
(the extension `websocket.http.response`). An app that returns has closed it. Knows messages; it knows no scopes.
"""

import asyncio
from typing import ClassVar

from starlette.types import ASGIApp, Message, Scope

from natsweb.asgi.conversation import Conversation, is_farewell
from natsweb.asgi.handoff import ClientGone, Intake
from natsweb.errors import HTTPError, WebSocketClosed
from natsweb.headers import Headers
from natsweb.messages import Call, Request, Socket
from natsweb.replies import problem

__all__ = ["WebSocket"]


class WebSocket(Conversation):
    """A run of an app for one WebSocket."""

    #: What the app may send in which state, and who takes it.
    STEPS: ClassVar[dict[tuple[str, str], str]] = {
        ("connecting", "websocket.accept"): "_accept",
        ("connecting", "websocket.close"): "_refuse",
        ("connecting", "websocket.http.response.start"): "_start",
        ("refusing", "websocket.http.response.body"): "_add",
        ("open", "websocket.send"): "_send",
        ("open", "websocket.close"): "_close",
    }

    def __init__(
        self, app: ASGIApp, scope: Scope, call: Call | Request, running: set[Conversation], *, grace: float
    ) -> None:
        super().__init__(app, scope, call, running, grace=grace)
        socket = None if call.channel is None else call.channel.socket
        if socket is None:
            raise TypeError("this request has no WebSocket")
        self._socket: Socket = socket
        self._state = "connecting"
        self._is_told = False
        self._closed: WebSocketClosed | None = None
        self._accepted = asyncio.Event()
        self._intake = Intake(self._next, self.answer.over)

    async def receive(self) -> Message:
        """Return `websocket.connect`, then what the client sends, and `websocket.disconnect` from its end on."""
        if not self._is_told:
            self._is_told = True
            return {"type": "websocket.connect"}
        try:
            if self._closed is None:
                data = await self._intake.next()
                return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}
        except WebSocketClosed as closed:
            self._end(closed)
        except ClientGone:
            pass
        end = self._closed or WebSocketClosed(self.code)
        return {"type": "websocket.disconnect", "code": end.code, "reason": end.reason}

    async def send(self, message: Message) -> None:
        """Take what the app says; raises `ClientGone` after the end, or `RuntimeError` for what has no place there."""
        if self.answer.is_cut or self._state == "closed":
            raise ClientGone
        step = self.STEPS.get((self._state, message["type"]))
        if step is None:
            raise RuntimeError(f"the ASGI app has sent {message['type']!r} to a WebSocket that is {self._state}")
        try:
            await getattr(self, step)(message)
        except WebSocketClosed as closed:
            self._end(closed)
            raise ClientGone from closed

    def conclude(self, error: BaseException | None) -> None:
        """Say what the end of the app means; after the socket's own end it means nothing."""
        if self._accepted.is_set() and (error is None or (self._closed is not None and is_farewell(error))):
            self.answer.start({"status": 204})
            self.answer.finish()
            error = None
        super().conclude(error)

    async def close(self) -> None:
        """Let go of the client's messages; close the socket if the app has just returned."""
        await self._intake.close()
        if self._state == "open" and self.has_returned and not self.answer.is_cut:
            await self._close({})

    async def _next(self) -> str | bytes:
        await self._accepted.wait()
        return await self._socket.receive()

    def _end(self, closed: WebSocketClosed) -> None:
        self._state, self._closed = "closed", self._closed or closed

    async def _accept(self, message: Message) -> None:
        try:
            headers = Headers(message.get("headers") or ())
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"the ASGI app accepts with headers that cannot be sent: {error}") from None
        await self._socket.accept(message.get("subprotocol"), headers)
        self._state = "open"
        self._accepted.set()

    async def _refuse(self, message: Message) -> None:
        response = problem(HTTPError(403, "the WebSocket was refused", reason="refused"))
        self._state = "closed"
        self.answer.start({"status": response.status, "headers": response.headers.fields})
        await self.answer.add({"body": response.body})

    async def _start(self, message: Message) -> None:
        self.answer.start(message)
        self._state = "refusing"

    async def _add(self, message: Message) -> None:
        await self.answer.add(message)

    async def _send(self, message: Message) -> None:
        data = message.get("text")
        if data is None:
            data = message.get("bytes")
        if data is None:
            raise RuntimeError("the ASGI app has sent a websocket.send without text and without bytes")
        await self._socket.send(data if isinstance(data, str) else bytes(data))

    async def _close(self, message: Message) -> None:
        code, reason = message.get("code") or 1000, message.get("reason") or ""
        self._end(WebSocketClosed(code, reason))
        try:
            await self._socket.close(code, reason)
        except WebSocketClosed:
            pass  # the client was faster
