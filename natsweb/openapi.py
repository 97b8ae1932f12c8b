"""OpenAPI 3.1 documents, made of compiled routes: no server and no request is needed.

pydantic writes the schemas; here is how parameters, bodies, answers and security of a route are described.
Knows routes by what `Described` says; it calls no handler.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, Protocol, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, JsonSchemaWarningKind

from natsweb.annotations import is_list, is_object, is_upload, strip
from natsweb.binding import Parameter
from natsweb.errors import phrase
from natsweb.feeds import FeedType
from natsweb.files import FileResponse
from natsweb.merges import Paths
from natsweb.messages import Response
from natsweb.params import Body, File, Header
from natsweb.paths import Template
from natsweb.recipes import Recipe
from natsweb.replies import Created, Problem, Reply, body_of, union_parts
from natsweb.routers import RouteOptions
from natsweb.routing import WEBSOCKET
from natsweb.security import Auth

__all__ = ["Described", "document", "path_of"]

_REF = "#/components/schemas/{model}"
_PROBLEM = "application/problem+json"
_WITH_SCHEMA = ("application/json", "text/event-stream", "application/x-ndjson")
_ANYTHING = "*/*"
_SUCCESS = "2XX"
_PLACES = ("path", "query", "header", "cookie")


class Described(Protocol):
    """What a document tells of a route."""

    template: Template
    recipe: Recipe | None
    feed: FeedType | None

    @property
    def methods(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> RouteOptions: ...
    @property
    def takes_stream(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def tags(self) -> list[str]: ...
    @property
    def summary(self) -> str: ...
    @property
    def description(self) -> str: ...


class _Answer(NamedTuple):
    """One successful answer: its status or a range of them, content type (None without content) and type."""

    status: int | str
    media_type: str | None
    annotation: Any


def document(title: str, version: str, description: str, routes: Iterable[Described]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of `routes`, as plain JSON values."""
    shown = [route for route in routes if route.options.get("include_in_schema", True)]
    schemas = _Schemas()
    for route in shown:
        schemas.collect(route)
    schemas.compile()
    paths = Paths()
    security: dict[str, Any] = {}
    ids: set[str] = set()
    for route in sorted(shown, key=lambda one: one.template.tail is not None):
        described = _Operation(route, schemas, security)
        for method in [one for one in route.methods if one != WEBSOCKET]:
            operation = {"operationId": _operation_id(route, method, ids), **described.as_json()}
            paths.put(path_of(str(route.template)), method.lower(), operation)
    info = {"title": title, "version": version} | ({"description": description} if description else {})
    found: dict[str, Any] = {"openapi": "3.1.0", "info": info, "paths": paths.items, "components": {}}
    found["components"]["schemas"] = _referenced(found, schemas.definitions)
    if security:
        found["components"]["securitySchemes"] = security
    return found


def path_of(template: str) -> str:
    """Return a path template as OpenAPI writes it: `/orders/{id}`."""
    return re.sub(r"<(?:path:)?([^>]+)>", r"{\1}", template)


def _operation_id(route: Described, method: str, taken: set[str]) -> str:
    """Return the route's own id, or its name, made unique by method and path."""
    wanted = route.options.get("operation_id") or route.name
    slug = re.sub(r"\W+", "_", str(route.template)).strip("_")
    for candidate in (wanted, f"{wanted}_{method.lower()}", f"{wanted}_{method.lower()}_{slug}"):
        if candidate not in taken:
            taken.add(candidate)
            return candidate
    return _numbered(wanted, taken)


def _numbered(wanted: str, taken: set[str]) -> str:
    number = 2
    while f"{wanted}_{number}" in taken:
        number += 1
    taken.add(f"{wanted}_{number}")
    return f"{wanted}_{number}"


def _inputs(route: Described) -> list[Parameter]:
    """Return the inputs of a handler and all its dependencies, each place and name once."""
    assert route.recipe is not None
    plans = [route.recipe.plan, *[step.plan for step in route.recipe.steps]]
    found = {(one.source, one.key): one for plan in reversed(plans) for one in plan.parameters}
    return [one for one in reversed(found.values()) if one.marker.include_in_schema]


