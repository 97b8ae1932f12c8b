"""`/openapi.json` and `/docs` of a gateway: what its services offer, for programs and for people.

The page is Swagger UI, whose files come from the package of the extra `docs-ui`; nothing is asked of other hosts, and
the page's policy lets nothing be. Knows HTTP; which services there are is `fleet`'s business.
"""

import hashlib
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from natsweb.errors import StartError
from natsweb.gateway.fleet import Fleet
from natsweb.gateway.sites import Sites
from natsweb.messages import Response
from natsweb.rules import Rules

__all__ = ["Docs"]

#: Lower-case names and values of a header, as bytes.
Fields: TypeAlias = Sequence[tuple[bytes, bytes]]

_UI = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "favicon-32x32.png": "image/png",
}

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API</title>
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = """window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null,
});
"""

#: Nothing from elsewhere, no script but the two files, and nobody may frame the page.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)

_ALWAYS = {"cache-control": "no-cache", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_FILE = {**_ALWAYS, "content-security-policy": "default-src 'none'"}


class _File(NamedTuple):
    """A file of the page."""

    body: bytes
    headers: dict[str, str]


class Docs:
    """The document and the page of a gateway with `sites` and `rules`.

    Raises `StartError` if the files of the page are not installed.
    """

    def __init__(self, sites: Sites, rules: Rules) -> None:
        self.fleet = Fleet(sites, rules)
        self._files = _files()
        #: The paths that are answered here.
        self.paths = frozenset([b"/openapi.json", *self._files])

    def __repr__(self) -> str:
        return f"<Docs of {self.fleet!r}>"

    def takes(self, method: str, path: bytes) -> bool:
        """Tell whether a request is answered here: GET and HEAD of its paths."""
        return path in self.paths and method in ("GET", "HEAD")

    async def answer(self, path: bytes, fields: Fields, host: bytes, mount: str) -> Response:
        """Answer a request with the header `fields` for one of `paths` to `host`, at a gateway mounted at `mount`."""
        file = self._files.get(path)
        if file is None:
            body, tag = await self.fleet.document(host, mount.rstrip("/"))
            file = _File(body, {**_FILE, "content-type": "application/json", "etag": tag})
        if _is_known(fields, file.headers["etag"]):
            kept = {name: value for name, value in file.headers.items() if name != "content-type"}
            return Response(status=304, headers=kept)
        return Response(body=file.body, headers=file.headers)


def _files() -> dict[bytes, _File]:
    try:
        bundle: Any = importlib.import_module("swagger_ui_bundle")
    except ImportError:
        raise StartError(
            "the API docs need the files of Swagger UI, which are not installed",
            fix='pip install "natsweb[docs-ui]", or start without --docs',
        ) from None
    found = {f"/docs/{name}": _file((bundle.swagger_ui_path / name).read_bytes(), kind) for name, kind in _UI.items()}
    found["/docs/start.js"] = _file(_START.encode(), "text/javascript; charset=utf-8")
    found["/docs"] = _file(_PAGE.encode(), "text/html; charset=utf-8", {"content-security-policy": _POLICY})
    return {path.encode(): file for path, file in found.items()}


def _file(body: bytes, kind: str, more: dict[str, str] | None = None) -> _File:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _File(body, {**_FILE, "content-type": kind, "etag": tag, **(more or {})})


def _is_known(fields: Fields, tag: str) -> bool:
    """Tell whether a client has this already (RFC 9110 section 13.1.2)."""
    said = [one.strip() for name, value in fields if name == b"if-none-match" for one in value.split(b",")]
    return b"*" in said or tag.encode() in [one.removeprefix(b"W/") for one in said]
