"""`natsweb openapi` as a user has it: what goes to stdout, to a file, and what `--check` says of a file."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from openapi_spec_validator import validate

from natsweb.cli.openapi import differences

ORDERS = Path(__file__).parent.parent / "examples" / "orders" / "app.py"


def run(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `natsweb openapi`, after some Python."""
    code = f"import sys\n{before}\nfrom natsweb.cli import main\nsys.argv[0] = 'natsweb'\nmain()"
    command = [sys.executable, "-c", code, "openapi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_document_goes_to_stdout():
    """Nothing else does; the document is valid."""
    done = run(ORDERS)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    validate(document)
    assert document["info"] == {"title": "orders", "version": "1.0.0"}
    assert "/orders/{id}" in document["paths"]


def test_what_an_app_prints_goes_to_stderr(tmp_path):
    """A module that prints does not spoil the document."""
    (tmp_path / "loud.py").write_text(
        dedent("""
        from natsweb import Service
        print("loading")
        svc = Service("loud")

        @svc.get("/käse")
        async def cheese() -> str:
            return "yes"
        """)
    )
    done = run("loud", "--app-dir", tmp_path)
    assert done.stderr == "loading\n"
    assert [*json.loads(done.stdout)["paths"]] == ["/käse"]


def test_yaml():
    """The same document as YAML, when asked for or when the file's name says so."""
    done = run(ORDERS, "--format", "yaml")
    assert yaml.safe_load(done.stdout) == json.loads(run(ORDERS).stdout)


@pytest.mark.parametrize("name", ["openapi.json", "openapi.yaml", "openapi.yml"])
def test_file_that_is_the_same_passes(tmp_path, name):
    """What `-o` has written, `--check` takes; it writes nothing."""
    file = tmp_path / name
    assert run(ORDERS, "-o", file).returncode == 0
    written = file.read_text()
    assert written.startswith("{") == name.endswith("json")
    done = run(ORDERS, "--check", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.read_text() == written


def test_file_that_differs_is_told_apart(tmp_path):
    """`--check` exits with 1 and says what has been added, removed and changed, and how to mend it."""
    file = tmp_path / "openapi.json"
    run(ORDERS, "-o", file)
    known = json.loads(file.read_text())
    del known["paths"]["/orders/new"]
    known["paths"]["/orders/old"] = {"get": {"responses": {}}}
    known["paths"]["/orders/{id}"]["get"]["summary"] = "Another"
    known["components"]["schemas"]["Gone"] = {"type": "string"}
    known["info"]["version"] = "0.9.0"
    file.write_text(json.dumps(known))
    done = run(ORDERS, "--check", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"error: {file} is not the document of the service any more",
        "  path added: GET /orders/new",
        "  path removed: GET /orders/old",
        "  path changed: GET /orders/{id}",
        "  schema removed: Gone",
        "  field changed: info",
        f"  fix: natsweb openapi ... -o {file}, and commit it",
    ]


def test_differences_are_listed_up_to_a_bound(tmp_path):
    """A file with nothing in common gives a short list."""
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps({"paths": {f"/{number}": {"get": {}} for number in range(100)}}))
    done = run(ORDERS, "--check", file)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) < 25
    assert "more" in done.stderr


@pytest.mark.parametrize(
    ("before", "found"),
    [
        ([], ["it is no object"]),
        ({"paths": 5, "components": []}, ["path added: GET /a", "security scheme added: key"]),
        (
            {"paths": {"/a": {"get": {}}}, "components": {"securitySchemes": {"key": {"type": "http"}}}},
            ["security scheme changed: key"],
        ),
        ({"paths": {"/a": {"get": {}}}, "components": {"securitySchemes": {"key": {}}}}, []),
    ],
)
def test_differences(before: Any, found: list[str]):
    """Any JSON may stand in the file."""
    after = {"paths": {"/a": {"get": {}}}, "components": {"securitySchemes": {"key": {}}}}
    assert list(differences(before, after)) == found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--format", "xml"], 2, ["neither json nor yaml", "fix: --format json"]),
        (["-o", "a", "--check", "b"], 2, ["--output writes", "fix: drop one"]),
        (["--check", "nowhere.json"], 1, ["nowhere.json cannot be read", "fix: natsweb openapi"]),
        (["-o", "nowhere/openapi.json"], 3, ["cannot be written", "fix: choose another"]),
    ],
)
def test_errors(arguments, code, words):
    """Every error says what, and what to do."""
    done = run(ORDERS, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.yaml", "a: [")])
def test_file_that_is_no_document(tmp_path, name, text):
    """A broken file is an error with its place in it."""
    (tmp_path / name).write_text(text)
    done = run(ORDERS, "--check", tmp_path / name)
    assert done.returncode == 1
    assert "is no " in done.stderr
    assert "line 1" in done.stderr


def test_missing_library_is_named():
    """Without PyYAML, the error names the line that installs it."""
    done = run(ORDERS, "--format", "yaml", before="sys.modules['yaml'] = None")
    assert (done.returncode, done.stdout) == (3, "")
    assert "pip install pyyaml" in done.stderr


def test_application_has_no_document(tmp_path):
    """An ASGI application is described by its own framework."""
    (tmp_path / "other.py").write_text("async def app(scope, receive, send): ...")
    done = run("other:app", "--app-dir", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ask the framework" in done.stderr
