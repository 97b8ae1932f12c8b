"""The GET of the orders example among 999 other routes."""

from app import show
from pydantic import BaseModel

from natsweb import Service

svc = Service("thousand", version="1.0.0")
svc.get("/orders/<id>")(show)


class Part(BaseModel):
    """What the other routes show."""

    id: int


async def shelf() -> list[Part]:
    """Show a shelf."""
    return []


async def part(id: int) -> Part:
    """Show a part on a shelf."""
    return Part(id=id)


async def note(id: int, name: str) -> str:
    """Show a note about a part."""
    return name


for number in range(333):
    svc.get(f"/shelf{number}")(shelf)
    svc.get(f"/shelf{number}/<id>")(part)
    svc.get(f"/shelf{number}/<id>/notes/<name>")(note)
