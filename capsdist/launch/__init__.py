"""Training on Ray: launch, workers, checks before a start. Ray is imported late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsdist.lazy import load_on_use

if TYPE_CHECKING:
    from capsdist.launch.launcher import launch
    from capsdist.runs.rundir import RunFolder, RunSummary

__all__ = ["RunFolder", "RunSummary", "launch"]

# Names load on first use: `--check` needs the checks only.
__getattr__ = load_on_use(
    __name__,
    {
        "RunFolder": "capsdist.runs.rundir",
        "RunSummary": "capsdist.runs.rundir",
        "launch": ".launcher",
    },
)
