"""What annotations say: shapes, markers, choices, validators; and where and how functions are written."""

import collections
import collections.abc
import contextlib
import enum
import functools
import inspect
import os
import sys
import typing
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path as FilePath
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union
from uuid import UUID

import fastapi
import pytest
from pydantic import BaseModel, Field, Json, ValidationError
from starlette.datastructures import UploadFile as StarletteUploadFile
from typing_extensions import TypeAliasType, TypedDict

from natsweb import annotations
from natsweb.annotations import (
    Place,
    adapter_of,
    choices_of,
    is_list,
    is_object,
    is_upload,
    line_of,
    name_of,
    produced_by,
    resolve_hints,
    short_path,
    signature_of,
    strip,
    text_validator,
    texts_validator,
)
from natsweb.errors import DeclarationError
from natsweb.markers import marker_of
from natsweb.params import Body, Cookie, Depends, File, Form, Header, Marker, Partial, Path, Query, UploadFile

T = TypeVar("T")
PLACE = Place("app.py:14", '@svc.get("/")', "async def show(...)")


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Color(enum.Enum):
    RED = "red"


class Mixed(enum.Enum):
    WORD = "w"
    HALF = 0.5
    TRUE = True
    NONE = None
    PRICE = Decimal("1.50")


class Item(BaseModel):
    name: str


class Page(BaseModel, Generic[T]):
    items: list[T]


@dataclass
class Point:
    x: int


@dataclass
class Box(Generic[T]):
    value: T


class Pair(TypedDict):
    left: int


class Row(NamedTuple):
    x: int


Age = TypeAliasType("Age", Annotated[int, Field(ge=1)])
Ids = TypeAliasType("Ids", list[int])
Items = TypeAliasType("Items", list[Item])
Maybe = TypeAliasType("Maybe", int | None)
ListOf = TypeAliasType("ListOf", list[T], type_params=(T,))
UserId = NewType("UserId", int)
AdminId = NewType("AdminId", UserId)

# ── shapes ───────────────────────────────────────────────────────────────────────────────────────

STRIPPED = [
    (int, int),
    (Annotated[int, Field(ge=1), "note"], int),
    (UserId, int),
    (AdminId, int),
    (Age, int),
    (Ids, list[int]),
    (Maybe, int),
    (int | None, int),
    (Optional[AdminId], int),  # noqa: UP045
    (Annotated[Age | None, Query()], int),
    (int | str | None, int | str | None),
    (list[int] | None, list[int]),
    (None, None),
    (Any, Any),
    (ListOf[int], list[int]),
]


@pytest.mark.parametrize(("annotation", "bare"), STRIPPED)
def test_strip(annotation, bare):
    """Annotated, NewType, aliases and an optional None are taken off, however they are nested."""
    assert strip(annotation) == bare
    assert strip(bare) == bare


LIST, OBJECT, UPLOAD = "list", "object", "upload"

# annotation, what it is
SHAPES = [
    *[(kind, set()) for kind in (int, str, bytes, UUID, Level, Color, Literal["a"], UserId, Age, Any, None, object)],
    (int | str, set()),
    *[(kind, {LIST}) for kind in (list, list[int], set[int], frozenset[str], tuple[int, ...], tuple[int, str], Ids)],
    *[(kind, {LIST}) for kind in (Sequence[int], collections.abc.Set[int], typing.List[int])],  # noqa: UP006
    (list[int] | None, {LIST}),
    (Annotated[list[UserId], Query()], {LIST}),
    *[(kind, {OBJECT}) for kind in (Item, Page[Item], Page, Point, Box[int], Pair, dict, dict[str, int])],
    *[(kind, {OBJECT}) for kind in (Mapping[str, int], collections.OrderedDict[str, int], Partial[Item], Partial)],
    *[(kind, {OBJECT}) for kind in (Item | None, Item | int, Union[Point, Pair], Annotated[Item, Body()])],  # noqa: UP007
    (TypeAliasType("Maybe", Item | None), {OBJECT}),
    *[(kind, {LIST, OBJECT}) for kind in (list[Item], tuple[int, Item], Sequence[Pair], list[list[Item]], Items)],
    (list[Item | None], {LIST, OBJECT}),
    *[(kind, {UPLOAD}) for kind in (UploadFile, UploadFile | None, Annotated[UploadFile, File()])],
    *[(kind, {LIST, UPLOAD}) for kind in (list[UploadFile], list[UploadFile] | None, tuple[UploadFile, ...])],
    (StarletteUploadFile, set()),
    *[(kind, set()) for kind in (Json[int], Json[dict], Annotated[Json[Item], Query()])],
    (Json[dict] | None, set()),
    *[(kind, {LIST}) for kind in (ListOf[int], collections.deque[int], typing.Iterable[int])],
    (UploadFile | str, {UPLOAD}),
]


