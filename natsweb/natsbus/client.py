"""A nats-py client as natsweb wants it: connects fast or says why, survives what peers send, tells when it is gone.

Maps nats-py's options and errors to ours, in one place.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from natsweb.errors import NatsUnreachable
from natsweb.natsbus.frames import Frames
from natsweb.settings import Nats

__all__ = ["RawClient", "RawHeaders", "close_quietly", "open_client", "say"]

_CONNECT_TIMEOUT = 2
_RECONNECT_WAIT = 0.2
_PING_INTERVAL = 1
_PINGS_MISSED = 2
_CLOSING = 3.0


class RawHeaders(dict[str, str]):
    """What nats-py hands on as headers: the header block as it came."""

    block: bytes = b""


class RawClient(Client):
    """A nats-py client with our parser, that keeps header blocks and survives subjects that are not UTF-8."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = Frames(self)
        self._ps = self.frames

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        if not headers:
            return None
        raw = RawHeaders()
        raw.block = bytes(headers)
        return raw

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Msg:
        return Msg(
            _client=self,
            subject=subject.decode("latin-1"),
            reply=reply.decode("latin-1"),
            data=data,
            headers=headers,
            _sid=sid,
        )


async def open_client(
    settings: Nats,
    name: str,
    *,
    on_error: Callable[[RawClient, str], None],
    on_down: Callable[[RawClient], None],
    on_up: Callable[[RawClient], None],
    on_closed: Callable[[RawClient], None],
) -> RawClient:
    """Return a connected client; raises `NatsUnreachable` soon when no server takes us.

    From then on it reconnects for ever, and says so: `on_down` when the connection is lost, `on_up` when it is
    back with all subscriptions, `on_closed` when nats-py has given up for good, `on_error` for what a server says.
    """
    client = RawClient()
    problems: list[str] = []

    async def error_cb(error: Exception) -> None:
        problems.append(say(error))
        on_error(client, problems[-1])

    async def disconnected_cb() -> None:
        on_down(client)

    async def reconnected_cb() -> None:
        on_up(client)

    async def closed_cb() -> None:
        on_closed(client)

    try:
        await client.connect(
            servers=list(settings.urls),
            name=name,
            error_cb=error_cb,
            disconnected_cb=disconnected_cb,
            reconnected_cb=reconnected_cb,
            closed_cb=closed_cb,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=_RECONNECT_WAIT,  # type: ignore[arg-type]  # seconds, and fractions work
            connect_timeout=_CONNECT_TIMEOUT,
            ping_interval=_PING_INTERVAL,
            max_outstanding_pings=_PINGS_MISSED,
            pending_size=0,
            inbox_prefix=settings.inbox_prefix,
            **_login(settings),
        )
    except (OSError, nats.errors.Error, TimeoutError, ValueError) as error:
        why = problems[-1] if problems else say(error)
        if isinstance(error, ConnectionError) and getattr(client, "_server_info", {}).get("auth_required"):
            # The server says why and hangs up; a client that is still writing loses the words.
            why = "authorization violation"
        await close_quietly(client)
        raise _unreachable(settings, why) from error
    except BaseException:  # cancelled while it connects
        await close_quietly(client)
        raise
    # The same options govern the first connect, which must fail soon, and all later ones, which never give up.
    client.options["allow_reconnect"] = True
    client.options["max_reconnect_attempts"] = -1
    del problems[:]
    return client


async def close_quietly(client: Client) -> None:
    """Close a client, whatever state it is in, within some seconds."""
    # Closing while reconnecting raises ConnectionResetError and others, waits for a transport that is gone, or is
    # "cancelled" with the task that reconnects: both await one future. Gathered, this is told from our own end.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSING):
            await asyncio.gather(client.close(), return_exceptions=True)
    # nats-py cancels its task that reconnects, once; asyncio.wait_for forgets that if a server refuses the connection
    # in the same moment (before Python 3.12), and the task would go on for ever.
    task = getattr(client, "_reconnection_task", None)
    if task is not None and task is not asyncio.current_task():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                while not task.done():
                    task.cancel()
                    await asyncio.wait([task], timeout=0.1)


def _login(nats: Nats) -> dict[str, Any]:
    """Return the connect options of a login and TLS."""
    options: dict[str, Any] = {
        "user": nats.user,
        "password": nats.password,
        "token": nats.token,
        "user_credentials": str(nats.creds) if nats.creds else None,
        "tls_handshake_first": nats.tls_first,
    }
    if nats.nkey is not None:
        options["nkeys_seed_str"] = nats.nkey.read_text().strip()
    if nats.ca or nats.cert or nats.tls_first:
        context = ssl.create_default_context(cafile=str(nats.ca) if nats.ca else None)
        if nats.cert:
            context.load_cert_chain(str(nats.cert), str(nats.key) if nats.key else None)
        options["tls"] = context
    return options


def say(error: BaseException) -> str:
    """Return an error of nats-py in a few words, without credentials."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    text = str(error).removeprefix("nats: ").strip("' ") or type(error).__name__
    return re.sub(r"//[^@/\s]+@", "//***@", text)


def _unreachable(nats: Nats, why: str) -> NatsUnreachable:
    if "authorization" in why.lower() or "authentication" in why.lower():
        return NatsUnreachable(
            f"the NATS server at {nats.display} refused the login ({why})",
            where=f"looked at: {', '.join(nats.looked_at)}" if nats.looked_at else (),
            fix="check user, password, token or credentials file (NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_CREDS)",
        )
    return NatsUnreachable(
        f"no NATS server at {nats.display} ({why})",
        where=f"looked at: {', '.join(nats.looked_at)}" if nats.looked_at else (),
        fix="natsweb dev starts one for you, or set NATS_URL",
    )
