"""Forms of a request: urlencoded and multipart bodies as fields and files, with limits.

starlette parses, while the body comes. Files stay in memory up to 1 MiB and go to a temporary file above; whoever
reads a form closes them. Knows bodies and content types; it knows no handlers.
"""

import contextlib
import importlib.util
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from email.message import Message

from starlette.datastructures import FormData
from starlette.datastructures import Headers as StarletteHeaders
from starlette.datastructures import UploadFile as StarletteUploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from natsweb.errors import BadRequest, TooLarge, UnsupportedMedia
from natsweb.messages import Call, Request, quote_query
from natsweb.params import UploadFile

__all__ = ["FORM_LIMITS", "FormLimits", "has_parser", "read_form"]

_CHUNK = 64 * 1024
_MULTIPART = "multipart/form-data"
_URLENCODED = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Bounds of a form: how many fields and files, the bytes of one field, and of all of it with its files."""

    fields: int = 1000
    files: int = 100
    field_bytes: int = 1024 * 1024
    body_bytes: int = 1024 * 1024 * 1024


FORM_LIMITS = FormLimits()


def has_parser() -> bool:
    """Tell whether the library that takes forms apart is installed: the extra `natsweb[forms]`."""
    return importlib.util.find_spec("python_multipart") is not None


async def read_form(call: Call | Request, limits: FormLimits = FORM_LIMITS) -> list[tuple[str, str | UploadFile]]:
    """Return the fields and files of a request's form, in order, reading its body as it comes.

    Raises `UnsupportedMedia` for a body that is no form, `TooLarge` for one over a limit, `BadRequest` for one that
    is broken. An empty body without content type is a form without fields.
    """
    content_type = call.headers.get("content-type")
    if content_type is None and not call.more and not call.body:
        return []
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind not in _PARSERS:
        raise UnsupportedMedia(
            f"this route takes a form: send it as {_MULTIPART} or {_URLENCODED}",
            headers={"accept": f"{_MULTIPART}, {_URLENCODED}"},
        )
    body = _bounded(call.chunks() if isinstance(call, Call) else call.stream(), limits.body_bytes)
    try:
        async with contextlib.aclosing(body):
            form = await _PARSERS[kind](content_type or "", body, limits)
    except MultiPartException as error:
        if error.message.startswith(("Too many", "Part exceeded", "Field exceeded")):
            raise TooLarge(f"the form is over a limit: {error.message}") from None
        raise BadRequest(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, LookupError):
        raise BadRequest("the form cannot be read: it is malformed") from None
    if any(_is_no_text(one) for pair in form.multi_items() for one in pair):
        await form.close()
        raise BadRequest("the form has something in it that is no text")
    return [(name, _ours(value)) for name, value in form.multi_items()]


async def _bounded(chunks: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes, None]:
    """Give a body in pieces of moderate size; raises `TooLarge` when there have been more than `limit` bytes."""
    left = limit
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise TooLarge(f"the form is over a limit: its body may have {limit} bytes")
        for start in range(0, len(chunk), _CHUNK):
            yield chunk[start : start + _CHUNK]


async def _parse_urlencoded(content_type: str, body: AsyncIterator[bytes], limits: FormLimits) -> FormData:
    async def quoted() -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            yield quote_query(chunk).encode()

    headers = StarletteHeaders({"content-type": content_type})
    return await FormParser(headers, quoted(), max_fields=limits.fields, max_part_size=limits.field_bytes).parse()


async def _parse_multipart(content_type: str, body: AsyncIterator[bytes], limits: FormLimits) -> FormData:
    """Parse a form with files; one that does not end with its closing boundary is refused, whatever is in it."""
    ending = _Ending(content_type)

    async def seen() -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            ending.take(chunk)
            yield chunk
        if not ending.is_there:
            raise BadRequest("the form is cut off: its last boundary is not there")

    parser = MultiPartParser(
        StarletteHeaders({"content-type": content_type}),
        seen(),
        max_files=limits.files,
        max_fields=limits.fields,
        max_part_size=limits.field_bytes,
    )
    return await parser.parse()


_PARSERS = {_MULTIPART: _parse_multipart, _URLENCODED: _parse_urlencoded}


class _Ending:
    """Whether the last boundary of a body that comes in pieces is the closing one; no more of it is kept than that."""

    def __init__(self, content_type: str) -> None:
        message = Message()
        message["content-type"] = content_type
        boundary = message.get_boundary("")  # without one, the parser refuses the form before it comes
        self._mark = b"\r\n--%b" % boundary.encode("latin-1", "replace")
        self._tail = b"\r\n"  # the first boundary stands at the beginning
        self.is_there = False

    def take(self, chunk: bytes) -> None:
        """Look at the next piece."""
        seen = self._tail + chunk
        last = seen.rfind(self._mark)
        if last >= 0:
            self.is_there = seen.startswith(b"--", last + len(self._mark))
        self._tail = seen[-len(self._mark) - 1 :]  # a boundary, and all but one of what tells which one it is


def _is_no_text(value: str | StarletteUploadFile) -> bool:
    """Tell whether a text has halves of surrogate pairs, which some character sets smuggle in."""
    return isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)


def _ours(value: str | StarletteUploadFile) -> str | UploadFile:
    if isinstance(value, str):
        return value
    return UploadFile(value.file, size=value.size, filename=value.filename, headers=value.headers)
