"""Markers as values, what they refuse, `Partial` for PATCH, and `UploadFile` as a type of pydantic."""

import io
import json
from datetime import date
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    TypeAdapter,
    ValidationError,
    computed_field,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from natsweb import Request, Service
from natsweb.errors import DeclarationError, InvalidInput
from natsweb.params import (
    Body,
    Constraints,
    Cookie,
    Depends,
    File,
    Form,
    Header,
    Marker,
    Partial,
    Path,
    Query,
    UploadFile,
    partial_model,
)

MARKERS = {Path: "path", Query: "query", Header: "header", Cookie: "cookie", Body: "body", Form: "form", File: "form"}


def bug(reason: str) -> Any:
    """Mark a case that natsweb gets wrong, with what it does instead."""
    return pytest.mark.xfail(strict=True, reason=reason)


# ── markers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "source"), MARKERS.items())
def test_markers(kind, source):
    """Every marker knows its source, and has its settings as attributes."""
    bare, full = kind(), kind(include_in_schema=False, deprecated=True, ge=1, title="T")
    assert (kind.source, repr(bare)) == (source, f"{kind.__name__}()")
    assert (bare.alias, bare.include_in_schema, bare.deprecated, bare.constraints) == (None, True, False, {})
    assert (full.include_in_schema, full.deprecated) == (False, True)
    assert full.constraints == {"deprecated": True, "ge": 1, "title": "T"}
    assert full.field.title == "T"
    assert isinstance(bare, Marker)
    if kind is not Path:
        named = kind(alias="x-y")
        assert (named.alias, repr(named)) == ("x-y", f"{kind.__name__}(alias='x-y')")


@pytest.mark.parametrize("name", Constraints.__annotations__)
def test_every_constraint_is_taken_by_every_marker(name):
    """What `Constraints` lists is what markers take; pydantic sees all but `deprecated`."""
    value = {"pattern": "a", "title": "t", "description": "d", "examples": ["e"]}.get(name, 1)
    for kind in MARKERS:
        assert kind(**{name: value}).constraints == {name: value}


def test_settings_of_their_own():
    """`csv` belongs to Query, `embed` and `media_type` to Body."""
    assert (Query().csv, Query(csv=True).csv) == (False, True)
    assert (Body().embed, Body().media_type) == (False, None)
    assert (Body(embed=True, media_type="text/csv").embed, Body(media_type="text/csv").media_type) == (True, "text/csv")


# call, parts of the message
REFUSED_NAMES = [
    (lambda: Query(minlength=3), ["Query() takes no 'minlength'", "did you mean min_length?"]),
    (lambda: Path(gte=3), ["Path()", "did you mean ge?"]),
    (lambda: Path(alias="id"), ["Path() takes no 'alias'", "call the capture as the parameter"]),
    (lambda: Body(example=1), ["Body()", "did you mean examples?"]),
    (lambda: Header(desription="x"), ["Header()", "did you mean description?"]),
    (lambda: Query(CSV=True), ["Query() takes no 'CSV'", "did you mean csv?"]),
    (lambda: Body(embeded=True), ["Body()", "did you mean embed?"]),
    (lambda: Header(convert_underscores=False), ["Header()", "did you mean alias?"]),
    (lambda: Query(default=7), ["Query() takes no 'default'", "a default goes after the parameter: = 7"]),
    (lambda: Form(default_factory=list), ["Form()", "a default goes after the parameter"]),
]


