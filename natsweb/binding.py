"""From a function's signature to a plan, and from a request to the function's arguments.

The plan is compiled once, at declaration: which parameter comes from the path, the query, headers, cookies, the
body or a form, each with its pydantic validator; which ones are dependencies, or things that the service gives.
Binding then only looks things up and validates; all refused fields of a request are reported together.
No I/O, no `async`: `scopes` reads forms and calls dependencies.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, TypeAdapter, ValidationError, create_model
from typing_extensions import is_typeddict

from natsweb.annotations import (
    Place,
    Validate,
    adapter_of,
    choices_of,
    is_list,
    is_object,
    is_upload,
    marker_of,
    strip,
    text_validator,
    texts_validator,
)
from natsweb.errors import DeclarationError, FieldError, InvalidInput, UnsupportedMedia
from natsweb.messages import Call, Request, Response
from natsweb.params import Body, Cookie, Depends, File, Form, Header, Marker, Path, Query, UploadFile
from natsweb.paths import Template

__all__ = ["FormItems", "Need", "Parameter", "Plan", "check_names", "compile_plan"]

_MISSING: Any = inspect.Parameter.empty
_KIND = {"path": Path, "query": Query, "header": Header, "cookie": Cookie, "body": Body, "form": Form}

#: The fields of a form in their order: text, or a file.
FormItems = Sequence[tuple[str, str | UploadFile]]


class Parameter(NamedTuple):
    """One parameter as documents show it: its source, its name there, its type with constraints, its default."""

    name: str
    source: str
    key: str
    annotation: Any
    default: Any
    marker: Marker

    @property
    def required(self) -> bool:
        """Whether a request has to have it."""
        return self.default is _MISSING


class Need(NamedTuple):
    """A parameter that is a dependency."""

    name: str
    depends: Depends
    annotation: Any


class _Text(NamedTuple):
    """A parameter out of named texts: query, headers, cookies, a form."""

    name: str
    key: str
    validate: Validate
    many: bool
    required: bool


class _Model(NamedTuple):
    """A parameter out of many named texts: a model of query, header, cookie or form fields.

    `fields` are (key, takes several, text -> value of enums); `rest` also takes what no field names.
    """

    name: str
    fields: tuple[tuple[str, bool, Mapping[str, Any]], ...]
    validate: Validate
    rest: bool


class _Body(NamedTuple):
    """What comes out of the body: one parameter, or by `keys` (parameter -> key) several of a JSON object."""

    name: str
    read: Callable[[bytes], Any]
    media_type: str
    required: bool
    keys: Mapping[str, str] | None
    media: bytes = b"application/json"


@dataclass(frozen=True, slots=True)
class Plan:
    """How one function's arguments come out of a request.

    `given` are (parameter, type) of what the service itself hands over, `needs` its dependencies, `returns` is the
    return annotation, `parameters` describes the inputs for documents.
    """

    path: tuple[tuple[str, Validate], ...] = ()
    query: tuple[_Text, ...] = ()
    texts: tuple[tuple[str, tuple[_Text, ...], tuple[_Model, ...]], ...] = ()
    body: _Body | None = None
    form: tuple[tuple[_Text, ...], tuple[_Model, ...]] | None = None
    given: tuple[tuple[str, Any], ...] = ()
    needs: tuple[Need, ...] = ()
    returns: Any = Any
    parameters: tuple[Parameter, ...] = field(default=(), repr=False)

    @property
    def is_plain(self) -> bool:
        """Whether `bind` gives all arguments: no dependency, no form, nothing of the service's."""
        return not self.needs and self.form is None and all(kind is Request for _, kind in self.given)

    def bind(self, call: Call | Request, params: Mapping[str, str]) -> dict[str, Any]:
        """Return the keyword arguments of a plain plan.

        Raises `InvalidInput` that lists every refused field, `UnsupportedMedia` for a body of another type.
        """
        errors: list[FieldError] = []
        values = self.collect(call, params, (), errors)
        if errors:
            raise InvalidInput("the request does not fit what this route takes", errors=errors)
        for name, _ in self.given:
            values[name] = call.request()
        return values

    def collect(
        self, call: Call | Request, params: Mapping[str, str], form: FormItems, errors: list[FieldError]
    ) -> dict[str, Any]:
        """Return the arguments that come out of the request itself; refused fields go to `errors`.

        Raises `UnsupportedMedia` for a body of another type.
        """
        values: dict[str, Any] = {}
        for name, validate in self.path:
            try:
                values[name] = validate(params[name])
            except ValidationError as error:
                errors += _field_errors(["path", name], error)
        if self.query:
            given: dict[str, list[str]] = {}
            if call.query:
                for name, text in parse_qsl(call.query, keep_blank_values=True):
                    if name in given:
                        given[name].append(text)
                    else:
                        given[name] = [text]
            _bind_texts("query", self.query, given, values, errors)
        for source, texts, models in self.texts:
            found = _SOURCES[source](call)
            _bind_texts(source, texts, found, values, errors)
            _bind_models(source, models, found, texts, values, errors)
        if self.form is not None:
            fields = _grouped(form)
            _bind_texts("body", self.form[0], fields, values, errors)
            _bind_models("body", self.form[1], fields, self.form[0], values, errors)
        if self.body is not None:
            _bind_body(self.body, call, values, errors)
        return values


