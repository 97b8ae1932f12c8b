"""The other end of the bridge: a queue subscription with a callback, the model of the orders example."""

import asyncio
import os
import signal

import uvloop
from app import ORDERS
from nats.aio.client import Client
from nats.aio.msg import Msg

nc = Client()


async def show(msg: Msg) -> None:
    """Answer with one order; an error's status travels as a header."""
    try:
        order = ORDERS.get(int(msg.subject.rpartition(".")[2]))
    except ValueError:
        await nc.publish(msg.reply, b'{"detail":"not a number"}', headers={"status": "422"})
        return
    if order is None:
        await nc.publish(msg.reply, b'{"detail":"no such order"}', headers={"status": "404"})
        return
    # Not msg.respond(): it sends the headers of the request back.
    await nc.publish(msg.reply, order.model_dump_json().encode())


async def main() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await nc.connect(os.environ["NATS_URL"])
    await nc.subscribe("api.orders.*", queue="orders", cb=show)
    await nc.flush()
    await stop.wait()
    await nc.drain()


uvloop.run(main())
