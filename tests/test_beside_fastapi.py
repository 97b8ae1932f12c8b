"""The same service in FastAPI and in natsweb, asked the same over HTTP: every difference has a reason."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, NamedTuple

import httpx2
import pytest
import uvicorn
from beside_fastapi import fastapi_app, natsweb_app
from beside_fastapi.differences import DIFFERENCES, Answer, Difference, explained
from beside_fastapi.requests import ASKS, Ask

from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.natsbus import connect
from natsweb.settings import Nats
from natsweb.worker import Worker

# FastAPI's own recipe for PATCH makes models with dicts in them, and pydantic warns of them.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

#: Fields that belong to the connection and the moment.
_SKIPPED = {"connection", "content-length", "date", "server"}


@contextmanager
def fastapi() -> Iterator[str]:
    """Run the FastAPI service under uvicorn in a thread, and give its URL."""
    server = uvicorn.Server(uvicorn.Config(fastapi_app.app, ws="none", log_config=None, timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", 0)) as listening:  # from here on connections wait for the server
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="FastAPI")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10.0)
    assert not thread.is_alive()


async def ask_fastapi() -> list[Answer]:
    """Return the answers of the FastAPI service to all requests, and to GET for each target of a HEAD."""
    with fastapi() as url:
        return await ask_all(url, fastapi_app.log, [*ASKS, *map(as_get, ASKS)])


async def ask_natsweb(nats_url: str) -> list[Answer]:
    """Return the answers of the natsweb service, behind a front, a gateway and NATS."""
    nats, service = Nats(urls=(nats_url,)), natsweb_app.svc
    async with AsyncExitStack() as stack:
        bus = await connect(nats)
        stack.push_async_callback(bus.close)
        await stack.enter_async_context(service)
        worker = Worker(bus, service, root=service.root)
        await worker.start()
        stack.push_async_callback(worker.stop, 1.0)
        gateway = await stack.enter_async_context(Gateway(service.root, nats=nats))
        front = Front(gateway, port=0, grace=1.0)
        await front.start()
        stack.push_async_callback(front.stop)
        return await ask_all(front.url, natsweb_app.log, ASKS)


def as_get(ask: Ask) -> Ask:
    """Return the GET for the target of a HEAD, and anything else as it is."""
    return Ask("GET", ask.target) if ask.method == "HEAD" else ask


async def ask_all(url: str, log: list[str], asks: list[Ask]) -> list[Answer]:
    """Return the answers to requests, one after the other.

    Each has a connection of its own, since uvicorn drops it after a 500.
    """
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=url, timeout=20.0, trust_env=False, limits=limits) as client:
        return [await ask_one(client, ask, log) for ask in asks]


async def ask_one(client: httpx2.AsyncClient, ask: Ask, log: list[str]) -> Answer:
    """Send one request, its target as it is, and wait until the service has finished its work."""
    log.clear()
    response = await client.request(
        ask.method,
        "/",
        headers=[(name.encode(), value.encode("latin-1")) for name, value in ask.headers],
        content=ask.body or None,
        extensions={"target": ask.target.encode()},
    )
    if ask.watched or "connect" in log:
        async with asyncio.timeout(10):
            while "disconnect" not in log:
                await asyncio.sleep(0.002)
    headers: dict[str, str] = {}
    for name, value in response.headers.multi_items():
        if name not in _SKIPPED:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return without_boundary(Answer(response.status_code, headers, body_of(response), tuple(log)))


def body_of(response: httpx2.Response) -> Any:
    """Return the body as a JSON value if it says to be JSON, else as text."""
    if "json" in response.headers.get("content-type", "") and response.content:
        return json.loads(response.content)
    return response.content.decode()


def without_boundary(answer: Answer) -> Answer:
    """Return the answer without the random boundary of several ranges."""
    kind = answer.headers.get("content-type", "")
    if found := re.fullmatch(r"multipart/byteranges; boundary=(\w+)", kind):
        headers = {**answer.headers, "content-type": kind.replace(found[1], "limit")}
        return Answer(answer.status, headers, answer.body.replace(found[1], "limit"))
    return answer


class Both(NamedTuple):
    """Both answers to one request, and FastAPI's to the GET of a HEAD."""

    ask: Ask
    theirs: Answer
    ours: Answer
    got: Answer

    def explained(self, differences: list[Difference]) -> Answer:
        """Return what natsweb has to answer by these differences."""
        return explained(self.ask, self.theirs, self.got, differences)


@pytest.fixture(scope="module")
def answers(nats_url: str) -> list[Both]:
    """Give the answers of both services to all requests."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        ours = runner.run(ask_natsweb(nats_url))
        theirs = runner.run(ask_fastapi())
    rows = zip(ASKS, theirs[: len(ASKS)], ours, theirs[len(ASKS) :], strict=True)
    return [Both(*row) for row in rows]


@pytest.mark.parametrize("number", range(len(ASKS)), ids=[f"{number} {ask}" for number, ask in enumerate(ASKS)])
def test_answers(answers, number):
    """Status, headers, body and the work of dependencies are FastAPI's, but for differences that have a reason."""
    both = answers[number]
    assert both.ours == both.explained(DIFFERENCES)


@pytest.mark.parametrize("number", range(len(DIFFERENCES)), ids=[one.__name__ for one in DIFFERENCES])
def test_every_difference_explains_something(answers, number):
    """Without a difference, some answer is unexplained; else it is gone, and has to go from the table as well."""
    others = DIFFERENCES[:number] + DIFFERENCES[number + 1 :]
    unexplained = [both.ask for both in answers if both.explained(others) != both.ours]
    assert unexplained, f"no longer a difference: {DIFFERENCES[number].__doc__}"


def test_every_difference_has_a_reason():
    """Each is in the table, with a sentence."""
    for one in DIFFERENCES:
        assert re.match(r"(BUG: )?\S.+[.:]", one.__doc__ or ""), one
