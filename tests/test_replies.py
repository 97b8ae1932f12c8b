"""Values to responses and errors to problems, as pure functions; handlers are test_service.py's."""

from typing import Any

import pytest
from pydantic import BaseModel, PydanticUserError, ValidationError

from natsweb.errors import HTTPError, InvalidInput, MethodNotAllowed, Overloaded
from natsweb.messages import NotExecuted, Response
from natsweb.replies import Problem, compile_reply, problem


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
    assert to_response(({"id": "1"}, Order(id=2))).text == '[{"id":1},{"id":2}]'
    with pytest.raises(ValidationError):
        to_response([{}])


def test_types_that_pydantic_refuses():
    """A type without a schema is refused when the reply is compiled."""
    with pytest.raises(PydanticUserError):
        compile_reply(type("Thing", (), {}), None)
