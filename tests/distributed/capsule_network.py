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
from torch.nn.utils import parametrize

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
from capsdist.routing import RoutingOptions
from capsdist.train.checkpoint import EngineState
from capsdist.train.engine.replicated import load_replicated, replicated_state
from capsdist.train.optim import StateForm

FORM = StateForm(("exp_avg", "exp_avg_sq"), counts_steps=True)

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
    """Do `steps` on this rank's share of the images; return the norms. `fault` names a mutant."""
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
    load_replicated(state, network, optimizer, FORM)
    found = EngineState(*replicated_state(network, optimizer, FORM, rank=dist.get_rank())).read()
    return found, list(network.class_capsules.weights.shape)


def split_on_meta(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Split a network without values, then load; return all ranks' values, and how many are here."""
    with torch.device("meta"):
        network = parallelize(capsnet())
    network.to_empty(device="cpu").load_state_dict(split_state(network, state))
    return gather_state(network), sum(parameter.numel() for parameter in network.parameters())


def initialise_on_meta(fault: str = "") -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Draw a split network without values; return this rank's, all ranks', and the next random number."""
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
    alone = parallelize(ClassCapsules(5, 2, 3, 4, iterations=2, backend="streamed", none_of_the_above=True))
    assert isinstance(layer, ParallelClassCapsules)
    assert isinstance(alone, ParallelClassCapsules)
    return {
        "the same network": split is network,
        "evaluation": not layer.training,
        "frozen": not layer.packed_weights.requires_grad and layer.log_priors.requires_grad,
        "own weights": torch.equal(layer.weights, weights[layer.local_children]),
        "dtype": layer.packed_weights.dtype == torch.float64,
        "copies": same_bits(copied.state_dict(), split.state_dict()),
        "apart": copied.class_capsules.packed_weights is not layer.packed_weights,
        "groups": copied.class_capsules.group is layer.group,
        "names": [*split.state_dict()] == [*capsnet().state_dict()],
        "options": (alone.routing, alone.bias) == (RoutingOptions(2, True, backend="streamed"), None),
        "layout": copied.to(memory_format=torch.channels_last).class_capsules.packed_weights.is_contiguous(),
        "alone": [*gather_state(alone)] in ([], ["packed_weights"]),
    }


class Twice(nn.Module):
    """One layer in two places, nested in one of them: 5 capsules, routed to 5, and these to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ClassCapsules(5, 2, 5, 2, bias=True, log_priors=True)
        self.second = nn.Sequential(self.first)

    def forward(self, poses: Tensor) -> Tensor:
        return self.second(self.first(poses))


def shared_layer() -> dict[str, bool]:
    """Whether `Twice`, split, is what it was: one layer, its parents, gradients and states."""
    rank, world_size = own_rank()
    torch.manual_seed(4)
    whole, poses = Twice().double(), torch.randn(2 * world_size, 5, 2, dtype=torch.float64)
    split = parallelize(deepcopy(whole))
    expected, found = whole(poses), split(poses[2 * rank : 2 * rank + 2])
    expected.square().sum().backward()
    found.square().sum().backward()
    sum_gradients(split)
    of_ranks = {name: p.grad for name, p in split.named_parameters() if p.grad is not None}
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    norms = torch.tensor([clip_alone(whole, 1e9), float(clip_gradients(split, 1e9))])
    gathered, state = [gather_state(split, each) for each in (of_ranks, None)]
    split.load_state_dict(split_state(split, whole.state_dict()))
    close = [torch.allclose(gathered[name], gradients[name]) for name in gathered]
    return {
        "one layer": isinstance(split.first, ParallelClassCapsules) and split.first is split.second[0],
        "parents": torch.allclose(found, expected[2 * rank : 2 * rank + 2]),
        "gradients": len(close) == (0 if rank else 3) and all(close),
        "norm": torch.allclose(norms[0], norms[1]),
        "state": same_bits(state, {} if rank else whole.state_dict()),
    }


class Tempered(ClassCapsules):
    """Class capsules of a user's own, which say something else."""

    def forward(self, child_poses: Tensor) -> Tensor:
        return 0.5 * super().forward(child_poses)


def not_plain(name: str) -> nn.Module:
    """Class capsules with something that would be lost."""
    layer = ClassCapsules(4, 2, 3, 4)
    additions: dict[str, Callable[[], object]] = {
        "parametrized": lambda: parametrize.register_parametrization(layer, "packed_weights", nn.Identity()),
        "forward hook": lambda: layer.register_forward_hook(lambda *_: None),
        "state hook": lambda: layer.register_load_state_dict_pre_hook(lambda *_: None),
        "parameter hook": lambda: layer.packed_weights.register_hook(lambda grad: grad),
        "hook after": lambda: layer.packed_weights.register_post_accumulate_grad_hook(lambda _: None),
        "buffer": lambda: layer.register_buffer("mask", torch.ones(3)),
        "module": lambda: layer.add_module("norm", nn.Identity()),
        "own forward": lambda: setattr(layer, "forward", torch.clone),
    }
    additions[name]()
    return nn.Sequential(layer)


def tied(other: nn.Module) -> nn.Module:
    """Class capsules of which another module has the weights too."""
    layer = ClassCapsules(4, 2, 3, 4)
    other.packed_weights = layer.packed_weights
    return nn.Sequential(other, layer)


def refusal(name: str) -> str:
    """What this rank says of a mistake."""
    whole, split = capsnet(), parallelize(capsnet())
    mistakes: dict[str, Callable[[], object]] = {
        "split already": lambda: parallelize(split),
        "group": lambda: parallelize(capsnet(), 2),  # pyright: ignore[reportArgumentType]
        "whole network": lambda: split_state(whole, whole.state_dict()),
        "no state": lambda: split_state(split, (whole.state_dict(),)),  # pyright: ignore[reportArgumentType]
        "no capsules": lambda: parallelize(nn.Linear(2, 3)),
        "backend": lambda: parallelize(ClassCapsules(4, 2, 3, 4, backend="reference")),
        "recompute": lambda: parallelize(ClassCapsules(4, 2, 3, 4, recompute="none")),
        "subclass": lambda: parallelize(Tempered(4, 2, 3, 4)),
        "tied layers": lambda: parallelize(tied(ClassCapsules(4, 2, 3, 4))),
        "tied elsewhere": lambda: parallelize(tied(nn.Linear(2, 3))),
        "split in part": lambda: parallelize(nn.Sequential(whole, split)),
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
        mistakes.get(name, lambda: parallelize(not_plain(name)))()
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
