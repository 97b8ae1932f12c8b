"""Middleware: functions around handlers, in one task, which see every answer and whose errors are answers too."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import httpx2
import pytest
from pydantic import BaseModel

from natsweb import Background, Depends, Handler, HTTPError, Request, Response, Router, Service
from natsweb.errors import DeclarationError, NatsDown, NoRoute, Overloaded
from natsweb.messages import Call, NotExecuted
from natsweb.middleware import check_middleware
from natsweb.subjects import path_tokens

Journal = list[str]


@pytest.fixture
def service():
    """A service whose threads end with the test."""
    service = Service("test", threads=2)
    yield service
    service.close()


@pytest.fixture
def journal() -> Journal:
    """What happened, in order."""
    return []


@pytest.fixture(params=["service", "router"])
def level(request, service):
    """Something to put middleware on: the service itself, or a router in it; its routes are below `/r`."""
    if request.param == "service":
        router = Router("/r")
        service.include(router)
        service.under_test = router
        return service
    router = Router("/r")
    service.include(router)
    router.under_test = router
    return router


async def ask(service: Service, path: str = "/r/", **fields: Any) -> Response:
    """Answer one request."""
    return await service.handle(Request(raw_path=path, **fields))


def noting(journal: Journal, name: str) -> Any:
    """Return middleware that writes down when a request and its response pass."""

    async def note(request: Request, call_next: Handler) -> Response:
        journal.append(f"{name} in")
        response = await call_next(request)
        journal.append(f"{name} out {response.status}")
        return response

    return note


# ── order ────────────────────────────────────────────────────────────────────────────────────────


async def test_the_first_is_the_outermost(service, journal):
    """The service's stand around the routers', those around inner routers'; in each the order of declaration."""
    service.around.append(noting(journal, "service 1"))
    service.middleware(noting(journal, "service 2"))
    outer = Router("/outer", middleware=[noting(journal, "outer 1"), noting(journal, "outer 2")])
    inner = Router("/inner", middleware=[noting(journal, "inner")])

    async def guard() -> AsyncIterator[None]:
        journal.append("guard")
        yield
        journal.append("guard closed")

    @inner.get("/", depends=[Depends(guard, scope="handler")])
    async def show():
        journal.append("handler")

    outer.include(inner)
    service.include(outer)
    assert (await ask(service, "/outer/inner/")).status == 204
    names = ["service 1", "service 2", "outer 1", "outer 2", "inner"]
    assert journal == [
        *[f"{name} in" for name in names],
        *("guard", "handler", "guard closed"),
        *[f"{name} out 204" for name in reversed(names)],
    ]


async def test_middleware_of_other_routers(service, journal):
    """A router's middleware stands around its own handlers only."""
    one, two = Router("/one", middleware=[noting(journal, "one")]), Router("/two")
    for router in (one, two):
        router.get("/")(lambda: None)
        service.include(router)
    service.get("/")(lambda: None)
    for path in ("/", "/two/", "/nothing", "/one/nothing"):
        await ask(service, path)
    assert journal == []
    await ask(service, "/one/")
    assert journal == ["one in", "one out 204"]


async def test_middleware_that_comes_late(level, service, journal):
    """What is declared after the first request stands around all that follow."""
    level.under_test.get("/")(lambda: None)
    assert (await ask(service)).status == 204
    level.middleware(noting(journal, "late"))
    assert (await ask(service)).status == 204
    assert journal == ["late in", "late out 204"]


async def test_a_decorator_gives_the_function_back(service):
    """Middleware can be called directly, in a test for example."""

    @service.middleware
    async def add(request: Request, call_next: Handler) -> Response:
        return (await call_next(request)).with_headers({"x": "1"})

    async def endpoint(request: Request) -> Response:
        return Response(status=202)

    assert (await add(Request(), endpoint)).headers["x"] == "1"


