"""Everything that can go wrong, as one tree of exceptions that know their HTTP status.

    NatswebError
    ├── BadCredentials             what a security scheme's `verify` raises
    ├── WebSocketClosed            a WebSocket has ended: code and reason
    ├── HTTPError                  an answer: status, reason, detail; becomes problem+json
    │   ├── BadPath            400     ├── HandlerFailed         500
    │   ├── BadRequest         400     ├── ReplyTooLarge         500
    │   ├── NoRoute            404     ├── BadReply              502
    │   ├── NoService          404     ├── Disconnected          502
    │   ├── MethodNotAllowed   405     ├── NatsDown              503
    │   ├── NotAcceptable      406     ├── Overloaded            503
    │   ├── TooLarge           413     ├── ServiceAway           503, a NoService
    │   ├── SubjectTooLong     414     ├── Stopping              503
    │   ├── UnsupportedMedia   415     ├── TimeUp                504
    │   ├── InvalidInput       422     └── UnknownVersion        505
    │   ├── UpgradeRequired    426
    │   └── HeadersTooLarge    431
    └── Mistake                    a person has to mend something: what, where, what to do
        ├── DeclarationError           in a service's code
        ├── SettingsError              in flags, environment or files
        └── StartError                 the process could not start (exit code 3)
            ├── NatsUnreachable            no NATS server, or login refused (exit code 4)
            └── NatsRefused                no permission to subscribe (exit code 4)

This module knows statuses, reasons and exit codes. It knows neither NATS nor HTTP libraries.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import ClassVar

from typing_extensions import TypedDict

__all__ = [
    "BadCredentials",
    "BadPath",
    "BadReply",
    "BadRequest",
    "DeclarationError",
    "Disconnected",
    "FieldError",
    "HTTPError",
    "HandlerFailed",
    "HeadersTooLarge",
    "InvalidInput",
    "MethodNotAllowed",
    "Mistake",
    "NatsDown",
    "NatsRefused",
    "NatsUnreachable",
    "NatswebError",
    "NoRoute",
    "NoService",
    "NotAcceptable",
    "Overloaded",
    "ReplyTooLarge",
    "ServiceAway",
    "SettingsError",
    "StartError",
    "Stopping",
    "SubjectTooLong",
    "TimeUp",
    "TooLarge",
    "UnknownVersion",
    "UnsupportedMedia",
    "UpgradeRequired",
    "WebSocketClosed",
]


class NatswebError(Exception):
    """The root of all exceptions that natsweb raises of its own accord."""


class BadCredentials(NatswebError):
    """Credentials are not valid: raise it in a scheme's `verify`; the caller gets a 401 with this text."""


