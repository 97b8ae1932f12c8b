"""Paths and subjects are two spellings of one thing; covers are checked against a brute-force model."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natsweb.errors import BadPath, SettingsError, SubjectTooLong
from natsweb.subjects import (
    ANY,
    MAX_SUBJECT,
    REST,
    check_root,
    covers,
    decode_token,
    encode_segment,
    is_literal,
    join,
    matches,
    minimal_cover,
    overlap,
    path_tokens,
    subject_tokens,
    to_path,
    to_subject,
    tokens_below,
)

law = settings(deadline=None, max_examples=300)

# canonical path, subject below "api", decoded segments
PAIRS = [
    ("/", "api", []),
    ("/a/b/c", "api.a.b.c", ["a", "b", "c"]),
    ("/orders/42", "api.orders.42", ["orders", "42"]),
    ("/a%2Eb", "api.a%2Eb", ["a.b"]),
    ("/a%2Fb", "api.a%2Fb", ["a/b"]),
    ("/A", "api.A", ["A"]),
    ("/a/", "api.a.%", ["a", ""]),
    ("//", "api.%.%", ["", ""]),
    ("//a", "api.%.a", ["", "a"]),
    ("/a//b", "api.a.%.b", ["a", "", "b"]),
    ("/%25", "api.%25", ["%"]),
    ("/%2A/%3E", "api.%2A.%3E", ["*", ">"]),
    ("/%2E%2E%2E", "api.%2E%2E%2E", ["..."]),
    ("/a%20b", "api.a%20b", ["a b"]),
    ("/%00%0D%0A%7F", "api.%00%0D%0A%7F", ["\0\r\n\x7f"]),
    ("/gr%C3%BCn", "api.gr%C3%BCn", ["grün"]),
    ("/%F0%9F%90%8D", "api.%F0%9F%90%8D", ["🐍"]),
    ("/-_~!$&'()+,;=", "api.-_~!$&'()+,;=", ["-_~!$&'()+,;="]),
    ("/%40%3A%22", "api.%40%3A%22", ['@:"']),
]

# raw path, its canonical path
SPELLINGS = [
    ("/a.b", "/a%2Eb"),
    ("/%41", "/A"),
    ("/%61dmin", "/admin"),
    ("/a%2fb", "/a%2Fb"),
    ("/grün".encode().decode("latin-1"), "/gr%C3%BCn"),
    ("/a*b", "/a%2Ab"),
    ("/>", "/%3E"),
    ("/a b", "/a%20b"),
    ("/a?b#c", "/a%3Fb%23c"),
    ("/...", "/%2E%2E%2E"),
]

REFUSED_PATHS = [
    *("", "a", "a/b", "*"),
    *("/%", "/%4", "/%zz", "/a%", "/a/%4g", "/%%41", "/%+1", "/% 1"),
    *("/.", "/..", "/a/../b", "/a/./b", "/a/.", "/%2e", "/%2E%2e", "/.%2E", "/a/%2e%2e/b"),
    *("/%FF", "/%C3", "/%C0%AF", "/%ED%A0%80", "/\xff", "/\xe9", "/ü", "/€", "/\ud800"),
]

REFUSED_SUBJECTS = [
    *("api.%61dmin", "api.a%2eb", "api.a%2fb", "api.%7E", "api.a%2Db"),
    *("api.%", "api..x", "api.x.", "api.", "api.*", "api.>", "api.a.*", "api.a.>", "api.a*", "api.a b"),
    *("api.%zz", "api.%4", "api.%%", "api.a%", "api.%2E", "api.%2E%2E", "api.a.%2E%2E.b", "api.%FF"),
    *("api.é", "api.Ã©", "api.€", "api.\ud800", "api.a@b", "api.a\tb", "api.a\r\nb"),
    *("apix", "apix.a", "ap", "", "API.a", "$SYS.a"),
]

REFUSED_ROOTS = [
    *("", " ", ".", "a.", ".a", "a..b", "a b", "a\n", "a\r\nPUB x 0", "ä"),
    *(
        ">",
        "*",
        "a.>",
        "a.*",
        "a*",
        "$SYS",
        "$JS",
        "$JS.API",
        "_INBOX",
        "_INBOX.a",
        "_R_",
        "_GR_",
        "a.$SYS",
        "a/b",
        "a%b",
    ),
]

segments = st.lists(st.one_of(st.text(max_size=8), st.text(".%*> /a\0ü", max_size=4)), max_size=6)


def canonical(parts: list[str]) -> str | None:
    """Return the canonical path of decoded segments, or None where there is none."""
    try:
        tokens = [encode_segment(part) for part in parts]
    except BadPath:
        return None
    return None if tokens == ["%"] else to_path(tokens)


@pytest.mark.parametrize(("path", "subject", "decoded"), PAIRS)
def test_table_both_ways(path, subject, decoded):
    """Each path of the table gives its subject, the subject the path, and the tokens the decoded segments."""
    assert to_subject("api", path) == subject
    tokens = subject_tokens("api", subject)
    assert to_path(tokens) == path
    assert tokens == path_tokens(path) == [encode_segment(one) for one in decoded]
    assert [decode_token(token) for token in tokens] == decoded


@pytest.mark.parametrize(("raw", "path"), SPELLINGS)
def test_every_spelling_of_a_path_has_one_subject(raw, path):
    """A raw path that is not canonical gives the subject of its canonical twin."""
    assert to_path(path_tokens(raw)) == path
    assert to_subject("api", raw) == to_subject("api", path)


@pytest.mark.parametrize("raw", REFUSED_PATHS)
def test_paths_without_subject(raw):
    """Broken escapes, dot segments, invalid UTF-8 and relative paths are refused with 400."""
    with pytest.raises(BadPath) as caught:
        to_subject("api", raw)
    assert caught.value.status == 400


@pytest.mark.parametrize("subject", REFUSED_SUBJECTS)
def test_subjects_that_no_path_gives(subject):
    """A subject other than the canonical one of a path below the root is refused."""
    with pytest.raises(BadPath):
        subject_tokens("api", subject)


@law
@given(segments)
def test_path_subject_path_is_identity(parts):
    """On canonical paths the way to the subject and back is the identity."""
    path = canonical(parts)
    if path is not None:
        subject = to_subject("api.staging", path)
        assert to_path(subject_tokens("api.staging", subject)) == path
        assert path_tokens(path) == [encode_segment(part) for part in parts]


@law
@given(segments, segments)
def test_distinct_paths_have_distinct_subjects(one, other):
    """Two lists of segments that differ never share a subject."""
    first, second = canonical(one), canonical(other)
    if first is not None and second is not None:
        assert (one == other) == (first == second) == (to_subject("r", first) == to_subject("r", second))


@law
@given(st.text(max_size=12))
def test_tokens_are_safe_and_decode(segment):
    """A token holds nothing that NATS, or a protocol line, could misread, and decodes to its segment."""
    if segment in (".", ".."):
        with pytest.raises(BadPath):
            encode_segment(segment)
        return
    token = encode_segment(segment)
    assert re.fullmatch(r"[!-~]+", token)
    assert not set(token) & set(".*>")
    assert is_literal(token)
    assert decode_token(token) == segment


@law
@given(st.one_of(st.text(max_size=40), st.text("/.%2eEfF*> aü", max_size=20)).map(lambda text: f"/{text}"))
def test_any_raw_path_is_refused_or_has_a_subject_that_maps_back(raw):
    """Whatever a client sends is either refused or gives a subject that a service accepts as the same path."""
    try:
        subject = to_subject("api", raw)
    except (BadPath, SubjectTooLong):
        return
    tokens = subject_tokens("api", subject)
    assert tokens == path_tokens(raw)
    assert to_subject("api", to_path(tokens)) == subject


@law
@given(st.one_of(st.text(max_size=20), st.text(".%2eE41*>aé", max_size=12)).map(lambda text: f"api{text}"))
def test_an_accepted_subject_is_the_one_of_its_path(subject):
    """A service accepts only subjects that the gateway would have made."""
    try:
        tokens = subject_tokens("api", subject)
    except BadPath:
        return
    assert to_subject("api", to_path(tokens)) == subject


@pytest.mark.parametrize(
    ("raw", "limit", "fits"),
    [
        ("/" + "a" * (MAX_SUBJECT - 4), MAX_SUBJECT, True),
        ("/" + "a" * (MAX_SUBJECT - 3), MAX_SUBJECT, False),
        ("/" + "%20" * 1022, MAX_SUBJECT, True),
        ("/" + " " * 1023, MAX_SUBJECT, False),
        ("/abc", 7, True),
        ("/abcd", 7, False),
        ("/ü", 9, False),
    ],
)
def test_subject_length_is_bounded(raw, limit, fits):
    """A subject over the limit, counted as it travels, is refused with 414."""
    raw = raw.encode().decode("latin-1")
    if fits:
        assert len(to_subject("api", raw, limit=limit)) <= limit
    else:
        with pytest.raises(SubjectTooLong) as caught:
            to_subject("api", raw, limit=limit)
        assert caught.value.status == 414


@pytest.mark.parametrize("root", ["api", "api.staging", "a-b_c", "A.1", "-", "api._x", "0"])
def test_roots(root):
    """Words joined by dots are roots, and come back as they are."""
    assert check_root(root) == root
    assert subject_tokens(root, to_subject(root, "/x")) == ["x"]


@pytest.mark.parametrize("root", REFUSED_ROOTS)
def test_refused_roots(root):
    """Wildcards, empty tokens and everything reserved for NATS are no roots."""
    with pytest.raises(SettingsError, match="root") as caught:
        check_root(root)
    assert caught.value.fix


# ── patterns against a model ─────────────────────────────────────────────────────────────────────

# Patterns speak of `a` and `b`; subjects have a third letter, so that a wildcard is more than both.
SUBJECTS = [".".join(tokens) for length in range(1, 5) for tokens in product("abc", repeat=length)]
PATTERNS = [
    ".".join(tokens) for length in range(1, 4) for tokens in product("ab*>", repeat=length) if ">" not in tokens[:-1]
]
MODEL = {
    pattern: {
        subject
        for subject in SUBJECTS
        if re.fullmatch(pattern.replace(".", r"\.").replace("*", "[abc]").replace(">", r"[abc](\.[abc])*"), subject)
    }
    for pattern in PATTERNS
}


def test_matches_is_the_model():
    """`matches` agrees with regular expressions on every small pattern and subject."""
    for pattern, matched in MODEL.items():
        assert {subject for subject in SUBJECTS if matches(pattern, subject)} == matched, pattern


def test_covers_is_inclusion():
    """`covers` agrees with inclusion of the matched sets on every pair of small patterns."""
    for wide, narrow in product(PATTERNS, repeat=2):
        assert covers(wide, narrow) == (MODEL[wide] >= MODEL[narrow]), (wide, narrow)


@law
@given(st.lists(st.sampled_from(PATTERNS), max_size=8))
def test_minimal_cover(patterns):
    """The cover matches what the patterns match, and holds none that another one of it covers."""
    cover = minimal_cover(patterns)
    assert cover == sorted(set(cover)) == minimal_cover(reversed(patterns))
    assert set(cover) <= set(patterns)
    assert set().union(*(MODEL[one] for one in cover)) == set().union(*(MODEL[one] for one in patterns))
    assert not [(one, other) for one in cover for other in cover if one != other and covers(one, other)]


@pytest.mark.parametrize(
    ("patterns", "cover"),
    [
        ([], []),
        (["api", "api.>"], ["api", "api.>"]),
        (["api.orders.*", "api.orders.new", "api.orders.*.items"], ["api.orders.*", "api.orders.*.items"]),
        (["api.*", "api.>", "api.a.b"], ["api.>"]),
        (["api.a", "api.a"], ["api.a"]),
        (["api.*.b", "api.a.*"], ["api.*.b", "api.a.*"]),
    ],
)
def test_cover_table(patterns, cover):
    """The cover of the usual patterns of services."""
    assert minimal_cover(patterns) == cover


def test_join_is_the_inverse_of_tokens():
    """`join` puts tokens below a root, where `subject_tokens` finds them."""
    assert join("api", []) == "api"
    assert join("api", ["a", "%", "*"]) == "api.a.%.*"
    assert [is_literal(token) for token in ("a", "%", "*", ">")] == [True, True, False, False]


# ── patterns that meet ──

ROOTS = ["a", "b", "a.b", "a.a.b"]


def test_overlap_is_a_common_subject():
    """`overlap` agrees with the intersection of the matched sets on every pair of small patterns."""
    for one, other in product(PATTERNS, repeat=2):
        assert overlap(one, other) == bool(MODEL[one] & MODEL[other]), (one, other)


tokens = st.lists(st.sampled_from(["a", "b", "%", "%2E", "*"]), min_size=1, max_size=5)
patterns = st.builds(lambda some, tail: ".".join([*some, *tail]), tokens, st.sampled_from([[], [">"]]))


@law
@given(patterns, patterns, st.randoms(use_true_random=False))
def test_overlap_is_symmetric_and_as_wide_as_what_it_covers(one, other, random):
    """Whatever covers a pattern overlaps with it, and with all that it overlaps with; the order never matters."""
    assert overlap(one, other) == overlap(other, one)
    assert overlap(one, one)
    if covers(one, other):
        assert overlap(one, other)
    subject = ".".join(random.choice("ab") if token in (ANY, REST) else token for token in one.split("."))
    if matches(other, subject):
        assert overlap(one, other)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("api.>", "api", False),
        ("api.>", "api.a", True),
        ("api.>", "api.*.*", True),
        ("api.*", "api.a.b", False),
        ("api.orders.*", "api.orders.new", True),
        ("api.*.items", "api.orders.*", True),
        ("api.orders", "api.Orders", False),
        (">", "$SYS.a", True),  # NATS hides system subjects by account, not by pattern
        ("*", "a", True),
        ("*", "a.b", False),
        ("*.>", "a", False),
    ],
)
def test_overlap_table(one, other, meet):
    """The usual pairs of patterns."""
    assert overlap(one, other) == overlap(other, one) == meet


def below(root, pattern):
    """Return the subjects below a root, less the root, that a pattern matches: by brute force."""
    return {subject[len(root) :].lstrip(".") for subject in MODEL[pattern] if f"{subject}.".startswith(f"{root}.")}


@pytest.mark.parametrize("root", ROOTS)
def test_tokens_below_is_what_a_pattern_matches_there(root):
    """What is left of a pattern below a root matches there what the whole pattern matches, less the root itself."""
    rests = {subject[len(root) + 1 :] for subject in SUBJECTS if subject.startswith(f"{root}.")}
    for pattern in PATTERNS:
        found = tokens_below(root, pattern)
        wanted = below(root, pattern) - {""}
        if found is None:
            assert not below(root, pattern), pattern
        elif found:
            assert {rest for rest in rests if matches(".".join(found), rest)} == wanted, pattern
        else:
            assert not wanted, pattern


@pytest.mark.xfail(
    strict=True,
    reason="`api.>` matches api.staging, the root itself of a gateway: tokens_below says only ['>'], one or more",
)
@pytest.mark.parametrize("root", ["a.b", "a.a.b"])
def test_tokens_below_knows_the_root_itself(root):
    """A pattern that matches the root matches no tokens below it, which a tail does not."""
    for pattern in PATTERNS:
        if "" in below(root, pattern):
            assert tokens_below(root, pattern) != [REST], pattern


@pytest.mark.parametrize(
    ("root", "pattern", "rest"),
    [
        ("api", "api", []),
        ("api", "api.orders.*", ["orders", "*"]),
        ("api", "api.>", [">"]),
        ("api", ">", [">"]),
        ("api", "*", []),
        ("api", "*.orders", ["orders"]),
        ("api", "apix.orders", None),
        ("api", "$SRV.PING", None),
        ("api.staging", "api.*.orders", ["orders"]),
        ("api.staging", "api.staging", []),
        ("api.staging", "api", None),
        ("api.staging", "api.live.>", None),
        ("api.staging", "api.>", [">"]),
        ("api.staging", "*.*.>", [">"]),
    ],
)
def test_tokens_below_table(root, pattern, rest):
    """What the usual patterns say below the usual roots."""
    assert tokens_below(root, pattern) == rest
