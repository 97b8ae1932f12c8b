"""Programs that nobody here wrote, against `natsweb dev` as a process: curl, requests, httpx2, Chromium, nats.js."""

import asyncio
import html
import io
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPMessage, parse_headers
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpx2
import pytest
import requests
import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route

from natsweb import Gateway

HERE = Path(__file__).parent
FOREIGN = HERE / "foreign"
EXAMPLE = HERE.parent / "examples" / "orders" / "app.py"

JSON = "application/json"
PROBLEM = "application/problem+json"
TOWEL = {"item": "towel", "quantity": 1, "id": 42, "status": "paid"}

#: Seconds that anything may take before it counts as hanging.
PATIENCE = 20.0


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def environment(**more: str) -> dict[str, str]:
    """Return our environment without settings of natsweb, NATS and proxies."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATSWEB_"))}
    return ours | {"no_proxy": "*", "NO_PROXY": "*"} | more


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a process that we started in a session of its own, with its children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def run(*command: str, timeout: float = PATIENCE, env: dict[str, str] | None = None) -> bytes:
    """Run a program to its end and return its stdout; fails the test with its stderr unless it exits 0."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env or environment(),
        start_new_session=True,
    ) as process:
        try:
            said, complained = process.communicate(timeout=timeout)
        finally:
            kill(process)
    if process.returncode != 0:
        pytest.fail(f"{command[0]} exited {process.returncode}: {complained.decode(errors='replace')}", pytrace=False)
    return said


class Talk:
    """A process that runs beside the test, and what it says on stderr, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name=f"stderr of {process.pid}")
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """Return the match of the first line that `pattern` matches as a whole."""
        give_up = time.monotonic() + PATIENCE
        while (line := self._next(give_up)) is not None:
            if found := re.fullmatch(pattern, line):
                return found
        raise AssertionError("\n".join([f"no line like {pattern!r} came, but:", *self.said]))

    def _next(self, give_up: float) -> str | None:
        try:
            line = self._lines.get(timeout=max(0.0, give_up - time.monotonic()))
        except queue.Empty:
            return None
        if line is not None:
            self.said.append(line)
        return line

    def end(self) -> int:
        """Wait until the process has ended, read what it still says, and return its exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while self._next(time.monotonic()) is not None:
            pass
        return code


