"""The service as a FastAPI user writes it."""

from collections.abc import AsyncIterator, Iterator
from datetime import date
from typing import Annotated, Any
from uuid import UUID

from fastapi import (
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Form,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
    UploadFile,
)
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from pydantic import BaseModel

from beside_fastapi.models import (
    REPORT,
    USERS,
    Address,
    Colour,
    Level,
    Line,
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

app = FastAPI()
log: list[str] = []


# ── path ──


@app.get("/items/{id}")
async def item(id: int) -> dict[str, int]:
    return {"id": id}


@app.get("/things/{key}")
async def thing(key: UUID) -> dict[str, UUID]:
    return {"key": key}


@app.get("/colours")
async def colours() -> list[Colour]:
    return list(Colour)


@app.get("/colours/{colour}")
async def colour(colour: Colour) -> dict[str, Colour]:
    return {"colour": colour}


@app.get("/levels/{level}")
def level(level: Level) -> dict[str, Level]:
    return {"level": level}


@app.get("/names/{name}")
async def name(name: str) -> dict[str, str]:
    return {"name": name}


@app.get("/tails/{rest:path}")
async def tail(rest: str) -> dict[str, str]:
    return {"rest": rest}


# ── query, headers, cookies ──


@app.get("/search")
async def search(
    q: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ratio: float | None = None,
    sold: bool | None = None,
    day: date | None = None,
    colour: Colour | None = None,
    level: Level | None = None,
    tag: Annotated[list[str], Query()] = [],  # noqa: B006
    number: Annotated[list[int] | None, Query()] = None,
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


@app.get("/needed")
async def needed(q: str, n: int) -> dict[str, Any]:
    return {"q": q, "n": n}


@app.get("/pages")
async def pages(page: Annotated[Page, Query()]) -> Page:
    return page


@app.get("/headers")
async def headers(
    user_agent: Annotated[str, Header()],
    x_count: Annotated[int | None, Header()] = None,
    x_many: Annotated[list[str], Header()] = [],  # noqa: B006
) -> dict[str, Any]:
    return {"user_agent": user_agent, "x_count": x_count, "x_many": x_many}


@app.get("/traces")
async def traces(found: Annotated[Traces, Header()]) -> Traces:
    return found


@app.get("/cookies")
async def cookies(session: Annotated[str, Cookie()], visits: Annotated[int, Cookie()] = 0) -> dict[str, Any]:
    return {"session": session, "visits": visits}


@app.get("/aliases")
async def aliases(
    q: Annotated[str, Query(alias="user-id")],
    n: Annotated[int, Header(alias="X-Number")] = 0,
    c: Annotated[str | None, Cookie(alias="sid")] = None,
) -> dict[str, Any]:
    return {"q": q, "n": n, "c": c}


@app.get("/shapes")
async def shapes(found: Annotated[Shapes, Query()]) -> Shapes:
    return found


@app.get("/sets")
async def sets(
    ids: Annotated[set[int], Query()], pair: Annotated[tuple[int, str] | None, Query()] = None
) -> dict[str, Any]:
    return {"ids": sorted(ids), "pair": pair}


# ── forms and files ──


class Attachment(BaseModel):
    note: str
    file: UploadFile
    more: list[UploadFile] = []


@app.post("/attach")
async def attach(form: Annotated[Attachment, Form()]) -> dict[str, Any]:
    return {"note": form.note, "file": form.file.filename, "more": [file.filename for file in form.more]}


@app.post("/login")
async def login(form: Annotated[Login, Form()], response: Response) -> dict[str, Any]:
    response.set_cookie("session", form.username, max_age=60 if form.remember else None)
    return {"username": form.username, "remember": form.remember}


@app.post("/logout")
async def logout(response: Response) -> dict[str, Any]:
    response.delete_cookie("session")
    return {}


@app.post("/photos")
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


@app.post("/orders", status_code=201)
async def create(order: NewOrder, response: Response) -> Order:
    response.headers["location"] = app.url_path_for("show", id="8")
    return Order(id=8, **dict(order))


@app.get("/orders/{id}")
async def show(id: int) -> Order:
    if order := stored(id):
        return order
    raise HTTPException(404, f"no order {id}")


class OrderPatch(BaseModel):
    customer: str | None = None
    lines: list[Line] | None = None
    address: Address | None = None
    price: float | None = None
    gift: bool | None = None
    colour: Colour | None = None


@app.patch("/orders/{id}")
async def change(id: int, patch: OrderPatch) -> Order:
    if order := stored(id):
        return order.model_copy(update=patch.model_dump(exclude_unset=True))
    raise HTTPException(404, f"no order {id}")


@app.delete("/orders/{id}", status_code=204)
async def delete(id: int) -> None:
    if not stored(id):
        raise HTTPException(404, f"no order {id}")


@app.put("/numbers")
async def numbers(numbers: list[int]) -> int:
    return sum(numbers)


@app.put("/pair")
async def pair(a: Annotated[int, Body()], b: Annotated[str, Body()] = "-") -> dict[str, Any]:
    return {"a": a, "b": b}


@app.put("/maybe")
async def maybe(address: Address | None = None) -> dict[str, Any]:
    return {"street": address and address.street}


@app.put("/free")
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


@app.exception_handler(OutOfStock)
async def out_of_stock(request: Request, error: OutOfStock) -> JSONResponse:
    return JSONResponse({"sold_out": str(error), "path": request.url.path}, 409)


@app.get("/report")
async def report(
    session: Annotated[str, Depends(session)], db: Annotated[str, Depends(connection)], how: str = "well", n: int = 0
) -> dict[str, Any]:
    log.append(f"handle {how}")
    if how == "sold":
        raise OutOfStock("tea")
    if how == "refused":
        raise HTTPException(418, "a teapot", headers={"x-pot": "tea"})
    if how == "crash":
        raise RuntimeError("a secret")
    return {"session": session, "db": db, "n": n}


@app.post("/mail", status_code=202)
async def mail(to: str, tasks: BackgroundTasks, session: Annotated[str, Depends(session)]) -> dict[str, str]:
    def send(to: str, *, via: str) -> None:
        log.append(f"send to {to} via {via}")

    tasks.add_task(send, to, via=session)
    tasks.add_task(log.append, "sent")
    return {"to": to}


# ── who calls ──

bearer = HTTPBearer()


def user(scopes: SecurityScopes, token: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> dict[str, Any]:
    challenge = f'Bearer scope="{scopes.scope_str}"' if scopes.scopes else "Bearer"
    if token.credentials not in USERS:
        raise HTTPException(401, "unknown token", headers={"www-authenticate": challenge})
    user = USERS[token.credentials]
    if not set(scopes.scopes) <= set(user["scopes"]):
        raise HTTPException(401, "not enough permissions", headers={"www-authenticate": challenge})
    return user


@app.get("/me")
async def me(user: Annotated[dict[str, Any], Security(user, scopes=["read"])]) -> str:
    return str(user["name"])


@app.put("/admin")
async def admin(user: Annotated[dict[str, Any], Security(user, scopes=["admin"])], order: NewOrder) -> dict[str, Any]:
    return {"user": user["name"], "customer": order.customer}


# ── answers ──


@app.get("/old")
async def old() -> RedirectResponse:
    return RedirectResponse("/orders/7?q=a b&ü=1")


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(REPORT, filename="report ü.txt")


@app.get("/text")
async def text() -> str:
    return "hellö"


@app.get("/nothing")
async def nothing() -> None:
    return None


@app.get("/perhaps")
async def perhaps(id: int) -> Order | None:
    return stored(id)


@app.get("/user")
async def public() -> Public:
    return Private(name="anna", password="secret")


@app.get("/wrong")
async def wrong() -> Public:
    return {"nom": "anna"}  # type: ignore[return-value]


@app.get("/numbers")
async def odd() -> dict[str, Any]:
    return {"big": 2**70, "small": 1e-7, "text": "ü\u2028<>&", "set": {1}, "bytes": b"abc", "day": date(2026, 2, 1)}


@app.get("/both/{id}")
async def both(id: int) -> str:
    return f"id {id}"


@app.get("/both/me")
async def both_me() -> str:
    return "me"
