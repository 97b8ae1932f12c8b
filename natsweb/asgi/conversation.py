"""One request's run of an ASGI app: a task of its own, what is left of it after the answer, and its end.

An app may go on after its answer (background tasks): that is awaited after the reply. When nobody is there any more
for the answer, the app is told so, has some seconds of grace, and is cancelled. Each run belongs to the set it was
made with until its task has ended. Knows apps and answers; what they say to each other is up to `http`, `websocket`.
"""

import abc
import asyncio
import logging
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Scope
from starlette.websockets import WebSocketDisconnect

from natsweb.asgi.answer import Answer
from natsweb.asgi.handoff import ClientGone
from natsweb.errors import Stopping
from natsweb.messages import After, Call, Request, Response

__all__ = ["Conversation", "is_farewell"]

logger = logging.getLogger("natsweb.asgi")

_FAREWELLS = (ClientGone, ClientDisconnect, WebSocketDisconnect, asyncio.CancelledError)


class Conversation(abc.ABC):
    """A run of `app` for one request; it is in `running` until it has ended.

    `grace` is how many seconds the app has to end after its client has gone.
    """

    def __init__(
        self, app: ASGIApp, scope: Scope, call: Call | Request, running: "set[Conversation]", *, grace: float
    ) -> None:
        self.answer = Answer(is_head=scope.get("method") == "HEAD")
        self.code = 1006
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        self._app = app
        self._scope = scope
        self._call = call
        self._running = running
        self._grace = grace
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._scope.get('method', '')} {self._scope.get('path', '')}>"

    @property
    def has_returned(self) -> bool:
        """Whether the app has not raised, when it has ended."""
        return self._error is None

    @abc.abstractmethod
    async def receive(self) -> Message:
        """Return the next message for the app."""

    @abc.abstractmethod
    async def send(self, message: Message) -> None:
        """Take a message of the app's."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of what the client sends, when the app has ended."""

    async def respond(self, patience: float | None = None) -> Response:
        """Run the app, and return its answer as soon as it is known; raises what it raises before that."""
        self.task = asyncio.create_task(self._run(), name=f"asgi {self._scope.get('path', '')}")
        self._running.add(self)
        self.task.add_done_callback(self._never_ran)
        try:
            response = await self.answer.response(patience, self.leave)
        except BaseException:
            self.leave()
            raise
        owner = self._call if isinstance(self._call, Call) else self._call._call
        if owner is not None and not self.task.done():
            owner.after = _Rest(self, owner.after)
        return response

    def leave(self, code: int = 1006) -> None:
        """Tell the app that nobody takes the rest of its answer, and cancel it after its grace."""
        if self.answer.is_whole or self.answer.is_cut or self.task is None or self.task.done():
            return
        self.code = code
        self.answer.cut()
        self._timer = asyncio.get_running_loop().call_later(self._grace, self.task.cancel)

    def cancel(self) -> None:
        """Cancel the app, whatever it does."""
        if self.task is not None:
            self.task.cancel()

    async def ended(self) -> None:
        """Wait until the app has ended; cancelled, it cancels the app."""
        if self.task is not None:
            try:
                await asyncio.wait([self.task])
            except asyncio.CancelledError:
                self.task.cancel()
                raise

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self.receive, self.send)
        except BaseException as error:  # a task that raises SystemExit would stop the event loop
            self._error = error
        try:
            await self.close()
        finally:
            self._finish()

    def _never_ran(self, task: "asyncio.Task[None]") -> None:
        """Finish what was cancelled before its first step."""
        if self in self._running:
            self._error = asyncio.CancelledError()
            self._finish()

    def _finish(self) -> None:
        self._running.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        error, self._error = self._error, None
        self.conclude(error)

    def conclude(self, error: BaseException | None) -> None:
        """Say what the end of the app means for its answer; what cannot be said to anybody is logged."""
        if self.answer.is_whole or self.answer.is_cut:
            if error is not None and not is_farewell(error):
                logger.error("%r failed after its answer", self, exc_info=error)
                self.on_failure(error)
            error = Stopping("the service is stopping, and has not finished the request")
        elif isinstance(error, asyncio.CancelledError):
            error = RuntimeError("the ASGI app has cancelled itself")
        self.answer.end(error)


class _Rest:
    """What an app still does after its answer; `before` was there before."""

    def __init__(self, conversation: Conversation, before: After | None) -> None:
        self._conversation = conversation
        self._before = before

    async def close(self) -> None:
        try:
            self._conversation.leave()  # what nobody has taken by now, nobody will take
            await self._conversation.ended()
        finally:
            if self._before is not None:
                await self._before.close()


def is_farewell(error: BaseException) -> bool:
    """Tell whether an app's exception only says that its client has gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_farewell, error.exceptions))
    return isinstance(error, _FAREWELLS) or (error.__cause__ is not None and is_farewell(error.__cause__))
