"""From a function's signature to the plan by which its arguments are bound.

Sorts parameters by where they come from, finds their validators, and refuses what could never be bound, with
the place and the remedy. Runs at declaration only. Knows signatures; it sees no requests.
"""

import difflib
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from typing import Annotated, Any, get_args

from pydantic import AliasChoices, BaseModel, Field, RootModel, TypeAdapter, create_model
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from natsweb.annotations import (
    Place,
    Validate,
    adapter_of,
    allows_none,
    choices_of,
    is_foreign,
    is_list,
    is_object,
    is_upload,
    own_name,
    strip,
    text_validator,
    texts_validator,
)
from natsweb.binding import MISSING, BodySlot, ModelSlot, Need, Parameter, Plan, TextSlot
from natsweb.errors import DeclarationError
from natsweb.given import is_given
from natsweb.markers import marker_of
from natsweb.messages import Request, Response
from natsweb.params import Body, Cookie, Depends, File, Form, Header, Marker, Path, Query, UploadFile
from natsweb.paths import Template
from natsweb.sockets import socket_type

__all__ = ["check_names", "compile_plan"]

_KIND = {"path": Path, "query": Query, "header": Header, "cookie": Cookie, "body": Body, "form": Form}


def compile_plan(
    function: Callable[..., Any],
    hints: Mapping[str, Any],
    template: Template,
    place: Place,
    *,
    services: Sequence[type] = (),
) -> Plan:
    """Return the plan of a handler or dependency.

    `services` are the types that the service hands over, besides `Request`. Raises `DeclarationError` for anything
    that could never be bound, `NameError` for a type with a part that is not defined yet.
    """
    signature = inspect.signature(function)
    compiler = _Compiler(template, place, tuple(services))
    for name, parameter in signature.parameters.items():
        _check_parameter(name, parameter, place)
        compiler.take(name, hints.get(name, MISSING), parameter.default)
    return compiler.plan(hints.get("return", Any))


