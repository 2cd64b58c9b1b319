"""The checkpoint whose weights a new run starts from, found by its small files: without torch."""

from __future__ import annotations

from capsdist.config import Config
from capsdist.console import Log
from capsdist.errors import ConfigError, DocumentError, Problem
from capsdist.runs.files import open_files, read_document
from capsdist.runs.retention import (
    checkpoint_step,
    finished_checkpoints,
    found_checkpoints,
    newest_state,
    ranked,
    read_state,
)
from capsdist.storage import Folder
from capsdist.train.manifest import STATE, State, parse_state

__all__ = ["initial_state"]


def initial_state(config: Config, log: Log) -> State | None:
    """Return the state.json of what `train.init_from` names, None if it names nothing.

    Of a run it is the newest finished checkpoint, with `train.init_best` the one with the lowest validated
    error. Its weights are not read: a worker verifies them.

    Raises:
        ConfigError: there is no such checkpoint. DataError, RunError: the storage cannot be read.
    """
    if (place := config.train.init_from) is None:
        return None
    files = open_files(place)
    if files.local is None:
        files.check_readable(thing="run or checkpoint")
    try:
        state = _state(files, config.train.init_best, log)
    except DocumentError as error:
        raise _refused(place, f"cannot be used: {error}") from None
    if state is None:
        best = " that was validated" if config.train.init_best else ""
        raise _refused(place, f"holds no checkpoint{best}")
    return state


def _state(files: Folder, best: bool, log: Log) -> State | None:
    if (step := checkpoint_step(files.name)) is not None and files.parent is not None:
        return read_state(files.parent, step)
    if not found_checkpoints(files):  # a checkpoint under any name
        return read_document(files, STATE, parse_state)
    if not best:
        return newest_state(files)
    saved = ranked(finished_checkpoints(files, log))
    return read_state(files, saved[0].step) if saved else None


def _refused(place: str, rule: str) -> ConfigError:
    fix = "name a checkpoint, or a run that has trained"
    return ConfigError([Problem("train.init_from", place, rule, fix)])
