"""A small network whose class capsules are split over ranks, and what it must equal on a single one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from capsdist.models import ClassCapsules, PrimaryCapsules
from capsdist.models.parallel import ParallelClassCapsules, sum_gradients
from capsdist.routing.dynamic import parallel, streamed_passes
from capsdist.routing.dynamic.parallel import exchange_children

PARENTS, PARENT_DIM, CHILD_DIM = 5, 6, 3
GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


@dataclass(frozen=True)
class Setup:
    """One training step: global images, types of primary capsules (4 children each), options of the layer."""

    num_images: int = 4
    types: int = 3
    iterations: int = 3
    bias: bool = True
    log_priors: bool = False
    none_of_the_above: bool = False
    gradient: str = "full"
    dtype: torch.dtype = torch.float64
    seed: int = 0

    @property
    def num_children(self) -> int:
        return 4 * self.types

    @property
    def options(self) -> dict[str, Any]:
        names = ("iterations", "bias", "log_priors", "none_of_the_above", "gradient")
        return {name: getattr(self, name) for name in names}

    def stem(self) -> PrimaryCapsules:
        torch.manual_seed(self.seed)
        return PrimaryCapsules(2, self.types, CHILD_DIM, kernel_size=3, stride=2).to(self.dtype)

    def layer(self) -> ClassCapsules:
        torch.manual_seed(self.seed + 1)
        layer = ClassCapsules(self.num_children, CHILD_DIM, PARENTS, PARENT_DIM, **self.options)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        return layer.to(self.dtype)

    def head(self) -> nn.Linear:
        torch.manual_seed(self.seed + 2)
        return nn.Linear(PARENTS * PARENT_DIM, 3).to(self.dtype)

    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 3)
        return torch.randn(self.num_images, 2, 5, 5, generator=generator).to(self.dtype)


def step(network: nn.Sequential, images: Tensor, num_images: int) -> Tensor:
    """Run forward and backward with a loss that is a mean over num_images; return the parents [b, J, E]."""
    stem, layer, head = network
    parent_poses = layer(stem(images))
    (head(parent_poses.flatten(1)).square().sum() / num_images).backward()
    return parent_poses.detach()


def found_in(network: nn.Module, parent_poses: Tensor) -> dict[str, Tensor]:
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {"parent_poses": parent_poses, **gradients}


def run_single(setup: Setup) -> dict[str, Tensor]:
    """Parents of all images and all gradients, on one rank."""
    network = nn.Sequential(setup.stem(), setup.layer(), setup.head())
    return found_in(network, step(network, setup.images(), setup.num_images))


def run_split(setup: Setup, num_replicas: int = 1) -> dict[str, Tensor]:
    """The same on one rank of several: own images and own children; num_replicas copies of the children."""
    num_ranks = dist.get_world_size()
    mesh = init_device_mesh(
        "cpu", (num_replicas, num_ranks // num_replicas), mesh_dim_names=("data", "capsules")
    )
    whole = setup.layer()
    layer = ParallelClassCapsules(
        setup.num_children, CHILD_DIM, PARENTS, PARENT_DIM, group=mesh, **setup.options
    ).to(setup.dtype)
    with torch.no_grad():
        layer.packed_weights.copy_(whole.packed_weights[..., layer.local_children])
        if layer.bias is not None and whole.bias is not None:
            layer.bias.copy_(whole.bias)
        if layer.log_priors is not None and whole.log_priors is not None:
            layer.log_priors.copy_(whole.log_priors[layer.local_children])
    network = nn.Sequential(setup.stem(), layer, setup.head())
    own = setup.images().tensor_split(num_ranks)[dist.get_rank()]
    parent_poses = step(network, own, setup.num_images)
    sum_gradients(network)
    return found_in(network, parent_poses)


def run_split_with_dv_reduced(setup: Setup) -> dict[str, Tensor]:
    """The mutant: all ranks add up dV, not its increment, and count what they carry once each."""
    plain = streamed_passes._carry

    def carry(d_state: Tensor, increment: Tensor, reduce) -> None:
        d_state += increment
        reduce(d_state)

    streamed_passes._carry = carry
    try:
        return run_split(setup)
    finally:
        streamed_passes._carry = plain


def count_collectives(setup: Setup) -> dict[str, list[int]]:
    """Run forward and backward; return the numbers of each call, by name of the collective."""
    calls: dict[str, list[int]] = {}
    names = ("all_reduce", "all_to_all_single", GATHER)
    plain = {name: getattr(dist, name) for name in names}

    def counted(name: str):
        def call(tensor: Tensor, *args: Any, **options: Any) -> Any:
            calls.setdefault(name, []).append(tensor.numel())
            return plain[name](tensor, *args, **options)

        return call

    layer = ParallelClassCapsules(setup.num_children, CHILD_DIM, PARENTS, PARENT_DIM, **setup.options)
    network = nn.Sequential(setup.stem(), layer.to(setup.dtype), setup.head())
    own = setup.images().tensor_split(dist.get_world_size())[dist.get_rank()]
    for name in names:
        setattr(dist, name, counted(name))
    try:
        step(network, own, setup.num_images)
    finally:
        for name in names:
            setattr(dist, name, plain[name])
    return calls


def drawn_weights(num_children: int) -> tuple[Tensor, float]:
    """This rank's initial weights, and the next random number after them."""
    torch.manual_seed(3)
    layer = ParallelClassCapsules(num_children, CHILD_DIM, PARENTS, PARENT_DIM)
    return layer.packed_weights.detach(), float(torch.rand(()))


