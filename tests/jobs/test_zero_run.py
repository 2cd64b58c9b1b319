"""A ZeRO run on real workers, where a build that was killed has left PyTorch's lock file."""

from __future__ import annotations

import pytest
from job_helpers import Rows, tiny_config

from capsdist.launch import launch
from capsdist.train.engine import operators
from capsdist.train.engine.build import zero_requirements


@pytest.mark.zero
@pytest.mark.skipif(zero_requirements() is not None, reason=str(zero_requirements()))
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_takes_no_notice_of_a_lock_that_a_killed_build_has_left(tiny_root, tmp_path):
    lock = operators._build_folder() / "lock"
    lock.touch()
    rows = Rows()
    config = tiny_config(tiny_root, tmp_path, "zero", engine="zero", zero_stage=1, max_steps=4)
    summary = launch(config, display=rows)
    assert (summary.status, summary.steps) == ("done", 4)
    [start] = rows.of("start")
    assert (start["engine"], start["world_size"]) == ("zero-1", 2)
    assert rows.of("failure") == []
    assert not lock.exists()
