"""Values to responses and errors to problems, as pure functions; handlers are test_service.py's."""

import enum
import math
from typing import Annotated, Any, Literal, NewType, Optional, Union

import pytest
from pydantic import AfterValidator, BaseModel, Field, PydanticUserError, ValidationError
from typing_extensions import TypeAliasType

from natsweb import FileResponse, Service
from natsweb.errors import HTTPError, InvalidInput, MethodNotAllowed, Overloaded
from natsweb.messages import Call, NotExecuted, Request, Response
from natsweb.replies import Created, Deferred, Problem, Reply, body_of, compile_reply, problem, redirect, union_parts


class Order(BaseModel):
    id: int


# error, members of the problem beside type, title and status
PROBLEMS = [
    (HTTPError(404), {}),
    (HTTPError(404, "no order 7"), {"detail": "no order 7"}),
    (HTTPError(409, "ü", reason="taken"), {"detail": "ü", "reason": "taken"}),
    (Overloaded("busy"), {"detail": "busy", "reason": "overloaded"}),
    (InvalidInput(), {"reason": "invalid_input"}),
    (
        InvalidInput("x", errors=[{"loc": ["body", 0], "msg": "m", "type": "t"}]),
        {"detail": "x", "reason": "invalid_input", "errors": [{"loc": ["body", 0], "msg": "m", "type": "t"}]},
    ),
]


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize(("error", "members"), PROBLEMS)
def test_problems(error, members, executed):
    """An error is problem+json with the members it has and no others, and reads back as a `Problem`."""
    response = problem(error, executed=executed)
    expected = {"type": "about:blank", "title": error.title, "status": error.status, **members}
    assert response.parse_json() == expected
    assert response.status == error.status
    assert dict(response.headers) == {"content-type": "application/problem+json", **error.headers}
    assert Problem.model_validate_json(response.body).model_dump(exclude_none=True) == expected
    assert type(response) is (Response if executed else NotExecuted)
    assert response.retry == (not executed)


def test_headers_of_an_error():
    """The headers of an error are those of its response."""
    response = problem(MethodNotAllowed(allow=["GET", "PUT"]))
    assert response.headers["allow"] == "GET, PUT"


@pytest.mark.parametrize(
    ("status", "value", "expected"),
    [(None, None, 204), (None, "x", 200), (None, {}, 200), (201, None, 201), (201, "x", 201), (201, {}, 201)],
)
def test_statuses(status, value, expected):
    """Nothing is 204 and something 200, unless the route says otherwise."""
    assert compile_reply(Any, status)(value).status == expected


def test_responses_pass():
    """A response is itself, whatever the annotation and status."""
    response = NotExecuted(status=503)
    assert compile_reply(Order, 201)(response) is response


def test_values_are_validated_once_or_refused():
    """A value becomes what the annotation says, or the validator's error."""
    to_response = compile_reply(list[Order], None)
    assert to_response(({"id": "1"}, Order(id=2))).body == b'[{"id":1},{"id":2}]'
    with pytest.raises(ValidationError):
        to_response([{}])


def test_types_that_pydantic_refuses():
    """A type without a schema is refused when the reply is compiled."""
    with pytest.raises(PydanticUserError):
        compile_reply(type("Thing", (), {}), None)


class Special(Order):
    secret: str = "s"


class Word(enum.StrEnum):
    YES = "yes"


class Fixed(Deferred):
    """A deferred answer without I/O."""

    async def render(self, call: Call | Request) -> Response:
        return Response(body=f"for {call.method}")


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
Short = Annotated[str, Field(max_length=2)]

ORDER, JSON, TEXT, OCTETS = Order(id=1), "application/json", "text/plain; charset=utf-8", "application/octet-stream"
Text = NewType("Text", str)

