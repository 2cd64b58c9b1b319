"""Test claims about capsule networks: against a CNN of as many parameters, with intervals over seeds.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), and lectures on it: less data,
transformed digits, viewpoints, scrambled parts, crowding, equivariance, noise, attacks (capsdist/claims).
The runs are the cells of a grid, as those of jobs/table1.py: stopped, the same command goes on.
Command: python data_prep/pack_mnist.py && python jobs/claims.py --size mini --images 10000
Expected time and verdicts: not measured. --smoke needs no data.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

from capsdist.claims.plan import planned
from capsdist.claims.report import files_of, markdown
from capsdist.claims.settings import Settings
from capsdist.claims.smoke import smoke_settings
from capsdist.claims.study import run_study
from capsdist.cli.grids import check_cells, record_grid, train_cells, write_result
from capsdist.cli.job import with_environment
from capsdist.config import Config, with_values
from capsdist.console import DONE, STOPPED, log, run_program

PLACES = with_environment(Config())
SETTINGS = Settings(root=PLACES.data.root, storage=PLACES.train.storage)
RECORDS = Path(__file__).resolve().parent / "records"


def main(
    settings: Annotated[Settings, tyro.conf.arg(name="")] = SETTINGS,
    check: bool = False,
    record: bool = False,
    smoke: bool = False,
) -> int:
    """Test claims about capsule networks; the same command goes on where it was stopped.

    Args:
        settings: What they are tested with.
        check: Print every problem, what there is to train and what data is missing; train nothing.
        record: Write a record below jobs/records.
        smoke: Tiny networks, two steps, 40 test images; nothing is kept.
    """
    note = ""
    with tempfile.TemporaryDirectory(prefix="smoke-", ignore_cleanup_errors=True) as scratch:
        if smoke:
            settings, note = smoke_settings(settings, Path(scratch))
        plan = planned(settings)
        print(
            "\n".join([plan.summary, *(f"{name}: not run: {why}" for name, why in plan.not_run.items())]),
            flush=True,
        )
        if check:  # parts of the images are written before the training
            return check_cells(
                {k: with_values(v, {"data.train_split": "train"}) for k, v in plan.cells.items()}
            )
        study = run_study(plan, train_cells, log, note=note)
        if study is None:
            return STOPPED
        files, text = files_of(study), markdown(study)
        paths = write_result(plan.grid, files)
        print(f"\n{text}")
        if record and not smoke:
            options = vars(plan.settings) | {"root": "", "storage": ""}  # where it lay says nothing to others
            drawn = {name: content for name, content in files.items() if name.endswith(".png")}
            record_grid(RECORDS, "claims", options, plan.cells, study.figures, text, drawn)
    if not smoke:
        print(f"study: {' '.join(paths)}")
    print(study.verdicts)
    return DONE


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
