"""A network of a few parameters with odd sizes, that engines can be tried on without data or a loop."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from capsdist.config import Config, Optim, Train
from capsdist.models import Output


class _Product(torch.autograd.Function):
    """A product that saves the parameter itself, as the routing does (ZeRO 3 must gather it again)."""

    @staticmethod
    def forward(ctx, inputs: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        return inputs @ weights

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weights = ctx.saved_tensors
        return gradients[0] @ weights.T, inputs.T @ gradients[0]


class Toy(nn.Module):
    """[B, 1, 5, 5] -> scores [B, 3]: a dense layer of 7 units, then the product with a root parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(25, 7)
        self.weights = nn.Parameter(torch.randn(7, 3) / 3)
        self.register_buffer("offset", torch.full((3,), 0.25))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        hidden = torch.tanh(self.dense(images.flatten(1)))
        return Output(_Product.apply(hidden, self.weights.to(hidden.dtype)).float() + self.offset)


def toy(seed: int = 0) -> Toy:
    """The toy network with weights drawn from `seed`."""
    torch.manual_seed(seed)
    return Toy()


def toy_config(
    engine: str = "ddp",
    stage: int = 1,
    *,
    clip: float = 0.0,
    gradient_accumulation_steps: int = 1,
    precision: str = "fp32",
    tensorflow_epsilon: float | None = None,
    recipe: Mapping[str, object] | None = None,
) -> Config:
    """A configuration that sends the toy network through `engine`, on request with TensorFlow's Adam.

    recipe: further fields of `optim`.
    """
    train = {"engine": engine, "zero_stage": stage, "precision": precision, "global_batch_size": 7}
    optim = Optim(learning_rate=0.01, max_grad_norm=clip)
    if tensorflow_epsilon is not None:
        adam = {"epsilon": tensorflow_epsilon, "epsilon_placement": "tensorflow"}
        optim = Optim.model_validate(optim.model_dump() | adam)
    return Config(
        optim=Optim.model_validate(optim.model_dump() | dict(recipe or {})),
        train=Train.model_validate(train | {"gradient_accumulation_steps": gradient_accumulation_steps}),
    )


def toy_batch(step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The 7 images and targets of a step."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    return torch.randn(7, 1, 5, 5, generator=generator), torch.randn(7, 3, generator=generator)
