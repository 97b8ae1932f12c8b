"""Bodies, feeds and WebSockets of the stream benchmarks in FastAPI, without NATS; see `streamer`."""

from collections.abc import AsyncIterator

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from streamer import Count, pieces, ticking

app = FastAPI()


@app.get("/small")
async def small() -> Count:
    """Answer at once."""
    return Count(bytes=0)


@app.put("/up")
async def up(request: Request) -> Count:
    """Count what comes, and throw it away."""
    total = 0
    async for piece in request.stream():
        total += len(piece)
    return Count(bytes=total)


@app.get("/down/{mib}")
async def down(mib: int) -> StreamingResponse:
    """Send that many MiB."""
    return StreamingResponse(pieces(mib), media_type="application/octet-stream")


@app.get("/ticks")
async def ticks() -> StreamingResponse:
    """Send events until the client goes."""
    return StreamingResponse(_events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _events() -> AsyncIterator[bytes]:
    async for tick in ticking():
        yield b"data: %b\n\n" % tick.model_dump_json().encode()


@app.websocket("/echo")
async def echo(ws: WebSocket) -> None:
    """Send everything back."""
    await ws.accept()
    try:
        while True:
            await ws.send_text(await ws.receive_text())
    except WebSocketDisconnect:
        pass
