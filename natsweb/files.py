"""Files as answers, with everything that HTTP knows about them: ETag, Last-Modified, ranges, conditions.

starlette's `FileResponse` answers; here its messages become one `Response`. Knows requests and files.
"""

import asyncio
import os
import stat
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers as StarletteHeaders
from starlette.responses import FileResponse as StarletteFileResponse
from starlette.responses import Response as StarletteResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles

from natsweb.errors import HTTPError, ReplyTooLarge
from natsweb.headers import Headers, HeaderSource
from natsweb.messages import Call, Request, Response
from natsweb.replies import Deferred

__all__ = ["FileResponse"]

_conditions = StaticFiles(check_dir=False)
_LARGEST = 64 * 1024 * 1024  # as large as NATS lets a message be


class FileResponse(Deferred):
    """A file as the answer, to be returned by a handler: `return FileResponse("report.pdf")`.

    The content type is guessed from the name. `ETag`, `Last-Modified`, `Range`, `If-Range`, `If-None-Match` and
    `If-Modified-Since` work (RFC 9110 sections 13 and 14). `filename` makes it a download of that name. With `root`,
    `path` is taken below that folder, and anything that leads out of it, links included, is 404, as is a
    file that does not exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        media_type: str | None = None,
        headers: HeaderSource = (),
    ) -> None:
        self.path = Path(path)
        self.root = None if root is None else Path(root)
        self.filename = filename
        self.media_type = media_type
        self.headers = Headers(headers)

    def __repr__(self) -> str:
        return f"FileResponse({str(self.path)!r})"

    async def render(self, call: Call | Request) -> Response:
        """Return the response: the file, a part of it, or 304.

        Raises `HTTPError` 404 for what is no file, `ReplyTooLarge` for more than 64 MiB.
        """
        path, status = await asyncio.to_thread(self._find)
        fields = call.headers.fields
        ranges = call.headers.get("range")
        if ranges is not None and (call.method != "GET" or not ranges.lower().lstrip().startswith("bytes")):
            fields = [field for field in fields if field[0] != b"range"]  # RFC 9110 section 14.2: to be ignored
        tags = call.headers.getlist("if-none-match")
        rest = [field for field in fields if field[0] != b"if-none-match"]
        asked = StarletteHeaders(raw=[*rest, (b"if-none-match", ", ".join(tags).encode("latin-1"))] if tags else fields)
        response: StarletteResponse = StarletteFileResponse(
            path,
            headers={name: self.headers[name] for name, _ in self.headers},
            media_type=self.media_type,
            filename=self.filename,
            stat_result=status,
        )
        if call.method in ("GET", "HEAD") and _conditions.is_not_modified(response.headers, asked):
            response = NotModifiedResponse(response.headers)
        found = await _collect(response, call.method, fields)
        several = [name for name, _ in self.headers if len(self.headers.getlist(name)) > 1 and name in found.headers]
        again = Headers([(name, value) for name, value in self.headers if name in several])
        return found.model_copy(update={"headers": found.headers.without(*several) + again}) if several else found

    def _find(self) -> tuple[Path, os.stat_result]:
        """Return the real path and its status; raises `HTTPError` 404."""
        path = self.path
        try:
            if self.root is not None:
                root = self.root.resolve(strict=True)
                path = (root / str(self.path).lstrip("/")).resolve(strict=True)
                if not path.is_relative_to(root):
                    raise FileNotFoundError
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError
        except (OSError, ValueError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
            raise HTTPError(404, "there is no such file", reason="no_file") from None
        return path, status


async def _collect(response: StarletteResponse, method: str, fields: list[tuple[bytes, bytes]]) -> Response:
    """Run an answer of starlette's and return it as one value."""
    scope = {"type": "http", "method": method, "headers": fields, "asgi": {"version": "3.0", "spec_version": "2.4"}}
    head: list[tuple[int, Headers]] = []
    body = bytearray()

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"]])
            if method != "HEAD" and int(headers.get("content-length") or 0) > _LARGEST:
                raise ReplyTooLarge("the file is larger than a NATS message can be; ask for a range of it")
            head.append((message["status"], headers))
        else:
            body.extend(message.get("body", b""))

    await response(scope, receive, send)
    [(status, headers)] = head
    if status >= 400:
        raise HTTPError(
            status,
            "the Range of the request cannot be served from this file",
            reason="bad_range",
            headers=dict(headers.without("content-type", "content-length")),
        )
    return Response(status=status, headers=headers, body=bytes(body))
