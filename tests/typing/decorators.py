# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Route decorators give a handler back as it is, and know their options."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, assert_type

from pydantic import BaseModel

from natsweb import Depends, Path, Query, Response, Router, Service, delete, get, patch, post, put, route


class Order(BaseModel):
    id: int
    item: str


class Db:
    def find(self, id: int) -> Order:
        return Order(id=id, item="tea")


svc = Service("decorators")
router = Router("/more", tags=["more"], depends=[Depends(Db)])


@svc.get("/orders/<id>", status=200, name="show", tags=["orders"], summary="Show", responses={404: "no such order"})
async def show(id: Annotated[int, Path(ge=1)], db: Annotated[Db, Depends(Db)], deep: bool = False) -> Order:
    return db.find(id)


@svc.delete("/orders/<id>")
def cancel(id: int) -> None:
    pass


@router.get()
async def listed(*, limit: Annotated[int, Query(le=100)] = 20) -> list[Order]:
    return []


@router.route("/all", methods=["POST", "PUT"], deprecated=True, include_in_schema=False, operation_id="all")
async def everything(kind: Literal["a", "b"]) -> dict[str, int] | Response:
    return {}


@svc.head("/twice")
@router.options("/twice")
async def twice() -> Response:
    return Response()


class Orders:
    def __init__(self, db: Db) -> None:
        self.db = db

    @get("/<id>")
    async def show(self, id: int) -> Order:
        return self.db.find(id)

    @post(status=201)
    @put("/again", name="again")
    def create(self, order: Order) -> Order:
        return order

    @patch("/<id>")
    @delete("/<id>")
    @route("/x/<id>", methods=["POST"])
    async def change(self, id: int) -> None: ...


svc.include(router, prefix="/v1", tags=["v1"])
svc.include(Orders(Db()), prefix="/orders2")


async def unit_test() -> None:
    assert_type(await show(1, Db()), Order)
    assert_type(await show(id=1, db=Db(), deep=True), Order)
    assert_type(await listed(limit=3), list[Order])
    assert_type(await everything("a"), dict[str, int] | Response)
    assert_type(await twice(), Response)
    assert_type(await Orders(Db()).show(1), Order)
    assert_type(Orders(Db()).create(Order(id=1, item="a")), Order)
    handler: Callable[[int], Awaitable[None]] = Orders(Db()).change
    await handler(1)
    cancel(id=1)

    await show("1", Db())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await show(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await show(1, Db(), depp=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await listed(3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await everything("c")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await Orders(Db()).show("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def mistakes() -> None:
    svc.get("/x", sumary="Show")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    svc.post("/x", status="201")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    svc.get("/x", depends=[Db])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    svc.get("/x", responses={"404": "none"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    router.put("/x", tag=["a"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    router.route("/x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    get("/x", methods=["GET"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    route("/x", methods=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Router("/x", tag=["a"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Router("/x", depends=[Db])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
