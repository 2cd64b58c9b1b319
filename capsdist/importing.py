"""Find an object that a user names: a built-in name, or an import path."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TypeVar

from capsdist.errors import ConfigError, Problem

__all__ = ["find"]

T = TypeVar("T")


def find(name: str, built_in: Mapping[str, str], shape: type[T], *, field: str, thing: str) -> T:
    """Return the object that `name` means: a key of `built_in`, or an import path package.module:OBJECT.

    built_in: import paths by name; shape: the type that the object must have; field, thing: what an error
    calls the option and the object.

    Raises:
        ConfigError: there is no such object, or it has another type.
    """
    path = built_in.get(name, name)
    module, mark, attribute = path.partition(":")
    fix = f"choose one of {', '.join(built_in)}, or an import path package.module:OBJECT"
    if not mark or not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigError([Problem(field, name, f"is not {thing}", fix)])
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError([Problem(field, name, f"cannot be imported ({error})", fix)]) from None
    if not isinstance(found, shape):
        raise ConfigError([Problem(field, name, f"is a {type(found).__name__}, not a {shape.__name__}", fix)])
    return found
