"""The format of savaki/nats-proxy, for moving house: a protobuf message in the payload, both ways (docs/wire.md).

    int32 status = 1; string method = 2; map<string, string> header = 3;
    map<string, Cookie> cookies = 4; bytes body = 5;      Cookie: string value = 1; string path = 2;

A header has one value there, and a request no query: what does not fit is left out. Paths are subjects without escapes,
and one that could reach another subject is refused. protobuf's own runtime encodes and decodes; it is an extra.
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from natsweb.errors import BadPath, BadReply, BadRequest, StartError, SubjectTooLong
from natsweb.headers import Headers, connection_options, encode_line
from natsweb.messages import Call, Response, Result, cookies_of
from natsweb.subjects import decode_token, encode_segment, join, path_tokens
from natsweb.wire import forwarded_fields, is_method

__all__ = ["ProxyWire"]

_FORBIDDEN = frozenset(" .*>\t\r\n\0")


@functools.cache
def _message_class() -> Any:
    """Return the class of the format's message; raises `StartError` without protobuf."""
    try:
        descriptors = importlib.import_module("google.protobuf.descriptor_pb2")
        pools = importlib.import_module("google.protobuf.descriptor_pool")
        factory = importlib.import_module("google.protobuf.message_factory")
    except ImportError:
        raise StartError(
            "--wire nats-proxy needs protobuf, which is not installed", fix='pip install "natsweb[nats-proxy]"'
        ) from None
    file = descriptors.FileDescriptorProto(name="natsweb/nats_proxy.proto", package="nats_proxy", syntax="proto3")
    cookie = file.message_type.add(name="Cookie")
    field = descriptors.FieldDescriptorProto
    _add(cookie, "value", 1, field.TYPE_STRING)
    _add(cookie, "path", 2, field.TYPE_STRING)
    message = file.message_type.add(name="Message")
    _add(message, "status", 1, field.TYPE_INT32)
    _add(message, "method", 2, field.TYPE_STRING)
    for name, number, kind, of in (("header", 3, field.TYPE_STRING, ""), ("cookies", 4, field.TYPE_MESSAGE, "Cookie")):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add(entry, "key", 1, field.TYPE_STRING)
        _add(entry, "value", 2, kind, of and f".nats_proxy.{of}")
        _add(message, name, number, field.TYPE_MESSAGE, f".nats_proxy.Message.{entry.name}", repeated=True)
    _add(message, "body", 5, field.TYPE_BYTES)
    pool = pools.DescriptorPool()
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("nats_proxy.Message"))


def _add(message: Any, name: str, number: int, kind: int, of: str = "", *, repeated: bool = False) -> None:
    message.field.add(name=name, number=number, type=kind, type_name=of or None, label=3 if repeated else 1)


class ProxyWire:
    """Encodes and decodes that format; raises `StartError` when it is made without protobuf."""

    def __init__(self) -> None:
        self._make = _message_class()

    def __repr__(self) -> str:
        return "<ProxyWire>"

    # ── a gateway's side ──

    def subject(self, root: str, raw_path: str, limit: int) -> str:
        """Return the subject of a raw path: dots for slashes, nothing escaped, none at the end.

        Raises `BadPath` for a path that has no subject of its own there, `SubjectTooLong` over `limit` bytes.
        """
        segments = [decode_token(token) for token in path_tokens(raw_path)]
        while segments and not segments[-1]:
            segments.pop()
        for segment in segments:
            if not segment or not _FORBIDDEN.isdisjoint(segment) or not segment.isprintable():
                raise BadPath("services that speak nats-proxy's format cannot be asked for such a path")
        subject = join(root, [segment.encode().decode("latin-1") for segment in segments])
        if len(subject) > limit:
            raise SubjectTooLong(
                f"the path is too long: its subject would have {len(subject)} bytes of {limit} allowed"
            )
        return subject

    def encode_request(self, method: str, fields: bytes, body: bytes) -> bytes:
        """Return the payload of a request; of a repeated header the first goes."""
        headers = Headers.from_block(fields)
        message = self._make(method=method, body=body)
        _fill(message.header, headers.without("cookie"))
        for name, value in cookies_of(headers).items():
            message.cookies[name].value = value
            message.cookies[name].path = "/"
        return bytes(message.SerializeToString())

    def decode_reply(self, header: bytes | None, payload: bytes, method: str) -> tuple[int, bytes, bytes]:
        """Return (status, field lines, body) of a reply; raises `BadReply`."""
        message = self._parse(payload, BadReply)
        status = message.status or 200
        if not 200 <= status <= 599:
            raise BadReply("the service's reply has no valid status")
        try:
            fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in message.header.items()]
            lines = b"".join([encode_line(name, value) for name, value in forwarded_fields(fields)])
        except ValueError:
            raise BadReply("the service's reply has a header that cannot be sent") from None
        return status, lines, b"" if method == "HEAD" or status in (204, 205, 304) else message.body

    # ── a service's side ──

    def tokens(self, root: str, subject: str) -> list[str]:
        """Return the canonical tokens of a subject that is not escaped; raises `BadPath`."""
        if subject == root:
            return []
        rest = subject[len(root) + 1 :]
        try:
            return [encode_segment(token.encode("latin-1").decode()) for token in rest.split(".")]
        except UnicodeDecodeError:
            raise BadPath("the subject is not UTF-8") from None

    def decode_request(self, tokens: list[str], payload: bytes) -> Call:
        """Return the call that a payload carries; raises `BadRequest`."""
        message = self._parse(payload, BadRequest)
        try:
            fields = [(name.lower(), value) for name, value in sorted(message.header.items())]
            if message.cookies:
                fields.append(("cookie", "; ".join(f"{name}={one.value}" for name, one in message.cookies.items())))
            headers = Headers(fields).without(*_hops(fields))
        except ValueError as error:
            raise BadRequest(f"a header cannot be one: {error}") from None
        method = message.method or ("POST" if message.body else "GET")
        if not is_method(method):
            raise BadRequest("the method is not an HTTP method in upper case")
        return Call(method, tokens, headers=headers, body=message.body)

    def encode_response(self, response: Response | Result) -> bytes:
        """Return the payload of a reply; of a repeated header the first goes."""
        message = self._make(status=response.status, body=response.body)
        _fill(message.header, response.headers)
        return bytes(message.SerializeToString())

    def _parse(self, payload: bytes, fault: type[BadRequest] | type[BadReply]) -> Any:
        message = self._make()
        try:
            message.ParseFromString(payload)
        except Exception:  # protobuf's runtimes have different ones
            raise fault("the message is not one of nats-proxy's format") from None
        return message


def _hops(fields: list[tuple[str, str]]) -> list[str]:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    kept = {name for name, _ in forwarded_fields(raw)}
    return [name.decode("latin-1") for name, _ in raw if name not in kept] + [
        name.decode("latin-1") for name in connection_options(raw)
    ]


def _fill(header: Any, headers: Headers) -> None:
    fields: Mapping[bytes, bytes] = dict(reversed(forwarded_fields(headers.fields)))
    for name, value in fields.items():
        header["-".join([part.capitalize() for part in name.decode().split("-")])] = value.decode("latin-1")
