"""Training on Ray: launch, workers, checks before a start. Ray is imported late."""

from __future__ import annotations

from capsdist.launch.launcher import launch
from capsdist.runs.rundir import RunFolder, RunSummary

__all__ = ["RunFolder", "RunSummary", "launch"]
