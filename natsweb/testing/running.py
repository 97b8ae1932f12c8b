"""What the fixtures run: a private nats-server, and services behind a gateway, in threads with their own event loops.

Knows how to start and stop; it knows no pytest.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from natsweb.embedded import embedded_server
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.service import Service
from natsweb.serving import serve
from natsweb.settings import Nats
from natsweb.testing.stage import Overrides, override_all
from natsweb.testing.sync import Portal

__all__ = ["gateway_of", "private_server"]


@contextlib.contextmanager
def private_server() -> Iterator[str]:
    """Run a nats-server, and give its URL; raises `StartError` where there is none to start."""
    server = embedded_server()
    with Portal() as portal:
        url = portal.run(server.__aenter__())
        try:
            yield url
        finally:
            portal.run(server.__aexit__(None, None, None))


@contextlib.contextmanager
def gateway_of(
    services: Sequence[Service[Any]],
    nats: str,
    *,
    root: str | None = None,
    overrides: Overrides | None = None,
    **options: Any,
) -> Iterator[str]:
    """Serve `services` and a gateway for them over the server `nats`, and give the gateway's URL.

    `overrides` are those of `TestClient`, `options` those of `Gateway`. Raises what serving raises, and
    `DeclarationError` for an override of nothing.
    """
    root = root or services[0].root
    stack = contextlib.AsyncExitStack()

    async def start() -> str:
        async with contextlib.AsyncExitStack() as starting:
            override_all(starting, services, overrides or {})
            for service in services:
                await starting.enter_async_context(serve(service, nats=nats, root=root, grace=1.0))
            gateway = Gateway(root, nats=Nats(urls=(nats,)), **options)
            front = Front(await starting.enter_async_context(gateway), port=0, grace=1.0)
            await front.start()
            starting.push_async_callback(front.stop)
            stack.push_async_exit(starting.pop_all())
            return front.url

    with Portal() as portal:
        url = portal.run(start())
        try:
            yield url
        finally:
            portal.run(stack.aclose())
