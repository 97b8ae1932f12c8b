"""Legacy: a FastAPI application as it was before natsweb; nothing in here knows of it.

Run it with `natsweb dev examples/legacy/app.py`. `uvicorn app:app` still serves it as well.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse

ITEMS = {1: "tea", 2: "cup"}
ORDERS = {7: 1}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    """Start and stop, as under any ASGI server."""
    yield {"motto": "since 2019"}


app = FastAPI(title="The old shop", lifespan=lifespan)


@app.get("/", response_class=HTMLResponse)
async def home(request: Request) -> str:
    """Show the first page."""
    links = [f'<li><a href="{request.url_for("item", id=id)}">{name}</a>' for id, name in ITEMS.items()]
    return f"<!doctype html><title>The old shop</title><h1>The old shop, {request.state.motto}</h1><ul>{''.join(links)}"


@app.get("/items/{id}")
async def item(id: int) -> dict[str, object]:
    """Show one item."""
    if id not in ITEMS:
        raise HTTPException(404, "no such item")
    return {"id": id, "name": ITEMS[id]}


@app.get("/orders/{id}")
async def order(id: int) -> dict[str, object]:
    """Show one order."""
    if id not in ORDERS:
        raise HTTPException(404, "no such order")
    return {"id": id, "item": ITEMS[ORDERS[id]], "by": "the old shop"}


@app.delete("/orders/{id}", status_code=204)
async def cancel(id: int) -> None:
    """Cancel an order."""
    ORDERS.pop(id, None)
