"""Where the events of a run go: one class per destination, found by a name or an import path."""

from capsdist.runs.loggers.base import LoggedRun, Logger

__all__ = ["LoggedRun", "Logger"]
