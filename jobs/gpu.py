"""Everything that needs an NVIDIA GPU, in one command: kernel tests, benchmark, a short training.

Needs torch, triton, numpy and pytest, nothing else: no Ray, no DeepSpeed. Exit status 1 if there is no GPU or
something fails. With --interpret the same runs on a CPU under Triton's interpreter, at sizes that mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TESTS = sorted(str(path) for path in (ROOT / "tests" / "unit").glob("test_fused_*.py"))


def main() -> None:
    """Run every step in turn; the last line is one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--interpret", action="store_true", help="on a CPU, under Triton's interpreter")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    flags = parser.parse_args()
    if flags.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    sys.path.insert(0, str(ROOT))
    device = _device(flags.interpret)
    if not flags.no_tests:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow" if flags.interpret else "", *TESTS]
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise SystemExit("kernel tests failed")
    found = {name: step(device) for name, step in STEPS.items()}
    print(json.dumps({"device": _name(device), **found}))


def _device(interpret: bool) -> str:
    """Return the device to run on; refuses in one line where there is no GPU."""
    import torch

    if interpret:
        return "cpu"
    if not torch.cuda.is_available():
        raise SystemExit(
            f"no NVIDIA GPU found by torch {torch.__version__}: nothing was run; "
            "see that nvidia-smi lists one and that torch is a CUDA build, or pass --interpret"
        )
    return "cuda"


def _name(device: str) -> str:
    import torch
    import triton

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, interpreted"
    return f"{name}, torch {torch.__version__}, triton {triton.__version__}"


def _routing(device: str) -> list[dict[str, Any]]:
    from capsdist.bench import gpu

    return _shown("routing, forward and backward", gpu.routing_rows(device))


def _training_step(device: str) -> list[dict[str, Any]]:
    from capsdist.bench import gpu

    return _shown("training step", gpu.step_rows(device))


def _training(device: str) -> dict[str, Any]:
    from capsdist.bench import gpu

    row = gpu.train_briefly(device)
    _shown("training", [row])
    if device == "cuda" and row["error_percent"] > 5:
        raise SystemExit(
            f"training did not learn: error_percent {row['error_percent']:.1f} after {row['num_steps']} steps"
        )
    return row


def _shown(title: str, rows: Any) -> list[dict[str, Any]]:
    """Print rows as they come, one a line."""
    print(f"-- {title}", flush=True)
    kept = []
    for row in rows:
        values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        print("  ".join(values), flush=True)
        kept.append(row)
    return kept


# What is run after the tests, in this order.
STEPS: dict[str, Callable[[str], Any]] = {
    "routing": _routing,
    "training_step": _training_step,
    "training": _training,
}


if __name__ == "__main__":
    main()
