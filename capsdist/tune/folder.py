"""The folder of a search: what it is a search over, its journal, its trials' runs, and its result.

Ours. A search is continued by its name; what decides its result may not change in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from capsdist.config import Config
from capsdist.errors import ConfigError, Problem, RunError
from capsdist.train.cluster.rundir import RunFolder, changed_fields
from capsdist.tune.journal import Journal
from capsdist.tune.report import SearchResult
from capsdist.tune.space import Search, Space

__all__ = ["SearchFolder"]

# More trials go on where the search ended; how many run at a time does not decide what they find.
_FREE = frozenset({"search.trials", "search.concurrency", "search.record"})
_END_FIELDS = ("epochs", "max_steps")  # free for a run, but trials of different lengths cannot be compared


class SearchFolder:
    """The folder `storage`/`name` of a search; nothing is created before `create`."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.train.storage, config.train.name)
        self.name = config.train.name
        self.trials = self.path / "trials"
        self.tune = self.path / ".tune"
        self._run = RunFolder(self.path)
        self._definition = self.path / "search.json"
        self._result = self.path / "result.json"
        self.journal_path = self.path / "journal.jsonl"

    def create(self) -> None:
        """Make the folder.

        Raises:
            RunError: it cannot be written.
        """
        self._run.create()
        self.trials.mkdir(exist_ok=True)

    def lock(self) -> AbstractContextManager[object]:
        """Hold the search for this process; as `RunFolder.lock`."""
        return self._run.lock()

    def journal(self) -> Journal:
        """Open the journal."""
        return Journal(self.journal_path)

    def check_continues(self, config: Config, space: Space, search: Search) -> None:
        """Check that this search may continue what the folder holds; a new one always may.

        Raises:
            ConfigError: the folder is that of a training run, or of a search with other values of fields
                that decide the result; the message names them.
            RunError: search.json cannot be read.
        """
        if (self.path / "config.json").exists():
            rule = "is a training run, not a search"
            raise ConfigError([Problem("train.name", self.name, rule, "choose another --train.name")])
        if not self._definition.exists():
            return
        try:
            stored = json.loads(self._definition.read_text())
            before = Config.model_validate(stored["config"])
            spaces = Space.model_validate(stored["space"]), space
            searches = Search.model_validate(stored["search"]), search
        except (ValidationError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{self._definition}: {reason}; use the version that wrote it, or choose another --train.name"
            ) from None
        changed = dict(_differing("space", *spaces)) | dict(_differing("search", *searches))
        changed |= changed_fields(before, config)
        ends = ((before.train, config.train),)
        changed |= {
            f"train.{name}": (getattr(old, name), getattr(new, name))
            for old, new in ends
            for name in _END_FIELDS
            if getattr(old, name) != getattr(new, name)
        }
        changed = {field: values for field, values in changed.items() if field not in _FREE}
        if changed:
            text = ", ".join(f"{field} {old!r} -> {new!r}" for field, (old, new) in changed.items())
            rule, fix = (
                f"this search is another one: {text}",
                "set these back, or choose another --train.name",
            )
            raise ConfigError([Problem("train.name", self.name, rule, fix)])

    def write_definition(self, config: Config, space: Space, search: Search) -> None:
        """Write down what the search is over."""
        sections = {"config": config, "space": space, "search": search}
        _replace(self._definition, {name: part.model_dump(mode="json") for name, part in sections.items()})

    def read_result(self) -> SearchResult | None:
        """Return the result of a search that has ended, None before."""
        if not self._result.exists():
            return None
        return SearchResult.from_dict(json.loads(self._result.read_text()))

    def write_result(self, result: SearchResult) -> None:
        """Write the result."""
        _replace(self._result, result.to_dict())


def _differing(
    prefix: str, old: Space | Search, new: Space | Search
) -> Iterator[tuple[str, tuple[object, object]]]:
    for name in type(old).model_fields:
        if getattr(old, name) != getattr(new, name):
            yield f"{prefix}.{name}", (getattr(old, name), getattr(new, name))


def _replace(path: Path, values: Mapping[str, Any]) -> None:
    """Write `values` so that a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(path)
