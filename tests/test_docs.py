"""The documentation: its Python blocks run and print what it says, its links lead somewhere, its nav is true."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import natsweb
from natsweb.errors import BadPath
from natsweb.paths import Template
from natsweb.subjects import to_subject
from natsweb.wire import decode_request, decode_response

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [README, ROOT / "CONTRIBUTING.md", *PAGES]

each_page = pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
each_text = pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)


class Block(NamedTuple):
    """A fenced block: its language, its text and the line of the page that it starts at."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in found]


def prose(page: Path) -> str:
    """Return the text of a page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page get."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.M), re.M)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@each_page
def test_python_blocks_run(page, capsys):
    """The Python blocks of a page run one after the other; what one prints is the text block that follows it."""
    namespace = {"__name__": page.stem}
    everything = blocks(page)
    for index, block in enumerate(everything):
        if block.language != "python":
            continue
        try:
            exec(compile(block.text, "app.py", "exec"), namespace)
        except Exception as error:
            error.add_note(f"in the block at {page.name}:{block.line}")
            raise
        if printed := capsys.readouterr().out:
            assert printed == everything[index + 1].text, f"{page.name}:{block.line}"


def links(page: Path) -> Iterator[str]:
    """Yield the targets of a page's links to this repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


@each_text
def test_links_lead_somewhere(page):
    """Every internal link names a file that exists, and a heading in it."""
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def test_the_nav_is_complete():
    """Every page is in the nav of mkdocs.yml, once, and every entry of the nav is a page."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    entries = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", nav, re.MULTILINE)
    assert sorted(entries) == [page.relative_to(ROOT / "docs").as_posix() for page in PAGES]


def test_the_reference_is_complete():
    """Every public name is on the reference page, once, and nothing else is."""
    names = re.findall(r"^::: natsweb\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(name for name in natsweb.__all__ if not name.startswith("__"))


def test_snippets_exist():
    """What a page includes is there."""
    for page in PAGES:
        for name in re.findall(r'^--8<-- "([^"]+)"$', page.read_text(), re.MULTILINE):
            assert (ROOT / name).is_file()


def test_the_readme_is_short():
    """The README has fewer than 150 lines."""
    assert len(README.read_text().splitlines()) < 150


def test_the_readme_example_is_the_home_page_example():
    """README and home page show the same program."""
    assert blocks(README)[0].text == blocks(ROOT / "docs" / "index.md")[0].text


def frames(page: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield subject, header block and payload of the HPUB frames that a page shows, sizes checked."""
    for block in blocks(page):
        if block.language == "text" and block.text.startswith("HPUB "):
            line, _, rest = block.text.removesuffix("\n").replace("\n", "\r\n").partition("\r\n")
            _, subject, *_, head, total = line.split()
            data = rest.encode()
            assert len(data) == int(total), f"{page.name}:{block.line}"
            yield subject, data[: int(head)], data[int(head) :]


def test_the_frames_of_the_wire_page_are_true():
    """The worked example decodes, its sizes are right, and it is the request and the replies that it says it is."""
    (subject, header, payload), *replies = frames(ROOT / "docs" / "wire.md")
    request = decode_request(subject.split(".")[1:], header, payload)
    assert (request.method, request.raw_path, request.query) == ("POST", "/orders", "notify=1")
    statuses = [decode_response(header, payload).status for _, header, payload in replies]
    assert statuses == [201, 422]


def rows(page: Path, head: str) -> Iterator[list[str]]:
    """Yield the cells of the table below a head line, without their backticks."""
    table = page.read_text().partition(f"{head}\n")[2].partition("\n\n")[0]
    for line in table.splitlines()[1:]:
        yield [cell.strip().strip("`") for cell in line.strip("|").split("|")]


def test_the_subject_tables_are_true():
    """Every path of the page has the subject, or the refusal, that stands beside it; every template its pattern."""
    page = ROOT / "docs" / "subjects.md"
    paths = list(rows(page, "| path | subject | why |"))
    templates = list(rows(page, "| template | pattern |"))
    assert paths
    assert templates
    for path, subject, _ in paths:
        if subject == "refused, 400":
            with pytest.raises(BadPath):
                to_subject("api", path)
        else:
            assert to_subject("api", path) == subject
    for template, pattern in templates:
        assert Template.parse(template).pattern("api") == pattern
