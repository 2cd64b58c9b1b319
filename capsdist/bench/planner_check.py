"""Compare what `capsdist.planning` says of a step with real steps: peak memory and FLOP.

Memory is the peak of resident memory of a fresh process over two steps, above what it holds after a step of
a tiny network: libraries are loaded then. It is measured twice. With MALLOC_MMAP_THRESHOLD_ glibc returns
blocks when they are freed: what a step needs. By default it keeps some of them: how many is not the same
for all shapes and processors, and the planner has no more than an estimate (`process_peak`). FLOP are those
that torch's FlopCounterMode sees in a step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import capsdist.routing.later.flop  # noqa: F401 (what FlopCounterMode has to know of operators)
from capsdist.bench.step import Step
from capsdist.config import Config, Train, image_shape
from capsdist.config.cost import Cost
from capsdist.config.models import find_family
from capsdist.models import build_model
from capsdist.planning.memory import Memory, Setup, process_peak, training_memory
from capsdist.train.engine.allocator import LARGE_BYTES

__all__ = ["CHECKED", "FITTED", "Case", "counted_flop", "figures", "measured_peak", "planned", "rows"]

Row = dict[str, Any]
_OWN = Path("/proc/self")
_TIMES = 3  # processes that measure a peak; one measures what glibc keeps, which is no aim


@dataclass(frozen=True)
class Case:
    """A network by what differs from its family's default, the images of a step, and microbatches."""

    name: str
    num_images: int
    model: dict[str, Any] = field(default_factory=dict)
    routing: dict[str, Any] = field(default_factory=dict)
    num_microbatches: int = 1

    def config(self) -> Config:
        """Return the configuration of one worker, in fp32."""
        train = Train(
            global_batch_size=self.num_images,
            gradient_accumulation_steps=self.num_microbatches,
            precision="fp32",
        )
        family = find_family(self.model.get("kind", "capsnet"))
        model, routing = family.model(**self.model), family.routing(**self.routing)
        return Config(model=model, routing=routing, train=train)

    def cost(self) -> Cost:
        """Return what the layers cost."""
        config = self.config()
        price = find_family(config.model.kind).cost
        assert price is not None
        return price(config.model, config.routing)


_SMALL = {"conv_kernel": 5, "primary_kernel": 5}  # much memory for few FLOP
_TINY = {"conv_kernel": 3, "primary_kernel": 3}
_COLOUR = {"in_channels": 3, "image_size": 32}
_RESIDUAL = {"kind": "resnet_capsnet", "in_channels": 3, "image_size": 32}
FITTED = (
    Case("paper", 48),
    Case("wide conv", 64, {"conv_channels": 160, "primary_types": 12, "decoder": False}),
    Case("wide decoder", 64, {**_SMALL, **_COLOUR, "decoder_hidden": (3072, 4096), "conv_channels": 64}),
    Case("200 classes", 16, {"num_classes": 200, "decoder": False, "conv_channels": 64}),
    Case("residual", 64, {**_RESIDUAL, "stem_channels": (32, 64, 128), "stem_blocks": (0, 1, 1),
         "primary_types": 16}),
    Case("residual, 50 classes", 32, {**_RESIDUAL, "image_size": 40, "stem_channels": (48, 96),
         "stem_blocks": (2, 2), "num_classes": 50}),
    Case("residual, pooled", 48, {**_RESIDUAL, "image_size": 96, "stem_channels": (32, 64, 128),
         "stem_blocks": (1, 1, 1), "stem_first": "conv7_pool", "primary_types": 16}),
    Case("votes kept, 2 iterations", 128, {**_SMALL, "primary_types": 8},
         {"recompute": "none", "iterations": 2}),
)  # fmt: skip
"""The formulas of temporaries were corrected on these."""
CHECKED = (
    Case("paper's kernels, colour", 40,
         {**_COLOUR, "image_size": 36, "conv_channels": 144, "primary_types": 20}),
    Case("4 microbatches", 512, {**_SMALL, "conv_channels": 128}, num_microbatches=4),
    Case("one iteration", 160, {**_TINY, "primary_types": 24, "conv_channels": 96}, {"iterations": 1}),
    Case("five iterations", 128, {**_SMALL, "conv_channels": 192, "primary_types": 12}, {"iterations": 5}),
    Case("colour", 128, {**_SMALL, **_COLOUR, "conv_channels": 96}),
    Case("same padding, stride 3", 160,
         {**_SMALL, "image_size": (30, 26), "padding": "same", "primary_stride": 3, "conv_channels": 88}),
    Case("no decoder", 256, {**_TINY, "decoder": False, "conv_channels": 72, "primary_types": 16}),
    Case("150 classes", 32, {"num_classes": 150, "conv_channels": 96, "primary_types": 24}),
    Case("small decoder", 160, {**_SMALL, "decoder_hidden": (128, 256), "conv_channels": 112}),
    Case("50 classes, 2 microbatches", 192, {**_SMALL, "num_classes": 50}, num_microbatches=2),
    Case("wide capsules", 96, {**_SMALL, "primary_dim": 16, "class_dim": 32, "conv_channels": 128}),
    Case("iterations recomputed", 128, {**_SMALL, "primary_types": 12}, {"recompute": "iterations"}),
    Case("votes kept", 96, {**_SMALL, "primary_types": 7, "num_classes": 12}, {"recompute": "none"}),
    Case("priors and bias", 128, {**_TINY, "log_priors": True, "capsule_bias": True, "conv_channels": 128}),
    Case("residual, decoder", 48, {**_RESIDUAL, "stem_channels": (40, 72), "stem_blocks": (1, 2),
         "decoder": True, "primary_types": 12}),
    Case("residual, pooled, 2 microbatches", 96, {**_RESIDUAL, "image_size": (64, 56), "num_classes": 30,
         "stem_channels": (48, 64, 80), "stem_blocks": (2, 1, 1), "stem_first": "conv7_pool"},
         num_microbatches=2),
)  # fmt: skip
"""Chosen before they were measured; nothing was fitted to them. Who changes a formula after a look at these
cases replaces them."""


