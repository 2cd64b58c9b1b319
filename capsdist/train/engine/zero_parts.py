"""Parameters that DeepSpeed has partitioned over ranks, and their optimizer state: read and set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from capsdist.models.parallel.pieces import PIECE
from capsdist.train.engine.operators import import_deepspeed
from capsdist.train.state import Pieces, pieces_of

__all__ = ["Partitions", "is_partitioned"]


def is_partitioned(tensor: Any) -> bool:
    """Whether stage 3 has partitioned a frozen parameter; buffers are whole."""
    return hasattr(tensor, "ds_tensor")


class Partitions:
    """The partitions of ZeRO `stage` 1, 2 or 3 on rank `rank`."""

    def __init__(self, stage: int, rank: int, device: torch.device) -> None:
        self._stage, self._rank, self._device = stage, rank, device

    def pieces(self, parameter: Any, slot: str | None = None) -> Pieces:
        """Return the fp32 weight, or the `slot`, of a parameter of which every rank holds a part."""
        if self._stage == 3:
            held = parameter._z3_optimizer.get_local_fp32_param(parameter, slot)
            return Pieces(parameter.ds_shape, torch.float32, partial(self._gather, parameter, slot), held)
        mapping = parameter._hp_mapping
        held = None if mapping is None else mapping.get_hp_fragment(slot).detach()
        return Pieces(parameter.shape, torch.float32, partial(self._sum, parameter, held), held)

    def fixed(self, tensor: Tensor, shape: torch.Size) -> Pieces:
        """Return a frozen parameter that stage 3 has partitioned."""
        return Pieces(shape, tensor.dtype, partial(self._gather_fixed, tensor))

    def scatter(self, parameter: Any, value: Tensor, slot: str | None = None) -> None:
        """Copy this rank's part of the whole `value` into its partition."""
        if self._stage < 3:
            parameter.set_full_hp_param(value.to(self._device), slot)
            return
        padded = self._own_part(parameter, value)
        parameter._z3_optimizer.set_local_hp_param(padded, parameter, slot)
        if slot is None:  # the partition that the forward pass gathers, until the next step a copy of its own
            parameter.ds_tensor.data.copy_(padded)

    def fill(self, tensor: Any, value: Tensor) -> None:
        """Copy this rank's part of `value` into a frozen parameter that stage 3 has partitioned."""
        tensor.ds_tensor.data.copy_(self._own_part(tensor, value))

    def _gather(self, parameter: Any, slot: str | None) -> Iterator[Tensor]:
        """Yield on rank 0 a parameter that stage 3 has partitioned, or its slot; whole for a while."""
        whole = parameter._z3_optimizer.get_full_hp_param(parameter, slot)
        if self._rank == 0:
            yield from pieces_of(whole)

    def _gather_fixed(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield on rank 0 a frozen parameter that stage 3 has partitioned; whole for a while."""
        with import_deepspeed(self._device).zero.GatheredParameters([tensor]):
            if self._rank == 0:
                yield from pieces_of(tensor)

    def _sum(self, parameter: Any, fragment: Tensor | None) -> Iterator[Tensor]:
        """Yield on rank 0 a parameter that stages 1 and 2 have partitioned, or its slot."""
        # Sums of bit patterns, one of them not zero: a sum of floats would turn -0.0 into 0.0.
        begin = 0 if fragment is None else parameter._hp_mapping.lp_fragment_address.start
        end = begin + (0 if fragment is None else fragment.numel())
        for start in range(0, parameter.numel(), PIECE):
            stop = min(start + PIECE, parameter.numel())
            bits = torch.zeros(stop - start, dtype=torch.int32, device=self._device)
            first, last = max(start, begin), min(stop, end)
            if fragment is not None and first < last:
                part = fragment[first - begin : last - begin]
                bits[first - start : last - start] = part.view(torch.int32)
            dist.all_reduce(bits)
            if self._rank == 0:
                yield bits.view(torch.float32).cpu()

    def _own_part(self, parameter: Any, value: Tensor) -> Tensor:
        """Return this rank's part of `value` at stage 3: equal parts, the last padded with zeros.

        (DeepSpeed's own full setter reads beyond the end there.)
        """
        part = parameter.ds_tensor.numel()
        own = value.flatten()[self._rank * part : (self._rank + 1) * part].to(self._device)
        return nn.functional.pad(own, (0, part - own.numel()))
