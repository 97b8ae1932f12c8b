"""A process from start to exit: event loop, signals, exit codes, and what every serving command shares.

The first SIGTERM or SIGINT asks for a clean stop, the second ends the process now. The loop is uvloop where it
is installed.
"""

import asyncio
import contextlib
import gc
import logging
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer

from natsweb.errors import SettingsError
from natsweb.settings import Nats, find_nats

__all__ = [
    "AppDirOption",
    "ContextOption",
    "GraceOption",
    "JsonOption",
    "MountOption",
    "NameOption",
    "NatsOption",
    "ReplyPrefixOption",
    "Stop",
    "VerboseOption",
    "WaitOption",
    "WireOption",
    "connected",
    "connection_name",
    "finish",
    "nats_settings",
    "origin_wire",
    "reply_prefixes",
    "run_until_done",
]

T = TypeVar("T")

NatsOption = Annotated[
    str | None, typer.Option("--nats", metavar="URL", help="NATS server, or several with commas [env: NATS_URL]")
]
ContextOption = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="Context of the nats command line [env: NATS_CONTEXT]")
]
WaitOption = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Keep trying to reach NATS this long.")]
GraceOption = Annotated[
    float, typer.Option("--grace", metavar="SECONDS", help="Time for requests under way when stopping.")
]
MountOption = Annotated[
    str | None, typer.Option("--mount", metavar="/PATH", help="Where an ASGI application is served; / is the default.")
]
ReplyPrefixOption = Annotated[
    list[str] | None,
    typer.Option("--reply-prefix", metavar="PREFIX", help="Inbox prefix of processes that have their own."),
]
WireOption = Annotated[
    str,
    typer.Option("--wire", metavar="natsweb|nats-proxy", help="Format of messages; nats-proxy is for moving house."),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the service that an ASGI application becomes.")
]
AppDirOption = Annotated[str, typer.Option("--app-dir", metavar="DIR", help="Folder to import the app from.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")]


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextlib.asynccontextmanager
async def connected(url: str | None, context: str | None, name: str) -> AsyncIterator[Any]:
    """Give a connection to NATS, as flags, environment and context files say; raises `NatsUnreachable`."""
    from natsweb.natsbus import connect

    bus = await connect(nats_settings(url, context), name=connection_name(name))
    try:
        yield bus
    finally:
        await bus.close()


def nats_settings(url: str | None, context: str | None) -> Nats:
    """Return the NATS settings that flags, environment and context files give."""
    return find_nats(url=url, context=context)


def reply_prefixes(nats: Nats, more: list[str]) -> tuple[str, ...]:
    """Return where messages to others may go: everybody's inboxes, those of our own kind, and what a flag adds."""
    from natsweb.subjects import REPLY_PREFIXES

    return (*REPLY_PREFIXES, *(f"{prefix.rstrip('.')}." for prefix in (nats.inbox_prefix, *more)))


def origin_wire(wire: str) -> Any:
    """Return the origin's format if `wire` names it, None for natsweb's own."""
    if wire == "natsweb":
        return None
    if wire != "nats-proxy":
        raise SettingsError(f"--wire {wire} is neither natsweb nor nats-proxy", fix="--wire nats-proxy")
    from natsweb.proxy_wire import ProxyWire

    return ProxyWire()


def connection_name(name: str) -> str:
    """Return what the NATS server shows for a connection of this process."""
    return f"natsweb/{name}@{platform.node()}#{os.getpid()}"


_ECHO = 0.2  # seconds


class Stop:
    """Waits for the signal to stop; a second one ends the process at once.

    What comes close behind the first is no second one: some wrappers (coreutils' `timeout`) deliver a signal twice.
    """

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._asked_at = -math.inf
        self._children: set[int] = set()

    def __repr__(self) -> str:
        return f"<Stop: {'asked' if self._asked.is_set() else 'not asked'}>"

    def install(self) -> None:
        """Take over SIGTERM and SIGINT; SIGHUP is ignored."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self.ask, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda received, _: loop.call_soon_threadsafe(self.ask, received))
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def owns(self, pid: int) -> None:
        """Kill the process `pid` as well when this one has to end at once."""
        self._children.add(pid)

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Ask for a clean stop; asked twice, exit with 128 + the signal's number now."""
        now = time.monotonic()
        if self._asked.is_set() and now - self._asked_at < _ECHO:
            return
        if self._asked.is_set():
            for pid in self._children:
                with contextlib.suppress(OSError):
                    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            _exit_now(128 + number)
        self._asked_at = now
        self._asked.set()

    async def wait(self) -> None:
        """Wait until somebody asks."""
        await self._asked.wait()

    async def before(self, work: Awaitable[T]) -> T | None:
        """Return what `work` gives, or None if a stop was asked for first; then `work` is cancelled."""
        task = asyncio.ensure_future(work)
        asked = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait([task, asked], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return None
        return task.result()


def run_until_done(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` in a fresh event loop and return what it returns: of most commands, the exit code."""
    try:
        import uvloop  # not on Windows
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    # What import and declaration have made stays for good; a server's requests leave few cycles behind.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


def finish(code: int) -> None:
    """Exit with `code`, even if a handler's thread never ends."""
    for thread in threading.enumerate():
        if thread.name.startswith("natsweb-"):
            thread.join(0.5)
            if thread.is_alive():
                logging.getLogger("natsweb").warning("a handler's thread does not end; leaving it behind")
                _exit_now(code)
    if code:
        raise typer.Exit(code)


def _exit_now(code: int) -> None:
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
