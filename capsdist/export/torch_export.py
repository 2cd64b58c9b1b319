"""The format `torch-export`: programs that `torch.export.load` reads, without capsdist."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from capsdist.export.programs import Program, Programs, Run

__all__ = ["TORCH_EXPORT"]


class TorchExport(Programs):
    """classifier.pt2 and decoder.pt2."""

    suffix = ".pt2"

    def save(self, program: Program, path: Path) -> None:
        """Write the program."""
        torch.export.save(program.program, path)

    def open(self, path: Path) -> Run:
        """Return the program, ready to be called."""
        module = torch.export.load(path).module()

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            found = module(*inputs)
            return found if isinstance(found, tuple) else (found,)

        return run


TORCH_EXPORT = TorchExport()
