"""Whether the processes that this one shares work with are alive: one beat a second to each (docs/wire.md, life).

A beat goes to `<inbox>.beat` of the other process and names ours as its reply. If nobody listens there twice in a row,
the process is gone; if nothing of it was heard for half a minute, it counts as gone. Whoever shares work joins, and is
told. Knows subjects and beats; it knows no requests.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from natsweb.errors import HTTPError
from natsweb.wire import is_no_responders

__all__ = ["Peer", "Pulse", "Shared"]

logger = logging.getLogger("natsweb.beats")

_BEAT = 1.0
_MISSES = 2
_SILENCE = 30
_REMINDER = 10
# Subjects that a server makes up for one exchange (imports, superclusters): there is no beat beside them.
_REWRITTEN = (b"_R_.", b"_GR_.")

#: Sends a payload on a subject, with a reply subject.
Post = Callable[[bytes, bytes], None]


class Shared(Protocol):
    """Work that two processes share; `flows` tells that it is a stream, which silence ends, and not one answer."""

    @property
    def flows(self) -> bool: ...

    @property
    def to(self) -> bytes:
        """The subject that it sends to."""
        ...

    def lose(self, why: str) -> None:
        """The other process is gone."""

    def remind(self) -> None:
        """Say something to the other process, so that it knows of us."""


class Peer:
    """Another process, as long as there is work that is shared with it; `heard` is set by every message of it."""

    __slots__ = ("beat", "heard", "missed", "shared", "silent")

    def __init__(self, beat: bytes) -> None:
        self.beat = beat
        self.shared: set[Shared] = set()
        self.heard = True
        self.missed = 0
        self.silent = 0

    def __repr__(self) -> str:
        return f"<Peer {self.beat.decode('latin-1')}: {len(self.shared)} shared, {self.silent} s silent>"


class Pulse:
    """The beats of one process, whose inbox is `inbox`; `post` sends."""

    def __init__(self, inbox: bytes, post: Post) -> None:
        self.subject = inbox + b".beat"
        self._post = post
        self._peers: dict[bytes, Peer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pulse {self.subject.decode('latin-1')}: {len(self._peers)} peers>"

    def join(self, subject: bytes, shared: Shared) -> Peer:
        """Begin to share work with the process that has `subject` in its inbox."""
        inbox = subject.rpartition(b".")[0]
        beat = inbox + b".beat"
        if subject.startswith(_REWRITTEN) or b"." not in inbox:  # an inbox of one message has no beat beside it
            beat = subject  # a peer of its own: only its silence tells
        peer = self._peers.get(beat)
        if peer is None:
            peer = self._peers[beat] = Peer(beat)
        peer.shared.add(shared)
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(_BEAT, self._tick)
        return peer

    def leave(self, peer: Peer, shared: Shared) -> None:
        """End a piece of shared work."""
        peer.shared.discard(shared)
        if not peer.shared:
            self._peers.pop(peer.beat, None)

    def hear(self, reply: bytes, header: bytes | None) -> None:
        """Take a message on our beat subject: a beat of another, or the server's word that nobody listens to ours."""
        if is_no_responders(header):
            self._nobody(header or b"")
            return
        peer = self._peers.get(reply)
        if peer is not None:
            peer.heard = True

    def _nobody(self, header: bytes) -> None:
        for line in header.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"nats-subject":
                peer = self._peers.get(value.strip())
                if peer is not None:
                    peer.missed += 1
                    if peer.missed >= _MISSES:
                        self._lose(peer, "its process is gone")

    def _tick(self) -> None:
        self._timer = None
        for peer in list(self._peers.values()):
            if peer.heard:
                peer.heard, peer.silent, peer.missed = False, 0, 0
            else:
                peer.silent += 1
            if peer.silent >= _SILENCE:
                self._hush(peer)
            if peer.beat.endswith(b".beat"):
                self._beat(peer)
            elif peer.silent % _REMINDER == 1:
                for shared in peer.shared:
                    shared.remind()
        if self._peers and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(_BEAT, self._tick)

    def _hush(self, peer: Peer) -> None:
        """End the streams with a process that has been silent: one answer has its own time."""
        for shared in [one for one in peer.shared if one.flows]:
            self.leave(peer, shared)
            self._tell(shared, f"nothing was heard of its process for {_SILENCE} s")

    def refused(self, subject: bytes) -> None:
        """End the work whose messages the server does not let pass; `subject` is in lower case, as it says it."""
        for peer in list(self._peers.values()):
            for shared in [one for one in peer.shared if one.to.lower() == subject]:
                self.leave(peer, shared)
                self._tell(shared, "NATS does not let this user publish its messages")

    def _beat(self, peer: Peer) -> None:
        try:
            self._post(peer.beat, self.subject)
        except HTTPError:
            logger.debug("no beat to %r: there is no connection to NATS", peer)

    def _lose(self, peer: Peer, why: str) -> None:
        self._peers.pop(peer.beat, None)
        for shared in list(peer.shared):
            self._tell(shared, why)
        peer.shared.clear()

    @staticmethod
    def _tell(shared: Shared, why: str) -> None:
        try:
            shared.lose(why)
        except Exception:
            logger.exception("ending what was shared with a process that is gone failed")

    def close(self) -> None:
        """Send no more beats."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
