"""From a signature to arguments: every kind of parameter, every refusal, every mistake at declaration."""

import asyncio
import contextlib
import functools
import json
import operator
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Generic, Literal, NewType, Optional, TypeVar, Union
from unittest.mock import ANY
from urllib.parse import quote, urlencode
from uuid import UUID

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, Json, JsonValue, RootModel, TypeAdapter
from typing_extensions import TypeAliasType, TypedDict

from natsweb import Request, Response, Service
from natsweb.errors import DeclarationError
from natsweb.params import Body, Cookie, Depends, File, Form, Header, Path, Query, UploadFile
from natsweb.security import ApiKey, Auth

UserId = NewType("UserId", int)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Size(Enum):
    S = 1
    L = 2.5


class Word(StrEnum):
    YES = "yes"


class Item(BaseModel):
    name: str
    count: int = 1


class Other(BaseModel):
    other: int


@dataclass
class Point:
    x: int
    y: int = 0


class Pair(TypedDict):
    left: int
    right: str


def served(annotation: Any, path: str = "/<x>", method: str = "GET", default: Any = ...) -> Service:
    """Return a service whose only handler answers with the repr of its parameter `x`."""
    service = Service("test")
    if default is ...:

        async def show(x) -> str:
            return repr(x)
    else:

        async def show(x=default) -> str:
            return repr(x)

    show.__annotations__["x"] = annotation
    service.route(path, methods=[method])(show)
    return service


async def bound(service: Service, **request: Any) -> Any:
    """Return the text of a 200, else (status, [(loc, type)])."""
    response = await service.handle(Request(**request))
    if response.status == 200:
        return response.text
    body = response.parse_json()
    assert all(set(one) == {"loc", "msg", "type"} and one["msg"] for one in body.get("errors", []))
    return response.status, [(one["loc"], one["type"]) for one in body.get("errors", [])]


# ── text: path and query values ──────────────────────────────────────────────────────────────────

# annotation, text, value
TEXTS = [
    (int, "7", 7),
    (str, "7", "7"),
    (str, "a%2Fb%20%C3%BC", "a/b ü"),
    (float, "1.5", 1.5),
    (bool, "true", True),
    (bool, "0", False),
    (Decimal, "1.10", Decimal("1.10")),
    (date, "2024-02-29", date(2024, 2, 29)),
    (UUID, "12345678123456781234567812345678", UUID("12345678123456781234567812345678")),
    (Color, "red", Color.RED),
    (Level, "2", Level.HIGH),
    (Size, "1", Size.S),
    (Size, "2.5", Size.L),
    (Word, "yes", Word.YES),
    (Literal["a", "b"], "b", "b"),
    (Literal[1, 2], "2", 2),
    (Literal[1, "a"], "a", "a"),
    (UserId, "7", 7),
    (Optional[int], "7", 7),  # noqa: UP045
    (Optional[Level], "1", Level.LOW),  # noqa: UP045
    (Level | None, "2", Level.HIGH),
    (int | str, "7", 7),
    (int | str, "x", "x"),
    (Annotated[int, Field(ge=1)], "1", 1),
    (Any, "7", "7"),
]

# annotation, text, error type
BAD_TEXTS = [
    (int, "x", "int_parsing"),
    (int, "1.5", "int_parsing"),
    (float, "x", "float_parsing"),
    (bool, "maybe", "bool_parsing"),
    (date, "2023-02-29", "date_from_datetime_parsing"),
    (UUID, "7", "uuid_parsing"),
    (Color, "green", "enum"),
    (Level, "3", "enum"),
    (Level, "LOW", "enum"),
    (Literal["a"], "b", "literal_error"),
    (Literal[1, 2], "3", "literal_error"),
    (UserId, "x", "int_parsing"),
    (Annotated[int, Field(ge=1)], "0", "greater_than_equal"),
]


@pytest.mark.parametrize(("annotation", "text", "value"), TEXTS)
async def test_values_from_text(annotation, text, value):
    """A path value and a query value of each type become the same Python value."""
    assert await bound(served(annotation), raw_path=f"/{text}") == repr(value)
    assert await bound(served(annotation, "/"), query=f"x={text}") == repr(value)


@pytest.mark.parametrize(("annotation", "text", "error"), BAD_TEXTS)
async def test_refused_text(annotation, text, error):
    """A value that its type refuses is 422 that names the place."""
    in_path = await bound(served(annotation), raw_path=f"/{text}")
    in_query = await bound(served(annotation, "/"), query=f"x={text}")
    assert in_path[0] == in_query[0] == 422
    assert (in_path[1], in_query[1]) == ([(["path", "x"], error)], [(["query", "x"], error)])


# annotation, default, query, value or error
QUERIES = [
    (int, ..., "", (["query", "x"], "missing")),
    (int, ..., "y=1", (["query", "x"], "missing")),
    (int, 5, "", 5),
    (int, 5, "x=", (["query", "x"], "int_parsing")),
    (str, "d", "x=", ""),
    (str, "d", "x", ""),
    (int, ..., "x=1&x=2", 2),
    (int | None, None, "", None),
    (int | None, ..., "", (["query", "x"], "missing")),
    (str, ..., "x=a+b%26%C3%BC", "a b&ü"),
    (Color, Color.RED, "", Color.RED),
    (list[int], ..., "x=1&x=2", [1, 2]),
    (list[int], ..., "x=1", [1]),
    (list[int], ..., "", (["query", "x"], "missing")),
    (list[int], (), "", ()),
    (list[int], ..., "x=1&x=b", (["query", "x", 1], "int_parsing")),
    (list[str], ..., "x=&x=a", ["", "a"]),
    (list, ..., "x=1", ["1"]),
    (set[int], ..., "x=1&x=1", {1}),
    (frozenset[str], ..., "x=a", frozenset("a")),
    (tuple[int, ...], ..., "x=1&x=2", (1, 2)),
    (tuple[int, str], ..., "x=1&x=b", (1, "b")),
    (Sequence[float], ..., "x=1.5", [1.5]),
    (list[int] | None, None, "x=3", [3]),
    (list[Level], ..., "x=1&x=2", [Level.LOW, Level.HIGH]),
    (list[Color], ..., "x=red", [Color.RED]),
    (list[Literal[1, 2]], ..., "x=2", [2]),
    (list[UUID], ..., "x=7", (["query", "x", 0], "uuid_parsing")),
]


@pytest.mark.parametrize(("annotation", "default", "query", "value"), QUERIES)
async def test_queries(annotation, default, query, value):
    """Scalars and lists come out of the query, with their defaults, or as one 422."""
    found = await bound(served(annotation, "/", default=default), query=query)
    refused = isinstance(value, tuple) and isinstance(value[0] if value else None, list)
    assert found == ((422, [value]) if refused else repr(value))


async def test_captures_and_tails():
    """Captures and tails are bound by name, a capture without a type is text."""
    service = Service("test")

    @service.get("/a/<one>/<path:rest>")
    async def show(rest: str, one) -> str:
        return f"{one!r} {rest!r}"

    assert await bound(service, raw_path="/a/1/b/c%20d/") == "'1' 'b/c d/'"
    assert await bound(service, raw_path="/a/1/") == "'1' ''"


async def test_a_type_that_refuses_does_not_fall_through():
    """A capture that refuses its value is 422, though a wider route would take it."""
    service = Service("test")

    @service.get("/<x>")
    async def number(x: int) -> str:
        return "number"

    @service.get("/<path:x>")
    async def rest(x: str) -> str:
        return "rest"

    assert await bound(service, raw_path="/7") == "number"
    assert (await bound(service, raw_path="/x"))[0] == 422
    assert await bound(service, raw_path="/x/y") == "rest"


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────

