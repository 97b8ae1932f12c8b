"""`Request` and `Response`: what handlers, middleware and filters see of HTTP, as frozen pydantic models.

Both survive `model_validate_json(model_dump_json())` whatever their body and headers are: bodies go through
JSON as base64, headers as pairs of latin-1 text. `Call` is the plain record that a request travels in until
somebody asks for the model; it has the same attribute names. This module knows values; it knows no wire.
"""

import json
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from string import punctuation
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self
from urllib.parse import parse_qsl, quote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from starlette.requests import cookie_parser
from typing_extensions import TypedDict, Unpack

from natsweb.errors import BadPath
from natsweb.headers import Headers, HeaderSource
from natsweb.subjects import decode_token, path_tokens, to_path

__all__ = [
    "After",
    "Call",
    "CookieAttributes",
    "Counts",
    "NotExecuted",
    "Request",
    "Response",
    "cookie_line",
    "forgetting",
    "parse_query",
    "quote_query",
]


def quote_query(query: str | bytes) -> str:
    """Return a query string in printable ASCII: bytes outside of it become `%XX`, all else stays as it is.

    Text counts as UTF-8. Escapes that are there are left alone, so that it may be called twice.
    """
    if query.isascii():
        text = query if isinstance(query, str) else query.decode("ascii")
        if text.isprintable() and " " not in text:
            return text
    return quote(query, safe=punctuation)


def parse_query(query: str) -> dict[str, list[str]]:
    """Return a query string, decoded: every name with its values in order."""
    given: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True) if query else ():
        if name in given:
            given[name].append(value)
        else:
            given[name] = [value]
    return given


def cookies_of(headers: Headers) -> dict[str, str]:
    """Return the cookies of a request by name; of two with one name the last counts."""
    cookies: dict[str, str] = {}
    for line in headers.getlist("cookie"):
        cookies |= cookie_parser(line)
    return cookies


class CookieAttributes(TypedDict, total=False):
    """Attributes of a cookie (RFC 6265); `max_age` is in seconds."""

    max_age: int | None
    path: str
    domain: str | None
    secure: bool
    httponly: bool
    samesite: Literal["lax", "strict", "none"]


def cookie_line(
    name: str,
    value: str,
    *,
    max_age: int | None = None,
    path: str = "/",
    domain: str | None = None,
    secure: bool = False,
    httponly: bool = True,
    samesite: Literal["lax", "strict", "none"] = "lax",
) -> str:
    """Return the value of a `Set-Cookie` field (RFC 6265); raises `ValueError` for what no cookie can carry."""
    for said in (path, domain or ""):
        if any(char in ";," or not char.isprintable() or not char.isascii() for char in said):
            raise ValueError(f"{said!r} cannot be the path or domain of a cookie")
    if samesite not in ("lax", "strict", "none"):
        raise ValueError(f"samesite={samesite!r} is none of lax, strict and none")
    try:
        cookies: SimpleCookie = SimpleCookie({name: value})
    except CookieError as error:
        raise ValueError(f"{name!r} cannot be the name of a cookie: {error}") from None
    morsel = cookies[name]
    if max_age is not None:
        morsel["max-age"] = max_age
    morsel["path"] = path
    if domain is not None:
        morsel["domain"] = domain
    morsel["secure"] = secure or samesite == "none"
    morsel["httponly"] = httponly
    morsel["samesite"] = samesite
    return morsel.OutputString()


def forgetting(name: str, attributes: CookieAttributes) -> CookieAttributes:
    """Return the attributes with which browsers forget a cookie, also one that has to be secure by its name."""
    secure = attributes.get("secure", False) or name.startswith(("__Host-", "__Secure-"))
    return {**attributes, "secure": secure, "max_age": 0}


class After(Protocol):
    """What is left to do for a request when its reply has gone."""

    async def close(self) -> None:
        """Do it; raises nothing but `asyncio.CancelledError`."""
        ...


class Counts(Protocol):
    """Where a request is counted, once its answer is there."""

    def finish(self, nanoseconds: int, status: int) -> None:
        """Count it."""
        ...

    def abandon(self) -> None:
        """Do not count it."""
        ...


