"""Everything that needs an NVIDIA GPU, in one command: tests, benchmark with its aims, a short training.

Needs torch, triton, numpy and pytest, nothing else. Exit status 1 if there is no GPU or something fails. With
--interpret the same runs on a CPU under Triton's interpreter, at sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ["tests/unit/test_gpu_loop.py", "tests/reference/test_routing_properties.py"]
TESTS = [*map(str, sorted(ROOT.glob("tests/unit/test_fused_*.py"))), *OTHERS]


def main() -> int:
    """Run every step in turn; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--interpret", action="store_true", help="on a CPU, under Triton's interpreter")
    parser.add_argument("--record", action="store_true", help="write a record below jobs/records")
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    if (flags := parser.parse_args()).interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    device = "cpu" if flags.interpret else _gpu()
    marks = "not slow" if flags.interpret else ""
    tests = [sys.executable, "-m", "pytest", "-q", "-m", marks, *TESTS]
    if not flags.no_tests and subprocess.run(tests, cwd=ROOT).returncode:
        raise SystemExit("tests on the GPU failed")
    from capsdist.bench.gpu import report
    from capsdist.bench.record import last_line, write_record

    line = last_line(found := report(device))
    if flags.record:
        print(write_record(ROOT / "jobs/records", "gpu", config={}, figures=found, log=line + "\n"))
    print(line)
    return 0


def _gpu() -> str:
    """Return the name of the GPU's device type; refuses in one line where there is none."""
    try:
        import torch
    except ImportError:
        remedy = "name a Python with torch, triton, numpy and pytest: make gpu GPU_PYTHON=.venv/bin/python"
        raise SystemExit(f"{sys.executable} has no torch: nothing was run; {remedy}") from None
    if not torch.cuda.is_available():
        remedy = "see that nvidia-smi lists one and that torch is a CUDA build, or pass --interpret"
        raise SystemExit(f"no NVIDIA GPU found by torch {torch.__version__}: nothing was run; {remedy}")
    return "cuda"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the project need not be installed
    from capsdist.console import run_program

    sys.exit(run_program(main))
