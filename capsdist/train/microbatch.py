"""`train.microbatch_size` auto: the largest microbatch whose forward and backward pass fits in memory.

It is tried on zeros, on the network before its engine is built: that needs no collective that a rank without
memory would leave, and changes nothing. Candidates are a rank's share of a step and its halves, so that
memory that varies a little does not change the result, whose rounding depends on it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn

from capsdist.config import Config
from capsdist.config.models import find_family
from capsdist.config.shapes import image_shape
from capsdist.errors import MemoryExhaustedError
from capsdist.storage.memory import free_memory
from capsdist.train.optim import StateForm
from capsdist.train.phases import forget_peak, peak_bytes
from capsdist.train.precision import autocast, resolve_precision
from capsdist.train.shares import images_per_rank
from capsdist.train.step import losses_of
from capsdist.train.streams import workers_on_node

__all__ = ["resolve_microbatch"]

_SPARE = 0.05  # of a GPU's memory, for what its allocator cannot use
_USABLE = 0.8  # of a machine's free memory; a process that takes too much is killed
_MIB = 1 << 20

Passes = Callable[[int], str]
"""Called as ``passes(size)``: does a forward and backward pass; returns why it did not fit, "" if it did."""


def resolve_microbatch(
    config: Config, model: nn.Module, *, world_size: int, device: torch.device, saved: Config | None
) -> Config:
    """Return `config` with the size found in place of `train.microbatch_size` auto. Collective.

    `model`, which moves to `device`, is otherwise left as it is: weights, buffers, no gradients; so is the
    generator of torch. saved: of the checkpoint that the run resumes from. The size is at most the one there,
    if the number of workers is the same: then the run continues bit for bit.

    Cost: about a step on a GPU; two on a CPU, where sizes grow from one image. There the memory of the
    process is measured, and a size is tried only if the growth so far, continued linearly, fits.

    Raises:
        MemoryExhaustedError: one image does not fit, on any rank.
    """
    train = config.train
    largest = images_per_rank(train, world_size)
    before = saved.train if saved else train
    if before.num_workers == train.num_workers and isinstance(before.microbatch_size, int):
        largest = min(largest, before.microbatch_size)
    sizes = _halves(largest)
    # the optimizer's state, and a copy of the gradients for DDP's buckets or ZeRO's partitions
    copies = len(StateForm.of(config.optim).slots) + 1
    later = sum(copies * parameter.nbytes for parameter in model.parameters())
    with _undone(model.to(device), device):
        passes = _passes(config, model, images_per_rank(train, world_size), device)
        if device.type == "cuda":
            size, reason = _on_gpu(passes, sizes, later, device)
        else:
            size, reason = _by_growth(passes, sizes, _room(world_size, later), device)
    found = torch.tensor(size, device=device)
    if world_size > 1:
        dist.all_reduce(found, dist.ReduceOp.MIN)
    if not found:
        shape = "x".join(map(str, image_shape(config.model)))
        raise MemoryExhaustedError(
            f"train.microbatch_size='auto': the memory for one image ({shape}) in a forward and backward "
            f"pass is not there ({reason or 'on another worker'}); use fewer workers on a machine, a machine "
            "with more memory, or a smaller network"
        )
    return config.model_copy(update={"train": train.model_copy(update={"microbatch_size": int(found)})})


def _halves(largest: int) -> list[int]:
    """Return `largest`, half of it, rounded up, and so on to 1."""
    sizes = [largest]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _room(world_size: int, later: int) -> int:
    """Return the bytes of this machine that each of its ranks may use now. Collective."""
    free = torch.tensor(free_memory())
    if world_size > 1:  # no rank begins before all have looked
        dist.all_reduce(free, dist.ReduceOp.MIN)
    return int(_USABLE * int(free)) // workers_on_node(world_size) - later


def _on_gpu(passes: Passes, sizes: Sequence[int], later: int, device: torch.device) -> tuple[int, str]:
    """Return as `_by_trial`, while as much memory is held as a run takes `later`."""
    later += int(_SPARE * torch.cuda.mem_get_info(device)[1])
    held: list[torch.Tensor] = []
    reason = _tried(lambda: held.append(torch.empty(later, dtype=torch.uint8, device=device)))
    return (0, reason) if reason else _by_trial(passes, sizes)


def _by_trial(passes: Passes, sizes: Sequence[int]) -> tuple[int, str]:
    """Return the first of the falling `sizes` that fits, or 0 and why one image does not."""
    reason = ""
    for size in sizes:
        if not (reason := passes(size)):
            return size, ""
    return 0, reason


def _by_growth(passes: Passes, sizes: Sequence[int], room: int, device: torch.device) -> tuple[int, str]:
    """Return the largest of the falling `sizes` by which this process grows by at most `room` bytes."""
    _release()  # what is freed later would hide growth
    forget_peak(device)
    begin = peak_bytes(device)
    fitting, (before, less), (last, grown) = 0, (0, 0.0), (0, 0.0)
    for size in reversed(sizes):
        slope = max(0.0, grown - less) / max(1, last - before)
        expected = grown + slope * (size - last)
        if expected > room:
            return fitting, f"{max(0, room) // _MIB:,} MiB are free for it"
        if reason := passes(size):
            return fitting, reason
        (before, less), (last, grown) = (last, grown), (size, peak_bytes(device) - begin)
        if grown > room:
            return fitting, f"it takes {grown // _MIB:,.0f} MiB, {room // _MIB:,} MiB are free for it"
        fitting = size
    return fitting, ""


def _passes(config: Config, model: nn.Module, share: int, device: torch.device) -> Passes:
    """Return what does a pass of some of the `share` images that a rank has in a step, all of them zeros."""
    network, losses_for = config.model, losses_of(find_family(config.model.kind), config)
    precision = resolve_precision(config.train.precision, device)

    def zeros(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images = drawn = torch.zeros(share, *image_shape(network), device=device)[:size]
        several = (network.num_labels,) if network.num_labels > 1 else ()
        if network.draws_parts:
            drawn = torch.zeros(share, *several, *image_shape(network), device=device)[:size]
        if network.known_shift:
            return images, drawn, torch.zeros(size, 2, device=device)
        if config.data.mixup:
            return images, drawn, torch.zeros(size, network.num_classes, device=device)
        return images, drawn, torch.zeros(size, *several, dtype=torch.int64, device=device)

    def do(size: int) -> None:
        for parameter in model.parameters():  # in a step they are there from the microbatch before
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        images, drawn, labels = zeros(size)
        with autocast(precision, device):
            output = model(images, labels)
        losses_for(output, drawn, labels)["loss"].sum().backward()

    return lambda size: _tried(lambda: do(size))


def _tried(work: Callable[[], object]) -> str:
    """Do `work`; return why there was no memory for it, in one line, "" if there was."""
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (short or "can't allocate memory" in str(error)):
            raise
        reason = (str(error) or type(error).__name__).partition("\n")[0]
    else:
        return ""
    _release()
    return reason


def _release() -> None:
    """Give memory back that belongs to no tensor any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _undone(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo at the end what forward and backward passes of `model` change."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in buffers.items():
                model.get_buffer(name).copy_(buffer)
        model.zero_grad(set_to_none=True)
        _release()
