"""The service as a natsweb user writes it."""

from collections.abc import AsyncIterator, Iterator
from datetime import date
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel

from beside_fastapi.models import (
    REPORT,
    USERS,
    Address,
    Colour,
    Level,
    Login,
    NewOrder,
    Order,
    OutOfStock,
    Page,
    Private,
    Public,
    Shapes,
    Traces,
    stored,
)
from natsweb import (
    Auth,
    Background,
    Bearer,
    Body,
    Cookie,
    Created,
    Depends,
    FileResponse,
    Form,
    Header,
    HTTPError,
    Partial,
    Query,
    Request,
    Response,
    Service,
    UploadFile,
    redirect,
)

svc = Service("beside", root="beside")
log: list[str] = []


# ── path ──


@svc.get("/items/<id>")
async def item(id: int) -> dict[str, int]:
    return {"id": id}


@svc.get("/things/<key>")
async def thing(key: UUID) -> dict[str, UUID]:
    return {"key": key}


@svc.get("/colours")
async def colours() -> list[Colour]:
    return list(Colour)


@svc.get("/colours/<colour>")
async def colour(colour: Colour) -> dict[str, Colour]:
    return {"colour": colour}


@svc.get("/levels/<level>")
def level(level: Level) -> dict[str, Level]:
    return {"level": level}


@svc.get("/names/<name>")
async def name(name: str) -> dict[str, str]:
    return {"name": name}


@svc.get("/tails/<path:rest>")
async def tail(rest: str) -> dict[str, str]:
    return {"rest": rest}


# ── query, headers, cookies ──


@svc.get("/search")
async def search(
    q: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ratio: float | None = None,
    sold: bool | None = None,
    day: date | None = None,
    colour: Colour | None = None,
    level: Level | None = None,
    tag: list[str] = [],  # noqa: B006
    number: list[int] | None = None,
) -> dict[str, Any]:
    return {
        "q": q,
        "limit": limit,
        "ratio": None if ratio is None else str(ratio),
        "sold": sold,
        "day": day,
        "colour": colour,
        "level": level,
        "tag": tag,
        "number": number,
    }


@svc.get("/needed")
async def needed(q: str, n: int) -> dict[str, Any]:
    return {"q": q, "n": n}


@svc.get("/pages")
async def pages(page: Annotated[Page, Query()]) -> Page:
    return page


@svc.get("/headers")
async def headers(
    user_agent: Annotated[str, Header()],
    x_count: Annotated[int | None, Header()] = None,
    x_many: Annotated[list[str], Header()] = [],  # noqa: B006
) -> dict[str, Any]:
    return {"user_agent": user_agent, "x_count": x_count, "x_many": x_many}


@svc.get("/traces")
async def traces(found: Annotated[Traces, Header()]) -> Traces:
    return found


@svc.get("/cookies")
async def cookies(session: Annotated[str, Cookie()], visits: Annotated[int, Cookie()] = 0) -> dict[str, Any]:
    return {"session": session, "visits": visits}


@svc.get("/aliases")
async def aliases(
    q: Annotated[str, Query(alias="user-id")],
    n: Annotated[int, Header(alias="X-Number")] = 0,
    c: Annotated[str | None, Cookie(alias="sid")] = None,
) -> dict[str, Any]:
    return {"q": q, "n": n, "c": c}


@svc.get("/shapes")
async def shapes(found: Annotated[Shapes, Query()]) -> Shapes:
    return found


@svc.get("/sets")
async def sets(
    ids: Annotated[set[int], Query()], pair: Annotated[tuple[int, str] | None, Query()] = None
) -> dict[str, Any]:
    return {"ids": sorted(ids), "pair": pair}


# ── forms and files ──


class Attachment(BaseModel):
    note: str
    file: UploadFile
    more: list[UploadFile] = []


@svc.post("/attach")
async def attach(form: Annotated[Attachment, Form()]) -> dict[str, Any]:
    return {"note": form.note, "file": form.file.filename, "more": [file.filename for file in form.more]}


class Welcome(BaseModel):
    username: str
    remember: bool


@svc.post("/login")
async def login(form: Annotated[Login, Form()]) -> Response:
    body = Welcome(username=form.username, remember=form.remember).model_dump_json()
    response = Response(headers={"content-type": "application/json"}, body=body)
    return response.with_cookie("session", form.username, max_age=60 if form.remember else None)


@svc.post("/logout")
async def logout() -> Response:
    return Response(headers={"content-type": "application/json"}, body="{}").without_cookie("session")


