"""Files as answers, through a service: conditions, ranges, names, roots, sizes (RFC 9110 sections 13 and 14)."""

import asyncio
import os
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Annotated, Any

import pytest

from natsweb import FileResponse, Request, Response, Service
from natsweb.files import _running
from natsweb.params import Header, Query
from natsweb.replies import Deferred

CONTENT = b"0123456789"
MODIFIED = 1_700_000_000
Ask = Callable[..., Any]


def bug(reason: str) -> Any:
    """Mark a case that natsweb gets wrong, with what it does instead."""
    return pytest.mark.xfail(strict=True, reason=reason)


@pytest.fixture
def root(tmp_path) -> Path:
    """Give a folder with a file, a subfolder, an empty file, links inside and outside, a loop and a pipe."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root-sibling").write_text("secret")
    (root / "a.txt").write_bytes(CONTENT)
    os.utime(root / "a.txt", (MODIFIED, MODIFIED))
    (root / "sub" / "ü b.json").write_text("{}")
    (root / "empty").touch()
    (root / "unknown.zzz").write_bytes(b"\0")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "a.txt")
    (root / "loop").symlink_to(root / "loop")
    (root / "nowhere").symlink_to(root / "missing")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def ask(root) -> Ask:
    """Give a function that asks a service of files: `await ask("/f/a.txt", "HEAD", range="bytes=0-")`."""
    service = Service("files")

    @service.get("/f/<path:path>")
    async def below(path: str) -> FileResponse:
        return FileResponse(path, root=root)

    @service.post("/f/<path:path>")
    def posted(path: str) -> FileResponse:
        return FileResponse(path, root=root)

    @service.get("/absolute")
    def absolute(path: str) -> Response:
        return FileResponse(path)

    @service.get("/named")
    async def named(name: Annotated[str | None, Query()] = None, x_type: Annotated[str | None, Header()] = None) -> Any:
        return FileResponse(root / "a.txt", filename=name, media_type=x_type, headers={"cache-control": "no-cache"})

    async def send(raw_path: str, method: str = "GET", query: str = "", **headers: str | list[str]) -> Response:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return await service.handle(Request(method=method, raw_path=raw_path, query=query, headers=fields))

    return send


async def test_the_whole_file(ask):
    """A file comes with its type, length, validators, and the word that ranges work."""
    response = await ask("/f/a.txt")
    assert (response.status, response.body) == (200, CONTENT)
    assert dict(response.headers.without("etag")) == {
        "content-type": "text/plain; charset=utf-8",
        "accept-ranges": "bytes",
        "content-length": "10",
        "last-modified": formatdate(MODIFIED, usegmt=True),
    }
    assert response.headers["etag"].startswith('"')


@pytest.mark.parametrize(
    ("path", "media", "body"),
    [
        ("a.txt", "text/plain; charset=utf-8", CONTENT),
        ("in", "text/plain; charset=utf-8", CONTENT),
        ("sub/%C3%BC%20b.json", "application/json", b"{}"),
        ("empty", "application/octet-stream", b""),
        ("unknown.zzz", "application/octet-stream", b"\0"),
        ("sub//%C3%BC%20b.json", "application/json", b"{}"),
    ],
)
async def test_types(ask, path, media, body):
    """The content type is guessed from the name, of a link from the name of what it leads to."""
    response = await ask(f"/f/{path}")
    assert (response.status, response.headers["content-type"], response.body) == (200, media, body)
    assert response.headers["content-length"] == str(len(body))


@pytest.mark.parametrize(
    "path",
    [
        *("missing", "nowhere", "sub", "sub/", "", "pipe", "a.txt/x", "a" * 300, "a/" * 3000),
        *("out", "up/secret", "%2Fetc%2Fpasswd", "/etc/passwd", "//etc/passwd"),
        *("%00", "a.txt%00", "a.txt%0A", "~", "C:%5Cx"),
        "loop",
    ],
)
async def test_what_is_no_file(ask, path):
    """What is missing, no regular file, or outside of the root is 404 and tells nothing more."""
    response = await ask(f"/f/{path}")
    assert (response.status, response.parse_json()["reason"]) == (404, "no_file")
    assert "secret" not in response.text


@pytest.mark.parametrize(
    "path", ["../secret", "sub/../../secret", "../root-sibling", "..", "/..", "./../secret", "sub/../../root/../secret"]
)
async def test_climbing_out(root, path):
    """A handler's own path that climbs out of the root is 404, wherever it came from."""
    service = Service("files")

    @service.get("/")
    async def show(path: str) -> FileResponse:
        return FileResponse(path, root=root)

    response = await service.handle(Request(query=f"path={path}"))
    assert (response.status, response.parse_json()["reason"]) == (404, "no_file")


