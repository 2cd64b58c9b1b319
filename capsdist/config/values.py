"""Fields of a configuration by their dotted names, as options and tables write them."""

from __future__ import annotations

from collections.abc import Mapping

from capsdist.config.schema import Config

__all__ = ["with_values"]


def with_values(config: Config, values: Mapping[str, object]) -> Config:
    """Return `config` with `values` laid over it, unchecked; ``{"routing.iterations": 5}`` for example."""
    sections: dict[str, dict[str, object]] = {}
    for field, value in values.items():
        section, name = field.split(".")
        sections.setdefault(section, {})[name] = value
    update = {name: getattr(config, name).model_copy(update=changes) for name, changes in sections.items()}
    return config.model_copy(update=update)
