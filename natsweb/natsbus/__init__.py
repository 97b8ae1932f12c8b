"""The bus over a real NATS server: the only place that imports nats-py.

nats-py connects, logs in, does TLS and reconnects. What outlives a client of its is ours (`link`): nats-py closes
itself for good on most server errors; then a new client is built and everything is subscribed again. Bytes go one
of two ways: `fast`, raw frames past nats-py's queues and parsers, or, where its insides differ from what `fast`
was written for, `public`, its public API. `adopted` is a client that somebody else has connected.
"""

import asyncio
import logging

from natsweb.errors import NatsUnreachable
from natsweb.natsbus.adopted import AdoptedBus, Connection, adopt
from natsweb.natsbus.fast import FastBus, fits
from natsweb.natsbus.link import NatsBus
from natsweb.natsbus.public import PublicBus
from natsweb.settings import Nats

__all__ = ["AdoptedBus", "Connection", "FastBus", "NatsBus", "PublicBus", "adopt", "connect"]

logger = logging.getLogger("natsweb.nats")


async def connect(
    nats: Nats, *, name: str = "natsweb", wait: float = 0.0, body: type[NatsBus] | None = None
) -> NatsBus:
    """Return a connected bus; tries again for `wait` seconds before it raises `NatsUnreachable`.

    `name` is what the server shows for this connection, `body` the kind of bus (default: the fastest that fits).
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + wait
    kind = body or (FastBus if fits(nats) else PublicBus)
    told = False
    while True:
        bus = kind(nats, name)
        try:
            await bus.start()
        except NatsUnreachable as error:
            if loop.time() >= give_up:
                raise
            if not told:
                told = True
                logger.warning("%s; trying for %g s", error.what, wait)
            await asyncio.sleep(min(0.5, max(0.0, give_up - loop.time())))
        else:
            return bus
