"""A family of networks that need more memory than there is, or as much as they are told, while they train."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.config import Family, NetworkConfig
from capsdist.models import Output


class HungryConfig(NetworkConfig):
    kind: str = "hungry_network:HUNGRY"
    most: int = 1000
    """Images for which rank 0 has memory; every further rank has it for one less."""
    mib: int = 0
    """Memory of an image, kept for the backward pass."""


class Hungry(nn.Module):
    """A layer, with everything that a trial could leave a trace in: a buffer and random numbers."""

    def __init__(self, model: HungryConfig) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("seen", torch.zeros(()))
        self.layer = nn.Linear(model.image_size**2, model.num_classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        rank = dist.get_rank() if dist.is_initialized() else 0
        if len(images) > self.model.most - rank:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to hold {len(images)} images\nat once")
        if self.training:
            self.seen += len(images)
        hidden = nn.functional.dropout(images.flatten(1), 0.3, self.training)
        if self.model.mib and self.training:
            wide = hidden[:, :1].expand(-1, self.model.mib << 18).exp()  # exp keeps its result
            hidden = hidden + 0.0 * wide.mean(1, keepdim=True)
        return Output(self.layer(hidden))


def losses(output: Output, images: Tensor, labels: Tensor, loss: object) -> dict[str, Tensor]:
    return {"loss": nn.functional.cross_entropy(output.scores, labels, reduction="none")}


HUNGRY = Family(
    title="hungry network", model=HungryConfig, build=lambda model, routing: Hungry(model), losses=losses
)
