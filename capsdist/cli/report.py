"""Write pages about runs: report.html of each, table.html of several, interactive.html on demand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import tyro

from capsdist.console import DONE, announced, log, print_error
from capsdist.errors import CapsdistError
from capsdist.runs.files import open_files
from capsdist.runs.rundir import CONFIG
from capsdist.storage import join

__all__ = ["report"]


def report(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("runs",),
    interactive: bool = False,
    best: bool = False,
    images: bool = True,
    data_root: str | None = None,
    to: str | None = None,
) -> int:
    """Write report.html into the folder of each run, and of several runs table.html beside them.

    The exit status is 1 if a run could not be read; the others are reported.

    Args:
        runs: Paths or s3:// URLs of runs, or of folders of runs.
        interactive: Write interactive.html too: the network in JavaScript, to draw for and to turn poses of.
        best: Its weights are those of the checkpoint with the lowest validated error, not of the newest.
        images: Show test images with what the newest checkpoint reads and reconstructs.
        data_root: Where the packed data sets are now; default: where the run had them.
        to: Path or s3:// URL of the folder for table.html; default: that which the runs lie in.
    """
    status, found = DONE, []
    with announced(log, "importing torch"):
        from capsdist.analysis.report.facts import read_facts
        from capsdist.analysis.report.run_page import write_report
        from capsdist.analysis.report.table_page import write_table
    for place in [each for given in runs for each in _runs_at(given)]:
        try:
            facts = read_facts(place, log)
            page = write_report(facts, data_root=data_root, images=images, log=log)
            print(f"report: {page}")
            found.append(facts)
            if interactive:
                from capsdist.analysis.report.interactive_page import write_interactive

                page = write_interactive(facts, best=best, data_root=data_root, log=log)
                print(f"interactive: {page}")
        except CapsdistError as error:
            status = print_error(error)
    if len(found) > 1:
        print(f"table: {write_table(found, to)}")
    return status


def _runs_at(place: str) -> Iterator[str]:
    """Yield `place`, or the runs in it if it is a folder of some and no run itself."""
    files = open_files(place)
    found = files.folders("", CONFIG) if files.read(CONFIG) is None else {}
    runs = [name for name, is_run in found.items() if is_run]
    yield from (join(place, name) for name in runs) if runs else (place,)
