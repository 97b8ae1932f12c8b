"""The commands that look at services and at NATS, as processes: words, exit codes, and JSON that parses."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from textwrap import dedent
from typing import NamedTuple

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from natsweb import HTTPError, Nats, Request, Response, Service
from natsweb.bus import request
from natsweb.embedded import embedded_server
from natsweb.front import Front
from natsweb.gateway import Gateway
from natsweb.member import Member
from natsweb.micro import METHOD, WIRE, Endpoint, Info
from natsweb.natsbus import connect
from natsweb.wire import encode_request

METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]

numbers = itertools.count(1)

APP = dedent(
    """
    from natsweb import Service
    svc = Service("{name}", version="1.2.3", root="{root}")

    @svc.get("{path}")
    async def handler() -> str:
        return "{name}"
    """
)


class Ended(NamedTuple):
    """A command that has come to its end."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """Its output, which has to be JSON."""
        return json.loads(self.out)

    @property
    def cells(self):
        """The lines of a table, each as a list of words."""
        return [line.split() for line in self.out.splitlines()]


class Running:
    """A command that runs beside the test."""

    def __init__(self, process):
        self.process = process
        self.err = ""

    async def says(self, pattern):
        """Read stderr until it matches."""
        async with asyncio.timeout(20):
            while not (found := re.search(pattern, self.err)):
                chunk = await self.process.stderr.read(4096)
                assert chunk, f"ended without saying {pattern!r}:\n{self.err}"
                self.err += chunk.decode()
        return found

    async def ends(self):
        """Wait for the end."""
        async with asyncio.timeout(20):
            out, err = await self.process.communicate()
        return Ended(self.process.returncode, out.decode(), self.err + err.decode())

    async def stop(self):
        """Tell it to stop, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ends()


@pytest.fixture
async def begin(tmp_path, nats_url):
    """Give a function that starts `natsweb ...` on the server, in an empty folder and a clean environment."""
    processes = []

    async def begin(*arguments, stdin=None, **environ):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
        settings = {"NATS_URL": nats_url, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "natsweb"),
            *arguments,
            cwd=tmp_path,
            env=clean | settings | environ,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        if stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        return Running(process)

    yield begin
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


@pytest.fixture
def natsweb(begin):
    """Give a function that runs `natsweb ...` to its end."""

    async def natsweb(*arguments, **options):
        return await (await begin(*arguments, **options)).ends()

    return natsweb


@pytest.fixture
def root():
    """Give a root that no other test has used."""
    return f"c{next(numbers)}"


@pytest.fixture
async def serve(bus, root):
    """Give a function that lets services join in this process, until the test ends."""
    async with AsyncExitStack() as stack:

        async def serve(service, **options):
            member = Member(bus, service, root=root, **options)
            await member.start()
            stack.callback(service.close)
            stack.push_async_callback(member.stop, 0.1)
            return member

        yield serve


def shop(name="shop", version="1.2.3"):
    """Return a service that echoes, and answers in several ways."""
    svc = Service(name, version=version, description="sells things")

    @svc.route("/echo", methods=[method for method in METHODS if method != "OPTIONS"])
    async def echo(request: Request) -> Response:
        """Say what came."""
        said = {
            "method": request.method,
            "query": request.query,
            "headers": list(request.headers),
            "body": request.body.decode("latin-1"),
        }
        return Response(headers={"content-type": "application/json", "x-a": "1"}, body=json.dumps(said))

    @svc.get("/orders/<id>")
    async def show(id: int) -> dict[str, int]:
        return {"id": id}

    @svc.get("/bytes")
    async def raw() -> bytes:
        return bytes(range(256))

    @svc.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(0.3)
        return "slow"

    @svc.get("/fails")
    async def fails() -> str:
        raise HTTPError(503, "closed today")

    return svc


async def hostile(bus, **values):
    """Make something answer INFO and PING on a bus as no service of ours would."""
    info = Info(**{"name": "hostile", "id": "h1", "version": "0.0.1"} | values)

    async def answer(verb, document):
        payload = document.model_dump_json().encode()
        for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{info.name}"):
            await bus.subscribe(subject, lambda message: bus.publish(message.reply, payload))

    await answer("INFO", info)
    await answer("PING", info.ping())
    await bus.flush()


# ── ls, ping ──


async def test_ls(natsweb, bus, serve, root):
    """Every instance is a line: name, version, id, endpoints, kind, description; `--json` has all of INFO."""
    members = [await serve(shop()), await serve(shop(version="2.0.0"))]
    await hostile(bus, name="legacy", description="old")
    plain = await natsweb("ls")
    assert plain.code == 0, plain.err
    assert plain.cells[0] == ["NAME", "VERSION", "INSTANCE", "ENDPOINTS", "KIND", "DESCRIPTION"]
    ours = ["natsweb", "below", root, "sells", "things"]
    assert plain.cells[1:] == [
        ["legacy", "0.0.1", "h1", "0", "plain", "old"],
        ["shop", "1.2.3", members[0].presence.id, "5", *ours],
        ["shop", "2.0.0", members[1].presence.id, "5", *ours],
    ]
    said = (await natsweb("ls", "shop", "--json")).json
    assert [one["id"] for one in said] == [member.presence.id for member in members]
    assert said[0]["metadata"]["natsweb.root"] == root
    assert f"{root}.orders.*" in [one["subject"] for one in said[0]["endpoints"]]


