"""`natsweb check`: whether a service can be served, and with `--live` whether it gets along with what is there."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.lifecycle import AppDirOption, ContextOption, JsonOption, NatsOption, connected, run_until_done

__all__ = ["command"]


def command(
    app: Annotated[str | None, typer.Argument(metavar="[APP:SVC]", help="The service, as module:name or file.")] = None,
    live: Annotated[bool, typer.Option("--live", help="Compare it with the services on NATS.")] = False,
    root: Annotated[
        str | None, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")
    ] = None,
    nats: NatsOption = None,
    context: ContextOption = None,
    app_dir: AppDirOption = ".",
    as_json: JsonOption = False,
) -> None:
    """Import and compile a service; with --live, find overlaps and what hides that nobody listens.

    Without an app, --live checks the services that are there. Exits with 1 if anything is wrong.
    """
    if live and app is None and root is None:
        root = "api"
    service = None
    if app is not None or not live:
        from natsweb.cli.loading import find_target, load_services

        [service] = load_services([find_target(app, Path(app_dir))])
        service.compile()
    findings: list[dict[str, str]] = []
    if live:
        run_until_done(lambda: _look(service, root, nats, context, findings))
    _report(service, live, findings, as_json)
    if findings:
        raise typer.Exit(1)


def _report(service: Any, live: bool, findings: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        said = {
            "service": service and service.name,
            "routes": service and len(service.routes),
            "events": service and len(service.events),
            "findings": findings,
        }
        typer.echo(json.dumps(said, indent=2))
        return
    if service is not None:
        events = f", {len(service.events)} event handlers" if service.events else ""
        typer.echo(f"{service.name} {service.version}: {len(service.routes)} routes{events}, all compiled")
    for one in findings:
        typer.echo(typer.style("problem: ", fg="red", bold=True) + one["what"])
        typer.echo(f"  {one['where']}")
        typer.echo(f"  fix: {one['fix']}")
    if live and not findings:
        typer.echo("nothing on NATS gets in its way" if service is not None else "the services do not overlap")


async def _look(
    service: Any, root: str | None, nats: str | None, context: str | None, findings: list[dict[str, str]]
) -> int:
    from natsweb.discovery import Presence, overlaps, survey
    from natsweb.micro import INFO, parse_info

    async with connected(nats, context, "check") as bus:
        infos = [info for info in map(parse_info, await survey(bus, INFO)) if info is not None]
        mine = [Presence(bus, service, root=root).info] if service is not None else infos
        if service is None and not infos:
            what = {"what": "no service answers", "where": bus.server, "fix": "natsweb run app:svc starts one"}
            findings.append(what)
            return 0
        roots = {root} | {(info.metadata or {}).get("natsweb.root") for info in mine if info.is_natsweb} - {None}
        seen = set()
        for info in mine:
            for one in overlaps(info, infos):
                pair = (frozenset([info.name, one.other.name]), frozenset([one.pattern, one.others]))
                if pair not in seen:
                    seen.add(pair)
                    findings.append(_overlap(info, one))
        for below in sorted(one for one in roots if one is not None and _is_root(one)):
            if (hidden := await _somebody_listens_to_all(bus, below)) is not None:
                findings.append(hidden)
    return 0


def _is_root(root: str) -> bool:
    """Tell whether what somebody says is a root can be one."""
    from natsweb.errors import SettingsError
    from natsweb.subjects import check_root

    try:
        return bool(check_root(root))
    except SettingsError:
        return False


def _overlap(info: Any, one: Any) -> dict[str, str]:
    both = f"{info.name} {info.version} and {one.other.name} {one.other.version}"
    if one.is_plain:
        return {
            "what": f"{both} would both run a request",
            "where": f"{one.pattern} and {one.others}; {info.name if one.other.is_natsweb else one.other.name} "
            "knows nothing of natsweb",
            "fix": "change the paths or the root of one of them",
        }
    return {
        "what": f"{both} take the same requests",
        "where": f"{one.pattern} and {one.others}",
        "fix": "gateways send each request to the more specific one; plain NATS clients reach both"
        if not one.is_equal
        else f"gateways send them to {min(info.name, one.other.name)}; keep the route in one of them",
    }


async def _somebody_listens_to_all(bus: Any, root: str) -> dict[str, str] | None:
    """Tell whether a subject that no route can have is listened to: then nobody ever hears that nobody listens."""
    import os

    from natsweb.bus import request
    from natsweb.errors import HTTPError, NoService

    subject = f"{root}.natsweb-check-{os.urandom(8).hex()}.%"
    try:
        reply = await request(bus, subject, b"", timeout=0.3)
    except NoService:
        return None
    except HTTPError:
        who = "a tap, such as natsweb sniff, or a service on every path"
    else:
        try:
            stream = json.loads(reply.payload).get("stream")
        except (ValueError, AttributeError):
            stream = None
        if stream is None:
            return None  # a service that takes every path, and answers
        who = f"the JetStream stream {stream}, which answers each request with its acknowledgement"
    return {
        "what": f"somebody listens to everything below {root}, so that a missing service is a 504 and not a 404",
        "where": f"{subject} is taken by {who}",
        "fix": "narrow that subscription, or give it another root",
    }
