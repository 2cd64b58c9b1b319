"""Memory of one rank in a training step, by formula: the one that the planner and the search use.

A step is followed layer by layer. Forward, a layer needs what is kept so far and its own peak. Backward, it
needs what layers up to it keep, the gradients of the parameters after it, and its own peak. The optimizer
needs weights, gradients and state at once. The largest of these moments is the peak.

ZeRO (Rajbhandari et al. 2020, figure 1) divides over the ranks: from stage 1 the optimizer's state, from
stage 2 also gradients, from stage 3 also weights. Capsule ranks divide class capsules, with gradients and
state, which then take no part in ZeRO.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from capsdist.config import Config
from capsdist.config.cost import Bytes, Cost, LayerCost, Numbers
from capsdist.train.engine.zero_settings import bucket_elements
from capsdist.train.optim import StateForm

__all__ = [
    "FP32_BYTES",
    "Memory",
    "Setup",
    "optimizer_slots",
    "process_peak",
    "split_over",
    "state_bytes",
    "training_memory",
]

FP32_BYTES = 4


@dataclass(frozen=True)
class Setup:
    """How a network is trained.

    num_ranks: data-parallel and capsule ranks together. zero_stage: 0 is DDP. narrow_bytes: of a number in
    the precision of the forward pass. microbatch: images of one forward pass of a rank. slots: numbers of
    optimizer state a parameter.
    """

    num_ranks: int = 1
    zero_stage: int = 0
    narrow_bytes: int = FP32_BYTES
    microbatch: int = 1
    num_microbatches: int = 1
    capsule_ranks: int = 1
    slots: int = 2


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    weights, gradients, optimizer: as they are divided; buffers: of the engine, with partitions that it keeps
    besides; activations: kept from forward to backward pass, with the images; working: the largest
    temporaries of a layer that grow with its images; peak: the largest moment.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    working: int
    peak: int

    @property
    def least(self) -> int:
        """Weights, gradients, state and activations: without them no step can run."""
        return self.weights + self.gradients + self.optimizer + self.activations


def optimizer_slots(config: Config) -> int:
    """Return the numbers that the optimizer of `config` keeps of a parameter, besides weight and gradient."""
    return len(StateForm.of(config.optim).slots)


def state_bytes(parameters: int, setup: Setup) -> tuple[int, int, int]:
    """Return bytes of weights, gradients and optimizer state of `parameters` on one rank, all in fp32."""
    size = parameters * FP32_BYTES

    def share(numbers: int, from_stage: int) -> int:
        return -(-size * numbers // (setup.num_ranks if setup.zero_stage >= from_stage else 1))

    return share(1, 3), share(1, 2), share(setup.slots, 1)


def split_over(layer: LayerCost, ranks: int) -> LayerCost:
    """Return the part of class capsules that one of `ranks` capsule ranks has, for the images of all of them.

    Image bytes stay those of one of its own images: as many more images as there are fewer children.
    """
    sizes = layer.routed
    if sizes is None or ranks == 1:
        return layer
    poses, parents = sizes.children * sizes.child_dim, sizes.parents * sizes.parent_dim
    more = FP32_BYTES * (poses + (ranks - 1) * parents)

    def part(peak: Bytes) -> Bytes:
        return Bytes(peak.image + more, -(-peak.fixed // ranks))

    return replace(
        layer,
        parameters=-(-layer.parameters // ranks),
        cast=-(-layer.cast // ranks),
        saved=Numbers(
            layer.saved.narrow + poses, layer.saved.wide + (ranks - 1) * sizes.iterations * parents
        ),
        forward_peaks=tuple(map(part, layer.forward_peaks)),
        backward_peaks=tuple(map(part, layer.backward_peaks)),
    )


def training_memory(cost: Cost, setup: Setup) -> Memory:
    """Return what one rank needs to train the network of `cost` as `setup` says."""
    layers = [split_over(layer, setup.capsule_ranks) for layer in cost.layers]
    capsules = sum(layer.parameters for layer in layers if layer.routed) if setup.capsule_ranks > 1 else 0
    others = sum(layer.parameters for layer in layers) - capsules
    own = state_bytes(capsules, replace(setup, zero_stage=0))
    weights, gradients, optimizer = map(sum, zip(state_bytes(others, setup), own, strict=True))
    weights += state_bytes(cost.frozen, setup)[0]
    images = cost.input_numbers * FP32_BYTES * setup.microbatch * setup.num_microbatches
    kept = _copies(layers, setup) + sum(_saved(layer, setup) for layer in layers)
    buffers = _buffers(others, layers, setup)
    resident = weights + optimizer + buffers + images
    whole = setup.num_ranks > 1  # DDP and ZeRO hold the gradients of all layers in buckets from the start
    peak = resident + max(_moments(layers, setup, gradients, whole=whole))
    temporaries = (each for layer in layers for each in (*layer.forward_peaks, *layer.backward_peaks))
    working = max((_image_bytes(each, setup) for each in temporaries), default=0)
    return Memory(weights, gradients, optimizer, buffers, images + kept, working, peak)


def _buffers(parameters: int, layers: list[LayerCost], setup: Setup) -> int:
    """Return DeepSpeed's bucket, its second partition of fp32 weights, and the largest gathered layer (3)."""
    if not setup.zero_stage:
        return 0
    held = FP32_BYTES * bucket_elements(setup.zero_stage, parameters)
    held += -(-FP32_BYTES * parameters // setup.num_ranks)
    if setup.zero_stage == 3:
        split = setup.capsule_ranks > 1
        held += FP32_BYTES * max(
            layer.parameters + layer.frozen for layer in layers if not (split and layer.routed)
        )
    return held


def _saved(layer: LayerCost, setup: Setup) -> int:
    return layer.saved.bytes_at(setup.narrow_bytes) * setup.microbatch


def _copies(layers: list[LayerCost], setup: Setup) -> int:
    """Return the bytes of copies of weights and images that a step keeps: 16-bit ones, and those in fp32."""
    made = FP32_BYTES * sum(each.copied for each in layers)
    if setup.narrow_bytes == FP32_BYTES:
        return made
    return made + setup.narrow_bytes * sum(each.cast + each.cast_input * setup.microbatch for each in layers)


def _moments(layers: list[LayerCost], setup: Setup, gradients: int, *, whole: bool) -> Iterator[int]:
    """Yield the bytes of each moment above weights, optimizer state and images."""

    def most(peaks: tuple[Bytes, ...]) -> int:
        return max((_image_bytes(each, setup) + each.fixed for each in peaks), default=0)

    yield gradients
    several = whole or setup.num_microbatches > 1
    held = gradients if several else 0
    kept = _copies(layers, setup)
    for layer in layers:
        kept += _saved(layer, setup)
        yield held + kept + most(layer.forward_peaks)
    for layer in reversed(layers):
        yield held + kept + most(layer.backward_peaks)
        kept -= _saved(layer, setup)
        held += 0 if several else FP32_BYTES * layer.parameters


def _image_bytes(peak: Bytes, setup: Setup) -> int:
    """Return the bytes of `peak` that the images of a microbatch take."""
    return int(peak.image * setup.narrow_bytes / FP32_BYTES) * setup.microbatch


def process_peak(memory: Memory) -> int:
    """Estimate the resident bytes, above its start, of a process on a CPU that trains with `memory`.

    glibc keeps a part of what is freed, by measurement mostly less than the largest temporaries: blocks below
    32 MiB come from a heap, and those between others that are in use stay.
    """
    return memory.peak + memory.working