# ── binding ──────────────────────────────────────────────────────────────────────────────────────


def _bind_texts(
    source: str,
    slots: tuple[_Text, ...],
    given: Mapping[str, list[Any]],
    values: dict[str, Any],
    errors: list[FieldError],
) -> None:
    for name, key, validate, many, required in slots:
        texts = given.get(key)
        if texts is None:
            if required:
                errors.append(_missing(source, key))
            continue
        try:
            values[name] = validate(texts if many else texts[-1])
        except ValidationError as error:
            errors += _field_errors([source, key], error)


def _bind_models(
    source: str,
    slots: tuple[_Model, ...],
    given: Mapping[str, list[Any]],
    texts: tuple[_Text, ...],
    values: dict[str, Any],
    errors: list[FieldError],
) -> None:
    for slot in slots:
        data: dict[str, Any] = {}
        for key, many, choices in slot.fields:
            if found := given.get(key):
                data[key] = [choices.get(text, text) if isinstance(text, str) else text for text in found]
                data[key] = data[key] if many else data[key][-1]
        if slot.rest:
            taken = {text.key for text in texts} | {key for key, _, _ in slot.fields}
            data |= {key: found[-1] for key, found in given.items() if key not in taken}
        try:
            values[slot.name] = slot.validate(data)
        except ValidationError as error:
            errors += _field_errors([source], error)


def _bind_body(slot: _Body, call: Call | Request, values: dict[str, Any], errors: list[FieldError]) -> None:
    if not call.body and slot.media_type:
        if slot.required:
            errors.append(_missing("body"))
        return
    media = call.headers.get_bytes(b"content-type")
    if media is not None and media != slot.media and slot.media_type and not _fits(media, slot.media_type):
        raise UnsupportedMedia(
            f"this route takes {slot.media_type}: send it with that Content-Type", headers={"accept": slot.media_type}
        )
    try:
        value = slot.read(call.body)
    except ValidationError as error:
        errors += _field_errors(["body"], error)
    except UnicodeDecodeError:
        errors.append({"loc": ["body"], "msg": "the text is not UTF-8", "type": "string_unicode"})
    else:
        if slot.keys is None:
            values[slot.name] = value
        else:
            values |= {name: value[key] for name, key in slot.keys.items() if key in value}


def _fits(media: bytes, wanted: str) -> bool:
    kind = media.partition(b";")[0].strip().lower().decode("latin-1")
    return kind == wanted or (wanted == "application/json" and kind.endswith("+json"))


