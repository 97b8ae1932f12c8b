"""What a client says in the words of Python, as the letters of HTTP; and its answers back, with their errors.

Paths are checked, bodies and queries written, before anything is sent; an answer is read as a type of pydantic's. Knows
values; how they travel is `calls`' business.
"""

import contextlib
import difflib
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json, to_jsonable_python
from typing_extensions import TypedDict

from natsweb.errors import BadPath, BadReply, FieldError, HTTPError
from natsweb.headers import Headers, HeaderSource
from natsweb.messages import Response, quote_query
from natsweb.subjects import path_tokens, to_path

__all__ = ["CallOptions", "Question", "error_of", "question_of", "read_as"]

_KEPT = ("allow", "retry-after", "www-authenticate")
_FORM = "application/x-www-form-urlencoded"
_ERRORS: TypeAdapter[list[FieldError]] = TypeAdapter(list[FieldError])
_QUOTED = 500
# How others call what is there.
_MEANT = {"content": "body", "query": "params", "form": "data"}


class CallOptions(TypedDict, total=False):
    """What a call takes besides its path.

    One of `json` (whatever pydantic can write), `data` (a form) and `body` (bytes, or an async iterable of bytes that
    is sent as it comes) is the body. `params` is the query, where a list is repeated and None left out. `timeout` is
    how many seconds the answer may take. Without `raise_for_status` an answer from 400 on is one like any other.
    """

    json: Any
    data: Mapping[str, object]
    body: bytes | AsyncIterable[bytes]
    params: Mapping[str, object]
    headers: HeaderSource
    timeout: float
    raise_for_status: bool


class Question(NamedTuple):
    """A call in the letters of HTTP."""

    method: str
    raw_path: str
    query: str
    fields: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes]

    def __str__(self) -> str:
        return f"{self.method} {self.raw_path}"


# ── from words to letters ────────────────────────────────────────────────────────────────────────


def question_of(method: str, path: str, options: CallOptions) -> Question:
    """Return a call as it goes; raises `ValueError` for a path that is none, `TypeError` for what is no body."""
    if unknown := sorted(options.keys() - CallOptions.__annotations__.keys()):
        raise _no_option(unknown[0])
    given = [name for name in ("json", "data", "body") if name in options]
    if len(given) > 1:
        raise TypeError(f"{given[0]}= and {given[1]}= are both the body; give one of them")
    headers = Headers(options.get("headers", ()))
    body: bytes | AsyncIterator[bytes] = b""
    kind = None
    if "json" in options:
        body, kind = to_json(options["json"], by_alias=True), "application/json"
    elif "data" in options:
        body, kind = _pairs(options["data"]).encode("ascii"), _FORM
    elif "body" in options:
        raw = options["body"]
        if not isinstance(raw, bytes | AsyncIterable):
            raise TypeError(f"body= takes bytes, or an async iterable of bytes, not {type(raw).__name__}")
        body = raw if isinstance(raw, bytes) else aiter(raw)
    if kind is not None and "content-type" not in headers:
        headers = headers + {"content-type": kind}
    raw_path, query = _split(path)
    more = _pairs(options.get("params", {}))
    query = f"{query}&{more}" if query and more else query or more
    return Question(method.upper(), raw_path, query, headers.fields, body)


def _no_option(name: str) -> TypeError:
    known = list(CallOptions.__annotations__)
    meant = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {meant[0]}=?" if meant else f"it takes {', '.join(known)}"
    return TypeError(f"a call has no {name}=; {hint}")


def _split(path: str) -> tuple[str, str]:
    """Return the canonical path and the query of what a caller wrote; raises `ValueError` for what is neither."""
    raw, _, query = path.partition("?")
    if not raw.startswith("/"):
        raise ValueError(f"the path {path!r} does not begin with '/': write it as '/orders/7', without scheme and host")
    if found := [mark for mark in "{}<>#" if mark in raw]:
        raise ValueError(
            f"the path {path!r} has a {found[0]!r} in it: fill values in, as in f'/orders/{{id}}', "
            "with urllib.parse.quote(value, safe='') around those that are not plain"
        )
    try:
        return to_path(path_tokens(raw.encode().decode("latin-1"))), quote_query(query)
    except (BadPath, UnicodeEncodeError) as error:
        why = error.detail if isinstance(error, BadPath) else "it is not text"
        raise ValueError(f"the path {path!r} cannot be called: {why}; quote what stands for itself") from None


def _pairs(values: Mapping[str, object]) -> str:
    """Return names and values as a query or a form: lists are repeated, None is left out."""
    pairs = [(name, _text(value)) for name, value in values.items() if value is not None]
    return urlencode(pairs, doseq=True)


def _text(value: object) -> str | list[str]:
    if isinstance(value, list | tuple | set | frozenset):
        return [str(_text(one)) for one in value if one is not None]
    if isinstance(value, str):
        return str(value.value) if isinstance(value, Enum) else value
    plain = to_jsonable_python(value)
    return plain if isinstance(plain, str) else json.dumps(plain)


# ── from letters to words ────────────────────────────────────────────────────────────────────────


def read_as(response: Response, into: Any, question: Question) -> Any:
    """Return an answer as a type; raises `BadReply` for one that does not fit."""
    kind = response.headers.get("content-type") or ""
    is_json = "json" in kind
    if into is bytes:
        return response.body
    if into is str and not is_json:
        return response.text
    if 300 <= response.status < 400:
        raise BadReply(
            f"{question} is answered with {response.status}, to {response.headers.get('location', 'nowhere')}"
        )
    name = getattr(into, "__name__", str(into))
    if response.body and kind and not is_json:
        raise BadReply(f"the answer to {question} is {kind}, and not JSON for {name}")
    adapter = _adapter(into)
    try:
        return adapter.validate_json(response.body) if response.body else adapter.validate_python(None)
    except ValidationError as error:
        raise BadReply(f"the answer to {question} does not fit {name}") from error


_adapters: dict[Any, TypeAdapter[Any]] = {}


def _adapter(into: Any) -> TypeAdapter[Any]:
    """Return what reads a type; it takes a while to make one."""
    try:
        found = _adapters.get(into)
    except TypeError:  # it cannot be hashed
        return TypeAdapter(into)
    if found is None:
        if len(_adapters) >= 1024:
            _adapters.clear()
        found = _adapters[into] = TypeAdapter(into)
    return found


def error_of(response: Response, question: Question) -> HTTPError:
    """Return the error that a service has answered with; what is no problem+json goes into its notes, for the log."""
    said: Any = None
    with contextlib.suppress(ValueError):
        said = json.loads(response.body) if "json" in (response.headers.get("content-type") or "") else None
    said = said if isinstance(said, dict) else {}
    detail, reason = said.get("detail"), said.get("reason")
    errors: list[FieldError] = []
    with contextlib.suppress(ValidationError):
        errors = _ERRORS.validate_python(said.get("errors") or [])
    error = HTTPError(
        response.status,
        detail if isinstance(detail, str) else "",
        reason=reason if isinstance(reason, str) else None,
        headers={name: value for name in _KEPT if (value := response.headers.get(name)) is not None},
        errors=errors,
    )
    error.add_note(f"this is the answer to {question}")
    if not isinstance(detail, str) and response.body:
        error.add_note(f"its body is {response.headers.get('content-type', 'untyped')}: {response.text[:_QUOTED]}")
    return error
