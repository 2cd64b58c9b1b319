"""Train stacks of capsule layers, without and with each remedy, and print where they fail."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from capsdist.cli.grids import (
    GridOptions,
    as_json,
    check_cells,
    check_options,
    record_grid,
    train_cells,
    write_result,
)
from capsdist.cli.job import parse_options
from capsdist.cli.smoke import of_size, smoke_values
from capsdist.config import Config, with_values
from capsdist.config.as_yaml import to_yaml
from capsdist.config.sections import Count
from capsdist.console import DONE, FAILED, STOPPED, log
from capsdist.tune.depth import (
    FAILED_ERROR_PERCENT,
    FAILED_LIVE_PERCENT,
    REMEDIES,
    DepthCell,
    Remedy,
    depth_cells,
    failing_depth,
    markdown,
    rows_of,
)

__all__ = ["DepthOptions", "depth_curve"]


class DepthOptions(GridOptions):
    """Options of the curve."""

    depths: tuple[Count, ...] = (1, 2, 4, 6)
    """Numbers of capsule layers, class capsules included."""
    remedies: tuple[Remedy, ...] = tuple(REMEDIES)
    """What is tried beside `none`, each by itself: bias, norm, priors, dropout, residual."""
    examined: Count = 256
    """Images of the test split whose capsules are looked at after training."""


def depth_curve(description: str | None, preset: str, argv: Sequence[str], records: Path) -> int:
    """Parse a command line, then check or train the grid; return the exit status of a job."""
    more = {"depth": DepthOptions()}
    config, command = parse_options(description, [preset], preset, argv, more=more, flat=True)
    options: DepthOptions = command.depth
    check_options(options)
    if options.smoke:
        update = {"size": "mini", "depths": (1, 3), "remedies": ("none", "residual"), "examined": 16}
        options = options.model_copy(update=update)
    config = of_size(config, options.size)
    if command.print_config:
        print(to_yaml(config), end="")
        return DONE
    sets = {config.data.name: [*config.data.splits.values()]}
    with smoke_values(config.data.root, sets) if options.smoke else nullcontext({}) as values:
        config = with_values(config, values)
        cells = depth_cells(config, options.depths, options.remedies)
        if command.check:
            return check_cells({cell.name: cell.config for cell in cells})
        return _train(config, options, cells, records)


def _train(config: Config, options: DepthOptions, cells: Sequence[DepthCell], records: Path) -> int:
    configs = {cell.name: cell.config for cell in cells}
    outcomes = train_cells(config, configs, pages=not options.smoke)
    if outcomes is None:
        return STOPPED
    from capsdist.analysis.depth import draw_depths
    from capsdist.analysis.doctor import diagnose, examine
    from capsdist.analysis.subject import open_subject

    live, ailing = {}, {}
    for name, cell in outcomes.items():
        if cell.error_percent is not None:
            subject = open_subject(cell.place, limit=options.examined, log=log)
            layers = examine(subject)
            live[name] = min(each.live_percent for each in layers if each.live_percent is not None)
            ailing[name] = [f"{each.layer}: {each.illness}" for each in diagnose(layers, subject.config)]
    rows = rows_of(cells, outcomes, live, ailing)
    title = f"Depth of capsule networks, {config.data.name}, {config.train.epochs} epochs"
    text, table = markdown(rows, title), [row.to_dict() for row in rows]
    limits = {"error_percent": FAILED_ERROR_PERCENT, "live_percent": FAILED_LIVE_PERCENT}
    picture = io.BytesIO()
    draw_depths(table, limits, title).savefig(picture, format="png")
    fails = {remedy: failing_depth(rows, remedy) for remedy in options.remedies}
    errors = {name: cell.error_percent for name, cell in outcomes.items()}
    figures = {**errors, "rows": table, "fails_at": fails}
    files = {"depth.json": as_json(figures), "depth.md": text.encode(), "depth.png": picture.getvalue()}
    paths = write_result(config, files)
    print(f"\n{text}")
    if options.record and not options.smoke:
        values = options.model_dump(mode="json")
        record_grid(records, "depth-curve", values, configs, figures, text, files)
    finished = sum(row.error_percent is not None for row in rows)
    if not options.smoke:
        print(f"curve: {' '.join(paths)}")
    print(f"finished {finished} of {len(cells)} cells, grid {config.train.name}")
    return DONE if finished == len(cells) else FAILED
