"""Settings of storage from the environment; they differ from node to node and are in no record."""

from __future__ import annotations

import os
from pathlib import Path

from capsdist.errors import DataError

__all__ = [
    "cache_budget_from_environment", "cache_folder_from_environment", "deadline_from_environment",
    "positive_from_environment",
]  # fmt: skip


def deadline_from_environment() -> float:
    """Return the seconds that one object may take, all attempts together: CAPSDIST_S3_DEADLINE_S, else 120.

    Raises:
        DataError: not a positive number.
    """
    return positive_from_environment("CAPSDIST_S3_DEADLINE_S", 120.0)


def cache_budget_from_environment() -> int:
    """Return the bytes that a node's cache may hold: CAPSDIST_CACHE_BYTES, else 64 GiB.

    Raises:
        DataError: not a positive number.
    """
    return int(positive_from_environment("CAPSDIST_CACHE_BYTES", 64 * 2**30))


def cache_folder_from_environment() -> Path:
    """Return a node's cache: CAPSDIST_CACHE, else capsdist in the user's cache folder (XDG_CACHE_HOME)."""
    if folder := os.environ.get("CAPSDIST_CACHE"):
        return Path(folder).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home, "capsdist")


def positive_from_environment(name: str, default: float) -> float:
    """Return the number in the environment variable `name`, `default` without one.

    Raises:
        DataError: not a positive number.
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise DataError(f"{name}={text!r}: must be a positive number; correct it in the environment")
    return value
