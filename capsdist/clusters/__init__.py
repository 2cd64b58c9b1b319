"""Checks of cluster files before `ray up` and `kubectl apply`: a help, not a security scanner."""

from __future__ import annotations

from capsdist.clusters.checker import check_file, unchecked
from capsdist.clusters.cluster_file import placeholders

__all__ = ["check_file", "placeholders", "unchecked"]
