"""The pages of the examples in a real browser: what its EventSource and its WebSocket make of a service."""

import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 30  # seconds that anything may take

pytestmark = pytest.mark.needs("chromium")

#: Counts the EventSources that a page makes: one that comes back by itself is not made again.
COUNT_SOURCES = """
    window.made = 0;
    window.EventSource = class extends EventSource {
        constructor(...given) { super(...given); window.made += 1; }
    };
"""


class Process:
    """A process whose output can be waited for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, *command: object, cwd: Path) -> "Process":
        """Start it, with a look at the settings of nobody."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("NATS", "XDG_"))}
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=cwd,
            env={**mine, "HOME": str(cwd)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(process)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := await self.process.stdout.read(4096):
            async with self._news:
                self.output += chunk.decode(errors="replace")
                self._news.notify_all()

    async def says(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait until the output, from the character `after` on, matches."""
        try:
            async with asyncio.timeout(PATIENCE), self._news:
                await self._news.wait_for(lambda: re.search(pattern, self.output[after:]))
        except TimeoutError:
            raise AssertionError(f"does not say {pattern!r}:\n{self.output}") from None
        found = re.search(pattern, self.output[after:])
        assert found
        return found

    async def end(self, number: int = signal.SIGTERM) -> None:
        """End it; kill it if it does not."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await asyncio.gather(self._reading)


class Page:
    """A tab of the browser."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser = browser
        self._session = session

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the DevTools protocol for this tab."""
        return await self._browser.call(method, self._session, **params)

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.call("Page.enable")
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=COUNT_SOURCES)
        found = await self.call("Page.navigate", url=url)
        assert "errorText" not in found, found
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """Return what an expression of JavaScript gives in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not await self.run(f"Boolean({condition})"):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.run("document.body.innerText")
            raise AssertionError(f"it is never true that {condition}, in the page\n{text}") from None

    async def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).textContent"))


class Browser:
    """A Chromium without a window, driven over its DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        #: What the browser has told of itself, for which somebody has called `enable` of a domain.
        self.events: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._connection:
            said = json.loads(message)
            if "method" in said:
                self.events.append(said)
            answer = self._answers.pop(said.get("id", 0), None)
            if answer is not None and not answer.done():
                answer.set_result(said)

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Call a method of the DevTools protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._connection.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        async with asyncio.timeout(PATIENCE):
            said = await answer
        assert "error" not in said, said["error"]
        return said["result"]

    async def new_page(self) -> Page:
        """Open a tab in a window of its own, so that none is in the background."""
        target = await self.call("Target.createTarget", url="about:blank", newWindow=True)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        return Page(self, attached["sessionId"])

    def requested(self) -> list[str]:
        """Return the addresses that pages have asked for, after `Network.enable`."""
        sent = [one["params"] for one in self.events if one["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent]

    async def close(self) -> None:
        """Let go."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    """Give a browser that knows of no proxy and keeps nothing."""
    profile = tmp_path / "profile"
    process = await Process.start(
        shutil.which("chromium") or "chromium",
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-timer-throttling",
        "--no-first-run",
        "--no-proxy-server",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        cwd=tmp_path,
    )
    try:
        address = (await process.says(r"DevTools listening on (ws://\S+)\s"))[1]
        async with connect(address, proxy=None, max_size=None, compression=None) as connection:
            driven = Browser(connection)
            try:
                yield driven
            finally:
                await driven.close()
    finally:
        await process.end()


Start = Callable[..., "asyncio.Future[Process]"]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Give a function that starts `natsweb` with some arguments; what runs at the end is ended."""
    async with AsyncExitStack() as stack:

        async def begin(*arguments: object) -> Process:
            process = await Process.start(sys.executable, "-m", "natsweb", *arguments, cwd=tmp_path)
            stack.push_async_callback(process.end)
            return process

        yield begin


def load(name: str) -> ModuleType:
    """Return an example as a module of its own."""
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def received(page: Page) -> int:
    """Return how many samples the page has got."""
    return int(await page.text("#received"))


async def goes_on(page: Page, before: int) -> None:
    """Wait until the page has got some more samples, none of them twice and none left out."""
    await page.until(f"Number(document.querySelector('#received').value) > {before + 5}")
    assert await page.text("#missed") == "0"
    assert await page.text("#state") == "live"


async def test_a_feed_goes_on_after_a_reload(browser: Browser, start: Start, tmp_path: Path):
    """The same EventSource comes back when the service starts again, and goes on where it was: `Last-Event-ID`."""
    example = shutil.copytree(EXAMPLES / "feed", tmp_path / "feed")
    dev = await start("dev", example / "app.py", "--port", "0")
    url = (await dev.says(r"http +(http://\S+)\s"))[1]
    page = await browser.new_page()
    await page.open(f"{url}/feed")
    await goes_on(page, 121)

    so_far = len(dev.output)
    before = await received(page)
    with (example / "app.py").open("a") as file:
        file.write("# changed\n")
    await dev.says("serving again", after=so_far)
    await dev.says("GET /feed/samples 200", after=so_far)

    await goes_on(page, max(before, await received(page)))
    assert await page.run("window.made") == 1


async def test_a_feed_survives_its_service(browser: Browser, start: Start, nats_url: str):
    """The page notices a service that was killed, waits for the next one, and misses nothing."""
    common = ["--nats", nats_url, "--root", "killed"]
    service = await start("run", EXAMPLES / "feed" / "app.py", *common)
    await service.says('"ready"')
    gateway = await start("gateway", *common, "--port", "0")
    url = (await gateway.says(r'"http": "(http://[^"]+)"'))[1]
    page = await browser.new_page()
    await page.open(f"{url}/feed")
    await goes_on(page, 121)

    await service.end(signal.SIGKILL)
    await page.until("document.querySelector('#state').textContent === 'waiting'")
    before = await received(page)
    again = await start("run", EXAMPLES / "feed" / "app.py", *common)
    await again.says('"ready"')
    await goes_on(page, before)


async def test_the_dashboard_draws(browser: Browser, serve):
    """There are lines in the charts, in a light and in a dark page."""
    url = await serve(load("feed/app.py").svc, root="drawn")
    page = await browser.new_page()
    await page.open(f"{url}/feed")
    papers = []
    for scheme in ("light", "dark"):
        await page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await goes_on(page, await received(page))
        papers.append(await page.run("getComputedStyle(document.body).backgroundColor"))
        drawn = """[...document.querySelectorAll("canvas")].map((one) =>
            one.getContext("2d").getImageData(0, 0, one.width, one.height).data.filter((byte) => byte > 0).length)"""
        assert await page.run(f"{drawn}.length") > 0
        await page.until(f"Math.min(...{drawn}) > 1000")  # charts are drawn when the browser next paints
    assert papers[0] != papers[1]


async def join(page: Page, url: str, who: str, room: str) -> None:
    """Open the chat and enter a room."""
    await page.open(f"{url}/chat")
    await page.run(f"document.forms.join.who.value = {json.dumps(who)}")
    await page.run(f"document.forms.join.room.value = {json.dumps(room)}")
    await page.run("document.forms.join.requestSubmit()")
    await hears(page, f"{who} has come in")


async def say(page: Page, text: str) -> None:
    """Send a message from a page."""
    await page.run(f"document.forms.say.text.value = {json.dumps(text)}")
    await page.run("document.forms.say.requestSubmit()")


async def lines(page: Page) -> list[str]:
    """Return the lines of a page."""
    found = "[...document.querySelectorAll('#lines li')].map((one) => [...one.childNodes].map((it) => it.textContent))"
    return [" ".join(parts) for parts in await page.run(found)]


async def hears(page: Page, line: str) -> None:
    """Wait until a line stands in a page."""
    try:
        async with asyncio.timeout(PATIENCE):
            while line not in (heard := await lines(page)):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"nobody says {line!r}, only {heard}") from None


async def test_pages_chat(browser: Browser, serve):
    """What is said in one page stands in the other ones of its room, as text, and in no other room."""
    url = await serve(load("chat/app.py").svc, root="chatted")
    ada, bob, eve = [await browser.new_page() for _ in range(3)]
    await join(ada, url, "Ada", "tea & more")
    await join(bob, url, "Bob", "tea & more")
    await join(eve, url, "Eve", "coffee")
    await hears(ada, "Bob has come in")

    await say(ada, "hello")
    await hears(bob, "Ada hello")
    await say(bob, "<b>käse</b>")
    await hears(ada, "Bob <b>käse</b>")
    assert await lines(ada) == ["Ada has come in", "Bob has come in", "Ada hello", "Bob <b>käse</b>"]
    assert await lines(eve) == ["Eve has come in"]

    await bob.call("Page.close")
    await hears(ada, "Bob has left")


#: Keeps what the page's own policy has refused.
LISTEN = """
    window.refused = [];
    addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective + event.blockedURI));
    window.press = (selector) => document.querySelector(selector).click();
"""


async def test_the_docs_are_tried_out(browser: Browser, start: Start):
    """`/docs` of `natsweb dev` shows the service, asks nobody but the gateway, and sends a request that is answered."""
    dev = await start("dev", EXAMPLES / "orders" / "app.py", "--port", "0", "--no-reload")
    url = (await dev.says(r"docs +(http://\S+)/docs\s"))[1]
    page = await browser.new_page()
    await page.call("Network.enable")
    await page.call("Page.enable")
    await page.call("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
    await page.open(f"{url}/docs")
    operation = '[id="operations-orders-show"]'
    await page.until(f"document.querySelector('{operation}')")
    assert "Show one order." in await page.text(operation)

    await page.run(f"press('{operation} button.opblock-summary-control')")
    await page.until(f"document.querySelector('{operation} .try-out__btn')")
    await page.run(f"press('{operation} .try-out__btn')")
    await page.until(f"document.querySelector('{operation} input:enabled')")
    await page.run(f"document.querySelector('{operation} input').focus()")
    await page.call("Input.insertText", text="7")
    await page.run("document.activeElement.blur()")
    await page.run(f"press('{operation} button.execute')")
    await page.until(f"document.querySelector('{operation} .live-responses-table .response-col_status')")
    await dev.says(r"GET /orders/7 200")
    answer = f"{operation} .live-responses-table"
    await page.until(f"document.querySelector('{answer}').textContent.includes('tea')")
    assert "200" in await page.text(f"{answer} .response .response-col_status")

    asked = browser.requested()
    assert f"{url}/openapi.json" in asked
    assert f"{url}/orders/7" in asked
    assert [one for one in asked if not one.startswith((f"{url}/", "data:"))] == []
    assert await page.run("refused") == []
