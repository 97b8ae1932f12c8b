"""Forms read directly: urlencoded and multipart, their limits, and bodies that are broken or no form."""

import importlib.util
from typing import Annotated, Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette import formparsers

from natsweb import HTTPError, Request, Service
from natsweb.errors import BadRequest, DeclarationError, TooLarge, UnsupportedMedia
from natsweb.forms import FORM_LIMITS, FormLimits, has_parser, read_form
from natsweb.headers import Headers
from natsweb.messages import Call
from natsweb.params import Form, UploadFile
from natsweb.subjects import path_tokens

law = settings(deadline=None, max_examples=200)

URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"

#: Names and values of a form: any text that UTF-8 can carry.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def part(attributes: str, content: bytes = b"", *, more: str = "") -> bytes:
    """Return one part of a multipart body: what follows `form-data`, the content, and further header lines."""
    return f"--b\r\nContent-Disposition: form-data{attributes}\r\n{more}\r\n".encode() + content + b"\r\n"


async def read(body: bytes | str, media: str | None = URLENCODED, limits: FormLimits = FORM_LIMITS) -> list[Any]:
    """Return the fields of a form, files as (file name, content type, bytes), closed."""
    body = body.encode() if isinstance(body, str) else body
    call = Call("POST", path_tokens("/"), "", Headers({} if media is None else {"content-type": media}), body)
    found: list[Any] = []
    for name, value in await read_form(call, limits):
        if isinstance(value, UploadFile):
            content = await value.read()
            assert value.size == len(content)
            await value.close()
            found.append((name, (value.filename, value.content_type, content)))
        else:
            found.append((name, value))
    return found


# body, fields
URLENCODED_FORMS = [
    ("", []),
    ("a=1", [("a", "1")]),
    ("a=1&b=2&a=3", [("a", "1"), ("b", "2"), ("a", "3")]),
    ("a=x+y%20z%2B", [("a", "x y z+")]),
    ("%C3%BC=%F0%9F%8D%B5", [("ü", "🍵")]),
    ("a==1=2", [("a", "=1=2")]),
    ("a=&b", [("a", ""), ("b", "")]),
    ("=1", [("", "1")]),
    ("a=1;b=2", [("a", "1;b=2")]),
    ("a=%zz%", [("a", "%zz%")]),
    ("a=%FF", [("a", "\ufffd")]),
    ("a=%00", [("a", "\0")]),
    ("&&a=1&&", [("a", "1")]),
    ("a=ü", [("a", "ü")]),
]


@pytest.mark.parametrize("media", [URLENCODED, f"{URLENCODED}; charset=utf-8", URLENCODED.upper()])
@pytest.mark.parametrize(("body", "fields"), URLENCODED_FORMS)
async def test_urlencoded(body, fields, media):
    """An urlencoded body gives its fields in order, decoded as UTF-8."""
    assert await read(body, media) == fields


@law
@given(st.lists(st.tuples(texts, texts), max_size=6))
async def test_urlencoded_round_trip(fields):
    """What `urlencode` writes is read back, in order."""
    fields = [(name, value) for name, value in fields if name or value]
    assert await read(urlencode(fields)) == fields


FIELD = part('; name="a"', b"1")
A_FILE = part('; name="f"; filename="x.txt"', b"\0\xff\r\n--", more="Content-Type: text/plain\r\n")
END = b"--b--\r\n"

# body, fields
MULTIPART_FORMS = [
    (END, []),
    (FIELD + END, [("a", "1")]),
    (FIELD + A_FILE + FIELD + END, [("a", "1"), ("f", ("x.txt", "text/plain", b"\0\xff\r\n--")), ("a", "1")]),
    (part('; name="ü"', "größe".encode()) + END, [("ü", "größe")]),
    (part('; name="f"; filename="ü ;\'.txt"', b"1") + END, [("f", ("ü ;'.txt", None, b"1"))]),
    (part('; name="f"; filename=""') + END, [("f", ("", None, b""))]),
    (part('; name="f"; filename="a%22b"') + END, [("f", ("a%22b", None, b""))]),
    (part('; name="f"; filename="C:\\dir\\b.txt"') + END, [("f", ("b.txt", None, b""))]),
    (part("; name=bare", b"1") + END, [("bare", "1")]),
    (part('; name=""', b"1") + END, [("", "1")]),
    (part('; name="a"', b"\xff") + END, [("a", "ÿ")]),
    (part('; name="a"', b"a\r\nb\r\n") + END, [("a", "a\r\nb\r\n")]),
    (b"preamble\r\n" + FIELD + END, BadRequest),
    (FIELD + END + b"epilogue", [("a", "1")]),
    (FIELD + b"--b--", [("a", "1")]),
    (b"\r\n" + FIELD + END, [("a", "1")]),
    (part("", b"1") + END, BadRequest),
    (part('; filename="x"', b"1") + END, BadRequest),
    (b"--b\r\nX: y\r\n\r\n1\r\n" + END, BadRequest),
    (b"--b\r\nbroken line\r\n\r\n1\r\n" + END, BadRequest),
    (b"--b\r\n" + b"A: b\r\n" * 2000 + b"\r\n" + END, BadRequest),
    (b"garbage" + END, BadRequest),
    (b"garbage", BadRequest),
    (b"a=1", BadRequest),
    (part('; name="a"', b"1--b--2") + END, [("a", "1--b--2")]),
]


