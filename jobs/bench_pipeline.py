"""Measure the images per second that one rank reads from local shards, beside a copy and stock webdataset."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import tyro

from capsdist.bench.pipeline import pipeline_figures
from capsdist.bench.record import last_line, write_record
from capsdist.console import run_program

RECORDS = Path(__file__).parent / "records"


def main(
    global_batch_size: int = 128,
    num: int = 60_000,
    repeats: int = 25,
    goals: bool = False,
    record: bool = False,
) -> None:
    """Measure the input pipeline on random images of MNIST's size; the last line is one JSON object.

    Args:
        global_batch_size: Images of a step.
        num: Images of the split.
        repeats: Epochs read, of which the median counts.
        goals: Only 5 epochs, a few seconds in all.
        record: Write a record below jobs/records.
    """
    torch.set_num_threads(1)
    config = {"num": num, "global_batch_size": global_batch_size, "repeats": 5 if goals else repeats}
    figures = {name: float(f"{value:.4g}") for name, value in pipeline_figures(**config).items()}
    line = last_line(figures)
    if record:
        print(
            "recorded in",
            write_record(RECORDS, "pipeline", config=config, figures=figures, log=line + "\n"),
        )
    print(line)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
