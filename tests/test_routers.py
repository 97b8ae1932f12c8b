"""Routers and classes of handlers: prefixes, inheritance of settings, names, and every mistake with its remedy."""

import itertools
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from natsweb import Depends, HTTPError, Query, Request, Response, Router, Service, delete, get, patch, post, put, route
from natsweb import head as head_of
from natsweb import options as options_of
from natsweb.errors import DeclarationError, InvalidInput, NoRoute

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


async def ask(service: Service, path: str, **fields: Any) -> Response:
    """Answer one request."""
    return await service.handle(Request(raw_path=path, **fields))


def paths(service: Service) -> list[str]:
    """Return methods and templates of all routes."""
    return [f"{','.join(one.methods)} {one.template}" for one in service.routes]


async def nothing() -> None:
    """Answer nothing."""


# ── prefixes ─────────────────────────────────────────────────────────────────────────────────────

# prefixes from the outermost on, path, the whole
WHOLE = [
    (["/orders"], "/new", "/orders/new"),
    (["/orders"], "", "/orders"),
    (["/orders"], "/", "/orders/"),
    ([""], "/new", "/new"),
    (["", "/a", ""], "/b", "/a/b"),
    (["/a", "/b/c"], "/d", "/a/b/c/d"),
    (["/<tenant>", "/orders"], "/<id>", "/<tenant>/orders/<id>"),
    (["/files"], "/<path:rest>", "/files/<path:rest>"),
    (["/a b"], "/ü", "/a b/ü"),
]


@pytest.mark.parametrize(("prefixes", "path", "whole"), WHOLE)
@pytest.mark.parametrize("late", [False, True])
def test_prefixes(service, prefixes, path, whole, late):
    """Prefixes of nested routers stand in front of a path, whether it is declared before or after `include`."""
    routers = [Router(prefix) for prefix in prefixes]

    async def show(id: str = "", rest: str = "") -> str: ...

    if not late:
        routers[-1].get(path)(show)
    for outer, inner in itertools.pairwise([service, *routers]):
        outer.include(inner)
    if late:
        routers[-1].get(path)(show)
    assert paths(service) == [f"GET {whole}"]


async def test_captures_of_a_prefix(service):
    """Handlers and dependencies take what a prefix captures if they want it; the request has all of it."""
    router = Router("/tenants/<tenant>")

    async def tenant_of(tenant: int) -> int:
        return tenant

    @router.get("/a")
    async def without(request: Request) -> dict[str, str]:
        return request.params

    @router.get("/b")
    async def with_it(tenant: int) -> int:
        return tenant

    @router.get("/c")
    async def by_dependency(t: Annotated[int, Depends(tenant_of)]) -> int:
        return t

    service.include(router)
    assert [(await ask(service, f"/tenants/7/{name}")).text for name in "abc"] == ['{"tenant":"7"}', "7", "7"]
    response = await ask(service, "/tenants/x/b")
    assert [error["loc"] for error in response.parse_json()["errors"]] == [["path", "tenant"]]


async def test_a_router_in_two_places(service):
    """A router may be included twice: each place has its prefix, its tags, and routes declared later."""
    router = Router("/things", tags=["things"])
    router.get("/one")(nothing)
    service.include(router, prefix="/v1", tags=["old"])
    service.include(router, prefix="/v2")
    router.get("/two")(nothing)
    assert paths(service) == ["GET /v1/things/one", "GET /v2/things/one", "GET /v1/things/two", "GET /v2/things/two"]
    assert [one.tags for one in service.routes] == [["old", "things"], ["things"]] * 2
    assert (await ask(service, "/v2/things/two")).status == 204


def test_a_router_in_two_services():
    """A router belongs to no service: two may include it."""
    router = Router("/things")
    services = [Service("one"), Service("two")]
    for one in services:
        one.include(router)
    router.get("/late")(nothing)
    assert [paths(one) for one in services] == [["GET /things/late"]] * 2


def test_routes_that_collide(service):
    """The same path and method of two routers is an error that shows both, a late one as well."""
    one, two = Router("/r"), Router("/r")
    one.get("/<a>")(get_a)
    service.include(one)
    service.include(two)
    with pytest.raises(DeclarationError, match="GET /r/<b> is declared twice") as caught:
        two.get("/<b>")(get_b)
    assert ["get_a" in caught.value.where[0], "get_b" in caught.value.where[1]] == [True, True]


