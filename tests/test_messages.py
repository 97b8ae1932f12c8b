"""`Request`, `Response` and `Call`: values that survive JSON, canonical and frozen."""

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from natsweb.errors import BadPath
from natsweb.headers import Headers
from natsweb.messages import Call, NotExecuted, Request, Response, Result, quote_query
from natsweb.messages.fields import parse_query
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


@law
@given(st.text(st.sampled_from("ab=&%+;2? \u00fc")))
def test_query_params_are_those_of_the_library(query):
    """What is to be decoded and what is not comes out as from urllib."""
    wanted = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        wanted.setdefault(name, []).append(value)
    assert parse_query(query) == wanted


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


def test_types_of_text_bodies():
    """A body of text has a type of its own, or the one that it was given; bytes have none."""
    assert Response(body="x").headers["content-type"] == "text/plain; charset=utf-8"
    assert list(Response(body="<p>", headers={"Content-Type": "text/html"}).headers) == [("content-type", "text/html")]
    assert "content-type" not in Response(body=b"x").headers
    assert "content-type" not in Response.model_validate_json('{"body": "eA=="}').headers


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


# ── cookies ──────────────────────────────────────────────────────────────────────────────────────


def bug(reason: str) -> Any:
    """Mark a case that natsweb gets wrong, with what it does instead."""
    return pytest.mark.xfail(strict=True, reason=reason)


# lines of the header, cookies
COOKIES = [
    ([], {}),
    (["a=1; b=2"], {"a": "1", "b": "2"}),
    (["a=1;b=2"], {"a": "1", "b": "2"}),
    (["a=1", "b=2; a=3"], {"a": "3", "b": "2"}),
    (["a=1; a=2"], {"a": "2"}),
    (["a="], {"a": ""}),
    (["a=b=c"], {"a": "b=c"}),
    (['a="x y"'], {"a": "x y"}),
    (['a="\\374\\073\\"\\\\"'], {"a": 'ü;"\\'}),
    (["a=\xfc"], {"a": "ü"}),
    (["a=%20"], {"a": "%20"}),
    (['a="open'], {"a": '"open'}),
    (["nameless"], {"": "nameless"}),
    ([";; ;"], {}),
]


@pytest.mark.parametrize(("lines", "cookies"), COOKIES)
def test_cookies(lines, cookies):
    """Cookies are read from all lines and unquoted; of two with one name the last counts."""
    headers = Headers([("cookie", line) for line in lines])
    assert Request(headers=headers).cookies == cookies
    assert Call("GET", [], headers=headers).cookies == cookies


PLAIN = {"HttpOnly", "Path=/", "SameSite=lax"}

# arguments besides name and value, attributes
ATTRIBUTES = [
    ({}, PLAIN),
    ({"httponly": False}, PLAIN - {"HttpOnly"}),
    ({"secure": True}, PLAIN | {"Secure"}),
    ({"samesite": "strict"}, PLAIN - {"SameSite=lax"} | {"SameSite=strict"}),
    ({"samesite": "none"}, PLAIN - {"SameSite=lax"} | {"SameSite=none", "Secure"}),
    ({"max_age": 60}, PLAIN | {"Max-Age=60"}),
    ({"max_age": 0}, PLAIN | {"Max-Age=0"}),
    ({"max_age": -1}, PLAIN | {"Max-Age=-1"}),
    ({"path": "/x"}, PLAIN - {"Path=/"} | {"Path=/x"}),
    ({"domain": "example.org"}, PLAIN | {"Domain=example.org"}),
]


@pytest.mark.parametrize(("arguments", "attributes"), ATTRIBUTES)
def test_attributes_of_cookies(arguments, attributes):
    """A cookie is for the whole site and no script unless told otherwise, and secure where it has to be."""
    response = Response(status=201, headers={"set-cookie": "z=0"}, body=b"x").with_cookie("a", "1", **arguments)
    first, [pair, *found] = response.headers.getlist("set-cookie")[0], _pieces(response)
    assert (first, pair, set(found), len(found)) == ("z=0", "a=1", attributes, len(attributes))
    assert (response.status, response.body) == (201, b"x")


def _pieces(response: Response) -> list[str]:
    return response.headers.getlist("set-cookie")[-1].split("; ")


@pytest.mark.parametrize("value", ["", "1", "a b", "a;b,c", 'q"\\', "ü", "\0\r\nset-cookie: x=1", "\xff", "a=b"])
def test_values_of_cookies(value):
    """Any latin-1 text is the value of a cookie, and comes back the same."""
    line = _pieces(Response().with_cookie("a", value))[0]
    assert line.isprintable()
    assert Request(headers={"cookie": line}).cookies == {"a": value}


@pytest.mark.parametrize(
    "name", ["", "a b", "a=b", "a;b", "a\r\n", "ü", "a,b", '"a"', "path", "Max-Age", "HTTPONLY", "samesite"]
)
def test_names_of_cookies(name):
    """A name that no cookie can have is refused."""
    with pytest.raises(ValueError, match="cannot be the name of a cookie"):
        Response().with_cookie(name, "1")


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": "\u20ac"},
        {"path": "/\r\nx: y"},
        {"domain": "\0"},
        {"path": "/\u20ac"},
        {"path": "/; Domain=evil.example"},
        {"domain": "a.b; Secure"},
        {"samesite": "bogus"},
    ],
)
def test_what_no_cookie_carries(arguments):
    """A value, path or domain that would break the field is refused."""
    with pytest.raises(ValueError):
        Response().with_cookie("a", **{"value": "1", **arguments})


