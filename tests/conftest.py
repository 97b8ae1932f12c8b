"""What all tests share: a real nats-server, a bus on it, services served over HTTP, and the `needs` marker."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest

from natsweb.embedded import embedded_server
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus import NatsBus, connect
from natsweb.service import Service
from natsweb.settings import Limits, Nats
from natsweb.worker import Worker

#: Waits until a condition holds that nothing announces.
Until = Callable[[Callable[[], object]], Awaitable[None]]

#: Starts a service behind a gateway behind a socket, and gives the base URL.
Serve = Callable[..., Awaitable[str]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose tool is missing, by name; with NATSWEB_REQUIRE=all, fail it."""
    for tool in [tool for mark in item.iter_markers("needs") for tool in mark.args]:
        if shutil.which(tool) is None:
            if os.environ.get("NATSWEB_REQUIRE") == "all":
                pytest.fail(f"needs {tool}", pytrace=False)
            pytest.skip(f"needs {tool}")


@pytest.fixture(scope="session")
def nats_url() -> Iterator[str]:
    """Give the URL of a real nats-server that lives as long as the session, in a loop of its own."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        server = embedded_server()
        yield runner.run(server.__aenter__())
        runner.run(server.__aexit__(None, None, None))


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[NatsBus]:
    """Give a connection to the server."""
    connected = await connect(Nats(urls=(nats_url,)))
    yield connected
    await connected.close()


@pytest.fixture
def until() -> Until:
    """Give a function that waits until a condition holds, 10 seconds at most: for what no event announces."""

    async def wait(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)

    return wait


class Peer:
    """A bare NATS client on a socket, which says whatever bytes it is told to say."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, url: str) -> "Peer":
        """Connect to a server."""
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n')
        return cls(reader, writer)

    async def publish(
        self, subject: bytes, payload: bytes = b"", *, reply: bytes = b"", header: bytes | None = None
    ) -> None:
        """Send one message, and wait until the server has it."""
        head, block = (b"PUB", b"") if header is None else (b"HPUB", header)
        sizes = [b"%d" % len(block)] * (header is not None) + [b"%d" % (len(block) + len(payload))]
        line = b" ".join([head, subject, *([reply] if reply else []), *sizes])
        self._writer.write(line + b"\r\n" + block + payload + b"\r\nPING\r\n")
        async with asyncio.timeout(10):
            while (said := await self._reader.readline()) != b"PONG\r\n":
                assert said, "the server has closed the connection"
                assert not said.startswith(b"-ERR"), said

    async def close(self) -> None:
        """Close the socket."""
        self._writer.close()
        await self._writer.wait_closed()


@pytest.fixture
async def peer(nats_url: str) -> AsyncIterator[Peer]:
    """Give a bare NATS client on the server."""
    connected = await Peer.connect(nats_url)
    yield connected
    await connected.close()


@pytest.fixture
async def serve(nats_url: str) -> AsyncIterator[Serve]:
    """Give a function that starts Worker, Gateway and Front for a service, each with a connection of its own.

    What it has started stops in the reverse order when the test ends.
    """
    nats = Nats(urls=(nats_url,))
    async with AsyncExitStack() as stack:

        async def start(
            service: Service,
            *,
            root: str | None = None,
            concurrency: int = 100,
            timeout: float = 10.0,
            limits: Limits | None = None,
        ) -> str:
            root = root or service.root
            bus = await connect(nats)
            stack.push_async_callback(bus.close)
            stack.callback(service.close)
            worker = Worker(bus, service, root=root, concurrency=concurrency)
            await worker.start()
            stack.push_async_callback(worker.stop, 1.0)
            gateway = await stack.enter_async_context(Gateway(root, nats=nats, timeout=timeout, limits=limits))
            front = Front(gateway, port=0, grace=1.0)
            await front.start()
            stack.push_async_callback(front.stop)
            return front.url

        yield start
