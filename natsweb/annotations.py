"""What a type annotation says: its marker, whether it is a list, an object or plain text, and how to validate it.

All of it is asked when a handler is declared; what comes out are functions of pydantic-core. The only module that
takes annotations apart. It knows types; it knows no routes and no requests.
"""

import enum
import inspect
import os
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, PydanticUserError, TypeAdapter
from typing_extensions import is_typeddict

from natsweb.errors import DeclarationError
from natsweb.params import Depends, Marker, Partial, UploadFile

__all__ = [
    "Place",
    "Validate",
    "adapter_of",
    "choices_of",
    "is_list",
    "is_object",
    "is_upload",
    "line_of",
    "marker_of",
    "name_of",
    "produced_by",
    "resolve_hints",
    "short_path",
    "signature_of",
    "strip",
    "text_validator",
    "texts_validator",
]

_LISTS = (list, set, frozenset, tuple, Sequence, AbstractSet)

Validate = Callable[[Any], Any]


class Place(NamedTuple):
    """Where a function is declared, for messages: `app.py:14`, `@svc.get("/orders/<id>")`, `async def show(...)`."""

    line: str
    decorator: str
    signature: str

    def __str__(self) -> str:
        return f"{self.line}  {self.decorator}   {self.signature}"


def resolve_hints(function: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of a function as types; `names` are those visible where it was declared.

    For a class they are those of its constructor, for a `functools.partial` those of the function in it.
    Raises `NameError` for a name that does not exist (yet).
    """
    function = getattr(function, "func", function)
    if isinstance(function, type):
        function = vars(function).get("__init__", function)
    elif not inspect.isroutine(function):
        function = type(function).__call__
    return get_type_hints(inspect.unwrap(function), localns=dict(names), include_extras=True)


def short_path(filename: str) -> str:
    """Return a file's path as messages show it: relative where it lies below the working directory."""
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def name_of(function: Any) -> str:
    """Return the name of a function or class, for messages."""
    function = getattr(function, "func", function)
    return str(getattr(function, "__name__", type(function).__name__))


def line_of(function: Any) -> str:
    """Return where a function or class is written, such as `app.py:14`; for others, where their class is."""
    function = inspect.unwrap(getattr(function, "func", function))
    if not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function)
    code = getattr(function, "__code__", None)
    if code is not None:
        return f"{short_path(code.co_filename)}:{code.co_firstlineno}"
    try:
        return f"{short_path(inspect.getfile(function))}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return str(getattr(function, "__module__", "?"))


def signature_of(function: Callable[..., Any]) -> str:
    """Return the head of a function as it is written; raises `ValueError` for one that has none."""
    word = "async def" if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function) else "def"
    arguments = ", ".join(str(parameter) for parameter in inspect.signature(function).parameters.values())
    return f"{word} {name_of(function)}({arguments})"


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────


def marker_of(annotation: Any, place: Place) -> tuple[Any, Marker | Depends | None]:
    """Return an annotation without natsweb's marker, and the marker.

    Raises `DeclarationError` for two markers, and for a marker class that was not called.
    """
    while type(annotation).__name__ == "TypeAliasType" and get_origin(annotation.__value__) is Annotated:
        annotation = annotation.__value__
    if get_origin(annotation) is not Annotated:
        return annotation, None
    bare, *metadata = get_args(annotation)
    found = [item for item in metadata if isinstance(item, Marker | Depends)]
    for item in metadata:
        if isinstance(item, type) and issubclass(item, Marker | Depends):
            raise DeclarationError(
                f"{item.__name__} in Annotated is the class, not a marker",
                where=str(place),
                fix=f"write {item.__name__}() with its parentheses",
            )
    if len(found) > 1:
        raise DeclarationError(
            f"a parameter has two markers, {found[0]!r} and {found[1]!r}", where=str(place), fix="keep one of them"
        )
    if not found:
        return annotation, None
    rest = [item for item in metadata if item is not found[0]]
    if isinstance(found[0], Marker):
        _check_constraints(found[0], bare, place)
        rest.append(found[0].field)
    return Annotated[(bare, *rest)] if rest else bare, found[0]


_SIZES = ("gt", "ge", "lt", "le", "multiple_of")
_LENGTHS = ("min_length", "max_length", "pattern")