@pytest.mark.parametrize(("body", "fields"), MULTIPART_FORMS)
async def test_multipart(body, fields):
    """A multipart body gives its fields and files in order, or 400 if it is malformed."""
    if fields is BadRequest:
        with pytest.raises(BadRequest, match="the form cannot be read:") as caught:
            await read(body, MULTIPART)
        assert caught.value.status == 400
    else:
        assert await read(body, MULTIPART) == fields


#: A part with the closing boundary in its content, which ends no line.
TRICKY = part('; name="a"', b"1--b--2")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", FIELD, FIELD[:-2], FIELD + b"--b\r\n", FIELD + b"--b-"),
        b"--b\r\nContent-Disposition: form-data; na",
        *(TRICKY + FIELD, TRICKY + FIELD[:-2], TRICKY + b"--b\r\n"),
        FIELD + TRICKY[:-2],
    ],
)
async def test_multipart_that_is_cut_off(body):
    """A multipart body that does not end with its closing boundary is 400."""
    with pytest.raises(BadRequest, match="the form is cut off: its last boundary is not there") as caught:
        await read(body, MULTIPART)
    assert caught.value.status == 400


@law
@given(st.lists(st.tuples(texts, st.booleans(), st.binary(max_size=30)), max_size=5))
async def test_multipart_round_trip(parts):
    """Files of any bytes and fields of any text are read back, in order."""
    body, expected = b"", []
    for number, (text, is_file, content) in enumerate(parts):
        if b"\r\n--b" in b"\r\n" + content or "\r\n--b" in "\r\n" + text:
            return
        if is_file:
            body += part(f'; name="{number}"; filename="f{number}"', content)
            expected.append((str(number), (f"f{number}", None, content)))
        else:
            body += part(f'; name="{number}"', text.encode())
            expected.append((str(number), text))
    assert await read(body + END, MULTIPART) == expected


@pytest.mark.parametrize(
    "media",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=c",
        'multipart/form-data; boundary="b',
        "multipart/form-data; boundary=" + "b" * 300,
        "multipart/form-data; boundary=\xff",
        "multipart/form-data; boundary*=utf-8''b",
        "multipart/form-data; charset=undefined; boundary=b",
    ],
)
async def test_bad_boundaries(media):
    """A boundary that is missing, empty, too long or another one is 400."""
    with pytest.raises(BadRequest):
        await read(part('; name="a"', b"\xff") + END, media)


@pytest.mark.parametrize(
    "media", ['multipart/form-data; boundary="b"', "Multipart/Form-Data;boundary=b", f"{MULTIPART}; charset=nonsense"]
)
async def test_good_boundaries(media):
    """A boundary may be quoted, the type in capitals, and a charset unknown."""
    assert await read(FIELD + END, media) == [("a", "1")]


@pytest.mark.parametrize("charset", ["utf-7", "raw_unicode_escape"])
async def test_charsets_that_make_surrogates(charset, opened):
    """A charset that decodes to half of a pair, which is no Unicode, is 400, and leaves no file open."""
    content = b"+2AA-" if charset == "utf-7" else b"\\ud800"
    with pytest.raises(BadRequest, match="no text"):
        await read(A_FILE + part('; name="a"', content) + END, f"{MULTIPART}; charset={charset}")
    assert [file.closed for file in opened] == [True]


@pytest.mark.parametrize(
    "media", ["application/json", "text/plain", "multipart/mixed; boundary=b", "multipart/form-data2", "", "x", None]
)
async def test_bodies_that_are_no_forms(media):
    """A body of another type is 415 that says which types are taken."""
    with pytest.raises(UnsupportedMedia) as caught:
        await read("a=1", media)
    assert caught.value.status == 415
    assert caught.value.headers == {"accept": "multipart/form-data, application/x-www-form-urlencoded"}


async def test_no_body():
    """Nothing at all is a form without fields, and so is an empty body of a form's type."""
    assert await read("", None) == []
    assert await read("", URLENCODED) == []
    assert await read_form(Request(method="POST")) == []
    with pytest.raises(UnsupportedMedia):
        await read("", "application/json")


