"""Simple: a service, a gateway and a client in one process, with a nats-server of their own.

Run it with `python examples/simple/app.py`.
"""

import asyncio
from urllib.request import urlopen

from natsweb import Gateway, Service, serve
from natsweb.embedded import embedded_server
from natsweb.front import Front

svc = Service("hello", version="1.0.0")


@svc.get("/hello/<name>")
async def hello(name: str) -> str:
    """Greet somebody."""
    return f"hello {name}"


def fetch(url: str) -> str:
    """Return a page, as any HTTP client does."""
    with urlopen(url) as answer:
        return f"{answer.status} {answer.read().decode()}"


async def main() -> None:
    """Start all of it, ask once, and stop."""
    async with embedded_server() as nats, serve(svc, nats=nats), Gateway("api", nats=nats) as gateway:
        front = Front(gateway, port=0)
        await front.start()
        print(await asyncio.to_thread(fetch, f"{front.url}/hello/world"))
        await front.stop()


if __name__ == "__main__":
    asyncio.run(main())