async def get_a(a: str) -> None: ...
async def get_b(b: str) -> None: ...


@pytest.mark.parametrize(
    ("prefix", "fix"),
    [
        ("orders", "write '/orders'"),
        ("/orders/", "write '/orders'"),
        ("/", "leave it out for '/'"),
        ("//", "leave it out for '/'"),
        ("/{id}", "natsweb writes '/<id>'"),
        ("/:id", "natsweb writes '/<id>'"),
        ("/<int:id>", "natsweb writes '/<id>'"),
        ("/<path:rest>/x", "has to be the last segment"),
        ("/<id>/<id>", "give each capture its own name"),
        ("/a?b", "write paths decoded"),
    ],
)
def test_bad_prefixes(service, prefix, fix):
    """A prefix that cannot be one is an error with the right spelling, of a router and of `include`."""
    for make in (lambda: Router(prefix), lambda: service.include(Router("/x"), prefix=prefix)):
        with pytest.raises(DeclarationError) as caught:
            make()
        assert fix in caught.value.fix


# Where a mistake is written: all of these are called in one line of this file.
PLACES = [
    lambda service: Router("x"),
    lambda service: Router("/{x}"),
    lambda service: Router(depends=["x"]),
    lambda service: Service("a b"),
    lambda service: service.on_error(),
    lambda service: service.include(None),
    lambda service: service.url_for("x"),
    lambda service: service.include(Router(), prefix="x"),
    lambda service: Service("x", depends=["x"]),
]


@pytest.mark.parametrize("make", PLACES, ids=[str(index) for index in range(len(PLACES))])
def test_mistakes_show_their_place(service, make):
    """An error points at the user's line, never into natsweb."""
    with pytest.raises(DeclarationError) as caught:
        make(service)
    assert caught.value.where[0].startswith("tests/test_routers.py:")


@pytest.mark.parametrize(
    ("prefix", "path", "words"),
    [
        ("/<path:rest>", "/more", "<path:rest> is not at the end of '/<path:rest>/more'"),
        ("/<id>", "/<id>", "'/<id>/<id>' has <id> twice"),
        ("", "", "the path '' does not start with '/'"),
    ],
)
def test_a_prefix_and_a_path_that_do_not_go_together(service, prefix, path, words):
    """What is only wrong as a whole is told when it meets, with the place of the route."""
    router = Router(prefix)

    async def show(id: str = "", rest: str = "") -> str: ...

    router.get(path)(show)
    with pytest.raises(DeclarationError) as caught:
        service.include(router)
    assert words in caught.value.what
    assert f'@router.get("{path}")' in caught.value.where[0]


# ── methods and options ──────────────────────────────────────────────────────────────────────────

METHODS = ["get", "post", "put", "patch", "delete", "head", "options"]


@pytest.mark.parametrize("method", METHODS)
async def test_methods(service, method):
    """Each decorator answers its method, on a service, a router and a class."""
    router = Router("/router")

    class Things:
        @{
            "get": get,
            "post": post,
            "put": put,
            "patch": patch,
            "delete": delete,
            "head": head_of,
            "options": options_of,
        }[method]("/class")
        async def show(self) -> Response:
            return Response(status=202)

    async def show() -> Response:
        return Response(status=202)

    getattr(service, method)("/service")(show)
    getattr(router, method)("/x")(show)
    service.include(router)
    service.include(Things())
    for path in ("/service", "/router/x", "/class"):
        assert (await ask(service, path, method=method.upper())).status == 202
    assert {one.methods for one in service.routes} == {(method.upper(),)}


