"""YAML of users: keys that occur twice are reported, and aliases cannot make a small file a large one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable
from typing import Any

import yaml

from capsdist.errors import DocumentError, Problem

__all__ = ["MAX_EXPANDED", "parse_yaml"]

MAX_EXPANDED = 4_000_000
"""Most characters and values that a file may stand for, each alias (`*name`) counted as what it repeats."""


class _Loader(yaml.SafeLoader):
    """Notes keys that occur twice in a mapping (YAML would silently keep the last), and bounds aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[Problem] = []

    def construct_document(self, node: yaml.Node) -> Any:
        """Return the document, unless a walk through it would take too long."""
        if _expanded(node, {}) > MAX_EXPANDED:
            raise DocumentError(
                f"stands for more than {MAX_EXPANDED:,} characters, because its aliases repeat them"
            )
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the mapping with its keys as text, as JSON schemas expect them; see the class."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                rule = f"occurs twice in one mapping (line {key_node.start_mark.line + 1})"
                self.repeated.append(Problem(str(key), key, rule, "remove one: the last would win"))
            seen.add(key)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


# YAML 1.1, which PyYAML reads, takes 1e-3 for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str, name: str = "file") -> tuple[list[Any], list[Problem]]:
    """Return the documents in `text`, without empty ones, and the keys that occur twice.

    `name` stands in YAML's own messages.

    Raises:
        DocumentError: it is not YAML, nested too deeply, or its aliases repeat too much.
    """
    loader = _Loader(text)
    loader.name = name
    try:
        documents = []
        while loader.check_data():
            documents.append(loader.get_data())
        return [document for document in documents if document is not None], loader.repeated
    except RecursionError:
        raise DocumentError("is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # PyYAML lets those of a date or a key through
        raise DocumentError(f"is not YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many characters and values a node stands for, each alias of it counted again.

    Raises:
        DocumentError: it holds itself.
    """
    if id(node) not in known:
        known[id(node)] = None  # until it is counted
        if isinstance(node, yaml.ScalarNode):
            known[id(node)] = 1 + len(node.value)
        else:
            pairs = isinstance(node, yaml.MappingNode)
            parts = itertools.chain.from_iterable(node.value) if pairs else node.value
            known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    size = known[id(node)]
    if size is None:
        raise DocumentError(f"repeats itself without end by an alias (line {node.start_mark.line + 1})")
    return size
