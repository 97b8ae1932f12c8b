"""Replies on the wire: one message, or the head of a stream, and back (docs/wire.md, unary reply).

Status and HTTP headers in the block, the body in the payload. A reply of any NATS service is understood. No bus, no
sockets, no clocks.
"""

import json
import re

from natsweb.errors import BadReply, phrase
from natsweb.headers import Headers, encode_line
from natsweb.messages import Response, Result
from natsweb.wire.fields import (
    DIGITS,
    END,
    ERROR_CODE,
    KNOWN_SIZE,
    START,
    STATUS,
    STREAM,
    VERSION,
    field_lines,
    forwarded_fields,
    remember,
    split_block,
)

__all__ = [
    "decode_reply",
    "decode_response",
    "encode_open",
    "encode_response",
    "error_fields",
    "is_no_responders",
    "may_retry",
]

NO_RESPONDERS = b"NATS/1.0 503"
_RETRY = re.compile(rb"(?i)\r\nnw-retry:[ \t]*1[ \t]*\r\n").search
_STATUS = re.compile(rb"[1-5][0-9]{2}").fullmatch
_NO_BODY = frozenset([204, 205, 304])

_known_replies: dict[tuple[bytes | None, str], tuple[int, bytes, bool, bool]] = {}
_known_retries: dict[bytes, bool] = {}
_known_heads: dict[tuple[int, bytes, bool, str | None], bytes] = {}


def error_fields(status: int, detail: str) -> bytes:
    """Return the lines that NATS micro clients expect in a reply from 400 on (ADR-32)."""
    text = " ".join(detail.split()).encode("latin-1", "replace")[:200]
    text = re.sub(rb"[\x00-\x1f\x7f]", b"?", text)
    return b"Nats-Service-Error-Code: %d\r\nNats-Service-Error: %b\r\n" % (status, text)


def encode_response(
    response: Response | Result, *, method: str = "GET", retry: bool = False, error: str | None = None
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
        if len(block) <= KNOWN_SIZE:
            remember(_known_heads, key, header)
    return header, payload


def _encode_head(response: Response | Result, method: str, retry: bool, error: str | None) -> bytes:
    status, payload = response.status, response.body
    lines = [START]
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
        if length is not None and DIGITS(length):
            lines.append(b"content-length: %b\r\n" % length)
    lines.append(END)
    return b"".join(lines)


def encode_open(response: Response, *, method: str = "GET") -> bytes:
    """Return the head of a streamed reply; its `Content-Length` passes, since the bytes that come are counted.

    With status 101 it opens a WebSocket.
    """
    lines = [START, b"Nw-Status: %d\r\nNw-Stream: 1\r\n" % response.status]
    for name, value in forwarded_fields(response.headers.fields):
        lines.append(encode_line(name, value))
    length = response.headers.get_bytes(b"content-length")
    if length is not None and DIGITS(length):
        lines.append(b"content-length: %b\r\n" % length)
    lines.append(END)
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
        if len(header) <= KNOWN_SIZE:
            remember(_known_retries, header, known)
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
        if header is not None and len(header) <= KNOWN_SIZE:
            remember(_known_replies, (header, method), known)
    status, lines, bodiless, guess = known
    if guess:
        lines = _guess_type(payload)
    return status, lines, b"" if bodiless else payload


def _decode_head(header: bytes | None, method: str) -> tuple[int, bytes, bool, bool]:
    """Return (status, field lines, whether there is no body, whether the content type has to be guessed)."""
    lines = field_lines(header, BadReply)
    if not lines:
        return 200, b"", method == "HEAD", True
    ours, headers = split_block(lines)
    status = _decode_status(ours)
    kept = [encode_line(name, value) for name, value in forwarded_fields(headers.fields)]
    length = headers.get_bytes(b"content-length")
    streamed = STREAM in ours and status not in _NO_BODY
    if length is not None and DIGITS(length) and (streamed or (method == "HEAD" and _keeps_length(method, status))):
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
