"""Documents of several services as one: names that clash, paths that overlap, and documents that say anything."""

import json
from typing import Any

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, create_model

from natsweb import Auth, Basic, Bearer, Service
from natsweb.merges import Place, Source, merge, parse, shape_of


def source(service: Service) -> Source:
    """Return a service's document with all paths where they are."""
    document = service.openapi()
    return Source(
        service.name, service.version, document, {shape_of(path): [Place(path, None)] for path in document["paths"]}
    )


def serving(name: str, path: str, *models: type[BaseModel], **options: Any) -> Service:
    """Return a service with a route that answers one of some models."""
    svc = Service(name, version="1.0.0")
    returns: Any = models[0]
    for model in models[1:]:
        returns = returns | model

    async def show(): ...

    show.__annotations__["return"] = returns
    svc.get(path, **options)(show)
    return svc


def merged(*sources: Source) -> dict[str, Any]:
    """Return one document, which is valid, whatever the order of its sources."""
    document = merge("api", sources)
    validate(document)
    assert json.dumps(document) == json.dumps(merge("api", reversed(sources)))
    return document


def answer(document: dict[str, Any], path: str) -> Any:
    """Return the schema that a GET answers with."""
    return document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]


def raw(name: str, paths: dict[str, Any], **rest: Any) -> Source:
    """Return a source of somebody else's document."""
    document = {"openapi": "3.1.0", "info": {"title": name, "version": "1"}, "paths": paths, **rest}
    return Source(name, "1", document, {shape_of(path): [Place(path, None)] for path in paths})


Order = create_model("Order", id=(int, ...))
OtherOrder = create_model("Order", number=(str, ...))
SameOrder = create_model("Order", id=(int, ...))
Left = create_model("Left", id=(int, ...))


def test_nothing_gives_a_valid_document():
    """A gateway without services has a document, too."""
    assert merged()["paths"] == {}


def test_equal_names_of_different_schemas_are_told_apart():
    """The service that sorts first keeps the name; the other's gets its service's name in front, wherever it stands."""
    document = merged(source(serving("orders", "/orders", Order)), source(serving("shop", "/shop", OtherOrder)))
    assert answer(document, "/orders") == {"$ref": "#/components/schemas/Order"}
    assert answer(document, "/shop") == {"$ref": "#/components/schemas/shop_Order"}
    assert [*document["components"]["schemas"]] == ["FieldError", "Order", "Problem", "shop_Order"]
    assert document["components"]["schemas"]["shop_Order"]["properties"]["number"]["type"] == "string"


def test_equal_schemas_are_shared():
    """The same schema in two services stands there once."""
    document = merged(source(serving("orders", "/orders", Order)), source(serving("shop", "/shop", SameOrder)))
    assert answer(document, "/orders") == answer(document, "/shop")
    assert [*document["components"]["schemas"]] == ["FieldError", "Order", "Problem"]


def test_schemas_that_refer_to_different_ones_are_different():
    """What reads the same is told apart if something that it refers to, at any distance, is not the same."""
    sources = []
    for name, order in (("a", Order), ("b", OtherOrder), ("c", SameOrder), ("d", Order)):
        line = create_model("Line", order=(order, ...))
        page = create_model("Page", lines=(list[line], ...))  # type: ignore[valid-type]
        sources.append(source(serving(name, f"/{name}", page)))
    document = merged(*sources)
    schemas = document["components"]["schemas"]
    assert [*schemas] == ["FieldError", "Line", "Order", "Page", "Problem", "b_Line", "b_Order", "b_Page"]
    assert [answer(document, f"/{name}")["$ref"][21:] for name in "abcd"] == ["Page", "b_Page", "Page", "Page"]
    assert schemas["b_Page"]["properties"]["lines"]["items"] == {"$ref": "#/components/schemas/b_Line"}
    assert schemas["b_Line"]["properties"]["order"] == {"$ref": "#/components/schemas/b_Order"}


def test_a_schema_that_refers_to_a_renamed_one_is_not_shared():
    """`Page` of b stands there with b's own order; that of c reads the same, and means another one."""
    page_b = create_model("Page", order=(OtherOrder, ...))
    page_c = create_model("Page", order=(Order, ...))
    document = merged(
        source(serving("a", "/a", Order)), source(serving("b", "/b", page_b)), source(serving("c", "/c", page_c))
    )
    schemas = document["components"]["schemas"]
    assert [*schemas] == ["FieldError", "Order", "Page", "Problem", "b_Order", "c_Page"]
    assert schemas["Page"]["properties"]["order"]["$ref"].endswith("/b_Order")
    assert schemas["c_Page"]["properties"]["order"]["$ref"].endswith("/Order")


