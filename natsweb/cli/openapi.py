"""`natsweb openapi`: the OpenAPI document of a service, without a server; `--check` compares it with a file."""

import contextlib
import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from natsweb.cli.console import printable
from natsweb.cli.lifecycle import AppDirOption, ContextOption, NatsOption, connected, run_until_done
from natsweb.errors import Mistake, SettingsError, StartError

__all__ = ["CheckFailed", "command", "differences"]

Format = Literal["json", "yaml"]

_MOST_LINES = 20


class CheckFailed(Mistake):
    """A file is not what it should be (exit code 1)."""


def command(
    app: Annotated[str | None, typer.Argument(metavar="[APP:SVC]", help="The service, as module:name or file.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there; without, to stdout.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="json|yaml", help="Without, as the file's name says, or JSON.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Write nothing; exit with 1 if the file differs.")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask all services on NATS instead, and merge them.")] = False,
    root: Annotated[
        str, typer.Option("--root", envvar="NATSWEB_ROOT", help="With --live: subject that stands for '/'.")
    ] = "api",
    nats: NatsOption = None,
    context: ContextOption = None,
    app_dir: AppDirOption = ".",
) -> None:
    """Print the OpenAPI document of a service, or with --live of all services; --check compares it with a file."""
    if output is not None and check is not None:
        raise SettingsError("--output writes, and --check only compares", fix="drop one of them")
    if live and app is not None:
        raise SettingsError("--live asks the services on NATS, and takes no app", fix=f"natsweb openapi {app}")
    kind = _format(form, output or check)
    document = run_until_done(lambda: _live(root, nats, context)) if live else _document(app, app_dir)
    if check is not None:
        _check(document, check, kind)
    elif output is not None:
        try:
            output.write_text(_encode(document, kind), encoding="utf-8")
        except OSError as error:
            raise StartError(f"{output} cannot be written: {error.strerror}", fix="choose another --output") from None
    else:
        typer.echo(_encode(document, kind), nl=False)


def _document(app: str | None, app_dir: str) -> dict[str, Any]:
    """Return the document of one service; what its modules print goes to stderr."""
    from natsweb.cli.loading import AppError, find_target, load_services

    target = find_target(app, Path(app_dir))
    with contextlib.redirect_stdout(sys.stderr):
        [service] = load_services([target])
        if not service.routes:
            raise AppError(
                f"{target} has no routes of natsweb's, so that there is nothing to describe",
                where="it is an ASGI application, or a service that only mounts some",
                fix="ask the framework for its own document; FastAPI has app.openapi()",
            )
        return service.openapi()


async def _live(root: str, nats: str | None, context: str | None) -> dict[str, Any]:
    """Return the document of all services below a root, as a gateway shows it."""
    from natsweb.catalogue import Catalogue
    from natsweb.discovery import survey
    from natsweb.documents import fetch_all, newest, places
    from natsweb.merges import Source, merge
    from natsweb.micro import INFO, parse_info
    from natsweb.subjects import check_root

    catalogue = Catalogue(check_root(root))
    async with connected(nats, context, "openapi") as bus:
        for info in filter(None, map(parse_info, await survey(bus, INFO))):
            catalogue.put(info, info.state, 0.0)
        infos = newest(sorted([one.info for one in catalogue.instances if one.state == "up"], key=_version))
        if not infos:
            raise CheckFailed("no service answers", fix="start one, or name the right server with --nats")
        documents = await fetch_all(bus, [info for info in infos if info.document])
    for info in infos:
        if not info.document:
            typer.echo(f"{printable(info.name)} has no document", err=True)
    found = [info for info in infos if info.id in documents]
    return merge(root, [Source(one.name, one.version, documents[one.id], places(one, catalogue)) for one in found])


def _version(info: Any) -> list[int]:
    """Return the numbers of a version, so that 10 comes behind 9."""
    return [int(part) for part in re.findall(r"\d{1,9}", info.version)[:3]]


# ── formats ──────────────────────────────────────────────────────────────────────────────────────


def _format(said: str | None, file: Path | None) -> Format:
    """Return what `--format` says, else what the file's name says."""
    if said is None:
        return "yaml" if file is not None and file.suffix in (".yaml", ".yml") else "json"
    if said not in ("json", "yaml"):
        raise SettingsError(f"--format {said} is neither json nor yaml", fix="--format json")
    return "yaml" if said == "yaml" else "json"


def _encode(document: Any, kind: Format) -> str:
    if kind == "json":
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return str(_yaml().safe_dump(document, sort_keys=False, allow_unicode=True, width=120))


def _decode(text: str, kind: Format) -> Any:
    """Return the values of a text; raises `ValueError`."""
    if kind == "json":
        return json.loads(text)
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _yaml() -> Any:
    try:
        return importlib.import_module("yaml")
    except ImportError:
        raise StartError("YAML needs PyYAML", fix="pip install pyyaml, or take --format json") from None


# ── comparing ────────────────────────────────────────────────────────────────────────────────────


def _check(document: dict[str, Any], file: Path, kind: Format) -> None:
    """Compare a document with a file; raises `CheckFailed`."""
    fix = f"natsweb openapi ... -o {file}, and commit it"
    try:
        known = _decode(file.read_text(encoding="utf-8"), kind)
    except OSError as error:
        raise CheckFailed(f"{file} cannot be read: {error.strerror}", fix=fix) from None
    except ValueError as error:
        raise CheckFailed(f"{file} is no {kind.upper()}", where=str(error).splitlines(), fix=fix) from None
    if known == json.loads(json.dumps(document)):
        return
    found = list(differences(known, document))
    more = [f"and {len(found) - _MOST_LINES} more"] if len(found) > _MOST_LINES else []
    raise CheckFailed(
        f"{file} is not the document of the service any more", where=[*found[:_MOST_LINES], *more], fix=fix
    )


def differences(before: Any, after: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each path, schema and other part of a document that was added, removed or changed."""
    if not isinstance(before, Mapping):
        yield "it is no object"
        return
    yield from _compared("path", _operations(before), _operations(after))
    yield from _compared("schema", _part(before, "components", "schemas"), _part(after, "components", "schemas"))
    schemes = [_part(one, "components", "securitySchemes") for one in (before, after)]
    yield from _compared("security scheme", *schemes)
    rest = [{name: one[name] for name in one if name not in ("paths", "components")} for one in (before, after)]
    yield from _compared("field", *rest)


def _part(document: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _operations(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations by method and path."""
    paths = _part(document, "paths")
    return {f"{method.upper()} {path}": operation for path in paths for method, operation in _part(paths, path).items()}


def _compared(word: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*before, *after}):
        if name not in before:
            yield f"{word} added: {name}"
        elif name not in after:
            yield f"{word} removed: {name}"
        elif before[name] != after[name]:
            yield f"{word} changed: {name}"
