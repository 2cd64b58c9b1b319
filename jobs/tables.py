"""Write the tables of results from the records, or check that they are those that the records give.

Command: python jobs/tables.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from capsdist.bench.tables import documents_of_results
from capsdist.console import run_program

ROOT = Path(__file__).resolve().parent.parent


def main(check: bool = False) -> int:
    """Write the tables of README.md and jobs/records/README.md.

    Args:
        check: Change nothing; exit 1 if a table is not the one that the records give.
    """
    stale = False
    for document, text in documents_of_results(ROOT).items():
        same = document.read_text() == text
        stale = stale or not same
        if check:
            state = "agrees with the records" if same else "is stale: run python jobs/tables.py"
            print(f"{document.relative_to(ROOT)} {state}")
        elif not same:
            document.write_text(text)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(run_program(lambda: tyro.cli(main)))
