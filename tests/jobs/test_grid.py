"""Two cells of a grid on real Ray Train workers, and the grid that goes on with the missing one."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_helpers import NUM_TEST, STEPS_PER_EPOCH, Rows, tiny_config

from capsdist.config import with_values
from capsdist.runs.rundir import RunFolder
from capsdist.statistics import error_interval
from capsdist.train.metrics import read_metrics
from capsdist.tune.grid import run_grid
from capsdist.tune.journal import FINISHED

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_grid_goes_on_with_its_missing_cell_and_tests_each(tiny_root: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_root, tmp_path, "grid", num_workers=1, epochs=1)
    cells = {f"r{number}": with_values(config, {"routing.iterations": number}) for number in (1, 2)}
    assert run_grid(config, {"r1": cells["r1"]}, Rows()) is not None
    rows = Rows()
    found = run_grid(config, cells, rows)
    assert found is not None
    assert [row["trial"].name for row in rows.of("trial_start")] == ["r2"]
    for name, cell in found.items():
        run = RunFolder(Path(cell.place))
        result, stored = run.read_result(), run.read_config()
        assert result is not None
        assert stored is not None
        assert (cell.status, cell.step, stored.routing) == (FINISHED, STEPS_PER_EPOCH, cells[name].routing)
        assert cell.error_percent == result.error_percent
        assert cell.error_interval_percent == error_interval(result.error_percent, NUM_TEST)
        assert len([row for row in read_metrics(run.path / "metrics.jsonl") if row["kind"] == "start"]) == 1