async def test_inside_again(root):
    """A path may go up as long as it stays inside, and a link may lead to another file inside."""
    service = Service("files")

    @service.get("/")
    async def show(path: str) -> FileResponse:
        return FileResponse(path, root=str(root))

    for path in ("sub/../a.txt", "in", str(root / "a.txt")[len(str(root)) :], "up/root/a.txt"):
        assert (await service.handle(Request(query=f"path={path}"))).body == CONTENT


async def test_a_root_that_is_missing(tmp_path):
    """Below a folder that does not exist there is no file."""
    service = Service("files")

    @service.get("/")
    async def show() -> FileResponse:
        return FileResponse("a.txt", root=tmp_path / "missing")

    assert (await service.handle(Request())).status == 404


async def test_without_a_root(ask, root):
    """Without a root any file is served, and what is none is 404."""
    assert (await ask("/absolute", query=f"path={root}/a.txt")).body == CONTENT
    for path in (root, root / "missing", root / "loop", "%00", "", root / "pipe"):
        assert (await ask("/absolute", query=f"path={path}")).status == 404


# ── names, types and headers of one's own ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "disposition"),
    [
        ("a.txt", 'attachment; filename="a.txt"'),
        ("a%20b", "attachment; filename*=utf-8''a%20b"),
        ("a%22b", "attachment; filename*=utf-8''a%22b"),
        ("%C3%BC.txt", "attachment; filename*=utf-8''%C3%BC.txt"),
        ("%E2%82%AC;=,", "attachment; filename*=utf-8''%E2%82%AC%3B%3D%2C"),
        ("x%0D%0Aset-cookie:y", "attachment; filename*=utf-8''x%0D%0Aset-cookie%3Ay"),
        ("%2541", "attachment; filename*=utf-8''%2541"),
        ("%5C", "attachment; filename*=utf-8''%5C"),
    ],
)
async def test_downloads(ask, name, disposition):
    """A name makes the file a download; quotes, line ends and other alphabets are escaped (RFC 8187)."""
    response = await ask("/named", query=f"name={name}")
    assert (response.status, response.headers["content-disposition"]) == (200, disposition)
    assert "set-cookie" not in response.headers


async def test_own_headers(ask):
    """Own headers and an own type are those of the answer, and of 304 where it has them."""
    response = await ask("/named", x_type="image/png")
    assert (response.headers["content-type"], response.headers["cache-control"]) == ("image/png", "no-cache")
    assert "content-disposition" not in response.headers
    response = await ask("/named", if_none_match=response.headers["etag"])
    assert (response.status, response.headers["cache-control"]) == (304, "no-cache")


async def test_repeated_headers(root):
    """A header that is given twice is sent twice, with 304 those that it has."""
    service = Service("files")

    @service.get("/")
    async def show() -> FileResponse:
        return FileResponse(root / "a.txt", headers=[("link", "</a>"), ("link", "</b>"), ("vary", "a"), ("vary", "b")])

    response = await service.handle(Request())
    assert response.headers.getlist("link") == ["</a>", "</b>"]
    response = await service.handle(Request(headers={"if-none-match": response.headers["etag"]}))
    assert (response.status, response.headers.getlist("vary"), "link" in response.headers) == (304, ["a", "b"], False)