SMALL = FormLimits(fields=2, files=1, field_bytes=4)

# body, media type, whether it is over a limit
LIMITED = [
    ("a=1&b=2", URLENCODED, False),
    ("a=1&b=2&c=3", URLENCODED, True),
    ("a=123", URLENCODED, False),
    ("a=1234", URLENCODED, True),
    ("abcde", URLENCODED, True),
    (FIELD * 2 + END, MULTIPART, False),
    (FIELD * 3 + END, MULTIPART, True),
    (part('; name="a"', b"1234") + END, MULTIPART, False),
    (part('; name="a"', b"12345") + END, MULTIPART, True),
    (A_FILE + END, MULTIPART, False),
    (A_FILE + A_FILE + END, MULTIPART, True),
]


@pytest.mark.parametrize(("body", "media", "over"), LIMITED)
async def test_limits(body, media, over):
    """Fields, files and the bytes of a field are bounded; over a bound is 413."""
    if not over:
        assert await read(body, media, SMALL)
        return
    with pytest.raises(TooLarge) as caught:
        await read(body, media, SMALL)
    assert (caught.value.status, caught.value.detail[:25]) == (413, "the form is over a limit:")


@pytest.mark.parametrize(
    ("body", "media"),
    [
        ("&".join(["a=1"] * 1001), URLENCODED),
        ("a=" + "1" * 1024 * 1024, URLENCODED),
        (FIELD * 1001 + END, MULTIPART),
        (A_FILE * 101 + END, MULTIPART),
        (part('; name="a"', b"1" * (1024 * 1024 + 1)) + END, MULTIPART),
    ],
)
async def test_limits_of_a_service(body, media):
    """A form over the default limits is 413 at the service, with the limit in words."""
    service = Service("test")

    @service.post("/")
    async def show(a: Annotated[str, Form()], f: UploadFile | None = None) -> str:
        raise AssertionError("must not be called")

    response = await service.handle(Request(method="POST", body=body, headers={"content-type": media}))
    assert (response.status, response.parse_json()["reason"]) == (413, "too_large")
    assert FormLimits() == FORM_LIMITS


async def test_large_files():
    """A file may be larger than a field, and comes in one piece from its temporary file."""
    content = bytes(range(256)) * 16 * 1024
    body = part('; name="f"; filename="large"', content) + END
    assert await read(body, MULTIPART, FormLimits(field_bytes=1)) == [("f", ("large", None, content))]


@pytest.fixture
def opened(monkeypatch) -> list[Any]:
    """Give the list of all files that forms open."""
    files: list[Any] = []
    make = formparsers.SpooledTemporaryFile
    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", lambda **named: files.append(make(**named)) or files[-1])
    return files


@pytest.mark.parametrize("body", [A_FILE * 2 + FIELD * 3 + END, A_FILE + b"--b\r\nbroken\r\n" + END])
async def test_files_of_a_refused_form_are_closed(body, opened):
    """A form that is refused leaves no file open."""
    with pytest.raises(HTTPError):
        await read(body, MULTIPART, FormLimits(fields=2))
    assert opened
    assert all(file.closed for file in opened)


async def test_files_that_were_cut_off_are_closed(opened):
    """A form that ends inside a file is refused, and leaves no file open."""
    with pytest.raises(BadRequest, match="cut off"):
        await read(A_FILE + A_FILE[:-5], MULTIPART)
    assert [file.closed for file in opened] == [True, True]


async def test_files_are_closed_after_the_reply():
    """The files of a form are open in the handler, and closed when the reply has gone."""
    service = Service("test")
    kept: list[UploadFile] = []

    @service.post("/")
    async def show(f: UploadFile) -> str:
        kept.append(f)
        return (await f.read()).decode("latin-1")

    call = Call("POST", path_tokens("/"), "", Headers({"content-type": MULTIPART}), A_FILE + END)
    response = await service.handle(call)
    assert (response.status, kept[0].file.closed) == (200, False)
    assert call.after is not None
    await call.after.close()
    assert kept[0].file.closed


async def test_files_of_a_refused_request_are_closed():
    """Files are closed as well when another parameter is refused."""
    service = Service("test")

    @service.post("/")
    async def show(f: UploadFile, number: int) -> str:
        raise AssertionError("must not be called")

    call = Call("POST", path_tokens("/"), "", Headers({"content-type": MULTIPART}), A_FILE + END)
    assert (await service.handle(call)).status == 422
    assert call.after is not None
    await call.after.close()


def test_without_the_parser(monkeypatch):
    """A route that takes a form says at declaration what has to be installed."""
    assert has_parser()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_parser()
    with pytest.raises(DeclarationError, match=r'pip install "natsweb\[forms\]"'):

        @Service("test").post("/")
        async def show(f: UploadFile) -> None: ...
