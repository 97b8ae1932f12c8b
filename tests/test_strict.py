"""Request heads: what they say about the message, and every one that RFC 9110 and RFC 9112 forbid."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.errors import BadRequest, HTTPError
from natsweb.front.strict import Head, check_head, split_target

HOST = (b"host", b"x")
PLAIN = Head(length=None, chunked=False, expects_continue=False, upgrade=None)


@pytest.mark.parametrize(
    ("version", "fields", "head"),
    [
        ("1.1", [HOST], PLAIN),
        ("1.1", [(b"host", b"")], PLAIN),
        ("1.0", [], PLAIN),
        ("1.0", [HOST], PLAIN),
        ("1.1", [HOST, (b"content-length", b"0")], PLAIN._replace(length=0)),
        ("1.1", [HOST, (b"content-length", b"00065")], PLAIN._replace(length=65)),
        ("1.1", [(b"content-length", b"65536"), HOST], PLAIN._replace(length=65536)),
        ("1.1", [HOST, (b"transfer-encoding", b"chunked")], PLAIN._replace(chunked=True)),
        ("1.1", [HOST, (b"transfer-encoding", b"\tChunked ")], PLAIN._replace(chunked=True)),
        ("1.1", [HOST, (b"expect", b"100-continue")], PLAIN._replace(expects_continue=True)),
        ("1.1", [HOST, (b"expect", b" 100-Continue")], PLAIN._replace(expects_continue=True)),
        ("1.0", [(b"expect", b"100-continue")], PLAIN),
        ("1.1", [HOST, (b"upgrade", b" H2C ")], PLAIN._replace(upgrade=b"h2c")),
        ("1.1", [HOST, (b"transfer_encoding", b"chunked"), (b"x-host", b"a b")], PLAIN),
    ],
)
def test_heads(version, fields, head):
    """A head says how long the body is, how it comes, and what the client waits for."""
    assert check_head(version, fields) == head


@pytest.mark.parametrize(
    ("version", "fields", "status"),
    [
        ("0.9", [HOST], 505),
        ("1.2", [HOST], 505),
        ("2.0", [HOST], 505),
        ("", [HOST], 505),
        ("1.1", [], 400),
        ("1.1", [(b"x-host", b"x")], 400),
        ("1.1", [HOST, HOST], 400),
        ("1.1", [HOST, (b"host", b"y")], 400),
        ("1.0", [HOST, HOST], 400),
        ("1.0", [(b"transfer-encoding", b"chunked")], 400),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"gzip, chunked")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"chunked, identity")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"identity")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"xchunked")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"chunked;a=b")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"\x0bchunked")], 501),
        ("1.1", [HOST, (b"transfer-encoding", b"")], 501),
        ("1.1", [HOST, (b"expect", b"200-ok")], 417),
        ("1.0", [HOST, (b"expect", b"")], 417),
    ],
)
def test_forbidden_heads(version, fields, status):
    """Whatever could be framed in two ways, or asks for what is not offered, has its status."""
    with pytest.raises(HTTPError) as error:
        check_head(version, fields)
    assert error.value.status == status


HOSTS = {
    True: ["x", "x.example", "X-Y_Z~1", "x:1", "x:", "127.0.0.1:80", "[::1]", "[::1]:80", "[::ffff:1.2.3.4]:", "a%2Db"],
    False: [
        "x y",
        "x/y",
        "x@y",
        "u:p@x",
        "x:a",
        "x:80:80",
        "[::1",
        "::1",
        "[]",
        "[x]",
        "x?",
        "x#",
        "x\\",
        "\xe9",
        "x\0",
    ],
}


@pytest.mark.parametrize(("good", "host"), [(good, host) for good, hosts in HOSTS.items() for host in hosts])
def test_hosts(good, host):
    """A host is a name or an address, with a port or without: the same in the header and in the target."""
    value = host.encode("latin-1")
    fields = [(b"host", b" " + value + b"\t")]
    target = b"http://" + value + b"/a"
    if good:
        assert check_head("1.1", fields) == PLAIN
        assert split_target("GET", target) == (b"/a", b"", value)
        return
    with pytest.raises(BadRequest):
        check_head("1.1", fields)
    try:
        assert split_target("GET", target)[2] != value
    except BadRequest:
        pass


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/", ("/", "", None)),
        ("/a/b", ("/a/b", "", None)),
        ("//a", ("//a", "", None)),
        ("/a?", ("/a", "", None)),
        ("/a?b=c?d", ("/a", "b=c?d", None)),
        ("/http://x/", ("/http://x/", "", None)),
        ("/%23", ("/%23", "", None)),
        ("http://x", ("/", "", "x")),
        ("http://x/", ("/", "", "x")),
        ("http://x?a", ("/", "a", "x")),
        ("http://x/a?b/c", ("/a", "b/c", "x")),
        ("HTTPS://x:1//a", ("//a", "", "x:1")),
    ],
)
def test_targets(target, parts):
    """A target splits into path, query and authority, all of them as they came."""
    path, query, authority = split_target("GET", target.encode())
    assert (path.decode(), query.decode(), authority and authority.decode()) == parts


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "a",
        "?a",
        "x:80",
        "/a#b",
        "/a?b#c",
        "http://x/#a",
        "http://",
        "http:///a",
        "http://?a",
        "http:/x",
        "http://x#a",
        "ftp://x/",
        "httpx://x/",
        "mailto:x",
    ],
)
def test_forbidden_targets(target):
    """What is neither a path nor an http URL, or has a fragment, is a 400."""
    with pytest.raises(BadRequest):
        split_target("GET", target.encode())


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=20), st.binary(max_size=20).map(lambda rest: b"http://x" + rest)))
def test_any_target_is_split_or_refused(target):
    """Whatever the bytes are, path, query and authority put together are the target again, or it is a 400."""
    try:
        path, query, authority = split_target("GET", target)
    except BadRequest:
        return
    assert path.startswith(b"/")
    assert b"?" not in path
    assert b"#" not in path + query
    whole = path + b"?" + query
    rest = target if authority is None else target[target.index(b"//") + 2 + len(authority) :]
    assert whole in (rest, rest + b"?", b"/" + rest, b"/" + rest + b"?")
