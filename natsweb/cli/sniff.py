"""`natsweb sniff`: every request below a root as HTTP text, as it passes.

A tap: it answers nothing and takes nothing away. While it runs, requests that nobody listens to are not found out
at once, since the tap listens; it says so.
"""

import asyncio
import json
import time
from typing import Annotated, Any

import typer

from natsweb.cli.console import printable
from natsweb.cli.lifecycle import (
    ContextOption,
    JsonOption,
    NatsOption,
    Stop,
    WireOption,
    connected,
    origin_wire,
    run_until_done,
)
from natsweb.errors import HTTPError, phrase

__all__ = ["command"]

_SECRET = frozenset(["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"])
_MAX_WAITING = 10_000
_MAX_BODY = 4096


def command(
    root: Annotated[str, typer.Option("--root", envvar="NATSWEB_ROOT", help="Subject that stands for '/'.")] = "api",
    replies: Annotated[bool, typer.Option("--replies", help="Show the answers, too.")] = False,
    count: Annotated[
        int, typer.Option("--count", metavar="N", min=0, help="Stop after so many requests; 0 never stops.")
    ] = 0,
    nats: NatsOption = None,
    context: ContextOption = None,
    wire: WireOption = "natsweb",
    as_json: JsonOption = False,
) -> None:
    """Show requests as they pass, as HTTP; Authorization, Cookie and their like are hidden.

    It never answers, and takes no request away. While it runs, a request that no service listens to
    gets its 504 at the deadline rather than a 404 at once.
    """
    from natsweb.subjects import check_root

    check_root(root)
    tap = _Tap(root, count, replies, as_json, origin_wire(wire))
    raise typer.Exit(run_until_done(lambda: _sniff(tap, root, replies, nats, context)))


async def _sniff(tap: "_Tap", root: str, replies: bool, nats: str | None, context: str | None) -> int:
    stop = Stop()
    stop.install()
    async with connected(nats, context, "sniff") as bus:
        for pattern in (root, f"{root}.>"):
            await bus.subscribe(pattern, tap.request)
        if replies:
            await bus.subscribe("_INBOX.>", tap.reply)
        await bus.flush()
        typer.echo(
            f"listening below {root} at {bus.server}; until this ends, requests that nobody serves wait for their "
            "deadline instead of getting a 404 at once. Stop with Ctrl-C",
            err=True,
        )
        await stop.before(tap.done.wait())
    return 0


class _Tap:
    """Prints what passes; `done` is set after `count` requests, with their answers."""

    def __init__(self, root: str, count: int, replies: bool, as_json: bool, wire: Any) -> None:
        self._root = root
        self._wire = wire
        self._replies = replies
        self._count = count
        self._as_json = as_json
        self._seen = 0
        self._waiting: dict[str, tuple[int, str, float]] = {}
        self.done = asyncio.Event()

    def request(self, message: Any) -> None:
        """Print a request."""
        from natsweb.subjects import to_path

        if self._count and self._seen >= self._count:
            return
        self._seen += 1
        number = self._seen
        try:
            call = self._decoded(message)
        except HTTPError as error:
            self._say({"request": number, "subject": message.subject, "malformed": error.detail}, [])
        else:
            path = to_path(call.tokens) + (f"?{call.query}" if call.query else "")
            if message.reply and len(self._waiting) < _MAX_WAITING:
                self._waiting[message.reply] = (number, call.method, time.perf_counter())
            named = {"service": call.service} if call.service else {}
            facts = {"request": number, "subject": message.subject, **named, "method": call.method, "path": path}
            self._say(
                {**facts, "headers": _shown(call.headers), "body": _text(call.body)},
                [
                    f"#{number} {message.subject}" + (f" for {call.service}" if call.service else ""),
                    f"{call.method} {path} HTTP/1.1",
                    *[f"{name}: {value}" for name, value in _shown(call.headers)],
                    *_body(call.body),
                ],
            )
        self._end_if_done()

    def _decoded(self, message: Any) -> Any:
        from natsweb.subjects import subject_tokens
        from natsweb.wire import decode_request

        if self._wire is not None:
            return self._wire.decode_request(self._wire.tokens(self._root, message.subject), message.payload)
        return decode_request(subject_tokens(self._root, message.subject), message.header, message.payload)

    def _end_if_done(self) -> None:
        """End when enough has been seen, with the answers if they are wanted."""
        if self._count and self._seen >= self._count and not (self._replies and self._waiting):
            self.done.set()

    def reply(self, message: Any) -> None:
        """Print the answer to a request that was seen."""
        from natsweb.headers import Headers
        from natsweb.wire import decode_reply

        found = self._waiting.get(message.subject)
        if found is None:
            return
        number, method, since = found
        interim = self._interim(message)
        if interim in (100, 102):
            return  # it is being worked on, or takes more of the body: the answer is still to come
        del self._waiting[message.subject]
        asyncio.get_running_loop().call_soon(self._end_if_done)
        ms = (time.perf_counter() - since) * 1000
        try:
            decode = decode_reply if self._wire is None else self._wire.decode_reply
            status, lines, body = decode(message.header, message.payload, method) if not interim else (101, b"", b"")
        except HTTPError as error:
            self._say({"reply": number, "ms": round(ms, 2), "malformed": error.detail}, [])
            return
        headers = _shown(Headers.from_block(lines))
        self._say(
            {
                "reply": number,
                "ms": round(ms, 2),
                "status": status,
                "headers": headers,
                "body": _text(body),
            },
            [
                f"#{number} after {ms:.2f} ms",
                f"HTTP/1.1 {status} {phrase(status)}",
                *[f"{name}: {value}" for name, value in headers],
                *_body(body),
            ],
        )

    def _interim(self, message: Any) -> int:
        """Return the status of a message that is no answer to HTTP, 0 for any other."""
        from natsweb.wire import decode_control

        if self._wire is not None or message.header is None:
            return 0
        try:
            status = decode_control(message.header).status
        except HTTPError:
            return 0
        return status if status in (100, 101, 102) else 0

    def _say(self, facts: dict[str, Any], lines: list[str]) -> None:
        if self._as_json:
            typer.echo(json.dumps(facts))
            return
        shown = lines or [f"{name}: {value}" for name, value in facts.items()]
        body = shown[-1:] if len(shown) > 1 and shown[-2] == "" else []
        typer.echo("\n".join([*map(printable, shown[: len(shown) - len(body)]), *body, ""]))


def _shown(headers: Any) -> list[tuple[str, str]]:
    return [(name, "(hidden)" if name in _SECRET else value) for name, value in headers]


def _text(body: bytes) -> str:
    if any(byte < 32 and byte not in b"\t\n\r\x1b" for byte in body[:_MAX_BODY]):
        return f"({len(body)} bytes)"  # no text: perhaps a format that holds what is hidden above
    shown = body[:_MAX_BODY].decode("utf-8", "replace")
    return shown if len(body) <= _MAX_BODY else f"{shown}... ({len(body)} bytes)"


def _body(body: bytes) -> list[str]:
    """Return a body's lines, without what would move a terminal's cursor."""
    if not body:
        return []
    text = "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in _text(body)
    )
    return ["", text]