# ── conditions ───────────────────────────────────────────────────────────────────────────────────

OLD, NOW, NEW = (formatdate(MODIFIED + seconds, usegmt=True) for seconds in (-1, 0, 1))

# headers with {etag}, status
CONDITIONS = [
    ({"if_none_match": "{etag}"}, 304),
    ({"if_none_match": "W/{etag}"}, 304),
    ({"if_none_match": '"x", {etag}'}, 304),
    ({"if_none_match": '"x",W/{etag} , "y"'}, 304),
    ({"if_none_match": "*"}, 304),
    ({"if_none_match": " * "}, 304),
    ({"if_none_match": '"x"'}, 200),
    ({"if_none_match": "garbage"}, 200),
    ({"if_none_match": '"x"', "if_modified_since": NEW}, 200),
    ({"if_none_match": "{etag}", "if_modified_since": OLD}, 304),
    ({"if_modified_since": NOW}, 304),
    ({"if_modified_since": NEW}, 304),
    ({"if_modified_since": OLD}, 200),
    ({"if_modified_since": "yesterday"}, 200),
    ({"if_modified_since": ""}, 200),
    ({"if_none_match": "{etag}", "range": "bytes=0-3"}, 304),
    ({"if_modified_since": NEW, "range": "bytes=0-3"}, 304),
    ({"if_none_match": ['"x"', "{etag}"]}, 304),
    ({"if_none_match": ['"x"', '"y"']}, 200),
]


def filled(headers: dict[str, Any], etag: str) -> dict[str, Any]:
    """Return headers with the ETag in its place."""
    return {
        name: [one.replace("{etag}", etag) for one in value]
        if isinstance(value, list)
        else value.replace("{etag}", etag)
        for name, value in headers.items()
    }


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("headers", "status"), CONDITIONS)
async def test_conditions(ask, method, headers, status):
    """A file that the caller has already is 304, with its ETag and without a body (RFC 9110 section 13.2.2)."""
    etag = (await ask("/f/a.txt")).headers["etag"]
    response = await ask("/f/a.txt", method, **filled(headers, etag))
    assert (response.status, response.headers["etag"]) == (status, etag)
    assert response.body == (CONTENT if (status, method) == (200, "GET") else b"")


async def test_conditions_are_for_reading(ask):
    """The answer to a POST is never 304, and never a part."""
    etag = (await ask("/f/a.txt")).headers["etag"]
    for headers in ({"if_none_match": etag}, {"if_modified_since": NEW}, {"range": "bytes=0-3"}):
        response = await ask("/f/a.txt", "POST", **headers)
        assert (response.status, response.body) == (200, CONTENT)


async def test_the_etag_follows_the_file(ask, root):
    """A file that has changed has another ETag."""
    before = (await ask("/f/a.txt")).headers["etag"]
    (root / "a.txt").write_bytes(CONTENT[::-1] + b"!")
    response = await ask("/f/a.txt", if_none_match=before)
    assert (response.status, response.body) == (200, CONTENT[::-1] + b"!")
    assert response.headers["etag"] != before


# ── ranges ───────────────────────────────────────────────────────────────────────────────────────

# range, content-range, body
RANGES = [
    ("bytes=0-3", "0-3", b"0123"),
    ("bytes=2-", "2-9", b"23456789"),
    ("bytes=-3", "7-9", b"789"),
    ("bytes=-99", "0-9", CONTENT),
    ("bytes=9-9", "9-9", b"9"),
    ("bytes=0-99", "0-9", CONTENT),
    ("BYTES=0-1", "0-1", b"01"),
    ("bytes=0-3, 2-5", "0-5", b"012345"),
    ("bytes=4-5,0-3", "0-5", b"012345"),
]