def test_schemas_that_refer_to_each_other():
    """Rings of schemas are shared if they are equal, and told apart as a whole if they are not."""

    def ring(extra: str) -> dict[str, Any]:
        reference = "#/components/schemas/"
        return {
            "Left": {"type": "object", "properties": {"right": {"$ref": f"{reference}Right"}}},
            "Right": {"type": "object", "properties": {"left": {"$ref": f"{reference}Left"}, extra: {}}},
        }

    def ringing(name: str, extra: str) -> Source:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Left"}}}
        operation = {"responses": {"200": {"description": "OK", "content": content}}}
        return raw(name, {f"/{name}": {"get": operation}}, components={"schemas": ring(extra)})

    document = merged(ringing("a", "x"), ringing("b", "y"), ringing("c", "x"))
    assert [*document["components"]["schemas"]] == ["Left", "Right", "b_Left", "b_Right"]
    assert answer(document, "/a") == answer(document, "/c") != answer(document, "/b")


def test_names_made_of_names_are_told_apart_too():
    """`shop_Order` may be somebody's own name."""
    own = create_model("shop_Order", x=(int, ...))
    document = merged(source(serving("orders", "/orders", Order, own)), source(serving("shop", "/shop", OtherOrder)))
    assert [*document["components"]["schemas"]] == ["FieldError", "Order", "Problem", "shop_Order", "shop_Order_2"]
    assert answer(document, "/shop")["$ref"].endswith("/shop_Order_2")


def test_discriminators_are_rewritten():
    """The names in a discriminator's mapping follow."""

    def choosing(name: str, kind: str) -> Source:
        choice = {
            "oneOf": [{"$ref": "#/components/schemas/Cat"}],
            "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/components/schemas/Cat", "x": "else"}},
        }
        content = {"application/json": {"schema": choice}}
        operation = {"responses": {"200": {"description": "OK", "content": content}}}
        cat = {"type": "object", "properties": {"kind": {"type": kind}}}
        return raw(name, {f"/{name}": {"get": operation}}, components={"schemas": {"Cat": cat}})

    document = merged(choosing("a", "string"), choosing("b", "integer"))
    assert answer(document, "/b")["discriminator"]["mapping"] == {"cat": "#/components/schemas/b_Cat"}


def test_operation_ids_and_tags():
    """Ids stay unique; an operation without tags gets its service's name."""
    first, second = Service("first", description="the one"), Service("second")
    for svc in (first, second):

        @svc.get(f"/{svc.name}", operation_id="show")
        async def show() -> str: ...

        @svc.get(f"/{svc.name}/tagged", tags=["shared"])
        async def tagged() -> str: ...

    paths = (document := merged(source(first), source(second)))["paths"]
    operations = [one for path in paths.values() for one in path.values()]
    assert sorted(one["operationId"] for one in operations) == ["second_show", "second_tagged", "show", "tagged"]
    assert [one["tags"] for one in operations] == [["first"], ["shared"], ["second"], ["shared"]]
    assert document["tags"] == [{"name": "first", "description": "the one"}, {"name": "second", "description": ""}]
    assert document["info"] == {"title": "api", "version": "first 0.0.0, second 0.0.0"}


def test_security_schemes_are_told_apart():
    """Two schemes of one name get two, and the operations name theirs."""

    async def verify(*_: Any) -> str: ...

    sources = []
    for name, scheme in (("a", Bearer(verify, name="login")), ("b", Basic(verify, name="login"))):
        svc = Service(name, depends=[Auth(scheme)])

        @svc.get(f"/{name}")
        async def show() -> str: ...

        sources.append(source(svc))
    document = merged(*sources)
    assert {name: one["scheme"] for name, one in document["components"]["securitySchemes"].items()} == {
        "login": "bearer",
        "b_login": "basic",
    }
    assert document["paths"]["/a"]["get"]["security"] == [{"login": []}]
    assert document["paths"]["/b"]["get"]["security"] == [{"b_login": []}]


def test_paths_that_differ_in_names_only_are_one():
    """GET of one service and POST of another stand under one path, with the same names."""
    a, b = Service("a"), Service("b")

    @a.get("/x/<id>")
    async def show(id: int) -> str: ...

    @b.post("/x/<number>")
    async def change(number: int) -> str: ...

    @b.get("/x/<number>")
    async def again(number: int) -> str: ...

    paths = merged(source(a), source(b))["paths"]
    assert [*paths] == ["/x/{id}"]
    assert {method: one["parameters"][0]["name"] for method, one in paths["/x/{id}"].items()} == {
        "get": "id",
        "post": "id",
    }
    assert paths["/x/{id}"]["get"]["operationId"] == "show"


