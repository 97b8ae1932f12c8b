"""`NatsBus` against a real server that is hurt, killed, stalled, restarted, or says no."""

import asyncio
import gc
import logging
import os
import signal
import socket
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from natsweb.bus import Message, request
from natsweb.embedded import embedded_server
from natsweb.errors import Disconnected, NatsDown, NatsUnreachable, Overloaded, SubjectTooLong, TimeUp
from natsweb.natsbus import connect
from natsweb.settings import Nats, find_nats

SECRET = "s3cr3t"


@pytest.fixture
def run_server(tmp_path):
    """Give a context that runs a nats-server: its URL, and a function that sends it a signal."""

    @asynccontextmanager
    async def run(*arguments, port=None):
        file = tmp_path / "pid"
        async with embedded_server(port=port, arguments=("--pid", str(file), *arguments)) as url:
            pid = int(file.read_text())
            yield url, lambda number: os.kill(pid, number)

    return run


@asynccontextmanager
async def connected(*urls, **settings):
    """Connect, and close."""
    bus = await connect(Nats(urls=urls, **settings))
    try:
        yield bus
    finally:
        await bus.close()


def port_of(url):
    """Return the port of a URL."""
    return urlsplit(url).port


async def echo_on(bus, subject="echo"):
    """Answer every request with its payload."""
    await bus.subscribe(subject, lambda message: bus.publish(message.reply, message.payload))
    await bus.flush()


async def hang_on(bus, subject="hang"):
    """Take a request that is never answered; return its task, once the other side has it."""
    there = asyncio.Event()
    await bus.subscribe(subject, lambda _: there.set())
    task = asyncio.create_task(request(bus, subject, b"", timeout=3600))
    await there.wait()
    return task


async def ends_with(error, task):
    """Check that a task ends with an error, long before its own time is up."""
    async with asyncio.timeout(20):
        with pytest.raises(error):
            await task


# ── a client that must not die ──


@pytest.mark.parametrize("subject", [b"api.\xff\xfe", b"api.\x00", b"api.\x7f\x80", "api.ü".encode()])
async def test_a_subject_of_any_bytes_hurts_nobody(bus, peer, subject):
    """A peer's subject that is not UTF-8 is received as latin-1 text, and the bus goes on hearing."""
    got = asyncio.Queue()
    await bus.subscribe("api.>", got.put_nowait)
    await echo_on(bus)
    await peer.publish(subject, b"1", reply=b"r.\xfe", header=b"garbage \xff")
    async with asyncio.timeout(10):
        assert await got.get() == Message(subject.decode("latin-1"), "r.\xfe", b"garbage \xff", b"1")
        assert (await request(bus, "echo", b"2")).payload == b"2"


@pytest.mark.parametrize("header", [b"", b"x", b"NATS/1.0", b"NATS/9.9 503\r\n\r\n", b"\x00", b"NATS/1.0\r\n:\r\n"])
async def test_a_header_block_of_any_bytes_hurts_nobody(bus, peer, header):
    """What a peer sends as header block arrives as it is."""
    got = asyncio.Queue()
    await bus.subscribe("api.x", got.put_nowait)
    await bus.flush()
    await peer.publish(b"api.x", b"1", header=header)
    async with asyncio.timeout(10):
        assert await got.get() == Message("api.x", "", header or None, b"1")


@pytest.mark.parametrize("header", [b"9999999\r\n", b"\r\n 3\r\n", b"\r\n"])
async def test_a_header_block_cannot_pose_as_protocol(bus, peer, header):
    """A block that begins like the end of a protocol line is a block all the same, and the bus goes on hearing."""
    got = asyncio.Queue()
    await bus.subscribe("api.x", got.put_nowait)
    await echo_on(bus)
    await peer.publish(b"api.x", b"1", header=header)
    assert (await request(bus, "echo", b"2", timeout=1)).payload == b"2"
    assert got.get_nowait() == Message("api.x", "", header, b"1")