def refusal(num_children: int, num_own: int) -> str:
    """What this rank says of weights of `num_own` children."""
    from capsdist.errors import ShapeError
    from capsdist.routing import RoutingOptions
    from capsdist.routing.dynamic.parallel import route_parallel

    poses, packed = torch.zeros(2, num_children, 3), torch.zeros(4, 5, 3, num_own)
    try:
        route_parallel(poses, packed, RoutingOptions())
    except ShapeError as error:
        return str(error)
    return ""


def run_empty() -> list[int]:
    """Exchange children of no images at all, and their gradients back; return the gradient's shape."""
    poses = torch.zeros(0, 7, CHILD_DIM, requires_grad=True)
    exchange_children(poses).sum().backward()
    assert poses.grad is not None
    return list(poses.grad.shape)


def run_compiled(setup: Setup) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What this rank finds eagerly, and what it finds with the same step compiled as one program."""
    layer = ParallelClassCapsules(setup.num_children, CHILD_DIM, PARENTS, PARENT_DIM, **setup.options)
    network = nn.Sequential(setup.stem(), layer.to(setup.dtype), nn.Flatten(), setup.head())
    own = setup.images().tensor_split(dist.get_world_size())[dist.get_rank()]
    parameters = dict(network.named_parameters())

    def loss(images: Tensor) -> Tensor:
        return network(images).square().sum()

    found = []
    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        result = run(own)
        grads = torch.autograd.grad(result, list(parameters.values()))
        found.append({"loss": result.detach(), **dict(zip(parameters, grads, strict=True))})
    return found[0], found[1]


def run_penalty(setup: Setup, squared: bool, cut: bool) -> str:
    """What is said of a penalty on the gradient; the mutant cuts the graph where gradients travel."""
    layer = ParallelClassCapsules(setup.num_children, CHILD_DIM, PARENTS, PARENT_DIM, **setup.options)
    poses = torch.randn(2, setup.num_children, CHILD_DIM, requires_grad=True)
    plain = parallel.way
    try:
        if cut:
            parallel.way = lambda function, run: torch.no_grad()(run)
        parents = layer(poses)
        result = parents.square().sum() if squared else parents.sum()
        (grad,) = torch.autograd.grad(result, poses, create_graph=True)
        (result + 10 * grad.square().sum()).backward()
    except NotImplementedError as error:
        return str(error)
    finally:
        parallel.way = plain
    return ""


def run_torch_func(setup: Setup) -> list[tuple[Tensor, Tensor]]:
    """Gradients by torch.func, of a number and of a few, beside those of autograd."""
    layer = ParallelClassCapsules(
        setup.num_children, CHILD_DIM, PARENTS, PARENT_DIM, **setup.options
    ).double()
    poses = torch.randn(2, setup.num_children, CHILD_DIM, dtype=torch.float64)

    def few(poses: Tensor) -> Tensor:
        return layer(poses).square().sum((0, 2))

    leaf = poses.clone().requires_grad_()
    rows = [torch.autograd.grad(few(leaf)[parent], leaf)[0] for parent in range(PARENTS)]
    whole = torch.func.grad(lambda poses: few(poses).sum())(poses)
    jacobian = torch.func.jacrev(few)(poses)
    return [(whole.detach(), sum(rows, torch.zeros(()))), (jacobian.detach(), torch.stack(rows))]
