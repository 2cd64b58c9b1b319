"""A user's own training around our layers ends as without anything around: torch's means and frameworks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from framework_runs import OWN, State, accelerated, all_of_torch, alone, deepspeed_zero, lightning
from ranks import Ranks

from capsdist.train.engine.build import zero_requirements
from limits import PATIENCE_S


@pytest.fixture(scope="module")
def expected() -> State:
    return alone()


@pytest.fixture(scope="module")
def of_torch(ranks: Callable[[int], Ranks]) -> dict[str, State]:
    return ranks(2).run(all_of_torch, timeout_s=PATIENCE_S)[0]


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", OWN)
def test_torchs_own_data_parallel_training(name: str, of_torch: dict[str, State], expected: State) -> None:
    assert_same(of_torch[name], expected)


@pytest.mark.zero
@pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements()))
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_of_the_users_own(stage: int, ranks: Callable[[int], Ranks], expected: State) -> None:
    assert_same(ranks(2).run(deepspeed_zero, stage, timeout_s=PATIENCE_S)[0], expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("package", "run"), [("pytorch_lightning", lightning), ("accelerate", accelerated)])
def test_a_framework_around_the_network(
    package: str, run: Callable[[str], State], expected: State, tmp_path: Path
) -> None:
    pytest.importorskip(package, reason=f"pip install {package}")
    assert_same(run(str(tmp_path)), expected)


def test_the_comparison_notices_another_training(expected: State) -> None:
    other = {name: tensor + 1e-3 for name, tensor in expected.items()}
    with pytest.raises(AssertionError):
        assert_same(other, expected)
