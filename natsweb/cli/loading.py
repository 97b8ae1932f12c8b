"""From `app:svc` to the `Service` object: where apps are looked for, and what is said when there is none.

The order: the argument, `NATSWEB_APP`, `[tool.natsweb] app` in pyproject.toml, then `svc`, `app` or `service`
in app.py, main.py, svc.py or service.py of the working directory.
"""

import importlib
import inspect
import os
import re
import sys
import tomllib
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import typer

from natsweb.errors import Mistake, SettingsError
from natsweb.service import Service

__all__ = ["Target", "find_target", "load_services"]

_MODULES = ("app", "main", "svc", "service")
_NAMES = ("svc", "app", "service")


class AppError(Mistake):
    """The app could not be imported, or it declares something wrong (exit code 1)."""


class UsageError(Mistake):
    """The command names no app, or one that is not there, or two things at once (exit code 2)."""

    exit_code = 2


class Target(NamedTuple):
    """Where an app is: a module, perhaps a name in it, and the folder to import it from."""

    module: str
    name: str | None
    folder: Path
    found_by: str

    def __str__(self) -> str:
        return f"{self.module}:{self.name}" if self.name else self.module


def find_target(argument: str | None, app_dir: Path) -> Target:
    """Return where the app is; raises `UsageError` when nothing names one."""
    if argument:
        return _parse(argument, app_dir, "argument")
    if os.environ.get("NATSWEB_APP"):
        return _parse(os.environ["NATSWEB_APP"], app_dir, "NATSWEB_APP")
    if named := _from_pyproject(app_dir / "pyproject.toml"):
        return _parse(named, app_dir, "pyproject.toml")
    for module in _MODULES:
        if (app_dir / f"{module}.py").exists() or (app_dir / module / "__init__.py").exists():
            return Target(module, None, app_dir, f"{module}.py")
    raise UsageError(
        "no app is named, and none is found here",
        where=f"looked for NATSWEB_APP, [tool.natsweb] in pyproject.toml, {', '.join(f'{m}.py' for m in _MODULES)}",
        fix="name it as module:name, such as app:svc, or as a file",
    )


def _from_pyproject(file: Path) -> str | None:
    try:
        content = tomllib.loads(file.read_text())
    except OSError:
        return None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"pyproject.toml cannot be read: {error}", where=str(file)) from None
    named = content.get("tool", {}).get("natsweb", {}).get("app")
    return named if isinstance(named, str) else None


def _parse(text: str, app_dir: Path, found_by: str) -> Target:
    """Parse `module:name`, `module`, `path/to/file.py` or `path/to/file.py:name`."""
    place, _, name = text.partition(":") if not _is_drive(text) else (text, "", "")
    file = app_dir / place
    if place.endswith(".py") or os.sep in place:
        if not file.is_file():
            raise UsageError(
                f"there is no file {place}",
                where=f"looked in {app_dir.resolve()}",
                fix="name it from here, or --app-dir",
            )
        return _from_file(file.resolve(), name or None, found_by)
    return Target(place, name or None, app_dir, found_by)


def _is_drive(text: str) -> bool:
    return text[1:3] == ":\\"


def _from_file(file: Path, name: str | None, found_by: str) -> Target:
    """Return the target of a file; in a package, its module is named from the package's top."""
    module, folder = file.stem, file.parent
    while (folder / "__init__.py").exists():
        module, folder = f"{folder.name}.{module}", folder.parent
    return Target(module, name, folder, found_by)


def load_services(targets: Sequence[Target], *, mount: str | None = None, name: str | None = None) -> list[Service]:
    """Import the services; exits with the user's own traceback if an import fails.

    An ASGI application becomes a service called `name` (default: the module's) that has it at `mount` (default: `/`).
    """
    return [_load(target, mount, name) for target in targets]


def load_object(target: Target) -> Any:
    """Import what a target names: a filter, for example."""
    module = _import(target)
    found: Any = module
    for part in (target.name or "").split("."):
        found = getattr(found, part, None)
    if found is None or found is module:
        raise UsageError(
            f"{target.module} has no {target.name or 'name given'!r}",
            where=str(getattr(module, "__file__", "")),
            fix=f"name it as {target.module}:name",
        )
    return found


