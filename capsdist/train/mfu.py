"""Model FLOP utilisation: the FLOP that a network needs over those that the device could do.

Source: Chowdhery et al. 2022 (PaLM), appendix B: what is computed again in the backward pass does not count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from capsdist.routing import RoutingOptions
from capsdist.train.speed import example_batch
from capsdist.train.step import losses_of

if TYPE_CHECKING:
    from capsdist.models import Output
    from capsdist.train.parts import Parts

__all__ = ["PEAKS", "mfu_meter", "mfu_percent", "model_flop", "peak_flop_per_s"]

_HOPPER = {"bf16": 989.4e12, "fp16": 989.4e12, "fp32": 494.7e12}
PEAKS: Mapping[str, Mapping[str, float]] = {
    "NVIDIA H200 NVL": {"bf16": 835.5e12, "fp16": 835.5e12, "fp32": 417.8e12},
    "NVIDIA H200": _HOPPER,
    "NVIDIA H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "fp32": 378e12},
    "NVIDIA H100 NVL": {"bf16": 835.5e12, "fp16": 835.5e12, "fp32": 417.8e12},
    "NVIDIA H100": _HOPPER,
    "NVIDIA A100": {"bf16": 312e12, "fp16": 312e12, "fp32": 156e12},
}
"""Dense peaks in FLOP/s by the start of a device's name and by precision, from NVIDIA's data sheets.

That of fp32 is TF32's, in which torch computes convolutions by default.
"""


def peak_flop_per_s(device: str, precision: str) -> float | None:
    """Return the dense peak of the device of this name; None if it is not in `PEAKS`.

    Example:
        >>> peak_flop_per_s("NVIDIA H100 80GB HBM3", "bf16")
        989400000000000.0
    """
    names = [name for name in PEAKS if device.startswith(name)]
    return PEAKS[max(names, key=len)].get(precision) if names else None


def mfu_percent(flop_per_image: float, images_per_s: float, peak: float) -> float:
    """Return the utilisation in percent; peak: of all devices together, FLOP/s."""
    return 100.0 * flop_per_image * images_per_s / peak


def mfu_meter(parts: Parts) -> Callable[[float], dict[str, float]]:
    """Return a call that gives, by images a second over all ranks, the field `mfu_percent` of a log row.

    It gives nothing on a CPU, on a GPU that is not in `PEAKS`, and for a network that torch's meta device
    cannot run.
    """
    if parts.device.type != "cuda":
        return lambda images_per_s: {}
    name, ranks = torch.cuda.get_device_name(parts.device), parts.engine.world_size
    peak = peak_flop_per_s(name, parts.engine.precision)
    flop = _flop_of(parts) if peak else None
    if peak is None or flop is None:
        return lambda images_per_s: {}
    return lambda images_per_s: {"mfu_percent": mfu_percent(flop, images_per_s, ranks * peak)}


def _flop_of(parts: Parts) -> float | None:
    losses, batch = losses_of(parts.family, parts.config), example_batch(parts, 1)

    def loss(output: Output, images: Tensor, labels: Tensor) -> Tensor:
        return losses(output, batch.drawn(images).to("meta"), labels)["loss"]

    try:
        return model_flop(parts.engine.model, loss, batch.images, batch.told)
    except Exception:  # a network from outside may do anything; training goes on without the figure
        return None


def model_flop(
    network: nn.Module,
    loss: Callable[[Output, Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
) -> float:
    """Return the FLOP of matrix products and convolutions of a training step, an image; 2 a multiply-add.

    They are counted in a copy on torch's meta device, which computes nothing: forward and backward pass, with
    routing that keeps its votes, so that nothing is computed twice.

    Args:
        network: any; only shapes of its parameters enter.
        loss: ``loss(output, images, labels)`` returns a loss an image, [B].
        images, labels: of a batch, or known shifts in place of labels; only shapes enter.
    """
    own: dict[int, object] = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    for weight in network.parameters():
        own[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    copied = copy.deepcopy(network, own).train()
    for module in copied.modules():
        if isinstance(options := getattr(module, "routing", None), RoutingOptions):
            textbook = replace(options, backend="reference", recompute="none")
            module.routing = textbook  # type: ignore[assignment]
    images, labels = images.to("meta"), labels.to("meta")
    with FlopCounterMode(display=False) as counter:
        loss(copied(images, labels), images, labels).sum().backward()
    return counter.get_total_flops() / len(images)