@contextmanager
def talking(*command: str, env: dict[str, str] | None = None) -> Iterator[Talk]:
    """Run a program while the context lasts."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env or environment(),
        start_new_session=True,
    ) as process:
        talk = Talk(process)
        try:
            yield talk
        finally:
            kill(process)
            talk.end()


class Dev(NamedTuple):
    """Where a running `natsweb dev` is to be found."""

    http: str
    nats: str


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """Give the URLs of a `natsweb dev` process that serves the orders example, and stop it with Ctrl-C."""
    folder = tmp_path_factory.mktemp("dev")
    app = shutil.copy(EXAMPLE, folder)
    command = [sys.executable, "-m", "natsweb", "dev", str(app), "--port", "0", "--no-reload"]
    with talking(*command, env=environment(XDG_CONFIG_HOME=str(folder))) as talk:
        try:
            http = talk.until(r"  http  (http://127\.0\.0\.1:[0-9]+)")[1]
            nats = talk.until(r"  nats  (nats://127\.0\.0\.1:[0-9]+) \(a private nats-server\)")[1]
            yield Dev(http, nats)
        finally:
            # It owns two more processes: a second Ctrl-C takes them along when the first is not enough.
            talk.process.send_signal(signal.SIGINT)
            try:
                code = talk.end()
            except subprocess.TimeoutExpired:
                talk.process.send_signal(signal.SIGINT)
                code = talk.end()
    assert code == 0, talk.said
    assert not [line for line in talk.said if "Traceback" in line or " ERROR " in line], talk.said


# ── curl ─────────────────────────────────────────────────────────────────────────────────────────


class Answer(NamedTuple):
    """What curl has seen: the last answer, and the statuses of those before it."""

    status: int
    headers: HTTPMessage
    body: bytes
    before: list[int]

    @property
    def json(self) -> Any:
        """The body, which has to be JSON."""
        return json.loads(self.body)


def curl(*arguments: str) -> Answer:
    """Run curl and take its answer apart."""
    rest = run("curl", "-q", "-sS", "-i", "--max-time", "15", *arguments)
    statuses = []
    while rest.startswith(b"HTTP/1.1 "):
        head, _, rest = rest.partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        statuses.append(int(line.split()[1]))
    return Answer(statuses[-1], parse_headers(io.BytesIO(fields + b"\r\n\r\n")), rest, statuses[:-1])


@pytest.mark.needs("curl")
def test_curl_gets_typed_json(dev):
    """A GET answers the order as its model says, with type and length."""
    answer = curl(f"{dev.http}/orders/42")
    assert (answer.status, answer.json) == (200, TOWEL)
    assert answer.headers["content-type"] == JSON
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.needs("curl")
@pytest.mark.parametrize("path", ["/orders/4%32", "/%6Frders/42", "/orders/42?", "/orders/42#here"])
def test_curl_gets_one_order_however_its_path_is_spelled(dev, path):
    """Percent escapes that need not be there, an empty query and a fragment change nothing."""
    assert curl(f"{dev.http}{path}").json == TOWEL


@pytest.mark.needs("curl")
def test_curl_posts_json_and_finds_what_it_made(dev):
    """A POST with --json is 201, and the Location it names has the order."""
    made = curl("--json", '{"item": "Gebäck", "quantity": 3}', f"{dev.http}/orders")
    assert (made.status, made.json["item"], made.json["quantity"]) == (201, "Gebäck", 3)
    assert curl(dev.http + made.headers["location"]).json == made.json


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    ("arguments", "path", "status", "header", "fact"),
    [
        pytest.param([], "/orders/999999", 404, {}, {"detail": "no order 999999"}, id="an order that is not there"),
        pytest.param([], "/nowhere", 404, {}, {"reason": "no_service"}, id="a path that nobody serves"),
        pytest.param(
            ["-X", "DELETE"],
            "/orders",
            405,
            {"allow": "GET, HEAD, OPTIONS, POST"},
            {"reason": "method_not_allowed"},
            id="a method the path does not take",
        ),
        pytest.param(
            ["-d", '{"item": "tea"}'],
            "/orders",
            415,
            {"accept": JSON},
            {"reason": "unsupported_media"},
            id="curl's own content type",
        ),
        pytest.param([], "/orders/towel", 422, {}, {"reason": "invalid_input"}, id="a path value of the wrong type"),
        pytest.param(["--json", '{"item": ""}'], "/orders", 422, {}, {"reason": "invalid_input"}, id="a bad body"),
        pytest.param(["--json", '{"item'], "/orders", 422, {}, {"reason": "invalid_input"}, id="broken JSON"),
        pytest.param(["-X", "POST"], "/orders", 422, {}, {"reason": "invalid_input"}, id="no body"),
    ],
)
def test_curl_is_refused_with_a_problem(dev, arguments, path, status, header, fact):
    """Every refusal has its status, its headers, and a problem+json body that says which it is."""
    answer = curl(*arguments, f"{dev.http}{path}")
    assert (answer.status, answer.headers["content-type"]) == (status, PROBLEM)
    assert header.items() <= dict(answer.headers).items()
    assert {"status": status, **fact}.items() <= answer.json.items()


@pytest.mark.needs("curl")
def test_curl_hears_of_every_refused_field_at_once(dev):
    """A 422 lists the place of each bad value."""
    answer = curl("--json", '{"item": "", "quantity": 0}', f"{dev.http}/orders")
    assert [error["loc"] for error in answer.json["errors"]] == [["body", "item"], ["body", "quantity"]]


@pytest.mark.needs("curl")
def test_curl_asks_for_the_head_alone(dev):
    """HEAD has the status and the headers of GET, and no body."""
    head, get = curl("-I", f"{dev.http}/orders/42"), curl(f"{dev.http}/orders/42")
    assert (head.status, head.body) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == get.headers[name]


@pytest.mark.needs("curl")
def test_curl_asks_what_is_allowed(dev):
    """OPTIONS is 204 with Allow."""
    answer = curl("-X", "OPTIONS", f"{dev.http}/orders/42")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"


@pytest.mark.needs("curl")
@pytest.mark.parametrize("path", ["/orders/../orders/42", "/orders/./42", "/orders/%2e%2E/orders/42", "/.."])
def test_curl_sends_dot_segments_as_they_are(dev, path):
    """A dot segment, escaped or not, is 400 and never resolved."""
    answer = curl("--path-as-is", f"{dev.http}{path}")
    assert (answer.status, answer.json["reason"]) == (400, "bad_path")


@pytest.mark.needs("curl")
def test_curl_follows_the_redirect_from_a_trailing_slash(dev):
    """The Location of the 308 leads to the list, and keeps the query."""
    answer = curl("-L", f"{dev.http}/orders/?status=paid")
    assert (answer.before, answer.status, answer.json) == ([308], 200, [TOWEL])


@pytest.mark.needs("curl")
def test_curl_uploads_in_chunks(dev, tmp_path):
    """A chunked body of several reads arrives whole."""
    body = tmp_path / "order.json"
    body.write_text('{"item": "chunks", "quantity": ' + " " * 300_000 + "4}")
    answer = curl(
        "-H", "Transfer-Encoding: chunked", "-H", f"Content-Type: {JSON}", "-d", f"@{body}", f"{dev.http}/orders"
    )
    assert (answer.status, answer.json["item"], answer.json["quantity"]) == (201, "chunks", 4)


@pytest.mark.needs("curl")
def test_curl_waits_for_100_continue(dev):
    """Expect: 100-continue is answered before the body comes, and the request goes on."""
    answer = curl(
        "-H", "Expect: 100-continue", "--expect100-timeout", "10", "--json", '{"item": "tea"}', f"{dev.http}/orders"
    )
    assert (answer.before, answer.status) == ([100], 201)


@pytest.mark.needs("curl")
def test_curl_keeps_a_body_that_is_too_large_to_itself(dev, tmp_path):
    """With Expect: 100-continue, a body over the limit is 413 before a byte of it is sent."""
    body = tmp_path / "large"
    body.write_bytes(b" " * 20_000_000)
    expect = ["-H", "Expect: 100-continue", "--expect100-timeout", "10"]
    answer = curl(*expect, "--json", f"@{body}", "-w", "\n%{size_upload}", f"{dev.http}/orders")
    problem, _, sent = answer.body.rpartition(b"\n")
    assert (answer.before, answer.status, json.loads(problem)["reason"], sent) == ([], 413, "too_large", b"0")


@pytest.mark.needs("curl")
def test_curl_sends_several_requests_on_one_connection(dev):
    """After answers, errors, uploads and HEAD alike, the connection stays open for the next request."""
    say = ["-o", os.devnull, "-w", "%{http_code} %{num_connects}\n"]
    asked = [
        [f"{dev.http}/orders/42"],
        ["--json", '{"item": "tea"}', f"{dev.http}/orders"],
        [f"{dev.http}/nowhere"],
        ["-I", f"{dev.http}/orders/42"],
        ["-X", "PUT", "--json", "{}", f"{dev.http}/orders/42"],
        ["-X", "OPTIONS", f"{dev.http}/orders"],
        ["--path-as-is", f"{dev.http}/.."],
        ["-H", "Transfer-Encoding: chunked", "--json", '{"item": "tea"}', f"{dev.http}/orders"],
        [f"{dev.http}/orders/7"],
    ]
    arguments = [word for one in asked for word in ("--next", *say, *one)][1:]
    said = run("curl", "-q", "-sS", *arguments).decode().split("\n")[:-1]
    statuses, connects = zip(*(line.split() for line in said), strict=True)
    assert statuses == ("200", "201", "404", "200", "405", "204", "400", "201", "200")
    assert connects == ("1", *["0"] * 8)


# ── requests and httpx2 ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """Give a session of requests that does not look at the environment."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


