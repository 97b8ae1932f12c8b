"""The wire format: what one side encodes the other decodes, table by table, and hostile blocks are only refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.errors import BadReply, BadRequest, UnknownVersion
from natsweb.headers import HOP_BY_HOP, Headers
from natsweb.messages import Call, Response
from natsweb.wire import (
    CANCEL,
    Control,
    End,
    decode_control,
    decode_reply,
    decode_request,
    decode_response,
    encode_accept,
    encode_close,
    encode_continue,
    encode_end,
    encode_fields,
    encode_flow,
    encode_open,
    encode_request,
    encode_response,
    encode_upgrade,
    error_fields,
    forwarded_fields,
    is_no_responders,
    is_opening,
    may_retry,
    requests,
)

law = settings(deadline=None, max_examples=300)

texts = st.text(
    st.characters(max_codepoint=255).filter(lambda char: char == "\t" or (char >= " " and char != "\x7f")), max_size=12
).map(lambda text: text.strip(" \t"))
fields = st.lists(st.tuples(st.sampled_from(["x-a", "set-cookie", "content-type", "z"]), texts), max_size=6)


def block(*lines: str, start: str = "NATS/1.0") -> bytes:
    """Return a header block of these lines."""
    return "".join(f"{line}\r\n" for line in (start, *lines, "")).encode("latin-1")


# ── round trips ──────────────────────────────────────────────────────────────────────────────────


@law
@given(
    st.sampled_from(["GET", "HEAD", "POST", "M-SEARCH"]),
    fields,
    st.binary(max_size=20),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12),
    st.none() | st.integers(0, 10**9),
    st.none() | st.integers(0, 10**14),
    st.sampled_from([None, "127.0.0.1:80", "[::1]:9"]),
    st.sampled_from(["http", "https", "ws", "wss"]),
    st.none() | st.just("orders"),
)
def test_requests_round_trip(method, headers, body, query, timeout, sent, client, scheme, service):
    """A request that is encoded decodes to the same call."""
    header = encode_request(
        method,
        Headers(headers).block,
        query=query.encode(),
        timeout_ms=timeout,
        sent_ms=sent,
        client=client,
        scheme=scheme,
        service=service,
    )
    call = decode_request(["a", "b"], header, body)
    assert (call.method, call.tokens, call.query, call.body) == (method, ["a", "b"], query, body)
    assert list(call.headers) == headers
    assert call.timeout == (None if timeout is None else timeout / 1000)
    assert (call.sent, call.client, call.scheme, call.service) == (sent, client, scheme, service)
    assert call.request().headers == Headers(headers)


@law
@given(st.sampled_from(["GET", "HEAD", "POST"]), st.integers(200, 599), fields, st.binary(max_size=20), st.booleans())
def test_responses_round_trip(method, status, headers, body, retry):
    """A response that is encoded decodes to itself, less the body where HTTP has none."""
    response = Response(status=status, headers=headers, body=body)
    header, payload = encode_response(response, method=method, retry=retry)
    bodiless = method == "HEAD" or status in (204, 205, 304)
    assert payload == (b"" if bodiless else body)
    assert may_retry(header) == retry
    assert not is_no_responders(header)
    again = decode_response(header, payload, method=method)
    assert (again.status, again.body) == (status, payload)
    if header != block():
        assert list(again.headers.without("content-length")) == headers


# ── requests ─────────────────────────────────────────────────────────────────────────────────────

# header block, body, attributes of the call
DECODED = [
    (None, b"", {"method": "GET", "timeout": None, "client": None, "scheme": "http", "service": None, "sent": None}),
    (None, b"x", {"method": "POST", "body": b"x"}),
    (block(), b"", {"method": "GET"}),
    (block("X-A: 1"), b"x", {"method": "POST", "headers": Headers({"x-a": "1"})}),
    (block("Nw-Method: DELETE"), b"x", {"method": "DELETE", "headers": Headers()}),
    (block("NW-METHOD:PUT", "nW-qUERY: a=1"), b"", {"method": "PUT", "query": "a=1"}),
    (block("Nw-Method: PUT", "Nw-Method: GET"), b"", {"method": "PUT"}),
    (block("Nw-Method:  \t PUT \t"), b"", {"method": "PUT"}),
    (block("Nw_Method: PUT"), b"", {"method": "GET", "headers": Headers()}),
    (block("Nw-Query: a=%20&b=ü c"), b"", {"query": "a=%20&b=%FC%20c"}),
    (block("Nw-Timeout: 1500", "Nw-Sent: 99"), b"", {"timeout": 1.5, "sent": 99}),
    (block("Nw-Timeout: 0"), b"", {"timeout": 0.0}),
    (block("Nw-Client: [::1]:9", "Nw-Scheme: wss", "Nw-Service: o"), b"", {"client": "[::1]:9", "scheme": "wss"}),
    (block("Nw-Version: 1", "Nw-Whatever: 7", "Nats-Msg-Id: 1"), b"", {"headers": Headers()}),
    (block("X: 1", "x:2", "X:  3 "), b"", {"headers": Headers([("x", "1"), ("x", "2"), ("x", "3")])}),
    (block("x: caf\xe9", "empty:"), b"", {"headers": Headers({"x": "caf\xe9", "empty": ""})}),
    (block("x: a:b: c"), b"", {"headers": Headers({"x": "a:b: c"})}),
    (block("Status: 503"), b"", {"headers": Headers({"status": "503"})}),
    (block(start="NATS/1.0 \t"), b"", {"method": "GET"}),
]


@pytest.mark.parametrize(("header", "body", "attributes"), DECODED)
def test_decoded_requests(header, body, attributes):
    """Each row of the request table of docs/wire.md, with what its absence means."""
    call = decode_request([], header, body)
    assert {name: getattr(call, name) for name in attributes} == attributes


NOT_BLOCKS = [
    *(b"", b"\r\n", b"\r\n\r\n", b"garbage", b"NATS/1.0", b"NATS/1.0\r\n", b"NATS/1.0\n\n", b"nats/1.0\r\n\r\n"),
    *(
        block(start="NATS/9.9"),
        block(start="NATS/1.01"),
        block(start="HTTP/1.1 200"),
        b" " + block(),
        block() + b"\r\n",
    ),
    *(block("x: 1")[:-2], block("x: 1")[:-1], block("x: 1") + b"y: 2\r\n\r\n", b"NATS/1.0\r\nx: 1\n\r\n"),
    *(b"NATS/1.0\r\nx: 1\ny: 2\r\n\r\n", b"NATS/1.0\r\nx: 1\ry: 2\r\n\r\n", b"NATS/1.0\r\nx: a\0b\r\n\r\n"),
    *(block("no colon"), block(": v"), block("a b: v"), block(" folded: v"), block("x: 1", " folded"), block("x : 1")),
    *(block("\xe4: 1"), block("x: 1", "", "y: 2"), block("(: 1")),
]

BAD_REQUESTS = [
    *(block(f"Nw-Method: {method}") for method in ("", "get", "GE T", "G\xc9T", "A" * 33, "GET,PUT")),
    *(block(f"Nw-Timeout: {number}") for number in ("", "-1", "1.5", "1e3", "x", "9" * 16, "\xb2", "0x1", "1 0")),
    *(block(f"Nw-Sent: {number}") for number in ("", "-1", "x")),
    *(block(f"Nw-Scheme: {scheme}") for scheme in ("", "HTTP", "ftp", "https, http")),
]


@pytest.mark.parametrize("header", [*NOT_BLOCKS, *BAD_REQUESTS])
def test_refused_requests(header):
    """A block that is none, or a field of the wire that says nonsense, is 400."""
    with pytest.raises(BadRequest):
        decode_request([], header, b"")


@pytest.mark.parametrize("version", ["2", "", "1.0", "01", "x"])
def test_other_versions(version):
    """Another version is 505 from a service and a bad reply at the gateway."""
    header = block(f"Nw-Version: {version}")
    with pytest.raises(UnknownVersion):
        decode_request([], header, b"")
    with pytest.raises(BadReply):
        decode_response(header, b"")


@law
@given(
    st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(lambda junk: b"NATS/1.0\r\n" + junk + b"\r\n\r\n"),
        st.text("NnWw-_: 0123SsTtaus\r\n\0\xe9", max_size=60).map(lambda junk: block(f"Nw-{junk}")),
    ),
    st.binary(max_size=8),
    st.sampled_from(["GET", "HEAD"]),
)
def test_hostile_blocks_are_only_refused(header, payload, method):
    """Random bytes decode, or raise the errors that are documented, and nothing else."""
    try:
        decode_request([], header, payload).request()
    except (BadRequest, UnknownVersion):
        pass
    try:
        Response.model_validate(decode_response(header, payload, method=method).model_dump())
    except BadReply:
        pass
    assert isinstance(is_no_responders(header), bool)
    assert isinstance(may_retry(header), bool)


@pytest.mark.parametrize("evil", ["a\r\nb: c", "a\n", "a\r", "a\0"])
def test_requests_cannot_be_split(evil):
    """CR, LF and NUL get into no line of a request."""
    with pytest.raises(BadRequest):
        encode_request("GET", b"", query=evil.encode())
    for name in ("client", "service", "scheme"):
        with pytest.raises(BadRequest):
            encode_request("GET", b"", **{name: evil})
    with pytest.raises(BadRequest):
        encode_request(evil, b"")


def test_encoded_request():
    """The header block is spelled as docs/wire.md spells it, and says nothing that is the default."""
    assert encode_request("GET", b"") == block("Nw-Method: GET")
    assert encode_request(
        "PUT",
        encode_fields([(b"X-A", b"1"), (b"x-a", b"2")]),
        query=b"a=1",
        timeout_ms=10_000,
        sent_ms=5,
        client="1.2.3.4:5",
        scheme="https",
        service="orders",
    ) == block(
        "Nw-Timeout: 10000",
        "Nw-Sent: 5",
        "Nw-Method: PUT",
        "Nw-Query: a=1",
        "Nw-Service: orders",
        "Nw-Client: 1.2.3.4:5",
        "Nw-Scheme: https",
        "x-a: 1",
        "x-a: 2",
    )


# ── what may cross ───────────────────────────────────────────────────────────────────────────────

DROPPED = [
    *(name.decode() for name in sorted(HOP_BY_HOP)),
    *("Nw-Method", "NW-STATUS", "nw_method", "Nw_Query", "Nats-Msg-Id", "nats_msg_id", "NATS-Service-Error"),
    *("Content-Length", "Expect", "X-Named", "x-also"),
]
KEPT = ["host", "cookie", "accept", "content-type", "nwx", "nats", "x-nw-a", "content_length", "x_named", "status"]


def test_forwarded_fields():
    """Hop-by-hop fields, those that Connection names, the wire's own and framing stay behind; the rest crosses."""
    connection = [(b"Connection", b"close, X-NAMED"), (b"connection", b"x-also")]
    sent = [(name.encode(), b"v") for pair in zip(DROPPED, DROPPED, strict=True) for name in pair]
    kept = [(name.upper().encode(), b"V\xe9") for name in KEPT for _ in range(2)]
    assert forwarded_fields([*connection, *sent, *kept]) == [(name.encode(), b"V\xe9") for name in KEPT for _ in "ab"]


