"""Forms of a request: urlencoded and multipart bodies as fields and files, with limits.

starlette parses. Files stay in memory up to 1 MiB and go to a temporary file above; whoever reads a form closes
them. Knows bodies and content types; it knows no handlers.
"""

import importlib.util
from collections.abc import AsyncGenerator
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
    """Bounds of a form: how many fields and files, and the bytes of one field (files are bounded by the body)."""

    fields: int = 1000
    files: int = 100
    field_bytes: int = 1024 * 1024


FORM_LIMITS = FormLimits()


def has_parser() -> bool:
    """Tell whether the library that takes forms apart is installed: the extra `natsweb[forms]`."""
    return importlib.util.find_spec("python_multipart") is not None


async def read_form(call: Call | Request, limits: FormLimits = FORM_LIMITS) -> list[tuple[str, str | UploadFile]]:
    """Return the fields and files of a request's form, in order.

    Raises `UnsupportedMedia` for a body that is no form, `TooLarge` for one over a limit, `BadRequest` for one that
    is broken. An empty body without content type is a form without fields.
    """
    content_type = call.headers.get("content-type")
    if content_type is None and not call.body:
        return []
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind not in (_MULTIPART, _URLENCODED):
        raise UnsupportedMedia(
            f"this route takes a form: send it as {_MULTIPART} or {_URLENCODED}",
            headers={"accept": f"{_MULTIPART}, {_URLENCODED}"},
        )
    headers = StarletteHeaders({"content-type": content_type or ""})
    if kind == _MULTIPART and not _is_whole(content_type or "", call.body):
        raise BadRequest("the form is cut off: its last boundary is not there")
    try:
        form = await _parse(kind, headers, call.body, limits)
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


def _is_whole(content_type: str, body: bytes) -> bool:
    """Tell whether a multipart body ends with its closing boundary; one without any is the parser's business."""
    message = Message()
    message["content-type"] = content_type
    boundary = message.get_boundary()
    if boundary is None:
        return True
    mark = b"--%b" % boundary.encode("latin-1", "replace")
    last = body.rfind(mark)
    return last >= 0 and body[last + len(mark) :].startswith(b"--")


def _is_no_text(value: str | StarletteUploadFile) -> bool:
    """Tell whether a text has halves of surrogate pairs, which some character sets smuggle in."""
    return isinstance(value, str) and not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)


async def _parse(kind: str, headers: StarletteHeaders, body: bytes, limits: FormLimits) -> FormData:
    if kind == _URLENCODED:
        return await FormParser(
            headers, _pieces(quote_query(body).encode()), max_fields=limits.fields, max_part_size=limits.field_bytes
        ).parse()
    return await MultiPartParser(
        headers, _pieces(body), max_files=limits.files, max_fields=limits.fields, max_part_size=limits.field_bytes
    ).parse()


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _CHUNK):
        yield body[start : start + _CHUNK]
    yield b""


def _ours(value: str | StarletteUploadFile) -> str | UploadFile:
    if isinstance(value, str):
        return value
    return UploadFile(value.file, size=value.size, filename=value.filename, headers=value.headers)