def _answers(route: Described) -> Iterator[_Answer]:
    """Yield the successful answers that the return annotation tells of."""
    assert route.recipe is not None
    returns = route.recipe.plan.returns
    status = route.options.get("status")
    if route.feed is not None:
        for media in route.feed.media_types:
            yield _Answer(status or 200, media.partition(";")[0], route.feed.data)
        if not route.feed.has_rest:
            return
        returns = route.feed.rest
    for part in union_parts(returns):
        kind = get_origin(part) or part
        body = body_of(part)
        if isinstance(kind, type) and issubclass(kind, FileResponse):
            yield from [_Answer(200, _ANYTHING, None), _Answer(206, _ANYTHING, None)]
        elif isinstance(kind, type) and issubclass(kind, Response):
            yield _Answer(status or _SUCCESS, None if status in (204, 205, 304) else _ANYTHING, None)
        else:
            own = 201 if isinstance(kind, type) and issubclass(kind, Created) else status
            is_reply = isinstance(kind, type) and issubclass(kind, Reply)
            for inner in union_parts(body) if is_reply else (body,):
                yield _answer(inner, own)
                if inner is Any:  # None, text and bytes are answered as they are
                    yield from [_Answer(own or 200, _ANYTHING, None), _Answer(own or 204, None, None)]


def _answer(body: Any, status: int | None) -> _Answer:
    bare = strip(body)
    if body in (None, NoneType):
        return _Answer(status or 204, None, None)
    media = {str: "text/plain", bytes: "application/octet-stream"}.get(bare, "application/json")
    return _Answer(status or 200, media, body)


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────


class _Generator(GenerateJsonSchema):
    """pydantic's own, where what JSON schema cannot tell of is no failure: it may be anything then."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        """Return the schema of a type that has none."""
        return {}

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of something with a default, which is left out if JSON has no such number."""
        found = super().default_schema(schema)
        if isinstance(default := schema.get("default"), float) and not math.isfinite(default):
            found.pop("default", None)
        return found


class _Schemas:
    """The JSON schemas of all types in a document; models stand in `definitions` and are referred to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self._types: dict[tuple[int, JsonSchemaMode], TypeAdapter[Any]] = {}
        self._keys: dict[tuple[Any, JsonSchemaMode], int] = {}
        self._found: dict[tuple[int, JsonSchemaMode], Any] = {}
        self._add(Problem, "serialization")

    def collect(self, route: Described) -> None:
        """Take note of the types of a route."""
        for one in _inputs(route):
            self._add(one.annotation, "validation")
        for answer in _answers(route):
            if answer.media_type in _WITH_SCHEMA:
                self._add(answer.annotation, "serialization")

    def _add(self, annotation: Any, mode: JsonSchemaMode) -> None:
        number = self._keys.setdefault((_hashable(annotation), mode), len(self._keys))
        self._types[number, mode] = TypeAdapter(annotation)

    def compile(self) -> None:
        """Let pydantic write all schemas at once, so that equal names of different models are told apart."""
        inputs: list[tuple[int, JsonSchemaMode, TypeAdapter[Any]]] = [
            (number, mode, adapter) for (number, mode), adapter in self._types.items()
        ]
        found, rest = TypeAdapter.json_schemas(inputs, ref_template=_REF, schema_generator=_Generator)
        self._found = dict(found)
        self.definitions = rest.get("$defs", {})

    def of(self, annotation: Any, mode: JsonSchemaMode = "validation") -> dict[str, Any]:
        """Return the schema of a type that was collected."""
        return dict(self._found[self._keys[_hashable(annotation), mode], mode])

    def model(self, annotation: Any) -> dict[str, Any]:
        """Return the schema of a model itself, not a reference to it."""
        schema = self.of(annotation)
        reference = schema.get("$ref", "")
        return dict(self.definitions[reference.rpartition("/")[2]]) if reference else schema

    @property
    def problem(self) -> dict[str, Any]:
        """The content of an answer that is an error."""
        return {_PROBLEM: {"schema": self.of(Problem, "serialization")}}


def _hashable(annotation: Any) -> Any:
    try:
        hash(annotation)
    except TypeError:
        return repr(annotation)
    return annotation


def _referenced(found: Any, definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definitions that are referred to, from anywhere in a document or from one another."""
    used: dict[str, Any] = {}
    waiting = [found]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            name = str(value.get("$ref", "")).rpartition("/")[2]
            if name in definitions and name not in used:
                used[name] = definitions[name]
                waiting.append(definitions[name])
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return dict(sorted(used.items()))


