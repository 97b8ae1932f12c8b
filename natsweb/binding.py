"""From a request to a function's arguments, by a plan that was compiled at declaration (`plans`).

A plan knows which parameter comes from the path, the query, headers, cookies, the body or a form, each with its
validator; which ones are dependencies, or things that the service gives. Binding looks things up and validates; all
refused fields of a request are reported together. No I/O, no `async`: `scopes` reads forms and calls dependencies.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydantic import ValidationError

from natsweb.annotations import (
    Validate,
)
from natsweb.errors import FieldError, InvalidInput, UnsupportedMedia
from natsweb.messages import Call, Request, parse_query
from natsweb.params import Depends, Marker, UploadFile, field_errors

__all__ = ["MISSING", "BodySlot", "FormItems", "ModelSlot", "Need", "Parameter", "Plan", "TextSlot"]

MISSING: Any = inspect.Parameter.empty

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
        return self.default is MISSING


class Need(NamedTuple):
    """A parameter that is a dependency."""

    name: str
    depends: Depends
    annotation: Any


class TextSlot(NamedTuple):
    """A parameter out of named texts: query, headers, cookies, a form."""

    name: str
    key: str
    validate: Validate
    many: bool
    required: bool


class ModelSlot(NamedTuple):
    """A parameter out of many named texts: a model of query, header, cookie or form fields.

    `fields` are (name on the wire, the model's name for it, takes several, text -> value of enums); `rest` also takes
    what no field names.
    """

    name: str
    fields: tuple[tuple[str, str, bool, Mapping[str, Any]], ...]
    validate: Validate
    rest: bool
    others: frozenset[str] = frozenset()


class BodySlot(NamedTuple):
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

    `given` are (parameter, type) of what the service itself hands over, `AsyncIterator` for the body as it comes,
    `needs` its dependencies, `returns` is the
    return annotation, `parameters` describes the inputs for documents.
    """

    path: tuple[tuple[str, Validate], ...] = ()
    query: tuple[TextSlot, ...] = ()
    texts: tuple[tuple[str, tuple[TextSlot, ...], tuple[ModelSlot, ...]], ...] = ()
    body: BodySlot | None = None
    form: tuple[tuple[TextSlot, ...], tuple[ModelSlot, ...]] | None = None
    given: tuple[tuple[str, Any], ...] = ()
    needs: tuple[Need, ...] = ()
    returns: Any = Any
    parameters: tuple[Parameter, ...] = field(default=(), repr=False)

    def keys(self, source: str) -> set[str]:
        """Return all names on the wire that are taken from `source`: "query", "cookie" or "form"."""
        found = [(kind, texts, models) for kind, texts, models in self.texts if kind == source]
        if source == "query":
            found.append((source, self.query, ()))
        if source == "form" and self.form is not None:
            found.append((source, *self.form))
        keys = {text.key for _, texts, _ in found for text in texts}
        return keys | {key for _, _, models in found for model in models for key, _, _, _ in model.fields}

    def beside(self, others: Sequence["Plan"], taken: Sequence[tuple[str, str]] = ()) -> "Plan":
        """Return this plan with models that know what else is taken, and do not take it for something unknown.

        `taken` are further (source, key).
        """

        def known(source: str, models: tuple[ModelSlot, ...]) -> tuple[ModelSlot, ...]:
            keys = frozenset([key for kind, key in taken if kind == source])
            keys = keys.union(*[plan.keys(source) for plan in (self, *others)])
            return tuple([model._replace(others=keys) if model.rest else model for model in models])

        texts = tuple([(source, texts, known(source, models)) for source, texts, models in self.texts])
        form = None if self.form is None else (self.form[0], known("form", self.form[1]))
        return replace(self, texts=texts, form=form)

    @property
    def takes_stream(self) -> bool:
        """Whether a parameter is the body as it comes."""
        return any(kind is AsyncIterator for _, kind in self.given)

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
                errors += field_errors(["path", name], error)
        if self.query:
            _bind_texts("query", self.query, parse_query(call.query), values, errors)
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
    slots: tuple[TextSlot, ...],
    given: Mapping[str, list[Any]],
    values: dict[str, Any],
    errors: list[FieldError],
) -> None:
    which = 0 if source == "header" else -1  # of a repeated header the first counts, as everywhere else
    for name, key, validate, many, required in slots:
        texts = given.get(key)
        if texts is None:
            if required:
                errors.append(_missing(source, key))
            continue
        try:
            values[name] = validate(texts if many else texts[which])
        except ValidationError as error:
            errors += field_errors([source, key], error)


def _bind_models(
    source: str,
    slots: tuple[ModelSlot, ...],
    given: Mapping[str, list[Any]],
    texts: tuple[TextSlot, ...],
    values: dict[str, Any],
    errors: list[FieldError],
) -> None:
    for slot in slots:
        data: dict[str, Any] = {}
        for key, name, many, choices in slot.fields:
            if texts_found := given.get(key):
                some = [choices.get(text, text) if isinstance(text, str) else text for text in texts_found]
                data[name] = some if many else some[0 if source == "header" else -1]
        if slot.rest:
            taken = slot.others.union([text.key for text in texts], [key for key, _, _, _ in slot.fields])
            data |= {key: found[-1] for key, found in given.items() if key not in taken}
        try:
            values[slot.name] = slot.validate(data)
        except ValidationError as error:
            spelled: dict[str | int, str] = {name: key for key, name, _, _ in slot.fields}
            for one in field_errors([source], error):
                one["loc"][1:2] = [spelled.get(name, name) for name in one["loc"][1:2]]
                errors.append(one)


def _bind_body(slot: BodySlot, call: Call | Request, values: dict[str, Any], errors: list[FieldError]) -> None:
    if not call.body and slot.media_type:
        if slot.required:
            errors.append(_missing("body"))
        return
    media = call.headers.get_bytes(b"content-type")
    if media is None and call.client is None:
        media = slot.media  # a plain NATS client, which need not know of content types
    if slot.media_type and media != slot.media and not _fits(media or b"", slot.media_type):
        raise UnsupportedMedia(
            f"this route takes {slot.media_type}: send it with that Content-Type", headers={"accept": slot.media_type}
        )
    try:
        value = slot.read(call.body)
    except ValidationError as error:
        errors += field_errors(["body"], error)
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


def _headers_of(call: Call | Request) -> dict[str, list[str]]:
    given: dict[str, list[str]] = {}
    for name, value in call.headers:
        given.setdefault(name, []).append(value)
    return given


def _cookies_of(call: Call | Request) -> dict[str, list[str]]:
    return {name: [value] for name, value in call.cookies.items()}


_SOURCES: dict[str, Callable[[Call | Request], dict[str, list[str]]]] = {
    "query": lambda call: parse_query(call.query),
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