async def test_ping(natsweb, serve):
    """Every instance is a line with the time that it took."""
    member = await serve(shop())
    plain = await natsweb("ping")
    assert (plain.code, plain.cells[0]) == (0, ["NAME", "VERSION", "INSTANCE", "MS"])
    [[name, version, id, ms]] = plain.cells[1:]
    assert (name, version, id) == ("shop", "1.2.3", member.presence.id)
    assert 0 <= float(ms) < 5000
    [said] = (await natsweb("ping", "shop", "--json")).json
    assert said == {"name": "shop", "version": "1.2.3", "id": member.presence.id, "ms": said["ms"]}
    assert 0 < said["ms"] < 5000


@pytest.mark.parametrize("command", ["ls", "ping"])
async def test_nobody(natsweb, command):
    """Without services, or without one of that name, the exit code is 1; JSON is an empty list."""
    ended = await natsweb(command)
    assert (ended.code, ended.out, ended.err) == (1, "", "no service answers\n")
    ended = await natsweb(command, "nope")
    assert (ended.code, ended.err) == (1, "no service called nope answers\n")
    ended = await natsweb(command, "--json")
    assert (ended.code, ended.json) == (1, [])


@pytest.mark.parametrize(
    "arguments",
    [
        *(["ls"], ["ping"], ["routes", "--live"], ["check", "--live"], ["call", "GET", "/x"], ["sniff"]),
        *(["ls", "--json"], ["ping", "--json"], ["call", "GET", "/x", "--json"]),
    ],
    ids=" ".join,
)
async def test_without_a_server(natsweb, arguments):
    """Where no NATS answers, every command says so in three parts, and exits with 4."""
    ended = await natsweb(*arguments, NATS_URL="nats://u:s3cret@127.0.0.1:1")
    assert (ended.code, ended.out) == (4, "")
    assert "error: " in ended.err
    assert "fix: " in ended.err
    assert "s3cret" not in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["ls", "a", "b"],
            ["ping", "--wait"],
            ["routes", "--live", "app"],
            ["call", "GET"],
            ["sniff", "--count", "-1"],
        ),
        *(["sniff", "--root", ">"], ["call", "GET", "/x", "--root", "$SYS"], ["call", "GET", "/x", "-H", "bare"]),
        *(["call", "GET", "/x", "-H", ": x"], ["call", "POST", "/x", "-d", "@nowhere"]),
        *(["call", "GET", "/x", "-H", "x: €"], ["call", "GET", "/x", "--context", "nope"]),
        *(["gateway", "--known-only", "--no-discovery"], ["run", "app", "--on-overlap", "maybe"]),
    ],
    ids=" ".join,
)
async def test_wrong_usage(natsweb, tmp_path, root, arguments):
    """What cannot be meant is exit code 2, with the remedy and without a traceback."""
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/x"))
    ended = await natsweb(*arguments)
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert "Traceback" not in ended.err
    assert re.search(r"fix: |Usage: |Error|Invalid", ended.err)


ESCAPES = "\x1b[2J\x9b31m\r\nfake  1.0.0"


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["ls"], {"description": ESCAPES}),
        (["ls"], {"version": ESCAPES}),
        (["ls"], {"metadata": {WIRE: "1", "natsweb.root": ESCAPES}}),
        (["ping"], {"version": ESCAPES}),
        (["routes", "--live"], {"endpoints": [Endpoint(name="e", subject="a", metadata={METHOD: ESCAPES})]}),
        (["routes", "--live"], {"endpoints": [Endpoint(name="e", subject="a", metadata={"http.path": ESCAPES})]}),
    ],
)
async def test_what_others_say_moves_no_cursor(natsweb, bus, arguments, values):
    """A service cannot write to the terminal of whoever looks at it, nor add lines of its own."""
    await hostile(bus, **values)
    ended = await natsweb(*arguments)
    assert ended.code == 0, ended.err
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.out)
    assert len(ended.out.splitlines()) == 2


@pytest.mark.parametrize("command", ["ls", "ping"])
async def test_junk_is_passed_over(natsweb, bus, serve, command):
    """Answers that are no documents are left out."""
    await serve(shop())
    for verb in ("INFO", "PING"):
        await bus.subscribe(
            f"$SRV.{verb}",
            lambda message: [bus.publish(message.reply, junk) for junk in (b"", b"\xff", b"[" * 5000, b"{}", b"7")],
        )
    await bus.flush()
    ended = await natsweb(command, "--json")
    assert ended.code == 0, ended.err
    assert [one["name"] for one in ended.json] == ["shop"]


# ── routes --live ──


