"""`natsweb doctor`: whether this machine, its packages and its NATS server are fit for natsweb."""

import importlib.util
import json
import platform
import time
from typing import Any, NamedTuple

import typer

from natsweb.cli.lifecycle import ContextOption, JsonOption, NatsOption, WaitOption, nats_settings, run_until_done
from natsweb.cli.limits import LimitOption, read_limits
from natsweb.settings import Limits

__all__ = ["Finding", "check_limits", "command"]

_PACKAGES = ("nats-py", "pydantic", "starlette", "uvicorn", "httptools", "uvloop")
#: Extra -> a module that it brings, and what is missing without.
_EXTRAS = {
    "ws": ("websockets", "WebSockets"),
    "forms": ("python_multipart", "multipart forms"),
    "dev": ("watchfiles", "reload and a private nats-server in natsweb dev"),
    "auth": ("jwt", "OIDC"),
    "nats-proxy": ("google.protobuf", "--wire nats-proxy"),
}
_SPARE_FILES = 64


class Finding(NamedTuple):
    """Something that is wrong: what, where, and what to do."""

    what: str
    where: str
    fix: str


def command(
    nats: NatsOption = None,
    context: ContextOption = None,
    wait: WaitOption = 0.0,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at Python, packages, settings and the NATS server; --limit as for a gateway.

    Exits with 1 if anything is wrong, with 4 if NATS cannot be reached.
    """
    limits = read_limits(limit or [])
    facts = _facts()
    findings: list[Finding] = []
    try:
        settings = nats_settings(nats, context)
        facts["nats"] = f"{settings.display} ({settings.source})"
        facts["looked at"] = ", ".join(settings.looked_at)
        run_until_done(lambda: _look(settings, limits, wait, facts, findings))
    finally:
        _report(facts, findings, as_json)
    if findings:
        raise typer.Exit(1)


def _facts() -> dict[str, str]:
    """Return what is here."""
    import importlib.metadata  # slow

    facts = {"python": f"{platform.python_version()} on {platform.system()}"}
    for package in ("natsweb", *_PACKAGES):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    for extra, (module, what) in _EXTRAS.items():
        found = _has(module)
        facts[f"natsweb[{extra}]"] = (
            "installed" if found else f'not installed: no {what}; pip install "natsweb[{extra}]"'
        )
    return facts


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


async def _look(settings: Any, limits: Limits, wait: float, facts: dict[str, str], findings: list[Finding]) -> int:
    from natsweb.cli.lifecycle import connection_name
    from natsweb.natsbus import connect

    bus = await connect(settings, name=connection_name("doctor"), wait=wait)
    try:
        began = time.perf_counter()
        await bus.flush()
        facts["server"] = bus.server
        facts["round trip"] = f"{(time.perf_counter() - began) * 1000:.1f} ms"
        facts["max_payload"] = f"{bus.max_payload} bytes"
        longest = await _takes_subject(bus, limits.subject)
        facts["a subject of that limit"] = "taken" if longest else "refused"
        findings += check_limits(limits, max_payload=bus.max_payload, takes_subject=longest, files=_max_files())
    finally:
        await bus.close()
    return 0


async def _takes_subject(bus: Any, length: int) -> bool:
    """Tell whether the server takes a subject of `length` bytes with a reply subject, or closes the connection."""
    from natsweb.errors import HTTPError

    reply = bus.new_inbox()
    subject = f"{bus.new_inbox()}.".ljust(length, "x")
    try:
        bus.publish(subject, b"", reply=f"{reply}.{'0' * 24}")
        await bus.flush()
    except HTTPError:
        return False
    return True


def _max_files() -> int | None:
    """Return how many files a gateway may have open; None where nobody says so."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard


def check_limits(limits: Limits, *, max_payload: int, takes_subject: bool, files: int | None) -> list[Finding]:
    """Return which of a gateway's limits the server, or the system, contradicts."""
    found = []
    room = max_payload - limits.margin
    if limits.header_bytes > room:
        found.append(
            Finding(
                f"a header block may have {limits.header_bytes} bytes, and no message more than {max(room, 0)}",
                f"max_payload {max_payload} of the NATS server, less the margin of {limits.margin}",
                f"raise max_payload, or --limit header_bytes={max(room // 2, 1)}",
            )
        )
    if not takes_subject:
        found.append(
            Finding(
                f"the NATS server closes the connection on a subject of {limits.subject} bytes",
                "max_control_line of the NATS server",
                "raise max_control_line to 4096 or more, or --limit subject=... to less than it by 300",
            )
        )
    if limits.pending_bytes < max_payload:
        found.append(
            Finding(
                f"all bodies under way may have {limits.pending_bytes} bytes together, and a single one {max_payload}",
                f"max_payload {max_payload} of the NATS server",
                f"--limit pending_bytes={64 * max_payload}",
            )
        )
    if files is not None and files < limits.connections + _SPARE_FILES:
        found.append(
            Finding(
                f"{limits.connections} connections are allowed, and this process may have {files} files open",
                "the hard limit of open files (ulimit -Hn)",
                f"raise it to {limits.connections + 1024}, or --limit connections={max(files - _SPARE_FILES, 1)}",
            )
        )
    return found


def _report(facts: dict[str, str], findings: list[Finding], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"facts": facts, "findings": [one._asdict() for one in findings]}, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {value}")
    for one in findings:
        typer.echo(typer.style("problem: ", fg="red", bold=True) + one.what)
        typer.echo(f"  {one.where}")
        typer.echo(f"  fix: {one.fix}")