@pytest.mark.parametrize(("annotation", "shape"), SHAPES)
def test_shapes(annotation, shape):
    """A type is a list of values, an object that only JSON can carry, a file, or one value."""
    kinds = {LIST: is_list, OBJECT: is_object, UPLOAD: is_upload}
    assert {word for word, asks in kinds.items() if asks(annotation)} == shape


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the type statement is of Python 3.12")
def test_a_recursive_alias():
    """An alias that names itself is what only JSON can carry."""
    names: dict[str, Any] = {}
    exec("type Nested = int | list[Nested]", names)
    assert is_object(names["Nested"])
    assert not is_upload(names["Nested"])
    assert marker_of(names["Nested"], PLACE) == (names["Nested"], None)


CHOICES = [
    (int, {}),
    (Color, {}),
    (Literal["a", "b"], {}),
    (Level, {"1": 1, "2": 2}),
    (Mixed, {"0.5": 0.5, "True": True, "true": True, "None": None, "1.50": Decimal("1.50")}),
    (Literal[True, False], {"True": True, "true": True, "False": False, "false": False}),
    (Literal[1, "a", None], {"1": 1, "None": None}),
    (Level | None, {"1": 1, "2": 2}),
    (Level | Literal[7, "x"], {"1": 1, "2": 2, "7": 7}),
    (TypeAliasType("Alias", Annotated[Level, Field()]), {"1": 1, "2": 2}),
    (Annotated[NewType("L", Level), Query()], {"1": 1, "2": 2}),
    (list[Level], {}),
    (Literal[b"a"], {"b'a'": b"a"}),
]


@pytest.mark.parametrize(("annotation", "choices"), CHOICES)
def test_choices(annotation, choices):
    """The values of Literal and Enum that are no text are found by their text, bools in both spellings."""
    assert choices_of(annotation) == choices


# ── markers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "annotation",
    [
        *(int, int | None, list[Item], Age, Ids, UserId, Any, None, Item),
        Annotated[int, "note", Field(ge=1)],
        TypeAliasType("Noted", Annotated[int, "note"]),
    ],
)
def test_no_marker(annotation):
    """An annotation without a marker stays what it means."""
    found, marker = marker_of(annotation, PLACE)
    assert marker is None
    assert strip(found) == strip(annotation)


def test_an_alias_without_marker():
    """An alias whose value is Annotated, such as pydantic's JsonValue, is left alone."""
    alias = TypeAliasType("Noted", Annotated[int, "note"])
    assert marker_of(alias, PLACE) == (alias, None)


QUERY, HEADER, DEPENDS = Query(ge=1), Header(), Depends(len)
Marked = TypeAliasType("Marked", Annotated[int, QUERY])

MARKED = [
    (Annotated[int, QUERY], QUERY, int),
    (Annotated[str, HEADER], HEADER, str),
    (Annotated[Item, DEPENDS], DEPENDS, Item),
    (Annotated[int | None, QUERY], QUERY, int),
    (Annotated[int, "note", QUERY, Field(le=3)], QUERY, int),
    (Annotated[Annotated[int, QUERY], "note"], QUERY, int),
    (Marked, QUERY, int),
    (TypeAliasType("Again", Marked), QUERY, int),
    (Annotated[Marked, "note"], QUERY, int),
    (Annotated[str, HEADER] | None, HEADER, str),
    (Marked | None, QUERY, int),
    (NewType("N", Annotated[int, QUERY]), QUERY, int),
]


