"""Measure whole training steps: images per second, the share of routing, and what more iterations cost.

With --goals, the MNIST network only; without, every preset.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import tyro

from capsdist.bench.ceilings import check_place
from capsdist.bench.record import last_line, write_record
from capsdist.bench.training import PRESETS, Row, cpu_figures, describe_step, step_figures, step_rows
from capsdist.console import run_program

RECORDS = Path(__file__).parent / "records"


def main(
    goals: bool = False,
    record: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    num_images: int = 128,
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32",
    budget_s: float = 30.0,
) -> None:
    """Measure training steps on random images; the last line is one JSON object of named figures.

    Args:
        goals: Only the MNIST network, in about a minute on 2 cores.
        record: Write a record below jobs/records.
        device: Device to measure on, cpu or cuda.
        num_images: Images of a batch.
        precision: fp32, bf16, fp16, or auto for what the machine is fastest with.
        budget_s: Seconds for each network, and as many for the convolution on a CPU in fp32.
    """
    check_place(device, num_images, budget_s, precision)
    rows: list[list[Row]] = []
    sizes: dict[str, Any] = {"num_images": num_images, "budget_s": budget_s}
    config = {"device": device, "precision": precision, **sizes}
    for preset in PRESETS[:1] if goals else PRESETS:
        rows.append(step_rows(preset, **config))
        print(*map(describe_step, rows[-1]), sep="\n", flush=True)
    named = step_figures(rows[0])
    if (device, rows[0][0]["precision"]) == ("cpu", "fp32"):
        named |= cpu_figures(**sizes)
    figures: dict[str, Any] = {name: float(f"{value:.4g}") for name, value in named.items()}
    line = last_line(figures)
    if record:
        figures["rows"] = [row for found in rows for row in found]
        log = "\n".join([*map(describe_step, figures["rows"]), line, ""])
        print("recorded in", write_record(RECORDS, "training", config=config, figures=figures, log=log))
    print(line)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