@pytest.mark.parametrize(("asked", "given", "body"), RANGES)
async def test_ranges(ask, asked, given, body):
    """One range is 206 with its place; HEAD knows no ranges (RFC 9110 section 14.2)."""
    response = await ask("/f/a.txt", range=asked)
    assert (response.status, response.body) == (206, body)
    assert response.headers["content-range"] == f"bytes {given}/10"
    assert response.headers["content-length"] == str(len(body))
    head = await ask("/f/a.txt", "HEAD", range=asked)
    assert (head.status, head.headers["content-length"], head.body) == (200, "10", b"")


async def test_several_ranges(ask):
    """Several ranges are multipart/byteranges of exactly the announced length (RFC 9110 section 14.6)."""
    response = await ask("/f/a.txt", range="bytes=0-1,5-6,-1")
    kind, _, boundary = response.headers["content-type"].partition("; boundary=")
    assert (response.status, kind) == (206, "multipart/byteranges")
    assert response.headers["content-length"] == str(len(response.body))
    parts = response.body.split(f"--{boundary}".encode())
    found = [piece.partition(b"\r\n\r\n") for piece in parts[1:-1]]
    assert [body for _, _, body in found] == [b"01\r\n", b"56\r\n", b"9\r\n"]
    places = [b"Content-Range: bytes %b/10" % place for place in (b"0-1", b"5-6", b"9-9")]
    assert [head.split(b"\r\n")[-1] for head, _, _ in found] == places
    assert parts[-1] == b"--"


# range, status
BAD_RANGES = [
    ("bytes=10-", 416),
    ("bytes=20-30", 416),
    ("bytes=-0", 416),
    ("bytes=5-2", 400),
    ("bytes=abc", 400),
    ("bytes=", 400),
    ("bytes=-", 400),
    ("bytes", 400),
    ("bytes=0-" + "9" * 5000, 400),
    ("bytes=" + ",".join(["0-0"] * 101), 200),
    ("lines=0-3", 200),
    ("bytes=lines=0-3", 400),
    pytest.param("bytes=0-1,20-30", 206, marks=bug("416, though the file has one of the ranges (section 15.5.17)")),
]


@pytest.mark.parametrize(("asked", "status"), BAD_RANGES)
async def test_bad_ranges(ask, asked, status):
    """A range outside of the file is 416 with its size, a malformed one 400; too many, or of no bytes, count not."""
    response = await ask("/f/a.txt", range=asked)
    assert response.status == status
    place = {416: "bytes */10", 206: "bytes 0-1/10"}.get(status)
    assert response.headers.get("content-range") == place
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.parse_json()["reason"] == "bad_range"


async def test_ranges_of_an_empty_file(ask):
    """An empty file has no bytes to give a range of."""
    response = await ask("/f/empty", range="bytes=0-")
    assert (response.status, response.headers["content-range"]) == (416, "bytes */0")


@pytest.mark.parametrize(
    ("if_range", "status"),
    [("{etag}", 206), (NOW, 206), ("W/{etag}", 200), ('"x"', 200), (OLD, 200), (NEW, 200), ("garbage", 200)],
)
async def test_if_range(ask, if_range, status):
    """A range counts only if the file is the very one that the caller has a part of (RFC 9110 section 13.1.5)."""
    etag = (await ask("/f/a.txt")).headers["etag"]
    response = await ask("/f/a.txt", range="bytes=0-3", **filled({"if_range": if_range}, etag))
    assert (response.status, response.body) == (status, CONTENT[:4] if status == 206 else CONTENT)


async def test_head(ask):
    """HEAD has the fields of GET and no body."""
    got, head = await ask("/f/a.txt"), await ask("/f/a.txt", "HEAD")
    assert (head.status, head.headers, head.body) == (200, got.headers, b"")


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────

PIECE = 64 * 1024
LARGE = 1024 * PIECE + 1


