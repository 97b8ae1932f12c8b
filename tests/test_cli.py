"""The command line as a user has it: real processes, a real nats-server, exit codes and words."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from textwrap import dedent

import httpx2
import pytest

ORDERS = Path(__file__).parent.parent / "examples" / "orders" / "app.py"

HELLO = dedent(
    """
    from natsweb import Service
    svc = Service("hello")

    @svc.get("/hello/<name>")
    async def hello(name: str) -> str:
        return f"hello {name}"
    """
)

SLOW = HELLO + dedent(
    """
    import asyncio, time

    @svc.get("/slow/<seconds>")
    async def slow(seconds: float) -> str:
        print("started", flush=True)
        await asyncio.sleep(seconds)
        return "done"

    @svc.get("/stuck")
    def stuck() -> str:
        print("started", flush=True)
        time.sleep(60)
        return "never"
    """
)


class Process:
    """A `natsweb` process whose output can be waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""

    async def says(self, pattern: str) -> re.Match[str]:
        """Read until the output matches."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while not (found := re.search(pattern, self.output)):
                chunk = await self.process.stdout.read(4096)
                assert chunk, f"ended without saying {pattern!r}:\n{self.output}"
                self.output += chunk.decode()
        return found

    async def ends(self) -> int:
        """Wait for the end and return the exit code."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            self.output += (await self.process.stdout.read()).decode()
            return await self.process.wait()

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)


Run = Callable[..., "asyncio.Future[Process]"]


@pytest.fixture
async def natsweb(tmp_path: Path, nats_url: str) -> AsyncIterator[Run]:
    """Give a function that starts `natsweb ...` in an empty folder, with no NATS settings but those given."""
    processes = []

    async def start(*arguments: str, **environ: str) -> Process:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "natsweb",
            *arguments,
            cwd=tmp_path,
            env={**clean, "XDG_CONFIG_HOME": str(tmp_path), "NO_COLOR": "1", **environ},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        processes.append(process)
        return Process(process)

    yield start  # type: ignore[misc]
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def get(url: str) -> httpx2.Response:
    """Get a page."""
    async with httpx2.AsyncClient(timeout=15) as client:
        return await client.get(url)


# ── words and codes ──


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "-h"], ["gateway", "-h"], ["dev", "-h"]])
async def test_help(natsweb: Run, arguments: list[str]) -> None:
    """Every command explains itself."""
    process = await natsweb(*arguments)
    assert await process.ends() == 0
    assert "Usage: natsweb" in process.output


