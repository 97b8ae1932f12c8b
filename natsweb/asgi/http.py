"""An HTTP request as an ASGI app sees it: `http.request` and `http.disconnect` in, `http.response.*` out.

The body comes in as the app asks for it and goes out as it is taken. Messages of extensions that were not offered
are ignored. Knows messages; it knows no scopes.
"""

from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Scope

from natsweb.asgi.conversation import Conversation, is_farewell
from natsweb.asgi.handoff import ClientGone, Intake
from natsweb.errors import HTTPError
from natsweb.messages import Call, Request

__all__ = ["Http"]

_DISCONNECT = "http.disconnect"


class Http(Conversation):
    """A run of an app for one HTTP request."""

    def __init__(
        self, app: ASGIApp, scope: Scope, call: Call | Request, running: set[Conversation], *, grace: float
    ) -> None:
        super().__init__(app, scope, call, running, grace=grace)
        self._is_read = False
        self._lost: HTTPError | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        if call.more:
            self._chunks = call.chunks() if isinstance(call, Call) else call.stream()
            self._intake = Intake(self._next, self.answer.over)

    async def receive(self) -> Message:
        """Return the next part of the body, then wait for the disconnect."""
        if not self._is_read and not self.answer.over.done():
            if self._chunks is None:
                self._is_read = True
                return _part(self._call.body, more=False)
            try:
                chunk = await self._intake.next()
            except ClientGone:
                return {"type": _DISCONNECT}
            except HTTPError as error:
                self._is_read, self._lost = True, error
            else:
                self._is_read = chunk is None
                return _part(chunk or b"", more=chunk is not None)
        if self._lost is None and not self.answer.over.done():  # an app may look without waiting
            await self.answer.until_over()
        return {"type": _DISCONNECT}

    async def send(self, message: Message) -> None:
        """Take a part of the answer; raises `ClientGone`, or `RuntimeError` for what makes no answer."""
        if self.answer.is_cut:
            raise ClientGone
        match message["type"]:
            case "http.response.start":
                self.answer.start(message)
            case "http.response.body":
                await self.answer.add(message)
            case str(kind) if kind.startswith("http.response."):
                pass
            case kind:
                raise RuntimeError(f"the ASGI app has sent {kind!r}, which is no part of an HTTP response")

    def conclude(self, error: BaseException | None) -> None:
        """Say what the end of the app means: it may just have noticed that the body was cut off."""
        is_lost = self._lost is not None and not self.answer.is_whole and (error is None or is_farewell(error))
        super().conclude(self._lost if is_lost else error)

    async def close(self) -> None:
        """Let go of the rest of the body."""
        if self._chunks is not None:
            await self._intake.close(getattr(self._chunks, "aclose", None))

    async def _next(self) -> bytes | None:
        return None if self._chunks is None else await anext(self._chunks, None)


def _part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}
