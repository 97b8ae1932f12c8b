"""The cases: which processes each one consists of, and their life from start to end.

Every process is ended with its stack, on errors and on Ctrl-C too, and every wait has a deadline. Nothing here
knows how load is made or what is read from it.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from natsweb.embedded import embedded_server

__all__ = [
    "ANSWER",
    "APPS",
    "CASES",
    "NATS_SERVER",
    "ORDERS",
    "PATH",
    "ROOT",
    "Case",
    "Failed",
    "Stack",
    "clean_environment",
    "process",
    "running",
    "running_case",
    "tail",
]

ROOT = Path(__file__).parent.parent.parent
APPS = Path(__file__).parent / "apps"
ORDERS = ROOT / "examples" / "orders"

PATH = "/orders/42"
ANSWER = b'{"item":"towel","quantity":1,"id":42,"status":"paid"}'
NATS_SERVER = "nats-server"

_READY_TIMEOUT = 20.0
_END_TIMEOUT = 5.0
_PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """A case did not start, or did not answer as it should."""


class Case(NamedTuple):
    """What is measured: the arguments that Python gets for each part, and whether a nats-server is one.

    An `extra` case runs only if it is named.
    """

    about: str
    parts: dict[str, tuple[str, ...]]
    nats: bool = True
    extra: bool = False


class Stack(NamedTuple):
    """A case that runs: where it answers, and the process id of each part."""

    name: str
    url: str
    pids: dict[str, int]


GATEWAY = ("-m", "natsweb", "gateway", "--port", "{port}")
UVICORN = ("-m", "uvicorn", "--port", "{port}", "--loop", "uvloop", "--http", "httptools", "--ws", "none")
QUIET = ("--no-access-log", "--no-proxy-headers", "--no-server-header", "--log-level", "warning")

CASES = {
    "natsweb": Case(
        "`natsweb gateway` and `natsweb run examples/orders/app.py`",
        {"service": ("-m", "natsweb", "run", str(ORDERS / "app.py")), "gateway": GATEWAY},
    ),
    "natsweb-1000": Case(
        "the same with a service of 1,000 routes",
        {"service": ("-m", "natsweb", "run", str(APPS / "thousand.py")), "gateway": GATEWAY},
    ),
    "natsweb-unnamed": Case(
        "natsweb with `--no-discovery`",
        {"service": ("-m", "natsweb", "run", str(ORDERS / "app.py")), "gateway": (*GATEWAY, "--no-discovery")},
        extra=True,
    ),
    "fastapi": Case(
        "FastAPI on uvicorn, one process, no NATS",
        {"app": (*UVICORN, *QUIET, "direct:app")},
        nats=False,
    ),
    "naive": Case(
        "an ASGI app that awaits `nc.request`, and a service on `nc.subscribe(cb=)`",
        {"service": (str(APPS / "replier.py"),), "gateway": (*UVICORN, *QUIET, "bridge:app")},
    ),
}


@contextlib.asynccontextmanager
async def running(name: str) -> AsyncIterator[Stack]:
    """Run the processes of one of `CASES` while the context lasts; it answers correctly when the context begins."""
    async with running_case(name, CASES[name], PATH, ANSWER) as stack:
        yield stack


@contextlib.asynccontextmanager
async def running_case(name: str, case: Case, path: str, right: bytes) -> AsyncIterator[Stack]:
    """Run the processes of a case; when the context begins, a GET of `path` has got the right answer."""
    port, pids = _free_port(), dict[str, int]()
    environment = clean_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(APPS), str(ORDERS), str(ROOT)])
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natsweb-bench-")))
        if case.nats:
            server = embedded_server(arguments=("--pid", str(folder / "pid")))
            environment["NATS_URL"] = await stack.enter_async_context(server)
            pids[NATS_SERVER] = int((folder / "pid").read_text())
        started = dict[Path, asyncio.subprocess.Process]()
        for part, arguments in case.parts.items():
            command = [argument.format(port=port) for argument in arguments]
            log = folder / f"{part}.log"
            started[log] = await stack.enter_async_context(process(command, environment, log))
            pids[part] = started[log].pid
        url = f"http://127.0.0.1:{port}{path}"
        await _ready(name, url, right, started)
        yield Stack(name, url, pids)


def clean_environment() -> dict[str, str]:
    """Return the environment without what changes Python or where NATS is."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("NATS", "PYTHON"))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM should the harness be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.asynccontextmanager
async def process(
    command: list[str], environment: dict[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python with these arguments while the context lasts; what it says goes to `log`."""
    with log.open("wb") as output:
        # In a session of its own: a Ctrl-C at the terminal is for the harness, which then ends what it started.
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield started
    finally:
        await _end(started)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END_TIMEOUT)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ready(name: str, url: str, right: bytes, started: dict[Path, asyncio.subprocess.Process]) -> None:
    """Wait until the case gives the one right answer."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _READY_TIMEOUT
    answer = b""
    while answer != right:
        for log, process in started.items():
            if process.returncode is not None:
                raise Failed(f"{name}: the {log.stem} has ended:\n{tail(log)}")
        if loop.time() > give_up:
            logs = "\n".join(f"{log.stem}: {tail(log)}" for log in started)
            raise Failed(f"{name}: no right answer in {_READY_TIMEOUT:g} s, the last was {answer!r}\n{logs}")
        answer = await asyncio.to_thread(_get, url)
        await asyncio.sleep(0.02)


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        return error.read()
    except OSError as error:
        return str(error).encode()


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