def planned(case: Case) -> Memory:
    """Return what the formula gives a step of `case`."""
    setup = Setup(
        microbatch=-(-case.num_images // case.num_microbatches), num_microbatches=case.num_microbatches
    )
    return training_memory(case.cost(), setup)


def measured_peak(case: Case, *, keep: bool = False) -> int:
    """Return the peak of a fresh process over two steps of `case`, above its start, in bytes.

    The median of some processes: how an allocator and threads meet is not the same in all. keep: as glibc
    does by default; else it returns blocks of 1 MiB and more when they are freed.

    Raises:
        CalledProcessError: the process failed; its output is on the error stream.
    """
    code = "from capsdist.bench.planner_check import _measure; _measure()"
    text = json.dumps(asdict(case))
    command = [sys.executable, "-c", code, text]
    env = os.environ | ({} if keep else {"MALLOC_MMAP_THRESHOLD_": str(LARGE_BYTES)})
    outputs = [
        subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=env)
        for _ in range(1 if keep else _TIMES)
    ]
    return int(statistics.median(int(output.stdout.splitlines()[-1]) for output in outputs))


def _measure() -> None:
    """Do the steps of the case in the arguments; print the peak in bytes."""
    case = Case(**json.loads(sys.argv[1]))
    tiny = {
        "image_size": 12, "conv_channels": 8, "conv_kernel": 3, "primary_kernel": 3, "primary_types": 8,
        "num_classes": 16, "decoder_hidden": (16, 16),
    }  # fmt: skip
    _step_of(Case("tiny", 2, tiny))()
    (_OWN / "clear_refs").write_text("5")
    start = _resident("VmRSS")
    step = _step_of(case)
    for _ in range(2):
        step()
    print(_resident("VmHWM") - start)


def _step_of(case: Case) -> Step:
    config = case.config()
    torch.manual_seed(0)
    network = build_model(config.model, config.routing)
    images = torch.rand(case.num_images, *image_shape(config.model))
    several = (config.model.num_labels,) if config.model.num_labels > 1 else ()
    labels = torch.randint(config.model.num_classes, (case.num_images, *several))
    family = find_family(config.model.kind)
    return Step(network, family, config, images=images, labels=labels, precision="fp32")


def _resident(name: str) -> int:
    lines = (_OWN / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def counted_flop(case: Case) -> int:
    """Return the FLOP that torch counts in a real step of `case`."""
    step = _step_of(case)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def planned_flop(case: Case) -> int:
    """Return the FLOP of a step by the closed formulas."""
    layers = case.cost().layers
    return case.num_images * sum(e.forward_flop + e.backward_flop + e.recomputed_flop for e in layers)


def rows(log: Callable[[str], None], cases: Sequence[Case] = CHECKED) -> list[Row]:
    """Return planned and measured peak and FLOP of each case; `log` hears of each."""
    found = []
    for case in cases:
        # FLOP an image are the same for all batches
        few = Case(case.name, 2 * case.num_microbatches, case.model, case.routing, case.num_microbatches)
        memory = planned(case)
        row: Row = {
            **asdict(case),
            "planned_bytes": memory.peak,
            "measured_bytes": measured_peak(case),
            "planned_process_bytes": process_peak(memory),
            "measured_process_bytes": measured_peak(case, keep=True),
            "planned_flop": planned_flop(few),
            "counted_flop": counted_flop(few),
        }
        row["memory_error_percent"] = _error(row["planned_bytes"], row["measured_bytes"])
        row["process_error_percent"] = _error(row["planned_process_bytes"], row["measured_process_bytes"])
        row["flop_error_percent"] = _error(row["planned_flop"], row["counted_flop"])
        log(
            f"{case.name:<30} peak {row['measured_bytes'] / 1e6:7.1f} MB, planned "
            f"{row['planned_bytes'] / 1e6:7.1f} ({row['memory_error_percent']:+5.1f} %); "
            f"with what glibc keeps {row['measured_process_bytes'] / 1e6:7.1f} MB, planned "
            f"{row['planned_process_bytes'] / 1e6:7.1f} ({row['process_error_percent']:+5.1f} %); "
            f"FLOP {row['counted_flop']:,} ({row['flop_error_percent']:+g} %)"
        )
        found.append(row)
    return found


def _error(planned: float, measured: float) -> float:
    return 100 * (planned - measured) / measured


def figures(log: Callable[[str], None]) -> dict[str, float]:
    """Return the largest errors of the planner over `CHECKED`, in percent.

    Of peak memory, of the estimate for a process whose allocator keeps freed blocks, and of FLOP.
    """
    found = rows(log)
    return {
        "planner_memory_error_percent": max(abs(row["memory_error_percent"]) for row in found),
        "planner_process_error_percent": max(abs(row["process_error_percent"]) for row in found),
        "planner_flop_error_percent": max(abs(row["flop_error_percent"]) for row in found),
        "num_planner_configurations": float(len(found)),
    }