# annotation, value, status, content type, body
ANSWERS = [
    (Order, ORDER, 200, JSON, b'{"id":1}'),
    (Order, {"id": "1"}, 200, JSON, b'{"id":1}'),
    (Order, Special(id=1), 200, JSON, b'{"id":1}'),
    (list[Order], [Special(id=1)], 200, JSON, b'[{"id":1}]'),
    (Any, Special(id=1), 200, JSON, b'{"id":1,"secret":"s"}'),
    (Any, {"a": [None, True]}, 200, JSON, b'{"a":[null,true]}'),
    (Any, ({"a": 1}, 201), 200, JSON, b'[{"a":1},201]'),
    (float, math.nan, 200, JSON, b"null"),
    (dict[str, int], {"ü": 1}, 200, JSON, '{"ü":1}'.encode()),
    (Word, Word.YES, 200, JSON, b'"yes"'),
    (Any, Word.YES, 200, JSON, b'"yes"'),
    (str, Word.YES, 200, TEXT, b"yes"),
    (str, "ü", 200, TEXT, "ü".encode()),
    (bytes, b"\xff", 200, OCTETS, b"\xff"),
    (bytes | str, "x", 200, TEXT, b"x"),
    (int | str, "7", 200, TEXT, b"7"),
    (int | str, 7, 200, JSON, b"7"),
    (Literal["a", 1], "a", 200, TEXT, b"a"),
    (Literal["a", 1], 1, 200, JSON, b"1"),
    (Short, "x", 200, TEXT, b"x"),
    (None, None, 204, None, b""),
    (Optional[Order], None, 204, None, b""),  # noqa: UP045
    (str | None, None, 204, None, b""),
    (Reply[Order], Reply(ORDER), 200, JSON, b'{"id":1}'),
    (Reply[Order], Reply({"id": "1"}, status=202), 202, JSON, b'{"id":1}'),
    (Reply[str], Reply("x", status=404), 404, TEXT, b"x"),
    (Reply[None], Reply(None), 204, None, b""),
    (Reply[None], Reply(None, status=304), 304, None, b""),
    (Reply, Reply({"a": 1}), 200, JSON, b'{"a":1}'),
    (Any, Reply(ORDER, status=203), 203, JSON, b'{"id":1}'),
    (Order, Reply(ORDER, status=203), 203, JSON, b'{"id":1}'),
    (Reply[Reply[Order]], Reply(Reply(ORDER, status=202)), 202, JSON, b'{"id":1}'),
    (Reply[Any], Reply(Response(status=203, body="x")), 203, TEXT, b"x"),
    (Order | Reply[Order], ORDER, 200, JSON, b'{"id":1}'),
    (Order | Reply[Order], Reply(ORDER, status=202), 202, JSON, b'{"id":1}'),
    (Union[Reply[Order], Reply[str]], Reply("x"), 200, TEXT, b"x"),  # noqa: UP007
    (Reply[Order] | None, None, 204, None, b""),
    (Response | Order, ORDER, 200, JSON, b'{"id":1}'),
    (Response | Order, {"id": 1}, 200, JSON, b'{"id":1}'),
    (Response | Order, Response(status=404), 404, None, b""),
    (Response | None, None, 204, None, b""),
    (Response | Reply[None], Reply(None, status=202), 202, None, b""),
    (FileResponse | Order, ORDER, 200, JSON, b'{"id":1}'),
    (Response, Response(body=b"x"), 200, OCTETS, b"x"),
    (Response, Response(body="x"), 200, TEXT, b"x"),
    (Annotated[Response, "note"], Response(), 200, None, b""),
    (Created[Order], Created(ORDER), 201, JSON, b'{"id":1}'),
    (Order, Created(ORDER), 201, JSON, b'{"id":1}'),
    (Text, "x", 200, TEXT, b"x"),
    (NewType("Png", bytes), b"\xff", 200, OCTETS, b"\xff"),
    (TypeAliasType("Alias", str), "x", 200, TEXT, b"x"),
    (TypeAliasType("Answer", Order | Reply[Order]), Reply(ORDER, status=202), 202, JSON, b'{"id":1}'),
    (Annotated[Reply[Order], "note"], Reply(ORDER, status=202), 202, JSON, b'{"id":1}'),
    (Reply[Annotated[Order | Special, "note"]], Reply(ORDER), 200, JSON, b'{"id":1}'),
    (list[Annotated[str, AfterValidator(str.upper)]], ["a"], 200, JSON, b'["A"]'),
    (Annotated[str, AfterValidator(str.upper)], "a", 200, TEXT, b"A"),
    (Annotated[bytes, AfterValidator(bytes.upper)], b"a", 200, OCTETS, b"A"),
    (Reply[Annotated[str, AfterValidator(str.upper)]], Reply("a"), 200, TEXT, b"A"),
    (Annotated[Short | None, "note"], None, 204, None, b""),
    (Annotated[Short | Response, "note"], Response(status=404), 404, None, b""),
    (Annotated[Short | Response, "note"], "x", 200, TEXT, b"x"),
    (Pet, {"kind": "dog"}, 200, JSON, b'{"kind":"dog"}'),
]


