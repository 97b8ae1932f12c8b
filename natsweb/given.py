"""What handlers get besides their request: values of types that say so themselves, one for each service.

A service does not know what they are made of. Whoever runs it connects it (`attach`), and they live from its start to
its stop. Knows types of parameters; it knows no bus.
"""

import abc
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Self

__all__ = ["Given", "Supplies", "is_given"]

logger = logging.getLogger("natsweb.service")


class Given(abc.ABC):
    """A type of parameter that the service hands over, made once for each service whose handlers take it."""

    @classmethod
    @abc.abstractmethod
    def given_to(cls, service: str, root: str) -> Self:
        """Return the one for the handlers of a service; it is not connected yet."""

    @abc.abstractmethod
    def attach(self, bus: Any, root: str) -> None:
        """Connect it; it is used below `root`."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Make it ready."""

    @abc.abstractmethod
    async def stop(self) -> None:
        """Let go of all, of the connection too, which is somebody else's."""


def is_given(kind: Any) -> bool:
    """Tell whether an annotation is a type that the service hands over."""
    return isinstance(kind, type) and issubclass(kind, Given)


class Supplies(dict[type, Any]):
    """What the service called `name` hands over, by the type of the parameter: what is in `own`, and `Given` ones."""

    def __init__(self, own: Mapping[type, Any], name: str, root: str) -> None:
        super().__init__(own)
        self._name = name
        self._root = root
        self._bus: Any = None

    def __missing__(self, kind: type) -> Any:
        if not issubclass(kind, Given):
            raise KeyError(kind)
        value = self[kind] = kind.given_to(self._name, self._root)
        if self._bus is not None:
            value.attach(self._bus, self._root)
        return value

    @property
    def _all(self) -> list[Given]:
        return [value for value in self.values() if isinstance(value, Given)]

    def attach(self, bus: Any, root: str) -> None:
        """Connect all that is there and all that will be, until `stop`; what is connected already stays so."""
        if self._bus is None:
            self._bus, self._root = bus, root
            for value in self._all:
                value.attach(bus, root)

    async def start(self, kinds: Iterable[type]) -> None:
        """Make ready what handlers take, as far as it is connected."""
        for kind in dict.fromkeys(kinds):
            value = self[kind]
            if self._bus is not None:
                await value.start()

    def report(self) -> None:
        """Log what is not connected: it fails when it is used."""
        for value in self._all if self._bus is None else ():
            logger.warning(
                "handlers of %s take a %s, and nothing connects it to NATS here: what they do with it will fail",
                self._name,
                type(value).__name__,
            )

    async def stop(self) -> None:
        """Let go of all, and of the connection."""
        self._bus = None
        for value in self._all:
            await value.stop()