# annotation, body, value
BODIES = [
    (Item, '{"name": "a"}', Item(name="a")),
    (Item, ' {"name": "ü", "count": 2} ', Item(name="ü", count=2)),
    (Point, '{"x": 1}', Point(1)),
    (Pair, '{"left": 1, "right": "r"}', {"left": 1, "right": "r"}),
    (list[Item], '[{"name": "a"}, {"name": "b"}]', [Item(name="a"), Item(name="b")]),
    (list[Item], "[]", []),
    (dict, '{"a": [1]}', {"a": [1]}),
    (dict[str, int], '{"a": 1}', {"a": 1}),
    (list[dict[str, int]], '[{"a": 1}]', [{"a": 1}]),
    (Item | Other, '{"other": 3}', Other(other=3)),
    (Union[Item, Point], '{"x": 3}', Point(3)),  # noqa: UP007
    (Item | None, '{"name": "a"}', Item(name="a")),
    (Item | None, "null", None),
    (Annotated[Item, "note"], '{"name": "a"}', Item(name="a")),
]

# annotation, body, [(loc, type)]
BAD_BODIES = [
    (Item, "", [(["body"], "missing")]),
    (Item, "{", [(["body"], "json_invalid")]),
    (Item, b"\xff", [(["body"], "json_invalid")]),
    (Item, "[]", [(["body"], "model_type")]),
    (Item, '{"count": "x"}', [(["body", "name"], "missing"), (["body", "count"], "int_parsing")]),
    (Point, "{}", [(["body", "x"], "missing")]),
    (Pair, "{}", [(["body", "left"], "missing"), (["body", "right"], "missing")]),
    (list[Item], '[{"name": "a"}, {}]', [(["body", 1, "name"], "missing")]),
]


@pytest.mark.parametrize(("annotation", "body", "value"), BODIES)
async def test_bodies(annotation, body, value):
    """Models, dataclasses, typed dicts, lists of them and unions come from the JSON body."""
    assert await bound(served(annotation, "/", "POST"), method="POST", body=body.encode()) == repr(value)


@pytest.mark.parametrize(("annotation", "body", "errors"), BAD_BODIES)
async def test_refused_bodies(annotation, body, errors):
    """A body that does not fit is 422 with the place of each fault."""
    body = body if isinstance(body, bytes) else body.encode()
    assert await bound(served(annotation, "/", "POST"), method="POST", body=body) == (422, errors)


async def test_optional_bodies():
    """A body with a default may be absent, and is checked when it is there."""
    service = served(Item | None, "/", "POST", default=None)
    assert await bound(service, method="POST") == "None"
    assert await bound(service, method="POST", body=b'{"name": "a"}') == repr(Item(name="a"))
    assert (await bound(service, method="POST", body=b"{}"))[0] == 422


@pytest.mark.parametrize(("client", "status"), [(None, 200), ("10.0.0.1:5", 415)])
async def test_bodies_without_a_media_type(client, status):
    """A body without a type counts as JSON if it came over NATS; through a gateway it is 415, like one of a page."""
    request = Request(method="POST", body=b'{"name": "a"}', client=client)
    assert (await served(Item, "/", "POST").handle(request)).status == status


@pytest.mark.parametrize(
    ("media", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/problem+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonx", 415),
        ("", 415),
    ],
)
async def test_media_types(media, status):
    """A body of another type than JSON is 415 that says what is accepted."""
    service = served(Item, "/", "POST")
    response = await service.handle(Request(method="POST", body=b'{"name": "a"}', headers={"content-type": media}))
    assert response.status == status
    assert response.headers.get("accept") == ("application/json" if status == 415 else None)


async def test_all_refused_fields_are_reported_together():
    """Path, query and body are all checked before the request is refused."""
    service = Service("test")

    @service.post("/<a>/<b>")
    async def show(a: int, b: UUID, item: Item, q: int, tags: list[int], fine: int = 1) -> str:
        raise AssertionError("must not be called")

    status, errors = await bound(service, method="POST", raw_path="/x/y", query="tags=1&tags=z&fine=2", body=b"{}")
    assert (status, errors) == (
        422,
        [
            (["path", "a"], "int_parsing"),
            (["path", "b"], "uuid_parsing"),
            (["query", "q"], "missing"),
            (["query", "tags", 1], "int_parsing"),
            (["body", "name"], "missing"),
        ],
    )


async def test_the_request_itself():
    """A parameter of type Request is the request, with the captures of its route."""
    service = Service("test")

    @service.get("/<a>")
    async def show(a: int, request: Request) -> dict[str, Any]:
        return {"a": a, "path": request.path, "query": request.query, "x": request.headers["x"]}

    response = await service.handle(Request(raw_path="/7", query="q=1", headers={"x": "y"}))
    assert response.parse_json() == {"a": 7, "path": "/7", "query": "q=1", "x": "y"}


# ── annotations as strings ───────────────────────────────────────────────────────────────────────

MODULE = """
from __future__ import annotations
from natsweb import Request, Service
from pydantic import BaseModel

svc = Service("later")

@svc.post("/later/<number>")
async def later(number: int, item: Later, request: Request, q: Kind | None = None) -> Later:
    return Later(x=number + item.x)

class Later(BaseModel):
    x: int

Kind = int

def build():
    local = Service("local")

    class Inside(BaseModel):
        y: int

    @local.post("/inside")
    def inside(item: Inside, q: Kind = 1) -> list[Inside]:
        return [item, Inside(y=q)]

    return local
"""


def load(source: str, name: str = "app") -> dict[str, Any]:
    """Run the source of a module and return its names."""
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(textwrap.dedent(source), f"{name}.py", "exec", dont_inherit=True), vars(module))
    return vars(module)


async def test_annotations_as_strings():
    """Names that are defined below the handler, or inside a function, are found."""
    module = load(MODULE)
    response = await module["svc"].handle(Request(method="POST", raw_path="/later/1", query="q=3", body=b'{"x": 2}'))
    assert (response.status, response.text) == (200, '{"x":3}')
    local = module["build"]()
    response = await local.handle(Request(method="POST", raw_path="/inside", query="q=4", body=b'{"y": 2}'))
    local.close()
    assert (response.status, response.text) == (200, '[{"y":2},{"y":4}]')
    module["svc"].compile()


def test_a_name_that_never_comes():
    """An annotation that names nothing is an error when the service is compiled, with its place."""
    module = load("""
        from __future__ import annotations
        from natsweb import Service
        svc = Service("never")
        @svc.get("/")
        async def show(x: Never) -> int: ...
    """)
    with pytest.raises(DeclarationError) as caught:
        module["svc"].compile()
    for part in ("'Never'", "app.py:5", "async def show(x: 'Never')", "import or define Never"):
        assert part in str(caught.value)


def test_a_local_name_that_is_defined_later():
    """Inside a function, too, a type may be defined below the handler."""
    module = load("""
        from __future__ import annotations
        from natsweb import Service
        def build():
            svc = Service("local")
            @svc.get("/")
            async def show(x: Later): ...
            Later = int
            return svc
    """)
    module["build"]().compile()


def test_a_model_with_a_field_that_is_defined_later():
    """A model whose field's type is defined below the handler is complete when the service is compiled."""
    module = load("""
        from natsweb import Service
        from pydantic import BaseModel
        class Order(BaseModel):
            item: "Item"
        svc = Service("later")
        @svc.post("/")
        async def show(order: Order): ...
        class Item(BaseModel):
            name: str
    """)
    module["svc"].compile()


# ── mistakes at declaration ──────────────────────────────────────────────────────────────────────

# decorator and handler, parts of the message
MISTAKES = [
    ('@svc.get("/<order_id>")\nasync def show(order: int): ...', ["<order_id>", "did you mean <order>?"]),
    ('@svc.get("/<id>")\nasync def show(): ...', ["<id>", "add a parameter id: str"]),
    ('@svc.get("/")\nasync def show(x): ...', ["'x' has no type", "x: int for ?x=7", "<x>"]),
    ('@svc.get("/")\nasync def show(*args): ...', ["*args", "args: str"]),
    ('@svc.get("/")\nasync def show(**more: int): ...', ["**more", "more: str"]),
    ('@svc.get("/<x>")\nasync def show(x: int, /): ...', ["parameter x: int", "ordinary parameter"]),
    ('@svc.get("/")\nasync def show(x: Thing): ...', ["'x'", "pydantic cannot take", "a dataclass"]),
    ('@svc.get("/<x>")\nasync def show(x: Thing): ...', ["'x'", "pydantic cannot take"]),
    ('@svc.post("/")\nasync def show(x: list[Thing]): ...', ["'x'", "pydantic cannot take"]),
    ('@svc.get("/")\nasync def show() -> Thing: ...', ["return type", "return a model"]),
    ('@svc.post("/")\nasync def show(a: Model, b: Model): ...', ["'a' and 'b'", "both into one model"]),
    ('@svc.get("/{id}")\nasync def show(id: int): ...', ["'/{id}'", "'/<id>'"]),
    ('@svc.get("x")\nasync def show(): ...', ["'/x'"]),
    ('@svc.route("/", methods=["FETCH"])\nasync def show(): ...', ["'FETCH'", "use one or more of GET"]),
    ('@svc.route("/", methods="TRACE")\ndef show(): ...', ["'TRACE'"]),
    ('@svc.get("/", status=99)\nasync def show(): ...', ["status 99", "use 200 to 599"]),
    ('@svc.get("/", status=101)\nasync def show(): ...', ["status 101"]),
    ('@svc.get("/", status=600)\nasync def show(): ...', ["status 600"]),
]

