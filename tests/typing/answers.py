# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What handlers return and raise."""

from collections.abc import AsyncIterator, Iterator
from typing import Literal, assert_type

from pydantic import BaseModel

from natsweb import (
    Created,
    FileResponse,
    Headers,
    HTTPError,
    Reply,
    Request,
    Response,
    Service,
    redirect,
)
from natsweb.feeds import Event
from natsweb.messages import StreamingResponse

svc = Service("answers")


class Order(BaseModel):
    id: int


class Special(Order):
    extra: str = ""


class Page(Response):
    """A response of the user's own."""


@svc.post("/orders")
async def create(order: Order) -> Created[Order]:
    return Created(order, location=svc.url_for("show", id=order.id))


@svc.get("/orders/<id>")
async def show(id: int) -> Reply[Order]:
    if id > 7:
        raise HTTPError(404, f"no order {id}", reason="no_order", headers={"x-a": "b"}, errors=[])
    return Reply(Order(id=id), status=203, headers={"set-cookie": ["a=1", "b=2"]})


@svc.get("/special")
async def special() -> Reply[Order]:
    return Reply(Special(id=1))


@svc.get("/either")
async def either(how: Literal["made", "old"]) -> Created[Order] | Response:
    return Created(Order(id=1)) if how == "made" else redirect("/orders/1", status=303)


@svc.get("/feed", heartbeat=5.0)
async def feed(last_event_id: str | None = None) -> AsyncIterator[Event[Order]]:
    yield Event(Order(id=1), id="1", event="order", retry=1000)
    yield Order(id=1)  # type: ignore[misc]  # pyright: ignore[reportReturnType]
    yield Event("x")  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]


@svc.get("/steps")
def steps() -> Iterator[Order]:
    yield Special(id=1)


@svc.post("/echo", stream=True)
async def echo(chunks: AsyncIterator[bytes]) -> Reply[AsyncIterator[bytes]]:
    return Reply(chunks, headers={"content-type": "image/png"})


@svc.get("/rows")
async def rows() -> StreamingResponse:
    return StreamingResponse(feed_of_text(), media_type="text/csv")


async def feed_of_text() -> AsyncIterator[str]:
    yield "a,b"


assert_type(feed(), AsyncIterator[Event[Order]])
assert_type(Event(1), Event[int])


@svc.get("/file")
async def file() -> FileResponse:
    return FileResponse("report.pdf", root="/tmp", filename="report.pdf", headers=[("cache-control", "no-store")])


@svc.get("/maybe")
async def maybe() -> Order | None:
    return None


async def unit_test() -> None:
    made = await create(Order(id=1))
    assert_type(made, Created[Order])
    assert_type(made.body, Order)
    assert_type(made.status, int | None)
    assert_type(made.headers, Headers)
    assert_type((await show(1)).body.id, int)
    assert_type(await file(), FileResponse)

    response = Response(status=201, headers={"location": "/orders/7"}, body="made")
    assert_type(response.with_cookie("session", "a", max_age=60, samesite="strict"), Response)
    assert_type(response.without_cookie("session"), Response)
    assert_type(response.with_headers({"x-a": "b"}), Response)
    assert_type(response.body, bytes)
    assert_type(response.headers["location"], str)
    assert_type(response.headers.get("x-a"), str | None)
    assert_type(Page().with_cookie("a", "b"), Page)
    assert_type(Page().without_cookie("a").with_headers({}), Page)
    assert_type(redirect("/"), Response)
    assert_type(Request(headers={"accept": "a"}, body="text").text, str)


def mistakes() -> None:
    response = Response()
    response.status = 201  # a mistake that type checkers do not see: responses are frozen
    response.with_cookie("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    response.with_cookie("a", "b", samesite="Lax")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    response.with_cookie("a", "b", http_only=False)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Response(content="text")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Response("text")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    Response(status_code=201)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Response(body={"a": 1})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Response(headers={"x-a": 1})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HTTPError("not found")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    HTTPError(404, errors=[{"loc": ["a"]}])  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]
    redirect("/", 303)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    FileResponse("a", name="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    @svc.get("/wrong")
    async def wrong() -> Reply[Order]:
        return Reply("order")  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]

    @svc.get("/other")
    async def other() -> Created[Order]:
        return Reply(Order(id=1))  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