def _check_constraints(marker: Marker, annotation: Any, place: Place) -> None:
    """Raise `DeclarationError` for a constraint that the type does not know: pydantic would say so per request."""
    bare = strip(annotation)
    if not isinstance(bare, type):
        return
    wrong = _SIZES if issubclass(bare, str | bytes) else _LENGTHS if issubclass(bare, int | float | Decimal) else ()
    for name in wrong:
        if name in marker.constraints:
            fix = (
                "text is bounded by min_length= and max_length="
                if wrong is _SIZES
                else "numbers are bounded by ge= and le="
            )
            raise DeclarationError(f"{name}= means nothing for {bare.__name__}", where=str(place), fix=fix)


def strip(annotation: Any) -> Any:
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


def is_list(annotation: Any) -> bool:
    """Tell whether a type takes several values."""
    bare = strip(annotation)
    return (get_origin(bare) or bare) in _LISTS


def is_object(annotation: Any) -> bool:
    """Tell whether a type is an object, or has objects in it: what only JSON can carry."""
    bare = strip(annotation)
    origin = get_origin(bare)
    if origin in (Union, types.UnionType) or origin in _LISTS:
        return any(is_object(part) for part in get_args(bare) if part is not ...)
    kind = origin or bare
    if not isinstance(kind, type):
        return False
    return issubclass(kind, (BaseModel, Mapping, Partial)) or is_dataclass(kind) or is_typeddict(kind)


def is_upload(annotation: Any) -> bool:
    """Tell whether a type is `UploadFile`, or several of them."""
    bare = strip(annotation)
    if is_list(bare):
        return any(is_upload(part) for part in get_args(bare))
    return isinstance(bare, type) and issubclass(bare, UploadFile)


def choices_of(annotation: Any) -> dict[str, Any]:
    """Return text -> value for the values of Literal and Enum types that are no text themselves."""
    bare = strip(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        return {text: value for part in get_args(bare) for text, value in choices_of(part).items()}
    values: Sequence[Any] = ()
    if get_origin(bare) is Literal:
        values = get_args(bare)
    elif isinstance(bare, type) and issubclass(bare, enum.Enum):
        values = [member.value for member in bare]
    return {str(value): value for value in values if not isinstance(value, str)}


_YIELDS = (AsyncIterator, AsyncGenerator, AsyncIterable, Iterator, Generator, Iterable)


def produced_by(function: Callable[..., Any], returns: Any, *, yields: bool) -> Any:
    """Return the type of what a dependency gives, or `Any` where its annotations do not say."""
    if isinstance(function, type):
        return function
    if yields:
        return next(iter(get_args(returns)), Any) if get_origin(returns) in _YIELDS else Any
    return returns


# ── validators ───────────────────────────────────────────────────────────────────────────────────


def adapter_of(annotation: Any, name: str, place: Place) -> TypeAdapter[Any]:
    """Return pydantic's adapter of a parameter's type.

    Raises `DeclarationError` for a type that pydantic cannot take, `NameError` for one with a part that is not
    defined yet.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        if not adapter.pydantic_complete:
            adapter.rebuild(raise_errors=True)
        return adapter
    except PydanticUserError as error:
        raise DeclarationError(
            f"parameter {name!r} has a type that pydantic cannot take: {error.message.splitlines()[0]}",
            where=str(place),
            fix="did you mean natsweb.Request?" if "Request" in str(annotation) else _remedy(error),
        ) from None
    except DeclarationError as error:
        raise DeclarationError(f"parameter {name!r}: {error.what}", where=str(place), fix=error.fix) from None


def _remedy(error: PydanticUserError) -> str:
    if error.code == "typed-dict-version":
        return "on Python below 3.12 import TypedDict from typing_extensions instead of typing"
    return "use a type of the standard library, a dataclass, a TypedDict or a pydantic model"


def text_validator(annotation: Any, name: str, place: Place) -> Validate:
    """Return a validator from one text."""
    validator = adapter_of(annotation, name, place).validator
    choices = choices_of(annotation)
    if not choices:
        return validator.validate_strings
    return lambda text: validator.validate_python(choices.get(text, text))


def texts_validator(annotation: Any, name: str, place: Place) -> Validate:
    """Return a validator from a list of texts."""
    validator = adapter_of(annotation, name, place).validator
    choices = {text: value for item in get_args(strip(annotation)) for text, value in choices_of(item).items()}
    if not choices:
        return validator.validate_python
    return lambda texts: validator.validate_python([choices.get(text, text) for text in texts])
