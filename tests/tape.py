"""A recorder of steps on the CPU that keeps what a CUDA graph keeps: operations, addresses, and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(result)))
        return result


def tape(run: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Run once and note every operation; each call after the first does these again, without Python's code.

    Floats, shapes and branches are those of the first run, and results land in the tensors of the first run,
    as with a CUDA graph.
    """
    recorded = _Tape()
    with recorded:
        result = run()
    first = [True]

    def replay() -> tuple[Tensor, Tensor]:
        if first[0]:  # unlike a capture, the recording has computed it
            first[0] = False
            return result
        with torch.no_grad():
            for func, args, kwargs, old in recorded.calls:
                for kept, new in zip(old, tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():
                        kept.copy_(new)
        return result

    return replay
