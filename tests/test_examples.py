"""The examples: each does what its README says, in memory."""

import importlib.util
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from natsweb import Request, Response

EXAMPLES = Path(__file__).parent.parent / "examples"
KEY = {"x-api-key": "sesame"}
JSON = {"content-type": "application/json"}
PHOTO = (
    b"--line\r\n"
    b'Content-Disposition: form-data; name="photo"; filename="cat.png"\r\n'
    b"Content-Type: image/png\r\n\r\n"
    b"a cat\r\n"
    b"--line--\r\n"
)


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the shop, with its data in a folder of the test."""
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))
    module = load("shop/shop.py")
    async with module.svc:
        yield module


def load(name: str) -> ModuleType:
    """Return an example as a module of its own."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(shop: ModuleType, line: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
    """Return the shop's answer to `POST /products?x=1`."""
    method, target = line.split(" ")
    path, _, query = target.partition("?")
    return await shop.svc.handle(Request(method=method, raw_path=path, query=query, headers=headers or {}, body=body))


async def test_the_shop_keeps_products(shop):
    """Products are created, shown, changed and listed."""
    made = await ask(shop, "POST /products", KEY | JSON, b'{"name": "tea", "cents": 350}')
    assert (made.status, made.headers["location"]) == (201, "/products/1")
    assert (await ask(shop, f"GET {made.headers['location']}")).parse_json() == made.parse_json()
    changed = await ask(shop, "PATCH /products/1", KEY | JSON, b'{"cents": 400}')
    assert changed.parse_json() == {"name": "tea", "cents": 400, "id": 1}
    assert (await ask(shop, "GET /products?limit=5")).parse_json() == [changed.parse_json()]
    assert (await ask(shop, "GET /products?limmit=5")).status == 422
    assert (await ask(shop, "GET /products/2")).parse_json()["reason"] == "no_product"


async def test_the_shop_wants_a_key(shop):
    """Who writes without a key gets a 401, whatever was sent, and nothing is written."""
    assert (await ask(shop, "POST /products", JSON, b"{}")).status == 401
    assert (await ask(shop, "POST /products", {"x-api-key": "open"} | JSON, b"{}")).status == 401
    assert (await ask(shop, "GET /products")).parse_json() == []


async def test_the_shop_rolls_back(shop, monkeypatch):
    """A taken name is a 409; what a handler wrote before it failed is not there, and neither is an open session."""
    body = b'{"name": "tea", "cents": 350}'
    await ask(shop, "POST /products", KEY | JSON, body)
    again = await ask(shop, "POST /products", KEY | JSON, body)
    assert (again.status, again.parse_json()["reason"]) == (409, "name_taken")

    sessions = []
    find = shop.find

    def fail(session: sqlite3.Connection, id: int):
        sessions.append(session)
        session.execute("DELETE FROM products")
        return find(session, id)

    monkeypatch.setattr(shop, "find", fail)
    assert (await ask(shop, "GET /products/1")).status == 404
    assert [one["name"] for one in (await ask(shop, "GET /products")).parse_json()] == ["tea"]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        sessions[0].execute("SELECT 1")


async def test_the_shop_shows_photos(shop):
    """An uploaded photo comes back as it was; other files, and photos of nothing, are refused."""
    await ask(shop, "POST /products", KEY | JSON, b'{"name": "tea", "cents": 350}')
    form = KEY | {"content-type": "multipart/form-data; boundary=line"}
    assert (await ask(shop, "GET /products/1/photo")).status == 404
    assert (await ask(shop, "PUT /products/1/photo", form, PHOTO)).status == 204
    shown = await ask(shop, "GET /products/1/photo")
    assert (shown.body, shown.headers["content-type"]) == (b"a cat", "image/png")
    assert (await ask(shop, "GET /products/1/photo", {"if-none-match": shown.headers["etag"]})).status == 304
    assert (await ask(shop, "PUT /products/1/photo", form, PHOTO.replace(b"image/png", b"text/html"))).status == 415
    assert (await ask(shop, "PUT /products/2/photo", form, PHOTO)).status == 404


async def test_the_shop_keeps_one_folder(shop, tmp_path):
    """Database and photos are where SHOP_DATA says."""
    await ask(shop, "POST /products", KEY | JSON, b'{"name": "tea", "cents": 350}')
    assert sorted(one.name for one in tmp_path.iterdir()) == ["photos", "shop.db"]
