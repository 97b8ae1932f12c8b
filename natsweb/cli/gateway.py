"""`natsweb gateway`: HTTP in front of the services below a root."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.console import print_ready, set_up_logging
from natsweb.cli.lifecycle import (
    AppDirOption,
    ContextOption,
    GraceOption,
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
from natsweb.cli.limits import LimitOption, raise_file_limit, read_limits
from natsweb.errors import SettingsError

__all__ = ["command"]


def command(
    root: Annotated[
        list[str] | None,
        typer.Option(
            "--root",
            envvar="NATSWEB_ROOT",
            metavar="[HOST|/PATH=]ROOT",
            help="Subject that stands for '/', api if none; more by host or path: admin.example.com=api.admin",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", envvar="NATSWEB_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", envvar="NATSWEB_PORT", min=0, max=65535, help="Port; 0 takes a free one.")
    ] = 8000,
    nats: NatsOption = None,
    context: ContextOption = None,
    timeout: Annotated[
        list[str] | None,
        typer.Option(
            "--timeout",
            envvar="NATSWEB_TIMEOUT",
            metavar="[/PATH=]SECONDS",
            help="Time a request may take, 10 if none; more by path: /reports=60",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="NAME", help="Let only these request headers cross; without, all do."),
    ] = None,
    cookie: Annotated[
        list[str] | None, typer.Option("--cookie", metavar="NAME", help="Let only these cookies cross.")
    ] = None,
    set_header: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a request header, in place of the client's."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="/PATH", help="A path that is not reached, with all below.")
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="MODULE:NAME", help="A filter around all requests; the first is outermost."),
    ] = None,
    wire: WireOption = "natsweb",
    reply_prefix: ReplyPrefixOption = None,
    ws_max_size: Annotated[
        int, typer.Option("--ws-max-size", min=1, metavar="BYTES", help="Largest message of a WebSocket.")
    ] = 16 * 1024 * 1024,
    discovery: Annotated[
        bool, typer.Option("--discovery/--no-discovery", help="Know which services are there, and name the one meant.")
    ] = True,
    known_only: Annotated[
        bool, typer.Option("--known-only", help="404 at once for what no service has claimed, without asking NATS.")
    ] = False,
    retry_idempotent: Annotated[
        bool,
        typer.Option(
            "--retry-idempotent",
            help="Send GET, HEAD, OPTIONS, PUT and DELETE again if the service or the connection was lost.",
        ),
    ] = False,
    limit: LimitOption = None,
    health: Annotated[bool, typer.Option("--health/--no-health", help="Answer /healthz and /readyz.")] = True,
    docs: Annotated[
        bool, typer.Option("--docs/--no-docs", help="Answer /openapi.json and /docs: what all services offer.")
    ] = False,
    app_dir: AppDirOption = ".",
    grace: GraceOption = 25.0,
    wait: WaitOption = 0.0,
    verbose: VerboseOption = False,
) -> None:
    """Turn HTTP requests into NATS requests: GET /orders/7 asks api.orders.7."""
    from natsweb.gateway.sites import Sites
    from natsweb.rules import Rules

    set_up_logging(verbose)
    main, roots = split_roots(root or ["api"])
    Sites(main, roots)
    seconds, timeouts = split_timeouts(timeout or [])
    rules = Rules(
        headers=header,
        cookies=cookie,
        set=split_pairs("--set", set_header or []),
        exclude=exclude or (),
        timeouts=timeouts,
    )
    settings = nats_settings(nats, context)
    if known_only and not discovery:
        raise SettingsError("--known-only wants the catalogue that --no-discovery leaves out", fix="drop one of them")
    if wire != "natsweb" and known_only:
        raise SettingsError("--known-only wants a catalogue, which nats-proxy's services are not in", fix="drop it")
    origin_wire(wire)
    options = {
        "timeout": seconds,
        "discovery": discovery,
        "known_only": known_only,
        "retry_idempotent": retry_idempotent,
        "limits": read_limits(limit or []),
        "health": health,
        "docs": docs,
        "ws_max_size": ws_max_size,
        "roots": roots,
        "rules": rules,
        "filters": [load_filter(one, Path(app_dir)) for one in filters or []],
        "wire": wire,
        "reply_prefixes": reply_prefixes(settings, reply_prefix or []),
    }
    raise_file_limit()
    finish(run_until_done(lambda: _serve(main, host, port, settings, options, grace=grace, wait=wait)))


def split_pairs(option: str, said: list[str]) -> dict[str, str]:
    """Return KEY=VALUE texts as pairs; a value may have more of `=`."""
    found = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"{option} {one} is no KEY=VALUE", fix=f"{option} X-Tenant=acme")
        found[name.strip()] = value
    return found


def split_roots(said: list[str]) -> tuple[str, dict[str, str]]:
    """Return the root for all that others do not have, and the others by host or path."""
    main = [one for one in said if "=" not in one]
    if len(main) > 1:
        raise SettingsError(
            f"--root {main[0]} and --root {main[1]} both want all paths",
            fix=f"say for which: --root /{main[1].rpartition('.')[2]}={main[1]}, or a host instead of the path",
        )
    return (main or ["api"])[0], split_pairs("--root", [one for one in said if "=" in one])


def split_timeouts(said: list[str]) -> tuple[float, dict[str, float]]:
    """Return the seconds for all paths, and those for some."""
    try:
        everywhere = [float(one) for one in said if "=" not in one]
        times = {
            path: float(text) for path, text in split_pairs("--timeout", [one for one in said if "=" in one]).items()
        }
    except ValueError as error:
        raise SettingsError(f"--timeout wants seconds: {error}", fix="--timeout 10 --timeout /reports=60") from None
    if any(not 0 < one < math.inf for one in everywhere):
        raise SettingsError(f"--timeout {everywhere[0]:g} cannot be", fix="say seconds; a day is 86400")
    return everywhere[-1] if everywhere else 10.0, times


def load_filter(target: str, app_dir: Path) -> Any:
    """Return a filter by its name, `module:name`."""
    from natsweb.cli.loading import find_target, load_object

    return load_object(find_target(target, app_dir))


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
            facts = {"http": front.url, "nats": bus.server, "root": _words(gateway)}
            print_ready("natsweb gateway", {**facts, **({"docs": f"{front.url}/docs"} if options["docs"] else {})})
            await stop.before(front.wait())
            return 0 if await front.stop() else 5
    finally:
        await bus.close()


def _words(gateway: Any) -> str:
    """Return the roots of a gateway as they were given."""
    others = [f"{where}={root}" for where, root in gateway.sites.others.items()]
    return ", ".join([gateway.root, *others])