HEAD = """\
from natsweb import Request, Service
from pydantic import BaseModel
class Thing: ...
class Model(BaseModel): ...
svc = Service("mistakes")
"""


@pytest.mark.parametrize(("code", "parts"), MISTAKES)
def test_mistakes(code, parts):
    """What could never work is an error of the decorator, with the place, the value and the remedy."""
    with pytest.raises(DeclarationError) as caught:
        load(HEAD + code)
    decorator, signature = code.split("\n")
    assert caught.value.fix
    word = decorator[: decorator.index("(")]
    for part in [*parts, "app.py:6", word, signature.split("(")[0]]:
        assert part in str(caught.value)


@pytest.mark.parametrize("annotation", ["Model", "list[int]", "Request", "dict"])
def test_captures_of_types_that_no_text_gives(annotation):
    """A capture whose type can never come from a path is an error at declaration."""
    with pytest.raises(DeclarationError):
        load(f'{HEAD}@svc.get("/<x>")\nasync def show(x: {annotation}): ...')


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic takes typing.TypedDict from 3.12 on")
def test_typing_typed_dict_on_old_pythons():
    """Below 3.12 the message says where TypedDict has to come from."""

    class Old(typing.TypedDict):
        x: int

    with pytest.raises(DeclarationError, match="typing_extensions"):
        served(Old, "/", "POST")


@pytest.mark.parametrize("handler", [functools.partial(int, "7"), operator.itemgetter(0)], ids=["partial", "object"])
def test_handlers_without_a_name(handler):
    """A callable that is no function is served, or refused with a word about it."""
    with contextlib.suppress(DeclarationError):
        Service("test").get("/")(handler)


def test_a_decorator_without_a_path():
    """`@svc.get` without parentheses would silently declare nothing."""
    with pytest.raises(DeclarationError, match="has no path") as caught:
        load("""
            from natsweb import Service
            svc = Service("bare")
            @svc.get
            def show(): ...
        """)
    assert "app.py:4" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def show(response: Response): ...", "what a handler returns"),
        ("async def show() -> int:\n    yield 1", "yields, and its return annotation is no AsyncIterator"),
        ("def show() -> list[int]:\n    yield 1", "yields, and its return annotation is no Iterator"),
        ("def show(request: starlette.requests.Request): ...", "natsweb.Request"),
    ],
)
def test_habits_of_other_frameworks(code, words):
    """What other frameworks take gets a word about what natsweb takes."""
    head = "import starlette.requests\nfrom natsweb import Response, Service\nsvc = Service('habits')\n@svc.get('/')\n"
    with pytest.raises(DeclarationError, match=words):
        load(head + code + "\n")


def test_duplicates_name_both_handlers():
    """Two handlers for one route are refused with the places and names of both."""
    code = """\
@svc.get("/<a>")
async def one(a: int): ...
@svc.route("/<b>", methods=["PUT", "get"])
def two(b: int): ...
"""
    with pytest.raises(DeclarationError) as caught:
        load(HEAD + code)
    for part in ("GET /<b> is declared twice", "app.py:6 one", "app.py:8 two", "/<a>"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("",), "''"),
        (("a b",), "'a b'"),
        (("a.b",), "letters, digits"),
        (("ä",), "'ä'"),
        (("a", "1"), "'1' is not a semantic version"),
        (("a", "1.2"), '"1.2.3"'),
        (("a", "01.2.3"), "'01.2.3'"),
        (("a", "1.2.x"), "'1.2.x'"),
        (("a", "v1.2.3"), "'v1.2.3'"),
    ],
)
def test_names_and_versions(arguments, part):
    """A name or version that NATS refuses is an error with the line of the constructor."""
    names = {"arguments": arguments}
    code = "from natsweb import Service\nService(arguments[0], version=(*arguments, '0.0.0')[1])"
    with pytest.raises(DeclarationError) as caught:
        exec(compile(code, "app.py", "exec", dont_inherit=True), names)
    assert part in str(caught.value)
    assert "app.py:2" in str(caught.value)


@pytest.mark.parametrize("version", ["1.2.3", "0.0.0", "1.2.3-rc.1", "1.2.3+build.5", "10.20.30-a.b+c"])
def test_semantic_versions(version):
    """Semantic versions with and without their suffixes are taken."""
    assert Service("test", version=version).version == version


@pytest.mark.parametrize("version", ["1.2.3-", "1.2.3+", "1.2.²", "1.2.3-01", "1.2.3-a b", "1.2.3-a\r\n", "1.2.3-ä"])
def test_versions_that_are_almost_semantic(version):
    """What follows the three numbers has a grammar, too (SemVer 2.0.0, points 9 and 10)."""
    with pytest.raises(DeclarationError):
        Service("test", version=version)


def test_handlers_are_returned_untouched():
    """Every decorator returns the very function that it was given."""
    service = Service("test")

    def show(): ...

    for word in ("get", "post", "put", "patch", "delete", "head", "options"):
        assert getattr(service, word)("/")(show) is show
    assert service.route("/route", methods=["get", "POST"])(show) is show
    assert [method for route in service.routes for method in route.methods] == [
        *("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"),
        *("GET", "POST"),
    ]


async def test_methods_without_body_may_have_one():
    """A handler of any method may take a body."""
    for method in ("GET", "DELETE", "PATCH", "PUT"):
        body = json.dumps({"name": method}).encode()
        assert await bound(served(Item, "/", method), method=method, body=body) == repr(Item(name=method))


async def test_binding_is_safe_under_concurrency():
    """One plan serves many requests at once, each with its own values."""
    service = served(int)
    answers = await asyncio.gather(*(service.handle(Request(raw_path=f"/{number}")) for number in range(50)))
    assert [answer.text for answer in answers] == [str(number) for number in range(50)]
    assert all(isinstance(answer, Response) for answer in answers)


# ── every source, every type ─────────────────────────────────────────────────────────────────────

Age = TypeAliasType("Age", Annotated[int, Field(ge=1)])
Ids = TypeAliasType("Ids", list[int])
T = TypeVar("T")
FORM = "application/x-www-form-urlencoded"


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: int | None = None


@dataclass
class Box(Generic[T]):
    value: T


# annotation, text, value, text that is refused, error type
VALUES = [
    (int, "7", 7, "x", "int_parsing"),
    (str, "a b", "a b", None, None),
    (bool, "true", True, "maybe", "bool_parsing"),
    (float, "1.5", 1.5, "x", "float_parsing"),
    (Decimal, "1.10", Decimal("1.10"), "sNaN", "finite_number"),
    (UUID, "12345678-1234-5678-1234-567812345678", UUID(int=0x12345678123456781234567812345678), "7", "uuid_parsing"),
    (date, "2024-02-29", date(2024, 2, 29), "2023-02-29", "date_from_datetime_parsing"),
    (datetime, "2024-02-29T01:02:03", datetime(2024, 2, 29, 1, 2, 3), "x", "datetime_from_date_parsing"),
    (timedelta, "P1DT1S", timedelta(days=1, seconds=1), "P", "time_delta_parsing"),
    (Color, "red", Color.RED, "RED", "enum"),
    (Level, "2", Level.HIGH, "3", "enum"),
    (Size, "2.5", Size.L, "2", "enum"),
    (Word, "yes", Word.YES, "no", "enum"),
    (Literal["a", 1], "1", 1, "b", "literal_error"),
    (UserId, "7", 7, "x", "int_parsing"),
    (Age, "7", 7, "0", "greater_than_equal"),
    (Annotated[Level, Field(ge=2)], "2", Level.HIGH, "1", "greater_than_equal"),
    (int | None, "7", 7, "x", "int_parsing"),
    (Optional[Level], "1", Level.LOW, "0", "enum"),  # noqa: UP045
    (Json[dict[str, int]], "{}", {}, "{", "json_invalid"),
]