@pytest.mark.parametrize(("call", "parts"), REFUSED_NAMES)
def test_unknown_constraints(call, parts):
    """A name that the marker does not take is refused with the nearest one, or where defaults and names go."""
    with pytest.raises(TypeError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("kind", MARKERS)
def test_positional_defaults(kind):
    """`q: str = Query(None)`, FastAPI's older spelling, is refused: a marker has names only."""
    with pytest.raises(TypeError, match="positional argument"):
        kind(None)


@pytest.mark.parametrize("scope", ["handler", "request", "app"])
def test_dependencies(scope):
    """A dependency holds what it calls, and its settings."""
    one = Depends(len, scope=scope, inline=True, shared=False)
    assert (one.dependency, one.scope, one.inline, one.shared, repr(one)) == (len, scope, True, False, "Depends(len)")
    assert one.resolve(int) is len
    assert (Depends().resolve(dict), Depends().resolve(int | None), Depends().shared) == (dict, None, True)


@pytest.mark.parametrize(
    ("call", "what", "fix"),
    [
        (lambda: Depends(7), "not 7", "without calling it"),
        (lambda: Depends(scope="function"), "'function' is no scope", "'handler', 'request', 'app'"),
    ],
)
def test_refused_dependencies(call, what, fix):
    """What cannot be called, and a scope that does not exist, are refused."""
    with pytest.raises(DeclarationError) as caught:
        call()
    assert what in caught.value.what
    assert fix in caught.value.fix


# ── UploadFile ───────────────────────────────────────────────────────────────────────────────────


def test_upload_file_as_a_type():
    """An upload validates to itself, anything else is refused, and documents call it binary."""
    adapter = TypeAdapter(UploadFile)
    upload = UploadFile(io.BytesIO(b"abc"), filename="a.txt", size=3)
    assert adapter.validate_python(upload) is upload
    assert adapter.json_schema() == {"type": "string", "format": "binary"}
    for other in ("text", b"bytes", None, io.BytesIO()):
        with pytest.raises(ValidationError, match="send it as a file, in a multipart form"):
            adapter.validate_python(other)


# ── Partial ──────────────────────────────────────────────────────────────────────────────────────

T = TypeVar("T")


class Address(BaseModel):
    city: str
    zip: str = "0"


class Order(BaseModel):
    """An order whose `note` has another name on the wire, with validators of one field and of all."""

    id: int
    item: str = Field(min_length=2)
    note: str | None = Field("none", alias="Note")
    tags: list[str] = Field(default_factory=lambda: ["new"])
    address: Address = Address(city="Bonn")

    @field_validator("item")
    @classmethod
    def _lower(cls, item: str) -> str:
        return item.lower()

    @model_validator(mode="before")
    @classmethod
    def _has_id(cls, data: Any) -> Any:
        if "id" not in data:
            raise ValueError("an order has an id")
        return data

    @model_validator(mode="after")
    def _tea_is_tagged(self) -> "Order":
        if self.item == "tea" and not self.tags:
            raise ValueError("tea has tags")
        return self


ORDER = Order(id=7, item="tea", Note="n")


def sent(model: Any, body: str) -> Any:
    """Return the `Partial[model]` of a JSON body."""
    return TypeAdapter(Partial[model]).validate_json(body)


# body, changes
CHANGES = [
    ("{}", {}),
    ('{"id": "8"}', {"id": 8}),
    ('{"item": "TEA"}', {"item": "tea"}),
    ('{"Note": null}', {"note": None}),
    ('{"note": "by its name"}', {}),
    ('{"tags": []}', {"tags": []}),
    ('{"address": {"city": "Ulm"}}', {"address": Address(city="Ulm")}),
    ('{"unknown": 1, "id": 1}', {"id": 1}),
]


@pytest.mark.parametrize(("body", "changes"), CHANGES)
def test_changes(body, changes):
    """The changes are the fields that were sent, validated, by their names in Python; defaults are not there."""
    patch = sent(Order, body)
    assert patch.changes == changes
    assert list(patch) == list(changes)
    assert all((name in patch) == (name in changes) for name in Order.model_fields)
    assert repr(patch) == f"Partial[Order]({changes!r})"
    assert TypeAdapter(Partial[Order]).dump_python(patch).keys() == changes.keys()
    expected = {name: getattr(ORDER, name) for name in Order.model_fields} | changes
    if expected["tags"]:
        applied = patch.apply(ORDER)
        assert type(applied) is Order
        assert {name: getattr(applied, name) for name in Order.model_fields} == expected
    assert Order(id=7, item="tea", Note="n") == ORDER


# body, loc, error type
REFUSED = [
    ('{"id": "x"}', ("id",), "int_parsing"),
    ('{"id": null}', ("id",), "int_type"),
    ('{"item": "t"}', ("item",), "string_too_short"),
    ('{"Note": 1}', ("Note",), "string_type"),
    ('{"tags": [1]}', ("tags", 0), "string_type"),
    ('{"address": {}}', ("address", "city"), "missing"),
    ("[]", (), "model_type"),
    ("{", (), "json_invalid"),
]


@pytest.mark.parametrize(("body", "loc", "kind"), REFUSED)
def test_refused_changes(body, loc, kind):
    """A field that was sent is validated as in the model, a nested model as a whole."""
    with pytest.raises(ValidationError) as caught:
        sent(Order, body)
    assert [(one["loc"], one["type"]) for one in caught.value.errors()] == [(loc, kind)]


def test_the_model_as_a_whole():
    """Validators of the whole model see it when changes are applied, and what they refuse is 422."""
    patch = sent(Order, '{"tags": []}')
    with pytest.raises(InvalidInput) as caught:
        patch.apply(ORDER)
    assert caught.value.status == 422
    assert caught.value.errors == [{"loc": ["body"], "msg": "Value error, tea has tags", "type": "value_error"}]
    assert patch.apply(ORDER.model_copy(update={"item": "cup"})).tags == []


def test_the_model_keeps_its_validators():
    """Making the partial model leaves the model itself as it was."""
    assert partial_model(Order) is partial_model(Order)
    assert (partial_model(Order).__name__, partial_model(Order).__module__) == ("OrderPatch", __name__)
    with pytest.raises(ValidationError, match="tea has tags"):
        Order(id=1, item="tea", tags=[])
    with pytest.raises(ValidationError, match="an order has an id"):
        Order.model_validate({})


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_the_schema_of_a_partial(mode):
    """Documents show the fields with their names on the wire and their bounds: none required, no defaults."""
    schema = TypeAdapter(Partial[Order]).json_schema(mode=mode)
    assert schema["title"] == "OrderPatch"
    assert "required" not in schema
    assert list(schema["properties"]) == ["id", "item", "Note", "tags", "address"]
    assert not any("default" in one for one in schema["properties"].values())
    assert schema["properties"]["item"]["minLength"] == 2


def test_partials_as_values():
    """Two partials are equal if their models and changes are; equal ones hash alike."""
    one, same, other = (sent(Order, body) for body in ('{"id": 1}', '{"id": 1}', '{"id": 2}'))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != {"id": 1}
    assert sent(Address, "{}") != sent(Order, "{}")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", validate_default=True)

    id: UUID
    on: date
    sizes: tuple[int, ...] = ()
    kind: Literal["a", "b"] = "a"


class Node(BaseModel):
    value: int
    child: "Node | None" = None


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: int = 0


class Squares(BaseModel):
    side: int = 1

    @computed_field(return_type=int)
    def area(self):
        return self.side**2


class Numbers(RootModel[list[int]]):
    pass


def test_partials_of_other_models():
    """Strict, frozen, recursive, generic and computing models can be changed in part."""
    strict = Strict(id=UUID(int=1), on=date(2024, 1, 1))
    assert sent(Strict, '{"kind": "b"}').apply(strict) == strict.model_copy(update={"kind": "b"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        sent(Strict, '{"other": 1}')
    assert sent(Strict, "{}").changes == {}
    assert sent(Node, '{"child": {"value": 1}}').apply(Node(value=0)).child == Node(value=1)
    assert sent(Page[Order], '{"next": 2}').changes == {"next": 2}
    assert sent(Squares, '{"side": 3}').apply(Squares()).area == 9


async def test_partials_of_strict_models():
    """JSON is as strict for a partial as it is for its model, and so are values of Python."""
    strict = Strict(id=UUID(int=1), on=date(2024, 1, 1))
    patch = sent(Strict, '{"on": "2024-02-29", "sizes": [1]}')
    assert patch.apply(strict) == Strict(id=UUID(int=1), on=date(2024, 2, 29), sizes=(1,))
    with pytest.raises(ValidationError, match="valid integer"):
        sent(Strict, '{"sizes": ["1"]}')
    adapter = TypeAdapter(Partial[Strict])
    assert adapter.validate_python(patch) is patch
    assert adapter.validate_python({"on": date(2024, 2, 29), "sizes": (1,)}) == patch
    with pytest.raises(ValidationError, match="valid date"):
        adapter.validate_python({"on": "2024-02-29"})
    assert (await patched(Partial[Strict], '{"on": "2024-02-29"}'))[0] == 200
    assert await patched(Partial[Strict], '{"on": 7}') == (422, ["body", "on"])


@pytest.mark.parametrize("wrong", [int, dict, Order | Node, T, Numbers])
def test_partials_of_no_model(wrong):
    """Only a pydantic model that is no RootModel has fields that may be left out."""
    with pytest.raises(DeclarationError, match=r"write Partial\[Order\]"):
        TypeAdapter(Partial[wrong])


def test_a_partial_inside_a_model():
    """A partial may be the field of another model."""

    class Change(BaseModel):
        order: Partial[Order]
        reason: str

    change = Change.model_validate_json('{"order": {"item": "CUP"}, "reason": "r"}')
    assert change.order.apply(ORDER).item == "cup"
    assert Change.model_json_schema()["$defs"]["OrderPatch"]["type"] == "object"


async def patched(annotation: Any, body: str, **default: Any) -> tuple[int, str]:
    """Return status and body of a PATCH whose handler answers with the repr of its parameter."""
    service = Service("test")

    async def change(patch) -> str:
        return repr(patch)

    change.__annotations__["patch"] = annotation
    if default:
        change.__defaults__ = tuple(default.values())
    service.patch("/")(change)
    response = await service.handle(Request(method="PATCH", body=body))
    return response.status, response.text if response.status == 200 else response.parse_json()["errors"][0]["loc"]


@pytest.mark.parametrize(
    ("annotation", "body", "answer"),
    [
        (Partial[Address], '{"zip": "1"}', (200, "Partial[Address]({'zip': '1'})")),
        (Partial[Address], "{}", (200, "Partial[Address]({})")),
        (Partial[Address], "", (422, ["body"])),
        (Partial[Address], '{"city": 1}', (422, ["body", "city"])),
        (Partial[Address] | None, "null", (200, "None")),
        (list[Partial[Address]], '[{"zip": "1"}]', (200, "[Partial[Address]({'zip': '1'})]")),
        (Annotated[Partial[Address], Body()], "{}", (200, "Partial[Address]({})")),
        (Annotated[Partial[Address], Body(embed=True)], '{"patch": {}}', (200, "Partial[Address]({})")),
    ],
)
async def test_partials_as_parameters(annotation, body, answer):
    """A handler takes a partial as its JSON body, with and without a marker."""
    assert await patched(annotation, body) == answer


async def test_a_refused_whole_is_422():
    """What `apply` refuses inside a handler is a 422 for the caller."""
    service = Service("test")

    @service.patch("/")
    async def change(patch: Partial[Order]) -> Order:
        return patch.apply(ORDER)

    response = await service.handle(Request(method="PATCH", body='{"tags": []}'))
    assert (response.status, response.parse_json()["errors"][0]["loc"]) == (422, ["body"])
    response = await service.handle(Request(method="PATCH", body='{"Note": "x"}'))
    assert (response.status, response.parse_json()["Note"]) == (200, "x")


@pytest.mark.parametrize("marker", [Query(), Form(), Header()])
def test_partials_come_from_the_body(marker):
    """Only JSON tells a field that is missing from one that is empty."""
    service = Service("test")

    async def change(patch): ...

    change.__annotations__["patch"] = Annotated[Partial[Order], marker]
    with pytest.raises(DeclarationError, match="Partial"):
        service.patch("/")(change)


# ── Partial: models that mean something by their own code ────────────────────────────────────────


class Computes(BaseModel):
    price: int
    count: int = 1
    _total: int = PrivateAttr(0)

    def model_post_init(self, context: Any) -> None:
        self._total = self.price * self.count


class Between(BaseModel):
    low: int
    high: int

    @field_validator("high")
    @classmethod
    def _ordered(cls, high: int, info: Any) -> int:
        if high < info.data["low"]:
            raise ValueError("high is below low")
        return high


class Doubles(BaseModel):
    stored: int
    other: int = 0

    @field_validator("stored")
    @classmethod
    def _double(cls, stored: int) -> int:
        return stored * 2


class Splits(BaseModel):
    words: list[str]
    other: int = 0

    @field_validator("words", mode="before")
    @classmethod
    def _split(cls, words: str) -> list[str]:
        return words.split()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    known: int = 0


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    known: int = 0


class Stored(Closed):
    owner: str = "me"


class Old(BaseModel):
    old: int = Field(0, deprecated=True)


class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    first_name: str
    last_name: str = "x"


class Spelled(BaseModel):
    note: str = Field(alias="Note")
    other: int = 0

    @model_validator(mode="before")
    @classmethod
    def _has_a_note(cls, data: Any) -> Any:
        if "Note" not in data:
            raise ValueError("there is no Note")
        return data


# body, value before, field -> value after
APPLIED = [
    ('{"count": 3}', Computes(price=2), {"count": 3, "_total": 2}),
    pytest.param(
        '{"high": 3}',
        Between(low=1, high=2),
        {"high": 3},
        marks=bug("a field validator that reads info.data sees None for what was not sent: TypeError, 500"),
    ),
    ('{"other": 1}', Doubles(stored=1), {"stored": 2, "other": 1}),
    ('{"stored": 5}', Doubles(stored=1), {"stored": 10}),
    ('{"other": 1}', Splits(words="a b"), {"words": ["a", "b"]}),
    ('{"known": 1}', Open(extra=5), {"known": 1, "extra": 5}),
    ('{"extra": 6}', Open(extra=5), {"extra": 6}),
    ('{"known": 1}', Stored(owner="you"), {"known": 1, "owner": "you"}),
    ('{"lastName": "y"}', Camel(firstName="a"), {"first_name": "a", "last_name": "y"}),
    ('{"last_name": "y"}', Camel(firstName="a"), {"first_name": "a", "last_name": "x"}),
    pytest.param(
        '{"other": 1}',
        Spelled(Note="n"),
        {"note": "n", "other": 1},
        marks=bug("a before-validator of the whole gets names of fields instead of their aliases: 422"),
    ),
    pytest.param('{"old": 1}', Old(), {"old": 1}, marks=bug("apply reads a deprecated field with a warning")),
]


@pytest.mark.parametrize(("body", "before", "after"), APPLIED)
def test_applied(body, before, after):
    """Applying gives a copy that differs in what was sent, and in nothing else."""
    model = Closed if isinstance(before, Stored) else type(before)
    applied = sent(model, body).apply(before)
    assert type(applied) is type(before)
    assert {name: getattr(applied, name) for name in after} == after


async def test_a_partial_as_the_answer():
    """A handler may send back what it was sent."""
    service = Service("test")

    @service.patch("/")
    async def change(patch: Partial[Address]) -> Partial[Address]:
        return patch

    response = await service.handle(Request(method="PATCH", body='{"zip": "1"}'))
    assert (response.status, json.loads(response.text)) == (200, {"zip": "1"})
