"""What services answer is what their document says: requests made of the document, sent through a gateway.

schemathesis makes them, valid ones and others, and checks status, content type and body of every answer.
"""

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import date, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from pydantic import BaseModel, Field
from schemathesis.specs.openapi.checks import negative_data_rejection

import natsweb
from natsweb import (
    Auth,
    Bearer,
    Body,
    Cookie,
    Created,
    Form,
    Header,
    HTTPError,
    Nats,
    Partial,
    Query,
    Response,
    Service,
    UploadFile,
    redirect,
)
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.member import Member
from natsweb.natsbus import connect

ORDERS = Path(__file__).parent.parent / "examples" / "orders" / "app.py"
#: The gateway draws random numbers in its own thread, and Hypothesis, which sees only that some were drawn, blames the
#: strategy.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

EXAMPLES = 8  # requests for each operation, valid ones and as many others

#: pydantic takes `"5"` for a number, and true for 1: values of other types than the document's may be accepted.
LAX = [negative_data_rejection]

Open = Callable[..., Awaitable[str]]


@pytest.fixture
async def gate(nats_url: str) -> AsyncIterator[Open]:
    """Give a function that puts services behind a gateway with docs, and gives its URL."""
    nats = Nats(urls=(nats_url,))
    async with AsyncExitStack() as stack:

        async def start(*services: Service, root: str) -> str:
            bus = await connect(nats)
            stack.push_async_callback(bus.close)
            for svc in services:
                member = Member(bus, svc, root=root, quiet=0.02)
                await member.start()
                stack.callback(svc.close)
                stack.push_async_callback(member.stop, 1.0)
            gateway = await stack.enter_async_context(Gateway(root, nats=nats, docs=True))
            front = Front(gateway, port=0, grace=1.0)
            await front.start()
            stack.push_async_callback(front.stop)
            return front.url

        yield start


def conforms(url: str) -> list[str]:
    """Send requests made of the document; return the operations. Raises for an answer that the document has not."""
    operations = [result.ok() for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
    bounded = settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @seed(1)
            @bounded
            @given(case=operation.as_strategy(generation_mode=mode))
            def answers(case: schemathesis.Case) -> None:
                case.call_and_validate(excluded_checks=LAX)

            try:
                answers()
            except Unsatisfiable:  # it takes no input that could be wrong
                assert mode == schemathesis.GenerationMode.NEGATIVE
    return [operation.label for operation in operations]


def load(path: Path) -> ModuleType:
    """Return an example as a module of its own."""
    spec = importlib.util.spec_from_file_location("example", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_orders_example(gate: Open) -> None:
    """The example of the README."""
    url = await gate(load(ORDERS).svc, root="conform")
    assert "PATCH /orders/{id}" in await asyncio.to_thread(conforms, url)


# ── everything that a route can have ──


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Item(BaseModel):
    name: str = Field(min_length=2, max_length=10)
    price: float = Field(ge=0)
    tags: list[str] = []
    color: Color = Color.RED
    born: date | None = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]
    tail: float


class Filter(BaseModel):
    limit: int = Field(10, ge=1, le=100)
    colors: list[Color] = []


TEA = Item(name="tea", price=1.5)


def bodies() -> Service:
    """Return a service that takes bodies of all kinds."""
    svc = Service("bodies")

    @svc.post("/items")
    async def create(item: Item) -> Created[Item]:
        return Created(item, location="/items/1")

    @svc.put("/items/<id>")
    async def replace(id: UUID, item: Item) -> Item:
        return item

    @svc.patch("/items/<id>")
    async def change(id: UUID, item: Annotated[Partial[Item], Body()]) -> dict[str, Any]:
        return {}

    @svc.post("/pets")
    async def pet(pet: Annotated[Cat | Dog, Field(discriminator="kind")]) -> Cat | Dog:
        return pet

    @svc.post("/two")
    async def two(item: Annotated[Item, Body(embed=True)], number: Annotated[int, Body(ge=0, embed=True)]) -> Item:
        return item

    @svc.post("/form")
    async def form(name: Annotated[str, Form()], number: Annotated[int, Form()] = 1) -> dict[str, Any]:
        return {"name": name, "number": number}

    @svc.post("/upload")
    async def upload(title: Annotated[str, Form()], photo: UploadFile) -> dict[str, int]:
        return {"size": len(await photo.read())}

    @svc.post("/raw")
    async def raw(body: Annotated[bytes, Body()]) -> bytes:
        return body

    return svc


def inputs() -> Service:
    """Return a service that takes inputs of all places, and answers in all ways."""
    svc = Service("inputs")

    @svc.get("/items")
    async def index(
        number: Annotated[list[int], Query()] = [],  # noqa: B006
        word: Annotated[list[str], Query(csv=True)] = [],  # noqa: B006
        color: Color | None = None,
        since: datetime | None = None,
        long: timedelta | None = None,
        flag: bool = False,
        few: Annotated[int, Query(ge=3, le=7)] = 5,
    ) -> list[Item]:
        return [TEA]

    @svc.get("/filtered")
    async def filtered(filter: Annotated[Filter, Query()]) -> Filter:
        return filter

    @svc.get("/headers")
    async def headers(x_trace: Annotated[str, Header(min_length=2)], x_span: Annotated[int, Header()] = 3) -> str:
        return x_trace

    @svc.get("/cookies")
    async def cookies(sid: Annotated[str, Cookie()] = "x") -> str:
        return sid

    @svc.get("/files/<path:rest>")
    async def file(rest: str) -> str:
        return rest

    @svc.get("/items/<id>")
    async def show(id: int) -> Item | None:
        return None if id % 2 else TEA

    @svc.delete("/items/<number>")
    async def remove(number: Annotated[int, natsweb.Path(ge=1, le=2**40)]) -> None: ...

    @svc.get("/days/<day>")
    async def day(day: date) -> date:
        return day

    @svc.get("/ratios/<ratio>")
    async def ratio(ratio: float) -> float:
        return ratio

    @svc.get("/any")
    async def anything(value: Any = None) -> Any:
        return value

    @svc.get("/gone", responses={404: "always"})
    async def gone(ever: bool = True) -> None:
        raise HTTPError(404 if ever else 409)

    @svc.get("/elsewhere")
    async def elsewhere() -> Response:
        return redirect("/items")

    @svc.get("/feed")
    async def feed(number: Annotated[int, Query(ge=0, le=3)] = 1) -> AsyncIterator[Item]:
        for _ in range(number):
            yield TEA

    async def nobody(token: str) -> None:
        return None

    @svc.get("/secret")
    async def secret(user: Annotated[str, Auth(Bearer(nobody))]) -> str:
        return user

    return svc


async def test_everything_that_a_route_can_have(gate: Open) -> None:
    """Inputs of all places and bodies of all kinds, of two services, with all kinds of answers."""
    url = await gate(bodies(), inputs(), root="conform_all")
    assert len(await asyncio.to_thread(conforms, url)) == 22
