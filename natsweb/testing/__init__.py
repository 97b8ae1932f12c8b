"""Testing services: an httpx2 client whose requests reach them as in production, with or without a server.

    async with TestClient(svc) as api:
        response = await api.get("/orders/7")

A request becomes a subject and a message, and goes through a bus, a worker and the router to the handler; the answer
comes back the same way. Without `nats=` the bus is in memory.
"""

from natsweb.testing.client import TestClient
from natsweb.testing.stage import Published
from natsweb.testing.sync import SyncTestClient

__all__ = ["Published", "SyncTestClient", "TestClient"]
