"""Chat: rooms over WebSockets, in the memory of one process.

Run it with `natsweb dev examples/chat/app.py`, and open http://127.0.0.1:8000/chat in two windows.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from natsweb import FileResponse, Query, Service, WebSocket, WebSocketClosed

svc = Service("chat", version="1.0.0")

PAGE = Path(__file__).parent / "index.html"


class Said(BaseModel):
    """What somebody sends."""

    text: str = Field(min_length=1, max_length=1000)


class Line(BaseModel):
    """What everybody in the room gets."""

    who: str
    text: str


#: Those who are in a room, each with the lines that are on their way to them.
Room = set[asyncio.Queue[Line]]

ROOMS: dict[str, Room] = {}


@contextlib.asynccontextmanager
async def entered(room: str, who: str, ws: WebSocket[Said, Line]) -> AsyncIterator[Room]:
    """Be in a room for as long as a `with` block lasts."""
    people = ROOMS.setdefault(room, set())
    lines: asyncio.Queue[Line] = asyncio.Queue(maxsize=100)
    passing = asyncio.create_task(pass_on(lines, ws))
    people.add(lines)
    tell(people, Line(who=who, text="has come in"))
    try:
        yield people
    finally:
        passing.cancel()
        people.discard(lines)
        tell(people, Line(who=who, text="has left"))
        if not people:
            del ROOMS[room]


def tell(people: Room, line: Line) -> None:
    """Tell everybody; who is a hundred lines behind misses this one, and holds nobody up."""
    for lines in people:
        with contextlib.suppress(asyncio.QueueFull):
            lines.put_nowait(line)


async def pass_on(lines: asyncio.Queue[Line], ws: WebSocket[Said, Line]) -> None:
    """Send lines to one client, as fast as it takes them."""
    with contextlib.suppress(WebSocketClosed):
        while True:
            await ws.send(await lines.get())


@svc.get("/chat")
async def page() -> FileResponse:
    """Show the page."""
    return FileResponse(PAGE, headers={"cache-control": "no-cache"})


@svc.websocket("/chat/<room>")
async def talk(
    ws: WebSocket[Said, Line], room: str, who: Annotated[str, Query(min_length=1, max_length=30)] = "somebody"
) -> None:
    """Take part in a room until the client leaves."""
    async with entered(room, who, ws) as people:
        async for said in ws:
            tell(people, Line(who=who, text=said.text))
