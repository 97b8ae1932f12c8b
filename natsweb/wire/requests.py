"""Requests on the wire: a header block and a payload, and back (docs/wire.md, request).

One message on the subject of the path. What natsweb itself sends is decoded by one pattern; what others send, with
care. No bus, no sockets, no clocks.
"""

import re
from functools import lru_cache

from natsweb.errors import BadRequest, UnknownVersion
from natsweb.headers import Headers
from natsweb.messages import Call, CallHead, quote_query
from natsweb.wire.fields import (
    ACCEPT,
    CLIENT,
    DIGITS,
    END,
    KNOWN_SIZE,
    METHOD,
    MORE,
    QUERY,
    SCHEME,
    SENT,
    SERVICE,
    START,
    TIMEOUT,
    UPGRADE,
    VERSION,
    field_lines,
    own_line,
    remember,
    split_block,
)

__all__ = ["decode_request", "encode_request", "is_method", "request_head", "stamp"]

#: Matches a method as it may cross: a token (RFC 9110 section 9.1) in upper case.
is_method = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]{1,32}").fullmatch
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "ws", b"wss": "wss"}
_known_fields: dict[bytes, Headers] = {}
# The two numbers of a block (seconds, unix ms), which many requests of a moment have, by the lines that say them; and
# what a call gets of the rest, which a client repeats.
_known_times: dict[bytes, tuple[float, int]] = {}
_known_heads: dict[bytes, CallHead] = {}


def _number(value: bytes | None, name: str) -> int | None:
    if value is None:
        return None
    if not DIGITS(value):
        raise BadRequest(f"{name} is not a whole number")
    return int(value)


# The lines of a request that are the wire's own, in the order in which `request_head` and `stamp` write them.
_TIMES = re.compile(rb"NATS/1\.0\r\nNw-Timeout: ([0-9]{1,15})\r\nNw-Sent: ([0-9]{1,15})").fullmatch
_OUR_LINES = re.compile(
    rb"NATS/1\.0\r\n(?:Nw-Timeout: ([0-9]{1,15})\r\n)?(?:Nw-Sent: ([0-9]{1,15})\r\n)?"
    rb"Nw-Method: ([!#$%&'*+\-.^_`|~0-9A-Z]{1,32})\r\n(?:Nw-Query: ([\x21-\x7e]+)\r\n)?"
    rb"(?:Nw-Service: ([\x21-\x7e]+)\r\n)?(?:Nw-Client: ([\x21-\x7e]+)\r\n)?(?:Nw-Scheme: (https|ws|wss)\r\n)?"
    rb"(?:Nw-Accept: stream;window=([0-9]{1,9})\r\n)?(Nw-More: 1\r\n)?(Nw-Upgrade: websocket\r\n)?"
).match
_WINDOW = re.compile(rb"(?i)stream(?:[ \t]*;[ \t]*window[ \t]*=[ \t]*([0-9]{1,9}))?").fullmatch
_DEFAULT_WINDOW = 64 * 1024


def request_head(
    method: str,
    fields: bytes,
    *,
    query: bytes = b"",
    client: str | None = None,
    scheme: str = "http",
    service: str | None = None,
    window: int = 0,
    more: bool = False,
    upgrade: bool = False,
) -> bytes:
    """Return the header block of a request, less what `stamp` adds; the payload is the body, the subject the path.

    `fields` are field lines, taken as they are (see `encode_fields`). With a `window` the caller takes a streamed
    answer, of that many bytes before it says more; with `more` the body goes on in a stream. Raises `BadRequest` for
    a value that has CR, LF or NUL.
    """
    asked = own_line(b"Nw-Query", query) if query else b""
    named = b"" if service is None else _service_line(service)
    origin, streams = _origin_lines(client, scheme), _stream_lines(window, more, upgrade)
    return b"%b%b%b%b%b%b\r\n" % (_method_line(method), asked, named, origin, streams, fields)


def stamp(head: bytes, timeout_ms: int, sent_ms: int) -> bytes:
    """Return a whole header block: the version, the two lines that change from one sending to the next, and `head`."""
    return b"NATS/1.0\r\nNw-Timeout: %d\r\nNw-Sent: %d\r\n%b" % (timeout_ms, sent_ms, head)


def encode_request(
    method: str,
    fields: bytes,
    *,
    query: bytes = b"",
    timeout_ms: int | None = None,
    sent_ms: int | None = None,
    client: str | None = None,
    scheme: str = "http",
    service: str | None = None,
    window: int = 0,
    more: bool = False,
    upgrade: bool = False,
) -> bytes:
    """Return the header block of a request in one go: see `request_head`."""
    head = request_head(
        method,
        fields,
        query=query,
        client=client,
        scheme=scheme,
        service=service,
        window=window,
        more=more,
        upgrade=upgrade,
    )
    return b"%b%b%b%b" % (
        START,
        b"" if timeout_ms is None else b"Nw-Timeout: %d\r\n" % timeout_ms,
        b"" if sent_ms is None else b"Nw-Sent: %d\r\n" % sent_ms,
        head,
    )


