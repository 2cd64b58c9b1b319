"""Train Table 1 of the paper, all rows with several seeds, and print it beside the paper's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from capsdist.cli.job import file_values, parse_options, with_environment
from capsdist.cli.smoke import of_size
from capsdist.config import Config, get_preset, with_values
from capsdist.config.as_yaml import to_yaml
from capsdist.config.presets.mnist_ablation import ABLATIONS
from capsdist.config.sections import Count
from capsdist.config.stored import SECTIONS, renamed
from capsdist.console import DONE, FAILED, STOPPED
from capsdist.errors import ConfigError, Problem
from capsdist.tune.cells import length_of
from capsdist.tune.table1 import SET_BY_ROWS, TableCell, TableRow, markdown, presets_of, rows_of, table_cells

__all__ = ["Table1", "table1"]

_PLACE = "mnist_paper"  # its options are those of --help, its folder that of the table
_CAPSULES_ONLY = ("model", "routing", "loss")
_PREFIX = "table1-"


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
    file = _options_in(file_values(argv))
    config, command = _parsed(description, _PLACE, argv, file)
    options: Table1 = command.table
    check_options(options)
    if found := list(_own_problems(config, argv, file)):
        raise ConfigError(found)
    columns = tuple(dict.fromkeys(options.columns))
    if options.smoke:
        options = options.model_copy(update={"size": "mini", "seeds": 1})
    name = config.train.name.replace(_PREFIX * 2, _PREFIX)  # a printed configuration has the prefix already
    name = name if name != f"{_PREFIX}mnist" else f"{_PREFIX}{options.size}"  # none was given
    config = with_values(config, {"train.name": name})
    if command.print_config:
        print(to_yaml(of_size(config, options.size)), end="")
        return DONE
    with prepared_for(options, config, columns) as values:
        bases = {}
        for preset in presets_of(columns, options.ablations):
            base, _ = _parsed(description, preset, argv, file)
            bases[preset] = with_values(of_size(base, options.size), values)
        cells = table_cells(bases, columns, options.seeds)
        configs = {cell.name: cell.config for cell in cells}
        if command.check:
            return check_cells(configs)
        for name in sorted({*bases} & {*ABLATIONS} - {cell.row for cell in cells}):
            print(f"{name}: left out, with these options it is no other training than r3-reconstruction")
        return _train(with_values(config, values), options, cells, records)


def _parsed(
    description: str | None, preset: str, argv: Sequence[str], file: Mapping[str, Any]
) -> tuple[Config, Any]:
    """Return what command line and file mean for a preset: options of the run are laid over each of them."""
    left_out = () if preset == _PLACE else ("preset",)
    if preset.endswith("_baseline"):
        left_out += _CAPSULES_ONLY
    return parse_options(
        description,
        [preset],
        preset,
        _words_without(left_out, argv),
        more={"table": Table1()},
        flat=True,
        name_prefix=_PREFIX,
        values={name: value for name, value in file.items() if name not in left_out},
    )


def _own_problems(config: Config, argv: Sequence[str], file: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the options that command line or file give although each row has its own; config: with them."""
    words = {word.partition("=")[0] for word in argv}
    for option in SET_BY_ROWS:
        section, _, name = option.partition(".")
        fields = file.get(section, {})
        if name in fields or words & {f"--{option}", f"--{section}.no-{name}"}:
            value = getattr(getattr(config, section), name)
            rule = "would be the same in rows that differ by it"
            yield Problem(option, value, rule, "leave it out; the rows of the table set it")


def _words_without(sections: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return `argv` without the options `--section` and `--section.field` of `sections`, and their values."""
    words, keep = [], True
    for word in argv:
        if word.startswith("--"):
            keep = word[2:].partition("=")[0].partition(".")[0] not in sections
        words += [word] if keep else []
    return words


def _options_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration file that are laid over all rows.

    One that names its preset is a whole configuration, as `--print-config` writes it: what is as in the
    preset is no option, or the rows of other presets would be that one again.

    Raises:
        ConfigError: it is of another preset.
    """
    preset = values.get("preset", _PLACE)
    if preset != _PLACE:
        fix = f"take `preset` out of the file, or give one of {_PLACE}"
        raise ConfigError([Problem("preset", preset, "is not the preset of the table", fix)])
    if "preset" not in values:
        return dict(values)
    usual = with_environment(get_preset(_PLACE)).model_dump(mode="json")
    found = {name: value for name, value in values.items() if name != "preset"}
    for name, value in found.items():
        section = SECTIONS.get(name, name)
        own = usual.get(section)
        if own and isinstance(value, Mapping):
            fields = renamed(section, value).items()
            found[name] = {field: each for field, each in fields if (field, each) not in own.items()}
    return found


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