# ── replies ──────────────────────────────────────────────────────────────────────────────────────

ERROR_404 = ("Nats-Service-Error-Code: 404", "Nats-Service-Error: Not Found")

# response, arguments, header block, payload
ENCODED = [
    (Response(), {}, block(), b""),
    (Response(body=b"x"), {}, block(), b"x"),
    (Response(status=201, headers={"A": "1"}), {}, block("Nw-Status: 201", "a: 1"), b""),
    (Response(status=404, body=b"x"), {}, block("Nw-Status: 404", *ERROR_404), b"x"),
    (
        Response(status=503),
        {"retry": True, "error": "busy\r\nbad: 1"},
        block("Nw-Status: 503", "Nw-Retry: 1", "Nats-Service-Error-Code: 503", "Nats-Service-Error: busy bad: 1"),
        b"",
    ),
    (Response(body=b"abc", headers={"content-length": "9"}), {}, block(), b"abc"),
    (Response(body=b"abc"), {"method": "HEAD"}, block("content-length: 3"), b""),
    (Response(headers={"Content-Length": "9"}), {"method": "HEAD"}, block("content-length: 9"), b""),
    (Response(body=b"abc", headers={"content-length": "9"}), {"method": "HEAD"}, block("content-length: 9"), b""),
    (Response(status=204, body=b"abc"), {}, block("Nw-Status: 204"), b""),
    (Response(status=205, body=b"abc"), {}, block("Nw-Status: 205"), b""),
    (Response(status=304, body=b"abc"), {}, block("Nw-Status: 304", "content-length: 3"), b""),
    (Response(status=304, headers={"etag": "x"}), {}, block("Nw-Status: 304", "etag: x"), b""),
    (
        Response(headers={"connection": "x", "te": "y", "Nw-Status": "500", "nats_x": "1", "b": "2"}),
        {},
        block("b: 2"),
        b"",
    ),
]


