"""Configuration files: read one over a preset. `capsdist.config.as_yaml` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from capsdist.config import Config
from capsdist.config.stored import SECTIONS, renamed
from capsdist.errors import ConfigError, DataError, DocumentError, Problem
from capsdist.runs.rundir import parse_config
from capsdist.storage import open_folder
from capsdist.storage.documents import parse_json, read_file
from capsdist.storage.place import folder_and_name, is_url

__all__ = ["overlaid", "read_values"]


def read_values(file: str) -> dict[str, Any]:
    """Return the values in a configuration file: YAML, or JSON if its name ends so; whole or a part of one.

    file: a local path or an s3:// URL.

    Raises:
        ConfigError: it cannot be read, holds no mapping, or names a key twice.
    """
    try:
        content = _content(file)
        if file.endswith(".json"):
            documents, repeated = [parse_json(content)], []
        else:
            from capsdist.storage.yaml_documents import parse_yaml

            documents, repeated = parse_yaml(content.decode())
    except FileNotFoundError:
        raise _refused(file, "cannot be read (No such file or directory)") from None
    except UnicodeDecodeError as error:
        raise _refused(file, f"is not UTF-8 at byte {error.start}") from None
    except DocumentError as error:
        raise _refused(file, str(error)) from None
    except DataError as error:
        raise _refused(file, f"cannot be read ({error})") from None
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


def _content(file: str) -> bytes:
    if not is_url(file):
        return read_file(Path(file))
    place, name = folder_and_name(file)
    content = open_folder(place).read(name)
    if content is None:
        raise FileNotFoundError
    return content


def _refused(file: str, rule: str) -> ConfigError:
    fix = "name a YAML or JSON file with a configuration or a part of one"
    return ConfigError([Problem("config", file, rule, fix)])
