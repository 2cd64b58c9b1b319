"""Find the loggers that a configuration names. Needs neither torch nor a logger's own package."""

from __future__ import annotations

from collections.abc import Iterator

from capsdist.config import Config
from capsdist.errors import ConfigError, Problem
from capsdist.importing import find
from capsdist.runs.loggers.base import Logger

__all__ = ["BUILT_IN", "find_logger", "logger_problems"]

BUILT_IN = {
    name: f"capsdist.runs.loggers.{name}:{shape}"
    for name, shape in (
        ("jsonl", "JsonlLogger"), ("tensorboard", "TensorBoardLogger"), ("wandb", "WandbLogger"),
        ("mlflow", "MlflowLogger"),
    )
}  # fmt: skip
"""Import paths of the loggers that have a name."""
_FIELD = "train.loggers"
_METHODS = [name for name in vars(Logger) if not name.startswith("_")]


def find_logger(name: str) -> type[Logger]:
    """Return the class that `name` means: a key of `BUILT_IN`, or an import path package.module:CLASS.

    Raises:
        ConfigError: there is no such class, or it lacks a method of a `Logger`.
    """
    found = find(name, BUILT_IN, type, field=_FIELD, thing="a logger")
    if missing := [method for method in _METHODS if not callable(getattr(found, method, None))]:
        fix = "inherit from capsdist.runs.loggers.Logger"
        raise ConfigError([Problem(_FIELD, name, f"lacks {' and '.join(missing)}", fix)])
    return found


def logger_problems(config: Config) -> Iterator[Problem]:
    """Return why loggers of `config` cannot be used: unknown names, missing packages, one named twice."""
    names = config.train.loggers
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield Problem(_FIELD, name, "is named twice", "name it once")
        try:
            problem = getattr(find_logger(name), "problem", lambda config: None)(config)
        except ConfigError as error:
            yield from error.problems
        else:
            if problem:
                yield problem
