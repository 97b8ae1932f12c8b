"""From a handler's dependencies to its recipe: the graph, walked once at declaration.

Cycles, types that do not fit, scopes that end too early and unknown types are reported with the chain that leads to
them. Knows signatures and markers; it calls nothing.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from types import UnionType
from typing import Any, NamedTuple, Protocol, Union, get_origin

from typing_extensions import is_typeddict

from natsweb.annotations import Place, allows_none, line_of, name_of, produced_by, resolve_hints, signature_of, strip
from natsweb.binding import Need, Plan
from natsweb.errors import DeclarationError
from natsweb.forms import has_parser
from natsweb.given import is_given
from natsweb.messages import Call, Request
from natsweb.params import Depends
from natsweb.paths import Template
from natsweb.plans import compile_plan
from natsweb.recipes import Kind, Recipe, Step, way_to_call
from natsweb.scopes import Background

__all__ = ["Needs", "compile_recipe", "identity_of"]

_PROMOTED = {(int, float), (int, complex), (float, complex)}  # by the type checkers' rules
_RANK = {"handler": 0, "request": 1, "app": 2}


class Needs(Protocol):
    """What a recipe is compiled with: what routers add, what tests replace, what the service hands over."""

    @property
    def guards(self) -> Sequence[Depends]:
        """Dependencies of the route and its routers, called first and for their effect only."""
        ...

    @property
    def overrides(self) -> Mapping[Any, Callable[..., Any]]:
        """Dependency -> what stands in for it."""
        ...

    @property
    def services(self) -> Sequence[type]:
        """Types of parameters that the service hands over."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the route says that it takes its body as it comes."""
        ...


def compile_recipe(
    function: Callable[..., Any],
    hints: Mapping[str, Any],
    names: Mapping[str, Any],
    template: Template,
    place: Place,
    needs: Needs,
) -> Recipe:
    """Return the recipe of a handler.

    `names` are those visible where it was declared. Raises `DeclarationError` with the chain of dependencies for a
    cycle, a type that does not fit, a scope that ends too early, or a missing extra; `NameError` for an annotation
    that names something unknown.
    """
    kinds = (Call, Background, *needs.services)
    plan = compile_plan(function, hints, template, place, services=kinds)
    compiler = _Graph(names, template, place, kinds, needs.overrides)
    for guard in needs.guards:
        compiler.add(Need("", guard, Any))
    indexes = {need.name: compiler.add(need) for need in plan.needs}
    steps, moved = _callers_first(compiler.steps)
    plans = [plan, *[step.plan for step in steps]]
    _check_bodies(plans, place)
    _check_streams(plans, needs.stream, place)
    taken = [found for step in steps if (found := getattr(step.call, "takes", None)) is not None]
    plan = plan.beside(plans, taken)
    steps = [replace(step, plan=step.plan.beside(plans, taken)) for step in steps]
    recipe = Recipe(plan, tuple(steps), tuple([(name, moved[index]) for name, index in indexes.items()]))
    if recipe.takes_form and not has_parser():
        raise DeclarationError(
            "this route takes a form, and the library that reads forms is not installed",
            where=str(place),
            fix='pip install "natsweb[forms]"',
        )
    return recipe


def _callers_first(steps: Sequence[Step]) -> tuple[list[Step], dict[int, int]]:
    """Return the steps with those first that settle who calls, and where each has gone.

    Nothing is made for a caller, and nothing is said of its input, before it is known. Such steps need only each other.
    """
    order = sorted(range(len(steps)), key=lambda index: not steps[index].depends.first)
    moved = {before: after for after, before in enumerate(order)}
    return [
        replace(steps[index], needs=tuple([(name, moved[inner]) for name, inner in steps[index].needs]))
        for index in order
    ], moved


def _check_bodies(plans: Sequence[Plan], place: Place) -> None:
    """Raise `DeclarationError` if a form and another kind of body are wanted of one request."""
    of_form = [one for plan in plans for one in plan.parameters if one.source == "form"]
    of_body = [one for plan in plans for one in plan.parameters if one.source == "body"]
    if of_form and of_body:
        raise DeclarationError(
            f"{of_body[0].name!r} wants a JSON body and {of_form[0].name!r} a form",
            where=str(place),
            fix="a request has one body, also for dependencies: take all of it from the form, or from JSON",
        )


def _check_streams(plans: Sequence[Plan], said: bool, place: Place) -> None:
    """Raise `DeclarationError` if the body is wanted as it comes, and whole or once more as well."""
    takers = [name for plan in plans for name, kind in plan.given if kind is AsyncIterator]
    whole = [one for plan in plans for one in plan.parameters if one.source in ("body", "form")]
    if len(takers) > 1:
        raise DeclarationError(
            f"{takers[0]!r} and {takers[1]!r} both take the body as it comes, which is read once",
            where=str(place),
            fix="read it in one place, also with dependencies, and hand on what was read",
        )
    if whole and (takers or said):
        taker = repr(takers[0]) if takers else "stream=True"
        raise DeclarationError(
            f"{taker} takes the body as it comes, and {whole[0].name!r} wants it as a {whole[0].source}",
            where=str(place),
            fix="take all of it from one of them, also with dependencies",
        )


class _Link(NamedTuple):
    """One dependency on the way to another, for messages."""

    key: Any
    name: str
    line: str


