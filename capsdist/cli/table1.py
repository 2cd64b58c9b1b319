"""Train Table 1 of the paper, all rows with several seeds, and print it beside the paper's figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from capsdist.cli.grids import (
    GridOptions,
    as_json,
    check_cells,
    check_options,
    prepared_for,
    record_grid,
    train_cells,
    write_result,
)
from capsdist.cli.job import parse_options
from capsdist.cli.smoke import of_size
from capsdist.config import Config, with_values
from capsdist.config.as_yaml import to_yaml
from capsdist.config.presets.mnist_ablation import ABLATIONS
from capsdist.config.sections import Count
from capsdist.console import DONE, FAILED, STOPPED
from capsdist.tune.cells import length_of
from capsdist.tune.table1 import TableCell, TableRow, markdown, presets_of, rows_of, table_cells

__all__ = ["Table1", "table1"]

_PLACE = "mnist_paper"  # its options are those of --help, its folder that of the table
_CAPSULES_ONLY = ("--model.", "--routing.", "--loss.")


class Table1(GridOptions):
    """Options of the table."""

    columns: tuple[Literal["mnist", "multimnist"], ...] = ("mnist", "multimnist")
    """Data sets."""
    seeds: Count = 3
    """Trainings of each cell: train.seed and the numbers after it."""
    ablations: bool = False
    """In the column mnist further rows: mnist_paper with one difference of the authors' code each."""


def table1(description: str | None, argv: Sequence[str], records: Path) -> int:
    """Parse a command line, then check or train the table; return the exit status of a job."""
    config, command = _parsed(description, _PLACE, argv)
    options: Table1 = command.table
    check_options(options)
    columns = tuple(dict.fromkeys(options.columns))
    if options.smoke:
        options = options.model_copy(update={"size": "mini", "seeds": 1})
    if config.train.name == "table1-mnist":  # none was given
        config = with_values(config, {"train.name": f"table1-{options.size}"})
    if command.print_config:
        print(to_yaml(of_size(config, options.size)), end="")
        return DONE
    with prepared_for(options, config, columns) as values:
        bases = {}
        for preset in presets_of(columns, options.ablations):
            words = _for_baseline(argv) if preset.endswith("_baseline") else argv
            bases[preset] = with_values(of_size(_parsed(description, preset, words)[0], options.size), values)
        cells = table_cells(bases, columns, options.seeds)
        configs = {cell.name: cell.config for cell in cells}
        if command.check:
            return check_cells(configs)
        for name in sorted({*bases} & {*ABLATIONS} - {cell.row for cell in cells}):
            print(f"{name}: left out, with these options it is no other training than r3-reconstruction")
        return _train(with_values(config, values), options, cells, records)


def _parsed(description: str | None, preset: str, argv: Sequence[str]) -> tuple[Config, Any]:
    """Return what the command line means for a preset: options of the run are laid over each of them."""
    more = {"table": Table1()}
    return parse_options(description, [preset], preset, argv, more=more, flat=True, name_prefix="table1-")


def _for_baseline(argv: Sequence[str]) -> list[str]:
    """Return `argv` without the options of the capsule networks and their values."""
    words, keep = [], True
    for word in argv:
        if word.startswith("--"):
            keep = not word.startswith(_CAPSULES_ONLY)
        words += [word] if keep else []
    return words


def _train(config: Config, options: Table1, cells: Sequence[Any], records: Path) -> int:
    configs = {cell.name: cell.config for cell in cells}
    outcomes = train_cells(config, configs, pages=not options.smoke)
    if outcomes is None:
        return STOPPED
    rows = rows_of(cells, outcomes)
    text = markdown(rows, f"Table 1, networks of size {options.size}, {options.seeds} seeds")
    table = {"size": options.size, "seeds": options.seeds, "rows": [row.to_dict() for row in rows]}
    paths = write_result(config, {"table.json": as_json(table), "table.md": text.encode()})
    print(f"\n{text}")
    if options.record and not options.smoke:
        for column in dict.fromkeys(cell.column for cell in cells):  # a column may be trained alone
            _record(records, column, options, cells, [row for row in rows if row.column == column], text)
    finished = sum(len(row.error_percent) for row in rows)
    if not options.smoke:
        print(f"table: {' '.join(paths)}")
    print(f"finished {finished} of {len(cells)} cells, grid {config.train.name}")
    return DONE if finished == len(cells) else FAILED


def _record(
    records: Path,
    column: str,
    options: Table1,
    cells: Sequence[TableCell],
    rows: Sequence[TableRow],
    text: str,
) -> None:
    configs = {cell.name: cell.config for cell in cells if cell.column == column}
    means = {row.row: row.mean_percent for row in rows if len(row.error_percent) == options.seeds}
    figures = {**means, "seeds": options.seeds, "rows": [row.to_dict() for row in rows]}
    what = f"table1-{column}-{options.size}-{length_of(configs.values())}"
    record_grid(records, what, options.model_dump(mode="json"), configs, figures, text)