def test_requests_lives_through_the_life_of_an_order(dev, session):
    """A session makes, shows, advances, lists and cancels an order."""
    made = session.post(f"{dev.http}/orders", json={"item": "Brötchen", "quantity": 2}, timeout=PATIENCE)
    assert (made.status_code, made.json()["item"]) == (201, "Brötchen")
    url = dev.http + made.headers["location"]
    assert session.get(url, timeout=PATIENCE).json() == made.json()
    sent = session.patch(url, params={"status": "sent"}, timeout=PATIENCE)
    assert (sent.status_code, sent.json()) == (200, made.json() | {"status": "sent"})
    listed = session.get(f"{dev.http}/orders", params={"status": "sent", "limit": 1000}, timeout=PATIENCE)
    assert sent.json() in listed.json()
    gone = session.delete(url, timeout=PATIENCE)
    assert (gone.status_code, gone.content) == (204, b"")
    assert session.get(url, timeout=PATIENCE).status_code == 404


def test_requests_sends_a_body_of_unknown_length(dev, session):
    """A generator as body, which requests sends in chunks, arrives whole."""
    pieces = ('{"item": ', '"pieces', " and more", '", "quantity"', ": 5", "}")
    body = (piece.encode() for piece in pieces)
    answer = session.post(f"{dev.http}/orders", data=body, headers={"content-type": JSON}, timeout=PATIENCE)
    assert answer.request.headers["transfer-encoding"] == "chunked"
    assert (answer.status_code, answer.json()["item"], answer.json()["quantity"]) == (201, "pieces and more", 5)


