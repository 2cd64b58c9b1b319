"""Real jobs on runs whose files were damaged: they end as the undamaged one, or stop with one line."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from job_helpers import Rows, assert_same_state, tiny_config

from capsdist.errors import CapsdistError
from capsdist.launch import launch
from properties.damage import CONTENT, Accident, fingerprint, make_outside

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
NUM_CASES = 10


def test_damaged_runs_end_as_the_undamaged_one_or_stop_with_one_line(tiny_root: Path, tmp_path: Path) -> None:
    options = {"keep_checkpoints": 3, "epochs": 2}
    half = tiny_config(tiny_root, tmp_path / "half", "run", max_steps=8, **options)
    launch(half, display=Rows())
    shutil.copytree(tmp_path / "half", tmp_path / "whole")
    launch(tiny_config(tiny_root, tmp_path / "whole", "run", **options), display=Rows())
    outside = make_outside(tmp_path, tmp_path / "half/run")
    before, num_done = fingerprint(outside), 0
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        case = tmp_path / f"case-{seed}"
        shutil.copytree(tmp_path / "half", case)
        kinds = [rng.choice([*CONTENT, "delete", "a folder", "a link to a like file"]) for _ in range(2)]
        for kind in kinds:
            Accident(kind, rng.random(), rng.random(), seed).apply(case / "run", outside)
        try:
            summary = launch(tiny_config(tiny_root, case, "run", **options), display=Rows())
        except CapsdistError as error:
            assert len(str(error).splitlines()) == 1, kinds  # noqa: PT017
            continue
        num_done += 1
        assert (summary.status, summary.steps) == ("done", 16), kinds
        assert_same_state(case / "run", tmp_path / "whole/run")
    assert before.items() <= fingerprint(outside).items()
    assert num_done >= NUM_CASES // 2
