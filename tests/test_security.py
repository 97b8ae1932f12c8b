"""Who calls: every scheme with credentials of all kinds, and OpenID Connect against a real issuer over HTTP."""

import asyncio
import base64
import hashlib
import hmac
import http.server
import json
import logging
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel

from natsweb import OIDC, ApiKey, Auth, Basic, Bearer, Credentials, Depends, HTTPError, Request, Response, Service
from natsweb.errors import BadCredentials, DeclarationError
from natsweb.security.schemes import Scheme


class User(BaseModel):
    """Whoever calls."""

    name: str
    scopes: list[str] = []


@pytest.fixture
def service():
    """A service whose threads end with the test."""
    service = Service("test", threads=2)
    yield service
    service.close()


def check_token(token: str) -> User | None:
    """Give the user of a token."""
    return User(name="ann") if token == "right" else None


async def check_token_later(token: str) -> User | None:
    """Give the user of a token, in its own time."""
    await asyncio.sleep(0)
    return check_token(token)


def check_password(username: str, password: str) -> User | None:
    """Give the user of a password."""
    return User(name=username) if password == "pass:word" else None


async def check_password_later(username: str, password: str) -> User | None:
    """Give the user of a password, in its own time."""
    return check_password(username, password)


def serving(service: Service, scheme: Scheme, annotation: Any = User, **options: Any) -> None:
    """Declare `GET /` that answers with the name of whoever calls."""

    @service.get("/")
    async def show(user: Annotated[annotation, Auth(scheme, **options)]) -> str:
        return "nobody" if user is None else str(getattr(user, "name", user))


def basic(text: str | bytes) -> str:
    """Return the value of `Authorization` for a username and password."""
    return "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


async def ask(service: Service, authorization: str | None = None, **fields: Any) -> Response:
    """Send a request with credentials."""
    headers = {"authorization": authorization} if authorization is not None else {}
    return await service.handle(Request(**{"headers": headers, **fields}))


# ── schemes ──────────────────────────────────────────────────────────────────────────────────────

MISSING, WRONG, RIGHT = "missing", "wrong", "right"
BEARER = Bearer(check_token)
BASIC = Basic(check_password)
KEY = ApiKey(check_token, header="x-api-key")

# scheme, request, what it is
TRIES = [
    (BEARER, {}, MISSING),
    (BEARER, {"headers": {"authorization": ""}}, MISSING),
    (BEARER, {"headers": {"authorization": "Basic cmlnaHQ="}}, MISSING),
    (BEARER, {"headers": {"authorization": "right"}}, MISSING),
    (BEARER, {"headers": {"authorization": "Bearerright"}}, MISSING),
    (BEARER, {"headers": {"authorization": "Bearer"}}, WRONG),
    (BEARER, {"headers": {"authorization": "Bearer   "}}, WRONG),
    (BEARER, {"headers": {"authorization": "Bearer wrong"}}, WRONG),
    (BEARER, {"headers": {"authorization": "Bearer right wrong"}}, WRONG),
    (BEARER, {"headers": {"authorization": "Bearer right"}}, RIGHT),
    (BEARER, {"headers": {"authorization": "bearer right"}}, RIGHT),
    (BEARER, {"headers": {"authorization": "BEARER  right "}}, RIGHT),
    (Bearer(check_token_later), {"headers": {"authorization": "Bearer wrong"}}, WRONG),
    (Bearer(check_token_later), {"headers": {"authorization": "Bearer right"}}, RIGHT),
    (BASIC, {}, MISSING),
    (BASIC, {"headers": {"authorization": "Bearer right"}}, MISSING),
    (BASIC, {"headers": {"authorization": "Basic"}}, WRONG),
    (BASIC, {"headers": {"authorization": "Basic ???"}}, WRONG),
    (BASIC, {"headers": {"authorization": "Basic YTpi YTpi"}}, WRONG),
    (BASIC, {"headers": {"authorization": basic(b"ann\xff:pass:word")}}, WRONG),
    (BASIC, {"headers": {"authorization": basic("ann")}}, WRONG),
    (BASIC, {"headers": {"authorization": basic("ann:")}}, WRONG),
    (BASIC, {"headers": {"authorization": basic("ann:pass")}}, WRONG),
    (BASIC, {"headers": {"authorization": basic("ann:pass:word")}}, RIGHT),
    (BASIC, {"headers": {"authorization": basic("ann:pass:word").replace("Basic", "basic")}}, RIGHT),
    (Basic(check_password_later), {"headers": {"authorization": basic("ann:pass:word")}}, RIGHT),
    (KEY, {}, MISSING),
    (KEY, {"headers": {"x-api-key": "wrong"}}, WRONG),
    (KEY, {"headers": {"x-api-key": ""}}, WRONG),
    (KEY, {"headers": {"X-API-Key": "right"}}, RIGHT),
    (KEY, {"query": "x-api-key=right"}, MISSING),
    (ApiKey(check_token, query="key"), {}, MISSING),
    (ApiKey(check_token, query="key"), {"query": "key=wrong"}, WRONG),
    (ApiKey(check_token, query="key"), {"query": "key="}, WRONG),
    (ApiKey(check_token, query="key"), {"query": "key=right"}, RIGHT),
    (ApiKey(check_token, query="key"), {"query": "key=right&key=wrong"}, WRONG),
    (ApiKey(check_token, query="key"), {"headers": {"key": "right"}}, MISSING),
    (ApiKey(check_token, cookie="sid"), {}, MISSING),
    (ApiKey(check_token, cookie="sid"), {"headers": {"cookie": "a=b; sid=wrong"}}, WRONG),
    (ApiKey(check_token_later, cookie="sid"), {"headers": {"cookie": "a=b; sid=right"}}, RIGHT),
]


