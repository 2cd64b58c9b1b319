"""How much of a processor's cache one thread can count on, read from the operating system."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["cache_bytes_per_thread"]

MIB = 1 << 20
# What a thread is given where the caches are unknown, and at most. With 1 MiB of second and 16 MiB of third
# level a thread (EPYC) 4 and 8 MiB are equally fast; with 2 MiB and much more (Xeon) 8 take a tenth less time
# for 10 parents and a third less for 200.
MOST = 8 * MIB
LEAST = 1 * MIB
_UNITS = {"K": 1 << 10, "M": MIB, "G": 1 << 30}
SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")


@cache
def cache_bytes_per_thread(folder: Path = SYSFS) -> int:
    """Return the bytes of buffers that stay in the cache while one thread works through them.

    Half of a core's share of the second and third level, because operands pass through as well; from
    1 to 8 MiB. A virtual machine may report a cache that it shares with strangers: hence the upper limit.

    Args:
        folder: one `index*` folder a cache, with files `level`, `size` and `shared_cpu_list` (Linux).
    """
    shares = [_share(path) for path in sorted(folder.glob("index*"))]
    return min(max(sum(shares) // 2, LEAST), MOST) if any(shares) else MOST


def _share(path: Path) -> int:
    """Return the bytes of one cache by the processors that share it; 0 for the first level, or if unknown."""
    files = [path / name for name in ("level", "size", "shared_cpu_list")]
    if not all(file.exists() for file in files):  # some virtual machines tell no sizes
        return 0
    level, size, shared = (file.read_text().strip() for file in files)
    try:
        if int(level) < 2:
            return 0
        return int(size[:-1]) * _UNITS[size[-1]] // _num_cpus(shared)
    except (ValueError, LookupError, ZeroDivisionError):  # not as Linux documents it
        return 0


def _num_cpus(ranges: str) -> int:
    """Count the processors of a list such as 0-3,8."""
    ends = [part.partition("-") for part in ranges.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)
