"""The letters of the wire format: names of its own fields, field lines, and which of them may cross.

Header fields pass through as the bytes that came; `Nw-*` and `Nats-*` are the wire's own and never the HTTP side's.
Whatever a peer sends is hostile until decoded. Knows lines, not messages.
"""

import re
from collections.abc import Iterable
from typing import TypeVar

from natsweb.errors import BadReply, BadRequest
from natsweb.headers import HOP_BY_HOP, Headers, connection_options

__all__ = ["encode_fields", "forwarded_fields"]

START = b"NATS/1.0\r\n"
END = b"\r\n"

METHOD = b"nw-method"
QUERY = b"nw-query"
TIMEOUT = b"nw-timeout"
SENT = b"nw-sent"
SERVICE = b"nw-service"
CLIENT = b"nw-client"
SCHEME = b"nw-scheme"
ACCEPT = b"nw-accept"
MORE = b"nw-more"
UPGRADE = b"nw-upgrade"
VERSION = b"nw-version"
STATUS = b"nw-status"
STREAM = b"nw-stream"
FLOW = b"nw-flow"
ENDED = b"nw-end"
ERROR_CODE = b"nats-service-error-code"

_FIELD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n"
_FIELDS = re.compile(rb"(?:" + _FIELD + rb")*").fullmatch
_BLOCK = re.compile(rb"NATS/1\.0[ \t]*\r\n((?:" + _FIELD + rb")*)\r\n").fullmatch
DIGITS = re.compile(rb"[0-9]{1,15}").fullmatch
_DROPPED = HOP_BY_HOP | {b"content-length", b"expect"}

# Header blocks repeat: most replies of a service have the same, most requests of a client the same fields.
_KNOWN = 512
KNOWN_SIZE = 2048

K = TypeVar("K")
V = TypeVar("V")


def remember(known: dict[K, V], key: K, value: V) -> None:
    """Keep what has been worked out, of the last few."""
    if len(known) >= _KNOWN:
        known.clear()
    known[key] = value


def is_ours(name: bytes) -> bool:
    """Tell whether a lower-case field name belongs to the wire; `_` counts as `-` (CGI-style smuggling)."""
    return name[:1] == b"n" and name.replace(b"_", b"-").startswith((b"nw-", b"nats-"))


def forwarded_fields(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields that may cross from one connection to another, names in lower case.

    Left out: hop-by-hop fields and those that `Connection` names, `Nw-*`, `Nats-*`, `Content-Length` and `Expect`.
    """
    lower = [(name.lower(), value) for name, value in fields]
    options = connection_options(lower) | _DROPPED
    return [(name, value) for name, value in lower if name not in options and not is_ours(name)]


def split_block(block: bytes) -> tuple[dict[bytes, bytes], Headers]:
    """Split the field lines of a block into the wire's own (first of each) and the HTTP headers."""
    ours: dict[bytes, bytes] = {}
    rest: list[bytes] = []
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if is_ours(name):
            ours.setdefault(name, value.strip(b" \t"))
        else:
            rest.append(line)
    rest.append(b"")
    return ours, Headers.from_block(b"\r\n".join(rest))


def field_lines(header: bytes | None, fault: type[BadRequest] | type[BadReply]) -> bytes:
    """Return the field lines of a header block; raises `fault` if it is malformed."""
    if header is None:
        return b""
    found = _BLOCK(header)
    if found is None:
        raise fault("the NATS header block is malformed")
    return found[1]


def own_line(name: bytes, value: bytes) -> bytes:
    """Return a line of the wire's own, spelled as docs/wire.md does: some clients look names up by exact case."""
    if re.search(rb"[\x00\r\n]", value):
        raise BadRequest(f"the value of {name.decode()} has a CR, LF or NUL in it")
    return b"%b: %b\r\n" % (name, value)


def encode_fields(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Return the field lines of HTTP headers that may cross, in order, names in lower case.

    Those of `forwarded_fields`, in one go. Raises `BadRequest` for a name or value that must not be sent.
    """
    lines = []
    for name, value in fields:
        name = name.lower()
        if b":" in name:
            raise BadRequest("a header has a bad name")
        if name in _DROPPED:
            if name == b"connection" and value.lower() not in (b"keep-alive", b"close"):
                return encode_fields(forwarded_fields(fields))
        elif not is_ours(name):
            lines.append(b"%b: %b\r\n" % (name, value))
    block = b"".join(lines)
    if not _FIELDS(block) or block.count(b"\n") != len(lines):
        raise BadRequest("a header has a bad name, or a control character in its value")
    return block
