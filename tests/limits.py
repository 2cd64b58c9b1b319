"""How long tests wait: no verdict on speed, only an end to waiting for what never comes."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE_S", "wait_until"]

PATIENCE_S = 1200.0
"""Ten times the longest start or compilation on a quiet machine; a busy one must not turn a test red."""


def wait_until(met: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for `met`, and fail saying `what` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < deadline, f"{what} within {timeout_s:g} s"
        time.sleep(0.05)
