"""Paths and NATS subjects: a bijection between canonical paths and the subjects below a root.

    /orders/42  <->  api.orders.42        /a.b    <->  api.a%2Eb
    /           <->  api                  /a/     <->  api.a.%

A path is split on `/` first; then each segment is percent-decoded and encoded again: RFC 3986 unreserved
characters and sub-delims stay, except `.` and `*`; all else becomes `%XX` of its UTF-8 bytes, in upper case.
The empty segment is the token `%`. This is the only module that knows what `.`, `*`, `>` and `%` mean in a
subject. It knows no methods, no routes and no messages.
"""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_to_bytes

from natsweb.errors import BadPath, SettingsError, SubjectTooLong

__all__ = [
    "ANY",
    "MAX_SUBJECT",
    "REPLY_PREFIXES",
    "REST",
    "check_root",
    "covers",
    "decode_token",
    "encode_segment",
    "is_literal",
    "join",
    "matches",
    "minimal_cover",
    "overlap",
    "path_tokens",
    "subject_tokens",
    "to_path",
    "to_subject",
    "tokens_below",
]

#: Wildcard for exactly one token, and for one or more tokens at the end.
ANY = "*"
REST = ">"

#: Longest subject in bytes. A protocol line (subject, reply, sizes) has 4096 in nats-server by default, and one
#: that passes it closes the connection; replies and rewritten subjects of imports want their share.
MAX_SUBJECT = 3072

#: Where answers may go: inboxes, and what the server makes of them over imports and superclusters (docs/wire.md).
REPLY_PREFIXES = ("_INBOX.", "_R_.", "_GR_.")

_EMPTY = "%"
_KEPT = r"A-Za-z0-9\-_~!$&'()+,;="
_PLAIN_SEGMENT = re.compile(f"[{_KEPT}]+").fullmatch
_PLAIN_PATH = re.compile(f"(?:/[{_KEPT}]+)+").fullmatch
_PLAIN_TOKENS = re.compile(rf"[{_KEPT}]+(?:\.[{_KEPT}]+)*").fullmatch
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_ENCODED = {byte: chr(byte) if re.fullmatch(f"[{_KEPT}]", chr(byte)) else f"%{byte:02X}" for byte in range(256)}
_ROOT = re.compile(r"[A-Za-z0-9\-][A-Za-z0-9\-_]*(?:\.[A-Za-z0-9\-_]+)*").fullmatch


# ── one segment, one token ───────────────────────────────────────────────────────────────────────


def encode_segment(segment: str) -> str:
    """Return the token of one decoded path segment.

    Raises `BadPath` for the dot segments `.` and `..`, which no resource can have as a name (RFC 3986 5.2.4).
    """
    if _PLAIN_SEGMENT(segment):
        return segment
    if not segment:
        return _EMPTY
    if segment in (".", ".."):
        raise BadPath(f"the path has a {segment!r} segment, which natsweb does not resolve")
    try:
        return "".join([_ENCODED[byte] for byte in segment.encode()])
    except UnicodeEncodeError:
        raise BadPath("the path has half of a surrogate pair, which is not text") from None


def decode_token(token: str) -> str:
    """Return the path segment of one canonical token."""
    if "%" not in token:
        return token
    return "" if token == _EMPTY else unquote_to_bytes(token).decode()


def _decode_raw(segment: str) -> str:
    """Percent-decode one raw path segment; raises `BadPath` for a broken escape or invalid UTF-8."""
    if "%" in segment and _BAD_ESCAPE(segment):
        raise BadPath("the path has a '%' that is not followed by two hexadecimal digits")
    try:
        return unquote_to_bytes(segment.encode("latin-1")).decode()
    except UnicodeError:
        raise BadPath("the path is not UTF-8 behind its percent escapes") from None


# ── whole paths and subjects ─────────────────────────────────────────────────────────────────────


def path_tokens(raw_path: str) -> list[str]:
    """Return the tokens of a raw (still percent-encoded) path; `/` has none.

    Bytes above 0x7F may stand unescaped, as latin-1 characters of the raw path. Raises `BadPath`.
    """
    if _PLAIN_PATH(raw_path):
        return raw_path[1:].split("/")
    if raw_path == "/":
        return []
    if not raw_path.startswith("/"):
        raise BadPath("the path does not start with '/'")
    return [
        segment if _PLAIN_SEGMENT(segment) else encode_segment(_decode_raw(segment))
        for segment in raw_path[1:].split("/")
    ]


