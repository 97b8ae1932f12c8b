"""From a handler's signature to a plan, and from a request to the handler's arguments.

The plan is compiled once, at declaration: which parameter comes from the path, the query, the JSON body or is
the `Request` itself, each with its pydantic validator. Binding then only looks things up and validates; all
refused fields of a request are reported together. No I/O, no `async`; the service calls the function.
"""

import dataclasses
import difflib
import enum
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from natsweb.errors import DeclarationError, FieldError, InvalidInput, UnsupportedMedia
from natsweb.messages import Call, Request, Response
from natsweb.paths import Template

__all__ = ["Place", "Plan", "check_names", "compile_plan", "resolve_hints"]

_MISSING = inspect.Parameter.empty
_LISTS = (list, set, frozenset, tuple, Sequence, AbstractSet)

Validate = Callable[[Any], Any]


class Place(NamedTuple):
    """Where a handler is declared, for messages: `app.py:14`, `@svc.get("/orders/<id>")`, `async def show(...)`."""

    line: str
    decorator: str
    signature: str

    def __str__(self) -> str:
        return f"{self.line}  {self.decorator}   {self.signature}"


class _Query(NamedTuple):
    name: str
    validate: Validate
    many: bool
    required: bool


class _Body(NamedTuple):
    name: str
    validate: Callable[[bytes], Any]
    required: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How one handler's arguments come out of a request."""

    path: tuple[tuple[str, Validate], ...]
    query: tuple[_Query, ...]
    body: _Body | None
    request: str | None
    returns: Any

    def bind(self, call: Call | Request, params: Mapping[str, str]) -> dict[str, Any]:
        """Return the handler's keyword arguments.

        Raises `InvalidInput` that lists every refused field, `UnsupportedMedia` for a body that is not JSON.
        """
        values: dict[str, Any] = {}
        errors: list[FieldError] = []
        for name, validate in self.path:
            try:
                values[name] = validate(params[name])
            except ValidationError as error:
                errors += _field_errors(["path", name], error)
        if self.query:
            self._bind_query(call.query, values, errors)
        if self.body is not None:
            self._bind_body(self.body, call, values, errors)
        if errors:
            raise InvalidInput("the request does not fit what this route takes", errors=errors)
        if self.request is not None:
            values[self.request] = call.request()
        return values

    def _bind_query(self, query: str, values: dict[str, Any], errors: list[FieldError]) -> None:
        given: dict[str, list[str]] = {}
        if query:
            for name, value in parse_qsl(query, keep_blank_values=True):
                given.setdefault(name, []).append(value)
        for slot in self.query:
            texts = given.get(slot.name)
            if texts is None:
                if slot.required:
                    errors.append(_missing("query", slot.name))
                continue
            try:
                values[slot.name] = slot.validate(texts if slot.many else texts[-1])
            except ValidationError as error:
                errors += _field_errors(["query", slot.name], error)

    @staticmethod
    def _bind_body(slot: _Body, call: Call | Request, values: dict[str, Any], errors: list[FieldError]) -> None:
        if not call.body:
            if slot.required:
                errors.append(_missing("body"))
            return
        media = call.headers.get_bytes(b"content-type")
        if media is not None and not _is_json(media):
            raise UnsupportedMedia(
                "this route takes JSON: send it with Content-Type: application/json",
                headers={"accept": "application/json"},
            )
        try:
            values[slot.name] = slot.validate(call.body)
        except ValidationError as error:
            errors += _field_errors(["body"], error)


