"""Configuration files: read one over a preset, and write a configuration as YAML with its comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from capsdist.config import Config, Section
from capsdist.config.stored import SECTIONS, renamed
from capsdist.errors import ConfigError, DocumentError, Problem
from capsdist.runs.rundir import parse_config
from capsdist.storage.documents import parse_json, read_file
from capsdist.storage.place import is_url
from capsdist.storage.yaml_documents import parse_yaml

__all__ = ["overlaid", "read_values", "to_yaml"]

_FIX = "name a YAML or JSON file with a configuration or a part of one"
_WIDTH = 100


def read_values(file: str) -> dict[str, Any]:
    """Return the values in a configuration file: YAML, or JSON if its name ends so; whole or a part of one.

    Raises:
        ConfigError: it cannot be read, holds no mapping, or names a key twice.
    """
    if is_url(file):
        raise _refused(file, "is not a file of this machine", fix="copy it here first")
    try:
        content = read_file(Path(file))
        if file.endswith(".json"):
            documents, repeated = [parse_json(content)], []
        else:
            documents, repeated = parse_yaml(content.decode())
    except FileNotFoundError:
        raise _refused(file, "cannot be read (No such file or directory)") from None
    except UnicodeDecodeError as error:
        raise _refused(file, f"is not UTF-8 at byte {error.start}") from None
    except DocumentError as error:
        raise _refused(file, str(error)) from None
    if repeated:
        raise ConfigError(repeated)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise _refused(file, "holds no mapping of sections")
    return documents[0]


def overlaid(base: Config, values: Mapping[str, Any]) -> Config:
    """Return `base` with `values` of a configuration file laid over it, section by section.

    Raises:
        ConfigError: with all problems: fields that there are not, and values of another type.
    """
    merged = base.model_dump(mode="json")
    for name, value in values.items():
        name = SECTIONS.get(name, name)
        known = merged.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            value = {**known, **renamed(name, value)}
        merged[name] = value
    try:
        return parse_config(json.dumps(merged, default=str).encode())
    except DocumentError as error:  # a number that is not finite
        raise ConfigError([Problem("config", "the file", str(error), "correct it")]) from None


def to_yaml(config: Config) -> str:
    """Return `config` as YAML that `--config` reads, each field under what it means."""
    return (
        "\n".join(["# Read by --config FILE.yaml; any part of it may be left out.", *_lines(config, "")])
        + "\n"
    )


def _lines(section: Section, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        text = " ".join((field.description or "").split())
        yield from textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        value = getattr(section, name)
        if not isinstance(value, Section):
            plain = list(value) if isinstance(value, tuple) else value
            shown = yaml.safe_dump(plain, default_flow_style=True, width=10**6)
            shown = shown.removesuffix("\n...\n").rstrip()
            yield f"{indent}{name}: {shown}"
        elif not type(value).model_fields:
            yield f"{indent}{name}: {{}}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")


def _refused(file: str, rule: str, fix: str = _FIX) -> ConfigError:
    return ConfigError([Problem("config", file, rule, fix)])