@pytest.mark.parametrize(("annotation", "marker", "bare"), MARKED)
def test_marker_of(annotation, marker, bare):
    """A marker is found, also inside an alias, a NewType or an optional, and taken off; other metadata stays."""
    found, got = marker_of(annotation, PLACE)
    assert got is marker
    assert strip(found) == bare
    metadata = typing.get_args(found)[1:] if typing.get_origin(found) is Annotated else ()
    assert not [one for one in metadata if isinstance(one, Marker | Depends)]
    assert (marker.field in metadata) if isinstance(marker, Marker) else not metadata


# annotation, what, fix
BAD_MARKERS = [
    (Annotated[int, Query(), Header()], "two markers, Query() and Header()", "keep one"),
    (Annotated[int, Depends(len), Body(alias="b")], "two markers, Depends(len) and Body(alias='b')", "keep one"),
    (Annotated[Annotated[int, Form()], Form()], "two markers, Form() and Form()", "keep one"),
    *[
        (Annotated[int, kind], f"{kind.__name__} in Annotated is the class", f"{kind.__name__}() with its parentheses")
        for kind in (Path, Query, Header, Cookie, Body, Form, File, Depends)
    ],
    (Annotated[Marked, Header()], "two markers", "keep one"),
    (list[Annotated[int, Query(ge=1)]], "Query() stands inside of a type", "around the whole type"),
    (dict[str, list[Annotated[int, Depends(len)]]], "Depends(len) stands inside of a type", "around the whole type"),
    (Annotated[int, Header()] | str, "Header() is on one side of a union", "Annotated[int | str, Header()]"),
    (Marked | Annotated[str, Header()], "on one side of a union", "around the whole"),
    (Annotated[int, fastapi.Query()], "Query in Annotated is FastAPI's", "from natsweb import Query"),
]


@pytest.mark.parametrize(("annotation", "what", "fix"), BAD_MARKERS)
def test_bad_markers(annotation, what, fix):
    """Two markers, one that was not called, FastAPI's, and one too deep are mistakes with their place."""
    with pytest.raises(DeclarationError) as caught:
        marker_of(annotation, PLACE)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == [str(PLACE)]


BAD_CONSTRAINTS = [
    (Annotated[str, Query(ge=1)], "ge= means nothing for str", "min_length="),
    (Annotated[bytes, Body(lt=1)], "lt= means nothing for bytes", "max_length="),
    (Annotated[Optional[str], Query(multiple_of=1)], "multiple_of=", "min_length="),  # noqa: UP045
    (Annotated[NewType("Name", str), Query(gt=1)], "gt=", "min_length="),
    (Annotated[int, Path(min_length=1)], "min_length= means nothing for int", "ge= and le="),
    (Annotated[float, Query(pattern="x")], "pattern= means nothing for float", "ge= and le="),
    (Annotated[Decimal | None, Query(max_length=1)], "max_length= means nothing for Decimal", "ge= and le="),
    (Annotated[bool, Header(min_length=1)], "min_length= means nothing for bool", "ge= and le="),
    (Annotated[list[int], Query(ge=1)], "ge= means nothing for list", "min_length="),
    (Annotated[list[str], Query(pattern="a")], "pattern= means nothing for list", "only text"),
    (Annotated[UUID, Query(min_length=2)], "min_length= means nothing for UUID", "ge= and le="),
    (Annotated[Item, Body(min_length=1)], "min_length= means nothing for Item", "ge= and le="),
    (Annotated[UploadFile, File(max_length=10)], "max_length= means nothing for UploadFile", "ge= and le="),
    (Annotated[int | str, Query(ge=1)], "ge= means nothing for str", "min_length="),
]


@pytest.mark.parametrize(("annotation", "what", "fix"), BAD_CONSTRAINTS)
def test_constraints_that_a_type_does_not_know(annotation, what, fix):
    """A bound that means nothing for the type, or one of a union, is a mistake at declaration."""
    with pytest.raises(DeclarationError) as caught:
        marker_of(annotation, PLACE)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == [str(PLACE)]


# ── dependencies ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("function", "returns", "yields", "gives"),
    [
        (len, int, False, int),
        (len, Any, False, Any),
        (Item, Any, False, Item),
        (Item, int, True, Item),
        (len, AsyncIterator[Item], True, Item),
        (len, Iterator[Item | None], True, Item | None),
        (len, Generator[Item, None, None], True, Item),
        (len, typing.AsyncGenerator[Item, None], True, Item),
        (len, AsyncIterator, True, Any),
        (len, list[Item], True, Any),
        (len, Any, True, Any),
        (len, AsyncIterator[Item], False, AsyncIterator[Item]),
    ],
)
def test_produced_by(function, returns, yields, gives):
    """A class gives itself, a function what it returns, a generator what it yields, as far as it says."""
    assert produced_by(function, returns, yields=yields) == gives


