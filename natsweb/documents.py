"""OpenAPI documents on NATS: an instance answers its own in parts, and whoever asks puts them together.

An instance says the size and the hash of its document in its metadata, so that nobody takes a part for the whole, or
asks again for what they have. Knows the bus and what services say of themselves; it calls no handler.
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from natsweb.bus import Bus, request
from natsweb.catalogue import Catalogue
from natsweb.errors import BadReply, HTTPError, TimeUp
from natsweb.merges import Place, parse, shape_of
from natsweb.micro import DOCUMENT, OPENAPI, Info
from natsweb.openapi import path_of
from natsweb.subjects import to_path, tokens_below

__all__ = ["MAX_SIZE", "Paper", "document_subject", "fetch", "fetch_all", "newest", "places"]

logger = logging.getLogger("natsweb.documents")

#: Largest document that is sent or taken, in bytes.
MAX_SIZE = 8 * 1024 * 1024

_PART = 256 * 1024
_PART_TIME = 2.0
_TIME = 10.0
_AT_ONCE = 8


# ── a service's side ─────────────────────────────────────────────────────────────────────────────


class Paper:
    """The document of one instance, as bytes. Without one, since it has no routes or is too large, `metadata` is empty.

    `write` makes the document; what it raises is logged, for a service serves without a document as well.
    """

    def __init__(self, name: str, write: Callable[[], dict[str, Any]]) -> None:
        self._bytes = _written(name, write)
        self.metadata = {DOCUMENT: _print(self._bytes)} if self._bytes else {}

    def __repr__(self) -> str:
        return f"<Paper of {len(self._bytes)} bytes>"

    def part(self, largest: int, asked: bytes) -> bytes:
        """Return at most `largest` bytes from the offset on that was asked for; nothing for what is none."""
        offset = int(asked or b"0") if re.fullmatch(rb"\d{0,9}", asked) else len(self._bytes)
        return self._bytes[offset : offset + min(largest, _PART)]


def _written(name: str, write: Callable[[], dict[str, Any]]) -> bytes:
    try:
        document = write()
        found = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    except Exception:
        logger.warning("%s has no OpenAPI document, since it cannot be written", name, exc_info=True)
        return b""
    if len(found) > MAX_SIZE:
        logger.warning(
            "%s has an OpenAPI document of %d bytes; it is not answered, since more than %d are too many",
            name,
            len(found),
            MAX_SIZE,
        )
        return b""
    return found if document["paths"] else b""


def _print(document: bytes) -> str:
    return f"{len(document)};{hashlib.sha256(document).hexdigest()[:16]}"


def document_subject(info: Info) -> str:
    """Return the subject on which an instance is asked for its document."""
    return f"{OPENAPI}.{info.name}.{info.id}"


# ── the other side ───────────────────────────────────────────────────────────────────────────────


async def fetch(bus: Bus, info: Info) -> dict[str, Any]:
    """Return the document of an instance, whole.

    Raises `NoService` if it is gone or has none, `TimeUp` after 10 seconds, and `BadReply` for anything that is not
    the document that its metadata tell of.
    """
    found = bytearray()
    size = _size(info)
    try:
        async with asyncio.timeout(_TIME):
            while len(found) < size:
                asked = str(len(found)).encode()
                answer = await request(bus, document_subject(info), asked, timeout=_PART_TIME)
                if not answer.payload or len(found) + len(answer.payload) > size:
                    raise BadReply(f"{info.name} answers another document than it says")
                found += answer.payload
    except TimeoutError:
        raise TimeUp(f"the document of {info.name} takes longer than {_TIME:g} s") from None
    document = parse(bytes(found)) if _print(bytes(found)) == info.document else None
    if document is None:
        raise BadReply(f"{info.name} answers another document than it says")
    return document


def _size(info: Info) -> int:
    match = re.fullmatch(r"(\d{1,9});[0-9a-f]{16}", info.document)
    if match is None:
        raise BadReply(f"{info.name} says nothing of an OpenAPI document that could be understood")
    size = int(match[1])
    if size > MAX_SIZE:
        raise BadReply(f"{info.name} has an OpenAPI document of {size} bytes; more than {MAX_SIZE} are too many")
    return size


async def fetch_all(bus: Bus, infos: Iterable[Info]) -> dict[str, dict[str, Any]]:
    """Return the documents of several instances by their ids; those that do not come are left out, and logged."""
    slots = asyncio.Semaphore(_AT_ONCE)
    found: dict[str, dict[str, Any]] = {}

    async def take(info: Info) -> None:
        async with slots:
            try:
                found[info.id] = await fetch(bus, info)
            except HTTPError as error:
                logger.warning("the OpenAPI document of %s (%s) is left out: %s", info.name, info.id, error.detail)

    await asyncio.gather(*[take(info) for info in infos])
    return found


def newest(infos: Iterable[Info]) -> list[Info]:
    """Return one instance of each service, the last one in a row whose order is that of age or version."""
    return list({info.name: info for info in infos}.values())


def places(
    info: Info,
    catalogue: Catalogue,
    *,
    front: Sequence[str] = (),
    shows: Callable[[str, Sequence[str]], bool] = lambda subject, tokens: True,
) -> dict[str, list[Place]]:
    """Return where the paths of an instance's document are found below the root of `catalogue`, by their shapes.

    Only endpoints count that it has, and methods that no other service is asked for in its stead. `front` are tokens
    that stand before all paths; `shows` tells of a subject pattern, and its tokens with those, whether it is shown.
    """
    found: dict[str, list[Place]] = {}
    for endpoint in info.endpoints:
        tokens = tokens_below(catalogue.root, endpoint.subject)
        template = endpoint.path
        if tokens is None or template is None or not template.startswith("/"):
            continue
        segments = [] if template == "/" else template[1:].split("/")
        cut, added = max(0, len(segments) - len(tokens)), max(0, len(tokens) - len(segments))
        if any(one.startswith("<") for one in segments[:cut]) or not shows(endpoint.subject, [*front, *tokens]):
            continue
        path = to_path([*front, *tokens[:added]]).rstrip("/") + "".join([f"/{path_of(one)}" for one in segments[cut:]])
        methods = [one for one in endpoint.methods if catalogue.claimant(one, tokens) in (None, info.name)]
        place = Place(path or "/", frozenset(methods) if endpoint.methods else None)
        found.setdefault(shape_of(path_of(template)), []).append(place)
    return found