class WebSocketClosed(NatswebError):
    """A WebSocket has ended, with the code and reason of whoever closed it (RFC 6455 section 7.4); 1006 is a loss."""

    def __init__(self, code: int = 1000, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


class FieldError(TypedDict):
    """One refused input field, as it stands in the `errors` list of a 422 problem."""

    loc: list[str | int]
    msg: str
    type: str


#: Phrases of RFC 9110 that Python learned late.
_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


def phrase(status: int) -> str:
    """Return the standard phrase of a status (RFC 9110), or `"Error"` for one without."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class HTTPError(NatswebError):
    """An answer that is an error: raise it in a handler, and the caller gets problem+json (RFC 9457).

    `status` is an HTTP status from 400 to 599, `detail` a sentence for the caller, `reason` a short stable
    word for programs, `headers` are added to the answer, `errors` lists refused fields. `retry` says that
    the request was surely not executed, so that sending it again is safe.

    Raises `ValueError` for a status that is not an error.
    """

    retry: ClassVar[bool] = False
    default_reason: ClassVar[str | None] = None

    def __init__(
        self,
        status: int,
        detail: str = "",
        *,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"HTTPError takes a status from 400 to 599, not {status}; return a Response instead")
        super().__init__(status, detail)
        self.status = int(status)
        self.detail = str(detail).encode("utf-8", "replace").decode()
        self.reason = reason if reason is not None else self.default_reason
        self.headers = dict(headers or {})
        self.errors = list(errors)

    @property
    def title(self) -> str:
        """The phrase of the status, such as `Not Found`."""
        return phrase(self.status)

    def __str__(self) -> str:
        return f"{self.status} {self.detail or self.title}"


class _Fixed(HTTPError):
    """An HTTPError whose status and reason belong to its class."""

    fixed_status: ClassVar[int]

    def __init__(
        self, detail: str = "", *, headers: Mapping[str, str] | None = None, errors: Sequence[FieldError] = ()
    ) -> None:
        super().__init__(self.fixed_status, detail, headers=headers, errors=errors)


class BadPath(_Fixed):
    """The path has no canonical subject: a broken escape, a dot segment, invalid UTF-8."""

    fixed_status, default_reason = 400, "bad_path"


class BadRequest(_Fixed):
    """The message is not a request that WIRE.md allows."""

    fixed_status, default_reason = 400, "bad_request"


class NoRoute(_Fixed):
    """The service that got the request has no route for its path."""

    fixed_status, default_reason, retry = 404, "no_route", True


class NoService(_Fixed):
    """Nobody listens on the subject of the request."""

    fixed_status, default_reason, retry = 404, "no_service", True


class ServiceAway(NoService):
    """Nobody listens on the subject now, but somebody has; carries `Retry-After`."""

    fixed_status, default_reason = 503, "service_away"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, headers={"retry-after": "1"})


class MethodNotAllowed(_Fixed):
    """The path has routes, but none for this method; carries `Allow`."""

    fixed_status, default_reason, retry = 405, "method_not_allowed", True

    def __init__(self, detail: str = "", *, allow: Sequence[str]) -> None:
        super().__init__(detail, headers={"allow": ", ".join(allow)})


class NotAcceptable(_Fixed):
    """The answer comes in a shape that the caller does not take."""

    fixed_status, default_reason = 406, "not_acceptable"


class TooLarge(_Fixed):
    """The request body is over the limit."""

    fixed_status, default_reason = 413, "too_large"


class SubjectTooLong(_Fixed):
    """The path gives a subject that could pass the limit of a NATS protocol line."""

    fixed_status, default_reason = 414, "path_too_long"


class UnsupportedMedia(_Fixed):
    """The content type of the body is not what the handler takes."""

    fixed_status, default_reason = 415, "unsupported_media"


class InvalidInput(_Fixed):
    """A path value, query parameter or body does not fit its type; `errors` says which and why."""

    fixed_status, default_reason = 422, "invalid_input"


class UpgradeRequired(_Fixed):
    """The path is that of a WebSocket, and the request does not ask for one."""

    fixed_status, default_reason = 426, "upgrade_required"


class HeadersTooLarge(_Fixed):
    """The header block is over the limit, in bytes or in lines."""

    fixed_status, default_reason = 431, "headers_too_large"


class HandlerFailed(_Fixed):
    """A handler raised something that is not an answer; the log has the traceback."""

    fixed_status, default_reason = 500, "handler_failed"


class ReplyTooLarge(_Fixed):
    """A handler's reply does not fit into one NATS message."""

    fixed_status, default_reason = 500, "reply_too_large"


class BadReply(_Fixed):
    """The service's reply is malformed."""

    fixed_status, default_reason = 502, "bad_reply"


class Disconnected(_Fixed):
    """The connection to NATS was lost after the request had been sent: it may or may not have been executed."""

    fixed_status, default_reason = 502, "disconnected"


class NatsDown(_Fixed):
    """There is no connection to NATS; the request has not been sent."""

    fixed_status, default_reason, retry = 503, "nats_down", True


class Overloaded(_Fixed):
    """As many requests as allowed are running; this one has not been started."""

    fixed_status, default_reason, retry = 503, "overloaded", True

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, headers={"retry-after": "1"})


class Stopping(_Fixed):
    """This process is shutting down, and has not finished the request."""

    fixed_status, default_reason = 503, "stopping"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, headers={"retry-after": "1"})


class TimeUp(_Fixed):
    """No answer within the request's time; it never means 'not executed'."""

    fixed_status, default_reason = 504, "timeout"


class UnknownVersion(_Fixed):
    """The message says a wire version that this natsweb does not speak."""

    fixed_status, default_reason = 505, "unknown_version"


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────


class Mistake(NatswebError):
    """A mistake that a person has to mend, in three parts: what, where, what to do.

    `what` is one sentence, `where` zero or more lines that point at the place, `fix` the remedy.
    `exit_code` is what the command line exits with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str | Sequence[str] = (), fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = [where] if isinstance(where, str) else list(where)
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what, *(f"  {line}" for line in self.where)]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class DeclarationError(Mistake):
    """A service declares something that cannot work; raised by the decorator, at import."""


class SettingsError(Mistake):
    """A flag, an environment variable or a settings file says something that cannot work."""

    exit_code = 2


class StartError(Mistake):
    """The process could not start."""

    exit_code = 3


class NatsUnreachable(StartError):
    """No NATS server answered, or it refused the login."""

    exit_code = 4


class NatsRefused(StartError):
    """The NATS server does not let this user subscribe to what it has to."""

    exit_code = 4
