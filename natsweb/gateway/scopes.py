"""ASGI scopes, as the gateway reads them: which path is asked for, by whom, with which fields.

A scope becomes an `Incoming`, which the exchange carries. Knows ASGI; it sends nothing.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes

from natsweb.exchange import Exchange, address
from natsweb.flights import Incoming

__all__ = [
    "Event",
    "Receive",
    "Scope",
    "Send",
    "bare_host",
    "fields_of",
    "has_body",
    "host_of",
    "length_of",
    "path_below_mount",
    "to_incoming",
]

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

# Fields of the handshake of one connection. The subprotocols are the application's, and ASGI has them in a key of their
# own: some servers leave out the field.
_HANDSHAKE = frozenset(
    [
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-accept",
        b"sec-websocket-protocol",
    ]
)


def to_incoming(exchange: Exchange, path: bytes, scope: Scope) -> Incoming:
    """Return the request of a scope for `path`; raises `HTTPError` for fields that cannot cross."""
    upgrade = scope["type"] == "websocket"
    client = scope.get("client")
    return Incoming(
        method="GET" if upgrade else scope["method"],
        raw_path=path,
        query=scope.get("query_string", b""),
        fields=exchange.encode_fields(fields_of(scope)),
        client=address(client[0], client[1]) if client else None,
        scheme=scope.get("scheme", "ws" if upgrade else "http"),
        upgrade=upgrade,
    )


def fields_of(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a scope; of a WebSocket's handshake, the subprotocols are the application's."""
    if scope["type"] != "websocket":
        return list(scope["headers"])
    fields = [(name, value) for name, value in scope["headers"] if name.lower() not in _HANDSHAKE]
    if scope.get("subprotocols"):
        fields.append((b"sec-websocket-protocol", ", ".join(scope["subprotocols"]).encode("latin-1")))
    return fields


def has_body(scope: Scope) -> bool:
    """Tell whether a body was announced."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0 \t") != b"")
        for name, value in scope["headers"]
    )


def length_of(scope: Scope) -> int | None:
    """Return the announced length of the body in bytes, None if it is not known."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.strip(b" \t").isdigit():  # httptools leaves the white space behind
            return int(value)
    return None


def path_below_mount(scope: Scope) -> bytes:
    """Return the raw path without the segments of `root_path` (ASGI: `path` and `raw_path` include it)."""
    raw = bytes(scope.get("raw_path") or quote(scope["path"]).encode()).partition(b"?")[0]
    prefix = scope.get("root_path", "").strip("/")
    if not prefix:
        return raw
    wanted = prefix.encode().split(b"/")
    segments = raw.split(b"/")[1:]
    if [unquote_to_bytes(segment) for segment in segments[: len(wanted)]] != wanted:
        return raw
    return b"/" + b"/".join(segments[len(wanted) :])


def host_of(scope: Scope) -> bytes:
    """Return the host that is asked for, without its port."""
    for name, value in scope["headers"]:
        if name == b"host":
            return bare_host(bytes(value))
    return b""


def bare_host(host: bytes) -> bytes:
    """Return the value of `Host` in lower case and without its port (RFC 3986 section 3.2.2)."""
    host = host.strip(b" \t").lower()
    name, colon, port = host.rpartition(b":")
    return (name if colon and port.isdigit() else host).removesuffix(b".")