def case(reason: str, *values: Any) -> Any:
    """Return a case that natsweb gets wrong, with what it does instead."""
    return pytest.param(*values, marks=pytest.mark.xfail(strict=True, reason=reason))


def asked(source: str, *texts: str) -> dict[str, Any]:
    """Return the request that has texts for `x` in a source."""
    pairs = urlencode([("x", text) for text in texts])
    return {
        "path": {"raw_path": "/" + quote("".join(texts), safe="")},
        "query": {"query": pairs},
        "header": {"headers": [("X", text) for text in texts]},
        "cookie": {"headers": {"cookie": "; ".join(f'x="{text}"' for text in texts)}},
        "form": {"method": "POST", "body": pairs, "headers": {"content-type": FORM}},
    }[source]


def marked(source: str, annotation: Any, default: Any = ...) -> Service:
    """Return the service whose handler takes `x` from a source by a marker."""
    marker = {"path": Path, "query": Query, "header": Header, "cookie": Cookie, "form": Form}[source]()
    path, method = "/<x>" if source == "path" else "/", "POST" if source == "form" else "GET"
    return served(Annotated[annotation, marker], path, method, default)


@pytest.mark.parametrize("source", ["path", "query", "header", "cookie", "form"])
@pytest.mark.parametrize(("annotation", "text", "value", "wrong", "error"), VALUES)
async def test_every_source_and_type(source, annotation, text, value, wrong, error):
    """A type reads alike from path, query, header, cookie and form, and refuses alike, with its place."""
    service = marked(source, annotation)
    place = "body" if source == "form" else source
    assert await bound(service, **asked(source, text)) == repr(value)
    if wrong is not None:
        status, errors = await bound(service, **asked(source, wrong))
        assert (status, [(loc[:2], kind) for loc, kind in errors]) == (422, [([place, "x"], error)])
    if source != "path":
        request = asked(source)
        assert await bound(service, **request) == (422, [([place, "x"], "missing")])
        assert await bound(marked(source, annotation, default=value), **request) == repr(value)


@pytest.mark.parametrize("source", ["query", "header", "form"])
@pytest.mark.parametrize("of", [list, set, tuple])
@pytest.mark.parametrize(("annotation", "text", "value", "wrong", "error"), VALUES[:-1])
async def test_lists_of_every_type(source, of, annotation, text, value, wrong, error):
    """Repeated values are a list, set or tuple, and a refused one is named by its index."""
    service = marked(source, tuple[annotation, ...] if of is tuple else of[annotation])
    place = "body" if source == "form" else source
    assert await bound(service, **asked(source, text, text)) == repr(of([value]) if of is set else of([value, value]))
    if wrong is not None:
        status, errors = await bound(service, **asked(source, text, wrong))
        assert (status, [(loc[:3], kind) for loc, kind in errors]) == (422, [([place, "x", 1], error)])
    assert await bound(service, **asked(source)) == (422, [([place, "x"], "missing")])


@pytest.mark.parametrize(("annotation", "text", "value", "wrong", "error"), VALUES[:-1])
async def test_bodies_of_every_type(annotation, text, value, wrong, error):
    """With `Body()` a scalar, or a list of them, is the JSON body."""
    adapter = TypeAdapter(annotation)
    body = adapter.dump_json(value)
    assert await bound(served(Annotated[annotation, Body()], "/", "POST"), method="POST", body=body) == repr(value)
    listed = served(Annotated[list[annotation], Body()], "/", "POST")
    assert await bound(listed, method="POST", body=b"[%b,%b]" % (body, body)) == repr([value, value])
    assert await bound(listed, method="POST", body=b"[%b,{}]" % body) == (422, [(["body", 1], ANY)])


@pytest.mark.parametrize(
    ("annotation", "body", "value"),
    [
        (Page[Item], '{"items": [{"name": "a"}]}', Page[Item](items=[Item(name="a")])),
        (Page[UUID], '{"items": []}', Page[UUID](items=[])),
        (list[Page[int]], '[{"items": ["1"]}]', [Page[int](items=[1])]),
        (Box[int], '{"value": "1"}', Box(1)),
        (Annotated[Ids, Body()], "[1]", [1]),
        (Annotated[Any, Body()], '{"a": [null]}', {"a": [None]}),
        (Annotated[str, Body()], '"\\u00fc"', "ü"),
        (Annotated[int | None, Body()], "null", None),
        (Annotated[dict[int, Level], Body()], '{"1": 2}', {1: Level.HIGH}),
        (Annotated[JsonValue, Body()], "[1.5]", [1.5]),
        (JsonValue, "[1.5]", [1.5]),
    ],
)
async def test_generic_and_marked_bodies(annotation, body, value):
    """Generic models and dataclasses need no marker, other types `Body()`."""
    assert await bound(served(annotation, "/", "POST"), method="POST", body=body) == repr(value)


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 10_000, b'"\\ud800"', b"1" * 5000, b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16")],
)
@pytest.mark.parametrize("annotation", [dict, Annotated[Any, Body()], list[Item]])
async def test_hostile_json(annotation, body):
    """JSON that is deep, huge, or in another encoding is 422."""
    status, errors = await bound(served(annotation, "/", "POST"), method="POST", body=body)
    assert (status, errors) == (422, [(["body"], "json_invalid")])


# ── headers, cookies ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "alias", "field"),
    [
        ("user_agent", None, "User-Agent"),
        ("x", None, "x"),
        ("x", "X-Request-ID", "x-request-id"),
        ("x", "under_score", "UNDER_SCORE"),
    ],
)
async def test_names_of_headers(name, alias, field):
    """Underscores are dashes, an alias is taken as it is, and case does not matter."""
    service = Service("test")
    names: dict[str, Any] = {"Type": Annotated[str, Header(alias=alias)]}
    exec(f"async def show({name}: Type) -> str: return {name}", names)
    service.get("/")(names["show"])
    assert await bound(service, headers={field: "v"}) == "v"
    key = (alias or name.replace("_", "-")).lower()
    assert await bound(service, headers={"other": "v"}) == (422, [(["header", key], "missing")])


@pytest.mark.parametrize("annotation", [Annotated[int, Header()] | None, Annotated[int | None, Header()]])
async def test_optional_headers(annotation):
    """A marker may stand inside of an optional as well as around it."""
    service = served(annotation, "/", default=None)
    assert await bound(service, headers={"x": "7"}, query="x=8") == "7"
    assert await bound(service, query="x=8") == "None"
    assert await bound(service, headers={"x": "x"}) == (422, [(["header", "x"], "int_parsing")])


class Filter(BaseModel):
    limit: int = Field(10, le=100)
    level: Level = Level.LOW
    levels: list[Level] = []
    pages: set[int] = set()
    since: date | None = None
    order_by: str = Field("id", alias="orderBy", max_length=5)


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = 10


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    limit: int = 10


# model, fields of the request, what the model is made of, or errors
MODELS = [
    (Filter, [], {}),
    (Filter, [("limit", "7"), ("level", "2")], {"limit": 7, "level": 2}),
    (Filter, [("levels", "1"), ("levels", "2"), ("pages", "3"), ("pages", "3")], {"levels": [1, 2], "pages": [3]}),
    (Filter, [("levels", "1")], {"levels": [1]}),
    (Filter, [("limit", "1"), ("limit", "2")], {"limit": 2}),
    (Filter, [("since", "2024-02-29"), ("orderBy", "name")], {"since": date(2024, 2, 29), "orderBy": "name"}),
    (Filter, [("order_by", "name"), ("other", "x")], {}),
    (Filter, [("limit", "101"), ("level", "3")], [(["limit"], "less_than_equal"), (["level"], "enum")]),
    (Filter, [("levels", "1"), ("levels", "3"), ("since", "x")], [(["levels", 1], "enum"), (["since"], ANY)]),
    (Filter, [("orderBy", "toolong")], [(["orderBy"], "string_too_long")]),
    (Closed, [("limit", "1")], {"limit": 1}),
    (Closed, [("limit", "1"), ("other", "x")], [(["other"], "extra_forbidden")]),
    (Open, [("limit", "1"), ("other", "x"), ("other", "y")], {"limit": 1, "other": "y"}),
    (Page[Level], [("items", "1"), ("items", "2"), ("next", "3")], {"items": [1, 2], "next": 3}),
    (Page[Level], [], [(["items"], "missing")]),
]


