"""The benchmark of the pipeline runs and prints its figures as the last line; no figure is judged here."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "bench_pipeline.py"


@pytest.mark.parametrize("goals", [True, False])
def test_figures_are_the_last_line(capsys, goals):
    runpy.run_path(str(JOB))["main"](global_batch_size=24, num=500, goals=goals)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    costs = {"first_epoch_images_per_s", "unheld_images_per_s", "read_s", "checksum_s"}
    rates = {"images_per_s", "webdataset_reader_images_per_s"}
    assert {"share_of_gather_rate", "check_s"} | rates | costs < set(figures)
    assert all(value > 0 for value in figures.values())
