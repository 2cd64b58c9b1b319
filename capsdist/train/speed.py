"""How the steps of a run are done: eager, or as a CUDA graph in the variant that a trial finds fastest."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from capsdist.models.layers import PackedCapsules
from capsdist.train.engine.plain import PlainEngine
from capsdist.train.precision import autocast
from capsdist.train.program import WARM_UP, Recorder, StepProgram, cuda_graph
from capsdist.train.shares import microbatch_of
from capsdist.train.step import Work, losses_of, train_on

if TYPE_CHECKING:
    from capsdist.data.batch import Batch
    from capsdist.train.parts import Parts
    from capsdist.train.phases import Phase

__all__ = [
    "VARIANTS", "Steps", "Variant", "build_program", "compilable", "draws_random_numbers", "eager_reason",
    "example_batch", "fastest", "open_steps", "replay_seconds",
]  # fmt: skip

_REPLAYS = 20


@dataclass(frozen=True)
class Variant:
    """A way to compute the same step.

    channels_last: memory format of convolutions; compiled: torch.compile runs the parts of `compilable`.
    """

    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        """Return it as people read it."""
        return ("channels_last" if self.channels_last else "nchw") + (", compiled" if self.compiled else "")


VARIANTS = tuple(Variant(last, compiled) for compiled in (False, True) for last in (False, True))
"""What a trial compares."""


class Steps(NamedTuple):
    """What does the steps of a run.

    run: called as `train_on` without its first argument; speed: "graph", or "eager" with the reason; variant:
    of a graph; notes: lines for people.
    """

    run: Callable[[Batch, int, Phase], tuple[Tensor, Tensor]]
    speed: str
    variant: Variant | None = None
    notes: Sequence[str] = ()

    @property
    def stored(self) -> dict[str, bool]:
        """What a checkpoint keeps of it, for `open_steps`."""
        return asdict(self.variant) if self.variant else {}


def open_steps(parts: Parts, stored: Mapping[str, bool], note: Callable[[str], None]) -> Steps:
    """Return what does the steps of a run; on a GPU after a trial, which changes nothing but kernel caches.

    stored: `Steps.stored` of the checkpoint that the run continues, whose variant is taken without a trial.
    note: called if a later capture fails, with a line for people.
    """
    eager = partial(train_on, parts)
    if reason := eager_reason(parts):
        return Steps(eager, f"eager ({reason})")
    batch = example_batch(parts)
    if draws_random_numbers(parts, batch):
        return Steps(eager, "eager (the network draws random numbers)")
    notes: list[str] = []
    variant = Variant(**stored) if stored else None
    if variant is None:
        variant, notes = fastest(parts, batch, VARIANTS, record=cuda_graph, seconds=replay_seconds)
    if variant.channels_last:
        assert isinstance(parts.engine, PlainEngine)
        parts.engine.use_channels_last()
    return Steps(build_program(parts, variant, cuda_graph, note=note), "graph", variant, notes)


def eager_reason(work: Work) -> str | None:
    """Return why the steps of `work` cannot be a CUDA graph, None if nothing that is known at once.

    Several ranks are eager until they are measured, and the scale of fp16 is a number of the host.
    """
    engine = work.engine
    reasons = {
        "train.speed=plain": work.config.train.speed == "plain",
        "no GPU": work.device.type != "cuda",
        f"{engine.world_size} ranks": engine.world_size > 1,
        "DeepSpeed": not isinstance(engine, PlainEngine),
        "fp16": engine.precision == "fp16",
        "train.health_every": work.config.train.health_every > 0,
        "the loss changes by step": work.family.loss_at is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def example_batch(parts: Parts, num_images: int = 0) -> Batch:
    """Return random images as the network takes them, already transformed: `num_images`, 0: a full batch."""
    from capsdist.config.shapes import (
        image_shape,
    )  # late, with pydantic: benchmarks bring a batch of their own
    from capsdist.data.batch import Batch
    from capsdist.data.transforms import with_shifted

    model, size = parts.config.model, num_images or parts.config.train.global_batch_size
    generator = torch.Generator(parts.device).manual_seed(0)
    images = torch.rand(size, *image_shape(model), generator=generator, device=parts.device)
    ids = torch.arange(size, device=parts.device)
    labels = ids % model.num_classes
    if model.num_labels > 1:
        labels = (ids[:, None] + torch.arange(model.num_labels, device=parts.device)) % model.num_classes
    if parts.mixup:
        labels = nn.functional.one_hot(labels, model.num_classes).float()
        labels = labels.amax(1) if model.num_labels > 1 else labels
    drawn = None
    if model.draws_parts:
        shape = size, model.num_labels, *image_shape(model)
        drawn = torch.rand(shape, generator=generator, device=parts.device)
    batch = Batch(images, labels, torch.ones(size, device=parts.device), ids, size, parts=drawn)
    return with_shifted(batch, images, 0, model.known_shift) if model.known_shift else batch


@torch.no_grad()
def draws_random_numbers(work: Work, batch: Batch) -> bool:
    """Say whether forward pass and losses draw from torch's generators, as dropout does.

    batch: transformed, on the device; a microbatch of it passes a copy of the network.
    """
    size = microbatch_of(work.config.train, len(batch.images))
    engine, images, told, labels = (
        work.engine,
        batch.images[:size],
        batch.told[:size],
        batch.labels[:size],
    )
    devices = [work.device] if work.device.type == "cuda" else []

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]

    with torch.random.fork_rng(devices=devices):
        network = copy.deepcopy(engine.model).train()
        before = states()
        with autocast(engine.precision, work.device):
            output = network(images, told)
        losses_of(work.family, work.config)(output, batch.drawn(batch.images)[:size], labels)
        return not all(torch.equal(*pair) for pair in zip(before, states(), strict=True))


def fastest(
    work: Any,
    batch: Batch,
    variants: Sequence[Variant],
    *,
    record: Recorder,
    seconds: Callable[[Callable[[], object]], float],
    backend: str = "inductor",
) -> tuple[Variant, list[str]]:
    """Return the fastest of `variants`, and what was found as lines for people.

    Each trains a copy of the network for a few steps; neither `work` nor a random generator changes. One that
    cannot run, for lack of memory or of a compiler, is left out; without any it is the plain `Variant`.

    Args:
        work: a dataclass, see `Work`.
        batch: transformed, on the device.
        variants: to be tried, in this order; of equally fast ones the first is taken.
        record: see `Recorder`.
        seconds: called with a step as a call; returns its time.
        backend: of torch.compile.
    """
    times: dict[Variant, float] = {}
    notes: list[str] = []
    for variant in variants:
        with torch.random.fork_rng(devices=[work.device] if work.device.type == "cuda" else []):
            try:
                times[variant] = _tried(work, batch, variant, record, seconds, backend)
            except Exception as error:  # compilers have many; the step runs without them
                notes.append(f"{variant}: not possible here ({type(error).__name__}: {_first_line(error)})")
        gc.collect()
        if work.device.type == "cuda":
            torch.cuda.empty_cache()
    if times:
        found = "; ".join(f"{variant} {1e3 * time_s:.3g} ms" for variant, time_s in times.items())
        notes.append(f"time of a step: {found}")
    return min(times, key=lambda variant: times[variant], default=Variant()), notes


def _tried(
    work: Any,
    batch: Batch,
    variant: Variant,
    record: Recorder,
    seconds: Callable[[Callable[[], object]], float],
    backend: str,
) -> float:
    """Return the time of a step in one variant."""
    engine = PlainEngine(
        copy.deepcopy(work.engine.model),
        work.config.optim,
        rank=0,
        world_size=1,
        device=work.device,
        precision=work.engine.precision,
    )
    if variant.channels_last:
        engine.use_channels_last()
    copied = replace(work, engine=engine, transform=lambda images, *_: images, mixup=None)
    program = build_program(copied, variant, record, backend=backend)
    for step in range(WARM_UP + 1):
        program(batch, step)
    if program.failure is not None:
        raise RuntimeError(program.failure)
    return seconds(lambda: program(batch, 0))


def build_program(
    work: Work,
    variant: Variant,
    record: Recorder,
    *,
    backend: str = "inductor",
    note: Callable[[str], None] = lambda text: None,
) -> StepProgram:
    """Return the program of `work` in a variant, whose memory format its engine already has."""
    compiled: dict[nn.Module, Callable[..., object]] = {}
    if variant.compiled:
        parts = compilable(work.engine.model)
        compiled = {part: torch.compile(part._call_impl, dynamic=False, backend=backend) for part in parts}
    return StepProgram(work, record, compiled, note)


def compilable(network: nn.Module) -> list[nn.Module]:
    """Return the largest parts of a network without capsules that are routed: stem and decoder.

    Routing has kernels of its own. A network without capsules is compiled by its children.
    """
    found: list[nn.Module] = []
    for child in network.children():
        if not any(isinstance(module, PackedCapsules) for module in child.modules()):
            found += [child] if next(child.parameters(), None) is not None else []
        else:
            found += compilable(child)
    return found


def replay_seconds(run: Callable[[], object]) -> float:
    """Return the time of one call on the current GPU: the least of three runs of twenty calls."""

    def several() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(_REPLAYS):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / _REPLAYS

    return min(several() for _ in range(3))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
