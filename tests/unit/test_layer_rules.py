"""Rules for stacked layers: a number a layer in each option, and images that are large enough."""

from __future__ import annotations

import re
from typing import Any

import pytest

from capsdist.config import Config, problems
from capsdist.config.layer_rules import feature_size


def config_of(kind: str, **model: Any) -> Config:
    return Config.model_validate({"model": {"kind": kind, **model}})


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "side"), [
    (28, 9, 1, "valid", 20), (20, 9, 2, "valid", 6), (24, 9, 2, "same", 12), (25, 9, 2, "same", 13),
    (8, 9, 1, "valid", 0), (5, 9, 3, "valid", -1),
])  # fmt: skip
def test_feature_size(size: int, kernel: int, stride: int, padding: str, side: int) -> None:
    assert feature_size(size, kernel, stride, padding) == side


PRIMARY = "model.primary_kernel has a kernel of 9 where 8 positions a side are left"
EM = (
    "model.capsule_kernels has a kernel of 3 where 2 positions a side are left (model.conv_kernel=5, "
    "model.conv_stride=2, model.capsule_kernels=(3, 3), model.capsule_strides=(2, 1))"
)
CONV = {"capsule_padding": "valid", "capsule_kernels": (3,), "padding": "valid", "conv_stride": 3}


@pytest.mark.parametrize(("kind", "model", "words"), [
    ("capsnet", {"image_size": 16}, PRIMARY),
    ("capsnet", {"image_size": (16, 40)}, PRIMARY),
    ("capsnet", {"image_size": (40, 16)}, PRIMARY),
    ("capsnet", {"image_size": 9, "conv_kernel": 10}, "model.conv_kernel has a kernel of 10 where 9"),
    ("conv_capsnet", {"image_size": 25, **CONV}, EM.partition(" (")[0]),
    ("em_capsnet", {"image_size": 16}, EM),
])  # fmt: skip
def test_an_image_that_is_too_small_is_refused_with_the_kernel_and_the_least_size(
    kind: str, model: dict[str, Any], words: str
) -> None:
    (found,) = problems(config_of(kind, **model))
    assert (found.field, found.value) == ("model.image_size", model["image_size"])
    assert words in found.rule
    named = re.search(r"at least ([0-9]+) pixels", found.fix)
    assert named
    least = int(named[1])
    assert problems(config_of(kind, **model | {"image_size": least})) == []
    assert problems(config_of(kind, **model | {"image_size": least - 1})) != []


@pytest.mark.parametrize(("model", "odd", "rule"), [
    ({"capsule_types": (8,)}, "types", "has 1 numbers, model.capsule_kernels has 2, model.caps"),
    ({"capsule_kernels": (3, 3, 3)}, "kernels", "has 3 numbers, model.capsule_types has 2"),
    ({"capsule_types": (8,), "capsule_kernels": (3,)}, "strides", "has 2 numbers, model.capsule_types has 1"),
])  # fmt: skip
def test_the_option_of_another_length_is_named(model: dict[str, Any], odd: str, rule: str) -> None:
    (found,) = problems(config_of("em_capsnet", **model))
    assert found.field == f"model.capsule_{odd}"
    assert found.rule.startswith(rule)
