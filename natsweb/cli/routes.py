"""`natsweb routes`: the route table of a service, without a server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.console import table
from natsweb.cli.lifecycle import AppDirOption

__all__ = ["command", "print_routes", "route_rows"]

_HEAD = ("METHOD", "PATH", "SUBJECT", "HANDLER")


def command(
    app: Annotated[str | None, typer.Argument(metavar="[APP:SVC]", help="The service, as module:name or file.")] = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    app_dir: AppDirOption = ".",
) -> None:
    """Show methods, paths, subjects and handlers of a service."""
    from natsweb.cli.loading import find_target, load_services

    [service] = load_services([find_target(app, Path(app_dir))])
    rows = route_rows(service, root)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_routes(rows)


def route_rows(service: Any, root: str | None) -> list[dict[str, str]]:
    """Return one row per method of each route."""
    return [
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


def print_routes(rows: list[dict[str, str]], *, indent: str = "", err: bool = False) -> None:
    """Print rows as a table."""
    cells = [(row["method"], row["path"], row["subject"], f"{row['handler']} ({row['file']})") for row in rows]
    for line in table(_HEAD, cells):
        typer.echo(f"{indent}{line}", err=err)
