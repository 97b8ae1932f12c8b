"""The wire format: what one side encodes the other decodes, table by table, and hostile blocks are only refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.errors import BadReply, BadRequest, UnknownVersion
from natsweb.headers import HOP_BY_HOP, Headers
from natsweb.messages import Response
from natsweb.wire import (
    decode_request,
    decode_response,
    encode_fields,
    encode_request,
    encode_response,
    error_fields,
    forwarded_fields,
    is_no_responders,
    may_retry,
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
        "Nw-Method: PUT",
        "Nw-Query: a=1",
        "Nw-Timeout: 10000",
        "Nw-Sent: 5",
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
