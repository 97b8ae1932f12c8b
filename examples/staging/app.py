"""Staging: one service below two roots, live and on trial, behind one gateway.

Run it with `natsweb run examples/staging/app.py` and `natsweb run examples/staging/app.py --root api.staging`.
"""

import os

from natsweb import Service

svc = Service("prices", version="1.0.0")


@svc.get("/prices/<item>")
async def price(item: str) -> dict[str, object]:
    """Show a price, which is another one on trial."""
    return {"item": item, "cents": int(os.environ.get("PRICE", "350"))}