@pytest.mark.parametrize(("response", "arguments", "header", "payload"), ENCODED)
def test_encoded_replies(response, arguments, header, payload):
    """Each rule for replies of docs/wire.md, as bytes."""
    assert encode_response(response, **arguments) == (header, payload)


JSON, TEXT, BYTES = "application/json", "text/plain; charset=utf-8", "application/octet-stream"

# header block, payload, method, status, headers, body
ANSWERS = [
    (None, b"", "GET", 200, {}, b""),
    (None, b'{"a": 1}', "GET", 200, {"content-type": JSON}, b'{"a": 1}'),
    (block(), b"17", "GET", 200, {"content-type": JSON}, b"17"),
    (None, "grün".encode(), "GET", 200, {"content-type": TEXT}, "grün".encode()),
    (None, b"\xff", "GET", 200, {"content-type": BYTES}, b"\xff"),
    (None, b"[" * 100_000, "GET", 200, {"content-type": TEXT}, b"[" * 100_000),
    (None, b"9" * 5_000, "GET", 200, {"content-type": TEXT}, b"9" * 5_000),
    (None, b"x", "HEAD", 200, {"content-type": TEXT}, b""),
    (block("x: 1"), b"{}", "GET", 200, {"x": "1"}, b"{}"),
    (block("Nw-Status: 201"), b"{}", "GET", 201, {}, b"{}"),
    (block("nw-status:404", "NATS-X: 1", "nw-new: 1", "a: b"), b"", "GET", 404, {"a": "b"}, b""),
    (block("Nw-Status: 204", "content-length: 3"), b"abc", "GET", 204, {}, b""),
    (block("Nw-Status: 304", "content-length: 3"), b"abc", "GET", 304, {}, b""),
    (block("Content-Length: 9"), b"abc", "HEAD", 200, {"content-length": "9"}, b""),
    (block("Content-Length: 9"), b"abc", "GET", 200, {}, b"abc"),
    (block("content-length: -1"), b"", "HEAD", 200, {}, b""),
    (block("connection: close", "transfer-encoding: chunked", "a: b"), b"", "GET", 200, {"a": "b"}, b""),
    (block("Nats-Service-Error-Code: 404", "Nats-Service-Error: no"), b"x", "GET", 404, {}, b"x"),
    (block("Nats-Service-Error-Code: 17"), b"", "GET", 500, {}, b""),
    (block("Nats-Service-Error-Code: 200"), b"", "GET", 500, {}, b""),
    (block("Nats-Service-Error-Code: oops"), b"", "GET", 500, {}, b""),
    (block("Nw-Status: 200", "Nats-Service-Error-Code: 404"), b"", "GET", 200, {}, b""),
    (block("Status: 503"), b"x", "GET", 200, {"status": "503"}, b"x"),
]


