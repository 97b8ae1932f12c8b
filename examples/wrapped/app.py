"""Wrapped: a Starlette application as it was before natsweb; nothing in here knows of it.

Run it with `natsweb dev examples/wrapped/app.py --mount /sample`. `uvicorn app:app` still serves it as well.
"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route


async def home(request: Request) -> JSONResponse:
    """Say where the application is, and where a page of it is."""
    return JSONResponse({"mounted at": request.scope["root_path"], "ping": str(request.url_for("ping").path)})


async def ping(request: Request) -> PlainTextResponse:
    """Answer."""
    return PlainTextResponse("pong")


app = Starlette(routes=[Route("/", home), Route("/ping", ping)])