@pytest.mark.parametrize("source", ["query", "form"])
@pytest.mark.parametrize(("model", "pairs", "data"), MODELS)
async def test_models_of_texts(source, model, pairs, data):
    """A model takes all fields of the query or form: by alias, lists, enums, extras; all errors at once."""
    request = {"query": urlencode(pairs)}
    if source == "form":
        request = {"method": "POST", "body": urlencode(pairs), "headers": {"content-type": FORM}}
    found = await bound(marked(source, model), **request)
    if isinstance(data, list):
        place = "body" if source == "form" else source
        assert found == (422, [([place, *loc], kind) for loc, kind in data])
    else:
        assert found == repr(model.model_validate(data))


async def test_models_of_headers():
    """The fields of a header model are dashed, lists are repeated fields, and other headers do not count."""

    class Wanted(BaseModel):
        model_config = ConfigDict(extra="forbid")

        user_agent: str
        x_tag: list[Level] = []
        level: Level = Level.LOW
        trace: str = Field("", alias="X-Trace-ID")

    service = marked("header", Wanted)
    headers = [("User-Agent", "u"), ("X-Tag", "1"), ("X-Tag", "2"), ("level", "2"), ("x-trace-id", "t"), ("a", "b")]
    value = Wanted.model_validate({"user_agent": "u", "x_tag": [1, 2], "level": 2, "X-Trace-ID": "t"})
    assert await bound(service, headers=headers) == repr(value)
    status, errors = await bound(service, headers=[("x-tag", "1"), ("x-tag", "3")])
    assert (status, errors) == (422, [(["header", "user-agent"], "missing"), (["header", "x-tag", 1], "enum")])


async def test_repeated_headers():
    """Of a header that came twice the first counts, in a model as well; a list has both."""

    class Wanted(BaseModel):
        x: int

    headers = [("x", "1"), ("X", "2")]
    assert await bound(marked("header", int), headers=headers) == "1"
    assert await bound(marked("header", Wanted), headers=headers) == repr(Wanted(x=1))
    assert await bound(marked("header", list[int]), headers=headers) == "[1, 2]"


async def test_models_of_cookies():
    """A model takes the cookies of a request."""
    service = marked("cookie", Filter)
    value = Filter.model_validate({"limit": 7, "level": 2, "orderBy": "name"})
    assert await bound(service, headers={"cookie": "limit=7; level=2; orderBy=name; other=1"}) == repr(value)
    assert await bound(service) == repr(Filter())
    assert await bound(marked("cookie", Closed), headers={"cookie": "a=1"}) == (
        422,
        [(["cookie", "a"], "extra_forbidden")],
    )


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        ({"cookie": "x=1; x=2"}, "2"),
        ([("cookie", "x=1"), ("cookie", "y=2; x=3")], "3"),
        ({"cookie": 'x="a b"'}, "a b"),
        ({"cookie": 'x="\\374\\073"'}, "ü;"),
        ({"cookie": "x="}, ""),
        ({"cookie": "x=a=b"}, "a=b"),
    ],
)
async def test_cookies(headers, value):
    """Cookies are unquoted; of two with one name the last counts."""
    assert await bound(marked("cookie", str), headers=headers) == repr(value)


class Chosen(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int = Field(0, validation_alias=AliasChoices("size", "s"))
    by_name: int = 0


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)

    order_by: str = Field("id", alias="orderBy")


class Indexed(BaseModel):
    size: int = Field(0, validation_alias=AliasPath("sizes", 0))


class Deep(BaseModel):
    model_config = ConfigDict(strict=True)

    size: int = 0


class Root(RootModel[int]):
    pass


class Nested(BaseModel):
    inner: Item | None = None


@pytest.mark.parametrize(
    ("model", "query", "value"),
    [
        (Chosen, "s=3", Chosen(size=3)),
        (Chosen, "size=3&by_name=1", Chosen(size=3, by_name=1)),
        (Named, "orderBy=a", Named(orderBy="a")),
        (Named, "order_by=a", Named(orderBy="a")),
        case("a strict model gets texts as Python's: 422 for every number", Deep, "size=3", Deep(size=3)),
    ],
)
async def test_names_of_fields_in_models(model, query, value):
    """A field has any of the names that the model gives it."""
    assert await bound(marked("query", model), query=query) == repr(value)


def test_fields_found_by_a_path():
    """A field that pydantic looks for inside of another one is not to be had from a query."""
    with pytest.raises(DeclarationError, match="field 'size' of Indexed is found by AliasPath"):
        marked("query", Indexed)


@pytest.mark.parametrize(("model", "words"), [(Nested, "field 'inner' of Nested is an object"), (Root, "no pydantic")])
def test_models_that_no_text_fills(model, words):
    """A model with a model in it, or of no fields at all, cannot come from a query."""
    with pytest.raises(DeclarationError, match=words):
        marked("query", model)


async def test_two_closed_models():
    """Fields that another model of the same handler takes are not unknown."""
    service = Service("test")

    class More(BaseModel):
        model_config = ConfigDict(extra="forbid")

        more: int = 0

    @service.get("/")
    async def show(one: Annotated[Closed, Query()], two: Annotated[More, Query()]) -> str:
        return f"{one.limit} {two.more}"

    assert await bound(service, query="limit=1&more=2") == "1 2"


async def test_a_closed_model_and_a_dependency():
    """A query parameter of a dependency is not unknown to a model with extra="forbid"."""
    service = Service("test")

    def page(page: int) -> int:
        return page

    def doubled(number: Annotated[int, Depends(page)], times: int = 2) -> int:
        return number * times

    @service.get("/")
    async def show(one: Annotated[Closed, Query()], number: Annotated[int, Depends(doubled)]) -> str:
        return f"{one.limit} {number}"

    assert await bound(service, query="limit=1&page=2&times=3") == "1 6"
    assert await bound(service, query="limit=1&page=2&more=3") == (422, [(["query", "more"], "extra_forbidden")])


async def test_a_closed_form_and_a_dependency():
    """A field of the form that a dependency takes is not unknown to a model with extra="forbid"."""
    service = Service("test")

    def page(page: Annotated[int, Form()]) -> int:
        return page

    @service.post("/")
    async def show(one: Annotated[Closed, Form()], number: Annotated[int, Depends(page)]) -> str:
        return f"{one.limit} {number}"

    request = {"method": "POST", "headers": {"content-type": FORM}}
    assert await bound(service, body="limit=1&page=2", **request) == "1 2"
    assert await bound(service, body="page=2&more=3", **request) == (422, [(["body", "more"], "extra_forbidden")])


@pytest.mark.parametrize(
    ("scheme", "source", "request_fields"),
    [
        (ApiKey(query="key"), Query(), {"query": "limit=1&key=k"}),
        (ApiKey(cookie="key"), Cookie(), {"headers": {"cookie": "limit=1; key=k"}}),
    ],
    ids=["query", "cookie"],
)
async def test_a_closed_model_and_an_api_key(scheme, source, request_fields):
    """The key of whoever calls is not unknown to a model with extra="forbid", where the scheme is asked."""
    service = Service("test")

    def limit(one) -> int:
        return one.limit

    async def show(one, key: Annotated[str, Auth(scheme)], two: Annotated[int, Depends(limit)]) -> str:
        return f"{one.limit} {key} {two}"

    async def guarded(one) -> str:
        return str(one.limit)

    for function in (limit, show, guarded):
        function.__annotations__["one"] = Annotated[Closed, source]
    service.get("/")(show)
    service.get("/guarded", depends=[Auth(scheme)])(guarded)
    service.get("/open")(guarded)
    assert await bound(service, **request_fields) == "1 k 1"
    assert await bound(service, raw_path="/guarded", **request_fields) == "1"
    [place] = {"query", "cookie"} & {source.source}
    refused = (422, [([place, "key"], "extra_forbidden")])
    assert await bound(service, raw_path="/open", **request_fields) == refused