class Call:
    """A request as it came off the wire: attribute for attribute a `Request`, unvalidated and cheap.

    `tokens` are the canonical subject tokens of the path, `headers` field lines that are well-formed,
    `timeout` the seconds left until the answer is due, `sent` the sender's clock in unix ms or None. Whoever made the
    call counts it in `counter`, which is its route's, and closes `after` when the last byte of the reply has gone.
    """

    __slots__ = (
        "after",
        "body",
        "client",
        "counter",
        "headers",
        "method",
        "params",
        "query",
        "root_path",
        "scheme",
        "sent",
        "service",
        "timeout",
        "tokens",
    )

    def __init__(
        self,
        method: str,
        tokens: list[str],
        query: str = "",
        headers: Headers | None = None,
        body: bytes = b"",
        *,
        client: str | None = None,
        scheme: str = "http",
        timeout: float | None = None,
        sent: int | None = None,
        service: str | None = None,
    ) -> None:
        self.method = method
        self.tokens = tokens
        self.query = query
        self.headers = Headers() if headers is None else headers
        self.body = body
        self.client = client
        self.scheme = scheme
        self.timeout = timeout
        self.sent = sent
        self.service = service
        self.root_path = ""
        self.params: dict[str, str] = {}
        self.after: After | None = None
        self.counter: Counts | None = None

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the request, by name."""
        return cookies_of(self.headers)

    @property
    def raw_path(self) -> str:
        """The canonical path, percent-encoded."""
        return to_path(self.tokens)

    def request(self) -> "Request":
        """Return the pydantic model of this call."""
        return Request(
            method=self.method,
            raw_path=self.raw_path,
            query=self.query,
            headers=self.headers,
            body=self.body,
            client=self.client,
            scheme=self.scheme,
            timeout=self.timeout,
            root_path=self.root_path,
            params=self.params,
        )


def _text_to_bytes(body: Any, info: ValidationInfo) -> Any:
    """Take text from Python as UTF-8; in JSON, text is base64."""
    return body.encode() if isinstance(body, str) and info.mode == "python" else body


Body = Annotated[bytes, BeforeValidator(_text_to_bytes)]

_MODEL = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")


class Request(BaseModel):
    """An HTTP request as a handler, middleware or filter sees it.

    `raw_path` is canonical (WIRE.md, subjects) and `path` its decoded twin; `query` is the raw query string
    without `?`; `client` is `address:port` of the HTTP client as the gateway trusts it; `timeout` the seconds
    that were left when the request arrived; `params` the captures of the route that matched, as text.
    """

    model_config = _MODEL

    method: str = Field(default="GET", pattern=r"^[!#$%&'*+\-.^_`|~0-9A-Z]+$")
    raw_path: str = "/"
    query: str = ""
    headers: Headers = Headers()
    body: Body = b""
    client: str | None = None
    scheme: str = "http"
    timeout: float | None = None
    root_path: str = ""
    params: dict[str, str] = Field(default_factory=dict)

    if TYPE_CHECKING:  # what the validators take, which is more than what the fields hold

        def __init__(
            self,
            *,
            method: str = "GET",
            raw_path: str = "/",
            query: str = "",
            headers: HeaderSource = ...,
            body: bytes | str = b"",
            client: str | None = None,
            scheme: str = "http",
            timeout: float | None = None,
            root_path: str = "",
            params: dict[str, str] = ...,
        ) -> None: ...

    @field_validator("raw_path", mode="after")
    @classmethod
    def _canonical(cls, raw_path: str) -> str:
        try:
            return to_path(path_tokens(raw_path.encode().decode("latin-1")))
        except BadPath as error:
            raise ValueError(error.detail) from None

    @field_validator("query", mode="after")
    @classmethod
    def _printable(cls, query: str) -> str:
        return quote_query(query)

    @property
    def tokens(self) -> list[str]:
        """The canonical subject tokens of the path."""
        return path_tokens(self.raw_path)

    @property
    def path(self) -> str:
        """The decoded path: `/files/a b` for a raw path of `/files/a%20b`."""
        return "/" + "/".join([decode_token(token) for token in self.tokens])

    @property
    def query_params(self) -> dict[str, list[str]]:
        """The query string, decoded: every name with its values in order."""
        return parse_query(self.query)

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies of the request, by name."""
        return cookies_of(self.headers)

    @property
    def text(self) -> str:
        """The body as UTF-8 text, with U+FFFD for what is not."""
        return self.body.decode("utf-8", "replace")

    def parse_json(self) -> Any:
        """Return the body as parsed JSON; raises `ValueError` if it is none."""
        return json.loads(self.body)

    def prefers(self, *media_types: str) -> str | None:
        """Return which of `media_types` the caller likes best by its `Accept`, None if it takes none of them.

        Equal wishes, and no `Accept` at all, go to the first (RFC 9110 section 12.5.1).
        """
        ranges = [_parse_range(part) for part in ",".join(self.headers.getlist("accept")).split(",") if part.strip()]
        if not ranges:
            return media_types[0] if media_types else None
        best = max(media_types, key=lambda offer: _quality(offer, ranges), default=None)
        return best if best is not None and _quality(best, ranges) > 0 else None

    def request(self) -> "Request":
        """Return itself: `Call` and `Request` give the model in the same way."""
        return self


