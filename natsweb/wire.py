"""The wire format, version 1: requests and replies as a NATS header block and a payload (docs/wire.md).

One table of names, two pairs of functions: `encode_request`/`decode_request` and `encode_response`/
`decode_response`. Whatever a peer sends is hostile until decoded. Header fields pass through as the bytes
that came; `Nw-*` and `Nats-*` are the wire's own and never the HTTP side's. No bus, no sockets, no clocks.
"""

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, TypeVar

from natsweb.errors import BadReply, BadRequest, UnknownVersion, phrase
from natsweb.headers import HOP_BY_HOP, Headers, connection_options, encode_line
from natsweb.messages import Call, Response, quote_query

__all__ = [
    "RequestHead",
    "decode_reply",
    "decode_request",
    "decode_response",
    "encode_fields",
    "encode_request",
    "encode_response",
    "error_fields",
    "forwarded_fields",
    "is_no_responders",
    "may_retry",
    "request_head",
]

_START = b"NATS/1.0\r\n"
_END = b"\r\n"
NO_RESPONDERS = b"NATS/1.0 503"

METHOD = b"nw-method"
QUERY = b"nw-query"
TIMEOUT = b"nw-timeout"
SENT = b"nw-sent"
SERVICE = b"nw-service"
CLIENT = b"nw-client"
SCHEME = b"nw-scheme"
VERSION = b"nw-version"
STATUS = b"nw-status"
ERROR_CODE = b"nats-service-error-code"

_FIELD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n"
_BLOCK = re.compile(rb"NATS/1\.0[ \t]*\r\n((?:" + _FIELD + rb")*)\r\n").fullmatch
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]{1,32}").fullmatch
_RETRY = re.compile(rb"(?i)\r\nnw-retry:[ \t]*1[ \t]*\r\n").search
_DIGITS = re.compile(rb"[0-9]{1,15}").fullmatch
_STATUS = re.compile(rb"[1-5][0-9]{2}").fullmatch
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "ws", b"wss": "wss"}
_NO_BODY = frozenset([204, 205, 304])
_DROPPED = HOP_BY_HOP | {b"content-length", b"expect"}


# Header blocks repeat: most replies of a service have the same, most requests of a client the same fields.
_KNOWN = 512
_KNOWN_SIZE = 2048
_known_replies: dict[tuple[bytes | None, str], tuple[int, bytes, bool, bool]] = {}
_known_retries: dict[bytes, bool] = {}
_known_fields: dict[bytes, Headers] = {}
_known_heads: dict[tuple[int, bytes, bool, str | None], bytes] = {}

K = TypeVar("K")
V = TypeVar("V")


