"""The format `onnx`: programs for ONNX Runtime and others, compared in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from capsdist.export.programs import Program, Programs, Run, quiet, refused

__all__ = ["ONNX"]


class Onnx(Programs):
    """classifier.onnx and decoder.onnx; weights of more than 1.5 GB in a file of their own beside them."""

    packages = ("onnxscript", "onnxruntime")
    suffix = ".onnx"

    def save(self, program: Program, path: Path) -> None:
        """Convert the program to ONNX and write it."""
        try:
            with quiet():
                found = torch.onnx.export(
                    program.program,
                    dynamo=True,
                    verbose=False,
                    input_names=program.inputs,
                    output_names=program.outputs,
                    dynamic_shapes={name: {0: "batch"} for name in program.inputs},  # a name for B
                )
        except Exception as error:  # of any type: a network may be anybody's
            raise refused("torch.onnx", error) from error
        assert found is not None
        found.save(path)

    def open(self, path: Path) -> Run:
        """Return the program in ONNX Runtime, on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
            return tuple(torch.from_numpy(each) for each in session.run(None, given))

        return run


ONNX = Onnx()
