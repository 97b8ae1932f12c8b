"""How natsweb's answers differ from FastAPI's, and why: each function turns FastAPI's answer into natsweb's.

The first sentence of a docstring is the reason. `BUG:` marks one that ought to go. They run in the order of
`DIFFERENCES`: what is answered first, then in which words.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from pydantic_core import from_json

from beside_fastapi.requests import FORM, JSON, Ask

PROBLEM = "application/problem+json"
_TITLES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


@dataclass(frozen=True)
class Answer:
    """What a client sees: status, headers, the body (as value if it is JSON), and what the service wrote down."""

    status: int
    headers: Mapping[str, str]
    body: Any
    log: tuple[str, ...] = ()


#: From a request, FastAPI's answer, and FastAPI's answer to GET for the same target, to what natsweb answers.
Difference = Callable[[Ask, Answer, Answer], Answer]


def problem(answer: Answer, status: int, detail: str, reason: str = "", **headers: str) -> Answer:
    """Return the answer as the problem that natsweb makes of it."""
    body: dict[str, Any] = {"type": "about:blank", "title": _TITLES.get(status) or HTTPStatus(status).phrase}
    body |= {"status": status, "detail": detail} | ({"reason": reason} if reason else {})
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return replace(answer, status=status, headers={"content-type": PROBLEM} | fields, body=body)


def invalid(answer: Answer, *errors: tuple[list[Any], str, str]) -> Answer:
    """Return the answer as FastAPI's 422; each error is (loc, msg, type)."""
    found = [{"loc": loc, "msg": msg, "type": kind} for loc, msg, kind in errors]
    return replace(answer, status=422, headers={"content-type": JSON}, body={"detail": found})


def detail_of(answer: Answer) -> Any:
    """Return the detail of an error of FastAPI's."""
    return answer.body.get("detail") if isinstance(answer.body, dict) else None


# ── which route answers ──────────────────────────────────────────────────────────────────────────


