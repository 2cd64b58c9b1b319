"""Compare every routing algorithm, and controls, in networks of as many parameters on the embedded digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from capsdist.cli.grids import (
    as_json,
    check_cells,
    check_options,
    prepared_for,
    record_grid,
    train_cells,
    write_result,
)
from capsdist.cli.job import parse_options
from capsdist.cli.smoke import SmokeOptions
from capsdist.config import Config, with_values
from capsdist.config.as_yaml import to_yaml
from capsdist.config.sections import Count
from capsdist.console import DONE, FAILED, STOPPED
from capsdist.runs.record import METRICS_NAME
from capsdist.runs.rundir import RunFolder
from capsdist.tune.cells import Cell
from capsdist.tune.compare_routings import RoutingCell, RoutingRow, markdown, routing_cells, rows_of
from capsdist.tune.journal import FINISHED

__all__ = ["CompareRoutings", "compare_routings"]

_PRESET = "digits_quickstart"
_NAME = "compare-routings"


class CompareRoutings(SmokeOptions):
    """Options of the comparison."""

    seeds: Count = 3
    """Trainings of each algorithm: train.seed and the numbers after it."""
    mnist: str | None = None
    """Folder of MNIST's original files: also test on its test images that are not among the digits."""
    record: bool = False
    """Write a record below jobs/records when all is done."""


def compare_routings(description: str | None, argv: Sequence[str], records: Path) -> int:
    """Parse a command line, then check or train the grid; return the exit status of a job."""
    more = {"comparison": CompareRoutings()}
    config, command = parse_options(description, [_PRESET], _PRESET, argv, more=more, flat=True)
    options: CompareRoutings = command.comparison
    check_options(options)
    if config.train.name == "quickstart":  # none was given
        config = with_values(config, {"train.name": _NAME})
    if command.print_config:
        print(to_yaml(config), end="")
        return DONE
    with prepared_for(options, config, [config.data.name]) as values:
        config = with_values(config, values)
        cells = routing_cells(config, 1 if options.smoke else options.seeds)
        if command.check:
            return check_cells({cell.name: cell.config for cell in cells})
        return _train(config, options, cells, records)


def _train(config: Config, options: CompareRoutings, cells: Sequence[RoutingCell], records: Path) -> int:
    configs = {cell.name: cell.config for cell in cells}
    outcomes = train_cells(config, configs, pages=not options.smoke)
    if outcomes is None:
        return STOPPED
    rows = _measured(options, cells, outcomes)
    seeds = len(cells) // len(rows)
    text = markdown(rows, f"Routing algorithms at equal parameters, {seeds} seeds")
    table = {"seeds": seeds, "rows": [row.to_dict() for row in rows]}
    paths = write_result(config, {"table.json": as_json(table), "table.md": text.encode()})
    print(f"\n{text}")
    if options.record and not options.smoke:
        means = {row.row: row.mean_percent for row in rows if row.mean_percent is not None}
        values = options.model_dump(mode="json", exclude={"mnist"})
        record_grid(records, _NAME, values, configs, {**means, **table}, text)
    finished = sum(len(row.error_percent) for row in rows)
    if not options.smoke:
        print(f"table: {' '.join(paths)}")
    print(f"finished {finished} of {len(cells)} cells, grid {config.train.name}")
    return DONE if finished == len(cells) else FAILED


def _measured(
    options: CompareRoutings, cells: Sequence[RoutingCell], outcomes: Mapping[str, Cell]
) -> list[RoutingRow]:
    """Return the rows, with what is measured beside the error."""
    from capsdist.tune.report import median_speed
    from capsdist.tune.routing_measures import errors_on, kept_bytes_per_image, other_digits

    places = {name: cell.place for name, cell in outcomes.items() if cell.status == FINISHED}
    speeds = {
        name: median_speed(RunFolder(place).files, METRICS_NAME, print) for name, place in places.items()
    }
    saved = {cell.row: kept_bytes_per_image(cell.config) for cell in cells if cell.seed == cells[0].seed}
    mnist: dict[str, Any] = {}
    if options.mnist is not None:
        mnist = errors_on(*other_digits(Path(options.mnist)), places, print)
    return rows_of(cells, outcomes, speeds, mnist, saved)