@pytest.mark.parametrize("optional", [False, True], ids=["required", "optional"])
@pytest.mark.parametrize(("scheme", "request_fields", "kind"), TRIES, ids=[str(index) for index in range(len(TRIES))])
async def test_credentials(service, scheme, request_fields, kind, optional):
    """Missing ones are 401, or None where the type allows it; wrong and malformed ones are 401 in any case."""
    serving(service, scheme, User | None if optional else User)
    response = await ask(service, **request_fields)
    if kind == RIGHT:
        assert (response.status, response.text) == (200, "ann")
    elif optional and kind == MISSING:
        assert (response.status, response.text) == (200, "nobody")
    else:
        assert response.status == 401
        assert response.headers["www-authenticate"].startswith(scheme.challenge)
        assert response.parse_json()["reason"] == ("unauthenticated" if kind == MISSING else "invalid_token")
        assert "right" not in response.text
        assert "wrong" not in response.text
        assert "pass" not in response.text


@pytest.mark.parametrize("spelling", [User | None, None | User, Annotated[User | None, "documented"]])
async def test_spellings_of_optional(service, spelling):
    """The type allows None however it is spelled."""
    serving(service, BEARER, spelling)
    assert (await ask(service)).text == "nobody"


@pytest.mark.parametrize(
    ("scheme", "authorization", "value"),
    [
        (Bearer(), "Bearer any thing", "'any thing'"),
        (Basic(), basic("ann:pass:word"), "Credentials(username='ann', password='pass:word')"),
        (Basic(), basic("ü:ä"), "Credentials(username='ü', password='ä')"),
        (ApiKey(header="authorization"), "key", "'key'"),
    ],
)
async def test_schemes_that_verify_nothing(service, scheme, authorization, value):
    """Without `verify` the handler gets the credentials themselves."""

    @service.get("/")
    async def show(user: Annotated[Any, Auth(scheme)]) -> str:
        return repr(user)

    assert (await ask(service, authorization)).text == value


async def test_credentials_are_a_pair(service):
    """`Credentials` unpacks into username and password."""

    @service.get("/")
    async def show(user: Annotated[Credentials, Auth(Basic())]) -> list[str]:
        username, password = user
        return [username, password]

    assert (await ask(service, basic("a:b"))).parse_json() == ["a", "b"]


@pytest.mark.parametrize("answer", [None, False])
async def test_verify_says_no(service, answer):
    """None and False are a refusal."""
    serving(service, Bearer(lambda token: answer))
    assert (await ask(service, "Bearer x")).status == 401


@pytest.mark.parametrize("answer", [0, "", [], {}, True])
async def test_verify_gives_something_falsy(service, answer):
    """An id of 0, or an empty dict, is somebody."""

    @service.get("/")
    async def show(user: Annotated[Any, Auth(Bearer(lambda token: answer))]) -> str:
        return repr(user)

    assert (await ask(service, "Bearer x")).text == repr(answer)


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_errors_of_verify(service, caplog, kind):
    """BadCredentials is a refusal with its words, ValueError one without, HTTPError the answer, the rest a failure."""
    errors: dict[str, Exception] = {
        "bad": BadCredentials("expired yesterday"),
        "value": ValueError("hunter2"),
        "http": HTTPError(429, "slow down"),
        "other": OSError("hunter2"),
    }

    def check(token: str) -> None:
        raise errors[token]

    async def check_later(token: str) -> None:
        raise errors[token]

    serving(service, Bearer(check_later if kind == "async def" else check))
    unsaid = await ask(service, "Bearer value")
    assert unsaid.status == 401
    assert "hunter2" not in unsaid.text
    refused = await ask(service, "Bearer bad")
    assert (refused.status, refused.parse_json()["detail"]) == (401, "the credentials are refused: expired yesterday")
    assert (await ask(service, "Bearer http")).status == 429
    failed = await ask(service, "Bearer other")
    assert failed.status == 500
    assert "hunter2" not in failed.text
    assert "hunter2" in caplog.text


async def test_a_refusal_tells_nothing_of_the_inside(service):
    """An error of parsing that `verify` did not mean as words for the caller stays inside."""

    class Row(BaseModel):
        password_hash: int

    def check(token: str) -> Any:
        return Row.model_validate({"password_hash": "hunter2"})

    serving(service, Bearer(check))
    response = await ask(service, "Bearer x")
    assert response.status in (401, 500)
    assert "hunter2" not in response.text
    assert "password_hash" not in response.text


async def test_a_plain_verify_leaves_the_loop_free(service):
    """Checking a password may take its time: like every plain function it has a thread."""
    names = []

    def check(token: str) -> str:
        names.append(threading.current_thread())
        return "ann"

    serving(service, Bearer(check))
    assert (await ask(service, "Bearer x")).status == 200
    assert names != [threading.current_thread()]


async def test_a_plain_verify_that_raises_stop_iteration(service):
    """`next(...)` that finds nobody is a failure of verify, and no request waits for ever."""
    serving(service, Bearer(lambda token: next(iter([]))))
    async with asyncio.timeout(10):
        assert (await ask(service, "Bearer x")).status == 500


