"""A Flask application, which is WSGI, made ASGI by a2wsgi: it knows nothing of natsweb."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from a2wsgi import WSGIMiddleware
from flask import (
    Flask,
    Response,
    abort,
    flash,
    get_flashed_messages,
    jsonify,
    redirect,
    render_template_string,
    request,
    send_from_directory,
    session,
    stream_with_context,
    url_for,
)

__all__ = ["app", "create"]

HERE = Path(__file__).parent

PAGE = "<h1>{{ name }}</h1><a href=\"{{ url_for('hello', name='you') }}\">{{ request.path }}</a>"


def create(happened: list[str] | None = None) -> WSGIMiddleware:
    """Return a new application, which writes what happens in it into a list."""
    log: list[str] = [] if happened is None else happened
    flask = Flask("flask_app", root_path=str(HERE))
    flask.secret_key = "brine"
    pages(flask)
    bodies(flask, log)
    return WSGIMiddleware(flask, workers=4)


def pages(flask: Flask) -> None:
    """Declare answers of all kinds."""

    @flask.route("/")
    def index() -> str:
        return "pickles"

    @flask.route("/hello/<name>")
    def hello(name: str) -> str:
        return render_template_string(PAGE, name=name)

    @flask.route("/where")
    def where() -> Response:
        return jsonify(
            url=request.url,
            base=request.base_url,
            script=request.script_root,
            path=request.path,
            full=request.full_path,
            host=request.host,
            args=request.args.to_dict(flat=False),
            remote=request.remote_addr,
            scheme=request.scheme,
            protocol=request.environ["SERVER_PROTOCOL"],
        )

    @flask.route("/jars/<int:number>")
    def jar(number: int) -> dict[str, Any]:
        return {"jar": number, "out": url_for("index", _external=True)}

    @flask.route("/folder/")
    def folder() -> str:
        return url_for("folder")

    @flask.route("/go")
    def go() -> Any:
        return redirect(url_for("hello", name="traveller"), code=303)

    @flask.route("/visits")
    def visits() -> dict[str, Any]:
        session["visits"] = session.get("visits", 0) + 1
        said = get_flashed_messages()
        flash(f"visit {session['visits']}")
        return {"visits": session["visits"], "said": said}

    @flask.route("/cookie")
    def cookie() -> Response:
        response = Response(request.cookies.get("lid", "none"))
        response.set_cookie("lid", "tight", samesite="Lax")
        response.set_cookie("label", "dill", httponly=True, path="/hello")
        return response

    @flask.route("/shelf/<path:name>")
    def shelf(name: str) -> Response:
        return send_from_directory(HERE, name, conditional=True)

    @flask.route("/method", methods=["GET", "PUT", "DELETE"])
    def method() -> str:
        return request.method

    @flask.route("/teapot")
    def teapot() -> None:
        abort(418)

    @flask.route("/boom")
    def boom() -> str:
        raise ZeroDivisionError("a jar of nothing")


def bodies(flask: Flask, log: list[str]) -> None:
    """Declare bodies that come and go bit by bit."""

    @flask.post("/json")
    def json() -> dict[str, Any]:
        return {"got": request.get_json()}

    @flask.post("/form")
    def form() -> dict[str, Any]:
        found: dict[str, Any] = request.form.to_dict(flat=False)
        for name, file in request.files.items():
            data = file.read()
            found[name] = [file.filename, len(data), zlib.crc32(data)]
        return found

    @flask.post("/digest")
    def digest() -> dict[str, int]:
        size = sum = 0
        while chunk := request.environ["wsgi.input"].read(65_536):
            size, sum = size + len(chunk), zlib.crc32(chunk, sum)
        return {"size": size, "sum": sum}

    @flask.route("/rows")
    def rows() -> Any:
        def lines() -> Iterator[str]:
            try:
                for row in range(int(request.args.get("count", 5))):
                    yield f"row {row}\n"
            finally:
                log.append("rows closed")

        return stream_with_context(lines()), 200, {"X-Rows": "yes"}

    @flask.route("/large")
    def large() -> Response:
        return Response((bytes([one]) * 65_536 for one in range(48)), mimetype="application/octet-stream")


app = create()
