"""The requests that both services answer: good ones, bad ones, and those at the edge."""

import json
from typing import Any, NamedTuple
from urllib.parse import urlencode

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


class Ask(NamedTuple):
    """One HTTP request, its target to the byte as given; `watched` ones write down what they do."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    watched: bool = False

    def __str__(self) -> str:
        extra = [f"{name}={value}" for name, value in self.headers if name != "content-type" or value != JSON]
        words = [self.method, self.target, *extra, *([repr(self.body)[2:-1]] if self.body else [])]
        text = " ".join(words)
        return text if len(text) <= 100 else f"{text[:90]}... ({len(text)})"


def get(target: str, **headers: str) -> Ask:
    """Return a GET; `x_count` is the header x-count."""
    return Ask("GET", target, tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def send(method: str, target: str, body: Any, media: str | None = JSON, **headers: str) -> Ask:
    """Return a request with a body: bytes and text as they are, all else as JSON."""
    found = get("", **headers).headers
    raw = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    return Ask(method, target, (*found, *((("content-type", media),) if media is not None else ())), raw)


def form(target: str, fields: list[tuple[str, str]], **headers: str) -> Ask:
    """Return a POST of an urlencoded form."""
    return send("POST", target, urlencode(fields), FORM, **headers)


def parts(target: str, *found: tuple[str, str | None, str | None, str]) -> Ask:
    """Return a POST of a multipart form; each part is (name, filename, content type, content)."""
    lines = []
    for name, filename, media, content in found:
        lines.append('--limit\r\nContent-Disposition: form-data; name="' + name + '"')
        lines[-1] += "" if filename is None else f'; filename="{filename}"'
        lines[-1] += "" if media is None else f"\r\nContent-Type: {media}"
        lines[-1] += f"\r\n\r\n{content}\r\n"
    return send("POST", target, "".join([*lines, "--limit--\r\n"]), "multipart/form-data; boundary=limit")


def watched(ask: Ask) -> Ask:
    """Return the request as one whose work is written down."""
    return ask._replace(watched=True)


def bare(method: str, target: str, **headers: str) -> Ask:
    """Return a request of any method without a body."""
    return get(target, **headers)._replace(method=method)


ORDER = {"customer": "Zoë", "lines": [{"item": "tea", "quantity": 2}], "address": {"street": "Main"}}
KEY = "3fa85f64-5717-4562-b3fc-2c963f66afa6"


def deep(levels: int) -> str:
    """Return a JSON object that many levels deep."""
    return '{"a":' * levels + "1" + "}" * levels


PATHS = [
    *[get(f"/items/{text}") for text in ("7", "-7", "%2B7", "+7", "007", "7.0", "7.5", "1e3", "seven", "1_000")],
    *[get(f"/items/{text}") for text in ("%D9%A3", "%207", "7%20", "9" * 30, "9" * 5000, "%00", "true", "a%2Fb")],
    *[get(f"/items{rest}") for rest in ("/7/", "/7?x=1", "/7/?x=1&y=%20", "", "/", "//7", "/7/8", "/%ff", "/7%")],
    get("/%69tems/7"),
    get("/Items/7"),
    *[get(f"/things/{text}") for text in (KEY, KEY.upper(), KEY.replace("-", ""), f"%7B{KEY}%7D", f"urn:uuid:{KEY}")],
    get("/things/x"),
    *[get(f"/colours/{text}") for text in ("red", "RED", "green", "red%20")],
    *[get(f"/levels/{text}") for text in ("1", "2", "3", "LOW", "1.0", "01", "%201")],
    *[get(f"/names/{text}") for text in ("a%20b", "a+b", "%C3%BC", "a%2Fb", "a%3Fb", "%25", "a.b", "*", "%3E", "a:b")],
    *[
        get(f"/names/{text}")
        for text in ("%F0%9F%AB%96", "%0A", "..", "%2e%2e", ".", "a;b", "a=b", '"', "~", "a|b", "$x")
    ],
    *[
        get(f"/tails{rest}")
        for rest in ("", "/", "/a", "/a/b", "/a/b/", "/a//b", "/a%2Fb/c", "/a%20b/%C3%BC", "/a/../b")
    ],
    *[get(f"/both/{text}") for text in ("me", "7", "you")],
    get("/nowhere"),
    get("/"),
    get("/nowhere/"),
    *[get(f"/colours{rest}") for rest in ("", "/", "/?a=%20", "//")],
    get("/orders/"),
]

QUERIES = [
    get("/search"),
    get("/search?"),
    get("/search?&&"),
    get("/search?q="),
    get("/search?q"),
    get("/search?=1"),
    *[get(f"/search?q={text}") for text in ("a+b", "a%20b", "a%2Bb", "%C3%BC", "%ff", "%zz", "%", "a%00b", "null")],
    *[
        get(f"/search?q={text}")
        for text in ("1;limit=2", "a=b", "%26", "%F0%9F%AB%96", "x" * 3000, "1&q=2", "a%0D%0Ab")
    ],
    *[
        get(f"/search?limit={text}")
        for text in ("5", "0", "100", "101", "", "x", "5.0", "5.5", "%205", "1&limit=2", "1_0")
    ],
    *[
        get(f"/search?limit={text}")
        for text in ("9" * 30, "null", "1&limit=x", "x&limit=1", "+5", "%2B5", "1e1", "0x10")
    ],
    *[get(f"/search?ratio={text}") for text in ("1.5", "NaN", "inf", "-Infinity", "1e400", ".5", "", "1,5", "1e-400")],
    *[
        get(f"/search?sold={text}")
        for text in ("true", "false", "True", "FALSE", "1", "0", "yes", "no", "on", "off", "y", "n", "t", "f")
    ],
    *[get(f"/search?sold={text}") for text in ("2", "1.0", "enabled", "TRUE+", "null", "None")],
    get("/search?sold"),
    get("/search?sold="),
    *[
        get(f"/search?day={text}")
        for text in ("2026-02-01", "2026-02-30", "2026-02-01T00:00:00", "0", "", "01.02.2026")
    ],
    *[get(f"/search?colour={text}") for text in ("red", "green", "", "RED")],
    *[get(f"/search?level={text}") for text in ("1", "3", "", "LOW")],
    *[get(f"/search?tag={text}") for text in ("a", "a&tag=b", "", "a,b", "a&tag=", "&tag=")],
    *[get(f"/search?number={text}") for text in ("1", "1&number=2", "1&number=x", "", "1,2", "x&number=y")],
    get("/search?number[]=1&tag[]=a"),
    get("/search?unknown=1&limit=3"),
    get("/search?limit=0&ratio=x&sold=x&day=x&colour=x&number=x"),
    get("/search?LIMIT=3"),
    *[get(f"/needed{rest}") for rest in ("", "?q=a", "?q=&n=", "?q=a&n=1", "?n=x")],
    *[get(f"/pages{rest}") for rest in ("", "?number=2&size=5", "?number=0", "?unknown=1", "?sort=name&sort=price")],
    *[get(f"/pages{rest}") for rest in ("?sort=size", "?number=1&number=2", "?size=", "?number=x&unknown=1&unknown=2")],
    get("/pages?sort="),
    *[get(f"/aliases{rest}") for rest in ("?user-id=1", "?q=1", "?user_id=1", "")],
    get("/aliases?user-id=1", x_number="5", cookie="sid=a; c=b"),
    get("/aliases?user-id=1", x_number="x"),
    *[get(f"/shapes{rest}") for rest in ("?from=1", "?from=1&to=2", "?start=1", "?from=1&end=2", "?from=x&to=y", "")],
    *[
        get(f"/shapes?from=1&{rest}")
        for rest in ("level=2", "level=3", "colours=red&colours=blue", "colours=x", "flag")
    ],
    *[
        get(f"/sets?ids={rest}")
        for rest in ("1", "1&ids=1&ids=2", "x", "1&pair=1&pair=a", "1&pair=1", "1&pair=a&pair=b")
    ],
    get("/pages?number="),
]

HEADERS = [
    get("/headers"),
    get("/headers", user_agent="me/1.0"),
    get("/headers", user_agent=""),
    get("/headers", x_count="3"),
    get("/headers", x_count="three"),
    get("/headers", x_count=""),
    get("/headers", x_many="a"),
    get("/headers", x_many="a, b"),
    Ask("GET", "/headers", (("x-many", "a"), ("X-Many", "b"))),
    Ask("GET", "/headers", (("x-count", "1"), ("x-count", "2"))),
    Ask("GET", "/headers", (("x_count", "1"),)),
    Ask("GET", "/headers", (("x-many", "caf\xe9"),)),
    get("/traces"),
    get("/traces", x_trace="1", x_count="2", x_many="a"),
    get("/traces", x_trace="1", x_count="x"),
    Ask("GET", "/traces", (("x-trace", "1"), ("x-many", "a"), ("x-many", "b"))),
    get("/cookies"),
    get("/cookies", cookie="session=abc"),
    get("/cookies", cookie="session=abc; visits=3"),
    get("/cookies", cookie="visits=3;session=abc"),
    get("/cookies", cookie="session=abc; visits=x"),
    get("/cookies", cookie="session="),
    get("/cookies", cookie="session"),
    get("/cookies", cookie='session="a b\\054c"'),
    get("/cookies", cookie="session=a%20b"),
    get("/cookies", cookie="session=1; session=2"),
    get("/cookies", cookie="Session=1"),
    get("/cookies", cookie="session=a=b; visits="),
    Ask("GET", "/cookies", (("cookie", "session=1"), ("cookie", "visits=2"))),
]

GOOD = [("username", "anna"), ("password", "secret")]

FORMS = [
    form("/login", GOOD),
    form("/login", [*GOOD, ("remember", "on")]),
    form("/login", [*GOOD, ("remember", "")]),
    form("/login", [*GOOD, ("remember", "perhaps")]),
    form("/login", [*GOOD, ("unknown", "1")]),
    form("/login", [("username", "ü b;c"), ("password", "secret")]),
    form("/login", [("username", "a,b"), ("password", "secret")]),
    form("/login", [("username", "anna")]),
    form("/login", [("username", ""), ("password", "secret")]),
    form("/login", [("username", "anna"), ("password", "x")]),
    form("/login", [("username", "a"), ("username", "b"), ("password", "secret")]),
    form("/login", []),
    send("POST", "/login", "username=a+b&password=%73ecret", FORM + "; charset=utf-8"),
    send("POST", "/login", "username=a&password=secret&&x", FORM.upper()),
    send("POST", "/login", "username=%ff&password=%zz%", FORM),
    send("POST", "/login", "username=a;password=secret", FORM),
    send("POST", "/login", {"username": "anna", "password": "secret"}),
    send("POST", "/login", "username=anna&password=secret", None),
    send("POST", "/login", "username=anna&password=secret", "text/plain"),
    bare("POST", "/login"),
    bare("GET", "/login"),
    parts("/login", ("username", None, None, "anna"), ("password", None, None, "secret")),
    parts("/login", ("username", "a.txt", "text/plain", "anna"), ("password", None, None, "secret")),
    bare("POST", "/logout"),
    parts("/photos", ("title", None, None, "sea"), ("files", "a.txt", "text/plain", "one")),
    parts(
        "/photos",
        ("title", None, None, "ü"),
        ("stars", None, None, "5"),
        ("files", "ü.txt", "text/plain; charset=utf-8", "one"),
        ("files", "b", None, "two"),
        ("cover", "c.jpg", "image/jpeg", "three"),
    ),
    parts("/photos", ("title", None, None, "sea")),
    parts("/photos", ("files", "a.txt", "text/plain", "one")),
    parts("/photos", ("title", None, None, "sea"), ("files", "", "application/octet-stream", "")),
    parts("/photos", ("title", None, None, "sea"), ("files", "a.txt", "text/plain", "")),
    parts("/photos", ("title", None, None, "sea"), ("files", None, None, "text")),
    parts("/photos", ("title", None, None, ""), ("files", "a", None, "one")),
    parts("/photos", ("title", None, None, "sea"), ("files", "a", None, "1"), ("files", None, None, "text")),
    parts("/photos", ("title", None, None, "sea"), ("files", "a", None, "1"), ("cover", "", None, "")),
    parts("/photos", ("title", None, None, "sea"), ("files", "a", None, "1"), ("cover", None, None, "text")),
    parts("/photos", ("title", None, None, "sea"), ("files", "a", None, "1"), ("stars", None, None, "many")),
    parts("/photos", ("title", None, None, "sea"), ("files", "a", None, "1"), ("stars", None, None, "")),
    parts("/photos", ("title", None, None, "sea"), ("files", "../a\\b.txt", None, "1")),
    parts("/photos"),
    parts(
        "/attach", ("note", None, None, "a"), ("file", "f", None, "1"), ("more", "g", None, ""), ("more", "h", None, "")
    ),
    parts("/attach", ("note", None, None, "a"), ("file", "f", None, "1"), ("more", "g", None, "2")),
    parts("/attach", ("note", None, None, "a"), ("file", None, None, "1")),
    parts("/attach", ("file", "", None, "")),
    form("/photos", [("title", "sea"), ("files", "text")]),
    send("POST", "/photos", "no parts here", "multipart/form-data; boundary=limit"),
    send("POST", "/photos", "--limit\r\n", "multipart/form-data; boundary=limit"),
    send("POST", "/photos", "--limit\r\n", "multipart/form-data"),
    send("POST", "/photos", "--limit\r\nno header\r\n\r\nx\r\n--limit--\r\n", "multipart/form-data; boundary=limit"),
    bare("POST", "/photos"),
]

BODIES = [
    send("POST", "/orders", ORDER),
    send("POST", "/orders", {"customer": "a"}),
    send("POST", "/orders", {"customer": "a", "unknown": 1, "id": 9}),
    send("POST", "/orders", {}),
    send("POST", "/orders", {"customer": None}),
    send("POST", "/orders", {"customer": 1}),
    send("POST", "/orders", {"customer": ""}),
    send("POST", "/orders", {"customer": "a", "lines": [{"item": ""}, {"item": "b", "quantity": 0}, {}, 3]}),
    send("POST", "/orders", {"customer": "a", "lines": {"item": "b"}}),
    send("POST", "/orders", {"customer": "a", "lines": None}),
    send("POST", "/orders", {"customer": "a", "lines": [{"item": "b", "quantity": "2"}]}),
    send("POST", "/orders", {"customer": "a", "lines": [{"item": "b", "quantity": 2.0}]}),
    send("POST", "/orders", {"customer": "a", "lines": [{"item": "b", "quantity": 2.5}]}),
    send("POST", "/orders", {"customer": "a", "lines": [{"item": "b", "quantity": True}]}),
    send("POST", "/orders", {"customer": "a", "lines": [{"item": "b", "quantity": 10**40}]}),
    send("POST", "/orders", {"customer": "a", "address": {}}),
    send("POST", "/orders", {"customer": "a", "address": None}),
    send("POST", "/orders", {"customer": "a", "address": "Main"}),
    *[
        send("POST", "/orders", f'{{"customer":"a","price":{text}}}')
        for text in (
            "1",
            "1.5",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e400",
            '"1.5"',
            '"NaN"',
            "true",
            "0.1e1",
            "1.",
            "-0.0",
        )
    ],
    *[
        send("POST", "/orders", f'{{"customer":"a","gift":{text}}}')
        for text in ("true", "1", "0", "2", '"yes"', '"false"', '"x"', "null", "1.0")
    ],
    *[send("POST", "/orders", f'{{"customer":"a","colour":{text}}}') for text in ('"red"', '"green"', "1", "null")],
    send("POST", "/orders", '{"customer":"a","customer":"b"}'),
    send("POST", "/orders", '{"customer":"\\u00e4\\ud83e\\uded6"}'),
    send("POST", "/orders", '{"customer":"\\ud83e"}'),
    send("POST", "/orders", b'{"customer":"\xff"}'),
    send("POST", "/orders", b'\xef\xbb\xbf{"customer":"a"}'),
    send("POST", "/orders", '{"customer":"a"}'.encode("utf-16")),
    send("POST", "/orders", '{"customer":"a\x00b"}'),
    send("POST", "/orders", '{"customer":"a\nb"}'),
    send("POST", "/orders", ' \n{"customer":"a"}\t '),
    *[
        send("POST", "/orders", text)
        for text in (
            "{",
            '{"customer":"a"',
            '{"customer":"a",}',
            "{'customer':'a'}",
            '{"customer":"a"} x',
            "",
            " ",
            "nul",
        )
    ],
    *[send("POST", "/orders", text) for text in ("null", "[]", '"text"', "7", "true", "[{}]", '{"customer":"a"}{}')],
    send("POST", "/orders", '// comment\n{"customer":"a"}'),
    *[
        send("POST", "/orders", {"customer": "a"}, media)
        for media in (
            "application/json; charset=utf-8",
            "Application/JSON",
            "application/problem+json",
            "application/vnd.api+json; v=1",
            "text/json",
            "text/plain",
            FORM,
            "application/jsonp",
            "multipart/form-data; boundary=x",
            "",
            "json",
            "*/*",
            "application/xml",
            "application/json, text/plain",
            "application/x+json",
        )
    ],
    send("POST", "/orders", {"customer": "a"}, None),
    bare("POST", "/orders"),
    bare("POST", "/orders", content_type=JSON),
    send("POST", "/orders/", {"customer": "a"}),
    send("POST", "/orders?customer=b", {"customer": "a"}),
    send("PUT", "/numbers", [1, 2, 3]),
    send("PUT", "/numbers", []),
    send("PUT", "/numbers", [1, "2", "x", None]),
    send("PUT", "/numbers", {"numbers": [1]}),
    send("PUT", "/numbers", 1),
    send("PUT", "/numbers", "[%s]" % ("9" * 40)),
    send("PUT", "/pair", {"a": 1, "b": "x"}),
    send("PUT", "/pair", {"a": "1"}),
    send("PUT", "/pair", {"b": 2}),
    send("PUT", "/pair", {}),
    send("PUT", "/pair", [1]),
    send("PUT", "/pair", {"a": 1, "b": None}),
    send("PUT", "/pair", {"a": 1, "c": 2}),
    send("PUT", "/pair", ""),
    send("PUT", "/pair", "{"),
    send("PUT", "/maybe", {"street": "Main"}),
    send("PUT", "/maybe", "null"),
    send("PUT", "/maybe", ""),
    bare("PUT", "/maybe"),
    send("PUT", "/maybe", {}),
    send("PUT", "/maybe", "street=Main", FORM),
    send("PUT", "/free", {"a": [1, None, {"ü": "\u2028"}], "": 0.1, "c": 1e300}),
    send("PUT", "/free", deep(50)),
    send("PUT", "/free", deep(150)),
    send("PUT", "/free", deep(250)),
    send("PUT", "/free", deep(3000)),
    send("PUT", "/free", '{"a":NaN}'),
    send("PUT", "/free", '{"a":%s}' % ("9" * 50)),
    send("PUT", "/free", '{"a":%s}' % ("9" * 5000)),
    send("PUT", "/free", '{"a":1.0,"b":1e2,"c":100000000000000000000.0,"a":2}'),
    send("PUT", "/free", '{"a":"%s"}' % ("x" * 200_000)),
]

ORDERS = [
    get("/orders/7"),
    get("/orders/8"),
    get("/orders/x"),
    get("/orders"),
    *[
        send("PATCH", "/orders/7", body)
        for body in (
            {"customer": "b"},
            {},
            {"lines": [{"item": "x"}]},
            {"address": None},
            {"address": {"street": "Side"}},
            {"address": {"zip": "1"}},
            {"price": "4.5", "gift": True},
            {"price": "much"},
            {"customer": None},
            {"customer": 5},
            {"unknown": 1},
            {"id": 9},
            {"lines": [{"item": ""}]},
            {"colour": "blue"},
            "[]",
            "null",
            "",
            "{",
        )
    ],
    send("PATCH", "/orders/8", {"customer": "b"}),
    send("PATCH", "/orders/8", {"price": "much"}),
    send("PATCH", "/orders/x", {"price": "much"}),
    send("PATCH", "/orders/7", {"customer": "b"}, "application/merge-patch+json"),
    send("PATCH", "/orders/7", {"customer": "b"}, "text/plain"),
    bare("DELETE", "/orders/7"),
    bare("DELETE", "/orders/8"),
    bare("DELETE", "/orders/x"),
    send("DELETE", "/orders/7", {"a": 1}),
]

METHODS = [
    bare("HEAD", "/orders/7"),
    bare("HEAD", "/orders/8"),
    bare("HEAD", "/nowhere"),
    bare("HEAD", "/file"),
    bare("HEAD", "/text"),
    bare("HEAD", "/login"),
    bare("OPTIONS", "/orders/7"),
    bare("OPTIONS", "/orders"),
    bare("OPTIONS", "/nowhere"),
    bare("OPTIONS", "*"),
    bare("OPTIONS", "/orders", origin="https://a.example", access_control_request_method="POST"),
    bare("PUT", "/orders/7"),
    bare("POST", "/orders/7"),
    bare("GET", "/photos"),
    bare("PATCH", "/orders"),
    bare("DELETE", "/items/7"),
    bare("DELETE", "/items/x"),
    bare("POST", "/both/me"),
    bare("TRACE", "/items/7"),
    bare("PROPFIND", "/items/7"),
    bare("BREW", "/items/7"),
    bare("PUT", "/items/7/"),
    bare("HEAD", "/items/7/"),
    bare("OPTIONS", "/items/7/"),
    bare("HEAD", "/colours/"),
    bare("POST", "/colours/"),
    bare("HEAD", "/orders/x"),
]

WORK = [
    watched(ask)
    for ask in [
        get("/report"),
        get("/report?user=anna"),
        get("/report?how=sold"),
        get("/report?how=refused"),
        get("/report?how=crash"),
        get("/report?n=x"),
        send("POST", "/mail?to=zo%C3%AB", b"", None),
    ]
] + [send("POST", "/mail", b"", None)]

CALLERS = [
    get("/me"),
    *[
        get("/me", authorization=text)
        for text in (
            "Bearer anna",
            "bearer anna",
            "BEARER  anna",
            "Bearer bert",
            "Bearer nobody",
            "Bearer",
            "Basic YTpi",
            "anna",
            "",
            "Bearer anna bert",
            "Bearer ,",
        )
    ],
    send("PUT", "/admin", {"customer": "a"}, authorization="Bearer anna"),
    send("PUT", "/admin", {"customer": "a"}, authorization="Bearer bert"),
    send("PUT", "/admin", {"customer": 1}, authorization="Bearer bert"),
    send("PUT", "/admin", {"customer": 1}, authorization="Bearer anna"),
    send("PUT", "/admin", {"customer": 1}),
    send("PUT", "/admin", "{", authorization="Bearer nobody"),
    get("/me?token=anna"),
]

ANSWERS = [
    get("/old"),
    get("/text"),
    get("/nothing"),
    get("/perhaps?id=7"),
    get("/perhaps?id=8"),
    get("/user"),
    get("/wrong"),
    get("/numbers"),
    get("/file"),
    *[
        get("/file", range=text)
        for text in (
            "bytes=0-3",
            "bytes=4-",
            "bytes=-5",
            "bytes=0-0,4-8",
            "bytes=100-",
            "bytes=0-1000",
            "bytes=5-2",
            "bytes=x-y",
            "bytes=",
            "bytes=0-3,2-5",
            "bytes=-0",
        )
    ],
    bare("HEAD", "/file", range="bytes=0-3"),
    get("/file", if_none_match="*"),
    get("/file", if_none_match='"other"'),
    get("/file", if_modified_since="Fri, 01 Jan 2100 00:00:00 GMT"),
    get("/file", if_modified_since="Fri, 01 Jan 1999 00:00:00 GMT"),
    get("/file", range="bytes=0-3", if_range='"other"'),
    get("/file", accept_encoding="gzip"),
    get("/orders/7", accept="text/html"),
]

ASKS = [*PATHS, *QUERIES, *HEADERS, *FORMS, *BODIES, *ORDERS, *METHODS, *WORK, *CALLERS, *ANSWERS]
