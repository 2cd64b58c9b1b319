"""Make a record of a finished run for the tables: configuration, machine, figures, further tests, log.

Command: python jobs/record_run.py runs/quickstart --what quickstart --command "make quickstart"
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from capsdist.bench.record import write_run_record
from capsdist.cli.further import further_figures
from capsdist.console import run_program
from capsdist.runs.rundir import RunFolder

RECORDS = Path(__file__).resolve().parent / "records"


def main(
    run: Annotated[Path, tyro.conf.Positional],
    what: str,
    command: str,
    whole_s: float | None = None,
    note: str = "",
    known_shifts: Path | None = None,
) -> int:
    """Make a record of a finished run, on the machine that it ran on.

    Args:
        run: Folder of the run.
        what: Subject of the record, as the tables name it.
        command: Command line that repeats it.
        whole_s: Seconds that the whole command took, installation included, if it was timed.
        note: What a reader should know of the circumstances.
        known_shifts: Numbers of the figure known_shifts of the run, whose R2 stands beside its figures.
    """
    log = functools.partial(print, file=sys.stderr)
    circumstances = {"whole_s": whole_s, "note": note, **further_figures(RunFolder(run, log))}
    if known_shifts:
        numbers = json.loads(known_shifts.read_text())
        circumstances |= {name: numbers[name] for name in ("r2", "least_r2", "least_capsule_r2")}
    record = write_run_record(RECORDS, run, what, command=command, log=log, **circumstances)
    print(record)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