@pytest.mark.parametrize(("header", "payload", "method", "status", "headers", "body"), ANSWERS)
def test_decoded_replies(header, payload, method, status, headers, body):
    """Each rule for replies of docs/wire.md, from the caller's side."""
    assert decode_response(header, payload, method=method) == Response(status=status, headers=headers, body=body)


BAD_STATUS = [
    block(f"Nw-Status: {text}") for text in ("", "99", "100", "102", "199", "600", "2000", "x", "2.0", "\xb200")
]


@pytest.mark.parametrize("header", [*NOT_BLOCKS, *BAD_STATUS, block(start="NATS/1.0 503")])
def test_refused_replies(header):
    """A block that is none, or a status that none is, is a bad reply."""
    with pytest.raises(BadReply) as caught:
        decode_response(header, b"")
    assert caught.value.status == 502


@pytest.mark.parametrize("payload", [b"NaN", b"Infinity", b'{"a": -Infinity}'])
def test_not_a_number_is_not_json(payload):
    """A reply without header that only Python takes for JSON is text."""
    assert decode_response(None, payload).headers["content-type"] == TEXT


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, False),
        (block(), False),
        (block(start="NATS/1.0 503"), True),
        (block(start="NATS/1.0 503 No Responders"), True),
        (block("Status: 503"), False),
        (block("Nw-Status: 503"), False),
        (block(start="NATS/1.0 5031"), False),
        (block(start="NATS/1.0 404"), False),
    ],
)
def test_no_responders(header, said):
    """No responders is the status line and nothing else."""
    assert is_no_responders(header) is said