def test_only_what_has_a_place_is_taken_over():
    """Paths and methods without a place are left out, and so is what only they refer to."""
    svc = serving("a", "/a", Order)

    @svc.post("/b")
    async def b(order: Left) -> None: ...  # type: ignore[valid-type]

    places = {"/a": [Place("/x/a", frozenset({"GET"})), Place("/y/a", None)], "/b": [Place("/b", frozenset({"GET"}))]}
    document = merged(Source("a", "1", svc.openapi(), places))
    assert [*document["paths"]] == ["/x/a", "/y/a"]
    assert [*document["components"]["schemas"]] == ["FieldError", "Order", "Problem"]


def test_other_documents():
    """What stands beside operations goes into them; servers and references to elsewhere do not stay."""
    shared = {"name": "tenant", "in": "header", "schema": {"type": "string"}}
    own = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}
    item = {
        "servers": [{"url": "https://elsewhere.example"}],
        "parameters": [shared, {**own, "schema": {}}, {"$ref": "#/components/parameters/Page"}],
        "get": {
            "servers": [{"url": "https://elsewhere.example"}],
            "parameters": [own],
            "responses": {"200": {"$ref": "#/components/responses/Fine"}},
        },
        "x-else": {},
    }
    content = {"application/json": {"schema": {"$ref": "https://elsewhere.example/schema.json"}}}
    components = {
        "parameters": {"Page": {"name": "page", "in": "query", "schema": {}}},
        "responses": {"Fine": {"description": "fine", "content": content}},
        "securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "x-key"}},
    }
    document = merged(
        raw("other", {"/x/{id}": item}, components=components, security=[{"key": []}], servers=[{"url": "/x"}])
    )
    operation = document["paths"]["/x/{id}"]["get"]
    assert operation["parameters"] == [shared, {"$ref": "#/components/parameters/Page"}, own]
    assert operation["security"] == [{"key": []}]
    assert "elsewhere" not in json.dumps(document)
    assert document["components"]["responses"]["Fine"]["content"]["application/json"]["schema"] == {}


@pytest.mark.parametrize(
    "rest",
    [
        {"components": 5},
        {"components": {"schemas": []}},
        {"tags": 5, "info": None},
        {"tags": [5, {"name": []}, {}]},
        {"security": 5},
        {"security": [5, {"key": []}]},
    ],
)
def test_anything_may_stand_in_a_document(rest):
    """Other shapes than OpenAPI's are passed over."""
    paths = {
        "/a": 5,
        "/b": {"get": 5, "post": {}, "put": {"parameters": 5, "tags": 5, "operationId": 5, "security": {}}},
        "/c": {"parameters": [5], "get": {"parameters": [5], "tags": [5, "x"]}},
        "/{d}": {"get": {"parameters": [{"in": "path", "name": []}]}},
    }
    places = {shape_of(path): [Place(path, None)] for path in paths} | {
        "/{}": [Place("/{e}", None), Place("/{f}", None)]
    }
    document = merge(
        "api", [raw("any", paths)._replace(document={"openapi": "3.1.0", "paths": paths, **rest}, places=places)]
    )
    assert [*document["paths"]] == ["/b", "/c", "/{d}"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"openapi": "2.0"}',
        b'{"openapi": 3}',
        b'{"openapi": "3.1.0", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
        b"[" * 200_000,
    ],
)
def test_what_is_no_document_is_none(payload):
    """Broken, foreign and bottomless ones are refused."""
    assert parse(payload) is None


def test_large_documents_are_merged_in_good_time():
    """Thousands of schemas that all clash, in a chain, take no time that grows with their square."""

    def chain(name: str, kind: str) -> Source:
        reference = "#/components/schemas/"
        schemas: dict[str, Any] = {f"M{number}": {"$ref": f"{reference}M{number + 1}"} for number in range(5000)}
        schemas["M5000"] = {"type": kind}
        content = {"application/json": {"schema": {"$ref": f"{reference}M0"}}}
        operation = {"responses": {"200": {"description": "OK", "content": content}}}
        return raw(name, {f"/{name}": {"get": operation}}, components={"schemas": schemas})

    document = merge("api", [chain("a", "string"), chain("b", "integer")])
    assert len(document["components"]["schemas"]) == 10_002
    assert answer(document, "/b") == {"$ref": "#/components/schemas/b_M0"}
