"""A bus over somebody else's nats-py client, by its public API only: it is used, and never closed or changed.

Slower than a connection of natsweb's own, and poorer: nats-py hands headers on as a dict, so that of repeated fields
(`Set-Cookie`) one arrives. Its owner has the callbacks for a lost connection, so this looks every now and then.
"""

import asyncio
import contextlib
from typing import Any, TypeAlias

import nats.errors
from nats.aio.client import Client

from natsweb.errors import SettingsError
from natsweb.natsbus.client import RawClient
from natsweb.natsbus.link import LinkSubscription
from natsweb.natsbus.public import PublicBus
from natsweb.settings import Nats

__all__ = ["AdoptedBus", "Connection", "adopt"]

#: A client of nats-py's, as its owner has it.
Connection: TypeAlias = Client

_LOOK = 0.1


async def adopt(client: Any) -> "AdoptedBus":
    """Return a bus over a connected client of nats-py's; raises `SettingsError` for anything else."""
    if not isinstance(client, Client) or not client.is_connected:
        word = "a NATS client that is not connected" if isinstance(client, Client) else repr(client)
        raise SettingsError(
            f"{word} cannot be used as nats=",
            fix='give a URL, natsweb.Nats(...), or await nats.connect("nats://...")',
        )
    bus = AdoptedBus(client)
    await bus.start()
    return bus


class AdoptedBus(PublicBus):
    """A bus over a client that its owner has connected, and closes."""

    def __init__(self, client: Any) -> None:
        super().__init__(Nats(inbox_prefix=client.new_inbox().rpartition(".")[0]), "")
        self._adopted: RawClient = client  # of which nothing is used that other clients do not have
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe the inbox."""
        await super().start()
        self._watcher = asyncio.create_task(self._watch(), name="natsweb bus watcher")

    async def _new_client(self) -> RawClient:
        return self._adopted

    async def _watch(self) -> None:
        """Notice that the connection is lost, and that it is back: nats-py subscribes again by itself."""
        client = self._adopted
        while not client.is_closed:
            await asyncio.sleep(_LOOK)
            if self._up and not client.is_connected:
                self._on_down(client)
            elif not self._up and client.is_connected:
                self._on_up(client)
        self._on_down(client)

    def _block(self, headers: Any, payload: bytes) -> bytes | None:
        """Return a header block as it may have come."""
        if headers is None:
            return None
        lines = dict(headers)
        status = lines.pop("Status", None) if not payload else None
        first = b"NATS/1.0" if status is None else b"NATS/1.0 %b" % status.encode()
        rest = [f"{name}: {value}".encode("latin-1", "replace") for name, value in lines.items() if status is None]
        return b"\r\n".join([first, *rest, b"", b""])

    def _unsubscribe(self, subscription: LinkSubscription) -> None:
        if (current := subscription.current) is not None:
            self._put(current.unsubscribe)

    def _forget(self, subscription: LinkSubscription) -> None:
        subscription.current = None  # nats-py has let go of it already

    async def close(self) -> None:
        """Unsubscribe all; requests in flight end with `Disconnected`. The connection stays."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        for subscription in self._subscriptions:
            subscription.stop()
        await super().close()

    async def _close_client(self) -> None:
        with contextlib.suppress(nats.errors.Error):
            await self._adopted.flush()