@pytest.mark.parametrize(
    ("header", "may"),
    [
        (None, False),
        (block(), False),
        (block("Nw-Retry: 1"), True),
        (block("nw-retry:1", "a: b"), True),
        (block("a: b", "NW-RETRY: \t1\t"), True),
        (block("Nw-Retry: 0"), False),
        (block("Nw-Retry: 11"), False),
        (block("Nw_Retry: 1"), False),
        (block("x: nw-retry: 1"), False),
        (block("x-nw-retry: 1"), False),
    ],
)
def test_retry(header, may):
    """Only `Nw-Retry: 1` says that a request was surely not executed."""
    assert may_retry(header) is may


@law
@given(st.integers(400, 599), st.text(max_size=300))
def test_error_fields_are_two_lines(status, detail):
    """Whatever the detail is, it becomes one short line of printable text."""
    lines = error_fields(status, detail)
    assert re.fullmatch(
        rb"Nats-Service-Error-Code: %d\r\nNats-Service-Error: [^\x00-\x1f\x7f]{0,200}\r\n" % status, lines
    )


@law
@given(st.lists(st.tuples(st.binary(max_size=6), st.binary(max_size=8)), max_size=4))
def test_fields_cross_whole_or_not_at_all(pairs):
    """Header lines of a client become as many lines of the block, or the request is refused."""
    try:
        lines = encode_fields(pairs)
    except BadRequest:
        return
    kept = [(name, value.strip(b" \t")) for name, value in forwarded_fields(pairs)]
    assert Headers.from_block(lines).fields == kept


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"a", b"1\r\nb: 2")],
        [(b"a: 1\r\nb", b"2")],
        [(b"a", b"\0")],
        [(b"a", b"1"), (b"", b"2")],
        [(b"a b", b"1")],
        [(b"\xe9", b"1")],
    ],
)
def test_fields_that_must_not_cross(pairs):
    """A name or value that would make another line is refused."""
    with pytest.raises(BadRequest):
        encode_fields(pairs)


def test_fields_that_connection_names():
    """What `Connection` names stays with the connection."""
    pairs = [(b"Connection", b"X-Secret, close"), (b"X-Secret", b"1"), (b"X-Open", b"2"), (b"Keep-Alive", b"5")]
    assert encode_fields(pairs) == b"x-open: 2\r\n"


# ── streams ──────────────────────────────────────────────────────────────────────────────────────

