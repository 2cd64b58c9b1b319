"""Presets of earlier versions: a run that began with one continues with the values of that version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from capsdist.config.presets import PRESETS, get_preset
from capsdist.config.schema import Config
from capsdist.config.values import with_values

__all__ = ["as_begun"]


@dataclass(frozen=True)
class _Change:
    """What presets have said otherwise since, by dotted field, each with the value of version 0.1.

    new: fields that tell a run that began before; changed: fields that presets set otherwise since then.
    """

    new: Mapping[str, object]
    changed: Mapping[str, object]


def _changes(stored: Config) -> tuple[_Change, ...]:
    return (
        _Change(
            {
                "model.primary_coupling": False,
                "optim.epsilon_placement": "pytorch",
                "data.last_batch": "short",
            },
            {"train.precision": "auto"},
        ),
        _Change(
            {"data.train_split": "train", "data.validation_split": stored.data.test_split},
            {"train.keep_best": 1},
        ),
        _Change({"model.decoder_separate": False}, {}),
    )


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
    begun: dict[str, object] = {}
    for change in _changes(stored):
        begun |= _begun_before(change, config, stored, today)
    if not begun:
        return config, None
    note = ", ".join(f"{name}={value!r} not {_get(config, name)!r}" for name, value in begun.items())
    note = f"continues as version 0.1 began it: {note}; another --train.name gets today's preset"
    return with_values(config, begun), note


def _begun_before(change: _Change, config: Config, stored: Config, today: Config) -> dict[str, object]:
    """Return the fields of `change` that the run goes on with, if it began before, where `config` differs."""
    new = {name: value for name, value in change.new.items() if _get(today, name, value) != value}
    if not new or any(
        _get(stored, name) != value or _get(config, name) not in (value, _get(today, name))
        for name, value in new.items()
    ):
        return {}
    changed = {
        name: value
        for name, value in change.changed.items()
        if _get(stored, name) == value and _get(config, name) == _get(today, name)
    }
    return {name: value for name, value in (new | changed).items() if _get(config, name) != value}


def _get(config: Config, name: str, default: object = None) -> object:
    """Return a field; `default` where the family of networks does not have it."""
    section, field = name.split(".")
    return getattr(getattr(config, section), field, default)