def _import(target: Target) -> ModuleType:
    for folder in (target.folder / "src", target.folder):
        if folder.is_dir() and str(folder.resolve()) not in sys.path:
            sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(target.module)
    except SettingsError as error:  # the app's own, not the command line's
        raise AppError(error.what, where=error.where, fix=error.fix) from None
    except Mistake:
        raise
    except ModuleNotFoundError as error:
        if error.name and (target.module == error.name or target.module.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {error.name!r}",
                where=f"looked in {target.folder.resolve()} and on sys.path",
                fix="name it as module:name from the folder that holds it, or give --app-dir",
            ) from None
        _exit_with_traceback(error)
    except Exception as error:
        _exit_with_traceback(error)


def _load(target: Target, mount: str | None, name: str | None) -> Service:
    module = _import(target)
    service = _pick(module, target, mount, name)
    service.compile()
    if not service.routes and not service.mounts and not service.events:
        raise AppError(
            f"the service {service.name!r} has no routes",
            where=str(getattr(module, "__file__", "")),
            fix=f'declare one: @{target.name or "svc"}.get("/...")',
        )
    return service


def _exit_with_traceback(error: Exception) -> NoReturn:
    """Show the user's frames only, and exit."""
    ours = os.sep + "natsweb" + os.sep
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and ours not in frame.filename
    ]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    lines += traceback.format_exception_only(error)
    typer.echo("".join(lines).rstrip(), err=True)
    typer.echo(typer.style("error: ", fg="red", bold=True) + "the app could not be imported", err=True)
    raise typer.Exit(1)


def _pick(module: ModuleType, target: Target, mount: str | None, name: str | None) -> Service:
    if target.name:
        found: Any = module
        for part in target.name.split("."):
            found = getattr(found, part, None)
        if found is None:
            known = _candidates(module)
            raise UsageError(
                f"{target.module} has no {target.name!r}",
                where=str(getattr(module, "__file__", "")),
                fix=f"did you mean {target.module}:{known[0]}?"
                if known
                else "name a service or ASGI application in it",
            )
        return _check(found, target, mount, name)
    services = {name: value for name, value in vars(module).items() if isinstance(value, Service)}
    for one in _NAMES:
        if one in services:
            return _check(services[one], target, mount, name)
    if len(services) == 1:
        return _check(next(iter(services.values())), target, mount, name)
    if not services and (app := next((one for one in map(vars(module).get, _NAMES) if _is_asgi(one)), None)):
        return _check(app, target, mount, name)
    if services:
        raise UsageError(
            f"{target.module} has several services: {', '.join(services)}",
            fix=f"name one, such as {target.module}:{next(iter(services))}",
        )
    known = _candidates(module)
    raise UsageError(
        f"{target.module} has no natsweb.Service",
        where=str(getattr(module, "__file__", "")),
        fix=f"did you mean {target.module}:{known[0]}?" if known else 'make one: svc = Service("name")',
    )


def _candidates(module: ModuleType) -> list[str]:
    """Return the names of what could be served: services, else objects that look like ASGI applications."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    services = [name for name, value in public.items() if isinstance(value, Service)]
    return services or [name for name, value in public.items() if not inspect.isroutine(value) and _is_asgi(value)]


def _check(found: Any, target: Target, mount: str | None, name: str | None) -> Service:
    if isinstance(found, Service):
        if mount is not None or name is not None:
            raise UsageError(
                f"{target} is a natsweb.Service, which has its own {'paths' if mount is not None else 'name'}",
                fix="leave --mount and --name out; Router(prefix=...) puts routes below a path",
            )
        return found
    if not _is_asgi(found):
        raise UsageError(
            f"{target} is a {type(found).__module__}.{type(found).__qualname__}, "
            "neither a natsweb.Service nor an ASGI application",
            fix='make one: svc = Service("name"); a WSGI application goes through a2wsgi.WSGIMiddleware',
        )
    service = Service(name or re.sub(r"[^A-Za-z0-9_-]", "-", target.module))
    service.mount(mount or "/", found, where=str(target))
    return service


def _is_asgi(found: Any) -> bool:
    """Tell whether something looks like an ASGI application: a coroutine function of three, or an object like one."""
    if found is None or isinstance(found, type):
        return False
    call = found if inspect.isroutine(found) else getattr(found, "__call__", None)  # noqa: B004
    if call is None:
        return False
    if not inspect.iscoroutinefunction(inspect.unwrap(call)):
        return False
    try:
        inspect.signature(call).bind(None, None, None)
    except TypeError:
        return False
    return True
