"""A FastAPI application that uses what its documentation shows: it knows nothing of natsweb."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import (
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    status,
)
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

__all__ = ["app", "create"]

HERE = Path(__file__).parent


class Plant(BaseModel):
    """What the shop sells."""

    name: str = Field(min_length=2)
    price: float = Field(gt=0)
    tags: set[str] = set()


class Sold(Plant):
    """A plant with what nobody outside should see."""

    secret: str = "margin"


class OutOfSeason(Exception):
    """A plant that is not to be had now."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def create(happened: list[str] | None = None) -> FastAPI:
    """Return a new application, which writes what happens in it into a list."""
    log: list[str] = [] if happened is None else happened

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
        log.append("started")
        yield {"season": "spring"}
        log.append("ended")

    app = FastAPI(title="Nursery", version="1.2.0", lifespan=lifespan)
    app.add_middleware(GZipMiddleware, minimum_size=600)
    app.add_middleware(SessionMiddleware, secret_key="compost")
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["https://garden.example"],
        allow_methods=["GET", "POST"],
        allow_headers=["X-Trowel"],
        allow_credentials=True,
    )
    app.mount("/static", StaticFiles(directory=HERE), name="static")
    app.mount("/office", office())
    greenhouse(app, log)
    counter(app)
    streams(app, log)
    sockets(app, log)
    return app


def office() -> FastAPI:
    """Return the application that is mounted in the other."""
    inner = FastAPI(title="Office")

    @inner.get("/ledger/{year}")
    def ledger(year: int, request: Request) -> dict[str, object]:
        return {"year": year, "root_path": request.scope["root_path"], "self": str(request.url_for("ledger", year=1))}

    return inner


def greenhouse(app: FastAPI, log: list[str]) -> None:
    """Declare parameters, models, dependencies and errors."""

    async def bed() -> AsyncIterator[str]:
        log.append("bed made")
        try:
            yield "bed"
        finally:
            log.append("bed cleared")

    def pot(bed: Annotated[str, Depends(bed)]) -> Iterator[str]:
        log.append("pot taken")
        yield f"pot in {bed}"
        log.append("pot put back")

    @app.get("/plants/{plant_id}")
    async def show(
        plant_id: int,
        size: Annotated[int, Query(ge=1)] = 1,
        tag: Annotated[list[str] | None, Query()] = None,
        x_trowel: Annotated[str | None, Header()] = None,
        soil: Annotated[str | None, Cookie()] = None,
    ) -> dict[str, object]:
        return {"id": plant_id, "size": size, "tag": tag, "trowel": x_trowel, "soil": soil}

    @app.get("/plants", response_model=list[str])
    def names() -> list[str]:
        return ["fern", "Grün & blau"]

    @app.get("/seeds/")
    def seeds() -> list[str]:
        return ["cress"]

    @app.post("/plants", response_model=Plant, status_code=201)
    async def sell(plant: Plant, response: Response) -> Sold:
        response.headers["X-Sold"] = plant.name
        return Sold(**plant.model_dump())

    @app.patch("/plants/{name}")
    def rename(name: str, to: Annotated[str, Body(embed=True)]) -> dict[str, str]:
        return {name: to}

    @app.delete("/plants/{name}", status_code=204)
    def remove(name: str) -> None: ...

    @app.get("/potted")
    async def potted(pot: Annotated[str, Depends(pot)]) -> str:
        log.append("potted")
        return pot

    @app.get("/broken-pot")
    async def broken_pot(pot: Annotated[str, Depends(pot)]) -> str:
        raise HTTPException(409, "the pot is broken", headers={"X-Pot": "broken"})

    @app.get("/orchid")
    async def orchid() -> None:
        raise OutOfSeason("orchid")

    @app.exception_handler(OutOfSeason)
    async def out_of_season(request: Request, error: OutOfSeason) -> JSONResponse:
        return JSONResponse({"sorry": error.name, "for": request.url.path}, status_code=418)

    @app.get("/boom")
    async def boom() -> None:
        raise ZeroDivisionError("a watering can of nothing")


