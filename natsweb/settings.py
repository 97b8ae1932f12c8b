"""Settings as frozen values, and where they come from.

`Limits` are the gateway's bounds, `Nats` is how to reach a server. NATS settings are looked for in the order
that the `nats` command line uses: flags, environment (`NATS_URL`, ...), the context named or selected in its
context files (ADR-21), then `nats://127.0.0.1:4222`. Reads files and environment; connects to nothing.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from natsweb.errors import SettingsError

__all__ = ["DEFAULT_URL", "Limits", "Nats", "find_nats", "mask"]

DEFAULT_URL = "nats://127.0.0.1:4222"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a gateway: sizes in bytes, times in seconds.

    `connections` are those that are open at once. `target` is the length of a request target, `subject` that of a
    subject, `header_bytes` and `header_count` bound the header block, `body` is the largest request body (0: what
    services take). `pending` and `pending_bytes` bound what waits for answers at once, `per_client` what one address
    has under way (0: no bound), `streams` the answers that stream and the open WebSockets, `margin` is kept free below
    the server's max_payload.
    The timeouts: for a whole request head, between pieces of a body, for a connection at rest, and for a client that
    does not read.
    """

    connections: int = 16_384
    target: int = 8192
    subject: int = 3072
    header_bytes: int = 32 * 1024
    header_count: int = 100
    body: int = 0
    pending: int = 1024
    pending_bytes: int = 64 * 1024 * 1024
    per_client: int = 0
    streams: int = 10_000
    margin: int = 1024
    head_timeout: float = 10.0
    body_timeout: float = 20.0
    idle_timeout: float = 30.0
    write_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Nats:
    """How to reach NATS. `source` tells where the URL was found; `looked_at` what else was considered."""

    urls: tuple[str, ...] = field(default=(DEFAULT_URL,), repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    creds: Path | None = None
    nkey: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"
    source: str = "default"
    looked_at: tuple[str, ...] = ()

    @property
    def is_configured(self) -> bool:
        """Whether anybody named a server, rather than the default being used."""
        return self.source != "default"

    @property
    def display(self) -> str:
        """The URLs without credentials."""
        return ", ".join(mask(url) for url in self.urls)


def mask(url: str) -> str:
    """Return a URL with its user and password hidden."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}***@{rest.rpartition('@')[2]}" if "@" in rest else url


# Setting -> environment variable of the nats command line, and key in its context files.
_ENVIRONMENT = {
    "url": "NATS_URL",
    "user": "NATS_USER",
    "password": "NATS_PASSWORD",
    "token": "NATS_TOKEN",
    "creds": "NATS_CREDS",
    "nkey": "NATS_NKEY",
    "cert": "NATS_CERT",
    "key": "NATS_KEY",
    "ca": "NATS_CA",
}
_CONTEXT_KEYS = (*_ENVIRONMENT, "inbox_prefix", "tls_first", "nsc", "user_jwt")
_LOGIN = ("user", "password", "token", "creds", "nkey")
_PATHS = ("creds", "nkey", "cert", "key", "ca")


def find_nats(
    *,
    url: str | None = None,
    context: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Nats:
    """Return the NATS settings in force; `url` and `context` are the flags.

    Raises `SettingsError` for a context that does not exist or says what natsweb cannot do.
    """
    environ = os.environ if environ is None else environ
    given = {name: environ[variable] for name, variable in _ENVIRONMENT.items() if environ.get(variable)}
    folder = _context_folder(environ)
    # A context's login is for its own servers: where flag or environment name another, only --context is read.
    named = None if url or "url" in given else environ.get("NATS_CONTEXT") or _selected_context(folder)
    selected = context or named
    stored: dict[str, Any] = _read_context(folder, selected) if selected else {}
    if any(name in given for name in _LOGIN):
        stored = {key: value for key, value in stored.items() if key not in _LOGIN}
    source = "default"
    if url:
        source = "--nats"
    elif "url" in given and not context:
        source = "NATS_URL"
    elif selected:
        source = f"context {selected}"
    if context:
        given.pop("url", None)
    values = {**stored, **given, **({"url": url} if url else {})}
    looked_at = (
        f"--nats ({'set' if url else 'unset'})",
        f"NATS_URL ({'set' if environ.get('NATS_URL') else 'unset'})",
        f"context ({selected or 'none selected'})",
        "default",
    )
    return replace(_from_values(values, environ), source=source, looked_at=looked_at)


def _from_values(values: Mapping[str, Any], environ: Mapping[str, str]) -> Nats:
    urls = tuple(part.strip() for part in str(values.get("url") or DEFAULT_URL).split(",") if part.strip())
    for url in urls:
        scheme, separator, _ = url.rpartition("://")
        if separator and scheme not in ("nats", "tls", "ws", "wss"):
            raise SettingsError(f"{mask(url)} is not the URL of a NATS server", fix=f"write it as {DEFAULT_URL}")
    if not urls:
        raise SettingsError("the NATS URL names no server", fix=f"write it as {DEFAULT_URL}")
    paths: dict[str, Any] = {name: _expand(str(values[name]), environ) for name in _PATHS if values.get(name)}
    user, password, token = (values.get(name) or None for name in ("user", "password", "token"))
    if user and not password:  # the nats command line takes NATS_USER alone for a token
        user, token = None, user
    return Nats(
        urls=urls,
        user=user,
        password=password,
        token=token,
        tls_first=bool(values.get("tls_first")),
        inbox_prefix=values.get("inbox_prefix") or "_INBOX",
        **paths,
    )


def _expand(path: str, environ: Mapping[str, str]) -> Path:
    if path.startswith("~/") and "HOME" in environ:
        return Path(environ["HOME"], path[2:])
    return Path(path).expanduser()


def _context_folder(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CONFIG_HOME")
    home = Path(environ["HOME"]) if "HOME" in environ else Path.home()
    return (Path(base) if base else home / ".config") / "nats"


def _selected_context(folder: Path) -> str | None:
    try:
        return (folder / "context.txt").read_text().strip() or None
    except OSError:
        return None


def _read_context(folder: Path, name: str) -> dict[str, Any]:
    file = folder / "context" / f"{name}.json"
    if "/" in name or "\\" in name or name.startswith("."):
        raise SettingsError(f"{name!r} cannot be the name of a NATS context", fix="`nats context ls` lists them")
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        known = sorted(path.stem for path in (folder / "context").glob("*.json"))
        raise SettingsError(
            f"there is no NATS context {name!r}",
            where=f"looked for {file}",
            fix=f"known contexts: {', '.join(known)}" if known else "name a server with --nats or NATS_URL instead",
        ) from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"the NATS context {name!r} cannot be read: {error}", where=str(file)) from None
    values = {key: content[key] for key in _CONTEXT_KEYS if isinstance(content, dict) and content.get(key)}
    for key in ("nsc", "user_jwt"):
        if key in values:
            raise SettingsError(
                f"the NATS context {name!r} uses {key}, which natsweb cannot resolve",
                where=str(file),
                fix="export the credentials to a file and set creds in the context, or NATS_CREDS",
            )
    return values
