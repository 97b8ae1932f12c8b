"""OpenAPI documents of several services as one, without a server: what a gateway shows of all that is behind it.

Each document is somebody else's and may say anything. Only operations that have a place are taken over, with the
components that they refer to. Equal names of different components are told apart, equal ones are shared. Pure.
"""

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Paths", "Place", "Source", "merge", "parse", "shape_of"]

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_COMPONENTS = "#/components/"
_DEPTH = 100

#: Section and name of a component, such as ("schemas", "Order").
_Key = tuple[str, str]


class Place(NamedTuple):
    """Where the operations of a path are to be found: a path with `{names}`, and the methods, None for all."""

    path: str
    methods: frozenset[str] | None


class Source(NamedTuple):
    """A service, its document, and the places of the document's paths by their shapes; what has none is left out."""

    name: str
    version: str
    document: Mapping[str, Any]
    places: Mapping[str, list[Place]]


def parse(payload: bytes) -> dict[str, Any] | None:
    """Return an OpenAPI 3 document, or None for anything else."""
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not str(found.get("openapi", "")).startswith("3."):
        return None
    return found if _depth(found) <= _DEPTH else None


def merge(title: str, sources: Iterable[Source]) -> dict[str, Any]:
    """Return one OpenAPI 3.1 document of all sources, which does not depend on their order."""
    merged = _Merged()
    versions = []
    for source in sorted(sources, key=lambda one: one.name):
        merged.add(source)
        versions.append(f"{source.name} {source.version}")
    return merged.document({"title": title, "version": ", ".join(versions) or "0"})


class Paths:
    """The paths of a document, with operations by method: `items`.

    Paths that differ in the names of their captures only are one (OpenAPI 3.1.0, Paths Object): the first is taken.
    """

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self._by_shape: dict[str, str] = {}

    def put(self, path: str, method: str, operation: dict[str, Any]) -> None:
        """Put an operation in its place, with the names that its path has there; the first of two stays."""
        there = self._by_shape.setdefault(shape_of(path), path)
        if there != path:
            names = dict(zip(_captures(path), _captures(there), strict=True))
            for one in operation.get("parameters", ()):
                if one.get("in") == "path" and one.get("name") in names:
                    one["name"] = names[one["name"]]
        self.items.setdefault(there, {}).setdefault(method, operation)


class _Component(NamedTuple):
    """A component as its service has it, the final names of what it refers to, and its final form."""

    raw: Any
    finals: dict[_Key, str]
    value: Any


class _Merged:
    """A document that grows by one service after another."""

    def __init__(self) -> None:
        self._paths = Paths()
        self._components: dict[_Key, _Component] = {}
        self._ids: set[str] = set()
        self._tags: dict[str, dict[str, Any]] = {}
        self._used_tags: set[str] = set()

    def document(self, info: dict[str, Any]) -> dict[str, Any]:
        """Return the whole, in an order that is always the same."""
        components: dict[str, dict[str, Any]] = {"schemas": {}}
        for (section, name), one in sorted(self._components.items(), key=lambda item: item[0]):
            components.setdefault(section, {})[name] = one.value
        paths = dict(sorted(self._paths.items.items()))
        tags = [self._tags[name] for name in sorted(self._tags)]
        return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components, "tags": tags}

    def add(self, source: Source) -> None:
        """Take over the operations of a source that have a place, and what they need."""
        operations = list(_operations(source))
        used = _closure(operations, source.document)
        finals = self._final_names(source.name, used)
        for key, raw in used.items():
            final = (key[0], finals[key])
            if final not in self._components:
                own = {one: finals[one] for one in _references(raw) if one in finals}
                self._components[final] = _Component(raw, own, _renamed(raw, finals))
        for path, method, operation in operations:
            self._paths.put(path, method, self._finish(_renamed(operation, finals), source, finals))
        self._add_tags(source)

    def _final_names(self, service: str, used: Mapping[_Key, Any]) -> dict[_Key, str]:
        """Return a name for each component: its own, unless another one has it that is not equal.

        Two are equal if they read the same, and all that they refer to is equal. That is taken for granted until
        something speaks against it, so that components which refer to each other can be equal.
        """
        finals = {key: key[1] for key in used}
        taken: dict[str, set[str]] = {}
        for section, name in (*used, *self._components):
            taken.setdefault(section, set()).add(name)
        referrers: dict[_Key, list[_Key]] = {}
        different = []
        for key, raw in used.items():
            there = self._components.get(key)
            for one in _references(raw):
                referrers.setdefault(one, []).append(key)
            if there is not None and (there.raw != raw or any(name != one[1] for one, name in there.finals.items())):
                different.append(key)
        while different:
            key = different.pop()
            if finals[key] != key[1]:
                continue
            finals[key] = _numbered(f"{service}_{key[1]}", taken[key[0]])
            taken[key[0]].add(finals[key])
            for one in referrers.get(key, ()):
                there = self._components.get(one)
                if there is not None and there.finals.get(key) != finals[key]:
                    different.append(one)
        return finals

    def _finish(self, operation: dict[str, Any], source: Source, finals: Mapping[_Key, str]) -> dict[str, Any]:
        """Give an operation its id, tags and security in the whole."""
        if isinstance(said := operation.get("operationId"), str):
            wanted = said if said not in self._ids else f"{source.name}_{said}"
            operation["operationId"] = _numbered(wanted, self._ids)
            self._ids.add(operation["operationId"])
        tags = operation.get("tags")
        operation["tags"] = [one for one in tags if isinstance(one, str)] if isinstance(tags, list) else [source.name]
        self._used_tags.update(operation["tags"])
        if isinstance(needed := operation.get("security"), list):
            operation["security"] = [
                {finals.get(("securitySchemes", name), name): scopes for name, scopes in one.items()}
                for one in needed
                if isinstance(one, dict)
            ]
        return operation

    def _add_tags(self, source: Source) -> None:
        """Take over the descriptions of tags that are in use, and describe the service's own."""
        own = {"name": source.name, "description": _mapping(source.document.get("info")).get("description", "")}
        said = source.document.get("tags")
        for one in [*(said if isinstance(said, list) else []), own]:
            name = _mapping(one).get("name")
            if isinstance(name, str) and name in self._used_tags:
                self._tags.setdefault(name, dict(one))


