"""Presets of version 0.1: a run that began with one continues with the values of that version."""

from __future__ import annotations

from collections.abc import Mapping

from capsdist.config.presets import PRESETS, get_preset
from capsdist.config.schema import Config

__all__ = ["as_begun"]

# Fields that version 0.1 did not have, with what it did; their defaults, too.
_NEW: Mapping[str, object] = {
    "model.primary_coupling": False,
    "optim.epsilon_placement": "pytorch",
    "data.last_batch": "short",
}
# Fields that presets of version 0.1 set otherwise.
_CHANGED: Mapping[str, object] = {"train.precision": "auto"}


def as_begun(config: Config, stored: Config) -> tuple[Config, str | None]:
    """Return what continues a run or search that was begun with `stored`, and a note if that is not `config`.

    A preset may say something else than in version 0.1. Where `stored` has what 0.1 did in every new field
    that the preset of `config` sets, and `config` has what the preset sets today, nobody has asked for a
    change: the run goes on as it began. Fields that the command line has set to another value than the preset
    stay, and so are refused as of any other run.
    """
    if config.preset not in PRESETS:
        return config, None
    today = get_preset(config.preset)
    new = {name: value for name, value in _NEW.items() if _get(today, name, value) != value}
    if not new or any(
        _get(stored, name) != value or _get(config, name) not in (value, _get(today, name))
        for name, value in new.items()
    ):
        return config, None
    changed = {
        name: value
        for name, value in _CHANGED.items()
        if _get(stored, name) == value and _get(config, name) == _get(today, name)
    }
    begun = {name: value for name, value in (new | changed).items() if _get(config, name) != value}
    if not begun:
        return config, None
    note = ", ".join(f"{name}={value!r} not {_get(config, name)!r}" for name, value in begun.items())
    for name, value in begun.items():
        section, field = name.split(".")
        part = getattr(config, section).model_copy(update={field: value})
        config = config.model_copy(update={section: part})
    return config, f"continues as version 0.1 began it: {note}; another --train.name gets today's preset"


def _get(config: Config, name: str, default: object = None) -> object:
    """Return a field; `default` where the family of networks does not have it."""
    section, field = name.split(".")
    return getattr(getattr(config, section), field, default)
