"""The traces of later routing algorithms are those of their equations, written out child by child."""

from __future__ import annotations

import torch
from torch import Tensor

from capsdist.routing import RoutingOptions, trace_routing
from capsdist.routing.later.grouped import trace_grouped


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_trace_of_groups_is_the_mean_over_their_children() -> None:
    poses, grouped, bias, priors = draw(0, 5, 21, 3), draw(3, 3, 4, 6, 3, 7), draw(1, 4, 6), draw(2, 21, 4)
    found = trace_grouped(poses, grouped, RoutingOptions(3, True), bias=bias, log_priors=priors)
    total = [torch.zeros_like(each) for each in found]
    for number, children in enumerate((slice(7), slice(7, 14), slice(14, 21))):
        options = {"bias": bias, "log_priors": priors[children], "none_of_the_above": True}
        own = trace_routing(poses[:, children], grouped[number], 3, **options)
        total = [before + 7 * each for before, each in zip(total, own, strict=True)]
    for one, summed in zip(found, total, strict=True):
        torch.testing.assert_close(one, summed / 21)
    assert (found.parent_shares.sum(2) < 1).all()
