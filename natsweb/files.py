"""Files as answers, with everything that HTTP knows about them: ETag, Last-Modified, ranges, conditions.

starlette's `FileResponse` answers, and runs as any other ASGI app: up to 64 KiB are one plain `Response`, more is
streamed, so that memory does not grow with the file. Knows requests and files.
"""

import asyncio
import os
import stat
from pathlib import Path

from starlette.datastructures import Headers as StarletteHeaders
from starlette.responses import FileResponse as StarletteFileResponse
from starlette.responses import Response as StarletteResponse
from starlette.staticfiles import NotModifiedResponse, StaticFiles

from natsweb.asgi.conversation import Conversation
from natsweb.asgi.http import Http
from natsweb.asgi.scope import http_scope
from natsweb.errors import HTTPError
from natsweb.headers import Headers, HeaderSource
from natsweb.messages import Call, Pieces, Request, Response
from natsweb.replies import Deferred

__all__ = ["FileResponse"]

_conditions = StaticFiles(check_dir=False)
_running: set[Conversation] = set()  # each leaves it when its file is closed
_GRACE = 5.0
_AT_ONCE = 64 * 1024  # as much as starlette sends at once


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
        """Return the response: the file, a part of it, or 304; raises `HTTPError` 404 for what is no file.

        Whoever gets a streamed one reads it to its end or closes its `pieces`.
        """
        path, status = await asyncio.to_thread(self._find)
        response: StarletteResponse = StarletteFileResponse(
            path,
            headers={name: self.headers[name] for name, _ in self.headers},
            media_type=self.media_type,
            filename=self.filename,
            stat_result=status,
        )
        if _is_not_modified(response, call):
            response = NotModifiedResponse(response.headers)
        found = await _run(response, call)
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


def _without_ranges(call: Call | Request) -> list[tuple[bytes, bytes]]:
    """Return the header fields without a `Range` that is to be ignored (RFC 9110 section 14.2)."""
    ranges = call.headers.get("range")
    if ranges is None or (call.method == "GET" and ranges.lower().lstrip().startswith("bytes")):
        return call.headers.fields
    return [field for field in call.headers.fields if field[0] != b"range"]


def _is_not_modified(response: StarletteResponse, call: Call | Request) -> bool:
    """Tell whether the caller has the file already; several `If-None-Match` count as one."""
    fields = call.headers.fields
    tags = call.headers.getlist("if-none-match")
    if tags:
        rest = [field for field in fields if field[0] != b"if-none-match"]
        fields = [*rest, (b"if-none-match", ", ".join(tags).encode("latin-1"))]
    asked = StarletteHeaders(raw=fields)
    return call.method in ("GET", "HEAD") and _conditions.is_not_modified(response.headers, asked)


async def _run(response: StarletteResponse, call: Call | Request) -> Response:
    """Run an answer of starlette's, which is an ASGI app."""
    scope = {**http_scope(call, "", {}), "headers": _without_ranges(call)}
    run = Http(response, scope, call, _running, grace=_GRACE)
    found = await run.respond()
    if found.pieces is not None and int(found.headers["content-length"]) <= _AT_ONCE:  # several ranges
        found = await _collected(found, found.pieces)
    if found.pieces is None:
        await run.ended()  # it only has to close the file
    if found.status >= 400:
        raise HTTPError(
            found.status,
            "the Range of the request cannot be served from this file",
            reason="bad_range",
            headers=dict(found.headers.without("content-type", "content-length")),
        )
    return found


async def _collected(response: Response, pieces: Pieces) -> Response:
    """Return a streamed response as a plain one."""
    try:
        body = b"".join([piece async for piece in pieces.source])
    finally:
        await pieces.close()
    return Response.trusted(response.status, response.headers, body)