# ── where functions are written ──────────────────────────────────────────────────────────────────


def plain(number: int, word: str = "w") -> bool: ...


async def waiting(number: int, *, named: "str | None" = None) -> int: ...


async def streaming(count: int) -> AsyncIterator[int]:
    yield count


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **named)

    return wrapper


@decorated
def wrapped(number: int) -> bool: ...


@functools.lru_cache
def cached(number: int) -> bool: ...


@contextlib.asynccontextmanager
async def opened(number: int) -> AsyncIterator[int]:
    yield number


class Repo:
    def __init__(self, number: int, word: str = "w") -> None: ...

    def __call__(self, number: int) -> bool: ...

    def method(self, number: int) -> bool: ...

    @classmethod
    def of_class(cls, number: int) -> bool: ...

    @staticmethod
    def static(number: int) -> bool: ...


class Grandchild(Repo):
    """A class that inherits its constructor."""


class Made:
    def __new__(cls, number: int) -> "Made":
        return object.__new__(cls)


class Funny:
    func = "an attribute of its own"

    def __call__(self, number: int) -> bool: ...


REPO = Repo(1)
NUMBER = {"number": int}

# function, name, signature, its annotations less the return, something on its first line
FUNCTIONS = [
    (plain, "plain", "def plain(number: int, word: str = 'w')", {**NUMBER, "word": str}, plain),
    (
        waiting,
        "waiting",
        "async def waiting(number: int, *, named: 'str | None' = None)",
        {**NUMBER, "named": str | None},
        waiting,
    ),
    (streaming, "streaming", "async def streaming(count: int)", {"count": int}, streaming),
    (wrapped, "wrapped", "def wrapped(number: int)", NUMBER, wrapped.__wrapped__),
    (cached, "cached", "def cached(number: int)", NUMBER, cached.__wrapped__),
    (opened, "opened", "def opened(number: int)", NUMBER, opened.__wrapped__),
    (functools.partial(plain, word="x"), "plain", "def plain(number: int, *, word: str = 'x')", None, plain),
    (functools.partial(functools.partial(plain, 1), word="x"), "plain", "def plain(*, word: str = 'x')", None, plain),
    (functools.partial(waiting, 1), "waiting", None, None, waiting),
    (Repo, "Repo", "def Repo(number: int, word: str = 'w')", {**NUMBER, "word": str}, Repo),
    (functools.partial(Repo, 1), "Repo", "def Repo(word: str = 'w')", None, Repo),
    (REPO, "Repo", "def Repo(number: int)", NUMBER, Repo),
    (REPO.method, "method", "def method(number: int)", NUMBER, Repo.method),
    (Repo.of_class, "of_class", "def of_class(number: int)", NUMBER, Repo.of_class),
    (Repo.static, "static", "def static(number: int)", NUMBER, Repo.static),
    (Point, "Point", "def Point(x: int)", {"x": int}, Point),
    (Row, "Row", "def Row(x: int)", {"x": int}, Row),
    (Item, "Item", "def Item(*, name: str)", None, Item),
    (lambda number: number, "<lambda>", "def <lambda>(number)", {}, None),
    (Grandchild, "Grandchild", "def Grandchild(number: int, word: str = 'w')", {**NUMBER, "word": str}, Grandchild),
    (Made, "Made", None, NUMBER, Made),
    (Funny(), "Funny", "def Funny(number: int)", NUMBER, Funny),
]


@pytest.mark.parametrize(("function", "name", "signature", "hints", "written"), FUNCTIONS)
def test_functions(function, name, signature, hints, written):
    """Functions, partials, classes, callables and methods say their name, place, head and annotations."""
    assert name_of(function) == name
    if signature is not None:
        assert signature_of(function).removesuffix(" -> None") == signature
    if hints is not None:
        found = resolve_hints(function, {})
        found.pop("return", None)
        assert found == hints
    if written is not None:
        expected = inspect.getsourcelines(inspect.unwrap(written))[1]
        assert line_of(function) == f"{short_path(__file__)}:{expected}"


