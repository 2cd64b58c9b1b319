"""The checker of cluster files: what `ray up` and `kubectl apply` accept and would regret."""

from __future__ import annotations

from capsdist.clusters.check import check_file
from capsdist.clusters.reading import placeholders

__all__ = ["check_file", "placeholders"]