async def test_a_client_that_nats_py_gives_up_is_replaced(run_server, until):
    """After a protocol violation, requests in flight end, and a new client subscribes everything again."""
    async with run_server() as (url, _), connected(url) as bus, connected(url) as other:
        await echo_on(bus)
        gone = await bus.subscribe("gone", lambda _: None)
        gone.stop()
        waiting = await hang_on(bus)
        bus._client._transport.write(b"PUB " + b"a" * 5000 + b" 0\r\n\r\n")
        await ends_with(Disconnected, waiting)
        await until(lambda: bus.rebuilds == 1 and bus.is_connected)
        await bus.flush()
        assert (await request(other, "echo", b"1")).payload == b"1"
        assert (await request(bus, "echo", b"2")).payload == b"2"
        with pytest.raises(Exception, match="no service"):
            await request(other, "gone", b"")


# ── a server that goes away ──


async def test_a_killed_server_and_its_successor(run_server, until):
    """Requests in flight end at once, later ones are refused, and a server on the same port makes all well again."""
    async with run_server() as (url, send), connected(url) as bus:
        await echo_on(bus)
        waiting = [await hang_on(bus, f"hang.{number}") for number in range(3)]
        send(signal.SIGKILL)
        for task in waiting:
            await ends_with(Disconnected, task)
        assert not bus.is_connected
        assert "down" in repr(bus)
        for refused in (
            lambda: bus.publish("a", b""),
            lambda: bus.ask("a", b"", timeout=10, answer=lambda _: None),
        ):
            with pytest.raises(NatsDown):
                refused()
        with pytest.raises(NatsDown):
            await bus.flush()
        async with run_server(port=port_of(url)):
            await until(lambda: bus.is_connected)
            await bus.flush()
            assert (await request(bus, "echo", b"again")).payload == b"again"


async def test_a_subscription_that_stops_while_the_server_is_away(run_server, until):
    """What was stopped without a connection does not come back with it."""
    async with run_server() as (url, send), connected(url) as bus:
        got = []
        subscription = await bus.subscribe("x", got.append)
        await echo_on(bus)
        send(signal.SIGKILL)
        await until(lambda: not bus.is_connected)
        subscription.stop()
        async with run_server(port=port_of(url)):
            await until(lambda: bus.is_connected)
            bus.publish("x", b"")
            await request(bus, "echo", b"")
            assert got == []


async def test_a_stalled_server_is_noticed(run_server, until):
    """A server that stops answering pings counts as gone, and as back when it goes on."""
    async with run_server() as (url, send), connected(url) as bus:
        await echo_on(bus)
        waiting = await hang_on(bus)
        send(signal.SIGSTOP)
        try:
            await ends_with(Disconnected, waiting)
        finally:
            send(signal.SIGCONT)
        await until(lambda: bus.is_connected)
        await bus.flush()
        assert (await request(bus, "echo", b"1")).payload == b"1"


async def test_what_never_left_is_told_from_what_may_have_arrived(run_server, until):
    """Of requests behind a stalled socket, those still with us end as not sent, the others as perhaps delivered."""
    async with run_server() as (url, send), connected(url) as bus:
        outcomes = []
        send(signal.SIGSTOP)
        for _ in range(60):
            bus.ask("nobody", bytes(900_000), timeout=30, answer=outcomes.append)
        await asyncio.sleep(0)  # a turn of the event loop: all that the socket takes is written
        send(signal.SIGKILL)
        await until(lambda: len(outcomes) == 60)
        kinds = [type(outcome) for outcome in outcomes]
        assert set(kinds) == {Disconnected, NatsDown}
        assert len(bus._inbox) == 0


async def test_a_subject_too_long_for_a_protocol_line_is_never_sent(bus):
    """It would make the server close the connection; from either side it is an error of its sender alone."""
    with pytest.raises(SubjectTooLong):
        bus.publish("a" * 4000, b"", reply="_INBOX." + "b" * 60)
    with pytest.raises(SubjectTooLong):
        bus.ask("a" * 4050, b"", timeout=1, answer=lambda _: None)
    await bus.flush()
    assert bus.is_connected


async def test_closing_while_the_server_is_away(run_server, until):
    """`close` without a server ends, raises nothing and leaves no task behind."""
    before = asyncio.all_tasks()
    async with run_server() as (url, send):
        bus = await connect(Nats(urls=(url,)))
        send(signal.SIGKILL)
        await until(lambda: not bus.is_connected)
        async with asyncio.timeout(10):
            await bus.close()
    await until(lambda: asyncio.all_tasks() == before)


