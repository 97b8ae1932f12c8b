"""What typed binding costs beside the same work by hand, in one process and without sockets.

The case: a path value, two query parameters and a JSON body of five fields. By hand that is `int()`, `parse_qsl` and
`TypeAdapter.validate_json`. Both sides take the best of seven runs, one after the other.
"""

import gc
import timeit
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pydantic import BaseModel, TypeAdapter

from natsweb import Headers, Service
from natsweb.messages import Call

__all__ = ["BINDING_BAR", "Binding", "measure_binding"]

#: How many times the cost by hand typed binding may have.
BINDING_BAR = 1.3

_CALLS = 20_000
_RUNS = 7


class Order(BaseModel):
    """Five fields of JSON."""

    id: int
    item: str
    quantity: int
    price: float
    paid: bool


class Binding(NamedTuple):
    """Microseconds by hand and by natsweb."""

    hand: float
    natsweb: float

    @property
    def ratio(self) -> float:
        """How many times the cost by hand."""
        return self.natsweb / self.hand


def measure_binding() -> Binding:
    """Bind one request both ways, make sure that both give the same, and time them."""
    service = Service("benchmark")

    @service.put("/orders/<id>")
    async def change(id: int, order: Order, limit: int = 10, q: str = "") -> Order:
        return order

    service.compile()
    [route] = service.routes
    assert route.recipe is not None
    plan = route.recipe.plan
    body = b'{"id":7,"item":"pen","quantity":3,"price":1.5,"paid":true}'
    headers = Headers({"content-type": "application/json", "host": "127.0.0.1:8000"})
    call = Call("PUT", ["orders", "7"], "limit=5&q=pens", headers, body)
    params = {"id": "7"}
    adapter = TypeAdapter(Order)

    def by_hand() -> dict[str, Any]:
        query = dict(parse_qsl(call.query))
        return {
            "id": int(params["id"]),
            "limit": int(query.get("limit", "10")),
            "q": query.get("q", ""),
            "order": adapter.validate_json(body),
        }

    def by_natsweb() -> dict[str, Any]:
        return plan.bind(call, params)

    if by_hand() != by_natsweb():
        raise AssertionError("both ways must give the same arguments")
    gc.collect()
    return Binding(_best(by_hand), _best(by_natsweb))


def _best(function: Callable[[], object]) -> float:
    return min(timeit.repeat(function, number=_CALLS, repeat=_RUNS)) / _CALLS * 1e6
