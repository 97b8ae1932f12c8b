"""The processes of a case: a nats-server on a port of its own, services, gateways.

Each is started as a user starts it, says when it is ready, and can be stopped, killed and started again. When
the stage closes, nothing of it is left. It knows command lines and signals, and nothing of what is measured.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

from natsweb.embedded import find_binary

from .ledger import Entry, read_book

__all__ = ["Process", "Stage", "free_port"]

_START = 30.0
_STOP = 30.0


class Process:
    """One process: what it has said, whether it is ready, how it ended; `app` is the service that it runs."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, ready: str) -> None:
        self.name = name
        self.app = ""
        self.facts: dict[str, str] = {}
        self.output: list[str] = []
        self._process = process
        self._ready_word = ready
        self._ready = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    def __repr__(self) -> str:
        state = "running" if self.is_running else f"ended with {self._process.returncode}"
        return f"<Process {self.name} {self.pid}: {state}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def _read(self) -> None:
        assert self._process.stderr is not None
        async for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            self.output.append(line)
            if self._ready_word in line:
                if line.startswith("{"):
                    self.facts = json.loads(line)
                self._ready.set()

    async def ready(self) -> "Process":
        """Wait until it serves; raises `RuntimeError` with its last words if it does not."""
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait([waiting, self._reader], timeout=_START, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not self._ready.is_set():
            raise RuntimeError(f"{self.name} did not start:\n" + "\n".join(self.output[-20:]))
        return self

    async def stop(self) -> int:
        """Ask it to stop with SIGTERM and return its exit code; one that does not end is killed."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> int:
        """End it with SIGKILL and return its exit code."""
        return await self._end(signal.SIGKILL)

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def pause(self) -> None:
        """Let it do nothing, as a handler that blocks the event loop would, until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def _end(self, number: signal.Signals) -> int:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        try:
            code = await asyncio.wait_for(self._process.wait(), _STOP)
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        await self._reader
        return code


class Stage:
    """Where one case plays: starts processes that share a nats-server and one book, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._book = folder / "book"
        self._port = free_port()
        self._urls = [f"nats://127.0.0.1:{self._port}"]
        self._ports: list[tuple[int, int]] = []
        self._processes: list[Process] = []

    def __repr__(self) -> str:
        return f"<Stage {[process for process in self._processes if process.is_running]}>"

    async def __aenter__(self) -> "Stage":
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.is_running:
                await process.kill()

    @property
    def output(self) -> list[str]:
        """Everything that the processes have said, each line with its process."""
        return [f"{one.name} {one.pid}: {line}" for one in self._processes for line in one.output]

    async def nats(self, *, config: str = "") -> Process:
        """Start the nats-server, always on the same port; `config` is more of its configuration."""
        return await self._nats(self._port, config)

    async def _nats(self, port: int, config: str) -> Process:
        file = self._folder / f"nats-{port}.conf"
        file.write_text(config)
        command = [find_binary(), "-c", str(file), "-a", "127.0.0.1", "-p", str(port)]
        return await self._start("nats-server", command, "Server is ready")

    async def cluster(self, size: int) -> list[Process]:
        """Start nats-servers that are one; what is started later knows all of them."""
        self._ports = [(free_port(), free_port()) for _ in range(size)]
        self._urls = [f"nats://127.0.0.1:{port}" for port, _ in self._ports]
        return list(await asyncio.gather(*[self.member(number) for number in range(size)]))

    async def member(self, number: int) -> Process:
        """Start one server of the cluster (again). It closes its connections fast when it is told to retire."""
        port, own = self._ports[number]
        routes = ", ".join(f'"nats://127.0.0.1:{other}"' for _, other in self._ports if other != own)
        cluster = f'cluster {{ name: chaos, listen: "127.0.0.1:{own}", routes: [{routes}] }}'
        return await self._nats(port, f'lame_duck_grace_period: "1s"\nlame_duck_duration: "30s"\n{cluster}\n')

    async def service(self, app: str = "svc", *arguments: str) -> Process:
        """Start one more instance of a service; `app` is its name in `service.py`."""
        process = await self._natsweb("run", f"{Path(__file__).with_name('service.py')}:{app}", *arguments)
        process.app = app
        return process

    @property
    def apps(self) -> dict[int, str]:
        """Which service each process is, or was, by process id."""
        return {process.pid: process.app for process in self._processes if process.app}

    async def gateway(self, *arguments: str) -> tuple[Process, str]:
        """Start a gateway, and return it with its URL."""
        gateway = await self._natsweb("gateway", "--port", "0", *arguments)
        return gateway, gateway.facts["http"]

    async def end(self) -> tuple[list[Entry], dict[str, int]]:
        """Stop everything in the order in which nothing is lost; return the book and each exit code that is not 0."""
        codes = {}
        order = ("gateway", "run", "nats-server")
        for process in sorted(self._processes, key=lambda one: order.index(one.name)):
            if process.is_running and (code := await process.stop()):
                codes[f"{process.name} {process.pid}"] = code
        return read_book(self._book), codes

    async def _natsweb(self, command: str, *arguments: str) -> Process:
        line = [sys.executable, "-m", "natsweb", command, *arguments, "--nats", ",".join(self._urls)]
        return await self._start(command, line, '"event": "ready"')

    async def _start(self, name: str, command: list[str], ready: str) -> Process:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("NATS")}
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self._folder,
            env={**clean, "XDG_CONFIG_HOME": str(self._folder), "CHAOS_BOOK": str(self._book)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        started = Process(name, process, ready)
        self._processes.append(started)
        return await started.ready()


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
