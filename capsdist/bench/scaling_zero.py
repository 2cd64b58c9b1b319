"""Peak memory of a rank with ZeRO-3 against DDP, for a network of 200 million parameters.

What formulas say, for P parameters on N ranks: DDP 16 P bytes (weights, gradients, two moments), ZeRO-3
20 P / N (DeepSpeed has the weights of a rank twice) and what passes; while the network is built, every rank
holds its 4 P bytes whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capsdist.bench.ranks import PeakMemory, on_ranks
from capsdist.console import Log
from capsdist.train.engine.build import zero_requirements

if TYPE_CHECKING:
    from capsdist.config import Config

__all__ = ["zero_config", "zero_figures"]

_RANKS, _STEPS, _IMAGES = 4, 2, 1  # images: of a rank


def zero_figures(log: Log) -> dict[str, float]:
    """Return the peak memory of ranks with ZeRO-3 and with DDP, and their ratio.

    `zero3_memory_ratio`: the largest peak of any of 4 ranks with ZeRO-3, over that with DDP. A peak is
    resident memory of the process, above that after all imports and before the network is built: building
    and partitioning it count, and so do two steps.
    """
    if lacking := zero_requirements():
        log(f"zero3_memory_ratio: left out, {lacking}")
        return {}
    peaks: dict[str, float] = {}
    for engine in ("ddp", "zero"):
        found = on_ranks(_peak, _RANKS, engine)
        peaks[engine] = max(peak for peak, _, _ in found)
        _, num_parameters, largest = found[0]
        log(
            f"{engine}: {num_parameters:,} parameters, {largest / num_parameters:.1%} in the largest layer, "
            f"peak of a rank {peaks[engine] / 1e6:,.0f} MB"
        )
    return {
        "zero3_memory_ratio": peaks["zero"] / peaks["ddp"],
        "zero3_peak_bytes": peaks["zero"],
        "ddp_peak_bytes": peaks["ddp"],
    }


def zero_config(engine: str) -> Config:
    """Return the configuration of the network: 200 million parameters, the largest layer has 9.4 million."""
    from capsdist.config import Config

    return Config.model_validate(
        {
            "model": {
                "kind": "resnet_capsnet", "image_size": 32, "in_channels": 3, "num_classes": 100,
                "stem_channels": (256, 512, 1024), "stem_blocks": (2, 2, 9),
            },
            "train": {
                "engine": engine, "zero_stage": 3, "global_batch_size": _IMAGES * _RANKS,
                "precision": "fp32", "device": "cpu",
            },
        }
    )  # fmt: skip


def _peak(engine_name: str) -> tuple[int, int, int]:
    """On a rank: build the network, do steps; return peak bytes, parameters, those of the largest layer."""
    import torch
    import torch.distributed as dist

    from capsdist.config import image_shape
    from capsdist.config.models import find_family
    from capsdist.data.batch import Batch
    from capsdist.models import build_model
    from capsdist.train.engine.build import build_engine
    from capsdist.train.engine.operators import import_deepspeed, load_operators
    from capsdist.train.step import train_step

    rank, world_size, device = dist.get_rank(), dist.get_world_size(), torch.device("cpu")
    config = zero_config(engine_name)
    import_deepspeed(device)
    load_operators()
    memory = PeakMemory()
    torch.manual_seed(0)
    model = build_model(config.model, config.routing)
    layers = [sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()]
    engine: Any = build_engine(config, model, rank=rank, world_size=world_size, device=device)
    images = torch.rand(_IMAGES, *image_shape(config.model))
    labels, ids = torch.arange(_IMAGES) % config.model.num_classes, torch.arange(_IMAGES)
    empty = torch.empty(0, dtype=torch.uint8)
    batch = Batch(empty, labels, torch.ones(_IMAGES), ids, _IMAGES * world_size)
    for step in range(_STEPS):
        train_step(engine, batch, images, find_family(config.model.kind), config, step, _STEPS)
    peak = memory.bytes
    engine.close()
    return peak, sum(layers), max(layers)
