"""`natsweb run`: serve services on NATS until told to stop."""

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.console import print_ready, set_up_logging
from natsweb.cli.lifecycle import (
    AppDirOption,
    ContextOption,
    GraceOption,
    MountOption,
    NameOption,
    NatsOption,
    ReplyPrefixOption,
    Stop,
    VerboseOption,
    WaitOption,
    WireOption,
    connection_name,
    finish,
    nats_settings,
    origin_wire,
    reply_prefixes,
    run_until_done,
)
from natsweb.errors import Mistake, SettingsError, StartError

__all__ = ["command", "serve_here"]

logger = logging.getLogger("natsweb")


def command(
    apps: Annotated[
        list[str] | None, typer.Argument(metavar="[APP:SVC]...", help="Services to serve, as module:name or files.")
    ] = None,
    nats: NatsOption = None,
    context: ContextOption = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")
    ] = None,
    queue: Annotated[
        str | None, typer.Option("--queue", metavar="NAME", help="Queue group, instead of the service's own.")
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            "--concurrency", min=1, help="Requests under way at once, per service; a rush waits for its turn."
        ),
    ] = 100,
    max_streams: Annotated[
        int,
        typer.Option("--max-streams", min=1, help="Answers that stream and open WebSockets at once, per service."),
    ] = 10_000,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Plain def handlers at once, per service.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="Time for requests that say none.")
    ] = 10.0,
    on_overlap: Annotated[
        str,
        typer.Option("--on-overlap", metavar="warn|refuse", help="What to do if another service takes the same paths."),
    ] = "warn",
    wire: WireOption = "natsweb",
    mount: MountOption = None,
    name: NameOption = None,
    grace: GraceOption = 25.0,
    wait: WaitOption = 0.0,
    reply_prefix: ReplyPrefixOption = None,
    app_dir: AppDirOption = ".",
    announce: Annotated[str | None, typer.Option("--announce", hidden=True)] = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve one or more services on NATS: one process, one connection.

    An ASGI application (FastAPI, Starlette, Django, Quart, ...) is served as it is, at --mount.

    Without an argument the app is looked for: NATSWEB_APP, [tool.natsweb] in pyproject.toml, then app.py and such.
    """
    from natsweb.cli.loading import find_target, load_services

    set_up_logging(verbose)
    named: list[str | None] = [*apps] if apps else [None]
    targets = [find_target(one, Path(app_dir)) for one in named]
    services = load_services(targets, mount=mount, name=name)
    for service in services:
        service.queue = queue or service.queue
        service.threads = threads or service.threads
    settings = nats_settings(nats, context)
    options = {
        "root": root,
        "concurrency": concurrency,
        "max_streams": max_streams,
        "timeout": timeout,
        "on_overlap": _checked(on_overlap),
        "wire": origin_wire(wire),
        "reply_prefixes": reply_prefixes(settings, reply_prefix or []),
    }
    finish(run_until_done(lambda: _serve(services, settings, options, grace=grace, wait=wait, announce=announce)))


def _checked(on_overlap: str) -> str:
    if on_overlap not in ("warn", "refuse"):
        raise SettingsError(f"--on-overlap {on_overlap} is neither warn nor refuse", fix="--on-overlap refuse")
    return on_overlap


def serve_here(services: Sequence[Any], *, nats: str | None, root: str | None) -> None:
    """Serve services of this process, as `natsweb run` does: what `Service.run` calls."""
    from natsweb.cli.console import print_mistake

    set_up_logging(False)
    try:
        for service in services:
            service.compile()
        settings = nats_settings(nats, None)
        options = {"root": root, "reply_prefixes": reply_prefixes(settings, [])}
        code = run_until_done(lambda: _serve(services, settings, options, grace=25.0, wait=0.0))
    except Mistake as mistake:
        print_mistake(mistake)
        sys.exit(mistake.exit_code)
    try:
        finish(code)
    except typer.Exit as done:
        sys.exit(done.exit_code)


async def _serve(
    services: Sequence[Any],
    nats: Any,
    options: dict[str, Any],
    *,
    grace: float,
    wait: float,
    announce: str | None = None,
) -> int:
    from natsweb.member import Member, start_all
    from natsweb.natsbus import connect

    _check_names(services)
    stop = Stop()
    stop.install()
    name = connection_name(",".join(service.name for service in services))
    bus = await stop.before(connect(nats, name=name, wait=wait))
    if bus is None:
        return 0
    members = [Member(bus, service, **options) for service in services]
    try:
        for service in services:
            service.attach(bus, options.get("root"))
            if await stop.before(_start(service)) is None:
                return 0
        await start_all(members)
        if announce is None:
            for service in services:
                print_ready(f"natsweb {service.name} {service.version}", _facts(service, bus, options.get("root")))
            await _until(stop, services)
        else:
            bus.publish(announce, _announcement(services, options.get("root")))
            await asyncio.wait(
                [asyncio.ensure_future(_until(stop, services)), asyncio.ensure_future(_parent_gone())],
                return_when=asyncio.FIRST_COMPLETED,
            )
        failed = [not service.is_running for service in services]
        finished = await asyncio.gather(*[member.stop(grace) for member in members])
    finally:
        for service in reversed(services):
            await service.stop()
        await bus.close()
    if any(failed):
        return 1
    return 0 if all(finished) else 5


async def _until(stop: Stop, services: Sequence[Any]) -> None:
    """Wait for the signal to stop, or for a lifespan that fails."""
    waiting = [asyncio.ensure_future(stop.wait()), *[asyncio.ensure_future(one.failed()) for one in services]]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not waiting[0].done():
            logger.error("a lifespan has failed; stopping")
    finally:
        for one in waiting:
            one.cancel()


async def _start(service: Any) -> bool:
    """Run a service's lifespan up to its start, and say so if that takes long."""

    def still_starting() -> None:
        logger.info("%s is still starting; its lifespan has %g s", service.name, service.start_timeout)

    handle = asyncio.get_running_loop().call_later(3.0, still_starting)
    try:
        await service.start()
        return True
    except StartError as error:
        if error.__cause__ is not None:
            logger.error("%s", error.what, exc_info=error.__cause__)
        raise
    finally:
        handle.cancel()


def _check_names(services: Sequence[Any]) -> None:
    """Two services of one name would share a queue group and get each other's requests."""
    names = [service.name for service in services]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"two of these services are called {name!r}", fix="give each Service its own name")


def _facts(service: Any, bus: Any, root: str | None) -> dict[str, Any]:
    events = {"events": len(service.events)} if service.events else {}
    return {
        "nats": bus.server,
        "root": root or service.root,
        "queue": service.queue,
        "routes": len(service.routes) + len(service.mounts),
        **events,
    }


def _announcement(services: Sequence[Any], root: str | None) -> bytes:
    from natsweb.cli.routes import route_rows

    return json.dumps(
        [
            {
                "service": service.name,
                "version": service.version,
                "root": root or service.root,
                "routes": route_rows(service, root),
            }
            for service in services
        ]
    ).encode()


async def _parent_gone() -> None:
    """Wait for the end of stdin: the other end is held by the process that started this one."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