async def test_routes_live(natsweb, bus, serve, root):
    """Each method of each endpoint is a line, with the service and how many instances have it."""
    await serve(shop())
    await serve(shop(version="2.0.0"))
    await hostile(bus, name="legacy", endpoints=[Endpoint(name="e", subject=f"{root}x.old.>")])
    plain = await natsweb("routes", "--live")
    assert plain.code == 0, plain.err
    assert plain.cells[0] == ["METHOD", "PATH", "SUBJECT", "SERVICE", "INSTANCES"]
    assert ["GET", "/orders/<id>", f"{root}.orders.*", "shop", "2"] in plain.cells
    assert ["*", f"{root}x.old.>", "legacy", "1"] in plain.cells
    below = await natsweb("routes", "--live", "--root", root, "--json")
    assert {one["service"] for one in below.json} == {"shop"}
    assert {(one["method"], one["path"], one["instances"]) for one in below.json} >= {
        ("GET", "/orders/<id>", 2),
        ("POST", "/echo", 2),
    }
    nothing = await natsweb("routes", "--live", "--root", f"{root}.orders")
    assert [line[2] for line in nothing.cells[1:]] == [f"{root}.orders.*"]


async def test_routes_live_without_services(natsweb):
    """Nobody there is exit code 1."""
    ended = await natsweb("routes", "--live")
    assert (ended.code, ended.out, ended.err) == (1, "", "no service answers\n")
    ended = await natsweb("routes", "--live", "--json")
    assert (ended.code, ended.json) == (1, [])


# ── check ──


async def test_check(natsweb, tmp_path, root):
    """A service that compiles is fine, without any server; one that does not is exit code 1."""
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/x"))
    ended = await natsweb("check", "app", NATS_URL="nats://127.0.0.1:1")
    assert (ended.code, ended.out) == (0, "app 1.2.3: 1 routes, all compiled\n")
    ended = await natsweb("check", "app", "--json")
    assert ended.json == {"service": "app", "routes": 1, "events": 0, "findings": []}
    (tmp_path / "late.py").write_text(
        "from natsweb import Service\nsvc = Service('late')\n\n@svc.get('/x')\ndef x(y: 'Missing'): ...\n"
    )
    ended = await natsweb("check", "late")
    assert ended.code == 1
    assert "'Missing' names nothing" in ended.err
    assert "late.py" in ended.err


async def test_check_live_without_anybody(natsweb, tmp_path, root):
    """Alone, a service gets along; where there is none to check, that is what is wrong."""
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/x"))
    ended = await natsweb("check", "app", "--live")
    assert ended.code == 0, ended.out
    assert ended.out.splitlines() == ["app 1.2.3: 1 routes, all compiled", "nothing on NATS gets in its way"]
    ended = await natsweb("check", "--live")
    assert (ended.code, ended.out.splitlines()[0]) == (1, "problem: no service answers")
    ended = await natsweb("check", "--live", "--json")
    assert (ended.code, [one["what"] for one in ended.json["findings"]]) == (1, ["no service answers"])


async def test_check_live_finds_overlaps(natsweb, serve, tmp_path, root):
    """A service that takes paths of one that is there is a finding: what, where, what to do, and exit code 1."""
    await serve(shop())
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/orders/new"))
    ended = await natsweb("check", "app", "--live")
    assert ended.code == 1
    assert "problem: app 1.2.3 and shop 1.2.3 take the same requests" in ended.out
    assert f"  {root}.orders.new and {root}.orders.*\n" in ended.out
    assert "  fix: gateways send each request to the more specific one" in ended.out
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/slow"))
    [finding] = (await natsweb("check", "app", "--live", "--json")).json["findings"]
    assert finding == {
        "what": "app 1.2.3 and shop 1.2.3 take the same requests",
        "where": f"{root}.slow and {root}.slow",
        "fix": "gateways send them to app; keep the route in one of them",
    }
    (tmp_path / "app.py").write_text(APP.format(name="shop", root=root, path="/slow"))
    assert (await natsweb("check", "app", "--live")).code == 0
    assert (await natsweb("check", "app", "--live", "--root", f"{root}.other")).code == 0


async def test_check_live_of_all(natsweb, serve):
    """Without an app the services that are there are compared, each pair once."""
    await serve(shop())
    await serve(shop("other"))
    ended = await natsweb("check", "--live", "--json")
    assert ended.code == 1
    assert len(ended.json["findings"]) == 5


@pytest.mark.parametrize(
    "plain_first",
    [
        False,
        True,
    ],
)
async def test_check_live_of_a_plain_service(natsweb, bus, root, plain_first):
    """An overlap with a plain service runs requests twice, whichever of the two answers first."""
    loop = asyncio.get_running_loop()
    for name, metadata, late in (("legacy", None, not plain_first), ("orders", {WIRE: "1"}, plain_first)):
        endpoint = Endpoint(name="e", subject=f"{root}.x", metadata={METHOD: "GET"})
        info = Info(name=name, id=name, version="1.0.0", metadata=metadata, endpoints=[endpoint])

        def answer(message, info=info, late=late):
            payload = info.model_dump_json().encode()
            loop.call_later(0.03 if late else 0, lambda: bus.publish(message.reply, payload))

        await bus.subscribe("$SRV.INFO", answer)
    await bus.flush()
    [finding] = (await natsweb("check", "--live", "--json")).json["findings"]
    assert "would both run a request" in finding["what"]


