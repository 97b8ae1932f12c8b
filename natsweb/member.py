"""A service in the cluster: seen by others before its first request, and until after its last.

The order is what loses nothing and runs nothing twice. It looks who else takes its paths; says that it starts, and
waits until the gateways have noted that; subscribes; says that it is up. When it stops it says so first, and then
finishes what is there. Puts `Presence` and `Worker` together; it knows no requests.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Literal

from natsweb.bus import Bus
from natsweb.discovery import Overlap, Presence, overlaps, survey
from natsweb.errors import HTTPError, StartError
from natsweb.micro import INFO, Info, parse_info
from natsweb.subjects import REPLY_PREFIXES
from natsweb.worker import Worker

__all__ = ["Member", "OnOverlap", "start_all"]

logger = logging.getLogger("natsweb.discovery")

#: What to do if another service takes the same paths: only say so, or do not start.
OnOverlap = Literal["warn", "refuse"]


class Member:
    """One instance of a service on `bus`; the other options are those of `Worker`.

    `quiet` is for how many seconds nothing has to come for the answers of others to be complete.
    """

    def __init__(
        self,
        bus: Bus,
        service: Any,
        *,
        root: str | None = None,
        on_overlap: OnOverlap = "warn",
        quiet: float = 0.1,
        **options: Any,
    ) -> None:
        self.bus = bus
        self.quiet = quiet
        self._on_overlap = on_overlap
        reply_prefixes = options.get("reply_prefixes", REPLY_PREFIXES)
        self.presence = Presence(bus, service, root=root, reply_prefixes=reply_prefixes, quiet=quiet)
        self.worker = Worker(bus, service, root=root, **options)

    def __repr__(self) -> str:
        return f"<Member {self.presence.info.name} {self.presence.id}>"

    async def start(self) -> None:
        """Join; when this returns, requests come here.

        Raises `StartError` for an overlap with a service that cannot stand aside, and for any overlap
        if `on_overlap` says so; `NatsRefused` if the server does not let it subscribe.
        """
        await start_all([self])

    async def join(self) -> None:
        """Start without looking who else is there: `start_all` has done so.

        A service that speaks the origin's format is not announced: gateways of natsweb's could not ask it.
        """
        if self.worker.wire is not None:
            await self.worker.start()
            return
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
        if self.worker.wire is not None:
            return await self.worker.stop(grace)
        await self.presence.announce("down")
        try:
            return await self.worker.stop(grace)
        finally:
            self.presence.stop()

    def look_around(self, others: Sequence[Info]) -> None:
        """Compare the service's patterns with those of others.

        Raises `StartError` as `start` does; other overlaps are logged.
        """
        found = overlaps(self.presence.info, others)
        for one in found:
            if one.is_plain or one.is_shared or self._on_overlap == "refuse":
                raise self._refusal(one, found)
        for one in _first_of_each(found):
            first = min(self.presence.info.name, one.other.name)
            more = f", to {first} where the patterns are the same" if one.is_equal else ""
            logger.warning("%s: %s overlap; each request goes to one of them%s", self.presence.info.name, one, more)

    def _refusal(self, one: Overlap, found: list[Overlap]) -> StartError:
        reason, fix = "is there already, and --on-overlap says refuse", ", or start with --on-overlap warn"
        if one.is_plain:
            reason, fix = "knows nothing of natsweb, so that both would run each request", ""
        elif one.is_shared:
            reason, fix = "has the same queue group, so that either gets requests of the other", ", or their queue="
        return StartError(
            f"{self.presence.info.name} takes paths of {one.other.name}, which {reason}",
            where=[str(other) for other in found[:5]],
            fix="change the paths or the root of one of them" + fix,
        )


async def start_all(members: Sequence[Member]) -> None:
    """Start several members on one bus together: see `Member.start`."""
    others = await _infos(members[0].bus, members[0].quiet) if members else []
    for index, member in enumerate(members):
        member.look_around([*others, *[one.presence.info for one in members[:index]]])
    results = await asyncio.gather(*[member.join() for member in members], return_exceptions=True)
    if errors := [one for one in results if one is not None]:
        joined = [member for member, result in zip(members, results, strict=True) if result is None]
        await asyncio.gather(*[member.stop(0) for member in joined], return_exceptions=True)
        raise errors[0]


async def _infos(bus: Bus, quiet: float) -> list[Info]:
    try:
        return [info for info in map(parse_info, await survey(bus, INFO, quiet=quiet)) if info is not None]
    except HTTPError as error:
        logger.warning("who else is there could not be asked: %s", error)
        return []


def _first_of_each(found: list[Overlap]) -> list[Overlap]:
    """Return one overlap for each other service, an equal pattern rather than another."""
    by_name: dict[str, Overlap] = {}
    for one in sorted(found, key=lambda one: one.is_equal):
        by_name[one.other.name] = one
    return list(by_name.values())