def test_signatures_of_async_functions():
    """The head of an async function, and of a partial of one, says async."""
    for function in (waiting, streaming, functools.partial(waiting, 1), opened.__wrapped__):
        assert signature_of(function).startswith("async def ")


@pytest.mark.parametrize(("function", "line"), [(len, "builtins"), (int, "builtins"), (len.__call__, "?")])
def test_lines_of_what_has_no_source(function, line):
    """What is written in C has its module instead of a line."""
    assert line_of(function) == line


def test_a_signature_that_cannot_be_told():
    """A callable without a signature is a ValueError."""
    for function in (dict, type):
        with pytest.raises(ValueError, match="signature"):
            signature_of(function)


def test_names_that_are_local():
    """Names in annotations are found among those that were visible, and missing ones are NameErrors."""

    def show(x: "Local", y: "list[Local]") -> "Local": ...  # noqa: F821

    assert resolve_hints(show, {"Local": int}) == {"x": int, "y": list[int], "return": int}
    with pytest.raises(NameError) as caught:
        resolve_hints(show, {})
    assert caught.value.name == "Local"


def test_short_paths(tmp_path, monkeypatch):
    """A file below the working directory is shown relative to it, any other as it is."""
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "a" / "app.py")) == os.path.join("a", "app.py")
    assert short_path(str(FilePath(__file__))) == __file__


def test_places():
    """A place reads as line, decorator and head."""
    assert str(PLACE) == 'app.py:14  @svc.get("/")   async def show(...)'


# ── validators ───────────────────────────────────────────────────────────────────────────────────


def test_validators_of_text():
    """One text, or a list of texts, becomes a value of the type, enums by their value."""
    assert text_validator(int, "x", PLACE)("7") == 7
    assert text_validator(Level | None, "x", PLACE)("2") is Level.HIGH
    assert texts_validator(list[int], "x", PLACE)(["1", "2"]) == [1, 2]
    assert texts_validator(set[Level], "x", PLACE)(["1", "2", "1"]) == {Level.LOW, Level.HIGH}
    assert texts_validator(tuple[Level, str], "x", PLACE)(["1", "1x"]) == (Level.LOW, "1x")
    with pytest.raises(ValidationError):
        text_validator(Level, "x", PLACE)("LOW")


def test_types_that_pydantic_cannot_take():
    """A type without a schema is a mistake that names parameter, place and remedy."""
    thing = type("Thing", (), {})
    for annotation, fix in (
        (thing, "make it a dataclass or a pydantic model; or Annotated[Thing, Depends()]"),
        (list[thing], "a dataclass, a TypedDict or a pydantic model"),
    ):
        with pytest.raises(DeclarationError) as caught:
            adapter_of(annotation, "x", PLACE)
        assert "parameter 'x' has a type that pydantic cannot take" in caught.value.what
        assert fix in caught.value.fix
        assert caught.value.where == [str(PLACE)]
    with pytest.raises(DeclarationError, match=r"natsweb\.Request"):
        adapter_of(type("OtherRequest", (), {}), "x", PLACE)
    with pytest.raises(DeclarationError) as caught:
        adapter_of(Partial[int], "x", PLACE)
    assert (caught.value.what[:13], caught.value.where) == ("parameter 'x'", [str(PLACE)])


@pytest.mark.parametrize("marker", [{"pattern": "("}, {"pattern": "(?=a)b"}, {"min_length": -1}])
def test_constraints_that_are_wrong_themselves(marker):
    """A pattern that is none, or that Rust's regexes do not have, is a mistake with its place."""
    annotation, _ = marker_of(Annotated[str, Query(**marker)], PLACE)
    with pytest.raises(DeclarationError, match="parameter 'x' has a constraint that pydantic cannot take") as caught:
        text_validator(annotation, "x", PLACE)
    assert caught.value.where == [str(PLACE)]


def test_public_names():
    """`__all__` is sorted and complete."""
    public = [name for name, one in vars(annotations).items() if getattr(one, "__module__", "") == annotations.__name__]
    assert sorted(annotations.__all__) == annotations.__all__
    others = {"ASYNC_ITERATORS", "ITERATORS", "Validate"}
    assert set(annotations.__all__) - others == {name for name in public if not name.startswith("_")}
