"""`Request` and `Response`: what handlers, middleware and filters see of HTTP, as frozen pydantic models.

Both survive `model_validate_json(model_dump_json())` whatever their body and headers are: bodies go through
JSON as base64, headers as pairs of latin-1 text. `Call` is the plain record that a request travels in until
somebody asks for the model; it has the same attribute names. This module knows values; it knows no wire.
"""

from natsweb.messages.fields import CookieAttributes, cookie_line, cookies_of, forgetting, parse_query, quote_query
from natsweb.messages.request import After, Call, CallHead, Channel, Counts, Request, Socket
from natsweb.messages.response import NoAnswer, NotExecuted, Pieces, Response, Result, StreamingResponse

__all__ = [
    "After",
    "Call",
    "CallHead",
    "Channel",
    "CookieAttributes",
    "Counts",
    "NoAnswer",
    "NotExecuted",
    "Pieces",
    "Request",
    "Response",
    "Result",
    "Socket",
    "StreamingResponse",
    "cookie_line",
    "cookies_of",
    "forgetting",
    "parse_query",
    "quote_query",
]