async def test_whoever_calls_is_verified_once(service):
    """However many guards, parameters and dependencies want to know, whatever type and scopes they want."""
    asked = []

    def check(token: str) -> User:
        asked.append(token)
        return User(name="ann", scopes=["a"])

    scheme = Bearer(check)

    async def dependency(user: Annotated[User | None, Auth(scheme)]) -> User | None:
        return user

    @service.get("/", depends=[Auth(scheme, scopes="a")])
    async def show(
        one: Annotated[Any, Auth(scheme)],
        two: Annotated[User, Auth(scheme)],
        three: Annotated[User | None, Depends(dependency)],
    ) -> bool:
        return one is two is three

    assert (await ask(service, "Bearer x")).text == "true"
    assert asked == ["x"]
    assert (await ask(service, "Bearer y")).text == "true"
    assert asked == ["x", "y"]


async def test_a_stand_in_for_a_scheme(service, issuer):
    """A test says who calls, without credentials; scopes and models are looked at as ever."""
    oidc = OIDC(issuer.url, AUDIENCE)
    serving(service, oidc, User, scopes=["a"])

    async def ann() -> dict[str, Any]:
        return {"name": "ann", "scopes": ["a"]}

    assert (await ask(service)).status == 401
    with service.override(oidc, ann):
        assert (await ask(service)).text == "ann"
        with service.override(oidc, lambda: User(name="bob", scopes=["b"])):
            assert (await ask(service)).status == 403
        assert (await ask(service, "Bearer whatever")).text == "ann"
    assert (await ask(service)).status == 401
    assert issuer.asked == []


async def nobody() -> None:
    """Say that nobody calls, in its own time."""


@pytest.mark.parametrize("stand_in", [lambda: None, nobody], ids=["def", "async def"])
@pytest.mark.parametrize(("annotation", "status", "text"), [(Any, 401, None), (User | None, 200, "nobody")])
async def test_a_stand_in_that_is_nobody(service, stand_in, annotation, status, text):
    """A test that says nobody calls sees what a request without credentials sees, whatever it sends."""
    scheme = Bearer(check_token)
    serving(service, scheme, annotation)
    stranger = await ask(service)
    assert (stranger.status, stranger.text if text else None) == (status, text)
    with service.override(scheme, stand_in):
        for sent in (None, "Bearer right"):
            response = await ask(service, sent)
            assert (response.status, response.headers, response.body) == (status, stranger.headers, stranger.body)


# ── headers ──────────────────────────────────────────────────────────────────────────────────────

# scheme, options of Auth, authorization, status, WWW-Authenticate
CHALLENGES = [
    (Bearer(check_token), {}, None, 401, "Bearer"),
    (Bearer(check_token, realm="shop"), {}, None, 401, 'Bearer realm="shop"'),
    (Bearer(check_token), {}, "Bearer wrong", 401, 'Bearer error="invalid_token"'),
    (Bearer(check_token, realm="shop"), {}, "Bearer wrong", 401, 'Bearer realm="shop", error="invalid_token"'),
    (
        Bearer(check_token, realm="shop"),
        {"scopes": ["a", "b:c"]},
        "Bearer right",
        403,
        'Bearer realm="shop", error="insufficient_scope", scope="a b:c"',
    ),
    (Basic(check_password), {}, None, 401, 'Basic realm="natsweb"'),
    (Basic(check_password, realm=""), {}, None, 401, 'Basic realm="natsweb"'),
    (Basic(check_password, realm="shop"), {}, None, 401, 'Basic realm="shop"'),
    (Basic(check_password, realm="shop"), {}, "Basic ???", 401, 'Basic realm="shop"'),
    (Basic(check_password, realm="shop"), {}, basic("ann:wrong"), 401, 'Basic realm="shop"'),
    (Basic(check_password, realm="shop"), {"scopes": ["a"]}, basic("ann:pass:word"), 403, 'Basic realm="shop"'),
    (ApiKey(check_token, header="authorization"), {}, None, 401, "ApiKey"),
    (ApiKey(check_token, header="authorization"), {}, "wrong", 401, "ApiKey"),
    (ApiKey(check_token, header="authorization", realm="shop"), {}, "wrong", 401, 'ApiKey realm="shop"'),
]


@pytest.mark.parametrize(("scheme", "options", "authorization", "status", "challenge"), CHALLENGES)
async def test_challenges(service, scheme, options, authorization, status, challenge):
    """Of bearers, wrong credentials are `invalid_token` and 403 names the scopes (RFC 6750); others name the realm."""
    serving(service, scheme, **options)
    response = await ask(service, authorization)
    assert response.status == status
    assert response.headers.getlist("www-authenticate") == [challenge]
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Bearer(realm='a"b'),
        lambda: Basic(realm="a\r\nb"),
        lambda: ApiKey(header="x", realm="a\\b"),
        lambda: Bearer("secret"),
        lambda: Basic(7),
        lambda: ApiKey(),
        lambda: ApiKey(check_token),
        lambda: ApiKey(header="x", query="y"),
        lambda: Auth("bearer"),
        lambda: Auth(Bearer),
        lambda: Auth(check_token),
        lambda: OIDC("id.example", "api"),
        lambda: OIDC("ftp://id.example", "api"),
        lambda: OIDC("https://id.example", "api", algorithms=["none"]),
        lambda: OIDC("https://id.example", "api", algorithms=["RS256", "HS256"]),
    ],
)
def test_schemes_that_cannot_be(make):
    """What could never work, or would let everybody in, is an error where it is written."""
    with pytest.raises(DeclarationError) as caught:
        make()
    assert caught.value.fix


