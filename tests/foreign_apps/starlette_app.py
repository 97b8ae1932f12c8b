"""A Starlette application that uses what its documentation shows: it knows nothing of natsweb."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

__all__ = ["app", "create"]

HERE = Path(__file__).parent

PAGES = {
    "base.html": "<title>{% block title %}{% endblock %}</title><a href=\"{{ url_for('show', name='x y') }}\">x</a>\n"
    "<link href=\"{{ url_for('static', path='/starlette_app.py') }}\">{% block body %}{% endblock %}",
    "show.html": "{% extends 'base.html' %}{% block title %}{{ name }}{% endblock %}"
    "{% block body %}{{ request.url.path }} {{ request.query_params.get('q') }}{% endblock %}",
}


class Bench(HTTPEndpoint):
    """A class with a method for each HTTP method."""

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("a bench", headers={"X-Wood": "oak"})

    async def put(self, request: Request) -> Response:
        return JSONResponse({"body": (await request.body()).decode(), "is": request.method})


class Echo(WebSocketEndpoint):
    """JSON messages back and forth; how it was left is written down."""

    encoding = "json"

    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.accept(headers=[(b"x-echo", b"yes")])

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_json({"said": data, "path": websocket.url.path})

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        websocket.app.state.happened.append(f"echo left with {close_code}")


class Names(AuthenticationBackend):
    """Whoever says a name is believed."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.headers.get("x-name")
        return None if name is None else (AuthCredentials(["authenticated"]), SimpleUser(name))


class Clock(BaseHTTPMiddleware):
    """The kind of middleware that gets the response as a value."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response = await call_next(request)
        response.headers["X-Clock"] = request.url.path
        return response


def create(happened: list[str] | None = None) -> Starlette:
    """Return a new application, which writes what happens in it into a list."""
    log: list[str] = [] if happened is None else happened
    templates = Jinja2Templates(env=Environment(loader=DictLoader(PAGES), autoescape=True))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, object]]:
        log.append("started")
        yield {"door": "open"}
        log.append("ended")

    async def index(request: Request) -> Response:
        return PlainTextResponse(f"index, the door is {request.state.door}")

    async def show(request: Request) -> Response:
        return templates.TemplateResponse(request, "show.html", {"name": request.path_params["name"]})

    def links(request: Request) -> Response:
        return JSONResponse(
            {
                "url": str(request.url),
                "base": str(request.base_url),
                "bench": str(request.url_for("bench")),
                "inner": str(request.url_for("inner:deep", rest="a/b c")),
                "app": str(request.app.url_path_for("show", name="z")),
            }
        )

    async def deep(request: Request) -> Response:
        rest, root = request.path_params["rest"], request.scope["root_path"]
        return PlainTextResponse(f"{rest!r} below {root}, {request.url_for('inner:deep', rest='r')}")

    async def go(request: Request) -> Response:
        return RedirectResponse(request.url_for("show", name="there"), status_code=303)

    @requires("authenticated")
    async def member(request: Request) -> Response:
        return PlainTextResponse(request.user.display_name)

    async def visits(request: Request) -> Response:
        if request.query_params.get("forget"):
            request.session.clear()
        else:
            request.session["visits"] = request.session.get("visits", 0) + 1
        return JSONResponse(dict(request.session))

    async def form(request: Request) -> Response:
        async with request.form(max_part_size=8 * 1024 * 1024) as fields:
            found = {}
            for name, value in fields.multi_items():
                found[name] = value if isinstance(value, str) else [value.filename, value.size]
        return JSONResponse(found)

    async def digest(request: Request) -> Response:
        found, size = hashlib.sha256(), 0
        async for chunk in request.stream():
            found.update(chunk)
            size += len(chunk)
        return PlainTextResponse(f"{size} {found.hexdigest()}")

    async def events(request: Request) -> Response:
        async def news() -> AsyncIterator[str]:
            try:
                for number in range(int(request.query_params.get("count", 1_000_000))):
                    yield f"id: {number}\nevent: tick\ndata: {number * number}\n\n"
                    await asyncio.sleep(0.001)
            finally:
                log.append("news over")

        return StreamingResponse(news(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def measured(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"12345"
            await asyncio.sleep(0.01)
            log.append("swept up")

        return StreamingResponse(pieces(), headers={"Content-Length": "5"})

    async def later(request: Request) -> Response:
        async def task(word: str) -> None:
            await asyncio.sleep(0)
            log.append(word)

        return PlainTextResponse("later", background=BackgroundTask(task, "done later"))

    async def many(request: Request) -> Response:
        response = PlainTextResponse("many", headers={"Vary": "Accept"})
        response.headers.append("Vary", "Cookie")
        response.headers.append("Link", "</a>; rel=next")
        response.headers["X-Latin"] = "caf\xe9"
        return response

    async def early_hint(request: Request) -> Response:
        return Response(status_code=int(request.path_params["status"]), headers={"ETag": '"e"'})

    async def boom(request: Request) -> Response:
        raise ZeroDivisionError("a bench of nothing")

    async def missing(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"no {request.url.path} here", status_code=404)

    async def gone(request: Request) -> Response:
        raise HTTPException(410, "long gone", headers={"X-Gone": "1999"})

    async def purge(request: Request) -> Response:
        return PlainTextResponse(f"{request.method} {request.url.query}")

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(f"{scope['type']} {scope['path']}".encode(), media_type="text/plain")(scope, receive, send)

    async def chooses(socket: WebSocket) -> None:
        await socket.accept(subprotocol=socket.scope["subprotocols"][-1])
        async for text in socket.iter_text():
            await socket.send_text(text * 2)

    async def refuses(socket: WebSocket) -> None:
        await socket.close(1008)

    async def pushes(socket: WebSocket) -> None:
        await socket.accept()
        for size in (0, 1, 125, 126, 65_536, 1_500_000):
            await socket.send_bytes(bytes([size % 251]) * size)
        await socket.close()

    routes = [
        Route("/", index),
        Route("/bench", Bench, name="bench"),
        Route("/show/{name}", show, name="show"),
        Route("/links", links),
        Route("/go", go),
        Route("/member", member),
        Route("/visits", visits),
        Route("/form", form, methods=["POST"]),
        Route("/digest", digest, methods=["POST", "PUT"]),
        Route("/events", events),
        Route("/measured", measured),
        Route("/later", later),
        Route("/many", many),
        Route("/status/{status:int}", early_hint),
        Route("/boom", boom),
        Route("/gone", gone),
        Route("/cache", purge, methods=["PURGE", "REPORT"]),
        Route("/folder/", index),
        Mount("/inner", name="inner", routes=[Route("/deep/{rest:path}", deep, name="deep")]),
        Mount("/raw", raw),
        Mount("/static", StaticFiles(directory=HERE), name="static"),
        WebSocketRoute("/echo", Echo),
        WebSocketRoute("/chooses", chooses),
        WebSocketRoute("/refuses", refuses),
        WebSocketRoute("/pushes", pushes),
    ]
    middleware = [
        Middleware(SessionMiddleware, secret_key="sawdust", https_only=False),
        Middleware(AuthenticationMiddleware, backend=Names()),
        Middleware(Clock),
    ]
    app = Starlette(routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers={404: missing})
    app.state.happened = log
    return app


app = create()
