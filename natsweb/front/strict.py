"""What a request head has to be, beyond what httptools checks (RFC 9110, RFC 9112). Pure: bytes in, verdict out.

httptools refuses bare CR and LF, folded lines, control characters, bad chunk sizes, two Content-Lengths, and
Content-Length with Transfer-Encoding. What it lets through is refused here, each with its status.
"""

import re
from typing import NamedTuple

from natsweb.errors import BadRequest, HeadersTooLarge, HTTPError, SubjectTooLong
from natsweb.exchange import FORWARDED_METHODS

__all__ = ["Head", "check_handshake", "check_head", "is_handshake", "plain_line", "split_target"]

_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=%]*(?::[0-9]*)?|\[[0-9A-Fa-f:.]+\](?::[0-9]*)?").fullmatch
# The longest line that the websockets library reads.
_HANDSHAKE_LINE = 8192
_ABSOLUTE = re.compile(rb"(?i)https?://([^/?#]*)([^#]*)").fullmatch

#: Matches a request line that leaves nothing to decide: a method that crosses, a path, perhaps a query, in the
#: characters of RFC 3986, HTTP/1.1. Groups: method, path, query or None.
plain_line = re.compile(
    rb"(%b) (/[A-Za-z0-9\-._~!$&'()*+,;=:@%%/]*)(?:\?([A-Za-z0-9\-._~!$&'()*+,;=:@%%/?]*))? HTTP/1\.1"
    % "|".join(FORWARDED_METHODS).encode()
).fullmatch


class Head(NamedTuple):
    """What the headers say about the message: `length` is None without a Content-Length."""

    length: int | None
    chunked: bool
    expects_continue: bool
    upgrade: bytes | None


def check_head(version: str, headers: list[tuple[bytes, bytes]]) -> Head:
    """Return what the headers (names in lower case) say.

    Raises `BadRequest`, or `HTTPError` 417, 501 or 505, for a head that RFC 9112 forbids or natsweb does not speak.
    """
    if version not in ("1.1", "1.0"):
        raise HTTPError(505, "this server speaks HTTP/1.1", reason="http_version")
    hosts, length, chunked, expects, upgrade = 0, None, False, False, None
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST(value.strip(b" \t")):
                raise BadRequest("the Host header is none that RFC 9112 section 3.2 allows")
        elif name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            if version == "1.0":
                raise BadRequest("HTTP/1.0 has no Transfer-Encoding")
            if value.strip(b" \t").lower() != b"chunked":
                raise HTTPError(501, "the only Transfer-Encoding here is chunked", reason="transfer_encoding")
            chunked = True
        elif name == b"expect":
            if value.strip(b" \t").lower() != b"100-continue":
                raise HTTPError(417, "the only expectation here is 100-continue", reason="expectation")
            expects = version == "1.1"
        elif name == b"upgrade":
            upgrade = value.strip(b" \t").lower()
    if hosts != 1 and (version == "1.1" or hosts):
        raise BadRequest(f"the request has {hosts or 'no'} Host headers; HTTP/1.1 wants one")
    return Head(length, chunked, expects, upgrade)


def is_handshake(method: str, head: Head, headers: list[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request opens a WebSocket (RFC 6455 section 4.1), and does not only mention one."""
    if method != "GET" or head.upgrade != b"websocket" or head.length or head.chunked:
        return False
    return any(name == b"sec-websocket-key" for name, _ in headers)


def check_handshake(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse what the WebSocket library would not read: raises `SubjectTooLong` or `HeadersTooLarge`."""
    if len(target) + len("GET  HTTP/1.1\r\n") > _HANDSHAKE_LINE:
        raise SubjectTooLong(f"the request line of a WebSocket is longer than {_HANDSHAKE_LINE} bytes")
    if any(len(name) + len(value) + len(": \r\n") > _HANDSHAKE_LINE for name, value in headers):
        raise HeadersTooLarge(f"a header of a WebSocket's request is longer than {_HANDSHAKE_LINE} bytes")


def split_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """Return (raw path, query, authority) of a request target; the authority is that of an absolute form.

    Raises `BadRequest` for a form that the method does not have (RFC 9112 section 3.2), or a fragment.
    """
    authority = None
    if target[:1] != b"/":
        found = _ABSOLUTE(target)
        if found is None:
            raise BadRequest("the request target is neither a path nor an http URL")
        authority, target = found[1], found[2]
        if not authority or not _HOST(authority):
            raise BadRequest("the URL in the request line has no valid host")
        if target[:1] != b"/":
            target = b"/" + target
    if b"#" in target:
        raise BadRequest("the request target has a fragment")
    path, _, query = target.partition(b"?")
    return path, query, authority