async def test_objects_as_middleware(service, journal):
    """An object with an async `__call__` and a bound method are middleware as well."""

    class Adds:
        def __init__(self, name: str) -> None:
            self.name = name

        async def __call__(self, request: Request, call_next: Handler) -> Response:
            return await self.method(request, call_next)

        async def method(self, request: Request, call_next: Handler) -> Response:
            journal.append(self.name)
            return await call_next(request)

    service.middleware(Adds("object"))
    service.middleware(Adds("method").method)
    service.get("/r/")(lambda: None)
    assert (await ask(service)).status == 204
    assert journal == ["object", "method"]


# ── requests and responses ───────────────────────────────────────────────────────────────────────


async def test_an_answer_of_its_own(level, service, journal):
    """Middleware that does not call the next one answers alone: no dependency is made, no input is looked at."""

    @level.middleware
    async def closed(request: Request, call_next: Handler) -> Response:
        return Response(status=418, body="closed")

    async def dependency():
        journal.append("dependency")

    @level.under_test.get("/")
    async def show(q: int, x: Annotated[None, Depends(dependency)]):
        journal.append("handler")

    response = await ask(service)
    assert (response.status, response.text, response.retry) == (418, "closed", False)
    assert journal == []


async def test_the_handler_sees_a_changed_request(level, service):
    """Headers, query and body that middleware changes are what handlers and dependencies are bound from."""

    class Item(BaseModel):
        name: str

    @level.middleware
    async def change(request: Request, call_next: Handler) -> Response:
        headers = request.headers.without("x-user") + {"x-user": "ann"}
        return await call_next(
            request.model_copy(update={"query": "q=2", "headers": headers, "body": b'{"name": "tea"}'})
        )

    async def user(request: Request) -> str:
        return request.headers["x-user"]

    @level.under_test.post("/<id>")
    async def show(id: int, q: int, item: Item, user: Annotated[str, Depends(user)], request: Request) -> list[Any]:
        return [id, q, item.name, user, request.params]

    response = await ask(service, "/r/7", method="POST", query="q=1", headers={"x-user": "bob"}, body=b"{}")
    assert response.parse_json() == [7, 2, "tea", "ann", {"id": "7"}]


async def test_another_path_and_method(service):
    """The service's middleware comes before routing: it may send a request elsewhere."""

    @service.middleware
    async def rewrite(request: Request, call_next: Handler) -> Response:
        assert request.params == {}
        return await call_next(request.model_copy(update={"raw_path": "/new/7", "method": "PUT"}))

    @service.put("/new/<id>")
    async def show(id: int) -> int:
        return id

    assert (await ask(service, "/old")).text == "7"


async def test_captures_in_a_routers_middleware(service):
    """A router's middleware comes after routing, and sees the captures as text."""
    router = Router("/<tenant>")

    @router.middleware
    async def check(request: Request, call_next: Handler) -> Response:
        if request.params["tenant"] != "mine":
            raise HTTPError(403, "not yours")
        return await call_next(request)

    @router.get("/<id>")
    async def show(tenant: str, id: int) -> list[Any]:
        return [tenant, id]

    service.include(router)
    assert (await ask(service, "/mine/7")).parse_json() == ["mine", 7]
    assert (await ask(service, "/yours/7")).status == 403


