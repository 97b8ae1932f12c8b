"""A service as a handler: what functions return, what they raise, and how they run."""

import asyncio
import contextvars
import logging
import threading
from dataclasses import dataclass
from datetime import date
from enum import Enum, IntEnum
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from natsweb import HTTPError, Request, Response, Service
from natsweb.errors import BadPath, Mistake, NoRoute, Overloaded
from natsweb.messages import Call, NotExecuted
from natsweb.subjects import path_tokens

JSON, TEXT = "application/json", "text/plain; charset=utf-8"
PROBLEM, BYTES = "application/problem+json", "application/octet-stream"


class Order(BaseModel):
    id: int
    item: str = "tea"


class Secret(Order):
    password: str = "hunter2"


class Aliased(BaseModel):
    order_id: int = Field(alias="orderId")


class Basket(BaseModel):
    orders: list[Order]


@dataclass
class Point:
    x: int


@dataclass
class SecretPoint(Point):
    password: str = "hunter2"


class Pair(TypedDict):
    left: int


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 2


@pytest.fixture
def service():
    """A service whose threads end with the test."""
    service = Service("test", threads=2)
    yield service
    service.close()


def returning(service: Service, value: Any, annotation: Any, **options: Any) -> None:
    """Declare `GET /` that returns this value under this annotation."""

    async def show():
        return value

    if annotation is not ...:
        show.__annotations__["return"] = annotation
    service.get("/", **options)(show)


def problem_of(response: Response) -> dict[str, Any]:
    """Return the problem of an error response, after a look at what all of them share."""
    assert response.headers.getlist("content-type") == [PROBLEM]
    body = response.parse_json()
    assert (body["type"], body["status"]) == ("about:blank", response.status)
    assert body["title"]
    return body


# ── return values ────────────────────────────────────────────────────────────────────────────────

# value, annotation, status, content type, body
RETURNS = [
    (Order(id=1), Order, 200, JSON, '{"id":1,"item":"tea"}'),
    ({"id": "7"}, Order, 200, JSON, '{"id":7,"item":"tea"}'),
    (Order(id=1), ..., 200, JSON, '{"id":1,"item":"tea"}'),
    (Order(id=1), Any, 200, JSON, '{"id":1,"item":"tea"}'),
    ([Order(id=1), {"id": 2}], list[Order], 200, JSON, '[{"id":1,"item":"tea"},{"id":2,"item":"tea"}]'),
    ({"a": Order(id=1)}, dict[str, Order], 200, JSON, '{"a":{"id":1,"item":"tea"}}'),
    (Order(id=1), Order | None, 200, JSON, '{"id":1,"item":"tea"}'),
    (None, Order | None, 204, None, ""),
    (None, None, 204, None, ""),
    (None, ..., 204, None, ""),
    (Point(1), Point, 200, JSON, '{"x":1}'),
    (Point(1), ..., 200, JSON, '{"x":1}'),
    ({"left": 1}, Pair, 200, JSON, '{"left":1}'),
    (Aliased(orderId=1), Aliased, 200, JSON, '{"orderId":1}'),
    ("grün", str, 200, TEXT, "grün"),
    ("", str, 200, TEXT, ""),
    ("text", ..., 200, TEXT, "text"),
    (b"\xc3\xbc", bytes, 200, BYTES, "ü"),
    (Response(status=202, body=b"x", headers={"content-type": "a/b"}), Response, 202, "a/b", "x"),
    (Response(status=202), ..., 202, None, ""),
    (7, int, 200, JSON, "7"),
    (True, bool, 200, JSON, "true"),
    (1.5, float, 200, JSON, "1.5"),
    ([1, "a", None], list, 200, JSON, '[1,"a",null]'),
    ({"ü": date(2024, 2, 29)}, dict, 200, JSON, '{"ü":"2024-02-29"}'),
    (UUID(int=1), UUID, 200, JSON, '"00000000-0000-0000-0000-000000000001"'),
    (Color.RED, Color, 200, JSON, '"red"'),
    (Level.HIGH, Level, 200, JSON, "2"),
    ((1, 2), tuple[int, int], 200, JSON, "[1,2]"),
    (1, Literal[1, 2], 200, JSON, "1"),
]


