"""Training on Ray: launch, workers, checks before a start. Ray is imported late."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capsdist.launch.launcher import launch
    from capsdist.runs.rundir import RunFolder, RunSummary

_HOME = {
    "RunFolder": "capsdist.runs.rundir",
    "RunSummary": "capsdist.runs.rundir",
    "launch": "capsdist.launch.launcher",
}

__all__ = ["RunFolder", "RunSummary", "launch"]


def __getattr__(name: str) -> object:
    """Load a public name on first use: `--check` needs the checks only."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
