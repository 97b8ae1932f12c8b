"""The ASGI door for WebSockets: the handshake goes to the service, and then messages both ways.

A service may refuse before the upgrade, with an ordinary answer. Whole messages stand at this door, parts of them
travel (docs/wire.md, WebSocket). Knows ASGI and the exchange.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from natsweb.errors import BadReply, HTTPError, WebSocketClosed
from natsweb.exchange import Exchange
from natsweb.flights import Incoming, Opened
from natsweb.gateway.scopes import Receive, Scope, Send
from natsweb.headers import Headers
from natsweb.messages import Response
from natsweb.pipes import SocketPipe
from natsweb.replies import problem
from natsweb.wire import forwarded_fields

__all__ = ["Handshake", "Opening", "carry_socket", "close", "deny"]

logger = logging.getLogger("natsweb.gateway")

# What is never sent as the code of a close frame (RFC 6455 section 7.4.1), and what is said instead.
_UNSENDABLE = {1005: 1000, 1006: 1011, 1015: 1011}
_OF_THE_SERVER = frozenset([b"sec-websocket-protocol", b"sec-websocket-extensions", b"sec-websocket-accept"])


class Handshake:
    """The opening of one WebSocket: asked for, and then open, or refused."""

    def __init__(self) -> None:
        self.opened: Opened | None = None

    async def ask(self, exchange: Exchange, incoming: Incoming) -> Response:
        """Ask the service; an answer that opens the socket is 204 here. Raises what goes wrong on the way."""
        exchange.admit()
        outcome = await exchange.fly(incoming, b"")
        if isinstance(outcome, HTTPError):
            raise outcome
        if not isinstance(outcome, Opened):
            return exchange.to_response(outcome, "GET")
        if outcome.status != 101:
            outcome.flight.drop()
            raise BadReply("the service answers a WebSocket with a stream")
        self.opened = outcome
        return Response.trusted(204, Headers(), b"")

    def close(self) -> None:
        """Let go."""
        if self.opened is not None:
            self.opened.flight.drop()


#: Asks for a WebSocket, with a handshake to do so; returns the answer if it is refused.
Opening: TypeAlias = Callable[[Handshake], Awaitable[Response]]


async def carry_socket(opening: Opening, scope: Scope, receive: Receive, send: Send, *, largest: int) -> None:
    """Serve one WebSocket from its handshake to its end; messages have `largest` bytes at most."""
    await receive()  # websocket.connect
    handshake = Handshake()
    asking = asyncio.ensure_future(opening(handshake))
    leaving = asyncio.ensure_future(receive())  # nothing else can come before the handshake is over
    try:
        waiting: list[asyncio.Future[Any]] = [asking, leaving]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done() and leaving.result()["type"] == "websocket.receive":
            await asyncio.wait([asking])  # it speaks before it is asked in
        if not asking.done():
            return
        try:
            response = asking.result()
        except HTTPError as error:
            response = problem(error)
        if handshake.opened is not None and response.status == 204:
            await _talk(handshake.opened, leaving, receive, send, largest)
        else:
            await deny(response, scope, send)
    finally:
        handshake.close()
        asking.cancel()
        leaving.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)


async def deny(response: Response, scope: Scope, send: Send) -> None:
    """Refuse before the upgrade: with the answer itself where the server can, else by closing."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    headers = [*response.headers.fields, (b"content-length", b"%d" % len(response.body))]
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": response.body})


async def close(code: int, reason: str, send: Send) -> None:
    """Send a goodbye, with a code that can be sent; what went wrong inside is no client's business."""
    code = _UNSENDABLE.get(code, code)
    await send({"type": "websocket.close", "code": code, "reason": reason if code != 1011 else ""})


async def _talk(opened: Opened, first: "asyncio.Future[Any]", receive: Receive, send: Send, largest: int) -> None:
    headers = Headers.from_block(opened.lines)
    pipe = SocketPipe(opened.stream, largest=largest, open=True)
    fields = [(name, value) for name, value in forwarded_fields(headers.fields) if name not in _OF_THE_SERVER]
    subprotocol = headers.get("sec-websocket-protocol")
    await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": fields})
    inwards = asyncio.ensure_future(_pass_in(pipe, first, receive))
    is_said = False
    try:
        is_said = await _pass_out(pipe, inwards, send)
    except OSError:
        pass  # the client has left in the middle of a message (ASGI, HTTP 2.4)
    finally:
        inwards.cancel()
        await asyncio.gather(inwards, return_exceptions=True)
        if is_said:
            opened.flight.close()
        else:  # the service does not know yet
            opened.flight.drop()


async def _pass_in(pipe: SocketPipe, first: "asyncio.Future[Any]", receive: Receive) -> None:
    """Pass on what the client sends, until it leaves."""
    event = await first
    while event["type"] == "websocket.receive":
        text = event.get("text")
        await pipe.send(event["bytes"] if text is None else text)
        event = await receive()
    pipe.say_goodbye(event.get("code", 1005) or 1005, event.get("reason") or "")


async def _pass_out(pipe: SocketPipe, inwards: "asyncio.Future[None]", send: Send) -> bool:
    """Pass on what the service sends, until one of the two says goodbye; False if it was neither."""
    while True:
        message = asyncio.ensure_future(pipe.receive())
        waiting: list[asyncio.Future[Any]] = [message, inwards]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not message.done():
            message.cancel()
            return inwards.exception() is None
        try:
            data = message.result()
        except WebSocketClosed as closed:
            await close(closed.code, closed.reason, send)
            return closed.code != 1006
        await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