class _Compiler:
    """Sorts the parameters of one function by where they come from."""

    def __init__(self, template: Template, place: Place, services: tuple[type, ...]) -> None:
        self._template = template
        self._place = place
        self._services = services
        self._found: list[Parameter] = []
        self._given: list[tuple[str, Any]] = []
        self._needs: list[Need] = []

    def take(self, name: str, annotation: Any, default: Any) -> None:
        """Sort one parameter; raises `DeclarationError` for one that nothing can fill."""
        captured = name in self._template.names
        if annotation is MISSING and not captured:
            raise self._mistake(
                f"parameter {name!r} has no type",
                f"annotate it, for example {name}: int for ?{name}=7, or add <{name}> to the path"
                if name != "request"
                else "write request: Request",
            )
        annotation, marker = marker_of(str if annotation is MISSING else annotation, self._place)
        bare = strip(annotation)
        kind = getattr(bare, "__origin__", bare)
        if isinstance(marker, Depends):
            if default is not MISSING and not (default is None and allows_none(annotation)):
                raise self._mistake(
                    f"parameter {name!r} depends on something, and has a default besides",
                    "take the default away: a dependency always gives a value",
                )
            self._needs.append(Need(name, marker, annotation))
        elif marker is None and not captured and (socket := socket_type(annotation, name, self._place)) is not None:
            self._given.append((name, socket))
        elif marker is None and (kind is Request or kind in self._services or is_given(kind)) and not captured:
            self._given.append((name, kind))
        elif marker is None and kind in (AsyncIterator, AsyncIterable) and not captured:
            self._stream(name, annotation, default)
        elif kind is Response:
            raise self._mistake(
                f"parameter {name!r} is a Response, which is what a handler returns",
                "return Response(status=..., headers={...}, body=...) instead of taking one",
            )
        elif isinstance(kind, type) and is_foreign(kind):
            raise self._mistake(
                f"parameter {name!r} is {kind.__module__.partition('.')[0]}'s {kind.__name__}, not natsweb's",
                own_name(kind) or "use natsweb's own",
            )
        else:
            self._found.append(self._parameter(name, annotation, default, marker))

    def _stream(self, name: str, annotation: Any, default: Any) -> None:
        """Take a parameter that is the body as it comes."""
        if default is not MISSING:
            raise self._mistake(
                f"parameter {name!r} is the body as it comes, and has a default besides",
                "take the default away: without a body there is nothing to iterate over",
            )
        if get_args(strip(annotation)) != (bytes,):
            raise self._mistake(
                f"parameter {name!r} is the body as it comes, which is bytes", f"write {name}: AsyncIterator[bytes]"
            )
        self._given.append((name, AsyncIterator))

    def _parameter(self, name: str, annotation: Any, default: Any, marker: Marker | None) -> Parameter:
        captured = name in self._template.names
        if marker is None:
            marker = (
                Path()
                if captured
                else File()
                if is_upload(annotation)
                else Body()
                if is_object(annotation)
                else Query()
            )
        if is_upload(annotation) and not isinstance(marker, Form):
            raise self._mistake(
                f"parameter {name!r} is a file, which only a form can carry", f"write {name}: UploadFile without marker"
            )
        key = marker.alias or name
        if isinstance(marker, Header) and marker.alias is None:
            key = name.replace("_", "-")
        if isinstance(marker, Path) != captured:
            spelled = "takes it from the path" if isinstance(marker, Path) else f"says {type(marker).__name__}()"
            raise self._mistake(
                f"parameter {name!r} {spelled}, and the path has {'a' if captured else 'no'} <{name}>",
                "give parameter and capture the same name, or the parameter another one",
            )
        return Parameter(
            name, marker.source, key.lower() if marker.source == "header" else key, annotation, default, marker
        )

    def plan(self, returns: Any) -> Plan:
        """Return the finished plan."""
        by_source: dict[str, list[Parameter]] = {source: [] for source in _KIND}
        for parameter in self._found:
            by_source[parameter.source].append(parameter)
        if by_source["body"] and by_source["form"]:
            raise self._mistake(
                f"{by_source['body'][0].name!r} wants a JSON body and {by_source['form'][0].name!r} a form",
                "a request has one body: take all of it from the form, or from JSON",
            )
        query, query_models = self._texts(by_source["query"])
        texts = []
        if query_models:
            texts.append(("query", query, query_models))
            query = ()
        for source in ("header", "cookie"):
            if by_source[source]:
                texts.append((source, *self._texts(by_source[source])))
        return Plan(
            path=tuple([(one.name, self._path_validator(one)) for one in by_source["path"]]),
            query=query,
            texts=tuple(texts),
            body=self._body(by_source["body"]) if by_source["body"] else None,
            form=self._texts(by_source["form"]) if by_source["form"] else None,
            given=tuple(self._given),
            needs=tuple(self._needs),
            returns=returns,
            parameters=tuple(self._found),
        )

    def _path_validator(self, one: Parameter) -> Validate:
        if is_object(one.annotation) or is_list(one.annotation) or strip(one.annotation) is Request:
            kind = getattr(one.annotation, "__name__", one.annotation)
            raise self._mistake(
                f"<{one.name}> is one piece of text, which never makes a {kind}",
                f"annotate {one.name} with int, str, UUID, an Enum or the like; "
                "rename the parameter that takes the body",
            )
        return text_validator(one.annotation, one.name, self._place)

    def _texts(self, parameters: list[Parameter]) -> tuple[tuple[TextSlot, ...], tuple[ModelSlot, ...]]:
        texts, models = [], []
        for one in parameters:
            if is_object(one.annotation) and not is_list(one.annotation):
                models.append(self._model(one))
            else:
                texts.append(self._text(one))
        return tuple(texts), tuple(models)

    def _text(self, one: Parameter) -> TextSlot:
        if is_object(one.annotation):
            raise self._mistake(
                f"parameter {one.name!r} is a list of objects, which no {one.source} can carry", "take it from the body"
            )
        if is_upload(one.annotation) or isinstance(one.marker, File):
            return self._file(one)
        many = is_list(one.annotation)
        if many and any(is_list(part) for part in get_args(strip(one.annotation))):
            raise self._mistake(
                f"parameter {one.name!r} is a list of lists, which no {one.source} can carry", "flatten it"
            )
        validate = (texts_validator if many else text_validator)(one.annotation, one.name, self._place)
        if isinstance(one.marker, Query) and one.marker.csv:
            if not many:
                raise self._mistake(f"Query(csv=True) of {one.name!r} wants a list", f"write {one.name}: list[int]")
            return TextSlot(one.name, one.key, _split_first(validate), True, one.required)
        return TextSlot(one.name, one.key, validate, many, one.required)

    def _file(self, one: Parameter) -> TextSlot:
        """Return the slot of an uploaded file: an `UploadFile`, or its bytes."""
        many = is_list(one.annotation)
        validate = adapter_of(one.annotation, one.name, self._place).validator.validate_python
        if is_upload(one.annotation):
            files = get_args(strip(one.annotation)) if many else (strip(one.annotation),)
            if not all(isinstance(kind, type) and issubclass(kind, UploadFile) for kind in files if kind is not ...):
                raise self._mistake(
                    f"parameter {one.name!r} is a file or something else", f"write {one.name}: UploadFile"
                )
            return TextSlot(one.name, one.key, validate, many, one.required)
        item = strip(next(iter(get_args(strip(one.annotation))), None) if many else one.annotation)
        if item is not bytes:
            raise self._mistake(
                f"parameter {one.name!r} is a file, which is an UploadFile or bytes",
                f"write {one.name}: UploadFile, or {one.name}: Annotated[bytes, File()]",
            )
        return TextSlot(one.name, one.key, _bytes_first(validate, many), many, one.required)

    def _model(self, one: Parameter) -> ModelSlot:
        model = strip(one.annotation)
        if not isinstance(model, type) or not issubclass(model, BaseModel) or issubclass(model, RootModel):
            word = "TypedDict" if is_typeddict(model) else str(getattr(model, "__name__", model))
            raise self._mistake(
                f"parameter {one.name!r} takes {one.source} fields into {word}, which is no pydantic model",
                "make it a BaseModel with one field for each",
            )
        if one.default is not MISSING:
            raise self._mistake(
                f"parameter {one.name!r} is a model of {one.source} fields and has a default of its own",
                "take it away, and give its fields their defaults",
            )
        fields = []
        for name, info in model.model_fields.items():
            hinted = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
            if is_object(hinted):
                raise self._mistake(
                    f"field {name!r} of {model.__name__} is an object, which no {one.source} field can carry",
                    "make its fields those of the model itself, or take the model from the body",
                )
            many, choices = is_list(info.annotation), _all_choices(info.annotation)
            for spelled in self._spellings(model, name, info, one):
                key = spelled.replace("_", "-").lower() if one.source == "header" else spelled
                fields.append((key, spelled, many, choices))
        validate = adapter_of(one.annotation, one.name, self._place).validator.validate_python
        rest = one.source != "header" and model.model_config.get("extra") in ("allow", "forbid")
        return ModelSlot(one.name, tuple(fields), validate, rest)

    def _spellings(self, model: type[BaseModel], name: str, info: FieldInfo, one: Parameter) -> list[str]:
        """Return all names by which a model takes a field."""
        alias = info.validation_alias if info.validation_alias is not None else info.alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [] if alias is None else [alias]
        if wrong := [choice for choice in choices if not isinstance(choice, str)]:
            raise self._mistake(
                f"field {name!r} of {model.__name__} is found by {wrong[0]!r}, which no {one.source} has",
                "give it an alias that is text",
            )
        config = model.model_config
        by_name = config.get("populate_by_name") or config.get("validate_by_name") or not choices
        return [str(choice) for choice in choices] + ([name] if by_name else [])

    def _body(self, parameters: list[Parameter]) -> BodySlot:
        markers = [one.marker for one in parameters if isinstance(one.marker, Body)]
        if any(marker.embed for marker in markers):
            return self._embedded(parameters)
        if len(parameters) > 1:
            raise self._mistake(
                f"parameters {parameters[0].name!r} and {parameters[1].name!r} both want the request body",
                "put both into one model, or mark both with Body(embed=True) to take them from its keys",
            )
        [one], [marker] = parameters, markers
        kind = strip(one.annotation)
        adapter = adapter_of(one.annotation, one.name, self._place)
        if kind is bytes:
            media_type = marker.media_type or ""
            return BodySlot(
                one.name, adapter.validator.validate_python, media_type, one.required, None, media_type.encode()
            )
        if marker.media_type and marker.media_type.startswith("text/"):
            media = marker.media_type.encode()
            return BodySlot(one.name, _text_first(adapter), marker.media_type, one.required, None, media)
        media_type = marker.media_type or "application/json"
        return BodySlot(one.name, adapter.validator.validate_json, media_type, one.required, None, media_type.encode())

    def _embedded(self, parameters: list[Parameter]) -> BodySlot:
        """Return the slot of several parameters that are keys of one JSON object."""
        for one in parameters:
            if not isinstance(one.marker, Body) or not one.marker.embed:
                raise self._mistake(
                    f"parameter {one.name!r} wants the whole body, and another one a key of it",
                    f"mark {one.name} with Body(embed=True) as well",
                )
            adapter_of(one.annotation, one.name, self._place)
        keys = [one.key for one in parameters]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise self._mistake(
                f"two parameters take the key {twice[0]!r} of the body", "give one of them another alias"
            )
        # Names of its own, so that a key may be called as anything that a model has.
        fields: dict[str, Any] = {
            f"key{number}": (one.annotation, Field(... if one.required else one.default, alias=one.key))
            for number, one in enumerate(parameters)
        }
        validate = create_model("Body", **fields).__pydantic_validator__.validate_json
        names = {f"key{number}": one.key for number, one in enumerate(parameters)}

        def read(body: bytes) -> dict[str, Any]:
            found: Any = validate(body)
            return {names[name]: getattr(found, name) for name in found.model_fields_set}

        required = any(one.required for one in parameters)
        said = [one.marker.media_type for one in parameters if isinstance(one.marker, Body) and one.marker.media_type]
        media_type = said[0] if said else "application/json"
        taken = {one.name: one.key for one in parameters}
        return BodySlot("body", read, media_type, required, taken, media_type.encode())

    def _mistake(self, what: str, fix: str) -> DeclarationError:
        return DeclarationError(what, where=str(self._place), fix=fix)


