"""Measure the input pipeline beside webdataset, LitData, memory copies, plain downloads and bare decoders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import tyro

from capsdist.bench.pipeline_aims import PIPELINE_ROWS
from capsdist.bench.pipeline_subjects import SUBJECTS, Settings, Subject, measure
from capsdist.bench.record import last_line, write_record
from capsdist.bench.tables import goals_table
from capsdist.console import run_program

RECORDS = Path(__file__).parent / "records"
DATA = Path(os.environ["CAPSDIST_DATA"]) if os.environ.get("CAPSDIST_DATA") else None


def main(
    global_batch_size: int = 128, num: int = 60_000, num_files: int = 100_000, repeats: int = 25,
    subjects: tuple[Subject, ...] = tuple(SUBJECTS), data: Path | None = DATA, s3: str = "",
    litdata_python: str = "", goals: bool = False, record: bool = False,
) -> None:  # fmt: skip
    """Measure the input pipeline; the last line is one JSON object.

    Args:
        global_batch_size: Images of a step.
        num: Images of MNIST's size in a split.
        num_files: Image files in the folder that is packed.
        repeats: Epochs read, of which the median counts.
        subjects: What is measured.
        data: Folder that may have MNIST/raw, tiny-imagenet, imagenet-sample; default: CAPSDIST_DATA.
        s3: s3:// prefix to write to and read from; default: a SeaweedFS server here, if it is installed.
        litdata_python: Path of a Python that has litdata.
        goals: Only 5 epochs, a few minutes in all, and a table of goals.
        record: Write a record below jobs/records.
    """
    torch.set_num_threads(1)
    repeats, lines = 5 if goals else repeats, list[str]()
    settings = Settings(num, global_batch_size, repeats, num_files, data, s3, litdata_python)

    def log(text: str) -> None:
        lines.append(text)
        print(text, flush=True)

    figures = {name: float(f"{value:.4g}") for name, value in measure(settings, subjects, log).items()}
    if goals:
        log(goals_table(PIPELINE_ROWS, figures))
    line = last_line(figures)
    if record:
        config, text = settings.shown() | {"subjects": subjects}, "\n".join([*lines, line, ""])
        print("recorded in", write_record(RECORDS, "pipeline", config=config, figures=figures, log=text))
    print(line)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main) or 0))
