"""Measure the backends of routing side by side: time, share of what the device can do, memory."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import tyro

from capsdist.bench import routing
from capsdist.bench.ceilings import check_place
from capsdist.bench.memory import within_memory
from capsdist.bench.record import last_line, write_record
from capsdist.console import run_program


def main(
    goals: bool = False,
    record: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",),
    shapes: tuple[routing.Shape, ...] = tuple(routing.SHAPES),
    num_images: int = 128,
    budget_s: float = 40.0,
) -> int:
    """Measure routing on random operands; the last line is one JSON object of named figures.

    Args:
        goals: Only the named figures, 2 minutes on 2 cores; the table takes half an hour more.
        record: Write a record below jobs/records.
        device: Device to measure on, cpu or cuda.
        dtypes: Of operands. The named figures take the last.
        shapes: Of which networks, in the table; the named figures come first, whatever these are.
        num_images: Of a batch in MNIST's shape, and the most for other networks; the named figures are meant
            for 128.
        budget_s: Seconds for the times of the named figures; each pass of the table has a third of them.
    """
    check_place(device, num_images, budget_s, *dtypes)
    mnist = replace(routing.MNIST, num_images=num_images, device=device, dtype=dtypes[-1])
    cases, rows = [] if goals else routing.cases(num_images, device, dtypes, shapes), []
    with within_memory():
        # first: large blocks that were freed before would speed baselines up
        figures = routing.try_goals(mnist, budget_s)
        for row in routing.table(cases, budget_s / 3):
            rows.append(row)
            print(routing.describe(row), flush=True)
    if record:
        config = {"goals": asdict(mnist), "seed": 0, "budget_s": budget_s}
        log = "\n".join([*map(routing.describe, rows), last_line(figures), ""])
        records, found = Path(__file__).parent / "records", figures | {"rows": rows}
        print("recorded in", write_record(records, "routing", config=config, figures=found, log=log))
    print(last_line(figures))
    return int("error" in figures)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
