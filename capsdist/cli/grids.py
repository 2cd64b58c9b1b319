"""What jobs that train a grid of runs share: options, smoke runs, checks, outcome, record."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from capsdist.cli.pages import leave_table
from capsdist.cli.smoke import Size, SmokeOptions, smoke_values
from capsdist.config import Config, Section, with_values
from capsdist.config.rules import section_problems
from capsdist.console import DONE, INVALID
from capsdist.data.sets.spec import TRAIN_TEST
from capsdist.errors import ConfigError
from capsdist.launch import preflight
from capsdist.runs.rundir import run_place
from capsdist.storage.documents import dump_json, seal
from capsdist.tune.cells import Cell, grid_problems

__all__ = [
    "GridOptions", "as_json", "check_cells", "check_options", "prepared_for", "record_grid", "train_cells",
    "write_result",
]  # fmt: skip


class GridOptions(SmokeOptions):
    """Options of every such job."""

    size: Size = "full"
    """Networks: full; quarter: 128 stem channels and 16 primary types; mini: 64 and 8. Baselines: half and a
    quarter of their widths."""
    record: bool = False
    """Write a record below jobs/records when all is done."""


def check_options(options: Section) -> None:
    """Check a job's own options, which have no prefix on the command line.

    Raises:
        ConfigError: naming those out of range.
    """
    if found := list(section_problems("", options)):
        raise ConfigError([replace(p, field=p.field[1:], fix=p.fix.replace("--.", "--")) for p in found])


@contextlib.contextmanager
def prepared_for(options: SmokeOptions, config: Config, sets: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield what all cells and the grid's own configuration `config` get of `--smoke`, nothing without it.

    sets: data sets, of which a smoke run packs a few images in a folder of its own.
    """
    if not options.smoke:
        yield {}
        return
    with smoke_values(config.data.root, dict.fromkeys(sets, TRAIN_TEST)) as values:
        yield values


def check_cells(cells: Mapping[str, Config]) -> int:
    """Print every problem of the cells, what data is missing, and their names; return the exit status."""
    found = grid_problems(cells)
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        return INVALID
    missing = (preflight.missing_data(preflight.absolute(cell)) for cell in cells.values())
    for warning in dict.fromkeys(text for text in missing if text):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"configuration is valid: {len(cells)} cells: {' '.join(cells)}")
    return DONE


def train_cells(config: Config, cells: Mapping[str, Config], *, pages: bool = True) -> dict[str, Cell] | None:
    """Train the cells as `run_grid` and show it; None, and a line, if a signal ended it.

    pages: leave report.html of each cell that finished, and table.html of all in the folder of the grid.
    """
    from capsdist.tune.grid import run_grid
    from capsdist.tune.progress import SearchDisplay

    with SearchDisplay() as display:
        try:
            outcomes = run_grid(config, cells, display)
        except KeyboardInterrupt:  # while Ray starts
            outcomes = None
    if outcomes is None:
        print("stopped: the same command goes on", file=sys.stderr)
    elif pages and (places := [cell.place for cell in outcomes.values() if cell.error_percent is not None]):
        leave_table(places, run_place(preflight.absolute(config)))
    return outcomes


def write_result(config: Config, files: Mapping[str, bytes]) -> list[str]:
    """Write `files`, content by name, into the folder of the grid; return their paths."""
    from capsdist.tune.folder import SearchFolder

    folder = SearchFolder(preflight.absolute(config))
    folder.create()  # where checkpoints are taken there is none yet
    for name, content in files.items():
        folder.files.write(name, content)
    return [folder.files.path(name) for name in files]


def record_grid(
    records: Path,
    what: str,
    options: Mapping[str, Any],
    cells: Mapping[str, Config],
    figures: Mapping[str, Any],
    log: str,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write a record of a grid, without the places where it lay.

    options: JSON-able; files: as `write_result`, of which the pictures become part of the record.
    """
    from capsdist.bench.record import write_record
    from capsdist.storage.durable import write_durably

    config: dict[str, Any] = {"options": options, "cells": {}}
    for name, cell in cells.items():
        places = {"data.root": Path(cell.data.root).name, "train.storage": Path(cell.train.storage).name}
        config["cells"][name] = with_values(cell, places).model_dump(mode="json")
    folder = write_record(records, what, config=config, figures=figures, log=log)
    for name, content in files.items():
        if name.endswith(".png"):
            write_durably(folder / name, content)
    print("recorded in", folder)


def as_json(values: Mapping[str, Any]) -> bytes:
    """Return a sealed document."""
    return dump_json(seal(values))
