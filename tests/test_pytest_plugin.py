"""The fixtures for pytest: as somebody who has installed natsweb uses them, in a run of their own."""

import subprocess
import sys
from pathlib import Path

APP = """
from typing import Annotated

from natsweb import Depends, Service

svc = Service("shop")

def get_prices():
    raise RuntimeError("no database in tests")

@svc.get("/price/<id>")
async def price(id: int, prices: Annotated[dict, Depends(get_prices)]) -> int:
    return prices[id]

@svc.get("/orders/<id>")
async def show(id: int) -> int:
    return id

@svc.lifespan
async def life():
    print("started")
    yield
    print("stopped")
"""

TESTS = """
import asyncio
import urllib.request

import pytest
from app import get_prices, svc

from natsweb import Client
from natsweb.testing import TestClient


def test_client(natsweb_client):
    api = natsweb_client(svc)
    assert api.get("/orders/7").json() == 7


def test_client_over_a_server(natsweb_client, nats_server):
    assert nats_server.startswith("nats://127.0.0.1:")
    with pytest.raises(ZeroDivisionError):
        api = natsweb_client(svc, nats=nats_server)
        assert api.get("/orders/8").json() == 8
        1 / 0


def test_http(serve_natsweb, nats_server):
    url = serve_natsweb(svc)
    with urllib.request.urlopen(f"{url}/orders/9") as response:
        assert response.read() == b"9"


def test_http_below_another_root(serve_natsweb):
    url = serve_natsweb(svc, root="api.other", timeout=3.0)
    with urllib.request.urlopen(f"{url}/orders/10") as response:
        assert response.read() == b"10"


def test_http_with_overrides(serve_natsweb):
    url = serve_natsweb(svc, overrides={get_prices: lambda: {7: 3}}, docs=True)
    with urllib.request.urlopen(f"{url}/price/7") as response:
        assert response.read() == b"3"
    with urllib.request.urlopen(f"{url}/openapi.json") as response:
        assert b"/price/{id}" in response.read()


def test_async_code(nats_server):
    async def ask():
        async with TestClient(svc, nats=nats_server) as api:
            return (await api.get("/orders/11")).json()

    assert asyncio.run(ask()) == 11
"""


def run(folder: Path, *arguments: str, code: str = TESTS) -> subprocess.CompletedProcess[str]:
    """Run pytest on files in a folder."""
    (folder / "app.py").write_text(APP)
    (folder / "test_app.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        "-W",
        "error",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_fixtures(tmp_path: Path):
    """All of them, in plain tests; what they have started ends with its test."""
    done = run(tmp_path, "-rP")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    assert done.stdout.count("started") == done.stdout.count("stopped") == 6


def test_the_fixtures_have_words(tmp_path: Path):
    """`pytest --fixtures` tells what they are for."""
    said = run(tmp_path, "--fixtures").stdout
    for words in ("nats_server [session scope]", "natsweb_client", "serve_natsweb", "The URL of a private nats-server"):
        assert words in said


def test_a_run_that_uses_none_of_it_loads_none_of_it(tmp_path: Path):
    """The plugin is loaded in every run of pytest, and costs it nothing."""
    code = """
import sys

def test_nothing():
    assert "natsweb.pytest_plugin" in sys.modules
    assert not {"nats", "httpx2", "pydantic", "starlette", "natsweb.service"} & set(sys.modules)
"""
    done = run(tmp_path, code=code)
    assert done.returncode == 0, done.stdout
