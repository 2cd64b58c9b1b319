"""Write the results table of the README from the records, or check that it is the one they give.

Command: python jobs/tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from capsdist.bench.tables import results_table, with_table
from capsdist.console import run_program

ROOT = Path(__file__).resolve().parent.parent


def main(check: bool = False) -> int:
    """Write the results table of the README.

    Args:
        check: Change nothing; exit 1 if the table is not the one that the records give.
    """
    readme = ROOT / "README.md"
    text = readme.read_text()
    fresh = with_table(text, results_table(ROOT / "jobs" / "records"))
    if check:
        print(
            "README.md agrees with the records"
            if fresh == text
            else "README.md is stale: run python jobs/tables.py"
        )
        return int(fresh != text)
    readme.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
