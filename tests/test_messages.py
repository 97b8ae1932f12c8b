"""`Request`, `Response` and `Call`: values that survive JSON, canonical and frozen."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from natsweb.errors import BadPath
from natsweb.headers import Headers
from natsweb.messages import Call, NotExecuted, Request, Response, quote_query
from natsweb.subjects import encode_segment, to_path

law = settings(deadline=None, max_examples=200)

fields = st.lists(
    st.tuples(
        st.sampled_from(["a", "x-y", "set-cookie"]),
        st.text(
            st.characters(max_codepoint=255).filter(lambda char: char == "\t" or (char >= " " and char != "\x7f")),
            max_size=10,
        ).map(lambda text: text.strip(" \t")),
    ),
    max_size=5,
)
paths = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4)


@law
@given(
    st.sampled_from(["GET", "POST", "M-SEARCH"]),
    paths,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    fields,
    st.binary(),
    st.none() | st.floats(0, 1e6),
)
def test_requests_survive_json(method, segments, query, headers, body, timeout):
    """A request with any body, path, query and headers is the same after JSON."""
    try:
        raw_path = to_path([encode_segment(segment) for segment in segments])
    except BadPath:
        return
    request = Request(
        method=method,
        raw_path=raw_path,
        query=query,
        headers=headers,
        body=body,
        timeout=timeout,
        client="127.0.0.1:9",
        scheme="https",
        root_path="/x",
        params={"id": "ü"},
    )
    again = Request.model_validate_json(request.model_dump_json())
    assert again == request
    assert (again.body, list(again.headers), again.raw_path, again.query) == (body, headers, raw_path, request.query)
    assert Request.model_validate(request.model_dump()) == request
    assert request.path == ("/" if raw_path == "/" else "/" + "/".join(segments))


@law
@given(st.integers(200, 599), fields, st.binary())
def test_responses_survive_json(status, headers, body):
    """A response with any body and headers is the same after JSON."""
    response = Response(status=status, headers=headers, body=body)
    again = Response.model_validate_json(response.model_dump_json())
    assert again == response
    assert (again.status, list(again.headers), again.body) == (status, headers, body)


@pytest.mark.parametrize(
    ("given", "raw_path", "path"),
    [
        ("/", "/", "/"),
        ("/a.b", "/a%2Eb", "/a.b"),
        ("/%61/%2f", "/a/%2F", "/a//"),
        ("/grün", "/gr%C3%BCn", "/grün"),
        ("/gr%c3%bcn", "/gr%C3%BCn", "/grün"),
        ("/a/", "/a/", "/a/"),
        ("/a b", "/a%20b", "/a b"),
    ],
)
def test_raw_path_is_canonical(given, raw_path, path):
    """A path in any spelling becomes the canonical one, and validating again changes nothing."""
    request = Request(raw_path=given)
    assert (request.raw_path, request.path) == (raw_path, path)
    assert Request(raw_path=raw_path).raw_path == raw_path
    assert to_path(request.tokens) == raw_path


@pytest.mark.parametrize("raw_path", ["", "a", "/..", "/%zz", "/%FF", "/\ud800"])
def test_paths_without_subject_are_refused(raw_path):
    """A request cannot hold a path that has no subject."""
    with pytest.raises(ValidationError):
        Request(raw_path=raw_path)


@pytest.mark.parametrize(
    ("given", "query"),
    [
        ("", ""),
        ("a=1&b=%20&c=+", "a=1&b=%20&c=+"),
        ("a=%zz&%", "a=%zz&%"),
        ("q=a b", "q=a%20b"),
        ("q=ü", "q=%C3%BC"),
        ("q=\r\n\0", "q=%0D%0A%00"),
        ("q=<'\"{}|\\^`#?>", "q=<'\"{}|\\^`#?>"),
        (b"q=\xff \x7f", "q=%FF%20%7F"),
        (b"a=1", "a=1"),
    ],
)
def test_queries_are_printable(given, query):
    """What is not printable ASCII is escaped, escapes and all else stay, and quoting twice is quoting once."""
    assert quote_query(given) == query == quote_query(query)
    if isinstance(given, str):
        assert Request(query=given).query == query


@law
@given(st.binary(max_size=30))
def test_quoting_is_idempotent_and_safe(query):
    """Any bytes become printable ASCII without a space, once and for all."""
    quoted = quote_query(query)
    assert quoted.isascii()
    assert " " not in quoted
    assert quoted.isprintable()
    assert quote_query(quoted) == quoted


def test_query_params():
    """A query is decoded to every name with its values in order, empty ones included."""
    request = Request(query="a=1&b=x+y&a=%C3%BC&c&d=")
    assert request.query_params == {"a": ["1", "ü"], "b": ["x y"], "c": [""], "d": [""]}


@pytest.mark.parametrize("method", ["", "get", "GE T", "GET\n", "GÉT", "GET\r\n"])
def test_refused_methods(method):
    """A method is a token in upper case."""
    with pytest.raises(ValidationError):
        Request(method=method)


@pytest.mark.parametrize("status", [0, 100, 101, 102, 199, 600, 1000, "x"])
def test_refused_statuses(status):
    """A response has a final status: an application's 1xx is refused."""
    with pytest.raises(ValidationError):
        Response(status=status)


