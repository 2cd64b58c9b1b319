"""Presets that tests go through where each takes a while."""

from __future__ import annotations

from collections.abc import Iterator

from capsdist.config import PRESETS, Config, get_preset
from capsdist.config.models import CapsuleConfig
from capsdist.config.presets.mnist_ablation import ABLATIONS

__all__ = ["DISTINCT", "OF_CAPSULES", "VARIED"]


def _fields_set(config: Config) -> set[str]:
    """Family, and dotted fields that are not the family's default."""
    default = Config(model=type(config.model)()).model_dump(exclude={"preset"})
    found = config.model_dump(exclude={"preset"})
    fields = {f"{section}.{name}" for section, values in found.items() for name in values
              if values[name] != default[section][name]}  # fmt: skip
    return fields | {config.model.kind}


def _varied() -> Iterator[str]:
    left = {name: _fields_set(get_preset(name)) for name in DISTINCT}
    while any(left.values()):
        name = max(left, key=lambda each: len(left[each]))
        yield name
        left = {other: fields - left[name] for other, fields in left.items()}


DISTINCT = [name for name in PRESETS if name not in ABLATIONS]
"""Without those that are mnist_paper but for one value."""
OF_CAPSULES = [name for name in DISTINCT if isinstance(get_preset(name).model, CapsuleConfig)]
VARIED = list(_varied())
"""So many that each family is among them, and each field that any preset sets."""
