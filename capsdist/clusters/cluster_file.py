"""Read a cluster file: YAML whose keys occur once, and the places that are still to be filled in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from capsdist.clusters.walk import mapping, texts
from capsdist.errors import Problem

__all__ = ["placeholders", "read_documents"]

# YOUR-BUCKET and the like; 192.0.2.0/24 is reserved for examples (RFC 5737).
_PLACEHOLDER = re.compile(r"YOUR-[A-Z-]*[A-Z]|\b192\.0\.2\.\d{1,3}\b")

MAX_BYTES = 1_000_000
"""Largest cluster file; those of the project have some thousand bytes."""
MAX_EXPANDED = 4_000_000
"""Most characters and values that a file may stand for, each alias (`*name`) counted as what it repeats."""


class _TooLargeError(yaml.YAMLError):
    """A document whose aliases repeat too much, or themselves."""


class _Loader(yaml.SafeLoader):
    """Notes keys that occur twice in a mapping (YAML would silently keep the last), and bounds aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[Problem] = []

    def construct_document(self, node: yaml.Node) -> Any:
        """Return the document, unless a walk through it would take too long."""
        if _expanded(node, {}) > MAX_EXPANDED:
            raise _TooLargeError(
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


def read_documents(path: Path) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the mappings that a YAML file holds, and what is wrong with the file itself.

    The text `spec.runtimeEnvYAML` of a RayJob is replaced by what it holds.
    """

    def fault(rule: str, fix: str) -> tuple[list[dict[str, Any]], list[Problem]]:
        return [], [Problem("file", str(path), rule, fix)]

    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            return fault(f"has more than {MAX_BYTES:,} bytes", "name a cluster file")
        documents, repeated = _parse(content.decode())
        for spec in (mapping(mapping(document).get("spec")) for document in documents):
            if isinstance(text := spec.get("runtimeEnvYAML"), str):
                inner, twice = _parse(text, "spec.runtimeEnvYAML")
                spec["runtimeEnvYAML"] = inner[0] if inner else {}
                repeated += twice
    except OSError as error:
        return fault(f"cannot be read ({error.strerror})", "name a cluster file")
    except _TooLargeError as error:
        return fault(str(error), "write out what is needed")
    except RecursionError:
        return fault("is nested too deeply", "start from a file in cluster/")
    except (yaml.YAMLError, ValueError, TypeError) as error:  # PyYAML lets those of a date or a key through
        return fault(f"is not YAML: {' '.join(str(error).split())}", "correct it")
    if not documents or not all(isinstance(document, dict) for document in documents):
        return fault("holds no mapping", "start from a file in cluster/")
    return documents, repeated


def _expanded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return how many characters and values a node stands for, each alias of it counted again.

    Raises:
        _TooLargeError: it holds itself.
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
        raise _TooLargeError(f"repeats itself without end by an alias (line {node.start_mark.line + 1})")
    return size


def _parse(text: str, name: str = "file") -> tuple[list[Any], list[Problem]]:
    """Return the documents in `text` and the keys that occur twice; `name` stands in YAML's own messages."""
    loader = _Loader(text)
    loader.name = name
    try:
        documents = []
        while loader.check_data():
            documents.append(loader.get_data())
        return [document for document in documents if document is not None], loader.repeated
    finally:
        loader.dispose()


def placeholders(path: Path) -> list[str]:
    """Return the placeholders of a cluster file, YOUR-... and example addresses, each once, in order."""
    documents, _ = read_documents(path)
    found = (match for _, text in texts(documents) for match in _PLACEHOLDER.findall(text))
    return list(dict.fromkeys(found))
