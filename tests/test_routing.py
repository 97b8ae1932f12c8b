"""The router against a naive matcher, and the answers that fall out of its search."""

from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.errors import BadPath, DeclarationError, MethodNotAllowed, NoRoute
from natsweb.paths import Capture, Literal, Tail, Template
from natsweb.routing import Matcher, Options, Redirect
from natsweb.subjects import path_tokens

law = settings(deadline=None, max_examples=400)


@dataclass(frozen=True)
class Declared:
    """An endpoint with just what the router asks for."""

    template: Template
    methods: tuple[str, ...]
    place: str = "app.py:1 show"


def declare(*routes: str) -> Matcher[Declared]:
    """Return a router of lines such as `GET,PUT /orders/<id>`."""
    router: Matcher[Declared] = Matcher()
    for line, route in enumerate(routes, 1):
        methods, path = route.split(" ", 1)
        router.add(Declared(Template.parse(path), tuple(methods.split(",")), f"app.py:{line} show"))
    return router


def ask(router: Matcher[Declared], method: str, path: str):
    """Return (template, captures), Options or Redirect."""
    found = router.find(method, path_tokens(path))
    return (found[0].template.text, found[1]) if isinstance(found, tuple) else found


# ── the naive matcher ────────────────────────────────────────────────────────────────────────────

RANK = {Literal: 0, Capture: 1, Tail: 2}


def fits(template: Template, tokens: list[str]) -> bool:
    """Tell whether a template fits, by looking at each of its parts."""
    for index, part in enumerate(template.parts):
        if index >= len(tokens):
            return False
        if isinstance(part, Tail):
            return True
        if isinstance(part, Literal) and part.token != tokens[index]:
            return False
        if isinstance(part, Capture) and tokens[index] == "%":
            return False
    return len(template.parts) == len(tokens)


def naive(endpoints: list[Declared], method: str, tokens: list[str]):
    """Return the template's text of the answer, or what the search comes to without one."""
    fitting = [one for one in endpoints if fits(one.template, tokens)]
    shapes = sorted({one.template.shape: one.template for one in fitting}.values(), key=rank)
    for template in shapes:
        for wanted in (method, "GET") if method == "HEAD" else (method,):
            for one in fitting:
                if one.template.shape == template.shape and wanted in one.methods:
                    return one.template.text
    if fitting:
        methods = {method for one in fitting for method in one.methods} | {"OPTIONS"}
        return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
    slash = method in ("GET", "HEAD") and len(tokens) > 1 and tokens[-1] == "%"
    shorter = [one for one in endpoints if fits(one.template, tokens[:-1]) and {"GET", "HEAD"} & set(one.methods)]
    return Redirect(tokens[:-1]) if slash and shorter else None


def simple(router: Matcher[Declared], method: str, path: str):
    """Return the router's answer in the naive one's terms; captures are checked to give the path again."""
    try:
        found = router.find(method, path_tokens(path))
    except NoRoute:
        return None
    except MethodNotAllowed as error:
        return error.headers["allow"].split(", ")
    if isinstance(found, tuple):
        template = found[0].template
        return template.text if template.path(found[1]) == path else found
    return found.allow if isinstance(found, Options) else found


def rank(template: Template) -> list[int]:
    """Order templates position by position: literal, capture, tail."""
    return [RANK[type(part)] for part in template.parts]


templates = st.builds(
    lambda parts, tail: "/" + "/".join([*parts, *tail]),
    st.lists(st.sampled_from(["a", "b", "", "<n>"]), max_size=3).map(
        lambda parts: [f"<n{index}>" if part == "<n>" else part for index, part in enumerate(parts)]
    ),
    st.sampled_from([[], [], ["<path:rest>"]]),
)
routes = st.lists(
    st.tuples(templates, st.sets(st.sampled_from(["GET", "PUT", "HEAD", "OPTIONS"]), min_size=1).map(sorted)),
    max_size=10,
)
paths = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=4).map(lambda parts: "/" + "/".join(parts))


@law
@given(routes, paths, st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "OPTIONS"]))
def test_router_is_the_naive_matcher(routes, path, method):
    """On random templates, whatever their order, the router finds what the naive matcher finds."""
    router: Matcher[Declared] = Matcher()
    for text, methods in routes:
        try:
            router.add(Declared(Template.parse(text), tuple(methods)))
        except DeclarationError:
            continue
    expected = naive(router.endpoints, method, path_tokens(path))
    assert simple(router, method, path) == expected


# ── tables ───────────────────────────────────────────────────────────────────────────────────────

ROUTES = [
    "GET /",
    "GET /orders",
    "POST /orders",
    "GET /orders/<id>",
    "DELETE /orders/<id>",
    "PUT /orders/new",
    "GET /orders/<id>/items/<item>",
    "GET,POST /files/<path:rest>",
    "GET /files/readme",
    "HEAD /head",
    "OPTIONS,GET /own",
    "POST /only",
]