def test_requests_is_told_of_a_bad_query(dev, session):
    """A query parameter that its type does not take is 422, and raise_for_status raises."""
    answer = session.get(f"{dev.http}/orders", params={"status": "eaten", "limit": "all"}, timeout=PATIENCE)
    assert {tuple(error["loc"]) for error in answer.json()["errors"]} == {("query", "status"), ("query", "limit")}
    with pytest.raises(requests.HTTPError, match="422"):
        answer.raise_for_status()


def test_httpx2_talks_over_a_client(dev):
    """A client with a base URL posts, gets what it posted, and follows a relative redirect."""
    with httpx2.Client(base_url=dev.http, timeout=PATIENCE, trust_env=False, follow_redirects=True) as client:
        made = client.post("/orders", json={"item": "茶", "quantity": 2})
        assert (made.status_code, made.json()["item"]) == (201, "茶")
        assert client.get(made.headers["location"]).json() == made.json()
        listed = client.get("/orders/", params={"status": "paid"})
        assert [one.status_code for one in listed.history] == [308]
        assert (listed.status_code, listed.json()) == (200, [TOWEL])


async def test_httpx2_sends_fifty_requests_at_once(dev):
    """Of 50 concurrent requests, each gets its own order back, both when it makes it and when it asks for it."""
    limits = httpx2.Limits(max_connections=50)
    async with httpx2.AsyncClient(base_url=dev.http, timeout=PATIENCE, trust_env=False, limits=limits) as client:
        bodies = [{"item": f"item {number}", "quantity": number} for number in range(1, 51)]
        made = await asyncio.gather(*[client.post("/orders", json=body) for body in bodies])
        orders = [answer.json() for answer in made]
        assert [{"item": order["item"], "quantity": order["quantity"]} for order in orders] == bodies
        assert len({order["id"] for order in orders}) == 50
        shown = await asyncio.gather(*[client.get(f"/orders/{order['id']}") for order in orders])
        assert [answer.json() for answer in shown] == orders