async def test_check_live_finds_a_tap(natsweb, bus, serve, root):
    """A plain subscription to everything hides that nobody listens: it is named."""
    await serve(shop())
    assert (await natsweb("check", "--live")).code == 0
    await bus.subscribe(f"{root}.>", lambda _: None)
    await bus.flush()
    ended = await natsweb("check", "--live")
    assert ended.code == 1
    assert f"somebody listens to everything below {root}" in ended.out
    assert "a tap, such as natsweb sniff" in ended.out


async def test_check_live_is_content_with_a_service_on_every_path(natsweb, serve):
    """A service that takes everything answers, so that it is no tap."""
    svc = Service("all")

    @svc.get("/<path:rest>")
    async def everything(rest: str) -> str:
        return rest

    await serve(svc)
    ended = await natsweb("check", "--live")
    assert ended.code == 0, ended.out


async def test_check_live_finds_a_stream(natsweb, root, tmp_path):
    """A JetStream stream over the root answers each request with its acknowledgement: it is named."""
    async with embedded_server(arguments=("-js", "-sd", str(tmp_path / "js"))) as url:
        bus = await connect(Nats(urls=(url,)))
        config = {"name": "CAPTURE", "subjects": [f"{root}.>"], "storage": "memory"}
        made = await request(bus, "$JS.API.STREAM.CREATE.CAPTURE", json.dumps(config).encode())
        assert b"error" not in made.payload
        service = shop()
        member = Member(bus, service, root=root)
        await member.start()
        ended = await natsweb("check", "--live", NATS_URL=url)
        assert ended.code == 1
        assert "the JetStream stream CAPTURE, which answers each request with its acknowledgement" in ended.out
        await member.stop()
        service.close()
        await bus.close()


async def test_check_live_publishes_nothing_for_others(natsweb, bus):
    """A service's word for its root cannot make the one who checks publish what it likes."""
    heard = []
    await bus.subscribe("pwned", heard.append)
    await hostile(bus, metadata={WIRE: "1", "natsweb.root": "x 0\r\n\r\nPUB pwned 2\r\nhi\r\nPUB y"})
    ended = await natsweb("check", "--live")
    await bus.flush()
    assert heard == []
    assert "Traceback" not in ended.err


async def test_check_live_survives_any_root(natsweb, bus):
    """A root that can be none is passed over, or reported."""
    await hostile(bus, metadata={WIRE: "1", "natsweb.root": "€"})
    ended = await natsweb("check", "--live")
    assert "Traceback" not in ended.err


# ── call ──


async def test_call(natsweb, serve, root):
    """The head goes to stderr and the body, JSON in a readable form, to stdout."""
    await serve(shop())
    ended = await natsweb("call", "get", "/orders/7?full=1", "--root", root)
    assert (ended.code, ended.json) == (0, {"id": 7})
    assert ended.err.startswith("200 OK\ncontent-type: application/json\n")
    ended = await natsweb("call", "GET", "/orders/7", NATSWEB_ROOT=root)
    assert ended.code == 0


@pytest.mark.parametrize("method", ["DELETE", "GET", "PATCH", "POST", "PUT"])
async def test_call_methods(natsweb, serve, root, method):
    """Every method arrives as it was given."""
    await serve(shop())
    ended = await natsweb("call", method, "/echo?a=1&b=%20", "--root", root, "-d", "text")
    assert (ended.code, ended.json["method"], ended.json["query"]) == (0, method, "a=1&b=%20")
    assert ended.json["body"] == "text"


async def test_call_head_and_options(natsweb, serve, root):
    """HEAD has a head and no body; OPTIONS is answered by the service."""
    await serve(shop())
    ended = await natsweb("call", "HEAD", "/echo", "--root", root)
    assert (ended.code, ended.out) == (0, "")
    assert "x-a: 1" in ended.err
    ended = await natsweb("call", "OPTIONS", "/orders/7", "--root", root)
    assert ended.code == 0
    assert "allow: GET, HEAD, OPTIONS" in ended.err


@pytest.mark.parametrize(
    ("data", "stdin", "headers", "body", "kind"),
    [
        ('{"a": "ü"}', None, [], '{"a": "ü"}', "application/json"),
        ("[1]", None, ["Content-Type: text/x"], "[1]", "text/x"),
        ("no json", None, [], "no json", None),
        ("", None, [], "", None),
        ("@body.bin", None, [], "\x00\xff\r\n", None),
        ("@-", b'{"from": "stdin"}', [], '{"from": "stdin"}', "application/json"),
        ("@-", b"", [], "", None),
        (None, None, [], "", None),
    ],
)
async def test_call_bodies(natsweb, serve, root, tmp_path, data, stdin, headers, body, kind):
    """A body is given, read from a file or from standard input; JSON says that it is."""
    await serve(shop())
    (tmp_path / "body.bin").write_bytes(b"\x00\xff\r\n")
    more = [word for line in headers for word in ("-H", line)] + ([] if data is None else ["-d", data])
    ended = await natsweb("call", "POST", "/echo", "--root", root, *more, stdin=stdin)
    assert ended.code == 0, ended.err
    said = ended.json
    assert said["body"] in (body, body.encode().decode("latin-1"))
    assert [value for name, value in said["headers"] if name == "content-type"] == ([kind] if kind else [])


