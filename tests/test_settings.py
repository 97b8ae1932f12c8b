"""Where NATS settings come from: flags, environment, context files, default; and what is never shown."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from natsweb.errors import SettingsError
from natsweb.settings import DEFAULT_URL, Limits, Nats, find_nats, mask

CONTEXTS = {
    "selected": {"url": "nats://selected", "user": "u", "password": "p"},
    "named": {"url": "nats://named", "token": "t"},
    "other": {"url": "nats://other", "creds": "~/my.creds", "ca": "/ca.pem", "tls_first": True},
}


@pytest.fixture
def environ(tmp_path):
    """An environment whose context files are those above, one of them selected."""
    folder = tmp_path / "nats"
    (folder / "context").mkdir(parents=True)
    (folder / "context.txt").write_text("selected\n")
    for name, content in CONTEXTS.items():
        (folder / "context" / f"{name}.json").write_text(json.dumps(content))
    return {"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/home/me"}


# flags, environment, URL, source
SOURCES = [
    ({}, {}, "nats://selected", "context selected"),
    ({}, {"NATS_CONTEXT": "named"}, "nats://named", "context named"),
    ({"context": "other"}, {"NATS_CONTEXT": "named"}, "nats://other", "context other"),
    ({}, {"NATS_URL": "nats://env"}, "nats://env", "NATS_URL"),
    ({}, {"NATS_URL": "nats://env", "NATS_CONTEXT": "named"}, "nats://env", "NATS_URL"),
    ({"context": "named"}, {"NATS_URL": "nats://env"}, "nats://named", "context named"),
    ({"url": "nats://flag"}, {}, "nats://flag", "--nats"),
    ({"url": "nats://flag"}, {"NATS_URL": "nats://env"}, "nats://flag", "--nats"),
    ({"url": "nats://flag", "context": "named"}, {"NATS_URL": "nats://env"}, "nats://flag", "--nats"),
    ({}, {"NATS_URL": "", "NATS_CONTEXT": ""}, "nats://selected", "context selected"),
]


@pytest.mark.parametrize(("flags", "variables", "url", "source"), SOURCES)
def test_sources(environ, flags, variables, url, source):
    """Flags win over the environment, which wins over the selected context."""
    found = find_nats(**flags, environ={**environ, **variables})
    assert (found.urls, found.source, found.is_configured) == ((url,), source, True)
    assert len(found.looked_at) == 4


def test_the_default(tmp_path):
    """Without any word of a server it is the local one, and that is told apart."""
    found = find_nats(environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert found.urls == (DEFAULT_URL,)
    assert (found.source, found.is_configured) == ("default", False)
    assert found.looked_at == ("--nats (unset)", "NATS_URL (unset)", "context (none selected)", "default")


def test_the_home_folder(tmp_path):
    """Without XDG_CONFIG_HOME the contexts are below ~/.config."""
    folder = tmp_path / ".config" / "nats" / "context"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text('{"url": "nats://mine"}')
    assert find_nats(context="mine", environ={"HOME": str(tmp_path)}).urls == ("nats://mine",)


def test_a_server_named_outright_takes_nothing_from_the_selected_context(environ):
    """The login of the selected context is not sent to a server named by flag or environment."""
    for flags, variables in [({"url": "nats://x"}, {}), ({}, {"NATS_URL": "nats://x"})]:
        found = find_nats(**flags, environ={**environ, **variables})
        assert (found.user, found.password, found.token) == (None, None, None)


def test_values(environ):
    """Each setting comes from its variable or the context's key, paths expanded."""
    found = find_nats(context="other", environ=environ)
    assert (found.creds, found.ca, found.tls_first) == (Path("/home/me/my.creds"), Path("/ca.pem"), True)
    variables = {
        "NATS_URL": " nats://a, nats://b ,",
        "NATS_USER": "u",
        "NATS_PASSWORD": "p",
        "NATS_CREDS": "/c",
        "NATS_NKEY": "/n",
        "NATS_CERT": "/cert",
        "NATS_KEY": "~/key",
        "NATS_CA": "/ca",
    }
    assert find_nats(environ={**environ, **variables}) == Nats(
        urls=("nats://a", "nats://b"),
        user="u",
        password="p",
        creds=Path("/c"),
        nkey=Path("/n"),
        cert=Path("/cert"),
        key=Path("/home/me/key"),
        ca=Path("/ca"),
        source="NATS_URL",
        looked_at=("--nats (unset)", "NATS_URL (set)", "context (none selected)", "default"),
    )


