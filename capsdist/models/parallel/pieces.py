"""Split parameters of all ranks as one sequence of numbers, in pieces: what no single rank could hold.

A piece is a flat tensor. The pieces of a tensor, one after another, are its numbers in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from capsdist.models.parallel.layer import SplitParameter

__all__ = ["PIECE", "gather_pieces", "take_pieces"]

PIECE = 1 << 22
"""Numbers of a piece, at most, unless one row has more: 16 MiB in fp32."""


def gather_pieces(own: Tensor, split: SplitParameter) -> Iterator[Tensor]:
    """Yield on the first of the ranks that share children the whole of which `own` is this rank's part.

    Collective: the other ranks of the group exhaust the iterator, which yields nothing there. A rank holds a
    piece of the whole at a time. Pieces are on the CPU.

    Args:
        own: shaped like the parameter: its values, gradient, or state of an optimizer.
        split: the parameter.
    """
    group = split.layer.group
    columns = [split.columns(each) for each in range(dist.get_world_size(group))]
    widths = [each.stop - each.start for each in columns]
    rank = dist.get_rank(group)
    for part in own.detach().reshape(-1, widths[rank]).split(max(1, PIECE // split.row)):
        if rank:
            dist.send(part.contiguous(), group=group, group_dst=0)
            continue
        parts = [part.cpu()]
        for sender, width in enumerate(widths[1:], 1):
            received = part.new_empty(len(part), width)
            dist.recv(received, group=group, group_src=sender)
            parts.append(received.cpu())
        yield torch.cat(parts, dim=1).view(-1)


@torch.no_grad()
def take_pieces(target: Tensor, pieces: Iterable[Tensor], split: SplitParameter) -> None:
    """Copy this rank's part of the whole, which `pieces` are, into `target`, shaped like the parameter."""
    columns, start = split.columns(), 0
    rows = target.view(-1, columns.stop - columns.start)
    for block in _in_rows(pieces, split.row):
        rows[start : start + len(block)] = block[:, columns]
        start += len(block)


def _in_rows(pieces: Iterable[Tensor], row: int) -> Iterator[Tensor]:
    """Yield the numbers of `pieces` again, [n, row] each."""
    left: Tensor | None = None
    for piece in pieces:
        joined = piece if left is None else torch.cat([left, piece])
        whole = len(joined) - len(joined) % row
        if whole:
            yield joined[:whole].view(-1, row)
        left = joined[whole:] if whole < len(joined) else None