async def test_version(natsweb: Run) -> None:
    """`--version` is the package's."""
    process = await natsweb("--version")
    assert await process.ends() == 0
    assert re.fullmatch(r"natsweb \d+\.\d+\.\d+\n", process.output)


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "words"),
    [
        (["run", "--bogus"], {}, 2, ["No such option"]),
        (["run"], {}, 2, ["no app is named", "looked for NATSWEB_APP", "fix: "]),
        (["run", "nope"], {}, 2, ["no module 'nope'", "fix: "]),
        (["run", "nope.py"], {}, 2, ["no file nope.py"]),
        (["run", "hello:nope"], {}, 2, ["hello has no 'nope'", "did you mean hello:svc?"]),
        (["run", "hello:Service"], {}, 2, ["neither a natsweb.Service"]),
        (["run", "broken"], {}, 1, ["ZeroDivisionError", "broken.py", "could not be imported"]),
        (["run", "wrong"], {}, 1, ["route <id> has no parameter", "wrong.py:4", "did you mean <order_id>?"]),
        (["run", "two"], {}, 2, ["several services: a, b", "two:a"]),
        (["run", "two:a", "two:b"], {}, 2, ["two of these services are called 'same'"]),
        (["run", "settings"], {}, 1, ["cannot be a root", "fix: "]),
        (["dev", "two"], {}, 2, ["several services: a, b", "two:a"]),
        (["dev", "hello:nope"], {}, 2, ["hello has no 'nope'"]),
        (["dev", "nope.py"], {}, 2, ["no file nope.py"]),
        (["dev", "nothing"], {}, 2, ["nothing has no natsweb.Service"]),
        (["dev", "hello", "two:a"], {}, 2, ["runs one service, not 2", "NATS_URL=", "natsweb run two:a"]),
        (["routes", "empty"], {}, 1, ["'empty' has no routes", "empty.py", "fix: "]),
        (
            ["gateway", "--nats", "http://u:s3cret@127.0.0.1:1"],
            {},
            2,
            ["http://***@127.0.0.1:1 is not the URL"],
        ),
        (["run", "hello", "--nats", "nats://u:s3cret@127.0.0.1:1"], {}, 4, ["no NATS server at nats://***@", "fix: "]),
        (["gateway"], {"NATS_URL": "nats://127.0.0.1:1"}, 4, ["connection refused", "NATS_URL (set)", "natsweb dev"]),
        (["gateway", "--context", "nope"], {}, 2, ["no NATS context 'nope'"]),
        (["gateway", "--root", ">"], {}, 2, ["cannot be a root"]),
        (["gateway", "--root", "$SYS"], {}, 2, ["cannot be a root"]),
    ],
)
async def test_errors_say_what_where_and_what_to_do(
    natsweb: Run, tmp_path: Path, arguments: list[str], environ: dict[str, str], code: int, words: list[str]
) -> None:
    """Each mistake has its exit code and its words, and no secret or internal frame in them."""
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "two.py").write_text(
        "from natsweb import Service\ndef x(): ...\n"
        "a = Service('same')\nb = Service('same')\na.get('/x')(x)\nb.get('/x')(x)\n"
    )
    (tmp_path / "empty.py").write_text("from natsweb import Service\nsvc = Service('empty')\n")
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "settings.py").write_text("from natsweb import Service\nsvc = Service('settings', root='>')\n")
    (tmp_path / "wrong.py").write_text(
        "from natsweb import Service\nsvc = Service('wrong')\n\n@svc.get('/o/<id>')\ndef show(order_id: int): ...\n"
    )
    process = await natsweb(*arguments, **environ)
    assert await process.ends() == code, process.output
    for word in words:
        assert word in process.output
    assert "s3cret" not in process.output
    assert "importlib" not in process.output
    assert "cli/" not in process.output


async def test_refused_login_is_exit_code_4(natsweb: Run, tmp_path: Path) -> None:
    """A wrong password ends at once, and does not appear in the output."""
    from natsweb.embedded import embedded_server

    (tmp_path / "hello.py").write_text(HELLO)
    async with embedded_server(arguments=("--user", "u", "--pass", "right")) as url:
        process = await natsweb("run", "hello", NATS_URL=url, NATS_USER="u", NATS_PASSWORD="wr0ng")
        assert await process.ends() == 4
    assert "refused the login" in process.output
    assert "wr0ng" not in process.output


async def test_taken_port_is_exit_code_3(natsweb: Run, nats_url: str) -> None:
    """A port that is taken is a start error with the remedy."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        process = await natsweb("gateway", "--port", str(port), "--nats", nats_url)
        assert await process.ends() == 3
    assert f"cannot listen on http://127.0.0.1:{port}" in process.output
    assert "--port 0" in process.output


async def test_routes(natsweb: Run) -> None:
    """`routes` shows a table, or the same as JSON; no server is needed."""
    plain = await natsweb("routes", str(ORDERS))
    assert await plain.ends() == 0
    lines = [line.split() for line in plain.output.splitlines()]
    assert lines[0] == ["METHOD", "PATH", "SUBJECT", "HANDLER"]
    assert ["GET", "/orders/<id>", "api.orders.*", "show"] in [line[:4] for line in lines]
    as_json = await natsweb("routes", str(ORDERS), "--json", "--root", "api.staging")
    assert await as_json.ends() == 0
    rows = json.loads(as_json.output)
    assert {"method": "POST", "path": "/orders", "subject": "api.staging.orders", "handler": "create"} in [
        {key: row[key] for key in ("method", "path", "subject", "handler")} for row in rows
    ]


@pytest.mark.parametrize(
    ("files", "environ"),
    [
        ({"svc.py": HELLO}, {}),
        ({"other.py": HELLO}, {"NATSWEB_APP": "other:svc"}),
        ({"other.py": HELLO, "pyproject.toml": '[tool.natsweb]\napp = "other"'}, {}),
        ({"src/main.py": HELLO, "pyproject.toml": '[tool.natsweb]\napp = "main:svc"'}, {}),
    ],
)
async def test_app_is_found(natsweb: Run, tmp_path: Path, files: dict[str, str], environ: dict[str, str]) -> None:
    """Without an argument the app comes from NATSWEB_APP, pyproject.toml or a file of a usual name."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    process = await natsweb("routes", **environ)
    assert await process.ends() == 0, process.output
    assert "api.hello.*" in process.output