@pytest.mark.parametrize("methods", [["GET", "post"], ("get", "POST"), {"GET": 1, "POST": 2}])
async def test_several_methods(service, methods):
    """`route` takes any number of methods, in any case, and a single one as text."""

    class Things:
        @route("/class", methods=methods)
        @route("/single", methods="get")
        async def show(self, request: Request) -> str:
            return request.method

    @service.route("/service", methods=methods)
    async def show(request: Request) -> str:
        return request.method

    service.include(Things())
    for path, method in itertools.product(("/service", "/class"), ("GET", "POST")):
        assert (await ask(service, path, method=method)).text == method
    assert (await ask(service, "/single")).text == "GET"


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"sumary": "x"}, "a route has no option 'sumary'", "did you mean summary=?"),
        ({"tag": ["x"]}, "a route has no option 'tag'", "did you mean tags=?"),
        ({"status_code": 201}, "a route has no option 'status_code'", "did you mean status=?"),
        ({"dependencies": []}, "a route has no option 'dependencies'", ""),
        ({"zzz": 1}, "a route has no option 'zzz'", "it takes status, name, depends"),
        ({"status": 99}, "a reply cannot have status 99", "use 200 to 599"),
        ({"status": 700}, "a reply cannot have status 700", "use 200 to 599"),
        ({"depends": [nothing]}, "is no dependency", "write depends=[Depends(require_login)]"),
        ({"methods": ["FETCH"]}, "'FETCH' is not a method", "use one or more of GET"),
        ({"methods": []}, "a route needs a method", 'methods=["GET"]'),
    ],
)
def test_options_that_do_not_exist(service, options, what, fix):
    """A typo in an option is an error that shows the line and the right name, for all three ways to declare."""

    def by_class() -> None:
        class Things:
            @(route if "methods" in options else get)("/x", **options)
            async def show(self) -> None: ...

        service.include(Things())

    for declare in (
        lambda: (service.route if "methods" in options else service.get)("/x", **options)(nothing),
        lambda: (Router().route if "methods" in options else Router().get)("/x", **options)(nothing),
        by_class,
    ):
        with pytest.raises(DeclarationError) as caught:
            declare()
        assert what in caught.value.what
        assert fix in caught.value.fix
        assert "test_routers.py" in caught.value.where[0]


class Callable:
    """An object that can be called."""

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Callable(), "a handler is a function, and this is a Callable"),
        (Callable, "a handler is a function, and this is a type"),
    ],
)
def test_what_cannot_be_a_handler(service, function, words):
    """Only functions are handlers."""
    for declare in (service.get("/x"), Router().get("/x")):
        with pytest.raises(DeclarationError, match=words):
            declare(function)


@pytest.mark.parametrize("word", METHODS)
def test_a_decorator_without_its_path(service, word):
    """`@svc.get` without parentheses, and `@svc.get()`, are told apart from a path."""
    for owner, name in ((service, "@svc"), (Router(), "@router")):
        with pytest.raises(DeclarationError, match=f"{name}.{word} has no path") as caught:
            getattr(owner, word)(nothing)
        assert f'{name}.{word}("/...")' in caught.value.fix
    with pytest.raises(DeclarationError, match="has no path"):
        getattr(service, word)()
    assert callable(getattr(Router("/x"), word)())


# ── inheritance of settings ──────────────────────────────────────────────────────────────────────


def test_tags(service):
    """Tags of the service, the routers and the route add up, in this order, each once."""
    service.tags.append("service")
    outer, inner = Router("/o", tags=["outer", "shared"]), Router("/i", tags=["inner"])
    inner.get("/", tags=["route", "shared"])(nothing)
    outer.include(inner)
    service.include(outer, tags=["there"])
    assert service.routes[0].tags == ["service", "there", "outer", "shared", "inner", "route"]


async def test_error_handlers_of_routers(service):
    """The most specific class decides, wherever it stands; for the same class the innermost router does."""

    def answering(status: int) -> Any:
        return lambda request, error: Response(status=status)

    outer, inner = Router("/o"), Router("/i")
    service.on_error(LookupError)(answering(501))
    service.on_error(KeyError)(answering(502))
    outer.on_error(KeyError)(answering(503))
    outer.on_error(Exception)(answering(504))
    inner.on_error(Exception)(answering(505))
    errors = {"key": KeyError(), "index": IndexError(), "value": ValueError()}

    async def fail(which: str):
        raise errors[which]

    for owner in (service, outer, inner):
        owner.get("/fail/<which>")(fail)
    outer.include(inner)
    service.include(outer)
    statuses = {
        prefix: [(await ask(service, f"{prefix}/fail/{which}")).status for which in errors]
        for prefix in ("", "/o", "/o/i")
    }
    assert statuses == {"": [502, 501, 500], "/o": [503, 501, 504], "/o/i": [503, 501, 505]}


