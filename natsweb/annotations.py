"""What a type annotation says: its marker, whether it is a list, an object or plain text, and how to validate it.

All of it is asked when a handler is declared; what comes out are functions of pydantic-core. The only module that
takes annotations apart. It knows types; it knows no routes and no requests.
"""

import enum
import functools
import inspect
import os
import types
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, Json, PydanticUserError, TypeAdapter
from pydantic_core import SchemaError
from typing_extensions import is_typeddict

from natsweb.errors import DeclarationError
from natsweb.params import Partial, UploadFile

__all__ = [
    "ASYNC_ITERATORS",
    "ITERATORS",
    "Place",
    "Validate",
    "adapter_of",
    "allows_none",
    "choices_of",
    "is_foreign",
    "is_list",
    "is_object",
    "is_upload",
    "items_of",
    "line_of",
    "name_of",
    "own_name",
    "produced_by",
    "resolve_hints",
    "short_path",
    "signature_of",
    "strip",
    "text_validator",
    "texts_validator",
]

_LISTS = (list, set, frozenset, tuple, deque, Sequence, AbstractSet, Collection, Iterable)
_DEEPEST = 20

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
    function = function.func if isinstance(function, functools.partial) else function
    if isinstance(function, type):
        fields = get_type_hints(function, localns=dict(names), include_extras=True)
        made = get_type_hints(_constructor(function), localns=dict(names), include_extras=True)
        return fields | {name: kind for name, kind in made.items() if name != "return"}
    if not inspect.isroutine(function):
        function = type(function).__call__
    return get_type_hints(inspect.unwrap(function), localns=dict(names), include_extras=True)


def _constructor(kind: type) -> Callable[..., Any]:
    """Return what makes instances of a class: the first `__init__` or `__new__` on the way to `object`."""
    for one in kind.__mro__[:-1]:
        for name in ("__init__", "__new__"):
            if name in vars(one):
                found: Callable[..., Any] = getattr(one, name)
                return found
    return kind


def short_path(filename: str) -> str:
    """Return a file's path as messages show it: relative where it lies below the working directory."""
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def name_of(function: Any) -> str:
    """Return the name of a function or class, for messages."""
    function = function.func if isinstance(function, functools.partial) else function
    return str(getattr(function, "__name__", type(function).__name__))


def line_of(function: Any) -> str:
    """Return where a function or class is written, such as `app.py:14`; for others, where their class is."""
    function = inspect.unwrap(function.func if isinstance(function, functools.partial) else function)
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
    signature = inspect.signature(function)
    arguments = str(signature.replace(return_annotation=inspect.Signature.empty)).replace("typing.", "")
    return f"{word} {name_of(function)}{arguments}"


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────


def strip(annotation: Any) -> Any:
    """Return the type below Annotated, NewType and `type X = ...`, and of `X | None`."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif type(get_origin(annotation)).__name__ == "TypeAliasType":
            annotation = get_origin(annotation).__value__[get_args(annotation)]
        elif get_origin(annotation) in (Union, types.UnionType):
            some = [part for part in get_args(annotation) if part is not type(None)]
            if len(some) != 1:
                return annotation
            annotation = some[0]
        else:
            return annotation


def is_foreign(value: Any) -> bool:
    """Tell whether something is another framework's, whose names are natsweb's as well."""
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__.partition(".")[0] in ("fastapi", "starlette") and not issubclass(kind, UploadFile)


def allows_none(annotation: Any) -> bool:
    """Tell whether a type is `X | None`."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def is_list(annotation: Any) -> bool:
    """Tell whether a type takes several values."""
    bare = strip(annotation)
    return (get_origin(bare) or bare) in _LISTS


def is_object(annotation: Any, depth: int = 0) -> bool:
    """Tell whether a type is an object, or has objects in it: what only JSON can carry.

    `Json[...]` is not: it is text that has JSON in it. A type that contains itself is.
    """
    notes = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    if any(one is Json or type(one).__name__ == "Json" for one in notes):
        return False
    if get_origin(annotation) in (Union, types.UnionType):
        return any(is_object(part, depth + 1) for part in get_args(annotation) if part is not type(None))
    bare = strip(annotation)
    origin = get_origin(bare)
    if origin in (Union, types.UnionType) or origin in _LISTS:
        return depth > _DEEPEST or any(is_object(part, depth + 1) for part in get_args(bare) if part is not ...)
    kind = origin or bare
    if not isinstance(kind, type):
        return False
    return issubclass(kind, (BaseModel, Mapping, Partial)) or is_dataclass(kind) or is_typeddict(kind)


def is_upload(annotation: Any, depth: int = 0) -> bool:
    """Tell whether a type is `UploadFile`, or several of them, or has it among others."""
    bare = strip(annotation)
    if is_list(bare) or get_origin(bare) in (Union, types.UnionType):
        return depth < _DEEPEST and any(is_upload(part, depth + 1) for part in get_args(bare))
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
    found = {str(value): value for value in values if not isinstance(value, str)}
    return found | {text.lower(): value for text, value in found.items() if isinstance(value, bool)}


#: What functions that yield say that they return.
ASYNC_ITERATORS = (AsyncIterator, AsyncGenerator, AsyncIterable)
ITERATORS = (Iterator, Generator, Iterable)


def items_of(annotation: Any, kinds: Sequence[Any]) -> tuple[Any, ...]:
    """Return the type of the items of an iterator that is one of `kinds`, as the only one in a tuple; else nothing."""
    bare = strip(annotation)
    return (next(iter(get_args(bare)), Any),) if (get_origin(bare) or bare) in kinds else ()


def produced_by(function: Callable[..., Any], returns: Any, *, yields: bool) -> Any:
    """Return the type of what a dependency gives, or `Any` where its annotations do not say."""
    if isinstance(function, type):
        return function
    if yields:
        return next(iter(get_args(returns)), Any) if get_origin(returns) in (*ASYNC_ITERATORS, *ITERATORS) else Any
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
            fix=own_name(annotation) or _remedy(error),
        ) from None
    except SchemaError as error:
        raise DeclarationError(
            f"parameter {name!r} has a constraint that pydantic cannot take: {str(error).splitlines()[-1].strip()}",
            where=str(place),
            fix="patterns are those of Rust's regex, without look-around; lengths are not negative",
        ) from None
    except DeclarationError as error:
        raise DeclarationError(f"parameter {name!r}: {error.what}", where=str(place), fix=error.fix) from None


_OWN_NAMES = {
    "BackgroundTask": "Background",
    "BackgroundTasks": "Background",
    "FileResponse": "FileResponse",
    "Headers": "Headers",
    "Request": "Request",
    "Response": "Response",
    "UploadFile": "UploadFile",
    "WebSocket": "WebSocket",
}


def own_name(annotation: Any) -> str | None:
    """Return the remedy for a type of another framework, or of somebody's own."""
    bare = strip(annotation)
    name = getattr(bare, "__name__", "")
    if is_foreign(bare) and name in _OWN_NAMES:
        return f"did you mean natsweb.{_OWN_NAMES[name]}?"
    if "Request" in str(annotation):
        return "did you mean natsweb.Request?"
    if isinstance(bare, type) and bare.__module__ not in ("builtins", "typing"):
        return f"make it a dataclass or a pydantic model; or Annotated[{name}, Depends()], to make one for each request"
    return None


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
