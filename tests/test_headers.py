"""Header fields: exact to the byte, blind to the case of names, and closed to what must not be sent."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from natsweb.headers import HOP_BY_HOP, Headers, connection_options, encode_line

law = settings(deadline=None, max_examples=200)

names = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", fullmatch=True)
values = st.text(
    st.characters(max_codepoint=255).filter(lambda char: char == "\t" or (char >= " " and char != "\x7f")), max_size=20
).map(lambda text: text.strip(" \t"))
pairs = st.lists(st.tuples(names, values), max_size=8)


class Holder(BaseModel):
    headers: Headers = Headers()


@law
@given(pairs)
def test_pairs_come_back(fields):
    """Pairs go in and come out in order, names in lower case, whatever way they took."""
    headers = Headers(fields)
    expected = [(name.lower(), value) for name, value in fields]
    assert list(headers) == expected
    assert list(Headers.from_block(headers.block)) == expected
    assert headers == Headers(headers) == Headers(list(headers)) == Headers.from_block(headers.block)
    assert hash(headers) == hash(Headers(expected))
    assert len(headers) == len(fields)
    assert headers.block == b"".join(encode_line(name, value) for name, value in headers.fields)
    assert re.fullmatch(rb"([^\0\r\n:]+: [^\0\r\n]*\r\n)*", headers.block)


@law
@given(pairs)
def test_lookup_ignores_case(fields):
    """Every name is found in any case; `get` is the first value and `getlist` all of them."""
    headers = Headers(fields)
    for name, _ in fields:
        expected = [value for other, value in fields if other.lower() == name.lower()]
        for spelling in (name, name.lower(), name.upper(), name.title()):
            assert headers.getlist(spelling) == expected
            assert headers[spelling] == headers.get(spelling) == expected[0]
            assert spelling in headers
        assert headers.get_bytes(name.lower().encode()) == expected[0].encode("latin-1")


@law
@given(pairs)
def test_pydantic_round_trip(fields):
    """Headers in a model survive JSON and Python dumps."""
    holder = Holder(headers=fields)
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    assert Holder.model_validate(holder.model_dump()) == holder
    assert Holder(headers=holder.headers).headers is holder.headers


@law
@given(pairs, pairs)
def test_plus_and_without(one, other):
    """`+` appends and replaces nothing; `without` removes every field of a name and touches no other."""
    both = Headers(one) + Headers(other)
    assert list(both) == list(Headers(one + other))
    assert Headers(one) + other == both
    for name, _ in both:
        assert list(both.without(name.upper())) == [pair for pair in both if pair[0] != name]
    assert list(both.without(*{name for name, _ in both})) == []
    assert both.without() == both


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ((), []),
        ({"X-A": "1"}, [("x-a", "1")]),
        ({"Set-Cookie": ["a=1", "b=2"]}, [("set-cookie", "a=1"), ("set-cookie", "b=2")]),
        ([("a", "1"), ("A", "2")], [("a", "1"), ("a", "2")]),
        ({"empty": ""}, [("empty", "")]),
        ({"latin": "caf\xe9\x80\xff"}, [("latin", "caf\xe9\x80\xff")]),
        ({"colon": "a: b:c"}, [("colon", "a: b:c")]),
        ({"trim": " \t a b \t "}, [("trim", "a b")]),
        ({"kept": "\xa0x"}, [("kept", "\xa0x")]),
        (Headers({"a": "b"}), [("a", "b")]),
    ],
)
def test_sources(source, fields):
    """A mapping, a mapping to lists, pairs and other headers are all sources."""
    assert list(Headers(source)) == fields


BAD = [
    *((name, "v") for name in ("", " ", "a b", "a:", "a\r\nb", "ä", "a\0", "(", "€", "a\t")),
    *(("n", value) for value in ("a\r\nb: c", "\n", "\r", "a\0b", "€", "\ud800")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_refused_fields(name, value):
    """A name that is no token, or a value with CR, LF, NUL or beyond latin-1, never gets in."""
    for source in ({name: value}, [(name, value)], {name: [value]}):
        with pytest.raises(ValueError):
            Headers(source)
        with pytest.raises(ValidationError):
            Holder(headers=source)
    with pytest.raises(ValueError):
        Headers() + {name: value}


@pytest.mark.parametrize("source", [7, [7], {"a": 7}, {"a": None}, [("a",)], [["a", "b", "c"]], "ab c"])
def test_sources_of_the_wrong_shape_are_validation_errors(source):
    """Where pydantic validates, a source of the wrong shape is an ordinary validation error."""
    with pytest.raises(ValidationError):
        Holder(headers=source)


def test_absent_names():
    """An absent name is None, a default, an empty list or KeyError."""
    headers = Headers({"a": "1"})
    assert (headers.get("b"), headers.get("b", "x"), headers.getlist("b")) == (None, "x", [])
    assert "b" not in headers
    assert 7 not in headers
    assert headers.get("€") is None
    with pytest.raises(KeyError):
        headers["b"]
    assert headers != {"a": "1"}
    assert repr(headers) == "Headers([('a', '1')])"


def test_blocks_of_others_are_read_leniently():
    """Field lines of a peer are parsed whatever the case of names and the spaces around values."""
    headers = Headers.from_block(b"Content-Type:text/plain\r\nX-A: \t1 \r\nx-a:\r\n")
    assert list(headers) == [("content-type", "text/plain"), ("x-a", "1"), ("x-a", "")]


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([], set()),
        ([b"close"], {b"close"}),
        ([b"Keep-Alive, X-Secret"], {b"keep-alive", b"x-secret"}),
        ([b"a ,\tB", b"c"], {b"a", b"b", b"c"}),
    ],
)
def test_connection_options(values, options):
    """The names in all `Connection` fields count, in lower case."""
    fields = [(b"x-other", b"x-kept"), *((b"connection", value) for value in values)]
    assert connection_options(fields) == options


def test_hop_by_hop_names_are_lower_case():
    """The hop-by-hop table is in the case that `fields` has."""
    assert {name.lower() for name in HOP_BY_HOP} == HOP_BY_HOP
