"""Show that every table, figure and claim of the paper can be made here: all smoke forms, one by one.

Each trains mini networks for a few steps, on a few images of the packed sets, of original files below
CAPSDIST_DATA, or made-up ones in the original format: no results, and nothing is kept.
Command: python jobs/reproduce.py --smoke
Without --smoke it prints the commands that make the results themselves.
Expected time of --smoke: 29 minutes on 2 CPU cores (AMD EPYC), beside other work.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from capsdist.cli.reproduce import commands, run_smoke
from capsdist.console import DONE, run_program
from capsdist.errors import ConfigError, Problem

JOBS = Path(__file__).parent


def main(smoke: bool = False, only: tuple[str, ...] = ()) -> int:
    """Run the smoke forms of all jobs of the paper, and print which pass.

    Args:
        smoke: Run them; otherwise the commands of the whole trainings are printed.
        only: Names of jobs, table1 for example; default: all.
    """
    jobs = commands(JOBS)
    names = [job.stem for job in jobs]
    if unknown := [name for name in only if name not in names]:
        raise ConfigError([Problem("only", unknown[0], "is no job", f"choose of {', '.join(names)}")])
    jobs = [job for job in jobs if not only or job.stem in only]
    if smoke:
        return run_smoke(jobs)
    print("\n".join(f"python {job}" for job in jobs))
    return DONE


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main, description=__doc__)))