# ── one operation ────────────────────────────────────────────────────────────────────────────────


class _Operation:
    """The Operation Object of a route."""

    def __init__(self, route: Described, schemas: _Schemas, security: dict[str, Any]) -> None:
        self._route = route
        self._schemas = schemas
        self._security = security
        self._inputs = _inputs(route)

    def as_json(self) -> dict[str, Any]:
        """Return the object, without its id."""
        route = self._route
        found: dict[str, Any] = {}
        if route.tags:
            found["tags"] = route.tags
        if route.summary:
            found["summary"] = route.summary
        if route.description:
            found["description"] = route.description
        if route.options.get("deprecated"):
            found["deprecated"] = True
        if parameters := [*self._captures(), *self._parameters()]:
            found["parameters"] = parameters
        if body := self._body():
            found["requestBody"] = body
        requirement = self._requirement()
        found["responses"] = self._responses(bool(requirement))
        if requirement:
            found["security"] = requirement
        return found

    def _captures(self) -> Iterator[dict[str, Any]]:
        """Yield captures of prefixes that no parameter takes: a document has to name all."""
        taken = {one.key for one in self._inputs if one.source == "path"}
        for name in self._route.template.names:
            if name not in taken:
                yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for one in self._inputs:
            if one.source not in _PLACES:
                continue
            if is_object(one.annotation) and not is_list(one.annotation):
                yield from self._of_model(one)
                continue
            schema = self._schemas.of(one.annotation)
            if not one.required and one.default is not None and "default" not in schema:
                schema |= _default(one.default)
            found = {"name": one.key, "in": one.source, "required": one.source == "path" or one.required}
            marked = {"deprecated": True} if one.marker.deprecated else {}
            yield found | _words(schema) | marked | {"schema": schema} | _style(one)

    def _of_model(self, one: Parameter) -> Iterator[dict[str, Any]]:
        model = self._schemas.model(one.annotation)
        for name, schema in model.get("properties", {}).items():
            key = name.replace("_", "-").lower() if isinstance(one.marker, Header) else name
            required = name in model.get("required", ())
            yield {"name": key, "in": one.source, "required": required} | _words(schema) | {"schema": schema}

    def _body(self) -> dict[str, Any]:
        fields = [one for one in self._inputs if one.source in ("body", "form")]
        if not fields:
            return {"content": {"*/*": {"schema": {}}}} if self._route.takes_stream else {}
        [first, *others] = fields
        required = any(one.required for one in fields)
        if first.source == "form":
            files = any(is_upload(one.annotation) or isinstance(one.marker, File) or _has_files(one) for one in fields)
            media = "multipart/form-data" if files else "application/x-www-form-urlencoded"
            return {"required": required, "content": {media: {"schema": self._form(fields)}}}
        marker = first.marker
        assert isinstance(marker, Body)
        if others or marker.embed:
            return {"required": required, "content": {"application/json": {"schema": self._fields(fields)}}}
        binary = strip(first.annotation) is bytes
        media = marker.media_type or ("application/octet-stream" if binary else "application/json")
        schema = {} if binary else self._schemas.of(first.annotation)
        return {"required": required, "content": {media: {"schema": schema}}}

    def _form(self, fields: Sequence[Parameter]) -> dict[str, Any]:
        [first, *others] = fields
        if not others and is_object(first.annotation) and not is_list(first.annotation):
            return self._schemas.of(first.annotation)
        return self._fields(fields)

    def _fields(self, fields: Sequence[Parameter]) -> dict[str, Any]:
        """Return an object with one property for each parameter, and those of form models."""
        properties: dict[str, Any] = {}
        required: list[str] = []
        for one in fields:
            if one.source == "form" and is_object(one.annotation) and not is_list(one.annotation):
                model = self._schemas.model(one.annotation)
                properties |= model.get("properties", {})
                required += model.get("required", [])
                continue
            schema = self._schemas.of(one.annotation)
            if isinstance(one.marker, File) and strip(one.annotation) is bytes:
                schema = {"type": "string", "format": "binary"} | _words(schema)
            elif one.source == "form" and one.required and schema.get("type") == "string":
                schema = {"minLength": 1} | schema  # a field that was left empty is missing
            properties[one.key] = schema if one.required else schema | _default(one.default)
            required += [one.key] if one.required else []
        return {"type": "object", "properties": properties} | ({"required": required} if required else {})

    def _responses(self, secured: bool) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for answer in _answers(self._route):
            words = "Any success" if isinstance(answer.status, str) else phrase(answer.status)
            entry = found.setdefault(str(answer.status), {"description": words})
            if answer.media_type is None:
                continue
            schema: dict[str, Any] = {}
            if answer.media_type in _WITH_SCHEMA:
                schema = self._schemas.of(answer.annotation, "serialization")
            elif answer.media_type == "text/plain":
                schema = {"type": "string"}
            content = entry.setdefault("content", {})
            content[answer.media_type] = {"schema": _either(content.get(answer.media_type), schema)}
        if secured:
            for status in (401, 403):
                found[str(status)] = {"description": phrase(status), "content": self._schemas.problem}
        if self._inputs:
            found["422"] = {"description": phrase(422), "content": self._schemas.problem}
        for status, words in self._route.options.get("responses", {}).items():
            entry = found.setdefault(str(status), {})
            entry["description"] = words
            if status >= 400:
                entry["content"] = self._schemas.problem
        found["default"] = {"description": "Any other error", "content": self._schemas.problem}
        return found

    def _requirement(self) -> list[dict[str, list[str]]]:
        """Return the Security Requirement Objects, and note the schemes."""
        assert self._route.recipe is not None
        needed: dict[str, list[str]] = {}
        optional = True
        for step in self._route.recipe.steps:
            if isinstance(step.depends, Auth):
                needed[self._scheme(step.depends)] = list(step.depends.scopes)
                optional = optional and step.optional
        return [*([{}] if optional else []), needed] if needed else []

    def _scheme(self, auth: Auth) -> str:
        """Return the name of a scheme in this document; different schemes of one name get numbers."""
        name, number = auth.scheme.name, 1
        described = auth.scheme.document()
        while self._security.setdefault(name, described) != described:
            number += 1
            name = f"{auth.scheme.name}{number}"
        return name


def _words(schema: dict[str, Any]) -> dict[str, Any]:
    """Return what a parameter says beside its schema, taken out of it."""
    return {name: schema.pop(name) for name in ("description", "deprecated") if name in schema}


def _default(value: Any) -> dict[str, Any]:
    try:
        found = TypeAdapter(Any).dump_python(value, mode="json")
    except ValueError:
        return {}
    return {"default": found} if value is None or (found is not None and math.isfinite(_number(found))) else {}


def _number(value: Any) -> float:
    return value if isinstance(value, float) else 0.0


def _style(one: Parameter) -> dict[str, Any]:
    """Return how a list is written in a query: `?id=1&id=2`, or `?id=1,2` where both are taken."""
    csv = getattr(one.marker, "csv", False)
    return {"style": "form", "explode": False} if csv else {}


def _has_files(one: Parameter) -> bool:
    model = strip(one.annotation)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return False
    return any(is_upload(info.annotation) for info in model.model_fields.values())


def _either(before: Mapping[str, Any] | None, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that takes what was there before as well."""
    if before is None or before["schema"] == schema:
        return schema
    others = before["schema"].get("anyOf", [before["schema"]])
    return {"anyOf": [*others, schema]}
