"""Run a module as the program that torch.onnx.export writes of it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn


def in_onnx_runtime(module: nn.Module, inputs: Tensor, folder: Path) -> Tensor:
    """Export `module` into `folder`, and return what ONNX Runtime computes of `inputs` on the CPU."""
    program = torch.onnx.export(module.eval(), (inputs,), dynamo=True, verbose=False)
    assert program is not None
    program.save(folder / "program.onnx")
    session = onnxruntime.InferenceSession(folder / "program.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return torch.from_numpy(found)