async def test_a_changed_response(level, service):
    """Status, headers and body are those of the response that comes out."""

    @level.middleware
    async def change(request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        assert response.text == "shown"
        return Response(status=202, headers={"x": "1"}, body=response.body + b"!")

    @level.under_test.get("/")
    async def show() -> str:
        return "shown"

    response = await ask(service)
    assert (response.status, response.headers["x"], response.text) == (202, "1", "shown!")


async def test_a_call_off_the_wire(level, service):
    """Middleware gets the pydantic request, whatever the service was called with."""
    seen = []

    @level.middleware
    async def look(request: Request, call_next: Handler) -> Response:
        seen.append(request)
        return await call_next(request)

    @level.under_test.get("/<id>")
    async def show(id: int) -> int:
        return id

    call = Call("GET", path_tokens("/r/7"), "a=b")
    assert (await service.handle(call)).text == "7"
    [request] = seen
    assert (type(request), request.raw_path, request.query) == (Request, "/r/7", "a=b")


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_context_variables_pass_both_ways(level, service, kind):
    """What middleware sets the handler sees; what an async handler sets middleware sees."""
    seen = []

    @level.middleware
    async def around(request: Request, call_next: Handler) -> Response:
        VARIABLE.set("middleware")
        response = await call_next(request)
        seen.append(VARIABLE.get())
        return response

    async def waits() -> str:
        before = VARIABLE.get()
        VARIABLE.set("handler")
        return before

    def blocks() -> str:
        before = VARIABLE.get()
        VARIABLE.set("handler")
        return before

    level.under_test.get("/")(waits if kind == "async def" else blocks)
    assert (await ask(service)).text == "middleware"
    assert seen == ["handler" if kind == "async def" else "middleware"]


async def test_everything_runs_in_one_task(level, service):
    """No task is made for middleware, dependencies or handler."""
    tasks = []

    @level.middleware
    async def around(request: Request, call_next: Handler) -> Response:
        tasks.append(asyncio.current_task())
        return await call_next(request)

    async def dependency():
        tasks.append(asyncio.current_task())

    @level.under_test.get("/")
    async def show(x: Annotated[None, Depends(dependency)]):
        tasks.append(asyncio.current_task())

    await ask(service)
    assert tasks == [asyncio.current_task()] * 3


# ── errors ───────────────────────────────────────────────────────────────────────────────────────

# path, method, status of what middleware of the service sees
ERRORS = [
    ("/nothing", "GET", 404),
    ("/r/", "PUT", 405),
    ("/r/", "POST", 422),
    ("/r/?q=1", "POST", 415),
    ("/r/raises", "GET", 402),
    ("/r/fails", "GET", 500),
    ("/r/exits", "GET", 500),
    ("/r/unfit", "GET", 500),
    ("/r/", "OPTIONS", 204),
    ("/r/raises/", "GET", 308),
]


@pytest.mark.parametrize(("path", "method", "status"), ERRORS)
async def test_every_answer_passes_the_services_middleware(service, journal, path, method, status):
    """Errors of routing, binding and handlers are responses there, so that headers can be added to all of them."""

    @service.middleware
    async def add(request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        journal.append(str(response.status))
        return response.with_headers({"x-request-id": "7"})

    @service.post("/r/")
    async def create(q: int, body: dict[str, int]): ...

    @service.get("/r/raises")
    async def raises():
        raise HTTPError(402)

    @service.get("/r/fails")
    async def fails():
        raise KeyError("hunter2")

    @service.get("/r/exits")
    def exits():
        raise SystemExit(3)

    @service.get("/r/unfit")
    async def unfit() -> int:
        return "hunter2"  # type: ignore[return-value]

    path, _, query = path.partition("?")
    headers = {"content-type": "text/plain"}
    response = await ask(service, path, method=method, query=query, headers=headers, body=b"x" if query else b"")
    assert journal == [str(status)]
    assert (response.status, response.headers["x-request-id"]) == (status, "7")
    assert "hunter2" not in response.text
    assert response.retry == (status in (404, 405))


async def test_a_routers_middleware_sees_errors_of_its_handlers(service, journal):
    """422 and what handlers raise are responses there as well; 404 and 405 have no router."""
    router = Router("/r", middleware=[noting(journal, "router")])

    @router.on_error(KeyError)
    def answer(request: Request, error: KeyError) -> Response:
        return Response(status=409)

    @router.get("/<id>")
    async def show(id: int):
        raise KeyError

    service.include(router)
    for path, status in [("/r/x", 422), ("/r/7", 409), ("/r", 404)]:
        assert (await ask(service, path)).status == status
    assert (await ask(service, "/r/7", method="PUT")).status == 405
    assert journal == ["router in", "router out 422", "router in", "router out 409"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPError(403, "no"), 403),
        (KeyError("hunter2"), 500),
        (SystemExit(3), 500),
        (StopAsyncIteration(), 500),
        (asyncio.CancelledError(), 500),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_of_middleware_are_answers(level, service, journal, caplog, when, error, status):
    """What middleware raises is a problem that the next outer one sees; the traceback goes to the log."""
    level.middleware(noting(journal, "outer"))

    @level.middleware
    async def broken(request: Request, call_next: Handler) -> Response:
        if when == "after":
            await call_next(request)
        raise error

    level.middleware(noting(journal, "inner"))

    @level.under_test.get("/")
    async def show(): ...

    response = await ask(service)
    assert response.status == status
    assert response.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in response.text
    assert journal[0] == "outer in"
    assert journal[-1] == f"outer out {status}"
    assert ("inner in" in journal) == (when == "after")
    assert len(caplog.records) == (status == 500)


async def test_error_handlers_answer_for_middleware(level, service):
    """`on_error` counts for what middleware raises."""

    class Closed(Exception):
        pass

    @level.on_error(Closed)
    async def closed(request: Request, error: Closed) -> Response:
        return Response(status=503, body=str(error))

    @level.middleware
    async def gate(request: Request, call_next: Handler) -> Response:
        raise Closed("until nine")

    level.under_test.get("/")(lambda: None)
    response = await ask(service)
    assert (response.status, response.text) == (503, "until nine")


@pytest.mark.parametrize("value", [None, "text", {"status": 200}, 7, (200, "x")])
async def test_what_is_no_response(level, service, caplog, value):
    """Middleware that returns something else, or forgets to return, is named in the log, and the answer is 500."""

    @level.middleware
    async def forgetful(request: Request, call_next: Handler) -> Response:
        await call_next(request)
        return value

    level.under_test.get("/")(lambda: None)
    assert (await ask(service)).status == 500
    assert f"middleware forgetful returned {type(value).__name__}, not a Response" in caplog.text


async def test_call_next_never_raises(level, service):
    """Middleware needs no `try`: only the cancellation of the request passes through it."""
    raised = []

    @level.middleware
    async def around(request: Request, call_next: Handler) -> Response:
        try:
            return await call_next(request)
        except BaseException as error:
            raised.append(error)
            raise

    @level.middleware
    async def broken(request: Request, call_next: Handler) -> Response:
        await call_next(request)
        raise KeyError

    @level.under_test.get("/")
    async def show():
        raise KeyboardInterrupt

    assert (await ask(service)).status == 500
    assert raised == []


async def test_errors_name_the_place(service, caplog):
    """The log says which route, or that it was middleware of the service."""

    @service.middleware
    async def broken(request: Request, call_next: Handler) -> Response:
        raise KeyError

    service.get("/r/<id>")(lambda id: None)
    await ask(service, "/r/7")
    assert caplog.records[0].getMessage() == "GET /r/7 failed (middleware)"


# ── again ────────────────────────────────────────────────────────────────────────────────────────


async def test_calling_the_next_twice(level, service, journal):
    """Middleware may try again: each time dependencies are made anew and the handler is called."""
    level.middleware(noting(journal, "outer"))

    @level.middleware
    async def twice(request: Request, call_next: Handler) -> Response:
        first = await call_next(request)
        return await call_next(request) if first.status == 500 else first

    level.middleware(noting(journal, "inner"))

    async def dependency() -> AsyncIterator[None]:
        journal.append("make")
        yield
        journal.append("close")

    @level.under_test.get("/")
    async def show(x: Annotated[None, Depends(dependency, scope="handler")]) -> str:
        if journal.count("make") == 1:
            raise KeyError
        return "at last"

    assert (await ask(service)).text == "at last"
    assert journal == [
        *("outer in", "inner in", "make", "inner out 500"),
        *("inner in", "make", "close", "inner out 200", "outer out 200"),
    ]


async def test_two_at_the_same_time(level, service):
    """Middleware may ask twice at once (a hedged request): neither attempt sees the other's captures."""

    @level.middleware
    async def hedged(request: Request, call_next: Handler) -> Response:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call_next(request)) for _ in range(2)]
        texts = {task.result().text for task in tasks}
        assert texts == {"7"}
        return tasks[0].result()

    async def value(id: int) -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield id

    @level.under_test.get("/<id>")
    async def show(id: int, x: Annotated[int, Depends(value)]) -> int:
        return x

    assert (await ask(service, "/r/7")).text == "7"


