"""Small helpers over parsed YAML: values of an expected kind, near names, versions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import metadata
from typing import Any

__all__ = ["entries", "integer", "mapping", "near", "ray_version"]


def mapping(value: object) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one: Ray's schema reports wrong types already."""
    return value if isinstance(value, dict) else {}


def entries(value: object) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def integer(value: object, default: int) -> int:
    """Return `value` if it is an integer, else `default`."""
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def near(word: object, known: Iterable[str], *, alike: float = 0.6) -> str | None:
    """Return the name among `known` that `word` is probably a misspelling of, None without one.

    `alike`: least similarity as difflib measures it, 0 to 1.
    """
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1, cutoff=alike)), None)


def ray_version() -> str:
    """Return the version of the Ray that launches from here; reads metadata, does not import Ray."""
    return metadata.version("ray")
