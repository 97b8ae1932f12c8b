"""One OpenAPI document of all services behind a gateway, kept up to date.

Fetches a service's document when the catalogue says that something has changed, and never for a request that could be
answered with what is there. A service that has stopped is shown for a while, so that a restart does not make it
flicker. Knows the catalogue, the bus and what is where at this gateway; it knows no HTTP.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from natsweb.bus import Bus
from natsweb.discovery import Directory
from natsweb.documents import fetch_all, newest, places
from natsweb.gateway.sites import Sites
from natsweb.merges import Source, merge
from natsweb.micro import Info
from natsweb.rules import Rules
from natsweb.subjects import to_path

__all__ = ["Fleet", "Rendered"]

logger = logging.getLogger("natsweb.gateway")

_GRACE = 30.0
_RETRY = 5.0
_MAX_TOTAL = 32 * 1024 * 1024
_MAX_VIEWS = 64


class Rendered(NamedTuple):
    """A document as bytes, and its entity tag."""

    body: bytes
    etag: str


class _Known(NamedTuple):
    """A service, its document, and since when no instance has been there: None while one is."""

    info: Info
    document: Mapping[str, Any]
    gone: float | None = None

    @property
    def size(self) -> int:
        return int(self.info.document.partition(";")[0])


class Fleet:
    """The documents of the services below the roots of `sites`, without what `rules` exclude.

    A service that has stopped stays for `grace` seconds.
    """

    def __init__(self, sites: Sites, rules: Rules, *, grace: float = _GRACE) -> None:
        self._sites = sites
        self._rules = rules
        self._grace = grace
        self._bus: Bus | None = None
        self._directories: dict[str, Directory] = {}
        self._known: dict[str, _Known] = {}
        self._views: dict[tuple[bytes, str], Rendered] = {}
        self._arrivals: dict[str, int] = {}
        self._hosts = {site.host for site in sites.all}
        self._changed = asyncio.Event()
        self._is_stale = True
        self._one_at_a_time = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Fleet of {', '.join(sorted(self._known)) or 'nobody'}>"

    def start(self, bus: Bus, directories: Mapping[str, Directory]) -> None:
        """Begin to fetch documents over `bus`, of the services that `directories` know, by root."""
        self._bus = bus
        self._directories = dict(directories)
        self.changed()
        self._keeper = asyncio.create_task(self._keep(), name="natsweb documents")

    async def stop(self) -> None:
        """Fetch no more, and forget."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._keeper = self._bus = None
        self._directories.clear()
        self._known.clear()
        self._views.clear()

    def changed(self) -> None:
        """Hear that services have come or gone."""
        self._is_stale = True
        self._changed.set()

    async def document(self, host: bytes = b"", mount: str = "") -> Rendered:
        """Return the document that a request to `host` gets, at a gateway mounted at the path `mount`."""
        host = host if host in self._hosts else b""
        async with self._one_at_a_time:
            await self._refresh()
            self._let_go()
            view = self._views.get((host, mount))
            if view is None:
                sources = self._sources(host)
                view = await asyncio.to_thread(_rendered, self._sites.default.root, sources, mount)
                if len(self._views) >= _MAX_VIEWS:
                    self._views.clear()
                self._views[host, mount] = view
            return view

    # ── keeping up ──

    async def _keep(self) -> None:
        """Fetch what is new as soon as it is there: of a service that stops, it is too late."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                async with self._one_at_a_time:
                    await self._refresh()
            except Exception:
                logger.exception("documents could not be brought up to date")

    async def _refresh(self) -> None:
        """Fetch the documents that have changed, if any may have."""
        if not self._is_stale or self._bus is None:
            return
        self._is_stale = False
        self._views.clear()
        now = asyncio.get_running_loop().time()
        wanted = {info.name: info for info in self._there()}
        for name, known in self._known.items():
            if name in wanted:
                same = wanted[name].document == known.info.document
                self._known[name] = known._replace(info=wanted[name] if same else known.info, gone=None)
            elif known.gone is None:
                self._known[name] = known._replace(gone=now)
        missing = [
            info
            for info in wanted.values()
            if info.name not in self._known or self._known[info.name].info.document != info.document
        ]
        found = await fetch_all(self._bus, missing)
        for info in missing:
            if info.id not in found:
                asyncio.get_running_loop().call_later(_RETRY, self.changed)
            elif await self._may_take(info, found[info.id]):
                self._known[info.name] = _Known(info, found[info.id])

    def _there(self) -> list[Info]:
        """Return the instance of each service that came last, of those that are up and have a document."""
        infos = {
            one.info.id: one.info
            for directory in self._directories.values()
            for one in directory.catalogue.instances
            if one.state == "up" and one.info.document
        }
        last = max(self._arrivals.values(), default=0) + 1
        self._arrivals = {id: self._arrivals.get(id, last) for id in infos}
        return newest(sorted(infos.values(), key=lambda info: self._arrivals[info.id]))

    async def _may_take(self, info: Info, document: Mapping[str, Any]) -> bool:
        """Tell whether a document can be shown: there is room, and merging it with nothing works."""
        total = sum([known.size for name, known in self._known.items() if name != info.name])
        if total + int(info.document.partition(";")[0]) > _MAX_TOTAL:
            logger.warning("the OpenAPI document of %s is left out: all together have too many bytes", info.name)
            return False
        try:
            await asyncio.to_thread(_rendered, "", [self._source(info, document, b"")], "")
        except Exception:
            logger.warning("the OpenAPI document of %s is left out: it cannot be merged", info.name, exc_info=True)
            return False
        return True

    def _let_go(self) -> None:
        """Forget services that have been away for longer than the grace."""
        now = asyncio.get_running_loop().time()
        for name, known in list(self._known.items()):
            if known.gone is not None and now - known.gone >= self._grace:
                del self._known[name]
                self._views.clear()

    # ── what is where ──

    def _sources(self, host: bytes) -> list[Source]:
        return [self._source(known.info, known.document, host) for known in self._known.values()]

    def _source(self, info: Info, document: Mapping[str, Any], host: bytes) -> Source:
        """Return a service with the places that its paths have at this gateway, for requests to `host`."""
        found: dict[str, Any] = {}
        for site in self._sites.all:
            directory = self._directories.get(site.root)
            if directory is None or site.host not in (b"", host):
                continue
            excluded = self._rules.excluded(site.root)

            def shows(subject: str, tokens: Any, root: str = site.root, excluded: tuple[str, ...] = excluded) -> bool:
                picked, _ = self._sites.pick(host, to_path(tokens).encode("latin-1"))
                return picked == root and not f"{subject}.".startswith(excluded)

            for path, some in places(info, directory.catalogue, front=site.tokens, shows=shows).items():
                found.setdefault(path, []).extend(some)
        return Source(info.name, info.version, document, found)


def _rendered(title: str, sources: list[Source], mount: str) -> Rendered:
    document = merge(title, sources)
    if mount:
        document["servers"] = [{"url": mount}]
    body = json.dumps(document, separators=(",", ":")).encode()
    return Rendered(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
