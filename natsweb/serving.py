"""Serving an application from code: `async with serve(app, nats=url, mount="/shop"): ...`.

What `natsweb run` does for a process, for a program that does other things besides, or for a test suite that serves a
thousand applications in turn. Starts and stops quickly, and leaves nothing behind.
"""

from collections import deque
from typing import Any, Self

from starlette.types import ASGIApp

from natsweb.bus import Bus
from natsweb.errors import SettingsError
from natsweb.member import Member
from natsweb.natsbus import connect
from natsweb.service import Service
from natsweb.settings import Nats, find_nats
from natsweb.subscriber import Subscriber

__all__ = ["serve"]

_QUIET = 0.02
_FAILURES = 100


class serve:  # it reads as what it does
    """Serves a `Service`, or any ASGI application at `mount`, below `root` for as long as a `with` block lasts.

    `nats` is a server URL or `Nats` settings (default: found as the command line does), `bus` a connection that is used
    instead and stays open. `name` is what the service of an application is called. `grace` is how many seconds requests
    under way have at the end. `options` are those of `Worker`: `concurrency`, `timeout`. What the application raises is
    a 500 for the caller; it is logged, and the last hundred stand in `failures`.

    Raises `NatsUnreachable`, `StartError` if the application does not start, `SettingsError` for a service that is to
    be mounted.
    """

    def __init__(
        self,
        app: Service | ASGIApp,
        *,
        nats: str | Nats | None = None,
        bus: Bus | None = None,
        root: str | None = None,
        mount: str | None = None,
        name: str | None = None,
        grace: float = 5.0,
        **options: Any,
    ) -> None:
        if isinstance(app, Service):
            if mount is not None or name is not None:
                raise SettingsError(f"{app!r} has its own paths and name", fix="leave mount= and name= out")
            self.service = app
        else:
            self.service = Service(name or "app")
            self.service.mount(mount or "/", app)
        self.failures: deque[BaseException] = deque(maxlen=_FAILURES)
        self._nats = nats
        self._given_bus = bus
        self._root = root
        self._grace = grace
        self._options = options
        self._bus: Bus | None = None
        self._member: Member | None = None

    def __repr__(self) -> str:
        return f"<serve {self.service.name}: {'serving' if self._member else 'not started'}>"

    @property
    def events(self) -> Subscriber | None:
        """What runs the event handlers, while it serves: for test clients."""
        return None if self._member is None else self._member.worker.events

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Connect, start the application, and take requests; when this returns, they come here."""
        self.service.on_failure = self.failures.append
        bus = self._given_bus
        if bus is None:
            nats = self._nats if isinstance(self._nats, Nats) else find_nats(url=self._nats)
            bus = self._bus = await connect(nats, name=f"natsweb/{self.service.name}")
        self.service.attach(bus, self._root)
        try:
            self.service.compile()
            member = Member(bus, self.service, root=self._root, quiet=_QUIET, **self._options)
            await self.service.start()
            await member.start()
            self._member = member
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> bool:
        """Take no more requests, finish those that are here, and let go of all; True if all were finished."""
        member, self._member = self._member, None
        bus, self._bus = self._bus, None
        finished = True
        try:
            if member is not None:
                finished = await member.stop(self._grace)
        finally:
            await self.service.stop()
            if bus is not None:
                await bus.close()
        return finished