def _all_choices(annotation: Any) -> dict[str, Any]:
    parts = get_args(strip(annotation)) if is_list(annotation) else (annotation,)
    return {text: value for part in parts for text, value in choices_of(part).items()}


def _split_first(validate: Validate) -> Validate:
    return lambda texts: validate([piece for text in texts for piece in text.split(",")])


def _text_first(adapter: TypeAdapter[Any]) -> Callable[[bytes], Any]:
    return lambda body: adapter.validator.validate_python(body.decode())


def _bytes_first(validate: Validate, many: bool) -> Validate:
    def read(value: Any) -> bytes:
        return value.file.read() if isinstance(value, UploadFile) else str(value).encode()

    return (lambda values: validate([read(one) for one in values])) if many else (lambda value: validate(read(value)))


def _check_parameter(name: str, parameter: inspect.Parameter, place: Place) -> None:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise DeclarationError(
            f"parameter {parameter} cannot be filled from a request",
            where=str(place),
            fix=f"write it as an ordinary parameter, such as {name}: str",
        )
    default = parameter.default
    kind = default if isinstance(default, type) else type(default)
    if issubclass(kind, Marker | Depends | FieldInfo) or (is_foreign(default) and not isinstance(default, type)):
        marker = "Query" if kind is FieldInfo else kind.__name__
        raise DeclarationError(
            f"parameter {name!r} has {default!r} as its default",
            where=str(place),
            fix=f"markers stand in the annotation: {name}: Annotated[..., {marker}(...)]"
            + ("" if issubclass(kind, Depends) else " = 7"),
        )


def check_names(
    template: Template, names: Sequence[str], takers: Sequence[str], candidates: Sequence[str], place: Place
) -> None:
    """Raise `DeclarationError` unless every capture in `names` is among `takers`, the parameters that take one.

    `candidates` are those of the handler, one of which may have been meant.
    """
    for name in names:
        if name not in takers:
            free = [other for other in candidates if other not in template.names]
            close = difflib.get_close_matches(name, free, n=1, cutoff=0.3) or free[:1]
            hint = f"rename one of them; did you mean <{close[0]}>?" if close else f"add a parameter {name}: str"
            raise DeclarationError(f"route <{name}> has no parameter in the handler", where=str(place), fix=hint)
