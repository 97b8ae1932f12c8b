"""Path templates of routes: `/orders/<id>` and `/files/<path:rest>`, parsed once at declaration.

A template is a row of parts: literals (already encoded as subject tokens), captures of one segment, and at
most one capture of the tail, at the end. It gives the subject pattern and, from values, a path again.
This module knows the spelling of templates; which handler answers is `routing`'s business.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlencode

from natsweb.errors import BadPath, DeclarationError
from natsweb.subjects import ANY, REST, encode_segment, join, to_path

__all__ = ["Capture", "Literal", "Tail", "Template"]


@dataclass(frozen=True, slots=True)
class Literal:
    """A segment that stands for itself, as its subject token."""

    token: str


@dataclass(frozen=True, slots=True)
class Capture:
    """`<name>`: exactly one segment, not empty."""

    name: str


@dataclass(frozen=True, slots=True)
class Tail:
    """`<path:name>`: all that follows, one segment at least, which may be empty."""

    name: str


Part = Literal | Capture | Tail

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_CAPTURE = re.compile(rf"<(?P<name>{_NAME})>").fullmatch
_TAIL = re.compile(rf"<path:(?P<name>{_NAME})>").fullmatch
_BRACES = re.compile(rf"\{{(?P<name>{_NAME})(?P<kind>:[a-z]+)?\}}").fullmatch
_COLON = re.compile(rf":(?P<name>{_NAME})").fullmatch
_TYPED = re.compile(rf"<(?P<kind>[a-z]+):(?P<name>{_NAME})>").fullmatch


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template; `captures` and `tail` are (position, name) of what it captures."""

    text: str
    parts: tuple[Part, ...]
    captures: tuple[tuple[int, str], ...] = field(init=False)
    tail: tuple[int, str] | None = field(init=False)

    def __post_init__(self) -> None:
        captures = tuple((index, part.name) for index, part in enumerate(self.parts) if isinstance(part, Capture))
        tails = [(index, part.name) for index, part in enumerate(self.parts) if isinstance(part, Tail)]
        object.__setattr__(self, "captures", captures)
        object.__setattr__(self, "tail", tails[0] if tails else None)

    @classmethod
    def parse(cls, text: str) -> "Template":
        """Parse a template; raises `DeclarationError` that shows the right spelling."""
        if not text.startswith("/"):
            raise DeclarationError(f"the path {text!r} does not start with '/'", fix=f"write {'/' + text!r}")
        segments = [] if text == "/" else text[1:].split("/")
        parts = tuple(_parse_segment(text, segment, segment is segments[-1]) for segment in segments)
        names = [part.name for part in parts if not isinstance(part, Literal)]
        for name in names:
            if names.count(name) > 1:
                raise DeclarationError(f"the path {text!r} has <{name}> twice", fix="give each capture its own name")
        return cls(text, parts)

    @property
    def names(self) -> list[str]:
        """The names of the captures, in order."""
        return [part.name for part in self.parts if not isinstance(part, Literal)]

    @property
    def shape(self) -> tuple[str, ...]:
        """The pattern tokens: equal for templates that differ in names only."""
        return tuple(_token(part) for part in self.parts)

    def pattern(self, root: str) -> str:
        """Return the subject pattern below `root`."""
        return join(root, self.shape)

    def path(self, values: Mapping[str, object]) -> str:
        """Return the canonical path with the captures filled in.

        Raises `KeyError` for a name without value, `ValueError` for a value that no path can carry.
        """
        tokens: list[str] = []
        try:
            for part in self.parts:
                if isinstance(part, Literal):
                    tokens.append(part.token)
                elif isinstance(part, Tail):
                    tokens += [encode_segment(segment) for segment in _one(values[part.name]).split("/")]
                else:
                    text = _one(values[part.name])
                    if not text:
                        raise ValueError(f"<{part.name}> of {self.text!r} cannot be empty")
                    tokens.append(encode_segment(text))
        except BadPath as error:
            raise ValueError(f"{self.text!r}: {error.detail}") from None
        if tokens == [encode_segment("")]:
            raise ValueError(f"{self.text!r} with nothing in it is '/', which is another path")
        return to_path(tokens)

    def url(self, values: Mapping[str, object], query: Mapping[str, object]) -> str:
        """Return path and query string; a list in `query` is repeated, None is left out.

        Raises what `path` raises.
        """
        pairs = [(name, value) for name, value in query.items() if value is not None]
        encoded = urlencode([(name, _text(value)) for name, value in pairs], doseq=True)
        return self.path(values) + (f"?{encoded}" if encoded else "")

    def __str__(self) -> str:
        return self.text


def _one(value: object) -> str:
    text = _text(value)
    if not isinstance(text, str):
        raise ValueError(f"{value!r} is no part of a path")
    return text


def _text(value: object) -> str | list[str]:
    if value is None:
        raise ValueError("None is no part of a path")
    if isinstance(value, list | tuple | set | frozenset):
        return [str(_text(one)) for one in value]
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, Enum) else value)


def _token(part: Part) -> str:
    if isinstance(part, Literal):
        return part.token
    return REST if isinstance(part, Tail) else ANY


def _parse_segment(text: str, segment: str, last: bool) -> Part:
    if found := _CAPTURE(segment):
        return Capture(found["name"])
    if found := _TAIL(segment):
        if not last:
            raise DeclarationError(
                f"<path:{found['name']}> is not at the end of {text!r}",
                fix="a tail takes all that follows, so it has to be the last segment",
            )
        return Tail(found["name"])
    _refuse_other_spellings(text, segment)
    try:
        return Literal(encode_segment(segment))
    except BadPath as error:
        raise DeclarationError(f"the path {text!r} cannot be served: {error.detail}") from None


def _refuse_other_spellings(text: str, segment: str) -> None:
    right = None
    if found := _BRACES(segment):
        right = f"<path:{found['name']}>" if found["kind"] == ":path" else f"<{found['name']}>"
    elif (found := _COLON(segment)) or (found := _TYPED(segment)):
        right = f"<{found['name']}>"
    if right:
        raise DeclarationError(
            f"the path {text!r} spells a capture as {segment!r}",
            fix=f"natsweb writes {text.replace(segment, right)!r}; its type is the annotation of the parameter",
        )
    if any(mark in segment for mark in "<>{}"):
        raise DeclarationError(
            f"the segment {segment!r} of {text!r} is neither a literal nor a capture",
            fix="a capture is a whole segment: '/orders/<id>', or '/files/<path:rest>' for all that follows",
        )
    if "%" in segment or "?" in segment or "#" in segment:
        raise DeclarationError(
            f"the segment {segment!r} of {text!r} is not plain text",
            fix="write paths decoded (a space, not %20), and take query parameters as handler parameters",
        )