def _is_json(media: bytes) -> bool:
    kind = media.partition(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


def _missing(*loc: str) -> FieldError:
    return {"loc": list(loc), "msg": "Field required", "type": "missing"}


def _field_errors(loc: list[str | int], error: ValidationError) -> list[FieldError]:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [{"loc": [*loc, *one["loc"]], "msg": one["msg"], "type": one["type"]} for one in details]


# ── compiling ────────────────────────────────────────────────────────────────────────────────────


def resolve_hints(function: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of a handler as types; `names` are those visible where it was declared.

    Raises `NameError` for a name that does not exist (yet).
    """
    return get_type_hints(inspect.unwrap(function), localns=dict(names), include_extras=True)


def compile_plan(function: Callable[..., Any], hints: Mapping[str, Any], template: Template, place: Place) -> Plan:
    """Return the plan of a handler; raises `DeclarationError` for anything that could never be bound."""
    parameters = inspect.signature(function).parameters
    check_names(template, parameters, place)
    path: list[tuple[str, Validate]] = []
    query: list[_Query] = []
    body: _Body | None = None
    request = None
    for name, parameter in parameters.items():
        annotation = hints.get(name, _MISSING)
        required = parameter.default is _MISSING
        if name in template.names:
            annotation = str if annotation is _MISSING else annotation
            _check_text(annotation, name, place)
            path.append((name, _text_validator(annotation, name, place)))
        elif annotation is _MISSING:
            raise DeclarationError(
                f"parameter {name!r} has no type",
                where=str(place),
                fix=f"annotate it, for example {name}: int for ?{name}=7, or add <{name}> to the path",
            )
        elif _strip(annotation) is Request:
            request = name
        elif _strip(annotation) is Response:
            raise DeclarationError(
                f"parameter {name!r} is a Response, which is what a handler returns",
                where=str(place),
                fix="return Response(status=..., headers={...}, body=...) instead of taking one",
            )
        elif _is_body(annotation):
            if body is not None:
                raise DeclarationError(
                    f"parameters {body.name!r} and {name!r} both want the request body",
                    where=str(place),
                    fix="put both into one model",
                )
            body = _Body(name, _adapter(annotation, name, place).validator.validate_json, required)
        else:
            many = _is_list(annotation)
            validate = _list_validator if many else _text_validator
            query.append(_Query(name, validate(annotation, name, place), many, required))
    return Plan(tuple(path), tuple(query), body, request, hints.get("return", Any))


def check_names(template: Template, parameters: Mapping[str, inspect.Parameter], place: Place) -> None:
    """Raise `DeclarationError` unless every capture of the path has a parameter that can take it."""
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise DeclarationError(
                f"parameter {parameter} cannot be filled from a request",
                where=str(place),
                fix=f"write it as an ordinary parameter, such as {name}: str",
            )
    for name in template.names:
        if name not in parameters:
            free = [other for other in parameters if other not in template.names]
            close = difflib.get_close_matches(name, free, n=1, cutoff=0.3) or free[:1]
            hint = f"rename one of them; did you mean <{close[0]}>?" if close else f"add a parameter {name}: str"
            raise DeclarationError(f"route <{name}> has no parameter in the handler", where=str(place), fix=hint)


def _check_text(annotation: Any, name: str, place: Place) -> None:
    if _is_body(annotation) or _is_list(annotation) or _strip(annotation) is Request:
        raise DeclarationError(
            f"<{name}> is one piece of text, which never makes a {getattr(annotation, '__name__', annotation)}",
            where=str(place),
            fix=f"annotate {name} with int, str, UUID, an Enum or the like; rename the parameter that takes the body",
        )


def _adapter(annotation: Any, name: str, place: Place) -> TypeAdapter[Any]:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        if not adapter.pydantic_complete:
            adapter.rebuild(raise_errors=True)  # a NameError, as of an annotation itself, if a part is not defined yet
        return adapter
    except PydanticUserError as error:
        raise DeclarationError(
            f"parameter {name!r} has a type that pydantic cannot take: {_first_line(error)}",
            where=str(place),
            fix="did you mean natsweb.Request?" if "Request" in str(annotation) else _remedy(error),
        ) from None


def _first_line(error: PydanticUserError) -> str:
    return error.message.splitlines()[0]


def _remedy(error: PydanticUserError) -> str:
    if error.code == "typed-dict-version":
        return "on Python below 3.12 import TypedDict from typing_extensions instead of typing"
    return "use a type of the standard library, a dataclass, a TypedDict or a pydantic model"


def _text_validator(annotation: Any, name: str, place: Place) -> Validate:
    """Return a validator from text: a path value or one query value."""
    validator = _adapter(annotation, name, place).validator
    choices = _choices(annotation)
    if not choices:
        return validator.validate_strings
    return lambda text: validator.validate_python(choices.get(text, text))


def _list_validator(annotation: Any, name: str, place: Place) -> Validate:
    """Return a validator from the texts of a repeated query parameter."""
    validator = _adapter(annotation, name, place).validator
    choices = {text: value for item in get_args(_strip(annotation)) for text, value in _choices(item).items()}
    if not choices:
        return validator.validate_python
    return lambda texts: validator.validate_python([choices.get(text, text) for text in texts])


def _choices(annotation: Any) -> dict[str, Any]:
    """Return text -> value for the values of Literal and Enum types that are no text themselves."""
    bare = _strip(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        return {text: value for part in get_args(bare) for text, value in _choices(part).items()}
    values: Sequence[Any] = ()
    if get_origin(bare) is Literal:
        values = get_args(bare)
    elif isinstance(bare, type) and issubclass(bare, enum.Enum):
        values = [member.value for member in bare]
    return {str(value): value for value in values if not isinstance(value, str)}


def _strip(annotation: Any) -> Any:
    """Return the type below Annotated, NewType and `type X = ...`, and of `X | None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif get_origin(annotation) in (Union, types.UnionType):
            some = [part for part in get_args(annotation) if part is not type(None)]
            if len(some) != 1:
                return annotation
            annotation = some[0]
        else:
            return annotation


def _is_list(annotation: Any) -> bool:
    bare = _strip(annotation)
    return (get_origin(bare) or bare) in _LISTS


def _is_body(annotation: Any) -> bool:
    """Tell whether a type is an object, or has objects in it: what only JSON can carry."""
    bare = _strip(annotation)
    origin = get_origin(bare)
    if origin in (Union, types.UnionType) or origin in _LISTS:
        return any(_is_body(part) for part in get_args(bare) if part is not ...)
    kind = origin or bare
    if not isinstance(kind, type):
        return False
    return issubclass(kind, (BaseModel, Mapping)) or dataclasses.is_dataclass(kind) or is_typeddict(kind)
