"""From routes to an OpenAPI 3.1 document: every kind of input, answer and security scheme, and always a valid one."""

import json
from collections.abc import AsyncIterator
from enum import Enum
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, Field

from natsweb import (
    ApiKey,
    Auth,
    Basic,
    Bearer,
    Body,
    Cookie,
    Created,
    Depends,
    File,
    FileResponse,
    Form,
    Header,
    Partial,
    Path,
    Query,
    Reply,
    Request,
    Response,
    Router,
    Service,
    UploadFile,
    delete,
)

T = TypeVar("T")


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    """What somebody has ordered."""

    id: int
    item: str = Field(min_length=2, description="what it is")
    color: Color = Color.RED


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: str | None = None


class Filter(BaseModel):
    limit: int = Field(10, ge=1, le=100)
    colors: list[Color] = []


class Upload(BaseModel):
    title: str
    photo: UploadFile


class Tracing(BaseModel):
    x_trace: str
    x_span: int | None = None


PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def described(
    handler: Any, path: str = "/", method: str = "post", **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the operation of a service with one route, and its whole document, which is valid."""
    service = Service("test")
    getattr(service, method)(path, **options)(handler)
    document = service.openapi()
    validate(document)
    [operations] = document["paths"].values()
    return operations[method], document


def parameters(operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of an operation by place and name."""
    return {f"{one['in']} {one['name']}": one for one in operation.get("parameters", [])}


def content(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of each content type of a body."""
    return {media: value["schema"] for media, value in operation["requestBody"]["content"].items()}


async def test_the_document_says_what_the_service_is() -> None:
    """Name, version and description of the service are those of the document; every answer may be a problem."""
    service = Service("orders", version="1.2.3", description="Orders of the shop")

    @service.get("/")
    async def index() -> str:
        return ""

    document = service.openapi()
    validate(document)
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "orders", "version": "1.2.3", "description": "Orders of the shop"}
    assert document["paths"]["/"]["get"] == {
        "operationId": "index",
        "responses": {
            "200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}},
            "default": {"description": "Any other error", "content": PROBLEM},
        },
    }
    assert set(document["components"]["schemas"]) == {"Problem", "FieldError"}


async def test_a_service_without_routes_has_a_document() -> None:
    """An empty service is described as well."""
    document = Service("empty").openapi()
    validate(document)
    assert document["paths"] == {}


async def test_parameters_of_all_places() -> None:
    """Path, query, headers and cookies are listed with their schema, and required or not."""

    async def show(
        id: Annotated[int, Path(ge=1, description="its number")],
        kind: Literal["a", "b"],
        since: UUID | None = None,
        ids: Annotated[list[int], Query(csv=True, max_length=3)] = [],  # noqa: B006
        user_agent: Annotated[str, Header()] = "none",
        sid: Annotated[str | None, Cookie(deprecated=True)] = None,
        hidden: Annotated[int, Query(include_in_schema=False)] = 0,
    ) -> None: ...

    operation, _ = described(show, "/orders/<id>", "get")
    found = parameters(operation)
    assert found["path id"] == {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "its number",
        "schema": {"type": "integer", "minimum": 1},
    }
    assert found["query kind"]["schema"] == {"type": "string", "enum": ["a", "b"]}
    assert found["query kind"]["required"]
    assert found["query since"]["schema"]["anyOf"] == [{"type": "string", "format": "uuid"}, {"type": "null"}]
    assert found["query ids"]["schema"] == {"type": "array", "items": {"type": "integer"}, "maxItems": 3, "default": []}
    assert not found["query ids"]["explode"]
    assert found["header user-agent"]["schema"] == {"type": "string", "default": "none"}
    assert found["cookie sid"]["deprecated"]
    assert "query hidden" not in found
    assert operation["responses"]["422"]["content"] == PROBLEM
    assert operation["responses"]["204"] == {"description": "No Content"}


async def test_models_of_parameters_are_their_fields() -> None:
    """A model of query or header fields is not there itself; its fields are."""

    async def find(filter: Annotated[Filter, Query()], tracing: Annotated[Tracing, Header()]) -> Page[Order]: ...

    operation, document = described(find, method="get")
    found = parameters(operation)
    assert set(found) == {"query limit", "query colors", "header x-trace", "header x-span"}
    assert found["query limit"]["schema"]["maximum"] == 100
    assert found["query colors"]["schema"]["items"] == {"$ref": "#/components/schemas/Color"}
    assert found["header x-trace"]["required"]
    assert set(document["components"]["schemas"]) == {"Color", "FieldError", "Order", "Page_Order_", "Problem"}


async def test_bodies() -> None:
    """JSON, partial models, keys of one object, raw bytes and text each have their content type."""

    async def one(order: Order) -> None: ...
    async def patch(order: Partial[Order]) -> None: ...
    async def both(a: Annotated[Order, Body(embed=True)], n: Annotated[int, Body(embed=True, ge=1)] = 1) -> None: ...
    async def raw(data: Annotated[bytes, Body()]) -> None: ...
    async def text(data: Annotated[str, Body(media_type="text/csv")]) -> None: ...
    async def numbers(data: Annotated[list[int], Body()]) -> None: ...

    order = {"$ref": "#/components/schemas/Order"}
    assert content(described(one)[0]) == {"application/json": order}
    operation, document = described(patch, method="patch")
    assert content(operation) == {"application/json": {"$ref": "#/components/schemas/OrderPatch"}}
    assert "required" not in document["components"]["schemas"]["OrderPatch"]
    assert content(described(both)[0])["application/json"] == {
        "type": "object",
        "properties": {"a": order, "n": {"type": "integer", "minimum": 1, "default": 1}},
        "required": ["a"],
    }
    assert content(described(raw)[0]) == {"application/octet-stream": {}}
    assert content(described(text)[0]) == {"text/csv": {"type": "string"}}
    assert content(described(numbers)[0]) == {"application/json": {"type": "array", "items": {"type": "integer"}}}


async def test_forms() -> None:
    """A form without files is urlencoded, one with files multipart; files are binary strings."""

    async def login(name: Annotated[str, Form()], remember: Annotated[bool, Form()] = False) -> None: ...
    async def photos(photos: list[UploadFile], raw: Annotated[bytes, File()]) -> None: ...
    async def model(upload: Annotated[Upload, Form()]) -> None: ...

    assert content(described(login)[0])["application/x-www-form-urlencoded"] == {
        "type": "object",
        "properties": {"name": {"type": "string", "minLength": 1}, "remember": {"type": "boolean", "default": False}},
        "required": ["name"],
    }
    binary = {"type": "string", "format": "binary"}
    assert content(described(photos)[0])["multipart/form-data"]["properties"] == {
        "photos": {"type": "array", "items": binary},
        "raw": binary,
    }
    operation, document = described(model)
    assert content(operation) == {"multipart/form-data": {"$ref": "#/components/schemas/Upload"}}
    assert document["components"]["schemas"]["Upload"]["properties"]["photo"] == binary | {"title": "Photo"} or (
        document["components"]["schemas"]["Upload"]["properties"]["photo"] == binary
    )


REF = {"$ref": "#/components/schemas/Order"}
ORDER = {"application/json": {"schema": REF}}


ANYTHING: dict[str, Any] = {"*/*": {"schema": {}}}


@pytest.mark.parametrize(
    ("annotation", "options", "expected"),
    [
        (None, {}, {"204": None}),
        (Order, {}, {"200": ORDER}),
        (Order, {"status": 202}, {"202": ORDER}),
        (Created[Order], {}, {"201": ORDER}),
        (Reply[Order], {"status": 202}, {"202": ORDER}),
        (Order | Created[Order], {}, {"200": ORDER, "201": ORDER}),
        (Order | None, {}, {"200": ORDER, "204": None}),
        (list[Order], {}, {"200": {"application/json": {"schema": {"type": "array", "items": REF}}}}),
        (bytes, {}, {"200": {"application/octet-stream": {"schema": {}}}}),
        (Response, {}, {"2XX": ANYTHING}),
        (Response, {"status": 201}, {"201": ANYTHING}),
        (Response, {"status": 204}, {"204": None}),
        (FileResponse, {}, {"200": ANYTHING, "206": ANYTHING}),
        (Order | Response, {}, {"200": ORDER, "2XX": ANYTHING}),
        (Any, {}, {"200": {"application/json": {"schema": {}}, **ANYTHING}, "204": None}),
        (Any, {"status": 202}, {"202": {"application/json": {"schema": {}}, **ANYTHING}}),
    ],
    ids=str,
)
async def test_answers(annotation: Any, options: dict[str, Any], expected: dict[str, Any]) -> None:
    """Status and content of answers come from the return annotation."""

    async def handler():  # type: ignore[no-untyped-def]
        ...

    handler.__annotations__["return"] = annotation
    operation, _ = described(handler, **options)
    found = {status: one.get("content") for status, one in operation["responses"].items() if status < "4"}
    assert found == expected


async def test_words_of_a_route() -> None:
    """Docstring, tags, names, deprecation and further answers are there; a hidden route is not."""
    service = Service("shop", tags=["shop"])
    router = Router("/<shop>/orders", tags=["orders"])

    @router.get("/<id>", tags=["one"], deprecated=True, operation_id="getOrder", responses={404: "No such order"})
    async def show(id: int) -> Order:
        """Show one
        order.

        With all that is known.
        """
        raise NotImplementedError

    @router.get("/secret", include_in_schema=False)
    async def secret() -> None: ...

    service.include(router)
    document = service.openapi()
    validate(document)
    assert list(document["paths"]) == ["/{shop}/orders/{id}"]
    operation = document["paths"]["/{shop}/orders/{id}"]["get"]
    assert operation["operationId"] == "getOrder"
    assert operation["tags"] == ["shop", "orders", "one"]
    assert operation["summary"] == "Show one order."
    assert operation["description"] == "With all that is known."
    assert operation["deprecated"]
    assert operation["responses"]["404"] == {"description": "No such order", "content": PROBLEM}
    assert set(parameters(operation)) == {"path shop", "path id"}


async def test_operation_ids_are_unique() -> None:
    """Methods of one handler, and handlers of one name, get different ids."""
    service = Service("test")

    @service.route("/both", methods=["GET", "POST"])
    async def show() -> None: ...

    class Things:
        @delete("/<id>")
        async def show(self, id: int) -> None: ...

    for prefix in ("/a", "/b", "/c"):
        service.include(Things(), prefix=prefix)
    document = service.openapi()
    validate(document)
    ids = [one["operationId"] for path in document["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids)) == 5


async def test_inputs_of_dependencies_are_inputs_of_the_route() -> None:
    """What a dependency takes from the request stands in the document once."""

    async def page(request: Request, limit: Annotated[int, Query(le=9)] = 3) -> AsyncIterator[int]:
        yield limit

    async def show(
        a: Annotated[int, Depends(page)], b: Annotated[int, Depends(page, shared=False)], q: str = ""
    ) -> None: ...

    operation, _ = described(show, method="get")
    assert list(parameters(operation)) == ["query q", "query limit"]


async def test_security() -> None:
    """Schemes, scopes and optional ones are listed; different schemes of one name are told apart."""
    bearer, other = Bearer(str.strip, format="JWT"), Bearer(str.strip)
    key, basic = ApiKey(str.strip, header="x-key"), Basic()

    async def show(
        user: Annotated[str, Auth(bearer, scopes=["read"])],
        key: Annotated[str, Auth(key)],
    ) -> None: ...

    operation, document = described(show, method="get", depends=[Auth(other)])
    assert operation["security"] == [{"bearer2": ["read"], "bearer": [], "apiKey": []}]
    assert document["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer"},
        "bearer2": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "x-key"},
    }
    assert operation["responses"]["401"]["content"] == PROBLEM

    async def maybe(user: Annotated[Any | None, Auth(basic)]) -> None: ...

    assert described(maybe, method="get")[0]["security"] == [{}, {"basic": []}]


async def test_equal_names_of_different_models() -> None:
    """Two models of one name are two schemas."""

    def make(kind: type) -> type[BaseModel]:
        class Item(BaseModel):
            n: kind  # type: ignore[valid-type]

        return Item

    one, two = make(int), make(str)

    async def handler(body):  # type: ignore[no-untyped-def]
        ...

    handler.__annotations__.update({"body": one, "return": two})
    operation, document = described(handler)
    taken = content(operation)["application/json"]["$ref"]
    given = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert taken != given
    assert {taken.rpartition("/")[2], given.rpartition("/")[2]} <= set(document["components"]["schemas"])


class Opaque:
    """A type that pydantic has no JSON schema for."""


class Holding(BaseModel):
    """A model with something in it that JSON schema cannot tell of."""

    model_config = {"arbitrary_types_allowed": True}

    opaque: Opaque | None = None
    name: str = "x"


async def test_types_without_a_schema() -> None:
    """What JSON schema cannot tell of may be anything; the rest is described all the same."""

    async def handler(holding: Holding, odd: complex = 1j) -> Holding: ...

    operation, document = described(handler)
    [parameter] = operation["parameters"]
    assert parameter["name"] == "odd"
    assert document["components"]["schemas"]["Holding"]["properties"]["name"]["type"] == "string"


async def test_defaults_that_json_has_not() -> None:
    """Infinity is no JSON: such a default is left out, on its own and in a model."""

    class Bounds(BaseModel):
        most: float = float("inf")

    async def handler(bounds: Bounds, most: float = float("inf"), least: float = float("nan")) -> None: ...

    operation, document = described(handler)
    json.dumps(document, allow_nan=False)
    assert all("default" not in one["schema"] for one in operation["parameters"])


async def test_paths_that_differ_in_names_only() -> None:
    """OpenAPI takes `/x/{id}` and `/x/{number}` for one path: the first name is everybody's."""
    svc = Service("names")

    @svc.get("/x/<id>")
    async def show(id: int) -> str: ...

    @svc.post("/x/<number>")
    async def change(number: int, id: str = "") -> str: ...

    @svc.get("/x/<path:rest>")
    async def tail(rest: str) -> str: ...

    document = svc.openapi()
    validate(document)
    [item] = document["paths"].values()
    names = {method: {(one["in"], one["name"]) for one in item[method]["parameters"]} for method in item}
    assert names == {"get": {("path", "id")}, "post": {("path", "id"), ("query", "id")}}
    assert item["get"]["operationId"] == "show"
