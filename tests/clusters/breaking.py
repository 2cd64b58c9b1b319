"""What the fixture `broken` is called with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

DELETE = "(deleted)"
Break = Callable[[str, str, Any], Path]
"""Name of a shipped file, place in it, and what to put there, or DELETE; returns the file that has it."""
