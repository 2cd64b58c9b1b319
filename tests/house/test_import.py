"""`import capsdist` is light, and changes nothing but what capsdist/README.md says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import capsdist
from capsdist import registration

ROOT = Path(__file__).resolve().parents[2]
STATE = "(dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters))"
PROBE = f"""
import logging, os, sys, warnings
before = {STATE}
import MODULE
heavy = {{"torch", "ray", "deepspeed", "numpy", "matplotlib", "tensorboard", "triton"}} & set(sys.modules)
print(sorted(heavy), "changed" if {STATE} != before else "unchanged")
"""


def probe(module: str) -> str:
    """What a fresh interpreter has after importing `module`: heavy packages, and whether anything changed."""
    words = [sys.executable, "-c", PROBE.replace("MODULE", module)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("module", ["capsdist", "capsdist.config", "capsdist.errors"])
def test_import_takes_nothing_heavy_and_changes_nothing(module: str) -> None:
    assert probe(module) == "[] unchanged"


def test_the_one_change_is_a_finder_as_the_readme_says() -> None:
    code = """
import sys
before = list(sys.meta_path), list(sys.path), list(sys.path_hooks)
import capsdist
added = sys.meta_path.pop(0)
print(added.__name__, (sys.meta_path, sys.path, sys.path_hooks) == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "_AfterTorch True\n"
    assert "`sys.meta_path`" in (ROOT / "capsdist/README.md").read_text()


def test_torch_alone_registers_nothing_and_a_broken_install_is_not_the_matter_of_others() -> None:
    code = """
import sys, types
import capsdist
import json.tool  # not torch: nothing happens
assert len([each for each in sys.meta_path if "_AfterTorch" in str(each)]) == 1
sys.modules["capsdist.models"] = None  # as if importing it failed
import torch
import wave
assert not [each for each in sys.meta_path if "_AfterTorch" in str(each)]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_import_that_registers_runs_no_module_twice() -> None:
    code = """
import capsdist
import torch
import capsdist.algorithms as first
from capsdist.routing.explaining import find_algorithm
assert find_algorithm is first.find_algorithm
assert first.__spec__.origin == first.__file__
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_another_thread_may_import_while_the_finder_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # noqa: F401

    class Imported(str):
        """The name of a module; whenever it is looked at, one more is imported."""

        def startswith(self, *_: object) -> bool:
            monkeypatch.setitem(sys.modules, "imported_by_another_thread", sys)
            return False

    monkeypatch.setitem(sys.modules, Imported("first"), sys)
    registration._AfterTorch.find_spec("anything")
    assert "imported_by_another_thread" in sys.modules


def test_the_probe_sees_a_heavy_import() -> None:
    assert "torch" in probe("capsdist.routing")


@pytest.mark.parametrize("name", capsdist.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(capsdist, name)
    assert isinstance(value, str) or value.__doc__


def test_unknown_public_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="'routed'; it has"):
        capsdist.routed  # noqa: B018


def test_modules_load_on_first_use_and_names_are_listed() -> None:
    listed = "{'CapsNet', 'routing'} <= set(dir(capsdist))"
    code = f"import capsdist; print({listed}, capsdist.routing.explain.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True explain\n"
