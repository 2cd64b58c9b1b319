"""A driver whose worker is frozen once; it prints its result and the notes: DATA STORAGE NAME MARKS."""

from __future__ import annotations

import sys
from pathlib import Path

from job_helpers import Rows, tiny_config

from capsdist.config import Launch
from capsdist.launch import launch
from faults.script import Fault, Script

if __name__ == "__main__":
    *place, marks = sys.argv[1:]
    rows = Rows()
    limits = Launch(cpus_per_worker=1, step_timeout_s=12, max_failures=9)
    config = tiny_config(*place, launch=limits, num_workers=1)
    script = Script([Fault("frozen_worker", 0, 7)], Path(marks), Path(marks))
    summary = launch(config, display=rows, fault=script)
    print(summary.status, summary.steps, *(row["message"] for row in rows.of("note")), sep="\n")
