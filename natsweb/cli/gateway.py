"""`natsweb gateway`: HTTP in front of the services below a root."""

from typing import Annotated, Any

import typer

from natsweb.cli.console import print_ready, set_up_logging
from natsweb.cli.lifecycle import (
    ContextOption,
    GraceOption,
    NatsOption,
    Stop,
    VerboseOption,
    WaitOption,
    connection_name,
    finish,
    nats_settings,
    run_until_done,
)
from natsweb.errors import SettingsError

__all__ = ["command"]


def command(
    root: Annotated[str, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")] = "api",
    host: Annotated[str, typer.Option("--host", envvar="NATSWEB_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", envvar="NATSWEB_PORT", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    nats: NatsOption = None,
    context: ContextOption = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", envvar="NATSWEB_TIMEOUT", metavar="SECONDS", help="Time a request may take."),
    ] = 10.0,
    discovery: Annotated[
        bool, typer.Option("--discovery/--no-discovery", help="Know which services are there, and name the one meant.")
    ] = True,
    known_only: Annotated[
        bool, typer.Option("--known-only", help="404 at once for what no service has claimed, without asking NATS.")
    ] = False,
    health: Annotated[bool, typer.Option("--health/--no-health", help="Answer /healthz and /readyz.")] = True,
    grace: GraceOption = 25.0,
    wait: WaitOption = 0.0,
    verbose: VerboseOption = False,
) -> None:
    """Turn HTTP requests into NATS requests: GET /orders/7 asks api.orders.7."""
    from natsweb.subjects import check_root

    set_up_logging(verbose)
    check_root(root)
    settings = nats_settings(nats, context)
    if known_only and not discovery:
        raise SettingsError("--known-only wants the catalogue that --no-discovery leaves out", fix="drop one of them")
    options = {"timeout": timeout, "discovery": discovery, "known_only": known_only, "health": health}
    finish(run_until_done(lambda: _serve(root, host, port, settings, options, grace=grace, wait=wait)))


async def _serve(
    root: str, host: str, port: int, nats: Any, options: dict[str, Any], *, grace: float, wait: float
) -> int:
    from natsweb.front import Front
    from natsweb.gateway import Gateway
    from natsweb.natsbus import connect

    stop = Stop()
    stop.install()
    bus = await stop.before(connect(nats, name=connection_name(f"gateway/{root}"), wait=wait))
    if bus is None:
        return 0
    try:
        async with Gateway(root, bus=bus, **options) as gateway:
            front = Front(gateway, host=host, port=port, grace=grace)
            await front.start()
            print_ready("natsweb gateway", {"http": front.url, "nats": bus.server, "root": root})
            await stop.before(front.wait())
            return 0 if await front.stop() else 5
    finally:
        await bus.close()