def test_without_cookie():
    """A cookie is forgotten where it was set: with its path and domain, and a life of no seconds."""
    pair, *attributes = _pieces(Response().without_cookie("a", path="/x", domain="example.org"))
    assert pair in ("a=", 'a=""')
    assert {"Max-Age=0", "Path=/x", "Domain=example.org"} <= set(attributes)
    pieces = _pieces(Response().without_cookie("a", secure=True, samesite="strict", max_age=9))
    assert {"Max-Age=0", "Secure", "SameSite=strict", "HttpOnly"} <= set(pieces)
    lines = Response().with_cookie("a", "1").without_cookie("a").headers.getlist("set-cookie")
    assert (len(lines), lines[0][:4], "Max-Age=0" in lines[1]) == (2, "a=1;", True)


@pytest.mark.parametrize("name", ["__Host-sid", "__Secure-sid"])
def test_without_a_cookie_of_a_prefix(name):
    """A cookie whose name says that it is secure is forgotten by one that is (RFC 6265bis section 4.1.3)."""
    assert "Secure" in _pieces(Response().without_cookie(name))


# ── Accept ───────────────────────────────────────────────────────────────────────────────────────

JSON, HTML, TEXT = "application/json", "text/html", "text/plain"
RFC = "text/*;q=0.3, text/plain;q=0.7, text/plain;format=flowed, text/plain;format=fixed;q=0.4, */*;q=0.5"

# Accept, what is offered, what is preferred (RFC 9110 section 12.5.1)
PREFERENCES = [
    (None, [JSON, HTML], JSON),
    ("", [JSON, HTML], JSON),
    (",,", [JSON, HTML], JSON),
    ("*/*", [JSON, HTML], JSON),
    ("text/html", [JSON, HTML], HTML),
    ("TEXT/HTML", [HTML], HTML),
    ("text/*", [JSON, HTML, TEXT], HTML),
    ("image/png", [JSON, HTML], None),
    ("text/html, application/json", [JSON, HTML], JSON),
    ("text/html;q=0.5, application/json;q=0.4", [JSON, HTML], HTML),
    ("text/html;q=0.5, application/json", [HTML, JSON], JSON),
    ("text/html ; Q = 0.3 , application/json;q=0.2", [JSON, HTML], HTML),
    ("text/html;q=0", [HTML], None),
    ("text/html;q=0, */*", [HTML, JSON], JSON),
    ("text/*;q=0.9, text/html;q=0.1, */*;q=0.5", [HTML, JSON, TEXT], TEXT),
    ("*/*;q=0.1, text/html;q=0", [HTML], None),
    ("audio/*; q=0.2, audio/basic", ["audio/mpeg", "audio/basic"], "audio/basic"),
    ("text/plain; q=0.5, text/html, text/x-dvi; q=0.8, text/x-c", [TEXT, "text/x-dvi", "text/x-c"], "text/x-c"),
    (RFC, ["text/html", "image/jpeg"], "image/jpeg"),
    (RFC, ["text/plain", "image/jpeg"], "text/plain"),
    ("application/json", ["application/json; charset=utf-8"], "application/json; charset=utf-8"),
    ("application/vnd.x+json", [JSON], None),
    ("text/html;q=x, application/json;q=0.1", [HTML, JSON], JSON),
    ("text/html;q=", [HTML], None),
    ("text/html;q=7", [HTML], HTML),
    ("text/html;q=-1, application/json;q=0.1", [HTML, JSON], JSON),
    ("text/html;level=1", [HTML], HTML),
    ("text", [HTML], None),
    ("*/*", [], None),
    (None, [], None),
    ("text/html;q=nan, application/json;q=0.1", [HTML, JSON], JSON),
    pytest.param('text/html;x="a;q=0", application/json;q=0.1', [JSON, HTML], HTML, marks=bug("split in the quotes")),
]


@pytest.mark.parametrize(("accept", "offers", "preferred"), PREFERENCES)
def test_prefers(accept, offers, preferred):
    """The offer that the most specific ranges like best wins, the first of equals, and none that is refused."""
    request = Request(headers={} if accept is None else {"accept": accept})
    assert request.prefers(*offers) == preferred


def test_prefers_with_several_lines():
    """Several Accept lines count as one list."""
    request = Request(headers=[("accept", "text/html;q=0.5"), ("accept", "application/json")])
    assert request.prefers(HTML, JSON) == JSON


@pytest.mark.parametrize("message", [Response(body=b'{"a": 1}'), Request(raw_path="/", body=b'{"a": 1}')])
def test_json_is_the_parsed_body(message):
    """As in other libraries; pydantic's method of this name, long deprecated, dumps the model."""
    assert message.json() == {"a": 1}


def test_a_result_is_its_response():
    """The plain record of an answer gives the response that has the same attributes, a response itself."""
    headers = Headers([("a", "1"), ("a", "\xe9")])
    result = Result(404, headers, b"\0")
    response = result.response()
    assert response == Response(status=404, headers=headers, body=b"\0")
    assert response.response() is response
    for name in ("status", "headers", "body", "pieces", "retry", "silent"):
        assert getattr(result, name) == getattr(response, name)
