"""Check cluster files before they cost money."""

from __future__ import annotations

import sys
from pathlib import Path

from tyro.conf import Positional

from capsdist.clusters import check_file, placeholders, unchecked
from capsdist.console import DONE, INVALID

__all__ = ["check_cluster"]


def check_cluster(
    file: Positional[Path], more: Positional[tuple[Path, ...]] = (), template: bool = False
) -> int:
    """Check files for `ray up` (AWS, Google Cloud, own machines) and for KubeRay (RayCluster, RayJob).

    Args:
        file: A cluster file; paths in it start at the working directory, as for `ray up`.
        more: Further files.
        template: The files have yet to be filled in: their placeholders are no problem.
    """
    status = DONE
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
            status = INVALID
        else:
            print(f"{path}: no problem found")
    return status