async def test_closing_in_the_moment_of_the_loss(nats_url):
    """nats-py's `close` awaits a future that it cancels with its task that reconnects: nobody else is cancelled."""
    bus = await connect(Nats(urls=(nats_url,)))
    await bus.flush()
    await bus._client._process_op_err(ConnectionResetError())
    await asyncio.sleep(0)  # the task waits for the transport's end
    async with asyncio.timeout(10):
        await bus.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nats-py drops a socket unclosed
async def test_a_login_that_is_refused_for_a_while(run_server, until, caplog):
    """A server that comes back with another password is asked until it has the right one."""
    login = ("--user", "me", "--pass")
    async with run_server(*login, SECRET) as (url, send), connected(url, user="me", password=SECRET) as bus:
        await echo_on(bus)
        send(signal.SIGKILL)
        await until(lambda: not bus.is_connected)
        async with run_server(*login, "other", port=port_of(url)):
            await until(lambda: "uthorization" in caplog.text)
        async with run_server(*login, SECRET, port=port_of(url)):
            await until(lambda: bus.is_connected)
            await bus.flush()
            assert (await request(bus, "echo", b"1")).payload == b"1"
    gc.collect()
    assert SECRET not in caplog.text


async def test_congestion_is_refused(bus):
    """Beyond 64 MiB that wait to be sent, `publish` raises `Overloaded`; when they have left, it takes more."""
    payload = bytes(bus.max_payload)

    def publish_much():
        for _ in range(100):
            bus.publish("nobody", payload)

    with pytest.raises(Overloaded):
        publish_much()
    await bus.flush(20)
    bus.publish("nobody", payload)
    await bus.flush(20)


async def test_the_first_messages_of_a_long_turn_go_ahead(bus, monkeypatch):
    """Once in a turn of the event loop, unless the one before was far longer; all arrive, in their order."""
    got, written, write = asyncio.Queue(), [], bus._write
    await bus.subscribe("x", lambda message: got.put_nowait(message.payload))
    await bus.flush()

    def record():
        written.append(len(bus._out))
        write()

    monkeypatch.setattr(bus, "_write", record)
    turns = [1, 32, 33, 64, 500, 40, 40]
    for turn in turns:
        for number in range(turn):
            bus.publish("x", b"%d" % number)
        await asyncio.sleep(0)
    assert [size for size in written if size] == [1, 32, 32, 1, 32, 32, 32, 468, 40, 32, 8]
    async with asyncio.timeout(10):
        for turn in turns:
            assert [await got.get() for _ in range(turn)] == [b"%d" % number for number in range(turn)]


# ── a server that says no, or is not there ──


@pytest.fixture
def closed_port():
    """Give a port that nobody listens on, and nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def test_no_server(closed_port):
    """A server that is not there is `NatsUnreachable` with what, where and fix; no credentials in it."""
    nats = find_nats(url=f"nats://me:{SECRET}@127.0.0.1:{closed_port}", environ={"HOME": "/nonexistent"})
    async with asyncio.timeout(20):
        with pytest.raises(NatsUnreachable) as caught:
            await connect(nats)
    error = caught.value
    assert error.what == f"no NATS server at nats://***@127.0.0.1:{closed_port} (connection refused)"
    assert "NATS_URL" in error.where[0]
    assert "natsweb dev" in error.fix
    assert str(error).count("\n") == 2
    assert SECRET not in str(error) + repr(error)


async def test_a_server_that_comes_late(run_server, closed_port):
    """`wait` gives a server time to come up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    task = asyncio.create_task(connect(Nats(urls=(f"nats://127.0.0.1:{port}",)), wait=20))
    await asyncio.sleep(0)
    async with run_server(port=port), asyncio.timeout(20):
        bus = await task
        assert bus.is_connected
        await bus.close()


