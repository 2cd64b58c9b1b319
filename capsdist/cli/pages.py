"""The picture and the pages that runs leave in their folders when they end; a failure there is only told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from capsdist.console import Log
from capsdist.runs.files import open_files
from capsdist.runs.rundir import OVERVIEW, REPORT

if TYPE_CHECKING:
    from capsdist.analysis.overview import Shown

__all__ = ["leave_pages", "leave_table"]

_PNG_BEGIN, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_HTML_BEGIN, _HTML_END = b"<!doctype html>", b"</html>"


def leave_pages(
    place: str,
    show: Callable[[dict[str, Any]], None],
    *,
    anew: bool,
    images: bool = True,
    picture: bool = True,
) -> None:
    """Make overview.png and report.html of the run at `place`, `anew` or where there is none.

    images: show some in the page, with what the newest checkpoint makes of them; picture: make overview.png.
    """
    shown: Shown | None = None
    files = open_files(place)

    def draw() -> None:
        from capsdist.analysis.overview import overview, read_shown
        from capsdist.runs.record import trained_rows

        nonlocal shown
        shown = read_shown(files, trained_rows(files, print))
        overview(place, shown=shown)

    def write() -> None:
        from capsdist.analysis.report.facts import read_facts
        from capsdist.analysis.report.run_page import write_report

        write_report(read_facts(place, print), shown=shown, images=images)

    def leave(name: str, begin: bytes, end: bytes, make: Callable[[], None]) -> None:
        word = name.partition(".")[0]
        try:
            content = None if anew else files.read(name)
            if content is None or not (content.startswith(begin) and content.rstrip().endswith(end)):
                show({"kind": "status", "message": f"drawing {name}"})
                make()  # one that was cut is made again
            note = f"{word}: {files.path(name)}"
        except Exception as error:
            note = f"warning: no {name} ({type(error).__name__}: {error})"
        show({"kind": "note", "message": note})

    if picture:
        leave(OVERVIEW, _PNG_BEGIN, _PNG_END, draw)
    leave(REPORT, _HTML_BEGIN, _HTML_END, write)


def leave_table(places: Sequence[str], to: str, log: Log = print) -> None:
    """Make report.html of each of the finished runs at `places`, and table.html of all in the folder `to`."""
    from capsdist.analysis.report.facts import read_facts
    from capsdist.analysis.report.run_page import write_report
    from capsdist.analysis.report.table_page import write_table

    try:
        runs = [read_facts(place, log) for place in places]
        for run in runs:
            if run.files.read(REPORT) is None:  # those of an earlier start have theirs
                write_report(run, images=False, log=log)
        log(f"pages: {write_table(runs, to)}")
    except Exception as error:
        log(f"warning: no table.html ({type(error).__name__}: {error})")