async def test_call_headers(natsweb, serve, root):
    """Headers go with it, repeated ones, too; natsweb's own cannot be forged."""
    await serve(shop())
    lines = ["X-A: 1", "x-a:2", "X-Latin: é", "Nw-Service: nobody", "Nats-Msg-Id: 1", "Cookie: a=b; c=d", "x-e:"]
    more = [word for line in lines for word in ("-H", line)]
    ended = await natsweb("call", "GET", "/echo", "--root", root, *more)
    assert ended.code == 0, ended.err
    assert ended.json["headers"] == [
        *(["x-a", "1"], ["x-a", "2"], ["x-latin", "é"], ["cookie", "a=b; c=d"], ["x-e", ""])
    ]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["GET", "/nowhere"], 404),
        (["GET", "/orders/many"], 422),
        (["PUT", "/orders/7"], 405),
        (["GET", "/fails"], 503),
        (["GET", "orders/7"], 400),
        (["GET", "/orders/../x"], 400),
        (["GET", "/%zz"], 400),
        (["GET", f"/{'x' * 4000}"], 414),
        (["TRACE", "/echo"], 405),
        (["NÖ", "/echo"], 501),
        (["GET", "/slow", "--timeout", "0.05"], 504),
    ],
    ids=lambda part: " ".join(part)[:30] if isinstance(part, list) else str(part),
)
async def test_call_of_what_goes_wrong(natsweb, serve, root, arguments, status):
    """From 400 on the exit code is 1, and the problem is printed."""
    await serve(shop())
    ended = await natsweb("call", *arguments, "--root", root)
    assert ended.code == 1
    assert ended.err.startswith(f"{status} ")
    assert ended.json["status"] == status
    ended = await natsweb("call", *arguments, "--root", root, "--json")
    assert (ended.code, ended.json["status"], ended.json["body"]["status"]) == (1, status, status)


async def test_call_prints_bytes_as_they_are(begin, serve, root):
    """A body that is no JSON goes to stdout byte for byte; in JSON, as text."""
    await serve(shop())
    running = await begin("call", "GET", "/bytes", "--root", root)
    out, _ = await running.process.communicate()
    assert out == bytes(range(256))
    running = await begin("call", "GET", "/bytes", "--root", root, "--json")
    said = (await running.ends()).json
    assert said["status"] == 200
    assert said["body"].startswith("\x00\x01")


async def test_call_json(natsweb, serve, root):
    """`--json` is status, headers and body in one document."""
    await serve(shop())
    ended = await natsweb("call", "GET", "/orders/7", "--root", root, "--json")
    assert ended.err == ""
    assert ended.json == {"status": 200, "headers": [["content-type", "application/json"]], "body": {"id": 7}}


@pytest.mark.parametrize("line", ["bad name: x", "x: a\nb: c", f"x: {'y' * 40_000}"], ids=["name", "lf", "long"])
async def test_call_with_a_header_that_cannot_be_sent(natsweb, serve, root, line):
    """It is wrong usage, in words."""
    await serve(shop())
    ended = await natsweb("call", "GET", "/echo", "--root", root, "-H", line)
    assert "Traceback" not in ended.err
    assert ended.code in (1, 2)


async def test_call_curl(natsweb):
    """`--curl` prints a line for a shell and needs no server."""
    ended = await natsweb(
        *("call", "post", "/x?a=1&b='", "-d", '{"a": "it\'s"}', "-H", "X-A: 1", "--curl"), NATS_URL="nats://127.0.0.1:1"
    )
    assert ended.code == 0
    words = ["curl", "-i", "-X", "POST", "http://127.0.0.1:8000/x?a=1&b='"]
    assert shlex.split(ended.out) == [
        *words,
        *("-H", "x-a: 1", "-H", "content-type: application/json", "--data-binary", '{"a": "it\'s"}'),
    ]


