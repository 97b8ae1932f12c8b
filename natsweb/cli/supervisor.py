"""The service process of `natsweb dev`: started, announced, stopped, started again when a file changes."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

__all__ = ["Child", "watch"]

_GRACE = 5.0


class Child:
    """A `natsweb run` process that tells over NATS when it serves, and ends when this process does."""

    def __init__(
        self,
        bus: Any,
        inbox_prefix: str,
        arguments: Sequence[str],
        *,
        environ: Mapping[str, str],
        on_start: Callable[[int], None],
    ) -> None:
        self._on_start = on_start
        self._bus = bus
        self._subject = f"{inbox_prefix}.{os.urandom(16).hex()}"
        self._arguments = [*arguments, "--announce", self._subject, "--grace", str(_GRACE)]
        self._environ = dict(environ)
        self._process: asyncio.subprocess.Process | None = None
        self._announced: asyncio.Future[list[dict[str, Any]]] | None = None

    def __repr__(self) -> str:
        return f"<Child {'running' if self.is_running else 'not running'}>"

    @property
    def is_running(self) -> bool:
        """Whether there is a process that has not ended."""
        return self._process is not None and self._process.returncode is None

    async def listen(self) -> None:
        """Subscribe to the announcements of all processes to come."""
        await self._bus.subscribe(self._subject, self._receive)
        await self._bus.flush()

    def _receive(self, message: Any) -> None:
        if self._announced is not None and not self._announced.done():
            self._announced.set_result(json.loads(message.payload))

    async def start(self) -> list[dict[str, Any]] | None:
        """Start the process; return what it announces, or None if it ended instead."""
        self._announced = asyncio.get_running_loop().create_future()
        # stdin is a pipe whose other end this process holds: when it dies, however, the service sees the end.
        # A session of its own keeps a Ctrl-C at the terminal for us, who then stop things in order.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "natsweb",
            "run",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            env=self._environ,
            start_new_session=True,
        )
        self._on_start(self._process.pid)
        ended = asyncio.ensure_future(self._process.wait())
        waiting: set[asyncio.Future[Any]] = {self._announced, ended}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        return self._announced.result() if self._announced.done() else None

    async def ended(self) -> int:
        """Wait for the end of the process and return its exit code."""
        if self._process is None:
            return 0
        return await self._process.wait()

    async def stop(self) -> None:
        """Stop the process; kill it when it takes longer than its grace."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _GRACE + 2)
        except TimeoutError:
            process.kill()
            await process.wait()


async def watch(
    child: Child,
    folders: Sequence[Path],
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_stop: Callable[[], None] = lambda: None,
    on_start: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    on_failure: Callable[[], None] = lambda: None,
) -> None:
    """Start the service again at every change of a Python file in `folders`, for ever.

    `on_ready` is called when no change is missed any more, `on_stop` before the service goes, `on_start` with its
    announcement, and `on_failure` when it has ended by itself or has not come up: it is not there until the next
    change. What is still starting at a change is given up for what is newer.
    """
    changes = _changes(folders)
    change = asyncio.ensure_future(anext(changes))
    ended: asyncio.Future[int] | None = asyncio.ensure_future(child.ended()) if child.is_running else None
    starting: asyncio.Future[list[dict[str, Any]] | None] | None = None
    try:
        await asyncio.sleep(0)  # the first step of `change` is to look at the folders
        on_ready()
        while True:
            await asyncio.wait([one for one in (change, ended) if one], return_when=asyncio.FIRST_COMPLETED)
            if not change.done() and ended is not None:
                on_failure()
                _say(f"the service ended with exit code {ended.result()}; waiting for a change")
                ended = None
                continue
            if ended is not None:
                ended.cancel()
            _say(f"{change.result()} changed, starting the service again")
            began, ended = time.monotonic(), None
            on_stop()
            change = asyncio.ensure_future(anext(changes))
            await child.stop()
            if change.done():  # what starts now has it
                change.result()
                change = asyncio.ensure_future(anext(changes))
            starting = asyncio.ensure_future(child.start())
            await asyncio.wait([change, starting], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():  # what starts has not: it is stopped before it serves
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
            elif (announced := starting.result()) is not None:
                on_start(announced)
                _say(f"serving again after {time.monotonic() - began:.1f} s")
                ended = asyncio.ensure_future(child.ended())
            else:
                on_failure()
                _say("the service did not start; waiting for a change")
    finally:
        for task in (change, ended, starting):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def _changes(folders: Sequence[Path]) -> AsyncIterator[str]:
    """Yield the name of a changed file for each batch of changes; never, without folders."""
    if not folders:
        await asyncio.Event().wait()
    from watchfiles import PythonFilter, awatch

    async for batch in awatch(*folders, watch_filter=PythonFilter(), debounce=200, step=30):
        yield Path(sorted(path for _, path in batch)[0]).name


def _say(text: str) -> None:
    typer.echo(typer.style("dev: ", fg="cyan") + text, err=True)
