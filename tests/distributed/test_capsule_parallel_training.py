"""A network split over ranks, trained and gathered, is the network trained alone on all images."""

from __future__ import annotations

import pytest
import torch
from capsule_network import Trained, train_alone, train_split

START, THREE = None, range(3)


def distance(found: Trained, expected: Trained) -> float:
    """Largest relative difference of a parameter, of Adam's state, or of a gradient norm."""
    pairs = [(found.model[name], tensor) for name, tensor in expected.model.items()]
    pairs += [(torch.tensor(found.norms), torch.tensor(expected.norms))]
    for number, slots in expected.optimizer["state"].items():
        pairs += [(found.optimizer["state"][number][slot], tensor) for slot, tensor in slots.items()]
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.property(
    "parallel training", "steps of a network split over ranks are those of one rank on all images"
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("world_size", "num_replicas"), [(2, 1), (4, 1), (4, 2)])
@pytest.mark.parametrize("max_norm", [1e9, 0.05], ids=["free", "clipped"])
def test_three_steps_of_adam_are_those_of_the_whole_network(
    ranks, dtype: torch.dtype, limit: float, world_size: int, num_replicas: int, max_norm: float
) -> None:
    found = ranks(world_size).run(train_split, THREE, max_norm, dtype, START, num_replicas)
    assert distance(found[0], train_alone(THREE, max_norm, dtype)) < limit
    assert all(each.norms == found[0].norms for each in found)


FAULTS = ["means of the ranks' means", "each rank's own gradients", "each rank's own norm"]


@pytest.mark.defect(
    "parallel training", "loss divided by a rank's own images, no sum, or a norm of a rank's own"
)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_rank_for_itself_breaks_it(ranks, fault: str) -> None:
    found = ranks(2).run(train_split, THREE, 0.05, torch.float64, START, 1, fault)
    assert distance(found[0], train_alone(THREE, 0.05)) > 1e-3
