"""A table of the runs in a folder: state, steps, error, speed. Needs neither torch nor Ray."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from capsdist.console import DONE
from capsdist.errors import CapsdistError, RunError
from capsdist.runs.rundir import CONFIG, RunFolder
from capsdist.storage.place import is_url

__all__ = ["runs"]

_COLUMNS = ("run", "state", "steps", "error_percent", "images/s")


@dataclass(frozen=True)
class _Row:
    """One run; error and speed are None where the run has not told them."""

    name: str
    state: str
    steps: int
    error_percent: float | None
    images_per_s: float | None

    def cells(self) -> tuple[str, ...]:
        error = "-" if self.error_percent is None else f"{self.error_percent:.2f}"
        speed = "-" if self.images_per_s is None else f"{self.images_per_s:,.0f}"
        return self.name, self.state, f"{self.steps:,}", error, speed


def runs(folder: Annotated[str, tyro.conf.Positional] = "runs") -> int:
    """List the runs in a folder.

    The state is that of the last start: done, stopped, failed, or unfinished (it trains, or was killed).

    Args:
        folder: The folder that holds one folder per run, as `--train.storage`.
    """
    if is_url(folder):
        raise RunError(f"{folder}: is a URL; give a folder of this machine")
    if not Path(folder).is_dir():
        raise RunError(f"{folder}: there is no such folder; give the one of --train.storage")
    rows = [_row(path) for path in sorted(Path(folder).iterdir()) if (path / CONFIG).is_file()]
    if not rows:
        print(f"{folder}: holds no run")
        return DONE
    cells = [_COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[number]) for line in cells) for number in range(len(_COLUMNS))]
    for line in cells:
        texts = (
            cell.ljust(width) if number < 2 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(texts).rstrip())
    return DONE


def _row(path: Path) -> _Row:
    run = RunFolder(path, lambda text: print(text, file=sys.stderr))
    try:
        result, steps = run.read_result(), run.steps_saved()
    except CapsdistError as error:
        print(f"warning: {error}", file=sys.stderr)
        return _Row(path.name, "unreadable", 0, None, None)
    if result is None:
        return _Row(path.name, "unfinished", steps, None, None)
    return _Row(path.name, result.status, result.steps, result.error_percent, result.images_per_s)
