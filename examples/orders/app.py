"""Orders: the example of the README. Run it with `natsweb dev examples/orders/app.py`."""

from enum import Enum

from pydantic import BaseModel, Field

from natsweb import HTTPError, Response, Service

svc = Service("orders", version="1.0.0")


class Status(Enum):
    """Where an order is."""

    new = "new"
    paid = "paid"
    sent = "sent"


class NewOrder(BaseModel):
    """What a customer sends."""

    item: str = Field(min_length=1, max_length=100)
    quantity: int = Field(default=1, ge=1, le=1000)


class Order(NewOrder):
    """What the shop keeps."""

    id: int
    status: Status = Status.new


ORDERS = {
    7: Order(id=7, item="tea", quantity=2),
    42: Order(id=42, item="towel", status=Status.paid),
}


def find(id: int) -> Order:
    """Return an order, or answer 404."""
    if order := ORDERS.get(id):
        return order
    raise HTTPError(404, f"no order {id}")


@svc.get("/orders")
async def index(status: Status | None = None, limit: int = 20) -> list[Order]:
    """List orders, of one status if it is given."""
    found = [order for order in ORDERS.values() if status in (None, order.status)]
    return found[:limit]


@svc.get("/orders/<id>")
async def show(id: int) -> Order:
    """Show one order."""
    return find(id)


@svc.get("/orders/new")
async def form() -> NewOrder:
    """Show what an order looks like before it is one."""
    return NewOrder(item="something")


@svc.post("/orders")
async def create(order: NewOrder) -> Response:
    """Take an order."""
    id = max(ORDERS) + 1
    ORDERS[id] = Order(id=id, **order.model_dump())
    return Response(
        status=201,
        headers={"location": f"/orders/{id}", "content-type": "application/json"},
        body=ORDERS[id].model_dump_json().encode(),
    )


@svc.patch("/orders/<id>")
def advance(id: int, status: Status) -> Order:
    """Move an order on; a plain function runs in a thread."""
    ORDERS[id] = find(id).model_copy(update={"status": status})
    return ORDERS[id]


@svc.delete("/orders/<id>")
async def cancel(id: int) -> None:
    """Cancel an order."""
    find(id)
    del ORDERS[id]
