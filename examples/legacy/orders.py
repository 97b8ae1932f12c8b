"""Orders: the first part of the old shop that became a service of its own.

Run it with `natsweb run examples/legacy/orders.py` beside the old shop.
"""

from pydantic import BaseModel

from natsweb import HTTPError, Service

svc = Service("orders", version="1.0.0")


class Order(BaseModel):
    """What somebody has ordered."""

    id: int
    item: str
    by: str = "the new service"


ORDERS = {7: Order(id=7, item="tea")}


@svc.get("/orders/<id>")
async def show(id: int) -> Order:
    """Show one order."""
    if found := ORDERS.get(id):
        return found
    raise HTTPError(404, f"no order {id}")
