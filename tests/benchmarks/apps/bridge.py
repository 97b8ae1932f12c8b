"""HTTP to NATS as one writes it in an afternoon: the path is the subject, `nc.request` does the rest."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from nats.aio.client import Client
from nats.errors import NoRespondersError

Event = MutableMapping[str, Any]

nc = Client()


async def app(scope: Event, receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]) -> None:
    """Answer each HTTP request with the reply to a NATS request."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    headers["method"] = scope["method"]
    headers["query"] = scope["query_string"].decode("latin-1")
    try:
        reply = await nc.request("api" + scope["path"].replace("/", "."), body, timeout=10, headers=headers)
    except NoRespondersError:
        status, answer = 503, b'{"detail":"no service"}'
    except TimeoutError:
        status, answer = 504, b'{"detail":"no answer in time"}'
    else:
        status, answer = int((reply.headers or {}).get("status", 200)), reply.data
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": answer})


async def lifespan(receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]) -> None:
    """Hold the connection while the server runs."""
    await receive()
    await nc.connect(os.environ["NATS_URL"])
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await nc.close()
    await send({"type": "lifespan.shutdown.complete"})
