"""`python -m capsdist check-cluster FILE ...`: every problem of cluster files, before they cost money.

Exit status: 0 all files are clean, 2 one has a problem (or the command line is wrong).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from capsdist.clusters import check_file, placeholders, unchecked

__all__ = ["main"]

app = SubcommandApp()


@app.command(name="check-cluster")
def check_cluster(
    file: Positional[Path], more: Positional[tuple[Path, ...]] = (), template: bool = False
) -> int:
    """Check files for `ray up` (AWS, Google Cloud, own machines) and for KubeRay (RayCluster, RayJob).

    Args:
        file: A cluster file; paths in it start at the working directory, as for `ray up`.
        more: Further files.
        template: The files have yet to be filled in: their placeholders are no problem.
    """
    status = 0
    for path in (file, *more):
        found = check_file(path)
        for problem in found:
            print(f"error: {path}: {problem}", file=sys.stderr)
        for sentence in unchecked(path):
            print(f"note: {path}: {sentence}", file=sys.stderr)
        unfilled = placeholders(path)
        for name in unfilled:
            kind = "note" if template else "error"
            print(f"{kind}: {path}: {name} is a placeholder, fill it in", file=sys.stderr)
        if found or (unfilled and not template):
            status = 2
        else:
            print(f"{path}: no problem found")
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (default: the process's arguments); return the exit status."""
    return app.cli(prog="python -m capsdist", args=argv)


if __name__ == "__main__":
    sys.exit(main())
