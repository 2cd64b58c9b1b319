"""Write a configuration as YAML with its comments, as `--print-config` and a search do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml

from capsdist.config.schema import Config
from capsdist.config.sections import Section

__all__ = ["to_yaml"]

_WIDTH = 100


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
