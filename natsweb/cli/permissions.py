"""`natsweb permissions`: what NATS has to allow a gateway and a service, to copy into nats-server's configuration."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from natsweb.cli.lifecycle import AppDirOption, ContextOption, JsonOption, MountOption, NameOption, nats_settings

__all__ = ["command", "gateway_permissions", "service_permissions"]

Permissions = dict[str, Any]


def command(
    app: Annotated[str | None, typer.Argument(metavar="[APP:SVC]", help="The service, as module:name or file.")] = None,
    root: Annotated[
        str | None, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")
    ] = None,
    context: ContextOption = None,
    mount: MountOption = None,
    name: NameOption = None,
    app_dir: AppDirOption = ".",
    as_json: JsonOption = False,
) -> None:
    """Print the NATS permissions of a gateway and of a service, as a block of nats-server's configuration.

    It connects to nothing.
    """
    from natsweb.cli.loading import find_target, load_services

    [service] = load_services([find_target(app, Path(app_dir))], mount=mount, name=name)
    service.compile()
    inbox = nats_settings(None, context).inbox_prefix
    gateway = gateway_permissions(root or service.root, inbox)
    own = service_permissions(service.name, [*service.patterns(root), *_events(service)], inbox)
    users = {"gateway": gateway, service.name: _with_calls(own, gateway) if _calls(service) else own}
    typer.echo(json.dumps(users, indent=2) if as_json else _block(users))


def _events(service: Any) -> list[str]:
    """Return the subjects of a service's event handlers."""
    return sorted({".".join(one.template.shape) for one in service.events})


def _calls(service: Any) -> bool:
    """Tell whether handlers of a service take a `Client`."""
    from natsweb.client import Client

    recipes = [route.recipe for route in [*service.routes, *service.events] if route.recipe is not None]
    return any(Client in recipe.given for recipe in recipes)


def _with_calls(service: Permissions, gateway: Permissions) -> Permissions:
    """Return what a service has to be allowed that calls others, as a gateway does."""
    both = {key: [*dict.fromkeys([*service[key], *gateway[key]])] for key in ("subscribe", "publish")}
    return {**service, **both}


def gateway_permissions(root: str, inbox: str = "_INBOX") -> Permissions:
    """Return what a gateway on `root` has to be allowed, with `inbox` as everybody's inbox prefix."""
    return {
        "publish": [root, f"{root}.>", "$SRV.INFO", "$SRV.PING.*", "$SRV.OPENAPI.*.*", f"{inbox}.>"],
        "subscribe": [f"{inbox}.>", "$SRV.NW.ANNOUNCE"],
    }


def service_permissions(name: str, patterns: list[str], inbox: str = "_INBOX") -> Permissions:
    """Return what a service has to be allowed that is called `name` and subscribes `patterns`."""
    return {
        "subscribe": [*patterns, "$SRV.*", f"$SRV.*.{name}", f"$SRV.*.{name}.*", f"{inbox}.>"],
        "publish": ["$SRV.INFO", "$SRV.NW.ANNOUNCE", f"{inbox}.*.beat"],
        "allow_responses": {"max": -1, "expires": "10m"},
    }


def _block(users: dict[str, Permissions]) -> str:
    """Return the users in the words of nats-server's configuration."""
    lines = ["authorization {", "  users: ["]
    for name, permissions in users.items():
        variable = f"{name.upper().replace('-', '_')}_PASSWORD"
        lines += ["    {", f"      user: {json.dumps(name)}, password: ${variable}", "      permissions: {"]
        for key, value in permissions.items():
            if isinstance(value, list):
                said = f"[{', '.join(json.dumps(one) for one in value)}]"
            else:
                said = f'{{ max: {value["max"]}, expires: "{value["expires"]}" }}'
            lines.append(f"        {key}: {said}")
        lines += ["      }", "    }"]
    return "\n".join([*lines, "  ]", "}"])
