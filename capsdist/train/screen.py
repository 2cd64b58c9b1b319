"""Show rows: on a terminal with a live part, else as plain lines (a pipe, a log, a Ray job).

What is shown of a run is the subject of `display.py`, of a search that of `capsdist.tune.progress`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

__all__ = ["Screen"]


class Screen:
    """Calls `_show_KIND` of the class derived from it with each row of that kind, and passes over others.

    plain: None chooses by the output: plain unless it is a terminal and no Ray job.
    """

    def __init__(self, file: TextIO | None = None, *, plain: bool | None = None) -> None:
        self._file = file or sys.stdout
        if plain is None:
            plain = "RAY_JOB_ID" in os.environ or os.environ.get("TERM") == "dumb" or not self._file.isatty()
        self._plain = plain
        self._console: Console | None = None
        self._live: Live | None = None

    def __call__(self, row: dict[str, Any]) -> None:
        """Show one row, unless the reader of the output has gone: no run ends for that."""
        show: Callable[[dict[str, Any]], None] | None = getattr(self, f"_show_{row['kind']}", None)
        if show:
            with contextlib.suppress(OSError):
                show(row)

    def close(self) -> None:
        """Give the terminal back; what was printed stays."""
        if self._live:
            with contextlib.suppress(OSError):
                self._live.stop()
            self._live = None
            atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self, live: Live) -> None:
        """Have `live` at the bottom of the terminal, in place of what was there."""
        self.close()
        self._live = live
        live.start()
        atexit.register(self.close)  # whatever ends the program, the cursor comes back

    def _rich(self) -> Console:
        from rich.console import Console  # late: plain output does without it

        if self._console is None:
            self._console = Console(file=self._file, highlight=False, emoji=False)
        return self._console
