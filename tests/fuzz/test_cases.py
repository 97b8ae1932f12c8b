"""The fuzzer's seeds, and all that it has found: each keeps the law of its target."""

from pathlib import Path

import pytest

from .seeds import SEEDS
from .targets import TARGETS

FOUND = sorted(Path(__file__).parent.glob("cases/*/*"))


def test_every_target_has_seeds() -> None:
    """The tables name the same targets, and found cases belong to one."""
    assert SEEDS.keys() == TARGETS.keys()
    assert {case.parent.name for case in FOUND} <= TARGETS.keys()


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in SEEDS for number in range(len(SEEDS[name]))])
def test_seed(name: str, number: int) -> None:
    """What the fuzzer begins with is right, whole and cut off anywhere."""
    seed = SEEDS[name][number]
    for end in range(len(seed) + 1):
        TARGETS[name](seed[:end])


@pytest.mark.parametrize("case", FOUND, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_found(case: Path) -> None:
    """What was wrong once stays right."""
    TARGETS[case.parent.name](case.read_bytes())
