"""A whole small capsule network, trained alone or with its class capsules split over ranks."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from small_run import own_rank, same_bits
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from capsdist.errors import ShapeError
from capsdist.models import CapsNet, ClassCapsules
from capsdist.models.parallel import (
    ParallelClassCapsules,
    clip_gradients,
    gather_optimizer_state,
    gather_state,
    parallelize,
    split_optimizer_state,
    split_state,
    sum_gradients,
)
from capsdist.ops import margin_loss, reconstruction_loss
from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.replicated import load_replicated, replicated_state

CLASSES, CHILDREN = 5, 27  # 13 + 14 children on 2 ranks, 6 + 7 + 7 + 7 on 4
FULL, SHORT = 8, 7
"""Images of a step, and of each third step: a rank pads its share there."""


class Trained(NamedTuple):
    """A whole network's state, its optimizer's, and the gradient norms of the steps."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    norms: list[float]


def capsnet(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> CapsNet:
    """A network of 2,205 parameters whose biases and log priors are not zero."""
    torch.manual_seed(seed)
    network = CapsNet(
        (1, 9, 9), CLASSES, conv_channels=4, conv_kernel=3, primary_types=3, primary_dim=2, primary_kernel=3,
        class_dim=4, capsule_bias=True, log_priors=True, decoder_hidden=(5, 6), **options,
    )  # fmt: skip
    for parameter in (network.class_capsules.bias, network.class_capsules.log_priors):
        assert parameter is not None
        nn.init.normal_(parameter, std=0.1)
    return network.to(dtype)


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=0.01)


def share(step: int, rank: int, world_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, int]:
    """A rank's images, labels and weights in `step`, padded to equal numbers; and the images of all ranks."""
    number = SHORT if step % 3 == 2 else FULL
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(FULL, 1, 9, 9, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(CLASSES, (FULL,), generator=generator)
    weights = (torch.arange(FULL) < number).to(dtype)
    own = slice(FULL * rank // world_size, FULL * (rank + 1) // world_size)
    return images[own], labels[own], weights[own], number


def train(
    network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, max_norm: float, fault: str = ""
) -> list[float]:
    """Do `steps` on this rank's share of the images; return the norms. `fault` names a known-bad twin."""
    rank, world_size = own_rank()
    dtype, norms = next(network.parameters()).dtype, []
    for step in steps:
        images, labels, weights, number = share(step, rank, world_size, dtype)
        output = network(images, labels)
        each = margin_loss(output.scores, labels) + 0.0005 * reconstruction_loss(
            output.reconstructions, images
        )
        divisor = weights.sum() * world_size if fault == "means of the ranks' means" else number
        optimizer.zero_grad()
        ((weights * each).sum() / divisor).backward()
        if world_size == 1 or fault == "each rank's own gradients":
            norms.append(clip_alone(network, max_norm))
        else:
            sum_gradients(network)
            clip = clip_alone if fault == "each rank's own norm" else clip_gradients
            norms.append(float(clip(network, max_norm)))
        optimizer.step()
    return norms


def clip_alone(network: nn.Module, max_norm: float) -> float:
    return float(nn.utils.clip_grad_norm_(network.parameters(), max_norm))


def train_alone(
    steps: range, max_norm: float = 1e9, dtype: torch.dtype = torch.float64, start: Trained | None = None
) -> Trained:
    """Train the whole network in this process, from `start` or from the beginning."""
    network = capsnet(0, dtype)
    optimizer = adam(network)
    if start is not None:
        network.load_state_dict(start.model)
        optimizer.load_state_dict(deepcopy(start.optimizer))  # else it changes the tensors of `start`
    norms = train(network, optimizer, steps, max_norm)
    return Trained(network.state_dict(), optimizer.state_dict(), norms)


def mesh_of(num_replicas: int) -> DeviceMesh | None:
    """All ranks in rows that share children; None where one row is all."""
    if num_replicas == 1:
        return None
    shape = num_replicas, dist.get_world_size() // num_replicas
    return init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "children"))


def train_split(
    steps: range,
    max_norm: float = 1e9,
    dtype: torch.dtype = torch.float64,
    start: Trained | None = None,
    num_replicas: int = 1,
    fault: str = "",
) -> Trained:
    """Split, train, gather. Ranks begin with different values, of which those of the first one count."""
    network = parallelize(capsnet(dist.get_rank(), dtype), mesh_of(num_replicas))
    optimizer = adam(network)
    if start is not None:
        network.load_state_dict(split_state(network, start.model))
        optimizer.load_state_dict(split_optimizer_state(network, optimizer, start.optimizer))
    norms = train(network, optimizer, steps, max_norm, fault)
    return Trained(gather_state(network), gather_optimizer_state(network, optimizer), norms)


def gather_back(num_replicas: int = 1) -> dict[str, Tensor]:
    """Split without training, and gather: must be what was split."""
    return gather_state(parallelize(capsnet(), mesh_of(num_replicas)))


