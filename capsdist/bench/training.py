"""Benchmark training: whole optimizer steps with few and many routing iterations, side by side.

Data lie on the device from the start, so the input pipeline (`pipeline.py`) is not part of the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from capsdist.bench.convolution import convolution_figures
from capsdist.bench.step import Step
from capsdist.bench.timer import time_side_by_side
from capsdist.config import get_preset, image_shape
from capsdist.config.models import find_family
from capsdist.models import ClassCapsules, build_model
from capsdist.train.precision import Precision, autocast, resolve_precision

__all__ = ["ITERATIONS", "PRESETS", "cpu_figures", "describe_step", "step_figures", "step_rows"]

ITERATIONS = (1, 3)
PRESETS = ("mnist_paper", "cifar10_official")

Row = dict[str, Any]


class _Step(Step):
    """A preset's network with `iterations`, its optimizer, one batch of random images: call it to train."""

    def __init__(
        self, preset: str, iterations: int, *, num_images: int, device: torch.device, precision: Precision
    ) -> None:
        base = get_preset(preset)
        routing = base.routing.model_copy(update={"iterations": iterations})
        changes = {"gradient_accumulation_steps": 1, "global_batch_size": num_images}
        train = base.train.model_copy(update=changes)
        config = base.model_copy(update={"routing": routing, "train": train})
        torch.manual_seed(0)
        self.model = build_model(config.model, config.routing)
        images = torch.rand(num_images, *image_shape(config.model)).to(device)
        labels = torch.randint(config.model.num_classes, (num_images,))
        if (count := config.model.num_labels) > 1:
            labels = torch.rand(num_images, config.model.num_classes).argsort(1)[:, :count]
        family = find_family(config.model.kind)
        super().__init__(self.model, family, config, images=images, labels=labels, precision=precision)

    def routing_alone(self) -> Callable[[], object]:
        """Return forward and backward pass of this network's routing as a call, on random poses.

        Shapes, options and precision are those of the step.
        """
        layer = next(m for m in self.model.modules() if isinstance(m, ClassCapsules))
        parameters = list(layer.parameters())
        # [B, D, I] in memory, as in the step
        shape = (len(self.images), layer.child_dim, layer.num_children)
        place = self.images.device
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.engine.precision]
        poses = torch.randn(shape, device=place).mul_(0.3).to(dtype).requires_grad_()

        def run() -> tuple[Tensor, ...]:
            with autocast(self.engine.precision, place):
                parent_poses = layer(poses.transpose(1, 2))
            return torch.autograd.grad(parent_poses.sum(), (poses, *parameters))

        return run


def step_rows(
    preset: str,
    *,
    num_images: int,
    device: str = "cpu",
    precision: str = "fp32",
    iterations: Sequence[int] = ITERATIONS,
    budget_s: float = 15.0,
) -> list[Row]:
    """Return a row for each number of routing iterations: times of a whole step, share of routing.

    Args:
        preset: network, loss and optimizer.
        num_images: images of a batch.
        device: cpu or cuda.
        precision: fp32, bf16, fp16 or auto; routing has its own rules (see `route`).
        iterations: numbers of routing iterations, measured in turns.
        budget_s: seconds for all of them.

    A row has `step_s` and its percentiles, `images_per_s` (by the median), and `routing_share`: the median
    time of routing alone, forward and backward at the same shape in the same minutes, over that of a step.
    """
    place = torch.device(device)
    resolved = resolve_precision(precision, place)
    runs: dict[str, Callable[[], object]] = {}
    for r in iterations:
        step = _Step(preset, r, num_images=num_images, device=place, precision=resolved)
        runs[f"step {r}"], runs[f"routing {r}"] = step, step.routing_alone()
    times = time_side_by_side(runs, budget_s=budget_s)
    rows = []
    for r in iterations:
        step, routing = times[f"step {r}"], times[f"routing {r}"]
        rows.append(
            {
                "preset": preset,
                "num_images": num_images,
                "device": device,
                "precision": resolved,
                "iterations": r,
                **step.summary(),
                "images_per_s": num_images / step.median_s,
                "routing_share": routing.median_s / step.median_s,
            }
        )
    return rows


def step_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Return the named figures of one preset's `rows`, in the order of their routing iterations.

    `step_r3_over_r1`: ratio of the last's median time of a step to the first's; the others are the last's.
    """
    first, last = rows[0], rows[-1]
    return {
        f"step_r{last['iterations']}_over_r{first['iterations']}": last["median_s"] / first["median_s"],
        "images_per_s": last["images_per_s"],
        "routing_share": last["routing_share"],
    }


def cpu_figures(*, num_images: int, budget_s: float = 15.0) -> dict[str, float]:
    """Return the figures of `convolution_figures`, with a step of the MNIST network in fp32."""
    place = torch.device("cpu")
    step = _Step(PRESETS[0], ITERATIONS[-1], num_images=num_images, device=place, precision="fp32")
    return convolution_figures(step, num_images=num_images, budget_s=budget_s)


def describe_step(row: Row) -> str:
    """Return a row as one line for people."""
    return (
        f"{row['preset']:<17} B={row['num_images']:<5} r={row['iterations']} {row['precision']:<5}"
        f" {1e3 * row['median_s']:9.1f} ms a step {row['images_per_s']:10,.0f} images/s"
        f"  routing {100 * row['routing_share']:5.1f} %"
    )