# what is sent, its lines in docs/wire.md, what it says, and whether whoever gets it late answers with a cancel
CONTROLS = [
    (encode_accept(), ("Nw-Status: 102",), Control(102), True),
    (encode_accept(1500), ("Nw-Status: 102", "Nw-Timeout: 1500"), Control(102, timeout=1.5), True),
    (encode_accept(0), ("Nw-Status: 102", "Nw-Timeout: 0"), Control(102, timeout=0.0), True),
    (encode_continue(524_288), ("Nw-Status: 100", "Nw-Flow: 524288"), Control(100, flow=524_288), True),
    (encode_upgrade(b"", 7), ("Nw-Status: 101", "Nw-Flow: 7"), Control(101, flow=7), True),
    (
        encode_upgrade(b"x-a: 1\r\nx-a: 2\r\n", 7),
        ("Nw-Status: 101", "Nw-Flow: 7", "x-a: 1", "x-a: 2"),
        Control(101, flow=7, lines=b"x-a: 1\r\nx-a: 2\r\n"),
        True,
    ),
    (encode_flow(0), ("Nw-Flow: 0",), Control(flow=0), False),
    (encode_flow(10**14), (f"Nw-Flow: {10**14}",), Control(flow=10**14), False),
    (CANCEL, ("Nw-Flow: -",), Control(cancel=True), False),
    (encode_end(0), ("Nw-End: ok;0",), Control(end=End("ok")), False),
    (encode_end(5000), ("Nw-End: ok;5000",), Control(end=End("ok", 5000)), False),
    (encode_end(9, "lost"), ("Nw-End: error;lost",), Control(end=End("error", 0, "lost")), False),
    (encode_end(9, "a;b\r\nc: d"), ("Nw-End: error;a;b  c: d",), Control(end=End("error", 0, "a;b  c: d")), False),
    (encode_end(9, ""), ("Nw-End: error;",), Control(end=End("error")), False),
    (encode_close(1000, ""), ("Nw-End: close;1000;",), Control(end=End("close", 1000)), False),
    (encode_close(4999, "a;b"), ("Nw-End: close;4999;a;b",), Control(end=End("close", 4999, "a;b")), False),
    (
        encode_open(Response(status=201, headers={"x-a": "1", "Content-Length": "9", "connection": "close"})),
        ("Nw-Status: 201", "Nw-Stream: 1", "x-a: 1", "content-length: 9"),
        Control(201, stream=True, lines=b"x-a: 1\r\ncontent-length: 9\r\n"),
        True,
    ),
    (encode_open(Response()), ("Nw-Status: 200", "Nw-Stream: 1"), Control(200, stream=True), True),
]


@pytest.mark.parametrize(("sent", "lines", "said", "opens"), CONTROLS)
def test_control(sent, lines, said, opens):
    """What one side sends is spelled as docs/wire.md does, and the other side reads it back."""
    assert sent == block(*lines)
    assert decode_control(sent) == said
    assert is_opening(sent) is opens
    assert not may_retry(sent)
    assert not is_no_responders(sent)


# what others may spell differently
SPELLED = [
    (block(), Control()),
    (block("nw-flow:17"), Control(flow=17)),
    (block("NW-FLOW: \t17 \t"), Control(flow=17)),
    (block("Nw_Flow: 17"), Control()),
    (block("Nw-Flow: 1", "Nw-Flow: 2"), Control(flow=1)),
    (block("Nw-Flow: 9", "Nw-End: ok;3"), Control(flow=9, end=End("ok", 3))),
    (block("Nw-End: close;1001"), Control(end=End("close", 1001))),
    (block("Nw-End: error"), Control(end=End("error"))),
    (block("Nw-End: error;gr\xc3\xbcn \xff"), Control(end=End("error", 0, "grün \ufffd"))),
    (block("Nw-Stream: 0", "Nw-Status: 200"), Control(200)),
    (block("Nw-Stream: 11"), Control()),
    (block("Nw-New: 1", "Nats-X: 2", "x: 3"), Control(lines=b"x: 3\r\n")),
    (block("Nw-Status: 404"), Control(404)),
]


@pytest.mark.parametrize(("header", "said"), SPELLED)
def test_control_of_others(header, said):
    """Names in any case, the first of each; what is not known is passed over."""
    assert decode_control(header) == said


NO_CONTROL = [
    *(block(f"Nw-Flow: {text}") for text in ("", "--", "-1", "1.5", "x", "1 0", "9" * 16, "\xb2", "0x1", "+1")),
    *(block(f"Nw-Timeout: {text}") for text in ("", "-1", "1.5", "x", "9" * 16)),
    *(block(f"Nw-Status: {text}") for text in ("", "99", "600", "x", "2000", "\xb200")),
    *(
        block(f"Nw-End: {text}")
        for text in ("", "ok", "ok;", "ok;-1", "ok;x", "ok;1;2", "OK;1", "banana", ";", "okay;1")
    ),
    *(block(f"Nw-End: close{text}") for text in ("", ";", ";x;y", ";999;", ";5000;", ";-1;", ";1e3;")),
]


@pytest.mark.parametrize("header", [*NOT_BLOCKS, *NO_CONTROL])
def test_refused_control(header):
    """What makes no sense is a bad reply, also a second time."""
    for _ in range(2):
        with pytest.raises(BadReply):
            decode_control(header)