@pytest.mark.parametrize(("value", "annotation", "status", "media", "body"), RETURNS)
async def test_return_values(service, value, annotation, status, media, body):
    """Every kind of value becomes the response that its annotation promises."""
    returning(service, value, annotation)
    response = await service.handle(Request())
    assert (response.status, response.headers.get("content-type"), response.text) == (status, media, body)


@pytest.mark.parametrize("value", [Order(id=1), None, "x", b"x"])
async def test_the_status_of_a_route(service, value):
    """A status given to the decorator counts for every value but a Response."""
    returning(service, value, ..., status=201)
    assert (await service.handle(Request())).status == 201


async def test_a_response_keeps_its_status(service):
    """A Response that a handler returns goes as it is, the route's status or not."""
    response = Response(status=303, headers={"location": "/x"})
    returning(service, response, Response, status=201)
    assert await service.handle(Request()) is response


# value, annotation
UNFIT = [
    ({"id": "x"}, Order),
    ({}, Order),
    (Point(1), Order),
    ([{"id": "x"}], list[Order]),
    ({"left": "x"}, Pair),
    ([1], int),
    (3, Literal[1, 2]),
    ("\ud800", str),
    (object(), ...),
]
UNFIT_TEXT = [("oops", Order), (b"oops", Order), ("oops", int), (7, str), ({"a": 1}, None), ([1], bytes), (7, Response)]


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        *UNFIT,
        *UNFIT_TEXT,
    ],
)
async def test_values_that_do_not_fit_their_annotation(service, caplog, value, annotation):
    """A return value that breaks the promise of its annotation is 500 and logged; it is not the caller's 422."""
    returning(service, value, annotation)
    response = await service.handle(Request())
    assert response.status == 500
    assert "errors" not in problem_of(response)
    assert "GET / failed" in caplog.text


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Secret(id=1), Order),
        ([Secret(id=1)], list[Order]),
        (Secret(id=1), Order | None),
        ({"a": Secret(id=1)}, dict[str, Order]),
        (Basket(orders=[Secret(id=1)]), Basket),
        (SecretPoint(1), Point),
        ([SecretPoint(1)], list[Point]),
        ({"left": 1, "password": "hunter2"}, Pair),
        ({"id": 1, "password": "hunter2"}, Order),
    ],
)
async def test_only_what_the_annotation_names_gets_out(service, value, annotation):
    """The extra fields of a subclass, or of a dict, stay inside."""
    returning(service, value, annotation)
    response = await service.handle(Request())
    assert response.status == 200
    assert "hunter2" not in response.text
    assert "password" not in response.text


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def raising(service: Service, error: BaseException | type[BaseException], kind: str) -> None:
    """Declare `GET /` that raises, as a coroutine or in a thread."""

    async def wait():
        raise error

    def block():
        raise error

    service.get("/")(wait if kind == "async def" else block)


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize(
    ("error", "status", "headers", "problem"),
    [
        (HTTPError(404), 404, {}, {"title": "Not Found"}),
        (HTTPError(402, "pay first", reason="unpaid"), 402, {}, {"detail": "pay first", "reason": "unpaid"}),
        (HTTPError(401, headers={"WWW-Authenticate": "Basic"}), 401, {"www-authenticate": "Basic"}, {}),
        (HTTPError(422, errors=[{"loc": ["a"], "msg": "m", "type": "t"}]), 422, {}, {"title": "Unprocessable Content"}),
        (HTTPError(599, "ü"), 599, {}, {"title": "Error", "detail": "ü"}),
        (Overloaded(), 503, {"retry-after": "1"}, {"reason": "overloaded"}),
        (BadPath("x"), 400, {}, {"reason": "bad_path"}),
    ],
)
async def test_http_errors(service, caplog, kind, error, status, headers, problem):
    """An HTTPError is its problem, with its headers, and nothing for the log."""
    raising(service, error, kind)
    response = await service.handle(Request())
    assert response.status == status
    assert headers.items() <= dict(response.headers).items()
    assert problem.items() <= problem_of(response).items()
    assert not response.retry
    assert not caplog.records


