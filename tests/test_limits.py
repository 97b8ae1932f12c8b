"""Limits on the command line: every field of `Limits` by its name, and nothing else."""

import dataclasses

import pytest
from typer.testing import CliRunner

from natsweb.cli import app
from natsweb.cli.limits import read_limits
from natsweb.errors import SettingsError
from natsweb.settings import Limits


def test_every_limit_has_a_flag():
    """Each limit is set alone, by its name with underscores or hyphens, and shown with its default in the help."""
    told = " ".join(CliRunner().invoke(app, ["gateway", "--help"]).output.split())
    for field in dataclasses.fields(Limits):
        for name in (field.name, field.name.replace("_", "-")):
            assert read_limits([f"{name}=7"]) == dataclasses.replace(Limits(), **{field.name: 7})
        assert f"{field.name} {field.default}" in told
    assert read_limits(["head_timeout=0.5", "pending=3"]) == Limits(head_timeout=0.5, pending=3)
    assert read_limits([]) == Limits()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("size=3", "names no limit"),
        ("pending", "cannot be"),
        ("pending=", "cannot be"),
        ("pending=0", "cannot be"),
        ("pending=-1", "cannot be"),
        ("pending=1.5", "cannot be"),
        ("head_timeout=soon", "cannot be"),
        ("head_timeout=inf", "cannot be"),
        ("head_timeout=nan", "cannot be"),
    ],
)
def test_limits_that_cannot_be(said, words):
    """What names no limit, or is no value of it, is refused with what would be right."""
    with pytest.raises(SettingsError, match=words) as caught:
        read_limits([said])
    assert caught.value.fix