@pytest.mark.parametrize(("annotation", "value", "status", "media", "body"), ANSWERS)
def test_answers(annotation, value, status, media, body):
    """A return value becomes status, content type and body as its annotation says."""
    response = compile_reply(annotation, None)(value)
    assert (response.status, response.headers.get("content-type"), response.body) == (status, media, body)
    if not isinstance(value, Reply | Response):
        assert compile_reply(annotation, 299)(value).status == 299


# annotation, value, error
REFUSED_ANSWERS = [
    (Short, "abc", ValidationError),
    (Annotated[bytes, Field(max_length=2)], b"abc", ValidationError),
    (Annotated[str | int, Field(le=2)], 3, ValidationError),
    (TypeAliasType("Named", Short), "abc", ValidationError),
    (Reply[Short], Reply("abc"), ValidationError),
    (Short | Response, "abc", ValidationError),
    (Pet, {"kind": "cow"}, ValidationError),
    (Order, {}, ValidationError),
    (Reply[Order], Reply({}), ValidationError),
    (Order | Reply[str], Reply(7), ValidationError),
    (str, b"x", ValidationError),
    (str, 7, ValidationError),
    (bytes, "x", ValidationError),
    (None, 7, ValidationError),
    (Response, ORDER, TypeError),
    (Response, None, TypeError),
    (FileResponse, {"a": 1}, TypeError),
    (FileResponse | Response, "x", TypeError),
    (Any, Reply(Fixed()), TypeError),
    (Reply[Fixed], Reply(Fixed()), TypeError),
    (Reply[Any], Reply(Reply(FileResponse("x"))), TypeError),
]


@pytest.mark.parametrize(("annotation", "value", "error"), REFUSED_ANSWERS)
def test_refused_answers(annotation, value, error):
    """What its annotation does not allow is an error of the handler, never another answer."""
    with pytest.raises(error) as caught:
        compile_reply(annotation, None)(value)
    if error is TypeError:
        assert "annotated to return a Response, and returned" in str(caught.value) or "without Reply" in str(
            caught.value
        )


async def test_deferred():
    """A deferred answer goes through the service untouched, and knows the request."""
    service = Service("test")

    @service.get("/")
    async def show() -> Fixed:
        return Fixed()

    @service.get("/reply")
    async def reply() -> Any:
        return Reply(Fixed(), status=202)

    assert (await service.handle(Request())).text == "for GET"
    assert (await service.handle(Request(raw_path="/reply"))).status == 500
    value = Fixed()
    assert compile_reply(Response, 201)(value) is value


@pytest.mark.parametrize(
    ("annotation", "body"),
    [
        (Order, Order),
        (Any, Any),
        (None, type(None)),
        (Reply[Order], Order),
        (Reply, Any),
        (Created[list[Order]], list[Order]),
        (Reply[Reply[Order]], Order),
        (Order | Reply[Order], Order),
        (Order | Reply[str] | Response, Union[Order, str]),  # noqa: UP007
        (Reply[Order] | FileResponse | None, Optional[Order]),  # noqa: UP045
        *[(annotation, Pet) for annotation in (Pet, Reply[Pet], Annotated[Reply[Pet], "note"])],
        *[(annotation, Short) for annotation in (Short, Reply[Short], Short | Response)],
    ],
)
def test_body_of(annotation, body):
    """What a return annotation says of the body is itself less replies and responses."""
    assert body_of(annotation) == body
    assert body_of(body) == body


@pytest.mark.parametrize("annotation", [Response, FileResponse, Response | FileResponse, Reply[Response]])
def test_bodies_of_responses(annotation):
    """An annotation that allows responses only says nothing of the body: no value fits it."""
    nothing = body_of(annotation)
    assert isinstance(nothing, type)
    assert not isinstance(ORDER, nothing)
    assert body_of(Response) is nothing


def test_union_parts():
    """The members of a union in both spellings, or the type itself; notes are looked through around responses only."""
    assert union_parts(int | str) == union_parts(Union[int, str]) == (int, str)  # noqa: UP007
    assert union_parts(TypeAliasType("Alias", int | str)) == (int, str)
    for one in (list[int], Pet, Short, Annotated[bytes, "note"], Annotated[Order, "note"]):
        assert union_parts(one) == (one,)
    assert union_parts(Annotated[Short | Response, "note"]) == (Short, Response)
    for one in (Reply[Pet], Response, Fixed):
        assert union_parts(Annotated[one, "note"]) == (one,)


