"""What type checkers make of natsweb: mypy and pyright check tests/typing, and this proves that they can fail."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
SNIPPETS = sorted(HERE.glob("*.py"))

_MYPY = re.compile(r"  # type: ignore\[([a-z, -]+)\]")
_PYRIGHT = re.compile(r"  # pyright: ignore\[[A-Za-z, ]+\]")


@pytest.mark.parametrize("path", SNIPPETS, ids=[path.stem for path in SNIPPETS])
def test_a_snippet_runs(path):
    """What type checkers accept is accepted by natsweb as well."""
    spec = importlib.util.spec_from_file_location(f"snippet_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        module.svc.compile()
    finally:
        del sys.modules[spec.name]


@pytest.mark.parametrize("path", SNIPPETS, ids=[path.stem for path in SNIPPETS])
def test_both_checkers_are_told_of_each_mistake(path):
    """A line that mypy has to refuse is one that pyright has to refuse, and an ignore always says which error."""
    text = path.read_text()
    assert text.startswith("# pyright: strict, reportUnnecessaryTypeIgnoreComment=true\n")
    for number, line in enumerate(text.splitlines()[1:], start=2):
        words = [bool(_MYPY.search(line)), bool(_PYRIGHT.search(line)), " ignore" in line]
        assert len(set(words)) == 1, f"{path.name}:{number}"


def test_the_mistakes_are_real(tmp_path):
    """Without the ignores, mypy finds exactly the errors that they name, on their lines."""
    pytest.importorskip("mypy")
    expected = set()
    for path in SNIPPETS:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            codes = _MYPY.search(line)
            expected |= {(path.name, number, code) for code in codes[1].split(", ")} if codes else set()
        bare = "\n".join(_PYRIGHT.sub("", _MYPY.sub("", line)) for line in lines)
        (tmp_path / path.name).write_text(bare + "\n")
    config = HERE.parents[1] / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    command += ["--follow-imports", "silent", *sorted(str(path) for path in tmp_path.glob("*.py"))]
    said = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], timeout=120, check=False)
    found = re.findall(r"([a-z]+\.py):(\d+): error: .*\[([a-z-]+)\]$", said.stdout, re.MULTILINE)
    assert {(name, int(number), code) for name, number, code in found} == expected, said.stdout + said.stderr
