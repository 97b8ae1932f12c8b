"""`natsweb routes`: the route table of a service, without a server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.console import table
from natsweb.cli.lifecycle import AppDirOption, ContextOption, JsonOption, NatsOption, connected, run_until_done
from natsweb.errors import SettingsError

__all__ = ["command", "print_routes", "route_rows"]

_HEAD = ("METHOD", "PATH", "SUBJECT", "HANDLER")
_LIVE_HEAD = ("METHOD", "PATH", "SUBJECT", "SERVICE", "INSTANCES")


def command(
    app: Annotated[str | None, typer.Argument(metavar="[APP:SVC]", help="The service, as module:name or file.")] = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask the services on NATS instead.")] = False,
    nats: NatsOption = None,
    context: ContextOption = None,
    as_json: JsonOption = False,
    app_dir: AppDirOption = ".",
) -> None:
    """Show methods, paths, subjects and handlers of a service, or with --live of all services that are there."""
    if live:
        if app is not None:
            raise SettingsError("--live asks the services on NATS, and takes no app", fix=f"natsweb routes {app}")
        raise typer.Exit(run_until_done(lambda: _live(root, nats, context, as_json)))
    from natsweb.cli.loading import find_target, load_services

    [service] = load_services([find_target(app, Path(app_dir))])
    rows = route_rows(service, root)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_routes(rows)


async def _live(root: str | None, nats: str | None, context: str | None, as_json: bool) -> int:
    from natsweb.discovery import survey
    from natsweb.micro import INFO, parse_info

    async with connected(nats, context, "routes") as bus:
        infos = [info for info in map(parse_info, await survey(bus, INFO)) if info is not None]
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for info in infos:
        for endpoint in info.endpoints:
            if root is not None and not f"{endpoint.subject}.".startswith(f"{root}."):
                continue
            for method in endpoint.methods or ("*",):
                row = {
                    "method": method,
                    "path": endpoint.path or "",
                    "subject": endpoint.subject,
                    "service": info.name,
                    "instances": 0,
                }
                rows.setdefault((endpoint.subject, method, info.name), row)["instances"] += 1
    found = [rows[key] for key in sorted(rows)]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    elif found:
        for line in table(_LIVE_HEAD, [[str(value) for value in row.values()] for row in found]):
            typer.echo(line)
    else:
        typer.echo("no service answers", err=True)
    return 0 if found else 1


def route_rows(service: Any, root: str | None) -> list[dict[str, str]]:
    """Return one row per method of each route, and one for each handler of events."""
    from natsweb.wire import EVENT

    return (
        [
            {
                "method": method,
                "path": str(route.template),
                "subject": route.template.pattern(root or service.root),
                "handler": route.function.__name__,
                "file": route.where.line,
            }
            for route in service.routes
            for method in route.methods
        ]
        + [
            {
                "method": "*",
                "path": str(one.template),
                "subject": one.template.pattern(root or service.root),
                "handler": one.name,
                "file": one.line,
            }
            for one in service.mounts
        ]
        + [
            {
                "method": EVENT,
                "path": str(one.template),
                "subject": ".".join(one.template.shape),
                "handler": one.name,
                "file": one.where.line,
            }
            for one in service.events
        ]
    )


def print_routes(rows: list[dict[str, str]], *, indent: str = "", err: bool = False) -> None:
    """Print rows as a table."""
    cells = [(row["method"], row["path"], row["subject"], f"{row['handler']} ({row['file']})") for row in rows]
    for line in table(_HEAD, cells):
        typer.echo(f"{indent}{line}", err=err)
