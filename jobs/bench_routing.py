"""Measure the forms of routing side by side: time, share of the rate of a matrix product, memory.

With --goals, the named figures only, in under a minute; without, a table over shapes and iterations first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import tyro

from capsdist.bench import routing
from capsdist.bench.record import write_record

RECORDS = Path(__file__).parent / "records"


def main(
    goals: bool = False,
    record: bool = False,
    device: str = "cpu",
    num_images: int = 128,
    budget_s: float = 40.0,
) -> None:
    """Measure routing on random operands; the last line is one JSON object of named figures.

    Args:
        goals: Only the named figures, in under a minute on 2 cores; the table takes some minutes.
        record: Write a record below jobs/records.
        device: Device to measure on, cpu or cuda.
        num_images: Images of a batch in MNIST's shape; the named figures are meant for 128.
        budget_s: Seconds for the times of the named figures.
    """
    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    mnist = replace(routing.MNIST, num_images=num_images, device=device)
    cifar10 = replace(routing.CIFAR10, device=device)
    cases = [] if goals else [replace(case, iterations=r) for case in (mnist, cifar10) for r in (1, 3, 5)]
    rows = []
    for row in routing.table(cases):
        rows.append(row)
        show(routing.describe(row))
    figures = {name: float(f"{value:.4g}") for name, value in routing.goals(mnist, budget_s).items()}
    last_line = json.dumps(figures)
    if record:
        config = {"goals": asdict(mnist), "dtype": "float32", "seed": 0, "budget_s": budget_s}
        found = {**figures, "rows": rows}
        log = "\n".join([*lines, last_line, ""])
        print("recorded in", write_record(RECORDS, "routing", config=config, figures=found, log=log))
    print(last_line)


if __name__ == "__main__":
    tyro.cli(main)
