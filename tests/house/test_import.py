"""`import capsdist` is light and changes nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import capsdist

PROBE = """
import logging, os, sys, warnings
before = (dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters))
import {module}
after = (dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters))
assert before == after, "importing changed the environment, logging or warnings"
heavy = {{"torch", "ray", "deepspeed", "numpy", "matplotlib", "tensorboard", "triton"}} & set(sys.modules)
print(sorted(heavy))
"""


def heavy_imports(module: str) -> str:
    """The heavy packages that a fresh interpreter holds after importing `module`."""
    probe = [sys.executable, "-c", PROBE.format(module=module)]
    return subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["capsdist", "capsdist.config", "capsdist.errors"])
def test_import_takes_nothing_heavy(module: str) -> None:
    assert heavy_imports(module) == "[]"


def test_the_probe_sees_a_heavy_import() -> None:
    assert "torch" in heavy_imports("capsdist.routing")


@pytest.mark.parametrize("name", capsdist.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(capsdist, name)
    assert isinstance(value, str) or value.__doc__


def test_unknown_public_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="'routed'; it has"):
        capsdist.routed  # noqa: B018
