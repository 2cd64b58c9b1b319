"""A dry run takes a run's place under another name, and leaves nothing there."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

from capsdist.config import Config
from capsdist.runs.files import open_files

__all__ = ["dry_run_of"]


@contextlib.contextmanager
def dry_run_of(config: Config) -> Iterator[Config]:
    """Yield the configuration of the `train.dry_run` steps; their folder is removed at the end."""
    train = config.train
    name = f"{train.name}.dry-run-{uuid.uuid4().hex[:8]}"
    steps = min(train.dry_run, train.max_steps or train.dry_run)
    try:
        yield config.model_copy(update={"train": train.model_copy(update={"name": name, "max_steps": steps})})
    finally:
        open_files(train.storage).remove(name, marker="config.json")