# ── whether a handler has run ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/r/", "PUT", 405)])
async def test_not_executed_passes_middleware(service, path, method, status):
    """A 404 or 405 of routing stays `NotExecuted` behind middleware that adds a header, and behind `on_error`."""

    @service.middleware
    async def add(request: Request, call_next: Handler) -> Response:
        return (await call_next(request)).with_headers({"x": "1"})

    service.get("/r/")(lambda: None)
    response = await ask(service, path, method=method)
    assert (type(response), response.status, response.headers["x"]) == (NotExecuted, status, "1")

    @service.on_error(HTTPError)
    def answer(request: Request, error: HTTPError) -> Response:
        return Response(status=error.status, body="sorry")

    response = await ask(service, path, method=method)
    assert (type(response), response.text, response.headers["x"]) == (NotExecuted, "sorry", "1")


async def test_an_answer_of_middlewares_own_is_an_answer(service):
    """A new Response says nothing of whether it may be repeated: so it may not."""

    @service.middleware
    async def add(request: Request, call_next: Handler) -> Response:
        response = await call_next(request)
        return Response(status=response.status, body=response.body)

    assert not (await ask(service, "/nothing")).retry


@pytest.mark.parametrize("error", [Overloaded(), NoRoute(), NatsDown()], ids=lambda error: type(error).__name__)
async def test_refusals_before_the_handler_may_be_repeated(level, service, error):
    """A refusal before routing says that nothing was executed, if its class does; after routing none does."""

    @level.middleware
    async def refuse(request: Request, call_next: Handler) -> Response:
        raise error

    level.under_test.get("/")(lambda: None)
    assert (await ask(service)).retry == (level is service)


