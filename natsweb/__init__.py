"""natsweb: HTTP on the front, NATS on the back, for Python.

The public names, loaded on first use so that the command line is quick to answer.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from natsweb.client import Client as Client
    from natsweb.errors import HTTPError as HTTPError
    from natsweb.errors import WebSocketClosed as WebSocketClosed
    from natsweb.events import Publisher as Publisher
    from natsweb.feeds import Event as Event
    from natsweb.files import FileResponse as FileResponse
    from natsweb.gateway import Gateway as Gateway
    from natsweb.gateway import echo as echo
    from natsweb.headers import Headers as Headers
    from natsweb.messages import Request as Request
    from natsweb.messages import Response as Response
    from natsweb.messages import StreamingResponse as StreamingResponse
    from natsweb.middleware import Handler as Handler
    from natsweb.middleware import Middleware as Middleware
    from natsweb.params import Body as Body
    from natsweb.params import Cookie as Cookie
    from natsweb.params import Depends as Depends
    from natsweb.params import File as File
    from natsweb.params import Form as Form
    from natsweb.params import Header as Header
    from natsweb.params import Partial as Partial
    from natsweb.params import Path as Path
    from natsweb.params import Query as Query
    from natsweb.params import UploadFile as UploadFile
    from natsweb.replies import Created as Created
    from natsweb.replies import Reply as Reply
    from natsweb.replies import redirect as redirect
    from natsweb.routers import Router as Router
    from natsweb.routers import delete as delete
    from natsweb.routers import get as get
    from natsweb.routers import head as head
    from natsweb.routers import on as on
    from natsweb.routers import options as options
    from natsweb.routers import patch as patch
    from natsweb.routers import post as post
    from natsweb.routers import put as put
    from natsweb.routers import route as route
    from natsweb.routers import websocket as websocket
    from natsweb.rules import Rules as Rules
    from natsweb.scopes import Background as Background
    from natsweb.security import OIDC as OIDC
    from natsweb.security import ApiKey as ApiKey
    from natsweb.security import Auth as Auth
    from natsweb.security import Basic as Basic
    from natsweb.security import Bearer as Bearer
    from natsweb.security import Credentials as Credentials
    from natsweb.service import Service as Service
    from natsweb.serving import serve as serve
    from natsweb.settings import Limits as Limits
    from natsweb.settings import Nats as Nats
    from natsweb.sockets import WebSocket as WebSocket
    from natsweb.transport import NatsTransport as NatsTransport

_HOMES = {
    "OIDC": "security",
    "ApiKey": "security",
    "Auth": "security",
    "Background": "scopes",
    "Basic": "security",
    "Bearer": "security",
    "Body": "params",
    "Client": "client",
    "Cookie": "params",
    "Created": "replies",
    "Credentials": "security",
    "Depends": "params",
    "Event": "feeds",
    "File": "params",
    "FileResponse": "files",
    "Form": "params",
    "Gateway": "gateway",
    "HTTPError": "errors",
    "Handler": "middleware",
    "Header": "params",
    "Headers": "headers",
    "Limits": "settings",
    "Middleware": "middleware",
    "Nats": "settings",
    "NatsTransport": "transport",
    "Partial": "params",
    "Path": "params",
    "Publisher": "events",
    "Query": "params",
    "Reply": "replies",
    "Request": "messages",
    "Response": "messages",
    "Router": "routers",
    "Rules": "rules",
    "Service": "service",
    "StreamingResponse": "messages",
    "UploadFile": "params",
    "WebSocket": "sockets",
    "WebSocketClosed": "errors",
    "delete": "routers",
    "echo": "gateway",
    "get": "routers",
    "head": "routers",
    "on": "routers",
    "options": "routers",
    "patch": "routers",
    "post": "routers",
    "put": "routers",
    "redirect": "replies",
    "route": "routers",
    "serve": "serving",
    "websocket": "routers",
}

__all__ = [
    "OIDC",
    "ApiKey",
    "Auth",
    "Background",
    "Basic",
    "Bearer",
    "Body",
    "Client",
    "Cookie",
    "Created",
    "Credentials",
    "Depends",
    "Event",
    "File",
    "FileResponse",
    "Form",
    "Gateway",
    "HTTPError",
    "Handler",
    "Header",
    "Headers",
    "Limits",
    "Middleware",
    "Nats",
    "NatsTransport",
    "Partial",
    "Path",
    "Publisher",
    "Query",
    "Reply",
    "Request",
    "Response",
    "Router",
    "Rules",
    "Service",
    "StreamingResponse",
    "UploadFile",
    "WebSocket",
    "WebSocketClosed",
    "__version__",
    "delete",
    "echo",
    "get",
    "head",
    "on",
    "options",
    "patch",
    "post",
    "put",
    "redirect",
    "route",
    "serve",
    "websocket",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'natsweb' has no attribute {name!r}")
    return getattr(importlib.import_module(f"natsweb.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
