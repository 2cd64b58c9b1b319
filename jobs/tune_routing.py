"""Search over routing depth and capsule capacity with Ray Tune; every trial is a distributed training run.

Command: python jobs/tune_routing.py --space.iterations 1 2 3 5 --space.class-dim 8 16 32 --train.workers 1
Expected time: that of the trials' training, and 10 to 20 s each, divided by the trials at a time.
Expected error_percent: not above that of the preset, if its values are in the space.
"""

from __future__ import annotations

import sys
from pathlib import Path

from capsdist.cli import check_config, parse_options
from capsdist.config import PRESETS, CapsNetConfig, Config, problems
from capsdist.console import DONE, STOPPED, run_program
from capsdist.tune.space import Search, Space, search_problems

RECORDS = Path(__file__).resolve().parent / "records"
DEFAULT = "digits_quickstart"
OFFERED = [name for name, preset in PRESETS.items() if isinstance(preset().model, CapsNetConfig)]


def main() -> int:
    """Parse, then check or search; return the exit status of a job."""
    own = {"search": Search(), "space": Space()}
    config, options = parse_options(__doc__, OFFERED, DEFAULT, sys.argv[1:], more=own, name_prefix="tune-")
    act = check if options.check else search
    return act(config, options.space, options.search)


def check(config: Config, space: Space, search: Search) -> int:
    """Print every problem, and which points cannot be trained; try none."""
    found, lines = search_problems(config, space, search), []
    if not found and not problems(config):
        from capsdist.tune.run import preview  # late: it imports torch

        found, lines = preview(config, space, search)
    status = check_config(config, found)
    if status == DONE:
        print("\n".join(lines))
    return status


def search(config: Config, space: Space, search: Search) -> int:
    """Search, and show the outcome."""
    from capsdist.tune.run import run_and_show

    if run_and_show(config, space, search, RECORDS):
        return DONE
    print("stopped: the same command goes on", file=sys.stderr)
    return STOPPED


if __name__ == "__main__":
    sys.exit(run_program(main))