@lru_cache(64)
def _method_line(method: str) -> bytes:
    return own_line(b"Nw-Method", method.encode("ascii"))


@lru_cache(1024)
def _service_line(service: str) -> bytes:
    return own_line(b"Nw-Service", service.encode("ascii"))


@lru_cache(1024)
def _origin_lines(client: str | None, scheme: str) -> bytes:
    lines = b""
    if client is not None:
        lines += own_line(b"Nw-Client", client.encode("ascii", "replace"))
    if scheme != "http":
        lines += own_line(b"Nw-Scheme", scheme.encode("ascii"))
    return lines


@lru_cache(64)
def _stream_lines(window: int, more: bool, upgrade: bool) -> bytes:
    lines = b"Nw-Accept: stream;window=%d\r\n" % window if window else b""
    return lines + (b"Nw-More: 1\r\n" if more else b"") + (b"Nw-Upgrade: websocket\r\n" if upgrade else b"")


def decode_request(tokens: list[str], header: bytes | None, body: bytes) -> Call:
    """Return the call that a message on the subject of `tokens` carries.

    Raises `BadRequest` for what docs/wire.md does not allow, `UnknownVersion` for another version than 1.
    """
    if header is None:
        return Call("POST" if body else "GET", tokens, body=body)
    head = b""
    behind = header.find(b"\r\nNw-Method: ")
    lines = header[:behind] if behind >= 0 else b""
    times = _known_times.get(lines) or _read_times(lines)
    if times is not None:
        head = header[behind:]
        known = _known_heads.get(head)
        if known is not None:
            timeout, sent = times
            return Call.repeated(known, tokens, body, timeout, sent)
    if (found := _OUR_LINES(header)) is not None:
        headers = _known_fields.get(header[found.end() :])
        if headers is not None:  # what natsweb itself sends, with fields that have been looked at before
            call = _call_of(found, tokens, headers, body)
            if head and not call.query and len(head) <= KNOWN_SIZE:
                remember(_known_heads, head, call.head)
            return call
    return _decode_request(tokens, header, body, None if found is None else found.end())


def _read_times(lines: bytes) -> tuple[float, int] | None:
    """Return what the first lines of a block say of time, in seconds and unix ms; None if they say anything else."""
    found = _TIMES(lines)
    if found is None:
        return None
    times = int(found[1]) / 1000, int(found[2])
    remember(_known_times, lines, times)
    return times


def _call_of(found: re.Match[bytes], tokens: list[str], headers: Headers, body: bytes) -> Call:
    ms, sent, method, query, service, client, scheme, window, more, upgrade = found.groups()
    return Call(
        method.decode("ascii"),
        tokens,
        query.decode("ascii") if query else "",
        headers,
        body,
        client=None if client is None else client.decode("ascii"),
        scheme="http" if scheme is None else _SCHEMES[scheme],
        timeout=None if ms is None else int(ms) / 1000,
        sent=None if sent is None else int(sent),
        service=None if service is None else service.decode("ascii"),
        window=0 if window is None else int(window),
        more=more is not None,
        upgrade=upgrade is not None,
    )


def _decode_request(tokens: list[str], header: bytes, body: bytes, fields_at: int | None) -> Call:
    """Decode whatever a peer may send; `fields_at` is where the HTTP fields begin, if natsweb wrote the block."""
    ours, headers = split_block(field_lines(header, BadRequest))
    get = ours.get
    if fields_at is not None:
        rest = header[fields_at:]
        if len(rest) <= KNOWN_SIZE and headers.block + END == rest:
            remember(_known_fields, rest, headers)
    if get(VERSION, b"1") != b"1":
        raise UnknownVersion("this service speaks version 1 of the wire format")
    method = get(METHOD, b"POST" if body else b"GET").decode("latin-1")
    if not is_method(method):
        raise BadRequest("Nw-Method is not an HTTP method in upper case")
    scheme = _SCHEMES.get(get(SCHEME, b"http"))
    if scheme is None:
        raise BadRequest("Nw-Scheme is not one of http, https, ws, wss")
    timeout = _number(get(TIMEOUT), "Nw-Timeout")
    client, service = get(CLIENT), get(SERVICE)
    return Call(
        method,
        tokens,
        quote_query(get(QUERY, b"")),
        headers,
        body,
        client=None if client is None else client.decode("latin-1"),
        scheme=scheme,
        timeout=None if timeout is None else timeout / 1000,
        sent=_number(get(SENT), "Nw-Sent"),
        service=None if service is None else service.decode("latin-1"),
        window=_decode_window(get(ACCEPT)),
        more=get(MORE) == b"1",
        upgrade=get(UPGRADE, b"").lower() == b"websocket",
    )


def _decode_window(accept: bytes | None) -> int:
    """Return how many bytes of a stream the caller takes at first; 0 if it takes no stream."""
    found = None if accept is None else _WINDOW(accept)
    return 0 if found is None else int(found[1] or _DEFAULT_WINDOW)