@law
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text("NnWw-: ;0123EndFlowStatusokerrorcls\r\n\0\xe9", max_size=40).map(lambda junk: block(f"Nw-{junk}")),
        st.text("oker;0159- cls", max_size=20).map(lambda junk: block(f"Nw-End: {junk}")),
    )
)
def test_hostile_control_is_only_refused(header):
    """Random bytes say something, or raise the one error."""
    assert isinstance(is_opening(header), bool)
    try:
        said = decode_control(header)
    except BadReply:
        return
    assert said.flow is None or said.flow >= 0
    assert said.end is None or said.end.kind in ("ok", "error", "close")


@law
@given(st.text(max_size=300), st.integers(1000, 4999), st.integers(0, 10**14))
def test_words_of_an_end(text, code, total):
    """Whatever the words are, they are one line, short enough for a close frame, and end between characters."""
    error, close = decode_control(encode_end(total, text)), decode_control(encode_close(code, text))
    assert (error.end.kind, close.end[:2]) == ("error", ("close", code))
    for end, sent, limit in ((error.end, encode_end(total, text), 200), (close.end, encode_close(code, text), 123)):
        assert sent.count(b"\r\n") == 3
        assert len(end.text.encode()) <= limit
        assert "".join(char if char.isprintable() else " " for char in text).startswith(end.text) or "?" in end.text
    assert decode_control(encode_end(total)).end == End("ok", total)


@pytest.mark.parametrize(
    ("header", "opens"),
    [
        (None, False),
        (block(), False),
        (block("x: nw-status: 102"), False),
        (block("x-nw-status: 102"), False),
        (block("Nw-Status: 1020"), False),
        (block("Nw-Status: 200"), False),
        (block("Nw-Status: 103"), False),
        (block("NW-STATUS:\t102 "), True),
        (block("a: b", "nw-stream:1"), True),
        (block("Nw-Stream: 10"), False),
    ],
)
def test_openings(header, opens):
    """An accept, a continue, an upgrade and a head want to be told to stop; nothing else does."""
    assert is_opening(header) is opens


# ── requests that stream ──

ASKED = [
    ("stream;window=1000", 1000),
    ("stream;window=999999999", 999_999_999),
    ("stream", 65_536),
    ("STREAM ; Window = 5", 5),
    ("stream;window=0", 0),
    ("stream;window=", 0),
    ("stream;window=-1", 0),
    ("stream;window=1000000000", 0),
    ("stream;window=1;x=2", 0),
    ("streams", 0),
    ("", 0),
    ("1", 0),
]


@pytest.mark.parametrize(("accept", "window"), ASKED)
def test_what_a_caller_takes(accept, window):
    """A window of bytes, the default one, or one message only: nonsense is never more than that."""
    for _ in range(2):
        assert decode_request([], block("Nw-Method: GET", f"Nw-Accept: {accept}", "x: 1"), b"").window == window


@pytest.mark.parametrize(
    ("lines", "more", "upgrade"),
    [
        (("Nw-More: 1",), True, False),
        (("Nw-More: 0",), False, False),
        (("Nw-More: yes",), False, False),
        (("Nw-Upgrade: websocket",), False, True),
        (("nw-upgrade: WebSocket",), False, True),
        (("Nw-Upgrade: h2c",), False, False),
        (("Nw-More: 1", "Nw-Upgrade: websocket"), True, True),
        (("Upgrade: websocket", "More: 1"), False, False),
    ],
)
def test_what_a_caller_wants(lines, more, upgrade):
    """The rest of a body that follows, and a WebSocket, each by its own line."""
    for _ in range(2):
        call = decode_request([], block("Nw-Method: POST", *lines, "x: 1"), b"first")
        assert (call.more, call.upgrade, call.body) == (more, upgrade, b"first")


