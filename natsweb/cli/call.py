"""`natsweb call`: one request straight over NATS, without a gateway."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.lifecycle import ContextOption, JsonOption, NatsOption, connected, run_until_done
from natsweb.errors import HTTPError, NatsRefused, SettingsError, phrase
from natsweb.subjects import check_root

__all__ = ["command"]

_DEFAULT_BASE = "http://127.0.0.1:8000"


def command(
    method: Annotated[str, typer.Argument(help="HTTP method, such as GET.")],
    path: Annotated[str, typer.Argument(help="Path with its query, such as '/orders/7?full=1'.")],
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="TEXT", help="Body; @FILE reads a file, @- standard input.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="Request header; repeatable.")
    ] = None,
    root: Annotated[str, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")] = "api",
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Time the request may take.")] = 10.0,
    nats: NatsOption = None,
    context: ContextOption = None,
    as_json: JsonOption = False,
    curl: Annotated[
        bool, typer.Option("--curl", help="Print the same request for curl and a gateway, and send nothing.")
    ] = False,
) -> None:
    """Ask a service over NATS, the one that a gateway would ask: status, headers and body of the answer.

    A body of JSON gets its content type, unless -H says another. Exits with 1 for a status from 400 on.
    """
    check_root(root)
    body = _read(data)
    fields = _fields(header or [], body)
    if curl:
        typer.echo(_curl(method.upper(), path, fields, data))
        return
    raise typer.Exit(
        run_until_done(lambda: _call(method.upper(), path, fields, body, root, timeout, nats, context, as_json))
    )


def _read(data: str | None) -> bytes:
    if data is None:
        return b""
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise SettingsError(f"{data[1:]} cannot be read: {error.strerror}", fix="-d @FILE takes a file") from None
    return data.encode()


def _fields(lines: list[str], body: bytes) -> list[tuple[str, str]]:
    fields = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise SettingsError(f"{line!r} is no header", fix="write -H 'name: value'")
        fields.append((name.strip().lower(), value.strip()))
    if body and not any(name == "content-type" for name, _ in fields):
        try:
            json.loads(body)
        except ValueError:
            pass
        else:
            fields.append(("content-type", "application/json"))
    return fields


def _curl(method: str, path: str, fields: list[tuple[str, str]], data: str | None) -> str:
    words = ["curl", "-i", "-X", method, f"{_DEFAULT_BASE}{path}"]
    for name, value in fields:
        words += ["-H", f"{name}: {value}"]
    if data is not None:
        words += ["--data-binary", data]
    return shlex.join(words)


async def _call(
    method: str,
    path: str,
    fields: list[tuple[str, str]],
    body: bytes,
    root: str,
    timeout: float,
    nats: str | None,
    context: str | None,
    as_json: bool,
) -> int:
    from natsweb.discovery import Directory
    from natsweb.exchange import Exchange
    from natsweb.flights import Incoming

    target, _, query = path.partition("?")
    async with connected(nats, context, "call") as bus:
        exchange = Exchange(bus, root, timeout=timeout)
        directory = Directory(bus, root)
        try:
            await directory.start()
            exchange.directory = directory
        except (HTTPError, NatsRefused):
            pass  # a user that may not ask who is there asks whoever listens, as a gateway does
        try:
            lines = exchange.encode_fields([(name.encode("latin-1"), text.encode("latin-1")) for name, text in fields])
        except UnicodeEncodeError:
            raise SettingsError("a header has characters outside latin-1", fix="percent-encode them") from None
        except HTTPError as error:
            raise SettingsError(f"the headers cannot be sent: {error.detail}", fix="write -H 'name: value'") from None
        incoming = Incoming(method, target.encode(), query.encode(), lines)
        response = await exchange.forward(incoming, body)
        try:
            whole = await _take(response, as_json)
        finally:
            await directory.stop()
    return 0 if whole and response.status < 400 else 1


async def _take(response: Any, as_json: bool) -> bool:
    """Print an answer, a stream of lines as it comes; False if it was cut off."""
    if response.pieces is None:
        (_print_json if as_json else _print)(response)
        return True
    parts = []
    if not as_json:
        _print_head(response)
    try:
        async for piece in response.pieces.source:
            parts.append(piece if as_json else b"")
            if not as_json:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
    except HTTPError as error:
        typer.echo(error.detail, err=True)
        return False
    finally:
        await response.pieces.close()
    if as_json:
        _print_json(response.model_copy(update={"body": b"".join(parts)}))
    return True


def _print_json(response: Any) -> None:
    try:
        body = response.parse_json() if response.body else None
    except ValueError:
        body = response.body.decode("utf-8", "replace")
    typer.echo(json.dumps({"status": response.status, "headers": list(response.headers), "body": body}, indent=2))


def _print(response: Any) -> None:
    """Print the head on stderr and the body on stdout, so that the body can be piped on."""
    _print_head(response)
    if not response.body:
        return
    if "json" in response.headers.get("content-type", ""):
        try:
            typer.echo(json.dumps(response.parse_json(), indent=2, ensure_ascii=False))
            return
        except ValueError:
            pass
    sys.stdout.flush()
    sys.stdout.buffer.write(response.body)
    if sys.stdout.isatty() and not response.body.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _print_head(response: Any) -> None:
    typer.echo(typer.style(f"{response.status} {phrase(response.status)}", bold=True), err=True)
    for name, value in response.headers:
        typer.echo(f"{name}: {value}", err=True)
    typer.echo("", err=True)