# ── what a document says ─────────────────────────────────────────────────────────────────────────


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _depth(value: Any) -> int:
    deepest = 0
    waiting = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        deepest = max(deepest, depth)
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        waiting += [(each, depth + 1) for each in inner]
    return deepest


def _operations(source: Source) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, method and operation of all that has a place, with what the document says for all of them."""
    document = source.document
    for path, item in _mapping(document.get("paths")).items():
        for place in source.places.get(shape_of(path), ()):
            for method, operation in _mapping(item).items():
                if method not in _METHODS or not isinstance(operation, dict):
                    continue
                if place.methods is not None and method.upper() not in place.methods:
                    continue
                found = {name: value for name, value in operation.items() if name not in ("servers", "parameters")}
                if parameters := list(_parameters(item, operation)):
                    found["parameters"] = parameters
                if "security" not in found and "security" in document:
                    found["security"] = document["security"]
                names = iter(_captures(path))
                yield re.sub(r"\{[^}]*\}", lambda _: f"{{{next(names)}}}", place.path), method, found  # noqa: B023


def _parameters(item: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of an operation, and those of its path that it does not have itself."""
    shared, own = [
        [dict(one) for one in said if _is_parameter(one)] if isinstance(said, list) else []
        for said in (item.get("parameters"), operation.get("parameters"))
    ]
    taken = {(one["in"], one["name"]) for one in own if "$ref" not in one}
    yield from [one for one in shared if "$ref" in one or (one["in"], one["name"]) not in taken]
    yield from own


def _is_parameter(value: Any) -> bool:
    said = _mapping(value)
    return isinstance(said.get("$ref"), str) or (isinstance(said.get("in"), str) and isinstance(said.get("name"), str))


def _closure(operations: list[tuple[str, str, dict[str, Any]]], document: Mapping[str, Any]) -> dict[_Key, Any]:
    """Return the components that operations refer to, directly or through others."""
    components = _mapping(document.get("components"))
    found: dict[_Key, Any] = {}
    waiting = list(_references([operation for _, _, operation in operations]))
    for _, _, operation in operations:
        needed = operation.get("security")
        for one in needed if isinstance(needed, list) else ():
            waiting += [("securitySchemes", name) for name in _mapping(one)]
    while waiting:
        key = waiting.pop()
        section = _mapping(components.get(key[0]))
        if key not in found and key[1] in section:
            found[key] = section[key[1]]
            waiting += _references(section[key[1]])
    return found


# ── references ───────────────────────────────────────────────────────────────────────────────────


def _references(value: Any) -> list[_Key]:
    """Return the components that a value refers to."""
    found = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            said = [one.get("$ref"), *_mapping(_mapping(one.get("discriminator")).get("mapping")).values()]
            found += [key for key, _ in filter(None, map(_parsed, said))]
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return found


def _parsed(reference: Any) -> tuple[_Key, str] | None:
    """Return the component of a reference, and what comes behind it (RFC 6901)."""
    if not isinstance(reference, str) or not reference.startswith(_COMPONENTS):
        return None
    section, _, rest = reference.removeprefix(_COMPONENTS).partition("/")
    name, slash, below = rest.partition("/")
    return (section, name.replace("~1", "/").replace("~0", "~")), slash + below


def _renamed(value: Any, finals: Mapping[_Key, str]) -> Any:
    """Return a copy of a value that refers to components by their final names.

    References to anything else become the schema that takes all: nobody should follow them to other hosts.
    """
    if isinstance(value, list):
        return [_renamed(one, finals) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _renamed(one, finals) for name, one in value.items()}
    if isinstance(found.get("$ref"), str):
        reference = _reference(found["$ref"], finals)
        if reference is None:
            return {}
        found["$ref"] = reference
    mapping = _mapping(_mapping(found.get("discriminator")).get("mapping"))
    if mapping:
        found["discriminator"]["mapping"] = {
            name: said for name, one in mapping.items() if (said := _reference(one, finals)) is not None
        }
    return found


def _reference(said: Any, finals: Mapping[_Key, str]) -> str | None:
    parsed = _parsed(said)
    if parsed is None or parsed[0] not in finals:
        return None
    key, below = parsed
    name = finals[key].replace("~", "~0").replace("/", "~1")
    return f"{_COMPONENTS}{key[0]}/{name}{below}"


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def _numbered(wanted: str, taken: Container[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def shape_of(path: str) -> str:
    """Return what paths have in common that differ in names only: `/orders/{}`."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def _captures(path: str) -> list[str]:
    return re.findall(r"\{([^}]*)\}", path)