@asynccontextmanager
async def front(root, nats_url, *, fast=True, **options):
    """Give the URL of a gateway."""
    async with Gateway(root, nats=Nats(urls=(nats_url,)), **options) as gateway:
        server = Front(gateway, port=0, grace=1, fast=fast)
        await server.start()
        try:
            yield server.url
        finally:
            await server.stop()


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["POST", "/echo?a=1", "-d", '{"a": 1}', "-H", "X-A: 1"], id="json"),
        pytest.param(["GET", "/echo"], id="get"),
        pytest.param(
            ["POST", "/echo", "-d", "plain"],
            id="text",
            marks=pytest.mark.xfail(strict=True, reason="curl adds application/x-www-form-urlencoded"),
        ),
        pytest.param(
            ["GET", "/echo/[1-3]"],
            id="brackets",
            marks=pytest.mark.xfail(strict=True, reason="curl takes brackets for a range: -g is missing"),
        ),
        pytest.param(
            ["HEAD", "/echo"],
            id="head",
            marks=pytest.mark.xfail(strict=True, reason="curl -X HEAD waits for a body: -I is missing"),
        ),
    ],
)
async def test_call_and_the_curl_that_it_prints_are_one(natsweb, serve, root, nats_url, arguments):
    """What is printed for curl is the same request, through a gateway."""
    await serve(shop())
    direct = await natsweb("call", *arguments, "--root", root, "--json")
    command = shlex.split((await natsweb("call", *arguments, "--curl")).out)
    async with front(root, nats_url) as url:
        words = [word.replace("http://127.0.0.1:8000", url) for word in command]
        process = await asyncio.create_subprocess_exec(
            *(shutil.which("curl"), "-q", "-sS", "--max-time", "5", *words[1:]), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    head, _, body = out.decode().partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {direct.json['status']} ")
    if body:
        said, mine = json.loads(body), direct.json["body"]
        for one in (said, mine):
            hidden = ("host", "user-agent", "accept")
            one["headers"] = sorted(field for field in one.get("headers", []) if field[0] not in hidden)
        assert said == mine


async def test_call_asks_one_of_two(natsweb, serve, root):
    """Where two services match, the one that a gateway would name is asked, and runs it alone."""
    ran = []
    old, new = Service("old"), Service("new")

    @old.route("/<path:rest>", methods=["POST"])
    async def everything(rest: str) -> str:
        ran.append("old")
        return "old"

    @new.post("/x")
    async def x() -> str:
        ran.append("new")
        return "new"

    await serve(old)
    await serve(new)
    ended = await natsweb("call", "POST", "/x", "--root", root)
    assert (ended.code, ended.out, ran) == (0, "new", ["new"])


async def test_call_with_permission_for_the_root_only(natsweb, root, tmp_path):
    """Who may publish below the root and hear answers may call, though not look who is there."""
    config = tmp_path / "nats.conf"
    permissions = f'{{publish: ["{root}.>"], subscribe: ["_INBOX.>"]}}'
    users = f"[{{user: all, password: p}}, {{user: caller, password: p, permissions: {permissions}}}]"
    config.write_text(f"authorization {{ users: {users} }}")
    async with embedded_server(arguments=("-c", str(config))) as url:
        bus = await connect(Nats(urls=(url,), user="all", password="p"))
        service = shop()
        member = Member(bus, service, root=root)
        await member.start()
        login = {"NATS_URL": url, "NATS_USER": "caller", "NATS_PASSWORD": "p"}
        ended = await natsweb("call", "GET", "/orders/7", "--root", root, **login)
        await member.stop()
        service.close()
        await bus.close()
    assert ended.code == 0, ended.err


# ── sniff ──


async def sniffing(begin, root, *arguments):
    """Start a tap, and wait until it listens."""
    tap = await begin("sniff", "--root", root, *arguments)
    await tap.says(f"listening below {root}")
    return tap


async def ask(bus, subject, payload=b"", fields=b"", method="GET", **head):
    """Ask a service; fields are header lines."""
    return await request(bus, subject, payload, header=encode_request(method, fields, **head))


async def test_sniff(begin, bus, serve, root):
    """Each request is printed as HTTP, in order, with who is meant; secrets are hidden; the tap answers nothing."""
    await serve(shop())
    tap = await sniffing(begin, root, "--count", "3")
    secrets = b"authorization: Bearer s3cret\r\ncookie: s3cret\r\nx-api-key: s3cret\r\nx-kept: 1\r\n"
    await ask(bus, f"{root}.echo", b"the body\n", secrets, "POST", query=b"a=1", service="shop")
    await ask(bus, f"{root}.orders.7")
    await request(bus, f"{root}.slow", b"")
    ended = await tap.ends()
    assert ended.code == 0, ended.err
    first, second, third = [block.splitlines() for block in ended.out.split("\n#")]
    assert first[:2] == [f"#1 {root}.echo for shop", "POST /echo?a=1 HTTP/1.1"]
    assert {"authorization: (hidden)", "cookie: (hidden)", "x-api-key: (hidden)", "x-kept: 1"} <= set(first)
    assert "the body" in first
    assert second[:2] == [f"2 {root}.orders.7", "GET /orders/7 HTTP/1.1"]
    assert third[:2] == [f"3 {root}.slow", "GET /slow HTTP/1.1"]
    assert "s3cret" not in ended.out
    assert "instead of getting a 404 at once" in ended.err


async def test_sniff_replies(begin, bus, serve, root):
    """Answers are printed with their time, and what they hide; those to other requests are not."""
    svc = shop()

    @svc.get("/login")
    async def login() -> Response:
        return Response(status=201, headers={"set-cookie": "s3cret", "x-kept": "1"}, body=b"in")

    await serve(svc)
    tap = await sniffing(begin, root, "--replies", "--json")
    await ask(bus, f"{root}.login")
    await request(bus, "$SRV.PING.shop", b"")
    await ask(bus, f"{root}.orders.none")
    ended = await tap.stop()
    assert ended.code == 0
    said = [json.loads(line) for line in ended.out.splitlines()]
    assert [one.get("request", one.get("reply")) for one in said] == [1, 1, 2, 2]
    assert (said[0]["method"], said[0]["path"], said[0]["subject"]) == ("GET", "/login", f"{root}.login")
    assert (said[1]["status"], said[1]["body"], said[3]["status"]) == (201, "in", 422)
    assert ["set-cookie", "(hidden)"] in said[1]["headers"]
    assert 0 < said[1]["ms"] < 5000
    assert "s3cret" not in ended.out


async def test_sniff_replies_as_text(begin, bus, serve, root):
    """As text, an answer is HTTP as well."""
    await serve(shop())
    tap = await sniffing(begin, root, "--replies")
    await ask(bus, f"{root}.orders.7")
    ended = await tap.stop()
    assert re.search(
        r"#1 after \d+\.\d\d ms\nHTTP/1\.1 200 OK\ncontent-type: application/json\n\n\{\"id\":7\}", ended.out
    )


async def test_sniff_counts_requests_with_their_replies(begin, bus, serve, root):
    """With --count and --replies it stops when the last answer has been shown."""
    await serve(shop())
    tap = await sniffing(begin, root, "--replies", "--count", "1", "--json")
    await ask(bus, f"{root}.slow")
    said = [json.loads(line) for line in (await tap.ends()).out.splitlines()]
    assert [one.get("status") for one in said] == [None, 200]


@pytest.mark.parametrize("as_json", [False, True])
async def test_sniff_shows_what_is_malformed(begin, bus, peer, root, as_json):
    """Requests that no service would take are shown with what is wrong, and do not end it."""
    tap = await sniffing(begin, root, "--count", "4", *(["--json"] if as_json else []))
    name = root.encode()
    await peer.publish(name + b".%61dmin")
    await peer.publish(name + b".x", header=b"garbage\r\n\r\n")
    await peer.publish(name + b".x", header=b"NATS/1.0\r\nNw-Version: 2\r\n\r\n")
    await peer.publish(name + b".ok")
    ended = await tap.ends()
    assert ended.code == 0
    words = ["not the canonical one", "header block is malformed", "version 1"]
    if as_json:
        said = [json.loads(line) for line in ended.out.splitlines()]
        assert [word in one["malformed"] for word, one in zip(words, said, strict=False)] == [True] * 3
        assert said[3]["path"] == "/ok"
    else:
        assert [word in ended.out for word in words] == [True] * 3


@pytest.mark.parametrize(
    ("subject", "header", "payload"),
    [
        (b".x", b"NATS/1.0\r\n\r\n", b"\x1b[2Jbody\x9b31m\x07\xc2\x9b31m\r"),
        pytest.param(
            b".x",
            b"NATS/1.0\r\nX-A: \x9b31m\r\n\r\n",
            b"",
        ),
        pytest.param(
            b".\x1b]0;title\x07",
            None,
            b"",
        ),
        pytest.param(
            b".x",
            b"NATS/1.0\r\nNw-Service: a\x9b31m\r\n\r\n",
            b"",
        ),
    ],
    ids=["body", "header", "subject", "service"],
)
async def test_sniff_moves_no_cursor(begin, peer, root, subject, header, payload):
    """Whatever a peer sends, a terminal gets no control characters but line ends."""
    tap = await sniffing(begin, root, "--count", "1")
    await peer.publish(root.encode() + subject, payload, header=header)
    ended = await tap.ends()
    assert ended.code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.out)