@pytest.mark.parametrize("error", [Overloaded(), NoRoute(), NatsDown()], ids=lambda error: type(error).__name__)
async def test_refusals_after_the_handler_may_not_be_repeated(level, service, journal, error):
    """Once the handler has run nothing says that it has not: the gateway would send a payment twice."""

    @level.middleware
    async def audit(request: Request, call_next: Handler) -> Response:
        await call_next(request)
        raise error

    @level.under_test.post("/")
    async def pay():
        journal.append("paid")

    response = await ask(service, method="POST")
    assert journal == ["paid"]
    assert response.status == error.status
    assert not response.retry


async def test_a_second_attempt_without_a_route_may_not_be_repeated(service, journal):
    """A handler has run in the first attempt, though the second one has found no route."""

    @service.middleware
    async def fall_back(request: Request, call_next: Handler) -> Response:
        first = await call_next(request)
        return await call_next(request.model_copy(update={"raw_path": "/other"})) if first.status == 500 else first

    @service.post("/r/")
    async def pay():
        journal.append("paid")
        raise KeyError

    response = await ask(service, method="POST")
    assert journal == ["paid"]
    assert response.status == 404
    assert not response.retry


@pytest.mark.parametrize("error", [Overloaded(), NoRoute()], ids=lambda error: type(error).__name__)
async def test_what_a_handler_raises_may_not_be_repeated(level, service, error):
    """A handler that raises such an error has run all the same."""
    level.middleware(noting([], "x"))

    @level.under_test.post("/")
    async def pay():
        raise error

    response = await ask(service, method="POST")
    assert response.status == error.status
    assert not response.retry


