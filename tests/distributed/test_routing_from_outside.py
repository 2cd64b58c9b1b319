"""A routing algorithm of a user is a folder and a model file: no file of the package knows it."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from small_run import CLASSES, losses, run_small, write_data

from capsdist.cli import parse_command
from capsdist.config import problems
from capsdist.config.models import find_family
from capsdist.errors import ShapeError
from capsdist.routing import route_packed
from capsdist.runs.rundir import parse_config

KIND = "averaged_network:AVERAGED"


@pytest.fixture
def averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The algorithm, from a folder outside the repository."""
    shutil.copytree(Path(__file__).parent / "outside_package", tmp_path / "package")
    monkeypatch.syspath_prepend(tmp_path / "package")
    for name in ("averaged", "averaged.routing", "averaged_network"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    find_family.cache_clear()
    module = import_module("averaged")
    assert Path(str(module.__file__)).is_relative_to(tmp_path)
    return module


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
def test_it_uses_what_algorithms_share(averaged: ModuleType, weights_dtype: torch.dtype) -> None:
    """One iteration of dynamic routing averages too: same numbers, same gradients."""
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(5, 19, 3, generator=generator).requires_grad_()
    packed = torch.randn(4, 6, 3, 19, generator=generator).to(weights_dtype).requires_grad_()
    found = averaged.route_averaged(poses, packed, averaged.AveragedOptions())
    expected = route_packed(poses, packed, 1)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(each.square().sum(), (poses, packed)) for each in (found, expected)]
    torch.testing.assert_close(*grads)


def test_it_refuses_what_it_cannot_do(averaged: ModuleType) -> None:
    poses, packed = torch.randn(2, 5, 3).requires_grad_(), torch.randn(4, 6, 3, 5)
    total = averaged.route_averaged(poses, packed, averaged.AveragedOptions(2.0)).sum()
    with pytest.raises(NotImplementedError, match=r"^this pass is differentiable once, backward$"):
        torch.autograd.grad(torch.autograd.grad(total, poses, create_graph=True)[0].sum(), poses)
    with pytest.raises(ShapeError, match="child_poses has shape"):
        averaged.route_averaged(poses[0], packed, averaged.AveragedOptions())
    with pytest.raises(ShapeError, match=r"^sharpness=0 must be above 0$"):
        averaged.AveragedOptions(0)


def flags(root: Path) -> list[str]:
    """The options of a run of a few steps on `write_data(root)`."""
    return [
        "--model.kind", KIND, "--model.image-size", "9", "--model.num-classes", str(len(CLASSES)),
        "--data.name", "shapes", "--data.root", str(root), "--data.lanes", "2", "--data.shift", "0",
        "--train.global-batch-size", "8", "--train.max-steps", "12", "--train.log-every-steps", "1",
    ]  # fmt: skip


def test_a_network_with_it_trains(averaged: ModuleType, tmp_path: Path) -> None:
    options = [*flags(tmp_path), "--routing.sharpness", "1.5", "--optim.learning-rate", "0.01"]
    config, _ = parse_command(None, ["mnist_paper"], None, options)
    assert config.routing.model_dump() == {"sharpness": 1.5}
    assert problems(config) == []
    assert parse_config(config.model_dump_json().encode()) == config
    write_data(tmp_path)
    found = losses(run_small(config, tmp_path / "checkpoints"))
    assert len(found) == 12
    assert found[-1] < found[0]


def test_options_of_dynamic_routing_are_unknown_to_it(averaged: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse_command(None, ["mnist_paper"], None, [*flags(tmp_path), "--routing.iterations", "3"])
    bad = [*flags(tmp_path), "--routing.sharpness", "0"]
    config, _ = parse_command(None, ["mnist_paper"], None, bad)
    assert [problem.field for problem in problems(config)] == ["routing.sharpness"]