def invalid() -> ValidationError:
    """Return a validation error of a handler's own doing."""
    with pytest.raises(ValidationError) as caught:
        Order(id="hunter2")
    return caught.value


FAILURES = [
    *(RuntimeError("hunter2"), KeyError("hunter2"), ValueError, AssertionError("hunter2"), Mistake("hunter2")),
    *(SystemExit(3), SystemExit("hunter2"), KeyboardInterrupt("hunter2"), TimeoutError("hunter2")),
    *(BaseExceptionGroup("hunter2", [KeyboardInterrupt()]), NameError("hunter2"), RecursionError("hunter2"), invalid()),
]


@pytest.mark.parametrize("kind", ["async def", "def"])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: getattr(error, "__name__", type(error).__name__))
async def test_other_exceptions(service, caplog, kind, error):
    """Whatever else a handler raises is 500 without a word of it, and a traceback in the log."""
    raising(service, error, kind)
    response = await service.handle(Request())
    assert response.status == 500
    assert problem_of(response)["reason"] == "handler_failed"
    assert "hunter2" not in response.text
    assert "Traceback" not in response.text
    [record] = caplog.records
    assert (record.name, record.levelno) == ("natsweb.service", logging.ERROR)
    assert "GET / failed" in record.getMessage()
    assert "test_service.py" in record.getMessage()
    assert record.exc_info[0] is (error if isinstance(error, type) else type(error))


async def test_stop_iteration_of_a_coroutine(service):
    """`next` of an empty iterator in a coroutine is an error like any other."""

    @service.get("/")
    async def show():
        return next(iter([]))

    assert (await service.handle(Request())).status == 500


async def test_stop_iteration_in_a_thread(service):
    """`next` of an empty iterator in a plain function is an error like any other."""
    raising(service, StopIteration, "def")
    assert (await asyncio.wait_for(service.handle(Request()), 0.5)).status == 500


@pytest.mark.parametrize(
    "error",
    [
        HTTPError(404, "no \ud800"),
        HTTPError(404, headers={"x": "a\r\nb"}),
        HTTPError(404, headers={"x": "€"}),
        HTTPError(404, headers={"x": 7}),
        HTTPError(404, 7),
    ],
    ids=["surrogate", "crlf", "euro", "number", "detail"],
)
async def test_errors_that_make_no_response(service, error):
    """An HTTPError that cannot be said in HTTP is a response all the same."""
    raising(service, error, "async def")
    assert (await service.handle(Request())).status in (404, 500)


async def test_an_error_has_one_content_type(service):
    """An error that brings its own content type does not have two."""
    raising(service, HTTPError(404, headers={"Content-Type": "text/plain"}), "async def")
    assert len((await service.handle(Request())).headers.getlist("content-type")) == 1


