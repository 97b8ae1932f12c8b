"""ASGI scopes of requests, as the HTTP and WebSocket specification 2.4 has them.

`path` and `raw_path` are the whole path, `root_path` is the prefix that the app is mounted at. Knows requests; it
knows no messages.
"""

from typing import Any

from starlette.types import Scope

from natsweb.messages import Call, Request, Socket
from natsweb.subjects import decode_token, to_path

__all__ = ["VERSIONS", "http_scope", "websocket_scope"]

#: What the `asgi` entry of a scope says.
VERSIONS = {"version": "3.0", "spec_version": "2.4"}

_PORTS = {"http": 80, "https": 443}
_WEBSOCKET_SCHEMES = {"http": "ws", "https": "wss"}


def http_scope(call: Call | Request, prefix: str, state: dict[str, Any]) -> Scope:
    """Return the scope of an HTTP request."""
    fields = list(call.headers.fields)
    if not call.more and call.body and call.headers.get_bytes(b"content-length") is None:
        fields.append((b"content-length", b"%d" % len(call.body)))  # which does not cross the wire
    return {**_scope(call, prefix, state), "type": "http", "method": call.method, "headers": fields}


def websocket_scope(call: Call | Request, prefix: str, state: dict[str, Any], socket: Socket) -> Scope:
    """Return the scope of a WebSocket."""
    return {
        **_scope(call, prefix, state),
        "type": "websocket",
        "scheme": _WEBSOCKET_SCHEMES.get(call.scheme, call.scheme),
        "subprotocols": list(socket.subprotocols),
        "extensions": {"websocket.http.response": {}},
    }


def _scope(call: Call | Request, prefix: str, state: dict[str, Any]) -> Scope:
    tokens = call.tokens
    return {
        "asgi": dict(VERSIONS),
        "http_version": "1.1",
        "scheme": call.scheme,
        "path": "/" + "/".join([decode_token(token) for token in tokens]),
        "raw_path": to_path(tokens).encode(),
        "query_string": call.query.encode(),
        "root_path": prefix,
        "headers": list(call.headers.fields),
        "client": _split(call.client, 0),
        "server": _split(call.headers.get("host"), _PORTS.get(call.scheme)),
        "state": dict(state),
    }


def _split(address: str | None, default: int | None) -> tuple[str, int | None] | None:
    """Return host and port of `host:port`, an IPv6 address without its brackets; None if there is no host."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "]" in port:
        host, port = address or "", ""
    if port and not (port.isascii() and port.isdigit() and len(port) < 6):
        return None
    return (host.strip("[]"), int(port) if port else default) if host else None