async def test_models_and_single_values():
    """What a single parameter takes is not unknown to a model of the same source."""
    service = Service("test")

    @service.get("/")
    async def show(one: Annotated[Closed, Query()], page: int, two: Annotated[Filter, Query()]) -> str:
        return f"{one.limit} {page} {two.limit}"

    assert await bound(service, query="limit=1&page=2") == "1 2 1"


@pytest.mark.parametrize(
    ("annotation", "query", "value"),
    [
        (list[int], "x=1,2,3", [1, 2, 3]),
        (list[int], "x=1,2&x=3", [1, 2, 3]),
        (list[int], "x=%201,%202", [1, 2]),
        (set[Level], "x=1,2,1", {Level.LOW, Level.HIGH}),
        (tuple[int, str], "x=1,b", (1, "b")),
        (list[str], "x=a%2Cb", ["a", "b"]),
        (list[int], "x=1,b", (422, [(["query", "x", 1], "int_parsing")])),
        (list[int], "", (422, [(["query", "x"], "missing")])),
        (list[int] | None, "x=1", [1]),
        (list[int], "x=", (422, [(["query", "x", 0], "int_parsing")])),
        (list[str], "x=", [""]),
    ],
)
async def test_csv(annotation, query, value):
    """With csv a query has a list in one value, or in several."""
    found = await bound(served(Annotated[annotation, Query(csv=True)], "/"), query=query)
    assert found == (value if isinstance(value, tuple) and value[0] == 422 else repr(value))


# ── embedded bodies ──────────────────────────────────────────────────────────────────────────────


def embedding(second: str = "") -> Service:
    """Return the service of a handler with an embedded item, and what `second` says."""
    names = {"Annotated": Annotated, "Body": Body, "Item": Item, "Level": Level}
    exec(f"async def show(item: Annotated[Item, Body(embed=True)]{second}) -> str: return repr(locals())", names)
    service = Service("test")
    service.post("/")(names["show"])
    return service


ONE = Item(name="a")
TWO = ", level: Annotated[Level, Body(embed=True, alias='the-level', ge=1)] = Level.LOW"


@pytest.mark.parametrize(
    ("second", "body", "value"),
    [
        ("", '{"item": {"name": "a"}, "more": 1}', {"item": ONE}),
        ("", '{"name": "a"}', [(["body", "item"], "missing")]),
        ("", "", [(["body"], "missing")]),
        ("", "null", [(["body"], "model_type")]),
        ("", "[]", [(["body"], "model_type")]),
        ("", "{", [(["body"], "json_invalid")]),
        (TWO, '{"item": {"name": "a"}}', {"item": ONE, "level": Level.LOW}),
        (TWO, '{"item": {"name": "a"}, "the-level": 2}', {"item": ONE, "level": Level.HIGH}),
        (TWO, '{"item": {"name": "a"}, "level": 2}', {"item": ONE, "level": Level.LOW}),
        (TWO, '{"item": {}, "the-level": 3}', [(["body", "item", "name"], "missing"), (["body", "the-level"], "enum")]),
    ],
)
async def test_embedded_bodies(second, body, value):
    """Embedded parameters are keys of one JSON object, with aliases, defaults, and all errors at once."""
    found = await bound(embedding(second), method="POST", body=body)
    assert found == ((422, value) if isinstance(value, list) else repr(value))


async def test_embedded_defaults():
    """A body of which every key has a default may be absent."""
    service = served(Annotated[int, Body(embed=True)], "/", "POST", default=5)
    for body, value in (
        ("", "5"),
        ("{}", "5"),
        ('{"x": 6}', "6"),
        ('{"x": null}', (422, [(["body", "x"], "int_type")])),
    ):
        assert await bound(service, method="POST", body=body) == value


@pytest.mark.parametrize(
    "name",
    ["order-id", "a b", "ü", "json", "copy", "schema", "model_config", "model_dump", "_x", "key0", "self", "body"],
)
async def test_names_of_embedded_keys(name):
    """A key of the JSON object may have any name."""
    service = served(Annotated[int, Body(embed=True, alias=name)], "/", "POST")
    assert await bound(service, method="POST", body=json.dumps({name: 7})) == "7"


async def test_media_types_of_embedded_bodies():
    """An embedded body has a media type like any other."""
    service = served(Annotated[int, Body(embed=True, media_type="application/vnd.x+json")], "/", "POST")
    for media, found in (("application/vnd.x+json", "7"), ("application/json", (415, []))):
        assert await bound(service, method="POST", body='{"x": 7}', headers={"content-type": media}) == found


# ── raw bodies and media types ───────────────────────────────────────────────────────────────────

PLAIN, PNG = Body(media_type="text/plain"), Body(media_type="image/png")

# annotation, body, content type, value or status
RAW = [
    (Annotated[bytes, Body()], b"\xff\0", None, b"\xff\0"),
    (Annotated[bytes, Body()], b"", None, b""),
    (Annotated[bytes, Body()], b"x", "anything/else", b"x"),
    (Annotated[bytes, Body(min_length=1)], b"", None, [(["body"], "bytes_too_short")]),
    (Annotated[bytes, PNG], b"x", "image/png", b"x"),
    (Annotated[bytes, PNG], b"x", "IMAGE/PNG; q=1", b"x"),
    (Annotated[bytes, PNG], b"x", None, b"x"),
    (Annotated[bytes, PNG], b"x", "image/jpeg", 415),
    (Annotated[bytes, PNG], b"", "image/png", [(["body"], "missing")]),
    (Annotated[bytes | None, PNG], b"x", "image/png", b"x"),
    (Annotated[str, PLAIN], "ü".encode(), None, "ü"),
    (Annotated[str, PLAIN], b"x", "text/plain; charset=utf-8", "x"),
    (Annotated[str, PLAIN], b"x", "application/json", 415),
    (Annotated[str, PLAIN], b"\xff", "text/plain", [(["body"], "string_unicode")]),
    (Annotated[int, PLAIN], b"7", "text/plain", 7),
    (Annotated[Level, PLAIN], b"7", "text/plain", [(["body"], "enum")]),
    (Annotated[str, Body(media_type="text/csv", max_length=2)], b"abc", None, [(["body"], "string_too_long")]),
    (Annotated[dict, Body(media_type="application/merge-patch+json")], b"{}", "application/merge-patch+json", {}),
    (Annotated[dict, Body(media_type="application/merge-patch+json")], b"{}", "application/json", 415),
    (Annotated[str, Body()], b'"x"', "text/plain", 415),
    (Annotated[bytes, Body(media_type="image/PNG")], b"x", "image/png", b"x"),
    (Annotated[str, Body(media_type="text/plain; charset=utf-8")], b"x", "text/plain", "x"),
    (Annotated[str, PLAIN], b"\xfc", "text/plain; charset=iso-8859-1", [(["body"], "string_unicode")]),
    (Annotated[str, PLAIN], b"", "text/plain", [(["body"], "missing")]),
]


@pytest.mark.parametrize(("annotation", "body", "media", "value"), RAW)
async def test_raw_bodies(annotation, body, media, value):
    """Bytes come as they are, text as UTF-8 whatever its charset, and only in the media type that was asked for."""
    headers = {} if media is None else {"content-type": media}
    found = await bound(served(annotation, "/", "POST"), method="POST", body=body, headers=headers)
    if isinstance(value, int) and value > 400:
        assert found == (value, [])
    else:
        assert found == ((422, value) if isinstance(value, list) else repr(value))


async def test_absent_raw_bodies():
    """A text that has a default may be absent; raw bytes are always there, if only none of them."""
    assert await bound(served(Annotated[str, PLAIN], "/", "POST", default="d"), method="POST") == "'d'"
    assert await bound(served(Annotated[bytes, PNG], "/", "POST", default=b"d"), method="POST") == "b'd'"
    assert await bound(served(Annotated[bytes, Body()], "/", "POST", default=b"d"), method="POST") == "b''"


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


