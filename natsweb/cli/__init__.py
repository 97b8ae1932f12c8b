"""The command line: `natsweb run`, `gateway`, `dev`, and what looks at services and at NATS.

One file per command; each imports what it needs when it runs, so that `natsweb --help` answers at once. Errors
that a person can mend come out in three parts on stderr. Exit codes:

    0  clean stop, also on SIGTERM and the first Ctrl-C      4  NATS unreachable, or the login refused
    1  the app or a check failed                             5  stopped, with requests cut off after --grace
    2  wrong usage                                           130  second Ctrl-C
    3  could not start
"""

import sys
from typing import Annotated

import typer

from natsweb import __version__
from natsweb.cli import call, check, cluster, dev, doctor, gateway, openapi, permissions, routes, run, sniff
from natsweb.cli.console import print_mistake
from natsweb.errors import Mistake

__all__ = ["app", "main"]

app = typer.Typer(
    name="natsweb",
    help="HTTP on the front, NATS on the back, for Python.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.command)
app.command("gateway")(gateway.command)
app.command("dev")(dev.command)
app.command("routes")(routes.command)
app.command("openapi")(openapi.command)
app.command("check")(check.command)
app.command("doctor")(doctor.command)
app.command("permissions")(permissions.command)
app.command("ls")(cluster.list_services)
app.command("ping")(cluster.ping)
app.command("call")(call.command)
app.command("sniff")(sniff.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"natsweb {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="natsweb")
    except Mistake as mistake:
        print_mistake(mistake)
        sys.exit(mistake.exit_code)
