"""Requests that filters look at, on their way through the ASGI door: a `Request` in, a `Response` out.

Small bodies are there when a filter sees the request, large ones come as they are read. Whoever leaves has the request
cancelled. Knows ASGI, and the filters by their one method.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from natsweb.errors import HTTPError
from natsweb.exchange import address
from natsweb.gateway.filters import Filters
from natsweb.gateway.http import AsgiUpload, refuse, send_response
from natsweb.gateway.scopes import Receive, Scope, Send, has_body, length_of, path_below_mount
from natsweb.headers import Headers
from natsweb.messages import Call, Pieces, Request, Response, quote_query
from natsweb.middleware import Handler
from natsweb.subjects import path_tokens
from natsweb.uploads import UploadChannel
from natsweb.wire import encode_fields

__all__ = ["carry_seen", "to_request"]

_AHEAD = 1024 * 1024


def to_request(scope: Scope, *, upgrade: bool = False) -> Call:
    """Return the request of a scope; raises `HTTPError` for one that can be none."""
    client = scope.get("client")
    headers = Headers.from_block(encode_fields(list(scope["headers"])))
    length = length_of(scope)
    if length:
        headers = headers + {"content-length": str(length)}
    return Call(
        "GET" if upgrade else scope["method"],
        path_tokens(path_below_mount(scope).decode("latin-1")),
        quote_query(scope.get("query_string", b"")),
        headers,
        client=address(client[0], client[1]) if client else None,
        scheme=scope.get("scheme", "http"),
        more=not upgrade and has_body(scope),
        upgrade=upgrade,
    )


async def carry_seen(filters: Filters, endpoint: Handler, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request through the filters; raises `CutOff`."""
    upload = AsgiUpload(receive)
    try:
        call = to_request(scope)
        call.channel = UploadChannel(upload)
        length = length_of(scope)
        if not call.more or (length is not None and length <= _AHEAD):
            call.body = await upload.read_ahead(_AHEAD, enough=_AHEAD + 1)
            call.more = False
        request = call.request()
    except HTTPError as error:
        await refuse(error, upload, scope, send)
        return
    if not upload.gone:
        await _unless_gone(_answer(filters, endpoint, request, upload, send), upload)


async def _answer(filters: Filters, endpoint: Handler, request: Request, upload: AsgiUpload, send: Send) -> None:
    opened: list[Pieces] = []

    async def inner(request: Request) -> Response:
        response = await endpoint(request)
        if response.pieces is not None:
            opened.append(response.pieces)
        return response

    try:
        response = await filters.answer(request, inner)
        if upload.more:  # nobody has wanted the rest of the body
            response = response.with_headers({"connection": "close"})
        await send_response(response, request.method, send)
    finally:
        for pieces in opened:  # also of an answer that a filter has put another in place of
            await pieces.close()


async def _unless_gone(answer: Coroutine[Any, Any, None], upload: AsgiUpload) -> None:
    """Do the work, and cancel it when the client leaves before it is done."""
    answering = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(upload))
    try:
        await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and leaving.exception() is not None:
            await asyncio.wait([answering])
        if answering.done():
            answering.result()
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(upload: AsgiUpload) -> None:
    await upload.over.wait()
    await upload.left()
