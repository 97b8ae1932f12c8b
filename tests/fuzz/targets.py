"""What is fuzzed: functions that take any bytes, and raise only if natsweb does what it must not.

Each is a law. Bytes of others are decoded, or refused with an `HTTPError`, and nothing else; what is decoded can be
encoded again; and both doors of the gateway give the same answers to the same bytes. They need no fuzzer to run.
"""

import contextlib
import re
from collections.abc import Callable

from natsweb.errors import HTTPError
from natsweb.front.strict import check_head, split_target
from natsweb.headers import Headers, connection_options
from natsweb.proxy_wire import ProxyWire
from natsweb.subjects import subject_tokens, to_path, to_subject
from natsweb.wire import (
    decode_control,
    decode_event,
    decode_reply,
    decode_request,
    encode_fields,
    encode_request,
    is_no_responders,
    is_opening,
    may_retry,
)

from .doors import doors

__all__ = ["TARGETS", "Target"]

#: Takes any bytes; raises `AssertionError`, or anything but `HTTPError`, if a law is broken.
Target = Callable[[bytes], None]

_FORBIDDEN = re.compile(rb"[\0\r\n]").search
_METHODS = ("GET", "HEAD", "POST")
_PROXY = ProxyWire()


def _split(data: bytes) -> tuple[int, bytes, bytes]:
    """Return a number, a header block and a payload."""
    number = data[0] if data else 0
    block, _, payload = data[1:].partition(b"\r\n\r\n\r\n")
    return number, b"NATS/1.0\r\n" + block + b"\r\n\r\n" if number & 1 else block, payload


def requests(data: bytes) -> None:
    """A message to a service is a request or refused; what was read of it can be sent again and reads the same."""
    number, header, payload = _split(data)
    try:
        call = decode_request(["x"], header if number & 2 else None, payload)
    except HTTPError:
        return
    for name, value in call.headers.fields:
        assert not _FORBIDDEN(name)
        assert not _FORBIDDEN(value)
        assert name == name.lower()
        assert not name.startswith((b"nw-", b"nats-"))
    assert not _FORBIDDEN(call.query.encode("latin-1"))
    again = decode_request(
        ["x"],
        encode_request(call.method, encode_fields(call.headers.fields), query=call.query.encode("latin-1")),
        payload,
    )
    assert (again.method, again.query) == (call.method, call.query)


def replies(data: bytes) -> None:
    """A message to a gateway is an answer that HTTP can carry, or refused."""
    number, header, payload = _split(data)
    method = _METHODS[number % 3]
    for decode in (decode_reply, _PROXY.decode_reply):
        try:
            status, lines, body = decode(header if number & 4 else None, payload, method)
        except HTTPError:
            continue
        assert 200 <= status <= 599
        assert isinstance(body, bytes)
        assert not lines or lines.endswith(b"\r\n")
        for line in lines.split(b"\r\n")[:-1]:
            name, colon, value = line.partition(b": ")
            assert colon or line.endswith(b":")
            assert not _FORBIDDEN(name + value)
            assert not name.lower().startswith((b"nw-", b"nats-", b"transfer-encoding", b"connection"))
        Headers.from_block(lines)


def controls(data: bytes) -> None:
    """A control message, or an event, is read or refused, and each question about a header block has an answer."""
    _, header, _ = _split(data)
    is_no_responders(header), may_retry(header), is_opening(header)
    with contextlib.suppress(HTTPError):
        decode_event(["x"], header, b"")
    try:
        control = decode_control(header)
    except HTTPError:
        return
    assert control.flow is None or control.flow >= 0
    assert not control.lines or control.lines.endswith(b"\r\n")


def paths(data: bytes) -> None:
    """Any path has one safe subject below the root, which maps back, or is refused; and so has any subject."""
    text = data.decode("latin-1")
    for raw in (text, f"/{text}"):
        try:
            subject = to_subject("api", raw)
        except HTTPError:
            continue
        assert subject == "api" or subject.startswith("api.")
        assert not set(subject) & set("*> \t\r\n\0")
        assert subject.isascii()
        assert "" not in subject.split(".")
        tokens = subject_tokens("api", subject)
        path = to_path(tokens)
        assert to_subject("api", path) == subject
    try:
        tokens = subject_tokens("api", f"api.{text}")
    except HTTPError:
        return
    assert to_subject("api", to_path(tokens)) == f"api.{text}"


def heads(data: bytes) -> None:
    """Header lines of a client cross whole or not at all; a head is understood or refused."""
    fields = [(name, value) for name, _, value in (line.partition(b":") for line in data.split(b"\n"))]
    try:
        lines = encode_fields(fields)
    except HTTPError:
        pass
    else:
        for line in lines.split(b"\r\n")[:-1]:
            assert not _FORBIDDEN(line)
            assert not line.lower().replace(b"_", b"-").startswith((b"nw-", b"nats-", b"transfer-encoding:"))
    connection_options(fields)
    try:
        check_head("1.1", [(name.lower(), value) for name, value in fields if name.lower() != b"content-length"])
    except HTTPError:
        pass
    try:
        path, query, _ = split_target("GET", data)
    except HTTPError:
        return
    assert path.startswith(b"/")
    assert b"?" not in path
    assert b"#" not in path + query


TARGETS: dict[str, Target] = {
    "requests": requests,
    "replies": replies,
    "controls": controls,
    "paths": paths,
    "heads": heads,
    "doors": doors,
}