async def test_an_error_handler_that_comes_late(service):
    """What is declared after the first request answers from then on, also on a router that is included."""
    router = Router("/r")

    @router.get("/")
    async def show():
        raise KeyError

    service.include(router)
    assert (await ask(service, "/r/")).status == 500
    service.on_error(KeyError)(lambda request, error: HTTPError(404))
    assert (await ask(service, "/r/")).status == 404
    router.on_error(KeyError)(lambda request, error: HTTPError(409))
    assert (await ask(service, "/r/")).status == 409


async def test_error_handlers_and_http_errors(service):
    """`Exception` means failures, not answers; HTTPError and its classes can be handled by name."""

    class Gone(HTTPError):
        def __init__(self) -> None:
            super().__init__(410)

    service.on_error(Exception)(lambda request, error: Response(status=599))
    raised: list[Exception] = []

    @service.get("/")
    async def show():
        raise raised.pop()

    async def status_of(error: Exception) -> int:
        raised.append(error)
        return (await ask(service, "/")).status

    assert [await status_of(Gone()), await status_of(HTTPError(404)), await status_of(KeyError())] == [410, 404, 599]
    service.on_error(Gone, KeyError)(lambda request, error: HTTPError(404, "nothing there"))
    service.compile()
    assert [await status_of(Gone()), await status_of(HTTPError(409)), await status_of(KeyError())] == [404, 409, 404]


@pytest.mark.parametrize("kind", ["async def", "def", "object"])
async def test_what_an_error_handler_may_do(service, kind):
    """It sees the request and the error, and answers with a Response, an HTTPError, or by raising one."""

    def answer(request: Request, error: LookupError) -> Any:
        if isinstance(error, KeyError):
            return Response(status=409, body=f"{request.raw_path} {error}")
        if isinstance(error, IndexError):
            return HTTPError(410, "returned")
        raise HTTPError(411, "raised")

    async def waits(request: Request, error: LookupError) -> Any:
        return answer(request, error)

    class Answers:
        async def __call__(self, request: Request, error: LookupError) -> Any:
            return answer(request, error)

    service.on_error(LookupError)({"async def": waits, "def": answer, "object": Answers()}[kind])
    errors = {"key": KeyError("x"), "index": IndexError(), "lookup": LookupError()}

    @service.get("/<which>")
    async def fail(which: str):
        raise errors[which]

    answers = [await ask(service, f"/{which}") for which in errors]
    assert [answer.status for answer in answers] == [409, 410, 411]
    assert answers[0].text == "/key 'x'"
    assert [answer.parse_json()["detail"] for answer in answers[1:]] == ["returned", "raised"]


@pytest.mark.parametrize("value", [None, "text", 7, KeyError("x")])
async def test_what_an_error_handler_may_not_return(service, caplog, value):
    """Anything else is a failure of the error handler, which is named, with the error that it was for."""

    @service.on_error(KeyError)
    def forgetful(request: Request, error: KeyError):
        return value

    @service.get("/")
    async def fail():
        raise KeyError("the cause")

    assert (await ask(service, "/")).status == 500
    assert f"error handler forgetful returned {type(value).__name__}, not a Response" in caplog.text
    assert "the cause" in caplog.text


async def test_an_error_handler_that_fails(service, caplog):
    """Its error and the one it was for are in the log, and the answer says nothing of them."""

    @service.on_error(KeyError)
    def broken(request: Request, error: KeyError):
        raise OSError("hunter2")

    @service.get("/")
    async def fail():
        raise KeyError("the cause")

    response = await ask(service, "/")
    assert response.status == 500
    assert "hunter2" not in response.text
    assert "hunter2" in caplog.text
    assert "the cause" in caplog.text


async def test_error_handlers_for_what_natsweb_raises(service):
    """Refused inputs and missing routes can be answered in another shape."""

    @service.on_error(InvalidInput)
    def refused(request: Request, error: InvalidInput) -> Response:
        return Response(status=400, body=error.errors[0]["loc"][1])

    @service.on_error(NoRoute)
    async def missing(request: Request, error: NoRoute) -> Response:
        return Response(status=404, body="nothing here")

    service.get("/")(get_page)
    assert (await ask(service, "/", query="page=x")).text == "page"
    assert (await ask(service, "/nothing")).text == "nothing here"