def subject_tokens(root: str, subject: str) -> list[str]:
    """Return the tokens of a subject after its root.

    Raises `BadPath` unless the subject is the canonical one of some path below the root: a peer must not
    reach `/admin` as `api.%61dmin` when its permissions deny it `api.admin`.
    """
    if subject == root:
        return []
    rest = subject[len(root) + 1 :]
    if not subject.startswith(f"{root}."):
        raise BadPath("the subject is not below the root of this service")
    tokens = rest.split(".")
    if not _PLAIN_TOKENS(rest):
        _check_canonical(tokens)
    return tokens


def _check_canonical(tokens: list[str]) -> None:
    if tokens == [_EMPTY]:
        raise BadPath("the subject is not canonical: '/' is the root itself")
    for token in tokens:
        if not token or encode_segment(_decode_raw("" if token == _EMPTY else token)) != token:
            raise BadPath("the subject is not the canonical one of its path")


def to_subject(root: str, raw_path: str, *, limit: int = MAX_SUBJECT) -> str:
    """Return the subject of a raw path below `root`.

    Raises `BadPath` for a path without canonical form, `SubjectTooLong` over `limit` bytes.
    """
    subject = f"{root}{raw_path.replace('/', '.')}" if _PLAIN_PATH(raw_path) else join(root, path_tokens(raw_path))
    if len(subject) > limit:
        raise SubjectTooLong(f"the path is too long: its subject would have {len(subject)} bytes of {limit} allowed")
    return subject


def to_path(tokens: Sequence[str]) -> str:
    """Return the canonical raw path of tokens: the inverse of `path_tokens`."""
    return "/" + "/".join(["" if token == _EMPTY else token for token in tokens])


def join(root: str, tokens: Iterable[str]) -> str:
    """Return the subject, or pattern, of tokens below `root`."""
    return ".".join([root, *tokens])


def check_root(root: str) -> str:
    """Return `root` if it can be the root of subjects.

    Raises `SettingsError` for an empty one, wildcards, and anything that could reach `$SYS`, `$JS` or `_INBOX`.
    """
    if not _ROOT(root):
        raise SettingsError(
            f"{root!r} cannot be a root of subjects",
            fix="use words of letters, digits, '-' and '_' joined by '.', such as api or api.staging; "
            "the first character is a letter, a digit or '-'",
        )
    return root


# ── patterns ─────────────────────────────────────────────────────────────────────────────────────


def is_literal(token: str) -> bool:
    """Tell whether a pattern's token stands for itself."""
    return token not in (ANY, REST)


def matches(pattern: str, subject: str) -> bool:
    """Tell whether NATS delivers a message on `subject` to a subscription to `pattern`."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, token in enumerate(wanted):
        if token == REST:
            return len(given) > index
        if index >= len(given) or (token not in (ANY, given[index])):
            return False
    return len(wanted) == len(given)


def covers(wide: str, narrow: str) -> bool:
    """Tell whether every subject that `narrow` matches is matched by `wide` as well."""
    outer, inner = wide.split("."), narrow.split(".")
    for index, token in enumerate(outer):
        if token == REST:
            return len(inner) > index
        if index >= len(inner) or inner[index] == REST or (token not in (ANY, inner[index])):
            return False
    return len(outer) == len(inner)


def overlap(one: str, other: str) -> bool:
    """Tell whether some subject matches both patterns."""
    first, second = one.split("."), other.split(".")
    for index in range(max(len(first), len(second))):
        left = first[index] if index < len(first) else None
        right = second[index] if index < len(second) else None
        if left is None or right is None:
            return False
        if REST in (left, right):
            return True
        if ANY not in (left, right) and left != right:
            return False
    return True


def tokens_below(root: str, pattern: str) -> list[str] | None:
    """Return what a pattern says of the tokens below `root`, or None if it matches nothing there."""
    wanted = pattern.split(".")
    for index, token in enumerate(root.split(".")):
        if index < len(wanted) and wanted[index] == REST:
            return [REST]
        if index >= len(wanted) or wanted[index] not in (ANY, token):
            return None
    return wanted[root.count(".") + 1 :]


def minimal_cover(patterns: Iterable[str]) -> list[str]:
    """Return the patterns that no other one covers, sorted: what a service has to subscribe to.

    Two subscriptions of one queue group that match the same subject would double the member's share, so
    none that is covered may stay.
    """
    distinct = sorted(set(patterns))
    return [one for one in distinct if not any(other != one and covers(other, one) for other in distinct)]