def multipart(*parts: tuple[str, str | None, bytes]) -> dict[str, Any]:
    """Return the request of a multipart form of (name, file name or None, content)."""
    body = b""
    for name, filename, content in parts:
        attributes = f'; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
        body += f"--b\r\nContent-Disposition: form-data{attributes}\r\n\r\n".encode() + content + b"\r\n"
    return {
        "method": "POST",
        "body": body + b"--b--\r\n",
        "headers": {"content-type": "multipart/form-data; boundary=b"},
    }


def taking(annotation: Any, **default: Any) -> Service:
    """Return the service whose handler answers with what is in the file or files of `x`."""
    service = Service("test")

    async def show(x) -> Any:
        if isinstance(x, list):
            return [[one.filename, one.size, (await one.read()).decode()] for one in x]
        return [x.filename, x.size, (await x.read()).decode()] if isinstance(x, UploadFile) else repr(x)

    show.__annotations__["x"] = annotation
    show.__defaults__ = tuple(default.values())
    service.post("/")(show)
    return service


FILE, OTHER, EMPTY, TEXT = ("x", "a.txt", b"abc"), ("x", "b", b"\0"), ("x", "", b""), ("x", None, b"abc")
FILE_OUT, OTHER_OUT = ["a.txt", 3, "abc"], ["b", 1, "\0"]
NOT_A_FILE = [(["body", "x"], "value_error")]
MISSING = [(["body", "x"], "missing")]

# annotation, parts, what the handler sees, or errors
FILES = [
    (UploadFile, [FILE], FILE_OUT),
    (UploadFile, [OTHER, FILE], FILE_OUT),
    (UploadFile, [("x", "empty", b"")], ["empty", 0, ""]),
    (UploadFile, [EMPTY], MISSING),
    (UploadFile, [], MISSING),
    (UploadFile, [TEXT], NOT_A_FILE),
    (Annotated[UploadFile, File()], [FILE], FILE_OUT),
    (Annotated[UploadFile, Form()], [FILE], FILE_OUT),
    (UploadFile | None, [FILE], FILE_OUT),
    (list[UploadFile], [FILE, OTHER], [FILE_OUT, OTHER_OUT]),
    (list[UploadFile], [FILE, EMPTY], [FILE_OUT]),
    (list[UploadFile], [FILE, TEXT], [(["body", "x", 1], "value_error")]),
    (list[UploadFile], [], MISSING),
    (Annotated[bytes, File()], [FILE], "b'abc'"),
    (Annotated[bytes, File()], [TEXT], "b'abc'"),
    (Annotated[bytes, File(max_length=2)], [FILE], [(["body", "x"], "bytes_too_long")]),
    (Annotated[tuple[bytes, ...], File()], [FILE, OTHER], "(b'abc', b'\\x00')"),
    (Annotated[str, Form()], [TEXT], "'abc'"),
    (Annotated[bytes, Form()], [TEXT], "b'abc'"),
    (Annotated[str, Form()], [FILE], [(["body", "x"], "string_type")]),
    (Annotated[int, Form()], [FILE], [(["body", "x"], "string_type")]),
    (Annotated[Level, Form()], [FILE], [(["body", "x"], "enum")]),
    (Annotated[list[str], Form()], [TEXT, FILE], [(["body", "x", 1], "string_type")]),
]


@pytest.mark.parametrize(("annotation", "parts", "seen"), FILES)
async def test_files(annotation, parts, seen):
    """Files come as UploadFile or bytes, alone or several; text for a file and a file for text are refused."""
    response = await taking(annotation).handle(Request(**multipart(*parts)))
    found = response.text if response.headers["content-type"].startswith("text/") else response.parse_json()
    refused = isinstance(seen, list) and isinstance(seen[0], tuple)
    if refused:
        assert (response.status, [(one["loc"], one["type"]) for one in found["errors"]]) == (422, seen)
    else:
        assert (response.status, found) == (200, seen)


@pytest.mark.parametrize("annotation", [UploadFile | None, Annotated[bytes | None, File()]])
async def test_absent_files(annotation):
    """A file with a default may be absent, and an input that was left empty counts as absent."""
    for parts in ([], [EMPTY], [("y", "f", b"1")]):
        assert await bound(taking(annotation, default=None), **multipart(*parts)) == "None"
    assert await bound(taking(annotation, default=None), method="POST") == "None"


class Upload(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=2)
    level: Level = Level.LOW
    photo: UploadFile | None = None
    others: list[UploadFile] = []


async def test_models_of_forms_with_files():
    """A form model has texts, enums, files and lists of files, and refuses what it does not know."""
    service = Service("test")

    @service.post("/")
    async def show(upload: Annotated[Upload, Form()]) -> list[Any]:
        photo = upload.photo and upload.photo.filename
        return [upload.name, upload.level, photo, [await one.read() for one in upload.others]]

    full = [("name", None, "ü!".encode()), ("level", None, b"2"), ("photo", "p.png", b"1")]
    request = multipart(*full, ("others", "a", b"2"), ("others", "b", b"3"))
    assert json.loads(await bound(service, **request)) == ["ü!", 2, "p.png", ["2", "3"]]
    request = multipart(("name", None, b"ab"), ("photo", "", b""))
    assert json.loads(await bound(service, **request)) == ["ab", 1, None, []]
    request = multipart(("name", None, b"a"), ("level", None, b"3"), ("photo", None, b"1"), ("more", None, b"1"))
    assert await bound(service, **request) == (
        422,
        [
            (["body", "name"], "string_too_short"),
            (["body", "level"], "enum"),
            (["body", "photo"], "value_error"),
            (["body", "more"], "extra_forbidden"),
        ],
    )


@pytest.mark.parametrize(
    ("annotation", "body", "default", "value"),
    [
        (str, "x=", ..., (422, MISSING)),
        (str, "x=", "d", "'d'"),
        (str, "x=+", ..., "' '"),
        (int, "x=&x=7", ..., "7"),
        (list[str], "x=&x=a&x=", ..., "['a']"),
        (list[str], "x=", [], "[]"),
        (Level, "x", Level.LOW, "<Level.LOW: 1>"),
    ],
)
async def test_empty_fields_of_forms(annotation, body, default, value):
    """A field that was left empty is not there."""
    service = marked("form", annotation, default)
    assert await bound(service, method="POST", body=body, headers={"content-type": FORM}) == value


@pytest.mark.parametrize(
    ("media", "status"),
    [(FORM, 200), (f"{FORM.upper()}; charset=utf-8", 200), ("application/json", 415), (None, 415), ("", 415)],
)
async def test_media_types_of_forms(media, status):
    """A body of another type than a form's is 415 that says what is accepted."""
    headers = {} if media is None else {"content-type": media}
    response = await marked("form", str).handle(Request(method="POST", body="x=a", headers=headers))
    assert response.status == status
    assert response.headers.get("accept") == (None if status == 200 else f"multipart/form-data, {FORM}")


async def test_refused_fields_of_all_sources():
    """Path, query, headers, cookies and form are all checked before the request is refused."""
    service = Service("test")

    @service.post("/<a>")
    async def show(
        a: int,
        b: int,
        more: Annotated[Filter, Query()],
        x_count: Annotated[int, Header()],
        sid: Annotated[UUID, Cookie()],
        name: Annotated[str, Form(max_length=2)],
        photo: UploadFile,
    ) -> str:
        raise AssertionError("must not be called")

    request = multipart(("name", None, b"abc"), ("photo", None, b"1"))
    request["headers"] |= {"x-count": "x", "cookie": "sid=1"}
    assert await bound(service, raw_path="/x", query="limit=y", **request) == (
        422,
        [
            (["path", "a"], "int_parsing"),
            (["query", "b"], "missing"),
            (["query", "limit"], "int_parsing"),
            (["header", "x-count"], "int_parsing"),
            (["cookie", "sid"], "uuid_parsing"),
            (["body", "name"], "string_too_long"),
            (["body", "photo"], "value_error"),
        ],
    )


# ── more mistakes at declaration ─────────────────────────────────────────────────────────────────