def counter(app: FastAPI) -> None:
    """Declare what the shop's counter does: forms, files, cookies, sessions, passwords, addresses."""
    basic = HTTPBasic(realm="shed")

    @app.post("/upload")
    async def upload(photo: UploadFile, note: Annotated[str, Form()] = "") -> dict[str, object]:
        data = await photo.read()
        return {"name": photo.filename, "type": photo.content_type, "note": note, "sum": [len(data), zlib.crc32(data)]}

    @app.post("/files")
    def files(files: Annotated[list[bytes], File()]) -> list[int]:
        return [len(one) for one in files]

    @app.post("/login")
    def login(user: Annotated[str, Form()], word: Annotated[str, Form()]) -> Response:
        answer = PlainTextResponse(f"{user} knows {word}")
        answer.set_cookie("soil", "dry", max_age=60, httponly=True)
        answer.set_cookie("water", "ß?", path="/can")
        return answer

    @app.get("/visits")
    async def visits(request: Request) -> int:
        request.session["visits"] = int(request.session.get("visits", 0)) + 1
        return int(request.session["visits"])

    @app.get("/shed")
    def shed(who: Annotated[HTTPBasicCredentials, Depends(basic)]) -> str:
        return who.username

    @app.get("/where", name="here")
    async def where(request: Request) -> dict[str, object]:
        scope = request.scope
        return {
            "url": str(request.url),
            "base": str(request.base_url),
            "self": str(request.url_for("here")),
            "static": str(request.url_for("static", path="a.css")),
            "path": scope["path"],
            "root_path": scope["root_path"],
            "client": None if request.client is None else request.client.host,
            "scheme": scope["scheme"],
            "method": scope["method"],
            "http_version": scope["http_version"],
            "query": scope["query_string"].decode(),
            "season": request.state.season,
        }

    @app.get("/headers")
    async def headers(request: Request) -> list[tuple[str, str]]:
        return sorted((name, value) for name, value in request.headers.items() if name.startswith(("x-", "accept")))

    @app.get("/page", response_class=HTMLResponse)
    def page() -> str:
        return "<h1>plants</h1>" * 100

    @app.get("/catalogue")
    def catalogue() -> FileResponse:
        return FileResponse(HERE / "fastapi_app.py", media_type="text/plain", filename="katalog ü.txt")


def streams(app: FastAPI, log: list[str]) -> None:
    """Declare what comes bit by bit, and what comes afterwards."""

    @app.get("/rows")
    async def rows(count: int = 5) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for row in range(count):
                yield f'{{"row": {row}}}\n'

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.get("/large")
    def large() -> StreamingResponse:
        return StreamingResponse((bytes([one]) * 65_536 for one in range(48)), media_type="application/octet-stream")

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b"half"
            raise LookupError("the other half")

        return StreamingResponse(lines(), media_type="text/plain")

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def drops() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"drop" * 1000
                    await asyncio.sleep(0.001)
            finally:
                log.append("tap closed")

        return StreamingResponse(drops(), media_type="text/plain")

    @app.get("/waiting")
    async def waiting(request: Request) -> str:
        log.append("waiting")
        while not await request.is_disconnected():
            await asyncio.sleep(0.001)
        log.append("disconnected")
        return "nobody reads this"

    @app.post("/mirror")
    async def mirror(request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            async for chunk in request.stream():
                yield chunk.swapcase()

        return StreamingResponse(pieces(), media_type="text/plain")

    @app.post("/swallow")
    async def swallow(request: Request) -> int:
        size = 0
        log.append("swallowing")
        try:
            async for chunk in request.stream():
                size += len(chunk)
        except BaseException as error:
            log.append(type(error).__name__)
            raise
        return size

    @app.post("/letters", status_code=status.HTTP_202_ACCEPTED)
    async def letters(to: str, tasks: BackgroundTasks) -> str:
        def write(name: str) -> None:
            log.append(f"wrote to {name}")

        async def post(name: str) -> None:
            await asyncio.sleep(0)
            log.append(f"posted to {name}")

        tasks.add_task(write, to)
        tasks.add_task(post, to)
        return "soon"


def sockets(app: FastAPI, log: list[str]) -> None:
    """Declare WebSockets."""

    async def known(token: Annotated[str | None, Query()] = None) -> str:
        if token is None:
            raise WebSocketException(code=status.WS_1008_POLICY_VIOLATION, reason="no token")
        return token

    @app.websocket("/talk/{room}")
    async def talk(socket: WebSocket, room: int, token: Annotated[str, Depends(known)]) -> None:
        await socket.accept(subprotocol="mint" if "mint" in socket.scope["subprotocols"] else None)
        try:
            while True:
                message = await socket.receive()
                socket._raise_on_disconnect(message)
                if message.get("text") == "bye":
                    await socket.close(4001, "see you")
                    return
                if message.get("text") == "where":
                    await socket.send_json({"url": str(socket.url), "root_path": socket.scope["root_path"]})
                elif message.get("text") == "boom":
                    raise ZeroDivisionError("a socket of nothing")
                elif message.get("text") is not None:
                    await socket.send_text(f"{token}@{room}: {message['text']}")
                else:
                    await socket.send_bytes(message["bytes"][::-1])
        except WebSocketDisconnect as gone:
            log.append(f"left with {gone.code}")

    @app.websocket("/closed")
    async def closed(socket: WebSocket) -> None:
        await socket.send_denial_response(JSONResponse({"closed": "on Sundays"}, status_code=423))


app = create()
