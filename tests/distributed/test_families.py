"""Families of networks: each section has the type of the family, and a family of a user is one file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from small_run import CLASSES, losses, run_small, write_data

from capsdist.cli import parse_command
from capsdist.config import BaselineCNNConfig, CapsNetConfig, Config, NoOptions, get_preset, problems
from capsdist.config.models import BUILT_IN, find_family
from capsdist.errors import ConfigError
from capsdist.models import build_model
from capsdist.models.counts import num_parameters
from capsdist.runs.rundir import parse_config

LINEAR = '''
from typing import Annotated
from capsdist.config import Family, NetworkConfig, Section
from capsdist.config.sections import Bounds

class LinearConfig(NetworkConfig):
    kind: str = "linear_family:LINEAR"
    scale: Annotated[float, Bounds(gt=0)] = 1.0
    """Factor of the logits."""

class Smooth(Section):
    smoothing: float = 0.1
    """Label smoothing."""

def build(model, routing):
    from torch import nn
    from capsdist.models import Output

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(model.in_channels * model.image_size**2, model.num_classes)

        def forward(self, images, labels=None):
            return Output(model.scale * self.layer(images.flatten(1)))

    return Linear()

def losses(output, images, labels, loss):
    from torch.nn.functional import cross_entropy
    plain = cross_entropy(output.scores, labels, reduction="none")
    smooth = cross_entropy(output.scores, labels, reduction="none", label_smoothing=loss.smoothing)
    return {"loss": smooth, "plain_loss": plain}

LINEAR = Family(
    title="linear classifier", model=LinearConfig, loss=Smooth, build=build, losses=losses,
    loss_names=("loss", "plain_loss"),
)
NOTHING = 3
'''


@pytest.fixture
def linear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of a family in a module of the user."""
    (tmp_path / "linear_family.py").write_text(LINEAR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "linear_family", raising=False)
    find_family.cache_clear()
    return "linear_family:LINEAR"


def test_a_family_of_the_user_is_one_file(linear: str, tmp_path: Path) -> None:
    flags = [
        "--model.kind",
        linear,
        "--model.scale",
        "0.5",
        "--loss.smoothing",
        "0.2",
        "--train.max-steps",
        "6",
    ]
    flags += [
        "--model.image-size",
        "9",
        "--model.num-classes",
        str(len(CLASSES)),
        "--train.global-batch-size",
        "8",
    ]
    flags += ["--data.name", "shapes", "--data.root", str(tmp_path), "--data.lanes", "2", "--data.shift", "0"]
    config, _ = parse_command(None, ["mnist_paper"], None, [*flags, "--train.log-every-steps", "1"])
    assert (config.model.kind, type(config.routing)) == (linear, NoOptions)
    assert problems(config) == []
    assert parse_config(config.model_dump_json().encode()) == config
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert num_parameters(config) == 81 * 3 + 3
    write_data(tmp_path)
    rows = run_small(config, tmp_path / "checkpoints")
    start, last = rows[0], [row for row in rows if row["kind"] == "train"][-1]
    assert (start["network"], start["model"]) == ("linear classifier", linear)
    assert last["loss"] > 0
    assert last["plain_loss"] > 0
    assert len(losses(rows)) == 6


@pytest.mark.parametrize(("kind", "reason"), [
    ("resnet", "is not a family of networks"), ("os:system", "is a builtin_function_or_method, not a Family"),
    ("no_such_module:X", "cannot be imported (No module named 'no_such_module')"),
    ("linear_family:NOTHING", "is a int, not a Family"), ("linear_family:", "is not a family of networks"),
    ("linear_family:OTHER", "has no attribute 'OTHER'"),
])  # fmt: skip
def test_what_is_no_family_is_refused(linear: str, kind: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_command(None, ["mnist_paper"], None, ["--model.kind", kind])
    message = str(caught.value)
    assert message.startswith(f"model.kind={kind!r}: ")
    assert reason in message
    assert message.endswith(f"choose one of {', '.join(BUILT_IN)}, or an import path package.module:OBJECT")


@pytest.mark.parametrize(("kind", "section", "field"), [
    ("baseline_cnn", "model", "primary_types"), ("baseline_cnn", "routing", "iterations"),
    ("baseline_cnn", "loss", "m_plus"), ("capsnet", "model", "dropout"),
])  # fmt: skip
def test_fields_of_one_family_are_unknown_to_another(kind: str, section: str, field: str) -> None:
    values = {"model": {"kind": kind}}
    values.setdefault(section, {})[field] = 1  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=rf"(?s){section}.{field}.*Extra inputs are not permitted"):
        Config.model_validate(values)
    with pytest.raises(ConfigError, match=rf"{section}.{field}=1: is not a field of this version"):
        parse_config(json.dumps(values).encode())
    option = f"--{section}.{field.replace('_', '-')}"
    with pytest.raises(SystemExit):
        parse_command(None, ["mnist_paper"], None, ["--model.kind", kind, option, "1"])


def test_kind_starts_from_the_defaults_of_the_family_for_the_same_images() -> None:
    config, _ = parse_command(None, ["cifar10_paper"], None, ["--model.kind", "baseline_cnn"])
    assert config.model == BaselineCNNConfig(in_channels=3, image_size=24)
    assert config.data == get_preset("cifar10_paper").data


@pytest.mark.parametrize("kind", BUILT_IN)
def test_losses_have_the_names_that_the_family_says(kind: str) -> None:
    family = find_family(kind)
    config = Config(model=family.model(image_size=28, num_classes=4))
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([0, 3, 1])
    told = torch.ones(3, 2) if config.model.known_shift else labels
    output = build_model(config.model, config.routing)(images, told)
    found = family.losses(output, images, labels, config.loss)
    assert tuple(found) == family.loss_names
    assert {tuple(loss.shape) for loss in found.values()} == {(3,)}


def test_the_default_is_the_capsule_network() -> None:
    assert Config().model == CapsNetConfig()
    assert Config.model_validate({"model": {"class_dim": 8}}).model == CapsNetConfig(class_dim=8)
