"""Sections of configurations that earlier versions have stored, in the fields of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from capsdist.config.models import BaselineCNNConfig, CapsNetConfig, Loss, NoOptions, Routing
from capsdist.config.sections import Section

__all__ = ["as_read"]

# Version 0.1 stored the fields of both networks, and `routing` and `loss` with either.
_ALL_OF_0_1 = {
    CapsNetConfig: BaselineCNNConfig.model_fields.keys() - CapsNetConfig.model_fields.keys(),
    BaselineCNNConfig: CapsNetConfig.model_fields.keys() - BaselineCNNConfig.model_fields.keys(),
    NoOptions: Routing.model_fields.keys() | Loss.model_fields.keys(),
}
_MARKS = ({"dropout", "conv_channels"}, {"iterations", "backend"}, {"m_plus", "m_minus"})


def as_read(shape: type[Section], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored section without fields that version 0.1 stored although the network did not read them.

    A section of this version, which has no such fields, is returned as it is.
    """
    if not any(marks <= values.keys() for marks in _MARKS):
        return values
    foreign = _ALL_OF_0_1.get(shape, frozenset())
    return {name: value for name, value in values.items() if name not in foreign}
