"""What the commands print: errors in three parts, tables, a line when ready; and how they log."""

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from natsweb.errors import Mistake

__all__ = ["print_mistake", "print_ready", "printable", "set_up_logging", "table"]


def print_mistake(mistake: Mistake) -> None:
    """Print what, where and what to do on stderr."""
    typer.echo(typer.style("error: ", fg="red", bold=True) + mistake.what, err=True)
    for line in mistake.where:
        typer.echo(f"  {line}", err=True)
    if mistake.fix:
        typer.echo(f"  fix: {mistake.fix}", err=True)


def print_ready(title: str, facts: dict[str, Any]) -> None:
    """Print a banner on stderr: some lines for a person at a terminal, else one line of JSON."""
    if not sys.stderr.isatty():
        typer.echo(json.dumps({"event": "ready", "what": title, **facts}), err=True)
        return
    typer.echo(typer.style(title, bold=True), err=True)
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        typer.echo(f"  {name:<{width}}  {value}", err=True)
    typer.echo("  stop with Ctrl-C", err=True)


def printable(text: str) -> str:
    """Return text without what would move a terminal's cursor: others may have written it."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines with the columns aligned."""
    everything = [list(head), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in everything) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in everything
    ]


def set_up_logging(verbose: bool) -> None:
    """Log to stderr; natsweb is an application here, not a library."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for noisy in ("uvicorn", "uvicorn.error", "asyncio", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
