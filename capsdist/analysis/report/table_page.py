"""table.html of a set of runs: a row a run, what differs between them, and mean and deviation over seeds."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from capsdist.analysis.drawing import curve, of_kind
from capsdist.analysis.report.facts import RunFacts, Spent
from capsdist.analysis.report.pages import page
from capsdist.analysis.report.plots import Curve, Plot, drawn
from capsdist.config.sections import Change, Section
from capsdist.errors import RunError
from capsdist.runs.files import open_files
from capsdist.runs.rundir import REPORT
from capsdist.storage import Folder

__all__ = ["TABLE", "write_table"]

TABLE = "table.html"
_NUM_CURVES = 8  # colours of style.css
_SEED = "train.seed"


def write_table(runs: Sequence[RunFacts], to: str | None = None) -> str:
    """Write table.html of `runs`, at least one, and return its path or URL.

    to: path or s3:// URL of its folder; None: that which the runs lie in. Rows have links to the reports of
    runs below this folder.

    Raises:
        RunError: without `to` the runs lie in several folders; or it cannot be written.
    """
    files = _common_folder(runs) if to is None else open_files(to)
    if to is not None:
        files.check_writable()  # makes it
    files.write(TABLE, table_page(runs, files))
    return files.path(TABLE)


def table_page(runs: Sequence[RunFacts], files: Folder) -> bytes:
    """Return the page, whose links are relative to the folder `files`."""
    settings = [dict(_settings(run.config)) for run in runs]
    differing = _differing(settings)
    rows = [_row(run, each, differing, files) for run, each in zip(runs, settings, strict=True)]
    order = sorted(range(len(rows)), key=lambda n: (rows[n].error is None, rows[n].error or 0.0))
    plot = _plot([runs[n] for n in order])
    return page(
        "table.html",
        title=f"{len(runs)} runs",
        place=str(files),
        differing=differing,
        rows=[rows[n] for n in order],
        groups=_groups([(runs[n], settings[n], rows[n]) for n in order], differing),
        plots=[drawn(plot)] if plot else [],
    )


@dataclass(frozen=True)
class _Row:
    """A line of the table; None: not measured. link: to the report of the run, None of one elsewhere."""

    name: str
    link: str | None
    status: str
    preset: str
    settings: list[str]
    steps: int
    error: float | None
    measured_on: str
    images_per_s: float | None
    wall_s: float
    flop: int | None
    parameters: int | None
    device: str


@dataclass(frozen=True)
class _Group:
    """Runs that differ in their seeds only. sd: of a sample, None of one run."""

    preset: str
    settings: list[str]
    num: int
    mean: float
    sd: float | None
    low: float
    high: float


def _common_folder(runs: Sequence[RunFacts]) -> Folder:
    parents = {str(run.files.parent): run.files.parent for run in runs}
    first = next(iter(parents.values()))
    if len(parents) > 1 or first is None:
        raise RunError(
            f"the {len(runs)} runs lie in no common folder; say where {TABLE} goes with --to FOLDER"
        )
    return first


def _settings(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields that decide a result, by dotted name."""
    for name, field in type(section).model_fields.items():
        if any(isinstance(mark, Change) and not mark.moves_end for mark in field.metadata):
            continue
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the fields that are not alike in all runs; a field that only some have differs."""
    names = {name: None for each in settings for name in each}
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def _row(run: RunFacts, settings: dict[str, Any], differing: Sequence[str], files: Folder) -> _Row:
    spent, measured, start = Spent.of(run), run.measured, run.start
    here, below = str(files).rstrip("/") + "/", str(run.files)
    return _Row(
        name=run.name,
        link=f"{quote(below.removeprefix(here))}/{REPORT}" if below.startswith(here) else None,
        status=run.status,
        preset=run.config.preset,
        settings=[_text(settings.get(name, "")) for name in differing],
        steps=run.step,
        error=measured.get("error_percent"),
        measured_on=run.measured_on if measured else "",
        images_per_s=spent.num_images / spent.train_s if spent.train_s else None,
        wall_s=spent.wall_s,
        flop=spent.flop.total if spent.flop else None,
        parameters=start.get("num_parameters"),
        device=f"{start.get('world_size', '')} x {start.get('device', '')}".strip(" x"),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _groups(runs: Sequence[tuple[RunFacts, dict[str, Any], _Row]], differing: Sequence[str]) -> list[_Group]:
    """Return errors of tests over seeds, the lowest mean first; empty if no two runs differ by seeds only."""
    found: dict[str, list[_Row]] = defaultdict(list)
    for run, settings, row in runs:
        if row.measured_on == "test" and run.status == "done":
            found[repr({**settings, _SEED: None})].append(row)
    if all(len(rows) == 1 for rows in found.values()):
        return []
    seed = differing.index(_SEED) if _SEED in differing else None
    groups = []
    for rows in found.values():
        errors = [row.error for row in rows if row.error is not None]
        own = [text for n, text in enumerate(rows[0].settings) if n != seed]
        sd = statistics.stdev(errors) if len(errors) > 1 else None
        mean = statistics.fmean(errors)
        groups.append(_Group(rows[0].preset, own, len(errors), mean, sd, min(errors), max(errors)))
    return sorted(groups, key=lambda group: group.mean)


def _plot(runs: Sequence[RunFacts]) -> Plot | None:
    """Return the errors of the first runs over steps: of validations, of runs without any while training."""
    curves: list[Curve] = []
    for run in runs:
        kind = "validation" if of_kind(run.rows, "validation") else "train"
        steps, errors = curve(of_kind(run.rows, kind), "error_percent")
        if len(errors) and len(curves) < _NUM_CURVES:
            style = "joined" if kind == "validation" else "line"
            name = f"{run.name}, {'validation' if kind == 'validation' else 'training images'}"
            curves.append(Curve(name, steps, errors, len(curves) + 1, style, rough=style == "line"))
    return Plot("Error while training", curves, log=True, unit=" %") if curves else None
