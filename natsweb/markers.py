"""The marker of a parameter, found in its annotation, with constraints that its type knows.

Mistakes are refused where they are declared: pydantic would raise at the first request for a constraint that means
nothing, and a marker that stands too deep would be lost without a word. Knows annotations; it knows no routes.
"""

import datetime
import enum
import types
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from natsweb.annotations import Place, is_foreign, is_list, strip
from natsweb.errors import DeclarationError
from natsweb.params import Depends, Marker, UploadFile

__all__ = ["marker_of"]


def marker_of(annotation: Any, place: Place) -> tuple[Any, Marker | Depends | None]:
    """Return an annotation without natsweb's marker, and the marker.

    It may stand in an alias, a NewType, or one side of `X | None`. Raises `DeclarationError` for two markers, one that
    was not called, one of another framework, and one inside of a list, where nothing would look for it.
    """
    bare, found = _find_marker(annotation, place)
    if found is None:
        _check_inside(annotation, place)
        return annotation, None
    if isinstance(found, Marker):
        _check_constraints(found, bare, place)
        bare = Annotated[bare, found.field]
    return bare, found


def _find_marker(annotation: Any, place: Place) -> tuple[Any, Marker | Depends | None]:
    if type(annotation).__name__ == "TypeAliasType":
        bare, found = _find_marker(annotation.__value__, place)
        return (annotation, None) if found is None else (bare, found)
    if hasattr(annotation, "__supertype__"):
        bare, found = _find_marker(annotation.__supertype__, place)
        return (annotation, None) if found is None else (bare, found)
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_find_marker(part, place) for part in get_args(annotation)]
        markers = [found for _, found in parts if found is not None]
        if not markers:
            return annotation, None
        if len(markers) > 1 or len(parts) != 2 or type(None) not in get_args(annotation):
            raise DeclarationError(
                f"{markers[0]!r} is on one side of a union only",
                where=str(place),
                fix=f"put it around the whole: Annotated[int | str, {markers[0]!r}]",
            )
        return Union[tuple(bare for bare, _ in parts)], markers[0]  # noqa: UP007
    if get_origin(annotation) is not Annotated:
        return annotation, None
    inner, *metadata = get_args(annotation)
    for item in metadata:
        _check_metadata(item, place)
    bare, deeper = _find_marker(inner, place)
    found_here = [item for item in metadata if isinstance(item, Marker | Depends)]
    every = [*found_here, *([] if deeper is None else [deeper])]
    if len(every) > 1:
        raise DeclarationError(
            f"a parameter has two markers, {every[0]!r} and {every[1]!r}", where=str(place), fix="keep one of them"
        )
    if not every:
        return annotation, None
    rest = [item for item in metadata if item is not every[0]]
    return Annotated[(bare, *rest)] if rest else bare, every[0]


def _check_metadata(item: Any, place: Place) -> None:
    if isinstance(item, type) and issubclass(item, Marker | Depends):
        raise DeclarationError(
            f"{item.__name__} in Annotated is the class, not a marker",
            where=str(place),
            fix=f"write {item.__name__}() with its parentheses",
        )
    if is_foreign(item):
        raise DeclarationError(
            f"{type(item).__name__} in Annotated is FastAPI's, and means nothing here",
            where=str(place),
            fix=f"from natsweb import {type(item).__name__}",
        )


def _check_inside(annotation: Any, place: Place) -> None:
    """Raise `DeclarationError` for a marker that stands too deep to be found."""
    for part in get_args(annotation):
        if isinstance(part, Marker | Depends):
            raise DeclarationError(
                f"{part!r} stands inside of a type, where nothing looks for it",
                where=str(place),
                fix="put it around the whole type: Annotated[list[int], Query()]",
            )
        if not isinstance(part, list | str | bytes | int):
            _check_inside(part, place)


_SIZES = ("gt", "ge", "lt", "le", "multiple_of")
_LENGTHS = ("min_length", "max_length")
_SIZED: tuple[type, ...] = (int, float, Decimal, datetime.date, datetime.time, datetime.timedelta)
_UNSIZED = (bool, enum.Enum, uuid.UUID, BaseModel, UploadFile)


def _check_constraints(marker: Marker, annotation: Any, place: Place) -> None:
    """Raise `DeclarationError` for a constraint that the type does not know: pydantic would say so per request."""
    for kind in _leaves(annotation):
        for name in marker.constraints:
            if name not in (*_SIZES, *_LENGTHS, "pattern") or _knows(kind, name):
                continue
            fix = "text and lists are bounded by min_length= and max_length=" if name in _SIZES else None
            raise DeclarationError(
                f"{name}= means nothing for {getattr(kind, '__name__', kind)}",
                where=str(place),
                fix=fix or "numbers and dates are bounded by ge= and le=, only text has a pattern=",
            )


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types that a constraint applies to: all members of a union but None."""
    bare = strip(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        for part in get_args(bare):
            if part is not type(None):
                yield from _leaves(part)
    else:
        yield get_origin(bare) or bare


def _knows(kind: Any, constraint: str) -> bool:
    """Tell whether a type knows a constraint; one that this table does not know may know any."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and issubclass(kind, int | str | float):
        return constraint in _SIZES if issubclass(kind, int | float) else constraint in _LENGTHS
    if kind in (Any, Literal) or (isinstance(kind, type) and issubclass(kind, _UNSIZED)):
        return False
    if is_list(kind) or (isinstance(kind, type) and issubclass(kind, str | bytes | list | tuple | set | dict)):
        return constraint in _LENGTHS or (constraint == "pattern" and kind is str)
    if isinstance(kind, type) and issubclass(kind, _SIZED):
        return constraint in _SIZES
    return True
