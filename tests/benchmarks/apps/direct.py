"""The typed GET of the orders example in FastAPI, without NATS."""

from app import ORDERS, Order
from fastapi import FastAPI, HTTPException

app = FastAPI()


@app.get("/orders/{id}")
async def show(id: int) -> Order:
    """Show one order."""
    if order := ORDERS.get(id):
        return order
    raise HTTPException(404, f"no order {id}")