async def test_sniff_cuts_large_bodies(begin, bus, serve, root):
    """Of a large body the beginning is shown, and its size."""
    await serve(shop())
    tap = await sniffing(begin, root, "--count", "1", "--json")
    await ask(bus, f"{root}.echo", b"x" * 100_000, method="POST")
    [said] = [json.loads(line) for line in (await tap.ends()).out.splitlines()]
    assert said["body"].endswith("... (100000 bytes)")
    assert len(said["body"]) < 5000


async def test_sniff_takes_the_root_itself(begin, peer, root):
    """`/` is the root; what only begins like it is somebody else's."""
    tap = await sniffing(begin, root, "--count", "1", "--json")
    await peer.publish(root.encode() + b"x.other")
    await peer.publish(root.encode())
    [said] = [json.loads(line) for line in (await tap.ends()).out.splitlines()]
    assert said["path"] == "/"


# ── run --on-overlap ──


async def test_run_refuses_an_overlap(natsweb, serve, tmp_path, root):
    """With --on-overlap refuse a service that takes another's paths does not start: exit code 3, in three parts."""
    member = await serve(shop())
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/orders/new"))
    ended = await natsweb("run", "app", "--on-overlap", "refuse")
    assert ended.code == 3
    assert "error: app takes paths of shop, which is there already" in ended.err
    assert f"  {root}.orders.new and {root}.orders.* of shop 1.2.3 ({member.presence.id})" in ended.err
    assert "  fix: change the paths or the root of one of them, or start with --on-overlap warn" in ended.err
    assert "Traceback" not in ended.err
    assert '"event": "ready"' not in ended.err


async def test_run_warns_of_an_overlap(begin, serve, tmp_path, root):
    """By default it says so and starts."""
    await serve(shop())
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/orders/new"))
    running = await begin("run", "app")
    await running.says('"event": "ready"')
    assert f"app: {root}.orders.new and {root}.orders.* of shop 1.2.3" in running.err
    assert (await running.stop()).code == 0


async def test_run_refuses_a_plain_service(natsweb, bus, tmp_path, root):
    """A plain service on the same subject would run each request as well: exit code 3, whatever the flag."""
    await hostile(bus, name="legacy", endpoints=[Endpoint(name="e", subject=f"{root}.>")])
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/x"))
    ended = await natsweb("run", "app")
    assert ended.code == 3
    assert "knows nothing of natsweb" in ended.err


