"""The wire format, version 1: what travels between a gateway and a service (docs/wire.md).

Requests and replies as a NATS header block and a payload, and what goes to and fro while a request is under way. Each
shape is encoded and decoded in one place; whatever a peer sends is hostile until then. No bus, no sockets, no clocks.
"""

from natsweb.wire.events import EVENT, decode_event, encode_event, event_words
from natsweb.wire.fields import encode_fields, forwarded_fields
from natsweb.wire.interim import (
    CANCEL,
    Control,
    End,
    decode_control,
    encode_accept,
    encode_close,
    encode_continue,
    encode_end,
    encode_flow,
    encode_upgrade,
    is_opening,
)
from natsweb.wire.replies import (
    decode_reply,
    decode_response,
    encode_open,
    encode_response,
    error_fields,
    is_no_responders,
    may_retry,
)
from natsweb.wire.requests import decode_request, encode_request, is_method, request_head, stamp

__all__ = [
    "CANCEL",
    "EVENT",
    "Control",
    "End",
    "decode_control",
    "decode_event",
    "decode_reply",
    "decode_request",
    "decode_response",
    "encode_accept",
    "encode_close",
    "encode_continue",
    "encode_end",
    "encode_event",
    "encode_fields",
    "encode_flow",
    "encode_open",
    "encode_request",
    "encode_response",
    "encode_upgrade",
    "error_fields",
    "event_words",
    "forwarded_fields",
    "is_method",
    "is_no_responders",
    "is_opening",
    "may_retry",
    "request_head",
    "stamp",
]