# ── a browser ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def site(dev: Dev) -> Iterator[str]:
    """Give the URL of a Starlette app on uvicorn that serves a page at / and mounts the gateway at /api."""
    gateway = Gateway(root="api", nats=dev.nats)

    async def page(_):
        return FileResponse(FOREIGN / "page.html")

    @asynccontextmanager
    async def lifespan(_):
        async with gateway:
            yield

    app = Starlette(routes=[Route("/", page), Mount("/api", gateway)], lifespan=lifespan)
    server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, timeout_graceful_shutdown=5))
    with socket.create_server(("127.0.0.1", 0)) as listening:  # from here on connections wait for the server
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="site")
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.needs("chromium")
def test_a_page_in_chromium_asks_the_api(site, tmp_path):
    """fetch() in a real browser gets, makes, cancels and is refused through a gateway mounted beside the page."""
    dom = run(
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=30000",
        "--dump-dom",
        f"{site}/",
        env=environment(HOME=str(tmp_path)),
        timeout=30,
    ).decode()
    found = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom
    result = json.loads(html.unescape(found[1]))
    assert "error" not in result, result
    assert result["shown"] == {"status": 200, "type": JSON, "location": None, "body": TOWEL}
    made = result["created"]
    assert (made["status"], made["type"]) == (201, JSON)
    assert (made["body"]["item"], made["body"]["quantity"]) == ("Gebäck & <Tee> 🫖", 3)
    assert made["location"] == f"/orders/{made['body']['id']}"
    assert (result["again"]["status"], result["again"]["body"]) == (200, made["body"])
    assert (result["cancelled"]["status"], result["cancelled"]["body"]) == (204, None)
    assert (result["missing"]["status"], result["missing"]["type"]) == (404, PROBLEM)
    assert (result["untyped"]["status"], result["untyped"]["body"]["reason"]) == (415, "unsupported_media")
    assert (result["redirected"]["status"], result["redirected"]["body"]) == (200, [TOWEL])
    assert result["many"] == [42, 7] * 10


# ── a NATS client of another language ────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the path of client.mjs beside a freshly installed @nats-io/transport-node."""
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "client.mjs"):
        shutil.copy(FOREIGN / name, folder)
    quietly = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]
    command = ["npm", "install", *quietly, "--fetch-retries=0", "--fetch-timeout=15000"]
    try:
        npm = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        missing("the npm registry")
    if npm.returncode != 0:
        if re.search(r"ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|E50[0-9]|network", npm.stderr):
            missing("the npm registry")
        pytest.fail(npm.stderr, pytrace=False)
    return str(folder / "client.mjs")


def missing(what: str) -> NoReturn:
    """Skip or fail the test as conftest.py does for a missing tool."""
    if os.environ.get("NATSWEB_REQUIRE") == "all":
        pytest.fail(f"needs {what}", pytrace=False)
    pytest.skip(f"needs {what}")


@pytest.fixture
def nats_js(dev: Dev, script: str) -> Callable[..., dict[str, Any]]:
    """Give a function that runs client.mjs in a mode, on a subject, with a body, and returns what it prints."""

    def talk(mode: str, subject: str, *body: str) -> dict[str, Any]:
        return json.loads(run("node", script, mode, dev.nats, subject, *body))

    return talk


@pytest.mark.needs("npm", "node")
def test_nats_js_gets_exactly_one_plain_reply(nats_js):
    """An empty message without headers is a GET: one reply, the JSON bare, its type the only header."""
    said = nats_js("ask", "api.orders.42")
    assert said["replies"] == 1
    assert json.loads(said["data"]) == TOWEL
    assert (said["headers"], said["status"]) == ({"content-type": [JSON]}, 0)


@pytest.mark.needs("npm", "node")
def test_nats_js_posts_with_a_bare_body(nats_js):
    """A message with a body and no headers is a POST: exactly one reply, whose 201 is in Nw-Status."""
    said = nats_js("ask", "api.orders", '{"item": "node", "quantity": 6}')
    order = json.loads(said["data"])
    assert (said["replies"], order["item"], order["quantity"]) == (1, "node", 6)
    assert said["headers"]["Nw-Status"] == ["201"]
    assert said["headers"]["location"] == [f"/orders/{order['id']}"]
    assert json.loads(nats_js("request", f"api.orders.{order['id']}")["data"]) == order


@pytest.mark.needs("npm", "node")
@pytest.mark.parametrize(
    ("subject", "body", "status"),
    [
        pytest.param("api.orders.999999", [], 404, id="an order that is not there"),
        pytest.param("api.orders.towel", [], 422, id="a token of the wrong type"),
        pytest.param("api.orders.42", ["{}"], 405, id="a body, so a POST, where none is taken"),
        pytest.param("api.orders.%34%32", [], 400, id="a subject that is not canonical"),
    ],
)
def test_nats_js_hears_of_errors_as_from_any_micro_service(nats_js, subject, body, status):
    """An error is exactly one reply with the code and the text that NATS micro clients look for, and a problem."""
    said = nats_js("ask", subject, *body)
    assert (said["replies"], said["headers"]["Nats-Service-Error-Code"]) == (1, [str(status)])
    assert said["headers"]["Nats-Service-Error"] != [""]
    assert said["headers"]["content-type"] == [PROBLEM]
    assert json.loads(said["data"])["status"] == status