async def get_page(page: int) -> int:
    """Give the page."""
    return page


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ((), "not None"),
        ((404,), "not 404"),
        ((BaseException,), "not <class 'BaseException'>"),
        ((KeyError, "x"), "'x'"),
    ],
)
def test_on_error_takes_classes(service, kinds, words):
    """Statuses, and what is no exception, are refused."""
    for owner in (service, Router()):
        with pytest.raises(DeclarationError, match="on_error takes classes of exceptions") as caught:
            owner.on_error(*kinds)
        assert words in caught.value.what
        assert "test_routers.py" in caught.value.where[0]


@pytest.mark.parametrize("function", [lambda: 1, lambda request: 1, lambda a, b, c: 1], ids=["0", "1", "3"])
def test_on_error_takes_two_arguments(service, function):
    """An error handler that could not be called is refused."""
    with pytest.raises(DeclarationError, match="does not take two arguments") as caught:
        service.on_error(KeyError)(function)
    assert "error: KeyError" in caught.value.fix


# ── classes ──────────────────────────────────────────────────────────────────────────────────────


class Things:
    """A class of handlers."""

    def __init__(self, stock: list[str]) -> None:
        self.stock = stock

    @get("/<index>")
    async def show(self, index: int) -> str:
        """Show a thing."""
        return self.stock[index]

    @post("", status=201)
    def add(self, name: str) -> int:
        self.stock.append(name)
        return len(self.stock)

    async def no_route(self) -> None: ...


class MoreThings(Things):
    """A class that inherits handlers, adds one, and has another one in a new place."""

    @get("/count")
    async def count(self) -> int:
        return len(self.stock)

    @put("")
    def add(self, name: str) -> int:
        return super().add(name.upper())


async def test_instances_as_routers(service):
    """The methods of an object are handlers with its state; two objects of a class do not meet."""
    for name, stock in (("one", ["tea"]), ("two", ["milk"])):
        service.include(Things(stock), prefix=f"/{name}", tags=[name])
    assert [(await ask(service, f"/{name}/0")).text for name in ("one", "two")] == ["tea", "milk"]
    response = await ask(service, "/one", method="POST", query="name=salt")
    assert (response.status, response.text) == (201, "2")
    assert (await ask(service, "/one/1")).text == "salt"
    assert [one.tags for one in service.routes] == [["one"], ["one"], ["two"], ["two"]]
    assert paths(service)[:2] == ["GET /one/<index>", "POST /one"]


async def test_inherited_handlers(service):
    """Those of base classes come first; a method that is declared anew has its new route only."""
    service.include(MoreThings(["tea"]), prefix="/more")
    assert paths(service) == ["GET /more/<index>", "PUT /more", "GET /more/count"]
    assert (await ask(service, "/more", method="PUT", query="name=salt")).text == "2"
    assert (await ask(service, "/more/1")).text == "SALT"


class Quiet(Things):
    """A class that overrides a handler and forgets the decorator."""

    async def show(self, index: int) -> str:
        return "hidden"


class Mixin:
    """A method that happens to be called like a handler."""

    def add(self, name: str) -> int:
        return len(name)


class Mixed(Mixin, Things):
    """A class whose mixin hides a handler of its base."""


@pytest.mark.parametrize(
    ("kind", "name", "decorator"),
    [(Quiet, "show", "@get"), (type("Under", (Quiet,), {}), "show", "@get"), (Mixed, "add", "@post")],
    ids=["child", "grandchild", "mixin"],
)
def test_a_method_that_hides_a_handler(service, kind, name, decorator):
    """An override without a decorator would take the route away in silence: the error shows both methods."""
    with pytest.raises(DeclarationError) as caught:
        service.include(kind([]))
    assert caught.value.what == f"{kind.__name__}.{name} hides a handler of Things and is none itself"
    marked, hiding = caught.value.where
    assert (marked.startswith("tests/test_routers.py:"), marked.endswith(decorator)) == (True, True)
    assert hiding.startswith("tests/test_routers.py:")
    assert caught.value.fix.startswith(f"put {decorator}(...) above it")


class Without(Things):
    """A class that takes a route of its base away."""

    show = None


@pytest.mark.parametrize("kind", [Without, type("Under", (Without,), {})], ids=["child", "grandchild"])
async def test_a_route_that_is_taken_away(service, kind):
    """None in the place of a handler takes its route away on purpose; the others stay."""
    service.include(kind(["tea"]), prefix="/things")
    assert paths(service) == ["POST /things"]
    assert (await ask(service, "/things", method="POST", query="name=salt")).text == "2"
    assert (await ask(service, "/things/0")).status == 404


