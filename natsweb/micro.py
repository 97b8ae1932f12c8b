"""NATS micro services (ADR-32): the documents of `$SRV.PING`, `INFO` and `STATS`, and natsweb's announcements.

Every natsweb service is one. Its endpoints carry method and path template in their metadata, so that a gateway knows
from `INFO` alone which requests are whose. What other services say is validated before it is believed. Values and
JSON only: no bus, no clock.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

__all__ = [
    "ANNOUNCE",
    "DOCUMENT",
    "INFO",
    "METHOD",
    "OPENAPI",
    "PATH",
    "PING",
    "PREFIX",
    "ROOT",
    "ROUTES",
    "STATE",
    "STATS",
    "STREAMS",
    "WIRE",
    "Announcement",
    "Endpoint",
    "EndpointStats",
    "Info",
    "Ping",
    "State",
    "Stats",
    "parse_announcement",
    "parse_info",
    "parse_ping",
    "parse_stats",
    "routes_hash",
    "verb_subjects",
]

D = TypeVar("D", bound=BaseModel)

PREFIX = "$SRV"
PING, INFO, STATS = "PING", "INFO", "STATS"

#: Where services say that they start, serve and stop (docs/wire.md, discovery).
ANNOUNCE = f"{PREFIX}.NW.ANNOUNCE"

#: Where an instance answers its OpenAPI document, with its name and id behind it.
OPENAPI = f"{PREFIX}.OPENAPI"

_NAME = r"^[A-Za-z0-9_-]+$"
_ID = r"^[A-Za-z0-9_-]{1,128}$"

#: A service that starts has not subscribed yet; one that stops takes no more.
State = Literal["starting", "up", "down"]

#: Keys of metadata.
METHOD, PATH, STREAMS = "http.method", "http.path", "natsweb.streams"
WIRE, ROOT, ROUTES, STATE = "natsweb.wire", "natsweb.root", "natsweb.routes", "natsweb.state"
DOCUMENT = "natsweb.openapi"


#: Text that other clients leave out as `null`.
Said = Annotated[str, BeforeValidator(lambda value: value or "")]


class Endpoint(BaseModel):
    """One endpoint: a subject pattern and the queue group that shares it."""

    name: str = Field(max_length=256)
    subject: str = Field(min_length=1, max_length=4096, pattern=r"^[^\s\x00-\x20\x7f]+$")
    queue_group: Annotated[Said, Field(max_length=256)] = "q"
    metadata: dict[str, str] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The HTTP methods that it answers; none for an endpoint that knows of no HTTP."""
        said = (self.metadata or {}).get(METHOD, "")
        return tuple([method for method in said.split(",") if method])

    @property
    def path(self) -> str | None:
        """Its path template."""
        return (self.metadata or {}).get(PATH)

    @property
    def takes_body(self) -> bool:
        """Whether it takes its body as it comes."""
        return (self.metadata or {}).get(STREAMS) == "body"

    @property
    def streams(self) -> bool:
        """Whether it takes and gives streams."""
        return (self.metadata or {}).get(STREAMS) in ("yes", "body")


class EndpointStats(Endpoint):
    """What one endpoint has done; times in nanoseconds."""

    num_requests: int = 0
    num_errors: int = 0
    last_error: Said = ""
    processing_time: int = 0
    average_processing_time: int = 0
    data: Any = None


class _Document(BaseModel):
    type: str = ""
    name: str = Field(pattern=_NAME, max_length=256)
    id: str = Field(pattern=_ID)
    version: str = Field(max_length=256)
    metadata: dict[str, str] | None = None


class Ping(_Document):
    """The answer to `PING`."""

    type: str = "io.nats.micro.v1.ping_response"


class Info(_Document):
    """The answer to `INFO`: what a service instance is, and its endpoints."""

    type: str = "io.nats.micro.v1.info_response"
    description: Said = ""
    endpoints: Annotated[list[Endpoint], BeforeValidator(lambda value: value or [])] = []

    @property
    def is_natsweb(self) -> bool:
        """Whether it knows of `Nw-Service`, and stands aside for others."""
        return bool((self.metadata or {}).get(WIRE))

    @cached_property
    def routes(self) -> str:
        """A hash of its endpoints: equal for instances with the same routes, whatever they say."""
        return routes_hash(self.endpoints)

    @property
    def document(self) -> str:
        """Size and hash of its OpenAPI document; empty if it has none."""
        return (self.metadata or {}).get(DOCUMENT, "")

    @property
    def state(self) -> State:
        """What it does now; a service that does not say so is up."""
        said = (self.metadata or {}).get(STATE)
        return "starting" if said == "starting" else "down" if said == "down" else "up"

    def stating(self, state: State) -> "Info":
        """Return the same with another state."""
        return self.model_copy(update={"metadata": {**(self.metadata or {}), STATE: state}})

    def ping(self) -> Ping:
        """Return the answer to `PING` of the same instance."""
        return Ping(name=self.name, id=self.id, version=self.version, metadata=self.metadata)


class Stats(_Document):
    """The answer to `STATS`; `started` is UTC in ISO 8601."""

    type: str = "io.nats.micro.v1.stats_response"
    started: str = ""
    endpoints: Annotated[list[EndpointStats], BeforeValidator(lambda value: value or [])] = []


class Announcement(BaseModel):
    """What a service says of itself unasked."""

    type: str = "io.natsweb.v1.announcement"
    state: State
    info: Info


def verb_subjects(verb: str, name: str, id: str) -> list[str]:
    """Return the three subjects on which an instance is asked for `verb`."""
    return [f"{PREFIX}.{verb}", f"{PREFIX}.{verb}.{name}", f"{PREFIX}.{verb}.{name}.{id}"]


def routes_hash(endpoints: Iterable[Endpoint]) -> str:
    """Return a short hash of what endpoints take: subjects, queue groups, metadata."""
    said: Sequence[Any] = sorted(
        [one.subject, one.queue_group, *sorted(f"{key}={value}" for key, value in (one.metadata or {}).items())]
        for one in endpoints
    )
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def parse_info(payload: bytes) -> Info | None:
    """Return the answer to `INFO`, or None for anything else."""
    return _parse(Info, payload)


def parse_ping(payload: bytes) -> Ping | None:
    """Return the answer to `PING`, or None for anything else."""
    return _parse(Ping, payload)


def parse_stats(payload: bytes) -> Stats | None:
    """Return the answer to `STATS`, or None for anything else."""
    return _parse(Stats, payload)


def parse_announcement(payload: bytes) -> Announcement | None:
    """Return an announcement, or None for anything else."""
    return _parse(Announcement, payload)


def _parse(kind: type[D], payload: bytes) -> D | None:
    try:
        return kind.model_validate_json(payload)
    except ValidationError:
        return None
