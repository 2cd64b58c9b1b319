"""Class capsules of later algorithms in ONNX Runtime: what torch computes, of extreme inputs too."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_program import in_onnx_runtime
from torch import Tensor, nn

from capsdist.models.inverted_layers import InvertedCapsules
from capsdist.models.later_layers import AttentionCapsules, GroupedCapsules, HeinsenCapsules

I, D, J, E = 21, 3, 5, 7  # noqa: E741
LAYERS: dict[str, Any] = {
    "attention": lambda: AttentionCapsules(I, D, J, E, log_priors=True),
    "inverted": lambda: InvertedCapsules(I, D, J, E, hidden_capsules=(4,), concurrent=True),
    "heinsen": lambda: HeinsenCapsules(I, D, J, E),
    "grouped": lambda: GroupedCapsules(I, D, J, E, groups=3, bias=True, log_priors=True),
}


def drawn(name: str) -> nn.Module:
    """A layer whose parents have scores far from 0, where there are scores."""
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    if isinstance(layer, HeinsenCapsules):  # its logistic function is 0 in fp32 below a score of -104
        for beta in (layer.beta_use, layer.beta_ignore):
            nn.init.uniform_(beta, 20, 40)
        layer.packed_weights.data[0] *= 0.1  # whose density is highest, so that it takes the children
    return layer


def images() -> Tensor:
    """Child poses of ordinary lengths, of none, and of very long, very short and few capsules."""
    poses = torch.randn(7, I, D) / D
    poses[1] = 0
    poses[2] *= 1e3
    poses[3] *= 1e-12
    poses[4, 1:] = 0
    poses[5, ::2] *= 100
    return poses


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_runtime_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    torch.manual_seed(seed)
    layer, poses = drawn(name), images()
    with torch.no_grad():
        expected = layer(poses)
    assert expected.isfinite().all()
    found = in_onnx_runtime(layer, poses, tmp_path)
    # the shares of very long capsules are those of logits in the thousands, which fp32 rounds to 1e-4
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0, msg=lambda text: f"seed {seed}: {text}")
