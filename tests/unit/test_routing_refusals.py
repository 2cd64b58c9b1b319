"""What the public functions of routing refuse, each with the value and a remedy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from capsdist.errors import ShapeError
from capsdist.routing import explain, route, route_packed

POSES, WEIGHTS = torch.zeros(2, 5, 3), torch.zeros(5, 4, 3, 6)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


REFUSED = [
    pytest.param(
        {"child_poses": torch.zeros(2, 15)},
        "child_poses has shape [2, 15]; pass [B, I, D], 3 dimensions",
        id="poses-dims",
    ),
    pytest.param(
        {"weights": torch.zeros(5, 4, 3)},
        "weights has shape [5, 4, 3]; pass [I, J, D, E], 4 dimensions",
        id="weights-dims",
    ),
    pytest.param(
        {"child_poses": torch.zeros(2, 7, 3)},
        "child_poses [2, 7, 3] do not fit weights [I, J, D, E] = [5, 4, 3, 6]; "
        "pass [B, I, D] = [B, 5, 3] or other weights",
        id="children",
    ),
    pytest.param(
        {"child_poses": torch.zeros(2, 5, 8)},
        "child_poses [2, 5, 8] do not fit weights [I, J, D, E] = [5, 4, 3, 6]; "
        "pass [B, I, D] = [B, 5, 3] or other weights",
        id="child-dim",
    ),
    pytest.param(
        {"weights": torch.zeros(5, 0, 3, 6)},
        "weights [I, J, D, E] = [5, 0, 3, 6] are empty; give all sizes at least 1",
        id="no-parents",
    ),
    pytest.param({"bias": torch.zeros(6)}, "bias has shape [6]; pass [J, E] = [4, 6]", id="bias-shape"),
    pytest.param(
        {"iterations": 0},
        "iterations=0 must be a whole number of at least 1; the paper has 3",
        id="no-iterations",
    ),
    pytest.param(
        {"iterations": 2.5},
        "iterations=2.5 must be a whole number of at least 1; the paper has 3",
        id="half-iterations",
    ),
    pytest.param(
        {"iterations": True},
        "iterations=True must be a whole number of at least 1; the paper has 3",
        id="bool-iterations",
    ),
    pytest.param(
        {"iterations": np.float64(3)},
        "iterations=np.float64(3.0) must be a whole number of at least 1; the paper has 3",
        id="float-iterations",
    ),
    pytest.param(
        {"iterations": np.True_},
        "iterations=np.True_ must be a whole number of at least 1; the paper has 3",
        id="numpy-bool-iterations",
    ),
    pytest.param(
        {"weights": torch.zeros(4, 6, 3, 5)},
        "child_poses [2, 5, 3] do not fit weights [I, J, D, E] = [4, 6, 3, 5], but would if these were "
        "[J, E, D, I]; pass unpack_weights(weights) or call route_packed",
        id="packed",
    ),
    pytest.param(
        {"none_of_the_above": 2}, "none_of_the_above=2 must be True or False", id="none-of-the-above"
    ),
    pytest.param(
        {"backend": "triton"},
        "backend='triton' is no backend of routing; choose 'auto', 'fused', 'streamed' or 'reference'",
        id="backend",
    ),
    pytest.param(
        {"backend": "streamed", "recompute": "none"},
        "backend='streamed' cannot be taken: recompute='none' is for autograd, and this backend has its own "
        "backward pass; choose backend='auto'",
        id="backend-that-cannot",
    ),
    pytest.param(
        {"backend": "fused", "gradient": "last"},
        "backend='fused' cannot be taken: gradient='last' is not in its kernels; choose backend='auto'",
        id="kernels-that-cannot",
    ),
    pytest.param(
        {"gradient": "first"}, "gradient='first' is unknown; choose 'full' or 'last'", id="gradient"
    ),
    pytest.param(
        {"recompute": "votes"},
        "recompute='votes' is unknown; choose 'streamed', 'iterations' or 'none'",
        id="recompute",
    ),
    pytest.param(
        {"log_priors": torch.zeros(4, 5)},
        "log_priors has shape [4, 5]; pass [I, J] = [5, 4]",
        id="priors-shape",
    ),
    pytest.param(
        {"log_priors": torch.zeros(5, 4, dtype=torch.int32)},
        "log_priors has dtype torch.int32; make it float32, float64, bfloat16 or float16",
        id="priors-integers",
    ),
    pytest.param(
        {"child_poses": torch.zeros(2, 5, 3, dtype=torch.int64)},
        "child_poses has dtype torch.int64; make it float32, float64, bfloat16 or float16",
        id="integers",
    ),
    pytest.param(
        {"weights": WEIGHTS.to(torch.float8_e4m3fn)},
        "weights has dtype torch.float8_e4m3fn; make it float32, float64, bfloat16 or float16",
        id="float8",
    ),
    pytest.param(
        {"child_poses": POSES.numpy()},
        "child_poses is of type ndarray; pass a torch.Tensor",
        id="numpy-poses",
    ),
    pytest.param({"bias": [[0.0] * 6] * 4}, "bias is of type list; pass a torch.Tensor", id="list-of-biases"),
    pytest.param(
        {"weights": WEIGHTS.double()},
        "weights has dtype torch.float64 but child_poses torch.float32; make all of them float64, or none",
        id="float64-weights",
    ),
    pytest.param(
        {"child_poses": POSES.double(), "weights": WEIGHTS.double(), "bias": torch.zeros(4, 6)},
        "bias has dtype torch.float32 but child_poses torch.float64; make all of them float64, or none",
        id="float64-poses",
    ),
    pytest.param(
        {"weights": WEIGHTS.to("meta")},
        "weights is on meta but child_poses on cpu; use one device",
        id="device",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
@pytest.mark.parametrize("function", [route, explain])
def test_refusals_name_value_and_remedy(changes: dict, message: str, function) -> None:
    arguments: dict = {"child_poses": POSES, "weights": WEIGHTS} | changes
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        function(**arguments)


def test_packed_weights_are_named_in_the_refusal() -> None:
    message = "packed_weights has shape [5, 4, 3]; pass [J, E, D, I], 4 dimensions"
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        route_packed(POSES, torch.zeros(5, 4, 3))


def test_weights_that_are_not_packed_are_named_in_the_refusal() -> None:
    message = (
        "child_poses [2, 5, 3] do not fit packed_weights [J, E, D, I] = [5, 4, 3, 6], but would if these "
        "were [I, J, D, E]; pass pack_weights(weights) or call route"
    )
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$"):
        route_packed(POSES, WEIGHTS)


def test_a_layout_is_not_guessed_where_both_fit() -> None:
    poses, weights = draw(2, 5, 3), draw(5, 4, 3, 5)
    packed = torch.zeros(5, 4, 3, 5)
    assert route(poses, weights).shape == (2, 4, 5)
    assert route_packed(poses, packed).shape == (2, 5, 4)
