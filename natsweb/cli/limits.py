"""`--limit NAME=VALUE` of `natsweb gateway`: any field of `Limits`, by its name."""

import contextlib
import math
from dataclasses import fields, replace
from typing import Annotated, Any

import typer

from natsweb.errors import SettingsError
from natsweb.settings import Limits

__all__ = ["LimitOption", "raise_file_limit", "read_limits"]

_FIELDS = {field.name: field for field in fields(Limits)}

LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        help="Set a limit, in bytes or seconds: " + ", ".join(f"{one.name} {one.default}" for one in _FIELDS.values()),
    ),
]


def read_limits(said: list[str]) -> Limits:
    """Return the limits with those that NAME=VALUE texts set; raises `SettingsError`."""
    return replace(Limits(), **dict(map(_read, said)))


def _read(one: str) -> tuple[str, Any]:
    name, _, text = one.partition("=")
    name = name.strip().replace("-", "_")
    if name not in _FIELDS:
        raise SettingsError(f"--limit {one} names no limit", fix=f"the limits are {', '.join(_FIELDS)}")
    is_time = isinstance(_FIELDS[name].default, float)
    try:
        value: int | float = float(text) if is_time else int(text)
    except ValueError:
        value = -1
    least = 0 if _FIELDS[name].default == 0 else 1e-3
    if not (least <= value < math.inf):
        what = "seconds, such as 2.5" if is_time else f"a whole number{' above 0' if least else ''}"
        raise SettingsError(f"--limit {one} cannot be", fix=f"{name} wants {what}")
    return name, value


def raise_file_limit() -> None:
    """Let this process have as many files and sockets open as the system allows: the soft limit is often 1,024."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
