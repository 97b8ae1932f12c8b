"""What a server says, cut into pieces anyhow on its way: a real nats-server behind a relay that cuts."""

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import pytest

from natsweb.natsbus import connect
from natsweb.settings import Nats


class Relay:
    """Passes bytes between a client and a server, from the server in pieces of random sizes."""

    def __init__(self, host, port, largest):
        self._host, self._port, self._largest = host, port, largest
        self._random = random.Random(largest)
        self._tasks = set()
        self._writers = set()
        self.url = ""

    @asynccontextmanager
    async def running(self):
        """Listen while the context lasts."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self):
        """End all connections."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader, writer):
        there, back = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, back}
        self._tasks.add(asyncio.create_task(self._pass_on(reader, back, 65536)))
        self._tasks.add(asyncio.create_task(self._pass_on(there, writer, self._largest)))

    async def _pass_on(self, reader, writer, largest):
        while data := await reader.read(65536):
            while data:
                size = self._random.randint(1, largest)
                writer.write(data[:size])
                data = data[size:]
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()


@pytest.fixture(params=[3, 50, 4000])
async def relay(request, nats_url):
    """Give a relay to the server, with pieces of at most so many bytes."""
    url = urlsplit(nats_url)
    async with Relay(url.hostname, url.port, request.param).running() as running:
        yield running


@pytest.fixture
async def ends(relay, nats_url):
    """Give a bus that sends straight to the server, one that receives through the relay, and a subject of their own."""
    async with AsyncExitStack() as stack:
        sender = await connect(Nats(urls=(nats_url,)))
        stack.push_async_callback(sender.close)
        receiver = await connect(Nats(urls=(relay.url,)))
        stack.push_async_callback(receiver.close)
        yield sender, receiver, f"pieces.{sender.new_inbox()}"


PAYLOADS = [b"", b"a", b"MSG a 1 5\r\nhello\r\n", b"PING\r\n", b"\r\n", b"+OK\r\n" * 30, bytes(range(256)) * 5]
HEADERS = [None, b"NATS/1.0\r\n\r\n", b"NATS/1.0\r\n12: 5\r\nPING: 1\r\n\r\n"]


async def test_nothing_is_lost_or_changed_between_pieces(ends):
    """Messages of ours, of nats-py's and what the server itself says come in turns, each whole and in its order."""
    sender, receiver, subject = ends
    ours, theirs, over = [], [], asyncio.Event()
    count = 150

    async def take(message):
        theirs.append(message.data)

    def receive(message):
        if message.payload == b"over":
            over.set()
        else:
            ours.append((message.header, message.payload))

    await receiver.subscribe(f"{subject}.ours", receive)
    await receiver._client.subscribe(f"{subject}.theirs", cb=take)
    await receiver.flush()
    expected = [(HEADERS[number % len(HEADERS)], PAYLOADS[number % len(PAYLOADS)]) for number in range(count)]
    for number, (header, payload) in enumerate(expected):
        sender.publish(f"{subject}.ours", payload, header=header)
        if number % 5 == 0:
            sender.publish(f"{subject}.theirs", payload)
            await receiver.flush(20)
    sender.publish(f"{subject}.ours", b"over")
    async with asyncio.timeout(20):
        await over.wait()
    await receiver.flush(20)
    assert ours == expected
    assert theirs == [payload for _, payload in expected[::5]]


async def test_messages_do_not_wake_the_reading_task(relay, ends, until, monkeypatch):
    """What comes for us alone is received where it comes, on the first connection and on the one after it is lost."""
    sender, receiver, subject = ends
    read, got = [], asyncio.Queue()
    parse = receiver._client.frames.parse

    async def noted(data):
        read.append(data)
        await parse(data)

    monkeypatch.setattr(receiver._client.frames, "parse", noted)
    await receiver.subscribe(subject, got.put_nowait)
    for lost in (False, True):
        if lost:
            relay.cut()
            await until(lambda: receiver.reconnected_at > 0)
        del read[:]
        await receiver.flush(20)
        for number in range(50):
            sender.publish(subject, b"%d" % number)
        async with asyncio.timeout(20):
            assert [(await got.get()).payload for _ in range(50)] == [b"%d" % number for number in range(50)]
        assert b"".join(read).count(b"MSG") < 25  # what comes just behind a pong does take that way