@pytest.mark.needs("npm", "node")
def test_nats_js_learns_that_nobody_serves_a_subject(nats_js):
    """A subject without routes has no responders, which is the server's word and comes once."""
    assert nats_js("request", "api.nowhere") == {"error": "NoRespondersError"}
    said = nats_js("ask", "api.nowhere")
    assert (said["replies"], said["data"], said["status"]) == (1, "", 503)


@pytest.mark.needs("npm", "node")
@pytest.mark.parametrize(
    ("body", "kind"),
    [('{"id": 7}', JSON), ("just text", "text/plain; charset=utf-8")],
)
def test_nats_js_answers_http_without_knowing_it(dev, script, session, body, kind):
    """A bare reply to a GET through the gateway is 200 with the content type that its bytes suggest."""
    with talking("node", script, "answer", dev.nats, "api.plain.*", body) as talk:
        talk.until("ready")
        answer = session.get(f"{dev.http}/plain/a.b", params={"q": "1"}, timeout=PATIENCE)
        seen = json.loads(talk.until(r"\{.*\}")[0])
        assert talk.end() == 0
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (200, kind, body)
    assert (seen["subject"], seen["data"]) == ("api.plain.a%2Eb", "")
    assert (seen["headers"]["Nw-Method"], seen["headers"]["Nw-Query"]) == (["GET"], ["q=1"])


# ── NATS micro services of another language ──────────────────────────────────────────────────────

