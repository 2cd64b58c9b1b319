"""Every preset belongs to one job; jobs/README.md names them all, and says what smaller networks cost."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from capsdist.cli import parse_command
from capsdist.config import PRESETS, Config
from capsdist.config.models import find_family
from capsdist.config.presets.mnist_ablation import ABLATIONS
from kinds_of_presets import DISTINCT

JOBS = Path(__file__).parents[2] / "jobs"
TEXT = (JOBS / "README.md").read_text()
SIZES = re.findall(r"^\| (?:quarter|mini) \| `(.+)` \| (.+), (.+) \| (.+), (.+) \|$", TEXT, re.MULTILINE)


def cost_of(config: Config) -> tuple[int, int]:
    """Parameters, and FLOP of a training step of one image."""
    price = find_family(config.model.kind).cost
    assert price is not None
    cost = price(config.model, config.routing)
    return cost.parameters, sum(x.forward_flop + x.backward_flop + x.recomputed_flop for x in cost.layers)


def test_every_preset_belongs_to_one_job() -> None:
    offered = [runpy.run_path(str(path))["PRESETS"] for path in JOBS.glob("train_*.py")]
    assert sorted(name for names in offered for name in names) == sorted(PRESETS)


def test_every_preset_is_named() -> None:
    differences = [name.removeprefix("mnist_ablation_") for name in ABLATIONS]
    missing = [
        name for name in (*DISTINCT, *differences) if not re.search(rf"`(mnist_ablation_)?{name}`", TEXT)
    ]
    assert missing == []


@pytest.mark.parametrize(("options", "mnist", "mnist_flop", "cifar", "cifar_flop"), SIZES)
def test_smaller_networks(options: str, mnist: str, mnist_flop: str, cifar: str, cifar_flop: str) -> None:
    for preset, expected in (
        ("mnist_paper", (mnist, mnist_flop)),
        ("cifar10_official", (cifar, cifar_flop)),
    ):
        (_, whole), (parameters, flop) = (
            cost_of(parse_command(None, [preset], None, words)[0]) for words in ([], options.split())
        )
        assert (f"{parameters:,}", f"{flop / whole:.2f}") == expected


def test_there_are_two_sizes() -> None:
    assert len(SIZES) == 2
