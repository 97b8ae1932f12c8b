"""A Quart application that uses what its documentation shows: it knows nothing of natsweb."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from quart import (
    Blueprint,
    Quart,
    Response,
    abort,
    flash,
    g,
    get_flashed_messages,
    jsonify,
    make_response,
    redirect,
    render_template_string,
    request,
    send_from_directory,
    session,
    stream_with_context,
    url_for,
    websocket,
)

__all__ = ["app", "create"]

HERE = Path(__file__).parent

PAGE = "<h1>{{ name }}</h1><a href=\"{{ url_for('hello', name='you') }}\">{{ request.path }} {{ g.lamp }}</a>"


def create(happened: list[str] | None = None) -> Quart:
    """Return a new application, which writes what happens in it into a list."""
    log: list[str] = [] if happened is None else happened
    app = Quart("quart_app", root_path=str(HERE))
    app.secret_key = "wick"
    app.config["MAX_CONTENT_LENGTH"] = 12 * 1024 * 1024
    hooks(app, log)
    pages(app)
    bodies(app, log)
    sockets(app, log)
    app.register_blueprint(cellar(), url_prefix="/cellar")
    return app


def hooks(app: Quart, log: list[str]) -> None:
    """Declare what runs around the application and around each request."""

    @app.before_serving
    async def lit() -> None:
        log.append("started")

    @app.after_serving
    async def out() -> None:
        log.append("ended")

    @app.before_request
    async def lamp() -> None:
        g.lamp = request.headers.get("X-Lamp", "off")

    @app.after_request
    async def wax(response: Response) -> Response:
        response.headers["X-Wax"] = g.lamp
        return response

    @app.teardown_request
    async def blow(error: BaseException | None) -> None:
        if request.path.endswith("/hooked"):
            log.append("torn down")

    @app.errorhandler(404)
    async def missing(error: Any) -> tuple[dict[str, str], int]:
        return {"missing": request.path}, 404


def cellar() -> Blueprint:
    """Return a blueprint."""
    blueprint = Blueprint("cellar", "cellar")

    @blueprint.route("/<int:shelf>")
    async def jar(shelf: int) -> dict[str, Any]:
        return {"shelf": shelf, "next": url_for(".jar", shelf=shelf + 1), "out": url_for("index", _external=True)}

    return blueprint


def pages(app: Quart) -> None:
    """Declare answers of all kinds."""

    @app.route("/")
    async def index() -> str:
        return "candles"

    @app.route("/hello/<name>")
    async def hello(name: str) -> str:
        return await render_template_string(PAGE, name=name)

    @app.route("/hooked")
    async def hooked() -> tuple[str, int, dict[str, str]]:
        return "hooked", 203, {"X-Hook": "1"}

    @app.route("/where")
    async def where() -> Response:
        return jsonify(
            url=request.url,
            base=request.base_url,
            root=request.root_path,
            script=request.script_root,
            path=request.path,
            full=request.full_path,
            host=request.host,
            args=request.args.to_dict(flat=False),
            remote=request.remote_addr,
            scheme=request.scheme,
        )

    @app.route("/folder/")
    async def folder() -> str:
        return url_for("folder")

    @app.route("/go")
    async def go() -> Any:
        return redirect(url_for("hello", name="traveller"))

    @app.route("/plain")
    def plain() -> str:
        return "from a thread"

    @app.route("/visits")
    async def visits() -> dict[str, int]:
        session["visits"] = session.get("visits", 0) + 1
        await flash(f"visit {session['visits']}")
        return {"visits": session["visits"]}

    @app.route("/flashes")
    async def flashes() -> dict[str, Any]:
        return {"said": get_flashed_messages()}

    @app.route("/cookie")
    async def cookie() -> Response:
        response = await make_response(request.cookies.get("taper", "none"))
        response.set_cookie("taper", "short", samesite="Lax")
        response.set_cookie("snuffer", "brass", httponly=True, path="/hello")
        return response

    @app.route("/shelf/<path:name>")
    async def shelf(name: str) -> Response:
        return await send_from_directory(HERE, name, conditional=True)

    @app.route("/teapot")
    async def teapot() -> None:
        abort(418)

    @app.route("/boom")
    async def boom() -> str:
        raise ZeroDivisionError("a candle of nothing")

    @app.route("/method", methods=["GET", "PUT", "DELETE"])
    async def method() -> str:
        return request.method


def bodies(app: Quart, log: list[str]) -> None:
    """Declare bodies that come and go bit by bit."""

    @app.post("/json")
    async def json() -> dict[str, Any]:
        return {"got": await request.get_json()}

    @app.post("/form")
    async def form() -> dict[str, Any]:
        fields, files = await request.form, await request.files
        found: dict[str, Any] = fields.to_dict(flat=False)
        for name, file in files.items():
            data = file.read()
            found[name] = [file.filename, len(data), zlib.crc32(data)]
        return found

    @app.post("/digest")
    async def digest() -> dict[str, int]:
        size = sum = 0
        async for chunk in request.body:
            size += len(chunk)
            sum = zlib.crc32(chunk, sum)
        return {"size": size, "sum": sum}

    @app.post("/swallow")
    async def swallow() -> str:
        log.append("swallowing")
        try:
            async for _ in request.body:
                pass
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        return "all"

    @app.post("/mirror")
    async def mirror() -> Any:
        @stream_with_context
        async def pieces() -> AsyncIterator[bytes]:
            async for chunk in request.body:
                yield chunk.swapcase()

        return pieces(), {"Content-Type": "text/plain"}

    @app.route("/rows")
    async def rows() -> Any:
        async def lines() -> AsyncIterator[str]:
            for row in range(int(request.args.get("count", 5))):
                yield f"row {row}\n"

        return stream_with_context(lines)(), 200, {"X-Rows": "yes"}

    @app.route("/endless")
    async def endless() -> Any:
        async def news() -> AsyncIterator[str]:
            try:
                while True:
                    yield "data: tick\n\n"
                    await asyncio.sleep(0.001)
            finally:
                log.append("wick out")

        response = await make_response(news(), {"Content-Type": "text/event-stream"})
        response.timeout = None
        return response

    @app.route("/measured")
    async def measured() -> Any:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"12345"
            await asyncio.sleep(0.01)
            log.append("swept up")

        return pieces(), {"Content-Length": "5"}

    @app.post("/later")
    async def later() -> tuple[str, int]:
        async def burn() -> None:
            await asyncio.sleep(0)
            log.append("burnt down")

        app.add_background_task(burn)
        return "later", 202


def sockets(app: Quart, log: list[str]) -> None:
    """Declare WebSockets."""

    @app.websocket("/talk/<int:room>")
    async def talk(room: int) -> None:
        await websocket.accept(subprotocol=(websocket.requested_subprotocols or [None])[0])
        try:
            while True:
                data = await websocket.receive()
                if data == "bye":
                    await websocket.close(4002, "out")
                elif data == "where":
                    await websocket.send_json([websocket.url, websocket.path, websocket.root_path])
                elif isinstance(data, str):
                    await websocket.send(f"{room} {session.get('visits')}: {data}")
                else:
                    await websocket.send(data[::-1])
        except asyncio.CancelledError:
            log.append("talk over")
            raise

    @app.websocket("/refused")
    async def refused() -> None:
        abort(401)


app = create()