async def test_run_is_seen_from_start_to_end(begin, natsweb, bus, tmp_path, root):
    """A service as a process announces itself, is listed, and says when it goes."""
    heard = []
    await bus.subscribe("$SRV.NW.>", heard.append)
    await bus.flush()
    (tmp_path / "app.py").write_text(APP.format(name="app", root=root, path="/x"))
    running = await begin("run", "app")
    await running.says('"event": "ready"')
    [listed] = (await natsweb("ls", "app", "--json")).json
    assert (await running.stop()).code == 0
    await bus.flush()
    said = [json.loads(message.payload) for message in heard]
    assert [one["state"] for one in said] == ["starting", "up", "down"]
    assert {one["info"]["id"] for one in said} == {listed["id"]}


# ── gateway ──


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
@pytest.mark.parametrize(("path", "body"), [("/healthz", "ok\n"), ("/readyz", "ready\n")])
async def test_health(nats_url, root, fast, path, body):
    """Both are answered by the gateway itself, GET and HEAD, through both doors, without any service."""
    async with front(root, nats_url, fast=fast) as url, httpx2.AsyncClient(base_url=url) as client:
        got, head = await client.get(f"{path}?probe=1"), await client.head(path)
        assert (got.status_code, got.text) == (200, body)
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "asgi"])
async def test_health_is_nobody_elses(nats_url, bus, serve, root, fast):
    """Other methods and longer paths are a service's, and everything is with health=False."""
    svc = Service("clinic")

    @svc.route("/healthz", methods=["GET", "POST"])
    async def healthz() -> str:
        return "clinic"

    @svc.get("/a/healthz")
    async def deeper() -> str:
        return "deeper"

    await serve(svc)
    async with front(root, nats_url, fast=fast) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.post("/healthz")).text == "clinic"
        assert (await client.get("/a/healthz")).text == "deeper"
    async with front(root, nats_url, fast=fast, health=False) as url, httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/healthz")).text == "clinic"
        assert (await client.get("/readyz")).status_code == 404


async def test_health_mounted(nats_url, bus, serve, root):
    """Mounted at a prefix, the checks are below the prefix; nothing is connected before the first request."""
    svc = Service("clinic")

    @svc.get("/<path:rest>")
    async def rest_of(rest: str) -> str:
        return rest

    await serve(svc)
    gateway = Gateway(root, nats=Nats(urls=(nats_url,)))
    app = Starlette(routes=[Mount("/shop", gateway)])
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver/shop") as client:
        assert (await client.get("/healthz")).text == "ok\n"
        waiting = await client.get("/readyz")
        assert (waiting.status_code, waiting.json()["reason"]) == (503, "nats_down")
        assert (await client.head("/readyz")).status_code == 503
        assert (await client.get("/x/healthz")).text == "x/healthz"
        assert (await client.get("/readyz")).text == "ready\n"
    await gateway.stop()


async def test_ready_is_connected(root, until):
    """Without NATS a gateway lives and is not ready."""
    async with embedded_server() as url:
        gateway = Gateway(root, nats=Nats(urls=(url,)))
        transport = httpx2.ASGITransport(gateway)
        client = httpx2.AsyncClient(transport=transport, base_url="http://testserver")
        await gateway.start()
        assert (await client.get("/readyz")).status_code == 200
    await until(lambda: not gateway.is_ready)
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200
    await client.aclose()
    await gateway.stop()


async def gateway_process(begin, root, *arguments):
    """Start a gateway as a process; return it and a client."""
    running = await begin("gateway", "--root", root, "--port", "0", *arguments)
    found = await running.says(r'"http": "(http://[^"]+)"')
    return running, httpx2.AsyncClient(base_url=found[1])


async def test_gateway_command_is_healthy(begin, root):
    """`natsweb gateway` answers what orchestrators ask."""
    _, client = await gateway_process(begin, root)
    async with client:
        assert [(await client.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]


async def test_gateway_command_without_health(begin, bus, serve, root):
    """With --no-health the paths are the services'."""
    svc = Service("clinic")

    @svc.get("/healthz")
    async def healthz() -> str:
        return "clinic"

    await serve(svc)
    running, client = await gateway_process(begin, root, "--no-health")
    async with client:
        assert (await client.get("/healthz")).text == "clinic"
        assert (await client.get("/readyz")).status_code == 404
    assert (await running.stop()).code == 0


@pytest.mark.parametrize("arguments", [[], ["--known-only"], ["--no-discovery"]], ids=" ".join)
async def test_gateway_command_and_a_tap(begin, bus, serve, root, arguments):
    """A tap makes a missing service a 504; --known-only makes it a 404. The owner is named unless --no-discovery."""
    await serve(shop())
    named = []
    await bus.subscribe(f"{root}.>", lambda message: named.append(b"Nw-Service: shop\r\n" in message.header))
    await bus.flush()
    running, client = await gateway_process(begin, root, "--timeout", "0.5", *arguments)
    async with client:
        assert (await client.get("/orders/7")).json() == {"id": 7}
        missing = await client.get("/nowhere")
        assert missing.status_code == (404 if arguments == ["--known-only"] else 504)
    assert named[0] == (arguments != ["--no-discovery"])
    assert len(named) == (1 if arguments == ["--known-only"] else 2)
    assert (await running.stop()).code == 0
