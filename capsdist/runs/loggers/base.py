"""What a logger is, and what it is told of its run. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from capsdist.config import Config, Section
from capsdist.console import Log
from capsdist.errors import DocumentError
from capsdist.runs.files import read_document
from capsdist.storage import Folder
from capsdist.storage.documents import dump_json, parse_document
from capsdist.train.metrics import Row

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LoggedRun", "Logger", "curves", "hyperparameters"]

_IDENTIFIERS = "loggers.json"
_CURVES = {
    "train": ("loss", "error_percent", "learning_rate", "grad_norm", "images_per_s"),
    "validation": ("loss", "error_percent"),
    "test": ("loss", "error_percent"),
    "health": ("live_percent", "mean_length", "relative_entropy", "logit_change", "grad_norm"),
}
"""By kind of row: endings of the names that are drawn, so that every loss of a family is."""


class Logger(Protocol):
    """One destination of a run's events; made on rank 0 only.

    A class that inherits from this one defines `log` and whatever else it needs. It may also have a class
    method ``problem(config)``, which returns a `capsdist.errors.Problem` or None before anything starts.
    A logger that raises is left out for the rest of the run, which goes on.
    """

    def __init__(self, run: LoggedRun) -> None:
        """Begin; what may take long, or fail, is better done at the `start` row."""

    def log(self, row: Row) -> None:
        """Take one event; capsdist/train/README.md lists the kinds. A `start` row comes first.

        Rows after step `row["resumed_step"]` of a `start` row come again if an earlier attempt logged them.
        """
        ...

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Take a picture: uint8 [H, W, 3]. `step`: optimizer steps done."""

    def flush(self) -> None:
        """Write what is buffered."""

    def close(self) -> None:
        """Finish; nothing is logged afterwards. After an `end` row the run has not failed."""


@dataclass(frozen=True)
class LoggedRun:
    """The run that a logger writes down.

    Attributes:
        name: of the run.
        folder: a folder of this machine. What is written below it becomes part of the run: it is the run's
            folder, or is uploaded to it with every checkpoint.
        config: the whole configuration.
        files: the files of the run where they lie.
        log: takes one line for people.
    """

    name: str
    folder: Path
    config: Config
    files: Folder
    log: Log

    def identifier(self, service: str, start: Row, create: Callable[[], str]) -> str:
        """Return what `service` calls this run: as before if the run goes on, else what `create` returns.

        `start`: the run's `start` row. Identifiers are kept in the file loggers.json of the run.
        """
        known: dict[str, str] = {}
        try:
            known = read_document(self.files, _IDENTIFIERS, _parse) or {}
        except DocumentError as error:
            self.log(f"warning: passed over identifiers of loggers: {error}")
        if not start["resumed_step"] or service not in known:
            known = {**known, service: create()}
            self.files.write(_IDENTIFIERS, dump_json(known))
        return known[service]


def _parse(content: bytes) -> dict[str, str]:
    return parse_document(content, dict[str, str])


def curves(row: Row) -> dict[str, float]:
    """Return the numbers of a row that are worth a curve, by ``kind/name``; {} for most kinds of rows."""
    kind = row["kind"]
    return {
        f"{kind}/{name}": value
        for name, value in row.items()
        if kind in _CURVES and value is not None and name.endswith(_CURVES[kind])
    }


def hyperparameters(config: Config) -> dict[str, str | int | float | bool]:
    """Return the fields of `config` by dotted name; what is no number or text is shown as text."""
    return dict(_flat(config, ""))


def _flat(section: Section, prefix: str) -> Iterator[tuple[str, str | int | float | bool]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str | int | float | bool) else str(value)
