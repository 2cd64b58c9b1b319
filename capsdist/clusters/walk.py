"""Walk through parsed YAML; values of an expected type; near names."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["Node", "entries", "mapping", "near", "nodes", "texts"]


class Node(NamedTuple):
    """A value in a document: its place, the name of the field that holds it or its list, the value."""

    field: str
    name: str
    value: Any


def nodes(value: object, field: str = "", name: str = "") -> Iterator[Node]:
    """Yield `value` and every value below it."""
    yield Node(field, name, value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from nodes(inner, f"{field}.{key}" if field else str(key), str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from nodes(inner, f"{field}[{index}]", name)


def texts(document: object) -> Iterator[tuple[str, str]]:
    """Yield place and text of every string.

    `command: [pip, install, torch]` comes as one line of shell, `{name: A, value: b}` also as `A=b`.
    """
    for field, name, value in nodes(document):
        words = name in ("command", "args")
        if isinstance(value, str) and not (words and field.endswith("]")):
            yield field, value
        elif isinstance(value, list) and words:
            yield field, shlex.join(map(str, value))
        elif isinstance(value, dict) and {"name", "value"} <= value.keys():
            yield f"{field}.value", f"{value['name']}={value['value']}"


def mapping(value: object) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one: the schemas report wrong types already."""
    return value if isinstance(value, dict) else {}


def entries(value: object) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def near(word: object, known: Iterable[str]) -> str | None:
    """Return the name among `known` that `word` is probably a misspelling of, None without one."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)
