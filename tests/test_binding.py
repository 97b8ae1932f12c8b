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
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NewType, Optional, Union
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from natsweb import Request, Response, Service
from natsweb.errors import DeclarationError

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


@pytest.mark.parametrize(
    ("media", "status"),
    [
        (None, 200),
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
    """A body of another type than JSON is 415 that says what is accepted; without a type it counts as JSON."""
    headers = {} if media is None else {"content-type": media}
    service = served(Item, "/", "POST")
    response = await service.handle(Request(method="POST", body=b'{"name": "a"}', headers=headers))
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
        ("async def show():\n    yield 1", "cannot yield"),
        ("def show():\n    yield 1", "cannot yield"),
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
