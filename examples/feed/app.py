"""Feed: a dashboard of made-up figures that come as server-sent events.

Run it with `natsweb dev examples/feed/app.py`, and open http://127.0.0.1:8000/feed.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel

from natsweb import Event, FileResponse, Header, Service

svc = Service("feed", version="1.0.0")

PAGE = Path(__file__).parent / "index.html"
SECONDS = 0.25  # from one sample to the next
SHOWN = 120  # how many a new client gets at once
KEPT = 1200  # how many a client can be behind


class Sample(BaseModel):
    """What the machine that nobody has does in one moment."""

    requests: int
    milliseconds: float
    errors: int


def sample(number: int) -> Sample:
    """Return a sample by its number: the same one in every instance, also after a restart."""
    dice = random.Random(number)
    load = 1 + 0.6 * math.sin(number / 40) + 0.2 * math.sin(number / 7)
    return Sample(
        requests=round(400 * load + dice.uniform(0, 60)),
        milliseconds=round(8 * load**2 + dice.expovariate(0.5), 1),
        errors=dice.choice([0] * 9 + [round(3 * load)]),
    )


@svc.get("/feed")
async def page() -> FileResponse:
    """Show the dashboard."""
    return FileResponse(PAGE, headers={"cache-control": "no-cache"})


@svc.get("/feed/samples")
async def samples(
    last_event_id: Annotated[int | None, Header()] = None, after: int | None = None
) -> AsyncIterator[Event[Sample]]:
    """Give samples as they come, from the one on that follows `Last-Event-ID`, or `after`."""
    newest = int(time.time() / SECONDS)
    seen = last_event_id if last_event_id is not None else after
    number = newest - SHOWN if seen is None else min(max(seen, newest - KEPT), newest) + 1
    while True:
        await asyncio.sleep(number * SECONDS - time.time())
        yield Event(sample(number), id=str(number), event="sample", retry=500)
        number += 1
