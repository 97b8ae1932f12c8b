"""An application below a path of a service: all that no route of the service takes goes to it.

Two endpoints of the router, for the path itself and for what is below, with every method and WebSockets. An ASGI
application sees the whole path, and where it is mounted; a natsweb `Handler` sees what is below.
"""

import inspect
import re
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from natsweb.annotations import name_of
from natsweb.counters import Counter
from natsweb.messages import Call, Request, Response
from natsweb.micro import PATH, STREAMS, Endpoint
from natsweb.middleware import Handler
from natsweb.paths import Template
from natsweb.routing import ANY_METHOD
from natsweb.subjects import to_path

__all__ = ["Below", "Mount", "Mounted", "is_handler", "mounts"]


class Mounted(Protocol):
    """An application that can be mounted: it answers, and lives as long as the service."""

    @property
    def app(self) -> Any:
        """What was mounted."""
        ...

    async def handle(self, call: Call | Request) -> Response:
        """Answer one request."""
        ...

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...


def is_handler(app: Any) -> bool:
    """Tell whether something is a natsweb handler, a coroutine function of one request, or a service."""
    if hasattr(app, "handle") and hasattr(app, "patterns"):
        return True
    call = app if inspect.isroutine(app) else getattr(app, "__call__", None)  # noqa: B004
    if not inspect.iscoroutinefunction(call):
        return False
    required = [one for one in inspect.signature(call).parameters.values() if one.default is one.empty]
    return len(required) == 1


class Below:
    """A natsweb handler, or a service, under a prefix: it sees the path below."""

    def __init__(self, prefix: str, app: Any) -> None:
        self.app = app
        self._prefix = prefix
        self._depth = prefix.count("/")
        self._handle: Handler = getattr(app, "handle", app)

    def __repr__(self) -> str:
        return f"<{name_of(self.app)} below {self._prefix or '/'}>"

    async def __aenter__(self) -> Self:
        if hasattr(self.app, "start"):
            await self.app.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self.app, "stop"):
            await self.app.stop()

    async def handle(self, call: Call | Request) -> Response:
        """Answer one request."""
        request = call.request()
        below = to_path(request.tokens[self._depth :])
        return await self._handle(
            request.model_copy(update={"raw_path": below, "root_path": request.root_path + self._prefix})
        )


@dataclass(slots=True, eq=False)
class Mount:
    """One endpoint of a mounted application; `line` is where it was mounted."""

    template: Template
    app: Mounted
    line: str
    counter: Counter = field(default_factory=Counter)
    methods: tuple[str, ...] = (ANY_METHOD,)

    @property
    def name(self) -> str:
        """What the application is called."""
        return name_of(self.app.app)

    @property
    def place(self) -> str:
        """Where it was mounted, for messages."""
        return f"{self.line} mount of {self.name}"

    def endpoint(self, root: str, queue: str) -> Endpoint:
        """Return what NATS micro services are told of it: without methods, it takes all of them."""
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)
        metadata = {PATH: str(self.template), STREAMS: "body"}
        return Endpoint(name=name, subject=self.template.pattern(root), queue_group=queue, metadata=metadata)


def mounts(prefix: str, app: Mounted, line: str) -> list[Mount]:
    """Return the endpoints of an application at `prefix`, which is empty for the top."""
    below = Template.parse(f"{prefix}/<path:rest>")
    return [Mount(Template.parse(prefix or "/"), app, line), Mount(below, app, line)]