def _query_of(call: Call | Request) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in parse_qsl(call.query, keep_blank_values=True):
        given.setdefault(name, []).append(value)
    return given


def _headers_of(call: Call | Request) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in call.headers:
        given.setdefault(name, []).append(value)
    return given


def _cookies_of(call: Call | Request) -> dict[str, list[str]]:
    return {name: [value] for name, value in call.cookies.items()}


_SOURCES: dict[str, Callable[[Call | Request], dict[str, list[str]]]] = {
    "query": _query_of,
    "header": _headers_of,
    "cookie": _cookies_of,
}


def _grouped(form: FormItems) -> dict[str, list[str | UploadFile]]:
    """Return form fields by name; a field that was left empty is not there, as with FastAPI."""
    given: dict[str, list[str | UploadFile]] = {}
    for name, value in form:
        if value if isinstance(value, str) else value.filename or value.size:
            given.setdefault(name, []).append(value)
    return given


def _missing(*loc: str) -> FieldError:
    return {"loc": list(loc), "msg": "Field required", "type": "missing"}


def _field_errors(loc: list[str | int], error: ValidationError) -> list[FieldError]:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"loc": [*loc, *one["loc"]], "msg": one["msg"], "type": one["type"]} for one in details]


# ── compiling ────────────────────────────────────────────────────────────────────────────────────


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
        compiler.take(name, hints.get(name, _MISSING), parameter.default)
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
        if annotation is _MISSING and not captured:
            raise self._mistake(
                f"parameter {name!r} has no type",
                f"annotate it, for example {name}: int for ?{name}=7, or add <{name}> to the path",
            )
        annotation, marker = marker_of(str if annotation is _MISSING else annotation, self._place)
        bare = strip(annotation)
        kind = getattr(bare, "__origin__", bare)
        if isinstance(marker, Depends):
            self._needs.append(Need(name, marker, annotation))
        elif marker is None and (kind is Request or kind in self._services) and not captured:
            self._given.append((name, kind))
        elif kind is Response:
            raise self._mistake(
                f"parameter {name!r} is a Response, which is what a handler returns",
                "return Response(status=..., headers={...}, body=...) instead of taking one",
            )
        else:
            self._found.append(self._parameter(name, annotation, default, marker))

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

    def _texts(self, parameters: list[Parameter]) -> tuple[tuple[_Text, ...], tuple[_Model, ...]]:
        texts, models = [], []
        for one in parameters:
            if is_object(one.annotation) and not is_list(one.annotation):
                models.append(self._model(one))
            else:
                texts.append(self._text(one))
        return tuple(texts), tuple(models)

    def _text(self, one: Parameter) -> _Text:
        if is_object(one.annotation):
            raise self._mistake(
                f"parameter {one.name!r} is a list of objects, which no {one.source} can carry", "take it from the body"
            )
        if is_upload(one.annotation) or isinstance(one.marker, File):
            return self._file(one)
        many = is_list(one.annotation)
        validate = (texts_validator if many else text_validator)(one.annotation, one.name, self._place)
        if isinstance(one.marker, Query) and one.marker.csv:
            if not many:
                raise self._mistake(f"Query(csv=True) of {one.name!r} wants a list", f"write {one.name}: list[int]")
            return _Text(one.name, one.key, _split_first(validate), True, one.required)
        return _Text(one.name, one.key, validate, many, one.required)

    def _file(self, one: Parameter) -> _Text:
        """Return the slot of an uploaded file: an `UploadFile`, or its bytes."""
        many = is_list(one.annotation)
        validate = adapter_of(one.annotation, one.name, self._place).validator.validate_python
        if is_upload(one.annotation):
            return _Text(one.name, one.key, validate, many, one.required)
        item = strip(next(iter(get_args(strip(one.annotation))), None) if many else one.annotation)
        if item is not bytes:
            raise self._mistake(
                f"parameter {one.name!r} is a file, which is an UploadFile or bytes",
                f"write {one.name}: UploadFile, or {one.name}: Annotated[bytes, File()]",
            )
        return _Text(one.name, one.key, _bytes_first(validate, many), many, one.required)

    def _model(self, one: Parameter) -> _Model:
        model = strip(one.annotation)
        if not isinstance(model, type) or not issubclass(model, BaseModel):
            word = "TypedDict" if is_typeddict(model) else str(getattr(model, "__name__", model))
            raise self._mistake(
                f"parameter {one.name!r} takes {one.source} fields into {word}, which is no pydantic model",
                "make it a BaseModel with one field for each",
            )
        if one.default is not _MISSING:
            raise self._mistake(
                f"parameter {one.name!r} is a model of {one.source} fields and has a default of its own",
                "give its fields their defaults",
            )
        fields = []
        for name, info in model.model_fields.items():
            key = info.validation_alias if isinstance(info.validation_alias, str) else info.alias or name
            fields.append((key, is_list(info.annotation), _all_choices(info.annotation)))
        validate = adapter_of(one.annotation, one.name, self._place).validator.validate_python
        if one.source == "header":
            dashed = tuple((key.replace("_", "-").lower(), many, choices) for key, many, choices in fields)
            back = {dashed[0]: field[0] for dashed, field in zip(dashed, fields, strict=True)}
            return _Model(one.name, dashed, lambda data: validate({back[key]: data[key] for key in data}), False)
        rest = model.model_config.get("extra") in ("allow", "forbid")
        return _Model(one.name, tuple(fields), validate, rest)

    def _body(self, parameters: list[Parameter]) -> _Body:
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
            return _Body(
                one.name, adapter.validator.validate_python, media_type, one.required, None, media_type.encode()
            )
        if marker.media_type and marker.media_type.startswith("text/"):
            media = marker.media_type.encode()
            return _Body(one.name, _text_first(adapter), marker.media_type, one.required, None, media)
        media_type = marker.media_type or "application/json"
        return _Body(one.name, adapter.validator.validate_json, media_type, one.required, None, media_type.encode())

    def _embedded(self, parameters: list[Parameter]) -> _Body:
        """Return the slot of several parameters that are keys of one JSON object."""
        for one in parameters:
            if not isinstance(one.marker, Body) or not one.marker.embed:
                raise self._mistake(
                    f"parameter {one.name!r} wants the whole body, and another one a key of it",
                    f"mark {one.name} with Body(embed=True) as well",
                )
            adapter_of(one.annotation, one.name, self._place)
        fields: dict[str, Any] = {}
        for one in parameters:
            fields[one.key] = (one.annotation, ... if one.required else one.default)
        model = create_model("Body", **fields)
        validate = model.__pydantic_validator__.validate_json

        def read(body: bytes) -> dict[str, Any]:
            found: Any = validate(body)
            return {key: getattr(found, key) for key in found.model_fields_set}

        required = any(one.required for one in parameters)
        return _Body("body", read, "application/json", required, {one.name: one.key for one in parameters})

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
    if isinstance(parameter.default, Marker | Depends):
        marker = parameter.default
        raise DeclarationError(
            f"parameter {name!r} has {marker!r} as its default",
            where=str(place),
            fix=f"markers stand in the annotation: {name}: Annotated[..., {type(marker).__name__}(...)]",
        )


def check_names(template: Template, names: Sequence[str], candidates: Sequence[str], place: Place) -> None:
    """Raise `DeclarationError` unless every capture in `names` is among the parameters that take it.

    `candidates` are the parameters of the handler and its dependencies.
    """
    for name in names:
        if name not in candidates:
            free = [other for other in candidates if other not in template.names]
            close = difflib.get_close_matches(name, free, n=1, cutoff=0.3) or free[:1]
            hint = f"rename one of them; did you mean <{close[0]}>?" if close else f"add a parameter {name}: str"
            raise DeclarationError(f"route <{name}> has no parameter in the handler", where=str(place), fix=hint)