def test_types_that_are_defined_later():
    """A model whose field names a type that is not there yet is a NameError until it is."""

    class Early(BaseModel):
        order: "Later"  # noqa: F821

    with pytest.raises(NameError) as caught:
        compile_reply(Early, None)
    assert caught.value.name == "Later"
    Early.model_rebuild(_types_namespace={"Later": Order})
    assert compile_reply(Early, None)({"order": {"id": 1}}).body == b'{"order":{"id":1}}'


# ── Reply, Created, redirect ─────────────────────────────────────────────────────────────────────


def test_headers_of_a_reply():
    """A reply's headers replace those of its body, and repeats stay repeats."""
    headers = [("Content-Type", "application/vnd.x+json"), ("x", "1"), ("x", "2")]
    response = compile_reply(Reply[Order], None)(Reply(ORDER, headers=headers))
    assert list(response.headers) == [("content-type", "application/vnd.x+json"), ("x", "1"), ("x", "2")]
    inner = Reply(ORDER, headers={"a": "1", "b": "1"})
    response = compile_reply(Any, None)(Reply(inner, headers={"A": "2"}))
    assert (response.headers.getlist("a"), response.headers["b"]) == (["2"], "1")


def test_replies_as_values():
    """A reply shows its body and status, and refuses what no answer can have."""
    assert repr(Reply(7, status=202)) == "Reply(7, status=202)"
    assert repr(Created("x")) == "Created('x', status=201)"
    for status in (0, 99, 100, 199, 600):
        with pytest.raises(ValueError, match=f"status {status}; use 200 to 599"):
            Reply(7, status=status)
    with pytest.raises(ValueError, match="control character"):
        Reply(7, headers={"a": "x\r\ny"})


# location, as it is sent
LOCATIONS = [
    ("/a", "/a"),
    ("../b?c=d&e=%20#f", "../b?c=d&e=%20#f"),
    ("https://x.y:1/?a=[1]&b=(2);'*!$,+@~_.-", "https://x.y:1/?a=[1]&b=(2);'*!$,+@~_.-"),
    ("http://[::1]/", "http://[::1]/"),
    ("/ü b", "/%C3%BC%20b"),
    ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
    ("/a\r\nset-cookie: x=1", "/a%0D%0Aset-cookie:%20x=1"),
    ("/\0\t", "/%00%09"),
    ("", ""),
]


@pytest.mark.parametrize(("location", "sent"), LOCATIONS)
def test_locations(location, sent):
    """A location is printable ASCII: what is not is escaped, line ends too, and what is escaped stays."""
    assert list(redirect(location).headers) == [("location", sent)]
    assert Created(7, location=location).headers["location"] == sent
    assert redirect(sent).headers["location"] == sent


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(status):
    """A redirect has its status and location, and no body."""
    response = redirect("/x", status=status)
    assert (response.status, response.body, response.headers["location"]) == (status, b"", "/x")
    assert redirect("/x").status == 307


@pytest.mark.parametrize("status", [200, 201, 300, 304, 305, 306, 309, 404])
def test_statuses_that_are_no_redirect(status):
    """Another status is refused with those that may be used."""
    with pytest.raises(ValueError, match=f"{status} is no redirect; use 307, 303, 308, 301 or 302"):
        redirect("/x", status=status)


def test_created():
    """Created has a location only if it is given, and only one."""
    assert Created(ORDER).headers.get("location") is None
    created = Created(ORDER, location="/orders/1", headers=[("Location", "/other"), ("x", "1")])
    assert list(created.headers) == [("x", "1"), ("location", "/orders/1")]
    assert (created.status, created.body) == (201, ORDER)


def test_changed_replies():
    """`with_headers` and the cookie methods give a changed copy of the same kind."""
    created = Created(ORDER, location="/orders/1")
    changed = created.with_headers({"Location": "/2", "x": "1"}).with_cookie("a", "1", path="/x").without_cookie("b")
    assert (type(changed), changed.status, changed.body) == (Created, 201, ORDER)
    assert list(changed.headers.without("set-cookie")) == [("location", "/2"), ("x", "1")]
    assert changed.headers.getlist("set-cookie") == [
        *Response().with_cookie("a", "1", path="/x").headers.getlist("set-cookie"),
        *Response().without_cookie("b").headers.getlist("set-cookie"),
    ]
    assert list(created.headers) == [("location", "/orders/1")]
    response = compile_reply(Created[Order], None)(changed)
    assert (response.status, response.headers["location"], len(response.headers.getlist("set-cookie"))) == (
        201,
        "/2",
        2,
    )
