"""How much memory this machine has, and how much is free, within the limits of its control groups (cgroups).

A container sees the memory of the whole machine, and is killed when it takes more than its group may have.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_memory", "memory_here"]

_UNLIMITED = 1 << 60  # version 1 writes a number like this where there is no limit
_FILES = (
    # mount point, name of the controller in /proc/self/cgroup, limit, usage, cached files that can be dropped
    ("sys/fs/cgroup", "", "memory.max", "memory.current", "inactive_file"),
    (
        "sys/fs/cgroup/memory",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def memory_here(root: Path = Path("/")) -> int:
    """Return the memory of this machine, or what its container may use of it, in bytes.

    root: folder in which the files of the system are looked for.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _limits(root))])


def free_memory(root: Path = Path("/")) -> int:
    """Return how many bytes this process can still take before the machine or its container has no more.

    Cached files that the system can drop count as free. root: as for `memory_here`.
    """
    import psutil  # late: most commands do not need it

    free = [limit - used for limit, used in _limits(root)]
    return max(0, min([psutil.virtual_memory().available, *free]))


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and usage, in bytes, of each group of this process that has a limit, outer ones too."""
    for mount, controller, limit_name, usage_name, cached_name in _FILES:
        top = root / mount
        own = _own_group(root, controller)
        # Inside a container the path may be that of the machine, which is not visible: then the top counts.
        for folder in dict.fromkeys([top / own, *(top / own).parents, top]):
            if not folder.is_relative_to(top):
                continue
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                limit = int((folder / limit_name).read_text())
                used = int((folder / usage_name).read_text())
                if limit < _UNLIMITED:
                    yield limit, used - min(used, _cached(folder, cached_name))


def _own_group(root: Path, controller: str) -> str:
    """Return the path of this process's group, relative to its mount point, "" if it is not known."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):  # version 2 has no names
                return path.lstrip("/")
    return ""


def _cached(folder: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in (folder / "memory.stat").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
