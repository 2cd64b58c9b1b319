"""Price every way to train a network on a number of devices, and choose the cheapest that fits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from capsdist.algorithms import find_algorithm
from capsdist.config import Config, Train, problems
from capsdist.config.cost import Cost
from capsdist.config.models import find_family
from capsdist.config.sections import Section
from capsdist.planning.memory import (
    FP32_BYTES,
    Memory,
    Setup,
    optimizer_slots,
    process_peak,
    split_over,
    training_memory,
)
from capsdist.train.shares import images_per_rank

__all__ = [
    "CHOSEN",
    "Device",
    "Flop",
    "Row",
    "cheapest",
    "command",
    "communicated_bytes",
    "plan_rows",
    "step_flop",
]

GIB = 2**30
STAGES = (0, 1, 2, 3)
_NARROW_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CHOSEN = (
    "train.precision", "train.engine", "train.zero_stage", "train.capsule_ranks", "routing.recompute",
)  # fmt: skip
"""What a plan chooses, unless it is asked for."""


@dataclass(frozen=True)
class Device:
    """Ceilings of the devices: the defaults are the data sheet's of an NVIDIA H100 SXM, dense.

    peak_tflops: of 16-bit products; peak_tflops_fp32: of fp32 products. memory_bandwidth_gb_s,
    interconnect_gb_s: 10^9 bytes a second, of a device's memory, and of what one device sends.
    reserved_gib: of its memory, for the driver's context and libraries; an assumption.
    """

    memory_gib: float = 80.0
    peak_tflops: float = 989.0
    peak_tflops_fp32: float = 67.0
    memory_bandwidth_gb_s: float = 3350.0
    interconnect_gb_s: float = 450.0
    reserved_gib: float = 1.0

    def flop_per_s(self, precision: str) -> float:
        """Return the ceiling of products in `precision`."""
        return 1e12 * (self.peak_tflops_fp32 if precision == "fp32" else self.peak_tflops)


@dataclass(frozen=True)
class Flop:
    """FLOP of a step over all ranks."""

    forward: int
    backward: int
    recomputed: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.recomputed


@dataclass(frozen=True)
class Row:
    """One way to train. communicated_bytes: that a rank sends a step; step_s: a projection.

    missing: why this version cannot run it, "" if it can.
    """

    config: Config
    setup: Setup
    precision: str
    recompute: str
    parameters: int
    memory: Memory
    flop: Flop
    communicated_bytes: int
    step_s: float
    fits: bool
    missing: str

    @property
    def device_s_per_image(self) -> float:
        """Seconds of one device for an image: what is paid for."""
        return self.step_s * self.setup.num_ranks / self.config.train.global_batch_size


def step_flop(cost: Cost, num_images: int) -> Flop:
    """Return the FLOP of a step of `num_images`, see `capsdist.models.costs`."""
    sums = [
        sum(getattr(each, name) for each in cost.layers)
        for name in ("forward_flop", "backward_flop", "recomputed_flop")
    ]
    return Flop(*(num_images * each for each in sums))


def communicated_bytes(cost: Cost, setup: Setup) -> int:
    """Return the bytes that a rank sends in a step, with ring collectives, all in fp32.

    N parameters that P ranks replicate: 2 (P - 1) / P x 4 N for DDP and ZeRO 1 and 2; stage 3 gathers weights
    in forward and backward pass of each of M microbatches, and scatters gradients: (2 M + 1) (P - 1) / P.
    Of frozen weights stage 3 sends M (P - 1) / P, the others nothing.
    Q capsule ranks, a microbatch of b images a rank: poses there and back, and their gradients,
    2 (Q - 1) / Q x 4 b I D; totals [Q b, J, E] of R iterations forward and R - 1 backward, summed, and one
    gathered: (Q - 1) / Q x 4 (2 (2 R - 1) + 1) Q b J E. Their weights are summed over P / Q replicas.
    """
    ranks, split = setup.num_ranks, setup.capsule_ranks
    routed = [layer for layer in cost.layers if layer.routed] if split > 1 else []
    own = sum(split_over(layer, split).parameters for layer in routed)
    others = cost.parameters - sum(layer.parameters for layer in routed)
    times = 2 * setup.num_microbatches + 1 if setup.zero_stage == 3 else 2
    sent = times * (ranks - 1) / ranks * others
    sent += (setup.zero_stage == 3) * setup.num_microbatches * (ranks - 1) / ranks * cost.frozen
    replicas = ranks // split
    sent += 2 * (replicas - 1) / replicas * own
    for sizes in (layer.routed for layer in routed if layer.routed):
        poses, parents = sizes.children * sizes.child_dim, sizes.parents * sizes.parent_dim
        sums = (2 * (2 * sizes.iterations - 1) + 1) * split * parents
        images = setup.microbatch * setup.num_microbatches
        sent += (split - 1) / split * images * (2 * poses + sums)
    return int(sent * FP32_BYTES)


def projected_step_s(cost: Cost, setup: Setup, device: Device, precision: str, sent: int) -> float:
    """Return the seconds of a step if every layer ran at a ceiling: a projection, and a lower bound.

    Sum over layers of max(FLOP / peak, bytes / bandwidth), where a layer moves what it keeps three times
    (written, read twice) and its weights three times a microbatch, frozen ones once; then (3 + 2 slots) x 4
    bytes a parameter for the optimizer, and the bytes sent / interconnect. Nothing overlaps.
    """
    layers = [split_over(layer, setup.capsule_ranks) for layer in cost.layers]
    images = setup.microbatch * setup.num_microbatches
    rate, bandwidth = device.flop_per_s(precision), 1e9 * device.memory_bandwidth_gb_s
    seconds = 0.0
    for layer, whole in zip(layers, cost.layers, strict=True):
        # a rank's share of class capsules has the images of all that share them: the same FLOP
        flop = images * (whole.forward_flop + whole.backward_flop + whole.recomputed_flop)
        moved = 3 * images * layer.saved.bytes_at(setup.narrow_bytes)
        moved += setup.num_microbatches * FP32_BYTES * (3 * layer.parameters + layer.frozen)
        seconds += max(flop / rate, moved / bandwidth)
    parameters = sum(layer.parameters for layer in layers)
    updated = parameters / (setup.num_ranks if setup.zero_stage else 1)
    seconds += (3 + 2 * setup.slots) * FP32_BYTES * updated / bandwidth
    return seconds + sent / (1e9 * device.interconnect_gb_s)


def plan_rows(config: Config, device: Device, num_ranks: int, asked: Collection[str] = ()) -> Iterator[Row]:
    """Yield a row for each ZeRO stage, fp32 and bf16, recomputation or none, and number of capsule ranks.

    Each with the fewest microbatches (1, 2, 4, ...) with which it fits, else with one image a microbatch. A
    number in `train.microbatch_size` is the most images of one. asked: fields of `CHOSEN` that are as in
    `config` in all rows.

    Raises:
        ConfigError: the family cannot price this network.
    """
    recomputes = ("streamed", "none") if _recomputes(config.routing) else ("",)
    if "routing.recompute" in asked:
        recomputes = (getattr(config.routing, "recompute", ""),)
    precision_asked = "train.precision" in asked and config.train.precision != "auto"
    precisions = (config.train.precision,) if precision_asked else ("fp32", "bf16")
    for recompute in recomputes:
        routing = config.routing.model_copy(update={"recompute": recompute} if recompute else {})
        price = find_family(config.model.kind).cost
        assert price is not None  # the caller has looked
        changed = config.model_copy(update={"routing": routing})
        cost = price(config.model, routing)
        for stage, precision, ranks in product(STAGES, precisions, _capsule_ranks(cost, num_ranks)):
            if ranks > 1 and (stage == 3 or not _splits(routing)):
                continue  # ZeRO 3 does not know the weights of capsule ranks
            setup = Setup(num_ranks, stage, _NARROW_BYTES[precision], capsule_ranks=ranks,
                          slots=optimizer_slots(config))  # fmt: skip
            if _as_asked(setup, config.train, asked):
                yield _row(changed, cost, device, setup, precision, recompute)


def _recomputes(routing: Section) -> bool:
    """Return whether there is a choice of what the backward pass builds again."""
    algorithm = getattr(routing, "algorithm", None)
    read = algorithm is None or "recompute" in find_algorithm(algorithm).reads
    return read and "recompute" in type(routing).model_fields


def _as_asked(setup: Setup, train: Train, asked: Collection[str]) -> bool:
    """Return whether engine, stage and capsule ranks are those of `train`, as far as they are asked for."""
    partitions = train.engine == "zero" and train.zero_stage > 0
    if "train.engine" in asked and train.engine != "auto" and (setup.zero_stage > 0) != partitions:
        return False
    if "train.zero_stage" in asked and setup.zero_stage not in (0, train.zero_stage):
        return False
    return "train.capsule_ranks" not in asked or setup.capsule_ranks == train.capsule_ranks


def _splits(routing: Section) -> bool:
    """Return whether capsule ranks can compute with these options: they compute as `streamed`."""
    return (
        getattr(routing, "recompute", "streamed") == "streamed"
        and getattr(routing, "backend", "auto") in ("auto", "streamed")
    )  # fmt: skip


def _row(config: Config, cost: Cost, device: Device, setup: Setup, precision: str, recompute: str) -> Row:
    limit = (device.memory_gib - device.reserved_gib) * GIB
    share, most = images_per_rank(config.train, setup.num_ranks), config.train.microbatch_size
    count = -(-share // most) if isinstance(most, int) else 1
    while True:
        setup = replace(setup, microbatch=-(-share // count), num_microbatches=count)
        memory = training_memory(cost, setup)
        if config.train.device == "cpu":
            memory = replace(memory, peak=process_peak(memory))
        if memory.peak <= limit or count >= share:
            break
        count = min(2 * count, share)
    sent = communicated_bytes(cost, setup)
    flop = step_flop(cost, config.train.global_batch_size)
    step_s = projected_step_s(cost, setup, device, precision, sent)
    config, missing = _runnable(config, setup, precision)
    fits = memory.peak <= limit
    return Row(
        config, setup, precision, recompute, cost.parameters, memory, flop, sent, step_s, fits, missing
    )


def _runnable(config: Config, setup: Setup, precision: str) -> tuple[Config, str]:
    """Return the configuration that trains so, and why it cannot, "" if it can."""
    train: dict[str, Any] = {"num_workers": setup.num_ranks, "capsule_ranks": setup.capsule_ranks}
    train["precision"] = precision
    train |= {"engine": "zero", "zero_stage": setup.zero_stage} if setup.zero_stage else {"engine": "ddp"}
    if config.train.microbatch_size is None:
        train["gradient_accumulation_steps"] = setup.num_microbatches
    else:
        train["microbatch_size"] = setup.microbatch
    config = config.model_copy(update={"train": config.train.model_copy(update=train)})
    found = problems(config)
    return config, str(found[0]) if found else ""


def _capsule_ranks(cost: Cost, num_ranks: int) -> list[int]:
    """Return the numbers of ranks that can share class capsules: divisors of all ranks, at most I."""
    children = min((layer.routed.children for layer in cost.layers if layer.routed), default=1)
    return [n for n in range(1, num_ranks + 1) if num_ranks % n == 0 and n <= children]


def cheapest(rows: list[Row]) -> Row | None:
    """Return the row that fits, can be run, and takes the least device time an image, or None."""
    able = [row for row in rows if row.fits and not row.missing]
    return min(able, key=lambda row: (row.device_s_per_image, row.memory.peak), default=None)


def command(row: Row, words: str) -> str:
    """Return the command that trains as `row` says; `words`: preset and options of the configuration."""
    setup = row.setup
    parts = [
        f"capsdist train {words}",
        f"--train.num-workers {setup.num_ranks}",
        f"--train.precision {row.precision}",
        f"--train.gradient-accumulation-steps {setup.num_microbatches}"
        if row.config.train.microbatch_size is None else f"--train.microbatch-size {setup.microbatch}",
        "--train.engine ddp" if not setup.zero_stage else
        f"--train.engine zero --train.zero-stage {setup.zero_stage}",
    ]  # fmt: skip
    if row.recompute:
        parts.append(f"--routing.recompute {row.recompute}")
    if setup.capsule_ranks > 1:
        parts.append(f"--train.capsule-ranks {setup.capsule_ranks}")
    return " ".join(parts)
