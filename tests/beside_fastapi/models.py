"""What both services talk about, and the words that they write down while they work."""

import enum
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

REPORT = Path(__file__).with_name("report.txt")


class Colour(enum.Enum):
    """An enum of words."""

    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    """An enum of numbers."""

    LOW = 1
    HIGH = 2


class Address(BaseModel):
    """A model inside of a model."""

    street: str
    zip: str | None = None


class Line(BaseModel):
    """A model inside of a list."""

    item: str = Field(min_length=1)
    quantity: int = Field(default=1, ge=1)


class NewOrder(BaseModel):
    """What a client sends to order."""

    customer: str
    lines: list[Line] = []
    address: Address | None = None
    price: float = 0.0
    gift: bool = False
    colour: Colour = Colour.RED


class Order(NewOrder):
    """What the service knows."""

    id: int


class Page(BaseModel):
    """A model of query parameters that takes no others."""

    model_config = ConfigDict(extra="forbid")

    number: int = Field(default=1, ge=1)
    size: int = 10
    sort: list[Literal["name", "price"]] = []


class Shapes(BaseModel):
    """A model of query parameters with names of their own."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    start: int = Field(alias="from")
    end: int | None = Field(default=None, validation_alias="to", serialization_alias="until")
    level: Level = Level.LOW
    colours: set[Colour] = set()
    flag: bool = False
    kind: str = Field(default="-", validation_alias=AliasChoices("kind", "sort"))


class Traces(BaseModel):
    """A model of headers."""

    x_trace: str
    x_count: int | None = None
    x_many: list[str] = []


class Login(BaseModel):
    """A model of form fields."""

    username: str
    password: str = Field(min_length=3)
    remember: bool = False


class Public(BaseModel):
    """What of a user may be seen."""

    name: str


class Private(Public):
    """What of a user may not."""

    password: str


class OutOfStock(Exception):
    """An error of the domain."""


def stored(id: int) -> Order | None:
    """Return the one order that there is."""
    if id != 7:
        return None
    return Order(id=7, customer="Zoë", lines=[Line(item="tea", quantity=2)], address=Address(street="Main"), price=3.5)


USERS = {
    "anna": {"name": "anna", "scopes": ["read", "admin"]},
    "bert": {"name": "bert", "scopes": ["read"]},
}
