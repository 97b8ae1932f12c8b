# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A service knows the type of its state, and what goes around its handlers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, assert_type

from natsweb import Depends, Handler, HTTPError, Middleware, Request, Response, Router, Service


@dataclass
class State:
    size: int


class Gone(Exception):
    def __init__(self, what: str) -> None:
        self.what = what


svc: Service[State] = Service("services", version="1.0.0", threads=4, start_timeout=5.0)
plain = Service("plain")
router = Router("/more")


@svc.lifespan
async def life(service: Service[State]) -> AsyncIterator[State]:
    yield State(size=len(service.name))


@plain.lifespan
async def quiet() -> AsyncIterator[None]:
    yield


@svc.middleware
async def timed(request: Request, call_next: Handler) -> Response:
    response = await call_next(request)
    return response.with_headers({"x-path": request.path})


class Counting:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, request: Request, call_next: Handler) -> Response:
        self.count += 1
        return await call_next(request)


counting = router.middleware(Counting())
stack: list[Middleware] = [timed, counting]
Router("/x", middleware=[timed, Counting()])


@svc.on_error(Gone)
async def gone(request: Request, error: Gone) -> Response:
    return Response(status=410, body=error.what)


@router.on_error(KeyError, LookupError)
def lost(request: Request, error: LookupError) -> HTTPError:
    return HTTPError(404, str(error))


@svc.get("/size")
async def size(service: Service[State]) -> int:
    assert_type(service.state, State)
    return service.state.size


def real() -> int:
    return 1


@svc.get("/number")
async def number(found: Annotated[int, Depends(real)]) -> int:
    return found


async def unit_test() -> None:
    assert_type(svc.state, State)
    assert_type(svc.state.size, int)
    assert_type(plain.state, Any)
    async with svc as running:
        assert_type(running, Service[State])
        assert_type(await running.handle(Request(raw_path="/size")), Response)
    assert_type(svc.url_for("number", page=2), str)
    assert_type(svc.openapi(), dict[str, Any])
    assert_type(await timed(Request(), svc.handle), Response)
    assert_type(await gone(Request(), Gone("tea")), Response)
    assert_type(lost(Request(), KeyError("tea")), HTTPError)
    assert_type(counting, Counting)
    with svc.override(real, lambda: 2):
        pass
    async for state in life(svc):
        assert_type(state, State)

    svc.state.sizes = 1  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await gone(Request(), KeyError("tea"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    svc.url_for(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def no_next(request: Request) -> Response:
    return Response()


def no_await(request: Request, call_next: Handler) -> Response:
    return Response()


async def no_response(request: Request, call_next: Handler) -> str:
    return ""


async def no_yield(service: Service[State]) -> None: ...


def mistakes() -> None:
    Service("x", verison="1.0.0")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Service()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    svc.on_error(Gone("tea"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    svc.middleware(no_next)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    svc.middleware(no_await)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    svc.middleware(no_response)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    Router("/x", middleware=[no_next])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    svc.lifespan(no_yield)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]

    @svc.lifespan  # a mistake that a type checker cannot see: it yields another state
    async def other(service: Service[State]) -> AsyncIterator[int]:
        yield 1

    @svc.on_error(Gone)  # a mistake that a type checker cannot see: another error
    async def wrong(request: Request, error: KeyError) -> Response:
        return Response()