async def test_cancelling_the_caller_cancels_the_handler(service):
    """Cancelling `handle` cancels the handler at its await, and the cancellation gets out."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    @service.get("/")
    async def show():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(service.handle(Request()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()


async def test_a_cancelled_error_of_the_handlers_own_is_a_failure(service):
    """A handler that awaits a task which was cancelled has failed; its request was not cancelled."""

    @service.get("/")
    async def show():
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    try:
        response = await service.handle(Request())
    except asyncio.CancelledError:
        pytest.fail("cancelled")
    assert response.status == 500


# ── routes ───────────────────────────────────────────────────────────────────────────────────────

ALLOW = "DELETE, GET, HEAD, OPTIONS"

# method, path, query, status, headers, whether the request was surely not executed
ANSWERS = [
    ("GET", "/orders/7", "", 204, {}, False),
    ("HEAD", "/orders/7", "", 204, {}, False),
    ("GET", "/nothing", "", 404, {"content-type": PROBLEM}, True),
    ("PUT", "/orders/7", "", 405, {"allow": ALLOW, "content-type": PROBLEM}, True),
    ("OPTIONS", "/orders/7", "", 204, {"allow": ALLOW}, False),
    ("GET", "/orders/7/", "a=b", 308, {"location": "../7?a=b", "cache-control": "no-store"}, False),
    ("HEAD", "/orders/a%3Ab/", "", 308, {"location": "../a%3Ab", "cache-control": "no-store"}, False),
    ("DELETE", "/orders/7/", "", 404, {"content-type": PROBLEM}, True),
    ("GET", "/orders/x", "", 422, {"content-type": PROBLEM}, False),
    ("GET", "/files/a%2F..%2Fb", "", 400, {"content-type": PROBLEM}, False),
]


@pytest.mark.parametrize("kind", [Request, Call])
@pytest.mark.parametrize(("method", "path", "query", "status", "headers", "retry"), ANSWERS)
async def test_routes(service, kind, method, path, query, status, headers, retry):
    """The router's answers, for a request as for a call off the wire."""

    @service.get("/orders/<id>")
    @service.delete("/orders/<id>")
    async def show(id: int): ...

    @service.get("/files/<path:rest>")
    async def files(rest: str): ...

    if kind is Request:
        call = Request(method=method, raw_path=path, query=query)
    else:
        call = Call(method, path_tokens(path), query)
    response = await service.handle(call)
    assert (response.status, dict(response.headers)) == (status, headers)
    assert isinstance(response, NotExecuted) == response.retry == retry


async def test_one_slash_too_many_after_a_slash(service):
    """Only the slash after a path without one is mended: two are a path of their own."""

    @service.get("/a/")
    async def show(): ...

    response = await service.handle(Request(raw_path="/a//"))
    assert response.status == 404


@pytest.mark.parametrize(
    "call",
    [
        Call("GET", path_tokens("/1/x/")),
        pytest.param(
            Request(raw_path="/1/x/"),
        ),
    ],
    ids=["call", "request"],
)
async def test_params_of_a_request(service, call):
    """A handler sees the captures of its route in the request, whatever the service was called with."""

    @service.get("/<a>/<path:b>")
    async def show(a: int, b: str, request: Request):
        return request.params

    assert (await service.handle(call)).response().parse_json() == {"a": "1", "b": "x/"}


def test_patterns(service):
    """A service subscribes to the minimal cover of its routes, below its own root or another."""

    @service.get("/")
    @service.get("/orders/new")
    def plain(): ...

    @service.get("/orders/<x>")
    @service.get("/files/<path:x>")
    @service.get("/files/a/<x>")
    def one(x: str): ...

    assert service.patterns() == ["api", "api.files.>", "api.orders.*"]
    assert service.patterns("api.staging") == ["api.staging", "api.staging.files.>", "api.staging.orders.*"]
    assert repr(service) == "<Service test 0.0.0: 5 routes below api>"
    with pytest.raises(Mistake):
        service.patterns("$SYS")


@pytest.mark.parametrize("root", ["$SYS", "_INBOX", ">", "", "a..b", "a b"])
def test_roots(root):
    """A root that could reach what is NATS's own is refused."""
    with pytest.raises(Mistake, match="root"):
        Service("test", root=root)


@pytest.mark.parametrize("options", [{"queue": "a b"}, {"queue": "a\r\nPUB x 0"}, {"threads": -1}])
def test_options_that_cannot_work(options):
    """A queue group that would break the protocol line, or no threads at all, are errors at once."""
    with pytest.raises(Mistake):
        Service("test", **options)


async def test_router_errors_are_safe_to_repeat(service):
    """No route is a problem that says that nothing was executed."""
    response = await service.handle(Request(raw_path="/nothing"))
    assert problem_of(response)["reason"] == NoRoute.default_reason
    assert response.retry


