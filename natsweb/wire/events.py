"""Events on the wire: a plain NATS message, of any publisher, as a call and back.

The subject is nobody's path: it has no root, and its words are taken as they are. Header fields are all the
publisher's own. No bus, no sockets, no clocks.
"""

from typing import Final

from natsweb.errors import BadRequest
from natsweb.headers import Headers
from natsweb.messages import Call
from natsweb.subjects import encode_segment
from natsweb.wire.fields import END, START, field_lines

__all__ = ["EVENT", "decode_event", "encode_event", "event_words"]

#: What stands in place of a method for an event.
EVENT: Final = "EVENT"


def event_words(subject: str) -> list[str]:
    """Return the words of a subject, which came as latin-1; raises `BadRequest` if it is not UTF-8."""
    try:
        return subject.encode("latin-1").decode().split(".")
    except UnicodeDecodeError:
        raise BadRequest("the subject is not UTF-8") from None


def decode_event(words: list[str], header: bytes | None, payload: bytes) -> Call:
    """Return the call of an event, whose path has the words of its subject as segments.

    Raises `BadRequest` for a header block that is malformed.
    """
    headers = Headers.from_block(field_lines(header, BadRequest))
    return Call(EVENT, [encode_segment(word) for word in words], headers=headers, body=payload, scheme="nats")


def encode_event(headers: Headers) -> bytes | None:
    """Return the header block of an event, None for one without fields."""
    return START + headers.block + END if headers.block else None