@pytest.mark.parametrize(
    ("server", "client", "url"),
    [
        (("--user", "me", "--pass", "right"), {"user": "me", "password": SECRET}, "nats://127.0.0.1:{port}"),
        (("--user", "me", "--pass", "right"), {}, f"nats://me:{SECRET}@127.0.0.1:{{port}}"),
        (("--user", "me", "--pass", "right"), {}, "nats://127.0.0.1:{port}"),
        (("--auth", "right"), {"token": SECRET}, "nats://127.0.0.1:{port}"),
        (("--auth", "right"), {}, f"nats://{SECRET}@127.0.0.1:{{port}}"),
    ],
    ids=["password", "password in url", "none", "token", "token in url"],
)
async def test_a_refused_login(run_server, caplog, server, client, url):
    """A wrong login ends soon, says so, and tells no secret anywhere."""
    with caplog.at_level(logging.DEBUG):
        async with run_server(*server) as (where, _), asyncio.timeout(20):
            nats = Nats(urls=(url.format(port=port_of(where)),), **client)
            with pytest.raises(NatsUnreachable, match="refused the login") as caught:
                await connect(nats)
    assert "NATS_PASSWORD" in caught.value.fix
    assert SECRET not in str(caught.value) + repr(caught.value) + caplog.text


async def test_credentials_are_masked(run_server, until, caplog):
    """A password in the URL is in no repr and no log line, also when the connection is lost."""
    caplog.set_level(logging.DEBUG)
    async with (
        run_server("--user", "me", "--pass", SECRET) as (url, send),
        connected(url.replace("//", f"//me:{SECRET}@")) as bus,
    ):
        await echo_on(bus)
        assert (await request(bus, "echo", b"1")).payload == b"1"
        assert bus.server == f"nats://***@127.0.0.1:{port_of(url)}"
        waiting = await hang_on(bus)
        shown = repr(bus) + bus.server
        send(signal.SIGKILL)
        await ends_with(Disconnected, waiting)
        shown += repr(bus)
    assert "lost" in caplog.text
    assert SECRET not in shown + caplog.text


def test_settings_mask_their_urls():
    """The repr of the settings shows neither password nor token, wherever they stand."""
    shown = repr(Nats(urls=(f"nats://me:{SECRET}@host:4222",), password=SECRET, token=SECRET))
    assert SECRET not in shown


async def test_the_inbox_prefix_is_honoured(nats_url, bus):
    """Replies go below the configured prefix."""
    got = asyncio.Queue()
    await bus.subscribe("look", got.put_nowait)
    await bus.flush()
    async with connected(nats_url, inbox_prefix="_INBOX.gateway.one") as other:
        other.ask("look", b"", timeout=10, answer=lambda _: None)
        async with asyncio.timeout(10):
            assert (await got.get()).reply.startswith("_INBOX.gateway.one.")
        await echo_on(bus)
        assert (await request(other, "echo", b"1")).payload == b"1"


async def test_a_permissions_violation_is_logged_once(run_server, until, caplog, tmp_path: Path):
    """What the server forbids is logged once, not once a message, and the connection lives on."""
    config = tmp_path / "config"
    config.write_text(
        'authorization { users: [ { user: me, password: pw, permissions: { publish: { deny: "no.>" } } } ] }'
    )
    async with run_server("-c", str(config)) as (url, _), connected(url, user="me", password="pw") as bus:
        await echo_on(bus)
        for _ in range(10):
            bus.publish("no.x", b"")
        with pytest.raises(TimeUp):
            await request(bus, "no.x", b"", timeout=0.05)
        await until(lambda: "ermissions" in caplog.text)
        assert (await request(bus, "echo", b"1")).payload == b"1"
    assert len([record for record in caplog.records if "ermissions" in record.getMessage()]) == 1


async def test_closing_in_the_moment_of_a_refusal(run_server):
    """A task of nats-py's that misses its cancellation, as wait_for has it do, does not look for servers for ever."""
    async with run_server() as (url, signal_server):
        bus = await connect(Nats(urls=(url,)))
        client, tries = bus._client, asyncio.Event()

        async def refuse(server):
            tries.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                raise ConnectionRefusedError from None

        client._connect_to_server = refuse
        signal_server(signal.SIGKILL)
        async with asyncio.timeout(20):
            await tries.wait()
            task = client._reconnection_task
            await bus.close()
            assert task.done()
