"""Queries and cookies: texts of HTTP that requests and responses have in common.

Pure: text in, values out, and back.
"""

from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from string import punctuation
from typing import Literal
from urllib.parse import parse_qsl, quote

from starlette.requests import cookie_parser
from typing_extensions import TypedDict

from natsweb.headers import Headers

__all__ = ["CookieAttributes", "cookie_line", "cookies_of", "forgetting", "parse_query", "quote_query"]


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
    for name, value in _pairs(query):
        if name in given:
            given[name].append(value)
        else:
            given[name] = [value]
    return given


def _pairs(query: str) -> Iterable[tuple[str, str]]:
    """Return what `parse_qsl` does, which takes three times as long where nothing is to be decoded, as in most."""
    if "%" in query or "+" in query:
        return parse_qsl(query, keep_blank_values=True)
    fields = [field.partition("=") for field in query.split("&") if field]
    return [(name, value) for name, _, value in fields]


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