class _Graph:
    """Walks the dependencies of one handler, the innermost first."""

    def __init__(
        self,
        names: Mapping[str, Any],
        template: Template,
        place: Place,
        kinds: Sequence[type],
        overrides: Mapping[Any, Callable[..., Any]],
    ) -> None:
        self.steps: list[Step] = []
        self._names = names
        self._template = template
        self._place = place
        self._kinds = kinds
        self._overrides = overrides
        self._known: dict[Any, int] = {}

    def add(self, need: Need, chain: tuple[_Link, ...] = ()) -> int:
        """Add the step of a dependency and of those that it needs; return its index."""
        depends = need.depends
        original = depends.resolve(need.annotation)
        if original is None:
            raise self._mistake(
                f"parameter {need.name!r} depends on nothing that can be called", "write Depends(get_db)", chain
            )
        if is_given(original):
            raise self._mistake(
                f"a {name_of(original)} is handed over by the service, and parameter {need.name!r} depends on it",
                f"write {need.name}: {name_of(original)}",
                chain,
            )
        key: tuple[Any, ...] = (identity_of(original), depends.scope, depends.inline)
        chain = (*chain, _Link(key, name_of(original), line_of(original)))
        if any(link.key == key for link in chain[:-1]):
            circle = " -> ".join(link.name for link in chain)
            raise self._mistake(f"dependencies go round in a circle: {circle}", "take one of them out of it", chain)
        if not depends.shared:
            index = self._add_step(need, original, (*key, object()), chain)
        elif key in self._known:
            index = self._known[key]
        else:
            index = self._known[key] = self._add_step(need, original, key, chain)
        if key[0] not in self._overrides:
            self._check_type(need, self.steps[index], chain)
        return index

    def _add_step(self, need: Need, original: Any, key: Any, chain: tuple[_Link, ...]) -> int:
        depends = need.depends
        function = self._overrides.get(key[0], original)
        plan = self._plan(function, chain)
        filled = tuple([(inner.name, self.add(inner, chain)) for inner in plan.needs])
        self._check_scope(depends.scope, plan, filled, chain)
        call, kind = way_to_call(function, depends.inline)
        yields = kind in (Kind.ASYNC_CONTEXT, Kind.CONTEXT)
        gives = produced_by(function, plan.returns, yields=yields)
        self.steps.append(
            Step(
                key,
                chain[-1].name,
                call,
                kind,
                depends.scope,
                depends.inline,
                plan,
                filled,
                depends,
                gives,
                allows_none(need.annotation),
            )
        )
        return len(self.steps) - 1

    def _plan(self, function: Callable[..., Any], chain: tuple[_Link, ...]) -> Plan:
        place = Place(line_of(function), f"Depends({name_of(function)})", "")
        try:
            place = place._replace(signature=signature_of(function))
            hints = resolve_hints(function, self._names)
            return compile_plan(function, hints, self._template, place, services=self._kinds)
        except DeclarationError as error:
            raise self._mistake(error.what, error.fix, chain, first=str(place)) from None
        except (TypeError, ValueError) as error:
            raise self._mistake(
                f"the parameters of {name_of(function)} cannot be told: {error}", "wrap it in a function", chain
            ) from None

    def _check_scope(
        self, scope: str, plan: Plan, filled: tuple[tuple[str, int], ...], chain: tuple[_Link, ...]
    ) -> None:
        """Raise `DeclarationError` if a dependency outlives what it is made of."""
        name = chain[-1].name
        for _, index in filled:
            inner = self.steps[index]
            if _RANK[inner.scope] < _RANK[scope]:
                raise self._mistake(
                    f"{name} lives for the {scope} and needs {inner.name}, which ends with the {inner.scope}",
                    f'give {name} scope="{inner.scope}", or {inner.name} scope="{scope}"',
                    chain,
                )
        of_request = [one.name for one in plan.parameters] + [
            one for one, kind in plan.given if kind in (Request, Call, Background, AsyncIterator)
        ]
        if scope == "app" and of_request:
            raise self._mistake(
                f"{name} lives as long as the service, and its parameter {of_request[0]!r} comes from a request",
                'take the parameter out, or use scope="request"',
                chain,
            )

    def _check_type(self, need: Need, step: Step, chain: tuple[_Link, ...]) -> None:
        """Raise `DeclarationError` if what a dependency gives is surely not what the parameter wants."""
        wanted, given = (get_origin(strip(kind)) or strip(kind) for kind in (need.annotation, step.gives))
        if not all(isinstance(kind, type) and not is_typeddict(kind) for kind in (wanted, given)):
            return
        if {Union, UnionType} & {wanted, given}:
            return
        if {Any, object} & {wanted, given} or getattr(wanted, "_is_protocol", False) or issubclass(given, wanted):
            return
        if (given, wanted) in _PROMOTED:
            return
        verb = "yields" if step.kind in (Kind.ASYNC_CONTEXT, Kind.CONTEXT) else "gives"
        raise self._mistake(
            f"{step.name} {verb} {given.__name__}, and parameter {need.name!r} wants {wanted.__name__}",
            "annotate both alike",
            chain,
        )

    def _mistake(self, what: str, fix: str, chain: tuple[_Link, ...], *, first: str | None = None) -> DeclarationError:
        links = [f"needs {link.name} ({link.line})" for link in chain]
        return DeclarationError(what, where=[*([first] if first else []), str(self._place), *links], fix=fix)


def identity_of(function: Any) -> Any:
    """Return what tells one dependency from another: itself, or its address if it cannot be hashed."""
    try:
        hash(function)
    except TypeError:
        return id(function)
    return function
