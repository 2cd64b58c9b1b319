"""A driver whose worker is frozen once, and notes of which are printed: DATA STORAGE NAME MARKER."""

from __future__ import annotations

import sys
from pathlib import Path

from job_helpers import FreezeOnce, Rows, tiny_config

from capsdist.config import Cluster
from capsdist.train.cluster import launch

if __name__ == "__main__":
    *place, marker = sys.argv[1:]
    rows = Rows()
    cluster = Cluster(cpus_per_worker=1, step_timeout_s=12, max_failures=1)
    config = tiny_config(*place, cluster=cluster, workers=1)
    summary = launch(config, display=rows, fault=FreezeOnce(Path(marker), rank=0, step=7))
    print(summary.status, summary.steps, *(row["message"] for row in rows.of("note")), sep="\n")