async def test_a_method_with_several_routes(service):
    """Decorators may be stacked."""

    class Two:
        @get("/a")
        @get("/b")
        @post("/b")
        async def show(self, request: Request) -> str:
            return f"{request.method} {request.raw_path}"

    service.include(Two())
    assert paths(service) == ["POST /b", "GET /b", "GET /a"]
    assert (await ask(service, "/b", method="POST")).text == "POST /b"


async def test_static_methods(service):
    """Methods that belong to nobody, and to the class, are handlers, whatever the order of the decorators."""

    class Odd:
        @staticmethod
        @get("/static")
        async def static() -> str:
            return "static"

        @classmethod
        @get("/class")
        async def of_class(cls) -> str:
            return cls.__name__

        @get("/static/above")
        @staticmethod
        async def static_above() -> str:
            return "above"

        @get("/class/above")
        @get("/class/twice")
        @classmethod
        async def of_class_above(cls) -> str:
            return f"{cls.__name__} above"

    service.include(Odd())
    answers = {
        "/static": "static",
        "/class": "Odd",
        "/static/above": "above",
        "/class/twice": "Odd above",
        "/class/above": "Odd above",
    }
    assert paths(service) == [f"GET {path}" for path in answers]
    assert {path: (await ask(service, path)).text for path in answers} == answers


def test_including_an_object_touches_no_properties(service):
    """Only marked methods are looked at."""

    class Lazy:
        @get("/x")
        async def show(self) -> None: ...

        @property
        def expensive(self) -> None:
            raise AssertionError("touched")

    service.include(Lazy())


def test_names_of_methods_in_a_class_body(service):
    """Annotations of methods may name what is local to where the class is written."""

    class Item(BaseModel):
        name: str

    class Local:
        @post("/")
        async def create(self, item: "Item") -> "Item":
            return item

    service.include(Local())
    service.compile()
    assert service.routes[0].recipe.plan.parameters[0].source == "body"


# ── include ──────────────────────────────────────────────────────────────────────────────────────


class Empty:
    """A class without routes."""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (Things, "has no routes"),
        (Empty(), "has no routes"),
        (None, "None has no routes"),
        (nothing, "has no routes"),
        (pytest, "has no routes"),
        (Service("other"), "is a service of its own"),
    ],
    ids=["class", "empty", "None", "function", "module", "service"],
)
@pytest.mark.parametrize("owner", [Service, Router])
def test_what_cannot_be_included(owner, what, words):
    """A class instead of its instance, and what has no routes, are told with the remedy."""
    with pytest.raises(DeclarationError, match=words) as caught:
        owner("test" if owner is Service else "/test").include(what)
    assert "include" in caught.value.fix
    assert "test_routers.py" in caught.value.where[0]


