"""WebSockets as handlers see them: messages of a type, both ways.

`WebSocket[In, Out]` validates what comes and serialises what goes, as bodies are: text and bytes go as they are, all
else is JSON. Knows types and messages; how they travel is `pipes`' business.
"""

from collections.abc import Callable
from typing import Annotated, Any, Generic, NamedTuple, Self, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from typing_extensions import TypeVar

from natsweb.annotations import Place, adapter_of, strip
from natsweb.errors import InvalidInput, UpgradeRequired, WebSocketClosed
from natsweb.headers import HeaderSource
from natsweb.messages import Socket
from natsweb.params import field_errors

__all__ = ["SocketType", "WebSocket", "socket_type"]

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=In)


class SocketType(NamedTuple):
    """The two types of a WebSocket parameter: how a message is read, and how one is written."""

    read: Callable[[str | bytes], Any]
    write: Callable[[Any], str | bytes]

    def wrap(self, socket: Socket | None) -> "WebSocket[Any, Any]":
        """Return what a handler gets; raises `UpgradeRequired` where there is no WebSocket."""
        if socket is None:
            raise UpgradeRequired("this path takes a WebSocket")
        return WebSocket(socket, self)


class WebSocket(Generic[In, Out]):
    """A WebSocket in a handler: `async for message in ws: await ws.send(...)`.

    It is accepted by the first `receive` or `send`, or by `accept`, which takes a subprotocol; a handler that raises an
    `HTTPError` before that refuses it with that answer. When the client says goodbye iterating ends, and `receive` and
    `send` raise `WebSocketClosed`. When the handler ends it is closed with 1000, and with 1011 if it has failed.
    """

    def __init__(self, socket: Socket, kind: SocketType) -> None:
        self._socket = socket
        self._kind = kind

    def __repr__(self) -> str:
        return f"<WebSocket: {'open' if self._socket.is_accepted else 'not accepted'}>"

    @property
    def subprotocols(self) -> list[str]:
        """What the client offers (RFC 6455 section 1.9)."""
        return self._socket.subprotocols

    async def accept(self, subprotocol: str | None = None, headers: HeaderSource = ()) -> None:
        """Answer the upgrade, with one of the subprotocols if any; a second time does nothing."""
        await self._socket.accept(subprotocol, headers)

    async def receive(self) -> In:
        """Return the next message.

        Raises `InvalidInput` for one that does not fit its type, `WebSocketClosed` when there are no more.
        """
        await self._socket.accept()
        message: In = self._kind.read(await self._socket.receive())
        return message

    async def send(self, message: Out) -> None:
        """Send a message, as soon as the client has room for it; raises `WebSocketClosed`."""
        await self._socket.accept()
        await self._socket.send(self._kind.write(message))

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye: a code from 1000 to 4999 and up to 123 bytes of text (RFC 6455 section 7.4).

        Raises `ValueError` for a code that cannot be sent.
        """
        if code in (1005, 1006, 1015) or not 1000 <= code <= 4999:
            raise ValueError(f"{code} cannot be the code of a goodbye; use 1000, or 4000 to 4999 for your own")
        await self._socket.accept()
        await self._socket.close(code, reason)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> In:
        try:
            return await self.receive()
        except WebSocketClosed:
            raise StopAsyncIteration from None


def socket_type(annotation: Any, name: str, place: Place) -> SocketType | None:
    """Return the types of a parameter that is a WebSocket, None for any other.

    Raises `DeclarationError` for a type that pydantic cannot take.
    """
    bare = strip(annotation)
    if bare is not WebSocket and get_origin(bare) is not WebSocket:
        return None
    said = get_args(bare)
    comes = said[0] if said else Any
    goes = said[1] if len(said) > 1 and said[1] is not In else comes
    return SocketType(_reader(comes, name, place), _writer(goes, name, place))


def _reader(kind: Any, name: str, place: Place) -> Callable[[str | bytes], Any]:
    if kind is Any or kind == str | bytes:
        return lambda data: data
    if kind is str:
        return lambda data: data if isinstance(data, str) else _refuse_bytes(data)
    if kind is bytes:
        return lambda data: data.encode() if isinstance(data, str) else data
    validator = adapter_of(kind, name, place).validator
    plain = _reader(_bare(kind), name, place) if _bare(kind) in (str, bytes) else None

    def read(data: str | bytes) -> Any:
        try:
            return validator.validate_json(data) if plain is None else validator.validate_python(plain(data))
        except ValidationError as error:
            raise InvalidInput(
                "the message does not fit what this WebSocket takes", errors=field_errors(["message"], error)
            ) from None

    return read


def _refuse_bytes(data: bytes) -> str:
    raise InvalidInput("this WebSocket takes text, and bytes have come")


def _bare(kind: Any) -> Any:
    """Return the type below `Annotated`."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _write_any(message: Any) -> str | bytes:
    if isinstance(message, str | bytes):
        return message
    return bytes(message) if isinstance(message, bytearray | memoryview) else to_json(message, by_alias=True).decode()


def _writer(kind: Any, name: str, place: Place) -> Callable[[Any], str | bytes]:
    if kind is Any or _bare(kind) in (str, bytes) or kind == str | bytes:
        return _write_any
    adapter = adapter_of(kind, name, place)
    model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None

    def write(message: Any) -> str:
        if type(message) is not model:
            try:
                message = adapter.validator.validate_python(message)
            except ValidationError as error:
                raise ValueError(f"a message that the handler sends does not fit its type: {error}") from error
        return adapter.serializer.to_json(message, by_alias=True).decode()

    return write
