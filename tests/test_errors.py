"""The tree of exceptions: statuses, reasons, exit codes, and how they read."""

import http
import inspect
import re

import pytest

from natsweb import errors
from natsweb.errors import HTTPError, Mistake, NatswebError, phrase

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, NatswebError)]
FIXED = [
    one for one in CLASSES if issubclass(one, HTTPError) and one.__name__ in errors.__all__ and one is not HTTPError
]

# class name, status, reason, whether it says that nothing was executed
TABLE = {
    ("BadPath", 400, "bad_path", False),
    ("BadRequest", 400, "bad_request", False),
    ("NoRoute", 404, "no_route", True),
    ("NoService", 404, "no_service", True),
    ("MethodNotAllowed", 405, "method_not_allowed", True),
    ("NotAcceptable", 406, "not_acceptable", False),
    ("TooLarge", 413, "too_large", False),
    ("SubjectTooLong", 414, "path_too_long", False),
    ("UnsupportedMedia", 415, "unsupported_media", False),
    ("InvalidInput", 422, "invalid_input", False),
    ("UpgradeRequired", 426, "upgrade_required", False),
    ("HeadersTooLarge", 431, "headers_too_large", False),
    ("HandlerFailed", 500, "handler_failed", False),
    ("ReplyTooLarge", 500, "reply_too_large", False),
    ("BadReply", 502, "bad_reply", False),
    ("Disconnected", 502, "disconnected", False),
    ("NatsDown", 503, "nats_down", True),
    ("Overloaded", 503, "overloaded", True),
    ("ServiceAway", 503, "service_away", True),
    ("Stopping", 503, "stopping", False),
    ("TimeUp", 504, "timeout", False),
    ("UnknownVersion", 505, "unknown_version", False),
}


def build(kind: type[HTTPError], detail: str = "") -> HTTPError:
    """Return an instance of any class of the table."""
    return kind(detail, allow=["GET"]) if kind is errors.MethodNotAllowed else kind(detail)


def test_table_of_answers():
    """Every answer has its status and reason, and the table above names them all."""
    built = [build(kind) for kind in FIXED]
    assert {(type(one).__name__, one.status, one.reason, one.retry) for one in built} == TABLE


def test_the_tree_in_the_docstring_is_the_tree():
    """The module's docstring draws every class, statuses included."""
    drawn = set(re.findall(r"─ (\w+) +(\d{3})?\b", errors.__doc__)) | set(re.findall(r"(\w+) +(\d{3})", errors.__doc__))
    names = {name for name, _ in drawn}
    assert {one.__name__ for one in CLASSES if one.__name__[0] != "_"} - {"NatswebError"} <= names
    statuses = {(name, int(status)) for name, status in drawn if status}
    assert {(name, status) for name, status, _, _ in TABLE} == statuses


@pytest.mark.parametrize("kind", FIXED, ids=lambda kind: kind.__name__)
def test_answers_read_well(kind):
    """An answer reads as status and detail, or as status and phrase without one."""
    assert str(build(kind, "why")) == f"{build(kind).status} why"
    assert str(build(kind)) == f"{build(kind).status} {build(kind).title}"
    assert build(kind).errors == []


@pytest.mark.parametrize("status", [0, 100, 200, 204, 301, 399, 600, -404])
def test_http_error_refuses_what_is_no_error(status):
    """HTTPError takes only 400 to 599, and says what to do instead."""
    with pytest.raises(ValueError, match="return a Response instead"):
        HTTPError(status)


def test_http_error():
    """An HTTPError keeps copies of what it was given."""
    headers, fields = {"a": "1"}, [{"loc": ["x"], "msg": "m", "type": "t"}]
    error = HTTPError(http.HTTPStatus.CONFLICT, "taken", reason="why", headers=headers, errors=fields)
    headers["b"] = "2"
    fields.clear()
    assert (error.status, error.detail, error.reason, error.headers) == (409, "taken", "why", {"a": "1"})
    assert (error.title, type(error.status), len(error.errors), error.retry) == ("Conflict", int, 1, False)
    assert HTTPError(404).reason is None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, "Not Found"),
        (413, "Content Too Large"),
        (414, "URI Too Long"),
        (422, "Unprocessable Content"),
        (418, "I'm a Teapot"),
        (599, "Error"),
        (499, "Error"),
    ],
)
def test_phrases(status, text):
    """Phrases are those of RFC 9110, whatever Python's version says."""
    assert phrase(status) == text


@pytest.mark.parametrize(
    ("name", "code"),
    [("Mistake", 1), ("DeclarationError", 1), ("SettingsError", 2), ("StartError", 3), ("NatsUnreachable", 4)],
)
def test_mistakes(name, code):
    """A mistake says what, where and what to do, and knows its exit code."""
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, Mistake)
    assert str(kind("it broke")) == "it broke"
    assert str(kind("it broke", where="app.py:1", fix="mend it")) == "it broke\n  app.py:1\n  fix: mend it"
    assert str(kind("it broke", where=["a", "b"])) == "it broke\n  a\n  b"
    assert issubclass(errors.NatsUnreachable, errors.StartError)
