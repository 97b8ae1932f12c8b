"""`natsweb dev`: everything in one terminal.

A private nats-server unless one is configured, the gateway in this process, the service in another that is
started again when a file changes. The gateway stays up meanwhile, and holds requests for up to two seconds.
"""

import asyncio
import contextlib
import importlib.util
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.console import set_up_logging
from natsweb.cli.lifecycle import (
    AppDirOption,
    ContextOption,
    MountOption,
    NameOption,
    NatsOption,
    Stop,
    VerboseOption,
    connection_name,
    finish,
    nats_settings,
    run_until_done,
)
from natsweb.cli.routes import print_routes
from natsweb.cli.supervisor import Child, watch
from natsweb.errors import SettingsError, StartError

__all__ = ["command"]

_GRACE = 5.0
_DEFAULT_PORT = 4222

#: Paths of services that the docs would hide: an application at the top often has its own.
_DOCS = ("/docs", "/openapi.json", "/<path:")


def command(
    apps: Annotated[
        list[str] | None,
        typer.Argument(metavar="[APP:SVC]", help="The service, as module:name or file; found if left out."),
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")
    ] = None,
    host: Annotated[str, typer.Option("--host", envvar="NATSWEB_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", envvar="NATSWEB_PORT", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    nats: NatsOption = None,
    context: ContextOption = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Time a request may take.")] = 10.0,
    reload: Annotated[bool, typer.Option("--reload/--no-reload", help="Start the service again on change.")] = True,
    docs: Annotated[
        bool | None,
        typer.Option("--docs/--no-docs", help="Answer /openapi.json and /docs; without, unless the service does."),
    ] = None,
    mount: MountOption = None,
    name: NameOption = None,
    app_dir: AppDirOption = ".",
    verbose: VerboseOption = False,
) -> None:
    """Run a service, a gateway and a private nats-server in one terminal, with reload."""
    from natsweb.cli.loading import UsageError, find_target

    if apps and apps[1:]:
        raise UsageError(
            f"natsweb dev runs one service, not {len(apps)}",
            fix="start the others in another terminal, at the NATS address that natsweb dev shows: "
            f"NATS_URL=nats://127.0.0.1:{_DEFAULT_PORT} natsweb run {' '.join(apps[1:])}",
        )
    set_up_logging(verbose)
    target = find_target(apps[0] if apps else None, Path(app_dir))
    if reload:
        _need_watchfiles()
    arguments = [
        str(target),
        "--app-dir",
        str(target.folder),
        *(["--root", root] if root else []),
        *(["--mount", mount] if mount else []),
        *(["--name", name] if name else []),
    ]
    flags = [*(["--nats", nats] if nats else []), *(["--context", context] if context else [])]
    settings = nats_settings(nats, context)
    folders = list(dict.fromkeys([target.folder.resolve(), Path.cwd()])) if reload else []
    gateway = {"root": root, "host": host, "port": port, "timeout": timeout, "docs": docs}
    finish(run_until_done(lambda: _develop(settings, [*arguments, *flags], folders, gateway)))


def _need_watchfiles() -> None:
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        raise StartError(
            "natsweb dev needs watchfiles to see changes",
            fix='pip install "natsweb[dev]", or start with --no-reload',
        ) from None


async def _develop(settings: Any, arguments: list[str], folders: list[Path], gateway: dict[str, Any]) -> int:
    from natsweb.natsbus import connect

    stop = Stop()
    stop.install()
    async with _nats(settings, arguments) as nats:
        bus = await connect(nats, name=connection_name("dev"))
        child = Child(bus, nats.inbox_prefix, arguments, environ=_environment(settings), on_start=stop.owns)
        try:
            await child.listen()
            announced = await stop.before(_first_start(child, folders))
            if announced is not None:
                await _serve(stop, bus, child, folders, gateway, announced, private=not settings.is_configured)
        finally:
            await child.stop()
            await bus.close()
    return 0


@contextlib.asynccontextmanager
async def _nats(settings: Any, arguments: list[str]) -> AsyncIterator[Any]:
    """Give the configured NATS, or a private server's; the service is told of it by flag."""
    if settings.is_configured:
        yield settings
        return
    from natsweb.embedded import embedded_server
    from natsweb.settings import Nats

    async with embedded_server(prefer=_DEFAULT_PORT) as url:
        arguments += ["--nats", url]
        yield Nats(urls=(url,), source="private")


def _environment(settings: Any) -> dict[str, str]:
    """Return the service's environment; with a private server, without logins for another."""
    return {name: value for name, value in os.environ.items() if settings.is_configured or not name.startswith("NATS_")}


async def _first_start(child: Child, folders: list[Path]) -> list[dict[str, Any]]:
    """Start the service; while it fails, wait for a change and try again.

    What the command line has wrong no change mends: then the command ends, as `natsweb run` has. Raises `StartError` if
    no change can come.
    """
    announced = await child.start()
    if announced is not None:
        return announced
    if (code := await child.ended()) == SettingsError.exit_code:
        raise typer.Exit(code)
    if not folders:
        raise StartError("the service did not start", fix="see the error above")
    served: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
    typer.echo("dev: the service did not start; waiting for a change", err=True)
    watching = asyncio.ensure_future(watch(child, folders, on_start=served.set_result))
    try:
        return await served
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _serve(
    stop: Stop,
    bus: Any,
    child: Child,
    folders: list[Path],
    options: dict[str, Any],
    announced: list[dict[str, Any]],
    *,
    private: bool,
) -> None:
    from natsweb.front import Front
    from natsweb.gateway import Gateway

    root = announced[0]["root"]
    docs = options["docs"] if options["docs"] is not None else _may_have_docs(announced)
    async with Gateway(root, bus=bus, timeout=options["timeout"], docs=docs) as gateway:
        front = Front(gateway, host=options["host"], port=options["port"], grace=_GRACE, log=True)
        await front.start()
        exchange = gateway.exchange
        shown = announced

        def on_ready() -> None:
            _print_banner(front.url, bus.server, announced, private=private, reload=bool(folders), docs=docs)

        def on_failure() -> None:
            exchange.refuse("the service is not running: see the terminal of natsweb dev")

        def on_start(now: list[dict[str, Any]]) -> None:
            nonlocal shown
            exchange.resume()
            if [one["routes"] for one in now] != [one["routes"] for one in shown]:
                shown = now
                _print_routes(now)

        try:
            await stop.before(
                watch(
                    child,
                    folders,
                    on_ready=on_ready,
                    on_stop=exchange.pause,
                    on_start=on_start,
                    on_failure=on_failure,
                )
            )
        finally:
            exchange.refuse("natsweb dev is stopping")  # what waits for the service would wait in vain
            await front.stop()


def _print_routes(announced: list[dict[str, Any]]) -> None:
    typer.echo("", err=True)
    for one in announced:
        print_routes(one["routes"], indent="  ", err=True)
    typer.echo("", err=True)


def _example(announced: list[dict[str, Any]]) -> str | None:
    """Return a path that a first GET can go to as it is."""
    rows = [row for one in announced for row in one["routes"]]
    return next((row["path"] for row in rows if row["method"] == "GET" and "<" not in row["path"]), None)


def _may_have_docs(announced: list[dict[str, Any]]) -> bool:
    """Tell whether docs can be there unasked: their files are, and no route of the service would be hidden."""
    hidden = any(row["path"].startswith(_DOCS) for one in announced for row in one["routes"])
    return importlib.util.find_spec("swagger_ui_bundle") is not None and not hidden


def _print_banner(
    http: str, nats: str, announced: list[dict[str, Any]], *, private: bool, reload: bool, docs: bool
) -> None:
    names = ", ".join(f"{one['service']} {one['version']}" for one in announced)
    typer.echo(typer.style(f"natsweb dev: {names}", bold=True), err=True)
    typer.echo(f"  http  {http}", err=True)
    if docs:
        typer.echo(f"  docs  {http}/docs", err=True)
    typer.echo(f"  nats  {nats}{' (a private nats-server)' if private else ''}", err=True)
    _print_routes(announced)
    if example := _example(announced):
        typer.echo(f"  try it: curl {http}{example}", err=True)
    typer.echo(f"  {'reloads on change; ' if reload else ''}stop with Ctrl-C", err=True)