@pytest.mark.parametrize("scope", ['a"b', "a\\b", "a\r\nb", "a b", "ä", "", 7])
def test_scopes_that_cannot_be(scope):
    """A scope is a word (RFC 6749 section 3.3): another one could never match, or would break the header."""
    with pytest.raises(DeclarationError, match="cannot be a scope") as caught:
        Auth(BEARER, scopes=["good", scope])
    assert "scopes=[" in caught.value.fix


def test_documents():
    """Each scheme describes itself for OpenAPI."""
    assert Bearer(format="JWT").document() == {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    assert Bearer().document() == {"type": "http", "scheme": "bearer"}
    assert Basic().document() == {"type": "http", "scheme": "basic"}
    assert ApiKey(cookie="sid").document() == {"type": "apiKey", "in": "cookie", "name": "sid"}
    assert OIDC("https://id.example/", "api").document() == {
        "type": "openIdConnect",
        "openIdConnectUrl": "https://id.example/.well-known/openid-configuration",
    }
    assert repr(Auth(Bearer(name="staff"))) == "Auth(Bearer('staff'))"


def test_without_pyjwt(monkeypatch):
    """The missing library is named where the scheme is made."""
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(DeclarationError, match="PyJWT, which is not installed") as caught:
        OIDC("https://id.example", "api")
    assert caught.value.fix == 'pip install "natsweb[auth]"'


# ── scopes and models ────────────────────────────────────────────────────────────────────────────


def holder(**attributes: Any) -> SimpleNamespace:
    """Return an object with attributes."""
    return SimpleNamespace(name="ann", **attributes)


# who, whether the scopes a and b are there
SCOPES = [
    (holder(scopes=["a", "b", "c"]), True),
    (holder(scopes={"a", "b"}), True),
    (holder(scopes="a b"), True),
    (holder(scope="b c a"), True),
    (holder(scp=("a", "b")), True),
    ({"scopes": ["b", "a"]}, True),
    ({"scope": "a b"}, True),
    ({"scp": ["a", "b"]}, True),
    (holder(scopes=None, scope="a b"), True),
    (User(name="ann", scopes=["a", "b"]), True),
    (holder(scopes=["a"]), False),
    (holder(scopes="ab"), False),
    (holder(scopes="a,b"), False),
    (holder(scopes=[]), False),
    (holder(scopes=7), False),
    (holder(), False),
    ({}, False),
    ({"scope": ""}, False),
    ("a b", False),
    (holder(scopes=[], scope="a b"), False),
    (holder(scopes=["A", "B"]), False),
    ({"scopes": {"a": True, "b": False}}, False),
]


@pytest.mark.parametrize(("who", "there"), SCOPES, ids=[str(index) for index in range(len(SCOPES))])
async def test_scopes(service, who, there):
    """All scopes have to be there: as a list, a set or words, as an attribute or a key of any of the three names."""
    serving(service, Bearer(lambda token: who), Any, scopes=["a", "b"])
    response = await ask(service, "Bearer x")
    if there:
        assert response.status == 200
    else:
        assert response.status == 403
        assert response.parse_json()["reason"] == "insufficient_scope"


async def test_one_scope_as_text(service):
    """A single scope needs no list."""
    serving(service, Bearer(lambda token: holder(scopes=["orders:write"])), Any, scopes="orders:write")
    assert (await ask(service, "Bearer x")).status == 200


async def test_optional_with_scopes(service):
    """Nobody is None; somebody needs the scopes."""
    serving(service, BEARER, User | None, scopes=["a"])
    assert (await ask(service)).text == "nobody"
    assert (await ask(service, "Bearer right")).status == 403


class Claims(BaseModel):
    """Claims of a token."""

    sub: str
    age: int = 0


@pytest.mark.parametrize(
    ("annotation", "claims", "text"),
    [
        (Claims, {"sub": "ann", "age": "7", "more": 1}, "Claims sub='ann' age=7"),
        (Claims | None, {"sub": "ann"}, "Claims sub='ann' age=0"),
        (dict, {"sub": "ann"}, "dict {'sub': 'ann'}"),
        (Any, {"sub": "ann"}, "dict {'sub': 'ann'}"),
        (User, User(name="ann"), "User name='ann' scopes=[]"),
    ],
)
async def test_claims_become_the_annotated_model(service, annotation, claims, text):
    """A mapping becomes the pydantic model that the parameter wants; anything else stays as it is."""

    @service.get("/")
    async def show(user: Annotated[annotation, Auth(Bearer(lambda token: claims))]) -> str:
        return f"{type(user).__name__} {user}"

    assert (await ask(service, "Bearer x")).text == text


@pytest.mark.parametrize("claims", [{}, {"sub": 7}, {"sub": "ann", "age": "hunter2"}])
async def test_claims_that_are_lacking(service, claims):
    """A token that does not fit the model is 401, and no field is named."""
    serving(service, Bearer(lambda token: claims), Claims)
    response = await ask(service, "Bearer x")
    assert (response.status, response.headers["www-authenticate"]) == (401, 'Bearer error="invalid_token"')
    assert "hunter2" not in response.text
    assert "errors" not in response.parse_json()


# ── an issuer ────────────────────────────────────────────────────────────────────────────────────

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
AUDIENCE = "shop"
DISCOVERY = "/.well-known/openid-configuration"


def jwk(key: Any, kid: str | None, **more: str) -> dict[str, Any]:
    """Return the public half of a key as JWK."""
    algorithm = {
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    [kind] = [kind for kind in algorithm if isinstance(key, kind)]
    public = algorithm[kind].to_jwk(key.public_key(), as_dict=True)
    return {**public, **({} if kid is None else {"kid": kid}), **more}


@dataclass
class Issuer:
    """An OpenID Connect issuer: what it answers on each path, how often it was asked, and whether it waits."""

    url: str = ""
    answers: dict[str, bytes | int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def publish(self, *keys: dict[str, Any], issuer: str | None = None) -> None:
        """Publish keys."""
        self.answers = {
            DISCOVERY: json.dumps({"issuer": issuer or self.url, "jwks_uri": f"{self.url}/keys"}).encode(),
            "/keys": json.dumps({"keys": keys}).encode(),
        }

    def down(self) -> None:
        """Answer nothing but 503."""
        self.answers = {DISCOVERY: 503, "/keys": 503}

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Return the claims of a good token, but for those given; None leaves one out."""
        now = int(time.time())
        good = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "exp": now + 600, "iat": now, "scope": "read write"}
        return {name: value for name, value in {**good, **claims}.items() if value is not None}

    def token(self, key: Any = RSA_KEY, kid: str | None = "rsa", algorithm: str = "RS256", **claims: Any) -> str:
        """Return a signed token."""
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(self.claims(**claims), key, algorithm=algorithm, headers=headers)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """Give an issuer on a real socket, in a thread, with an RSA, an EC and an Ed25519 key."""
    made = Issuer()
    made.gate.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            made.gate.wait(20)
            answer = made.answers.get(self.path, 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            try:
                self.wfile.write(b"" if isinstance(answer, int) else answer)
            except OSError:  # whoever asked has read enough
                pass

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        made.publish(jwk(RSA_KEY, "rsa"), jwk(EC_KEY, "ec"), jwk(ED_KEY, "ed"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.gate.set()
        server.shutdown()
        thread.join()


class Clock:
    """The clock of the key cache, which only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Put the key cache on a clock that stands still."""
    clock = Clock()
    monkeypatch.setattr("natsweb.security.oidc.time", clock)
    return clock


@pytest.fixture
def protected(service, issuer) -> Service:
    """A service that answers with the `sub` of a token of the issuer."""

    @service.get("/")
    async def show(claims: Annotated[Claims, Auth(OIDC(issuer.url, AUDIENCE), scopes=["read"])]) -> str:
        return claims.sub

    return service


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "kid", "algorithm"), [(RSA_KEY, "rsa", "RS256"), (EC_KEY, "ec", "ES256"), (ED_KEY, "ed", "EdDSA")]
)
async def test_tokens_of_the_issuer(protected, issuer, key, kid, algorithm):
    """A good token gives its claims, and the keys are fetched once for all requests."""
    token = issuer.token(key, kid, algorithm)
    answers = await asyncio.gather(*[ask(protected, f"Bearer {token}") for _ in range(10)])
    assert {(answer.status, answer.text) for answer in answers} == {(200, "ann")}
    assert issuer.asked == [DISCOVERY, "/keys"]


async def test_ps256_of_a_key_that_names_it(protected, issuer):
    """A key with `alg` is used for that algorithm."""
    issuer.publish(jwk(RSA_KEY, "rsa", alg="PS256"))
    assert (await ask(protected, f"Bearer {issuer.token(algorithm='PS256')}")).status == 200


@pytest.mark.parametrize("claims", [{"aud": [AUDIENCE, "other"]}, {"nbf": 0}, {"exp": int(time.time()) + 86400}])
async def test_claims_that_are_fine(protected, issuer, claims):
    """Several audiences, and times that fit."""
    assert (await ask(protected, f"Bearer {issuer.token(**claims)}")).status == 200


async def test_clocks_that_differ_a_little(protected, issuer):
    """Thirty seconds of difference between clocks are allowed for."""
    now = int(time.time())
    for claims in ({"exp": now - 10}, {"nbf": now + 20}, {"iat": now + 20}):
        assert (await ask(protected, f"Bearer {issuer.token(**claims)}")).status == 200


def unsigned(header: dict[str, Any], claims: dict[str, Any], signature: str = "") -> str:
    """Return a token with any header and signature."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, claims)]
    return ".".join([*parts, signature])


def public_pem() -> bytes:
    """Return the public RSA key as text, which is no secret."""
    return RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def confused(issuer: Issuer) -> str:
    """Return a token that is signed with the public key as if it were a shared secret."""
    head = unsigned({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, issuer.claims()).rpartition(".")[0]
    signature = hmac.new(public_pem(), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


# name, token of an issuer
FORGED: dict[str, Callable[[Issuer], str]] = {
    "audience": lambda issuer: issuer.token(aud="other"),
    "no audience": lambda issuer: issuer.token(aud=None),
    "empty audience": lambda issuer: issuer.token(aud=[]),
    "issuer": lambda issuer: issuer.token(iss="https://evil.example"),
    "issuer with a slash": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "no issuer": lambda issuer: issuer.token(iss=None),
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 60),
    "no expiry": lambda issuer: issuer.token(exp=None),
    "expiry as text": lambda issuer: issuer.token(exp="never"),
    "not yet": lambda issuer: issuer.token(nbf=int(time.time()) + 120),
    "issued tomorrow": lambda issuer: issuer.token(iat=int(time.time()) + 86400),
    "alg none": lambda issuer: unsigned({"alg": "none", "kid": "rsa"}, issuer.claims()),
    "alg None": lambda issuer: unsigned({"alg": "None", "kid": "rsa"}, issuer.claims()),
    "no alg": lambda issuer: unsigned({"kid": "rsa"}, issuer.claims(), "c2lnbg"),
    "alg number": lambda issuer: unsigned({"alg": 7, "kid": "rsa"}, issuer.claims(), "c2lnbg"),
    "alg list": lambda issuer: unsigned({"alg": ["RS256"], "kid": "rsa"}, issuer.claims(), "c2lnbg"),
    "HS256 with the public key": confused,
    "HS256 with nothing": lambda issuer: jwt.encode(issuer.claims(), "x" * 32, headers={"kid": "rsa"}),
    "RS512": lambda issuer: issuer.token(algorithm="RS512"),
    "another key": lambda issuer: issuer.token(OTHER_RSA_KEY),
    "key of another kid": lambda issuer: issuer.token(RSA_KEY, "ec"),
    "ES256 with the kid of RSA": lambda issuer: issuer.token(EC_KEY, "rsa", "ES256"),
    "unknown kid": lambda issuer: issuer.token(RSA_KEY, "nope"),
    "no kid among many keys": lambda issuer: issuer.token(RSA_KEY, None),
    "kid list": lambda issuer: unsigned({"alg": "RS256", "kid": ["rsa"]}, issuer.claims(), "c2lnbg"),
    "kid object": lambda issuer: unsigned({"alg": "RS256", "kid": {}}, issuer.claims(), "c2lnbg"),
    "kid number": lambda issuer: unsigned({"alg": "RS256", "kid": 7}, issuer.claims(), "c2lnbg"),
    "no signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "other claims": lambda issuer: unsigned(
        {"alg": "RS256", "kid": "rsa"}, issuer.claims(sub="bob"), issuer.token().rpartition(".")[2]
    ),
    "jku": lambda issuer: jwt.encode(
        issuer.claims(), OTHER_RSA_KEY, "RS256", {"kid": "x", "jku": "http://127.0.0.1:1/keys"}
    ),
    "embedded jwk": lambda issuer: jwt.encode(
        issuer.claims(), OTHER_RSA_KEY, "RS256", {"kid": "x", "jwk": jwk(OTHER_RSA_KEY, "x")}
    ),
    "two parts": lambda issuer: "a.b",
    "nothing": lambda issuer: "..",
    "no base64": lambda issuer: "ä.ä.ä".encode().decode("latin-1"),
    "no JSON": lambda issuer: "e30x.e30x.e30x",
    "header list": lambda issuer: unsigned([], issuer.claims(), "c2lnbg"),  # type: ignore[arg-type]
    "very long": lambda issuer: "a" * 60_000,
}


@pytest.mark.parametrize("name", FORGED)
async def test_tokens_that_are_refused(protected, issuer, name):
    """Whatever is not a token of this issuer, for this service, now, is 401, and the answer has nothing of it."""
    token = FORGED[name](issuer)
    response = await ask(protected, f"Bearer {token}")
    assert response.status == 401
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    body = response.parse_json()
    assert body["reason"] == "invalid_token"
    assert body["detail"].startswith("the credentials are refused: ")
    assert "evil" not in response.text
    assert "nope" not in response.text
    assert len(response.body) < 500


async def test_scopes_of_a_token(protected, issuer):
    """A token without the scope is 403, whatever else it has."""
    response = await ask(protected, f"Bearer {issuer.token(scope='write')}")
    assert (response.status, response.parse_json()["reason"]) == (403, "insufficient_scope")


async def test_no_token(protected, issuer):
    """Without a token the issuer is not asked."""
    response = await ask(protected)
    assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
    assert issuer.asked == []


async def test_a_single_key_without_kid(protected, issuer):
    """If there is one key, neither it nor the token needs a kid."""
    issuer.publish(jwk(RSA_KEY, None))
    assert (await ask(protected, f"Bearer {issuer.token(kid=None)}")).status == 200


async def test_a_single_key_with_kid(protected, issuer):
    """If there is one key, a token without kid is verified with it; an unknown kid stays unknown."""
    issuer.publish(jwk(RSA_KEY, "rsa"))
    assert (await ask(protected, f"Bearer {issuer.token(kid=None)}")).status == 200
    assert (await ask(protected, f"Bearer {issuer.token(kid='x')}")).status == 401


async def test_keys_for_encryption(protected, issuer):
    """A key that is not for signing verifies nothing; one that says so does."""
    issuer.publish(jwk(OTHER_RSA_KEY, "enc", use="enc"), jwk(RSA_KEY, "rsa", use="sig"))
    assert (await ask(protected, f"Bearer {issuer.token(OTHER_RSA_KEY, 'enc')}")).status == 401
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200


async def test_keys_that_nobody_knows(protected, issuer):
    """Keys of unknown kinds among the others do no harm."""
    issuer.publish({"kty": "magic", "kid": "m"}, {"kid": "x"}, {}, jwk(RSA_KEY, "rsa"))
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200


async def test_a_shared_secret_among_the_keys(protected, issuer):
    """A symmetric key that an issuer publishes by mistake lets nobody in."""
    secret = base64.urlsafe_b64encode(b"x" * 32).rstrip(b"=").decode()
    issuer.publish({"kty": "oct", "k": secret, "kid": "oct", "alg": "HS256"}, jwk(RSA_KEY, "rsa"))
    token = jwt.encode(issuer.claims(), b"x" * 32, headers={"kid": "oct"})
    assert (await ask(protected, f"Bearer {token}")).status == 401


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def test_an_unknown_kid_asks_again_once_per_pause(protected, issuer, clock):
    """However many tokens have unknown keys, the issuer is asked every ten seconds at most."""
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
    for kid in ("a", "b", "c"):
        assert (await ask(protected, f"Bearer {issuer.token(kid=kid)}")).status == 401
    assert len(issuer.asked) == 2
    clock.now += 11
    answers = await asyncio.gather(*[ask(protected, f"Bearer {issuer.token(kid=kid)}") for kid in "abcdef"])
    assert {answer.status for answer in answers} == {401}
    assert len(issuer.asked) == 4
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
    assert len(issuer.asked) == 4


async def test_key_rotation(protected, issuer, clock):
    """A new key is found when the first token comes that is signed with it; the old one ends with the next renewal."""
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
    clock.now += 11
    issuer.publish(jwk(RSA_KEY, "rsa"), jwk(OTHER_RSA_KEY, "new"))
    assert (await ask(protected, f"Bearer {issuer.token(OTHER_RSA_KEY, 'new')}")).status == 200
    issuer.publish(jwk(OTHER_RSA_KEY, "new"))
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
    clock.now += 301
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 401
    assert (await ask(protected, f"Bearer {issuer.token(OTHER_RSA_KEY, 'new')}")).status == 200


async def test_a_kid_that_gets_another_key(protected, issuer, clock):
    """After five minutes a kid stands for what the issuer publishes now, for the request that renews as well."""
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
    issuer.publish(jwk(OTHER_RSA_KEY, "rsa"))
    clock.now += 301
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 401
    assert (await ask(protected, f"Bearer {issuer.token(OTHER_RSA_KEY)}")).status == 200


async def test_an_issuer_that_is_down(protected, issuer, clock, caplog):
    """Without keys the answer is 503 with Retry-After, asked once per pause; then it recovers by itself."""
    published, token = issuer.answers, issuer.token()
    issuer.down()
    for _ in range(3):
        response = await ask(protected, f"Bearer {token}")
        assert (response.status, response.headers["retry-after"]) == (503, "10")
        assert response.parse_json()["reason"] == "issuer_unreachable"
        assert "www-authenticate" not in response.headers
        assert issuer.url not in response.text
        assert not response.retry
    assert issuer.asked == [DISCOVERY]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be fetched" in caplog.text
    issuer.answers = published
    clock.now += 11
    assert (await ask(protected, f"Bearer {token}")).status == 200


async def test_cached_keys_survive_an_outage(protected, issuer, clock):
    """While the issuer is down, known keys go on, however old; it is asked once per pause."""
    assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
    issuer.down()
    clock.now += 301
    for _ in range(5):
        assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
        assert (await ask(protected, f"Bearer {issuer.token()}")).status == 200
        clock.now += 11
    assert issuer.asked == [DISCOVERY, "/keys", *[DISCOVERY] * 5]


async def test_nobody_listens(service, clock):
    """A closed port is an issuer that is down."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    serving(service, OIDC(url, AUDIENCE), Any)
    assert (await ask(service, f"Bearer {Issuer(url).token()}")).status == 503


# name, path, what it answers
LIES: list[Any] = [
    ("status", DISCOVERY, 500),
    ("status of keys", "/keys", 404),
    ("no JSON", DISCOVERY, b"<html>"),
    ("no UTF-8", DISCOVERY, b"\xff\xfe\x00"),
    ("empty", DISCOVERY, b""),
    ("list", DISCOVERY, b"[]"),
    ("another issuer", DISCOVERY, b'{"issuer": "https://evil.example", "jwks_uri": "URL/keys"}'),
    ("issuer with a slash", DISCOVERY, b'{"issuer": "URL/", "jwks_uri": "URL/keys"}'),
    ("no issuer", DISCOVERY, b'{"jwks_uri": "URL/keys"}'),
    ("no keys", DISCOVERY, b'{"issuer": "URL"}'),
    ("keys in a file", DISCOVERY, b'{"issuer": "URL", "jwks_uri": "file:///etc/passwd"}'),
    ("keys nowhere", DISCOVERY, b'{"issuer": "URL", "jwks_uri": null}'),
    ("keys relative", DISCOVERY, b'{"issuer": "URL", "jwks_uri": "/keys"}'),
    ("keys on no port", DISCOVERY, b'{"issuer": "URL", "jwks_uri": "http://a:b/keys"}'),
    ("huge", DISCOVERY, b'{"a": "' + b"x" * 2_000_000 + b'"}'),
    ("huge keys", "/keys", b'{"keys": ["' + b"x" * 2_000_000 + b'"]}'),
    ("no key set", "/keys", b"{}"),
    ("empty key set", "/keys", b'{"keys": []}'),
    ("keys as text", "/keys", b'{"keys": "x"}'),
    ("useless keys", "/keys", b'{"keys": [{"kty": "magic"}]}'),
    ("numbers for keys", "/keys", b'{"keys": [1, 2]}'),
    ("broken key", "/keys", b'{"keys": [{"kty": "RSA", "n": 7, "e": 3, "kid": "rsa"}]}'),
    ("deep", DISCOVERY, b"[" * 100_000),
]


@pytest.mark.parametrize("known", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(("name", "path", "answer"), LIES)
async def test_an_issuer_that_lies(protected, issuer, clock, caplog, name, path, answer, known):
    """Documents that are broken, huge or another issuer's give no keys: 503, or those known before stay in use."""
    token = issuer.token()
    if known:
        assert (await ask(protected, f"Bearer {token}")).status == 200
        clock.now += 301
    issuer.answers[path] = answer.replace(b"URL", issuer.url.encode()) if isinstance(answer, bytes) else answer
    assert (await ask(protected, f"Bearer {token}")).status == (200 if known else 503)
    [record] = caplog.records
    assert re.match(rf"the keys of {issuer.url} cannot be fetched: \w+: .", record.getMessage())
    assert len(record.getMessage()) < 1000


@pytest.fixture
def garbage() -> Iterator[Callable[[bytes], str]]:
    """Give a function that starts a server which says these bytes to everybody, and returns its URL."""
    servers = []

    def start(reply: bytes) -> str:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(65536)
                self.request.sendall(reply)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["nothing", "no HTTP", "half a chunk", "half a body", "redirect to a file"],
)
async def test_an_issuer_that_speaks_no_http(service, garbage, reply):
    """Whatever comes over the socket, it is an issuer without keys."""
    url = garbage(reply)
    serving(service, OIDC(url, AUDIENCE), Any)
    assert (await ask(service, f"Bearer {Issuer(url).token()}")).status == 503


async def test_a_request_that_gives_up_while_keys_are_fetched(protected, issuer, until):
    """The keys come all the same, for the requests that wait with it and for those after it."""
    issuer.gate.clear()
    token = issuer.token()
    first = asyncio.create_task(ask(protected, f"Bearer {token}"))
    await until(lambda: issuer.asked)
    second = asyncio.create_task(ask(protected, f"Bearer {token}"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    issuer.gate.set()
    assert (await second).status == 200
    assert (await ask(protected, f"Bearer {token}")).status == 200


@pytest.mark.parametrize("end", ["waits", "gives up"])
async def test_one_request_renews_the_keys(protected, issuer, clock, until, end):
    """When the keys are too old, one request waits for new ones, and all others go on with those known."""
    token = issuer.token()
    assert (await ask(protected, f"Bearer {token}")).status == 200
    clock.now += 301
    issuer.gate.clear()
    issuer.publish(jwk(OTHER_RSA_KEY, "new"))
    renewing = asyncio.create_task(ask(protected, f"Bearer {token}"))
    await until(lambda: len(issuer.asked) == 3)
    async with asyncio.timeout(4):
        answers = await asyncio.gather(*[ask(protected, f"Bearer {token}") for _ in range(5)])
    assert {answer.status for answer in answers} == {200}
    assert not renewing.done()
    if end == "gives up":
        renewing.cancel()
        await asyncio.wait([renewing])
    unknown = asyncio.create_task(ask(protected, f"Bearer {issuer.token(OTHER_RSA_KEY, 'new')}"))
    issuer.gate.set()
    assert (await unknown).status == 200
    if end == "waits":
        assert (await renewing).status == 401
    assert (await ask(protected, f"Bearer {token}")).status == 401
    assert issuer.asked == [DISCOVERY, "/keys"] * 2


@pytest.mark.parametrize(
    "part",
    [
        "body",
        pytest.param("head", marks=pytest.mark.xfail(strict=True, reason="_FETCH_TIME counts from the body on only")),
    ],
)
async def test_an_issuer_that_trickles(service, monkeypatch, part):
    """The time for a document is for all of it: a server that sends a byte now and then is down."""
    monkeypatch.setattr("natsweb.security.oidc._FETCH_TIME", 0.2)
    stop = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"\r\n" if part == "body" else b"X-Slow: "))
            try:
                while not stop.wait(0.02):
                    self.wfile.write(b" ")
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        serving(service, OIDC(url, AUDIENCE), Any)
        task = asyncio.create_task(ask(service, f"Bearer {Issuer(url).token()}"))
        done, _ = await asyncio.wait([task], timeout=1.5)
        stop.set()
        await task
        server.shutdown()
        thread.join()
    assert done


def test_two_loops(issuer, clock):
    """A scheme lives in a module, and tests run each in a loop of its own, which may fetch keys as well."""
    service = Service("test")
    serving(service, OIDC(issuer.url, AUDIENCE), Any)

    async def many(token: str) -> set[int]:
        answers = await asyncio.gather(*[ask(service, f"Bearer {token}") for _ in range(5)])
        return {answer.status for answer in answers}

    assert asyncio.run(many(issuer.token())) == {200}
    clock.now += 301
    assert asyncio.run(many(issuer.token(OTHER_RSA_KEY, "new"))) == {401}
    clock.now += 11
    issuer.publish(jwk(OTHER_RSA_KEY, "new"))
    assert asyncio.run(many(issuer.token(OTHER_RSA_KEY, "new"))) == {200}
    assert issuer.asked == [DISCOVERY, "/keys"] * 3
