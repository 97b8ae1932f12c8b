"""Fifty services of twenty routes each, called `s0`, `s1` and so on; `MANY_FIRST` is the number of the first."""

import os

from natsweb import Service

FIRST = int(os.environ["MANY_FIRST"])
SERVICES = 50
ROUTES = 20


async def show(id: int) -> dict[str, int]:
    """Show something."""
    return {"id": id}


for number in range(FIRST, FIRST + SERVICES):
    service = globals()[f"s{number}"] = Service(f"s{number}", version="1.0.0")
    for route in range(ROUTES):
        service.get(f"/s{number}/shelf{route}/<id>")(show)