def _remember(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= _KNOWN:
        known.clear()
    known[key] = value


def _is_ours(name: bytes) -> bool:
    """Tell whether a lower-case field name belongs to the wire; `_` counts as `-` (CGI-style smuggling)."""
    return name[:1] == b"n" and name.replace(b"_", b"-").startswith((b"nw-", b"nats-"))


def forwarded_fields(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields that may cross from one connection to another, names in lower case.

    Left out: hop-by-hop fields and those that `Connection` names, `Nw-*`, `Nats-*`, `Content-Length` and `Expect`.
    """
    lower = [(name.lower(), value) for name, value in fields]
    options = connection_options(lower) | _DROPPED
    return [(name, value) for name, value in lower if name not in options and not _is_ours(name)]


def _split(block: bytes) -> tuple[dict[bytes, bytes], Headers]:
    """Split the field lines of a block into the wire's own (first of each) and the HTTP headers."""
    ours: dict[bytes, bytes] = {}
    rest: list[bytes] = []
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if _is_ours(name):
            ours.setdefault(name, value.strip(b" \t"))
        else:
            rest.append(line)
    rest.append(b"")
    return ours, Headers.from_block(b"\r\n".join(rest))


def _field_lines(header: bytes | None, fault: type[BadRequest] | type[BadReply]) -> bytes:
    if header is None:
        return b""
    found = _BLOCK(header)
    if found is None:
        raise fault("the NATS header block is malformed")
    return found[1]


def _own_line(name: bytes, value: bytes) -> bytes:
    """Return a line of the wire's own, spelled as docs/wire.md does: some clients look names up by exact case."""
    if re.search(rb"[\x00\r\n]", value):
        raise BadRequest(f"the value of {name.decode()} has a CR, LF or NUL in it")
    return b"%b: %b\r\n" % (name, value)


def _number(value: bytes | None, name: str) -> int | None:
    if value is None:
        return None
    if not _DIGITS(value):
        raise BadRequest(f"{name} is not a whole number")
    return int(value)


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


# The lines of a request that are the wire's own, in the order in which `encode_request` writes them.
_OUR_LINES = re.compile(
    rb"NATS/1\.0\r\nNw-Method: ([!#$%&'*+\-.^_`|~0-9A-Z]{1,32})\r\n(?:Nw-Query: ([\x21-\x7e]+)\r\n)?"
    rb"(?:Nw-Timeout: ([0-9]{1,15})\r\n)?(?:Nw-Sent: ([0-9]{1,15})\r\n)?(?:Nw-Service: ([\x21-\x7e]+)\r\n)?"
    rb"(?:Nw-Client: ([\x21-\x7e]+)\r\n)?(?:Nw-Scheme: (https|ws|wss)\r\n)?"
).match

_FIELDS = re.compile(rb"(?:" + _FIELD + rb")*").fullmatch


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
        elif not _is_ours(name):
            lines.append(b"%b: %b\r\n" % (name, value))
    block = b"".join(lines)
    if not _FIELDS(block) or block.count(b"\n") != len(lines):
        raise BadRequest("a header has a bad name, or a control character in its value")
    return block


class RequestHead(NamedTuple):
    """The header block of a request, less the two lines that change from one sending to the next."""

    before: bytes
    after: bytes

    def encode(self, timeout_ms: int, sent_ms: int) -> bytes:
        """Return the whole block."""
        return b"%bNw-Timeout: %d\r\nNw-Sent: %d\r\n%b" % (self.before, timeout_ms, sent_ms, self.after)


def request_head(
    method: str,
    fields: bytes,
    *,
    query: bytes = b"",
    client: str | None = None,
    scheme: str = "http",
    service: str | None = None,
) -> RequestHead:
    """Return the head of a request; the payload is the body, the subject the path.

    `fields` are field lines, taken as they are (see `encode_fields`). Raises `BadRequest` for a value that has CR,
    LF or NUL.
    """
    before = _method_lines(method)
    if query:
        before += _own_line(b"Nw-Query", query)
    named = b"" if service is None else _service_line(service)
    return RequestHead(before, b"%b%b%b\r\n" % (named, _origin_lines(client, scheme), fields))


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
) -> bytes:
    """Return the header block of a request in one go: see `request_head`."""
    head = request_head(method, fields, query=query, client=client, scheme=scheme, service=service)
    return b"%b%b%b%b" % (
        head.before,
        b"" if timeout_ms is None else b"Nw-Timeout: %d\r\n" % timeout_ms,
        b"" if sent_ms is None else b"Nw-Sent: %d\r\n" % sent_ms,
        head.after,
    )


@lru_cache(64)
def _method_lines(method: str) -> bytes:
    return _START + _own_line(b"Nw-Method", method.encode("ascii"))


@lru_cache(1024)
def _service_line(service: str) -> bytes:
    return _own_line(b"Nw-Service", service.encode("ascii"))


@lru_cache(1024)
def _origin_lines(client: str | None, scheme: str) -> bytes:
    lines = b""
    if client is not None:
        lines += _own_line(b"Nw-Client", client.encode("ascii", "replace"))
    if scheme != "http":
        lines += _own_line(b"Nw-Scheme", scheme.encode("ascii"))
    return lines


def decode_request(tokens: list[str], header: bytes | None, body: bytes) -> Call:
    """Return the call that a message on the subject of `tokens` carries.

    Raises `BadRequest` for what docs/wire.md does not allow, `UnknownVersion` for another version than 1.
    """
    if header is None:
        return Call("POST" if body else "GET", tokens, body=body)
    if (found := _OUR_LINES(header)) is not None:
        headers = _known_fields.get(header[found.end() :])
        if headers is not None:  # what natsweb itself sends, with fields that have been looked at before
            method, query, ms, sent, service, client, scheme = found.groups()
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
            )
    return _decode_request(tokens, header, body, None if found is None else found.end())


def _decode_request(tokens: list[str], header: bytes, body: bytes, fields_at: int | None) -> Call:
    """Decode whatever a peer may send; `fields_at` is where the HTTP fields begin, if natsweb wrote the block."""
    ours, headers = _split(_field_lines(header, BadRequest))
    get = ours.get
    if fields_at is not None:
        rest = header[fields_at:]
        if len(rest) <= _KNOWN_SIZE and headers.block + _END == rest:
            _remember(_known_fields, rest, headers)
    if get(VERSION, b"1") != b"1":
        raise UnknownVersion("this service speaks version 1 of the wire format")
    method = get(METHOD, b"POST" if body else b"GET").decode("latin-1")
    if not _METHOD(method):
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
    )


# ── replies ──────────────────────────────────────────────────────────────────────────────────────


def error_fields(status: int, detail: str) -> bytes:
    """Return the lines that NATS micro clients expect in a reply from 400 on (ADR-32)."""
    text = " ".join(detail.split()).encode("latin-1", "replace")[:200]
    text = re.sub(rb"[\x00-\x1f\x7f]", b"?", text)
    return b"Nats-Service-Error-Code: %d\r\nNats-Service-Error: %b\r\n" % (status, text)


