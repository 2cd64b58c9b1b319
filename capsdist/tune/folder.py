"""The folder of a search: what it is a search over, its journal, its trials' runs, and its result.

A search is continued by its name; what decides its result may not change in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pydantic import BaseModel, ConfigDict

from capsdist.config import Config
from capsdist.config.as_yaml import to_yaml
from capsdist.config.earlier import as_begun
from capsdist.console import Log
from capsdist.errors import ConfigError, DocumentError, Problem, RunError
from capsdist.runs.files import create, open_files, read_document
from capsdist.runs.locks import Lock, run_lock
from capsdist.runs.rundir import run_place
from capsdist.storage import join
from capsdist.storage.documents import dump_json, parse_document, seal
from capsdist.tune.cells import changed_values
from capsdist.tune.journal import Journal
from capsdist.tune.report import BEST_NAME, TRIALS_NAME, SearchResult
from capsdist.tune.space import Search, Space

__all__ = ["GRID_NAME", "SearchFolder"]

_DEFINITION, _RESULT = "search.json", "result.json"
GRID_NAME = "grid.json"
_KINDS = {"training run": "config.json", "search": _DEFINITION, "grid": GRID_NAME}
# More trials go on where the search ended; how many run at a time does not decide what they find.
_FREE = frozenset({"search.trials", "search.concurrency", "search.record"})


class _Definition(BaseModel):
    """What search.json holds."""

    model_config = ConfigDict(extra="forbid")

    config: Config
    space: Space
    search: Search


class SearchFolder:
    """The folder `storage`/`name` of a search, a local path or an s3:// URL; nothing is made before `create`.

    files: what is in it; trials: storage of the trials' runs. `log` is told of what is damaged and passed
    over.
    """

    def __init__(self, config: Config, log: Log = lambda text: None) -> None:
        place, self._log = run_place(config), log
        self.files = open_files(place, log)
        self.name = config.train.name
        self.trials = join(place, TRIALS_NAME)

    def create(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            RunError: it cannot.
        """
        create(self.files)

    def lock(self, log: Log = lambda text: None) -> AbstractContextManager[Lock]:
        """Hold the search for this process; as `RunFolder.lock`."""
        return run_lock(self.files, log)

    def journal(self) -> Journal:
        """Open the journal.

        Raises:
            RunError: it cannot be read.
        """
        names = open_files(self.trials).folders("trial-")
        numbers = (name.removeprefix("trial-") for name in names)
        return Journal(self.files, self._log, [int(each) for each in numbers if each.isdecimal()])

    def check_continues(self, config: Config, space: Space, search: Search) -> tuple[Config, str | None]:
        """Check that this search may continue what the folder holds; a new one always may.

        Return the configuration to continue with, and a note if that is not `config`; see `as_begun`.

        Raises:
            ConfigError: the folder is that of a training run, or of a search with other values of fields
                that decide the result; the message names them.
            RunError: search.json cannot be read.
        """
        self.check_kind("search")
        stored = self._stored()
        if stored is None:
            return config, None
        changed = dict(_differing("space", stored.space, space))
        changed |= dict(_differing("search", stored.search, search))
        config, note = as_begun(config, stored.config)
        changed |= changed_values(stored.config, config)
        changed = {field: values for field, values in changed.items() if field not in _FREE}
        if changed:
            raise self.another("search", changed)
        return config, note

    def check_kind(self, kind: str) -> None:
        """Check that the folder is not that of something else than a `kind`.

        Raises:
            ConfigError: it is.
        """
        for other, name in _KINDS.items():
            if other != kind and self.files.read(name) is not None:
                rule, fix = f"is a {other}, not a {kind}", "choose another --train.name"
                raise ConfigError([Problem("train.name", self.name, rule, fix)])

    def another(self, kind: str, changed: Mapping[str, tuple[object, object]]) -> ConfigError:
        """Return the error that refuses other values than the folder holds, old and new by field."""
        text = ", ".join(f"{field} {old!r} -> {new!r}" for field, (old, new) in changed.items())
        rule, fix = f"this {kind} is another one: {text}", "set these back, or choose another --train.name"
        return ConfigError([Problem("train.name", self.name, rule, fix)])

    def as_begun(self, config: Config) -> Config | None:
        """Return what continues the search where its preset has changed since; see `config.earlier.as_begun`.

        None: it lies in object storage, which may take long to answer before `create` has tried it.

        Raises:
            RunError: search.json cannot be read.
        """
        if self.files.local is None:
            return None
        stored = self._stored()
        return as_begun(config, stored.config)[0] if stored else config

    def _stored(self) -> _Definition | None:
        try:
            return read_document(self.files, _DEFINITION, _parse_definition)
        except DocumentError as error:
            raise RunError(
                f"{error}; use the version that wrote it, or if this command has the options that the search "
                "was started with, delete the file and start again; else choose another --train.name"
            ) from None

    def write_definition(self, config: Config, space: Space, search: Search) -> None:
        """Write down what the search is over."""
        sections = {"config": config, "space": space, "search": search}
        self.write(_DEFINITION, {name: part.model_dump(mode="json") for name, part in sections.items()})

    def read_result(self) -> SearchResult | None:
        """Return the result of a search that has ended, None before.

        A damaged one, or one of version 0.1 (without a checksum), is passed over: it is summed up anew.
        """
        try:
            return read_document(self.files, _RESULT, _parse_result)
        except DocumentError as error:
            self._log(f"warning: passed over a result: {error}")
            return None

    def write_result(self, result: SearchResult) -> None:
        """Write the configuration of the best trial, then the result."""
        self.files.write(BEST_NAME, to_yaml(Config.model_validate(result.config)).encode())
        self.write(_RESULT, result.to_dict())

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a document of the folder, with a checksum."""
        self.files.write(name, dump_json(seal(values)))


def _parse_definition(content: bytes) -> _Definition:
    return parse_document(content, _Definition)


def _parse_result(content: bytes) -> SearchResult:
    return parse_document(content, SearchResult, sealed=True)


def _differing(
    prefix: str, old: Space | Search, new: Space | Search
) -> Iterator[tuple[str, tuple[object, object]]]:
    for name in type(old).model_fields:
        if getattr(old, name) != getattr(new, name):
            yield f"{prefix}.{name}", (getattr(old, name), getattr(new, name))
