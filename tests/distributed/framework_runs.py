"""A user's own training of a capsule network, by the means of torch and of other frameworks.

Each of them takes three steps on the same eight images and returns all parameters, to be compared with one
process that has nothing around the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from capsule_network import CLASSES, capsnet
from torch import Tensor, nn

from capsdist.models import CapsNet, ClassCapsules
from capsdist.ops import margin_loss

STEPS, IMAGES, RATE = 3, 8, 0.1
State = dict[str, Tensor]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.rand(IMAGES, 1, 9, 9, generator=generator), torch.arange(IMAGES) % CLASSES


def network() -> CapsNet:
    return capsnet(dtype=torch.float32)


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    output = model(images, labels)
    return margin_loss(output.scores, labels).mean() + 0.01 * output.reconstructions.square().mean()


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


def own_share() -> tuple[Tensor, Tensor]:
    """The images of this rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    images, labels = batch()
    return images[rank::world_size], labels[rank::world_size]


def steps(model: nn.Module, given: tuple[Tensor, Tensor]) -> None:
    optimizer = sgd(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *given).backward()
        optimizer.step()


def alone() -> State:
    model = network()
    steps(model, batch())
    return state_of(model)


def state_of(model: nn.Module) -> State:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def ddp() -> State:
    model = network()
    steps(nn.parallel.DistributedDataParallel(model), own_share())
    return state_of(model)


def fsdp1() -> State:
    from torch.distributed.fsdp import FullyShardedDataParallel as Sharded
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    device = torch.device("cpu")
    policy = ModuleWrapPolicy({ClassCapsules})
    model = Sharded(network(), auto_wrap_policy=policy, device_id=device, use_orig_params=True)
    steps(model, own_share())
    with Sharded.summon_full_params(model):
        return {name.replace("_fsdp_wrapped_module.", ""): each for name, each in state_of(model).items()}


def fsdp2() -> State:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = network(), init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.class_capsules, mesh=mesh)
    fully_shard(model, mesh=mesh)
    steps(model, own_share())
    return {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}  # type: ignore[attr-defined]


def deepspeed_zero(stage: int) -> State:
    import deepspeed

    model = network()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=sgd(model),  # type: ignore[arg-type]
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": IMAGES // dist.get_world_size(),
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    for _ in range(STEPS):
        engine.backward(loss_of(engine, *own_share()))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        return state_of(model)


def lightning(folder: str) -> State:
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return loss_of(self.network, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.network)

    module = Module()
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", max_epochs=STEPS, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch()], batch_size=None))
    return state_of(module.network)


def accelerated(_: str) -> State:
    from accelerate import Accelerator

    accelerator, model = Accelerator(cpu=True), network()
    prepared: Any
    prepared, optimizer = accelerator.prepare(model, sgd(model))
    for _step in range(STEPS):
        optimizer.zero_grad()
        accelerator.backward(loss_of(prepared, *batch()))
        optimizer.step()
    return state_of(accelerator.unwrap_model(prepared))


OWN: dict[str, Callable[[], State]] = {"ddp": ddp, "fsdp1": fsdp1, "fsdp2": fsdp2}


def all_of_torch() -> dict[str, State]:
    """Every way of torch, on this rank."""
    return {name: run() for name, run in OWN.items()}