# ── how handlers run ─────────────────────────────────────────────────────────────────────────────

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_plain_functions_run_in_threads_with_the_context(service):
    """A plain function runs in a thread of the service, sees the caller's context variables and keeps its own."""

    @service.get("/")
    def show():
        seen = VARIABLE.get()
        VARIABLE.set("changed")
        return [seen, threading.current_thread().name]

    VARIABLE.set("caller")
    seen, thread = (await service.handle(Request())).parse_json()
    assert seen == "caller"
    assert thread.startswith("natsweb-test")
    assert VARIABLE.get() == "caller"


async def test_threads_are_bounded(service):
    """As many plain functions as `threads` says run at once: here two meet, and never three."""
    meet, lock, running = threading.Barrier(2), threading.Lock(), []
    most = 0

    @service.get("/")
    def show():
        nonlocal most
        with lock:
            running.append(1)
            most = max(most, len(running))
        meet.wait(10)
        with lock:
            running.pop()

    answers = await asyncio.gather(*(service.handle(Request()) for _ in range(8)))
    assert {answer.status for answer in answers} == {204}
    assert most == 2


async def test_coroutines_run_together(service):
    """Async handlers run at the same time, in the thread of the loop, and leave it free."""
    meet = asyncio.Barrier(50)

    @service.get("/")
    async def show():
        await meet.wait()
        return threading.current_thread() is threading.main_thread()

    answers = await asyncio.gather(*(service.handle(Request()) for _ in range(50)))
    assert {answer.text for answer in answers} == {"true"}


async def test_a_blocked_thread_leaves_the_loop_free(service):
    """An async handler answers while a plain one is blocked."""
    release = threading.Event()

    @service.get("/blocked")
    def blocked():
        return release.wait(10)

    @service.get("/free")
    async def free():
        release.set()

    slow, fast = await asyncio.gather(*(service.handle(Request(raw_path=path)) for path in ("/blocked", "/free")))
    assert (slow.text, fast.status) == ("true", 204)


async def test_a_plain_function_may_return_an_awaitable(service):
    """What a plain function returns is awaited if it can be, so wrapped coroutines work."""

    async def later():
        return "later"

    @service.get("/")
    def show():
        return later()

    assert (await service.handle(Request())).text == "later"


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_the_request_is_seen_by_name(service, kind):
    """Both kinds of handlers get their arguments by name, in whatever order they take them."""
    if kind == "def":

        @service.post("/<b>")
        def show(order: Order, c: str = "c", *, b: int):
            return [order.id, c, b]
    else:

        @service.post("/<b>")
        async def show(order: Order, c: str = "c", *, b: int):
            return [order.id, c, b]

    response = await service.handle(Request(method="POST", raw_path="/2", body=b'{"id": 1}'))
    assert response.parse_json() == [1, "c", 2]


async def test_closing_is_repeatable(service):
    """A closed service can be closed again, and serves again if asked to."""

    @service.get("/")
    def show(): ...

    for _ in range(2):
        assert (await service.handle(Request())).status == 204
        service.close()
        service.close()


@pytest.mark.parametrize(
    ("given", "media"),
    [
        ({"body": "5"}, "text/plain; charset=utf-8"),
        ({"body": "5", "status": 201, "headers": {"x": "1"}}, "text/plain; charset=utf-8"),
        ({"body": b"5"}, "application/octet-stream"),
        ({"body": "<b>", "headers": {"Content-Type": "text/html"}}, "text/html"),
        ({"body": b"{}", "headers": {"content-type": "application/json"}}, "application/json"),
        ({}, None),
        ({"status": 304, "headers": {"etag": "x"}}, None),
    ],
)
async def test_a_response_has_one_content_type(service, given, media):
    """Text is text/plain and bytes are octet-stream, whatever they look like, unless the response says otherwise."""
    returning(service, Response(**given), Response)
    response = await service.handle(Request())
    assert response.headers.getlist("content-type") == ([] if media is None else [media])
