"""natsweb: HTTP on the front, NATS on the back, for Python.

The public names, loaded on first use so that the command line is quick to answer.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from natsweb.errors import HTTPError as HTTPError
    from natsweb.gateway import Gateway as Gateway
    from natsweb.headers import Headers as Headers
    from natsweb.messages import Request as Request
    from natsweb.messages import Response as Response
    from natsweb.service import Service as Service
    from natsweb.settings import Limits as Limits
    from natsweb.settings import Nats as Nats

_HOMES = {
    "Gateway": "gateway",
    "HTTPError": "errors",
    "Headers": "headers",
    "Limits": "settings",
    "Nats": "settings",
    "Request": "messages",
    "Response": "messages",
    "Service": "service",
}

__all__ = [
    "Gateway",
    "HTTPError",
    "Headers",
    "Limits",
    "Nats",
    "Request",
    "Response",
    "Service",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'natsweb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"natsweb.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