MORE = """\
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Optional
import fastapi
import pydantic
from pydantic import BaseModel
from starlette.datastructures import UploadFile as StarletteUploadFile
from natsweb import Body, Cookie, Depends, File, Form, Header, Partial, Path, Query, UploadFile
from natsweb import Request, Response, Service
class Thing: ...
class Model(BaseModel): ...
@dataclass
class Point:
    x: int
def made() -> int: ...
svc = Service("mistakes")
@svc.post("{path}")
async def show({parameters}): ...
"""
LINE = f"app.py:{MORE[: MORE.index('@svc')].count(chr(10)) + 1}"


# parameters, parts of what, parts of fix
PARAMETERS = [
    ("x: int = Query()", "'x' has Query() as its default", "x: Annotated[..., Query(...)]"),
    ("x: int = Depends(made)", "'x' has Depends(made) as its default", "x: Annotated[..., Depends(...)]"),
    ("x: Annotated[int, Query(), Header()]", "two markers, Query() and Header()", "keep one"),
    ("x: Annotated[int, Query]", "Query in Annotated is the class", "Query() with its parentheses"),
    ("x: Annotated[int, Path()]", "'x' takes it from the path, and the path has no <x>", "the same name"),
    ("x: Annotated[int, Query(csv=True)]", "Query(csv=True) of 'x' wants a list", "x: list[int]"),
    ("x: Annotated[list[Model], Query()]", "'x' is a list of objects, which no query can carry", "from the body"),
    ("x: Annotated[list[Model], Header()]", "'x' is a list of objects, which no header can carry", "from the body"),
    ("x: Annotated[list[Model], Form()]", "'x' is a list of objects, which no form can carry", "from the body"),
    ("x: Annotated[Point, Query()]", "'x' takes query fields into Point, which is no pydantic model", "a BaseModel"),
    ("x: Annotated[dict, Cookie()]", "'x' takes cookie fields into dict", "a BaseModel"),
    ("x: Annotated[Model | Point, Form()]", "'x' takes form fields into", "a BaseModel"),
    ("x: Annotated[Model, Query()] = Model()", "'x' is a model of query fields and has a default", "their defaults"),
    ("x: Annotated[str, File()]", "'x' is a file, which is an UploadFile or bytes", "x: UploadFile"),
    ("x: Annotated[list[str], File()]", "'x' is a file, which is an UploadFile or bytes", "Annotated[bytes, File()]"),
    ("x: Annotated[list, File()]", "'x' is a file, which is an UploadFile or bytes", "Annotated[bytes, File()]"),
    ("x: Annotated[str, Query(ge=1)]", "ge= means nothing for str", "min_length="),
    ("x: Model, y: UploadFile", "'x' wants a JSON body and 'y' a form", "all of it from the form, or from JSON"),
    ("x: Model, y: Model", "'x' and 'y' both want the request body", "Body(embed=True)"),
    ("x: Annotated[int, Body(embed=True)], y: Model", "'y' wants the whole body", "mark y with Body(embed=True)"),
    ("x: Partial", "'x': Partial stands for some fields of a pydantic model", "Partial[Order]"),
    ("x: Annotated[Response, 1]", "'x' is a Response, which is what a handler returns", "return Response("),
    ("x: Optional[Thing]", "'x' has a type that pydantic cannot take", "a dataclass"),
    ("x: Annotated[Thing, Body(embed=True)]", "'x' has a type that pydantic cannot take", "a dataclass"),
    ("x: Annotated[Thing, File()]", "'x' has a type that pydantic cannot take", "a dataclass"),
    ("x: Annotated[Thing, Header()]", "'x' has a type that pydantic cannot take", "a dataclass"),
    ("*, x", "'x' has no type", "x: int for ?x=7"),
    ("x: int = Query", "'x' has <class 'natsweb.params.Query'> as its default", "x: Annotated[..., Query(...)]"),
    ("x: int = pydantic.Field(3, ge=1)", "as its default", "x: Annotated[..., Query(...)]"),
    ("x: int = fastapi.Query(3)", "'x' has Query(3) as its default", "x: Annotated[..., Query(...)]"),
    ("x: Annotated[str, fastapi.Header()]", "Header in Annotated is FastAPI's", "from natsweb import Header"),
    ("x: Annotated[int, fastapi.Depends(made)]", "Depends in Annotated is FastAPI's", "from natsweb import Depends"),
    ("x: fastapi.UploadFile", "'x' is fastapi's UploadFile, not natsweb's", "natsweb.UploadFile"),
    ("x: fastapi.UploadFile | None = None", "'x' is fastapi's UploadFile, not natsweb's", "natsweb.UploadFile"),
    ("x: Annotated[fastapi.UploadFile, File()]", "'x' is fastapi's UploadFile, not natsweb's", "natsweb.UploadFile"),
    case("taken for query parameters, and always missing", "x: list[fastapi.UploadFile]", "UploadFile", "natsweb"),
    ("x: Annotated[UploadFile, Query()]", "'x' is a file, which only a form can carry", "x: UploadFile without"),
    ("x: Annotated[UploadFile, Body()]", "'x' is a file, which only a form can carry", "x: UploadFile without"),
    ("x: UploadFile | str", "'x' is a file or something else", "x: UploadFile"),
    ("x: list[list[int]]", "'x' is a list of lists, which no query can carry", "flatten it"),
    (
        "x: Annotated[int, Body(embed=True, alias='k')], y: Annotated[int, Body(embed=True, alias='k')]",
        "two parameters take the key 'k' of the body",
        "another alias",
    ),
    ("x: Annotated[int, Depends(made)] = 7", "'x' depends on something, and has a default", "take the default away"),
    ("x: Annotated[int, Depends(made)] = None", "'x' depends on something, and has a default", "take the default"),
    ("x: StarletteUploadFile", "'x' is starlette's UploadFile, not natsweb's", "natsweb.UploadFile"),
    ("x: fastapi.Request", "'x' is starlette's Request, not natsweb's", "natsweb.Request"),
    ("x: fastapi.BackgroundTasks", "'x' is fastapi's BackgroundTasks, not natsweb's", "natsweb.Background"),
    case("the remedy is natsweb.Request", "x: fastapi.Response", "'x' is starlette's Response", "return Response("),
    ("x: Annotated[int | str, Query(ge=1)]", "ge= means nothing for str", "min_length="),
    ("x: Annotated[int | str, Query(min_length=1)]", "min_length= means nothing for int", "ge= and le="),
]


@pytest.mark.parametrize(("parameters", "what", "fix"), PARAMETERS)
def test_mistakes_in_parameters(parameters, what, fix):
    """What could never be bound is a mistake with its value, place and remedy."""
    with pytest.raises(DeclarationError) as caught:
        load(MORE.replace("{path}", "/").replace("{parameters}", parameters))
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert LINE in caught.value.where[0]
    assert '@svc.post("/")' in caught.value.where[0]
    assert "async def show(" in caught.value.where[0]


async def test_none_as_the_default_of_a_dependency():
    """A dependency that may give None may say so once more, as a call without the service would want it."""
    service = Service("test")

    @service.get("/")
    async def show(x: Annotated[int | None, Depends(lambda: 7)] = None) -> str:
        return repr(x)

    assert await bound(service) == "7"


# parameters of a handler at /<x>, parts of what, parts of fix
CAPTURED = [
    ("x: Model", "<x> is one piece of text, which never makes a Model", "annotate x with int, str, UUID"),
    ("x: list[int]", "<x> is one piece of text, which never makes a list", "annotate x with"),
    ("x: Request", "<x> is one piece of text, which never makes a Request", "annotate x with"),
    ("x: Annotated[int, Query()]", "'x' says Query(), and the path has a <x>", "the same name"),
    ("x: Annotated[int, Depends(made)]", "<x> has no parameter", ""),
]


@pytest.mark.parametrize(("parameters", "what", "fix"), CAPTURED)
def test_mistakes_in_captures(parameters, what, fix):
    """What a path could never give is a mistake with its value, place and remedy."""
    with pytest.raises(DeclarationError) as caught:
        load(MORE.replace("{path}", "/<x>").replace("{parameters}", parameters))
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert LINE in str(caught.value)
