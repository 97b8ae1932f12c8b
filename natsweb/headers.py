"""HTTP header fields as one immutable value, exact to the byte.

`Headers` holds field lines (`name: value\\r\\n`) as they travel in a NATS header block and parses them on
first use; names are lower case, repeats stay repeats, values are latin-1 (RFC 9110 section 5.5). Nothing
with a control character ever gets in. This module knows fields; which of them mean something is `wire`'s business.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

__all__ = ["HOP_BY_HOP", "HeaderSource", "Headers", "connection_options", "encode_line"]

#: Fields that belong to one connection and are never forwarded (RFC 9110 section 7.6.1).
HOP_BY_HOP = frozenset(
    [
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    ]
)

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search  # RFC 9110 section 5.5

#: What `Headers` can be built from.
HeaderSource: TypeAlias = "Headers | Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str]]"


def encode_line(name: bytes, value: bytes) -> bytes:
    """Return `name: value\\r\\n` with the name in lower case; raises `ValueError` for what must not be sent."""
    if not _TOKEN(name):
        raise ValueError(f"{name!r} is not a header name (RFC 9110 section 5.1)")
    if _FORBIDDEN(value):
        raise ValueError(f"the value of header {name.decode()} has a control character in it")
    return b"%b: %b\r\n" % (name.lower(), value.strip(b" \t"))


def connection_options(fields: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the lower-case names that `Connection` fields declare hop-by-hop, besides the standard ones."""
    return frozenset(
        option.strip(b" \t").lower() for name, value in fields if name == b"connection" for option in value.split(b",")
    )


def _to_bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} has characters outside latin-1, which a header cannot carry") from None


def _pairs(source: Any) -> Iterator[tuple[bytes, bytes]]:
    items = source.items() if isinstance(source, Mapping) else source
    for name, value in items:
        for one in (value,) if isinstance(value, str | bytes) else value:
            yield _to_bytes(name), _to_bytes(one)


class Headers:
    """Immutable header fields: `headers["content-type"]`, `headers.get(...)`, `headers.getlist("set-cookie")`.

    Built from a mapping of names to values (or lists of values), or from pairs. Names compare without case;
    `[...]` and `get` give the first value of a name. Iterating gives (name, value) pairs in their order.
    Raises `ValueError` for a name that is no token, or a value with control or non-latin-1 characters.
    """

    __slots__ = ("_fields", "block")

    #: The field lines as bytes, each `name: value\r\n`: what travels.
    block: bytes

    def __init__(self, source: HeaderSource = ()) -> None:
        self._fields: list[tuple[bytes, bytes]] | None = None
        if isinstance(source, Headers):
            self.block = source.block
        else:
            self.block = b"".join([encode_line(name, value) for name, value in _pairs(source)])

    @classmethod
    def from_block(cls, block: bytes) -> "Headers":
        """Wrap field lines that are known to be well-formed; nothing is parsed until someone asks."""
        self = cls.__new__(cls)
        self.block, self._fields = block, None
        return self

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The (lower-case name, value) pairs as bytes, in order."""
        if self._fields is None:
            fields = []
            for line in self.block.split(b"\r\n")[:-1]:
                name, _, value = line.partition(b":")
                fields.append((name.lower(), value.strip(b" \t")))
            self._fields = fields
        return self._fields

    def get_bytes(self, name: bytes) -> bytes | None:
        """Return the first value of a lower-case name, or None."""
        for found, value in self.fields:
            if found == name:
                return value
        return None

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of `name`, or `default`."""
        value = self.get_bytes(name.lower().encode("latin-1", "replace"))
        return default if value is None else value.decode("latin-1")

    def getlist(self, name: str) -> list[str]:
        """Return all values of `name`, in order."""
        wanted = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for found, value in self.fields if found == wanted]

    def items(self) -> list[tuple[str, str]]:
        """Return the (lower-case name, value) pairs, in order; `dict` of them keeps the last of each name."""
        return list(self)

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter([(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.fields])

    def __len__(self) -> int:
        return len(self.fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(tuple(self.fields))

    def __repr__(self) -> str:
        return f"Headers({list(self)!r})"

    def __add__(self, other: HeaderSource) -> "Headers":
        """Return these fields followed by the others; none replaces another."""
        return Headers.from_block(self.block + Headers(other).block)

    def without(self, *names: str) -> "Headers":
        """Return these fields less all that have one of `names`."""
        gone = {name.lower().encode("latin-1", "replace") for name in names}
        return Headers.from_block(b"".join([encode_line(n, v) for n, v in self.fields if n not in gone]))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Headers take a mapping or pairs, and dump as a list of [name, value] pairs of latin-1 text."""
        return core_schema.no_info_plain_validator_function(
            cls._validate,
            json_schema_input_schema=core_schema.list_schema(
                core_schema.list_schema(core_schema.str_schema(), min_length=2, max_length=2)
            ),
            serialization=core_schema.plain_serializer_function_ser_schema(list),
        )

    @classmethod
    def _validate(cls, value: Any) -> "Headers":
        if isinstance(value, Headers):
            return value
        try:
            return cls(value)
        except (TypeError, AttributeError):
            raise ValueError("headers are a mapping of names to values, or (name, value) pairs") from None
