"""Read a cluster file: YAML whose keys occur once, and the places that are still to be filled in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from capsdist.clusters.walk import mapping, texts
from capsdist.errors import DocumentError, Problem
from capsdist.storage.yaml_documents import parse_yaml

__all__ = ["placeholders", "read_documents"]

# YOUR-BUCKET and the like; 192.0.2.0/24 is reserved for examples (RFC 5737).
_PLACEHOLDER = re.compile(r"YOUR-[A-Z-]*[A-Z]|\b192\.0\.2\.\d{1,3}\b")

MAX_BYTES = 1_000_000
"""Largest cluster file; those of the project have some thousand bytes."""


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
        documents, repeated = parse_yaml(content.decode())
        for spec in (mapping(mapping(document).get("spec")) for document in documents):
            if isinstance(text := spec.get("runtimeEnvYAML"), str):
                inner, twice = parse_yaml(text, "spec.runtimeEnvYAML")
                spec["runtimeEnvYAML"] = inner[0] if inner else {}
                repeated += twice
    except OSError as error:
        return fault(f"cannot be read ({error.strerror})", "name a cluster file")
    except UnicodeDecodeError as error:
        return fault(f"is not YAML: {error}", "correct it")
    except DocumentError as error:
        return fault(str(error), "correct it")
    if not documents or not all(isinstance(document, dict) for document in documents):
        return fault("holds no mapping", "start from a file in cluster/")
    return documents, repeated


def placeholders(path: Path) -> list[str]:
    """Return the placeholders of a cluster file, YOUR-... and example addresses, each once, in order."""
    documents, _ = read_documents(path)
    found = (match for _, text in texts(documents) for match in _PLACEHOLDER.findall(text))
    return list(dict.fromkeys(found))
