"""A plan in words: what is assumed, a table of all rows, and what is missing where none fits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from capsdist.config import Config
from capsdist.planning.plan import GIB, Device, Row

__all__ = ["heading", "lacking", "table"]

_HEAD = (
    "ZeRO", "precision", "recompute", "capsule ranks", "microbatches", "weights", "gradients", "optimizer",
    "activations", "buffers", "temporaries", "peak GiB", "sent GB", "GFLOP", "step ms", "cost", "",
)  # fmt: skip


def heading(config: Config, device: Device, row: Row) -> list[str]:
    """Return lines about the network, its FLOP, and how memory and time are found."""
    flop = row.flop
    ranks, batch = row.setup.num_ranks, config.train.global_batch_size
    on_cpu = config.train.device == "cpu"
    kept = "; on a CPU with temporaries twice, as an estimate of what the allocator keeps" if on_cpu else ""
    chosen = f" (routing.recompute={row.recompute})" if row.recompute else ""
    unpriced = "" if config.train.recompute == "none" else ", without train.recompute, which is not priced"
    return [
        f"{config.preset}: {row.parameters:,} parameters, {batch:,} images a step on {ranks} devices of "
        f"{device.memory_gib:g} GiB",
        f"FLOP a step: forward {flop.forward:,}, backward {flop.backward:,}, recomputation "
        f"{flop.recomputed:,}{chosen}{unpriced}",
        f"Memory of a rank in GiB; {device.reserved_gib:g} GiB of each device is for driver and libraries. "
        "The formula was compared with steps on a CPU in fp32 only.",
        "The peak is the largest moment of a step, not the sum of the parts" + kept,
        "Time is a projection, not a measurement: sum over layers of max(FLOP / peak, bytes / bandwidth), + "
        "optimizer bytes / bandwidth, + bytes sent / interconnect.",
        f"Ceilings (of an H100 SXM unless given, on a CPU too): --peak-tflops {device.peak_tflops:g}, "
        f"--peak-tflops-fp32 {device.peak_tflops_fp32:g}, "
        f"--memory-bandwidth-gb-s {device.memory_bandwidth_gb_s:g}, "
        f"--interconnect-gb-s {device.interconnect_gb_s:g}",
    ]


def table(rows: Sequence[Row], price_per_hour: float | None) -> list[str]:
    """Return aligned lines, the cheapest row first; cost is of a million images: device hours, or money."""
    ordered = sorted(rows, key=lambda row: (not row.fits, bool(row.missing), row.device_s_per_image))
    cells = [_HEAD, *(_cells(row, price_per_hour) for row in ordered)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEAD))]
    unit = "device hours" if price_per_hour is None else "price"
    lines = ["  ".join(map(str.rjust, line, widths)).rstrip() for line in cells]
    return [*lines, f"cost: {unit} of a million images"]


def _cells(row: Row, price_per_hour: float | None) -> tuple[str, ...]:
    setup, memory = row.setup, row.memory
    parts = (
        memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.buffers,
        memory.working, memory.peak,
    )  # fmt: skip
    hours = 1e6 * row.device_s_per_image / 3600
    return (
        str(setup.zero_stage),
        row.precision,
        row.recompute,
        str(setup.capsule_ranks),
        str(setup.num_microbatches),
        *(f"{part / GIB:.3f}" for part in parts),
        f"{row.communicated_bytes / 1e9:.4f}",
        f"{row.flop.total / 1e9:,.1f}",
        f"{1e3 * row.step_s:.3f}",
        f"{hours * (price_per_hour or 1):.4g}",
        ("fits" if row.fits else "does not fit") + (f"; not runnable: {row.missing}" if row.missing else ""),
    )


def lacking(rows: Sequence[Row], device: Device) -> str:
    """Return one line about the row that is nearest to fitting: what it lacks, and what takes most."""
    able = [row for row in rows if not row.missing]
    if not able:
        return f"nothing can be run: {rows[0].missing}"
    row = min(able, key=lambda row: row.memory.peak)
    memory, setup = row.memory, row.setup
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer state": memory.optimizer,
        "activations": memory.activations,
        "buffers": memory.buffers,
        "temporaries": memory.working,
    }
    largest = max(parts, key=parts.__getitem__)
    short = math.ceil(1e3 * (memory.peak / GIB + device.reserved_gib - device.memory_gib)) / 1e3
    return (
        f"nothing fits: the smallest, ZeRO {setup.zero_stage} in {row.precision} with "
        f"{setup.num_microbatches} microbatches, needs {memory.peak / GIB:.3f} GiB and "
        f"{device.reserved_gib:g} for driver and libraries, {short:.3f} more than memory_gib="
        f"{device.memory_gib:g}; the largest part is {largest} ({parts[largest] / GIB:.3f}): "
        "use more devices (--gpus) or larger ones (--memory-gib)"
    )
