"""Fixtures for pytest: a nats-server, a client of services, and services behind a gateway.

pytest loads this in every run, also in those that use none of it: so the rest of natsweb is loaded by name, later. None
of them is async, so that they work with any plugin for async tests, and without one.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

__all__ = ["nats_server", "natsweb_client", "serve_natsweb"]


@pytest.fixture(scope="session")
def nats_server() -> Iterator[str]:
    """The URL of a private nats-server, which lives as long as the session."""
    running = importlib.import_module("natsweb.testing.running")
    with running.private_server() as url:
        yield url


@pytest.fixture
def natsweb_client() -> Iterator[Callable[..., Any]]:
    """A function that gives a `SyncTestClient` of services, started; it takes what that takes, and ends with the test.

    `api = natsweb_client(svc, overrides={get_db: fake_db})`
    """
    testing = importlib.import_module("natsweb.testing")
    with contextlib.ExitStack() as stack:

        def start(*services: Any, **options: Any) -> Any:
            return stack.enter_context(testing.SyncTestClient(*services, **options))

        yield start


@pytest.fixture
def serve_natsweb(nats_server: str) -> Iterator[Callable[..., str]]:
    """A function that serves services, and a gateway on a free port, and gives its URL; they end with the test.

    `url = serve_natsweb(svc, overrides={get_db: fake_db})`; `root` is where they are served, other options are those
    of `Gateway`.
    """
    running = importlib.import_module("natsweb.testing.running")
    with contextlib.ExitStack() as stack:

        def start(*services: Any, **options: Any) -> str:
            url: str = stack.enter_context(running.gateway_of(services, nats_server, **options))
            return url

        yield start
