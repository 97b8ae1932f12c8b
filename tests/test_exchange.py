"""The exchange alone, on a bus in memory: what no door of the gateway can bring about at will."""

import asyncio

from natsweb.bus import MemoryBus
from natsweb.catalogue import Owner
from natsweb.exchange import Exchange
from natsweb.flights import Incoming
from natsweb.wire import encode_continue


class Directory:
    """Knows one service, and who was asked for."""

    new_for = 0.0

    def __init__(self, owner):
        self.known = owner
        self.suspects = []

    def owner(self, method, tokens):
        """Return the one service."""
        return self.known

    def was_there(self, tokens):
        """Tell that it was there."""
        return True

    def suspect(self, name):
        """Note who is suspected."""
        self.suspects.append(name)


async def test_a_request_that_waits_for_a_start_is_not_listened_for(monkeypatch):
    """What has not been sent yet makes nobody a suspect, and goes out when the service is up."""
    monkeypatch.setattr("natsweb.exchange._SILENCE", 0.01)
    faults, outcomes = [], asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    bus = MemoryBus()
    exchange = Exchange(bus, "api")
    exchange.directory = Directory(Owner("orders", "/a", is_starting=True))
    await bus.subscribe("api.a", lambda message: bus.publish(message.reply, b"up"))
    exchange.launch(Incoming("GET", b"/a", b"", b""), b"", outcomes.put_nowait)
    await asyncio.sleep(0.05)  # several times the silence
    assert (faults, exchange.directory.suspects, outcomes.qsize()) == ([], [], 0)
    exchange.directory.known = Owner("orders", "/a")
    exchange.turn()
    async with asyncio.timeout(10):
        assert await outcomes.get() == (None, b"up")
    await bus.close()


async def test_a_body_that_is_wanted_before_it_is_offered():
    """A service in the same process may ask for the rest before whoever sends it has come to wait for that."""
    bus = MemoryBus()
    exchange = Exchange(bus, "api")
    inbox = bus.new_inbox()
    wanted = asyncio.Event()

    def answer(message):
        bus.publish(message.reply, b"", header=encode_continue(1024), reply=inbox)
        wanted.set()

    await bus.subscribe("api.a", answer)
    flight = exchange.launch(Incoming("POST", b"/a", b"", b"", more=True), b"", lambda outcome: None)
    await wanted.wait()
    await bus.flush()
    async with asyncio.timeout(10):
        stream = await flight.pinned()
    assert stream is not None
    assert stream.to == inbox.encode()
    flight.drop()
    await bus.close()
