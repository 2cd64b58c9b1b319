"""Compile the fused backend's kernels for a GPU, as they would be launched, where there need be no GPU.

Prints one line for each program: kernel, bytes of shared memory. Run without TRITON_INTERPRET, with the word
"few" for every kernel once and "many" for networks' shapes, both on an H100, or "smaller" for an RTX 4090.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from capsdist.routing.dynamic.fused import call as calls
from capsdist.routing.dynamic.fused import launch_backward, launch_forward, plan
from capsdist.routing.dynamic.fused.call import Call

H100, RTX_4090 = GPUTarget("cuda", 90, 32), GPUTarget("cuda", 89, 32)
TARGET = RTX_4090 if sys.argv[1:] == ["smaller"] else H100
MULTIPROCESSORS = 132
MODULES = (launch_forward, launch_backward)
NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


class Compiled:
    """Stands for a kernel: compiles what it is launched with, and launches nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(0 < size < 2**16 for size in grid[1:])
        return self.compile

    def compile(
        self, *operands: Any, num_warps: int, num_stages: int = 3, launch_pdl: bool = False, **constants: Any
    ) -> None:
        """Compile for these arguments, as the launcher would specialise them."""
        names = self.kernel.arg_names
        given = {**dict(zip(names, operands, strict=False)), **constants}
        signature = {name: _type(given[name], name in constants) for name in names}
        constexprs = {(names.index(k),): v for k, v in given.items() if signature[k] == "constexpr"}
        aligned = [(i,) for i, name in enumerate(names) if isinstance(given[name], Tensor)]
        source = ASTSource(
            self.kernel, signature, constexprs, {i: [["tt.divisibility", 16]] for i in aligned}
        )
        options = {"num_warps": num_warps, "num_stages": num_stages, "launch_pdl": launch_pdl}
        done = triton.compile(source, target=TARGET, options=options)
        print(self.kernel.__name__, done.metadata.shared, flush=True)


def _type(value: Any, is_constant: bool) -> str:
    if is_constant or value is None:
        return "constexpr"
    if isinstance(value, Tensor):
        return f"*{NAMES[value.dtype]}"
    return "fp32" if isinstance(value, float) else "i32"


def _launch(kernel: str, sizes: plan.Sizes, _variant: str, _device: Any, run: Any, **_: Any) -> Any:
    return run(plan.default_plan(kernel, sizes, MULTIPROCESSORS))


def compile_all(
    sizes: tuple[int, int, int, int, int], iterations: int, dtype: torch.dtype, everything: bool
) -> None:
    """Compile forward and backward pass of sizes B, I, J, D, E."""
    num_images, num_children, num_parents, child_dim, parent_dim = sizes
    poses = torch.zeros(num_images, num_children, child_dim, dtype=dtype)
    weights = torch.zeros(num_parents, parent_dim, child_dim, num_children, dtype=dtype)
    priors = torch.zeros(num_children, num_parents) if everything else None
    bias = torch.zeros(num_parents, parent_dim) if everything else None
    call = Call.prepare(poses, weights, priors, everything, dtype)
    parent_poses, totals = launch_forward.route_forward(call, bias, iterations, dtype)
    launch_backward.route_backward(
        call, totals, parent_poses, poses_dtype=dtype, weights_dtype=dtype, want_bias=everything
    )


if __name__ == "__main__":
    for module in MODULES:
        setattr(module, "launch_tuned", _launch)  # noqa: B010
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.JITFunction):
                setattr(module, name, Compiled(value))
    if TARGET == H100:
        os.environ["CAPSDIST_EARLY_LAUNCH"] = "1"  # with it kernels have all that they have without
    if sys.argv[1] == "smaller":
        calls.SHARED_BYTES = 101_376  # CUDA C++ programming guide, compute capability 8.9: 99 KB a block
        compile_all((128, 1152, 10, 8, 16), 2, torch.float32, everything=False)
    elif sys.argv[1] == "few":
        compile_all((5, 37, 2, 5, 10), 2, torch.bfloat16, everything=True)
        compile_all((64, 48, 3, 70, 128), 2, torch.bfloat16, everything=False)
        plan.MAX_WHOLE = 0
        compile_all((64, 48, 3, 8, 16), 2, torch.bfloat16, everything=False)
    else:
        compile_all((128, 1152, 10, 8, 16), 2, torch.bfloat16, everything=False)
        compile_all((5, 37, 3, 5, 10), 2, torch.float16, everything=True)
        compile_all((5, 64, 4, 64, 64), 2, torch.bfloat16, everything=False)
        compile_all((5, 37, 3, 8, 200), 2, torch.float16, everything=True)
        compile_all((64, 48, 20, 300, 16), 2, torch.float32, everything=False)
        compile_all((64, 48, 20, 128, 128), 2, torch.float32, everything=True)
        compile_all((64, 48, 1000, 8, 16), 2, torch.bfloat16, everything=False)
        compile_all((64, 48, 20, 8, 16), 2, torch.float32, everything=True)