def _parse_range(text: str) -> tuple[str, float]:
    """Return media range and quality of one part of an `Accept` field."""
    media, *params = [piece.strip().lower() for piece in text.split(";")]
    for param in params:
        name, _, value = param.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
                return media, min(quality, 1.0) if quality >= 0.0 else 0.0  # not a number is none
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(offer: str, ranges: list[tuple[str, float]]) -> float:
    """Return how much an offered media type is wanted: the most specific range that fits it says so."""
    kind = offer.partition(";")[0].strip().lower()
    for fitting in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [quality for media, quality in ranges if media == fitting]
        if found:
            return max(found)
    return 0.0


_RESPONSE_FIELDS = {"status", "headers", "body"}  # shared by all trusted ones; copies of them get their own
_set_fields_set = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private = BaseModel.__dict__["__pydantic_private__"].__set__


class Response(BaseModel):
    """An HTTP response: `Response(status=201, body=b"...", headers={"location": "/orders/7"})`.

    `body` takes bytes or text (as UTF-8, and `text/plain` unless `content-type` says otherwise), `headers` a mapping
    or pairs. `content-length` is computed; one
    given here counts only in an answer to HEAD or with status 304.
    """

    model_config = _MODEL

    #: Whether the request was surely not executed, so that it may be sent elsewhere: see `NotExecuted`.
    retry: ClassVar[bool] = False

    status: int = Field(default=200, ge=200, le=599)
    headers: Headers = Headers()
    body: Body = b""

    @model_validator(mode="before")
    @classmethod
    def _text_has_a_type(cls, data: Any, info: ValidationInfo) -> Any:
        """Give a body of text its content type, unless it has one; in JSON, text is base64 and says nothing."""
        if info.mode != "python" or not isinstance(data, dict) or not isinstance(data.get("body"), str):
            return data
        headers = Headers(data.get("headers", ()))
        if "content-type" not in headers:
            data = {**data, "headers": headers + {"content-type": "text/plain; charset=utf-8"}}
        return data

    if TYPE_CHECKING:

        def __init__(self, *, status: int = 200, headers: HeaderSource = ..., body: bytes | str = b"") -> None: ...

    @classmethod
    def trusted(cls, status: int, headers: Headers, body: bytes) -> "Response":
        """Return a response of parts that are known to be right, without validating them again (tests/benchmarks)."""
        self = cls.__new__(cls)
        fields: Any = self.__dict__
        fields["status"] = status
        fields["headers"] = headers
        fields["body"] = body
        _set_fields_set(self, _RESPONSE_FIELDS)
        _set_extra(self, None)
        _set_private(self, None)
        return self

    def with_headers(self, headers: Mapping[str, str]) -> Self:
        """Return this response with `headers` added; those of the same name are replaced."""
        return self.model_copy(update={"headers": self.headers.without(*headers) + headers})

    def with_cookie(self, name: str, value: str, **attributes: Unpack[CookieAttributes]) -> Self:
        """Return this response with a cookie (RFC 6265): `with_cookie("sid", token, max_age=3600, secure=True)`.

        Without `max_age` (seconds) it lasts for the browser's session. `path` is `/`, `samesite` "lax"; scripts of the
        page do not see it unless `httponly` is false; `secure` keeps it off plain HTTP. Raises `ValueError` for
        a name that no cookie can have, and a value outside latin-1.
        """
        line = cookie_line(name, value, **attributes)
        return self.model_copy(update={"headers": self.headers + {"set-cookie": line}})

    def without_cookie(self, name: str, **attributes: Unpack[CookieAttributes]) -> Self:
        """Return this response with the order to forget a cookie; `path` and `domain` are those it was set with."""
        return self.with_cookie(name, "", **forgetting(name, attributes))

    @property
    def text(self) -> str:
        """The body as UTF-8 text, with U+FFFD for what is not."""
        return self.body.decode("utf-8", "replace")

    def parse_json(self) -> Any:
        """Return the body as parsed JSON; raises `ValueError` if it is none."""
        return json.loads(self.body)


class NotExecuted(Response):
    """A response that says, between natsweb's own parts, that no handler has run for the request."""

    retry: ClassVar[bool] = True