@pytest.mark.parametrize("value", [Request(), Response()])
def test_frozen(value):
    """Messages cannot be changed, and take no unknown field."""
    with pytest.raises(ValidationError, match="frozen"):
        value.body = b"x"
    with pytest.raises(ValidationError, match="extra"):
        type(value)(boddy=b"x")


@pytest.mark.parametrize("kind", [Request, Response])
def test_bodies(kind):
    """A body reads as text and JSON, and is base64 in JSON."""
    message = kind(body='{"ü": 1}'.encode())
    assert (message.text, message.parse_json()) == ('{"ü": 1}', {"ü": 1})
    assert kind(body=b"\xff").text == "\ufffd"
    with pytest.raises(ValueError):
        kind(body=b"{").parse_json()
    assert json.loads(kind(body=b"ab").model_dump_json())["body"] == "YWI="


@pytest.mark.parametrize("text", ["Hallo", "abcd", '{"ü": 1}'])
@pytest.mark.parametrize("kind", [Request, Response])
def test_text_bodies(kind, text):
    """A body that is given as text is its UTF-8."""
    assert kind(body=text).body == text.encode()


def test_call_is_its_request():
    """A call gives the request that has the same attributes, a request itself."""
    call = Call(
        "PUT",
        ["a", "%2Eb", "%"],
        "q=1",
        Headers([("a", "1"), ("a", "\xe9")]),
        b"\0",
        client="[::1]:2",
        scheme="https",
        timeout=1.5,
        sent=7,
        service="orders",
    )
    call.root_path, call.params = "/shop", {"id": "x"}
    request = call.request()
    assert request == Request(
        method="PUT",
        raw_path="/a/.b/",
        query="q=1",
        headers=[("a", "1"), ("a", "\xe9")],
        body=b"\0",
        client="[::1]:2",
        scheme="https",
        timeout=1.5,
        root_path="/shop",
        params={"id": "x"},
    )
    for name in Request.model_fields:
        assert getattr(call, name) == getattr(request, name)
    assert request.tokens == call.tokens
    assert request.request() is request
    assert Call("GET", []).request() == Request()


def test_with_headers_replaces():
    """`with_headers` replaces fields of the same name, in a copy that keeps its kind."""
    response = NotExecuted(status=503, headers=[("a", "1"), ("A", "2"), ("b", "3")], body=b"x")
    changed = response.with_headers({"A": "9"})
    assert list(changed.headers) == [("b", "3"), ("a", "9")]
    assert (type(changed), changed.status, changed.body, changed.retry) == (NotExecuted, 503, b"x", True)
    assert response.headers["a"] == "1"
    assert not Response().retry


def test_a_copy_with_another_path_has_its_tokens():
    """A filter that rewrites the path of a request gets a request that is routed by the new path."""
    request = Request(raw_path="/a")
    assert request.tokens == ["a"]
    assert request.model_copy(update={"raw_path": "/b"}).tokens == ["b"]
