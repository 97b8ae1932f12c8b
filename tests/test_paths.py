"""Path templates: what they parse to, which spellings they refuse, and the way back to a path."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.errors import DeclarationError
from natsweb.paths import Capture, Literal, Tail, Template
from natsweb.subjects import decode_token, matches, path_tokens, to_subject

law = settings(deadline=None, max_examples=200)

PARSED = [
    ("/", (), "api"),
    ("/orders", (Literal("orders"),), "api.orders"),
    ("/orders/", (Literal("orders"), Literal("%")), "api.orders.%"),
    ("/orders/<id>", (Literal("orders"), Capture("id")), "api.orders.*"),
    ("/<a>/x/<_b2>", (Capture("a"), Literal("x"), Capture("_b2")), "api.*.x.*"),
    ("/files/<path:rest>", (Literal("files"), Tail("rest")), "api.files.>"),
    ("/<path:path>", (Tail("path"),), "api.>"),
    ("/<path>", (Capture("path"),), "api.*"),
    ("/a.b", (Literal("a%2Eb"),), "api.a%2Eb"),
    ("/a b/grün", (Literal("a%20b"), Literal("gr%C3%BCn")), "api.a%20b.gr%C3%BCn"),
    ("/a:b", (Literal("a%3Ab"),), "api.a%3Ab"),
    ("/*", (Literal("%2A"),), "api.%2A"),
]

# wrong spelling, what the message shows
REFUSED = [
    ("/orders/{id}", "'/orders/<id>'"),
    ("/files/{rest:path}", "'/files/<path:rest>'"),
    ("/orders/{id:int}", "'/orders/<id>'"),
    ("/orders/:id", "'/orders/<id>'"),
    ("/orders/<int:id>", "'/orders/<id>'"),
    ("/orders/<str:id>/items", "'/orders/<id>/items'"),
    ("/orders/no-<id>", "'/orders/<id>'"),
    ("/orders/<id>.json", "'/orders/<id>'"),
    ("/orders/<a><b>", "'/orders/<id>'"),
    ("/orders/<>", "'/orders/<id>'"),
    ("/orders/<1a>", "'/orders/<id>'"),
    ("/orders/<a-b>", "'/orders/<id>'"),
    ("/orders/{}", "'/orders/<id>'"),
    ("/{id:path}", "'/<path:id>'"),
    ("/<path:rest>/x", "has to be the last segment"),
    ("/<path:rest>/<path:more>", "has to be the last segment"),
    ("/<id>/<id>", "give each capture its own name"),
    ("/<id>/<path:id>", "give each capture its own name"),
    ("/a%20b", "write paths decoded (a space, not %20)"),
    ("/a?b=<c>", "'/orders/<id>'"),
    ("/a?b=c", "query parameters as handler parameters"),
    ("/a#b", "query parameters as handler parameters"),
    ("orders", "write '/orders'"),
    ("", "write '/'"),
    ("/a/../b", "'..' segment"),
    ("/.", "'.' segment"),
    ("/\ud800", "surrogate"),
]


@pytest.mark.parametrize(("text", "parts", "pattern"), PARSED)
def test_templates(text, parts, pattern):
    """A template parses to its parts and gives its subject pattern."""
    template = Template.parse(text)
    assert template.parts == parts
    assert template.pattern("api") == pattern
    assert ".".join(["api", *template.shape]) == pattern
    assert str(template) == text
    assert template == Template.parse(text)


@pytest.mark.parametrize(("text", "shown"), REFUSED)
def test_refused_spellings(text, shown):
    """A spelling of another framework, or one that cannot work, is refused with the right one."""
    with pytest.raises(DeclarationError) as caught:
        Template.parse(text)
    assert shown in str(caught.value)
    assert repr(text) in caught.value.what or text.startswith("/<")


@law
@given(
    st.lists(st.sampled_from(["orders", "a.b", "", "<one>", "<two>", "grün"]), unique=True, max_size=4),
    st.booleans(),
    st.fixed_dictionaries(
        {"one": st.text(min_size=1, max_size=6), "two": st.integers(), "rest": st.lists(st.text(max_size=4))}
    ),
)
def test_path_is_the_inverse_of_matching(segments, tail, drawn):
    """A path made from values is matched by the pattern, and its captures are the values."""
    text = "/" + "/".join([*segments, "<path:rest>"] if tail else segments)
    template = Template.parse(text)
    values = {**drawn, "rest": "/".join(drawn["rest"])}
    used = {name: str(values[name]) for name in template.names}
    if any(part in (".", "..") for value in used.values() for part in [value, *value.split("/")]):
        return
    if text == "/<path:rest>" and not used["rest"]:
        return
    path = template.path(values)
    assert matches(template.pattern("api"), to_subject("api", path, limit=10**6))
    decoded = [decode_token(token) for token in path_tokens(path)]
    for index, part in enumerate(template.parts):
        if isinstance(part, Tail):
            assert "/".join(decoded[index:]) == used[part.name]
        else:
            assert decoded[index] == (used[part.name] if isinstance(part, Capture) else decode_token(part.token))


@pytest.mark.parametrize(
    ("text", "values", "path"),
    [
        ("/", {}, "/"),
        ("/orders/", {}, "/orders/"),
        ("/orders/<id>", {"id": 7}, "/orders/7"),
        ("/orders/<id>", {"id": "a/b.c"}, "/orders/a%2Fb%2Ec"),
        ("/files/<path:rest>", {"rest": ""}, "/files/"),
        ("/files/<path:rest>", {"rest": "a b/c"}, "/files/a%20b/c"),
        ("/files/<path:rest>", {"rest": PurePosixPath("a/b")}, "/files/a/b"),
        ("/<id>/<path:rest>", {"id": True, "rest": False}, "/true/false"),
    ],
)
def test_paths_from_values(text, values, path):
    """Values are encoded into the path, a tail segment by segment."""
    assert Template.parse(text).path(values) == path


@pytest.mark.parametrize(
    ("text", "values", "error"),
    [
        ("/<id>", {}, KeyError),
        ("/<id>", {"id": ""}, ValueError),
        ("/<id>", {"id": ".."}, ValueError),
        ("/<id>", {"id": "\ud800"}, ValueError),
        ("/<path:rest>", {"rest": "a/../b"}, ValueError),
        ("/<path:rest>", {"rest": ""}, ValueError),
        *[("/<id>", {"id": value}, ValueError) for value in (None, [], [1], (1, 2), {1})],
        *[("/<path:rest>", {"rest": value}, ValueError) for value in (None, ["a", "b"], ("a",))],
    ],
)
def test_values_that_no_path_carries(text, values, error):
    """A missing value is a KeyError, one that no path can carry a ValueError."""
    with pytest.raises(error):
        Template.parse(text).path(values)


def test_shape_ignores_names():
    """Templates that differ in the names of their captures have one shape."""
    assert Template.parse("/<a>/<path:b>").shape == Template.parse("/<x>/<path:y>").shape
    assert Template.parse("/<a>/<path:b>").names == ["a", "b"]
