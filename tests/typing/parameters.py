# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Markers, dependencies, and the values that handlers get."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, assert_type

from pydantic import BaseModel, Field

from natsweb import (
    OIDC,
    ApiKey,
    Auth,
    Background,
    Basic,
    Bearer,
    Body,
    Cookie,
    Credentials,
    Depends,
    File,
    Form,
    Header,
    Partial,
    Path,
    Query,
    Request,
    Service,
    UploadFile,
)

svc = Service("parameters")


class Order(BaseModel):
    id: int
    item: str = Field(min_length=1)


class Page(BaseModel):
    number: int = 1


class User(BaseModel):
    name: str


class Db:
    def save(self, order: Order) -> None: ...


async def connect() -> AsyncIterator[Db]:
    yield Db()


def session(db: Annotated[Db, Depends(connect)]) -> Iterator[str]:
    yield "session"


async def check(token: str) -> User | None:
    return User(name=token)


def check_both(username: str, password: str) -> User | None:
    return None


bearer = Bearer(check)
Database = Annotated[Db, Depends(connect)]
Me = Annotated[User, Auth(bearer, scopes=["orders:write"])]


@svc.patch("/orders/<id>")
async def change(id: int, patch: Partial[Order], db: Database) -> Order:
    assert_type(patch.changes, dict[str, Any])
    assert_type("item" in patch, bool)
    changed = patch.apply(Order(id=id, item="tea"))
    assert_type(changed, Order)
    db.save(changed)
    patch.apply(Page())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return changed


@svc.post("/photos")
async def upload(
    title: Annotated[str, Form(max_length=100)],
    photo: UploadFile,
    more: list[UploadFile] = [],  # noqa: B006
    raw: Annotated[bytes | None, File()] = None,
) -> int:
    assert_type(await photo.read(), bytes)
    assert_type(photo.filename, str | None)
    assert_type(photo.content_type, str | None)
    assert_type(photo.size, int | None)
    assert_type(more, list[UploadFile])
    return len(await photo.read(10))


@svc.get("/me")
async def me(user: Me, session: Annotated[str, Depends(session)], request: Request) -> str:
    assert_type(user, User)
    assert_type(request.cookies, dict[str, str])
    assert_type(request.query_params, dict[str, list[str]])
    assert_type(request.prefers("text/html", "application/json"), str | None)
    return user.name + session


@svc.get("/guest")
async def guest(user: Annotated[User | None, Auth(bearer)]) -> str:
    return user.name if user else "guest"


@svc.get("/keys")
async def keys(
    key: Annotated[str, Auth(ApiKey(header="x-api-key"))],
    both: Annotated[Credentials, Auth(Basic())],
    page: Annotated[Page, Query()],
    agent: Annotated[str | None, Header(alias="user-agent")] = None,
    seen: Annotated[int, Cookie(ge=0)] = 0,
) -> str:
    assert_type(both.username, str)
    return key


def send(to: str, *, order: int = 0) -> None: ...


async def send_later(to: str) -> None: ...


@svc.post("/mail")
async def mail(to: Annotated[str, Body(embed=True)], tasks: Background) -> None:
    tasks.add(send, to, order=7)
    tasks.add(send_later, to)
    tasks.add("send")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    tasks.add(send, to, ordr=7)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def unit_test() -> None:
    async for db in connect():
        assert_type(db, Db)
    assert_type(await guest(None), str)
    await mail("me", Background())
    await change(1, Order(id=1, item="a"), Db())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def mistakes() -> None:
    Query(gte=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Path(ge="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Query(20)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    Header(default="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Cookie(csv=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Depends(connect, scope="session")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Depends(connect())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Auth(check)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Bearer("secret")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Basic(check)  # takes one text and not two: a mistake that a type checker ought to see
    Basic(check_both)
    OIDC("https://id.example")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def wrong(id: int = Path()) -> None:  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
    pass


async def pages(patch: Partial[Db]) -> None:  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeArguments]
    pass
