"""The gateway on a socket: uvicorn, run by our own hand, with a protocol class of ours (`protocol`).

uvicorn keeps sockets, TLS and flow control. Ours are what it does otherwise: who handles signals (the command
line), how a taken port is reported, timers for every stage of a request, and that one `stop()` ends it. The
gateway knows nothing of this.
"""

import asyncio
import contextlib
import functools
import importlib.util
import os
import socket
from collections.abc import Callable, Generator

import uvicorn

from natsweb.errors import StartError
from natsweb.exchange import Exchange, address
from natsweb.front.closing import accept_all, drop_new
from natsweb.front.protocol import Connection
from natsweb.gateway import Gateway

__all__ = ["Front"]


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Do nothing: the command line owns signals, and exits 0 after a clean stop."""
        yield


class Front:
    """Serves a started gateway over HTTP at `host` and `port` (0: a free one).

    `grace` is how many seconds answers under way may take after `stop`; without `fast`, every request takes the
    ASGI door; with `log`, there is a line for each (method, path, status, time; never a query).
    """

    #: What ordinary requests go through; a gateway with something in place of NATS has none.
    exchange: Exchange

    def __init__(
        self,
        gateway: Gateway,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        grace: float = 25.0,
        fast: bool = True,
        log: bool = False,
    ) -> None:
        self.log = log
        self._gateway = gateway
        self.limits = gateway.limits
        self.fast = fast and not gateway.sees_requests
        if not gateway.stands_in:
            self.exchange = gateway.exchange
        self.pick: Callable[[bytes, bytes], tuple[Exchange, bytes]] | None = None
        if gateway.sites.are_several:
            self.pick = gateway.pick
        self.here = gateway.here
        self.stopping = False
        self.dates = b""
        self._answers: list[tuple[asyncio.Transport, bytes]] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._port = port
        self._grace = grace
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            gateway,
            http=functools.partial(Connection, self),  # type: ignore[arg-type]  # any callable makes a protocol
            ws="websockets-sansio" if importlib.util.find_spec("websockets") else "none",
            ws_max_size=gateway.ws_max_size,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            callback_notify=self._renew_dates,
            timeout_notify=-(10**9),  # whenever uvicorn has renewed them, even if the clock was set back
            timeout_graceful_shutdown=max(1, round(grace)) + 5,
        )
        self._server = _Server(config)

    def __repr__(self) -> str:
        return f"<Front {self.url}: {'serving' if self._task else 'not started'}>"

    @property
    def url(self) -> str:
        """Where it listens, such as `http://127.0.0.1:8000`."""
        return f"http://{address(self._host, self._port)}"

    async def start(self) -> None:
        """Listen; raises `StartError` if the address cannot be had."""
        try:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=2048)
        except OSError as error:
            raise StartError(
                f"cannot listen on {self.url} ({os.strerror(error.errno) if error.errno else error})",
                fix="choose another address with --host and --port; --port 0 takes a free one",
            ) from None
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its connections have it, too
        self._port = self._socket.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="natsweb front")
        self._sweeper = asyncio.create_task(self._sweep(), name="natsweb front timers")

    async def _renew_dates(self) -> None:
        """Take over the fields that every answer has, which uvicorn renews once a second."""
        self.dates = b"".join([b"%b: %b\r\n" % field for field in self._server.server_state.default_headers])

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write an answer in one go with the others of this turn of the event loop.

        Close together, they find the client awake: every wake-up of a sleeping peer costs more than the write.
        """
        if not self._answers:
            self._loop.call_soon(self.flush)
        self._answers.append((transport, data))

    def flush(self) -> None:
        """Write what waits now."""
        answers, self._answers = self._answers, []
        for transport, data in answers:
            if not transport.is_closing():  # its client may have left since, and uvloop raises then
                transport.write(data)

    async def _sweep(self) -> None:
        """Look at every connection's time, a few times within the shortest limit."""
        limits = self.limits
        shortest = min(limits.head_timeout, limits.body_timeout, limits.idle_timeout, limits.write_timeout)
        pause = min(0.5, shortest / 4)
        loop = asyncio.get_running_loop()
        skipped = False
        while True:
            before = loop.time()
            await asyncio.sleep(pause)
            now = loop.time()
            skipped = not skipped and now - before > 1.5 * pause
            if skipped:
                continue  # the loop was held up, and what clients have sent meanwhile is not read yet
            for connection in self._connections():
                connection.check_time(now)

    def _connections(self) -> list[Connection]:
        return [one for one in self._server.server_state.connections if isinstance(one, Connection)]

    async def _stop_listening(self) -> None:
        """Close the listener without resetting connections that the system has accepted for us already."""
        listener, self._socket = self._socket, None
        if listener is None:
            return
        listener.listen(0)  # few more into the backlog, and a moment for those in it
        await asyncio.sleep(0.04)
        drop_new(listener)
        await asyncio.sleep(0.01)  # for those whose handshake has begun
        last = accept_all(listener)
        for server in self._server.servers:
            server.close()
        for accepted in last:
            await asyncio.get_running_loop().connect_accepted_socket(self._new_connection, accepted)

    def _new_connection(self) -> Connection:
        server = self._server
        return Connection(self, config=server.config, server_state=server.server_state, app_state={})

    async def wait(self) -> None:
        """Wait until the server has ended; cancelling the wait leaves the server alone."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self, *, now: bool = False) -> bool:
        """Stop listening, finish the answers under way, close; True if all were finished. `now` drops them."""
        task = self._task
        if task is None:
            return True
        self.stopping = True
        await self._stop_listening()
        self._server.should_exit = True
        cut = 0
        for connection in self._connections():
            connection.shutdown()
        self._gateway.end_feeds()
        done, _ = await asyncio.wait([task], timeout=0 if now else self._grace)
        if not done:
            for connection in self._connections():
                connection.cut()
            cut = self._gateway.cut()
            await asyncio.sleep(0.05)  # the answers that say so are on their way
            for one in [*self._server.server_state.connections]:
                one.transport.abort()  # also of a socket whose client reads nothing
            await task
        self._task = None
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        return not cut
