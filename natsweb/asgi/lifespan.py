"""The lifespan of an ASGI app (lifespan specification 2.0): started before its first request, ended after its last.

An app that does not know lifespans is fine: it raises, or returns, before it has said anything. Runs in a task of its
own, and both ends have a deadline. Knows apps; it knows no requests.
"""

import asyncio
import logging
from typing import Any

from starlette.types import ASGIApp, Message

from natsweb.errors import StartError

__all__ = ["AppLifespan"]

logger = logging.getLogger("natsweb.asgi")

_ENDING_TIME = 1.0  # for an app that has been cancelled

_SAID = ("startup.complete", "startup.failed", "shutdown.complete", "shutdown.failed")


class AppLifespan:
    """The lifespan of `app`; `state` is what it leaves there for the requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._said: dict[str, asyncio.Event] = {}
        self._failures: dict[str, str] = {}
        self._was_told = False

    def __repr__(self) -> str:
        return f"<AppLifespan: {'running' if self._task is not None and not self._task.done() else 'not running'}>"

    async def start(self, timeout: float) -> None:
        """Start the app; raises `StartError` if it cannot, or not within `timeout` seconds."""
        self._said = {step: asyncio.Event() for step in ("startup", "shutdown")}
        self._task = asyncio.create_task(self._run(), name="asgi lifespan")
        try:
            async with asyncio.timeout(timeout):
                await self._said["startup"].wait()
        except TimeoutError:
            await self._give_up()
            raise StartError(
                f"the ASGI app did not start within {timeout:g} s",
                fix="see what its lifespan, or startup handlers, wait for",
            ) from None
        except asyncio.CancelledError:
            await self._give_up()
            raise
        if "startup" in self._failures:
            await self._give_up()
            raise _start_error(self._failures["startup"])

    async def stop(self, timeout: float) -> None:
        """End the app; what goes wrong is logged, also if that takes longer than `timeout` seconds."""
        if self._task is None:
            return
        self._ending.set()
        try:
            async with asyncio.timeout(timeout):
                await self._said["shutdown"].wait()
        except TimeoutError:
            logger.error("the ASGI app did not stop within %g s, and is cancelled", timeout)
        finally:
            await self._give_up()
        if "shutdown" in self._failures:
            logger.error("the ASGI app failed while it was stopping: %s", self._failures["shutdown"])

    async def _give_up(self) -> None:
        """Let the task end, which has nothing left to do."""
        task, self._task = self._task, None
        if task is None:
            return
        has_said_so = self._said["shutdown"].is_set() or bool(self._failures)
        try:
            if has_said_so:
                await asyncio.wait([task], timeout=_ENDING_TIME)
        finally:
            task.cancel()
        await asyncio.wait([task], timeout=_ENDING_TIME)

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # a task that raises SystemExit would stop the event loop
            self._note(error)
        finally:
            for said in self._said.values():
                said.set()

    def _note(self, error: BaseException) -> None:
        """Log the end of an app that has raised, unless it has said so itself."""
        if isinstance(error, asyncio.CancelledError) or self._failures:
            return
        if not self._said["startup"].is_set():
            logger.info("the ASGI app knows no lifespan: it raised %s: %s", type(error).__name__, error)
        else:
            logger.error("the lifespan of the ASGI app failed", exc_info=error)

    async def _receive(self) -> Message:
        if not self._was_told:
            self._was_told = True
            return {"type": "lifespan.startup"}
        await self._ending.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = str(message["type"]).removeprefix("lifespan.")
        if kind not in _SAID:
            raise RuntimeError(f"the ASGI app has sent {message['type']!r}, which is no part of a lifespan")
        step, _, outcome = kind.partition(".")
        if outcome == "failed":
            self._failures[step] = message.get("message") or "it does not say why"
        self._said[step].set()


def _start_error(message: str) -> StartError:
    lines = [line for line in message.splitlines() if line.strip()]
    if len(lines) > 1:
        logger.error("the ASGI app could not start:\n%s", message)
    return StartError(
        f"the ASGI app could not start: {lines[-1].strip() if lines else message}",
        where="its lifespan, or a startup handler",
        fix="mend what the message names; a traceback stands in the log if the app gave one",
    )
