"""Train the members of an ensemble, or take checkpoints, and print the error by the number of members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

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
from capsdist.config.sections import Count
from capsdist.console import DONE, FAILED, STOPPED, log
from capsdist.tune.cells import length_of

__all__ = ["EnsembleOptions", "ensemble"]


class EnsembleOptions(GridOptions):
    """Options of the ensemble."""

    members: Count = 7
    """Networks to train: train.seed and the numbers after it; paper: 7."""
    checkpoints: tuple[str, ...] = ()
    """Train nothing and take these: paths or s3:// URLs of runs or checkpoints."""


def ensemble(description: str | None, presets: Sequence[str], argv: Sequence[str], records: Path) -> int:
    """Parse a command line, then check, or train and evaluate; return the exit status of a job."""
    more = {"ensemble": EnsembleOptions()}
    config, command = parse_options(
        description, presets, presets[0], argv, more=more, flat=True, name_prefix="ensemble-"
    )
    options: EnsembleOptions = command.ensemble
    check_options(options)
    if options.smoke:
        options = options.model_copy(update={"size": "mini", "members": 2})
    if command.print_config:
        print(to_yaml(of_size(config, options.size)), end="")
        return DONE
    with prepared_for(options, config, ["cifar10"]) as values:
        config = with_values(of_size(config, options.size), values)
        first = config.train.seed
        seeds = () if options.checkpoints else range(first, first + options.members)
        cells = {f"member-seed{seed}": with_values(config, {"train.seed": seed}) for seed in seeds}
        if command.check:
            return check_cells(cells or {"evaluation": config})
        if options.checkpoints:
            return _evaluate(config, options, options.checkpoints, {}, records)
        outcomes = train_cells(config, cells, pages=not options.smoke)
        if outcomes is None:
            return STOPPED
        for cell in outcomes.values():
            if cell.error_percent is None:
                print(f"{cell.name}: {cell.status} {cell.reason}".rstrip())
        places = [cell.place for cell in outcomes.values() if cell.error_percent is not None]
        if len(places) < len(cells):
            print(f"{len(places)} of {len(cells)} members have finished: the same command tries the others")
            return FAILED
        return _evaluate(config, options, places, cells, records)


def _evaluate(
    config: Config,
    options: EnsembleOptions,
    places: Sequence[str],
    cells: dict[str, Config],
    records: Path,
) -> int:
    """Print the errors of the first 1, 2, ... members; keep them and the evaluation of all."""
    from capsdist.analysis.evaluation import EVALUATION, measure
    from capsdist.analysis.members import errors_by_size

    device = config.train.device
    found = errors_by_size(places, device=device, log=log)
    stored = measure(places, device=device, log=log)
    lines = []
    for number, place in enumerate(places):
        low, high = found.intervals[number]
        together = f"error_percent {found.together[number]:.2f} (95 % interval {low:.2f} to {high:.2f})"
        lines.append(f"members {number + 1}: {together}; {place} alone {found.alone[number]:.2f}")
    figures = {"num_members": len(places), **asdict(found)}
    evaluation = as_json(stored.model_dump(mode="json"))
    paths = write_result(config, {"ensemble.json": as_json(figures), EVALUATION: evaluation})
    print("\n".join(lines))
    if options.record and not options.smoke:
        figures |= {"error_percent": found.together[-1], "error_interval_percent": found.intervals[-1]}
        length = length_of(cells.values()) if cells else "checkpoints"
        what = f"ensemble-{config.preset}-{options.size}-{length}-{len(places)}"
        values = options.model_dump(mode="json")
        record_grid(records, what, values, cells, figures, "\n".join(lines) + "\n")
    if not options.smoke:
        print(f"evaluation: {' '.join(paths)}")
    print(f"error_percent {found.together[-1]:.2f}  ({len(places)} members, {found.num_images:,} images)")
    return DONE
