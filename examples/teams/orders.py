"""Orders: another service, which asks the users. Run it with `natsweb run examples/teams/orders.py`."""

from pydantic import BaseModel

from natsweb import Client, HTTPError, Service

svc = Service("orders", version="1.0.0")


class Buyer(BaseModel):
    """What this service wants to know of a user."""

    name: str


class Order(BaseModel):
    """What is shown of an order."""

    id: int
    item: str
    buyer: str


ORDERS = {7: ("tea", 1), 8: ("towel", 3)}


@svc.get("/orders/<id>")
async def show(id: int, api: Client) -> Order:
    """Show an order with its buyer, whoever serves users and wherever that is."""
    if id not in ORDERS:
        raise HTTPError(404, f"no order {id}")
    item, user = ORDERS[id]
    try:
        buyer = await api.get(f"/users/{user}", into=Buyer, timeout=2)
    except HTTPError as error:
        if error.reason != "no_user":
            raise
        buyer = Buyer(name="somebody who has left")
    return Order(id=id, item=item, buyer=buyer.name)


if __name__ == "__main__":
    svc.run()
