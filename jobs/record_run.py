"""Make a record of a finished run: its configuration, machine, figures and log, for the tables.

Command: python jobs/record_run.py runs/quickstart --what quickstart --command "make quickstart"
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from capsdist.bench.record import write_record
from capsdist.cli import print_error
from capsdist.errors import CapsdistError
from capsdist.train.cluster.rundir import RunFolder
from capsdist.train.metrics import METRICS_NAME, read_metrics

RECORDS = Path(__file__).resolve().parent / "records"


def warn(text: str) -> None:
    """Print a warning."""
    print(text, file=sys.stderr)


def main(
    run: Annotated[Path, tyro.conf.Positional],
    what: str,
    command: str,
    whole_s: float | None = None,
    note: str = "",
) -> int:
    """Make a record of a finished run, on the machine that it ran on.

    Args:
        run: Folder of the run.
        what: Subject of the record, as the tables name it.
        command: Command line that repeats it.
        whole_s: Seconds that the whole command took, installation included, if it was timed.
        note: What a reader should know of the circumstances.
    """
    if not run.is_dir():
        print(f"error: {run}: is no folder of this machine; copy the run here first", file=sys.stderr)
        return 1
    folder = RunFolder(run, warn)
    try:
        result, stored, rows = (
            folder.read_result(),
            folder.read_config(),
            read_metrics(run / METRICS_NAME, warn),
        )
    except CapsdistError as error:
        return print_error(error)
    if result is None or result.status != "done" or stored is None:
        print(f"error: {run}: the run is not done (result.json); start it again", file=sys.stderr)
        return 1
    config = stored.model_dump(mode="json")
    for section, field in (("data", "root"), ("train", "storage")):  # where it lay says nothing to others
        config[section][field] = Path(config[section][field]).name
    starts = [row for row in rows if row["kind"] == "start"]
    summary = {name: value for name, value in asdict(result).items() if name not in {"run_dir", "reason"}}
    figures = summary | {"whole_s": whole_s, "starts": starts, "note": note}
    log = "\n".join(json.dumps({k: v for k, v in row.items() if k != "confusion"}) for row in rows)
    print(write_record(RECORDS, what, config=config, figures=figures, log=log + "\n", command=command))
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