@svc.post("/photos")
async def photos(
    title: Annotated[str, Form()],
    files: list[UploadFile],
    cover: UploadFile | None = None,
    stars: Annotated[int, Form()] = 3,
) -> dict[str, Any]:
    return {
        "title": title,
        "stars": stars,
        "files": [[file.filename, file.content_type, file.size, (await file.read()).decode()] for file in files],
        "cover": cover.filename if cover else None,
    }


# ── JSON ──


@svc.post("/orders")
async def create(order: NewOrder) -> Created[Order]:
    return Created(Order(id=8, **dict(order)), location=svc.url_for("show", id=8))


@svc.get("/orders/<id>")
async def show(id: int) -> Order:
    if order := stored(id):
        return order
    raise HTTPError(404, f"no order {id}")


@svc.patch("/orders/<id>")
async def change(id: int, patch: Partial[NewOrder]) -> Order:
    if order := stored(id):
        changed = patch.apply(order)
        return order.model_copy(update=dict(changed))
    raise HTTPError(404, f"no order {id}")


@svc.delete("/orders/<id>")
async def delete(id: int) -> None:
    if not stored(id):
        raise HTTPError(404, f"no order {id}")


@svc.put("/numbers")
async def numbers(numbers: Annotated[list[int], Body()]) -> int:
    return sum(numbers)


@svc.put("/pair")
async def pair(a: Annotated[int, Body(embed=True)], b: Annotated[str, Body(embed=True)] = "-") -> dict[str, Any]:
    return {"a": a, "b": b}


@svc.put("/maybe")
async def maybe(address: Address | None = None) -> dict[str, Any]:
    return {"street": address and address.street}


@svc.put("/free")
async def free(data: dict[str, Any]) -> dict[str, Any]:
    return data


# ── dependencies, errors, background ──


async def connection() -> AsyncIterator[str]:
    log.append("connect")
    try:
        yield "db"
    except Exception as error:
        log.append(f"roll back after {type(error).__name__}")
        raise
    finally:
        log.append("disconnect")


def session(db: Annotated[str, Depends(connection)], user: str = "nobody") -> Iterator[str]:
    log.append(f"open {db} for {user}")
    yield f"{db}/{user}"
    log.append("close")


@svc.on_error(OutOfStock)
async def out_of_stock(request: Request, error: OutOfStock) -> Response:
    body = f'{{"sold_out":"{error}","path":"{request.path}"}}'
    return Response(status=409, headers={"content-type": "application/json"}, body=body)


@svc.get("/report")
async def report(
    session: Annotated[str, Depends(session)], db: Annotated[str, Depends(connection)], how: str = "well", n: int = 0
) -> dict[str, Any]:
    log.append(f"handle {how}")
    if how == "sold":
        raise OutOfStock("tea")
    if how == "refused":
        raise HTTPError(418, "a teapot", headers={"x-pot": "tea"})
    if how == "crash":
        raise RuntimeError("a secret")
    return {"session": session, "db": db, "n": n}


@svc.post("/mail", status=202)
async def mail(to: str, tasks: Background, session: Annotated[str, Depends(session)]) -> dict[str, str]:
    def send(to: str, *, via: str) -> None:
        log.append(f"send to {to} via {via}")

    tasks.add(send, to, via=session)
    tasks.add(log.append, "sent")
    return {"to": to}


# ── who calls ──

bearer = Bearer(USERS.get)


@svc.get("/me")
async def me(user: Annotated[dict[str, Any], Auth(bearer, scopes=["read"])]) -> str:
    return str(user["name"])


@svc.put("/admin")
async def admin(user: Annotated[dict[str, Any], Auth(bearer, scopes=["admin"])], order: NewOrder) -> dict[str, Any]:
    return {"user": user["name"], "customer": order.customer}


# ── answers ──


@svc.get("/old")
async def old() -> Response:
    return redirect("/orders/7?q=a b&ü=1")


@svc.get("/file")
async def file() -> FileResponse:
    return FileResponse(REPORT, filename="report ü.txt")


@svc.get("/text")
async def text() -> str:
    return "hellö"


@svc.get("/nothing")
async def nothing() -> None:
    return None


@svc.get("/perhaps")
async def perhaps(id: int) -> Order | None:
    return stored(id)


@svc.get("/user")
async def public() -> Public:
    return Private(name="anna", password="secret")


@svc.get("/wrong")
async def wrong() -> Public:
    return {"nom": "anna"}  # type: ignore[return-value]


@svc.get("/numbers")
async def odd() -> dict[str, Any]:
    return {"big": 2**70, "small": 1e-7, "text": "ü\u2028<>&", "set": {1}, "bytes": b"abc", "day": date(2026, 2, 1)}


@svc.get("/both/<id>")
async def both(id: int) -> str:
    return f"id {id}"


@svc.get("/both/me")
async def both_me() -> str:
    return "me"
