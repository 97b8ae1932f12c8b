"""`natsweb permissions`: what it prints is enough for a real nats-server, and no more than that."""

import json
import re
from contextlib import AsyncExitStack

import httpx2
import pytest
from typer.testing import CliRunner

from natsweb import Client, Request, Service, serve
from natsweb.bus import request
from natsweb.cli import app
from natsweb.cli.permissions import gateway_permissions, service_permissions
from natsweb.embedded import embedded_server
from natsweb.errors import HTTPError, NatsRefused
from natsweb.gateway import Gateway
from natsweb.member import Member, start_all
from natsweb.natsbus import connect
from natsweb.settings import Nats

SOURCE = '''"""A shop."""

from natsweb import Service

svc = Service("shop-1")


@svc.get("/things")
@svc.get("/things/<id>")
async def show(id: int = 0) -> int:
    return id


@svc.on("paid.<id>")
async def paid(id: int) -> None: ...
'''


# Calls itself, as it would call others.
CALLING = """
from natsweb import Client, Service

svc = Service("caller")


@svc.get("/twice/<id>")
async def twice(id: int, api: Client) -> int:
    return 2 * await api.get(f"/things/{id}", into=int)


@svc.get("/things/<id>")
async def thing(id: int) -> int:
    return id


@svc.get("/large")
async def large(api: Client) -> int:
    return len(await api.get("/bytes", into=bytes))


@svc.get("/bytes")
async def data() -> bytes:
    return bytes(3 << 20)
"""


def printed(tmp_path, *arguments, name="shop.py", source=SOURCE):
    """Return what the command prints for a shop, or another service."""
    file = tmp_path / name
    file.write_text(source)
    done = CliRunner().invoke(app, ["permissions", str(file), *arguments], env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert done.exit_code == 0, done.output
    return done.output


def test_json(tmp_path):
    """With --json the users and their permissions, below another root if one is given."""
    assert json.loads(printed(tmp_path, "--json", "--root", "eu.api")) == {
        "gateway": gateway_permissions("eu.api"),
        "shop-1": service_permissions("shop-1", ["eu.api.things", "eu.api.things.*", "paid.*"]),
    }


def test_an_inbox_prefix_of_its_own():
    """Inboxes are those of the connection."""
    said = json.dumps([gateway_permissions("api", "_EU"), service_permissions("a", ["api.a"], "_EU")])
    assert "_EU.>" in said
    assert "_INBOX" not in said


@pytest.fixture
async def server(tmp_path):
    """Give the URL of a nats-server whose configuration is what the command prints, by user."""
    config = tmp_path / "nats.conf"
    config.write_text(re.sub(r"\$[A-Z0-9_]+_PASSWORD", '"secret"', printed(tmp_path)))
    async with embedded_server(arguments=("-c", str(config))) as url:
        yield lambda user: Nats(urls=(url,), user=user, password="secret")


async def test_enough(server, caplog):
    """A service and a gateway start, find each other, and carry requests, slow ones and streams."""
    svc = Service("shop-1")

    @svc.get("/things")
    async def large() -> bytes:
        return bytes(3 << 20)

    @svc.post("/things/<id>")
    async def count(id: int, request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    async with AsyncExitStack() as stack:
        bus = await connect(server("shop-1"))
        stack.push_async_callback(bus.close)
        member = Member(bus, svc)
        gateway = await stack.enter_async_context(Gateway("api", nats=server("gateway")))
        await start_all([member])
        stack.push_async_callback(member.stop, 1.0)
        transport = httpx2.ASGITransport(gateway)
        client = await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://t"))
        assert len((await client.get("/things")).content) == 3 << 20
        assert (await client.post("/things/1", content=bytes(3 << 20))).json() == 3 << 20
        assert (await client.get("/nobody")).status_code == 404
    assert "ermission" not in caplog.text


@pytest.mark.parametrize(
    ("user", "subject"),
    [("shop-1", "api.things"), ("shop-1", "api.admin"), ("gateway", "other.x"), ("gateway", "$SYS.REQ.SERVER.PING")],
)
async def test_no_more_to_publish(server, user, subject):
    """A service asks nobody, and a gateway nobody but the services below its root."""
    bus = await connect(server(user))
    try:
        with pytest.raises(HTTPError):
            await request(bus, subject, b"", timeout=0.3)
    finally:
        await bus.close()


@pytest.mark.parametrize(
    ("user", "subject"), [("shop-1", "api.admin"), ("shop-1", "api.>"), ("gateway", "api.>"), ("gateway", ">")]
)
async def test_no_more_to_hear(server, user, subject):
    """A service gets its own requests only, and a gateway none at all."""
    bus = await connect(server(user))
    try:
        await bus.subscribe(subject, lambda _: None)
        with pytest.raises(NatsRefused):
            await bus.flush()
    finally:
        await bus.close()


async def test_enough_for_a_service_that_calls_others(tmp_path, caplog):
    """With a `Client` it has to be allowed what a gateway is."""
    config = tmp_path / "nats.conf"
    block = printed(tmp_path, name="caller.py", source=CALLING)
    config.write_text(re.sub(r"\$[A-Z0-9_]+_PASSWORD", '"secret"', block))
    namespace = {"__name__": "calling"}
    exec(compile(CALLING, str(tmp_path / "shop.py"), "exec"), namespace)
    async with embedded_server(arguments=("-c", str(config))) as url:
        user, gateway = [Nats(urls=(url,), user=name, password="secret") for name in ("caller", "gateway")]
        async with serve(namespace["svc"], nats=user), Client(nats=gateway) as api:
            assert await api.get("/twice/7", into=int) == 14
            assert await api.get("/large", into=int) == 3 << 20
    assert "ermission" not in caplog.text