def encode_response(
    response: Response, *, method: str = "GET", retry: bool = False, error: str | None = None
) -> tuple[bytes, bytes]:
    """Return (header block, payload) of a reply to a request with `method`.

    `Content-Length` passes only where it says what is not there: in a reply to HEAD, or with 304. `retry` marks
    a reply that was surely not executed. `error` is the text for NATS micro clients; by default the phrase of
    the status.
    """
    status, payload, block = response.status, response.body, response.headers.block
    if method == "HEAD" or status in _NO_BODY:
        return _encode_head(response, method, retry, error), b""
    key = (status, block, retry, error)
    header = _known_heads.get(key)
    if header is None:
        header = _encode_head(response, method, retry, error)
        if len(block) <= _KNOWN_SIZE:
            _remember(_known_heads, key, header)
    return header, payload


def _encode_head(response: Response, method: str, retry: bool, error: str | None) -> bytes:
    status, payload = response.status, response.body
    lines = [_START]
    if status != 200:
        lines.append(b"Nw-Status: %d\r\n" % status)
    if retry:
        lines.append(b"Nw-Retry: 1\r\n")
    if status >= 400:
        lines.append(error_fields(status, error or phrase(status)))
    for name, value in forwarded_fields(response.headers.fields):
        lines.append(encode_line(name, value))
    if _keeps_length(method, status):
        length = response.headers.get_bytes(b"content-length")
        if length is None and payload:
            length = b"%d" % len(payload)
        if length is not None and _DIGITS(length):
            lines.append(b"content-length: %b\r\n" % length)
    lines.append(_END)
    return b"".join(lines)


def is_no_responders(header: bytes | None) -> bool:
    """Tell whether a message is the server's own word that nobody listens: a status line, not a header."""
    return header is not None and header.startswith(NO_RESPONDERS) and header[12:13] in (b"\r", b" ")


def may_retry(header: bytes | None) -> bool:
    """Tell whether a reply says `Nw-Retry: 1`: it was surely not executed."""
    if header is None:
        return False
    known = _known_retries.get(header)
    if known is None:
        known = _RETRY(header) is not None
        if len(header) <= _KNOWN_SIZE:
            _remember(_known_retries, header, known)
    return known


def decode_response(header: bytes | None, payload: bytes, *, method: str = "GET") -> Response:
    """Return the response that a reply carries to a request with `method`.

    A reply without header fields is 200 with a guessed content type. Raises `BadReply` for anything malformed.
    """
    status, lines, body = decode_reply(header, payload, method)
    return Response.trusted(status, Headers.from_block(lines), body)


def decode_reply(header: bytes | None, payload: bytes, method: str) -> tuple[int, bytes, bytes]:
    """Return (status, field lines, body) of a reply: `decode_response` without the model, for the fast door."""
    known = _known_replies.get((header, method))
    if known is None:
        known = _decode_head(header, method)
        if header is not None and len(header) <= _KNOWN_SIZE:
            _remember(_known_replies, (header, method), known)
    status, lines, bodiless, guess = known
    if guess:
        lines = _guess_type(payload)
    return status, lines, b"" if bodiless else payload


def _decode_head(header: bytes | None, method: str) -> tuple[int, bytes, bool, bool]:
    """Return (status, field lines, whether there is no body, whether the content type has to be guessed)."""
    lines = _field_lines(header, BadReply)
    if not lines:
        return 200, b"", method == "HEAD", True
    ours, headers = _split(lines)
    status = _decode_status(ours)
    kept = [encode_line(name, value) for name, value in forwarded_fields(headers.fields)]
    length = headers.get_bytes(b"content-length")
    if length is not None and _DIGITS(length) and method == "HEAD" and _keeps_length(method, status):
        kept.append(encode_line(b"content-length", length))  # not with 304: servers take it for a cut answer
    return status, b"".join(kept), method == "HEAD" or status in _NO_BODY, False


def _keeps_length(method: str, status: int) -> bool:
    """Tell whether Content-Length speaks of a body that is not there (RFC 9110 section 8.6)."""
    return (method == "HEAD" and status not in (204, 205)) or status == 304


def _decode_status(ours: dict[bytes, bytes]) -> int:
    """Return the status of a reply: ours, else the error code of a NATS micro service, else 200."""
    if VERSION in ours and ours[VERSION] != b"1":
        raise BadReply("the service speaks another version of the wire format")
    text = ours.get(STATUS)
    if text is None and ERROR_CODE in ours:
        text = ours[ERROR_CODE] if re.fullmatch(rb"[45][0-9]{2}", ours[ERROR_CODE]) else b"500"
    if text is None:
        return 200
    if not _STATUS(text) or text < b"200":
        raise BadReply("the service's reply has no valid status")
    return int(text)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _guess_type(payload: bytes) -> bytes:
    if not payload:
        return b""
    try:
        json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        pass
    else:
        return b"content-type: application/json\r\n"
    try:
        payload.decode()
    except UnicodeDecodeError:
        return b"content-type: application/octet-stream\r\n"
    return b"content-type: text/plain; charset=utf-8\r\n"