# ── serving ──


async def served(natsweb: Run, nats_url: str, *run: str) -> tuple[Process, Process, str]:
    """Start a service and a gateway; return both and the gateway's URL."""
    service = await natsweb("run", *run, "--nats", nats_url)
    await service.says('"event": "ready"')
    gateway = await natsweb("gateway", "--root", "cli", "--port", "0", "--nats", nats_url)
    found = await gateway.says(r'"http": "(http://[^"]+)"')
    return service, gateway, found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_and_gateway_stop_cleanly(natsweb: Run, tmp_path: Path, nats_url: str, number: int) -> None:
    """Both finish what is under way when told to stop, and exit 0."""
    (tmp_path / "slow.py").write_text(SLOW)
    service, gateway, url = await served(natsweb, nats_url, "slow", "--root", "cli")
    assert (await get(f"{url}/hello/world")).text == "hello world"
    answer = asyncio.ensure_future(get(f"{url}/slow/0.5"))
    await service.says("started")
    service.signal(number)
    gateway.signal(number)
    assert (await answer).text == "done"
    assert await service.ends() == 0
    assert await gateway.ends() == 0


async def test_requests_beyond_the_grace_are_cut_off(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """What does not finish within --grace is answered 503, and the exit code is 5."""
    (tmp_path / "slow.py").write_text(SLOW)
    service, _, url = await served(natsweb, nats_url, "slow", "--root", "cli", "--grace", "0.1")
    answer = asyncio.ensure_future(get(f"{url}/slow/30"))
    await service.says("started")
    service.signal(signal.SIGTERM)
    assert (await answer).status_code == 503
    assert await service.ends() == 5


async def test_a_stuck_thread_does_not_keep_the_process(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """A plain handler that never returns is left behind."""
    (tmp_path / "slow.py").write_text(SLOW)
    service, _, url = await served(natsweb, nats_url, "slow", "--root", "cli", "--grace", "0.1")
    answer = asyncio.ensure_future(get(f"{url}/stuck"))
    await service.says("started")
    service.signal(signal.SIGTERM)
    assert (await answer).status_code == 503
    assert await service.ends() == 5


async def test_second_ctrl_c_is_now(natsweb: Run, tmp_path: Path, nats_url: str, until: Callable[..., object]) -> None:
    """The second Ctrl-C does not wait for anything: exit code 130."""
    (tmp_path / "slow.py").write_text(SLOW)
    service, _, url = await served(natsweb, nats_url, "slow", "--root", "cli")
    answer = asyncio.ensure_future(get(f"{url}/slow/30"))
    await service.says("started")
    ending = asyncio.ensure_future(service.ends())
    while not ending.done():  # what comes close behind the first is no second one
        service.signal(signal.SIGINT)
        await asyncio.wait([ending], timeout=0.1)
    assert await ending == 130
    answer.cancel()


async def test_a_signal_that_comes_twice_is_one(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """As from wrappers that signal a process and its group: what is under way is finished, exit code 0."""
    (tmp_path / "slow.py").write_text(SLOW)
    service, _, url = await served(natsweb, nats_url, "slow", "--root", "cli")
    answer = asyncio.ensure_future(get(f"{url}/slow/0.5"))
    await service.says("started")
    service.signal(signal.SIGTERM)
    service.signal(signal.SIGINT)
    assert (await answer).status_code == 200
    assert await service.ends() == 0


async def test_wait_for_a_server_that_comes_later(natsweb: Run, tmp_path: Path) -> None:
    """`--wait` keeps trying; a stop meanwhile exits 0."""
    (tmp_path / "hello.py").write_text(HELLO)
    process = await natsweb("run", "hello", "--wait", "60", "--nats", "nats://127.0.0.1:1")
    await process.says("trying for 60 s")
    process.signal(signal.SIGTERM)
    assert await process.ends() == 0


async def test_service_run(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """`svc.run()` does what `natsweb run` does, clean stop included."""
    (tmp_path / "hello.py").write_text(HELLO + "\nif __name__ == '__main__':\n    svc.run(root='cli')\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "hello.py"),
        env={**os.environ, "NATS_URL": nats_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    service = Process(process)
    await service.says('"event": "ready"')
    gateway = await natsweb("gateway", "--root", "cli", "--port", "0", "--nats", nats_url)
    url = (await gateway.says(r'"http": "(http://[^"]+)"'))[1]
    assert (await get(f"{url}/hello/run")).text == "hello run"
    service.signal(signal.SIGTERM)
    assert await service.ends() == 0


async def test_services_that_overlap_are_named(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """Two services of one process that would both run a request get a warning."""
    (tmp_path / "hello.py").write_text(HELLO)
    (tmp_path / "again.py").write_text(HELLO.replace('Service("hello")', 'Service("again")'))
    process = await natsweb("run", "hello", "again", "--root", "overlap", "--nats", nats_url)
    await process.says(r"again: overlap\.hello\.\* and overlap\.hello\.\* of hello .* overlap; each")
    await process.says('"event": "ready"')
    process.signal(signal.SIGTERM)
    assert await process.ends() == 0


# ── dev ──


async def test_dev(natsweb: Run, tmp_path: Path) -> None:
    """`dev` brings everything up, reloads on change while requests wait, survives what is broken, and stops cleanly."""
    app = tmp_path / "app.py"
    app.write_text(HELLO)
    dev = await natsweb("dev", "--port", "0")
    url = (await dev.says(r"http  (http://\S+)"))[1]
    await dev.says(r"nats  nats://127\.0\.0\.1:\d+ \(a private nats-server\)")
    await dev.says(r"GET +/hello/<name> +api\.hello\.\*")
    await dev.says("stop with Ctrl-C")
    assert (await get(f"{url}/hello/world?token=s3cret")).text == "hello world"
    await dev.says(r"GET /hello/world 200  \d+\.\d ms")
    assert "s3cret" not in dev.output

    app.write_text(HELLO.replace("hello {name}", "goodbye {name}"))
    await dev.says("app.py changed")
    answers = {(await get(f"{url}/hello/world")).text}
    await dev.says("serving again")
    answers.add((await get(f"{url}/hello/world")).text)
    assert "goodbye world" in answers <= {"hello world", "goodbye world"}

    dev.output = ""
    app.write_text("from natsweb import Service\na, b = Service('a'), Service('b')")
    await dev.says("several services: a, b")
    await dev.says("did not start; waiting for a change")
    dev.output = ""
    app.write_text("this is no Python")
    await dev.says("did not start; waiting for a change")
    broken = await get(f"{url}/hello/world")
    assert (broken.status_code, broken.json()["reason"]) == (503, "no_service")
    assert "see the terminal" in broken.json()["detail"]
    assert broken.headers["retry-after"] == "1"
    app.write_text(f"{HELLO}\n@svc.get('/end')\ndef end() -> None:\n    import os\n    os._exit(7)\n")
    await dev.says("serving again")
    assert (await get(f"{url}/hello/world")).text == "hello world"

    assert (await get(f"{url}/end")).status_code == 502
    await dev.says("ended with exit code 7; waiting for a change")
    assert "see the terminal" in (await get(f"{url}/hello/world")).json()["detail"]
    dev.output = ""
    app.write_text(HELLO)
    await dev.says("serving again")
    assert (await get(f"{url}/hello/world")).text == "hello world"

    dev.signal(signal.SIGINT)
    assert await dev.ends() == 0


async def test_dev_and_a_change_while_the_service_starts(natsweb: Run, tmp_path: Path) -> None:
    """What starts is given up for what is newer, requests wait for that, and those that wait at the end are told."""
    app = tmp_path / "app.py"
    app.write_text(HELLO)
    dev = await natsweb("dev", "--port", "0")
    url = (await dev.says(r"http  (http://\S+)"))[1]
    await dev.says("stop with Ctrl-C")
    never = f"print('imported', flush=True)\nimport time\ntime.sleep(3600)\n{HELLO}"
    app.write_text(never)
    await dev.says("imported")
    waiting = asyncio.create_task(get(f"{url}/hello/world"))
    app.write_text(HELLO.replace("hello {name}", "goodbye {name}"))
    assert (await waiting).text == "goodbye world"

    await dev.says("serving again")
    dev.output = ""
    app.write_text(never)
    await dev.says("imported")
    waiting = asyncio.create_task(get(f"{url}/hello/world"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.3)
    dev.signal(signal.SIGINT)
    answer = await waiting
    assert (answer.status_code, answer.json()["detail"]) == (503, "natsweb dev is stopping")
    assert await dev.ends() == 0


async def test_docs_are_on_in_dev_only(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """`dev` has docs, unless the service has its own; `gateway` has them when asked, and says where."""
    (tmp_path / "app.py").write_text(HELLO)
    (tmp_path / "own.py").write_text(HELLO.replace("/hello/<name>", "/docs/<name>"))
    dev = await natsweb("dev", "--port", "0", "--no-reload")
    docs = (await dev.says(r"docs  (\S+)"))[1]
    assert (await get(docs)).status_code == 200
    assert "hello" in (await get(f"{docs.removesuffix('/docs')}/openapi.json")).text
    own = await natsweb("dev", "own", "--port", "0", "--no-reload")
    assert (await get((await own.says(r"curl (\S+)|http  (\S+)"))[2] + "/docs")).status_code == 404
    await own.says("stop with")
    assert "docs  " not in own.output

    common = ["gateway", "--nats", nats_url, "--root", "cli_docs", "--port", "0"]
    gateway = await natsweb(*common, "--docs")
    assert (await get((await gateway.says(r'"docs": "([^"]+)"'))[1])).status_code == 200
    plain = await natsweb(*common)
    assert (await get((await plain.says(r'"http": "([^"]+)"'))[1] + "/docs")).status_code == 404
    assert "docs" not in plain.output.partition('"root"')[2].partition("cli_docs")[2]


async def test_dev_uses_a_configured_server(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """With NATS_URL set, `dev` starts no server of its own."""
    (tmp_path / "app.py").write_text(HELLO.replace('"hello")', '"hello", root="dev.configured")'))
    dev = await natsweb("dev", "--port", "0", "--no-reload", NATS_URL=nats_url)
    url = (await dev.says(r"http  (http://\S+)"))[1]
    await dev.says("stop with Ctrl-C")
    assert nats_url in dev.output
    assert "private" not in dev.output
    assert (await get(f"{url}/hello/world")).text == "hello world"
    dev.signal(signal.SIGTERM)
    assert await dev.ends() == 0


async def test_service_ends_when_dev_is_killed(natsweb: Run, tmp_path: Path, nats_url: str) -> None:
    """A killed `dev` leaves no service behind."""
    (tmp_path / "app.py").write_text(
        HELLO + "\nimport os\n\n@svc.get('/pid')\nasync def pid() -> int: return os.getpid()\n"
    )
    dev = await natsweb("dev", "--port", "0", "--no-reload", NATS_URL=nats_url)
    url = (await dev.says(r"http  (http://\S+)"))[1]
    pid = (await get(f"{url}/pid")).json()
    dev.signal(signal.SIGKILL)
    async with asyncio.timeout(20):
        while _is_alive(pid):
            await asyncio.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie whose parent has gone is waited for by nobody in some containers
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