#: A client and a service of @nats-io/services, which know of no HTTP but what is in their metadata.
MICRO = """
import { connect } from "@nats-io/transport-node";
import { Svcm } from "@nats-io/services";

const [mode, url, name, subject, metadata, body] = process.argv.slice(2);
setTimeout(() => process.exit(1), 60_000).unref();
const nc = await connect({ servers: url, reconnect: false, timeout: 5_000 });
const micro = new Svcm(nc);

async function all(answers) {
  const found = [];
  for await (const one of await answers) found.push(one);
  return found;
}

async function look() {
  const client = micro.client({ strategy: "stall", maxWait: 2_000 });
  const verbs = { ping: client.ping(), info: client.info(name), stats: client.stats(name) };
  const said = {};
  for (const [verb, answers] of Object.entries(verbs)) said[verb] = await all(answers);
  console.log(JSON.stringify(said));
  await nc.drain();
}

async function serve() {
  const service = await micro.add({ name, version: "3.2.1", description: "not in Python" });
  const handler = (err, msg) => {
    if (msg.string() === "fail") msg.respondError(418, "short and stout");
    else msg.respond(body);
  };
  service.addEndpoint("show", { subject, handler, metadata: JSON.parse(metadata) });
  await nc.flush();
  console.error("ready");
  await service.stopped;
}

await { look, serve }[mode]();
"""


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the path of a script beside a freshly installed @nats-io/services."""
    folder = tmp_path_factory.mktemp("micro")
    package = json.loads((FOREIGN / "package.json").read_text())
    package["dependencies"]["@nats-io/services"] = "3.0.0-25"
    (folder / "package.json").write_text(json.dumps(package))
    (folder / "micro.mjs").write_text(MICRO)
    quietly = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", "--loglevel=error"]
    command = ["npm", "install", *quietly, "--fetch-retries=0", "--fetch-timeout=15000"]
    try:
        npm = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        missing("the npm registry")
    if npm.returncode != 0:
        if re.search(r"ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|E50[0-9]|network", npm.stderr):
            missing("the npm registry")
        pytest.fail(npm.stderr, pytrace=False)
    return str(folder / "micro.mjs")


def natsweb(*arguments: str) -> Any:
    """Run a command of natsweb to its end, and return the JSON that it prints."""
    return json.loads(run(sys.executable, "-m", "natsweb", *arguments, "--json"))


@pytest.mark.needs("npm", "node")
def test_nats_js_looks_at_a_service(dev, micro, session):
    """The micro client of nats.js lists a natsweb service, reads its INFO, and sees its STATS count."""
    before = json.loads(run("node", micro, "look", dev.nats, "orders"))
    [ping], [info], [stats] = before["ping"], before["info"], before["stats"]
    assert (ping["name"], ping["type"]) == ("orders", "io.nats.micro.v1.ping_response")
    assert ping["id"] == info["id"] == stats["id"]
    show = {one["name"]: one for one in info["endpoints"]}["show"]
    assert (show["subject"], show["queue_group"]) == ("api.orders.*", "orders")
    assert (show["metadata"]["http.method"], show["metadata"]["http.path"]) == ("GET", "/orders/<id>")
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    for path in ("/orders/42", "/orders/42", "/orders/999999"):
        session.get(f"{dev.http}{path}", timeout=PATIENCE)
    [stats] = json.loads(run("node", micro, "look", dev.nats, "orders"))["stats"]
    then, now = [{one["name"]: one for one in said["endpoints"]}["show"] for said in (before["stats"][0], stats)]
    assert now["num_requests"] == then["num_requests"] + 3
    assert now["num_errors"] == then["num_errors"]
    assert now["processing_time"] > then["processing_time"]
    assert now["average_processing_time"] == now["processing_time"] // now["num_requests"]
    assert set(now["data"]) == {"p50", "p99", "in_flight"}


@pytest.mark.needs("npm", "node")
def test_nats_js_is_a_service_among_ours(dev, micro, session):
    """A service of nats.js is listed, has its routes, and answers HTTP through a gateway that names it."""
    metadata = json.dumps({"http.method": "GET,POST", "http.path": "/tea/<kind>"})
    gateway = [sys.executable, "-m", "natsweb", "gateway", "--root", "js", "--port", "0", "--nats", dev.nats]
    with talking("node", micro, "serve", dev.nats, "tea", "js.tea.*", metadata, '{"tea": true}') as talk:
        talk.until("ready")
        [listed] = natsweb("ls", "tea", "--nats", dev.nats)
        assert (listed["name"], listed["version"], listed["description"]) == ("tea", "3.2.1", "not in Python")
        assert {one["name"] for one in natsweb("ls", "--nats", dev.nats)} == {"orders", "tea"}
        [pinged] = natsweb("ping", "tea", "--nats", dev.nats)
        assert pinged["id"] == listed["id"]
        row = {"path": "/tea/<kind>", "subject": "js.tea.*", "service": "tea", "instances": 1}
        routes = natsweb("routes", "--live", "--root", "js", "--nats", dev.nats)
        assert routes == [{"method": "GET"} | row, {"method": "POST"} | row]
        with talking(*gateway, "--known-only", env=environment()) as front:
            http = front.until(r'.*"http": "(http://[^"]+)".*')[1]
            answer = session.get(f"{http}/tea/green", timeout=PATIENCE)
            assert (answer.status_code, answer.headers["content-type"]) == (200, JSON)
            assert answer.json() == {"tea": True}
            failed = session.post(f"{http}/tea/green", data="fail", timeout=PATIENCE)
            assert failed.status_code == 418
            assert session.get(f"{http}/coffee", timeout=PATIENCE).status_code == 404
        [stats] = json.loads(run("node", micro, "look", dev.nats, "tea"))["stats"]
        assert stats["endpoints"][0]["num_requests"] == 2


@pytest.mark.needs("npm", "node")
def test_natsweb_does_not_start_over_a_service_of_nats_js(dev, micro, tmp_path):
    """A natsweb service whose paths a plain service has would run each request as well: exit code 3."""
    app = tmp_path / "over.py"
    app.write_text(
        "from natsweb import Service\nsvc = Service('over', root='js')\n\n@svc.get('/tea/green')\n"
        "async def green() -> str: return 'green'\n"
    )
    with talking("node", micro, "serve", dev.nats, "tea", "js.tea.*", "{}", "tea") as talk:
        talk.until("ready")
        with talking(sys.executable, "-m", "natsweb", "run", str(app), "--nats", dev.nats) as ours:
            assert ours.end() == 3
    assert "error: over takes paths of tea, which knows nothing of natsweb, so that both would run each request" in (
        ours.said
    )