@pytest.mark.parametrize("prefix", ["", "/more"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_circles_of_routers(length, prefix):
    """A router that would include itself, over others or not, is refused."""
    routers = [Router(f"/{number}") for number in range(length)]
    for outer, inner in itertools.pairwise(routers):
        outer.include(inner, prefix=prefix)
    with pytest.raises(DeclarationError, match="would include itself"):
        routers[-1].include(routers[0], prefix=prefix)


def test_reprs(service):
    """Routers and services tell what they have."""
    router = Router("/x")
    router.get("/y")(nothing)
    service.include(router)
    assert repr(router) == "<Router /x: 1 routes>"
    assert repr(Router()) == "<Router /: 0 routes>"
    assert repr(service) == "<Service test 0.0.0: 1 routes below api>"


# ── names ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def named(service):
    """A service with routes to name."""
    router = Router("/orders")

    @router.get("/<id>")
    async def show(id: int, lines: list[int] = [], q: Annotated[str, Query(alias="search")] = "") -> int:  # noqa: B006
        return id

    @router.get("/<id>/files/<path:rest>")
    async def files(id: int, rest: str) -> None: ...

    @router.get("", name="all orders")
    async def index(paid: bool | None = None) -> None: ...

    @router.post("")
    async def create() -> None: ...

    service.include(router)
    service.get("/v2")(create)
    return service


@pytest.mark.parametrize(
    ("name", "values", "url"),
    [
        ("show", {"id": 7}, "/orders/7"),
        ("show", {"id": "a b/ü"}, "/orders/a%20b%2F%C3%BC"),
        ("show", {"id": 7, "lines": [1, 2], "q": "a&b"}, "/orders/7?lines=1&lines=2&search=a%26b"),
        ("show", {"id": 7, "q": None}, "/orders/7"),
        ("files", {"id": 7, "rest": "a/b c"}, "/orders/7/files/a/b%20c"),
        ("all orders", {}, "/orders"),
        ("all orders", {"paid": True}, "/orders?paid=true"),
    ],
)
async def test_url_for(named, name, values, url):
    """Captures are filled in and escaped, query parameters are appended under their own names."""
    assert named.url_for(name, **values) == url
    path, _, query = url.partition("?")
    assert (await ask(named, path, query=query)).status in (200, 204, 422)


@pytest.mark.parametrize(
    ("name", "values", "what", "fix"),
    [
        ("nope", {}, "no routes are called 'nope'", "known: show, files, all orders, create, create"),
        ("create", {}, "2 routes are called 'create'", "give one of them name="),
        ("index", {}, "no routes are called 'index'", "known: "),
        ("show", {}, "url_for('show') and 'id' do not fit /orders/<id>", "it takes id, lines, q"),
        ("show", {"id": 7, "nope": 1}, "url_for('show') and 'nope' do not fit", "it takes id, lines, q"),
        ("show", {"id": 7, "search": 1}, "and 'search' do not fit", "it takes id, lines, q"),
        ("files", {"id": 7}, "and 'rest' do not fit", "it takes id, rest"),
        ("show", {"id": ""}, "url_for('show') makes no path: <id> of '/orders/<id>' cannot be empty", "give other"),
        ("show", {"id": None}, "url_for('show') makes no path: None is no part of a path", "give other values"),
        ("show", {"id": ".."}, "url_for('show') makes no path: '/orders/<id>': ", "give other values"),
        ("files", {"id": 7, "rest": "../x"}, "url_for('files') makes no path: ", "give other values"),
        ("files", {"id": 7, "rest": None}, "url_for('files') makes no path: None is no part of a path", "give other"),
        ("files", {"id": 7, "rest": ["a"]}, "url_for('files') makes no path: ['a'] is no part of a path", "give other"),
        ("show", {"id": [1, 2]}, "url_for('show') makes no path: [1, 2] is no part of a path", "give other values"),
    ],
)
def test_url_for_errors(named, name, values, what, fix):
    """Unknown and ambiguous names, and values that do not fit or no path can carry, are told with what there is."""
    with pytest.raises(DeclarationError) as caught:
        named.url_for(name, **values)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where


def test_url_for_of_an_empty_service(service):
    """Without routes the error says so."""
    with pytest.raises(DeclarationError) as caught:
        service.url_for("x")
    assert caught.value.fix == "known: none"


@pytest.mark.parametrize(
    ("doc", "options", "summary", "description"),
    [
        (None, {}, "", ""),
        ("One line.", {}, "One line.", ""),
        (
            "One line\n    in two.\n\n    And more.\n\n    Even more.\n    ",
            {},
            "One line in two.",
            "And more.\n\nEven more.",
        ),
        ("One line.\n\n    More.", {"summary": "S", "description": "D"}, "S", "D"),
        ("One line.\n\n    More.", {"summary": "S"}, "S", "More."),
    ],
)
def test_docstrings(service, doc, options, summary, description):
    """The first paragraph is the summary and the rest the description, unless the decorator says otherwise."""

    async def show() -> None: ...

    show.__doc__ = doc
    service.get("/", **options)(show)
    assert (service.routes[0].summary, service.routes[0].description) == (summary, description)


def test_names_of_routes(service):
    """A route is called after its function, or as its decorator says."""
    service.get("/a")(nothing)
    service.get("/b", name="b")(nothing)
    service.include(Things([]), prefix="/things")
    assert [one.name for one in service.routes] == ["nothing", "b", "show", "add"]


def test_decorators_give_the_function_back(service):
    """A handler stays a function that tests call directly."""
    assert service.get("/a")(nothing) is nothing
    assert Router().get("/a")(nothing) is nothing
    assert get("/a")(get_page) is get_page
