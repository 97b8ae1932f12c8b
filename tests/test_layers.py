"""The house: which module stands on which floor, what it may import, and what every module shows."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import natsweb

PACKAGE = Path(natsweb.__file__).parent

# The floors of the house, from the ground up: a module imports only from floors below its own.
FLOORS = [
    ["errors", "settings"],
    ["headers", "subjects"],
    ["messages", "params", "paths"],
    ["annotations", "current", "given"],
    ["markers"],
    ["wire", "streams", "routing", "sockets", "binding", "replies", "middleware", "micro", "counters", "rules"],
    ["plans", "proxy_wire", "merges", "events"],
    ["beats", "deadlines", "tasks", "threads", "forms"],
    ["asgi", "security", "scopes", "files", "bus", "catalogue"],
    ["lifetimes", "recipes", "pipes"],
    ["dependencies", "feeds", "jobs", "flights"],
    ["arriving"],
    ["routers", "lifespans", "exchange"],
    ["openapi", "routes", "mounts", "uploads"],
    ["dispatch"],
    ["service", "natsbus", "embedded", "documents"],
    ["discovery", "subscriber"],
    ["gateway", "worker", "calls", "questions"],
    ["client", "transport"],
    ["front", "member", "plain"],
    ["serving"],
    ["cli", "testing"],
    ["pytest_plugin"],
    ["__main__"],
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}

# Arrows between neighbours of one floor: each has a reason.
NEIGHBOURS = {
    "settings": {"errors"},
    "files": {"asgi"},  # a file is served by running starlette's ASGI application
}
# Arrows by name at run time. Upwards: `Service.run` is the command line's `run` for one service, and a service that is
# called as an ASGI application has its door there. Downwards: pytest loads the plugin in every run.
LATE = {("service", "cli"), ("service", "plain"), ("pytest_plugin", "testing")}

# Libraries with one door.
DOORS = {"nats": "natsbus", "typer": "cli", "uvicorn": "front"}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {file: file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for file in FILES}
TREES = {file: ast.parse(file.read_text()) for file in FILES}
MODULES = [file for file in FILES if NAMES[file] != "__init__"]


def imported(tree: ast.AST) -> set[str]:
    """Return the dotted names that the import statements below a node import."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            found.add(node.module)
            if node.module == "natsweb":
                found |= {f"natsweb.{alias.name}" for alias in node.names if alias.name in FLOOR}
    return found


def late(tree: ast.AST) -> set[str]:
    """Return the literal module names that `import_module` is called with."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "import_module" in ast.dump(node.func)]
    return {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}


def own(names: set[str]) -> set[str]:
    """Return the modules of the house among dotted names, packages as one."""
    return {name.split(".")[1] for name in names if name.startswith("natsweb.")}


def top(file: Path) -> str:
    """Return the module of the house that a file belongs to."""
    return NAMES[file].split(".")[0]


def order(name: str) -> tuple[int, str]:
    """Return the sort key of `__all__`, which is ruff's: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


each = pytest.mark.parametrize("file", MODULES, ids=NAMES.get)


@each
def test_every_module_has_a_floor(file):
    """The table above names every module."""
    assert top(file) in FLOOR


@each
def test_arrows_point_down(file):
    """A module imports from the floors below it, and from a neighbour only where the table says so."""
    me = top(file)
    below = {name for name, floor in FLOOR.items() if floor < FLOOR[me]}
    assert own(imported(TREES[file])) - {me} <= below | NEIGHBOURS.get(me, set())
    assert {(me, other) for other in own(late(TREES[file])) - {me}} <= LATE


def test_the_exceptions_are_needed():
    """No arrow is allowed that the code does not have."""
    for me, others in NEIGHBOURS.items():
        assert others <= own(imported(TREES[PACKAGE / f"{me}.py"]))
        assert all(FLOOR[me] == FLOOR[other] for other in others)
    for me, other in LATE:
        assert other in own(late(TREES[PACKAGE / f"{me}.py"]))


@each
def test_libraries_have_one_door(file):
    """Only the module that owns a library imports it."""
    used = {name.split(".")[0] for name in imported(TREES[file]) | late(TREES[file])}
    assert {DOORS[name] for name in used & set(DOORS)} <= {top(file)}


@each
def test_no_imports_for_the_type_checker_only(file):
    """What the checker sees is what runs: nothing is imported under TYPE_CHECKING."""
    guards = [
        node for node in ast.walk(TREES[file]) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    assert not [name for guard in guards for name in imported(guard)]


@each
def test_no_imports_inside_functions(file):
    """Imports stand on top of a module; only the command line loads lazily."""
    if top(file) != "cli":
        functions = [node for node in ast.walk(TREES[file]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert not [name for function in functions for name in imported(function)]


@pytest.mark.parametrize("file", FILES, ids=NAMES.get)
def test_modules_open_with_their_law(file):
    """Every module says at its top, in two lines or more, what it is about."""
    docstring = ast.get_docstring(TREES[file])
    assert docstring
    assert len(docstring.splitlines()) >= (1 if top(file) in ("__main__", "cli") else 2)


@each
def test_the_public_surface_is_sorted_there_and_documented(file):
    """`__all__` is sorted and true; its classes, their methods and its functions have docstrings."""
    if top(file) == "__main__":
        return
    module = importlib.import_module(f"natsweb.{NAMES[file]}".removesuffix(".__init__"))
    names = getattr(module, "__all__", [] if top(file) == "cli" else None)
    assert names == sorted(set(names), key=order)
    for name in names:
        one = getattr(module, name)
        members = vars(one).items() if inspect.isclass(one) and not getattr(one, "_is_protocol", False) else ()
        methods = [word for word, member in members if inspect.isfunction(member) and not word.startswith("_")]
        assert one.__doc__ or not (inspect.isclass(one) or inspect.isfunction(one)), name
        assert not [word for word in methods if not getattr(one, word).__doc__], name


def test_the_package_shows_its_names():
    """Every name of the package loads, from the module that owns it."""
    assert natsweb.__all__ == sorted(natsweb.__all__, key=order)
    assert set(dir(natsweb)) == set(natsweb.__all__)
    for name in natsweb.__all__:
        assert getattr(natsweb, name)
    with pytest.raises(AttributeError, match="no attribute 'Gatway'"):
        natsweb.Gatway