# method, path, answer
FOUND = [
    ("GET", "/", ("/", {})),
    ("GET", "/orders", ("/orders", {})),
    ("HEAD", "/orders", ("/orders", {})),
    ("GET", "/orders/7", ("/orders/<id>", {"id": "7"})),
    ("GET", "/orders/a%2Fb%2E", ("/orders/<id>", {"id": "a/b."})),
    ("GET", "/orders/new", ("/orders/<id>", {"id": "new"})),
    ("PUT", "/orders/new", ("/orders/new", {})),
    ("GET", "/orders/7/items/8", ("/orders/<id>/items/<item>", {"id": "7", "item": "8"})),
    ("GET", "/files/", ("/files/<path:rest>", {"rest": ""})),
    ("GET", "/files/a/b/", ("/files/<path:rest>", {"rest": "a/b/"})),
    ("GET", "/files/a%2Fb/c", ("/files/<path:rest>", {"rest": "a/b/c"})),
    ("GET", "/files/%2e%2e%2e/..a", ("/files/<path:rest>", {"rest": ".../..a"})),
    ("GET", "/files/readme", ("/files/readme", {})),
    ("POST", "/files/readme", ("/files/<path:rest>", {"rest": "readme"})),
    ("HEAD", "/head", ("/head", {})),
    ("OPTIONS", "/own", ("/own", {})),
    ("OPTIONS", "/orders", Options(["GET", "HEAD", "OPTIONS", "POST"])),
    ("OPTIONS", "/files/readme", Options(["GET", "HEAD", "OPTIONS", "POST"])),
    ("GET", "/orders/", Redirect(["orders"])),
    ("HEAD", "/orders/7/", Redirect(["orders", "7"])),
]

# method, path, error, Allow
REFUSED = [
    ("GET", "/nothing", NoRoute, None),
    ("GET", "/orders//", NoRoute, None),
    ("POST", "/orders/", NoRoute, None),
    ("GET", "/only/", NoRoute, None),
    ("GET", "/nothing/", NoRoute, None),
    ("OPTIONS", "/nothing", NoRoute, None),
    ("GET", "/orders/7/items", NoRoute, None),
    ("GET", "/files", NoRoute, None),
    ("PUT", "/orders", MethodNotAllowed, "GET, HEAD, OPTIONS, POST"),
    ("POST", "/orders/new", MethodNotAllowed, "DELETE, GET, HEAD, OPTIONS, PUT"),
    ("GET", "/head", MethodNotAllowed, "HEAD, OPTIONS"),
    ("GET", "/only", MethodNotAllowed, "OPTIONS, POST"),
    ("HEAD", "/only", MethodNotAllowed, "OPTIONS, POST"),
    ("GET", "/files/a%2F..%2Fb", BadPath, None),
    ("GET", "/files/..%2Fb", BadPath, None),
    ("GET", "/files/a%2F..", BadPath, None),
    ("GET", "/files/a%5C..%5Cb", BadPath, None),
]


@pytest.mark.parametrize("routes", [ROUTES, ROUTES[::-1]], ids=["down", "up"])
@pytest.mark.parametrize(("method", "path", "answer"), FOUND)
def test_found(routes, method, path, answer):
    """The most specific template that has the method answers, whatever the order of declaration."""
    assert ask(declare(*routes), method, path) == answer


@pytest.mark.parametrize(("method", "path", "error", "allow"), REFUSED)
def test_refused(method, path, error, allow):
    """404 and 405 with `Allow` of all templates that fit fall out of the search."""
    with pytest.raises(error) as caught:
        ask(declare(*ROUTES), method, path)
    assert caught.value.headers.get("allow") == allow
    assert caught.value.retry == (error is not BadPath)


@pytest.mark.parametrize(
    ("one", "other"),
    [("GET /orders/<id>", "GET /orders/<number>"), ("GET,PUT /", "PUT /"), ("GET /<path:a>", "GET,POST /<path:b>")],
)
def test_duplicates_name_both(one, other):
    """Two handlers for one method and shape are refused with the places of both, and neither order helps."""
    for pair in ((one, other), (other, one)):
        with pytest.raises(DeclarationError) as caught:
            declare(*pair)
        assert "app.py:1 show" in str(caught.value)
        assert "app.py:2 show" in str(caught.value)
        assert all(route.split(" ")[1] in str(caught.value) for route in pair)


def test_a_refused_duplicate_leaves_no_trace():
    """A router that refused an endpoint answers as before."""
    router = declare("GET /a")
    with pytest.raises(DeclarationError):
        router.add(Declared(Template.parse("/a"), ("PUT", "GET")))
    assert [one.methods for one in router.endpoints] == [("GET",)]
    with pytest.raises(MethodNotAllowed):
        ask(router, "PUT", "/a")


def test_every_pair_of_shapes_is_found_by_specificity():
    """Of two templates that both fit, the one with the earlier literal, then capture, answers."""
    for one, other in product(["/a/b", "/a/<x>", "/<x>/b", "/<x>/<y>", "/a/<path:r>", "/<path:r>"], repeat=2):
        if one != other:
            best = min(one, other, key=lambda text: rank(Template.parse(text)))
            assert ask(declare(f"GET {one}", f"GET {other}"), "GET", "/a/b")[0] == best