async def test_a_404_through_middleware_reaches_the_client(service, serve):
    """Over the wire, with middleware around it, a missing route is a 404 with what middleware adds."""

    @service.middleware
    async def add(request: Request, call_next: Handler) -> Response:
        return (await call_next(request)).with_headers({"x-seen": "yes"})

    service.get("/r/<id>")(lambda id: id)
    url = await serve(service, root="mw")
    async with httpx2.AsyncClient() as client:
        found, missing = await client.get(f"{url}/r/7"), await client.put(f"{url}/r/7")
    assert (found.text, found.headers["x-seen"]) == ("7", "yes")
    assert (missing.status_code, missing.headers["x-seen"]) == (405, "yes")
    assert "nw-retry" not in missing.headers


# ── cancellation ─────────────────────────────────────────────────────────────────────────────────


async def test_cancellation_passes_through(level, service, journal):
    """Whoever cancels the request cancels handler and middleware, the innermost first; no answer is made of it."""
    started = asyncio.Event()

    @level.middleware
    async def around(request: Request, call_next: Handler) -> Response:
        try:
            return await call_next(request)
        finally:
            journal.append("middleware")

    @level.under_test.get("/")
    async def show():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            journal.append("handler")

    task = asyncio.create_task(ask(service))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == ["handler", "middleware"]


@pytest.mark.parametrize("library", [asyncio.timeout, anyio.fail_after])
async def test_a_time_limit_in_middleware(level, service, journal, library):
    """A limit around `call_next` cancels the handler, and middleware answers; the request goes on."""

    @level.middleware
    async def limit(request: Request, call_next: Handler) -> Response:
        try:
            if library is asyncio.timeout:
                async with asyncio.timeout(0.01):
                    return await call_next(request)
            with anyio.fail_after(0.01):
                return await call_next(request)
        except TimeoutError:
            return Response(status=504)

    async def dependency() -> AsyncIterator[None]:
        try:
            yield
        finally:
            journal.append("closed")

    @level.under_test.get("/")
    async def show(x: Annotated[None, Depends(dependency)], tasks: Background):
        tasks.add(journal.append, "work")
        await asyncio.Event().wait()

    assert (await ask(service)).status == 504
    assert journal == ["closed"]
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


def plain(request, call_next): ...
async def one(request): ...
async def three(request, call_next, more): ...
async def yields(request, call_next): yield  # fmt: skip


async def keyword_only(request, *, call_next): ...


class Klass:
    """A class instead of its instance."""

    async def __call__(self, request: Request, call_next: Handler) -> Response: ...


class PlainCall:
    """An instance whose call is not async."""

    def __call__(self, request: Request, call_next: Handler) -> Response: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (plain, "middleware is an async function, and plain is none"),
        (yields, "and yields is none"),
        (Klass, "and Klass is none"),
        (PlainCall(), "and PlainCall is none"),
        (None, "and NoneType is none"),
        ("name", "and str is none"),
        (one, "middleware one does not take two arguments"),
        (three, "three does not take two arguments"),
        (keyword_only, "keyword_only does not take two arguments"),
    ],
)
def test_what_cannot_be_middleware(service, function, words):
    """Mistakes are told where the middleware is declared, on the service, a router, or in their constructors."""
    for declare in (
        service.middleware,
        Router().middleware,
        lambda one: Router(middleware=[one]),
        lambda one: Service("x", middleware=[one]),
        check_middleware,
    ):
        with pytest.raises(DeclarationError, match=words) as caught:
            declare(function)
        assert caught.value.fix.startswith("write: async def")


@pytest.mark.parametrize("function", [noting([], "x"), Klass(), Klass().__call__], ids=["function", "object", "method"])
def test_what_can_be_middleware(function):
    """Coroutine functions of two arguments in any form."""
    check_middleware(function)


async def test_defaults_and_stars(service):
    """More parameters are fine if they need not be given."""

    @service.middleware
    async def more(request: Request, call_next: Handler, level: int = logging.INFO, *rest: Any) -> Response:
        return await call_next(request)

    service.get("/r/")(lambda: None)
    assert (await ask(service)).status == 204
