"""Measure the forms of routing side by side: time, share of what the device can do, memory.

With --goals, the named figures only, in about a minute; without, a table over shapes and dtypes first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import tyro

from capsdist.bench import routing
from capsdist.bench.ceilings import check_place
from capsdist.bench.memory import within_memory
from capsdist.bench.record import write_record

RECORDS = Path(__file__).parent / "records"


def main(
    goals: bool = False,
    record: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",),
    num_images: int = 128,
    budget_s: float = 40.0,
) -> None:
    """Measure routing on random operands; the last line is one JSON object of named figures.

    Args:
        goals: Only the named figures, in about a minute on 2 cores; the table takes many.
        record: Write a record below jobs/records.
        device: Device to measure on, cpu or cuda.
        dtypes: Of operands. The named figures take the last.
        num_images: Images of a batch in MNIST's shape; the named figures are meant for 128.
        budget_s: Seconds for the times of the named figures.
    """
    check_place(device, num_images)
    mnist = replace(routing.MNIST, num_images=num_images, device=device, dtype=dtypes[-1])
    rows = []
    with within_memory():
        for row in routing.table([] if goals else routing.cases(num_images, device, dtypes)):
            rows.append(row)
            print(routing.describe(row), flush=True)
    figures = {name: float(f"{value:.4g}") for name, value in routing.goals(mnist, budget_s).items()}
    last_line = json.dumps(figures)
    if record:
        config = {"goals": asdict(mnist), "seed": 0, "budget_s": budget_s}
        found = {**figures, "rows": rows}
        log = "\n".join([*map(routing.describe, rows), last_line, ""])
        print("recorded in", write_record(RECORDS, "routing", config=config, figures=found, log=log))
    print(last_line)


if __name__ == "__main__":
    tyro.cli(main)
