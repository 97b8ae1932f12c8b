"""`natsweb ls`, `natsweb ping`: who is there, by the NATS micro services protocol (ADR-32)."""

import json
from typing import Annotated

import typer

from natsweb.cli.console import table
from natsweb.cli.lifecycle import ContextOption, JsonOption, NatsOption, connected, run_until_done

__all__ = ["list_services", "ping"]

_WaitOption = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", help="How long answers are waited for, at most.")
]


def list_services(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only services of this name.")] = None,
    nats: NatsOption = None,
    context: ContextOption = None,
    wait: _WaitOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show the services that are there, natsweb's and others, with their instances.

    Exits with 1 if there is none.
    """
    raise typer.Exit(run_until_done(lambda: _list(name, nats, context, wait, as_json)))


async def _list(name: str | None, nats: str | None, context: str | None, wait: float, as_json: bool) -> int:
    from natsweb.discovery import survey
    from natsweb.micro import INFO, parse_info

    async with connected(nats, context, "ls") as bus:
        answers = await survey(bus, INFO, name, timeout=wait)
    infos = sorted(filter(None, map(parse_info, answers)), key=lambda one: (one.name, one.version, one.id))
    if as_json:
        typer.echo(json.dumps([one.model_dump() for one in infos], indent=2))
    elif infos:
        rows = []
        for info in infos:
            kind = f"natsweb below {(info.metadata or {}).get('natsweb.root', '?')}" if info.is_natsweb else "plain"
            rows.append((info.name, info.version, info.id, str(len(info.endpoints)), kind, info.description))
        for line in table(("NAME", "VERSION", "INSTANCE", "ENDPOINTS", "KIND", "DESCRIPTION"), rows):
            typer.echo(line)
    else:
        typer.echo(_nobody(name), err=True)
    return 0 if infos else 1


def _nobody(name: str | None) -> str:
    return "no service answers" if name is None else f"no service called {name} answers"


def ping(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only services of this name.")] = None,
    nats: NatsOption = None,
    context: ContextOption = None,
    wait: _WaitOption = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Ask all service instances for a sign of life, and show how long each took.

    Exits with 1 if none answers.
    """
    raise typer.Exit(run_until_done(lambda: _ping(name, nats, context, wait, as_json)))


async def _ping(name: str | None, nats: str | None, context: str | None, wait: float, as_json: bool) -> int:
    from natsweb.discovery import ask_all
    from natsweb.micro import PING, parse_ping

    async with connected(nats, context, "ping") as bus:
        answers = await ask_all(bus, PING, name, timeout=wait)
    found = [(one, took * 1000) for message, took in answers if (one := parse_ping(message.payload)) is not None]
    if as_json:
        said = [{"name": one.name, "version": one.version, "id": one.id, "ms": round(ms, 3)} for one, ms in found]
        typer.echo(json.dumps(said, indent=2))
    elif found:
        rows = [(one.name, one.version, one.id, f"{ms:.2f}") for one, ms in found]
        for line in table(("NAME", "VERSION", "INSTANCE", "MS"), rows):
            typer.echo(line)
    else:
        typer.echo(_nobody(name), err=True)
    return 0 if found else 1