def gather_traffic() -> tuple[list[int], list[int]]:
    """Gather; return the numbers in each tensor that this rank sent, and that it received."""
    network = parallelize(capsnet())
    sent: list[int] = []
    received: list[int] = []
    plain = dist.send, dist.recv
    dist.send = lambda tensor, **options: (sent.append(tensor.numel()), plain[0](tensor, **options))
    dist.recv = lambda tensor, **options: (received.append(tensor.numel()), plain[1](tensor, **options))
    try:
        gather_state(network)
    finally:
        dist.send, dist.recv = plain
    return sent, received


def load_and_gather(state: EngineState) -> tuple[EngineState, list[int]]:
    """Load a checkpoint of this package, split; return it gathered, and the shape of this rank's weights."""
    network = parallelize(capsnet(1))
    optimizer = adam(network)
    part = EngineState(split_state(network, state.model), split_state(network, state.optimizer))
    load_replicated(part, network, optimizer)
    parts = replicated_state(network, optimizer)
    return EngineState(*(gather_state(network, each) for each in parts)), list(
        network.class_capsules.weights.shape
    )


def split_on_meta(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Split a network without values, then load; return all ranks' values, and how many are here."""
    with torch.device("meta"):
        network = parallelize(capsnet())
    network.to_empty(device="cpu").load_state_dict(split_state(network, state))
    return gather_state(network), sum(parameter.numel() for parameter in network.parameters())


def initialise_on_meta(fault: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Split a network without values, draw them; return this rank's, all ranks', and the next random number."""
    with torch.device("meta"):
        network = parallelize(capsnet(initialisation="truncated_normal"))
    network.to_empty(device="cpu")
    torch.manual_seed(3)
    if fault == "module by module":
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    else:
        network.initialise()
    return network.state_dict(), gather_state(network), float(torch.rand(()))


def properties() -> dict[str, Any]:
    """What else a network keeps when it is split; and the layer by itself."""
    network = capsnet().eval()
    network.class_capsules.packed_weights.requires_grad_(False)
    weights = network.class_capsules.weights.clone()
    split = parallelize(network, mesh_of(2) if dist.get_world_size() == 4 else None)
    layer = split.class_capsules
    copied = deepcopy(split)
    alone = parallelize(ClassCapsules(5, 2, 3, 4, iterations=2, form="streamed", none_of_the_above=True))
    assert isinstance(layer, ParallelClassCapsules)
    assert isinstance(alone, ParallelClassCapsules)
    return {
        "the same network": split is network,
        "evaluation": not layer.training,
        "frozen": not layer.packed_weights.requires_grad and layer.log_priors.requires_grad,
        "own weights": torch.equal(layer.weights, weights[layer.own_children]),
        "dtype": layer.packed_weights.dtype == torch.float64,
        "copies": same_bits(copied.state_dict(), split.state_dict()),
        "apart": copied.class_capsules.packed_weights is not layer.packed_weights,
        "groups": copied.class_capsules.group is layer.group,
        "names": [*split.state_dict()] == [*capsnet().state_dict()],
        "options": (alone.iterations, alone.none_of_the_above, alone.bias) == (2, True, None),
        "layout": copied.to(memory_format=torch.channels_last).class_capsules.packed_weights.is_contiguous(),
        "alone": [*gather_state(alone)] in ([], ["packed_weights"]),
    }


def refusal(name: str) -> str:
    """What this rank says of a mistake."""
    whole, split = capsnet(), parallelize(capsnet())
    mistakes: dict[str, Callable[[], object]] = {
        "no capsules": lambda: parallelize(nn.Linear(2, 3)),
        "form": lambda: parallelize(ClassCapsules(4, 2, 3, 4, form="reference")),
        "recompute": lambda: parallelize(ClassCapsules(4, 2, 3, 4, recompute="none")),
        "few children": lambda: parallelize(ClassCapsules(1, 2, 3, 4)),
        "size": lambda: ParallelClassCapsules(4, 2, 0, 4),
        "iterations": lambda: ParallelClassCapsules(4, 2, 3, 4, iterations=0),
        "gradient": lambda: ParallelClassCapsules(4, 2, 3, 4, gradient="Last"),  # pyright: ignore[reportArgumentType]
        "mesh": lambda: ParallelClassCapsules(4, 2, 3, 4, group=init_device_mesh("cpu", (1, 1, 2))),
        "not split": lambda: sum_gradients(whole),
        "split twice": lambda: split_state(split, split.state_dict()),
        "other shape": lambda: gather_state(split, whole.state_dict()),
        "other optimizer": lambda: gather_optimizer_state(split, adam(whole)),
        "uneven": uneven,
    }
    try:
        mistakes[name]()
    except (ShapeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def uneven() -> None:
    """Route one image more on each next rank, with debugging on."""
    level = dist.get_debug_level()
    dist.set_debug_level(dist.DebugLevel.INFO)
    try:
        ParallelClassCapsules(4, 2, 3, 4)(torch.zeros(2 + dist.get_rank(), 4, 2))
    finally:
        dist.set_debug_level(level)
