"""The errors of capsdist: a small tree, picklable (they cross process boundaries in Ray), carrying data.

Every message is one line that names the offending value and the remedy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CapsdistError", "CheckpointError", "ConfigError", "DataError", "DocumentError", "MissingDataError",
    "Problem", "RunError", "ShapeError",
]  # fmt: skip


class CapsdistError(Exception):
    """Root of all errors that capsdist raises on purpose."""


class ShapeError(CapsdistError, ValueError):
    """A tensor has a shape, dtype or device that the operation cannot take."""


class DataError(CapsdistError):
    """A data set is missing, damaged, or holds values that the run cannot use."""


class MissingDataError(DataError):
    """There is nothing at the place that was named."""


class CheckpointError(CapsdistError):
    """A checkpoint is missing, damaged, or does not belong to this run."""


class DocumentError(CapsdistError):
    """A file of the project is damaged or foreign; the message says why and is completed by the reader."""


class RunError(CapsdistError):
    """A run could not start or did not finish: resources, storage, a failed worker."""


class MemoryExhaustedError(RunError):
    """A worker asked for more memory than there is: it would at every attempt."""


@dataclass(frozen=True)
class Problem:
    """One fault of a configuration: where, what is there, which rule it breaks, what to set instead."""

    field: str
    value: object
    rule: str
    fix: str

    def __str__(self) -> str:
        """Return the problem as one line."""
        return f"{self.field}={self.value!r}: {self.rule}; {self.fix}"


class ConfigError(CapsdistError, ValueError):
    """A configuration breaks one or more rules; `problems` holds all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        """Rebuild from the problems, not from the joined message."""
        return (type(self), (self.problems,))
