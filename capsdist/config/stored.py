"""Sections of configurations that earlier versions have stored, in the fields of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capsdist.config.models import (
    BaselineCNNConfig,
    CapsNetConfig,
    Loss,
    NetworkConfig,
    NoOptions,
    Routing,
)
from capsdist.config.sections import Section

__all__ = ["RENAMED", "SECTIONS", "as_read", "renamed"]

SECTIONS: Mapping[str, str] = {"cluster": "launch"}
"""Names of sections in version 0.1, and their names today."""

RENAMED: Mapping[str, Mapping[str, str]] = {
    "routing": {"form": "backend"},
    "loss": {"margin_form": "margin_reduction", "downweight": "absent_weight"},
    "train": {
        "global_batch": "global_batch_size",
        "accumulation": "gradient_accumulation_steps",
        "workers": "num_workers",
    },
}
"""Names of fields in version 0.1, by section, and their names today."""

# Version 0.1 stored the fields of both networks, and `routing` and `loss` with either.
_ALL_OF_0_1 = {
    CapsNetConfig: BaselineCNNConfig.model_fields.keys() - CapsNetConfig.model_fields.keys(),
    BaselineCNNConfig: CapsNetConfig.model_fields.keys() - NetworkConfig.model_fields.keys(),
    NoOptions: Routing.model_fields.keys() | Loss.model_fields.keys(),
}
_MARKS = ({"dropout", "conv_kernel"}, {"iterations", "backend"}, {"m_plus", "m_minus"})


def renamed(section: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of `section` by their names of today; one that has both names keeps them."""
    new = RENAMED.get(section, {})
    return {name if new.get(name, name) in values else new[name]: value for name, value in values.items()}


def as_read(section: str, shape: type[Section], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored section with today's names, and without fields that its network does not read.

    Version 0.1 stored the fields of all networks. A section of this version is returned as it is.
    """
    values = renamed(section, values)
    if not any(marks <= values.keys() for marks in _MARKS):
        return values
    foreign = _ALL_OF_0_1.get(shape, frozenset())
    return {name: value for name, value in values.items() if name not in foreign}
