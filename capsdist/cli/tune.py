"""Search over routing depth and capsule capacity with Ray Tune; every trial is a distributed training run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from capsdist.cli.check import check_config
from capsdist.cli.job import parse_options
from capsdist.config import PRESETS, Config, problems
from capsdist.config.as_yaml import to_yaml
from capsdist.console import DONE, STOPPED
from capsdist.launch.as_data import fitted, fitted_if_packed
from capsdist.tune.space import Search, Space, has_routing, search_problems

__all__ = ["tune"]

DEFAULT = "digits_quickstart"
OFFERED = [name for name, preset in PRESETS.items() if has_routing(preset())]


def tune(description: str | None, argv: Sequence[str], records: Path | None = None) -> int:
    """Parse a command line, then check or search; return the exit status of a job.

    records: folder of records, for `--search.record`; None: below the working directory.
    """
    own = {"search": Search(), "space": Space()}
    config, options = parse_options(description, OFFERED, DEFAULT, argv, more=own, name_prefix="tune-")
    if options.print_config:
        print(to_yaml(fitted_if_packed(config)), end="")
        return DONE
    config = fitted(config)
    if options.check:
        return _check(config, options.space, options.search)
    return _search(config, options.space, options.search, records or Path("records"))


def _check(config: Config, space: Space, search: Search) -> int:
    """Print every problem, and which points cannot be trained; try none."""
    found, lines = search_problems(config, space, search), []
    if not found and not problems(config):
        from capsdist.tune.run import preview  # late: it imports torch

        found, lines = preview(config, space, search)
    status = check_config(config, found)
    if status == DONE:
        print("\n".join(lines))
    return status


def _search(config: Config, space: Space, search: Search, records: Path) -> int:
    """Search, and show the outcome."""
    from capsdist.tune.run import run_and_show

    if run_and_show(config, space, search, records):
        return DONE
    print("stopped: the same command goes on", file=sys.stderr)
    return STOPPED
