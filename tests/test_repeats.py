"""What may be sent again although it may have been executed: with `retry_idempotent`, and only then."""

import asyncio
from contextlib import AsyncExitStack

import httpx2
import pytest

from natsweb import Service
from natsweb.bus import request
from natsweb.embedded import embedded_server
from natsweb.gateway import Gateway
from natsweb.natsbus import connect
from natsweb.settings import Nats
from natsweb.worker import Worker

ACCEPT = b"NATS/1.0\r\nNw-Status: 102\r\n\r\n"
GONE = b"NATS/1.0\r\nNw-Flow: -\r\n\r\n"
FINE = b"NATS/1.0\r\nx-a: 1\r\n\r\n"
BUSY = b"NATS/1.0\r\nNw-Status: 503\r\nNw-Retry: 1\r\n\r\n"


@pytest.fixture
async def ask(nats_url):
    """Give a function that makes a client of a gateway with some options."""
    async with AsyncExitStack() as stack:

        async def make(**options):
            gateway = await stack.enter_async_context(Gateway("api", **{"nats": nats_url, "timeout": 5.0, **options}))
            transport = httpx2.ASGITransport(gateway)
            return await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://t"))

        yield make


async def dying(bus, *then):
    """Serve `api.dying`: the first request is accepted and then lost, the later ones are answered with `then`."""
    received = []

    def receive(message):
        received.append(message)
        to = message.reply.encode()
        if len(received) == 1:
            control = bus.new_inbox().encode()
            bus.post(to, b"", ACCEPT, control)
            bus.post(to, b"", GONE, control)
        else:
            bus.post(to, b"fine", then[min(len(received) - 1, len(then)) - 1], b"")

    await bus.subscribe("api.dying", receive)
    await bus.flush()
    return received


@pytest.mark.parametrize(
    ("method", "option", "then", "status", "tries"),
    [
        ("GET", True, [FINE], 200, 2),
        ("HEAD", True, [FINE], 200, 2),
        ("PUT", True, [FINE], 200, 2),
        ("DELETE", True, [FINE], 200, 2),
        ("OPTIONS", True, [FINE], 200, 2),
        ("POST", True, [FINE], 502, 1),
        ("PATCH", True, [FINE], 502, 1),
        ("GET", False, [FINE], 502, 1),
        ("GET", True, [BUSY], 502, 3),  # 503 would say that it was not executed
        ("GET", True, [BUSY, FINE], 200, 3),
    ],
)
async def test_what_was_lost(ask, bus, method, option, then, status, tries):
    """A request whose service went away is repeated if that can do no harm, and is never said not to have been done."""
    received = await dying(bus, *then)
    client = await ask(retry_idempotent=option)
    response = await client.request(method, "/dying")
    assert (response.status_code, len(received)) == (status, tries)
    assert len({message.reply for message in received}) == tries


@pytest.mark.parametrize(("option", "status"), [(True, 200), (False, 502)])
async def test_a_lost_connection(ask, tmp_path, option, status):
    """A request that was under way when nats-server went away is repeated once that is back."""
    entered = asyncio.Event()
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        url = await first.enter_async_context(embedded_server())
        port = int(url.rpartition(":")[2])
        bus = await connect(Nats(urls=(url,)))
        stack.push_async_callback(bus.close)
        received = []

        def receive(message):
            received.append(message)
            if len(received) > 1:
                bus.publish(message.reply, b"fine", header=FINE)
            entered.set()

        await bus.subscribe("api.slow", receive)
        await bus.flush()
        client = await ask(nats=url, retry_idempotent=option, discovery=False)
        asking = asyncio.create_task(client.get("/slow"))
        await entered.wait()
        await first.aclose()
        await stack.enter_async_context(embedded_server(port=port))
        assert (await asking).status_code == status


async def test_an_answer_that_is_ready_while_the_connection_is_away(nats_url, bus, until):
    """A service whose connection was lost sends the answers that were ready meanwhile: who asked may wait for them."""
    async with AsyncExitStack() as stack:
        other = await connect(Nats(urls=(nats_url,)))
        stack.push_async_callback(other.close)
        svc = Service("late")
        entered, leave = asyncio.Event(), asyncio.Event()

        @svc.get("/late")
        async def late() -> str:
            entered.set()
            await leave.wait()
            return "late"

        worker = Worker(other, svc)
        await worker.start()
        stack.push_async_callback(worker.stop, 1.0)
        asking = asyncio.create_task(request(bus, "api.late", b"", timeout=10.0))
        await entered.wait()
        other._client._transport.close()
        await until(lambda: not other.is_connected)
        leave.set()
        assert (await asking).payload == b"late"
        assert other.is_connected
