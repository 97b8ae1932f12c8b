"""Shop: a router, a database session that commits or rolls back, keys for those who may write, and photos.

Run it with `natsweb dev examples/shop/shop.py`. README.md beside it has requests to try.
"""

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from pydantic import BaseModel, Field

from natsweb import (
    ApiKey,
    Auth,
    Created,
    Depends,
    FileResponse,
    HTTPError,
    Partial,
    Query,
    Request,
    Router,
    Service,
    UploadFile,
)

svc = Service("shop", version="1.0.0")
products = Router("/products", tags=["products"])

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, cents INTEGER NOT NULL)"
)
PHOTOS = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


class NewProduct(BaseModel):
    """What a shopkeeper sends."""

    name: str = Field(min_length=1, max_length=100)
    cents: int = Field(ge=0)


class Product(NewProduct):
    """What the shop sells."""

    id: int


class Page(BaseModel, extra="forbid"):
    """Which products to list."""

    limit: int = Field(default=20, ge=1, le=100)
    after: int = 0


# ── who may write ──

SHOPKEEPER = hashlib.sha256(os.environ.get("SHOP_KEY", "sesame").encode()).hexdigest()


def whose(key: str) -> str | None:
    """Return who has a key; only its hash is compared."""
    return {SHOPKEEPER: "shopkeeper"}.get(hashlib.sha256(key.encode()).hexdigest())


Shopkeeper = Auth(ApiKey(whose, header="x-api-key"))


# ── where things are kept ──


def folder() -> Iterator[Path]:
    """Give the folder of database and photos as long as the service runs: SHOP_DATA, or one that goes away with it."""
    with TemporaryDirectory(prefix="shop-") as temporary:
        data = Path(os.environ.get("SHOP_DATA", temporary))
        (data / "photos").mkdir(parents=True, exist_ok=True)
        yield data


Folder = Annotated[Path, Depends(folder, scope="app")]


def session(folder: Folder) -> Iterator[sqlite3.Connection]:
    """Give a session that is committed when the handler has returned, and rolled back if it has raised."""
    connection = sqlite3.connect(folder / "shop.db", check_same_thread=False)
    try:
        connection.execute(SCHEMA)
        yield connection
        connection.commit()
    finally:
        connection.close()


# Closed before the reply goes: nobody hears of a product that was not committed.
Session = Annotated[sqlite3.Connection, Depends(session, scope="handler")]


@svc.on_error(sqlite3.IntegrityError)
def taken(request: Request, error: sqlite3.IntegrityError) -> HTTPError:
    """Answer 409 for a name that another product has."""
    return HTTPError(409, "another product has this name", reason="name_taken")


def find(session: sqlite3.Connection, id: int) -> Product:
    """Return a product, or answer 404."""
    row = session.execute("SELECT id, name, cents FROM products WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise HTTPError(404, f"no product {id}", reason="no_product")
    return Product(id=row[0], name=row[1], cents=row[2])


# ── handlers: plain functions, since sqlite3 and files block ──


@products.get("")
def index(session: Session, page: Annotated[Page, Query()]) -> list[Product]:
    """List products by their number."""
    rows = session.execute(
        "SELECT id, name, cents FROM products WHERE id > ? ORDER BY id LIMIT ?", (page.after, page.limit)
    )
    return [Product(id=id, name=name, cents=cents) for id, name, cents in rows]


@products.get("/<id>")
def show(session: Session, id: int) -> Product:
    """Show one product."""
    return find(session, id)


@products.post("", depends=[Shopkeeper])
def create(session: Session, product: NewProduct) -> Created[Product]:
    """Take a product in."""
    cursor = session.execute("INSERT INTO products (name, cents) VALUES (?, ?)", (product.name, product.cents))
    made = Product(id=cursor.lastrowid or 0, **product.model_dump())
    return Created(made, location=svc.url_for("show", id=made.id))


@products.patch("/<id>", depends=[Shopkeeper])
def change(session: Session, id: int, patch: Partial[NewProduct]) -> Product:
    """Change what was sent."""
    new = patch.apply(NewProduct(**find(session, id).model_dump(exclude={"id"})))
    session.execute("UPDATE products SET name = ?, cents = ? WHERE id = ?", (new.name, new.cents, id))
    return Product(id=id, **new.model_dump())


@products.put("/<id>/photo", depends=[Shopkeeper], status=204)
def put_photo(session: Session, folder: Folder, id: int, photo: UploadFile) -> None:
    """Keep a photo of a product."""
    find(session, id)
    if photo.content_type not in PHOTOS:
        raise HTTPError(415, f"a photo is one of {', '.join(PHOTOS)}", reason="no_photo")
    new = folder / "photos" / f"{id}.new"
    with new.open("wb") as file:
        shutil.copyfileobj(photo.file, file)
    for suffix in PHOTOS.values():
        (folder / "photos" / f"{id}{suffix}").unlink(missing_ok=True)
    new.rename(folder / "photos" / f"{id}{PHOTOS[photo.content_type]}")


@products.get("/<id>/photo")
def show_photo(folder: Folder, id: int) -> FileResponse:
    """Show the photo of a product."""
    for suffix in PHOTOS.values():
        if (found := folder / "photos" / f"{id}{suffix}").exists():
            return FileResponse(found, headers={"x-content-type-options": "nosniff"})
    raise HTTPError(404, f"no photo of product {id}", reason="no_photo")


svc.include(products)
