"""An application below a path of a service: all that no route of the service takes goes to it.

Two endpoints of the router, for the path itself and for what is below, with every method and WebSockets. Knows ASGI
applications by their wrapper; it calls them through it.
"""

import re
from dataclasses import dataclass, field

from natsweb.annotations import name_of
from natsweb.asgi import AsgiApp
from natsweb.counters import Counter
from natsweb.micro import PATH, STREAMS, Endpoint
from natsweb.paths import Template

__all__ = ["ANY_METHOD", "Mount", "mounts"]

ANY_METHOD = "*"


@dataclass(slots=True, eq=False)
class Mount:
    """One endpoint of a mounted application; `line` is where it was mounted."""

    template: Template
    app: AsgiApp
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


def mounts(prefix: str, app: AsgiApp, line: str) -> list[Mount]:
    """Return the endpoints of an application at `prefix`, which is empty for the top."""
    below = Template.parse(f"{prefix}/<path:rest>")
    return [Mount(Template.parse(prefix or "/"), app, line), Mount(below, app, line)]
