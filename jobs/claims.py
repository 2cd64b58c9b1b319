"""Test claims about capsule networks: against a CNN of as many parameters, with intervals over seeds.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), and lectures: capsdist/claims.
Command: python data_prep/pack_mnist.py && python jobs/claims.py --size mini --images 10000
Expected time and verdicts: not measured. --smoke needs no data.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import tyro

from capsdist.claims.plan import planned
from capsdist.claims.report import files_of, markdown
from capsdist.claims.settings import Settings
from capsdist.claims.smoke import smoke_settings
from capsdist.claims.study import run_study
from capsdist.cli.grids import check_cells, record_grid, train_cells, write_result
from capsdist.cli.job import with_environment
from capsdist.config import Config
from capsdist.console import DONE, STOPPED, log, run_program

PLACES = with_environment(Config())
SETTINGS = Settings(root=PLACES.data.root, storage=PLACES.train.storage)


def main(
    settings: Settings = SETTINGS, check: bool = False, record: bool = False, smoke: bool = False
) -> int:
    """Test claims about capsule networks; the same command goes on where it was stopped.

    Args:
        check: Print every problem, what there is to train and what data is missing; train nothing.
        record: Write a record below jobs/records.
        smoke: Tiny networks, two steps, 40 test images; nothing is kept.
    """
    with tempfile.TemporaryDirectory(prefix="smoke-", ignore_cleanup_errors=True) as scratch:
        settings, note = smoke_settings(settings, Path(scratch)) if smoke else (settings, "")
        plan = planned(settings)
        print(plan.summary, flush=True)
        if check:
            return check_cells(plan.cells_of_whole)
        study = run_study(plan, lambda *grid: train_cells(*grid, pages=not smoke), log, note=note)
        if study is None:
            return STOPPED
        files, text = files_of(study), markdown(study)
        paths = write_result(plan.grid, files)
    print(f"\n{text}", *([] if smoke else ["study:", *paths]))
    if record and not smoke:
        records, what = Path(__file__).resolve().parent / "records", f"claims-{settings.size}"
        record_grid(records, what, plan.settings.without_places, plan.cells, study.figures, text, files)
    print(study.verdicts)
    return DONE


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))))