def most_specific(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """The most specific route answers, not the one that was declared first."""
    if (ask.method, ask.target) == ("GET", "/both/me"):
        return replace(answer, status=200, body="me")
    return answer


def encoded_slash(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """`%2F` belongs to a segment (RFC 3986 section 2.2) and arrives as a slash of its value."""
    if ask.target == "/names/a%2Fb":
        return replace(answer, status=200, body={"name": "a/b"})
    if ask.target == "/items/a%2Fb":
        message = "Input should be a valid integer, unable to parse string as an integer"
        return invalid(answer, (["path", "id"], message, "int_parsing"))
    return answer


_BAD_PATHS = [
    (r"/(\.\.|%2e%2e)(/|$)", "the path has a '..' segment, which natsweb does not resolve"),
    (r"/\.(/|$)", "the path has a '.' segment, which natsweb does not resolve"),
    (r"%ff", "the path is not UTF-8 behind its percent escapes"),
    (r"%($|[^0-9a-fA-F])", "the path has a '%' that is not followed by two hexadecimal digits"),
]


def canonical_path(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A path that servers and proxies might read in two ways is refused: dot segments and broken escapes."""
    for pattern, detail in _BAD_PATHS:
        if re.search(pattern, ask.target.partition("?")[0]):
            return problem(answer, 400, detail, "bad_path")
    return answer


def path_length(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A path becomes a NATS subject, which has a limit."""
    size = len("beside") + len(ask.target)
    if size <= 3072 or "?" in ask.target:
        return answer
    detail = f"the path is too long: its subject would have {size} bytes of 3072 allowed"
    return problem(answer, 414, detail, "path_too_long")


def trailing_slash(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A slash too many is another path: a service that hears of it redirects a GET, and else it is a 404.

    docs/subjects.md says why. The redirect is relative, so that it holds behind prefixes, and 308, for good.
    """
    if answer.status != 307 or "://" not in answer.headers["location"]:
        return answer
    path, _, query = ask.target.partition("?")
    if ask.method in ("GET", "HEAD") and path == "/colours/":
        location = "../colours" + (f"?{query}" if query else "")
        return replace(answer, status=308, headers={"location": location, "cache-control": "no-store"})
    return replace(answer, status=404, headers={"content-type": JSON}, body={"detail": "Not Found"})


# ── methods ──────────────────────────────────────────────────────────────────────────────────────


def automatic_head(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A GET route answers HEAD as well (RFC 9110 section 9.1 wants both of every server)."""
    return got if ask.method == "HEAD" else answer


def allowed_methods(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Allow lists all methods of the path (RFC 9110 section 10.2.1), not those of its first route."""
    if "allow" not in answer.headers:
        return answer
    routes = {"/orders/": "DELETE, GET, HEAD, OPTIONS, PATCH", "/items/": "GET, HEAD, OPTIONS"}
    routes |= {"/both/": "GET, HEAD, OPTIONS", "/colours": "GET, HEAD, OPTIONS"}
    allow = next((allow for path, allow in routes.items() if ask.target.startswith(path)), "OPTIONS, POST")
    return replace(answer, headers={**answer.headers, "allow": allow})


def automatic_options(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """OPTIONS is answered with Allow."""
    if ask.method == "OPTIONS" and answer.status == 405:
        return replace(answer, status=204, headers={"allow": answer.headers["allow"]}, body="")
    return answer


_ALL = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


def methods_of_the_gateway(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Some requests end at the gateway: `OPTIONS *`, TRACE, and methods that HTTP does not know (501)."""
    if (ask.method, ask.target) == ("OPTIONS", "*"):
        return replace(answer, status=204, headers={"allow": _ALL}, body="")
    if ask.method == "TRACE":
        return problem(answer, 405, "a gateway does not forward TRACE", "method_not_allowed", allow=_ALL)
    if ask.method == "BREW":
        return problem(answer, 501, "this server does not know the method", "unknown_method")
    return answer


# ── input ────────────────────────────────────────────────────────────────────────────────────────


def lower_case_headers(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Header names are lower case everywhere, also in errors, whatever case an alias is written in."""
    if ask.target.startswith("/aliases") and answer.status == 422 and isinstance(detail_of(answer), list):
        found = [error | {"loc": [part.replace("X-N", "x-n") for part in error["loc"]]} for error in detail_of(answer)]
        return replace(answer, body={"detail": found})
    return answer


def malformed_json(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Pydantic reads JSON: UTF-8 without a mark (RFC 8259), 200 levels deep at most, and its words for errors."""
    if dict(ask.headers).get("content-type") != JSON or not ask.body:
        return answer
    try:
        from_json(ask.body)
    except ValueError as error:
        return invalid(answer, (["body"], f"Invalid JSON: {error}", "json_invalid"))
    return answer


def words_of_json(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Errors of a JSON body speak of objects and arrays, as JSON does, not of dictionaries and lists."""
    words = {
        "Input should be a valid dictionary or object to extract fields from": "Input should be an object",
        "Input should be a valid list": "Input should be a valid array",
    }
    errors = detail_of(answer)
    if not isinstance(errors, list):
        return answer
    return replace(
        answer,
        body={
            "detail": [
                error
                | {
                    "msg": words.get(error["msg"], error["msg"]),
                    "type": error["type"].replace("model_attributes_type", "model_type"),
                }
                for error in errors
            ]
        },
    )


def embedded_body(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A body of several parameters that is missing, or no object, is one error, not one for each parameter."""
    if ask.target == "/pair" and ask.body == b"":
        return invalid(answer, (["body"], "Field required", "missing"))
    if ask.target == "/pair" and ask.body == b"[1]":
        return invalid(answer, (["body"], "Input should be an object", "model_type"))
    return answer


def other_content_type(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A body of another content type, or of none, is 415 with `Accept`, and is not read as something else."""
    media = dict(ask.headers).get("content-type", "").lower()
    if ask.target == "/login" and ask.body and not media.startswith((FORM, "multipart/form-data")):
        detail = f"this route takes a form: send it as multipart/form-data or {FORM}"
        return problem(answer, 415, detail, "unsupported_media", accept=f"multipart/form-data, {FORM}")
    takes_json = ask.target in ("/orders", "/maybe", "/orders/7") and ask.method != "DELETE"
    if takes_json and ask.body and not re.match(r"application/(.*\+)?json($|;)", media):
        detail = "this route takes application/json: send it with that Content-Type"
        return problem(answer, 415, detail, "unsupported_media", accept=JSON)
    return answer


def partial_models(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """`Partial[Order]` keeps the types of `Order`: null only where it takes None, and nested models whole.

    FastAPI wants a second model with every field `| None`, and `model_copy(update=...)`, which validates nothing.
    """
    if ask.method != "PATCH" or answer.status != 200:
        return answer
    if ask.body == b'{"customer": null}':
        return invalid(answer, (["body", "customer"], "Input should be a valid string", "string_type"))
    body = dict(answer.body)
    body["lines"] = [{"quantity": 1} | line for line in body["lines"]]
    body["address"] = body["address"] and {"zip": None} | body["address"]
    return replace(answer, body=body)


def words_of_uploads(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A text where a file is wanted is refused in words for the caller, not with Python's class names."""
    theirs, ours = "Value error, Expected UploadFile, received: <class 'str'>", "send it as a file, in a multipart form"
    errors = detail_of(answer)
    if not isinstance(errors, list):
        return answer
    found = [error | {"msg": error["msg"].replace(theirs, f"Value error, {ours}")} for error in errors]
    return replace(answer, body={"detail": found})


def broken_forms(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A form that cannot be taken apart says so, with a reason."""
    detail = detail_of(answer)
    if ask.target == "/photos" and isinstance(detail, str) and answer.status == 400:
        return problem(answer, 400, f"the form cannot be read: {detail}", "bad_request")
    return answer


def cut_forms(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A form whose last boundary is missing was cut off, and is refused rather than taken for what has come."""
    cut = b"--limit" in ask.body and b"--limit--" not in ask.body
    if "boundary=limit" in dict(ask.headers).get("content-type", "") and cut:
        return problem(answer, 400, "the form is cut off: its last boundary is not there", "bad_request")
    return answer


# ── who calls ────────────────────────────────────────────────────────────────────────────────────


def caller_first(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Who calls is settled before the input is looked at, so that strangers learn nothing of it."""
    if ask.target == "/admin" and ("authorization", "Bearer nobody") in ask.headers:
        body = {"detail": "unknown token"}
        return Answer(401, {"content-type": JSON, "www-authenticate": 'Bearer scope="admin"'}, body)
    return answer


def lacking_scope(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A known caller who lacks a scope is 403 with `insufficient_scope` (RFC 6750 section 3.1)."""
    if detail_of(answer) == "not enough permissions":
        challenge = 'Bearer error="insufficient_scope", scope="admin"'
        detail = "the scope 'admin' is lacking"
        return problem(answer, 403, detail, "insufficient_scope", www_authenticate=challenge)
    return answer


def refused_token(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A 401 says by `invalid_token` whether there were credentials (RFC 6750 section 3.1)."""
    refused = 'Bearer error="invalid_token"'
    sentence = "the credentials are refused: "
    if ("authorization", "Bearer") in ask.headers:
        sentence += "the Authorization header has no credentials"
        return problem(answer, 401, sentence, "invalid_token", www_authenticate=refused)
    if detail_of(answer) == "unknown token":
        sentence += "the credentials are not valid"
        return problem(answer, 401, sentence, "invalid_token", www_authenticate=refused)
    if detail_of(answer) == "Not authenticated":
        detail = "this route wants to know who calls"
        return problem(answer, 401, detail, "unauthenticated", www_authenticate="Bearer")
    return answer


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def hidden_cookies(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Cookies are hidden from scripts (HttpOnly) unless one asks otherwise."""
    if cookie := answer.headers.get("set-cookie"):
        cookie = re.sub(r'^(session=(?:"[^"]*"|[^;]*)); ', r"\1; HttpOnly; ", cookie)
        return replace(answer, headers={**answer.headers, "set-cookie": cookie})
    return answer


def forgotten_cookies(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A cookie is forgotten by Max-Age=0 alone; Expires says the same to browsers older than RFC 6265."""
    if cookie := answer.headers.get("set-cookie"):
        return replace(answer, headers={**answer.headers, "set-cookie": re.sub(r"expires=[^;]*; ", "", cookie)})
    return answer


def text_answers(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A handler's `str` is text, not a JSON string."""
    if isinstance(answer.body, str) and answer.headers.get("content-type") == JSON and answer.status == 200:
        return replace(answer, headers={"content-type": "text/plain; charset=utf-8"})
    return answer


def nothing_is_204(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A handler's `None` is 204 without a body, not `null`."""
    if answer.body is None:
        return replace(answer, status=204, headers={}, body="")
    return answer


def no_type_without_body(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A 204 has no body and so no content type."""
    if answer.status == 204:
        headers = {name: value for name, value in answer.headers.items() if name != "content-type"}
        return replace(answer, headers=headers)
    return answer


def conditions_of_files(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A file that the client has already is 304 (RFC 9110 section 13); FastAPI does so in StaticFiles only."""
    has = {("if-none-match", "*"), ("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT")}
    if ask.target == "/file" and has & set(ask.headers):
        return replace(answer, status=304, headers={"etag": answer.headers["etag"]}, body="")
    return answer


def bad_ranges(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A range that a file does not have is a problem, with one sentence for all of them."""
    if ask.target == "/file" and answer.status in (400, 416):
        detail = "the Range of the request cannot be served from this file"
        known = {name.replace("-", "_"): value for name, value in answer.headers.items() if name == "content-range"}
        return problem(answer, answer.status, detail, "bad_range", **known)
    return answer


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def names_of_errors(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """What dependencies see raised are natsweb's own exceptions."""
    names = {"HTTPException": "HTTPError", "RequestValidationError": "InvalidInput"}
    log = [re.sub("|".join(names), lambda found: names[found[0]], line) for line in answer.log]
    return replace(answer, log=tuple(log))


def not_found(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A 404 tells a path that no service hears of from one that its service does not know."""
    if answer.status != 404 or detail_of(answer) != "Not Found":
        return answer
    if ask.target.partition("?")[0] in (
        "/items/",
        "/orders/",
        "/colours/",
    ):  # like /items/<id>, whose subject the service hears
        return problem(answer, 404, "no route of this service has this path", "no_route")
    return problem(answer, 404, "no service listens on this path", "no_service")


def not_allowed(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A 405 names the methods in its sentence as well."""
    if detail_of(answer) == "Method Not Allowed":
        allow = answer.headers["allow"]
        return problem(answer, 405, f"this path takes {allow}", "method_not_allowed", allow=allow)
    return answer


def failures(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A 500 is a problem like all others, and says where the cause is to be found."""
    if answer.status == 500:
        return problem(answer, 500, "the handler failed; the service's log says why", "handler_failed")
    return answer


def refused_input(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """A 422 is a problem whose `errors` have loc, msg and type, without sending the input back."""
    if not isinstance(detail_of(answer), list):
        return answer
    errors = [{name: error[name] for name in ("loc", "msg", "type")} for error in detail_of(answer)]
    said = problem(answer, 422, "the request does not fit what this route takes", "invalid_input")
    return replace(said, body=said.body | {"errors": errors})


def problems(ask: Ask, answer: Answer, got: Answer) -> Answer:
    """Errors are problem+json (RFC 9457), not `{"detail": ...}`."""
    if isinstance(detail_of(answer), str) and "type" not in answer.body:
        kept = {name.replace("-", "_"): value for name, value in answer.headers.items() if name != "content-type"}
        return problem(answer, answer.status, detail_of(answer), **kept)
    return answer


DIFFERENCES: list[Difference] = [
    most_specific,
    encoded_slash,
    automatic_head,
    trailing_slash,
    allowed_methods,
    automatic_options,
    methods_of_the_gateway,
    lower_case_headers,
    malformed_json,
    words_of_json,
    embedded_body,
    other_content_type,
    partial_models,
    words_of_uploads,
    broken_forms,
    cut_forms,
    caller_first,
    lacking_scope,
    refused_token,
    hidden_cookies,
    forgotten_cookies,
    nothing_is_204,
    no_type_without_body,
    text_answers,
    conditions_of_files,
    bad_ranges,
    canonical_path,
    path_length,
    names_of_errors,
    not_found,
    not_allowed,
    failures,
    refused_input,
    problems,
]


def explained(ask: Ask, answer: Answer, got: Answer, differences: list[Difference]) -> Answer:
    """Return what natsweb has to answer where FastAPI answers so; HEAD is as GET without the body."""
    for difference in differences:
        answer = difference(ask, answer, got)
    return replace(answer, body="") if ask.method == "HEAD" else answer
