"""A service in the cluster: seen by others before its first request, and until after its last.

The order is what loses nothing and runs nothing twice. It looks who else takes its paths; says that it starts, and
waits until the gateways have noted that; subscribes; says that it is up. When it stops it says so first, and then
finishes what is there. Puts `Presence` and `Worker` together; it knows no requests.
"""

import logging
from typing import Any, Literal

from natsweb.bus import Bus
from natsweb.discovery import Overlap, Presence, overlaps, survey
from natsweb.errors import HTTPError, StartError
from natsweb.micro import INFO, parse_info
from natsweb.subjects import REPLY_PREFIXES
from natsweb.worker import Worker

__all__ = ["Member", "OnOverlap"]

logger = logging.getLogger("natsweb.discovery")

#: What to do if another service takes the same paths: only say so, or do not start.
OnOverlap = Literal["warn", "refuse"]


class Member:
    """One instance of a service on `bus`; the other options are those of `Worker`."""

    def __init__(
        self,
        bus: Bus,
        service: Any,
        *,
        root: str | None = None,
        on_overlap: OnOverlap = "warn",
        **options: Any,
    ) -> None:
        self._bus = bus
        self._on_overlap = on_overlap
        reply_prefixes = options.get("reply_prefixes", REPLY_PREFIXES)
        self.presence = Presence(bus, service, root=root, reply_prefixes=reply_prefixes)
        self.worker = Worker(bus, service, root=root, **options)

    def __repr__(self) -> str:
        return f"<Member {self.presence.info.name} {self.presence.id}>"

    async def start(self) -> None:
        """Join; when this returns, requests come here.

        Raises `StartError` for an overlap with a service that cannot stand aside, and for any overlap
        if `on_overlap` says so; `NatsRefused` if the server does not let it subscribe.
        """
        await self._look_around()
        await self.presence.start()
        await self.presence.announce("starting")
        try:
            await self.worker.start()
        except BaseException:
            await self.presence.announce("down")
            self.presence.stop()
            raise
        await self.presence.announce("up")

    async def stop(self, grace: float = 25.0) -> bool:
        """Leave; True if all requests were finished within `grace` seconds."""
        await self.presence.announce("down")
        try:
            return await self.worker.stop(grace)
        finally:
            self.presence.stop()

    async def _look_around(self) -> None:
        try:
            answers = await survey(self._bus, INFO)
        except HTTPError as error:
            logger.warning("who else is there could not be asked: %s", error)
            return
        others = [info for info in map(parse_info, answers) if info is not None]
        found = overlaps(self.presence.info, others)
        for one in found:
            if one.is_plain or self._on_overlap == "refuse":
                raise self._refusal(one, found)
        for one in _first_of_each(found):
            first = min(self.presence.info.name, one.other.name)
            more = f", to {first} where the patterns are the same" if one.is_equal else ""
            logger.warning("%s: %s overlap; each request goes to one of them%s", self.presence.info.name, one, more)

    def _refusal(self, one: Overlap, found: list[Overlap]) -> StartError:
        reason = (
            "knows nothing of natsweb, so that both would run each request"
            if one.is_plain
            else "is there already, and --on-overlap says refuse"
        )
        return StartError(
            f"{self.presence.info.name} takes paths of {one.other.name}, which {reason}",
            where=[str(other) for other in found[:5]],
            fix="change the paths or the root of one of them"
            + ("" if one.is_plain else ", or start with --on-overlap warn"),
        )


def _first_of_each(found: list[Overlap]) -> list[Overlap]:
    """Return one overlap for each other service, an equal pattern rather than another."""
    by_name: dict[str, Overlap] = {}
    for one in sorted(found, key=lambda one: one.is_equal):
        by_name[one.other.name] = one
    return list(by_name.values())
