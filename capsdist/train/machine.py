"""What is known of the processor of this machine. Needs no torch."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["cpu_info", "processor"]


def cpu_info() -> dict[str, str]:
    """Return the first processor's entry of /proc/cpuinfo, empty where there is none."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def processor() -> str:
    """Return the processor's model and the cores that this process may use: "AMD EPYC, 2 cores"."""
    name = cpu_info().get("model name", platform.processor() or platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} core{'' if cores == 1 else 's'}"
