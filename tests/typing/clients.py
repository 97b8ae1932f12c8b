# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What calls of other services give."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, assert_type

from pydantic import BaseModel

from natsweb import Client, Depends, Nats, Response, Service

svc = Service("clients")


class Order(BaseModel):
    id: int


async def chunks() -> AsyncIterator[bytes]:
    yield b""


async def staging(api: Client) -> AsyncIterator[Client]:
    async with Client("api.staging", bus=api.bus, timeout=2) as client:
        yield client


@svc.get("/orders/<id>")
async def show(id: int, api: Client, other: Annotated[Client, Depends(staging, scope="app")]) -> Order:
    assert_type(await api.get("/orders/7", into=Order), Order)
    assert_type(await api.get("/orders", into=list[Order]), list[Order])
    assert_type(await api.get("/orders/7"), Response)
    assert_type(await api.get("/orders/7", into=Order | None), Any)
    assert_type(await api.post("/orders", json=Order(id=1), into=Order, timeout=3), Order)
    assert_type(await api.put("/orders", data={"a": [1]}, params={"b": 2}, headers={"x": "y"}), Response)
    assert_type(await api.patch("/orders", body=chunks(), raise_for_status=False), Response)
    assert_type(await api.head("/orders"), Response)
    assert_type(await api.request("QUERY", "/orders", into=bytes), bytes)
    async with other.stream("GET", "/orders") as answer:
        assert_type([piece async for piece in answer], list[bytes])
        assert_type([line async for line in answer.lines()], list[str])
    return await other.get(f"/orders/{id}", into=Order)


async def start(nats: Nats) -> None:
    async with Client(nats=nats) as api:
        await api.get("/", into=Order, nonsense=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