@pytest.mark.parametrize(
    ("variables", "user", "password", "token"),
    [
        ({"NATS_USER": "u", "NATS_PASSWORD": "p"}, "u", "p", None),
        ({"NATS_USER": "u"}, None, None, "u"),
        ({"NATS_TOKEN": "t"}, None, None, "t"),
    ],
)
def test_logins(tmp_path, variables, user, password, token):
    """A user without a password is a token, as the nats command line has it."""
    found = find_nats(environ={"XDG_CONFIG_HOME": str(tmp_path), **variables})
    assert (found.user, found.password, found.token) == (user, password, token)


def test_environment_over_context(environ):
    """A variable wins over the same key of the context that is in force."""
    found = find_nats(environ={**environ, "NATS_USER": "me", "NATS_PASSWORD": "mine"})
    assert (found.urls, found.user, found.password) == (("nats://selected",), "me", "mine")


# context, content of its file, parts of the message
MISTAKES = [
    ("missing", None, ["no NATS context 'missing'", "missing.json", "known contexts: named, other, selected"]),
    ("../x", None, ["'../x' cannot be the name", "nats context ls"]),
    (".x", None, ["'.x' cannot be the name"]),
    ("a\\b", None, ["cannot be the name"]),
    ("broken", "{", ["'broken' cannot be read", "broken.json"]),
    ("nsc", '{"nsc": "nsc://op/acc/user"}', ["'nsc' uses nsc", "nsc.json", "NATS_CREDS"]),
    ("jwt", '{"user_jwt": "x"}', ["uses user_jwt"]),
]


@pytest.mark.parametrize(("name", "content", "parts"), MISTAKES)
def test_mistakes(environ, name, content, parts):
    """A context that is not there, is broken, or asks for what natsweb cannot do is named with the remedy."""
    if content is not None:
        Path(environ["XDG_CONFIG_HOME"], "nats", "context", f"{name}.json").write_text(content)
    for flags, variables in [({"context": name}, {}), ({}, {"NATS_CONTEXT": name})]:
        with pytest.raises(SettingsError) as caught:
            find_nats(**flags, environ={**environ, **variables})
        for part in parts:
            assert part in str(caught.value)


def test_no_context_at_all(tmp_path):
    """Where there are no contexts, the remedy is to name a server."""
    with pytest.raises(SettingsError, match="--nats or NATS_URL"):
        find_nats(context="x", environ={"XDG_CONFIG_HOME": str(tmp_path)})


def test_os_environ_is_the_default(environ, monkeypatch):
    """Without an explicit environment the process's own counts."""
    for name in ("NATS_URL", "NATS_CONTEXT", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert find_nats().urls == ("nats://selected",)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("nats://host:4222", "nats://host:4222"),
        ("host", "host"),
        ("host:4222", "host:4222"),
        ("nats://user:hunter2@host:4222", "nats://***@host:4222"),
        ("tls://hunter2@host", "tls://***@host"),
        ("user:hunter2@host:4222", "***@host:4222"),
        ("nats://user:hunter2@x@host", "nats://***@host"),
        ("wss://u:hunter2@[::1]:443/path", "wss://***@[::1]:443/path"),
    ],
)
def test_mask(url, masked):
    """User and password of a URL are hidden, all else stays."""
    assert mask(url) == masked
    assert Nats(urls=(url, url)).display == f"{masked}, {masked}"


@pytest.mark.parametrize("password", ["hunter2/x", "hunter2#x", "hunter2?x", "hunter2[x"])
def test_mask_of_passwords_that_should_have_been_escaped(password):
    """A password that makes the URL a bad one is hidden all the same."""
    assert "hunter2" not in mask(f"nats://user:{password}@host")


def test_repr_shows_no_password_or_token():
    """Passwords and tokens do not show in the repr of settings."""
    assert "hunter2" not in repr(Nats(user="me", password="hunter2", token="hunter2"))


def test_repr_shows_no_login_of_a_url():
    """The login in a URL does not show in the repr of settings."""
    assert "hunter2" not in repr(Nats(urls=("nats://me:hunter2@host",)))


@pytest.mark.parametrize("value", [Limits(), Nats()])
def test_settings_are_frozen(value):
    """Settings cannot be changed."""
    name = next(iter(value.__dataclass_fields__))
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, 1)