@law
@given(
    fields,
    st.sampled_from([0, 1, 1000, 524_288]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["http", "https", "ws", "wss"]),
    st.none() | st.just("orders"),
    st.none() | st.integers(0, 10**9),
    st.sampled_from(["", "a=1", "\xfc"]),
    st.randoms(use_true_random=False),
)
def test_both_ways_to_read_a_request(headers, window, more, upgrade, scheme, service, timeout, query, chance):
    """What natsweb sends is read by one pattern, what others send line by line: both find the same."""
    header = encode_request(
        "POST",
        Headers(headers).block,
        query=query.encode("latin-1"),
        timeout_ms=timeout,
        sent_ms=timeout,
        client="1.2.3.4:5",
        scheme=scheme,
        service=service,
        window=window,
        more=more,
        upgrade=upgrade,
    )
    ours = [line for line in header[:-2].split(b"\r\n")[1:] if line.startswith(b"Nw-")]
    chance.shuffle(ours)
    again = b"".join([b"NATS/1.0\r\n", *[line.lower().replace(b": ", b":  ") + b"\r\n" for line in ours[1:]]])
    again += ours[0] + b"\r\n" + Headers(headers).block + b"\r\n"
    again = re.sub(rb"(?m)^nw-method: +post", b"nw-method: POST", again)
    told = [decode_request(["a"], one, b"body") for one in (header, header, header, again, again)]
    names = [name for name in Call.__slots__ if name != "headers"]
    for call in told:
        assert [getattr(call, name) for name in names] == [getattr(told[0], name) for name in names]
        assert list(call.headers) == headers
    assert (told[0].window, told[0].more, told[0].upgrade) == (window, more, upgrade)


@law
@given(
    st.binary(max_size=3) | st.integers(0, 10**16).map(lambda number: b"%d" % number),
    st.sampled_from([b"Nw-Timeout: 5", b"Nw-Sent: 17", b"Nw-Sent", b"x-a: 1", b"Nw-Method: GET"]),
    st.booleans(),
)
def test_a_head_that_is_known_hides_nothing(number, where, behind):
    """What looks like a request that has come before is refused, or read, as it would be as the first."""
    good = b"NATS/1.0\r\nNw-Timeout: 5\r\nNw-Sent: 17\r\nNw-Method: GET\r\nx-a: 1\r\n\r\n"
    for _ in range(3):
        assert decode_request([], good, b"").timeout == 0.005
    assert requests._known_heads
    name, _, value = where.partition(b": ")
    bad = good.replace(where, name + b": " + (value + number if behind else number))
    told = []
    for known in (True, False):
        if not known:
            requests._known_heads.clear()
        try:
            call = decode_request([], bad, b"")
            told.append((call.method, call.timeout, call.sent, list(call.headers)))
        except BadRequest as error:
            told.append(str(error))
    assert told[0] == told[1]


def test_encoded_requests_that_stream():
    """They are spelled as docs/wire.md spells them, behind all other lines of the wire."""
    assert encode_request("POST", b"x-a: 1\r\n", window=1000, more=True, upgrade=True, scheme="wss") == block(
        "Nw-Method: POST",
        "Nw-Scheme: wss",
        "Nw-Accept: stream;window=1000",
        "Nw-More: 1",
        "Nw-Upgrade: websocket",
        "x-a: 1",
    )


# ── heads ──

# status, what the head says of its length, method, what of it passes
LENGTHS = [
    (200, "9", "GET", "9"),
    (200, "0", "GET", "0"),
    (206, "9", "GET", "9"),
    (404, "9", "POST", "9"),
    (200, "9", "HEAD", "9"),
    (200, "-9", "GET", None),
    (200, "9x", "GET", None),
    (200, "9, 9", "GET", None),
    (200, "", "GET", None),
    (204, "9", "GET", None),
    (205, "9", "GET", None),
    (304, "9", "GET", None),
]


@pytest.mark.parametrize(("status", "said", "method", "passes"), LENGTHS)
def test_the_length_of_a_stream(status, said, method, passes):
    """It passes, since the bytes are counted; nonsense does not, nor the length of a body that cannot be."""
    response = Response(status=status, headers={"content-length": said, "x-a": "1", "connection": "close"})
    for header in (
        encode_open(response, method=method),
        block(f"Nw-Status: {status}", "Nw-Stream: 1", "connection: close", "x-a: 1", f"Content-Length: {said}"),
    ):
        found, lines, body = decode_reply(header, b"", method)
        length = b"" if passes is None else b"content-length: %b\r\n" % passes.encode()
        assert (found, lines, body) == (status, b"x-a: 1\r\n" + length, b"")


def test_the_length_of_one_message():
    """Without `Nw-Stream` the payload is the body, and says its length itself."""
    assert decode_reply(block("Content-Length: 9", "x: 1"), b"abc", "GET") == (200, b"x: 1\r\n", b"abc")