@pytest.fixture
def large(root) -> Path:
    """Give a file of one byte more than a NATS message may have, which takes no room on the disk."""
    path = root / "large"
    with path.open("wb") as file:
        file.truncate(LARGE)
    return path


async def sizes_of(response: Response) -> list[int]:
    """Return the sizes of the pieces of a streamed response, which are all zeros; the file is closed then."""
    assert response.pieces is not None
    sizes = [len(piece) async for piece in response.pieces.source]
    await closed()
    return sizes


async def closed() -> None:
    """Wait until no file is open any more."""
    if running := list(_running):
        await asyncio.wait([one.task for one in running])


async def test_a_large_file_is_streamed(ask, large):
    """A file larger than a NATS message comes in pieces of 64 KiB, with its length; ranges of it as well."""
    response = await ask("/f/large")
    assert (response.status, response.headers["content-length"]) == (200, str(LARGE))
    assert await sizes_of(response) == [PIECE] * 1024 + [1]
    part = await ask("/f/large", range="bytes=1-")
    assert (part.status, part.headers["content-length"]) == (206, str(LARGE - 1))
    assert await sizes_of(part) == [PIECE] * 1024
    several = await ask("/f/large", range=f"bytes=0-{PIECE},{LARGE - 1}-")
    assert several.status == 206
    assert sum(await sizes_of(several)) == int(several.headers["content-length"])


async def test_what_a_large_file_does_not_stream(ask, large):
    """HEAD, 304 and a short range of a large file are plain responses."""
    head = await ask("/f/large", "HEAD")
    assert (head.status, head.headers["content-length"], head.pieces) == (200, str(LARGE), None)
    part = await ask("/f/large", range=f"bytes={LARGE - 2}-")
    assert (part.status, part.body) == (206, b"\0\0")
    assert (await ask("/f/large", if_none_match=head.headers["etag"])).status == 304


@pytest.mark.parametrize(("size", "is_streamed"), [(PIECE - 1, False), (PIECE, False), (PIECE + 1, True)])
async def test_up_to_which_size_a_file_is_plain(ask, root, size, is_streamed):
    """A file of up to 64 KiB is a plain response, also one of exactly that size."""
    (root / "some").write_bytes(b"x" * size)
    response = await ask("/f/some")
    assert (response.pieces is not None, response.headers["content-length"]) == (is_streamed, str(size))
    if is_streamed:
        assert await sizes_of(response) == [PIECE, 1]
    else:
        assert response.body == b"x" * size


async def test_a_large_file_that_nobody_reads_to_its_end(ask, large):
    """Closing the pieces closes the file, whether any was read or not."""
    for count in (0, 2):
        response = await ask("/f/large")
        for _ in range(count):
            await anext(response.pieces.source)
        await response.pieces.close()
        await closed()
        assert not _running


async def test_a_file_that_shrinks_while_it_is_sent(ask, large):
    """A file that is shorter than it was said to be cuts the stream off."""
    response = await ask("/f/large")
    await anext(response.pieces.source)
    os.truncate(large, PIECE)
    with pytest.raises(RuntimeError, match="shorter than its content-length"):
        await sizes_of(response)
    await closed()


# ── as a value ───────────────────────────────────────────────────────────────────────────────────


def test_a_file_response_as_a_value():
    """A file response is deferred, and shows its path."""
    response = FileResponse("a/b.txt", root="r", headers={"A": "1"})
    assert isinstance(response, Deferred)
    assert repr(response) == "FileResponse('a/b.txt')"
    assert (response.path, response.root, response.headers["a"]) == (Path("a/b.txt"), Path("r"), "1")
    with pytest.raises(ValueError, match="control character"):
        FileResponse("a", headers={"a": "x\r\ny"})


async def test_rendered_directly(root):
    """`render` gives the response without a service."""
    response = await FileResponse(root / "a.txt").render(Request(headers={"range": "bytes=1-2"}))
    assert (response.status, response.body) == (206, b"12")
